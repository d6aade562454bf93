//! The resolver: what a tag means, as fresh as its rule demands, and what is served when upstream cannot say.
//!
//! What is stored is judged by [`freshness`]. If that asks for a check, the [checks](super::checks) ask upstream. While
//! the new image of a tag is incomplete, the last complete image of the tag is served if upstream dies in between.

use std::sync::Arc;

use tracing::{debug, info};

use super::checks::{CHECK_DEADLINE, CheckedTag, REFERRERS_DEADLINE, TagChecks};
use super::freshness::{self, Confirmed, Rules, TagVerdict, UpstreamWord};
use super::recent_failures::LastCheck;
use crate::cache::error::Error;
use crate::cache::manifests::{Manifest, ManifestFinder};
use crate::cache::negative_cache::NegativeCache;
use crate::cache::upstreams::Upstreams;
use crate::clock::{age as age_of, unix_seconds as now};
use crate::context::RequestContext;
use crate::oci::{Digest, Repo, Tag};
use crate::store::{Store, TagRecord};
use crate::telemetry::metrics::Source;
use crate::upstream;

const WARNING_STALE: &str = "stale: upstream could not confirm this tag";
const WARNING_REMOVED: &str = "stale: upstream has this tag no more";
const WARNING_PREVIOUS: &str =
    "stale: the tag has moved, but upstream is gone and the new image is incomplete";

/// A tag that can be served without a wait.
pub(in crate::cache) struct CachedTag {
    /// The digest that the tag means.
    pub digest: Digest,
    /// Seconds since upstream last confirmed the tag.
    pub age: Option<u64>,
    /// The text of a `Warning` header, if the tag is stale.
    pub warning: Option<&'static str>,
}

/// Finds what a tag means, as fresh as its rule demands, under one configuration.
pub(in crate::cache) struct TagResolver {
    store: Store,
    upstreams: Arc<Upstreams>,
    rules: Arc<Rules>,
    negative: Arc<NegativeCache>,
    manifests: Arc<ManifestFinder>,
    checks: Arc<TagChecks>,
}

