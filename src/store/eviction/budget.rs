//! How much may be kept: limits, what counts towards them, and whether something more fits.
//!
//! Everything that comes from upstream counts: blobs with what their files take, partial files with what is in them
//! and one step more, maps, refs, lists and the folders of repositories with a block each or more
//! ([`index`](crate::store::metadata::index)). The index and the log of the process do not; the free space of the
//! file system sees them.
//!
//! **Room is taken as bytes come, never for a size that is merely claimed.** A claim of more than there could be is
//! refused, and evicts nothing. From then on each [`step`] is as large as what has come so far, within bounds, so
//! that a promise evicts no more than was really sent.
//!
//! There are two marks below the limit. Above the upper one the background eviction begins, and it ends at the lower
//! one: so there is room before a download needs it, and one look at everything pays for many files. The limit itself
//! is hard: a download that would go beyond it waits until that much is evicted, or passes through unstored.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use serde::{Deserialize, Deserializer, de};
use tokio::sync::Notify;

use crate::oci::Registry;
use crate::store::blobs::partials::PartialKey;
use crate::store::eviction::pin::Pin;
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::units::{self, ByteSize, Given};

/// The background eviction begins when less than one part in `MARK` of the budget is left, and ends when twice as
/// much is.
const MARK: u64 = 20;
/// Bytes of room that are taken at a time at least, so that a small blob needs one step.
const STEP_MIN: u64 = 4 << 20;
/// No more than one part in `STEP_PART` of the limit is taken at a time.
const STEP_PART: u64 = 10;
/// Bytes of the map of a partial file.
pub(in crate::store) const MAP_BYTES: u64 = 2 * 4096;
/// Number of registries for which it is remembered how much may be evicted.
const EVICTABLE_MAX: usize = 64;

/// An amount of a file system: bytes, or a share of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SpaceLimit {
    /// A number of bytes.
    Bytes(u64),
    /// Per cent of the whole file system.
    Share(f64),
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a size such as \"200GiB\", \"1.5TB\" or a whole number of bytes, or a share of the disk such as \"80%\""
)]
pub struct InvalidSize;

impl SpaceLimit {
    fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // As exact as anybody means it: a per cent of a file system is not counted in bytes.
            Self::Share(share) => (total_bytes as f64 * share / 100.0) as u64,
        }
    }
}

impl FromStr for SpaceLimit {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        if text.ends_with('%') {
            return units::percent(text).map(Self::Share).ok_or(InvalidSize);
        }
        text.parse().map(|ByteSize(bytes)| Self::Bytes(bytes)).map_err(|_| InvalidSize)
    }
}

impl<'de> Deserialize<'de> for SpaceLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let size = match Given::deserialize(deserializer)? {
            Given::Text(text) => text.parse(),
            number => number.size().map(|ByteSize(bytes)| Self::Bytes(bytes)).map_err(|_| InvalidSize),
        };
        size.map_err(de::Error::custom)
    }
}

impl fmt::Display for SpaceLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{}", ByteSize(*bytes)),
            Self::Share(share) => write!(f, "{share}%"),
        }
    }
}

/// How much a store may take, and what it must keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most that blobs, partial files and refs may take together.
    pub max_bytes: SpaceLimit,
    /// Free space that is left to others on the file system.
    pub min_free: SpaceLimit,
    /// How long the stored parts of an image stay after its manifest was served.
    pub lease: Duration,
    /// The pins of the configuration.
    pub pins: Vec<Pin>,
    /// Registries that have a share each; all others have one together. `None` gives every registry its own.
    pub sharing: Option<Vec<Registry>>,
}

impl Default for Limits {
    /// Returns limits by which nothing is ever evicted.
    fn default() -> Self {
        Self {
            max_bytes: SpaceLimit::Bytes(u64::MAX / 2),
            min_free: SpaceLimit::Bytes(0),
            lease: Duration::ZERO,
            pins: Vec::new(),
            sharing: None,
        }
    }
}

/// Bytes that must be evicted before something fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Shortfall {
    /// The least that must be evicted, in bytes.
    pub least: u64,
    /// Bytes that make room for what comes next, too.
    pub best: u64,
    /// Whether the file system itself has no room, whatever the limits are.
    pub is_disk_full: bool,
    /// Whether less than `min_free` would be left to others.
    pub is_floor_hit: bool,
}

