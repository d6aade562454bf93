//! Who may be connected: so many at once, and of these at most half from one address.
//!
//! Connections that only rest keep nobody out: for want of a seat the one that has rested longest is closed, of the
//! client itself where that has its half, else of whoever has most. So a crowd that connects and asks nothing, or that
//! sends half a head, starves no health check, not even one from its own address. An answer is never cut for it.
//!
//! Who finds no seat even so is turned away at once rather than left to wait: a container runtime then goes on to
//! its next host in milliseconds, and would else lose its thirty seconds here. Half, and not less, because a
//! whole site may come through one load balancer.
//!
//! Each plane has seats of its own, and there are files for all of them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;
use tracing::warn;

use super::activity::Answers;
use crate::access::networks::client_network;
use crate::telemetry::{LogThrottle, Metrics};

/// Connections at once, all listeners of the data plane together.
const CONNECTIONS_MAX: usize = 8192;
/// Connections of the admin plane, and as many of the metrics listener.
const ADMIN_CONNECTIONS_MAX: u64 = 64;
/// The least of them: a health check, a scrape and a command at once.
const ADMIN_CONNECTIONS_MIN: u64 = 4;
/// One file in so many may be a connection of the admin plane, where there are few.
const FILES_PER_ADMIN_CONNECTION: u64 = 16;
/// Files that are not for connections: listeners, the index, transfers from upstream.
const FILES_RESERVED: u64 = 64;
/// Files that a connection may need: its socket, and the blob that it reads.
const FILES_PER_CONNECTION: u64 = 2;
/// A connection that is to be closed for another may begin to answer just then; so often the next one is looked for.
const CLOSE_TRIES: usize = 4;

/// Room for the connections of some listeners.
pub struct Seats {
    max: usize,
    taken: Mutex<Taken>,
    metrics: Arc<Metrics>,
    crowded: LogThrottle,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// Numbers the seats.
    next: u64,
    by_client: HashMap<IpAddr, HashMap<u64, Option<Connection>>>,
}

/// A connection that can be closed for another.
struct Connection {
    answers: Arc<Answers>,
    task: AbortHandle,
}

/// Turns of the runtime that a connection which is being closed is given.
const SETTLE_YIELDS: u32 = 1000;

/// The right to be connected; given back when it is dropped, unless another connection has it by then.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
    number: u64,
    /// The connection that was closed for this one.
    displaced: Option<AbortHandle>,
}

impl Seats {
    /// Room for the data plane of a process that may have `files` open; none: as many as it likes.
    pub fn of_data_plane(files: Option<u64>, metrics: Arc<Metrics>) -> Arc<Self> {
        // There is the metrics listener, too.
        let others = FILES_RESERVED + 2 * admin_connections(files);
        let fit = files.map_or(u64::MAX, |files| files.saturating_sub(others) / FILES_PER_CONNECTION);
        Self::new(usize::try_from(fit).unwrap_or(usize::MAX).clamp(2, CONNECTIONS_MAX), metrics)
    }

    /// Room for the admin plane of such a process, or for its metrics listener.
    pub fn of_admin_plane(files: Option<u64>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::new(usize::try_from(admin_connections(files)).unwrap_or(usize::MAX), metrics)
    }

