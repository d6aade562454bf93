//! Listings: tags, referrers, repositories. Upstream's own list while it answers, else what is stored.
//!
//! Upstream is asked once for all who want the same list of referrers at the same time, and nobody waits long
//! for what could come from disk.
//!
//! A list shows only what came without a credential, unless the configuration says otherwise; the caller
//! decides that, this module says whether a repository is public.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::error::Error;
use super::freshness::{self, Confirmed, Verdict, Word};
use super::tags::{CHECK_DEADLINE, REFERRERS_DEADLINE};
use super::{Cache, now};
use crate::context::RequestContext;
use crate::oci::{Digest, Repo, Tag};
use crate::store::ReferrersRecord;
use crate::telemetry::metrics::Source;
use crate::upstream::{self, ReferrerList, State, Upstream};

/// Upstream's "nothing refers to this".
const EMPTY_INDEX: Bytes = Bytes::from_static(
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
);

/// Part of a list, in byte order.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Whether there are more behind the last.
    pub more: bool,
    /// How it was come by.
    pub source: Source,
}

/// What refers to a manifest.
#[derive(Clone, Debug)]
pub struct Referrers {
    /// An image index.
    pub body: Bytes,
    /// How it was come by.
    pub source: Source,
}

/// An image index, as far as it says whether it is empty.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<IgnoredAny>,
}

