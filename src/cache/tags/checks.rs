//! Checks: asking upstream what a tag means now.
//!
//! A check is a HEAD that names the digest; then the manifest is fetched by that digest, if it is not stored. A HEAD
//! that is refused is followed by a GET, which decides. Where there is nothing else to answer with, a check that fails
//! is retried, as every other request is.
//!
//! The tag moves when the manifest is stored. Until the new image is complete, the last complete image of the tag is
//! remembered.
//!
//! An upstream may give out only so many manifests. When it is down to its reserve, the remaining ones are for images
//! never seen: a tag that has moved is served as it was, as stale.
//!
//! Requests for the same tag share a check, which goes on when a request stops waiting. With something to serve, no
//! request waits longer than [`CHECK_DEADLINE`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::freshness::{Rules, UpstreamWord};
use super::recent_failures::{LastCheck, RecentFailures};
use crate::cache::error::Error;
use crate::cache::manifests::{Manifest, ManifestFinder};
use crate::cache::negative_cache::NegativeCache;
use crate::cache::upstreams::Upstreams;
use crate::clock::{believed, later, unix_seconds as now};
use crate::context::RequestContext;
use crate::oci::{Reference, Repo, Tag};
use crate::singleflight::SingleFlight;
use crate::store::{Previous, Store, TagRecord};
use crate::telemetry::metrics::Source;
use crate::upstream::{self, Attempts, Freshness, Untold, Upstream};

/// How long a request waits for a check when it could be answered from disk.
pub(in crate::cache) const CHECK_DEADLINE: Duration = Duration::from_secs(4);
/// How long a client waits for the referrers of a manifest, which it can do without.
pub(in crate::cache) const REFERRERS_DEADLINE: Duration = Duration::from_secs(10);

/// What a check has found.
#[derive(Clone, Debug)]
pub(in crate::cache) struct CheckedTag {
    pub record: TagRecord,
    /// The manifest, if it had to be fetched.
    pub fetched: Option<Manifest>,
    /// Whether a parent has answered that the registry did not confirm the tag.
    pub is_stale: bool,
}

/// Asks upstreams what tags mean, under one configuration.
pub(in crate::cache) struct TagChecks {
    store: Store,
    upstreams: Arc<Upstreams>,
    rules: Arc<Rules>,
    negative: Arc<NegativeCache>,
    manifests: Arc<ManifestFinder>,
    work: Arc<CheckWork>,
}

/// What all configurations share: the checks under way, and what failed recently.
struct CheckWork {
    /// A check is shared only by requests with the same hop count: see [`RequestContext`].
    checks: SingleFlight<(Repo, Tag, usize), Result<CheckedTag, Error>>,
    failures: RecentFailures,
}

