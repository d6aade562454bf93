//! The background work of a store: after its start, while it runs, and at its end.
//!
//! It uses all other rooms, and only the store itself uses it. One loop renders, adopts, writes times of use and
//! rebuilds a failed index; the probes of the disk and the eviction have loops of their own.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinHandle};

use crate::clock::{age, unix_seconds};
use crate::oci::Repo;
use crate::store::blocking::blocking;
use crate::store::contents::Contents;
use crate::store::disk::{Disk, probe};
use crate::store::eviction::Eviction;
use crate::store::layout::Layouts;
use crate::store::malloc::trim;
use crate::store::metadata::Metadata;
use crate::store::metadata::index::database::IndexState;
use crate::store::metadata::rebuild::{Reconciler, Summary, Trust};
use crate::sync::lock;

/// Time between two batches of rendering at least, and so between two renderings of one `index.json`.
const RENDER_INTERVAL: Duration = Duration::from_secs(1);
/// Small `index.json` files are rendered in batches of about this length. After each batch rendering pauses for
/// `RENDER_PAUSE_FACTOR` times its duration: a store with very many is rendered less often, but none waits for all
/// others.
const ROUND_MAX: Duration = Duration::from_millis(500);
const RENDER_PAUSE_FACTOR: u32 = 3;
/// Time for rendering at the end of the process. The next start renders the rest.
const RENDER_AT_END_MAX: Duration = Duration::from_secs(4);
/// How long a start waits for an index that is being rebuilt. That of a small store takes no time, and a large store
/// answers from the files meanwhile.
const REBUILD_WAIT: Duration = Duration::from_secs(2);
/// Time between two rounds of background work at most, for what has no hurry: times of use, idle mappings, another
/// try at an index.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two checks for room when no download asks for one.
const EVICT_INTERVAL: Duration = Duration::from_secs(5);
/// Time before an index that could not be rebuilt is tried again. The disk may be full for hours.
const REBUILD_INTERVAL: Duration = Duration::from_secs(60);

/// The background work of a store.
pub(in crate::store) struct Maintenance {
    disk: Arc<Disk>,
    metadata: Arc<Metadata>,
    contents: Arc<Contents>,
    eviction: Arc<Eviction>,
    layouts: Arc<Layouts>,
    reconciler: Arc<Reconciler>,
    /// The state in which the previous process left the index.
    found: IndexState,
    /// When this process began, in seconds since 1970.
    opened_at: u64,
    /// The rebuild of the index, if it takes longer than [`REBUILD_WAIT`].
    rebuilding: Mutex<Option<JoinHandle<()>>>,
    /// Ends background work early once it is true.
    stop: Arc<AtomicBool>,
}

impl Maintenance {
    pub(in crate::store) fn new(
        disk: Arc<Disk>,
        metadata: Arc<Metadata>,
        contents: Arc<Contents>,
        eviction: Arc<Eviction>,
        layouts: Arc<Layouts>,
        found: IndexState,
        opened_at: u64,
    ) -> Self {
        let reconciler = Arc::new(Reconciler::new(Arc::clone(&metadata)));
        let (rebuilding, stop) = (Mutex::default(), Arc::default());
        Self { disk, metadata, contents, eviction, layouts, reconciler, found, opened_at, rebuilding, stop }
    }

    /// Returns the flag that ends all background work early.
    pub(in crate::store) fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    pub(in crate::store) fn reconciler(&self) -> &Arc<Reconciler> {
        &self.reconciler
    }

    /// Begins to rebuild an empty index, and waits for a while.
    pub(in crate::store) async fn begin_rebuild(&self) {
        let IndexState::Fresh(reason) = &self.found else { return };
        if self.metadata.index().is_disabled() {
            return;
        }
        let (reconciler, stop, reason) =
            (Arc::clone(&self.reconciler), Arc::clone(&self.stop), reason.clone());
        let mut task = tokio::task::spawn_blocking(move || rebuild(&reconciler, &reason, &stop));
        match tokio::time::timeout(REBUILD_WAIT, &mut task).await {
            Ok(ended) => log_failure(ended),
            Err(_) => {
                tracing::warn!("answering from the files while the index is rebuilt");
                *lock(&self.rebuilding) = Some(task);
            }
        }
    }

