//! Which repositories' `index.json` does not show yet what their refs say, and when each is to be rendered.
//!
//! A small one may be rendered at once. A large one waits for its turn: all large ones together are written at
//! [`LARGE_BYTES_PER_SECOND`] on average.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::oci::Repo;
use crate::store::metadata::refs::Refs;
use crate::sync::lock;

/// An `index.json` of more bytes than this, of some 4,000 tags, waits for its turn.
const LARGE_BYTES: u64 = 1024 * 1024;
/// Bytes of large ones that are written in a second, on average.
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

    /// When a repository may be rendered: at once, or if that writes much, after all of that kind that came first.
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

    /// How long the writing of a repository's `index.json` is to take from the others' time.
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

    /// The repository that has been due for longest, which counts as rendered.
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

    /// All that are to be rendered some time, which count as rendered.
    pub(in crate::store) fn take_all(&self) -> Vec<Repo> {
        std::mem::take(&mut *lock(&self.due)).into_keys().collect()
    }

    /// When the next repository is to be rendered.
    pub(in crate::store) fn next_due(&self) -> Option<Instant> {
        lock(&self.due).values().min().copied()
    }
}
