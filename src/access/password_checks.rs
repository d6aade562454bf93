//! The queue of password checks: which is run next, which wait, and which are refused.
//!
//! A check costs CPU time by design, so only a few run at once, and every check has an owner: a user name at an address,
//! at a site. Addresses take turns; at one address the user with the fewest recent wrong passwords is next. After some
//! wrong ones the next check of that user at that address has to wait, and much later the checks of the whole address and
//! of its IPv6 site. So guesses at one user's password delay neither other addresses nor other users behind the same
//! address by more than the check that is running.
//!
//! A name that is in no file is treated like any other: what the queue does must not tell which users there are.
//!
//! [`CheckQueue`] decides and is told the time; [`PasswordChecks`] waits.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::networks::client_network;
use crate::bounded;
use crate::sync::lock;

/// Most password checks that run at the same time: they must not take every core from transfers.
const RUNNING_MAX: usize = 2;
/// Most checks that wait, of all clients together: each is a few hundred bytes, and one pass over all of them is short.
const WAITING_MAX: usize = 1024;
/// Most checks that wait for one site: half, so that no site fills the queue.
const WAITING_PER_SITE_MAX: usize = 512;
/// Most checks that wait for one address: a few hundred clients with logins of their own may come through one load balancer.
const WAITING_PER_ADDRESS_MAX: usize = 256;
/// Most checks that wait for one user at one address. A user has one password: more different ones at once are guesses.
const WAITING_PER_USER_MAX: usize = 4;
/// Most time that a check waits: a container runtime gives up after 30 s and must hear of a failure before that.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Number of owners of wrong passwords, and of addresses that had a turn, that are remembered: some 100 bytes each.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// How wrong passwords slow down further checks: the first few cost nothing, each of the others `pause`.
struct Penalty {
    free: u32,
    pause: Duration,
}

/// One user at one address: a person mistypes a password a few times, a guesser gets one guess a second.
const USER_PENALTY: Penalty = Penalty { free: 5, pause: Duration::from_secs(1) };
/// One address, which may be a whole site behind a load balancer: many users may mistype at once. A guesser who tries
/// many names gets 40 guesses a second.
const ADDRESS_PENALTY: Penalty = Penalty { free: 100, pause: Duration::from_millis(25) };
/// An IPv6 site (/48), which can have 65,536 networks.
const SITE_PENALTY: Penalty = Penalty { free: 400, pause: Duration::from_millis(10) };

/// The user, address and site that a check is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CheckOwner {
    /// The IPv6 /48 that the address is in; for IPv4 the address.
    site: IpAddr,
    /// The IPv6 /64 that the client is in; for IPv4 the address.
    address: IpAddr,
    /// The user's name, hashed: names that clients invent take no memory.
    user: u64,
}

/// The number of a check that waits or runs.
type CheckNumber = u64;

/// The scope that wrong passwords are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PenaltyScope {
    User(IpAddr, u64),
    Address(IpAddr),
    Site(IpAddr),
}

/// The decision on a check that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Waits(CheckNumber),
    /// It waits, and the second check, which has worse prospects, is refused for it.
    WaitsInsteadOf(CheckNumber, CheckNumber),
    Refused,
}

/// The checks that wait and run, and the owners of wrong passwords.
struct CheckQueue {
    /// Waiting checks, in the order in which they came.
    waiting: Vec<(CheckNumber, CheckOwner)>,
    running: Vec<(CheckNumber, CheckOwner)>,
    /// The times until which the penalties of wrong passwords last, at one pause for each.
    penalties: LruCache<PenaltyScope, Instant>,
    /// The last turn of an address or site.
    turns: LruCache<IpAddr, u64>,
    turn: u64,
    tickets: CheckNumber,
}

