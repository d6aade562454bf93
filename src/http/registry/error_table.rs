//! The one table from error to status, OCI code and public text, and the refusals of the data plane.
//!
//! Statuses are chosen for what clients do with them (protocol.md B.1): a 404 or a 503 makes a container
//! runtime go on to its next host at once; a 429 would be hammered, and a redirect that is not followed would
//! end the pull. A response has a `Retry-After` if the content may be had soon; without one a refusal is final, as long as
//! neither the configuration nor upstream changes. Texts say what to do and never carry internals; the cause is in the log
//! under the request's number, and every error takes its reason along ([`RequestRefusal`]).

use std::time::Duration;

use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::access::Unauthenticated;
use crate::cache;
use crate::context::declare_unknown_registry;
use crate::http::server::body::Body;
use crate::http::server::refusal::{RefusedBy, RequestRefusal};
use crate::http::server::response::{after, because, failure, later};
use crate::oci::Repo;
use crate::oci::error::ErrorCode;
use crate::oci::name::InvalidName;
use crate::oci::route::{Route, RouteError};
use crate::telemetry::metrics::Reason;
use crate::upstream::{self, Refusal};

/// `Retry-After` of an outage, in seconds: by then an upstream that was down has been probed.
const OUTAGE_RETRY_SECONDS: u64 = 5;

/// `Retry-After` where upstream limits requests and does not say for how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(10);

/// What a request is about, and so which "unknown" is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    Manifest,
    Blob,
    Repository,
}

impl Subject {
    /// The subject of a route.
    pub(super) fn of(route: &Route) -> Self {
        match route {
            Route::Manifest { .. } | Route::Referrers { .. } => Self::Manifest,
            Route::Blob { .. } => Self::Blob,
            Route::Base | Route::Extensions | Route::Catalog { .. } | Route::Tags { .. } => Self::Repository,
        }
    }

    fn unknown(self) -> (ErrorCode, &'static str) {
        match self {
            Self::Manifest => (ErrorCode::ManifestUnknown, "manifest unknown"),
            Self::Blob => (ErrorCode::BlobUnknown, "blob unknown to this repository"),
            Self::Repository => (ErrorCode::NameUnknown, "repository name not known to registry"),
        }
    }
}

/// The response to a request without a route.
pub(super) fn unrouted(error: &RouteError) -> Response<Body> {
    let invalid = |code, message: &str| failure(StatusCode::BAD_REQUEST, code, message);
    let nowhere = |message: &str| failure(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message);
    match error {
        RouteError::Forbidden(repo) => not_authorized(Some(repo)),
        RouteError::NotFound => because(Reason::Path, nowhere("no such path in the registry API")),
        RouteError::UnknownRegistry(name) => {
            let message = format!(
                "registry `{name}` is not configured here: add an [[upstream]] for it, or pull from it directly"
            );
            because(Reason::UnknownRegistry, unknown_registry(&message))
        }
        RouteError::NoDefault => because(
            Reason::NoRegistry,
            nowhere(
                "the request names no registry and there is no default_upstream: send ns=, or put the registry in front of the name",
            ),
        ),
        RouteError::Method => because(Reason::Method, read_only()),
        RouteError::Page => invalid(ErrorCode::PaginationNumberInvalid, "expected n to be a number"),
        RouteError::PathTooLong => invalid(ErrorCode::NameInvalid, "the path is longer than any name can be"),
        RouteError::Name(error) => {
            let code = match error {
                InvalidName::Registry | InvalidName::Repository => ErrorCode::NameInvalid,
                InvalidName::Tag => ErrorCode::TagInvalid,
                InvalidName::Digest(_) => ErrorCode::DigestInvalid,
            };
            invalid(code, &error.to_string())
        }
    }
}

