//! What can go wrong when an upstream is asked, named for what the caller does next.
//!
//! Nothing here carries a URL: a redirect target's query is a signature, which is a secret. Hosts are named,
//! because a refusal that does not say which host it was about cannot be put right.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::{self, LoginSetupError, NoLogin};
use crate::net::{self, Class, EndpointUrl, Forbidden, TlsSetupError};

/// A longer `Retry-After` than this is waited out between the rounds of no request.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// Why an upstream gave no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Upstream says that there is no such thing.
    #[error("upstream does not have it")]
    NotFound,
    /// A parent does not know the registry. That is no word of the registry's own.
    #[error("the parents that were asked do not know this registry")]
    UnknownRegistry,
    /// Upstream refuses this repository, to nobody in particular or to a login that it accepts.
    #[error("upstream denies access")]
    Denied,
    /// Upstream refuses the credential itself: the operator's problem, not the client's.
    #[error("upstream refuses the configured credential")]
    LoginRefused,
    /// The cloud or the credential helper that issues berth's login does not: the operator's problem too.
    #[error("no login is issued for upstream: {0}")]
    NoLogin(#[from] NoLogin),
    /// Too many requests, or upstream asks to be left alone for a while.
    #[error("upstream limits the rate of requests")]
    Limited {
        /// How long upstream asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The operator's own limit leaves no room in time: nothing was sent.
    #[error("this mirror's own limit for the upstream leaves no room in time")]
    Busy {
        /// When there may be room.
        retry_after: Duration,
    },
    /// An answer that is neither the content nor a word about it.
    #[error("upstream answered with status {status}")]
    Unavailable {
        /// The status.
        status: u16,
    },
    /// A refusal by something that answers in the registry's place, such as an ingress without its backend.
    #[error(
        "something in the registry's place answered with status {status}: that is no registry's error, and /v2/ is \
         answered neither with 200 nor with 401 as a registry does"
    )]
    NotFromRegistry {
        /// The status.
        status: u16,
    },
    /// Upstream refuses a token that its own token server has just issued.
    #[error(
        "upstream refuses a token that its token server has just issued: do their clocks and keys agree?"
    )]
    TokenRefused,
    /// What upstream has will never be served, because clients do not take it.
    #[error("upstream has {0}")]
    Unsupported(&'static str),
    /// The request has come round in a circle of berths: there is nobody else to ask there.
    #[error("upstream is a mirror that asks this one")]
    Loop,
    /// This machine has no file descriptor, port or memory left for a connection: nothing was sent.
    #[error("this machine lacks what a connection to upstream needs: {reason}")]
    Local {
        /// What the kernel says.
        reason: Arc<str>,
    },
    /// No answer at all.
    #[error("upstream cannot be reached: {reason}")]
    Unreachable {
        /// The lowest cause, shortened.
        reason: Arc<str>,
    },
    /// No answer in time.
    #[error("upstream did not answer in time")]
    Timeout,
    /// An answer that no registry gives, such as a web page.
    #[error("upstream answered nonsense: {0}")]
    Malformed(&'static str),
    /// It is there, and nobody says how large it is: whoever asks for it will see.
    #[error("upstream does not say how large it is")]
    NoLength,
    /// A whole body with another digest than was asked for.
    #[error("upstream sent content with another digest")]
    DigestMismatch,
    /// The content has another size than before.
    #[error("upstream's content has changed its size")]
    Changed,
    /// The configuration says that this upstream is never asked.
    #[error("this upstream is offline by configuration")]
    Offline,
    /// A page of a list is asked for by a cursor that none of the endpoints has given out, as far as is known.
    #[error("a list's page is asked for by a cursor that upstream has not given out")]
    UnknownCursor,
    /// Upstream sent berth somewhere that its rules forbid.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<net::Error> for Error {
    fn from(error: net::Error) -> Self {
        match error {
            net::Error::Offline => Self::Offline,
            net::Error::Busy { retry_after } => Self::Busy { retry_after },
            net::Error::Local { reason } => Self::Local { reason },
            net::Error::Unreachable { reason } => Self::Unreachable { reason },
            net::Error::Timeout => Self::Timeout,
            net::Error::TooLarge => Self::Malformed(net::error::TOO_LARGE),
            net::Error::Forbidden(Forbidden { host, class }) => Refusal::Address { host, class }.into(),
        }
    }
}

impl From<credentials::Error> for Error {
    fn from(error: credentials::Error) -> Self {
        match error {
            credentials::Error::NoLogin(error) => Self::NoLogin(error),
            credentials::Error::Stopped => Self::Timeout,
        }
    }
}

/// Which rule forbids to go where an upstream points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More hops than any registry needs.
    #[error("upstream redirects too often")]
    TooManyRedirects,
    /// A `Location` that is no HTTP URL, or one with a login in it.
    #[error("upstream redirects to something that is not a plain HTTP URL")]
    RedirectTarget,
    /// From TLS back to plain text.
    #[error(
        "upstream redirects from https to http, on {host}: nothing is fetched without TLS there; have it know its https \
         address, as by X-Forwarded-Proto from what ends TLS for it, or allow blobs from there by `plain_http_hosts`"
    )]
    RedirectToPlainText {
        /// Where to.
        host: String,
    },
    /// Into a network that the Internet must not reach.
    #[error(
        "upstream points to a {class} address, at {host}; `redirect_hosts` or `realm_hosts` may allow the host"
    )]
    Address {
        /// The host that was to be dialled.
        host: String,
        /// What kind of address it has.
        class: Class,
    },
    /// A token server that has nothing to do with the registry.
    #[error("upstream names a token server on another domain, {host}; `realm_hosts` may allow it")]
    RealmHost {
        /// The token server.
        host: String,
    },
    /// Credentials for a TLS registry would travel in plain text.
    #[error(
        "upstream has TLS and names a token server without, {host}: no login is sent there; have it name one with https"
    )]
    RealmPlainText {
        /// The token server.
        host: String,
    },
    /// A realm that is no HTTP URL, or one with a login in it.
    #[error("upstream names a token server that is not a plain HTTP URL")]
    RealmTarget,
    /// Credentials would have to follow the redirect.
    #[error("the token server {host} redirects")]
    RealmRedirects {
        /// The token server.
        host: String,
    },
}

