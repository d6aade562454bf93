//! Damaged blobs that could not be moved away, and count as absent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::sync::lock;

/// Number of damaged blobs that are remembered. Others are found again, one by one.
const DAMAGED_MAX: usize = 65_536;
/// How long a file counts as lost that could neither be read nor moved. A disk that fails altogether may come back
/// with everything.
const UNREADABLE_MEMORY: Duration = Duration::from_secs(60);

/// What is wrong with a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// Its content does not match its digest.
    Changed,
    /// The disk cannot read it.
    Unreadable,
}

impl Damage {
    /// Returns the damage in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "its content is not what its name says",
            Self::Unreadable => "the disk does not give it back",
        }
    }
}

/// Damaged blobs that could not be moved, because the disk does not change. They count as absent.
#[derive(Default)]
pub(in crate::store) struct DamagedSet {
    /// The blobs, and until when they count as absent; `None` is for ever.
    digests: Mutex<HashMap<Digest, Option<Instant>>>,
    /// Whether there are any. It is read at every hit.
    is_any: AtomicBool,
}

impl DamagedSet {
    pub(in crate::store) fn has(&self, digest: &Digest) -> bool {
        if !self.is_any.load(Ordering::Acquire) {
            return false;
        }
        let until = lock(&self.digests).get(digest).copied();
        match until {
            Some(Some(until)) if until < Instant::now() => {
                self.remove(digest);
                false
            }
            other => other.is_some(),
        }
    }

    /// Adds a blob.
    pub(in crate::store) fn add(&self, digest: &Digest, damage: Damage) {
        let until = match damage {
            Damage::Changed => None,
            Damage::Unreadable => Some(Instant::now() + UNREADABLE_MEMORY),
        };
        let mut digests = lock(&self.digests);
        if digests.len() < DAMAGED_MAX {
            digests.insert(*digest, until);
            self.is_any.store(true, Ordering::Release);
        }
    }

    /// Removes a blob, because another file has taken its place.
    pub(in crate::store) fn remove(&self, digest: &Digest) {
        if self.is_any.load(Ordering::Acquire) {
            let mut digests = lock(&self.digests);
            digests.remove(digest);
            self.is_any.store(!digests.is_empty(), Ordering::Release);
        }
    }
}
