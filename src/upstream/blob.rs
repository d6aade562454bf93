//! Blobs: their size, and a body that begins where it was asked to.
//!
//! The size is upstream's own word: from a 2xx of the blob itself, never from a manifest. A part is taken only
//! if the answer proves that it is the place that was asked for, and of a content of the same size where that
//! is known. An upstream that ignores ranges answers with everything: the stream says where it begins.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::exchange::{Answer, Ask, is_page};
use super::hedge::Late;
use super::limit::Transfer;
use super::retry::{ROUNDS_MAX, Rounds};
use super::server::Server;
use super::{Error, Upstream};
use crate::context::{RequestContext, is_fallback};
use crate::oci::range::{ContentRange, Span};
use crate::oci::{Digest, Range, RepoName, Speaker};

/// No layer comes near this; a larger claim is a mistake or an attack on the disk.
const BLOB_BYTES_MAX: u64 = 1 << 40;

/// A blob on its way. Its bytes are unproven, and may be fewer or more than `total`: that is for the reader
/// to judge, together with their digest.
pub struct BlobStream {
    /// The size of the whole blob.
    pub total: u64,
    /// The offset of the first byte: the one asked for, or 0.
    pub start: u64,
    /// The offset behind the last byte that it promises; it may break off before.
    pub end: u64,
    /// Which endpoint it comes from.
    pub endpoint: usize,
    /// Whether it comes without any credential.
    pub public: bool,
    /// Who sends it.
    pub speaker: Speaker,
    body: Incoming,
    idle: Duration,
    transfer: Transfer,
}

/// That somebody has a blob of this size: nothing proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its size.
    pub size: u64,
    /// Whose word it is.
    pub speaker: Speaker,
}

impl BlobStream {
    /// The next bytes; `None` when upstream has ended the body.
    ///
    /// # Errors
    /// [`Error::Timeout`] when upstream goes silent, [`Error::Unreachable`] when the connection breaks.
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

    /// Makes room for another transfer: no more of this one is wanted.
    pub fn leave(&mut self) {
        self.transfer.end();
    }
}

impl Upstream {
    /// Asks for the size of a blob, and so whether it is there and may be had.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none knew.
    pub async fn head_blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<u64, Error> {
        Ok(self.claim_of_blob(context, name, digest).await?.size)
    }

    /// The same, with who claims to have it.
    ///
    /// # Errors
    /// As [`Upstream::head_blob`].
    pub async fn claim_of_blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<Claim, Error> {
        let deadline = self.deadline();
        let late = &Late::default();
        let rounds =
            Rounds::new(self, (&digest.to_string(), context), &[], ROUNDS_MAX, deadline).hedging(late);
        rounds
            .first(|stop| async move {
                let from = (stop.server(), context, late);
                stop.upstream().claim_from(from, name, digest, deadline).await
            })
            .await
    }

    /// Opens a blob, or a part of it. With `total`, only a content of that size is accepted. Endpoints in `avoid`
    /// are asked last.
    ///
    /// # Errors
    /// [`Error::Changed`] if the size is another one; else [`Error`], the last endpoint's if none had it.
    pub async fn blob(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
        range: Option<Range>,
        total: Option<u64>,
        avoid: &[usize],
    ) -> Result<BlobStream, Error> {
        let deadline = self.deadline();
        let late = &Late::default();
        let mut rounds = Rounds::new(self, (&digest.to_string(), context), avoid, ROUNDS_MAX, deadline);
        if avoid.is_empty() {
            // An endpoint that is to be avoided is none to be asked beside another.
            rounds = rounds.hedging(late);
        }
        rounds
            .first(|stop| async move {
                let from = (stop.server(), context, late);
                stop.upstream().blob_from(from, name, digest, (range, total), deadline).await
            })
            .await
    }