impl Refusal {
    /// Whether it is a login that would have to go there.
    pub fn is_about_login(&self) -> bool {
        match self {
            Self::RealmHost { .. }
            | Self::RealmPlainText { .. }
            | Self::RealmTarget
            | Self::RealmRedirects { .. } => true,
            Self::TooManyRedirects
            | Self::RedirectTarget
            | Self::RedirectToPlainText { .. }
            | Self::Address { .. } => false,
        }
    }
}

/// What to do after an error, while the request's time lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask the other endpoints; this one would say the same again.
    Elsewhere,
    /// Ask the other endpoints first, and then this one again.
    Again,
}

impl Error {
    /// Whether this says something about upstream's health rather than about what was asked: then what is
    /// known already may be served.
    pub fn is_outage(&self) -> bool {
        !matches!(self, Self::NotFound | Self::Denied | Self::Unsupported(_) | Self::UnknownCursor)
    }

    /// Whether it is about how something was asked for, such as by pages of a size.
    pub(crate) fn is_about_the_question(&self) -> bool {
        match self {
            // Not there, not allowed, and later are about something else.
            Self::Unavailable { status } => matches!(status, 400 | 402 | 405..=407 | 409..=428 | 430..=499),
            Self::Changed => true,
            _ => false,
        }
    }

    /// Whether it says that a question is not known, as an answer to one that need not be.
    pub(crate) fn is_unknown_question(&self) -> bool {
        matches!(self, Self::Unavailable { status: 404 | 501 }) || self.is_about_the_question()
    }

    /// Whether it says no to a question that need not be known, rather than nothing.
    pub(crate) fn is_refusal(&self) -> bool {
        !self.is_outage() || self.is_unknown_question()
    }

    /// No connection, or one that broke.
    pub(crate) fn unreachable(error: &(dyn StdError + 'static)) -> Self {
        net::Error::unreachable(error).into()
    }

    /// What to do next.
    pub(crate) fn next(&self) -> Next {
        match self {
            Self::Limited { retry_after } if retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX) => {
                Next::Again
            }
            Self::Unavailable { status: 408 | 500 | 502..=599 }
            | Self::NotFromRegistry { .. }
            | Self::Unreachable { .. }
            | Self::Local { .. }
            | Self::Timeout => Next::Again,
            Self::NotFound
            | Self::UnknownRegistry
            | Self::Denied
            | Self::Unsupported(_)
            | Self::TokenRefused
            | Self::Limited { .. }
            | Self::Busy { .. }
            | Self::Loop
            | Self::Unavailable { .. }
            | Self::LoginRefused
            | Self::NoLogin(_)
            | Self::Malformed(_)
            | Self::NoLength
            | Self::DigestMismatch
            | Self::Changed
            | Self::Offline
            | Self::UnknownCursor
            | Self::Refused(_) => Next::Elsewhere,
        }
    }
}

/// A part could not be built from its configuration; the cause names no secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No endpoint at all.
    #[error("upstream {registry} has no endpoints")]
    NoEndpoints {
        /// Which upstream.
        registry: crate::oci::Registry,
    },
    /// A fallback is known by the host of its first endpoint.
    #[error("fallback {endpoint}: expected a host that can be a registry's, such as harbor.example.com")]
    Host {
        /// The endpoint.
        endpoint: EndpointUrl,
    },
    /// A certificate, or a list of authorities, cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The login cannot be had as it is configured.
    #[error(transparent)]
    Login(#[from] LoginSetupError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_next() {
        let check = |error: Error, next: Next, outage: bool| {
            assert_eq!((error.next(), error.is_outage()), (next, outage), "{error}");
        };
        let limited = |seconds: Option<u64>| Error::Limited { retry_after: seconds.map(Duration::from_secs) };
        check(Error::NotFound, Next::Elsewhere, false);
        check(Error::UnknownRegistry, Next::Elsewhere, true);
        check(Error::Denied, Next::Elsewhere, false);
        check(Error::LoginRefused, Next::Elsewhere, true);
        check(Error::TokenRefused, Next::Elsewhere, true);
        check(Error::NotFromRegistry { status: 404 }, Next::Again, true);
        check(Error::Unsupported("a schema 1 manifest"), Next::Elsewhere, false);
        check(limited(None), Next::Again, true);
        check(limited(Some(5)), Next::Again, true);
        check(limited(Some(6)), Next::Elsewhere, true);
        check(Error::Busy { retry_after: Duration::from_secs(1) }, Next::Elsewhere, true);
        check(Error::Unavailable { status: 503 }, Next::Again, true);
        check(Error::Unavailable { status: 501 }, Next::Elsewhere, true);
        check(Error::Unavailable { status: 400 }, Next::Elsewhere, true);
        check(Error::Timeout, Next::Again, true);
        check(Error::Local { reason: "too many open files".into() }, Next::Again, true);
        check(Error::DigestMismatch, Next::Elsewhere, true);
        check(Error::Loop, Next::Elsewhere, true);
        check(Error::Offline, Next::Elsewhere, true);
        check(Refusal::TooManyRedirects.into(), Next::Elsewhere, true);
    }
}
