//! Fairness among transfers: to whom each belongs, how many there may be, and how slow one may be while others wait.
//!
//! Every transfer has an [`Owner`]: the registry that it asks, and the client that began it. No owner may take all of a
//! limit from others (see [`crate::shares`]). That alone does not help against a registry that sends a byte a second:
//! what it holds is never released. So a transfer that holds a permit checks every [`WINDOW`] whether it is too slow to
//! keep it. It never is while nobody waits. A transfer that brings less than [`BYTES_MIN`] in a window gives way to
//! every owner that will not have more than its own owner had. A faster one gives way only to an owner that has less
//! than its own: for each further window in which such an owner waits, it must bring twice as much, up to
//! [`DOUBLINGS_MAX`] times, because a hostile registry can keep up any rate that is low enough. A transfer that has
//! brought nothing for [`STILL_WINDOWS`] gives way to others of the same owner, too.
//!
//! A transfer that gives way has lost nothing: its partial file stays, and the next request goes on from there.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::shares::{Limits, Owner, Permit, To};

/// The limit on flights at once. Each has a thread of the blocking pool that writes and hashes. The queue is as long as
/// a site needs that pulls hundreds of small images at once, whose layers take a few seconds.
pub(super) const FLIGHTS: Limits = Limits { total: 256, waiting: 4096, waiting_of_one: 1024 };
/// The limit on blobs whose rest is fetched although nobody asked for it: four of one owner. A flight waits for this on
/// its slot.
pub(super) const COMPLETIONS: Limits = Limits { total: 5, waiting: 256, waiting_of_one: 256 };
/// The limit on HEADs that authorize a new manifest's content for its repository: four of one owner. One manifest waits
/// for one at a time.
pub(super) const BACKGROUND_CHECKS: Limits = Limits { total: 5, waiting: 1024, waiting_of_one: 256 };
/// The limit on passthroughs at once.
pub(super) const PASSTHROUGHS: Limits = Limits { total: 64, waiting: 256, waiting_of_one: 64 };
/// The most flights that go on without a reader.
pub(super) const UNATTENDED_MAX: usize = 32;

/// Interval between two checks whether a transfer is too slow.
const WINDOW: Duration = Duration::from_secs(5);
/// Bytes that a transfer must bring in a window once others wait: 25 KiB per second, which a client on the worst line
/// has.
const BYTES_MIN: u64 = 128 * 1024;
/// How often [`BYTES_MIN`] is doubled while others go on waiting: to 1.6 MiB per second. A faster transfer is done
/// soon.
const DOUBLINGS_MAX: u32 = 6;
/// Bytes in a window that count as none: no client waits for what comes at less than a kilobyte per second.
const STILL_BYTES: u64 = 4 * 1024;
/// Windows without bytes after which a transfer stands still: as long as its readers wait before they are cut off.
const STILL_WINDOWS: u32 = 4;

/// A permit that a transfer holds, with the speed of the transfer.
pub(super) struct HeldPermit {
    permit: Permit,
    rate: Rate,
    look_at: Instant,
}

impl HeldPermit {
    /// `moved` is the number of bytes that the transfer has brought so far.
    pub(super) fn new(permit: Permit, moved: u64) -> Self {
        Self { permit, rate: Rate { moved, ..Rate::default() }, look_at: Instant::now() + WINDOW }
    }

    /// Resolves when the transfer is too slow to keep its permit. It may be dropped and called again.
    pub(super) async fn is_lost(&mut self, moved: impl Fn() -> u64) {
        loop {
            sleep_until(self.look_at).await;
            self.look_at = Instant::now() + WINDOW;
            let is_wanted = self.permit.is_wanted(To::Less);
            let too_slow = self.rate.judge(moved(), is_wanted);
            if too_slow.is_some_and(|to| self.permit.give_way(to)) {
                return;
            }
        }
    }
}

/// The speed of a transfer, from window to window.
#[derive(Default)]
struct Rate {
    /// Bytes that the transfer had brought at the end of the last window.
    moved: u64,
    /// Windows in a row at whose end somebody waited.
    waits: u32,
    /// Windows in a row in which almost nothing came.
    still: u32,
}

