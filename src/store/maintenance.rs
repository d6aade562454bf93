//! The store's beginning, its background work, and its end.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinError;

use crate::clock::{age, unix_seconds};
use crate::oci::{Algorithm, Repo};
use crate::store::disk::Disk;
use crate::store::disk::health;
use crate::store::disk::lock::Lock;
use crate::store::eviction::Sweeper;
use crate::store::eviction::budget::{Budget, Limits};
use crate::store::malloc::trim;
use crate::store::metadata::Ledger;
use crate::store::metadata::index::Found;
use crate::store::metadata::rebuild::{Summary, Trust};
use crate::store::partial::Partials;
use crate::store::{Error, Inner, blocking};
use crate::sync::lock;
use crate::telemetry::Metrics;

/// A repository's `index.json` is rendered at most this often.
const RENDER_INTERVAL: Duration = Duration::from_secs(1);
/// Small ones that are due are rendered in rounds of about this length, and after each there is a pause of so many
/// times what it took: a store with very many is rendered less often, but nobody waits for all of them.
const ROUND_MAX: Duration = Duration::from_millis(500);
const RENDER_PAUSE_FACTOR: u32 = 3;
/// At the end, so much time goes into rendering; the next start does the rest.
const RENDER_AT_END_MAX: Duration = Duration::from_secs(4);
/// How long a start waits for an index that is being rebuilt: that of a small store is there at once, and a large
/// store answers from the files meanwhile.
const REBUILD_WAIT: Duration = Duration::from_secs(2);
/// What has no hurry (times of use, mappings at rest, another try at an index) is looked after at least so often.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks at whether there is room, when no fill asks for one.
const EVICT_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait before an index that could not be rebuilt is tried again: the disk may be full for hours.
const REBUILD_INTERVAL: Duration = Duration::from_secs(60);

/// Takes the lock, sweeps what a killed process left, and finds or rebuilds the index.
pub(in crate::store) fn open(folder: &Path, limits: Limits, metrics: Arc<Metrics>) -> Result<Inner, Error> {
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
    budget.count_partials(&disk.partial_files().unwrap_or_default());
    let (ledger, found) = Ledger::open(disk, lock, budget);
    if !matches!(found, Found::Clean(_)) {
        // What a killed process renamed and had no time to sync is found by this one, and counts as durable.
        let synced = std::fs::File::open(ledger.disk.root()).map(rustix::fs::syncfs);
        tracing::debug!(?synced, "synced the file system after an unclean stop");
    }
    Ok(Inner {
        ledger: Arc::new(ledger),
        partials,
        found,
        opened_at,
        rebuilding: Mutex::default(),
        stop: Arc::default(),
        verification: Mutex::default(),
        suspect: Arc::default(),
        rechecks: Arc::default(),
    })
}

/// Begins to fill an index that is empty, and waits for a while.
pub(in crate::store) async fn begin_rebuild(inner: &Inner) {
    let Found::Fresh(reason) = &inner.found else { return };
    if inner.ledger.index.is_disabled() {
        return;
    }
    let (ledger, stop, reason) = (Arc::clone(&inner.ledger), Arc::clone(&inner.stop), reason.clone());
    let mut task = tokio::task::spawn_blocking(move || rebuild(&ledger, &reason, &stop));
    match tokio::time::timeout(REBUILD_WAIT, &mut task).await {
        Ok(ended) => log_failure(ended),
        Err(_) => {
            tracing::warn!("answering from the files while the index is rebuilt");
            *lock(&inner.rebuilding) = Some(task);
        }
    }
}

fn log_failure(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::warn!(%error, "a pass over index and files has failed");
    }
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
    let _pass = lock(&ledger.passing);
    let result = ledger.reconcile(Trust::Nothing, stop);
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

