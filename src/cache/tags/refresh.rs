//! Refreshes: checks that an operator asks for. They are made now, whatever a rule or a remembered answer says.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checks::{CheckedTag, TagChecks};
use crate::cache::error::Error;
use crate::cache::negative_cache::NegativeCache;
use crate::cache::upstreams::Upstreams;
use crate::oci::{Digest, Image, Reference, Repo, Tag};
use crate::store::Store;

/// Tags of one repository that are checked at once, for one command.
const TAGS_AT_ONCE: usize = 8;
/// How long a command waits for a check, which goes on after that.
const DEADLINE: Duration = Duration::from_secs(20);
const STALE: &str = "the parent that was asked could not ask the registry";

/// The result of a refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// The tag.
    #[serde(rename = "ref")]
    pub image: Image,
    /// What upstream says of it.
    #[serde(flatten)]
    pub outcome: RefreshOutcome,
}

/// What upstream says of a tag now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum RefreshOutcome {
    /// The tag means what was known.
    Unchanged {
        /// What the tag means.
        digest: Digest,
    },
    /// The tag means something else than was known. That is served from now on.
    Moved {
        /// What it meant.
        from: Digest,
        /// What it means.
        to: Digest,
    },
    /// Nothing was known of the tag.
    New {
        /// What the tag means.
        digest: Digest,
    },
    /// There is no such tag, or none for us.
    Gone {
        /// The answer of upstream.
        error: String,
    },
    /// Upstream could not be asked: what is known stays as it was.
    Failed {
        /// Why upstream could not be asked.
        error: String,
    },
}

impl RefreshOutcome {
    /// Whether upstream has confirmed that there is such a tag.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Unchanged { .. } | Self::Moved { .. } | Self::New { .. })
    }
}

/// Makes refreshes under one configuration.
#[derive(Clone)]
pub(in crate::cache) struct Refresher {
    store: Store,
    upstreams: Arc<Upstreams>,
    negative: Arc<NegativeCache>,
    checks: Arc<TagChecks>,
}

impl Refresher {
    pub(in crate::cache) fn new(
        store: &Store,
        upstreams: &Arc<Upstreams>,
        negative: &Arc<NegativeCache>,
        checks: &Arc<TagChecks>,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            checks: Arc::clone(checks),
        }
    }

    /// Asks upstream what a tag means now. Remembered refusals of content of its repository are forgotten.
    pub(in crate::cache) async fn refresh(&self, repo: &Repo, tag: &Tag) -> Result<Refreshed, Error> {
        let upstream = self.upstreams.of(repo)?;
        self.negative.forget_refusals(|of| of == repo);
        self.checks.ask_again(repo, tag);
        let before = self.store.tag(repo, tag).await?.map(|record| record.digest);
        let outcome = match (before, self.checks.check_anew(&upstream, repo, tag, DEADLINE).await?) {
            (_, Ok(CheckedTag { is_stale: true, .. })) => RefreshOutcome::Failed { error: STALE.to_owned() },
            (None, Ok(CheckedTag { record, .. })) => RefreshOutcome::New { digest: record.digest },
            (Some(before), Ok(CheckedTag { record, .. })) if before == record.digest => {
                RefreshOutcome::Unchanged { digest: before }
            }
            (Some(from), Ok(CheckedTag { record, .. })) => RefreshOutcome::Moved { from, to: record.digest },
            (_, Err(error)) if error.is_absence() => RefreshOutcome::Gone { error: error.to_string() },
            (_, Err(error)) => RefreshOutcome::Failed { error: error.to_string() },
        };
        let image = Image { repo: repo.clone(), reference: Reference::Tag(tag.clone()) };
        Ok(Refreshed { image, outcome })
    }

    /// The same for some of the tags of `repo` that are known here, in byte order, behind `after`. The flag says
    /// whether there are more.
    pub(in crate::cache) async fn refresh_known(
        &self,
        repo: &Repo,
        after: Option<&Tag>,
    ) -> Result<(Vec<Refreshed>, bool), Error> {
        self.upstreams.of(repo)?;
        let mut tags = self.store.tags(repo, after.map(Tag::as_str), TAGS_AT_ONCE + 1).await?;
        let more = tags.len() > TAGS_AT_ONCE;
        tags.truncate(TAGS_AT_ONCE);
        let checks: Vec<_> = tags
            .into_iter()
            .map(|tag| {
                let (refresher, repo) = (self.clone(), repo.clone());
                tokio::spawn(async move { refresher.refresh(&repo, &tag).await })
            })
            .collect();
        let mut refreshed = Vec::with_capacity(checks.len());
        for check in checks {
            refreshed.push(check.await.map_err(|_| Error::GivenUp)??);
        }
        Ok((refreshed, more))
    }
}
