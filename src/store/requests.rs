//! What requests ask of the store: blobs, manifests, tags, lists, and who may be served what.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::oci::{Digest, Document, Manifest, Registry, Repo, Speaker, Tag};
use crate::store::Store;
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::partials::{Left, PartialKey};
use crate::store::blobs::piece_map::Next;
use crate::store::error::Error;
use crate::store::integrity::recheck::Pending;
use crate::store::metadata::records::{Grant, ManifestRecord, ReferrersRecord, TagRecord};
use crate::store::partial::Partial;

/// How long a request waits for the adoption of what another tool has just written; the adoption goes on.
const ADOPTION_WAIT: Duration = Duration::from_secs(5);

impl Store {
    /// A stored blob, opened.
    ///
    /// # Errors
    /// If the disk fails. A blob that is not there is `None`.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        let digest = *digest;
        self.ask(move |inner| inner.contents.blob(&digest)).await
    }

    /// Whether a repository may be served a digest, as [`Store::granted`] says, and the stored blob, opened.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn find(&self, repo: &Repo, digest: &Digest) -> Result<(bool, Option<BlobFile>), Error> {
        let (repo, digest) = (repo.clone(), *digest);
        // In this order: what is granted is noted with what is at hand.
        self.ask(move |inner| {
            let blob = inner.contents.blob(&digest)?;
            Ok((inner.metadata.granted(&repo, &digest)?, blob))
        })
        .await
    }

    /// A stored blob that `repo` may be served, if that is known without a look at disk or index. Never blocks.
    pub fn blob_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<BlobFile> {
        self.0.open_files.blob(repo, digest)
    }

    /// A stored manifest that `repo` may be served, if that is known without a look at disk or index. Never blocks.
    pub fn manifest_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<Arc<Document>> {
        self.0.open_files.manifest(repo, digest)
    }

    /// What a tag means here, if that is known without a look at disk or index. Never blocks.
    pub fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.0.metadata.index().tag_at_hand(repo, tag)
    }

    /// Stores small content, such as a manifest. Content that is there already is left alone.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if it is something else; [`Error::Full`] or [`Error::Io`].
    pub async fn put(&self, digest: &Digest, content: Bytes) -> Result<(), Error> {
        let digest = *digest;
        self.ask(move |inner| inner.eviction.put(&digest, &content)).await
    }

    /// Opens the partial file of a blob of `total` bytes, if upstream says how many, or begins one, for the transfer that is `next`; with room for
    /// everything if `is_whole`. What is there of another total, or not for that transfer, is dropped.
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

    /// What is there of a blob whose download has stopped, or is under way; nothing if that is not sound.
    pub async fn left(&self, key: &PartialKey) -> Option<Left> {
        let key = key.clone();
        self.ask(move |inner| inner.eviction.partials().left(&key)).await
    }

    /// What a tag means here. One that is not known may have been written by another tool just now.
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

    /// Makes a tag mean something else, durably.
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

    /// Notes that upstream confirmed a tag. Only the index knows, so it may be forgotten.
    pub async fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.ask(move |inner| inner.metadata.index().checked(&repo, &tag, at)).await;
    }

    /// A page of at most `n` tags after `after`, in byte order.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn tags(&self, repo: &Repo, after: Option<&str>, n: usize) -> Result<Vec<Tag>, Error> {
        self.adopt(repo).await;
        let (repo, after) = (repo.clone(), after.map(str::to_owned));
        self.ask(move |inner| inner.metadata.tags(&repo, after.as_deref(), n)).await
    }

    /// A stored manifest that a repository may be served: known here, or publicly elsewhere.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn manifest(&self, repo: &Repo, digest: &Digest) -> Result<Option<Arc<Document>>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.contents.manifest(&repo, &digest)).await
    }

    /// The same, and whether its image claims to be larger than all that may be kept.
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

    /// Notes what a manifest is, durably, and grants it to the repository.
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

    /// Upstream's list of what refers to a manifest, as it was last seen.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn referrers(&self, repo: &Repo, digest: &Digest) -> Result<Option<ReferrersRecord>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.referrers(&repo, &digest)).await
    }

    /// How large the file is that has the list; none has no bytes.
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

    /// Whether there is anything at all of a repository.
    ///
    /// # Errors
    /// None today: a folder that cannot be looked at counts as absent.
    pub async fn knows(&self, repo: &Repo) -> Result<bool, Error> {
        let repo = repo.clone();
        self.ask(move |inner| Ok(inner.metadata.knows(&repo))).await
    }

    /// A page of at most `n` repositories after `after`, in byte order of `registry/name`: those with anything
    /// public, or all.
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

    /// Whether a repository may be served a digest: granted to it, or public.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn granted(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.granted(&repo, &digest)).await
    }

    /// Whether a repository was granted a digest for itself alone, and nobody has it publicly.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn is_private(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |inner| inner.metadata.is_private(&repo, &digest)).await
    }

    /// Lets a repository be served a digest, and if that is public, every other too. Public once, it stays so.
    /// Durable when this returns; cheap if it was granted already.
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

    /// Whether it proves a repository's right to what is stored if `speaker` says that it is there, for one of
    /// `registries`, which are one: see the module `grants`. False also where that is not known.
    pub async fn is_vouched(&self, registries: &[Registry], digest: &Digest, speaker: Speaker) -> bool {
        let (registries, digest) = (registries.to_vec(), *digest);
        self.ask(move |inner| inner.metadata.is_vouched(&registries, &digest, speaker)).await
    }

    /// Whether somebody reads a stored blob, or did within the last seconds.
    pub fn was_read_lately(&self, digest: &Digest) -> bool {
        self.0.open_files.was_read_lately(digest)
    }

    /// A client begins to read a stored blob; `whole` says which client, if it reads all of it. Returns the
    /// verification that it should wait for before it has the end.
    pub fn begin_reading(
        &self,
        digest: &Digest,
        file: &BlobFile,
        whole: Option<impl Hash>,
    ) -> Option<Pending> {
        self.0.rechecks.begin_reading(digest, file, whole)
    }

    /// A reader could not read a stored blob: it is looked at, in the background.
    pub fn suspect(&self, digest: &Digest) {
        self.0.verify.suspect(digest);
    }

    /// Adopts what another tool has put into a repository's layout, if anything looks like it. Returns whether
    /// it is worth to look again.
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
