//! Tags: what is known of them, when upstream is asked, and what is served when it cannot answer.
//!
//! A check is a HEAD that names the digest; the manifest is then fetched by that digest, if it is not here. A HEAD that
//! is refused is followed by a GET, whose word counts. Where there is nothing else to answer with, a check that fails is
//! made again, as every other request is.
//!
//! The tag moves when the manifest is stored. Until the new image is here whole, the last whole image of the
//! tag is remembered, and served if upstream dies in between.
//!
//! An upstream may give out only so many manifests. When it is down to its reserve, these are for images never seen:
//! a tag that has moved is served as it was, as stale.
//!
//! Checks are shared by everybody who asks at the same time, and go on when a request stops waiting: with
//! something to serve nobody waits longer than [`CHECK_DEADLINE`].

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::doubts::Heard;
use super::error::Error;
use super::freshness::{self, Confirmed, Verdict, Word};
use super::manifests::Manifest;
use super::{Cache, now};
use crate::clock::{age as age_of, believed, later};
use crate::context::RequestContext;
use crate::oci::{Digest, Reference, Repo, Tag};
use crate::store::{Previous, TagRecord};
use crate::telemetry::metrics::Source;
use crate::upstream::{self, Attempts, Standing, Untold, Upstream};

/// How long a request waits for a check when it could be answered from disk.
pub(super) const CHECK_DEADLINE: Duration = Duration::from_secs(4);
/// How long a client waits to hear what refers to a manifest, which it can do without.
pub(super) const REFERRERS_DEADLINE: Duration = Duration::from_secs(10);
const WARNING_STALE: &str = "stale: upstream could not confirm this tag";
const WARNING_REMOVED: &str = "stale: upstream has this tag no more";
const WARNING_PREVIOUS: &str =
    "stale: the tag has moved, but upstream is gone and the new image is incomplete";

/// What a check found.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) record: TagRecord,
    /// The manifest, if it had to be fetched.
    fetched: Option<Manifest>,
    /// Whether a parent has answered that the registry did not confirm it.
    pub(super) is_stale: bool,
}

/// A tag that can be served without a wait.
pub(super) struct AtHand {
    /// What it means.
    pub(super) digest: Digest,
    /// Since how many seconds it is unconfirmed.
    pub(super) age: Option<u64>,
    /// What the client should be told, if it is stale.
    pub(super) warning: Option<&'static str>,
}

impl Cache {
    /// What a tag means, if that can be served as it is known, and both are known without a wait for anything.
    pub(super) fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<AtHand> {
        let record = self.0.store.tag_at_hand(repo, tag)?;
        let heard = self.heard(&*self.upstream(repo).ok()?, repo, tag);
        let confirmed = Confirmed { at: record.checked_at, revoked: heard.revoked };
        let warning = match freshness::judge(confirmed, self.0.rules.find(repo, tag), now(), heard.word) {
            Verdict::Serve => None,
            Verdict::ServeStale => Some(WARNING_STALE),
            Verdict::ServeRemoved => Some(WARNING_REMOVED),
            Verdict::ServeAndCheck | Verdict::CheckFirst | Verdict::CheckOrRefuse | Verdict::Refuse => {
                return None;
            }
        };
        // With another image to fall back on it takes a look at what is here of both.
        let is_settled = record.previous.is_none()
            || (warning.is_none() && heard.word == Word::Open && !self.is_troubled(repo));
        is_settled.then(|| AtHand { digest: record.digest, age: age(&record), warning })
    }

