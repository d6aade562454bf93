//! What all HTTP answers of registries have in common: whether one is content for programs or a page made for people.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;

/// Whether an answer is that of a portal, which has a page for every request. Registries have pages for refusals only.
pub(crate) fn is_portal(response: &Response<Incoming>) -> bool {
    response.status().is_success() && is_page(response.headers())
}

/// Whether an answer is one that a registry could give to some request.
pub(crate) fn is_usable(response: &Response<Incoming>) -> bool {
    let status = response.status();
    let is_of_proxy = status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    !status.is_server_error() && !is_of_proxy && !is_portal(response)
}

/// Whether an answer is a page made for people.
pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media_type| {
        media_type.eq_ignore_ascii_case("text/html")
            || media_type.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// `Content-Type` without its parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim())
}
