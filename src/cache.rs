//! The heart: mirrored repositories. Hit, join, download, revalidate, serve stale.
//!
//! [`Cache`] is the face; it answers for content of a repository. Beneath it, each part has a room and its own state:
//!
//! - `download` brings a blob from upstream to disk, once for all who want it; `passthrough` brings one to a single
//!   client, unstored.
//! - `blobs` serves blobs: stored, by joining a download, or by leading one. `claims` finds out what a repository
//!   may have of what is stored, and `oversized` what is too large to be stored.
//! - `manifests` does the same for manifests; `tags` says which manifest a tag means, by [`freshness`]; `lists`
//!   has tags, referrers and repositories.
//! - `negative_cache` and `mismatches` remember what failed; `offline_report` says what a site without upstreams
//!   is missing.
//!
//! Who may be served a digest: content that came without a credential may be had by any repository. **What a registry
//! merely claims changes nothing for anybody but its own repositories, until the digest is verified by bytes that this
//! registry sent.** So other content may be had by a repository for which its registry has sent it, or for which the
//! registry, once it has sent it to another of its repositories, answers a HEAD with the right size. That is kept as a
//! grant. A manifest that merely names a digest grants nothing.
//!
//! Every download and every check is a task of its own: requests wait for it, and may leave.
//!
//! A [`Cache`] is of one configuration: its upstreams, and its rules. [`Cache::with`] gives one of another
//! configuration, over the same content and the same work under way, and a request that has the old one goes on with
//! it.
//!
//! This room uses the store, the upstreams and lower floors; the http room uses its face.

mod blobs;
mod claims;
mod config;
mod download;
mod error;
mod fairness;
mod lists;
mod manifests;
mod mismatches;
mod negative_cache;
mod offline_report;
mod oversized;
mod passthrough;
mod tags;
mod upstreams;

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::context::RequestContext;
use crate::oci::{Digest, Ranges, Reference, Registry, Repo, Tag};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Kind, Source};
use crate::upstream::{PageQuery, Upstream};

pub use blobs::BlobSize;
pub use blobs::blob::{Blob, BlobReading, Way};
pub use blobs::chunk::Room;
pub use config::{Complete, Config};
pub use error::{Error, Missing};
pub use lists::{Page, Referrers, Tags};
pub use manifests::Manifest;
pub use tags::freshness::{self, OnRemoved, Rule, Rules};
pub use tags::refresh::{RefreshOutcome, Refreshed};

use blobs::BlobFinder;
use claims::Claims;
use download::downloader::Downloader;
use lists::ListFinder;
use manifests::ManifestFinder;
use mismatches::Mismatches;
use negative_cache::NegativeCache;
use offline_report::OfflineReports;
use oversized::OversizedImages;
use passthrough::Passthroughs;
use tags::checks::TagChecks;
use tags::refresh::Refresher;
use tags::resolver::{CachedTag, TagResolver};
use upstreams::Upstreams;

/// Entries of each memory of failures: refusals, troubled repositories, contents with a wrong digest, failed checks of
/// tags. The oldest entries are forgotten first.
const MEMORIES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Content by repository, from disk or from upstream.
#[derive(Clone)]
pub struct Cache(Arc<Parts>);

/// The parts of a cache under one configuration. Each holds what it shares with other configurations.
struct Parts {
    store: Store,
    metrics: Arc<Metrics>,
    upstreams: Arc<Upstreams>,
    negative: Arc<NegativeCache>,
    mismatches: Arc<Mismatches>,
    claims: Arc<Claims>,
    oversized: Arc<OversizedImages>,
    blobs: Arc<BlobFinder>,
    manifests: Arc<ManifestFinder>,
    checks: Arc<TagChecks>,
    tags: TagResolver,
    refresher: Refresher,
    lists: ListFinder,
    offline: OfflineReports,
}

impl Cache {
    /// A cache of the content of `upstreams`, kept in `store`.
    pub fn new(
        store: Store,
        upstreams: Vec<Arc<Upstream>>,
        rules: Rules,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (upstreams, rules) = (&Arc::new(Upstreams::new(upstreams)), &Arc::new(rules));
        let negative = &Arc::new(NegativeCache::new(MEMORIES_MAX));
        let mismatches = Arc::new(Mismatches::new(MEMORIES_MAX));
        let claims = &Arc::new(Claims::new(&store, &metrics, upstreams, negative));
        let oversized = &Arc::new(OversizedImages::new(&store, &metrics, upstreams));
        let downloader = Downloader::new(&store, &metrics, &mismatches, config.complete);
        let passthroughs = Passthroughs::new(&metrics, &mismatches);
        let blobs = BlobFinder::new(&store, upstreams, negative, claims, oversized, downloader, passthroughs);
        let blobs = &Arc::new(blobs);
        let manifests = ManifestFinder::new(&store, &metrics, upstreams, negative, claims, oversized, blobs);
        let manifests = &Arc::new(manifests);
        let checks = TagChecks::new(&store, upstreams, rules, negative, manifests, MEMORIES_MAX);
        let checks = &Arc::new(checks);
        Self(Arc::new(Parts {
            tags: TagResolver::new(&store, upstreams, rules, negative, manifests, checks),
            refresher: Refresher::new(&store, upstreams, negative, checks),
            lists: ListFinder::new(&store, upstreams, rules, manifests),
            offline: OfflineReports::new(&store, manifests),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            blobs: Arc::clone(blobs),
            manifests: Arc::clone(manifests),
            checks: Arc::clone(checks),
            store,
            metrics,
            mismatches,
        }))
    }

