//! Why content cannot be had. Everybody who waits for the same download shares the error, hence `Clone`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Image, Reference, Repo};
use crate::{store, upstream};

/// Why a request for content is not answered with content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The registry is not configured.
    #[error("no upstream is configured for this registry")]
    NoUpstream,
    /// Upstream refused, or could not be asked.
    #[error("{0}")]
    Upstream(Arc<upstream::Error>),
    /// Upstream refused a moment ago, which is believed for a while.
    #[error("{0}, as it said a moment ago")]
    Remembered(Arc<upstream::Error>),
    /// Upstream is known to be down and nothing is stored.
    #[error("upstream is down and nothing is stored")]
    Down,
    /// By configuration upstream is never asked, and the content is not stored.
    #[error("{0}")]
    Missing(Arc<Missing>),
    /// What is stored is older than its rule allows, and upstream cannot confirm it.
    #[error("upstream cannot confirm the tag, and it is older than serve_stale allows")]
    TooOld,
    /// The bytes that upstream sent do not have the digest that names them.
    #[error("the content does not match its digest")]
    Mismatch,
    /// The bytes had the wrong digest a moment ago, again and again: upstream is not asked for them for a while.
    #[error("upstream's content has just not matched its digest: it is asked again after {retry_after:?}")]
    Distrusted {
        /// How long until upstream is asked again.
        retry_after: Duration,
    },
    /// The disk failed, or a limit of the store was reached.
    #[error("the data folder: {0}")]
    Store(Arc<store::Error>),
    /// Stored bytes could not be read.
    #[error("stored content could not be read: {0}")]
    Read(Arc<std::io::Error>),
    /// A stored file was found damaged while it was read.
    #[error(
        "the stored file is not what its name says: it is put aside, and the next request fetches it again"
    )]
    Damaged,
    /// A limit of berth was reached: the client may try again later.
    #[error("too many transfers are under way")]
    Busy,
    /// The transfer was too slow to keep a permit that others waited for.
    #[error("the transfer was too slow to go on while others waited for its place")]
    Displaced,
    /// No byte arrived for this long.
    #[error("no byte arrived from upstream for {0:?}")]
    Stalled(Duration),
    /// The transfer ended before it had a result.
    #[error("the transfer was given up")]
    GivenUp,
}

impl Error {
    /// Whether upstream could not be asked, as opposed to having refused.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Upstream(error) | Self::Remembered(error) => error.is_outage(),
            Self::NoUpstream | Self::TooOld | Self::Store(_) | Self::Read(_) | Self::Damaged => false,
            Self::Down
            | Self::Missing(_)
            | Self::Mismatch
            | Self::Distrusted { .. }
            | Self::Busy
            | Self::Displaced
            | Self::Stalled(_)
            | Self::GivenUp => true,
        }
    }

    /// Whether upstream has the content, and does not say how large it is.
    pub fn is_unmeasured(&self) -> bool {
        matches!(self, Self::Upstream(error) if **error == upstream::Error::NoLength)
    }

    /// Whether the request has come round in a circle of berths.
    pub fn is_loop(&self) -> bool {
        self.upstream() == Some(&upstream::Error::Loop)
    }

    /// Whether upstream said that there is no such thing, or none for us.
    pub fn is_absence(&self) -> bool {
        self.upstream().is_some_and(|error| !error.is_outage())
    }

    /// What upstream said, now or a moment ago.
    pub fn upstream(&self) -> Option<&upstream::Error> {
        match self {
            Self::Upstream(error) | Self::Remembered(error) => Some(error),
            _ => None,
        }
    }

    /// The same error for a later request, for which upstream was not asked.
    pub fn remembered(self) -> Self {
        match self {
            Self::Upstream(error) => Self::Remembered(error),
            other => other,
        }
    }
}

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        Self::Upstream(Arc::new(error))
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Something that is not stored, in a registry that is offline by configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The repository that it would be in.
    pub repo: Repo,
    /// What was asked for, or what the tag that was asked for means.
    pub reference: Reference,
    /// An image of the repository that needs it, if one is known.
    pub image: Option<Image>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repo, reference, image } = self;
        write!(f, "{} is offline by this mirror's configuration, and ", repo.registry)?;
        match (reference, image) {
            (Reference::Digest(digest), Some(image)) => write!(f, "{image} is missing {digest}"),
            (Reference::Digest(digest), None) => write!(f, "{repo} is missing {digest}"),
            (Reference::Tag(tag), _) => write!(f, "{repo}:{tag} is not here"),
        }
    }
}
