//! What happens on the way to an upstream, for whoever counts.

use std::sync::Arc;

use crate::oci::Registry;

/// Hears of everything that an operator may want to count.
pub type Observer = Arc<dyn Fn(&Registry, Event) + Send + Sync>;

/// What an [`Observer`] hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An HTTP request was sent, to an upstream, one of its token servers or a redirect target, and ended so.
    Ended(Outcome),
    /// The same, sent to a parent.
    EndedAtParent(Outcome),
    /// A second endpoint was asked beside one that was late.
    Hedged,
    /// A request had to wait for its turn.
    Waited(LimitKind),
    /// A request was not sent.
    Refused(LimitKind),
    /// An endpoint has said how many manifests it gives out in its window, and how many are left.
    Quota {
        /// In a window.
        limit: u64,
        /// Left of these.
        remaining: u64,
    },
}

/// What made a request wait, or kept it from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `requests_per_second`.
    Requests,
    /// `concurrent_requests`.
    ConcurrentRequests,
    /// `concurrent_transfers`.
    Transfers,
    /// Upstream's own `Retry-After`.
    RetryAfter,
    /// The manifests that upstream gives out.
    Quota,
    /// File descriptors, ports or memory that this machine lacks.
    Machine,
}

impl LimitKind {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::Transfers => "transfers",
            Self::RetryAfter => "retry_after",
            Self::Quota => "quota",
            Self::Machine => "machine",
        }
    }
}

/// How one HTTP request to an upstream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx or a redirect.
    Ok,
    /// 404.
    NotFound,
    /// 401, also one that only asks for a login, or 403.
    Denied,
    /// 429.
    Limited,
    /// 508, by which a berth says that it has been asked for this before.
    Loop,
    /// Any other status, or no connection.
    Error,
    /// No answer in time.
    Timeout,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::NotFound, Self::Denied, Self::Limited, Self::Loop, Self::Error, Self::Timeout];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::Loop => "loop",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }
}