impl CheckOwner {
    fn of(client: IpAddr, user: u64) -> Self {
        let address = client_network(client);
        let site = match address {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80)),
            IpAddr::V4(_) => address,
        };
        Self { site, address, user }
    }

    /// The scopes that wrong passwords of this owner are counted for. An IPv4 address is counted once.
    fn scopes(&self) -> impl Iterator<Item = (PenaltyScope, &'static Penalty)> {
        let site = self.address.is_ipv6().then_some((PenaltyScope::Site(self.site), &SITE_PENALTY));
        let user = (PenaltyScope::User(self.address, self.user), &USER_PENALTY);
        [user, (PenaltyScope::Address(self.address), &ADDRESS_PENALTY)].into_iter().chain(site)
    }
}

impl CheckQueue {
    fn new() -> Self {
        Self {
            waiting: Vec::new(),
            running: Vec::new(),
            penalties: bounded::lru(REMEMBERED_MAX),
            turns: bounded::lru(REMEMBERED_MAX),
            turn: 0,
            tickets: 0,
        }
    }

    /// Decides on a check of `owner` that is asked for.
    fn enter(&mut self, owner: CheckOwner, now: Instant) -> Admission {
        if self.count(|other| *other == owner) >= WAITING_PER_USER_MAX {
            return Admission::Refused;
        }
        let removed = match self.crowd(&owner) {
            None => None,
            Some(crowd) => match self.worst_of(&crowd, &owner, now) {
                Some(worst) => Some(worst),
                None => return Admission::Refused,
            },
        };
        self.tickets += 1;
        let ticket = self.tickets;
        self.waiting.push((ticket, owner));
        match removed {
            None => Admission::Waits(ticket),
            Some(removed) => {
                self.leave(removed);
                Admission::WaitsInsteadOf(ticket, removed)
            }
        }
    }

    /// Removes a check that waits no longer.
    fn leave(&mut self, ticket: CheckNumber) {
        self.waiting.retain(|(other, _)| *other != ticket);
    }

    /// Starts the next check, if one may run: it counts as running from then on.
    fn next(&mut self, now: Instant) -> Option<CheckNumber> {
        if self.running.len() >= RUNNING_MAX {
            return None;
        }
        let ready = self.waiting.iter().copied().filter(|(_, owner)| self.may_run(owner, now));
        let (ticket, owner) = ready.min_by_key(|(ticket, owner)| {
            let turns = (self.last_turn(owner.site), self.last_turn(owner.address));
            (turns, self.penalty_of_user(owner, now), *ticket)
        })?;
        self.leave(ticket);
        self.running.push((ticket, owner));
        self.turn += 1;
        for place in [owner.site, owner.address] {
            self.turns.put(place, self.turn);
        }
        Some(ticket)
    }

    /// Notes that a check has ended.
    fn end(&mut self, ticket: CheckNumber, was_wrong: bool, now: Instant) {
        let Some(at) = self.running.iter().position(|(other, _)| *other == ticket) else { return };
        let (_, owner) = self.running.swap_remove(at);
        if !was_wrong {
            return;
        }
        for (scope, penalty) in owner.scopes() {
            let until = self.penalties.get(&scope).map_or(now, |until| now.max(*until));
            self.penalties.put(scope, until + penalty.pause);
        }
    }

    /// The time at which the wrong passwords so far let a waiting check run; `None` if it does not wait.
    fn due(&self, ticket: CheckNumber, now: Instant) -> Option<Instant> {
        let (_, owner) = self.waiting.iter().find(|(other, _)| *other == ticket)?;
        Some(now + self.pause(owner, now))
    }

    /// Whether a check may run. One check of a user runs at a time, so that its result counts for the next.
    fn may_run(&self, owner: &CheckOwner, now: Instant) -> bool {
        self.running.iter().all(|(_, other)| other != owner) && self.pause(owner, now).is_zero()
    }

    /// The time that a check must wait for the wrong passwords before it.
    fn pause(&self, owner: &CheckOwner, now: Instant) -> Duration {
        let pause = |(scope, penalty): (PenaltyScope, &Penalty)| {
            self.penalty(&scope, now).saturating_sub(penalty.pause * (penalty.free - 1))
        };
        owner.scopes().map(pause).max().unwrap_or_default()
    }

