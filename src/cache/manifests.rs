//! Manifests by digest: from disk, else from upstream, once for all who want them.
//!
//! They are fetched into memory (bounded by [`MANIFEST_BYTES_MAX`]) and stored byte for byte with the media type they
//! came with. They must be manifests: an HTML page with status 200 is an outage, not an image.
//!
//! [`MANIFEST_BYTES_MAX`]: crate::oci::manifest::MANIFEST_BYTES_MAX

mod attestations;

use std::sync::Arc;

use bytes::Bytes;
use tracing::{debug, warn};

use self::attestations::Attestations;
use super::blobs::BlobFinder;
use super::claims::Claims;
use super::error::Error;
use super::fairness::BACKGROUND_CHECKS;
use super::negative_cache::{Lookup, NegativeCache};
use super::oversized::OversizedImages;
use super::upstreams::Upstreams;
use crate::clock::unix_seconds as now;
use crate::context::{Client, RequestContext};
use crate::oci::{Algorithm, Digest, Document, Reference, Repo, manifest};
use crate::parsing;
use crate::shares::{Owner, Shares};
use crate::singleflight::SingleFlight;
use crate::store::{Grant, ManifestRecord, Proof, Store};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Kind, Source};
use crate::upstream::{Attempts, Fetched, Freshness, Upstream};

/// Blobs that are looked up to tell whether an image is complete: an index of 500 images of 100 layers has as many.
const BLOBS_LOOKED_FOR_MAX: usize = 50_000;

/// A manifest as it is served.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The manifest with its headers.
    pub document: Arc<Document>,
    /// Where it comes from.
    pub source: Source,
    /// The text of a `Warning` header for the client.
    pub warning: Option<&'static str>,
    /// For a manifest by tag: seconds since upstream last confirmed the tag, if it ever has.
    pub age: Option<u64>,
}

/// Finds manifests by digest under one configuration.
pub(super) struct ManifestFinder {
    store: Store,
    metrics: Arc<Metrics>,
    upstreams: Arc<Upstreams>,
    negative: Arc<NegativeCache>,
    claims: Arc<Claims>,
    oversized: Arc<OversizedImages>,
    attestations: Attestations,
    work: Arc<ManifestWork>,
}

/// The work on manifests that all configurations share.
struct ManifestWork {
    /// A fetch is shared only by requests with the same hop count: see [`RequestContext`].
    fetches: SingleFlight<(Repo, Digest, usize), Result<Manifest, Error>>,
    /// The limit on work in the background.
    behind: Shares,
}

impl ManifestFinder {
    pub(super) fn new(
        store: &Store,
        metrics: &Arc<Metrics>,
        upstreams: &Arc<Upstreams>,
        negative: &Arc<NegativeCache>,
        claims: &Arc<Claims>,
        oversized: &Arc<OversizedImages>,
        blobs: &Arc<BlobFinder>,
    ) -> Self {
        let behind = Shares::new(BACKGROUND_CHECKS);
        Self {
            store: store.clone(),
            metrics: Arc::clone(metrics),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            attestations: Attestations::new(blobs, &behind),
            work: Arc::new(ManifestWork { fetches: SingleFlight::default(), behind }),
        }
    }

    /// The same state under another configuration.
    pub(super) fn with(
        &self,
        upstreams: &Arc<Upstreams>,
        claims: &Arc<Claims>,
        oversized: &Arc<OversizedImages>,
        blobs: &Arc<BlobFinder>,
    ) -> Self {
        Self {
            store: self.store.clone(),
            metrics: Arc::clone(&self.metrics),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(&self.negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            attestations: Attestations::new(blobs, &self.work.behind),
            work: Arc::clone(&self.work),
        }
    }

    /// Detaches what the upstreams of these repositories are being asked: later requests ask anew.
    pub(super) fn detach(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.work.fetches.detach(|(repo, ..)| is_meant(repo));
    }

    /// A manifest by digest. If it is stored, the state of upstream does not matter.
    pub(super) async fn by_digest(
        self: &Arc<Self>,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        if let Some(manifest) = self.stored(repo, digest).await? {
            return Ok(manifest);
        }
        self.negative.check(repo, Lookup::Manifest(*digest))?;
        let upstream = self.upstreams.of(repo)?.into_owned();
        let context = upstream.settle(context, digest)?;
        let key = (repo.clone(), *digest, context.level());
        let (finder, repository, digest, way) = (Arc::clone(self), repo.clone(), *digest, context.clone());
        let work = |progress| async move {
            let (repo, context) = (repository, way.with_progress(progress));
            // It may have been stored while this request was on its way here.
            if let Some(manifest) = finder.stored(&repo, &digest).await? {
                return Ok(manifest);
            }
            let reference = Reference::Digest(digest);
            let fetched = finder.fetch(&upstream, &context, &repo, &reference, Attempts::Rounds).await;
            fetched.map(|(manifest, _)| manifest)
        };
        let (manifest, joined) = self.work.fetches.run(key, work).await;
        let mut manifest = manifest.unwrap_or(Err(Error::GivenUp)).map_err(|error| {
            self.negative.note(&self.upstreams, repo, Lookup::Manifest(digest), &context, error)
        })?;
        if joined {
            manifest.source = Source::Collapsed;
        }
        Ok(manifest)
    }

    /// A manifest that is stored and that `repo` may have.
    pub(super) async fn stored(&self, repo: &Repo, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let document = match self.store.manifest_at_hand(repo, digest) {
            Some(document) => Some(document),
            None => {
                let found = self.store.manifest_weighed(repo, digest).await?;
                if let Some((document, true)) = &found {
                    self.oversized.weigh_again(repo, document).await;
                }
                found.map(|(document, _)| document)
            }
        };
        Ok(document.map(|document| Manifest { document, source: Source::Hit, warning: None, age: None }))
    }

    /// Asks upstream for a manifest, checks that it is one, and stores it; also returns how fresh it is.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        upstream: &Upstream,
        context: &RequestContext,
        repo: &Repo,
        reference: &Reference,
        attempts: Attempts,
    ) -> Result<(Manifest, Freshness), Error> {
        let fetched = upstream.manifest(context, &repo.name, reference, attempts).await?;
        // Its place in memory is given up when it is stored.
        let Fetched { body, manifest, public, speaker, standing, place: _place, .. } = fetched;
        self.metrics.received(Kind::Manifest, upstream.registry().label(), body.len() as u64);
        let digest = match reference {
            // The upstream room has compared the digest.
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::of(Algorithm::Sha256, &body),
        };
        let record = ManifestRecord {
            media_type: manifest.media_type.clone(),
            size: body.len() as u64,
            // A media type that the content does not confirm is not passed on to other repositories: it may be a lie.
            public: public && manifest.is_type_confirmed,
            speaker,
            fetched_at: now(),
        };
        self.oversized.weigh(repo, &digest, &manifest).await;
        match keep(&self.store, repo, &digest, body.clone(), &record).await {
            Ok(()) => self.store.note_parts(&digest, &manifest).await,
            Err(error) => {
                warn!(repository = %repo, %digest, %error, "a manifest is served but could not be stored");
            }
        }
        self.authorize_parts_in_background(repo, &manifest, context.client());
        self.attestations.bring(repo, &manifest, &body, context.client());
        let document = Arc::new(Document::new(digest, manifest.media_type, body));
        Ok((Manifest { document, source: Source::Miss, warning: None, age: None }, standing))
    }

