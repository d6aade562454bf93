//! The store's beginning, its background work, and its end.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::budget::{Budget, Limits};
use super::disk::Disk;
use super::index::Found;
use super::ledger::{Ledger, unix_seconds};
use super::lock::Lock;
use super::partial::Partials;
use super::rebuild::{Summary, Trust};
use super::sweep::Sweeper;
use super::{Error, Inner, blocking, health};
use crate::oci::{Algorithm, Repo};
use crate::telemetry::Metrics;

/// A repository's `index.json` is rendered at most this often.
const RENDER_INTERVAL: Duration = Duration::from_secs(1);
/// Rendering takes at most this part of the time: a store with very large layouts is rendered less often.
const RENDER_PAUSE_FACTOR: u32 = 9;
/// What has no hurry (times of use, mappings at rest, another try at an index) is looked after at least so often.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks at whether there is room, when no fill asks for one.
const EVICT_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait before an index that could not be rebuilt is tried again: the disk may be full for hours.
const REBUILD_INTERVAL: Duration = Duration::from_secs(60);

/// Takes the lock, sweeps what a killed process left, and finds or rebuilds the index.
pub(super) fn open(folder: &Path, limits: Limits, metrics: Arc<Metrics>) -> Result<Inner, Error> {
    let opened_at = unix_seconds();
    let disk = Arc::new(Disk::open(folder, Arc::clone(&metrics))?);
    let lock = Lock::take(disk.root())?;
    let partials = Partials::new(Arc::clone(&disk));
    if let Err(error) = prepare(&disk, &partials) {
        // Whatever it is: what is there can be served, and the rest passes through.
        disk.condition.failed(0, &error);
        tracing::warn!(error = &error as &dyn std::error::Error, "the data folder cannot be put in order");
    }
    let budget = Budget::new(limits, metrics, partials.in_use());
    budget.count_partials(&disk.partials());
    let (ledger, found) = Ledger::open(disk, lock, budget);
    if !matches!(found, Found::Clean(_)) {
        // What a killed process renamed and had no time to sync is found by this one, and counts as durable.
        let synced = std::fs::File::open(ledger.disk.root()).map(rustix::fs::syncfs);
        tracing::debug!(?synced, "synced the file system after an unclean stop");
    }
    if let Found::Fresh(reason) = &found
        && !ledger.index.is_disabled()
    {
        rebuild(&ledger, reason, &AtomicBool::new(false));
    }
    Ok(Inner {
        ledger: Arc::new(ledger),
        partials,
        found,
        opened_at,
        stop: AtomicBool::new(false),
        verification: Mutex::default(),
        suspect: Arc::default(),
    })
}

/// The folders, without what a killed process left in them.
fn prepare(disk: &Disk, partials: &Partials) -> Result<(), Error> {
    for algorithm in Algorithm::ALL {
        disk.ensure(&disk.root().join("blobs").join(algorithm.as_str()))?;
    }
    disk.ensure(&disk.root().join("repos"))?;
    disk.ensure(&disk.partials())?;
    let count = disk.sweep()?;
    if count > 0 {
        tracing::info!(count, "removed files that a killed process had staged");
    }
    partials.sweep()
}

