//! Whether the disk takes what is written.
//!
//! A disk that is full, read-only or failing is no outage: stored content is served, and the rest passes through
//! (`cache/direct.rs`). But an operator should know. Every failure of a change under the data folder is noted here,
//! and is forgotten when the same would succeed: after a change that does, or after a probe
//! ([`probe`](crate::store::disk::probe)).
//!
//! The reason is shown to everybody who may read `/readyz`, so it names no file: a name could tell what is stored.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::store::disk::obstacle::is_obstacle;
use crate::store::error::Error;
use crate::sync::lock;
use crate::telemetry::Metrics;

/// Whether the store can keep new content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// No failure is known.
    Healthy,
    /// The disk fails: stored content is served, and other content passes through unstored.
    Degraded {
        /// The failure in one line, without the name of a file.
        reason: String,
        /// The time of the first failure.
        since: SystemTime,
    },
}

/// The way in which a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Full,
    ReadOnly,
    Failing,
}

impl Trouble {
    /// Classifies an error; `None` if it is no fault of the disk.
    fn of(error: &Error) -> Option<(Self, &'static str, &io::Error)> {
        match error {
            Error::Full { action, source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Some((Self::ReadOnly, action, source))
            }
            Error::Full { action, source, .. } => Some((Self::Full, action, source)),
            // Without a number it comes from berth itself.
            Error::Io { action, source, .. } if source.raw_os_error().is_some() => {
                Some((Self::Failing, action, source))
            }
            Error::Io { .. }
            | Error::Locked { .. }
            | Error::DigestMismatch { .. }
            | Error::InUse { .. }
            | Error::TooLarge { .. }
            | Error::NoRoom { .. } => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Failing => "io",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Full => "the disk is full",
            Self::ReadOnly => "the disk is read-only",
            Self::Failing => "the disk fails",
        }
    }
}

/// What is known of failures of the disk.
pub(in crate::store) struct Condition {
    failure: Mutex<Option<Failure>>,
    /// Whether there is a failure. It is read at every change.
    is_degraded: AtomicBool,
    /// Notified when the first failure comes.
    degraded: Notify,
    metrics: Arc<Metrics>,
}

struct Failure {
    trouble: Trouble,
    reason: String,
    since: SystemTime,
    /// Bytes for which there was no room.
    wanted_bytes: u64,
}

impl Condition {
    pub(in crate::store) fn new(metrics: Arc<Metrics>) -> Self {
        let (failure, is_degraded) = (Mutex::default(), AtomicBool::new(false));
        Self { failure, is_degraded, degraded: Notify::new(), metrics }
    }

    pub(in crate::store) fn health(&self) -> Health {
        match &*lock(&self.failure) {
            None => Health::Healthy,
            Some(failure) => Health::Degraded { reason: failure.reason.clone(), since: failure.since },
        }
    }

    /// Notes the result of a change that was to write `bytes`, and returns it.
    pub(in crate::store) fn note<T>(&self, bytes: u64, result: Result<T, Error>) -> Result<T, Error> {
        match &result {
            Ok(_) => self.succeeded(bytes),
            Err(error) => self.failed(bytes, error),
        }
        result
    }

    /// Notes an error, and counts it if it is a failure of the disk. Something in the way of a file is no such
    /// failure.
    pub(in crate::store) fn failed(&self, wanted_bytes: u64, error: &Error) {
        if !is_obstacle(error)
            && let Some((trouble, ..)) = Trouble::of(error)
        {
            self.metrics.storage_error(trouble.label());
            self.degrade(wanted_bytes, error);
        }
    }

    /// Counts a file that the disk could not read. Whether the disk fails altogether shows when that file is put
    /// aside.
    pub(in crate::store) fn lost_a_file(&self) {
        self.metrics.storage_error(Trouble::Failing.label());
    }

    /// Notes that a change of `bytes` is on disk, which may end a failure.
    pub(in crate::store) fn succeeded(&self, bytes: u64) {
        if !self.is_degraded.load(Ordering::Acquire) {
            return;
        }
        let mut failure = lock(&self.failure);
        // A tag still finds room where a layer does not.
        let is_over = |it: &Failure| it.trouble != Trouble::Full || bytes >= it.wanted_bytes;
        if failure.as_ref().is_some_and(is_over) {
            let seconds = failure.take().and_then(|it| it.since.elapsed().ok()).map(|it| it.as_secs());
            self.is_degraded.store(false, Ordering::Release);
            self.metrics.degraded.set(0);
            tracing::info!(seconds, "the disk has recovered: content is stored again");
        }
    }

    /// Notes that the disk fails, without counting the error.
    pub(in crate::store) fn degrade(&self, wanted_bytes: u64, error: &Error) {
        let Some((trouble, action, source)) = Trouble::of(error) else { return };
        let mut failure = lock(&self.failure);
        let reason = format!("{}: cannot {action} a file: {source}", trouble.in_words());
        match &mut *failure {
            Some(known) if known.trouble == trouble => {
                known.wanted_bytes = known.wanted_bytes.max(wanted_bytes);
            }
            known => {
                tracing::warn!(error = error as &dyn std::error::Error, "{}", trouble.in_words());
                let since = known.as_ref().map_or_else(SystemTime::now, |known| known.since);
                *known = Some(Failure { trouble, reason, since, wanted_bytes });
                self.is_degraded.store(true, Ordering::Release);
                self.metrics.degraded.set(1);
                self.degraded.notify_one();
            }
        }
    }

    /// Waits until there is a failure, from which the disk may recover.
    pub(in crate::store) async fn until_degraded(&self) {
        while !self.is_degraded.load(Ordering::Acquire) {
            self.degraded.notified().await;
        }
    }

    /// Returns the metrics in which failures are counted.
    pub(in crate::store) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Returns how many bytes a probe must find room for.
    pub(in crate::store) fn wanted_bytes(&self) -> u64 {
        lock(&self.failure).as_ref().map_or(0, |failure| failure.wanted_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn error(number: i32) -> Error {
        Error::io("write", Path::new("/data/blobs/sha256/0123"), io::Error::from_raw_os_error(number))
    }

    #[test]
    fn a_failure_is_forgotten_when_the_same_would_succeed() {
        use rustix::io::Errno;
        let condition = Condition::new(Arc::default());
        let is_degraded = || match condition.health() {
            Health::Healthy => false,
            Health::Degraded { reason, .. } => {
                assert!(!reason.contains("0123") && !reason.contains('\n'), "{reason}");
                true
            }
        };
        let check = |number: Errno, label: &str, failed_bytes, written_bytes, recovers: bool| {
            condition.failed(failed_bytes, &error(number.raw_os_error()));
            assert!(is_degraded());
            condition.succeeded(written_bytes);
            assert_eq!(is_degraded(), !recovers, "{label} {failed_bytes} {written_bytes}");
            condition.succeeded(u64::MAX);
            assert!(!is_degraded());
        };
        check(Errno::NOSPC, "full", 1000, 999, false);
        check(Errno::NOSPC, "full", 1000, 1000, true);
        check(Errno::ROFS, "read_only", 1000, 0, true);
        check(Errno::IO, "io", 1000, 0, true);
        condition.failed(0, &Error::io("trust", Path::new("x"), io::Error::other("berth's own")));
        condition.failed(0, &Error::Locked { path: "x".into(), pid: None, admin: None });
        assert!(!is_degraded());
    }
}
