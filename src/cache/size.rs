//! How large a blob is, for a HEAD: by what is stored, by the flight that brings it, or by upstream's word.

use super::error::Error;
use super::{Cache, blob_path};
use crate::context::RequestContext;
use crate::oci::{Digest, Reference, Repo, Speaker};
use crate::telemetry::metrics::Source;
use crate::upstream::Claim;

/// How large a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its bytes; none where upstream has it and does not say how many they are.
    pub bytes: Option<u64>,
    /// Whose word it is.
    pub speaker: Speaker,
}

impl Cache {
    /// The size of a blob of `repo`, if upstream says that, for a HEAD, and by whose word: upstream is asked for no byte of
    /// the content.
    ///
    /// # Errors
    /// [`Error`], as for [`Cache::blob`].
    pub async fn blob_size(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(Size, Source), Error> {
        match self.find_size(repo, digest, context).await {
            Ok(found) => Ok(found),
            Err(error) => Err(self.explain(repo, &Reference::Digest(*digest), error).await),
        }
    }

    async fn find_size(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(Size, Source), Error> {
        let upstream = self.upstream(repo)?;
        let known = |size| Size { bytes: Some(size), speaker: Speaker::Registry };
        if let Some(stored) = self.0.store.blob_at_hand(repo, digest) {
            return Ok((known(stored.size), Source::Hit));
        }
        let (granted, stored) = self.0.store.find(repo, digest).await?;
        match stored {
            Some(stored) if granted => return Ok((known(stored.size), Source::Hit)),
            _ if granted => {}
            _ => self.not_absent(repo, &blob_path(digest))?,
        }
        if let Some(total) = self.0.flights.total(&self.key(repo, digest), repo, granted) {
            // A transfer may be a fallback's.
            let may_be_others = !granted && upstream.has_fallbacks();
            let speaker = if may_be_others { Speaker::Fallback } else { Speaker::Registry };
            return Ok((Size { bytes: total, speaker }, Source::Join));
        }
        match self.asked_claim(repo, digest, context).await {
            Ok((Claim { size, speaker }, joined)) => {
                let source = if joined { Source::Join } else { Source::Miss };
                Ok((Size { bytes: Some(size), speaker }, source))
            }
            // It is there. Whoever says so may be a fallback, or a parent that passes on what that says.
            Err(error) if error.is_unmeasured() => {
                Ok((Size { bytes: None, speaker: Speaker::Fallback }, Source::Miss))
            }
            Err(error) => Err(error),
        }
    }
}