impl TagResolver {
    pub(in crate::cache) fn new(
        store: &Store,
        upstreams: &Arc<Upstreams>,
        rules: &Arc<Rules>,
        negative: &Arc<NegativeCache>,
        manifests: &Arc<ManifestFinder>,
        checks: &Arc<TagChecks>,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            rules: Arc::clone(rules),
            negative: Arc::clone(negative),
            manifests: Arc::clone(manifests),
            checks: Arc::clone(checks),
        }
    }

    /// What a tag means, if it can be served as it is known, and both are known without a wait for anything.
    pub(in crate::cache) fn at_hand(&self, repo: &Repo, tag: &Tag) -> Option<CachedTag> {
        let record = self.store.tag_at_hand(repo, tag)?;
        let last = self.checks.last_check(&*self.upstreams.of(repo).ok()?, repo, tag);
        let confirmed = Confirmed { at: record.checked_at, revoked: last.revoked };
        let warning = match freshness::judge(confirmed, self.rules.find(repo, tag), now(), last.word) {
            TagVerdict::Serve => None,
            TagVerdict::ServeStale => Some(WARNING_STALE),
            TagVerdict::ServeRemoved => Some(WARNING_REMOVED),
            TagVerdict::ServeAndCheck
            | TagVerdict::CheckFirst
            | TagVerdict::CheckOrRefuse
            | TagVerdict::Refuse => {
                return None;
            }
        };
        // If there is another image to fall back on, the store must be asked what is there of both.
        let is_settled = record.previous.is_none()
            || (warning.is_none() && last.word == UpstreamWord::Open && !self.negative.is_troubled(repo));
        is_settled.then(|| CachedTag { digest: record.digest, age: age(&record), warning })
    }

    /// The manifest that a tag means, as fresh as its rule demands.
    pub(in crate::cache) async fn resolve(
        &self,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        let upstream = self.upstreams.of(repo)?;
        let upstream = &*upstream;
        let record = self.store.tag(repo, tag).await?;
        // This comes after that wait: a check may have ended meanwhile, and its result counts.
        let LastCheck { mut word, mut refusal, revoked } = self.checks.last_check(upstream, repo, tag);
        let Some(record) = record else {
            return match refusal {
                Some(refusal) => Err(refusal),
                None => self.first_time(repo, tag, context).await,
            };
        };
        let confirmed = Confirmed { at: record.checked_at, revoked };
        loop {
            let deadline = match freshness::judge(confirmed, self.rules.find(repo, tag), now(), word) {
                TagVerdict::Serve => {
                    let is_sound = word == UpstreamWord::Open && !self.negative.is_troubled(repo);
                    if !is_sound && let Some(manifest) = self.last_complete(repo, tag, &record).await? {
                        return Ok(manifest);
                    }
                    return self.serve(repo, &record, None, context).await;
                }
                TagVerdict::ServeStale => {
                    return self.serve_stale(repo, tag, &record, WARNING_STALE, context).await;
                }
                TagVerdict::ServeRemoved => {
                    return self.serve_stale(repo, tag, &record, WARNING_REMOVED, context).await;
                }
                TagVerdict::ServeAndCheck => {
                    self.checks.begin(upstream, repo, tag, context);
                    return self.serve(repo, &record, None, context).await;
                }
                TagVerdict::Refuse => return Err(refusal.unwrap_or(Error::TooOld)),
                TagVerdict::CheckFirst => Some(context.patience_to_check(CHECK_DEADLINE)),
                TagVerdict::CheckOrRefuse => None,
            };
            match self.checks.check(repo, tag, deadline, context).await {
                Ok(known) => return self.answer(repo, known, context).await,
                Err(error) if error.is_outage() => word = UpstreamWord::Silent,
                Err(error) if error.is_absence() => {
                    word = UpstreamWord::Removed;
                    refusal = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Resolves a tag of which nothing is known: only upstream can say.
    ///
    /// For a list of referrers an outage counts as "there is none": dockerd asks for it last, and an error would end
    /// its pull.
    async fn first_time(&self, repo: &Repo, tag: &Tag, context: &RequestContext) -> Result<Manifest, Error> {
        let may_be_absent = tag.is_of_referrers();
        let deadline = may_be_absent.then(|| context.patience(REFERRERS_DEADLINE));
        match self.checks.check(repo, tag, deadline, context).await {
            Ok(known) => self.answer(repo, known, context).await,
            Err(error) if may_be_absent && error.is_outage() => {
                debug!(repository = %repo, %tag, %error, "upstream cannot be asked for referrers; there are none for now");
                Err(upstream::Error::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn answer(
        &self,
        repo: &Repo,
        known: CheckedTag,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        let CheckedTag { record, fetched, is_stale } = known;
        let warning = is_stale.then_some(WARNING_STALE);
        match fetched {
            Some(manifest) => {
                let source = if is_stale { Source::Stale } else { manifest.source };
                Ok(Manifest { source, warning, age: age(&record), ..manifest })
            }
            None => self.serve(repo, &record, warning, context).await,
        }
    }

    /// Serves what a record says; with a warning, as stale.
    async fn serve(
        &self,
        repo: &Repo,
        record: &TagRecord,
        warning: Option<&'static str>,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        let manifest = self.manifests.by_digest(repo, &record.digest, context).await?;
        let source = if warning.is_some() { Source::Stale } else { manifest.source };
        Ok(Manifest { source, warning, age: age(record), ..manifest })
    }

    /// Serves a tag that upstream does not confirm: the last complete image, if the current one is not complete.
    async fn serve_stale(
        &self,
        repo: &Repo,
        tag: &Tag,
        record: &TagRecord,
        warning: &'static str,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        match self.last_complete(repo, tag, record).await? {
            Some(manifest) => Ok(manifest),
            None => self.serve(repo, record, Some(warning), context).await,
        }
    }

    /// The image before the current one, if it is complete and the current one is not.
    async fn last_complete(
        &self,
        repo: &Repo,
        tag: &Tag,
        record: &TagRecord,
    ) -> Result<Option<Manifest>, Error> {
        let Some(previous) = &record.previous else { return Ok(None) };
        if self.manifests.is_complete(repo, &record.digest).await?
            || !self.manifests.is_complete(repo, &previous.digest).await?
        {
            return Ok(None);
        }
        info!(repository = %repo, %tag, digest = %previous.digest, "serving the tag's last complete image: upstream is gone before the new one is complete");
        let manifest = self.manifests.stored(repo, &previous.digest).await?;
        Ok(manifest.map(|manifest| Manifest {
            source: Source::Stale,
            warning: Some(WARNING_PREVIOUS),
            age: age(record),
            ..manifest
        }))
    }
}

/// Seconds since upstream last confirmed a tag; `None` if it never has, or nobody knows when.
fn age(record: &TagRecord) -> Option<u64> {
    age_of(record.checked_at, now()).filter(|_| record.checked_at > 0)
}
