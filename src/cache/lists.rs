//! ListFinder: tags, referrers and repositories. They come from upstream while it answers, else from what is stored.
//!
//! Requests for the same list of referrers share one question to upstream, and no request waits long for what could
//! come from disk.
//!
//! A list shows only what came without a credential, unless the configuration says otherwise. The caller decides that;
//! this module says whether a repository is public.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::error::Error;
use super::manifests::ManifestFinder;
use super::tags::checks::{CHECK_DEADLINE, REFERRERS_DEADLINE};
use super::tags::freshness::{self, Confirmed, Rules, TagVerdict, UpstreamWord};
use super::upstreams::Upstreams;
use crate::clock::unix_seconds as now;
use crate::context::{Client, RequestContext};
use crate::oci::{Digest, Repo, Tag, referrers};
use crate::parsing::{self, Place};
use crate::shares::Owner;
use crate::singleflight::SingleFlight;
use crate::store::{ReferrersRecord, Store};
use crate::telemetry::metrics::Source;
use crate::upstream::{self, PageQuery, ReferrerList, State, TagPage, Upstream};

/// The list with which upstream says that nothing refers to a manifest.
const EMPTY_INDEX: Bytes = Bytes::from_static(
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
);

/// Repositories that are read together for a list: a page, and one more.
const REPOSITORIES_BATCH: usize = 1001;

/// Part of a list, in byte order.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Whether there are more entries behind the last.
    pub more: bool,
    /// Where the entries come from.
    pub source: Source,
}

/// Part of a list of tags.
#[derive(Debug)]
pub enum Tags {
    /// The list of upstream.
    Upstream(TagPage),
    /// A list of what is stored, since upstream cannot be asked.
    Stored(Page<Tag>),
}

/// What refers to a manifest.
#[derive(Clone, Debug)]
pub struct Referrers {
    /// An image index.
    pub body: Bytes,
    /// Where it comes from.
    pub source: Source,
    /// The place of the list in memory, held until it is on its way to the client.
    pub place: Option<Arc<Place>>,
}

/// A list from the store, in memory.
struct Kept {
    record: ReferrersRecord,
    place: Place,
}

impl Referrers {
    /// The same with only the entries of `artifact_type`. If the list cannot be read, it is unchanged, and the flag is
    /// false.
    pub async fn of_type(self, artifact_type: &str) -> (Self, bool) {
        let (body, place) = (self.body.clone(), self.place.clone());
        let artifact_type = artifact_type.to_owned();
        let filter = move || {
            // Held until the parsing is done, also if the client leaves.
            let _place = place;
            referrers::filter(&body, &artifact_type)
        };
        match parsing::parse(self.body.len(), filter).await {
            Ok(body) => (Self { body: body.into(), ..self }, true),
            Err(_) => (self, false),
        }
    }
}

/// A manifest of a repository, and the hop count of the requests that share a list of its referrers.
type Key = (Repo, Digest, usize);

/// Makes lists under one configuration.
#[derive(Clone)]
pub(super) struct ListFinder {
    store: Store,
    upstreams: Arc<Upstreams>,
    rules: Arc<Rules>,
    manifests: Arc<ManifestFinder>,
    /// A list of referrers is shared only by requests with the same hop count: see [`RequestContext`].
    in_flight: Arc<SingleFlight<Key, Result<ReferrerList, Error>>>,
}