impl Cache {
    /// Whether what `repo` holds comes without a credential.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub async fn is_public(&self, repo: &Repo) -> Result<bool, Error> {
        Ok(self.upstream(repo)?.is_public(&repo.name).await)
    }

    /// Whether this content of `repo` is for everybody: it comes without a credential, and did so when it came. Another
    /// configuration may have had one.
    ///
    /// # Errors
    /// [`Error::NoUpstream`], or [`Error::Store`].
    pub async fn is_for_everybody(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let is_public = self.is_public(repo).await? && !self.0.flights.is_private(digest);
        Ok(is_public && !self.0.store.is_private(repo, digest).await?)
    }

    /// Whether that is known from the answers of parents only.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub fn has_parents(&self, repo: &Repo) -> Result<bool, Error> {
        Ok(self.upstream(repo)?.has_parents())
    }

    /// At most `n` tags of `repo` behind `last`. `context`: where the request has come from.
    ///
    /// # Errors
    /// [`Error`], when upstream says that there is no such repository, or cannot be asked and nothing is stored.
    pub async fn tags(
        &self,
        repo: &Repo,
        n: usize,
        last: Option<&str>,
        context: &RequestContext,
    ) -> Result<Page<Tag>, Error> {
        let upstream = self.upstream(repo)?;
        let is_known = self.0.store.knows(repo).await?;
        let state = upstream.state();
        let error = if state == State::Up {
            let asked = upstream.tags(context, &repo.name, n, last);
            let listed = if is_known {
                timeout(context.patience(CHECK_DEADLINE), asked)
                    .await
                    .unwrap_or(Err(upstream::Error::Timeout))
            } else {
                asked.await
            };
            match listed {
                Ok(page) => return Ok(Page { entries: page.tags, more: page.more, source: Source::Miss }),
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
        let mut entries = self.0.store.tags(repo, last, n.saturating_add(1)).await?;
        let more = entries.len() > n;
        entries.truncate(n);
        Ok(Page { entries, more, source: Source::Stale })
    }

    /// What refers to `digest` in `repo`, by upstream's word, which is kept by the rule for the tag that stands for such
    /// a list. None when upstream does not say and nothing is known: clients then try that tag and go on.
    ///
    /// # Errors
    /// [`Error`], when the registry is not configured or the disk fails.
    pub async fn referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Option<Referrers>, Error> {
        let upstream = self.upstream(repo)?;
        let context = &upstream.settle(context, digest)?;
        let rule = self.0.rules.find(repo, &Tag::of_referrers(digest));
        let known = self.0.store.referrers(repo, digest).await?;
        let kept = |source| known.as_ref().map(|known| Referrers { body: known.body.clone(), source });
        let mut word = if upstream.state() == State::Up { Word::Open } else { Word::Silent };
        loop {
            let verdict = match &known {
                Some(known) => {
                    let confirmed = Confirmed { at: known.fetched_at, revoked: false };
                    freshness::judge(confirmed, rule, now(), word)
                }
                None if word == Word::Open => Verdict::CheckOrRefuse,
                None => Verdict::Refuse,
            };
            let limit = match verdict {
                Verdict::Serve => return Ok(kept(Source::Hit)),
                Verdict::ServeStale | Verdict::ServeRemoved => return Ok(kept(Source::Stale)),
                Verdict::ServeAndCheck => {
                    let (cache, upstream) = (self.clone(), Arc::clone(upstream));
                    let (repo, digest, context) = (repo.clone(), *digest, context.clone());
                    tokio::spawn(async move {
                        cache.ask_for_referrers(upstream, &repo, &digest, &context, None).await
                    });
                    return Ok(kept(Source::Hit));
                }
                Verdict::Refuse => return Ok(None),
                Verdict::CheckFirst => CHECK_DEADLINE,
                Verdict::CheckOrRefuse => REFERRERS_DEADLINE,
            };
            let limit = Some(context.patience(limit));
            match self.ask_for_referrers(Arc::clone(upstream), repo, digest, context, limit).await {
                Ok(referrers) => return Ok(Some(referrers)),
                Err(error) => {
                    debug!(repository = %repo, %digest, %error, "upstream does not say what refers to this");
                    word = if error.is_absence() { Word::Removed } else { Word::Silent };
                }
            }
        }
    }

    /// Asks upstream, together with whoever else is asking, and keeps what it says. After `limit` it goes on alone.
    async fn ask_for_referrers(
        &self,
        upstream: Arc<Upstream>,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
        limit: Option<Duration>,
    ) -> Result<Referrers, Error> {
        let key = (repo.clone(), *digest, context.level());
        let (cache, repo, digest, context) = (self.clone(), repo.clone(), *digest, context.clone());
        let work = |progress| async move {
            let context = context.with_progress(progress);
            let listed = upstream.referrers(&context, &repo.name, &digest).await?;
            let listed = listed.unwrap_or(ReferrerList { body: EMPTY_INDEX, is_stale: false });
            if listed.is_stale || context.is_bypass() {
                // It is of unknown age, or not what a parent would say: what is kept counts as fresh for a while.
                return Ok(listed);
            }
            if let Err(error) = cache.keep_referrers(&repo, &digest, &listed.body).await {
                warn!(repository = %repo, %digest, %error, "referrers are served but could not be stored");
            }
            Ok(listed)
        };
        let ended = match limit {
            Some(limit) => self.0.referrers.run_within(limit, key, work).await,
            None => Some(self.0.referrers.run(key, work).await),
        };
        let (listed, joined) = ended.ok_or(upstream::Error::Timeout)?;
        listed.unwrap_or(Err(Error::GivenUp)).map(|ReferrerList { body, is_stale }| {
            let source = match (is_stale, joined) {
                (true, _) => Source::Stale,
                (false, true) => Source::Join,
                (false, false) => Source::Miss,
            };
            Referrers { body, source }
        })
    }

    /// Stores a list. That nothing refers to a manifest is kept only if that manifest is here: anybody can ask
    /// about any digest in any repository, and such questions must not fill the disk.
    async fn keep_referrers(&self, repo: &Repo, digest: &Digest, body: &Bytes) -> Result<(), Error> {
        let store = &self.0.store;
        let is_empty = serde_json::from_slice(body).is_ok_and(|index: Index| index.manifests.is_empty());
        if is_empty && !(store.knows(repo).await? && self.stored_manifest(repo, digest).await?.is_some()) {
            return Ok(());
        }
        let record = ReferrersRecord { body: body.clone(), fetched_at: now() };
        Ok(store.set_referrers(repo, digest, &record).await?)
    }

    /// At most `n` stored repositories behind `last`; those that came with a credential only if asked for.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn repositories(
        &self,
        n: usize,
        last: Option<&Repo>,
        private_too: bool,
    ) -> Result<Page<Repo>, Error> {
        let mut entries = self.0.store.repositories(last, n.saturating_add(1), private_too).await?;
        let more = entries.len() > n;
        entries.truncate(n);
        Ok(Page { entries, more, source: Source::Hit })
    }
}
