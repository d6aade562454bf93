//! Checks of tags: what upstream says now of a tag that is known, or is not.
//!
//! A check is a HEAD that names the digest; the manifest is then fetched by that digest, if it is not here. A HEAD that
//! is refused is followed by a GET, whose word counts. Where there is nothing else to answer with, a check that fails is
//! made again, as every other request is.
//!
//! The tag moves when the manifest is stored. Until the new image is here whole, the last whole image of the tag is
//! remembered.
//!
//! An upstream may give out only so many manifests. When it is down to its reserve, these are for images never seen:
//! a tag that has moved is served as it was, as stale.
//!
//! Checks are shared by everybody who asks at the same time, and go on when a request stops waiting: with
//! something to serve nobody waits longer than [`CHECK_DEADLINE`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::freshness::{Rules, Word};
use super::recent_failures::{Doubts, Heard};
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
use crate::upstream::{self, Attempts, Standing, Untold, Upstream};

/// How long a request waits for a check when it could be answered from disk.
pub(in crate::cache) const CHECK_DEADLINE: Duration = Duration::from_secs(4);
/// How long a client waits to hear what refers to a manifest, which it can do without.
pub(in crate::cache) const REFERRERS_DEADLINE: Duration = Duration::from_secs(10);
/// What a check found.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Known {
    pub record: TagRecord,
    /// The manifest, if it had to be fetched.
    pub fetched: Option<Manifest>,
    /// Whether a parent has answered that the registry did not confirm it.
    pub is_stale: bool,
}

/// Asks upstreams what tags mean, under one configuration.
pub(in crate::cache) struct TagChecks {
    store: Store,
    upstreams: Arc<Upstreams>,
    rules: Arc<Rules>,
    negative: Arc<NegativeCache>,
    manifests: Arc<ManifestFinder>,
    shared: Arc<CheckWork>,
}

/// What is under way and what was last heard, of all configurations.
struct CheckWork {
    /// A check is shared by requests of one level only: see [`RequestContext`].
    checks: SingleFlight<(Repo, Tag, usize), Result<Known, Error>>,
    doubts: Doubts,
}

