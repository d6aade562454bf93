//! Manifests by digest: from disk, else from upstream, once.
//!
//! They fly in memory (bounded by [`MANIFEST_BYTES_MAX`]), are kept byte for byte with the media type they
//! came with, and must be manifests: an HTML page with status 200 is an outage, not an image.
//!
//! [`MANIFEST_BYTES_MAX`]: crate::oci::manifest::MANIFEST_BYTES_MAX

use std::sync::Arc;

use bytes::Bytes;
use tracing::{debug, warn};

use super::error::Error;
use super::tags::AtHand;
use super::{Cache, manifest_path, now};
use crate::context::{Client, RequestContext};
use crate::oci::{Algorithm, Digest, Document, Reference, Repo, manifest};
use crate::parsing;
use crate::shares::Owner;
use crate::store::{Grant, ManifestRecord, Proof, Store};
use crate::telemetry::metrics::{Kind, Source};
use crate::upstream::{Attempts, Fetched, Standing, Upstream};

/// Blobs that are looked for to tell whether an image is here whole: an index of 500 images of 100 layers has as many.
const BLOBS_LOOKED_FOR_MAX: usize = 50_000;

/// A manifest as it is served.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What it is.
    pub document: Arc<Document>,
    /// How it was come by.
    pub source: Source,
    /// What the client should be told in a `Warning` header.
    pub warning: Option<&'static str>,
    /// Of what was asked for by tag: for how many seconds upstream has not confirmed that, if it ever has.
    pub age: Option<u64>,
}

impl Cache {
    /// The manifest that `reference` names in `repo`, if it may be served as it is known and that is known without
    /// a wait for anything.
    pub fn manifest_at_hand(&self, repo: &Repo, reference: &Reference) -> Option<Manifest> {
        self.is_served(repo).then_some(())?;
        let AtHand { digest, age, warning } = match reference {
            Reference::Tag(tag) => self.tag_at_hand(repo, tag)?,
            Reference::Digest(digest) => AtHand { digest: *digest, age: None, warning: None },
        };
        let document = self.0.store.manifest_at_hand(repo, &digest)?;
        let source = if warning.is_some() { Source::Stale } else { Source::Hit };
        self.0.metrics.served(Kind::Manifest, source);
        Some(Manifest { document, source, warning, age })
    }

    /// The manifest that `reference` names in `repo`. `context`: where the request has come from.
    ///
    /// # Errors
    /// [`Error`]: what upstream said, or why it could not be asked.
    pub async fn manifest(
        &self,
        repo: &Repo,
        reference: &Reference,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        let manifest = match reference {
            Reference::Tag(tag) => self.tagged(repo, tag, context).await,
            Reference::Digest(digest) => self.manifest_by_digest(repo, digest, context).await,
        };
        match manifest {
            Ok(manifest) => {
                self.0.metrics.served(Kind::Manifest, manifest.source);
                Ok(manifest)
            }
            Err(error) => Err(self.explain(repo, reference, error).await),
        }
    }

    /// A manifest by digest, whatever upstream's state if it is stored.
    pub(super) async fn manifest_by_digest(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        if let Some(manifest) = self.stored_manifest(repo, digest).await? {
            return Ok(manifest);
        }
        self.not_absent(repo, &manifest_path(digest))?;
        let upstream = self.upstream(repo)?.into_owned();
        let context = upstream.settle(context, digest)?;
        let key = (repo.clone(), *digest, context.level());
        let (cache, repository, digest, way) = (self.clone(), repo.clone(), *digest, context.clone());
        let work = |progress| async move {
            let (repo, context) = (repository, way.with_progress(progress));
            // It may have been stored while this request was on its way here.
            if let Some(manifest) = cache.stored_manifest(&repo, &digest).await? {
                return Ok(manifest);
            }
            let reference = Reference::Digest(digest);
            let fetched =
                cache.fetch_manifest(&upstream, &context, &repo, &reference, Attempts::Rounds).await;
            fetched.map(|(manifest, _)| manifest)
        };
        let (manifest, joined) = self.0.manifests.run(key, work).await;
        let mut manifest = manifest
            .unwrap_or(Err(Error::GivenUp))
            .map_err(|error| self.remember(repo, &manifest_path(&digest), &context, error))?;
        if joined {
            manifest.source = Source::Join;
        }
        Ok(manifest)
    }

    /// A manifest that is on disk and that `repo` may have.
    pub(super) async fn stored_manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<Manifest>, Error> {
        let document = match self.0.store.manifest_at_hand(repo, digest) {
            Some(document) => Some(document),
            None => {
                let found = self.0.store.manifest_weighed(repo, digest).await?;
                if let Some((document, true)) = &found {
                    self.weigh_again(repo, document).await;
                }
                found.map(|(document, _)| document)
            }
        };
        Ok(document.map(|document| Manifest { document, source: Source::Hit, warning: None, age: None }))
    }

