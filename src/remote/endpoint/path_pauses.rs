//! Paths of one endpoint that answered 503 with a `Retry-After`: each is left alone for some seconds, then one request
//! finds out whether it answers again.
//!
//! Such an answer may be about one repository of many, whose owner or storage is throttled. So it counts for its own path
//! alone, and for [`PAUSE_MAX`] at most: a repository whose owner is throttled does not shut the registry for the others. Pure: the
//! time is a parameter.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::bounded;

/// The longest time for which a path is left alone, whatever it asks for: one request in this time is a burden to nobody.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long other requests wait for the one that finds out whether the path answers again; that one may have been given
/// up.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// The most paths that are remembered of one endpoint; each takes some 100 bytes, and the oldest are forgotten first.
const PATHS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// The paths that are left alone, by a hash: two paths with the same hash wait for each other, and no more.
pub(crate) struct PathPauses {
    until: LruCache<u64, Instant>,
    hasher: RandomState,
}

impl Default for PathPauses {
    fn default() -> Self {
        Self { until: bounded::lru(PATHS_MAX), hasher: RandomState::new() }
    }
}

impl PathPauses {
    /// Checks whether a request for `path` may be sent. After a pause the first request may, and the others wait for what
    /// it finds out.
    ///
    /// # Errors
    /// For how much longer the path is left alone.
    pub(crate) fn check(&mut self, path: &str, now: Instant) -> Result<(), Duration> {
        if self.until.is_empty() {
            return Ok(());
        }
        let Some(until) = self.until.get_mut(&self.hasher.hash_one(path)) else { return Ok(()) };
        let left = until.saturating_duration_since(now);
        if !left.is_zero() {
            return Err(left);
        }
        *until = now + PROBE_MAX;
        Ok(())
    }

    /// Leaves `path` alone for this time, as its answer asks. Returns whether that is news.
    pub(crate) fn pause(&mut self, path: &str, wait: Duration, now: Instant) -> bool {
        let before = self.until.put(self.hasher.hash_one(path), now + wait.min(PAUSE_MAX));
        before.is_none()
    }

    /// Records that `path` answers. Returns whether it was left alone.
    pub(crate) fn end(&mut self, path: &str) -> bool {
        !self.until.is_empty() && self.until.pop(&self.hasher.hash_one(path)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_path_is_left_alone_for_seconds_and_then_one_request_finds_out() {
        let (mut pauses, now) = (PathPauses::default(), Instant::now());
        assert!(pauses.pause("/a", Duration::from_secs(3600), now));
        assert_eq!(pauses.check("/b", now), Ok(()));
        assert_eq!(pauses.check("/a", now + PAUSE_MAX / 2), Err(PAUSE_MAX / 2));
        let then = now + PAUSE_MAX;
        assert_eq!(pauses.check("/a", then), Ok(()), "the probe");
        assert_eq!(pauses.check("/a", then), Err(PROBE_MAX), "nobody beside it");
        assert!(!pauses.pause("/a", Duration::from_secs(2), then));
        assert_eq!(pauses.check("/a", then), Err(Duration::from_secs(2)));
        assert!(pauses.end("/a") && !pauses.end("/a"));
        assert_eq!(pauses.check("/a", then), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_has_no_end_is_followed_by_another() {
        let (mut pauses, now) = (PathPauses::default(), Instant::now());
        pauses.pause("/a", Duration::from_secs(1), now);
        assert_eq!(pauses.check("/a", now + Duration::from_secs(1)), Ok(()));
        assert_eq!(pauses.check("/a", now + Duration::from_secs(1) + PROBE_MAX), Ok(()));
    }
}
