//! `_oci/`: each repository as an ordinary OCI image layout, rendered in the background from the refs.
//!
//! `oci-layout` and `blobs` (a relative link to the shared folder) are made once. `index.json` names every tag,
//! and every other manifest of the repository that no index stored there names as its child. Whatever another
//! tool has put there stays: fields of the index itself, annotations and fields of entries that are still true,
//! entries that berth cannot judge (an unknown digest algorithm). An entry whose manifest is not here names
//! something that was evicted, and goes: what another tool is still bringing is waited for by adoption. So does one
//! whose ref was removed because there were too many.
//! When nothing is left of a repository, neither entries nor refs, its folder goes too.
//!
//! What berth has rendered or adopted last is remembered by its fingerprint (inode, size, time) in the index; an
//! `index.json` with another fingerprint is another tool's. It also carries a time of modification from before the
//! refs were read. So it never seems newer than a ref that it does not show yet, and adoption cannot take a tag
//! back, even if that fingerprint is lost.
//!
//! # Of many tags
//!
//! A tag that moves is a file of its own, but `index.json` names all of them: 25 MB for 100,000. It is read and
//! written entry by entry, so that it takes memory only for what is not berth's, from what the index says rather
//! than from the files of refs, and **it lags the more, the larger it is**: all large ones together are written
//! at 256 KiB/s on average, and whatever changes until it is a file's turn is written once. A small one follows
//! within a second or two, that of 100,000 tags within minutes. It waits, too, while the index is not complete.
//! At the end of the process only small ones are brought up to date; the next start knows of the others.
//!
//! This room owns the turns to render and to adopt. It uses eviction, contents, metadata and the disk; requests and the
//! background work use it.

mod adopt;
mod index_json;
mod render;

use std::sync::{Arc, Mutex};

use crate::oci::Repo;
use crate::store::contents::Contents;
use crate::store::disk::Disk;
use crate::store::error::Error;
use crate::store::eviction::Eviction;
use crate::store::layout::index_json::fingerprint;
use crate::store::layout::render::Rendering;
use crate::store::metadata::Metadata;
use crate::sync::lock;

/// The layouts of all repositories. All methods block, unless they say otherwise.
pub(in crate::store) struct Layouts {
    disk: Arc<Disk>,
    metadata: Arc<Metadata>,
    contents: Arc<Contents>,
    eviction: Arc<Eviction>,
    /// Held during an adoption, so that one layout is hashed once. It is async because requests wait for it.
    adopting: Arc<tokio::sync::Mutex<()>>,
    /// Held while an `index.json` is rewritten.
    rendering: Mutex<()>,
}

/// The turn to adopt. Nobody else adopts until it is dropped.
pub(in crate::store) struct AdoptionTurn(
    #[expect(dead_code, reason = "is held")] tokio::sync::OwnedMutexGuard<()>,
);

impl Layouts {
    pub(in crate::store) fn new(
        disk: Arc<Disk>,
        metadata: Arc<Metadata>,
        contents: Arc<Contents>,
        eviction: Arc<Eviction>,
    ) -> Self {
        Self { disk, metadata, contents, eviction, adopting: Arc::default(), rendering: Mutex::default() }
    }

    /// Renders what has changed of a repository. Other tools' entries must have been adopted before.
    pub(in crate::store) fn render(&self, repo: &Repo) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.rendering);
        Rendering::of(&self.disk, &self.metadata, repo).run()
    }

    /// Whether another tool has written the repository's `index.json`, as far as its fingerprint tells.
    pub(in crate::store) fn is_adoptable(&self, repo: &Repo) -> bool {
        fingerprint(&self.metadata.refs().index_json(repo))
            .is_some_and(|found| self.metadata.is_foreign_layout(repo, &found))
    }

    /// Waits until nobody else adopts, without blocking.
    pub(in crate::store) async fn adoption_turn(&self) -> AdoptionTurn {
        AdoptionTurn(Arc::clone(&self.adopting).lock_owned().await)
    }

    /// Adopts what another tool has put into a layout.
    pub(in crate::store) fn adopt(&self, repo: &Repo) {
        let _turn = self.adopting.blocking_lock();
        self.adopt_now(repo);
    }

    /// Adopts what another tool has put into a layout, with a turn that was taken before.
    pub(in crate::store) fn adopt_in_turn(&self, repo: &Repo, _turn: &AdoptionTurn) {
        self.adopt_now(repo);
    }

    fn adopt_now(&self, repo: &Repo) {
        if !self.is_adoptable(repo) {
            return;
        }
        let adopted = adopt::adopt(&self.disk, &self.metadata, &self.contents, &self.eviction, repo);
        if let Err(error) = adopted {
            tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot adopt a layout");
        }
    }
}
