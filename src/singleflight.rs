//! Single flight: work that many may ask for is done once, and those that ask while it is under way wait for its result.
//!
//! The work is a task of its own, owned by no connection: a slow or vanished client never delays the others. It stops when
//! the last waiter has left, so that what is not wanted costs upstream nothing, unless it was begun
//! [in the background](SingleFlight::begin) or is [past the point](Progress::answered) from which it is worth finishing. The
//! table holds only what is under way, so it is bounded by the number of requests.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::sync::{Progress, lock};

/// The work under way, by what it is for.
pub struct SingleFlight<K, V> {
    table: Arc<Mutex<HashMap<K, Arc<Flight<V>>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { table: Arc::default() }
    }
}

/// One piece of work.
struct Flight<V> {
    result: watch::Receiver<Option<V>>,
    progress: Progress,
    /// It is changed only under the table's lock, so that nothing joins work that is being stopped.
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    count: usize,
    /// `None` until the task is spawned.
    task: Option<AbortHandle>,
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work for `key`, which is begun by `work` unless it is under way, and whether it was. Work that is
    /// begun stops when nothing waits for it any more.
    ///
    /// The result is `None` if the work panicked.
    pub async fn run<F>(&self, key: K, work: impl FnOnce(Progress) -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.enter(key, work).result().await
    }

    /// The same, but waits for `limit` at most: then it is `None`, and the work goes on, so that its result is there for the
    /// next request. The work stops if the last waiter leaves before.
    pub async fn run_within<F>(
        &self,
        limit: Duration,
        key: K,
        work: impl FnOnce(Progress) -> F,
    ) -> Option<(Option<V>, bool)>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut waiter = self.enter(key, work);
        let ended = timeout(limit, waiter.result()).await.ok();
        if ended.is_none() {
            waiter.flight.progress.answered();
        }
        ended
    }

    /// Begins the work for `key` unless it is under way, and does not wait. The work goes on to its end.
    pub fn begin<F>(&self, key: K, work: impl FnOnce(Progress) -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.enter(key, work).flight.progress.answered();
    }

    /// Takes the work for these keys out of the table. It goes on, and requests that come from now on begin it anew.
    pub fn detach(&self, is_meant: impl Fn(&K) -> bool) {
        lock(&self.table).retain(|key, _| !is_meant(key));
    }

    fn enter<F>(&self, key: K, work: impl FnOnce(Progress) -> F) -> Waiter<K, V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = lock(&self.table);
        if let Some(flight) = table.get(&key) {
            lock(&flight.waiters).count += 1;
            return self.waiter(key, Arc::clone(flight), true);
        }
        let (sender, result) = watch::channel(None);
        let progress = Progress::default();
        let waiters = Mutex::new(Waiters { count: 1, task: None });
        let flight = Arc::new(Flight { result, progress: progress.clone(), waiters });
        table.insert(key.clone(), Arc::clone(&flight));
        let leave = Leave { table: Arc::clone(&self.table), key: key.clone(), own: flight.result.clone() };
        let work = work(progress);
        let task = tokio::spawn(async move {
            let value = work.await;
            drop(leave);
            sender.send_replace(Some(value));
        });
        lock(&flight.waiters).task = Some(task.abort_handle());
        self.waiter(key, flight, false)
    }

    fn waiter(&self, key: K, flight: Arc<Flight<V>>, has_joined: bool) -> Waiter<K, V> {
        Waiter { table: Arc::clone(&self.table), key, flight, has_joined }
    }
}

/// One that waits for the work. When the last of them is dropped the work stops, unless it goes on alone.
struct Waiter<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Arc<Flight<V>>>>>,
    key: K,
    flight: Arc<Flight<V>>,
    has_joined: bool,
}

impl<K: Eq + Hash, V: Clone> Waiter<K, V> {
    async fn result(&mut self) -> (Option<V>, bool) {
        let mut result = self.flight.result.clone();
        let value = result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        (value, self.has_joined)
    }
}

impl<K: Eq + Hash, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        let mut waiters = lock(&self.flight.waiters);
        waiters.count -= 1;
        if waiters.count > 0 || self.flight.progress.goes_on_alone() {
            return;
        }
        leave(&mut table, &self.key, &self.flight.result);
        let task = waiters.task.take();
        drop((table, waiters));
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// Takes the work out of the table when it is dropped, also by a panic.
struct Leave<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Arc<Flight<V>>>>>,
    key: K,
    own: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V> Drop for Leave<K, V> {
    fn drop(&mut self) {
        leave(&mut lock(&self.table), &self.key, &self.own);
    }
}