    /// The part of the penalties that has not passed yet.
    fn penalty(&self, scope: &PenaltyScope, now: Instant) -> Duration {
        self.penalties.peek(scope).map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn penalty_of_user(&self, owner: &CheckOwner, now: Instant) -> Duration {
        self.penalty(&PenaltyScope::User(owner.address, owner.user), now)
    }

    fn last_turn(&self, place: IpAddr) -> u64 {
        self.turns.peek(&place).copied().unwrap_or(0)
    }

    fn count(&self, is_meant: impl Fn(&CheckOwner) -> bool) -> usize {
        self.waiting.iter().filter(|(_, owner)| is_meant(owner)).count()
    }

    /// The checks that `owner` must compete with, if one more would be too many.
    fn crowd(&self, owner: &CheckOwner) -> Option<CheckCrowd> {
        if self.count(|other| other.address == owner.address) >= WAITING_PER_ADDRESS_MAX {
            return Some(CheckCrowd::Address(owner.address));
        }
        let of_site = self.count(|other| other.site == owner.site);
        if of_site >= WAITING_PER_SITE_MAX {
            return Some(CheckCrowd::Site(owner.site));
        }
        if self.waiting.len() < WAITING_MAX {
            return None;
        }
        let mut sites: HashMap<IpAddr, usize> = HashMap::new();
        for (_, other) in &self.waiting {
            *sites.entry(other.site).or_default() += 1;
        }
        let fullest = sites.into_iter().max_by_key(|(_, count)| *count)?;
        // A site with fewer checks than another has a better right to the place.
        Some(if fullest.1 > of_site + 1 {
            CheckCrowd::Other(fullest.0)
        } else {
            CheckCrowd::Site(owner.site)
        })
    }

    /// The check of a crowd that gives way to one of `owner`, if one does: that of the user with the most wrong passwords,
    /// and of these the newest.
    fn worst_of(&self, crowd: &CheckCrowd, owner: &CheckOwner, now: Instant) -> Option<CheckNumber> {
        let members = self.waiting.iter().filter(|(_, other)| match crowd {
            CheckCrowd::Address(address) => other.address == *address,
            CheckCrowd::Site(site) | CheckCrowd::Other(site) => other.site == *site,
        });
        let (ticket, worst) =
            members.max_by_key(|(ticket, other)| (self.penalty_of_user(other, now), *ticket))?;
        let gives_way = matches!(crowd, CheckCrowd::Other(_))
            || self.penalty_of_user(worst, now) > self.penalty_of_user(owner, now);
        gives_way.then_some(*ticket)
    }
}

/// Checks that compete for places.
enum CheckCrowd {
    Address(IpAddr),
    Site(IpAddr),
    /// Those of another site, which has more of them.
    Other(IpAddr),
}

/// The queue, with the checks that wait for it.
pub(super) struct PasswordChecks {
    state: Mutex<QueueState>,
    names: RandomState,
}

struct QueueState {
    queue: CheckQueue,
    /// Sends the permit when a check may run, and is dropped when the check is refused.
    waiting: HashMap<CheckNumber, oneshot::Sender<CheckPermit>>,
}

/// The right to check a password now. The check ends when this is dropped.
pub(super) struct CheckPermit {
    checks: Arc<PasswordChecks>,
    ticket: CheckNumber,
    was_wrong: bool,
}

impl PasswordChecks {
    pub(super) fn new() -> Arc<Self> {
        let state = QueueState { queue: CheckQueue::new(), waiting: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), names: RandomState::new() })
    }

    /// Waits for the turn of `user` at `client`. `None` if too many checks are before it.
    pub(super) async fn turn(self: &Arc<Self>, client: IpAddr, user: &str) -> Option<CheckPermit> {
        let owner = CheckOwner::of(client, self.names.hash_one(user));
        let (ticket, mut turn) = self.enter(owner)?;
        let given_up_at = Instant::now() + WAIT_MAX;
        self.run_next();
        loop {
            let now = Instant::now();
            let due = lock(&self.state).queue.due(ticket, now);
            // A check that is due runs when another one ends.
            let wake_at = due.filter(|due| *due > now).unwrap_or(given_up_at).min(given_up_at);
            tokio::select! {
                turn = &mut turn => return turn.ok(),
                () = sleep_until(wake_at) => {}
            }
            if wake_at == given_up_at {
                self.leave(ticket);
                // The permit may have been sent meanwhile.
                return turn.try_recv().ok();
            }
            self.run_next();
        }
    }

    fn enter(&self, owner: CheckOwner) -> Option<(CheckNumber, oneshot::Receiver<CheckPermit>)> {
        let (sender, turn) = oneshot::channel();
        let mut state = lock(&self.state);
        let ticket = match state.queue.enter(owner, Instant::now()) {
            Admission::Waits(ticket) => ticket,
            Admission::WaitsInsteadOf(ticket, removed) => {
                state.waiting.remove(&removed);
                ticket
            }
            Admission::Refused => return None,
        };
        state.waiting.insert(ticket, sender);
        Some((ticket, turn))
    }

    fn leave(&self, ticket: CheckNumber) {
        let mut state = lock(&self.state);
        state.queue.leave(ticket);
        state.waiting.remove(&ticket);
    }

    /// Starts all checks that may run.
    fn run_next(self: &Arc<Self>) {
        loop {
            let mut state = lock(&self.state);
            let Some(ticket) = state.queue.next(Instant::now()) else { return };
            let waiting = state.waiting.remove(&ticket);
            drop(state);
            let turn = CheckPermit { checks: Arc::clone(self), ticket, was_wrong: false };
            // Without a receiver the permit is dropped, and that ends the check.
            let _ = waiting.map(|waiting| waiting.send(turn));
        }
    }
}

