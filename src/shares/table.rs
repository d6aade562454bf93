//! Decides how much an owner may have and which request is served next, without time and without tasks.
//!
//! # How much an owner may have
//! At most [`CLIENT_FACTOR`] times what is then still free, as in a switch that shares its memory between ports. An owner
//! alone gets seven eighths so, two get seven fifteenths each, and however many there are some is left for the next one. A
//! registry may have [`REGISTRY_FACTOR`] times what is free: of the last eighth a half is for other clients of the same
//! registry, and a half for other registries. An owner that has nothing may have all that is free.
//!
//! # Which request is next
//! Of the registries that wait the one that has least is next, of its clients the one that has least, and of that client's
//! requests the oldest; among equals the one that has waited longest. An owner that may have no more is passed over until it
//! has less. An owner that has nothing and finds too little is waited for, and nothing else is served before: so a large
//! request is not starved by small ones. As long as everything is released some day, every owner comes to have nothing, and
//! so to be first.

use std::collections::{HashMap, VecDeque};

use super::{Busy, Limits, Owner, To};
use crate::context::Client;
use crate::oci::Registry;

/// The most that a client of a registry may hold, in multiples of what is free: alone, seven eighths of all.
const CLIENT_FACTOR: u64 = 7;
/// The most that a registry may hold, in multiples of what is free: alone, fifteen sixteenths of all.
const REGISTRY_FACTOR: u64 = 15;
/// The divisor of a limit for the part that no single request gets.
const RESERVE_PART: u64 = CLIENT_FACTOR + 1;

/// A limit, and how it is shared out.
pub(super) struct Table {
    limits: Limits,
    free: u64,
    /// The part that is held by owners that were told to give way, and have not yet.
    giving: u64,
    /// The number of requests in the queue.
    waiting: usize,
    last: u64,
    registries: HashMap<Registry, Share>,
}

/// What a registry holds and waits for.
#[derive(Default)]
struct Share {
    held: u64,
    giving: u64,
    waiting: usize,
    clients: HashMap<Client, Line>,
}

/// What a client of a registry holds and waits for.
#[derive(Default)]
struct Line {
    held: u64,
    giving: u64,
    queue: VecDeque<Ticket>,
}

impl Line {
    /// The amount that it waits for.
    fn wanted(&self) -> u64 {
        self.queue.iter().map(|ticket| ticket.amount).sum()
    }
}

#[derive(Clone, Copy)]
struct Ticket {
    number: u64,
    amount: u64,
}

/// Whether an owner may have more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    /// No: it has too much already for what is free.
    HasEnough,
    /// Not yet: it has nothing, and there is too little.
    MustWait,
}

/// Whether an owner that holds `held` may have `amount` of what is `free`.
fn judge(held: u64, factor: u64, free: u64, amount: u64) -> Verdict {
    match free.checked_sub(amount) {
        Some(left) if held <= left.saturating_mul(factor) => Verdict::Yes,
        None if held == 0 => Verdict::MustWait,
        Some(_) | None => Verdict::HasEnough,
    }
}

/// The next request of a registry.
struct Candidate<'a> {
    registry: &'a Registry,
    share: &'a Share,
    client: Client,
    line: &'a Line,
    ticket: Ticket,
}

impl Candidate<'_> {
    fn rank(&self) -> (u64, u64, u64) {
        (self.share.held, self.line.held, self.ticket.number)
    }
}

impl Table {
    /// A limit of which nothing is taken.
    pub(super) fn new(limits: Limits) -> Self {
        let free = limits.total;
        Self { limits, free, giving: 0, waiting: 0, last: 0, registries: HashMap::new() }
    }

    /// The part of `amount` that one request may have: never nothing, nor what must be left to others.
    pub(super) fn cut(&self, amount: u64) -> u64 {
        let total = self.limits.total;
        amount.min(total - total.div_ceil(RESERVE_PART)).max(1)
    }

    /// Puts a request in the queue. Returns its number, and that of the request that had to make room for it.
    pub(super) fn join(&mut self, owner: &Owner, amount: u64) -> Result<(u64, Option<u64>), Busy> {
        let share = self.registries.get(&owner.registry);
        let of_registry = share.map_or(0, |share| share.waiting);
        let line = share.and_then(|share| share.clients.get(&owner.client));
        let own = line.map_or(0, |line| line.queue.len());
        if own >= self.limits.waiting_of_one {
            return Err(Busy);
        }
        let displaced = if self.waiting < self.limits.waiting {
            None
        } else {
            Some(self.displace(owner, of_registry, own).ok_or(Busy)?)
        };
        self.last += 1;
        self.waiting += 1;
        let share = self.registries.entry(owner.registry.clone()).or_default();
        share.waiting += 1;
        let line = share.clients.entry(owner.client).or_default();
        line.queue.push_back(Ticket { number: self.last, amount });
        Ok((self.last, displaced))
    }