    /// Does the background work until `shutdown`, and then closes the index in order.
    pub(in crate::store) async fn run(self: &Arc<Self>, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let (first, rebuilding) = (Arc::clone(self), lock(&self.rebuilding).take());
        let first_pass = tokio::spawn(async move {
            if let Some(rebuilding) = rebuilding {
                log_failure(rebuilding.await);
            }
            let compare_all = move || {
                first.compare();
                trim();
            };
            blocking(compare_all).await;
        });
        let probes = tokio::spawn(probe::run(Arc::clone(&self.disk)));
        let evicting = tokio::spawn(Arc::clone(self).evict_in_background());
        let mut rebuild_after = Instant::now();
        loop {
            let idle = Instant::now() + IDLE_INTERVAL;
            let due = self.metadata.stale().next_due().map_or(idle, |due| due.min(idle));
            tokio::select! {
                () = &mut shutdown => break,
                () = self.metadata.wait_for_work() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let round = Arc::clone(self);
            let took;
            (rebuild_after, took) = blocking(move || round.once(rebuild_after)).await;
            tokio::select! {
                () = &mut shutdown => break,
                () = tokio::time::sleep(RENDER_INTERVAL.max(took * RENDER_PAUSE_FACTOR)) => {}
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        probes.abort();
        self.eviction.wake();
        if let Err(error) = evicting.await {
            tracing::warn!(%error, "eviction has failed");
        }
        log_failure(first_pass.await);
        let last = Arc::clone(self);
        blocking(move || {
            last.render_last();
            last.contents.write_uses();
            last.metadata.index().close(unix_seconds());
        })
        .await;
    }

    /// Closes the index as it was found: in order at that time, or not.
    pub(in crate::store) fn close(&self) {
        let closed_at = match self.found {
            IndexState::Clean(closed_at) => closed_at,
            IndexState::Fresh(_) => self.opened_at,
            IndexState::Unclean => return,
        };
        self.contents.write_uses();
        self.metadata.index().close(closed_at);
    }

    /// Evicts before room is needed, until the store is stopped.
    async fn evict_in_background(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            let round = Arc::clone(&self);
            blocking(move || round.eviction.run_in_background(&round.stop)).await;
            // Others fill the disk, too, and leases end, without telling anybody.
            let _ = tokio::time::timeout(EVICT_INTERVAL, self.eviction.woken()).await;
        }
    }

    /// Compares the index with the files after a start, and adopts what other tools did meanwhile.
    pub(in crate::store) fn compare(&self) {
        let (index, stop) = (self.metadata.index(), &*self.stop);
        let pass = self.reconciler.begin_pass();
        let Some(trust) = self.trust() else { return };
        // One that has failed is rebuilt, by the next round.
        if !index.is_disabled() {
            reconcile(&self.reconciler, trust, stop);
        }
        drop(pass);
        for repo in index.take_stale_layouts() {
            self.metadata.mark_stale(&repo);
        }
        for repo in self.metadata.refs().repositories().unwrap_or_default() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            self.layouts.adopt(&repo);
            // Killed before it rendered what it had written, or somebody has put something else there.
            if !matches!(self.found, IndexState::Clean(_))
                || !self.metadata.refs().index_json(&repo).is_file()
            {
                self.metadata.mark_stale(&repo);
            }
        }
    }

    /// Reads the index once, and returns how much of it is believed; `None` if that was stopped.
    fn trust(&self) -> Option<Trust> {
        let (index, stop) = (self.metadata.index(), &*self.stop);
        Some(match self.found {
            // It was filled a moment ago, by this process.
            IndexState::Fresh(_) if index.is_complete() => Trust::Since(self.opened_at),
            // Closed at a time of the future, it would be believed whatever happens until then.
            IndexState::Clean(closed_at) if age(closed_at, unix_seconds()).is_none() => {
                tracing::warn!(
                    "the index was closed by a clock that was ahead: it is compared with all files"
                );
                index.audit(stop);
                index.set_complete(false);
                Trust::Nothing
            }
            IndexState::Clean(closed_at) if index.audit(stop) => Trust::Since(closed_at),
            IndexState::Clean(_) if stop.load(Ordering::Relaxed) => return None,
            IndexState::Clean(_) => {
                tracing::warn!("the index has lost records: it is compared with all files");
                index.set_complete(false);
                Trust::Nothing
            }
            IndexState::Unclean | IndexState::Fresh(_) => {
                index.audit(stop);
                Trust::Nothing
            }
        })
    }

    /// Does one round of background work. Returns when the index may next be rebuilt, and how long the rendering of
    /// small files took.
    pub(in crate::store) fn once(&self, rebuild_after: Instant) -> (Instant, Duration) {
        let (index, stale) = (self.metadata.index(), self.metadata.stale());
        let mut next_rebuild = rebuild_after;
        if index.is_disabled() && Instant::now() >= rebuild_after {
            let pass = self.reconciler.begin_pass();
            let is_empty = index.start_over();
            drop(pass);
            if is_empty {
                rebuild(&self.reconciler, "failed while running", &self.stop);
            }
            next_rebuild = Instant::now() + REBUILD_INTERVAL;
        }
        self.contents.write_uses();
        self.contents.unmap_idle();
        index.note_sums();
        let mut took = Duration::ZERO;
        // Without the whole index nobody knows whose an `index.json` is, or what it is to show. What is stale stays so.
        if index.is_complete() {
            while took < ROUND_MAX
                && let Some(repo) = stale.take_due()
            {
                let (started, is_large) = (Instant::now(), stale.is_large(&repo));
                self.layouts.adopt(&repo);
                stale.forget(&repo);
                self.render(&repo);
                if is_large {
                    trim();
                } else {
                    took += started.elapsed();
                }
            }
        }
        (next_rebuild, took)
    }

    /// Renders at the end what can be rendered quickly, and remembers the rest in the index.
    fn render_last(&self) {
        let until = Instant::now() + RENDER_AT_END_MAX;
        if !self.metadata.index().is_complete() {
            // The next start renders everything.
            return;
        }
        for repo in self.metadata.stale().take_all() {
            if self.metadata.stale().is_large(&repo) || Instant::now() > until {
                self.metadata.index().put_stale_layout(&repo);
            } else {
                self.render(&repo);
            }
        }
    }

    fn render(&self, repo: &Repo) {
        if let Err(error) = self.layouts.render(repo) {
            // The next change of that repository tries again, and so does the next start.
            tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot render a layout");
        }
    }
}

fn log_failure(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::warn!(%error, "a pass over index and files has failed");
    }
}

