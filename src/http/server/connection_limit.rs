//! The limit of connections: on their number, and on the part of it that one client may have, which is half.
//!
//! Idle connections keep nobody out: if a connection is refused a permit, the one that has been idle for longest is closed
//! for it, of the client itself if that has its half, otherwise of the client that has most. So a crowd that connects and
//! asks nothing, or that sends half a head, starves no health check, not even one from its own address. A response is
//! never cut for that.
//!
//! A client that gets no permit even so is turned away at once rather than left to wait: a container runtime then goes on
//! to its next host in milliseconds, and would otherwise lose its thirty seconds here. One client may have half, and not
//! less, because a whole site may come through one load balancer.
//!
//! Each plane has a limit of its own, and there are files for all of them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::task::AbortHandle;
use tracing::warn;

use super::activity::Activity;
use crate::access::networks::client_network;
use crate::sync::lock;
use crate::telemetry::{LogThrottle, Metrics};

/// Most connections of the data plane, all of its listeners together.
const CONNECTIONS_MAX: usize = 8192;
/// Most connections of the admin plane, and of the metrics listener.
const ADMIN_CONNECTIONS_MAX: u64 = 64;
/// Least connections of each: a health check, a scrape and a command at once.
const ADMIN_CONNECTIONS_MIN: u64 = 4;
/// Files of the process for each connection of the admin plane, where there are few files.
const FILES_PER_ADMIN_CONNECTION: u64 = 16;
/// Number of files that are not for connections: listeners, the index, transfers from upstream.
const FILES_RESERVED: u64 = 64;
/// Number of files that a connection may need: its socket, and the blob that it reads.
const FILES_PER_CONNECTION: u64 = 2;
/// Number of idle connections that are tried: the one to be closed may begin a response just then.
const CLOSE_TRIES: usize = 4;

/// The connections of some listeners, and the limit on them.
pub struct ConnectionLimit {
    max: usize,
    open: Mutex<OpenConnections>,
    metrics: Arc<Metrics>,
    log_throttle: LogThrottle,
}

#[derive(Default)]
struct OpenConnections {
    all: usize,
    /// The number of the next permit.
    next: u64,
    by_client: HashMap<IpAddr, HashMap<u64, Option<ClosableConnection>>>,
}

/// A connection that can be closed for another.
struct ClosableConnection {
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// Most yields to the runtime while a connection is being closed.
const CLOSE_YIELDS: u32 = 1000;

/// The right to be connected. It is given back when it is dropped, unless another connection has it by then.
pub(crate) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    client: IpAddr,
    number: u64,
    /// The task of the connection that was closed for this one.
    displaced: Option<AbortHandle>,
}

impl ConnectionLimit {
    /// The limit of the data plane, in a process that may have `files` files open; `None` is any number.
    pub fn of_data_plane(files: Option<u64>, metrics: Arc<Metrics>) -> Arc<Self> {
        // There is the metrics listener, too.
        let others = FILES_RESERVED + 2 * admin_connections(files);
        let fit = files.map_or(u64::MAX, |files| files.saturating_sub(others) / FILES_PER_CONNECTION);
        Self::new(usize::try_from(fit).unwrap_or(usize::MAX).clamp(2, CONNECTIONS_MAX), metrics)
    }

    /// The limit of the admin plane in such a process, or of its metrics listener.
    pub fn of_admin_plane(files: Option<u64>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::new(usize::try_from(admin_connections(files)).unwrap_or(usize::MAX), metrics)
    }

    /// A limit of `max` connections.
    pub fn new(max: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default(), metrics, log_throttle: LogThrottle::default() })
    }

    /// A permit for a connection of `client`, if there is one, or if an idle connection can be closed for it.
    pub(crate) fn acquire(self: &Arc<Self>, client: IpAddr) -> Option<ConnectionPermit> {
        let client = client_network(client);
        let mut open = self.lock();
        let own = open.count(client);
        let has_its_half = own >= self.max.div_ceil(2);
        let is_full = open.all >= self.max;
        let all = open.all;
        let displaced = match has_its_half || is_full {
            true => open.make_room(client, has_its_half).map(Some),
            false => Some(None),
        };
        let permit = displaced.map(|displaced| {
            let (limit, number) = (Arc::clone(self), open.add(client));
            ConnectionPermit { limit, client, number, displaced }
        });
        drop(open);
        if has_its_half || is_full {
            self.metrics.turned_away.inc();
            if self.log_throttle.is_due() {
                let max = self.max;
                warn!(%client, its_own = own, all, max, "too many connections: some that rest are closed, or others turned away");
            }
        }
        permit
    }

    /// Lets the connection with permit `number` of `client` be closed for another, while it is idle, by aborting `task`.
    pub(crate) fn set_closable(
        &self,
        client: IpAddr,
        number: u64,
        activity: Arc<Activity>,
        task: AbortHandle,
    ) {
        let mut open = self.lock();
        let own = open.by_client.get_mut(&client_network(client));
        // It may have ended already.
        if let Some(connection) = own.and_then(|own| own.get_mut(&number)) {
            *connection = Some(ClosableConnection { activity, task });
        }
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        lock(&self.open)
    }
}

