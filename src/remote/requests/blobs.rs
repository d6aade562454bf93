//! Blobs: their size, and a body that begins where it was asked to.
//!
//! The size is what the endpoint itself says, in a 2xx of the blob and never in a manifest. If the answer has none, HEAD is
//! asked for it; an error of that HEAD does not count against the body that has begun, whose end is then the end of the blob. A part is taken only if the answer proves that it is the place that was asked for, and of a content of the
//! same size where that is known. An upstream that ignores ranges answers with everything: the stream says where it
//! begins.
//!
//! Labels decide nothing, for the digest does: a body may be called `text/html`, or coded, and be right. One that calls
//! itself a page is used only if no endpoint has another, and is marked ([`BlobStream::is_page`]): the caller must hold all
//! of it back until it is verified.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use crate::context::{RequestContext, is_fallback};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::range::{ContentRange, Span};
use crate::oci::{Digest, Range, RepoName, Speaker};
use crate::remote::endpoint::latency::LateSignal;
use crate::remote::error::Error;
use crate::remote::exchange::Target;
use crate::remote::handle::Remote;
use crate::remote::limits::Transfer;
use crate::remote::message::is_page;
use crate::remote::transport::request::{ApiRequest, ApiResponse};

/// Bytes of the largest blob that is believed: no layer comes near this, and a larger claim is a mistake or an attack on
/// the disk.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;
/// How long a body that has begun waits for HEAD to tell its size: as long as a healthy registry takes.
const MEASURE_MAX: Duration = Duration::from_secs(1);

/// A blob on its way. Its bytes are unproven, and may be fewer or more than `total`: that is for the reader
/// to judge, together with their digest.
pub struct BlobStream {
    /// The size of the whole blob; `None` if the endpoint does not tell, or if the body calls itself a page.
    pub total: Option<u64>,
    /// The offset of the first byte: the one asked for, or 0.
    pub start: u64,
    /// The offset behind the last byte that is promised; the body may break off before. If the size is not known, the
    /// largest that a blob may have.
    pub end: u64,
    /// The index of the endpoint that it comes from.
    pub endpoint: usize,
    /// Whether the blob comes without any credential.
    pub public: bool,
    /// As whose word the blob counts.
    pub speaker: Speaker,
    /// Whether a fallback sends the blob, directly or by way of a parent.
    pub is_of_fallback: bool,
    /// Whether the body calls itself a page, as that of a portal does.
    pub is_page: bool,
    /// Whether the answer itself does not tell its length: the size, if there is one, is what HEAD told.
    pub is_length_untold: bool,
    /// Whether the end of the body looks like a broken connection: it has neither a length nor chunks.
    pub ends_by_close: bool,
    body: Incoming,
    idle: Duration,
    transfer: Transfer,
}

/// A claim to have a blob of this size, which nothing proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The size of the blob in bytes.
    pub size: u64,
    /// As whose word the claim counts.
    pub speaker: Speaker,
}

/// A blob, or a part of it, that is asked for.
pub(crate) struct Wanted<'a> {
    name: &'a RepoName,
    digest: &'a Digest,
    range: Option<Range>,
    total: Option<u64>,
    /// Whether HEAD is asked for a size that the answer does not tell.
    is_measured: bool,
}

impl<'a> Wanted<'a> {
    /// The blob, or a part of it. If `total` is given, only a content of that size is accepted.
    pub(crate) fn new(
        (name, digest): (&'a RepoName, &'a Digest),
        range: Option<Range>,
        total: Option<u64>,
    ) -> Self {
        Self { name, digest, range, total, is_measured: false }
    }

    /// The same blob. If `is_measured`, HEAD is asked for a size that the answer does not tell.
    pub(crate) fn measured(self, is_measured: bool) -> Self {
        Self { is_measured, ..self }
    }
}

impl BlobStream {
    /// The next bytes; `None` at the end of the body.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the endpoint goes silent, [`Error::Unreachable`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.transfer.turn().await;
        loop {
            let frame = timeout(self.idle, self.body.frame()).await.map_err(|_| Error::Timeout)?;
            let Some(frame) = frame else { return Ok(None) };
            match frame.map_err(|error| Error::unreachable(&error))?.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.transfer.took(data.len() as u64);
                    return Ok(Some(data));
                }
                // Trailers say nothing that is needed.
                Err(_) => {}
            }
        }
    }

    /// Makes room for another transfer, because no more of this one is read.
    pub fn leave(&mut self) {
        self.transfer.end();
    }
}

