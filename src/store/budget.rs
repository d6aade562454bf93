//! How much may be kept: limits, what counts towards them, and whether something more fits.
//!
//! Blobs count with their size, partial files with all that they will be, because that room is reserved from the
//! start; but those of which only pieces were asked for with these. Refs, layouts and the index are small beside
//! that and do not count; the free space of the file system sees them.
//!
//! There are two marks below the limit. Above the upper one eviction begins, behind, and it ends at the lower one:
//! so there is room before a fill needs it, and one look at everything pays for many files. The limit itself is
//! hard: a fill that would go beyond it waits until that much is evicted, or passes through unstored.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lru::LruCache;
use rustix::fs::statvfs;
use serde::{Deserialize, Deserializer, de};
use tokio::sync::Notify;

use super::index::{Short, short};
use super::partial::{InUseKeys, PartialKey};
use super::pin::Pin;
use crate::oci::Digest;
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::units::{ByteSize, Given};

/// Eviction begins behind when less than this part of the budget is left, and ends when twice as much is.
const MARK: u64 = 20;
/// Blobs remembered to belong to images that are larger than the budget.
const TOO_LARGE_MAX: usize = 65_536;

/// An amount of a file system: bytes, or a share of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many per cent of the whole file system.
    Share(f64),
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as \"200GiB\", \"500MB\", a number of bytes, or \"80%\"")]
pub struct InvalidSize;

impl Size {
    fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // As exact as anybody means it: a per cent of a file system is not counted in bytes.
            Self::Share(share) => (total_bytes as f64 * share / 100.0) as u64,
        }
    }
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let Some(share) = text.strip_suffix('%') else {
            return text.parse().map(|ByteSize(bytes)| Self::Bytes(bytes)).map_err(|_| InvalidSize);
        };
        let share = share.trim_end();
        let is_number = share.chars().all(|c| c.is_ascii_digit() || c == '.');
        let share: f64 = share.parse().ok().filter(|_| is_number).ok_or(InvalidSize)?;
        if share <= 100.0 { Ok(Self::Share(share)) } else { Err(InvalidSize) }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let size = match Given::deserialize(deserializer)? {
            Given::Whole(bytes) => Ok(Self::Bytes(bytes)),
            Given::Text(text) => text.parse(),
            Given::Other(_) => Err(InvalidSize),
        };
        size.map_err(de::Error::custom)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::Share(share) => write!(f, "{share}%"),
        }
    }
}

/// What a store may take, and what it must keep.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Blobs and partial files together.
    pub max_bytes: Size,
    /// What is left to others on the file system.
    pub min_free: Size,
    /// How long what is here of an image stays after its manifest was served.
    pub lease: Duration,
    /// What is kept besides the pins in the data folder.
    pub pins: Vec<Pin>,
}

impl Default for Limits {
    /// None: nothing is ever evicted.
    fn default() -> Self {
        Self {
            max_bytes: Size::Bytes(u64::MAX / 2),
            min_free: Size::Bytes(0),
            lease: Duration::ZERO,
            pins: Vec::new(),
        }
    }
}

/// How many bytes are missing for something to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// At least this must go.
    pub(super) least: u64,
    /// This makes room for what comes next, too.
    pub(super) best: u64,
    /// It is the file system that has no room, whatever the limits are.
    pub(super) is_disk_full: bool,
}

/// The limits of a store, and how near it is to them.
pub(super) struct Budget {
    limits: RwLock<Arc<Limits>>,
    pub(super) metrics: Arc<Metrics>,
    /// The partial files that somebody has.
    pub(super) filling: InUseKeys,
    /// Room that partial files have reserved.
    partials: Mutex<HashMap<PartialKey, u64>>,
    /// Sum of the same, to be read without the lock.
    partial_bytes: AtomicU64,
    /// Blobs of images that are larger than the budget.
    too_large: Mutex<LruCache<Short, ()>>,
    /// Whether somebody is evicting.
    pub(super) evicting: Mutex<bool>,
    /// Told when something has gone, and when nobody is evicting any more.
    pub(super) progress: Condvar,
    /// Until when it is believed that no more than so many bytes may go.
    exhausted: Mutex<Option<(Instant, u64)>>,
    /// Told when eviction behind may have something to do.
    pub(super) wake: Notify,
}