impl CheckPermit {
    /// Notes that the password was wrong.
    pub(super) fn was_wrong(mut self) {
        self.was_wrong = true;
    }
}

impl Drop for CheckPermit {
    fn drop(&mut self) {
        lock(&self.checks.state).queue.end(self.ticket, self.was_wrong, Instant::now());
        self.checks.run_next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u64 = 1;
    const BERT: u64 = 2;

    fn owner(client: &str, user: u64) -> CheckOwner {
        CheckOwner::of(client.parse().unwrap(), user)
    }

    fn enter(queue: &mut CheckQueue, owner: CheckOwner, now: Instant) -> Option<CheckNumber> {
        match queue.enter(owner, now) {
            Admission::Waits(ticket) | Admission::WaitsInsteadOf(ticket, _) => Some(ticket),
            Admission::Refused => None,
        }
    }

    /// Runs all that may run now to a wrong end, and says whose they were, in order.
    fn run_all(queue: &mut CheckQueue, now: Instant) -> Vec<CheckOwner> {
        let mut ran = Vec::new();
        while let Some(ticket) = queue.next(now) {
            let (_, owner) = *queue.running.iter().find(|(other, _)| *other == ticket).unwrap();
            ran.push(owner);
            queue.end(ticket, true, now);
        }
        ran
    }

    #[test]
    fn the_next_check_is_that_of_who_guesses_least() {
        let now = Instant::now();
        let guesser = "10.0.0.1";
        // Who has had so many wrong passwords; who waits, in this order; who is checked, in which order.
        type Case<'a> = (&'a [(&'a str, u64, u32)], &'a [(&'a str, u64)], &'a [(&'a str, u64)]);
        let cases: [Case<'_>; 7] = [
            (&[], &[(guesser, ALICE), (guesser, BERT)], &[(guesser, ALICE), (guesser, BERT)]),
            (
                &[(guesser, ALICE, 1)],
                &[(guesser, ALICE), (guesser, BERT)],
                &[(guesser, BERT), (guesser, ALICE)],
            ),
            // After five the next has to wait.
            (&[(guesser, ALICE, 5)], &[(guesser, ALICE), (guesser, BERT)], &[(guesser, BERT)]),
            // The same user from elsewhere has to wait for nothing.
            (&[(guesser, ALICE, 5)], &[(guesser, ALICE), ("10.0.0.2", ALICE)], &[("10.0.0.2", ALICE)]),
            // Addresses take turns.
            (
                &[],
                &[(guesser, 3), (guesser, 4), (guesser, 5), ("10.0.0.2", BERT)],
                &[(guesser, 3), ("10.0.0.2", BERT), (guesser, 4), (guesser, 5)],
            ),
            // So do IPv6 sites, however many networks they have, and the networks of a site.
            (
                &[],
                &[
                    ("2001:db8:1:1::1", 3),
                    ("2001:db8:1:2::1", 3),
                    ("2001:db8:1:1::2", 4),
                    ("2001:db8:2::1", BERT),
                ],
                &[
                    ("2001:db8:1:1::1", 3),
                    ("2001:db8:2::1", BERT),
                    ("2001:db8:1:2::1", 3),
                    ("2001:db8:1:1::2", 4),
                ],
            ),
            // Every address of an IPv6 network is the same guesser.
            (
                &[("2001:db8::1", ALICE, 5)],
                &[("2001:db8::2", ALICE), ("2001:db8::3", BERT)],
                &[("2001:db8::3", BERT)],
            ),
        ];
        for (wrong, waiting, expected) in cases {
            let mut queue = CheckQueue::new();
            for (client, user, times) in wrong {
                for _ in 0..*times {
                    enter(&mut queue, owner(client, *user), now).unwrap();
                    assert_eq!(run_all(&mut queue, now).len(), 1);
                }
            }
            queue.turns.clear();
            for (client, user) in waiting {
                enter(&mut queue, owner(client, *user), now).unwrap();
            }
            let expected: Vec<_> = expected.iter().map(|(client, user)| owner(client, *user)).collect();
            assert_eq!(run_all(&mut queue, now), expected, "{wrong:?} {waiting:?}");
        }
    }

    #[test]
    fn wrong_passwords_slow_down_a_user_most_then_an_address_then_a_site() {
        let start = Instant::now();
        // How many of so many guesses are checked in ten seconds of trying all the time.
        let checked = |guess: &dyn Fn(u64) -> CheckOwner| {
            let mut queue = CheckQueue::new();
            let mut ran = 0;
            for at in 0..10_000_u64 {
                let now = start + Duration::from_millis(at);
                enter(&mut queue, guess(at), now);
                ran += run_all(&mut queue, now).len();
                queue.waiting.clear();
            }
            ran
        };
        assert_eq!(checked(&|_| owner("10.0.0.1", ALICE)), 5 + 9, "one user");
        assert_eq!(checked(&|at| owner("10.0.0.1", at)), 100 + 399, "as many users as it likes");
        let network = |at: u64| format!("2001:db8:1:{at:x}::1");
        assert_eq!(checked(&|at| owner(&network(at), at)), 400 + 999, "as many networks, too");
        assert_eq!(checked(&|at| owner(&format!("10.0.{}.{}", at / 250, at % 250), at)), 10_000);
    }

    #[test]
    fn a_right_password_costs_nothing_and_pauses_pass() {
        let mut queue = CheckQueue::new();
        let (now, alice) = (Instant::now(), owner("10.0.0.1", ALICE));
        for _ in 0..100 {
            let ticket = enter(&mut queue, alice, now).unwrap();
            assert_eq!(queue.next(now), Some(ticket));
            queue.end(ticket, false, now);
        }
        for _ in 0..5 {
            enter(&mut queue, alice, now).unwrap();
            run_all(&mut queue, now);
        }
        let ticket = enter(&mut queue, alice, now).unwrap();
        assert_eq!(queue.next(now), None);
        let due = queue.due(ticket, now).unwrap();
        assert_eq!(due - now, USER_PENALTY.pause);
        assert_eq!(queue.next(due), Some(ticket));
        assert_eq!(queue.due(ticket, due), None, "it runs");
    }

    #[test]
    fn only_so_many_run_and_one_of_a_user() {
        let mut queue = CheckQueue::new();
        let now = Instant::now();
        let mut tickets =
            [ALICE, ALICE, BERT, 3].map(|user| enter(&mut queue, owner("10.0.0.1", user), now).unwrap());
        assert_eq!([queue.next(now), queue.next(now)], [Some(tickets[0]), Some(tickets[2])]);
        assert_eq!(queue.next(now), None, "{RUNNING_MAX} run");
        queue.end(tickets[2], false, now);
        assert_eq!(queue.next(now), Some(tickets[3]), "alice's is still running");
        tickets.swap(0, 1);
        queue.end(tickets[1], false, now);
        assert_eq!(queue.next(now), Some(tickets[0]));
    }

    #[test]
    fn nobody_fills_the_queue_for_others() {
        let now = Instant::now();
        let mut queue = CheckQueue::new();
        let fill = |queue: &mut CheckQueue, guess: &dyn Fn(u64) -> CheckOwner| {
            (0..1000).filter(|at| enter(queue, guess(*at), now).is_some()).count()
        };
        assert_eq!(fill(&mut queue, &|_| owner("10.0.0.1", ALICE)), WAITING_PER_USER_MAX);
        let of_address = fill(&mut queue, &|at| owner("10.0.0.1", at + 10));
        assert_eq!(of_address, WAITING_PER_ADDRESS_MAX - WAITING_PER_USER_MAX);
        let network = |at: u64| format!("2001:db8:1:{at:x}::1");
        assert_eq!(fill(&mut queue, &|at| owner(&network(at), at)), WAITING_PER_SITE_MAX);
        for at in 0..WAITING_MAX - queue.waiting.len() {
            enter(&mut queue, owner(&format!("10.1.{}.{}", at / 250, at % 250), BERT), now).unwrap();
        }
        assert!(
            enter(&mut queue, owner("10.0.0.9", BERT), now).is_some(),
            "in the place of the fullest site's"
        );
        assert_eq!(queue.waiting.len(), WAITING_MAX);
        assert!(
            enter(&mut queue, owner("2001:db8:1:9::9", BERT), now).is_none(),
            "of the fullest site itself"
        );
    }

    #[test]
    fn a_user_without_wrong_passwords_takes_the_place_of_a_guesser_at_a_full_address() {
        let now = Instant::now();
        for has_guessed in [true, false] {
            let mut queue = CheckQueue::new();
            if has_guessed {
                enter(&mut queue, owner("10.0.0.1", ALICE), now).unwrap();
                run_all(&mut queue, now);
            }
            let guess = enter(&mut queue, owner("10.0.0.1", ALICE), now).unwrap();
            for user in 1..WAITING_PER_ADDRESS_MAX as u64 {
                enter(&mut queue, owner("10.0.0.1", user + 10), now).unwrap();
            }
            let removed = match queue.enter(owner("10.0.0.1", BERT), now) {
                Admission::WaitsInsteadOf(_, removed) => Some(removed),
                Admission::Waits(_) | Admission::Refused => None,
            };
            assert_eq!(removed, has_guessed.then_some(guess));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_when_it_is_its_turn_or_too_late() {
        let checks = PasswordChecks::new();
        let client = "10.0.0.1".parse().unwrap();
        let began = Instant::now();
        for _ in 0..7 {
            checks.turn(client, "alice").await.unwrap().was_wrong();
        }
        assert_eq!(began.elapsed().as_secs(), 2, "five at once, then one a second");
        let [first, second] = [checks.turn(client, "bert").await, checks.turn(client, "carl").await];
        assert!(first.is_some() && second.is_some());
        let began = Instant::now();
        assert!(checks.turn(client, "dora").await.is_none(), "both go on for ever");
        assert_eq!(began.elapsed(), WAIT_MAX);
        let waits = tokio::spawn({
            let checks = Arc::clone(&checks);
            async move { checks.turn(client, "dora").await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(waits.await.unwrap());
        assert!(lock(&checks.state).waiting.is_empty());
    }
}
