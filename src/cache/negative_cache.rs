//! The negative cache: what upstream has just refused, and which repositories it has just failed.
//!
//! Upstream's "there is no such thing", or "not for you", is believed for [`ABSENCE_MEMORY`] without asking again. A
//! claim that proved wrong is kept beside these, for as long. The failure to get content of a repository at all is kept
//! for [`TROUBLE_MEMORY`]: during that time it speaks against an image that is not complete. Everything is in memory
//! only, and bounded; the oldest entries are forgotten first.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::error::Error;
use super::upstreams::Upstreams;
use crate::bounded;
use crate::context::RequestContext;
use crate::oci::{Digest, Repo};
use crate::sync::lock;

/// How long a refusal of upstream is believed without asking again.
const ABSENCE_MEMORY: Duration = Duration::from_secs(10);
/// How long a failed transfer speaks against an image that is not complete.
const TROUBLE_MEMORY: Duration = Duration::from_secs(10);

/// What upstream was asked for. A digest that is no blob may be a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lookup {
    /// A blob.
    Blob(Digest),
    /// A manifest.
    Manifest(Digest),
    /// A claim of the registry about the size of a blob; kept when it was wrong.
    Claim(Digest),
}

/// What upstream has refused or failed at a moment ago, by repository.
pub(super) struct NegativeCache {
    /// When upstream refused a look-up, and how.
    refused: Mutex<LruCache<(Repo, Lookup), (Instant, Error)>>,
    /// When content of a repository could last not be had.
    troubled: Mutex<LruCache<Repo, Instant>>,
}

impl NegativeCache {
    pub(super) fn new(max: NonZeroUsize) -> Self {
        Self { refused: Mutex::new(bounded::lru(max)), troubled: Mutex::new(bounded::lru(max)) }
    }

    /// Fails as upstream did, if it refused this look-up a moment ago.
    pub(super) fn check(&self, repo: &Repo, lookup: Lookup) -> Result<(), Error> {
        match lock(&self.refused).get(&(repo.clone(), lookup)) {
            Some((at, error)) if at.elapsed() < ABSENCE_MEMORY => Err(error.clone().remembered()),
            _ => Ok(()),
        }
    }

    /// Notes how a look-up has just failed, and returns the error. What was heard on a way that others do not go is not
    /// noted. This must not be called with an error of [`NegativeCache::check`]: upstream would never be asked again.
    pub(super) fn note(
        &self,
        upstreams: &Upstreams,
        repo: &Repo,
        lookup: Lookup,
        context: &RequestContext,
        error: Error,
    ) -> Error {
        let is_claimed = error.is_loop() && !context.is_of_client();
        if is_claimed || context.is_bypass() || upstreams.is_retired(repo) {
            return error;
        }
        if error.is_absence() {
            self.refuse(repo, lookup, error.clone());
        } else if error.is_outage() {
            self.trouble(repo);
        }
        error
    }

    /// Notes that a look-up is refused with this error from now on.
    pub(super) fn refuse(&self, repo: &Repo, lookup: Lookup, error: Error) {
        lock(&self.refused).put((repo.clone(), lookup), (Instant::now(), error));
    }

    /// Notes that content of `repo` could not be had just now.
    pub(super) fn trouble(&self, repo: &Repo) {
        lock(&self.troubled).put(repo.clone(), Instant::now());
    }

    /// Whether content of `repo` could not be had a moment ago.
    pub(super) fn is_troubled(&self, repo: &Repo) -> bool {
        lock(&self.troubled).get(repo).is_some_and(|since| since.elapsed() < TROUBLE_MEMORY)
    }

    /// Forgets the refusals of these repositories.
    pub(super) fn forget_refusals(&self, is_meant: impl Fn(&Repo) -> bool) {
        let mut refused = lock(&self.refused);
        let meant = refused.iter().map(|(key, _)| key).filter(|(of, _)| is_meant(of));
        let meant: Vec<_> = meant.cloned().collect();
        for key in &meant {
            refused.pop(key);
        }
    }

    /// Forgets the refusals and the failures of these repositories.
    pub(super) fn forget(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.forget_refusals(&is_meant);
        let mut troubled = lock(&self.troubled);
        let meant: Vec<_> =
            troubled.iter().map(|(repo, _)| repo).filter(|it| is_meant(it)).cloned().collect();
        for repo in &meant {
            troubled.pop(repo);
        }
    }
}
