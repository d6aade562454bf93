//! Who may be connected: so many at once, and of these at most half from one address.
//!
//! Whoever finds no seat is turned away at once rather than left to wait: a container runtime then goes on to
//! its next host in milliseconds, and would else lose its thirty seconds here. Half, and not less, because a
//! whole site may come through one load balancer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::telemetry::Metrics;

/// Connections at once, all listeners of the data plane together.
const CONNECTIONS_MAX: usize = 8192;
/// Files that are not for connections: listeners, the index, transfers from upstream.
const FILES_RESERVED: u64 = 64;
/// Files that a connection may need: its socket, and the blob that it reads.
const FILES_PER_CONNECTION: u64 = 2;
/// Between two lines of the log about the same trouble.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Room for the connections of some listeners.
pub struct Seats {
    max: usize,
    taken: Mutex<Taken>,
    metrics: Arc<Metrics>,
    crowded: Rarely,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// The right to be connected; given back when it is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
}

impl Seats {
    /// Room for the data plane of a process that may have `files` open; none: as many as it likes.
    pub fn of_data_plane(files: Option<u64>, metrics: Arc<Metrics>) -> Arc<Self> {
        let fit = files.map_or(u64::MAX, |files| files.saturating_sub(FILES_RESERVED) / FILES_PER_CONNECTION);
        Self::new(usize::try_from(fit).unwrap_or(usize::MAX).clamp(2, CONNECTIONS_MAX), metrics)
    }

    /// Room for `max` connections.
    pub fn new(max: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default(), metrics, crowded: Rarely::default() })
    }

    /// A seat for `client`, if there is one for it.
    pub(super) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let client = network(client);
        let mut taken = self.lock();
        let own = taken.by_client.get(&client).copied().unwrap_or(0);
        if taken.all < self.max && own < self.max.div_ceil(2) {
            taken.all += 1;
            taken.by_client.insert(client, own + 1);
            return Some(Seat { seats: Arc::clone(self), client });
        }
        let all = taken.all;
        drop(taken);
        self.metrics.turned_away.inc();
        if self.crowded.is_time() {
            warn!(%client, its_own = own, all, max = self.max, "too many connections: some are turned away");
        }
        None
    }

    /// A panic elsewhere leaves the counts whole: they are changed together, without a call between.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        match taken.by_client.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by_client.remove(&self.client)),
        }
    }
}

/// What one client can have many of counts as one: of IPv6 the 64 bits that a host picks for itself.
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

/// Says when it is time for another line about a trouble that comes in thousands.
#[derive(Default)]
pub(super) struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    pub(super) fn is_time(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = last.is_none_or(|last| last.elapsed() >= SAY_EVERY);
        if is_time {
            *last = Some(Instant::now());
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_takes_half_of_the_seats_and_gives_them_back() {
        let seats = Seats::new(4, Arc::new(Metrics::new()));
        let of = |client: &str| seats.take(address(client));
        let first = [of("10.0.0.1"), of("::ffff:10.0.0.1")];
        assert!(first.iter().all(Option::is_some));
        assert!(of("10.0.0.1").is_none());
        let second = [of("2001:db8::1"), of("2001:db8::2")];
        assert!(second.iter().all(Option::is_some));
        assert!(of("10.0.0.3").is_none(), "all are taken");
        drop(first);
        assert!(of("2001:db8::3").is_none(), "one network, as many addresses as it likes");
        assert!(of("2001:db8:0:1::1").is_some());
        drop(second);
        let taken = seats.lock();
        assert_eq!((taken.all, taken.by_client.len()), (0, 0));
    }

    #[test]
    fn there_are_no_more_seats_than_files() {
        let check = |files: Option<u64>, max: usize| {
            assert_eq!(Seats::of_data_plane(files, Arc::new(Metrics::new())).max, max, "{files:?}");
        };
        check(None, CONNECTIONS_MAX);
        check(Some(1 << 20), CONNECTIONS_MAX);
        check(Some(1024), 480);
        check(Some(10), 2);
    }
}