impl Budget {
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>, filling: InUseKeys) -> Self {
        let memories = NonZeroUsize::new(TOO_LARGE_MAX).expect("not zero");
        Self {
            limits: RwLock::new(Arc::new(limits)),
            metrics,
            filling,
            partials: Mutex::default(),
            partial_bytes: AtomicU64::new(0),
            too_large: Mutex::new(LruCache::new(memories)),
            evicting: Mutex::default(),
            progress: Condvar::new(),
            exhausted: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// What may be kept, as it is now.
    pub(super) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on other limits count. What was found out by the old ones is forgotten.
    pub(super) fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
        lock(&self.too_large).clear();
        *lock(&self.exhausted) = None;
        self.wake.notify_one();
    }

    /// Counts the partial files that an earlier process has left.
    pub(super) fn count_partials(&self, paths: &[PathBuf]) {
        for path in paths {
            let mut names = path.iter().rev().map(|name| name.to_str().unwrap_or_default());
            let (name, folder) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
            let Some(key) = PartialKey::of_file(folder, name) else { continue };
            // What it takes, not how long it is: its room may be reserved and not yet filled.
            if let Ok(metadata) = std::fs::symlink_metadata(path) {
                self.set_partial(&mut lock(&self.partials), &key, metadata.blocks() * 512);
            }
        }
    }

    /// Bytes of blobs and partial files. `blob_bytes` is asked while nothing turns from one into the other, which
    /// would count twice, or not at all.
    pub(super) fn used_bytes(&self, blob_bytes: &dyn Fn() -> u64) -> u64 {
        let _partials = lock(&self.partials);
        self.used_now(blob_bytes)
    }

    fn used_now(&self, blob_bytes: &dyn Fn() -> u64) -> u64 {
        blob_bytes() + self.partial_bytes.load(Ordering::Relaxed)
    }

    /// A partial file has become a blob, which `note` counts.
    pub(super) fn landed(&self, key: &PartialKey, note: impl FnOnce()) {
        let mut partials = lock(&self.partials);
        note();
        self.set_partial(&mut partials, key, 0);
    }

    /// The most that may be used.
    pub(super) fn max_bytes(&self, root: &Path) -> u64 {
        self.limits().max_bytes.of(file_system(root).total)
    }

    /// What must go before eviction behind can rest; `None` if there is room enough.
    pub(super) fn behind(&self, root: &Path, blob_bytes: &dyn Fn() -> u64) -> Option<Missing> {
        let (space, used) = (file_system(root), self.used_bytes(blob_bytes));
        let limits = self.limits();
        let max = limits.max_bytes.of(space.total);
        let over = if used > max - max / MARK { used - (max - max / MARK * 2) } else { 0 };
        let floor = limits.min_free.of(space.total);
        let under = if space.free < floor { floor + floor / MARK - space.free } else { 0 };
        if under > 0 {
            self.metrics.floor_hits.inc();
        }
        let best = over.max(under);
        // Whatever goes is a gain.
        (best > 0).then_some(Missing { least: 0, best, is_disk_full: false })
    }

    /// Reserves room for a partial file of `total` bytes. Else says what is missing for it.
    pub(super) fn reserve(
        &self,
        root: &Path,
        blob_bytes: &dyn Fn() -> u64,
        key: &PartialKey,
        total: u64,
    ) -> Result<(), Missing> {
        let (space, limits) = (file_system(root), self.limits());
        let max = limits.max_bytes.of(space.total);
        let floor = limits.min_free.of(space.total);
        // Two fills must not both take the last room.
        let mut partials = lock(&self.partials);
        let more = total.saturating_sub(partials.get(key).copied().unwrap_or(0));
        let used = self.used_now(blob_bytes) + more;
        let over = used.saturating_sub(max);
        let under = (floor + more).saturating_sub(space.free);
        let least = over.max(under);
        if least == 0 {
            self.set_partial(&mut partials, key, total);
            return Ok(());
        }
        drop(partials);
        if under > 0 {
            self.metrics.floor_hits.inc();
        }
        Err(Missing { least, best: least + max / MARK, is_disk_full: space.free < more })
    }

    /// A partial file takes so much, and has reserved no more.
    pub(super) fn count_partial(&self, key: &PartialKey, bytes: u64) {
        self.set_partial(&mut lock(&self.partials), key, bytes);
    }

    /// A partial file has grown, perhaps into room that it has reserved.
    pub(super) fn count_at_least(&self, key: &PartialKey, bytes: u64) {
        let mut partials = lock(&self.partials);
        let has_grown = partials.get(key).is_none_or(|counted| *counted < bytes);
        if has_grown {
            self.set_partial(&mut partials, key, bytes);
            self.wake.notify_one();
        }
    }

    /// A partial file is gone. Returns how much it had reserved.
    pub(super) fn release(&self, key: &PartialKey) -> u64 {
        self.set_partial(&mut lock(&self.partials), key, 0)
    }

    fn set_partial(&self, partials: &mut HashMap<PartialKey, u64>, key: &PartialKey, bytes: u64) -> u64 {
        let old = if bytes == 0 { partials.remove(key) } else { partials.insert(key.clone(), bytes) };
        let old = old.unwrap_or(0);
        self.partial_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.partial_bytes.fetch_sub(old, Ordering::Relaxed);
        old
    }

    /// The partial files that nobody has, and what they take.
    pub(super) fn abandoned(&self) -> Vec<(PartialKey, u64)> {
        let filling = lock(&self.filling).clone();
        let partials = lock(&self.partials);
        let all = partials.iter().filter(|(key, _)| !filling.contains(key));
        all.map(|(key, bytes)| (key.clone(), *bytes)).collect()
    }

    /// Whether some registry is sending it.
    pub(super) fn is_filling(&self, digest: &Digest) -> bool {
        lock(&self.filling).iter().any(|key| key.digest == *digest)
    }

    /// Notes whether an image fits into the budget at all, by what its manifest claims.
    pub(super) fn expect(&self, max_bytes: u64, claimed_bytes: u64, parts: &[Short]) {
        let mut too_large = lock(&self.too_large);
        for part in parts {
            if claimed_bytes > max_bytes {
                too_large.put(*part, ());
            } else {
                // Needed by an image that fits.
                too_large.pop(part);
            }
        }
    }

    pub(super) fn is_too_large(&self, digest: &Digest) -> bool {
        lock(&self.too_large).contains(&short(digest))
    }

    /// Whether it was found a moment ago that so many bytes cannot go.
    pub(super) fn is_exhausted(&self, least: u64) -> bool {
        lock(&self.exhausted).is_some_and(|(until, bytes)| least > bytes && Instant::now() < until)
    }

    /// Notes that no more than `bytes` may go; to be believed for so long.
    pub(super) fn exhausted(&self, bytes: u64, memory: Duration) {
        *lock(&self.exhausted) = Some((Instant::now() + memory, bytes));
    }
}

