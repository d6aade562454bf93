//! Passthrough: a blob goes from upstream to one client without being stored, because the disk cannot take it, or
//! because the flight that is under way may be waiting for the berth that asks.
//!
//! It is the one exception to "upstream is asked once": each client has a transfer of its own. The promises to the
//! client hold all the same. The content is hashed from its first byte, and its last [`HOLD_BACK`] bytes are sent only
//! when the digest is right. A range with an end of its own is asked for as such, and is as unverified as it is from a
//! flight; so a blob that has answered 206 goes on answering 206 when the disk fails underneath. Several ranges come
//! one after the other, near ones in one request. After [`JUMPS_MAX`] requests, what lies between two ranges is read
//! and dropped.
//!
//! A reader of a flight whose disk fails gets the rest this way. What it has read is still in the file, and is hashed
//! there. If the file lacks some of that, the whole content is asked for from its start where the digest must be
//! verified, and the rest alone where it need not be.
//!
//! Of a response that calls itself a page nothing goes out before the whole is verified, so it must fit into memory.

mod pump;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::time::timeout;
use tracing::{info, warn};

use self::pump::Pump;
use super::download::flight::HOLD_BACK;
use super::error::Error;
use super::fairness::{HeldPermit, PASSTHROUGHS};
use super::mismatches::Mismatches;
use crate::context::RequestContext;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Digest, Range, RepoName, Verifier};
use crate::shares::{Owner, Shares};
use crate::store::{self, BlobFile, PartialKey};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Kind;
use crate::upstream::{BlobStream, PAGE, Upstream};

/// How long a request waits for a permit: half of the time that there is for the head of its response.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Distance in bytes from which on a later range is asked for on its own, if it may go out unverified.
const FAR: u64 = 1 << 20;
/// The largest page, in bytes: what calls itself a page is a small blob, or none.
const PAGE_BYTES_MAX: u64 = 1 << 20;
/// The most requests for ranges that begin later. After them the rest is asked for, and what is not wanted of it is
/// dropped. Ranges that begin earlier than what has come need a request each: the http side bounds how many there may
/// be.
const JUMPS_MAX: u32 = 16;
/// The most requests in all, for an upstream that answers with less than was asked for.
const RESTARTS_MAX: u32 = 4 * JUMPS_MAX;
/// Bytes of the file of a failed flight that are hashed at once.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// Makes passthroughs, and holds the limit on how many run at once.
pub(super) struct Passthroughs {
    metrics: Arc<Metrics>,
    room: Shares,
    /// The contents that came with a wrong digest.
    mismatches: Arc<Mismatches>,
}

impl Passthroughs {
    pub(super) fn new(metrics: &Arc<Metrics>, mismatches: &Arc<Mismatches>) -> Self {
        let (metrics, mismatches) = (Arc::clone(metrics), Arc::clone(mismatches));
        Self { metrics, room: Shares::new(PASSTHROUGHS), mismatches }
    }

    /// The passthrough for the blob of `key`, in the repository `name` of `upstream`.
    pub(super) fn of(
        &self,
        upstream: Arc<Upstream>,
        name: &RepoName,
        key: PartialKey,
        context: &RequestContext,
    ) -> Result<Passthrough, Error> {
        Ok(Passthrough {
            context: upstream.settle(context, &key.digest)?,
            upstream,
            name: name.clone(),
            digest: key.digest,
            metrics: Arc::clone(&self.metrics),
            room: self.room.clone(),
            key,
            mismatches: Arc::clone(&self.mismatches),
        })
    }
}

/// A passthrough for one blob of one repository, yet to be begun.
#[derive(Clone)]
pub(super) struct Passthrough {
    upstream: Arc<Upstream>,
    context: RequestContext,
    name: RepoName,
    digest: Digest,
    metrics: Arc<Metrics>,
    /// The limit on how many passthroughs run at once.
    room: Shares,
    /// The registry and the digest of the blob, by which a mismatch is noted.
    key: PartialKey,
    mismatches: Arc<Mismatches>,
}

impl Passthrough {
    /// The context with which upstream is asked.
    pub(super) fn context(&self) -> &RequestContext {
        &self.context
    }