    /// The same content under another configuration. A request that has this cache goes on with it.
    pub fn with(&self, upstreams: Vec<Arc<Upstream>>, rules: Rules, config: &Config) -> Self {
        let (upstreams, rules) = (&Arc::new(Upstreams::new(upstreams)), &Arc::new(rules));
        let Parts { store, negative, .. } = &*self.0;
        let claims = &Arc::new(self.0.claims.with(upstreams));
        let oversized = &Arc::new(self.0.oversized.with(upstreams));
        let blobs = &Arc::new(self.0.blobs.with(upstreams, claims, oversized, config.complete));
        let manifests = &Arc::new(self.0.manifests.with(upstreams, claims, oversized, blobs));
        let checks = &Arc::new(self.0.checks.with(upstreams, rules, manifests));
        Self(Arc::new(Parts {
            tags: TagResolver::new(store, upstreams, rules, negative, manifests, checks),
            refresher: Refresher::new(store, upstreams, negative, checks),
            lists: self.0.lists.with(upstreams, rules, manifests),
            offline: OfflineReports::new(store, manifests),
            store: store.clone(),
            metrics: Arc::clone(&self.0.metrics),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            mismatches: Arc::clone(&self.0.mismatches),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            blobs: Arc::clone(blobs),
            manifests: Arc::clone(manifests),
            checks: Arc::clone(checks),
        }))
    }

    /// Forgets what the upstream of a registry has refused or failed to say, and detaches what it is being asked:
    /// another upstream has taken its place.
    pub fn forget(&self, registry: &Registry) {
        let is_all = *registry == Registry::all_unlisted();
        let is_of_registry = |of: &Registry| of == registry || is_all && of.is_unlisted();
        let is_of = |repo: &Repo| is_of_registry(&repo.registry);
        self.0.negative.forget(is_of);
        let one_with = self.0.upstreams.one_with(registry);
        self.0.mismatches.forget_all(|of| one_with.first() == Some(of) || is_of_registry(of));
        self.0.checks.forget(is_of);
        self.0.manifests.detach(is_of);
        self.0.claims.detach(is_of);
        self.0.lists.detach(is_of);
    }