    async fn blob_from(
        &self,
        (server, context, late): (&Server, &RequestContext, &Late),
        name: &RepoName,
        digest: &Digest,
        (range, known): (Option<Range>, Option<u64>),
        deadline: Instant,
    ) -> Result<BlobStream, Error> {
        let range = match (range, known) {
            // Some servers look for two numbers and answer 416 to an open range.
            (Some(Range::From(first)), Some(total)) if first < total => {
                Some(Range::Closed { first, last: total - 1 })
            }
            (range, _) => range,
        };
        let ask = Ask::get(name, format!("blobs/{digest}")).along(context).telling(late);
        let ask = Ask { range: range.map(|range| range.to_string()), is_transfer: true, ..ask };
        let transfer = self.transfer(context.client(), deadline).await?;
        let Answer { response, public, .. } = self.exchange(server, &ask, deadline).await?;
        let headers = response.headers();
        check_content(headers)?;
        let (span, total) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let answered = content_range(headers)?;
            let total = answered.total.or_else(|| known.filter(|total| answered.span.end <= *total));
            let total = total.ok_or(Error::Malformed("a range of unknown size"))?;
            let is_changed = known.is_some_and(|known| known != total);
            if !is_changed && !range.is_some_and(|range| is_answer_to(range, answered.span, total)) {
                return Err(Error::Malformed("another range than was asked for"));
            }
            (answered.span, total)
        } else {
            let total = match content_length(headers).or(known) {
                Some(total) => total,
                None => self.claim_from((server, context, late), name, digest, deadline).await?.size,
            };
            (Span::whole(total), total)
        };
        if known.is_some_and(|known| known != total) {
            return Err(Error::Changed);
        }
        let (body, idle) = (response.into_body(), self.client.timeouts.idle);
        let (total, endpoint, speaker) = (check_size(total)?, server.index(), self.speaker());
        Ok(BlobStream {
            total,
            start: span.start,
            end: span.end,
            endpoint,
            public,
            speaker,
            body,
            idle,
            transfer,
        })
    }

    /// The size that `server` gives: by HEAD, or by a GET of one byte where HEAD says nothing. That is so behind
    /// signed URLs, which are for GET alone, and with servers that send all bodies in chunks.
    ///
    /// A parent says whose word it passes on; of a part of a body that it sends it does not.
    async fn claim_from(
        &self,
        (server, context, late): (&Server, &RequestContext, &Late),
        name: &RepoName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Claim, Error> {
        let path = format!("blobs/{digest}");
        let ask = Ask::head(name, path.clone()).along(context).telling(late);
        match self.exchange(server, &ask, deadline).await {
            Ok(answer) => {
                let headers = answer.response.headers();
                check_content(headers)?;
                // A careless server answers HEAD with the length of the body that HEAD does not have.
                if let Some(total) = content_length(headers).filter(|total| *total > 0 || is_empty(digest)) {
                    return Ok(Claim { size: check_size(total)?, speaker: self.whose(is_fallback(headers)) });
                }
            }
            Err(
                Error::Unavailable { status: 400 | 401 | 403 | 404 | 405 | 501 }
                | Error::NotFromRegistry { status: 403 },
            ) => {}
            Err(error) => return Err(error),
        }
        let range = Some(Range::Closed { first: 0, last: 0 }.to_string());
        let ask = Ask { range, ..Ask::get(name, path).along(context).telling(late) };
        let answer = self.exchange(server, &ask, deadline).await?;
        let headers = answer.response.headers();
        check_content(headers)?;
        let total = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => content_range(headers)?.total,
            _ => content_length(headers),
        };
        let total = total.ok_or(Error::Malformed("a blob without a length"))?;
        Ok(Claim { size: check_size(total)?, speaker: self.whose(true) })
    }

    /// Whose word an answer is; a parent may only have passed on that of a fallback.
    fn whose(&self, may_be_fallback: bool) -> Speaker {
        match self.speaker() {
            Speaker::Parent if may_be_fallback => Speaker::Fallback,
            own => own,
        }
    }
}

/// Whether `span` of a content of `total` bytes begins where `range` does, and goes no further. It may be shorter.
fn is_answer_to(range: Range, span: Span, total: u64) -> bool {
    range.resolve(total).is_ok_and(|asked| span.start == asked.start && span.end <= asked.end)
}

/// A page or a coded body is not the blob.
fn check_content(headers: &HeaderMap) -> Result<(), Error> {
    if is_page(headers) {
        return Err(Error::Malformed("a page instead of a blob"));
    }
    let is_plain = |coding: &http::HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().all(is_plain) {
        Ok(())
    } else {
        Err(Error::Malformed("a blob with a content coding"))
    }
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