/// Rebuilds an empty index from the files.
fn rebuild(reconciler: &Reconciler, reason: &str, stop: &AtomicBool) {
    let started = Instant::now();
    let _pass = reconciler.begin_pass();
    let result = reconciler.reconcile(Trust::Nothing, stop);
    trim();
    match result {
        // A new data folder has no index, and nobody needs to hear of it.
        Ok(Summary { added: 0, .. }) if reason == "missing" => {}
        Ok(_) if stop.load(Ordering::Relaxed) => tracing::info!("the next start goes on with the index"),
        Ok(Summary { added, .. }) => {
            let seconds = started.elapsed().as_secs_f64();
            tracing::warn!(reason, records = added, seconds, "the index was rebuilt from the files");
        }
        Err(error) => tracing::warn!(
            reason,
            error = &error as &dyn std::error::Error,
            "cannot rebuild the index: answering from the files"
        ),
    }
}

fn reconcile(reconciler: &Reconciler, trust: Trust, stop: &AtomicBool) {
    match reconciler.reconcile(trust, stop) {
        Ok(Summary { added: 0, removed: 0 }) => {}
        Ok(Summary { added, removed }) => tracing::info!(added, removed, "brought the index in line"),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot compare the index with the files"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Maintenance {
        /// The state in which the previous process left the index.
        pub(in crate::store) fn found(&self) -> &IndexState {
            &self.found
        }

        /// When this process began.
        pub(in crate::store) fn opened_at(&self) -> u64 {
            self.opened_at
        }
    }
}