    /// Begins with all of the content.
    pub(super) async fn whole(self) -> Result<PassthroughStream, Error> {
        let hold = self.acquire().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        self.open(hold, 0, None, DigestCheck::Pending(Box::new(verifier))).await
    }

    /// Begins behind `position`; nothing is verified.
    pub(super) async fn unverified_from(
        self,
        position: u64,
        total: Option<u64>,
    ) -> Result<PassthroughStream, Error> {
        let hold = self.acquire().await?;
        self.open(hold, position, total, DigestCheck::None).await
    }

    /// Begins behind `position`. The bytes before it are in `file`, and are verified with the rest.
    pub(super) async fn verified_from(
        self,
        file: BlobFile,
        position: u64,
        total: Option<u64>,
    ) -> Result<PassthroughStream, Error> {
        let hold = self.acquire().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        let hash = tokio::task::spawn_blocking(move || hash(verifier, file.file(), position));
        let verifier =
            hash.await.map_err(|_| Error::GivenUp)?.map_err(|error| Error::Read(Arc::new(error)))?;
        self.open(hold, position, total, DigestCheck::Pending(Box::new(verifier))).await
    }

    /// Logs why a download that had begun is not kept.
    pub(super) fn log_failure(&self, cause: &store::Error) {
        let error = cause as &dyn std::error::Error;
        if cause.is_by_limits() {
            info!(digest = %self.digest, error, "a transfer has no more room: its readers get the rest unstored");
        } else {
            warn!(digest = %self.digest, error, "the disk failed a transfer: its readers get the rest unstored");
        }
    }

    /// Begins behind `position`; `check` has seen what lies before it.
    async fn open(
        self,
        mut hold: HeldPermit,
        position: u64,
        total: Option<u64>,
        check: DigestCheck,
    ) -> Result<PassthroughStream, Error> {
        let range = (position > 0).then_some(Range::From(position));
        let stream = self.from(&mut hold, range, total).await?;
        if stream.is_page && (position > 0 || matches!(check, DigestCheck::None)) {
            return Err(PAGE.into());
        }
        Ok(PassthroughStream {
            is_of_fallback: stream.is_of_fallback,
            is_page: stream.is_page,
            check,
            hashed: position,
            waiting: VecDeque::new(),
            position: stream.start,
            received: stream.start,
            reach: stream.end,
            total: stream.total,
            // Where ranges are ignored, a further request would bring everything, too.
            jumps: if stream.start == position { 0 } else { JUMPS_MAX },
            pump: Some(Pump::start(stream, hold)),
            passthrough: self,
        })
    }

    async fn from(
        &self,
        hold: &mut HeldPermit,
        range: Option<Range>,
        total: Option<u64>,
    ) -> Result<BlobStream, Error> {
        tokio::select! {
            stream = self.upstream.blob(&self.context, &self.name, &self.digest, range, total, &[]) => Ok(stream?),
            () = hold.is_lost(|| 0) => Err(Error::Displaced),
        }
    }

    /// Waits for a permit.
    async fn acquire(&self) -> Result<HeldPermit, Error> {
        let owner = Owner::new(self.upstream.registry(), self.context.client());
        let turn = timeout(self.context.patience(TURN_WAIT_MAX), self.room.acquire(owner, 1));
        match turn.await {
            Ok(Ok(permit)) => Ok(HeldPermit::new(permit, 0)),
            Ok(Err(_)) | Err(_) => Err(Error::Busy),
        }
    }
}

/// Hashes the first `len` bytes of a file.
fn hash(mut verifier: Verifier, file: &File, len: u64) -> std::io::Result<Verifier> {
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let wanted = usize::try_from(len - at).map_or(HASH_CHUNK_BYTES, |left| left.min(HASH_CHUNK_BYTES));
        file.read_exact_at(&mut chunk[..wanted], at)?;
        verifier.update(&chunk[..wanted]);
        at += wanted as u64;
    }
    Ok(verifier)
}

/// What is known of the digest of the content.
enum DigestCheck {
    /// This verifier has seen the beginning, and sees what comes.
    Pending(Box<Verifier>),
    /// The digest is right.
    Done,
    /// Some of the content is left out: it cannot be verified.
    None,
}