impl ListFinder {
    pub(super) fn new(
        store: &Store,
        upstreams: &Arc<Upstreams>,
        rules: &Arc<Rules>,
        manifests: &Arc<ManifestFinder>,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            rules: Arc::clone(rules),
            manifests: Arc::clone(manifests),
            in_flight: Arc::default(),
        }
    }

    /// The same state under another configuration.
    pub(super) fn with(
        &self,
        upstreams: &Arc<Upstreams>,
        rules: &Arc<Rules>,
        manifests: &Arc<ManifestFinder>,
    ) -> Self {
        let (upstreams, rules, manifests) = (Arc::clone(upstreams), Arc::clone(rules), Arc::clone(manifests));
        Self { upstreams, rules, manifests, ..self.clone() }
    }

    /// Detaches what the upstreams of these repositories are being asked: later requests ask anew.
    pub(super) fn detach(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.in_flight.detach(|(repo, ..)| is_meant(repo));
    }

    /// The page of the tags of `repo` that `page` means, from upstream; from disk, at most `n` tags behind `last`. A
    /// page that continues a list of upstream never comes from disk.
    pub(super) async fn tags(
        &self,
        repo: &Repo,
        page: &PageQuery,
        (n, last): (usize, Option<&str>),
        context: &RequestContext,
    ) -> Result<Tags, Error> {
        let upstream = self.upstreams.of(repo)?;
        let is_known = !page.is_continued() && self.store.knows(repo).await?;
        let state = upstream.state();
        let error = if state == State::Up {
            let asked = upstream.tags(context, &repo.name, page);
            let listed = if is_known {
                timeout(context.patience(CHECK_DEADLINE), asked)
                    .await
                    .unwrap_or(Err(upstream::Error::Timeout))
            } else {
                asked.await
            };
            match listed {
                Ok(page) => return Ok(Tags::Upstream(page)),
                Err(error) => Error::from(error),
            }
        } else if state == State::Down {
            Error::Down
        } else {
            upstream::Error::Offline.into()
        };
        if !is_known || !error.is_outage() {
            return Err(error);
        }
        debug!(repository = %repo, %error, "tags are listed from disk");
        let mut entries = self.store.tags(repo, last, n.saturating_add(1)).await?;
        let more = entries.len() > n;
        entries.truncate(n);
        Ok(Tags::Stored(Page { entries, more, source: Source::Stale }))
    }

    /// What refers to `digest` in `repo`, from upstream; it is kept by the rule for the tag that stands for such a
    /// list. `None` when upstream does not say and nothing is stored: clients then try that tag and go on.
    pub(super) async fn referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Option<Referrers>, Error> {
        let upstream = self.upstreams.of(repo)?;
        let context = &upstream.settle(context, digest)?;
        let rule = self.rules.find(repo, &Tag::of_referrers(digest));
        let mut kept = self.kept_referrers(repo, digest, context.client()).await?;
        let fetched_at = kept.as_ref().map(|kept| kept.record.fetched_at);
        let serve = async |kept: Option<Kept>, source| {
            let kept = match kept {
                None if fetched_at.is_some() => self.kept_referrers(repo, digest, context.client()).await?,
                kept => kept,
            };
            let list =
                |Kept { record, place }| Referrers { body: record.body, source, place: Some(place.into()) };
            Ok(kept.map(list))
        };
        let mut word = if upstream.state() == State::Up { UpstreamWord::Open } else { UpstreamWord::Silent };
        loop {
            let verdict = match fetched_at {
                Some(at) => freshness::judge(Confirmed { at, revoked: false }, rule, now(), word),
                None if word == UpstreamWord::Open => TagVerdict::CheckOrRefuse,
                None => TagVerdict::Refuse,
            };
            let limit = match verdict {
                TagVerdict::Serve => return serve(kept, Source::Hit).await,
                TagVerdict::ServeStale | TagVerdict::ServeRemoved => return serve(kept, Source::Stale).await,
                TagVerdict::ServeAndCheck => {
                    let (lists, upstream) = (self.clone(), Arc::clone(&upstream));
                    let (repo, digest, context) = (repo.clone(), *digest, context.clone());
                    tokio::spawn(async move {
                        lists.ask_for_referrers(upstream, &repo, &digest, &context, None).await
                    });
                    return serve(kept, Source::Hit).await;
                }
                TagVerdict::Refuse => return Ok(None),
                TagVerdict::CheckFirst => CHECK_DEADLINE,
                TagVerdict::CheckOrRefuse => REFERRERS_DEADLINE,
            };
            // A request that waits for upstream, and for a place in memory there, holds no place here.
            kept = None;
            let limit = Some(context.patience(limit));
            match self.ask_for_referrers(Arc::clone(&upstream), repo, digest, context, limit).await {
                Ok(referrers) => return Ok(Some(referrers)),
                Err(error) => {
                    debug!(repository = %repo, %digest, %error, "upstream does not say what refers to this");
                    word = if error.is_absence() { UpstreamWord::Removed } else { UpstreamWord::Silent };
                }
            }
        }
    }

    /// The list from the store, read once there is a place for it in memory.
    async fn kept_referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        client: Client,
    ) -> Result<Option<Kept>, Error> {
        let bytes = self.store.referrers_bytes(repo, digest).await;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let owner = Owner::new(&repo.registry, client);
        let place = parsing::place(owner, bytes).await.map_err(|_| Error::Busy)?;
        let record = self.store.referrers(repo, digest).await?;
        Ok(record.map(|record| Kept { record, place }))
    }

    /// Asks upstream, together with all requests for the same list, and stores what it says. After `limit` the question
    /// goes on alone.
    async fn ask_for_referrers(
        &self,
        upstream: Arc<Upstream>,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
        limit: Option<Duration>,
    ) -> Result<Referrers, Error> {
        let key = (repo.clone(), *digest, context.level());
        let (lists, repo, digest, context) = (self.clone(), repo.clone(), *digest, context.clone());
        let remember = self.rules.find(&repo, &Tag::of_referrers(&digest)).check_after;
        let work = |progress| async move {
            let context = context.with_progress(progress);
            let listed = upstream.referrers(&context, &repo.name, &digest, remember).await?;
            let listed = listed.unwrap_or(ReferrerList {
                body: EMPTY_INDEX,
                is_empty: true,
                is_stale: false,
                place: None,
            });
            if listed.is_stale || context.is_bypass() {
                // Its age is unknown, or a parent would answer otherwise: what is stored would count as fresh for a
                // while.
                return Ok(listed);
            }
            if let Err(error) = lists.keep_referrers(&repo, &digest, &listed).await {
                warn!(repository = %repo, %digest, %error, "referrers are served but could not be stored");
            }
            Ok(listed)
        };
        let ended = match limit {
            Some(limit) => self.in_flight.run_within(limit, key, work).await,
            None => Some(self.in_flight.run(key, work).await),
        };
        let (listed, joined) = ended.ok_or(upstream::Error::Timeout)?;
        listed.unwrap_or(Err(Error::GivenUp)).map(|ReferrerList { body, is_stale, place, .. }| {
            let source = match (is_stale, joined) {
                (true, _) => Source::Stale,
                (false, true) => Source::Collapsed,
                (false, false) => Source::Miss,
            };
            Referrers { body, source, place }
        })
    }

    /// Stores a list. An empty list is stored only if the manifest is: anybody can ask about any digest in any
    /// repository, and such questions must not fill the disk.
    async fn keep_referrers(&self, repo: &Repo, digest: &Digest, listed: &ReferrerList) -> Result<(), Error> {
        let store = &self.store;
        if listed.is_empty
            && !(store.knows(repo).await? && self.manifests.stored(repo, digest).await?.is_some())
        {
            return Ok(());
        }
        let record = ReferrersRecord { body: listed.body.clone(), fetched_at: now() };
        Ok(store.set_referrers(repo, digest, &record).await?)
    }

    /// At most `n` stored repositories behind `last` that `may_have` says may be pulled. With `private_too` also those
    /// that came with a credential, or would come with one today.
    pub(super) async fn repositories(
        &self,
        n: usize,
        last: Option<Repo>,
        private_too: bool,
        may_have: impl Fn(&Repo) -> bool,
    ) -> Result<Page<Repo>, Error> {
        let mut entries = Vec::new();
        let mut last = last;
        loop {
            let batch = self.store.repositories(last.as_ref(), REPOSITORIES_BATCH, private_too).await?;
            for repo in &batch {
                if !may_have(repo) || !self.is_listed(repo, private_too).await {
                    continue;
                }
                if entries.len() == n {
                    return Ok(Page { entries, more: true, source: Source::Hit });
                }
                entries.push(repo.clone());
            }
            if batch.len() < REPOSITORIES_BATCH {
                return Ok(Page { entries, more: false, source: Source::Hit });
            }
            last = batch.last().cloned();
        }
    }

    /// Whether a stored repository is shown in a list: it may have been public and need a login today, or its registry
    /// may be gone.
    async fn is_listed(&self, repo: &Repo, private_too: bool) -> bool {
        match self.upstreams.of(repo) {
            Ok(upstream) => private_too || !upstream.is_known_private(&repo.name).await,
            Err(_) => false,
        }
    }
}