    /// Takes a request out of the queue: the youngest of the owner that has most there, if that is more than `owner` has.
    fn displace(&mut self, owner: &Owner, of_registry: usize, own: usize) -> Option<u64> {
        let (registry, share) = self.registries.iter().max_by_key(|(_, share)| share.waiting)?;
        let (client, line) = share.clients.iter().max_by_key(|(_, line)| line.queue.len())?;
        let is_more = if *registry == owner.registry {
            line.queue.len() > own + 1
        } else {
            share.waiting > of_registry + 1
        };
        let number = line.queue.back().filter(|_| is_more)?.number;
        let other = Owner::new(registry, *client);
        self.leave(&other, number);
        Some(number)
    }

    /// Whether a request waits.
    #[cfg(test)]
    pub(super) fn is_contended(&self) -> bool {
        self.waiting > 0
    }

    /// Takes a request out of the queue.
    pub(super) fn leave(&mut self, owner: &Owner, number: u64) {
        self.change(owner, |share, line| {
            let before = line.queue.len();
            line.queue.retain(|ticket| ticket.number != number);
            share.waiting -= before - line.queue.len();
        });
        self.waiting = self.registries.values().map(|share| share.waiting).sum();
    }

    /// Serves the next request, if there is one that can be served. Returns its number.
    pub(super) fn grant(&mut self) -> Option<u64> {
        let next = self.next()?;
        let (owner, Ticket { number, amount }) = (Owner::new(next.registry, next.client), next.ticket);
        self.free -= amount;
        self.waiting -= 1;
        self.change(&owner, |share, line| {
            share.held += amount;
            share.waiting -= 1;
            line.held += amount;
            line.queue.pop_front();
        });
        Some(number)
    }