/// The response to a push or a delete.
fn read_only() -> Response<Body> {
    let mut response = failure(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Unsupported,
        "berth is a pull-through mirror and takes no pushes or deletes: send them to the registry itself",
    );
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    // The body of a push is not read.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The response for a registry that is not configured here. It says so to a berth that asks, which may ask elsewhere.
fn unknown_registry(message: &str) -> Response<Body> {
    let mut response = failure(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message);
    declare_unknown_registry(response.headers_mut());
    response
}

/// The response to a client that is not let in.
pub(super) fn not_authenticated(error: Unauthenticated) -> Response<Body> {
    match error {
        Unauthenticated::WrongAddress => wrong_address(),
        Unauthenticated::LoginNeeded => log_in(),
        Unauthenticated::Busy => busy(),
    }
}

/// The response for a repository that the principal may not pull.
pub(super) fn not_authorized(repo: Option<&Repo>) -> Response<Body> {
    let message = repo.map_or_else(
        || "this may not be done at this mirror".to_owned(),
        |repo| {
            format!("`{repo}` may not be pulled through this mirror: see `repositories` of its [[upstream]]")
        },
    );
    because(Reason::Forbidden, failure(StatusCode::FORBIDDEN, ErrorCode::Denied, &message))
}

/// 401 for a client without a login, or with a wrong one.
fn log_in() -> Response<Body> {
    let mut response = failure(
        StatusCode::UNAUTHORIZED,
        ErrorCode::Unauthorized,
        "log in with a user of this mirror's htpasswd",
    );
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"berth\""));
    response
}

/// 503 for a client whose password was not checked: checks are slow on purpose, and many are waiting.
fn busy() -> Response<Body> {
    failure(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::TooManyRequests,
        "too many logins are being checked: try again",
    )
}

/// 403 for a client outside `[http] allow`. The connection is closed.
fn wrong_address() -> Response<Body> {
    let mut response = failure(
        StatusCode::FORBIDDEN,
        ErrorCode::Denied,
        "this address is not in this mirror's [http] allow",
    );
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    because(Reason::Address, response)
}

/// 421 for a host that a listener on loopback does not have: a browser may have been led here.
pub(super) fn misdirected() -> Response<Body> {
    let message =
        "this mirror has no such Host: use its address or localhost, or add the name to [http] hosts";
    because(Reason::Host, failure(StatusCode::MISDIRECTED_REQUEST, ErrorCode::Denied, message))
}

/// 508 for a request of another berth that has come through this one before, or through too many.
pub(super) fn loop_detected() -> Response<Body> {
    let message = "mirrors ask one another in a circle: check their endpoints, parents and [http] peers";
    because(Reason::Loop, failure(StatusCode::LOOP_DETECTED, ErrorCode::Unavailable, message))
}

/// 503 for content that cannot be had now, and may be had soon.
pub(super) fn outage(message: &str) -> Response<Body> {
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message);
    response.headers_mut().insert(RETRY_AFTER, OUTAGE_RETRY_SECONDS.into());
    response
}

/// 503 for content that cannot be had as long as this mirror is configured so.
fn never(message: &str) -> Response<Body> {
    failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message)
}

/// The response to a request whose content cannot be had. This is the one table: every error has its line.
pub(super) fn unavailable(error: &cache::Error, subject: Subject) -> Response<Body> {
    use cache::Error;
    let response = match error {
        Error::NoUpstream => unknown_registry("this registry is not configured here"),
        Error::Upstream(error) | Error::Remembered(error) => refused(error, subject),
        Error::Down => outage("upstream is down and nothing is stored"),
        Error::Missing(missing) => never(&missing.to_string()),
        Error::TooOld => {
            outage("upstream cannot confirm this tag, and what is stored is older than serve_stale allows")
        }
        Error::Distrusted { retry_after } => {
            let message = "upstream's content does not match its digest: it is asked again later";
            after(*retry_after, failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message))
        }
        Error::Mismatch => outage("upstream sent content that does not match its digest"),
        Error::Store(_) | Error::Read(_) => {
            outage("stored content cannot be read or written: see this mirror's log")
        }
        Error::Damaged => outage("stored content is damaged, and will be fetched again: try again"),
        Error::Busy | Error::Displaced => outage("too many transfers are under way: try again"),
        Error::Stalled(_) => outage("no byte arrived from upstream in time"),
        Error::GivenUp => outage("the transfer was given up: try again"),
    };
    because_of(error, response)
}