/// A partial file, and the room that it takes.
pub(in crate::store) type PartialRoom = (PartialKey, u64);

/// The limits of a store, and what counts towards them.
pub(in crate::store) struct Budget {
    limits: RwLock<Arc<Limits>>,
    metrics: Arc<Metrics>,
    /// Bytes of room that each partial file takes.
    partials: Mutex<HashMap<PartialKey, u64>>,
    /// The sum of the room of partial files, to be read without the lock.
    partial_bytes: AtomicU64,
    /// The bytes that may be evicted at most for a registry, and until when that is believed.
    evictable: Mutex<HashMap<Option<Registry>, (Instant, u64)>>,
    /// Notified when the background eviction may have something to do.
    wake: Notify,
}

impl Budget {
    pub(in crate::store) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            limits: RwLock::new(Arc::new(limits)),
            metrics,
            partials: Mutex::default(),
            partial_bytes: AtomicU64::new(0),
            evictable: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Returns the metrics in which evictions are counted.
    pub(in crate::store) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Has the background eviction check whether there is something to do.
    pub(in crate::store) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until the background eviction may have something to do.
    pub(in crate::store) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the present limits.
    pub(in crate::store) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the limits, and forgets what was found by the old ones.
    pub(in crate::store) fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
        lock(&self.evictable).clear();
        self.wake();
    }

    /// Counts the partial files that an earlier process has left.
    pub(in crate::store) fn count_partials(&self, paths: &[PathBuf]) {
        for path in paths {
            let mut names = path.iter().rev().map(|name| name.to_str().unwrap_or_default());
            let (name, folder) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
            let Some(key) = PartialKey::of_file(folder, name) else { continue };
            // What it takes, not how long it is: its room may be reserved and not yet filled.
            if let Ok(metadata) = std::fs::symlink_metadata(path) {
                self.set_partial(&mut lock(&self.partials), &key, metadata.blocks() * 512 + MAP_BYTES);
            }
        }
    }

    /// Returns the bytes of everything that counts. `kept_bytes`, for all but partial files, is called while no
    /// partial file becomes a blob, which would count twice or not at all.
    pub(in crate::store) fn used_bytes(&self, kept_bytes: &dyn Fn() -> u64) -> u64 {
        let _partials = lock(&self.partials);
        self.used_now(kept_bytes)
    }

    fn used_now(&self, kept_bytes: &dyn Fn() -> u64) -> u64 {
        kept_bytes() + self.partial_bytes.load(Ordering::Relaxed)
    }

    /// Removes a partial file that has become a blob, which `note` counts.
    pub(in crate::store) fn committed(&self, key: &PartialKey, note: impl FnOnce()) {
        let mut partials = lock(&self.partials);
        note();
        self.set_partial(&mut partials, key, 0);
    }

    /// Returns the most that may be used, in bytes.
    pub(in crate::store) fn max_bytes(&self, root: &Path) -> u64 {
        self.limits().max_bytes.of(file_system(root).total)
    }

    /// Returns what the background eviction must evict; `None` if there is room enough.
    pub(in crate::store) fn background_shortfall(
        &self,
        root: &Path,
        kept_bytes: &dyn Fn() -> u64,
    ) -> Option<Shortfall> {
        let (space, used) = (file_system(root), self.used_bytes(kept_bytes));
        let limits = self.limits();
        let max = limits.max_bytes.of(space.total);
        let over = if used > max - max / MARK { used - (max - max / MARK * 2) } else { 0 };
        let floor = limits.min_free.of(space.total);
        let under = if space.free < floor { floor + floor / MARK - space.free } else { 0 };
        if under > 0 {
            self.metrics.space.floor_hits.inc();
        }
        let best = over.max(under);
        // Whatever goes is a gain.
        (best > 0).then_some(Shortfall { least: 0, best, is_disk_full: false, is_floor_hit: under > 0 })
    }

    /// Returns what is missing for a partial file of `bytes`. Takes no room.
    pub(in crate::store) fn shortfall(
        &self,
        root: &Path,
        kept_bytes: &dyn Fn() -> u64,
        key: &PartialKey,
        bytes: u64,
    ) -> Option<Shortfall> {
        let partials = lock(&self.partials);
        let has = partials.get(key).copied().unwrap_or(0);
        self.shortfall_now(root, self.used_now(kept_bytes), bytes.saturating_sub(has))
    }

    /// Takes room for `bytes` of a partial file, including those that it has already, or returns what is missing.
    pub(in crate::store) fn reserve(
        &self,
        root: &Path,
        kept_bytes: &dyn Fn() -> u64,
        key: &PartialKey,
        bytes: u64,
    ) -> Result<(), Shortfall> {
        // Two fills must not both take the last room.
        let mut partials = lock(&self.partials);
        let has = partials.get(key).copied().unwrap_or(0);
        let more = bytes.saturating_sub(has);
        if let Some(shortfall) = self.shortfall_now(root, self.used_now(kept_bytes), more) {
            drop(partials);
            if shortfall.is_floor_hit {
                self.metrics.space.floor_hits.inc();
            }
            return Err(shortfall);
        }
        self.set_partial(&mut partials, key, bytes.max(has));
        Ok(())
    }

    fn shortfall_now(&self, root: &Path, used: u64, more: u64) -> Option<Shortfall> {
        let (space, limits) = (file_system(root), self.limits());
        let max = limits.max_bytes.of(space.total);
        let floor = limits.min_free.of(space.total);
        let over = used.saturating_add(more).saturating_sub(max);
        let under = floor.saturating_add(more).saturating_sub(space.free);
        let least = over.max(under);
        let is_disk_full = space.free < more.min(STEP_MIN);
        let best = least.saturating_add(max / MARK);
        (least > 0).then_some(Shortfall { least, best, is_disk_full, is_floor_hit: under > 0 })
    }

    /// Sets the room that a partial file takes.
    pub(in crate::store) fn count_partial(&self, key: &PartialKey, bytes: u64) {
        self.set_partial(&mut lock(&self.partials), key, bytes);
    }

    /// Removes a partial file. Returns the room that it took.
    pub(in crate::store) fn release(&self, key: &PartialKey) -> u64 {
        self.set_partial(&mut lock(&self.partials), key, 0)
    }

    fn set_partial(&self, partials: &mut HashMap<PartialKey, u64>, key: &PartialKey, bytes: u64) -> u64 {
        let old = if bytes == 0 { partials.remove(key) } else { partials.insert(key.clone(), bytes) };
        let old = old.unwrap_or(0);
        self.partial_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.partial_bytes.fetch_sub(old, Ordering::Relaxed);
        old
    }

    /// Returns the partial files that are in use, which are those of `filling`, then the others, each with its room.
    pub(in crate::store) fn partials(
        &self,
        filling: &HashSet<PartialKey>,
    ) -> (Vec<PartialRoom>, Vec<PartialRoom>) {
        let partials = lock(&self.partials);
        let all = partials.iter().map(|(key, bytes)| (key.clone(), *bytes));
        all.partition(|(key, _)| filling.contains(key))
    }

    /// Returns how many bytes may be evicted at most for a registry, if that was found a moment ago.
    pub(in crate::store) fn evictable(&self, bringer: Option<&Registry>) -> Option<u64> {
        let evictable = lock(&self.evictable);
        let (until, bytes) = evictable.get(&bringer.cloned())?;
        (Instant::now() < *until).then_some(*bytes)
    }

    /// Notes that no more than `bytes` may be evicted for a registry. It is believed for `memory`.
    pub(in crate::store) fn note_evictable(&self, bringer: Option<&Registry>, bytes: u64, memory: Duration) {
        let mut evictable = lock(&self.evictable);
        if evictable.len() >= EVICTABLE_MAX {
            evictable.clear();
        }
        evictable.insert(bringer.cloned(), (Instant::now() + memory, bytes));
    }

    /// Forgets what may be evicted for registries, because something was evicted.
    pub(in crate::store) fn forget_evictable(&self) {
        lock(&self.evictable).clear();
    }
}