    /// Room for `max` connections.
    pub fn new(max: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default(), metrics, crowded: LogThrottle::default() })
    }

    /// A seat for `client`, if there is one for it, or becomes free.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let client = client_network(client);
        let mut taken = self.lock();
        let own = taken.count(client);
        let has_its_half = own >= self.max.div_ceil(2);
        let is_full = taken.all >= self.max;
        let all = taken.all;
        let displaced = match has_its_half || is_full {
            true => taken.make_room(client, has_its_half).map(Some),
            false => Some(None),
        };
        let seat = displaced.map(|displaced| {
            let (seats, number) = (Arc::clone(self), taken.add(client));
            Seat { seats, client, number, displaced }
        });
        drop(taken);
        if has_its_half || is_full {
            self.metrics.turned_away.inc();
            if self.crowded.is_due() {
                let max = self.max;
                warn!(%client, its_own = own, all, max, "too many connections: some that rest are closed, or others turned away");
            }
        }
        seat
    }

    /// The connection that has seat `number` of `client` may be closed by its task, while it rests, for another.
    pub(crate) fn may_close(&self, client: IpAddr, number: u64, answers: Arc<Answers>, task: AbortHandle) {
        let mut taken = self.lock();
        let own = taken.by_client.get_mut(&client_network(client));
        // It may have ended already.
        if let Some(seat) = own.and_then(|own| own.get_mut(&number)) {
            *seat = Some(Connection { answers, task });
        }
    }

    /// A panic elsewhere leaves the counts whole: they are changed together, without a call between.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn count(&self, client: IpAddr) -> usize {
        self.by_client.get(&client).map_or(0, HashMap::len)
    }

    fn add(&mut self, client: IpAddr) -> u64 {
        let number = self.next;
        self.next += 1;
        self.all += 1;
        self.by_client.entry(client).or_default().insert(number, None);
        number
    }

    fn remove(&mut self, client: IpAddr, number: u64) {
        let Some(own) = self.by_client.get_mut(&client) else { return };
        self.all -= usize::from(own.remove(&number).is_some());
        if own.is_empty() {
            self.by_client.remove(&client);
        }
    }

    /// Closes a connection that rests so that `client` may have one more: one of its own, or of anybody who has no fewer.
    /// Returns its task, if there was one.
    fn make_room(&mut self, client: IpAddr, own_only: bool) -> Option<AbortHandle> {
        for _ in 0..CLOSE_TRIES {
            let (of, number) = self.longest_resting(client, own_only)?;
            let connection = self.by_client.get(&of).and_then(|own| own.get(&number)?.as_ref());
            if let Some(connection) = connection.filter(|connection| connection.close()) {
                let task = connection.task.clone();
                self.remove(of, number);
                return Some(task);
            }
        }
        None
    }

    /// Which seat is to become free: of the client that has most, the one whose connection has rested longest.
    fn longest_resting(&self, client: IpAddr, own_only: bool) -> Option<(IpAddr, u64)> {
        let own = self.count(client);
        let may_lose = |other: &IpAddr, count: usize| *other == client || (!own_only && count >= own.max(1));
        let clients = self.by_client.iter().filter(|(other, seats)| may_lose(other, seats.len()));
        let resting = clients.flat_map(|(other, seats)| {
            seats.iter().filter_map(|(number, connection)| {
                let since = connection.as_ref()?.answers.resting_since()?;
                Some((Reverse(seats.len()), since, *other, *number))
            })
        });
        resting.min().map(|(_, _, of, number)| (of, number))
    }
}

impl Connection {
    /// Closes it, if it still rests.
    fn close(&self) -> bool {
        let leaves = self.answers.leave();
        if leaves {
            self.task.abort();
        }
        leaves
    }
}

impl Seat {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Waits until the connection that was closed for this one has given its file back: a crowd that comes at once must
    /// not open files faster than they are closed.
    pub(crate) async fn settled(&self) {
        let is_there = || self.displaced.as_ref().is_some_and(|task| !task.is_finished());
        for _ in 0..SETTLE_YIELDS {
            if !is_there() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(self.client, self.number);
    }
}

/// Connections of the admin plane of a process that may have `files` open.
fn admin_connections(files: Option<u64>) -> u64 {
    let fit = files.map_or(u64::MAX, |files| files / FILES_PER_ADMIN_CONNECTION);
    fit.clamp(ADMIN_CONNECTIONS_MIN, ADMIN_CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    /// A seat with a connection that waits for a request.
    fn connected(seats: &Arc<Seats>, client: &str) -> Option<(Seat, Arc<Answers>, AbortHandle)> {
        let (client, answers) = (address(client), Answers::new());
        let seat = seats.take(client)?;
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        seats.may_close(client, seat.number(), Arc::clone(&answers), task.clone());
        Some((seat, answers, task))
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_rest_keep_nobody_out_and_answers_are_not_cut() {
        let seats = Seats::new(4, Arc::new(Metrics::new()));
        let connected = async |client: &str| {
            // One after the other.
            tokio::time::advance(Duration::from_secs(1)).await;
            connected(&seats, client)
        };
        let first = connected("10.0.0.1").await.unwrap();
        let answer = first.1.begin().unwrap();
        let second = connected("10.0.0.1").await.unwrap();
        let third = connected("10.0.0.1").await.unwrap();
        tokio::task::yield_now().await;
        assert!(second.2.is_finished() && !first.2.is_finished(), "the one that rests is closed");
        assert!(second.1.begin().is_none(), "and answers nothing any more");
        let other_answer = third.1.begin().unwrap();
        assert!(connected("10.0.0.1").await.is_none(), "both answer");
        drop(second.0);
        assert_eq!(seats.lock().all, 2, "the seat went on to the next");
        let others = [connected("10.0.0.2").await.unwrap(), connected("10.0.0.2").await.unwrap()];
        let last = connected("10.0.0.3").await.unwrap();
        tokio::task::yield_now().await;
        assert!(others[0].2.is_finished() && !others[1].2.is_finished());
        drop((answer, other_answer));
        tokio::time::advance(Duration::from_secs(1)).await;
        let more = connected("10.0.0.3").await.unwrap();
        tokio::task::yield_now().await;
        assert!(first.2.is_finished() && !last.2.is_finished(), "of whoever has most");
        drop((first.0, third.0, others, last, more));
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
        check(Some(1024), 416);
        check(Some(10), 2);
    }
}
