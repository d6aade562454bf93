//! Small responses, and what every response of the data plane is finished with.
//!
//! A refusal travels with its response as an extension ([`Refused`]) until [`close`] writes its `Cache-Status` and hands
//! it to the access log.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::access_log::Account;
use super::body::Body;
use super::refusal::Refused;
use crate::oci::error::{self, ErrorCode};
use crate::telemetry::metrics::Reason;

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// A body of JSON, or of another text type.
pub(crate) fn content(status: StatusCode, content_type: &str, body: Bytes) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CONTENT_TYPE, value(content_type));
    response
}

/// An error that a client understands.
pub(crate) fn failure(status: StatusCode, code: ErrorCode, message: &str) -> Response<Body> {
    let mut response = content(status, "application/json", error::body(code, message));
    response.extensions_mut().insert(Refused::by_code(code, message));
    response
}

/// A header's value; text that cannot be one is left out rather than answered with a failure.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// The same of bytes that are shared with others.
pub(crate) fn shared(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
}

/// Who must try again later: never with 429, which containerd answers with another request at once.
pub(crate) fn later(retry_after: Duration, message: &str) -> Response<Body> {
    after(retry_after, failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message))
}

/// The same answer for who must not come back before. Rounded up: who comes a moment too early comes in vain.
pub(crate) fn after(retry_after: Duration, mut response: Response<Body>) -> Response<Body> {
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    response.headers_mut().insert(RETRY_AFTER, value(&seconds.to_string()));
    response
}

/// The same answer, for this reason.
pub(crate) fn because(reason: Reason, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<Refused>() {
        refused.because(reason);
    }
    response
}

/// The same answer, because upstream has not answered in time.
pub(crate) fn because_of_silence(mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<Refused>() {
        refused.because_of_silence();
    }
    response
}

/// Closes the account of a request as far as its head goes, and says to the client why it is refused, if it is.
pub(crate) fn close(mut account: Box<Account>, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().remove::<Refused>() {
        let status = value(&refused.cache_status());
        response.headers_mut().entry(CACHE_STATUS).or_insert(status);
        account.refused(refused);
    }
    account.answered(response.status().as_u16(), response.body().len());
    response.map(|body| body.watched(account))
}