/// Opens a blob, or a part of it.
///
/// # Errors
/// [`Error::Changed`] if the size is another one than is known; else [`Error`], as [`Target::exchange`].
pub(crate) async fn open(
    target: Target<'_>,
    (context, late): (&RequestContext, &LateSignal),
    wanted: &Wanted<'_>,
    deadline: Instant,
) -> Result<BlobStream, Error> {
    let Wanted { name, digest, total: known, .. } = *wanted;
    let remote = target.remote();
    let range = match (wanted.range, known) {
        // Some servers look for two numbers and answer 416 to an open range.
        (Some(Range::From(first)), Some(total)) if first < total => {
            Some(Range::Closed { first, last: total - 1 })
        }
        (range, _) => range,
    };
    let ask = ApiRequest::get(name, format!("blobs/{digest}")).along(context).telling(late);
    let ask = ApiRequest { range: range.map(|range| range.to_string()), is_transfer: true, ..ask };
    let transfer = remote.limits().transfer(context.client(), deadline).await?;
    let ApiResponse { response, public, .. } = target.exchange(&ask, deadline).await?;
    let mut is_length_untold = false;
    let (span, total) = match part_of(&response, range)? {
        Some(part) => {
            let total = part.total.or_else(|| known.filter(|total| part.span.end <= *total));
            let total = total.ok_or(Error::Malformed("a range of unknown size"))?;
            let is_changed = known.is_some_and(|known| known != total);
            if !is_changed && !is_answer_to(range.unwrap_or(Range::From(0)), part.span, total) {
                return Err(Error::Malformed("another range than was asked for"));
            }
            (part.span, Some(total))
        }
        None => {
            let mut total = content_length(response.headers()).or(known);
            is_length_untold = total.is_none();
            if is_length_untold && wanted.is_measured {
                let asked = size_by_head(target, (context, late), name, digest, deadline);
                total = timeout(MEASURE_MAX, asked).await.ok().and_then(Result::ok).flatten();
            }
            (Span::whole(total.unwrap_or(BLOB_BYTES_MAX)), total)
        }
    };
    if known.is_some_and(|known| Some(known) != total) {
        return Err(Error::Changed);
    }
    let total = total.map(check_size).transpose()?;
    let (is_page, ends_by_close) = (is_page(response.headers()), ends_by_close(&response));
    // How long a page is says nothing about the blob.
    let is_to_the_end = total.is_none_or(|total| span.end == total);
    let (total, end) = match is_page {
        true => (None, if is_to_the_end { BLOB_BYTES_MAX } else { span.end }),
        false => (total, span.end),
    };
    let (endpoint, speaker) = (target.endpoint().index(), remote.speaker());
    let is_of_fallback = whose(remote, is_fallback(response.headers())) == Speaker::Fallback;
    let (body, idle) = (response.into_body(), remote.transport().client().timeouts.idle);
    Ok(BlobStream {
        total,
        start: span.start,
        end,
        endpoint,
        public,
        speaker,
        is_of_fallback,
        is_page,
        is_length_untold: is_length_untold || is_page,
        ends_by_close,
        body,
        idle,
        transfer,
    })
}

/// The size of a blob as HEAD tells it, if it does: the length of a coded body is another.
async fn size_by_head(
    target: Target<'_>,
    (context, late): (&RequestContext, &LateSignal),
    name: &RepoName,
    digest: &Digest,
    deadline: Instant,
) -> Result<Option<u64>, Error> {
    let ask = ApiRequest::head(name, format!("blobs/{digest}")).along(context).telling(late);
    let answer = target.exchange(&ask, deadline).await?;
    Ok(size_of(answer.response.headers(), digest))
}