fn unknown(subject: Subject) -> Response<Body> {
    let (code, message) = subject.unknown();
    failure(StatusCode::NOT_FOUND, code, message)
}

/// The response for an error of upstream.
fn refused(error: &upstream::Error, subject: Subject) -> Response<Body> {
    use upstream::Error;
    match error {
        Error::NotFound => unknown(subject),
        // Clients go on without a list that is denied.
        Error::Denied if matches!(subject, Subject::Repository) => failure(
            StatusCode::FORBIDDEN,
            ErrorCode::Denied,
            "upstream does not let this mirror list these tags: does it need a credential for that, or one that may do more?",
        ),
        Error::UnknownRegistry => unknown_registry(
            "this registry is not configured here, nor at the parents that were asked: add an [[upstream]] for it there, or pull from it directly",
        ),
        // 404 rather than 403: absent and forbidden look alike, and clients go on to the registry itself.
        Error::Denied => failure(
            StatusCode::NOT_FOUND,
            ErrorCode::Denied,
            "upstream refuses access, or there is no such repository: does this mirror need a credential for it?",
        ),
        Error::Unsupported(what) => {
            failure(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, &format!("upstream has {what}"))
        }
        Error::NotFromRegistry { status } => outage(&format!(
            "something answers in the registry's place, with status {status}: check its ingress or proxy"
        )),
        Error::TokenRefused => outage(
            "upstream refuses a token that its own token server has just issued: compare their clocks and keys",
        ),
        Error::LoginRefused => outage("upstream refuses this mirror's own credential: check it"),
        Error::NoLogin(_) => outage("this mirror is issued no login for this registry: see its log"),
        Error::Limited { retry_after } => later(
            retry_after.unwrap_or(RETRY_AFTER_DEFAULT),
            "upstream limits this mirror's requests, and this is not stored yet",
        ),
        Error::Busy { retry_after } => {
            later(*retry_after, "this mirror may not ask more of upstream now, and this is not stored yet")
        }
        Error::Unavailable { .. } => outage("upstream answered with an error"),
        Error::Loop => outage("this mirror asks itself by way of another: check its endpoints and parents"),
        Error::Local { .. } => outage(
            "this mirror has no file descriptor, port or memory left to ask upstream with: see its log",
        ),
        Error::Unreachable { .. } => outage("upstream cannot be reached"),
        Error::Timeout => outage("upstream did not answer in time"),
        Error::Malformed(what) => outage(&format!("upstream answered with {what}")),
        Error::NoLength => outage("upstream does not say how large this is"),
        Error::DigestMismatch => outage("upstream sent content that does not match its digest"),
        Error::Changed => outage("upstream's content changed while it was sent"),
        Error::Offline => {
            never("this registry is offline by this mirror's configuration, and nothing is stored of it")
        }
        Error::UnknownCursor => failure(
            StatusCode::BAD_REQUEST,
            ErrorCode::PaginationNumberInvalid,
            "this mirror has not given out this link to a page, or was started since: begin with the first page",
        ),
        // A portal or an ingress may redirect everything for a while; what a login is wanted for stays.
        Error::Refused(refusal) if refusal.is_about_login() => never(misled(refusal)),
        Error::Refused(refusal) => outage(misled(refusal)),
    }
}

/// Why this mirror does not go where upstream points. The host is in the log.
fn misled(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::TooManyRedirects => {
            "upstream redirects from one place to the next without end: check `endpoints`, or whether it is well"
        }
        Refusal::RedirectTarget => "upstream redirects to something that is no plain http or https URL",
        Refusal::RedirectToPlainText { .. } => {
            "upstream redirects from https to http, which this mirror does not follow, for nobody could tell who answers: have \
             upstream know its https address, or name the host (see this mirror's log) in plain_http_hosts if it stores blobs"
        }
        Refusal::Address { .. } => {
            "upstream points into a network that it must not lead this mirror to: if that is meant, name the host (see this \
             mirror's log) in redirect_hosts, or in realm_hosts if it is its token server"
        }
        Refusal::RealmHost { .. } => {
            "upstream wants a login for a token server on another domain: if that is its own, name the host (see this mirror's \
             log) in realm_hosts"
        }
        Refusal::RealmPlainText { .. } => {
            "upstream has https, and wants a login for a token server without it: that must have https, too"
        }
        Refusal::RealmTarget => {
            "upstream wants a login for a token server whose address is no plain http or https URL"
        }
        Refusal::RealmRedirects { .. } => {
            "upstream's token server redirects elsewhere, where no login is sent to: upstream must name the new one itself"
        }
    }
}

