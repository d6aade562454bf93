//! Whose turn it is, of those who wait for something of which there is not enough.
//!
//! Each client has its own queue, and the queues take turns: who pulls a hundred images at once holds up nobody who
//! wants one. Only whoever is first in line waits for the thing itself; when it goes, or gives up, it wakes the next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::Client;
use crate::ratelimit::RateLimit;
use crate::sync::lock;

/// Something that only so many may have, or so often.
pub(crate) trait Scarce {
    /// What it is to have it.
    type Turn;

    /// Takes it, if it can be had now.
    fn take(&self) -> Option<Self::Turn>;

    /// Waits until it may be worth trying again.
    fn wait(&self) -> impl Future<Output = ()> + Send;

    /// At least for how long whoever has so many before it must wait.
    fn after(&self, ahead: usize) -> Duration;
}

impl Scarce for RateLimit {
    type Turn = ();

    fn take(&self) -> Option<()> {
        Self::take(self).ok()
    }

    async fn wait(&self) {
        sleep(Self::after(self, 0)).await;
    }

    fn after(&self, ahead: usize) -> Duration {
        Self::after(self, ahead)
    }
}

impl Scarce for Arc<Semaphore> {
    type Turn = OwnedSemaphorePermit;

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Self::clone(self).try_acquire_owned().ok()
    }

    async fn wait(&self) {
        // Nobody but the first in line asks for it.
        drop(self.acquire().await);
    }

    fn after(&self, _: usize) -> Duration {
        // Nobody knows when whoever has it is through.
        Duration::ZERO
    }
}

/// Something scarce, and those who wait for it.
pub(crate) struct Turns<S> {
    scarce: S,
    line: Mutex<Line>,
}

impl<S: Scarce> Turns<S> {
    pub(crate) fn new(scarce: S) -> Self {
        Self { scarce, line: Mutex::default() }
    }

    /// A turn, if nobody has to wait for it.
    pub(crate) fn at_once(&self) -> Option<S::Turn> {
        if self.line().is_empty() { self.scarce.take() } else { None }
    }

    /// A place in line for `client`, which must have its turn until `latest`.
    ///
    /// # Errors
    /// For how long it would have to wait, at least, if that is known to be too long.
    pub(crate) fn join(&self, client: Client, latest: Instant) -> Result<Ticket<'_, S>, Duration> {
        let mut line = self.line();
        let wait = self.scarce.after(line.ahead_of(client));
        if Instant::now() + wait > latest {
            return Err(wait);
        }
        let (number, wake) = line.join(client);
        Ok(Ticket { turns: self, client, number, wake, latest })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }
}

/// A place in line, until it is dropped.
pub(crate) struct Ticket<'a, S: Scarce> {
    turns: &'a Turns<S>,
    client: Client,
    number: u64,
    wake: Arc<Notify>,
    latest: Instant,
}

impl<S: Scarce> Ticket<'_, S> {
    /// Waits for the turn.
    ///
    /// # Errors
    /// For how long it would have had to wait further, at least, if it did not come in time.
    pub(crate) async fn turn(self) -> Result<S::Turn, Duration> {
        let turn = timeout_at(self.latest, self.wait()).await;
        turn.map_err(|_| self.turns.scarce.after(0))
    }

    async fn wait(&self) -> S::Turn {
        while !self.turns.line().is_first(self.number) {
            self.wake.notified().await;
        }
        loop {
            if let Some(turn) = self.turns.scarce.take() {
                return turn;
            }
            self.turns.scarce.wait().await;
        }
    }
}

impl<S: Scarce> Drop for Ticket<'_, S> {
    fn drop(&mut self) {
        self.turns.line().leave(self.client, self.number);
    }
}

/// Those who wait, by client, and in which order the clients have their turns.
#[derive(Default)]
struct Line {
    order: VecDeque<Client>,
    queues: HashMap<Client, VecDeque<Waiting>>,
    last: u64,
}

/// A place, by its number, and what wakes whoever has it.
struct Waiting {
    number: u64,
    wake: Arc<Notify>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whose turn is next.
    fn first(&self) -> Option<&Waiting> {
        self.queues.get(self.order.front()?)?.front()
    }

    fn is_first(&self, number: u64) -> bool {
        self.first().is_some_and(|first| first.number == number)
    }

    /// How many turns there are before that of one more request of `client`, unless others join.
    fn ahead_of(&self, client: Client) -> usize {
        let len = |client| self.queues.get(client).map_or(0, VecDeque::len);
        let own = len(&client);
        let at = self.order.iter().position(|waiting| *waiting == client).unwrap_or(self.order.len());
        let turns = |(place, other)| match place {
            // Its own earlier ones, and theirs of these rounds.
            _ if place == at => own,
            _ if place < at => len(other).min(own + 1),
            _ => len(other).min(own),
        };
        self.order.iter().enumerate().map(turns).sum()
    }