/// Asks `target` for the size of a blob: by HEAD, and by a GET of one byte if HEAD tells no size or refuses. That happens
/// behind signed URLs, which are for GET alone, and with servers that send all bodies in chunks.
///
/// A parent tells whose word it passes on, except with a part of a body. The refusal of a HEAD by a berth is final.
///
/// # Errors
/// [`Error`], as [`Target::exchange`]; [`Error::NoLength`] if it has the blob and gives no size.
pub(crate) async fn claim(
    target: Target<'_>,
    (context, late): (&RequestContext, &LateSignal),
    name: &RepoName,
    digest: &Digest,
    deadline: Instant,
) -> Result<Claim, Error> {
    let (remote, path) = (target.remote(), format!("blobs/{digest}"));
    let ask = ApiRequest::head(name, path.clone()).along(context).telling(late).tentative();
    match target.exchange(&ask, deadline).await {
        Ok(answer) => {
            let headers = answer.response.headers();
            if let Some(total) = size_of(headers, digest) {
                return Ok(Claim { size: check_size(total)?, speaker: whose(remote, is_fallback(headers)) });
            }
        }
        Err(Error::Unavailable { status: 400 | 401 | 403 | 404 | 405 | 500 | 501 }) => {}
        Err(Error::NotFound | Error::Denied) if !remote.is_berth() => {}
        Err(error) => return Err(error),
    }
    let range = Some(Range::Closed { first: 0, last: 0 }.to_string());
    let ask = ApiRequest { range, ..ApiRequest::get(name, path).along(context).telling(late) };
    let answer = target.exchange(&ask, deadline).await?;
    let headers = answer.response.headers();
    let total = match part_of(&answer.response, Some(Range::Closed { first: 0, last: 0 }))? {
        Some(part) => part.total,
        None if is_page(headers) && !names(headers, digest) => return Err(PAGE),
        None => size_of(headers, digest),
    };
    let total = total.ok_or(Error::NoLength)?;
    Ok(Claim { size: check_size(total)?, speaker: whose(remote, true) })
}

/// As whose word an answer counts: a parent may have passed on that of a fallback.
fn whose(remote: &Remote, may_be_fallback: bool) -> Speaker {
    match remote.speaker() {
        Speaker::Parent if may_be_fallback => Speaker::Fallback,
        own => own,
    }
}

/// Whether `span` of a content of `total` bytes begins where `range` does, and goes no further. It may be shorter.
fn is_answer_to(range: Range, span: Span, total: u64) -> bool {
    range.resolve(total).is_ok_and(|asked| span.start == asked.start && span.end <= asked.end)
}

/// The error for an answer that calls itself a page, as long as it is not verified to be the blob.
pub(crate) const PAGE: Error = Error::Malformed("a page instead of a blob");

/// The part of the blob that an answer is; `None` if it is all of it. Some servers send a part with 200: then its length is
/// that of the part, which must be the one that was asked for.
fn part_of(response: &Response<Incoming>, range: Option<Range>) -> Result<Option<ContentRange>, Error> {
    let headers = response.headers();
    if response.status() == StatusCode::PARTIAL_CONTENT {
        return content_range(headers).map(Some);
    }
    let (Some(range), Ok(part)) = (range, content_range(headers)) else { return Ok(None) };
    let is_asked = part.total.is_some_and(|total| is_answer_to(range, part.span, total));
    let is_as_long = content_length(headers).is_none_or(|length| length == part.span.len());
    Ok(Some(part).filter(|_| is_asked && is_as_long))
}

/// Whether only the end of the connection marks the end of the body.
fn ends_by_close(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    response.version() <= Version::HTTP_11
        && !headers.contains_key(CONTENT_LENGTH)
        && !headers.contains_key(TRANSFER_ENCODING)
}

/// The size of a blob by the headers of an answer whose body is not read. It is not believed if it may be the length of the
/// empty body of HEAD, of a coded body, or of the page of a portal.
fn size_of(headers: &HeaderMap, digest: &Digest) -> Option<u64> {
    let is_plain = |coding: &http::HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    let is_coded = !headers.get_all(CONTENT_ENCODING).iter().all(is_plain);
    if is_coded || (is_page(headers) && !names(headers, digest)) {
        return None;
    }
    content_length(headers).filter(|total| *total > 0 || is_empty(digest))
}

/// Whether an answer names the digest that was asked for, as a registry does.
fn names(headers: &HeaderMap, digest: &Digest) -> bool {
    headers.get(CONTENT_DIGEST).is_some_and(|said| said.as_bytes() == digest.to_string().as_bytes())
}

fn check_size(total: u64) -> Result<u64, Error> {
    if total <= BLOB_BYTES_MAX { Ok(total) } else { Err(Error::Malformed("a blob larger than any")) }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn content_range(headers: &HeaderMap) -> Result<ContentRange, Error> {
    let text = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    text.and_then(ContentRange::parse).ok_or(Error::Malformed("a part without a valid Content-Range"))
}

fn is_empty(digest: &Digest) -> bool {
    Digest::of(digest.algorithm(), b"") == *digest
}
