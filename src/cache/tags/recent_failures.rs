//! Recent failures: what speaks against a known tag since upstream last confirmed it. Either a check failed, or
//! upstream said that there is no such tag.
//!
//! Both keep upstream from being asked again for [`MEMORY`]. That a tag was removed also counts after that: the
//! confirmation from before is worth nothing, and the next request asks. A confirmation clears everything. All is in
//! memory only; the oldest entries are forgotten first.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::freshness::UpstreamWord;
use crate::bounded;
use crate::cache::error::Error;
use crate::oci::{Repo, Tag};
use crate::sync::lock;

/// How long upstream is not asked about a tag after it said no, or could not be asked.
const MEMORY: Duration = Duration::from_secs(10);

/// The failures of every tag that has any.
pub(in crate::cache) struct RecentFailures(Mutex<LruCache<(Repo, Tag), TagFailures>>);

#[derive(Default)]
struct TagFailures {
    /// When a check last failed.
    failed: Option<Instant>,
    /// When upstream last said that there is no such tag, or none for us, and how.
    removed: Option<(Instant, Error)>,
    /// Whether upstream has said so at any time since it last confirmed the tag.
    revoked: bool,
}

/// What the last checks of a tag have found.
pub(in crate::cache) struct LastCheck {
    /// Whether upstream is to be asked.
    pub word: UpstreamWord,
    /// How upstream said no, if it has just done so.
    pub refusal: Option<Error>,
    /// Whether upstream has said no since it last confirmed the tag.
    pub revoked: bool,
}

impl RecentFailures {
    pub(in crate::cache) fn new(max: NonZeroUsize) -> Self {
        Self(Mutex::new(bounded::lru(max)))
    }

    /// What the last checks of a tag have found.
    pub(in crate::cache) fn last_check(&self, repo: &Repo, tag: &Tag) -> LastCheck {
        let mut failures = lock(&self.0);
        let Some(TagFailures { failed, removed, revoked }) = failures.get(&(repo.clone(), tag.clone()))
        else {
            return LastCheck { word: UpstreamWord::Open, refusal: None, revoked: false };
        };
        let refusal = removed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < MEMORY)
            .map(|(_, error)| error.clone().remembered());
        let word = match &refusal {
            Some(_) => UpstreamWord::Removed,
            None if failed.is_some_and(|at| at.elapsed() < MEMORY) => UpstreamWord::Silent,
            None => UpstreamWord::Open,
        };
        LastCheck { word, refusal, revoked: *revoked }
    }

    /// Notes that a check has failed.
    pub(in crate::cache) fn failed(&self, repo: &Repo, tag: &Tag) {
        self.change(repo, tag, |failures| failures.failed = Some(Instant::now()));
    }

    /// Notes that upstream has said no.
    pub(in crate::cache) fn removed(&self, repo: &Repo, tag: &Tag, refusal: Error) {
        self.change(repo, tag, |failures| {
            failures.removed = Some((Instant::now(), refusal));
            failures.revoked = true;
        });
    }

    /// Has upstream asked the next time, whatever it has just said.
    pub(in crate::cache) fn forget(&self, repo: &Repo, tag: &Tag) {
        if let Some(failures) = lock(&self.0).get_mut(&(repo.clone(), tag.clone())) {
            (failures.failed, failures.removed) = (None, None);
        }
    }

    /// The same for all tags of these repositories: another upstream has taken the place of theirs.
    pub(in crate::cache) fn forget_all(&self, is_meant: impl Fn(&Repo) -> bool) {
        for ((repo, _), failures) in lock(&self.0).iter_mut() {
            if is_meant(repo) {
                (failures.failed, failures.removed) = (None, None);
            }
        }
    }

    /// Notes that upstream has confirmed the tag.
    pub(in crate::cache) fn clear(&self, repo: &Repo, tag: &Tag) {
        lock(&self.0).pop(&(repo.clone(), tag.clone()));
    }

    fn change(&self, repo: &Repo, tag: &Tag, change: impl FnOnce(&mut TagFailures)) {
        change(lock(&self.0).get_or_insert_mut((repo.clone(), tag.clone()), TagFailures::default));
    }
}
