//! What is known of the content of an open file: whether it matches its digest.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// What is known of the content of an open file.
#[derive(Default)]
pub(in crate::store) struct Soundness {
    /// The time until which it counts as sound, in seconds on the clock of the rechecks; zero if not known.
    sound_until: AtomicU64,
    /// Its time of modification when it was found sound, in nanoseconds since 1970.
    modified: AtomicI64,
    /// Whether nobody has read it for long.
    is_unread: AtomicBool,
    is_damaged: AtomicBool,
}

impl Soundness {
    /// Notes that nobody has read it for long.
    pub(in crate::store) fn note_unread(&self) {
        self.is_unread.store(true, Ordering::Relaxed);
    }

    /// Whether nobody had read it for long until now. Only the first call returns true.
    pub(in crate::store) fn take_unread(&self) -> bool {
        self.is_unread.load(Ordering::Relaxed) && self.is_unread.swap(false, Ordering::Relaxed)
    }

    /// Whether it counts as sound at `now`, in seconds on the clock of the rechecks.
    pub(in crate::store) fn is_sound(&self, now: u64) -> bool {
        self.sound_until.load(Ordering::Relaxed) > now
    }

    /// Notes that its content does not match its digest.
    pub(in crate::store) fn note_damaged(&self) {
        self.is_damaged.store(true, Ordering::Release);
    }

    pub(in crate::store) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire)
    }

    /// Compares the file with its state when it was found sound. A file that was changed in its place since then is
    /// treated as one that nobody has read.
    pub(in crate::store) fn compare(&self, found: &Metadata) {
        if self.sound_until.load(Ordering::Relaxed) > 0
            && self.modified.load(Ordering::Relaxed) != modified_at(found)
        {
            self.sound_until.store(0, Ordering::Relaxed);
            self.note_unread();
        }
    }

    /// Notes that it counts as sound until `until`, in seconds on the clock of the rechecks, as long as its time of
    /// modification is `modified`.
    pub(in crate::store) fn note_sound(&self, until: u64, modified: i64) {
        self.modified.store(modified, Ordering::Relaxed);
        self.sound_until.store(until, Ordering::Relaxed);
    }
}

/// Returns the time of modification in nanoseconds since 1970.
pub(in crate::store) fn modified_at(metadata: &Metadata) -> i64 {
    metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec())
}
