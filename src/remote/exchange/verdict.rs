//! What an answer of any status means.
//!
//! A refusal is the registry's own only if there is evidence for that (`ping`). Everything else is an outage: what is
//! known already may be served.

use http::{Response, StatusCode};
use hyper::body::Incoming;

use crate::context;
use crate::context::via::Instance;
use crate::remote::auth;
use crate::remote::endpoint::path_pauses;
use crate::remote::error::Error;
use crate::remote::message::is_portal;
use crate::remote::retry_after::retry_after;
use crate::remote::transport::request::RawResponse;

/// The error if an endpoint asks for a login of another kind than is configured.
pub(crate) const UNSUITED: Error =
    Error::Malformed("a 401 that asks for no login of the kind that is configured");

/// What an answer's status means.
pub(crate) fn judge(reply: RawResponse, with_login: bool) -> Result<Response<Incoming>, Error> {
    refusal(&reply, with_login).map_or(Ok(reply.response), Err)
}

/// What an answer says in the place of content; `None` if it is content.
pub(crate) fn refusal(reply: &RawResponse, with_login: bool) -> Option<Error> {
    let RawResponse { response, elsewhere, is_store, .. } = reply;
    let status = response.status();
    Some(match status.as_u16() {
        200 | 206 => return None,
        // What a store lacks or refuses, such as a HEAD with a signature for GET or one that has expired, is not the
        // registry's word: that was to ask there.
        404 if !elsewhere && context::is_unknown_registry(response.headers()) => Error::UnknownRegistry,
        404 if !is_store => Error::NotFound,
        401 if !elsewhere => {
            let is_login = with_login && !auth::is_scope_refused(response.headers());
            if is_login { Error::LoginRefused } else { Error::Denied }
        }
        403 if !elsewhere => Error::Denied,
        416 => Error::Changed,
        508 if !elsewhere && Instance::answering(response.headers()).is_some() => Error::Loop,
        429 => Error::Limited { retry_after: retry_after(response.headers()) },
        503 if let Some(wait) = retry_after(response.headers()) => {
            Error::Limited { retry_after: Some(wait.min(path_pauses::PAUSE_MAX)) }
        }
        status => Error::Unavailable { status },
    })
}

/// Whether an answer to a request without a login may be another to one with a login.
pub(crate) fn says_no(reply: &RawResponse) -> bool {
    let is_no = matches!(
        reply.response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
    );
    !reply.elsewhere && (is_no || is_portal(&reply.response))
}

/// Whether an answer is a 401, which says nothing about a login that was not sent.
pub(crate) fn is_unasked_for(reply: &RawResponse) -> bool {
    !reply.elsewhere && reply.response.status() == StatusCode::UNAUTHORIZED
}
