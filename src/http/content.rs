//! Answers that carry content: a manifest, a blob, a part of one, or that the client has it already.

use hyper::header::{
    ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, WARNING,
};
use hyper::{Response, StatusCode};

use super::asked::Asked;
use super::body::Body;
use super::journal::Account;
use super::response::{CACHE_STATUS, NAMESPACE, cache_status, failure, value};
use crate::cache::{Blob, Manifest};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::error::ErrorCode;
use crate::oci::range::{Range, Span};
use crate::oci::{Digest, Repo};

/// A manifest, with the headers that were made when it was read.
pub(super) fn of_manifest(
    asked: &Asked,
    repo: &Repo,
    manifest: Manifest,
    account: &mut Account,
) -> Response<Body> {
    let Manifest { document, source, warning, age } = manifest;
    let status = cache_status(source, true, false);
    account.cache = status;
    let mut response = if asked.has(&document.digest) {
        let mut response = not_modified();
        identify(&mut response, &document.digest);
        response
    } else {
        let mut response = Response::new(Body::whole(document.body.clone()));
        response.headers_mut().clone_from(&document.headers);
        response
    };
    account_for(&mut response, repo, status);
    if let Some(age) = age {
        response.headers_mut().insert(AGE, age.into());
    }
    if let Some(warning) = warning {
        response.headers_mut().insert(WARNING, value(&format!("299 - \"{warning}\"")));
    }
    response
}

/// A blob, or the `range` of it that was asked.
pub(super) fn of_blob(
    asked: &Asked,
    (repo, digest): (&Repo, &Digest),
    blob: Blob,
    range: Option<Range>,
    account: &mut Account,
) -> Response<Body> {
    let total = blob.total;
    // Of nothing every range is unsatisfiable; clients that ask everything by ranges need a 200 here. And of what has no
    // end yet there are no parts.
    let range = range.filter(|_| total.is_some_and(|total| total > 0));
    // What ends where the range says may go out before the whole is proven; an end that is merely "the end" may
    // not.
    let held = matches!(range, None | Some(Range::From(_)));
    let status = cache_status(blob.source, !blob.is_direct(), !held && !blob.is_stored());
    account.cache = status;
    let mut response = match range.zip(total).map(|(range, total)| (range.resolve(total), total)) {
        _ if asked.has(digest) => not_modified(),
        None => octets(StatusCode::OK, asked.body_of(blob, 0, total, held), total),
        Some((Ok(span), total)) => {
            partial(asked.body_of(blob, span.start, Some(span.end), held), &span, total)
        }
        Some((Err(_), total)) => {
            let mut response = failure(
                StatusCode::RANGE_NOT_SATISFIABLE,
                ErrorCode::RangeInvalid,
                "the range begins behind the end of the blob",
            );
            response.headers_mut().insert(CONTENT_RANGE, value(&format!("bytes */{total}")));
            response
        }
    };
    identify(&mut response, digest);
    account_for(&mut response, repo, status);
    response
}

/// The headers that say what content is.
pub(super) fn identify(response: &mut Response<Body>, digest: &Digest) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_DIGEST, value(&digest.to_string()));
    headers.insert(ETAG, value(&format!("\"{digest}\"")));
}

/// The headers that say where content is from and how it was come by.
pub(super) fn account_for(response: &mut Response<Body>, repo: &Repo, status: &'static str) {
    let headers = response.headers_mut();
    headers.insert(NAMESPACE, value(repo.registry.as_str()));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
}

pub(super) fn not_modified() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// Without a length it comes in chunks.
pub(super) fn octets(status: StatusCode, body: Body, length: Option<u64>) -> Response<Body> {
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

pub(super) fn partial(body: Body, span: &Span, total: u64) -> Response<Body> {
    let mut response = octets(StatusCode::PARTIAL_CONTENT, body, Some(span.len()));
    response.headers_mut().insert(CONTENT_RANGE, value(&span.content_range(total)));
    response
}