    /// The manifest that a tag means, as fresh as its rule demands.
    pub(super) async fn tagged(
        &self,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<Manifest, Error> {
        let upstream = self.upstream(repo)?;
        let upstream = &*upstream;
        let record = self.0.store.tag(repo, tag).await?;
        // After that wait: a check may have ended meanwhile, and its word counts.
        let Heard { mut word, mut refusal, revoked } = self.heard(upstream, repo, tag);
        let Some(record) = record else {
            return match refusal {
                Some(refusal) => Err(refusal),
                None => self.first_time(repo, tag, context).await,
            };
        };
        let confirmed = Confirmed { at: record.checked_at, revoked };
        loop {
            let deadline = match freshness::judge(confirmed, self.0.rules.find(repo, tag), now(), word) {
                Verdict::Serve => {
                    let is_sound = word == Word::Open && !self.is_troubled(repo);
                    if !is_sound && let Some(manifest) = self.last_complete(repo, tag, &record).await? {
                        return Ok(manifest);
                    }
                    return self.serve(repo, &record, None, context).await;
                }
                Verdict::ServeStale => {
                    return self.serve_stale(repo, tag, &record, WARNING_STALE, context).await;
                }
                Verdict::ServeRemoved => {
                    return self.serve_stale(repo, tag, &record, WARNING_REMOVED, context).await;
                }
                Verdict::ServeAndCheck => {
                    if let Ok(key) = check_key(upstream, repo, tag, context) {
                        self.0.checks.begin(key, |progress| {
                            self.checking(upstream, repo, tag, context.clone().with_progress(progress))
                        });
                    }
                    return self.serve(repo, &record, None, context).await;
                }
                Verdict::Refuse => return Err(refusal.unwrap_or(Error::TooOld)),
                Verdict::CheckFirst => Some(context.patience_to_check(CHECK_DEADLINE)),
                Verdict::CheckOrRefuse => None,
            };
            match self.check(repo, tag, deadline, context).await {
                Ok(known) => return self.answer(repo, known, context).await,
                Err(error) if error.is_outage() => word = Word::Silent,
                Err(error) if error.is_absence() => {
                    word = Word::Removed;
                    refusal = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What upstream last had to say about a tag, and whether it can be asked.
    fn heard(&self, upstream: &Upstream, repo: &Repo, tag: &Tag) -> Heard {
        let heard = self.0.doubts.about(repo, tag);
        match heard.word {
            Word::Open if upstream.state() != upstream::State::Up => Heard { word: Word::Silent, ..heard },
            Word::Open | Word::Silent | Word::Removed => heard,
        }
    }

    /// A tag of which nothing is known: only upstream can say.
    ///
    /// A list of referrers is the exception: dockerd asks for it last, and an error instead of "there is none"
    /// would end its pull.
    async fn first_time(&self, repo: &Repo, tag: &Tag, context: &RequestContext) -> Result<Manifest, Error> {
        let may_be_absent = tag.is_of_referrers();
        let deadline = may_be_absent.then(|| context.patience(REFERRERS_DEADLINE));
        match self.check(repo, tag, deadline, context).await {
            Ok(known) => self.answer(repo, known, context).await,
            Err(error) if may_be_absent && error.is_outage() => {
                debug!(repository = %repo, %tag, %error, "upstream cannot be asked for referrers; there are none for now");
                Err(upstream::Error::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn answer(&self, repo: &Repo, known: Known, context: &RequestContext) -> Result<Manifest, Error> {
        let Known { record, fetched, is_stale } = known;
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
        let manifest = self.manifest_by_digest(repo, &record.digest, context).await?;
        let source = if warning.is_some() { Source::Stale } else { manifest.source };
        Ok(Manifest { source, warning, age: age(record), ..manifest })
    }

    /// Serves what is known although upstream does not confirm it: the last image that is whole, if there is one.
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

    /// The image before the current one, if that is whole and the current one is not.
    async fn last_complete(
        &self,
        repo: &Repo,
        tag: &Tag,
        record: &TagRecord,
    ) -> Result<Option<Manifest>, Error> {
        let Some(previous) = &record.previous else { return Ok(None) };
        if self.is_complete(repo, &record.digest).await? || !self.is_complete(repo, &previous.digest).await? {
            return Ok(None);
        }
        info!(repository = %repo, %tag, digest = %previous.digest, "serving the tag's last complete image: upstream is gone before the new one is complete");
        let manifest = self.stored_manifest(repo, &previous.digest).await?;
        Ok(manifest.map(|manifest| Manifest {
            source: Source::Stale,
            warning: Some(WARNING_PREVIOUS),
            age: age(record),
            ..manifest
        }))
    }

    /// Asks upstream what a tag means now, together with whoever else is asking; waits at most `deadline`.
    async fn check(
        &self,
        repo: &Repo,
        tag: &Tag,
        deadline: Option<Duration>,
        context: &RequestContext,
    ) -> Result<Known, Error> {
        let upstream = self.upstream(repo)?;
        let upstream = &*upstream;
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, context)?;
        let (result, joined) = match deadline {
            None => self.0.checks.run(key, work).await,
            Some(limit) => match self.0.checks.run_within(limit, key, work).await {
                Some(ended) => ended,
                None => {
                    // Upstream had no chance when who asks is in a hurry.
                    if limit >= CHECK_DEADLINE / 2 && !upstream.is_retired() {
                        self.0.doubts.failed(repo, tag);
                    }
                    return Err(upstream::Error::Timeout.into());
                }
            },
        };
        let mut known = result.unwrap_or(Err(Error::GivenUp))?;
        if let Some(fetched) = known.fetched.as_mut().filter(|_| joined) {
            fetched.source = Source::Join;
        }
        Ok(known)
    }

    /// One look at upstream, and what it says about the next, as work for [`check_key`].
    pub(super) fn checking(
        &self,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        context: RequestContext,
    ) -> impl Future<Output = Result<Known, Error>> + Send + use<> {
        let (cache, upstream) = (self.clone(), Arc::clone(upstream));
        let (repo, tag) = (repo.clone(), tag.clone());
        async move { cache.look_and_note(&upstream, &repo, &tag, &context).await }
    }

    async fn look_and_note(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<Known, Error> {
        let result = self.look(upstream, repo, tag, context).await;
        match &result {
            // A parent has asked in vain: nor is it asked again for a while.
            Ok(known) if known.is_stale => self.0.doubts.failed(repo, tag),
            // Also when those who waited for it have given up, and noted that.
            Ok(_) => self.0.doubts.clear(repo, tag),
            Err(_) if upstream.is_retired() => {}
            Err(error) if error.is_loop() && !context.is_of_client() => {}
            Err(_) if upstream.settle_tag(context, &repo.name, tag).is_ok_and(|way| way.is_bypass()) => {}
            Err(error) => {
                debug!(repository = %repo, %tag, %error, "a tag could not be checked");
                if error.is_outage() {
                    self.0.doubts.failed(repo, tag);
                    self.trouble(repo);
                } else if error.is_absence() {
                    self.0.doubts.removed(repo, tag, error.clone());
                }
            }
        }
        result
    }

    /// One look at upstream: HEAD, and the manifest if it is not here.
    async fn look(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) -> Result<Known, Error> {
        let before = self.0.store.tag(repo, tag).await?;
        // Who has something to fall back on waits less, and a parent must know.
        let asking = if before.is_some() { context.within(CHECK_DEADLINE) } else { context.clone() };
        let attempts = match &before {
            Some(record) if self.will_do(repo, tag, record) => Attempts::Once,
            _ => Attempts::Rounds,
        };
        let resolved = upstream.resolve(&asking, &repo.name, tag, attempts).await?;
        let is_spared = upstream.is_short() && before.as_ref().is_some_and(|it| self.will_do(repo, tag, it));
        let (manifest, standing) = match resolved.digest {
            Some(digest) => {
                let standing = resolved.standing;
                if let Some(record) = &before
                    && self.0.store.blob(&record.digest).await?.is_some()
                {
                    if record.digest == digest {
                        return Ok(self.confirmed(repo, tag, record, standing).await);
                    }
                    // A parent that knows less than is known here does not move a tag back.
                    if standing.confirmed_at(now()) < believed(record.checked_at, now()) {
                        let (record, is_stale) = (record.clone(), standing.is_stale);
                        return Ok(Known { record, fetched: None, is_stale });
                    }
                }
                if is_spared && self.stored_manifest(repo, &digest).await?.is_none() {
                    return Err(upstream::Error::Limited { retry_after: None }.into());
                }
                let manifest =
                    self.manifest_by_digest(repo, &digest, context).await.map_err(|error| match error {
                        // It has just said that this is what the tag means.
                        error if error.upstream() == Some(&upstream::Error::NotFound) => {
                            upstream::Error::Malformed("a tag whose manifest is not there").into()
                        }
                        error => error,
                    })?;
                (manifest, standing)
            }
            // A refusal costs none of the few that are left; whether it is one, the GET tells.
            None if is_spared && resolved.untold != Untold::Refused => {
                return Err(upstream::Error::Limited { retry_after: None }.into());
            }
            None => {
                let reference = Reference::Tag(tag.clone());
                // An outage has had its rounds.
                let attempts = if resolved.untold == Untold::Failed { Attempts::Once } else { attempts };
                self.fetch_manifest(upstream, context, repo, &reference, attempts).await?
            }
        };
        self.moved(upstream, repo, tag, before, (manifest, standing)).await
    }

    /// The tag means what it meant. A parent says how long ago the registry said so; that is no news if it was said
    /// here later.
    async fn confirmed(&self, repo: &Repo, tag: &Tag, record: &TagRecord, standing: Standing) -> Known {
        let at = later(record.checked_at, standing.confirmed_at(now()), now());
        if at != record.checked_at {
            self.0.store.checked(repo, tag, at).await;
        }
        let record = TagRecord { checked_at: at, ..record.clone() };
        Known { record, fetched: None, is_stale: standing.is_stale }
    }

    /// Whether what is known of a tag may be served if upstream's last few manifests are kept for other images.
    fn will_do(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> bool {
        self.0.rules.find(repo, tag).serve_stale.allows(record.checked_at, now())
    }

    /// The tag means `manifest` now; it may have meant that before.
    async fn moved(
        &self,
        upstream: &Upstream,
        repo: &Repo,
        tag: &Tag,
        before: Option<TagRecord>,
        (manifest, standing): (Manifest, Standing),
    ) -> Result<Known, Error> {
        let public = upstream.is_public(&repo.name).await;
        if let Some(before) = &before
            && (before.digest, before.public) == (manifest.document.digest, public)
        {
            let known = self.confirmed(repo, tag, before, standing).await;
            return Ok(Known { fetched: Some(manifest), ..known });
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
        // What a full disk cannot keep is served all the same.
        if let Err(error) = self.0.store.set_tag(repo, tag, &record).await {
            warn!(repository = %repo, %tag, %error, "a tag is served but could not be stored");
        }
        Ok(Known { record, fetched: Some(manifest), is_stale: standing.is_stale })
    }

    /// What to fall back on while the new image of a tag is incomplete: the image it had, if that is whole.
    async fn previous(&self, repo: &Repo, before: TagRecord) -> Result<Option<Box<Previous>>, Error> {
        if self.is_complete(repo, &before.digest).await? {
            let TagRecord { digest, media_type, size, .. } = before;
            return Ok(Some(Box::new(Previous { digest, media_type, size })));
        }
        Ok(before.previous)
    }
}

/// Checks are shared by requests of one level. The manifest that one may wait for has its own home, and its own level:
/// no work on a manifest waits for a check.
pub(super) fn check_key(
    upstream: &Upstream,
    repo: &Repo,
    tag: &Tag,
    context: &RequestContext,
) -> Result<(Repo, Tag, usize), Error> {
    Ok((repo.clone(), tag.clone(), upstream.settle_tag(context, &repo.name, tag)?.level()))
}

/// For how many seconds a tag has gone unconfirmed; none if it never was confirmed, or nobody knows when.
fn age(record: &TagRecord) -> Option<u64> {
    age_of(record.checked_at, now()).filter(|_| record.checked_at > 0)
}
