//! A check that somebody has asked for by name: now, whatever a rule or a remembered answer says.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Cache;
use super::error::Error;
use super::tags::{Known, check_key};
use crate::context::RequestContext;
use crate::oci::{Digest, Image, Reference, Repo, Tag};
use crate::sync::lock;
use crate::upstream::{self};

/// Tags of one repository that are checked at once, for one command.
const TAGS_AT_ONCE: usize = 8;
/// How long somebody waits for a check; it goes on after that.
const DEADLINE: Duration = Duration::from_secs(20);
const STALE: &str = "the parent that was asked could not ask the registry";

/// What came of the check of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// The tag.
    #[serde(rename = "ref")]
    pub image: Image,
    /// What upstream says.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What upstream says of a tag now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// What was known.
    Unchanged {
        /// What the tag means.
        digest: Digest,
    },
    /// Something else than was known, which is served from now on.
    Moved {
        /// What it meant.
        from: Digest,
        /// What it means.
        to: Digest,
    },
    /// Nothing was known.
    New {
        /// What the tag means.
        digest: Digest,
    },
    /// There is no such tag, or none for us.
    Gone {
        /// Which of these.
        error: String,
    },
    /// Nothing: what is known stays as it was.
    Failed {
        /// Why it could not be asked.
        error: String,
    },
}

impl Outcome {
    /// Whether upstream has confirmed that there is such a tag.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Unchanged { .. } | Self::Moved { .. } | Self::New { .. })
    }
}

impl Cache {
    /// Asks upstream what a tag means now. Remembered refusals of content of its repository are forgotten.
    ///
    /// # Errors
    /// [`Error::NoUpstream`], and [`Error::Store`] when what is known cannot be read. Everything else is an outcome.
    pub async fn refresh(&self, repo: &Repo, tag: &Tag) -> Result<Refreshed, Error> {
        let upstream = self.upstream(repo)?;
        let upstream = &*upstream;
        self.forget_absences(|of| of == repo);
        self.0.doubts.forget(repo, tag);
        let before = self.0.store.tag(repo, tag).await?.map(|record| record.digest);
        let context = RequestContext::default();
        let work = |progress| self.checking(upstream, repo, tag, context.clone().with_progress(progress));
        let key = check_key(upstream, repo, tag, &context)?;
        let until = Instant::now() + DEADLINE;
        let check = async || {
            let left = until.saturating_duration_since(Instant::now());
            self.0.checks.run_within(left, key.clone(), work).await
        };
        let checks = async {
            match check().await? {
                // It had begun before, and may have been answered before whatever this is about has happened.
                (_, true) => Some(check().await?.0),
                (result, false) => Some(result),
            }
        };
        let checked = checks.await.unwrap_or(Some(Err(upstream::Error::Timeout.into())));
        let outcome = match (before, checked.unwrap_or(Err(Error::GivenUp))) {
            (_, Ok(Known { is_stale: true, .. })) => Outcome::Failed { error: STALE.to_owned() },
            (None, Ok(Known { record, .. })) => Outcome::New { digest: record.digest },
            (Some(before), Ok(Known { record, .. })) if before == record.digest => {
                Outcome::Unchanged { digest: before }
            }
            (Some(from), Ok(Known { record, .. })) => Outcome::Moved { from, to: record.digest },
            (_, Err(error)) if error.is_absence() => Outcome::Gone { error: error.to_string() },
            (_, Err(error)) => Outcome::Failed { error: error.to_string() },
        };
        let image = Image { repo: repo.clone(), reference: Reference::Tag(tag.clone()) };
        Ok(Refreshed { image, outcome })
    }

    /// The same for some of the tags of `repo` that are known here, in byte order, behind `after`; and whether there
    /// are more.
    ///
    /// # Errors
    /// As [`Cache::refresh`].
    pub async fn refresh_known(
        &self,
        repo: &Repo,
        after: Option<&Tag>,
    ) -> Result<(Vec<Refreshed>, bool), Error> {
        self.upstream(repo)?;
        let mut tags = self.0.store.tags(repo, after.map(Tag::as_str), TAGS_AT_ONCE + 1).await?;
        let more = tags.len() > TAGS_AT_ONCE;
        tags.truncate(TAGS_AT_ONCE);
        let checks: Vec<_> = tags
            .into_iter()
            .map(|tag| {
                let (cache, repo) = (self.clone(), repo.clone());
                tokio::spawn(async move { cache.refresh(&repo, &tag).await })
            })
            .collect();
        let mut refreshed = Vec::with_capacity(checks.len());
        for check in checks {
            refreshed.push(check.await.map_err(|_| Error::GivenUp)??);
        }
        Ok((refreshed, more))
    }

    pub(super) fn forget_absences(&self, is_meant: impl Fn(&Repo) -> bool) {
        let mut absent = lock(&self.0.absent);
        let meant = absent.iter().map(|(key, _)| key).filter(|(of, _)| is_meant(of));
        let meant: Vec<_> = meant.cloned().collect();
        for key in &meant {
            absent.pop(key);
        }
    }
}