    /// Asks upstream for a manifest, checks that it is one, and stores it; also how fresh that is.
    pub(super) async fn fetch_manifest(
        &self,
        upstream: &Upstream,
        context: &RequestContext,
        repo: &Repo,
        reference: &Reference,
        attempts: Attempts,
    ) -> Result<(Manifest, Standing), Error> {
        let fetched = upstream.manifest(context, &repo.name, reference, attempts).await?;
        // Its place in memory is given up when it is stored.
        let Fetched { body, manifest, public, speaker, standing, place: _place, .. } = fetched;
        self.0.metrics.received(Kind::Manifest, upstream.registry().label(), body.len() as u64);
        let digest = match reference {
            // Upstream's part has compared it.
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::of(Algorithm::Sha256, &body),
        };
        let record = ManifestRecord {
            media_type: manifest.media_type.clone(),
            size: body.len() as u64,
            // A type that the content does not confirm is not passed on to other repositories: it may be a lie.
            public: public && manifest.is_type_confirmed,
            speaker,
            fetched_at: now(),
        };
        self.weigh(repo, &digest, &manifest).await;
        match keep(&self.0.store, repo, &digest, body.clone(), &record).await {
            Ok(()) => self.0.store.note_parts(&digest, &manifest).await,
            Err(error) => {
                warn!(repository = %repo, %digest, %error, "a manifest is served but could not be stored");
            }
        }
        self.prove_behind(repo, &manifest, context.client());
        self.bring_attestations(repo, &manifest, &body, context.client());
        let document = Arc::new(Document::new(digest, manifest.media_type, body));
        Ok((Manifest { document, source: Source::Miss, warning: None, age: None }, standing))
    }

    /// Asks upstream, behind the answer, for content of a new manifest that is here but not granted to its
    /// repository, so that the image can be pulled offline later.
    fn prove_behind(&self, repo: &Repo, manifest: &manifest::Manifest, client: Client) {
        let manifests = manifest.manifests.iter().map(|part| (Kind::Manifest, part));
        let parts = manifests.chain(manifest.blobs.iter().map(|part| (Kind::Blob, part)));
        let parts: Vec<_> = parts.filter_map(|(kind, part)| Some((kind, part.digest()?))).collect();
        let (cache, repo) = (self.clone(), repo.clone());
        tokio::spawn(async move {
            for (kind, digest) in parts {
                let owner = Owner::new(&repo.registry, client);
                let Ok(_permit) = cache.0.behind.acquire(owner, 1).await else {
                    debug!(repository = %repo, "content that is here is not proven to be this repository's too before it is asked for: too much else is being proven");
                    return;
                };
                if let Err(error) = cache.prove_part(&repo, kind, &digest).await {
                    debug!(repository = %repo, %digest, %error, "content that is here could not be proven to be this repository's too");
                }
            }
        });
    }

    async fn prove_part(&self, repo: &Repo, kind: Kind, digest: &Digest) -> Result<(), Error> {
        let (granted, Some(stored)) = self.0.store.find(repo, digest).await? else { return Ok(()) };
        match kind {
            Kind::Blob if granted => Ok(()),
            Kind::Blob => self.prove(repo, digest, stored.size, &RequestContext::default()).await.map(drop),
            // It costs, and can be proven when it is asked for.
            Kind::Manifest if self.upstream(repo)?.is_short() => Ok(()),
            // Registries do not show manifests as blobs. It is small, and brings its media type along.
            Kind::Manifest => {
                self.manifest_by_digest(repo, digest, &RequestContext::default()).await.map(drop)
            }
        }
    }

    /// Whether an image is here so far that a client can run it: a manifest with all its blobs, or an index
    /// of which some manifests are here, and those whole.
    pub(super) async fn is_complete(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let Some(parsed) = self.parsed(repo, digest).await? else { return Ok(false) };
        if parsed.manifests.is_empty() {
            return self.has_blobs(repo, &parsed).await;
        }
        let (mut present, mut blobs) = (0, 0);
        for child in parsed.manifests.iter().filter_map(manifest::Descriptor::digest) {
            // An index in an index is judged by being there: two levels are all that clients follow.
            if let Some(child) = self.parsed(repo, &child).await? {
                present += 1;
                blobs += child.blobs.len();
                if blobs > BLOBS_LOOKED_FOR_MAX || !self.has_blobs(repo, &child).await? {
                    return Ok(false);
                }
            }
        }
        Ok(present > 0)
    }

    pub(super) async fn parsed(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<manifest::Manifest>, Error> {
        // Its place first: it may be on disk only.
        let Some(blob) = self.0.store.blob(digest).await? else { return Ok(None) };
        let owner = Owner::new(&repo.registry, Client::Own);
        let bytes = usize::try_from(blob.size).unwrap_or(usize::MAX);
        let place = parsing::place(owner, bytes).await.map_err(|_| Error::Busy)?;
        let Some(stored) = self.stored_manifest(repo, digest).await? else { return Ok(None) };
        let (document, bytes) = (Arc::clone(&stored.document), stored.document.body.len());
        let parse = move || {
            let _place = place;
            manifest::Manifest::parse(Some(&document.media_type), &document.body).ok()
        };
        Ok(parsing::parse(bytes, parse).await)
    }

    /// Whether every blob is here, and `repo` may have it.
    async fn has_blobs(&self, repo: &Repo, manifest: &manifest::Manifest) -> Result<bool, Error> {
        for digest in manifest.blobs.iter().filter_map(manifest::Descriptor::digest) {
            if !self.0.store.granted(repo, &digest).await? || !self.is_here(&digest).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Stores a manifest: the grant, then the bytes, then the record that names them.
async fn keep(
    store: &Store,
    repo: &Repo,
    digest: &Digest,
    body: Bytes,
    record: &ManifestRecord,
) -> Result<(), Error> {
    let sent = Grant { public: record.public, proof: Some(Proof::Sent), speaker: record.speaker };
    store.grant(repo, digest, sent).await?;
    store.put(digest, body).await?;
    store.set_manifest(repo, digest, record).await?;
    Ok(())
}