impl DigestCheck {
    /// All of the content has come: whether the digest is right, as far as that can be known.
    fn holds_for(&mut self, digest: &Digest) -> bool {
        match std::mem::replace(self, Self::None) {
            Self::Pending(verifier) => {
                let is_right = verifier.finish() == *digest;
                if is_right {
                    *self = Self::Done;
                }
                is_right
            }
            known => {
                *self = known;
                true
            }
        }
    }
}

/// A passthrough that has begun: one response of upstream, or several one after the other.
pub(super) struct PassthroughStream {
    passthrough: Passthrough,
    /// The size of the content in bytes; `None` while upstream has not said it.
    total: Option<u64>,
    /// Whether a fallback sends the content.
    is_of_fallback: bool,
    /// Whether the response calls itself a page.
    is_page: bool,
    /// `None` only while another response takes the place of one.
    pump: Option<Pump>,
    check: DigestCheck,
    /// Position up to which the verifier has seen the content.
    hashed: u64,
    /// What is received and not sent yet: the end that is held back, and a chunk.
    waiting: VecDeque<Bytes>,
    /// Position of the first waiting byte.
    position: u64,
    /// Position behind the last byte that was received.
    received: u64,
    /// Position behind the last byte that this response brings.
    reach: u64,
    /// How often another response took the place of one, to skip bytes or to go back.
    jumps: u32,
}

impl PassthroughStream {
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Whether a fallback sends it.
    pub(super) fn is_of_fallback(&self) -> bool {
        self.is_of_fallback
    }

    /// The next bytes of `part`, which begins where the last ones ended; `None` where the content ends. If the part is
    /// open, the end of the content waits for the verification. `further` are the parts that are read after it.
    pub(super) async fn next(&mut self, part: Part, further: &[Part]) -> Result<Option<Bytes>, Error> {
        let Part { span: Span { start, end }, is_open: held } = part;
        if held && (start < self.position || matches!(self.check, DigestCheck::None)) {
            self.begin_again().await?;
        } else if !held && self.is_elsewhere(start) {
            self.jump(part, further).await?;
        }
        loop {
            self.skip_to(start);
            let visible = match self.check {
                DigestCheck::Pending(_) if self.is_page => 0,
                DigestCheck::Pending(_) if held => {
                    self.received.min(self.total.unwrap_or(self.received).saturating_sub(HOLD_BACK))
                }
                DigestCheck::Pending(_) | DigestCheck::Done | DigestCheck::None => self.received,
            };
            let ready = visible.min(end).saturating_sub(self.position);
            if self.position == start && ready > 0 {
                return Ok(Some(self.take(ready)));
            }
            if !matches!(self.check, DigestCheck::Pending(_)) && self.total == Some(start) {
                return Ok(None);
            }
            self.receive().await?;
        }
    }

    /// Whether bytes that begin at `start` need another request, or are worth one.
    fn is_elsewhere(&self, start: u64) -> bool {
        let is_far = start >= self.received.saturating_add(FAR) && self.jumps < JUMPS_MAX;
        start < self.position || start >= self.reach || is_far
    }

    /// Asks for a later or earlier part, and gives up the verification for that.
    async fn jump(&mut self, part: Part, further: &[Part]) -> Result<(), Error> {
        if self.jumps >= RESTARTS_MAX {
            return Err(Error::GivenUp);
        }
        self.jumps += 1;
        let first = part.span.start;
        let last = near_end(part, further) - 1;
        let range = if self.jumps < JUMPS_MAX { Range::Closed { first, last } } else { Range::From(first) };
        self.restart(Some(range), DigestCheck::None).await?;
        if self.position != first {
            // Upstream ignores ranges.
            self.jumps = self.jumps.max(JUMPS_MAX);
        }
        Ok(())
    }

    /// Asks for everything from the start, for a part that needs the verification of bytes that were left out.
    async fn begin_again(&mut self) -> Result<(), Error> {
        let verifier = Box::new(Verifier::new(self.passthrough.digest.algorithm()));
        self.restart(None, DigestCheck::Pending(verifier)).await
    }

