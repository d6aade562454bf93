//! Why a request is answered with an error: for its line in the log, the metric of reasons, and `Cache-Status`.
//!
//! A refusal travels with its response, so that all are logged in one place, wherever they were decided. With the access
//! log switched off one line a minute for each reason is written all the same, with the number of those that were left
//! out: nobody can mend a mirror that refuses without a word.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::oci::error::ErrorCode;
use crate::telemetry::metrics::Reason;

/// Least time between two lines for one reason while the access log is switched off.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why a request is refused, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct RequestRefusal {
    reason: Reason,
    /// The reason as a sentence, for the log alone: it may say what is no business of clients.
    cause: String,
    by: RefusedBy,
}

/// The party that a refusal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBy {
    /// This mirror itself.
    Mirror,
    /// Upstream, by its response or by its silence; with its status if that is known.
    Upstream(Option<u16>),
    /// Upstream, by an earlier response that is still believed.
    Memory,
}

impl RequestRefusal {
    /// A refusal for this reason, which comes from `by`.
    pub(crate) fn new(reason: Reason, cause: String, by: RefusedBy) -> Self {
        Self { reason, cause, by }
    }

    /// The refusal of this mirror itself with this code.
    pub(crate) fn by_code(code: ErrorCode, cause: &str) -> Self {
        let reason = match code {
            ErrorCode::BlobUnknown | ErrorCode::ManifestUnknown | ErrorCode::NameUnknown => Reason::NotFound,
            ErrorCode::Denied => Reason::Denied,
            ErrorCode::Unauthorized => Reason::Login,
            ErrorCode::TooManyRequests => Reason::Busy,
            ErrorCode::RangeInvalid => Reason::Range,
            ErrorCode::Unavailable | ErrorCode::Unknown | ErrorCode::ManifestInvalid => Reason::Unavailable,
            ErrorCode::Unsupported
            | ErrorCode::DigestInvalid
            | ErrorCode::NameInvalid
            | ErrorCode::PaginationNumberInvalid
            | ErrorCode::TagInvalid => Reason::Request,
        };
        Self { reason, cause: cause.to_owned(), by: RefusedBy::Mirror }
    }

    /// Changes the reason.
    pub(crate) fn set_reason(&mut self, reason: Reason) {
        self.reason = reason;
    }

    /// Changes the reason to upstream's silence.
    pub(crate) fn set_timeout(&mut self) {
        (self.reason, self.by) = (Reason::Timeout, RefusedBy::Upstream(None));
    }

    /// Why the request is refused.
    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }

    /// The reason as a sentence, for the log alone.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// The `Cache-Status` of the response (RFC 9211).
    pub(crate) fn cache_status(&self) -> String {
        let forwarded = match self.by {
            RefusedBy::Mirror => String::new(),
            RefusedBy::Upstream(None) => "; fwd=miss".to_owned(),
            RefusedBy::Upstream(Some(status)) => format!("; fwd=miss; fwd-status={status}"),
            RefusedBy::Memory => "; hit".to_owned(),
        };
        format!("berth{forwarded}; detail={}", self.reason.as_str())
    }
}

/// Whether a refusal for this reason is logged now although the access log is switched off; if so, the number of those since
/// the last line that were not.
pub(crate) fn due_in_log(reason: Reason) -> Option<u64> {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    static THROTTLES: [ReasonThrottle; Reason::ALL.len()] =
        [const { ReasonThrottle::never() }; Reason::ALL.len()];
    THROTTLES[reason as usize].due(BEGAN.elapsed())
}

/// Limits the lines about one reason. Two threads at once may by chance write one line more.
struct ReasonThrottle {
    /// Time of the last line, in milliseconds, and one more: 0 is never.
    at: AtomicU64,
    /// Number of refusals since then.
    left_out: AtomicU64,
}

impl ReasonThrottle {
    const fn never() -> Self {
        Self { at: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    fn due(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let (at, every) = (self.at.load(Ordering::Relaxed), LOG_INTERVAL.as_millis() as u64);
        if at != 0 && now.saturating_sub(at) < every {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.at.store(now, Ordering::Relaxed);
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_is_written_and_says_how_many_are_missing() {
        let throttle = ReasonThrottle::never();
        let at = |seconds: u64| throttle.due(Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(59)), (None, None));
        assert_eq!((at(60), at(61)), (Some(2), None));
        assert_eq!(at(1000), Some(1));
    }
}