impl TagChecks {
    /// `max`: how many tags it remembers that speak against themselves.
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
            shared: Arc::new(CheckWork { checks: SingleFlight::default(), doubts: Doubts::new(max) }),
        }
    }

    /// The same work under another configuration.
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
            shared: Arc::clone(&self.shared),
        }
    }

    /// Forgets what the upstreams of these repositories have refused or failed to say, and lets nobody join what they are
    /// being asked.
    pub(in crate::cache) fn forget(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.shared.doubts.forget_all(&is_meant);
        self.shared.checks.detach(|(repo, ..)| is_meant(repo));
    }

    /// What upstream last had to say about a tag, and whether it can be asked.
    pub(in crate::cache) fn heard(&self, upstream: &Upstream, repo: &Repo, tag: &Tag) -> Heard {
        let heard = self.shared.doubts.about(repo, tag);
        match heard.word {
            Word::Open if upstream.state() != upstream::State::Up => Heard { word: Word::Silent, ..heard },
            Word::Open | Word::Silent | Word::Removed => heard,
        }
    }

    /// Begins a check behind an answer, unless one is under way.
    pub(in crate::cache) fn begin(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        context: &RequestContext,
    ) {
        if let Ok(key) = check_key(upstream, repo, tag, context) {
            self.shared.checks.begin(key, |progress| {
                self.checking(upstream, repo, tag, context.clone().with_progress(progress))
            });
        }
    }

    /// Asks upstream what a tag means now, together with whoever else is asking; waits at most `deadline`.
    pub(in crate::cache) async fn check(
        self: &Arc<Self>,
        repo: &Repo,
        tag: &Tag,
        deadline: Option<Duration>,
        context: &RequestContext,
    ) -> Result<Known, Error> {
        let upstream = self.upstreams.of(repo)?;
        let upstream = &*upstream;
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, context)?;
        let (result, joined) = match deadline {
            None => self.shared.checks.run(key, work).await,
            Some(limit) => match self.shared.checks.run_within(limit, key, work).await {
                Some(ended) => ended,
                None => {
                    // Upstream had no chance when who asks is in a hurry.
                    if limit >= CHECK_DEADLINE / 2 && !upstream.is_retired() {
                        self.shared.doubts.failed(repo, tag);
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

    /// Upstream is to be asked about a tag, whatever it has just said.
    pub(in crate::cache) fn ask_again(&self, repo: &Repo, tag: &Tag) {
        self.shared.doubts.forget(repo, tag);
    }

    /// A check that begins after this was called; waits at most `limit`. What it finds is within the outer result.
    pub(in crate::cache) async fn check_anew(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        limit: Duration,
    ) -> Result<Result<Known, Error>, Error> {
        let context = RequestContext::default();
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, &context)?;
        let until = Instant::now() + limit;
        let check = async || {
            let left = until.saturating_duration_since(Instant::now());
            self.shared.checks.run_within(left, key.clone(), work).await
        };
        let checks = async {
            match check().await? {
                // It had begun before, and may have been answered before whatever this is about has happened.
                (_, true) => Some(check().await?.0),
                (result, false) => Some(result),
            }
        };
        let checked = checks.await.unwrap_or(Some(Err(upstream::Error::Timeout.into())));
        Ok(checked.unwrap_or(Err(Error::GivenUp)))
    }

    /// One look at upstream, and what it says about the next, as work for [`check_key`].
    fn checking(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repo: &Repo,
        tag: &Tag,
        context: RequestContext,
    ) -> impl Future<Output = Result<Known, Error>> + Send + use<> {
        let (checks, upstream) = (Arc::clone(self), Arc::clone(upstream));
        let (repo, tag) = (repo.clone(), tag.clone());
        async move { checks.look_and_note(&upstream, &repo, &tag, &context).await }
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
            Ok(known) if known.is_stale => self.shared.doubts.failed(repo, tag),
            // Also when those who waited for it have given up, and noted that.
            Ok(_) => self.shared.doubts.clear(repo, tag),
            Err(_) if upstream.is_retired() => {}
            Err(error) if error.is_loop() && !context.is_of_client() => {}
            Err(_) if upstream.settle_tag(context, &repo.name, tag).is_ok_and(|way| way.is_bypass()) => {}
            Err(error) => {
                debug!(repository = %repo, %tag, %error, "a tag could not be checked");
                if error.is_outage() {
                    self.shared.doubts.failed(repo, tag);
                    self.negative.trouble(repo);
                } else if error.is_absence() {
                    self.shared.doubts.removed(repo, tag, error.clone());
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
        let before = self.store.tag(repo, tag).await?;
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
                    && self.store.blob(&record.digest).await?.is_some()
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
                if is_spared && self.manifests.stored(repo, &digest).await?.is_none() {
                    return Err(upstream::Error::Limited { retry_after: None }.into());
                }
                let manifest =
                    self.manifests.by_digest(repo, &digest, context).await.map_err(|error| match error {
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
                self.manifests.fetch(upstream, context, repo, &reference, attempts).await?
            }
        };
        self.moved(upstream, repo, tag, before, (manifest, standing)).await
    }

    /// The tag means what it meant. A parent says how long ago the registry said so; that is no news if it was said
    /// here later.
    async fn confirmed(&self, repo: &Repo, tag: &Tag, record: &TagRecord, standing: Standing) -> Known {
        let at = later(record.checked_at, standing.confirmed_at(now()), now());
        if at != record.checked_at {
            self.store.checked(repo, tag, at).await;
        }
        let record = TagRecord { checked_at: at, ..record.clone() };
        Known { record, fetched: None, is_stale: standing.is_stale }
    }

    /// Whether what is known of a tag may be served if upstream's last few manifests are kept for other images.
    fn will_do(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> bool {
        self.rules.find(repo, tag).serve_stale.allows(record.checked_at, now())
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
        if let Err(error) = self.store.set_tag(repo, tag, &record).await {
            warn!(repository = %repo, %tag, %error, "a tag is served but could not be stored");
        }
        Ok(Known { record, fetched: Some(manifest), is_stale: standing.is_stale })
    }

    /// What to fall back on while the new image of a tag is incomplete: the image it had, if that is whole.
    async fn previous(&self, repo: &Repo, before: TagRecord) -> Result<Option<Box<Previous>>, Error> {
        if self.manifests.is_complete(repo, &before.digest).await? {
            let TagRecord { digest, media_type, size, .. } = before;
            return Ok(Some(Box::new(Previous { digest, media_type, size })));
        }
        Ok(before.previous)
    }
}

/// Checks are shared by requests of one level. The manifest that one may wait for has its own home, and its own level:
/// no work on a manifest waits for a check.
fn check_key(
    upstream: &Upstream,
    repo: &Repo,
    tag: &Tag,
    context: &RequestContext,
) -> Result<(Repo, Tag, usize), Error> {
    Ok((repo.clone(), tag.clone(), upstream.settle_tag(context, &repo.name, tag)?.level()))
}
