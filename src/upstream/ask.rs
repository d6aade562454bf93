//! What an upstream is asked: each is a loop over the endpoints that the request may go to.
//!
//! HEAD is optional for registries and their proxies, and its answer has no body that says who refuses: a refusal of a
//! tag's look-up by HEAD leaves it to the GET, and so does a server's error at the end of all rounds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Upstream;
use super::attempts::{Attempts, ROUNDS_MAX, Rounds};
use crate::context::RequestContext;
use crate::oci::{Digest, Range, Reference, RepoName, Tag};
use crate::remote::endpoint::latency::LateSignal;
use crate::remote::error::Error;
use crate::remote::requests::blobs::{self, BlobStream, Claim, PAGE, Wanted};
use crate::remote::requests::lists::{self, PageQuery, ReferrerList, TagPage, tags};
use crate::remote::requests::login_check::{LoginCheck, Trial};
use crate::remote::requests::manifests::{self, Fetched, Resolved, Untold};
use crate::sync::lock;

impl Upstream {
    /// Asks what `tag` means.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn resolve(
        &self,
        context: &RequestContext,
        name: &RepoName,
        tag: &Tag,
        attempts: Attempts,
    ) -> Result<Resolved, Error> {
        let (deadline, late) = (self.own.deadline(), &LateSignal::default());
        let route = self.route(&self.key_of_tag(name, tag), context);
        let rounds = Rounds::new(route, &[], attempts.rounds_max(), deadline).hedging(late);
        let is_refused = &AtomicBool::new(false);
        let resolved = rounds.first(|candidate| async move {
            let target = candidate.target();
            let resolved = manifests::resolve(target, (context, late), (name, tag), deadline).await;
            if let Err(error) = &resolved {
                // A berth has asked by GET itself.
                let is_word = !target.remote().is_berth() && !error.is_outage();
                is_refused.fetch_or(is_word, Ordering::Relaxed);
            }
            resolved
        });
        match resolved.await {
            Err(_) if is_refused.load(Ordering::Relaxed) => Ok(Resolved::unknown(Untold::Refused)),
            // Where there is something to serve instead, a GET of what is likely to be an outage is not worth it.
            Err(Error::Unavailable { status: 500.. }) if attempts == Attempts::Rounds => {
                Ok(Resolved::unknown(Untold::Failed))
            }
            resolved => resolved,
        }
    }

    /// Fetches a manifest.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none had it.
    pub async fn manifest(
        &self,
        context: &RequestContext,
        name: &RepoName,
        reference: &Reference,
        attempts: Attempts,
    ) -> Result<Fetched, Error> {
        self.manifest_until(context, name, reference, attempts, self.own.deadline()).await
    }

    /// As [`Upstream::manifest`], as a part of a longer request.
    async fn manifest_until(
        &self,
        context: &RequestContext,
        name: &RepoName,
        reference: &Reference,
        attempts: Attempts,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let key = match reference {
            Reference::Digest(digest) => digest.to_string(),
            Reference::Tag(tag) => self.key_of_tag(name, tag),
        };
        let late = &LateSignal::default();
        let route = self.route(&key, context);
        let mut rounds = Rounds::new(route, &[], attempts.rounds_max(), deadline).hedging(late);
        while let Some((candidate, answer)) = rounds
            .answer(|candidate| async move {
                manifests::open(candidate.target(), (context, late), (name, reference), deadline).await
            })
            .await
        {
            match manifests::read(candidate.target(), context, answer, reference, deadline).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => rounds.failed(candidate, error),
            }
        }
        Err(rounds.give_up())
    }

    /// Asks for the size of a blob, and so whether it is there and may be had.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none knew.
    pub async fn head_blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<u64, Error> {
        Ok(self.claim_of_blob(context, name, digest).await?.size)
    }

    /// The same, with who claims to have it.
    ///
    /// # Errors
    /// As [`Upstream::head_blob`].
    pub async fn claim_of_blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<Claim, Error> {
        let (deadline, late) = (self.own.deadline(), &LateSignal::default());
        let route = self.route(&digest.to_string(), context);
        let rounds = Rounds::new(route, &[], ROUNDS_MAX, deadline).hedging(late);
        rounds
            .first(|candidate| async move {
                blobs::claim(candidate.target(), (context, late), name, digest, deadline).await
            })
            .await
    }

    /// Opens a blob, or a part of it. With `total`, only a content of that size is accepted. Endpoints in `avoid`
    /// are asked last; what they say of a size beside the body is not asked for.
    ///
    /// # Errors
    /// [`Error::Changed`] if the size is another one; else [`Error`], the last endpoint's if none had it.
    pub async fn blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
        range: Option<Range>,
        total: Option<u64>,
        avoid: &[usize],
    ) -> Result<BlobStream, Error> {
        let (deadline, late) = (self.own.deadline(), &LateSignal::default());
        let mut rounds = Rounds::new(self.route(&digest.to_string(), context), avoid, ROUNDS_MAX, deadline);
        if avoid.is_empty() {
            // An endpoint that is to be avoided is none to be asked beside another.
            rounds = rounds.hedging(late);
        }
        let wanted = &Wanted::new((name, digest), range, total).measured(avoid.is_empty());
        let page = &Mutex::new(None);
        let found = rounds
            .first(|candidate| async move {
                let stream = blobs::open(candidate.target(), (context, late), wanted, deadline).await?;
                if stream.is_page {
                    *lock(page) = Some(stream);
                    return Err(PAGE);
                }
                Ok(stream)
            })
            .await;
        found.or_else(|error| lock(page).take().ok_or(error))
    }

    /// What refers to `digest`; `None` if upstream says that nothing does. Registries without
    /// the referrers API keep such an index under a tag; which of them do is remembered for `remember`.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn referrers(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
        remember: Duration,
    ) -> Result<Option<ReferrerList>, Error> {
        let deadline = self.own.deadline();
        let rounds = Rounds::new(self.route(&digest.to_string(), context), &[], ROUNDS_MAX, deadline);
        let listed = rounds.first(|candidate| async move {
            lists::referrers(candidate.target(), context, (name, digest), remember, deadline).await
        });
        let refusal = match listed.await {
            Ok(listed) => return Ok(Some(listed)),
            Err(refusal @ (Error::NotFound | Error::Denied)) => refusal,
            Err(error) => return Err(error),
        };
        match (self.referrers_by_tag(context, name, digest, deadline).await?, refusal) {
            // Whoever may not ask does not know that there is nothing.
            (None, Error::Denied) => Err(Error::Denied),
            (listed, _) => Ok(listed),
        }
    }

    async fn referrers_by_tag(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<ReferrerList>, Error> {
        if self.is_short() {
            // What refers to an image can be done without; an image cannot.
            return Err(Error::Limited { retry_after: None });
        }
        let tag = Reference::Tag(Tag::of_referrers(digest));
        match self.manifest_until(context, name, &tag, Attempts::Rounds, deadline).await {
            Ok(fetched) => lists::in_manifest(fetched, digest).await,
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The tags of a repository: the page that `page` means.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn tags(
        &self,
        context: &RequestContext,
        name: &RepoName,
        page: &PageQuery,
    ) -> Result<TagPage, Error> {
        let deadline = self.own.deadline();
        let key = format!("{}/{name}", self.registry());
        let mut rounds = Rounds::new(self.route(&key, context), &[], ROUNDS_MAX, deadline);
        let is_sealed = rounds.keep_if_any(|candidate| tags::has_sent(candidate.target(), page, name));
        if page.needs_seal() && !is_sealed {
            return Err(Error::UnknownCursor);
        }
        let query = &if is_sealed { page.as_sent() } else { page.as_known() };
        let plain = &page.without_page_size().filter(|_| !is_sealed);
        rounds
            .first(|candidate| async move {
                let target = candidate.target();
                match tags::tags(target, context, name, query.clone(), deadline).await {
                    Err(error) if error.is_about_the_question() => match plain {
                        Some(plain) => tags::tags(target, context, name, plain.clone(), deadline).await,
                        None => Err(error),
                    },
                    answer => answer,
                }
            })
            .await
    }

    /// Tries every login that there is for this registry, one after the other, at every endpoint, those of its
    /// parents first and those of its fallbacks last; if it is to be asked without any, that. Each has the time of one request.
    pub async fn try_logins(&self) -> Vec<Trial> {
        let mut trials = Vec::new();
        for parent in self.parents() {
            trials.extend(LoginCheck::of(&parent).logins().await);
        }
        if !self.own.endpoints().is_empty() {
            trials.extend(LoginCheck::of(&self.own).logins().await);
        }
        for fallback in &self.fallbacks {
            trials.extend(LoginCheck::of(fallback).logins().await);
        }
        trials
    }

    /// Asks every one of these endpoints for an image as a pull does; without a reference, for whatever there is in the
    /// repository.
    pub async fn try_pull(&self, name: &RepoName, reference: Option<&Reference>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for remote in self.parents().iter().chain([&self.own]).chain(&self.fallbacks) {
            trials.extend(LoginCheck::of(remote).pull(name, reference).await);
        }
        trials
    }

    /// What an operator should know of its configuration, though berth can work with it.
    pub fn warnings(&self) -> Vec<String> {
        let parents = self.parents();
        let all = std::iter::once(&self.own).chain(&parents).chain(&self.fallbacks);
        all.flat_map(|remote| remote.warnings()).collect()
    }
}