    /// Every upstream.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.0.upstreams.all()
    }

    /// A blob of `repo`, if it is stored and that is known without a wait for anything.
    pub fn blob_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<Blob> {
        self.0.upstreams.serve(repo).then_some(())?;
        let stored = self.0.store.blob_at_hand(repo, digest)?;
        self.0.metrics.served(Kind::Blob, Source::Hit);
        Some(Blob::stored(stored, digest, &self.0.store))
    }

    /// A blob of `repo`: from disk, else along with a download that is under way, else by a new one. Of a blob that is
    /// not stored only the ranges that are `asked` for need come, if they have ends of their own; they must be read in
    /// this order. `context` says where the request has come from.
    ///
    /// # Errors
    /// [`Error`]: what upstream said, or why it could not be asked.
    pub async fn blob(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: Option<&Ranges>,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        match self.0.blobs.blob(repo, digest, asked, context).await {
            Ok(blob) => {
                self.0.metrics.served(Kind::Blob, blob.source);
                Ok(blob)
            }
            Err(error) => Err(self.0.offline.describe(repo, &Reference::Digest(*digest), error).await),
        }
    }

    /// The size of a blob of `repo`, for a HEAD, and who says so. Upstream is asked for no byte of the content.
    ///
    /// # Errors
    /// [`Error`], as for [`Cache::blob`].
    pub async fn blob_size(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(BlobSize, Source), Error> {
        match self.0.blobs.size(repo, digest, context).await {
            Ok(found) => Ok(found),
            Err(error) => Err(self.0.offline.describe(repo, &Reference::Digest(*digest), error).await),
        }
    }

    /// Whether a blob is being brought or read, or was read a moment ago: a client that reads it in parts has yet to
    /// ask for the next.
    pub fn is_going_on(&self, repo: &Repo, digest: &Digest) -> bool {
        self.0.blobs.is_going_on(repo, digest)
    }

    /// The manifest that `reference` names in `repo`, if it may be served as it is known and that is known without
    /// a wait for anything.
    pub fn manifest_at_hand(&self, repo: &Repo, reference: &Reference) -> Option<Manifest> {
        self.0.upstreams.serve(repo).then_some(())?;
        let CachedTag { digest, age, warning } = match reference {
            Reference::Tag(tag) => self.0.tags.at_hand(repo, tag)?,
            Reference::Digest(digest) => CachedTag { digest: *digest, age: None, warning: None },
        };
        let document = self.0.store.manifest_at_hand(repo, &digest)?;
        let source = if warning.is_some() { Source::Stale } else { Source::Hit };
        self.0.metrics.served(Kind::Manifest, source);
        Some(Manifest { document, source, warning, age })
    }

    /// The manifest that `reference` names in `repo`. `context` says where the request has come from.
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
            Reference::Tag(tag) => self.0.tags.resolve(repo, tag, context).await,
            Reference::Digest(digest) => self.0.manifests.by_digest(repo, digest, context).await,
        };
        match manifest {
            Ok(manifest) => {
                self.0.metrics.served(Kind::Manifest, manifest.source);
                Ok(manifest)
            }
            Err(error) => Err(self.0.offline.describe(repo, reference, error).await),
        }
    }

    /// Asks upstream what a tag means now. Remembered refusals of content of its repository are forgotten.
    ///
    /// # Errors
    /// [`Error::NoUpstream`], and [`Error::Store`] when what is known cannot be read. Everything else is an outcome.
    pub async fn refresh(&self, repo: &Repo, tag: &Tag) -> Result<Refreshed, Error> {
        self.0.refresher.refresh(repo, tag).await
    }

    /// The same for some of the tags of `repo` that are known here, in byte order, behind `after`. The flag says
    /// whether there are more.
    ///
    /// # Errors
    /// As [`Cache::refresh`].
    pub async fn refresh_known(
        &self,
        repo: &Repo,
        after: Option<&Tag>,
    ) -> Result<(Vec<Refreshed>, bool), Error> {
        self.0.refresher.refresh_known(repo, after).await
    }

    /// The page of the tags of `repo` that `page` means, from upstream; from disk, at most `n` tags behind `last`.
    /// `context` says where the request has come from.
    ///
    /// # Errors
    /// [`Error`], when upstream says that there is no such repository, or cannot be asked and nothing is stored; also
    /// when it cannot be asked for the rest of a list that began with its answer, because what is stored is not that
    /// rest.
    pub async fn tags(
        &self,
        repo: &Repo,
        page: &PageQuery,
        (n, last): (usize, Option<&str>),
        context: &RequestContext,
    ) -> Result<Tags, Error> {
        self.0.lists.tags(repo, page, (n, last), context).await
    }

    /// What refers to `digest` in `repo`, from upstream; it is kept by the rule for the tag that stands for such a
    /// list. `None` when upstream does not say and nothing is stored: clients then try that tag and go on.
    ///
    /// # Errors
    /// [`Error`], when the registry is not configured or the disk fails.
    pub async fn referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Option<Referrers>, Error> {
        self.0.lists.referrers(repo, digest, context).await
    }

    /// At most `n` stored repositories behind `last` that `may_have` says may be pulled. With `private_too` also those
    /// that came with a credential, or would come with one today.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn repositories(
        &self,
        n: usize,
        last: Option<Repo>,
        private_too: bool,
        may_have: impl Fn(&Repo) -> bool,
    ) -> Result<Page<Repo>, Error> {
        self.0.lists.repositories(n, last, private_too, may_have).await
    }

    /// Whether what `repo` holds comes without a credential.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub async fn is_public(&self, repo: &Repo) -> Result<bool, Error> {
        Ok(self.0.upstreams.of(repo)?.is_public(&repo.name).await)
    }

    /// Whether this content of `repo` is public: it comes without a credential, and did so when it came. Another
    /// configuration may have had a credential.
    ///
    /// # Errors
    /// [`Error::NoUpstream`], or [`Error::Store`].
    pub async fn is_public_content(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let is_public = self.is_public(repo).await? && !self.0.blobs.is_private(repo, digest);
        Ok(is_public && !self.0.store.is_private(repo, digest).await?)
    }

    /// Whether only the answers of parents say if `repo` is public.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub fn has_parents(&self, repo: &Repo) -> Result<bool, Error> {
        Ok(self.0.upstreams.of(repo)?.has_parents())
    }

    /// Stops the downloads under way; what they have is kept for the next start.
    pub async fn close(&self) {
        self.0.blobs.close().await;
    }
}