    fn join(&mut self, client: Client) -> (u64, Arc<Notify>) {
        self.last += 1;
        let wake = Arc::<Notify>::default();
        let queue = self.queues.entry(client).or_default();
        if queue.is_empty() {
            self.order.push_back(client);
        }
        queue.push_back(Waiting { number: self.last, wake: Arc::clone(&wake) });
        (self.last, wake)
    }

    /// One had its turn, or waits no more.
    fn leave(&mut self, client: Client, number: u64) {
        let was_first = self.is_first(number);
        let Some(queue) = self.queues.get_mut(&client) else { return };
        queue.retain(|waiting| waiting.number != number);
        if queue.is_empty() {
            self.queues.remove(&client);
            self.order.retain(|waiting| *waiting != client);
        } else if was_first {
            self.order.rotate_left(1);
        }
        if was_first && let Some(next) = self.first() {
            next.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::JoinSet;

    use super::*;

    fn client(number: u8) -> Client {
        Client::At(Ipv4Addr::new(10, 0, 0, number).into())
    }

    #[test]
    fn clients_take_turns_and_each_has_its_own_order() {
        let mut line = Line::default();
        let [a, b, c] = [1, 2, 3].map(client);
        let mut join = |who: Client, ahead: usize| {
            assert_eq!(line.ahead_of(who), ahead, "{who:?}");
            (who, line.join(who).0)
        };
        let [a1, a2, a3] = [join(a, 0), join(a, 1), join(a, 2)];
        let b1 = join(b, 1);
        let [c1, c2] = [join(c, 2), join(c, 4)];
        let a4 = join(a, 6);
        line.leave(a2.0, a2.1);
        for next in [a1, b1, c1, a3, c2, a4] {
            assert_eq!(line.first().map(|first| first.number), Some(next.1), "{next:?}");
            line.leave(next.0, next.1);
        }
        assert!(line.is_empty() && line.queues.is_empty());
    }

    /// Who had a turn, one after the other, of all who wait until `latest`.
    async fn turns<S: Scarce<Turn = impl Send> + Send + Sync + 'static>(
        scarce: S,
        clients: &[u8],
        latest: Instant,
    ) -> Vec<(u8, Duration)> {
        let (turns, begun) = (Arc::new(Turns::new(scarce)), Instant::now());
        let mut waiting = JoinSet::new();
        for number in clients.iter().copied() {
            let turns = Arc::clone(&turns);
            waiting.spawn(async move {
                let turn = turns.join(client(number), latest).ok()?.turn().await.ok()?;
                let at = Duration::from_secs(begun.elapsed().as_secs());
                sleep(Duration::from_secs(1)).await;
                drop(turn);
                Some((number, at))
            });
            // Everybody comes after the one before.
            tokio::task::yield_now().await;
        }
        let mut had = Vec::new();
        while let Some(turn) = waiting.join_next().await {
            had.extend(turn.unwrap());
        }
        had
    }

    fn in_seconds(had: &[(u8, u64)]) -> Vec<(u8, Duration)> {
        had.iter().map(|(number, at)| (*number, Duration::from_secs(*at))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_one_client_holds_up_no_other() {
        let now = Instant::now();
        let latest = now + Duration::from_millis(3500);
        let once_a_second = || RateLimit::new(toml::Value::Integer(1).try_into().unwrap());
        let expected = in_seconds(&[(1, 0), (1, 1), (2, 2), (1, 3)]);
        assert_eq!(turns(once_a_second(), &[1, 1, 1, 2, 1, 1], latest).await, expected);

        let latest = Instant::now() + Duration::from_millis(3500);
        let room = Arc::new(Semaphore::new(1));
        assert_eq!(
            turns(room, &[1, 1, 1, 1, 1, 2], latest).await,
            in_seconds(&[(1, 0), (1, 1), (2, 2), (1, 3)])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_have_a_turn_in_time_hears_so_and_takes_nobodys() {
        let pace = Turns::new(RateLimit::new(toml::Value::Integer(1).try_into().unwrap()));
        let now = Instant::now();
        assert_eq!(pace.at_once(), Some(()));
        assert_eq!(pace.at_once(), None);
        assert_eq!(pace.join(client(1), now).err(), Some(Duration::from_secs(1)));
        let latest = now + Duration::from_secs(1);
        let first = pace.join(client(1), latest).unwrap();
        assert_eq!(pace.join(client(1), latest).err(), Some(Duration::from_secs(2)));
        assert_eq!(first.turn().await, Ok(()));

        let room = Turns::new(Arc::new(Semaphore::new(1)));
        let held = room.at_once().unwrap();
        let soon = Instant::now() + Duration::from_secs(1);
        let late = Instant::now() + Duration::from_secs(9);
        let (first, second) = (room.join(client(1), soon).unwrap(), room.join(client(2), late).unwrap());
        let (first, second, ()) = tokio::join!(first.turn(), second.turn(), async {
            sleep(Duration::from_secs(2)).await;
            drop(held);
        });
        assert!(first.is_err() && second.is_ok(), "who gives up lets the next one go on");
    }
}
