//! The repositories whose `index.json` does not show their refs yet, and when each is to be rendered.
//!
//! A small one may be rendered at once. A large one waits for its turn: all large ones together are written at
//! [`LARGE_BYTES_PER_SECOND`] on average.
//!
//! Why this is here and not with the layouts: a change of the refs makes an `index.json` stale, whichever room made
//! it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::oci::Repo;
use crate::store::metadata::refs::Refs;
use crate::sync::lock;

/// Bytes of an `index.json`, of some 4,000 tags, beyond which it waits for its turn.
const LARGE_BYTES: u64 = 1024 * 1024;
/// Bytes of large `index.json` files that are written per second, on average.
const LARGE_BYTES_PER_SECOND: u64 = 256 * 1024;

/// The repositories whose `index.json` is out of date.
pub(in crate::store) struct StaleLayouts {
    refs: Refs,
    /// When each is to be rendered.
    due: Mutex<BTreeMap<Repo, Instant>>,
    /// When the last of the large ones among them is to be rendered.
    large_turn: Mutex<Option<Instant>>,
}

impl StaleLayouts {
    pub(in crate::store) fn new(refs: Refs) -> Self {
        Self { refs, due: Mutex::default(), large_turn: Mutex::default() }
    }

    /// Notes that a repository's `index.json` is out of date from now on. Returns whether it was not before.
    pub(in crate::store) fn mark(&self, repo: &Repo) -> bool {
        let is_news = !lock(&self.due).contains_key(repo);
        if is_news {
            let due = self.turn(repo);
            lock(&self.due).entry(repo.clone()).or_insert(due);
        }
        is_news
    }

    /// Returns when a repository may be rendered: at once, or if its `index.json` is large, after all large ones
    /// before it.
    fn turn(&self, repo: &Repo) -> Instant {
        let (now, takes) = (Instant::now(), self.render_time(repo));
        if takes.is_zero() {
            return now;
        }
        let mut turn = lock(&self.large_turn);
        let due = turn.map_or(now, |turn| turn.max(now)) + takes;
        *turn = Some(due);
        due
    }

    /// Whether a repository's `index.json` has to wait for its turn.
    pub(in crate::store) fn is_large(&self, repo: &Repo) -> bool {
        self.refs.index_json_bytes(repo) > LARGE_BYTES
    }

    /// Returns how long a repository's `index.json` delays the next large one.
    pub(in crate::store) fn render_time(&self, repo: &Repo) -> Duration {
        match self.refs.index_json_bytes(repo) {
            bytes if bytes > LARGE_BYTES => Duration::from_secs(bytes / LARGE_BYTES_PER_SECOND),
            _ => Duration::ZERO,
        }
    }

    /// Clears the mark of a repository: the rendering that starts now shows all changes so far.
    pub(in crate::store) fn forget(&self, repo: &Repo) {
        lock(&self.due).remove(repo);
    }

    /// Takes the repository that has been due for longest, if one is due.
    pub(in crate::store) fn take_due(&self) -> Option<Repo> {
        let mut all = lock(&self.due);
        let (repo, due) = all.iter().min_by_key(|(_, due)| **due)?;
        if *due > Instant::now() {
            return None;
        }
        let repo = repo.clone();
        all.remove(&repo);
        Some(repo)
    }

    /// Takes all repositories, also those that are not due yet.
    pub(in crate::store) fn take_all(&self) -> Vec<Repo> {
        std::mem::take(&mut *lock(&self.due)).into_keys().collect()
    }

    /// Returns when the next repository is to be rendered.
    pub(in crate::store) fn next_due(&self) -> Option<Instant> {
        lock(&self.due).values().min().copied()
    }
}
