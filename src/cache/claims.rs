//! What a repository's registry says of content that it has not sent for it: a claim, and what that proves.
//!
//! Within one registry a claim with the right size is a proof: the registry may show what it holds to more of its
//! repositories. It says nothing about what another registry sent; how large that is it does not even learn. A claim that
//! is refuted is remembered, counted and logged.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::warn;

use super::error::Error;
use super::flight::Reader;
use super::{Cache, blob_path};
use crate::context::RequestContext;
use crate::oci::{Digest, Repo, Speaker};
use crate::store::{BlobFile, Grant, Proof};
use crate::sync::lock;
use crate::upstream::Claim;

/// For how long a reader waits for another repository's transfer to begin: that may be kept waiting by a fallback, which
/// this reader does not need.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);

impl Cache {
    /// Asks the repository's own registry whether it has stored content of `stored` bytes there, if the registry may say
    /// so: then it is granted for good. Otherwise it must be sent.
    pub(super) async fn prove(
        &self,
        repo: &Repo,
        digest: &Digest,
        stored: u64,
        context: &RequestContext,
    ) -> Result<bool, Error> {
        let registries = self.one_with(&repo.registry);
        let store = &self.0.store;
        if !store.is_vouched(registries, digest, Speaker::Registry).await || self.was_refuted(repo, digest) {
            return Ok(false);
        }
        let Some(Claim { size, speaker }) = self.measured_claim(repo, digest, context).await? else {
            return Ok(false);
        };
        if !store.is_vouched(registries, digest, speaker).await {
            return Ok(false);
        }
        // Some servers say yes to everything.
        if size != stored {
            self.refuted(repo, digest);
            return Ok(false);
        }
        // To this repository alone, even if anybody may ask there: only content that came without a credential is public,
        // and this is a claim about it.
        let stated = Grant { public: false, proof: Some(Proof::Stated), speaker };
        store.grant(repo, digest, stated).await?;
        Ok(true)
    }

    /// Asks the repository's own registry whether it has a content there, and how large it is.
    pub(super) async fn claim(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Claim, Error> {
        self.not_absent(repo, &blob_path(digest))?;
        Ok(self.asked_claim(repo, digest, context).await?.0)
    }

    /// The same; none if it does not say how large it is. That is nothing that could be right or wrong: so it must be sent.
    pub(super) async fn measured_claim(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Option<Claim>, Error> {
        match self.claim(repo, digest, context).await {
            Err(error) if error.is_unmeasured() => Ok(None),
            claim => claim.map(Some),
        }
    }

    /// What a transfer brings for a reader; none if that does better to ask by itself: it reads along by a claim that is not
    /// about what comes, or what its own registry has comes from a fallback, which may lie or stand still.
    pub(super) async fn file_of(
        &self,
        reader: &mut Reader,
        claim: Option<Claim>,
        repo: &Repo,
        digest: &Digest,
    ) -> Option<Result<Option<BlobFile>, Error>> {
        let has_fallbacks = || self.upstream(repo).is_ok_and(|upstream| upstream.has_fallbacks());
        if reader.is_its_own(repo) || (claim.is_none() && !has_fallbacks()) {
            return Some(reader.file().await);
        }
        let file = timeout(OTHERS_PATIENCE, reader.file()).await.ok()?;
        if !matches!(file, Ok(Some(_))) {
            return Some(file);
        }
        let needs_fallback = claim.is_some_and(|claim| claim.speaker == Speaker::Fallback);
        if reader.is_by_fallback() && !needs_fallback {
            return None;
        }
        if let Some(claim) = claim {
            // As long as the size is not known, no claim can have the right one.
            let total = reader.total();
            if total != Some(claim.size) {
                if total.is_some() {
                    self.refuted(repo, digest);
                }
                return None;
            }
        }
        Some(file)
    }

    /// The same, and whether another request was asking already.
    pub(super) async fn asked_claim(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(Claim, bool), Error> {
        let upstream = self.upstream(repo)?.into_owned();
        let context = upstream.settle(context, digest)?;
        let key = (repo.clone(), *digest, context.level());
        let (name, asked, way) = (repo.name.clone(), *digest, context.clone());
        let work = |progress| async move {
            Ok(upstream.claim_of_blob(&way.with_progress(progress), &name, &asked).await?)
        };
        let (claim, joined) = self.0.claims.run(key, work).await;
        match claim.unwrap_or(Err(Error::GivenUp)) {
            Ok(claim) => Ok((claim, joined)),
            Err(error) if error.is_unmeasured() => Err(error),
            Err(error) => Err(self.remember(repo, &blob_path(digest), &context, error)),
        }
    }

    /// A registry's claim about a content was wrong: it is not asked for another for a while.
    pub(super) fn refuted(&self, repo: &Repo, digest: &Digest) {
        warn!(repository = %repo, %digest, "the registry says that this is there, of another size than it has: a claim that proves nothing");
        self.0.metrics.refuted_claims.inc();
        let key = (repo.clone(), claim_path(digest));
        lock(&self.0.absent).put(key, (Instant::now(), Error::Mismatch));
    }

    fn was_refuted(&self, repo: &Repo, digest: &Digest) -> bool {
        self.not_absent(repo, &claim_path(digest)).is_err()
    }
}

/// What a claim to a blob is remembered by when it was wrong.
fn claim_path(digest: &Digest) -> String {
    format!("claims/{digest}")
}
