//! What speaks against a known tag since upstream last confirmed it: that a check failed, or that upstream said
//! that there is no such tag.
//!
//! Both keep upstream from being asked again for [`MEMORY`]. That a tag was taken away also counts after that: the
//! confirmation from before is worth nothing, and the next request asks. A confirmation clears everything. In memory
//! only; the oldest are forgotten first.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::freshness::Word;
use crate::bounded;
use crate::cache::error::Error;
use crate::oci::{Repo, Tag};
use crate::sync::lock;

/// How long upstream is left alone about a tag after it said no, or could not be asked.
const MEMORY: Duration = Duration::from_secs(10);

/// Of every tag that there is a doubt about.
pub(in crate::cache) struct Doubts(Mutex<LruCache<(Repo, Tag), Doubt>>);

#[derive(Default)]
struct Doubt {
    /// When a check last failed.
    failed: Option<Instant>,
    /// When upstream last said that there is no such tag, or none for us, and how.
    removed: Option<(Instant, Error)>,
    /// Whether it has ever said so since it last confirmed the tag.
    revoked: bool,
}

/// What was last heard about a tag.
pub(in crate::cache) struct Heard {
    /// Whether upstream is to be asked.
    pub word: Word,
    /// How it said no, if that is what it has just said.
    pub refusal: Option<Error>,
    /// Whether it has said no since it last confirmed the tag.
    pub revoked: bool,
}

impl Doubts {
    pub(in crate::cache) fn new(max: NonZeroUsize) -> Self {
        Self(Mutex::new(bounded::lru(max)))
    }

    /// What was last heard; nothing if there is no doubt.
    pub(in crate::cache) fn about(&self, repo: &Repo, tag: &Tag) -> Heard {
        let mut doubts = lock(&self.0);
        let Some(Doubt { failed, removed, revoked }) = doubts.get(&(repo.clone(), tag.clone())) else {
            return Heard { word: Word::Open, refusal: None, revoked: false };
        };
        let refusal = removed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < MEMORY)
            .map(|(_, error)| error.clone().remembered());
        let word = match &refusal {
            Some(_) => Word::Removed,
            None if failed.is_some_and(|at| at.elapsed() < MEMORY) => Word::Silent,
            None => Word::Open,
        };
        Heard { word, refusal, revoked: *revoked }
    }

    /// A check has failed.
    pub(in crate::cache) fn failed(&self, repo: &Repo, tag: &Tag) {
        self.change(repo, tag, |doubt| doubt.failed = Some(Instant::now()));
    }

    /// Upstream has said no.
    pub(in crate::cache) fn removed(&self, repo: &Repo, tag: &Tag, refusal: Error) {
        self.change(repo, tag, |doubt| {
            doubt.removed = Some((Instant::now(), refusal));
            doubt.revoked = true;
        });
    }

    /// Upstream is to be asked, whatever it has just said.
    pub(in crate::cache) fn forget(&self, repo: &Repo, tag: &Tag) {
        if let Some(doubt) = lock(&self.0).get_mut(&(repo.clone(), tag.clone())) {
            (doubt.failed, doubt.removed) = (None, None);
        }
    }

    /// The upstream of these repositories is to be asked, whatever another has said in its place.
    pub(in crate::cache) fn forget_all(&self, is_meant: impl Fn(&Repo) -> bool) {
        for ((repo, _), doubt) in lock(&self.0).iter_mut() {
            if is_meant(repo) {
                (doubt.failed, doubt.removed) = (None, None);
            }
        }
    }

    /// Upstream has confirmed the tag.
    pub(in crate::cache) fn clear(&self, repo: &Repo, tag: &Tag) {
        lock(&self.0).pop(&(repo.clone(), tag.clone()));
    }

    fn change(&self, repo: &Repo, tag: &Tag, change: impl FnOnce(&mut Doubt)) {
        change(lock(&self.0).get_or_insert_mut((repo.clone(), tag.clone()), Doubt::default));
    }
}