impl OpenConnections {
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

    /// Closes an idle connection so that `client` may have one more: one of its own, or of a client that has no fewer.
    /// Returns its task, if there was one.
    fn make_room(&mut self, client: IpAddr, own_only: bool) -> Option<AbortHandle> {
        for _ in 0..CLOSE_TRIES {
            let (of, number) = self.longest_idle(client, own_only)?;
            let connection = self.by_client.get(&of).and_then(|own| own.get(&number)?.as_ref());
            if let Some(connection) = connection.filter(|connection| connection.close()) {
                let task = connection.task.clone();
                self.remove(of, number);
                return Some(task);
            }
        }
        None
    }

    /// The connection that is to be closed: of the client that has most, the one that has been idle for longest.
    fn longest_idle(&self, client: IpAddr, own_only: bool) -> Option<(IpAddr, u64)> {
        let own = self.count(client);
        let may_lose = |other: &IpAddr, count: usize| *other == client || (!own_only && count >= own.max(1));
        let clients = self.by_client.iter().filter(|(other, own)| may_lose(other, own.len()));
        let idle = clients.flat_map(|(other, own)| {
            own.iter().filter_map(|(number, connection)| {
                let since = connection.as_ref()?.activity.idle_since()?;
                Some((Reverse(own.len()), since, *other, *number))
            })
        });
        idle.min().map(|(_, _, of, number)| (of, number))
    }
}

impl ClosableConnection {
    /// Closes the connection, if it is still idle.
    fn close(&self) -> bool {
        let is_closed = self.activity.close_if_idle();
        if is_closed {
            self.task.abort();
        }
        is_closed
    }
}

impl ConnectionPermit {
    /// The number of the permit among those of all clients.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Waits until the connection that was closed for this one has given its file back: a crowd that comes at once must
    /// not open files faster than they are closed.
    pub(crate) async fn until_replaced(&self) {
        let is_there = || self.displaced.as_ref().is_some_and(|task| !task.is_finished());
        for _ in 0..CLOSE_YIELDS {
            if !is_there() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limit.lock().remove(self.client, self.number);
    }
}

/// Most connections of the admin plane, in a process that may have `files` files open.
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
        let seats = ConnectionLimit::new(4, Arc::new(Metrics::new()));
        let of = |client: &str| seats.acquire(address(client));
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
        let open = seats.lock();
        assert_eq!((open.all, open.by_client.len()), (0, 0));
    }

    /// A permit with a connection that waits for a request.
    fn connected(
        seats: &Arc<ConnectionLimit>,
        client: &str,
    ) -> Option<(ConnectionPermit, Arc<Activity>, AbortHandle)> {
        let (client, activity) = (address(client), Activity::new());
        let permit = seats.acquire(client)?;
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        seats.set_closable(client, permit.number(), Arc::clone(&activity), task.clone());
        Some((permit, activity, task))
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_rest_keep_nobody_out_and_answers_are_not_cut() {
        let seats = ConnectionLimit::new(4, Arc::new(Metrics::new()));
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
        let open = seats.lock();
        assert_eq!((open.all, open.by_client.len()), (0, 0));
    }

    #[test]
    fn there_are_no_more_seats_than_files() {
        let check = |files: Option<u64>, max: usize| {
            assert_eq!(ConnectionLimit::of_data_plane(files, Arc::new(Metrics::new())).max, max, "{files:?}");
        };
        check(None, CONNECTIONS_MAX);
        check(Some(1 << 20), CONNECTIONS_MAX);
        check(Some(1024), 416);
        check(Some(10), 2);
    }
}