impl Rate {
    /// To whom a transfer must give way that has brought `moved` bytes by now. `is_wanted` says that an owner waits who
    /// has less.
    fn judge(&mut self, moved: u64, is_wanted: bool) -> Option<To> {
        let gained = moved.saturating_sub(self.moved);
        self.moved = moved;
        self.still = if gained < STILL_BYTES { self.still + 1 } else { 0 };
        let least = BYTES_MIN << self.waits.min(DOUBLINGS_MAX);
        self.waits = if is_wanted { self.waits + 1 } else { 0 };
        if self.still >= STILL_WINDOWS {
            Some(To::Same)
        } else if gained < BYTES_MIN {
            Some(To::Next)
        } else {
            (is_wanted && gained < least).then_some(To::Less)
        }
    }
}

/// The transfer that has to end if there may be `max`: the first that belongs to the client with most at the registry
/// with most.
pub(super) fn one_too_many<T>(
    all: impl Iterator<Item = T>,
    max: usize,
    owner: impl Fn(&T) -> Owner,
) -> Option<T> {
    let mut all: Vec<_> = all.map(|one| (owner(&one), one)).collect();
    if all.len() <= max {
        return None;
    }
    let registry = most_frequent(all.iter().map(|(owner, _)| &owner.registry))?.clone();
    let of_registry = all.iter().filter(|(owner, _)| owner.registry == registry);
    let client = most_frequent(of_registry.map(|(owner, _)| owner.client))?;
    let of_owner = all.iter().position(|(owner, _)| owner.registry == registry && owner.client == client)?;
    Some(all.swap_remove(of_owner).1)
}

/// The most frequent value; of equals the first.
fn most_frequent<T: Eq + Hash + Copy>(all: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = HashMap::new();
    for (at, one) in all.enumerate() {
        counts.entry(one).or_insert((0_usize, at)).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, (count, at))| (*count, usize::MAX - at)).map(|(one, _)| one)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::context::Client;

    #[test]
    fn a_transfer_must_be_faster_the_longer_others_wait() {
        let mut rate = Rate::default();
        let mut moved = 0;
        let mut check = |gained: u64, is_wanted: bool, expected: Option<To>| {
            moved += gained;
            assert_eq!(rate.judge(moved, is_wanted), expected, "{gained} bytes");
        };
        check(BYTES_MIN, true, None);
        check(BYTES_MIN, true, Some(To::Less));
        check(BYTES_MIN * 4, true, None);
        check(BYTES_MIN * 7, true, Some(To::Less));
        check(BYTES_MIN, false, None);
        check(BYTES_MIN, true, None);
        (0..20).for_each(|_| check(BYTES_MIN << DOUBLINGS_MAX, true, None));
        check((BYTES_MIN << DOUBLINGS_MAX) - 1, true, Some(To::Less));
        check(STILL_BYTES, false, Some(To::Next));
        (1..STILL_WINDOWS).for_each(|_| check(STILL_BYTES - 1, false, Some(To::Next)));
        check(STILL_BYTES - 1, false, Some(To::Same));
        check(0, true, Some(To::Same));
        check(STILL_BYTES, false, Some(To::Next));
    }

    #[test]
    fn what_ends_is_of_the_largest_client_of_the_largest_registry() {
        let owner = |(registry, client): &(&str, u8)| {
            let client = Client::At(Ipv4Addr::new(10, 0, 0, *client).into());
            Owner::new(&registry.parse().unwrap(), client)
        };
        let check = |owners: &[(&'static str, u8)], max: usize, expected: Option<usize>| {
            let all = owners.iter().enumerate();
            let ends = one_too_many(all, max, |(_, one)| owner(one));
            assert_eq!(ends.map(|(at, _)| at), expected, "{owners:?}");
        };
        let (a, b) = ("a.test", "b.test");
        check(&[], 0, None);
        check(&[(a, 1), (a, 1)], 2, None);
        check(&[(a, 1), (b, 1)], 1, Some(0));
        check(&[(b, 1), (b, 1), (a, 1), (a, 2), (a, 2)], 4, Some(3));
        check(&[(a, 1), (b, 1), (b, 2)], 2, Some(1));
    }
}
