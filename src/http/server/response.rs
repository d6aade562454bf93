//! Small responses, and what every response of the data plane is finished with.
//!
//! A refusal travels with its response as an extension ([`RequestRefusal`]) until [`finish`] writes its `Cache-Status` and hands
//! it to the access log.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::access_log::RequestLog;
use super::body::Body;
use super::refusal::RequestRefusal;
use crate::oci::error::{self, ErrorCode};
use crate::telemetry::metrics::Reason;

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// A response with a whole body, of JSON or of another text type.
pub(crate) fn content(status: StatusCode, content_type: &str, body: Bytes) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CONTENT_TYPE, value(content_type));
    response
}

/// A response with an error, in the form that the OCI distribution specification gives it.
pub(crate) fn failure(status: StatusCode, code: ErrorCode, message: &str) -> Response<Body> {
    let mut response = content(status, "application/json", error::body(code, message));
    response.extensions_mut().insert(RequestRefusal::by_code(code, message));
    response
}

/// The value of a header. Text that cannot be one gives an empty value rather than a failure.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// The same, from bytes that are shared with others.
pub(crate) fn shared(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
}

/// The response to a client that must try again later. It is never 429, which containerd answers with another request at
/// once.
pub(crate) fn later(retry_after: Duration, message: &str) -> Response<Body> {
    after(retry_after, failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, message))
}

/// Adds a `Retry-After`, rounded up: a client that comes a moment too early comes in vain.
pub(crate) fn after(retry_after: Duration, mut response: Response<Body>) -> Response<Body> {
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    response.headers_mut().insert(RETRY_AFTER, value(&seconds.to_string()));
    response
}

/// Changes the reason of a refusal.
pub(crate) fn because(reason: Reason, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<RequestRefusal>() {
        refused.set_reason(reason);
    }
    response
}

/// Changes the reason of a refusal to upstream's silence.
pub(crate) fn because_of_silence(mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().get_mut::<RequestRefusal>() {
        refused.set_timeout();
    }
    response
}

/// Finishes the head of a response: a refusal is logged and gets its `Cache-Status`, and the body goes on with the log.
pub(crate) fn finish(mut log: Box<RequestLog>, mut response: Response<Body>) -> Response<Body> {
    if let Some(refused) = response.extensions_mut().remove::<RequestRefusal>() {
        let status = value(&refused.cache_status());
        response.headers_mut().entry(CACHE_STATUS).or_insert(status);
        log.refused(refused);
    }
    log.head_sent(response.status().as_u16(), response.body().len());
    response.map(|body| body.logged(log))
}