impl TagChecks {
    /// `max` bounds the tags whose failures are remembered.
    pub(in crate::cache) fn new(
        store: &Store,
        upstreams: &Arc<Upstreams>,
        rules: &Arc<Rules>,
        negative: &Arc<NegativeCache>,
        manifests: &Arc<ManifestFinder>,
        max: NonZeroUsize,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            rules: Arc::clone(rules),
            negative: Arc::clone(negative),
            manifests: Arc::clone(manifests),
            work: Arc::new(CheckWork { checks: SingleFlight::default(), failures: RecentFailures::new(max) }),
        }
    }

    /// The same state under another configuration.
    pub(in crate::cache) fn with(
        &self,
        upstreams: &Arc<Upstreams>,
        rules: &Arc<Rules>,
        manifests: &Arc<ManifestFinder>,
    ) -> Self {
        Self {
            store: self.store.clone(),
            upstreams: Arc::clone(upstreams),
            rules: Arc::clone(rules),
            negative: Arc::clone(&self.negative),
            manifests: Arc::clone(manifests),
            work: Arc::clone(&self.work),
        }
    }

    /// Forgets what the upstreams of these repositories have refused or failed to say, and detaches what they are being
    /// asked.
    pub(in crate::cache) fn forget(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.work.failures.forget_all(&is_meant);
        self.work.checks.detach(|(repo, ..)| is_meant(repo));
    }

    /// What upstream last said about a tag, and whether it can be asked.
    pub(in crate::cache) fn last_check(&self, upstream: &Upstream, repo: &Repo, tag: &Tag) -> LastCheck {
        let last = self.work.failures.last_check(repo, tag);
        match last.word {
            UpstreamWord::Open if upstream.state() != upstream::State::Up => {
                LastCheck { word: UpstreamWord::Silent, ..last }
            }
            UpstreamWord::Open | UpstreamWord::Silent | UpstreamWord::Removed => last,
        }
    }

    /// Begins a check in the background, unless one is under way.
    pub(in crate::cache) fn begin(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) {
        if let Ok(key) = check_key(upstream, repo, tag, context) {
            self.work.checks.begin(key, |progress| {
                self.checking(upstream, repo, tag, context.clone().with_progress(progress))
            });
        }
    }

    /// Asks upstream what a tag means now, together with all requests for that; waits at most `deadline`.
    pub(in crate::cache) async fn check(
        self: &Arc<Self>,
        repo: &Repo,
        tag: &Tag,
        deadline: Option<Duration>,
        context: &RequestContext,
    ) -> Result<CheckedTag, Error> {
        let upstream = self.upstreams.of(repo)?;
        let upstream = &*upstream;
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, context)?;
        let (result, joined) = match deadline {
            None => self.work.checks.run(key, work).await,
            Some(limit) => match self.work.checks.run_within(limit, key, work).await {
                Some(ended) => ended,
                None => {
                    // For a request in a hurry, the time was too short to blame upstream.
                    if limit >= CHECK_DEADLINE / 2 && !upstream.is_retired() {
                        self.work.failures.failed(repo, tag);
                    }
                    return Err(upstream::Error::Timeout.into());
                }
            },
        };
        let mut known = result.unwrap_or(Err(Error::GivenUp))?;
        if let Some(fetched) = known.fetched.as_mut().filter(|_| joined) {
            fetched.source = Source::Collapsed;
        }
        Ok(known)
    }

    /// Has upstream asked about a tag the next time, whatever it has just said.
    pub(in crate::cache) fn ask_again(&self, repo: &Repo, tag: &Tag) {
        self.work.failures.forget(repo, tag);
    }

    /// Makes a check that begins after this call; waits at most `limit`. What it finds is in the inner result.
    pub(in crate::cache) async fn check_anew(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        limit: Duration,
    ) -> Result<Result<CheckedTag, Error>, Error> {
        let context = RequestContext::default();
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, &context)?;
        let until = Instant::now() + limit;
        let check = async || {
            let left = until.saturating_duration_since(Instant::now());
            self.work.checks.run_within(left, key.clone(), work).await
        };
        let checks = async {
            match check().await? {
                // That check had begun before, and may have been answered before the change that this call is about.
                (_, true) => Some(check().await?.0),
                (result, false) => Some(result),
            }
        };
        let checked = checks.await.unwrap_or(Some(Err(upstream::Error::Timeout.into())));
        Ok(checked.unwrap_or(Err(Error::GivenUp)))
    }

    /// The work of a check for [`check_key`]: asks upstream, and notes what failed.
    fn checking(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        context: RequestContext,
    ) -> impl Future<Output = Result<CheckedTag, Error>> + Send + use<> {
        let (checks, upstream) = (Arc::clone(self), Arc::clone(upstream));
        let (repo, tag) = (repo.clone(), tag.clone());
        async move { checks.run_check(&upstream, &repo, &tag, &context).await }
    }

    async fn run_check(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<CheckedTag, Error> {
        let result = self.ask_upstream(upstream, repo, tag, context).await;
        match &result {
            // A parent has asked the registry in vain, so it is not asked again for a while.
            Ok(known) if known.is_stale => self.work.failures.failed(repo, tag),
            // Also if the requests that waited for it have given up, and noted that.
            Ok(_) => self.work.failures.clear(repo, tag),
            Err(_) if upstream.is_retired() => {}
            Err(error) if error.is_loop() && !context.is_of_client() => {}
            Err(_) if upstream.settle_tag(context, &repo.name, tag).is_ok_and(|way| way.is_bypass()) => {}
            Err(error) => {
                debug!(repository = %repo, %tag, %error, "a tag could not be checked");
                if error.is_outage() {
                    self.work.failures.failed(repo, tag);
                    self.negative.trouble(repo);
                } else if error.is_absence() {
                    self.work.failures.removed(repo, tag, error.clone());
                }
            }
        }
        result
    }

    /// Asks upstream: HEAD, and the manifest if it is not stored.
    async fn ask_upstream(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<CheckedTag, Error> {
        let before = self.store.tag(repo, tag).await?;
        // A berth that has something to fall back on waits less, and a parent must know that.
        let asking = if before.is_some() { context.within(CHECK_DEADLINE) } else { context.clone() };
        let attempts = match &before {
            Some(record) if self.may_serve_stale(repo, tag, record) => Attempts::Once,
            _ => Attempts::Rounds,
        };
        let resolved = upstream.resolve(&asking, &repo.name, tag, attempts).await?;
        let is_spared =
            upstream.is_short() && before.as_ref().is_some_and(|it| self.may_serve_stale(repo, tag, it));
        let (manifest, standing) = match resolved.digest {
            Some(digest) => {
                let standing = resolved.standing;
                if let Some(record) = &before
                    && self.store.blob(&record.digest).await?.is_some()
                {
                    if record.digest == digest {
                        return Ok(self.store_confirmation(repo, tag, record, standing).await);
                    }
                    // A parent that knows less than is known here does not move a tag back.
                    if standing.confirmed_at(now()) < believed(record.checked_at, now()) {
                        let (record, is_stale) = (record.clone(), standing.is_stale);
                        return Ok(CheckedTag { record, fetched: None, is_stale });
                    }
                }
                if is_spared && self.manifests.stored(repo, &digest).await?.is_none() {
                    return Err(upstream::Error::Limited { retry_after: None }.into());
                }
                let manifest =
                    self.manifests.by_digest(repo, &digest, context).await.map_err(|error| match error {
                        // Upstream has just said that this is what the tag means.
                        error if error.upstream() == Some(&upstream::Error::NotFound) => {
                            upstream::Error::Malformed("a tag whose manifest is not there").into()
                        }
                        error => error,
                    })?;
                (manifest, standing)
            }
            // A refused HEAD costs none of the few that are left; the GET tells whether it is a refusal.
            None if is_spared && resolved.untold != Untold::Refused => {
                return Err(upstream::Error::Limited { retry_after: None }.into());
            }
            None => {
                let reference = Reference::Tag(tag.clone());
                // After a failed HEAD all attempts are used up.
                let attempts = if resolved.untold == Untold::Failed { Attempts::Once } else { attempts };
                self.manifests.fetch(upstream, context, repo, &reference, attempts).await?
            }
        };
        self.store_tag(upstream, repo, tag, before, (manifest, standing)).await
    }

    /// Stores that the tag means what it meant. A parent says how long ago the registry said so, which counts only if
    /// it is later than what is known here.
    async fn store_confirmation(
        &self,
        repo: &Repo,
        tag: &Tag,
        record: &TagRecord,
        standing: Freshness,
    ) -> CheckedTag {
        let at = later(record.checked_at, standing.confirmed_at(now()), now());
        if at != record.checked_at {
            self.store.checked(repo, tag, at).await;
        }
        let record = TagRecord { checked_at: at, ..record.clone() };
        CheckedTag { record, fetched: None, is_stale: standing.is_stale }
    }

    /// Whether a stored tag may be served so that the last few manifests of upstream are kept for other images.
    fn may_serve_stale(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> bool {
        self.rules.find(repo, tag).serve_stale.allows(record.checked_at, now())
    }

    /// Stores that the tag means `manifest` now; it may have meant that before.
    async fn store_tag(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        before: Option<TagRecord>,
        (manifest, standing): (Manifest, Freshness),
    ) -> Result<CheckedTag, Error> {
        let public = upstream.is_public(&repo.name).await;
        if let Some(before) = &before
            && (before.digest, before.public) == (manifest.document.digest, public)
        {
            let known = self.store_confirmation(repo, tag, before, standing).await;
            return Ok(CheckedTag { fetched: Some(manifest), ..known });
        }
        let previous = match before {
            Some(before) if before.digest != manifest.document.digest => self.previous(repo, before).await?,
            Some(before) => before.previous,
            None => None,
        };
        let record = TagRecord {
            digest: manifest.document.digest,
            media_type: manifest.document.media_type.clone(),
            size: manifest.document.body.len() as u64,
            fetched_at: now(),
            checked_at: standing.confirmed_at(now()),
            public,
            previous,
        };
        // What a full disk cannot store is served all the same.
        if let Err(error) = self.store.set_tag(repo, tag, &record).await {
            warn!(repository = %repo, %tag, %error, "a tag is served but could not be stored");
        }
        Ok(CheckedTag { record, fetched: Some(manifest), is_stale: standing.is_stale })
    }

    /// What to fall back on while the new image of a tag is incomplete: the image before, if that is complete.
    async fn previous(&self, repo: &Repo, before: TagRecord) -> Result<Option<Box<Previous>>, Error> {
        if self.manifests.is_complete(repo, &before.digest).await? {
            let TagRecord { digest, media_type, size, .. } = before;
            return Ok(Some(Box::new(Previous { digest, media_type, size })));
        }
        Ok(before.previous)
    }
}

/// Checks are shared only among requests with the same hop count. Manifest work never waits for a check, so the two
/// cannot deadlock.
fn check_key(
    upstream: &Upstream,
    repo: &Repo,
    tag: &Tag,
    context: &RequestContext,
) -> Result<(Repo, Tag, usize), Error> {
    Ok((repo.clone(), tag.clone(), upstream.settle_tag(context, &repo.name, tag)?.level()))
}