/// Returns how many bytes of further room are taken at a time after `received` bytes.
pub(in crate::store) fn step(received: u64, max_bytes: u64) -> u64 {
    received.max(STEP_MIN).min(max_bytes / STEP_PART)
}

/// The size of a file system and the free space for berth, in bytes.
#[derive(Clone, Copy)]
struct Space {
    total: u64,
    free: u64,
}

/// Asks a file system for its size. One that cannot be asked sets no limit; a write will fail.
fn file_system(root: &Path) -> Space {
    let unlimited = Space { total: u64::MAX / 4, free: u64::MAX / 4 };
    statvfs(root).map_or(unlimited, |it| Space {
        total: it.f_blocks.saturating_mul(it.f_frsize),
        free: it.f_bavail.saturating_mul(it.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn sizes_are_bytes_with_a_unit_or_a_share() {
        let check = |text: &str, expected: SpaceLimit| assert_eq!(text.parse(), Ok(expected), "{text}");
        check("200GiB", SpaceLimit::Bytes(200 << 30));
        check("1.5 TiB", SpaceLimit::Bytes(3 << 39));
        check("500MB", SpaceLimit::Bytes(500_000_000));
        check("64kB", SpaceLimit::Bytes(64_000));
        check("64KiB", SpaceLimit::Bytes(65_536));
        check("0B", SpaceLimit::Bytes(0));
        check("80%", SpaceLimit::Share(80.0));
        check("2.5 %", SpaceLimit::Share(2.5));
        check("5", SpaceLimit::Bytes(5));
        for text in
            ["", "GiB", "-1GiB", "5gib", "101%", "%", "-1%", "1e1%", "1.2.3GB", "5 XB", "80%%", "1e3B"]
        {
            assert_eq!(text.parse::<SpaceLimit>(), Err(InvalidSize), "{text}");
        }
    }

    fn budget(max_bytes: u64) -> Budget {
        let limits = Limits { max_bytes: SpaceLimit::Bytes(max_bytes), ..Limits::default() };
        Budget::new(limits, Arc::default())
    }

    fn shortfall(least: u64, best: u64) -> Shortfall {
        Shortfall { least, best, is_disk_full: false, is_floor_hit: false }
    }

    #[test]
    fn partial_files_count_and_the_limit_is_hard() {
        let (budget, root) = (budget(100), Path::new("/"));
        let registry = Registry::parse("r.example").unwrap();
        let [one, two] = ["1", "2"]
            .map(|text| PartialKey::new(&registry, &Digest::of(Algorithm::Sha256, text.as_bytes())));
        budget.count_partial(&one, 10);
        assert_eq!(budget.reserve(root, &|| 50, &one, 30), Ok(()));
        assert_eq!(budget.used_bytes(&|| 50), 80);
        assert_eq!(budget.shortfall(root, &|| 50, &two, 30), Some(shortfall(10, 15)));
        assert_eq!(budget.reserve(root, &|| 50, &two, 30), Err(shortfall(10, 15)));
        assert_eq!(budget.shortfall(root, &|| 50, &one, 50), None, "a claim takes nothing");
        assert_eq!(budget.reserve(root, &|| 50, &one, 40), Ok(()), "the same again, and larger");
        assert_eq!(budget.used_bytes(&|| 50), 90);
        assert_eq!(budget.partials(&HashSet::new()), (vec![], vec![(one.clone(), 40)]));
        let filling = HashSet::from([one.clone()]);
        assert_eq!(budget.partials(&filling), (vec![(one.clone(), 40)], vec![]));
        budget.release(&one);
        assert_eq!(budget.used_bytes(&|| 50), 50);
        assert_eq!(budget.reserve(root, &|| 50, &two, 30), Ok(()));
    }

    #[test]
    fn room_is_taken_by_what_has_come_and_never_much_at_a_time() {
        const MIB: u64 = 1 << 20;
        assert_eq!(step(0, 1000 * MIB), STEP_MIN);
        assert_eq!(step(50 * MIB, 1000 * MIB), 50 * MIB);
        assert_eq!(step(900 * MIB, 1000 * MIB), 100 * MIB);
        assert_eq!(step(0, 10 * MIB), MIB);
    }

    #[test]
    fn eviction_behind_begins_at_one_mark_and_ends_at_another() {
        let (budget, root) = (budget(1000), Path::new("/"));
        assert_eq!(budget.background_shortfall(root, &|| 950), None);
        assert_eq!(budget.background_shortfall(root, &|| 951), Some(shortfall(0, 51)));
    }
}