    /// Asks upstream in the background for content of a new manifest that is stored but not granted to this repository,
    /// so that the image can be pulled offline later.
    fn authorize_parts_in_background(
        self: &Arc<Self>,
        repo: &Repo,
        manifest: &manifest::Manifest,
        client: Client,
    ) {
        let manifests = manifest.manifests.iter().map(|part| (Kind::Manifest, part));
        let parts = manifests.chain(manifest.blobs.iter().map(|part| (Kind::Blob, part)));
        let parts: Vec<_> = parts.filter_map(|(kind, part)| Some((kind, part.digest()?))).collect();
        let (finder, repo) = (Arc::clone(self), repo.clone());
        tokio::spawn(async move {
            for (kind, digest) in parts {
                let owner = Owner::new(&repo.registry, client);
                let Ok(_permit) = finder.work.behind.acquire(owner, 1).await else {
                    debug!(repository = %repo, "stored content is not authorized for this repository before it is asked for: too many such checks are under way");
                    return;
                };
                if let Err(error) = finder.authorize_part(&repo, kind, &digest).await {
                    debug!(repository = %repo, %digest, %error, "stored content could not be authorized for this repository");
                }
            }
        });
    }

    async fn authorize_part(self: &Arc<Self>, repo: &Repo, kind: Kind, digest: &Digest) -> Result<(), Error> {
        let (granted, Some(stored)) = self.store.find(repo, digest).await? else { return Ok(()) };
        match kind {
            Kind::Blob if granted => Ok(()),
            Kind::Blob => self
                .claims
                .authorize_by_head(repo, digest, stored.size, &RequestContext::default())
                .await
                .map(drop),
            // A fetch costs one of few that are left. The manifest can be authorized when it is asked for.
            Kind::Manifest if self.upstreams.of(repo)?.is_short() => Ok(()),
            // Registries do not show manifests as blobs. A manifest is small, and brings its media type along.
            Kind::Manifest => self.by_digest(repo, digest, &RequestContext::default()).await.map(drop),
        }
    }

    /// Whether enough of an image is stored for a client to run it: a manifest with all its blobs, or an index of which
    /// some manifests are stored, each with all its blobs.
    pub(super) async fn is_complete(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let Some(parsed) = self.parsed(repo, digest).await? else { return Ok(false) };
        if parsed.manifests.is_empty() {
            return self.has_blobs(repo, &parsed).await;
        }
        let (mut present, mut blobs) = (0, 0);
        for child in parsed.manifests.iter().filter_map(manifest::Descriptor::digest) {
            // Of an index in an index only the presence counts: clients follow two levels.
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
        // First the place in memory: the manifest may be on disk only.
        let Some(blob) = self.store.blob(digest).await? else { return Ok(None) };
        let owner = Owner::new(&repo.registry, Client::Own);
        let bytes = usize::try_from(blob.size).unwrap_or(usize::MAX);
        let place = parsing::place(owner, bytes).await.map_err(|_| Error::Busy)?;
        let Some(stored) = self.stored(repo, digest).await? else { return Ok(None) };
        let (document, bytes) = (Arc::clone(&stored.document), stored.document.body.len());
        let parse = move || {
            let _place = place;
            manifest::Manifest::parse(Some(&document.media_type), &document.body).ok()
        };
        Ok(parsing::parse(bytes, parse).await)
    }

    /// Whether every blob is stored, and `repo` may have it.
    async fn has_blobs(&self, repo: &Repo, manifest: &manifest::Manifest) -> Result<bool, Error> {
        for digest in manifest.blobs.iter().filter_map(manifest::Descriptor::digest) {
            if !self.store.granted(repo, &digest).await? || self.store.blob(&digest).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Stores a manifest: the grant first, then the bytes, then the record that names them.
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
