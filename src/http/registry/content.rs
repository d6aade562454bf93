//! Responses that carry content: a manifest, a blob, parts of one, or 304 for a client that has it already.

use std::fmt::Write as _;

use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper::header::{
    ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LOCATION,
    WARNING,
};
use hyper::{Response, StatusCode};

use super::request::RegistryRequest;
use crate::cache::{Blob, Manifest};
use crate::http::server::access_log::RequestLog;
use crate::http::server::body::Body;
use crate::http::server::byte_ranges::Framing;
use crate::http::server::response::{CACHE_STATUS, failure, shared, value};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::error::ErrorCode;
use crate::oci::range::Span;
use crate::oci::ranges::{Part, Refusal, Selection, steps_back};
use crate::oci::{Digest, Ranges, Repo};
use crate::telemetry::metrics::Source;

/// Response header with the registry that content is from.
pub(super) const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// Most steps back among the ranges of a blob that passes through unstored: each costs upstream a further request.
const STEPS_BACK_MAX: usize = 16;

/// Bytes of the longest digest: `sha512:` and its hexadecimal digits.
const DIGEST_BYTES_MAX: usize = 7 + 128;

/// The `Cache-Status` of content (RFC 9211).
pub(super) fn cache_status(source: Source, is_stored: bool, is_unproven: bool) -> &'static str {
    match (source, is_stored, is_unproven) {
        (Source::Hit, _, false) => "berth; hit",
        (Source::Hit, _, true) => "berth; hit; detail=unproven",
        (Source::Stale, ..) => "berth; hit; detail=stale",
        (Source::Miss, true, false) => "berth; fwd=miss; stored",
        (Source::Miss, true, true) => "berth; fwd=miss; stored; detail=unproven",
        (Source::Miss, false, false) => "berth; fwd=miss",
        (Source::Miss, false, true) => "berth; fwd=miss; detail=unproven",
        (Source::Collapsed, _, false) => "berth; fwd=miss; collapsed",
        (Source::Collapsed, _, true) => "berth; fwd=miss; collapsed; detail=unproven",
    }
}

/// The response with a manifest. Its headers were made when it was read.
pub(super) fn manifest_response(
    request: &RegistryRequest,
    repo: &Repo,
    manifest: Manifest,
    log: &mut RequestLog,
) -> Response<Body> {
    let Manifest { document, source, warning, age } = manifest;
    let status = cache_status(source, true, false);
    log.set_cache_status(status);
    let mut response = if request.has(&document.digest) {
        let mut response = not_modified();
        set_digest(&mut response, &document.digest);
        response
    } else {
        let mut response = Response::new(Body::whole(document.body.clone()));
        response.headers_mut().clone_from(&document.headers);
        response
    };
    set_source(&mut response, repo, status);
    if let Some(age) = age {
        response.headers_mut().insert(AGE, age.into());
    }
    if let Some(warning) = warning {
        response.headers_mut().insert(WARNING, value(&format!("299 - \"{warning}\"")));
    }
    response
}

/// The response with a blob, or with the ranges of it that were asked for.
pub(super) fn blob_response(
    request: &RegistryRequest,
    (repo, digest): (&Repo, &Digest),
    blob: Blob,
    ranges: Option<Ranges>,
    log: &mut RequestLog,
) -> Response<Body> {
    let total = blob.total;
    // No range of an empty blob can be satisfied, and clients that ask for everything by ranges need a 200 here. A blob of
    // unknown length has no ranges, either.
    let ranges = ranges.zip(total).filter(|(_, total)| *total > 0);
    // Ranges with a last byte may be sent before the whole blob is verified; one up to "the end" may not.
    let is_held = ranges.as_ref().is_none_or(|(ranges, _)| ranges.are_open());
    let status = cache_status(blob.source, !blob.is_direct(), !is_held && !blob.is_stored());
    log.set_cache_status(status);
    let mut response = match ranges.map(|(ranges, total)| (ranges.select(total), total)) {
        _ if request.has(digest) => not_modified(),
        None => whole_blob(request, request.body_of_all(blob), total),
        Some((Ok(Selection::One(part)), total)) => partial(request.body_of(blob, part), &part.span, total),
        Some((Ok(Selection::Several(parts)), _))
            if blob.is_direct() && steps_back(&parts) > STEPS_BACK_MAX =>
        {
            failure(
                StatusCode::BAD_REQUEST,
                ErrorCode::RangeInvalid,
                "this blob passes through unstored: ask for its ranges in order",
            )
        }
        Some((Ok(Selection::Several(parts)), total)) => multipart(request, blob, parts, total),
        Some((Err(refusal), total)) => unserved_ranges(refusal, total),
    };
    set_digest(&mut response, digest);
    set_source(&mut response, repo, status);
    response
}

