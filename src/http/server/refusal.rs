//! Why a request is answered with an error: for its line in the log, the metric of reasons, and `Cache-Status`.
//!
//! It travels with the answer, so that every refusal is told of in one place, wherever it was decided. With the access log
//! switched off one line a minute of each reason is written all the same, with the number of those that were left out: a
//! mirror that refuses without a word cannot be put right.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::oci::error::ErrorCode;
use crate::telemetry::metrics::Reason;

/// Between two lines of one reason while the access log is switched off.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Why a request is refused, and who was asked before it was.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    reason: Reason,
    /// As a sentence, for the log alone: it may tell what is no business of clients.
    cause: String,
    by: RefusedBy,
}

/// Whose word a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBy {
    /// This mirror's own.
    Mirror,
    /// Upstream's, or its silence; with its status if that is known.
    Upstream(Option<u16>),
    /// Upstream's of a moment ago, which is still believed.
    Memory,
}

impl Refused {
    /// A refusal for this reason, on the word of `by`.
    pub(crate) fn new(reason: Reason, cause: String, by: RefusedBy) -> Self {
        Self { reason, cause, by }
    }

    /// What an error says that nobody was asked about.
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

    /// The same refusal, for this reason.
    pub(crate) fn because(&mut self, reason: Reason) {
        self.reason = reason;
    }

    /// The same refusal, because upstream has not answered in time.
    pub(crate) fn because_of_silence(&mut self) {
        (self.reason, self.by) = (Reason::Timeout, RefusedBy::Upstream(None));
    }

    /// Why the request is refused.
    pub(crate) fn reason(&self) -> Reason {
        self.reason
    }

    /// The same as a sentence, for the log alone.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// The `Cache-Status` of the answer (RFC 9211).
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

/// Whether a refusal for this reason is to be told of now though the access log is switched off; then with the number of
/// those since the last one that were not.
pub(crate) fn is_to_be_told(reason: Reason) -> Option<u64> {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    static TOLD: [Told; Reason::ALL.len()] = [const { Told::never() }; Reason::ALL.len()];
    TOLD[reason as usize].is_time(BEGAN.elapsed())
}

/// When something was last told of. What two at once make of it by chance is one line more.
struct Told {
    /// In milliseconds, and one more: 0 is never.
    at: AtomicU64,
    left_out: AtomicU64,
}

impl Told {
    const fn never() -> Self {
        Self { at: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    fn is_time(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let (at, every) = (self.at.load(Ordering::Relaxed), SAY_EVERY.as_millis() as u64);
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
        let told = Told::never();
        let at = |seconds: u64| told.is_time(Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(59)), (None, None));
        assert_eq!((at(60), at(61)), (Some(2), None));
        assert_eq!(at(1000), Some(1));
    }
}