    async fn restart(&mut self, range: Option<Range>, check: DigestCheck) -> Result<(), Error> {
        let pump = self.pump.take().ok_or(Error::GivenUp)?;
        let mut hold = pump.stop().await?;
        let stream = self.passthrough.from(&mut hold, range, self.total).await?;
        if stream.is_page {
            return Err(PAGE.into());
        }
        (self.check, self.hashed, self.is_page) = (check, 0, false);
        self.total = self.total.or(stream.total);
        self.waiting.clear();
        (self.position, self.received, self.reach) = (stream.start, stream.start, stream.end);
        self.pump = Some(Pump::start(stream, hold));
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let Some(chunk) = self.pump.as_mut().ok_or(Error::GivenUp)?.chunk().await? else {
            // The end of the body is the end of the content only if its size is unknown.
            if self.total.is_some() {
                return Err(Error::GivenUp);
            }
            self.total = Some(self.received);
            return self.verify();
        };
        let Passthrough { upstream, metrics, .. } = &self.passthrough;
        metrics.received(Kind::Blob, upstream.registry().label(), chunk.len() as u64);
        let known = self.hashed.saturating_sub(self.received).min(chunk.len() as u64);
        self.received += chunk.len() as u64;
        if let DigestCheck::Pending(verifier) = &mut self.check {
            verifier.update(&chunk[usize::try_from(known).expect("no more than the chunk's length")..]);
        }
        self.waiting.push_back(chunk);
        match self.total {
            Some(total) if self.received >= total => self.verify(),
            None if self.is_page && self.received > PAGE_BYTES_MAX => Err(PAGE.into()),
            Some(_) | None => Ok(()),
        }
    }

    /// All of the content has come: verifies it as far as possible.
    fn verify(&mut self) -> Result<(), Error> {
        let Passthrough { metrics, digest, key, name, mismatches, .. } = &self.passthrough;
        let is_whole = matches!(self.check, DigestCheck::Pending(_));
        if self.total != Some(self.received) || !self.check.holds_for(digest) {
            metrics.mismatches.inc();
            mismatches.failed_once(key, name);
            return Err(Error::Mismatch);
        }
        if is_whole {
            mismatches.clear(key, name);
        }
        Ok(())
    }

    /// Drops what lies before `start`.
    fn skip_to(&mut self, start: u64) {
        while let Some(first) = self.waiting.front_mut() {
            let before = (start - self.position).min(first.len() as u64);
            if before == 0 {
                return;
            }
            self.position += before;
            first.advance(usize::try_from(before).expect("no more than the chunk's length"));
            if first.is_empty() {
                self.waiting.pop_front();
            }
        }
    }

    /// At most `ready` bytes of the first waiting chunk.
    fn take(&mut self, ready: u64) -> Bytes {
        let Some(first) = self.waiting.front_mut() else { return Bytes::new() };
        let len = ready.min(first.len() as u64);
        let bytes = first.split_to(usize::try_from(len).expect("no more than the chunk's length"));
        self.position += len;
        if first.is_empty() {
            self.waiting.pop_front();
        }
        bytes
    }
}

/// The end of one request for `part`: its own end, or that of the last part near behind it.
fn near_end(part: Part, further: &[Part]) -> u64 {
    let mut end = part.span.end;
    for next in further {
        if next.is_open || next.span.start < end || next.span.start >= end.saturating_add(FAR) {
            break;
        }
        end = next.span.end;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_parts_come_in_one_request() {
        let part = |start: u64, end: u64| Part { span: Span { start, end }, is_open: false };
        let check = |further: &[Part], end: u64| assert_eq!(near_end(part(10, 20), further), end);
        check(&[], 20);
        check(&[part(20, 30), part(40, 50)], 50);
        check(&[part(20 + FAR - 1, 20 + FAR)], 20 + FAR);
        check(&[part(20 + FAR, 30 + FAR)], 20);
        check(&[part(5, 8), part(30, 40)], 20);
        check(&[part(30, 40), Part { span: Span { start: 50, end: 60 }, is_open: true }], 40);
    }
}