/// The response with a whole blob, and with the URL that it was asked at: ollama downloads from nowhere else.
pub(super) fn whole_blob(request: &RegistryRequest, body: Body, length: Option<u64>) -> Response<Body> {
    let mut response = octet_stream(StatusCode::OK, body, length);
    let place = request.uri().path_and_query().map(PathAndQuery::as_str);
    if let Some(Ok(place)) = place.map(HeaderValue::from_str) {
        response.headers_mut().insert(LOCATION, place);
    }
    response
}

/// The response to ranges of a blob of `total` bytes that are not served.
fn unserved_ranges(refusal: Refusal, total: u64) -> Response<Body> {
    let Refusal::Unsatisfiable(unsatisfiable) = refusal else { return refused_ranges(refusal) };
    let mut response = failure(
        StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorCode::RangeInvalid,
        "the range begins behind the end of the blob",
    );
    response.headers_mut().insert(CONTENT_RANGE, value(&unsatisfiable.content_range(total)));
    response
}

/// The response to ranges that are served of no blob. Clients that ask for many at once then ask for fewer.
pub(super) fn refused_ranges(refusal: Refusal) -> Response<Body> {
    failure(StatusCode::BAD_REQUEST, ErrorCode::RangeInvalid, &refusal.to_string())
}

/// Sets the headers that identify content: its digest, and the same as its `ETag`.
pub(super) fn set_digest(response: &mut Response<Body>, digest: &Digest) {
    let headers = response.headers_mut();
    // Both share one text.
    let mut tag = String::with_capacity(DIGEST_BYTES_MAX + 2);
    let _ = write!(tag, "\"{digest}\"");
    let tag = Bytes::from(tag);
    headers.insert(CONTENT_DIGEST, shared(tag.slice(1..tag.len() - 1)));
    headers.insert(ETAG, shared(tag));
}

/// Sets the headers that say which registry content is from, and how it was found.
pub(super) fn set_source(response: &mut Response<Body>, repo: &Repo, status: &'static str) {
    let headers = response.headers_mut();
    headers.insert(NAMESPACE, value(repo.registry.as_str()));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
}

/// The response to a client that has the content already.
pub(super) fn not_modified() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// A response with bytes. Without a length it is sent in chunks.
fn octet_stream(status: StatusCode, body: Body, length: Option<u64>) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

/// The response with one range.
fn partial(body: Body, span: &Span, total: u64) -> Response<Body> {
    let mut response = octet_stream(StatusCode::PARTIAL_CONTENT, body, Some(span.len()));
    response.headers_mut().insert(CONTENT_RANGE, value(&span.content_range(total)));
    response
}

/// The response with several ranges.
fn multipart(request: &RegistryRequest, blob: Blob, parts: Box<[Part]>, total: u64) -> Response<Body> {
    let framing = Framing::new(total);
    let content_type = value(&framing.content_type());
    let body = request.body_of_parts(blob, parts, framing);
    let length = body.len();
    let mut response = octet_stream(StatusCode::PARTIAL_CONTENT, body, length);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