/// Fills an empty index from the files.
fn rebuild(ledger: &Ledger, reason: &str, stop: &AtomicBool) {
    let started = Instant::now();
    match ledger.reconcile(Trust::Nothing, stop) {
        // A new data folder has no index, and nobody needs to hear of it.
        Ok(Summary { added: 0, .. }) if reason == "missing" => {}
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

/// Does what is behind until `shutdown`, then closes the index in order.
pub(super) async fn run(inner: &Arc<Inner>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = pin!(shutdown);
    let first = Arc::clone(inner);
    let first_pass = tokio::spawn(async move { blocking(move || compare(&first)).await });
    let probes = tokio::spawn(health::run(Arc::clone(&inner.ledger.disk)));
    let evicting = tokio::spawn(evict_behind(Arc::clone(inner)));
    let mut rebuild_after = Instant::now();
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            () = inner.ledger.wake.notified() => {}
            () = tokio::time::sleep(IDLE_INTERVAL) => {}
        }
        let (round, started) = (Arc::clone(inner), Instant::now());
        rebuild_after = blocking(move || once(&round, rebuild_after)).await;
        let pause = RENDER_INTERVAL.max(started.elapsed() * RENDER_PAUSE_FACTOR);
        tokio::select! {
            () = &mut shutdown => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    inner.stop.store(true, Ordering::Relaxed);
    probes.abort();
    inner.ledger.budget.wake.notify_one();
    if let Err(error) = evicting.await {
        tracing::warn!(%error, "eviction has failed");
    }
    if let Err(error) = first_pass.await {
        tracing::warn!(%error, "the first comparison of index and files has failed");
    }
    let last = Arc::clone(inner);
    blocking(move || {
        render_dirty(&last.ledger);
        last.ledger.write_uses();
        last.ledger.index.close(unix_seconds());
    })
    .await;
}

/// Leaves the index as it was found: in order at that time, or not.
pub(super) fn close(inner: &Inner) {
    let closed_at = match inner.found {
        Found::Clean(closed_at) => closed_at,
        Found::Fresh(_) => inner.opened_at,
        Found::Unclean => return,
    };
    inner.ledger.write_uses();
    inner.ledger.index.close(closed_at);
}

/// Makes room before it is needed, until the store is stopped.
async fn evict_behind(inner: Arc<Inner>) {
    while !inner.stop.load(Ordering::Relaxed) {
        let round = Arc::clone(&inner);
        blocking(move || Sweeper::of(&round).run_behind(&round.stop)).await;
        // Others fill the disk, too, and leases end, without telling anybody.
        let _ = tokio::time::timeout(EVICT_INTERVAL, inner.ledger.budget.wake.notified()).await;
    }
}

/// The pass at every start: the index against the files, and what other tools did while nobody looked.
pub(super) fn compare(inner: &Inner) {
    let (ledger, stop) = (&inner.ledger, &inner.stop);
    let trust = match inner.found {
        Found::Unclean => Trust::Nothing,
        Found::Clean(closed_at) => Trust::Since(closed_at),
        // It was filled a moment ago, by this process.
        Found::Fresh(_) => Trust::Since(inner.opened_at),
    };
    match ledger.reconcile(trust, stop) {
        Ok(Summary { added: 0, removed: 0 }) => {}
        Ok(Summary { added, removed }) => tracing::info!(added, removed, "brought the index in line"),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot compare the index with the files"
            );
        }
    }
    for repo in ledger.refs.repositories().unwrap_or_default() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        adopt(ledger, &repo);
        // Killed before it rendered what it had written.
        if !matches!(inner.found, Found::Clean(_)) {
            ledger.mark_dirty(&repo);
        }
    }
}

/// One round of what is behind. Returns when the index may next be rebuilt.
pub(super) fn once(inner: &Inner, rebuild_after: Instant) -> Instant {
    let ledger = &inner.ledger;
    let mut next_rebuild = rebuild_after;
    if ledger.index.is_disabled() && Instant::now() >= rebuild_after {
        if ledger.index.start_over() {
            rebuild(ledger, "failed while running", &inner.stop);
        }
        next_rebuild = Instant::now() + REBUILD_INTERVAL;
    }
    ledger.write_uses();
    ledger.opened.rest();
    // Without the index nobody knows whose an `index.json` is. What is dirty stays so.
    if !ledger.index.is_disabled() {
        for repo in ledger.dirty() {
            adopt(ledger, &repo);
        }
        render_dirty(ledger);
    }
    next_rebuild
}

fn adopt(ledger: &Ledger, repo: &Repo) {
    let _turn = ledger.adopting.blocking_lock();
    if let Err(error) = ledger.adopt(repo) {
        tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot adopt a layout");
    }
}

fn render_dirty(ledger: &Ledger) {
    for repo in ledger.take_dirty() {
        if let Err(error) = ledger.render(&repo) {
            // The next change of that repository tries again, and so does the next start.
            tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot render a layout");
        }
    }
}