/// The reason of an error, and where it comes from.
fn refusal_of(error: &cache::Error) -> RequestRefusal {
    use cache::Error;
    let (reason, by) = match error {
        Error::NoUpstream => (Reason::UnknownRegistry, RefusedBy::Mirror),
        Error::Upstream(error) => of_upstream(error),
        Error::Remembered(error) => (of_upstream(error).0, RefusedBy::Memory),
        Error::Down => (Reason::Down, RefusedBy::Mirror),
        Error::Missing(_) => (Reason::Offline, RefusedBy::Mirror),
        Error::TooOld => (Reason::TooOld, RefusedBy::Mirror),
        Error::Mismatch => (Reason::Mismatch, RefusedBy::Upstream(None)),
        Error::Distrusted { .. } => (Reason::Mismatch, RefusedBy::Memory),
        Error::Store(_) | Error::Read(_) => (Reason::Store, RefusedBy::Mirror),
        Error::Damaged => (Reason::Damaged, RefusedBy::Mirror),
        Error::Busy | Error::Displaced => (Reason::Busy, RefusedBy::Mirror),
        Error::Stalled(_) => (Reason::Timeout, RefusedBy::Upstream(None)),
        Error::GivenUp => (Reason::GivenUp, RefusedBy::Mirror),
    };
    RequestRefusal::new(reason, error.to_string(), by)
}

/// The same, of an error of upstream.
fn of_upstream(error: &upstream::Error) -> (Reason, RefusedBy) {
    use upstream::Error;
    let heard = RefusedBy::Upstream(None);
    match error {
        Error::NotFound => (Reason::NotFound, RefusedBy::Upstream(Some(404))),
        Error::Denied => (Reason::Denied, heard),
        Error::LoginRefused => (Reason::LoginRefused, heard),
        Error::NoLogin(_) => (Reason::NoLogin, RefusedBy::Mirror),
        Error::Limited { .. } => (Reason::Limited, heard),
        Error::Busy { .. } => (Reason::Busy, RefusedBy::Mirror),
        Error::Unavailable { status } => (Reason::Unavailable, RefusedBy::Upstream(Some(*status))),
        Error::Loop => (Reason::Loop, heard),
        Error::Local { .. } => (Reason::Local, RefusedBy::Mirror),
        Error::Unreachable { .. } => (Reason::Unreachable, heard),
        Error::Timeout => (Reason::Timeout, heard),
        Error::Malformed(_) | Error::NoLength => (Reason::Malformed, heard),
        Error::DigestMismatch => (Reason::Mismatch, heard),
        Error::Changed => (Reason::Changed, heard),
        Error::Offline => (Reason::Offline, RefusedBy::Mirror),
        Error::Refused(_) => (Reason::Misled, heard),
        Error::NotFromRegistry { status } => (Reason::Unavailable, RefusedBy::Upstream(Some(*status))),
        Error::TokenRefused => (Reason::Unavailable, RefusedBy::Upstream(Some(401))),
        Error::Unsupported(_) => (Reason::Malformed, heard),
        Error::UnknownCursor => (Reason::Request, RefusedBy::Mirror),
        Error::UnknownRegistry => (Reason::UnknownRegistry, heard),
    }
}

/// Sets the reason of a refusal from an error.
fn because_of(error: &cache::Error, mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(refusal_of(error));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whose_word_it_is() {
        let check = |error: cache::Error, expected: &str| {
            assert_eq!(refusal_of(&error).cache_status(), expected, "{error}");
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
