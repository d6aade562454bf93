//! Contents that came with a wrong digest twice in a row: upstream is left alone about them for a while.
//!
//! A broken edge sends the same wrong bytes to everybody, each time with a head that promises the right ones. A client
//! whose body is cut comes back to the same host, so it never asks another, and all of the content is fetched again and
//! again. So after both attempts (see [`super::download::downloader`]) a content is refused, before a head, to the
//! repository for which it came wrong: for [`WAIT_MIN`], and for twice as long after each further failure, up to
//! [`WAIT_MAX`]. The right bytes end that, whether they come by a transfer after a wait or from another registry whose
//! bytes may be shared. It is in memory only; the oldest entries are forgotten first.
//!
//! Another repository of the registry has attempts of its own: the wrong bytes may be those of a fallback, which is
//! asked where the registry itself has not the content.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::bounded;
use crate::oci::{Registry, RepoName};
use crate::store::PartialKey;
use crate::sync::lock;

/// How long a content is refused after the first failure: a client goes on to its next host, and a repaired edge is
/// used soon.
const WAIT_MIN: Duration = Duration::from_secs(10);
/// The longest refusal: a pull that is tried again by hand after a repair finds it in force for a coffee break at most.
const WAIT_MAX: Duration = Duration::from_secs(5 * 60);

/// What came with a wrong digest for each repository.
pub(super) struct Mismatches(Mutex<LruCache<Key, Failure>>);

/// A content of a registry, and the repository that it was for.
type Key = (PartialKey, RepoName);

#[derive(Clone, Copy)]
struct Failure {
    at: Instant,
    wait: Duration,
}

impl Failure {
    /// The failure at `now`, after the one before. One from long ago does not count any more.
    fn next(before: Option<Self>, now: Instant) -> Self {
        let recent = before.filter(|it| now.saturating_duration_since(it.at) < it.wait + WAIT_MAX);
        let wait = recent.map_or(WAIT_MIN, |it| (it.wait * 2).clamp(WAIT_MIN, WAIT_MAX));
        Self { at: now, wait }
    }

    /// How long the failure still counts.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = (self.at + self.wait).saturating_duration_since(now);
        Some(left).filter(|left| !left.is_zero())
    }
}

impl Mismatches {
    pub(super) fn new(max: NonZeroUsize) -> Self {
        Self(Mutex::new(bounded::lru(max)))
    }

    /// How long upstream is not to be asked for this content; `None` if it may be asked.
    pub(super) fn wait(&self, key: &PartialKey, name: &RepoName) -> Option<Duration> {
        lock(&self.0).get(&(key.clone(), name.clone())).and_then(|failure| failure.left(Instant::now()))
    }

    /// Notes that the content came wrong twice. Returns how long upstream is not to be asked.
    pub(super) fn failed(&self, key: &PartialKey, name: &RepoName) -> Duration {
        let (mut failures, now, key) = (lock(&self.0), Instant::now(), (key.clone(), name.clone()));
        let failure = Failure::next(failures.get(&key).copied(), now);
        failures.put(key, failure);
        failure.wait
    }

    /// Notes that the content came wrong in a transfer that is not attempted twice: the next such failure counts.
    pub(super) fn failed_once(&self, key: &PartialKey, name: &RepoName) {
        let (mut failures, now, key) = (lock(&self.0), Instant::now(), (key.clone(), name.clone()));
        let failure = match failures.get(&key) {
            Some(before) => Failure::next(Some(*before), now),
            None => Failure { at: now, wait: Duration::ZERO },
        };
        failures.put(key, failure);
    }

    /// Notes that the content came right.
    pub(super) fn clear(&self, key: &PartialKey, name: &RepoName) {
        lock(&self.0).pop(&(key.clone(), name.clone()));
    }

    /// Forgets everything about these registries: another upstream has taken the place of theirs.
    pub(super) fn forget_all(&self, is_of: impl Fn(&Registry) -> bool) {
        let mut failures = lock(&self.0);
        let of_registry: Vec<_> =
            failures.iter().map(|(key, _)| key).filter(|(key, _)| is_of(&key.registry)).cloned().collect();
        for key in &of_registry {
            failures.pop(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_bound_and_a_long_peace_ends_it() {
        let seconds = Duration::from_secs;
        let mut now = Instant::now();
        let mut failure = Failure::next(None, now);
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(failure.wait, seconds(expected));
            assert_eq!(failure.left(now + seconds(1)), Some(seconds(expected - 1)));
            now += failure.wait;
            assert_eq!(failure.left(now), None);
            failure = Failure::next(Some(failure), now);
        }
        let once = Failure { at: now, wait: Duration::ZERO };
        assert_eq!((once.left(now), Failure::next(Some(once), now).wait), (None, WAIT_MIN));
        now += seconds(601);
        assert_eq!(Failure::next(Some(failure), now).wait, WAIT_MIN);
    }
}