fn leave<K: Eq + Hash, V>(table: &mut HashMap<K, Arc<Flight<V>>>, key: &K, own: &watch::Receiver<Option<V>>) {
    // It may be detached, and another's be in its place.
    if table.get(key).is_some_and(|current| current.result.same_channel(own)) {
        table.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_ask_and_it_is_done_once() {
        let once = Arc::new(SingleFlight::<u8, usize>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let ask = || {
            let (once, runs, mut gate) = (Arc::clone(&once), Arc::clone(&runs), gate.clone());
            async move {
                let work = move |_| async move {
                    gate.wait_for(|open| *open).await.unwrap();
                    runs.fetch_add(1, Ordering::SeqCst)
                };
                once.run(1, work).await.0
            }
        };
        let asked: Vec<_> = (0..8).map(|_| tokio::spawn(ask())).collect();
        asked[0].abort();
        open.send_replace(true);
        for answer in asked.into_iter().skip(1) {
            assert_eq!(answer.await.unwrap(), Some(0));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(once.run(1, |_| async { 7 }).await, (Some(7), false));
    }

    /// Says when it is dropped.
    struct Dropped(Arc<Notify>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn work_stops_with_the_last_who_waits_for_it() {
        let once = Arc::new(SingleFlight::<u8, u8>::default());
        let stopped = Arc::<Notify>::default();
        let ask = || {
            let (once, dropped) = (Arc::clone(&once), Dropped(Arc::clone(&stopped)));
            tokio::spawn(async move {
                let work = |_| async move {
                    let _dropped = dropped;
                    pending().await
                };
                once.run(1, work).await
            })
        };
        let (first, second) = (ask(), ask());
        tokio::task::yield_now().await;
        // What the second would have done is dropped unused.
        stopped.notified().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(lock(&once.table).len(), 1, "the second still waits");
        second.abort();
        stopped.notified().await;
        assert!(lock(&once.table).is_empty());
        assert_eq!(once.run(1, |_| async { 3 }).await, (Some(3), false), "begun anew");
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_alone_behind_an_answer_after_a_limit_and_once_upstream_answers() {
        let once = Arc::new(SingleFlight::<u8, u8>::default());
        let (open, gate) = watch::channel(false);
        let wait = |answers: bool| {
            let mut gate = gate.clone();
            move |progress: Progress| async move {
                if answers {
                    progress.answered();
                }
                gate.wait_for(|open| *open).await.unwrap();
                1
            }
        };
        once.begin(1, wait(false));
        assert!(once.run_within(Duration::from_secs(1), 2, wait(false)).await.is_none());
        let (asking, work) = (Arc::clone(&once), wait(true));
        let left = tokio::spawn(async move { asking.run(3, work).await });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        let again = |key| once.run(key, |_| async { 0 });
        let joined = async { tokio::join!(again(1), again(2), again(3)) };
        let (joined, _) = tokio::join!(joined, async { open.send_replace(true) });
        assert_eq!(joined, ((Some(1), true), (Some(1), true), (Some(1), true)));
    }

    #[tokio::test]
    async fn what_is_detached_goes_on_and_nobody_joins_it() {
        let once = Arc::new(SingleFlight::<u8, u8>::default());
        let (open, gate) = watch::channel(false);
        let (old, other) = (Arc::clone(&once), gate.clone());
        let wait = |mut gate: watch::Receiver<bool>, value| async move {
            gate.wait_for(|open| *open).await.unwrap();
            value
        };
        once.begin(1, |_| wait(gate.clone(), 1));
        let first = tokio::spawn(async move { old.run(1, |_| async { 0 }).await });
        tokio::task::yield_now().await;
        once.detach(|key| *key == 1);
        once.begin(1, |_| wait(other, 2));
        let again = || once.run(1, |_| async { 0 });
        open.send_replace(true);
        assert_eq!(again().await, (Some(2), true));
        assert_eq!(first.await.unwrap(), (Some(1), true));
        assert_eq!(again().await, (Some(0), false), "each has left");
    }

    #[tokio::test]
    async fn a_panic_leaves_the_table_usable() {
        let once = SingleFlight::<u8, u8>::default();
        assert_eq!(once.run(1, |_| async { panic!("in a test") }).await.0, None);
        assert_eq!(once.run(1, |_| async { 2 }).await.0, Some(2));
    }
}