    /// The next request of all that can be served.
    fn next(&self) -> Option<Candidate<'_>> {
        if self.waiting == 0 {
            return None;
        }
        let waiting = self.registries.iter().filter(|(_, share)| share.waiting > 0);
        let mut first: Vec<_> = waiting.filter_map(|(registry, share)| self.first(registry, share)).collect();
        first.sort_unstable_by_key(Candidate::rank);
        for candidate in first {
            match judge(candidate.share.held, REGISTRY_FACTOR, self.free, candidate.ticket.amount) {
                Verdict::Yes => return Some(candidate),
                Verdict::HasEnough => {}
                Verdict::MustWait => return None,
            }
        }
        None
    }

    /// The next request of a registry.
    fn first<'a>(&'a self, registry: &'a Registry, share: &'a Share) -> Option<Candidate<'a>> {
        let waiting = share.clients.iter().filter_map(|(client, line)| {
            let ticket = *line.queue.front()?;
            let verdict = judge(line.held, CLIENT_FACTOR, self.free, ticket.amount);
            (verdict != Verdict::HasEnough).then_some(Candidate {
                registry,
                share,
                client: *client,
                line,
                ticket,
            })
        });
        waiting.min_by_key(Candidate::rank)
    }

    /// Takes back what an owner held; `is_giving` if it was told to give way.
    pub(super) fn release(&mut self, owner: &Owner, amount: u64, is_giving: bool) {
        let giving = if is_giving { amount } else { 0 };
        self.free += amount;
        self.giving -= giving;
        self.change(owner, |share, line| {
            share.held -= amount;
            share.giving -= giving;
            line.held -= amount;
            line.giving -= giving;
        });
    }

    /// Whether another owner waits for `amount` of what `owner` holds, besides what others were told to give.
    pub(super) fn is_wanted(&self, owner: &Owner, amount: u64, to: To) -> bool {
        let Some(own) = self.registries.get(&owner.registry) else { return false };
        let Some(own_line) = own.clients.get(&owner.client) else { return false };
        let promised = self.giving + amount;
        let kept = if to == To::Less { amount } else { 0 };
        let is_less = |theirs: u64, ours: u64, giving: u64| theirs + promised <= ours - giving - kept;
        let of_registry = own.clients.iter().filter(|(client, line)| {
            if **client == owner.client {
                to == To::Same
            } else {
                is_less(line.held, own_line.held, own_line.giving)
            }
        });
        let registries = self.registries.iter().filter(|(registry, share)| {
            **registry != owner.registry && is_less(share.held, own.held, own.giving)
        });
        let others = registries.flat_map(|(_, share)| share.clients.values());
        let wanted: u64 = of_registry.map(|(_, line)| line).chain(others).map(Line::wanted).sum();
        wanted >= promised
    }

    /// The same, and if so `owner` counts as told to give it.
    pub(super) fn give_way(&mut self, owner: &Owner, amount: u64, to: To) -> bool {
        let is_wanted = self.is_wanted(owner, amount, to);
        if is_wanted {
            self.giving += amount;
            self.change(owner, |share, line| {
                share.giving += amount;
                line.giving += amount;
            });
        }
        is_wanted
    }

    /// Changes what is known of an owner, and forgets it if that is nothing.
    fn change(&mut self, owner: &Owner, change: impl FnOnce(&mut Share, &mut Line)) {
        let Some(share) = self.registries.get_mut(&owner.registry) else { return };
        let Some(mut line) = share.clients.remove(&owner.client) else { return };
        change(share, &mut line);
        if line.held > 0 || !line.queue.is_empty() {
            share.clients.insert(owner.client, line);
        }
        if share.clients.is_empty() {
            self.registries.remove(&owner.registry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 24;
    const LIMITS: Limits = Limits { total: TOTAL, waiting: 40, waiting_of_one: 20 };
    const RESERVE: u64 = TOTAL / RESERVE_PART;

    fn owner(number: u8) -> Owner {
        let registry = ["a.test", "b.test", "c.test"][usize::from(number) % 3];
        let client = Client::At(Ipv4Addr::new(10, 0, 0, number / 3).into());
        Owner::new(&registry.parse().unwrap(), client)
    }

    /// The table, and what is known of it from outside.
    struct Model {
        table: Table,
        /// Owner, number and amount of those who wait, the oldest first.
        waiting: Vec<(Owner, u64, u64)>,
        held: Vec<(Owner, u64, bool)>,
    }

    impl Model {
        fn new() -> Self {
            Self { table: Table::new(LIMITS), waiting: Vec::new(), held: Vec::new() }
        }

        fn has(&self, is_meant: impl Fn(&Owner) -> bool) -> u64 {
            self.held.iter().filter(|(owner, ..)| is_meant(owner)).map(|(_, amount, _)| amount).sum()
        }

        fn join(&mut self, owner: &Owner, amount: u64) {
            let amount = self.table.cut(amount);
            let of_one = self.waiting.iter().filter(|(other, ..)| other == owner).count();
            match self.table.join(owner, amount) {
                Ok((number, displaced)) => {
                    assert_eq!(displaced.is_some(), self.waiting.len() == LIMITS.waiting);
                    self.waiting.retain(|(_, number, _)| Some(*number) != displaced);
                    self.waiting.push((owner.clone(), number, amount));
                }
                Err(Busy) => assert!(of_one >= LIMITS.waiting_of_one || self.waiting.len() >= LIMITS.waiting),
            }
            self.settle();
        }

        fn settle(&mut self) {
            while let Some(number) = self.table.grant() {
                let at = self.waiting.iter().position(|(_, other, _)| *other == number).expect("it waits");
                let (owner, _, amount) = self.waiting.remove(at);
                let is_older = |(other, ..): &&(Owner, u64, u64)| *other == owner;
                assert!(self.waiting[..at].iter().find(is_older).is_none(), "first come, first served");
                self.held.push((owner, amount, false));
            }
            self.check();
        }

        fn check(&self) {
            let held = self.has(|_| true);
            assert!(held <= TOTAL, "never more than there is");
            assert_eq!(self.table.free, TOTAL - held);
            assert_eq!(self.table.waiting, self.waiting.len());
            assert!(self.waiting.len() <= LIMITS.waiting);
            let giving: u64 =
                self.held.iter().filter(|(.., giving)| *giving).map(|(_, amount, _)| amount).sum();
            assert_eq!(self.table.giving, giving);
            // The least of those who wait and hold nothing finds nothing of its registry in its way.
            let is_new = |owner: &Owner| self.has(|other| other.registry == owner.registry) == 0;
            if let Some((.., amount)) = self.waiting.iter().find(|(owner, ..)| is_new(owner)) {
                assert!(held + amount > TOTAL, "a newcomer waits, and has room");
            }
            if self.waiting.iter().all(|(.., amount)| *amount == 1) && !self.waiting.is_empty() {
                assert!(TOTAL - held <= RESERVE, "somebody waits, and more than the reserve is free");
            }
        }

        fn release(&mut self, at: usize) {
            if self.held.is_empty() {
                return;
            }
            let (owner, amount, giving) = self.held.remove(at % self.held.len());
            self.table.release(&owner, amount, giving);
            self.settle();
        }

        fn leave(&mut self, at: usize) {
            if self.waiting.is_empty() {
                return;
            }
            let (owner, number, _) = self.waiting.remove(at % self.waiting.len());
            self.table.leave(&owner, number);
            self.settle();
        }

        fn give_way(&mut self, at: usize) {
            let len = self.held.len();
            if len == 0 || self.held[at % len].2 {
                return;
            }
            let (owner, amount, _) = self.held[at % len].clone();
            let gives = self.table.give_way(&owner, amount, To::Less);
            let has_less = |other: &Owner| {
                let same = other.registry == owner.registry;
                same && self.has(|it| it == other) < self.has(|it| *it == owner)
                    || !same
                        && self.has(|it| it.registry == other.registry)
                            < self.has(|it| it.registry == owner.registry)
            };
            assert!(!gives || self.waiting.iter().any(|(other, ..)| has_less(other)), "nobody needs it");
            self.held[at % len].2 = gives;
            self.check();
        }
    }

    fn act(model: &mut Model, (action, who, amount): (u8, u8, u64)) {
        match action {
            0..5 => model.join(&owner(who), amount),
            5..7 => model.release(who.into()),
            7 => model.leave(who.into()),
            _ => model.give_way(who.into()),
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_left_unused(
            actions in vec((0_u8..9, 0_u8..9, prop_oneof![5 => Just(1_u64), 1 => 0_u64..40]), 1..300),
        ) {
            let mut model = Model::new();
            actions.into_iter().for_each(|action| act(&mut model, action));
            // Whoever holds lets go, the youngest first: all who wait have their turn in the end.
            while !model.held.is_empty() {
                model.release(model.held.len() - 1);
            }
            prop_assert!(model.waiting.is_empty(), "{} starve", model.waiting.len());
            prop_assert!(model.table.registries.is_empty());
        }

        #[test]
        fn a_flood_of_others_starves_nobody(actions in vec((0_u8..9, 0_u8..9, 1_u64..30), 1..100), victim in 0_u8..9) {
            let mut model = Model::new();
            actions.into_iter().for_each(|action| act(&mut model, action));
            let victim = owner(victim);
            model.join(&victim, 20);
            let is_waiting = |model: &Model| model.waiting.iter().any(|(owner, ..)| *owner == victim);
            let mut rounds = 0;
            // The oldest is always released, and others ask for little again and again.
            while is_waiting(&model) {
                for number in 0..9 {
                    if owner(number) != victim {
                        model.join(&owner(number), 1);
                    }
                }
                model.release(0);
                rounds += 1;
                prop_assert!(rounds < 2_000, "it never has its turn");
            }
        }
    }

    #[test]
    fn one_alone_reaches_all_but_the_reserve() {
        let check = |total: u64, client: u64, registry: u64| {
            let mut table = Table::new(Limits { total, ..LIMITS });
            let mut take = |owner: &Owner| {
                table.join(owner, 1).unwrap();
                table.grant().is_some()
            };
            let own = (0..).take_while(|_| take(&owner(0))).count();
            let others = (1..).take_while(|number| take(&owner(number * 3))).count();
            assert_eq!((own as u64, (own + others) as u64), (client, registry), "of {total}");
        };
        check(1, 1, 1);
        check(2, 1, 1);
        check(5, 4, 4);
        check(8, 7, 7);
        check(16, 14, 15);
        check(64, 56, 60);
        check(256, 224, 240);
    }

    #[test]
    fn who_has_one_gives_it_to_who_has_none_if_it_must() {
        let mut table = Table::new(Limits { total: 16, ..LIMITS });
        let owners: Vec<_> = (0..15).map(|number| owner(number * 3)).collect();
        for owner in &owners {
            table.join(owner, 1).unwrap();
            table.grant().expect("there is room for one each");
        }
        let check = |table: &Table, expected: [bool; 3]| {
            let wanted = [To::Less, To::Next, To::Same].map(|to| table.is_wanted(&owners[0], 1, to));
            assert_eq!(wanted, expected);
        };
        check(&table, [false; 3]);
        table.join(&owners[0], 1).unwrap();
        assert_eq!(table.grant(), None);
        check(&table, [false, false, true]);
        table.join(&owner(45), 1).unwrap();
        assert_eq!(table.grant(), None);
        check(&table, [false, true, true]);
        assert!(table.give_way(&owners[1], 1, To::Next));
        check(&table, [false; 3]);
        table.release(&owners[1], 1, true);
        assert_eq!(table.grant(), Some(17), "it goes to the newcomer");
    }

    #[test]
    fn who_has_more_gives_way_until_both_have_the_same() {
        let mut model = Model::new();
        let (greedy, other) = (owner(0), owner(1));
        (0..30).for_each(|_| model.join(&greedy, 1));
        (0..20).for_each(|_| model.join(&other, 1));
        let of = |model: &Model, owner: &Owner| model.has(|it| it == owner);
        assert_eq!((of(&model, &greedy), of(&model, &other)), (21, 2), "the last one is for who has none");
        for _ in 0..30 {
            (0..model.held.len()).for_each(|at| model.give_way(at));
            while let Some(at) = model.held.iter().position(|(.., giving)| *giving) {
                model.release(at);
            }
        }
        let (greedy, other) = (of(&model, &greedy), of(&model, &other));
        assert!(greedy >= other && greedy - other <= 2, "{greedy} and {other}");
    }
}