/// A file system's size, and what of it is free for us.
#[derive(Clone, Copy)]
struct Space {
    total: u64,
    free: u64,
}

/// One that cannot be asked sets no limit: writing will tell.
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
    use crate::oci::{Algorithm, Registry};

    #[test]
    fn sizes_are_bytes_with_a_unit_or_a_share() {
        let check = |text: &str, expected: Size| assert_eq!(text.parse(), Ok(expected), "{text}");
        check("200GiB", Size::Bytes(200 << 30));
        check("1.5 TiB", Size::Bytes(3 << 39));
        check("500MB", Size::Bytes(500_000_000));
        check("64kB", Size::Bytes(64_000));
        check("64KiB", Size::Bytes(65_536));
        check("0B", Size::Bytes(0));
        check("80%", Size::Share(80.0));
        check("2.5 %", Size::Share(2.5));
        check("5", Size::Bytes(5));
        for text in
            ["", "GiB", "-1GiB", "5gib", "101%", "%", "-1%", "1e1%", "1.2.3GB", "5 XB", "80%%", "1e3B"]
        {
            assert_eq!(text.parse::<Size>(), Err(InvalidSize), "{text}");
        }
    }

    fn budget(max_bytes: u64) -> Budget {
        let limits = Limits { max_bytes: Size::Bytes(max_bytes), ..Limits::default() };
        Budget::new(limits, Arc::default(), Arc::default())
    }

    #[test]
    fn partial_files_count_and_the_limit_is_hard() {
        let (budget, root) = (budget(100), Path::new("/"));
        let registry = Registry::parse("r.example").unwrap();
        let [one, two] = ["1", "2"]
            .map(|text| PartialKey::new(&registry, &Digest::of(Algorithm::Sha256, text.as_bytes())));
        assert_eq!(budget.reserve(root, &|| 50, &one, 30), Ok(()));
        assert_eq!(budget.used_bytes(&|| 50), 80);
        assert_eq!(
            budget.reserve(root, &|| 50, &two, 30),
            Err(Missing { least: 10, best: 15, is_disk_full: false })
        );
        assert_eq!(budget.reserve(root, &|| 50, &one, 40), Ok(()), "the same again, and larger");
        assert_eq!(budget.used_bytes(&|| 50), 90);
        assert_eq!(budget.abandoned(), [(one.clone(), 40)]);
        lock(&budget.filling).insert(one.clone());
        assert_eq!(budget.abandoned(), []);
        budget.release(&one);
        assert_eq!(budget.used_bytes(&|| 50), 50);
        assert_eq!(budget.reserve(root, &|| 50, &two, 30), Ok(()));
    }

    #[test]
    fn eviction_behind_begins_at_one_mark_and_ends_at_another() {
        let (budget, root) = (budget(1000), Path::new("/"));
        assert_eq!(budget.behind(root, &|| 950), None);
        assert_eq!(budget.behind(root, &|| 951), Some(Missing { least: 0, best: 51, is_disk_full: false }));
    }

    #[test]
    fn blobs_of_an_image_that_is_too_large_are_known_unless_another_needs_them() {
        let budget = budget(100);
        let [base, layer] = ["base", "layer"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
        budget.expect(100, 101, &[short(&base), short(&layer)]);
        assert!(budget.is_too_large(&base) && budget.is_too_large(&layer));
        budget.expect(100, 100, &[short(&base)]);
        assert!(!budget.is_too_large(&base) && budget.is_too_large(&layer));
    }
}