/// Does what is behind until `shutdown`, then closes the index in order.
pub(in crate::store) async fn run(inner: &Arc<Inner>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = pin!(shutdown);
    let (first, rebuilding) = (Arc::clone(inner), lock(&inner.rebuilding).take());
    let first_pass = tokio::spawn(async move {
        if let Some(rebuilding) = rebuilding {
            log_failure(rebuilding.await);
        }
        let compare_all = move || {
            compare(&first);
            trim();
        };
        blocking(compare_all).await;
    });
    let probes = tokio::spawn(health::run(Arc::clone(&inner.ledger.disk)));
    let evicting = tokio::spawn(evict_behind(Arc::clone(inner)));
    let mut rebuild_after = Instant::now();
    loop {
        let idle = Instant::now() + IDLE_INTERVAL;
        let due = inner.ledger.next_due().map_or(idle, |due| due.min(idle));
        tokio::select! {
            () = &mut shutdown => break,
            () = inner.ledger.wake.notified() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let round = Arc::clone(inner);
        let took;
        (rebuild_after, took) = blocking(move || once(&round, rebuild_after)).await;
        tokio::select! {
            () = &mut shutdown => break,
            () = tokio::time::sleep(RENDER_INTERVAL.max(took * RENDER_PAUSE_FACTOR)) => {}
        }
    }
    inner.stop.store(true, Ordering::Relaxed);
    probes.abort();
    inner.ledger.budget.wake.notify_one();
    if let Err(error) = evicting.await {
        tracing::warn!(%error, "eviction has failed");
    }
    log_failure(first_pass.await);
    let last = Arc::clone(inner);
    blocking(move || {
        render_last(&last.ledger);
        last.ledger.write_uses();
        last.ledger.index.close(unix_seconds());
    })
    .await;
}

/// Leaves the index as it was found: in order at that time, or not.
pub(in crate::store) fn close(inner: &Inner) {
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

/// The pass behind every start: the index against the files, and what other tools did while nobody looked.
pub(in crate::store) fn compare(inner: &Inner) {
    let (ledger, stop) = (&inner.ledger, &inner.stop);
    let pass = lock(&ledger.passing);
    let trust = match inner.found {
        // It was filled a moment ago, by this process.
        Found::Fresh(_) if ledger.index.is_complete() => Trust::Since(inner.opened_at),
        // Closed at a time of the future, it would be believed whatever happens until then.
        Found::Clean(closed_at) if age(closed_at, unix_seconds()).is_none() => {
            tracing::warn!("the index was closed by a clock that was ahead: it is compared with all files");
            ledger.index.audit(stop);
            ledger.index.set_complete(false);
            Trust::Nothing
        }
        Found::Clean(closed_at) if ledger.index.audit(stop) => Trust::Since(closed_at),
        Found::Clean(_) if stop.load(Ordering::Relaxed) => return,
        Found::Clean(_) => {
            tracing::warn!("the index has lost records: it is compared with all files");
            ledger.index.set_complete(false);
            Trust::Nothing
        }
        Found::Unclean | Found::Fresh(_) => {
            ledger.index.audit(stop);
            Trust::Nothing
        }
    };
    // One that has failed is rebuilt, by the next round.
    if !ledger.index.is_disabled() {
        reconcile(ledger, trust, stop);
    }
    drop(pass);
    for repo in ledger.index.take_behind() {
        ledger.mark_dirty(&repo);
    }
    for repo in ledger.refs.repositories().unwrap_or_default() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        adopt(ledger, &repo);
        // Killed before it rendered what it had written, or somebody has put something else there.
        if !matches!(inner.found, Found::Clean(_)) || !ledger.index_json_path(&repo).is_file() {
            ledger.mark_dirty(&repo);
        }
    }
}

fn reconcile(ledger: &Ledger, trust: Trust, stop: &AtomicBool) {
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
}

/// One round of what is behind. Returns when the index may next be rebuilt, and how long it took but for what
/// has its turns anyway.
pub(in crate::store) fn once(inner: &Inner, rebuild_after: Instant) -> (Instant, Duration) {
    let ledger = &inner.ledger;
    let mut next_rebuild = rebuild_after;
    if ledger.index.is_disabled() && Instant::now() >= rebuild_after {
        let pass = lock(&ledger.passing);
        let is_empty = ledger.index.start_over();
        drop(pass);
        if is_empty {
            rebuild(ledger, "failed while running", &inner.stop);
        }
        next_rebuild = Instant::now() + REBUILD_INTERVAL;
    }
    ledger.write_uses();
    ledger.opened.rest();
    ledger.index.note_sums();
    let mut took = Duration::ZERO;
    // Without the whole index nobody knows whose an `index.json` is, or what it is to show. What is dirty stays so.
    if ledger.index.is_complete() {
        while took < ROUND_MAX
            && let Some(repo) = ledger.take_due()
        {
            let (started, is_large) = (Instant::now(), ledger.is_large(&repo));
            adopt(ledger, &repo);
            ledger.forget_dirty(&repo);
            render(ledger, &repo);
            if is_large {
                trim();
            } else {
                took += started.elapsed();
            }
        }
    }
    (next_rebuild, took)
}

/// Renders at the end what can be rendered at once, and remembers the rest.
fn render_last(ledger: &Ledger) {
    let until = Instant::now() + RENDER_AT_END_MAX;
    if !ledger.index.is_complete() {
        // The next start renders everything.
        return;
    }
    for repo in ledger.take_dirty() {
        if ledger.is_large(&repo) || Instant::now() > until {
            ledger.index.put_behind(&repo);
        } else {
            render(ledger, &repo);
        }
    }
}

fn adopt(ledger: &Ledger, repo: &Repo) {
    let _turn = ledger.adopting.blocking_lock();
    if let Err(error) = ledger.adopt(repo) {
        tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot adopt a layout");
    }
}

fn render(ledger: &Ledger, repo: &Repo) {
    if let Err(error) = ledger.render(repo) {
        // The next change of that repository tries again, and so does the next start.
        tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot render a layout");
    }
}
