//! Claims: what the registry of a repository says of content that it has not sent for it, and what that proves.
//!
//! Within one registry a claim with the right size is a proof: the registry may show what it holds to more of its
//! repositories. It proves nothing about what another registry sent; a registry does not even learn how large that is.
//! A wrong claim is remembered, counted and logged.

use std::sync::Arc;

use tracing::warn;

use super::error::Error;
use super::negative_cache::{Lookup, NegativeCache};
use super::upstreams::Upstreams;
use crate::context::RequestContext;
use crate::oci::{Digest, Repo, Speaker};
use crate::singleflight::SingleFlight;
use crate::store::{Grant, Proof, Store};
use crate::telemetry::Metrics;
use crate::upstream::Claim;

/// A blob of a repository, and the hop count of the requests that share a HEAD.
type Key = (Repo, Digest, usize);

/// Asks registries for claims, and judges them.
#[derive(Clone)]
pub(super) struct Claims {
    store: Store,
    metrics: Arc<Metrics>,
    upstreams: Arc<Upstreams>,
    negative: Arc<NegativeCache>,
    /// A HEAD is shared only by requests with the same hop count: see [`RequestContext`].
    in_flight: Arc<SingleFlight<Key, Result<Claim, Error>>>,
}

impl Claims {
    pub(super) fn new(
        store: &Store,
        metrics: &Arc<Metrics>,
        upstreams: &Arc<Upstreams>,
        negative: &Arc<NegativeCache>,
    ) -> Self {
        Self {
            store: store.clone(),
            metrics: Arc::clone(metrics),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            in_flight: Arc::default(),
        }
    }

    /// The same state under another configuration.
    pub(super) fn with(&self, upstreams: &Arc<Upstreams>) -> Self {
        Self { upstreams: Arc::clone(upstreams), ..self.clone() }
    }

    /// Detaches what the upstreams of these repositories are being asked: later requests ask anew.
    pub(super) fn detach(&self, is_meant: impl Fn(&Repo) -> bool) {
        self.in_flight.detach(|(repo, ..)| is_meant(repo));
    }

    /// Asks the registry of `repo` whether it has stored content of `stored` bytes there, if the registry may say so.
    /// If its claim is right, the content is granted for good; otherwise it must be sent.
    pub(super) async fn authorize_by_head(
        &self,
        repo: &Repo,
        digest: &Digest,
        stored: u64,
        context: &RequestContext,
    ) -> Result<bool, Error> {
        let registries = self.upstreams.one_with(&repo.registry);
        let store = &self.store;
        if !store.is_vouched(registries, digest, Speaker::Registry).await || self.was_refuted(repo, digest) {
            return Ok(false);
        }
        let Some(Claim { size, speaker }) = self.measured(repo, digest, context).await? else {
            return Ok(false);
        };
        if !store.is_vouched(registries, digest, speaker).await {
            return Ok(false);
        }
        // Some servers say yes to everything.
        if size != stored {
            self.refute(repo, digest);
            return Ok(false);
        }
        // Only this repository gets the grant, even if anybody may ask there: only content that came without a
        // credential is public, and this is a mere claim about it.
        let stated = Grant { public: false, proof: Some(Proof::Stated), speaker };
        store.grant(repo, digest, stated).await?;
        Ok(true)
    }

    /// Asks the registry of `repo` whether it has a content there, and how large it is. `None` if it does not say how
    /// large: such a claim can be neither right nor wrong, so the content must be sent.
    pub(super) async fn measured(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Option<Claim>, Error> {
        self.negative.check(repo, Lookup::Blob(*digest))?;
        match self.ask(repo, digest, context).await {
            Err(error) if error.is_unmeasured() => Ok(None),
            claim => claim.map(|(claim, _)| Some(claim)),
        }
    }

    /// Asks the registry of `repo`, whatever it said a moment ago. The flag says whether another request was asking
    /// already.
    pub(super) async fn ask(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(Claim, bool), Error> {
        let upstream = self.upstreams.of(repo)?.into_owned();
        let context = upstream.settle(context, digest)?;
        let key = (repo.clone(), *digest, context.level());
        let (name, asked, way) = (repo.name.clone(), *digest, context.clone());
        let work = |progress| async move {
            Ok(upstream.claim_of_blob(&way.with_progress(progress), &name, &asked).await?)
        };
        let (claim, joined) = self.in_flight.run(key, work).await;
        match claim.unwrap_or(Err(Error::GivenUp)) {
            Ok(claim) => Ok((claim, joined)),
            Err(error) if error.is_unmeasured() => Err(error),
            Err(error) => {
                Err(self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), &context, error))
            }
        }
    }

    /// Notes that the claim of a registry was wrong: it is not asked for another for a while.
    pub(super) fn refute(&self, repo: &Repo, digest: &Digest) {
        warn!(repository = %repo, %digest, "the registry says that this is there, of another size than it has: a claim that proves nothing");
        self.metrics.refuted_claims.inc();
        self.negative.refuse(repo, Lookup::Claim(*digest), Error::Mismatch);
    }

    fn was_refuted(&self, repo: &Repo, digest: &Digest) -> bool {
        self.negative.check(repo, Lookup::Claim(*digest)).is_err()
    }
}
