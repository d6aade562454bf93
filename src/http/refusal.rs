//! Why a request is answered with an error: for its line in the log, the metric of reasons, and `Cache-Status`.
//!
//! It travels with the answer, so that every refusal is told of in one place, wherever it was decided. With the access log
//! switched off one line a minute of each reason is written all the same, with the number of those that were left out: a
//! mirror that refuses without a word cannot be put right.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::Response;

use super::body::Body;
use super::journal::Account;
use super::response::{CACHE_STATUS, value};
use crate::cache;
use crate::oci::error::ErrorCode;
use crate::telemetry::metrics::Reason;
use crate::upstream;

/// Between two lines of one reason while the access log is switched off.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Why a request is refused, and who was asked before it was.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    /// As a sentence, for the log alone: it may tell what is no business of clients.
    pub(super) cause: String,
    asked: Asked,
}

/// Whose word a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// This mirror's own.
    Nobody,
    /// Upstream's, or its silence; with its status if that is known.
    Upstream(Option<u16>),
    /// Upstream's of a moment ago, which is still believed.
    Memory,
}

impl Refused {
    /// What an error says that nobody was asked about.
    pub(super) fn by_code(code: ErrorCode, cause: &str) -> Self {
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
        Self { reason, cause: cause.to_owned(), asked: Asked::Nobody }
    }

    /// What became of content that was asked for.
    fn by_error(error: &cache::Error) -> Self {
        use cache::Error;
        let (reason, asked) = match error {
            Error::NoUpstream => (Reason::UnknownRegistry, Asked::Nobody),
            Error::Upstream(error) => of_upstream(error),
            Error::Remembered(error) => (of_upstream(error).0, Asked::Memory),
            Error::Down => (Reason::Down, Asked::Nobody),
            Error::Missing(_) => (Reason::Offline, Asked::Nobody),
            Error::TooOld => (Reason::TooOld, Asked::Nobody),
            Error::Mismatch => (Reason::Mismatch, Asked::Upstream(None)),
            Error::Distrusted { .. } => (Reason::Mismatch, Asked::Memory),
            Error::Store(_) | Error::Read(_) => (Reason::Store, Asked::Nobody),
            Error::Damaged => (Reason::Damaged, Asked::Nobody),
            Error::Busy | Error::Displaced => (Reason::Busy, Asked::Nobody),
            Error::Stalled(_) => (Reason::Timeout, Asked::Upstream(None)),
            Error::GivenUp => (Reason::GivenUp, Asked::Nobody),
        };
        Self { reason, cause: error.to_string(), asked }
    }

    /// The `Cache-Status` of the answer (RFC 9211).
    pub(super) fn cache_status(&self) -> String {
        let forwarded = match self.asked {
            Asked::Nobody => String::new(),
            Asked::Upstream(None) => "; fwd=miss".to_owned(),
            Asked::Upstream(Some(status)) => format!("; fwd=miss; fwd-status={status}"),
            Asked::Memory => "; hit".to_owned(),
        };
        format!("berth{forwarded}; detail={}", self.reason.as_str())
    }
}

fn of_upstream(error: &upstream::Error) -> (Reason, Asked) {
    use upstream::Error;
    let heard = Asked::Upstream(None);
    match error {
        Error::NotFound => (Reason::NotFound, Asked::Upstream(Some(404))),
        Error::Denied => (Reason::Denied, heard),
        Error::LoginRefused => (Reason::LoginRefused, heard),
        Error::NoLogin(_) => (Reason::NoLogin, Asked::Nobody),
        Error::Limited { .. } => (Reason::Limited, heard),
        Error::Busy { .. } => (Reason::Busy, Asked::Nobody),
        Error::Unavailable { status } => (Reason::Unavailable, Asked::Upstream(Some(*status))),
        Error::Loop => (Reason::Loop, heard),
        Error::Local { .. } => (Reason::Local, Asked::Nobody),
        Error::Unreachable { .. } => (Reason::Unreachable, heard),
        Error::Timeout => (Reason::Timeout, heard),
        Error::Malformed(_) | Error::NoLength => (Reason::Malformed, heard),
        Error::DigestMismatch => (Reason::Mismatch, heard),
        Error::Changed => (Reason::Changed, heard),
        Error::Offline => (Reason::Offline, Asked::Nobody),
        Error::Refused(_) => (Reason::Misled, heard),
        Error::NotFromRegistry { status } => (Reason::Unavailable, Asked::Upstream(Some(*status))),
        Error::TokenRefused => (Reason::Unavailable, Asked::Upstream(Some(401))),
        Error::Unsupported(_) => (Reason::Malformed, heard),
        Error::UnknownCursor => (Reason::Request, Asked::Nobody),
        Error::UnknownRegistry => (Reason::UnknownRegistry, heard),
    }
}

/// The same answer, for this reason.
pub(super) fn because(reason: Reason, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<Refused>() {
        refused.reason = reason;
    }
    response
}

/// The same answer, because of this error.
pub(super) fn because_of(error: &cache::Error, mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(Refused::by_error(error));
    response
}

/// The same answer, because upstream has not answered in time.
pub(super) fn because_of_silence(mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<Refused>() {
        (refused.reason, refused.asked) = (Reason::Timeout, Asked::Upstream(None));
    }
    response
}

/// Closes the account of a request as far as its head goes, and says to the client why it is refused, if it is.
pub(super) fn close(mut account: Box<Account>, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().remove::<Refused>() {
        let status = value(&refused.cache_status());
        response.headers_mut().entry(CACHE_STATUS).or_insert(status);
        account.refused(refused);
    }
    account.answered(response.status().as_u16(), response.body().len());
    response.map(|body| body.watched(account))
}

/// Whether a refusal for this reason is to be told of now though the access log is switched off; then with the number of
/// those since the last one that were not.
pub(super) fn is_to_be_told(reason: Reason) -> Option<u64> {
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

    #[test]
    fn a_refusal_says_whose_word_it_is() {
        let check = |error: cache::Error, expected: &str| {
            assert_eq!(Refused::by_error(&error).cache_status(), expected, "{error}");
        };
        check(upstream::Error::NotFound.into(), "berth; fwd=miss; fwd-status=404; detail=not_found");
        let absent = cache::Error::from(upstream::Error::NotFound).remembered();
        check(absent, "berth; hit; detail=not_found");
        let status = upstream::Error::Unavailable { status: 502 };
        check(status.into(), "berth; fwd=miss; fwd-status=502; detail=unavailable");
        check(upstream::Error::Timeout.into(), "berth; fwd=miss; detail=timeout");
        check(upstream::Error::Offline.into(), "berth; detail=offline");
        check(cache::Error::Down, "berth; detail=down");
    }
}
