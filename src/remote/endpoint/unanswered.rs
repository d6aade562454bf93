//! Optional questions that an endpoint does not know, such as what refers to a manifest, remembered for a while.
//!
//! A 404 that names what is unknown is about that alone. Anything else is about all that is asked of a repository. Pure:
//! the time is a parameter.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;

use lru::LruCache;
use tokio::time::Instant;

use crate::bounded;
use crate::oci::{Digest, RepoName};
use crate::remote::error::Error;

/// The most repositories and manifests that are remembered of one endpoint; each takes some 100 bytes. The oldest are
/// forgotten first, which costs a request.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What an endpoint does not answer, by a hash: two repositories with the same hash share what is then asked for in
/// another way.
pub(crate) struct Unanswered {
    until: LruCache<u64, (Instant, Error)>,
    hasher: RandomState,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self { until: bounded::lru(REMEMBERED_MAX), hasher: RandomState::new() }
    }
}

impl Unanswered {
    /// What the endpoint said a moment ago, of all that is in the repository or of this manifest.
    pub(crate) fn check(&mut self, name: &RepoName, digest: &Digest, now: Instant) -> Option<Error> {
        let keys = [self.key(name, digest, true), self.key(name, digest, false)];
        let found =
            keys.iter().find_map(|key| self.until.get(key).filter(|(until, _)| *until > now).cloned());
        found.map(|(_, error)| error)
    }

    /// Remembers until that time what the endpoint `said`.
    pub(crate) fn note(&mut self, name: &RepoName, digest: &Digest, said: Error, until: Instant) {
        // What is wrong with one digest may be right with another.
        let is_of_all = matches!(said, Error::Unavailable { status: 404 | 405 | 406 | 410 | 501 });
        self.until.put(self.key(name, digest, is_of_all), (until, said));
    }

    /// Digests of another kind may be what a registry does not know.
    fn key(&self, name: &RepoName, digest: &Digest, is_of_all: bool) -> u64 {
        self.hasher.hash_one((name, digest.algorithm().as_str(), (!is_of_all).then_some(digest)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oci::Algorithm;

    const NO_SUCH_PATH: Error = Error::Unavailable { status: 404 };

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_is_remembered_of_a_repository_and_what_is_not_there_of_a_manifest() {
        let (mut unanswered, now) = (Unanswered::default(), Instant::now());
        let minute = Duration::from_secs(60);
        let [a, b]: [RepoName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let [one, two] = [b"1", b"2"].map(|text| Digest::of(Algorithm::Sha256, text));
        let other = Digest::of(Algorithm::Sha512, b"1");
        unanswered.note(&a, &one, NO_SUCH_PATH, now + minute);
        unanswered.note(&b, &one, Error::NotFound, now + minute);
        assert_eq!(unanswered.check(&a, &two, now), Some(NO_SUCH_PATH));
        assert_eq!(unanswered.check(&a, &other, now), None);
        assert_eq!(unanswered.check(&b, &one, now), Some(Error::NotFound));
        assert_eq!(unanswered.check(&b, &two, now), None);
        assert_eq!(unanswered.check(&a, &one, now + minute), None);
    }
}
