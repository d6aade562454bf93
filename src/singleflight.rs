//! Work that many may ask for and that is done once: whoever comes while it is under way waits for its result.
//!
//! The work is a task of its own, owned by nobody's connection: it goes on when those who asked for it leave,
//! and a slow or vanished client never delays the others. The table holds only what is under way, so it is
//! bounded by the requests being answered.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use tokio::sync::watch;

/// The work under way, by what it is for.
pub struct SingleFlight<K, V> {
    table: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { table: Arc::default() }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work for `key`, begun by `work` unless it is under way; true when it was.
    ///
    /// None if the work panicked: its task is gone and has left no result.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut result, joined) = self.enter(key, work);
        let value = result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        (value, joined)
    }

    /// Begins the work for `key` unless it is under way, and waits for nothing.
    pub fn begin<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        drop(self.enter(key, work));
    }

    /// Whoever comes from now on does not wait for what is under way for these keys, but begins anew.
    pub fn detach(&self, is_meant: impl Fn(&K) -> bool) {
        lock(&self.table).retain(|key, _| !is_meant(key));
    }

    fn enter<F>(&self, key: K, work: impl FnOnce() -> F) -> (watch::Receiver<Option<V>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = lock(&self.table);
        if let Some(result) = table.get(&key) {
            return (result.clone(), true);
        }
        let (sender, result) = watch::channel(None);
        table.insert(key.clone(), result.clone());
        let leave = Leave { table: Arc::clone(&self.table), key, own: result.clone() };
        let work = work();
        tokio::spawn(async move {
            let value = work.await;
            drop(leave);
            sender.send_replace(Some(value));
        });
        (result, false)
    }
}

/// Takes the work out of the table, also when it panics.
struct Leave<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
    own: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V> Drop for Leave<K, V> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // It may be detached, and another's be in its place.
        if table.get(&self.key).is_some_and(|current| current.same_channel(&self.own)) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_ask_and_it_is_done_once() {
        let once = Arc::new(SingleFlight::<u8, usize>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let ask = || {
            let (once, runs, mut gate) = (Arc::clone(&once), Arc::clone(&runs), gate.clone());
            async move {
                let work = move || async move {
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
        assert_eq!(once.run(1, || async { 7 }).await, (Some(7), false));
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
        once.begin(1, || wait(gate.clone(), 1));
        let first = tokio::spawn(async move { old.run(1, || async { 0 }).await });
        tokio::task::yield_now().await;
        once.detach(|key| *key == 1);
        once.begin(1, || wait(other, 2));
        let again = || once.run(1, || async { 0 });
        open.send_replace(true);
        assert_eq!(again().await, (Some(2), true));
        assert_eq!(first.await.unwrap(), (Some(1), true));
        assert_eq!(again().await, (Some(0), false), "each has left");
    }

    #[tokio::test]
    async fn a_panic_leaves_the_table_usable() {
        let once = SingleFlight::<u8, u8>::default();
        assert_eq!(once.run(1, || async { panic!("in a test") }).await.0, None);
        assert_eq!(once.run(1, || async { 2 }).await.0, Some(2));
    }
}
