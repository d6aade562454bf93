//! What requests ask of the store: blobs, manifests, tags, lists, and who may be served what.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::oci::{Digest, Document, Manifest, Registry, Repo, Speaker, Tag};
use crate::store::Store;
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::partials::{PartialKey, Resumable};
use crate::store::blobs::piece_map::Next;
use crate::store::error::Error;
use crate::store::integrity::recheck::PendingVerification;
use crate::store::metadata::records::{Grant, ManifestRecord, ReferrersRecord, TagRecord};
use crate::store::partial::Partial;

/// How long a request waits for the adoption of what another tool has just written. The adoption then goes on without
/// it.
const ADOPTION_WAIT: Duration = Duration::from_secs(5);

impl Store {
    /// Opens a stored blob.
    ///
    /// # Errors
    /// If the disk fails. A blob that is not there is `None`.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        let digest = *digest;
        self.ask(move |inner| inner.contents.blob(&digest)).await
    }

    /// Returns whether a repository may be served a digest, as [`Store::granted`] does, and opens the stored blob.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn find(&self, repo: &Repo, digest: &Digest) -> Result<(bool, Option<BlobFile>), Error> {
        let (repo, digest) = (repo.clone(), *digest);
        // In this order: a grant is noted with an open file.
        self.ask(move |inner| {
            let blob = inner.contents.blob(&digest)?;
            Ok((inner.metadata.granted(&repo, &digest)?, blob))
        })
        .await
    }

    /// Returns a stored blob that `repo` may be served, if that is known without asking disk or index. Never blocks.
    pub fn blob_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<BlobFile> {
        self.0.open_files.blob(repo, digest)
    }

    /// Returns a stored manifest that `repo` may be served, if that is known without asking disk or index. Never
    /// blocks.
    pub fn manifest_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<Arc<Document>> {
        self.0.open_files.manifest(repo, digest)
    }

    /// Returns the record of a tag, if that is known without asking disk or index. Never blocks.
    pub fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.0.metadata.index().tag_at_hand(repo, tag)
    }

    /// Stores small content, such as a manifest, unless it is stored already.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if it is something else; [`Error::Full`] or [`Error::Io`].
    pub async fn put(&self, digest: &Digest, content: Bytes) -> Result<(), Error> {
        let digest = *digest;
        self.ask(move |inner| inner.eviction.put(&digest, &content)).await
    }

    /// Opens or begins the partial file of a blob for the transfer `next`. `total` is its size in bytes, if upstream
    /// has told it; all of it will come if `is_whole`. A file of another total, or not for that transfer, is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::InUse`] while somebody else has it; [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::Full`] if there
    /// can be no room for it; [`Error::Io`].
    pub async fn partial(
        &self,
        key: &PartialKey,
        total: Option<u64>,
        next: Next<'_>,
        is_whole: bool,
    ) -> Result<Partial, Error> {
        let (key, repo) = (key.clone(), next.repo.clone());
        let Next { is_granted, is_public, is_by_parents, speaker, .. } = next;
        self.ask(move |inner| {
            let next = Next { repo: &repo, is_granted, is_public, is_by_parents, speaker };
            Partial::open(Arc::clone(&inner.eviction), &key, total, &next, is_whole)
        })
        .await
    }

    /// Returns the bytes of a blob whose download has stopped or is running; `None` if there are none that can be
    /// used.
    pub async fn left(&self, key: &PartialKey) -> Option<Resumable> {
        let key = key.clone();
        self.ask(move |inner| inner.eviction.partials().left(&key)).await
    }

    /// Returns the record of a tag. An unknown one may have been written by another tool just now, and is then
    /// adopted.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn tag(&self, repo: &Repo, tag: &Tag) -> Result<Option<TagRecord>, Error> {
        let (of, name) = (repo.clone(), tag.clone());
        let found = self.ask(move |inner| inner.metadata.tag(&of, &name)).await?;
        if found.is_some() || !self.adopt(repo).await {
            return Ok(found);
        }
        let (of, name) = (repo.clone(), tag.clone());
        self.ask(move |inner| inner.metadata.tag(&of, &name)).await
    }

    /// Writes the record of a tag durably.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn set_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> Result<(), Error> {
        let (repo, tag, record) = (repo.clone(), tag.clone(), record.clone());
        self.ask(move |inner| {
            inner.metadata.set_tag(&repo, &tag, &record)?;
            inner.eviction.note_ref();
            Ok(())
        })
        .await
    }

    /// Notes that upstream confirmed a tag at `at`, in seconds since 1970. This is in the index only, and so may be
    /// lost.
    pub async fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.ask(move |inner| inner.metadata.index().checked(&repo, &tag, at)).await;
    }

    /// Returns a page of at most `n` tags after `after`, in byte order.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn tags(&self, repo: &Repo, after: Option<&str>, n: usize) -> Result<Vec<Tag>, Error> {
        self.adopt(repo).await;
        let (repo, after) = (repo.clone(), after.map(str::to_owned));
        self.ask(move |inner| inner.metadata.tags(&repo, after.as_deref(), n)).await
    }

    /// Returns a stored manifest that a repository may be served: its own, or one that is public.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn manifest(&self, repo: &Repo, digest: &Digest) -> Result<Option<Arc<Document>>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.contents.manifest(&repo, &digest)).await
    }

    /// Returns the same as [`Store::manifest`], and whether its image claims to be larger than all that may be kept.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn manifest_weighed(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<(Arc<Document>, bool)>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| {
            let Some(document) = inner.contents.manifest(&repo, &digest)? else { return Ok(None) };
            let claimed = inner.metadata.index().claimed(&digest);
            Ok(Some((document, claimed.is_some_and(|claimed| claimed > inner.eviction.max_bytes()))))
        })
        .await
    }

    /// Writes the record of a manifest durably, which grants it to the repository.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn set_manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), Error> {
        let (repo, digest, record) = (repo.clone(), *digest, record.clone());
        self.ask(move |inner| {
            if inner.metadata.set_manifest(&repo, &digest, &record)? {
                inner.eviction.note_ref();
            }
            Ok(())
        })
        .await
    }

    /// Notes what a stored manifest refers to.
    pub async fn note_parts(&self, digest: &Digest, manifest: &Manifest) {
        let (digest, manifest) = (*digest, manifest.clone());
        self.ask(move |inner| inner.metadata.note_parts(&digest, Some(&manifest))).await;
    }

    /// Returns upstream's list of what refers to a manifest, as it was last fetched.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn referrers(&self, repo: &Repo, digest: &Digest) -> Result<Option<ReferrersRecord>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.referrers(&repo, &digest)).await
    }

    /// Returns the size in bytes of the file of a list of referrers; zero if there is none.
    pub async fn referrers_bytes(&self, repo: &Repo, digest: &Digest) -> u64 {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.referrers_bytes(&repo, &digest)).await
    }

    /// Keeps upstream's list of what refers to a manifest.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`], the latter also for a body that is not UTF-8 and so no JSON.
    pub async fn set_referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ReferrersRecord,
    ) -> Result<(), Error> {
        let (repo, digest, record) = (repo.clone(), *digest, record.clone());
        self.ask(move |inner| {
            if inner.metadata.set_referrers(&repo, &digest, &record, inner.eviction.refs_max())? {
                inner.eviction.note_ref();
            }
            Ok(())
        })
        .await
    }

    /// Whether anything of a repository is stored.
    ///
    /// # Errors
    /// None today: a folder that cannot be looked at counts as absent.
    pub async fn knows(&self, repo: &Repo) -> Result<bool, Error> {
        let repo = repo.clone();
        self.ask(move |inner| Ok(inner.metadata.knows(&repo))).await
    }

    /// Returns a page of at most `n` repositories after `after`, in byte order of `registry/name`: those with
    /// anything public, or all.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn repositories(
        &self,
        after: Option<&Repo>,
        n: usize,
        private_too: bool,
    ) -> Result<Vec<Repo>, Error> {
        let after = after.cloned();
        self.ask(move |inner| inner.metadata.repositories(after.as_ref(), n, private_too)).await
    }

    /// Whether a repository may be served a digest, because it is granted to it or public.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn granted(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.granted(&repo, &digest)).await
    }

    /// Whether a repository was granted a digest for itself alone, and no repository has it publicly.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn is_private(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.is_private(&repo, &digest)).await
    }

    /// Grants a digest to a repository, and if the grant is public, to every other. What is public stays so. The
    /// grant is durable when this returns; it is cheap if it was granted already.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn grant(&self, repo: &Repo, digest: &Digest, grant: Grant) -> Result<(), Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| {
            if inner.metadata.grant(&repo, &digest, grant)? {
                inner.eviction.note_ref();
            }
            Ok(())
        })
        .await
    }

    /// Whether a claim of `speaker` for one of `registries`, the names of one registry, proves that a repository may
    /// be served the stored content: see the module `grants`. False also if that is not known.
    pub async fn is_vouched(&self, registries: &[Registry], digest: &Digest, speaker: Speaker) -> bool {
        let (registries, digest) = (registries.to_vec(), *digest);
        self.ask(move |inner| inner.metadata.is_vouched(&registries, &digest, speaker)).await
    }

    /// Whether a stored blob is being read, or was within the last seconds.
    pub fn was_read_lately(&self, digest: &Digest) -> bool {
        self.0.open_files.was_read_lately(digest)
    }

    /// Notes that a client begins to read a stored blob. `whole` is the client if it reads all of it. Returns the
    /// verification that must end before the client gets the end of the body.
    pub fn begin_reading(
        &self,
        digest: &Digest,
        file: &BlobFile,
        whole: Option<impl Hash>,
    ) -> Option<PendingVerification> {
        self.0.rechecks.begin_reading(digest, file, whole)
    }

    /// Verifies, in the background, a stored blob that a reader could not read.
    pub fn suspect(&self, digest: &Digest) {
        self.0.verify.suspect(digest);
    }

    /// Adopts what another tool has put into a repository's layout, if it has. Returns whether to look again.
    async fn adopt(&self, repo: &Repo) -> bool {
        let of = repo.clone();
        if !self.ask(move |inner| inner.layouts.is_adoptable(&of)).await {
            return false;
        }
        let repo = repo.clone();
        let adoption = async {
            let turn = self.0.layouts.adoption_turn().await;
            self.ask(move |inner| inner.layouts.adopt_in_turn(&repo, &turn)).await;
        };
        // Too long for a request: it is answered from what is known so far.
        let _ = tokio::time::timeout(ADOPTION_WAIT, adoption).await;
        true
    }
}
