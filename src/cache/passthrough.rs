//! A blob that passes through unstored, because the disk cannot take it, or because the transfer that is under way may
//! be waiting for the one who asks.
//!
//! The one exception to "upstream is asked once": each client has a transfer of its own. The promises to the
//! client hold all the same: the content is hashed from its first byte, and its last [`HOLD_BACK`] bytes are
//! sent only when the digest is right. A range with an end of its own is asked for as such, and as unproven as
//! it is from a flight; so a blob that has answered 206 goes on answering 206 when the disk fails underneath.
//! Several ranges come one after the other, near ones in one request, and of requests there are [`JUMPS_MAX`] before
//! what lies between two of them is read on through.
//!
//! A reader of a flight whose disk fails takes this way for the rest: what it has read is still in the file,
//! and hashed there. Where that is not all of the beginning, the whole is asked for from its start if the proof
//! is needed, and the rest alone if not.
//!
//! Of what calls itself a page nothing goes out before the whole is proven, so that it must fit into memory.

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
use super::fairness::{DIRECT, Hold};
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

/// How long a request waits for its turn: half of the time that there is for the head of its answer.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// A range that begins later than this is asked for on its own, if it may go out unproven.
const FAR: u64 = 1 << 20;
/// What calls itself a page is a small blob, or none.
const PAGE_BYTES_MAX: u64 = 1 << 20;
/// Requests for ranges that begin later; then the rest is asked for, and what is not wanted of it passed over. Ranges that
/// begin earlier than what has come need a request each: who answers them bounds how many there may be.
const JUMPS_MAX: u32 = 16;
/// Requests in all, whatever an upstream makes of them that answers with less than was asked for.
const RESTARTS_MAX: u32 = 4 * JUMPS_MAX;
/// Bytes hashed at once of what a failed flight has left.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// Makes the ways around the disk, and holds the room that they have together.
pub(super) struct Passthroughs {
    metrics: Arc<Metrics>,
    room: Shares,
    /// What came wrong.
    mismatches: Arc<Mismatches>,
}

impl Passthroughs {
    pub(super) fn new(metrics: &Arc<Metrics>, mismatches: &Arc<Mismatches>) -> Self {
        let (metrics, mismatches) = (Arc::clone(metrics), Arc::clone(mismatches));
        Self { metrics, room: Shares::new(DIRECT), mismatches }
    }

    /// The way for one blob: `key` is what that is as a transfer of its registry, `context` where the request has come from.
    pub(super) fn of(
        &self,
        upstream: Arc<Upstream>,
        name: &RepoName,
        key: PartialKey,
        context: &RequestContext,
    ) -> Result<Detour, Error> {
        Ok(Detour {
            context: upstream.settle(context, &key.digest)?,
            upstream,
            name: name.clone(),
            digest: key.digest,
            metrics: Arc::clone(&self.metrics),
            permits: self.room.clone(),
            key,
            mismatches: Arc::clone(&self.mismatches),
        })
    }
}

/// The way around the disk, for one blob of one repository.
#[derive(Clone)]
pub(super) struct Detour {
    upstream: Arc<Upstream>,
    context: RequestContext,
    name: RepoName,
    digest: Digest,
    metrics: Arc<Metrics>,
    /// Room for transfers of this kind.
    permits: Shares,
    /// What it is as a transfer of its registry, and what came wrong.
    key: PartialKey,
    mismatches: Arc<Mismatches>,
}

impl Detour {
    /// Where the request goes on to.
    pub(super) fn context(&self) -> &RequestContext {
        &self.context
    }

    /// All of the content.
    pub(super) async fn whole(self) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        self.open(hold, 0, None, Proof::Pending(Box::new(verifier))).await
    }

    /// What lies behind `position`, to go out unproven.
    pub(super) async fn unproven(self, position: u64, total: Option<u64>) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        self.open(hold, position, total, Proof::None).await
    }

    /// What lies behind `position`, the bytes before it being in `file`.
    pub(super) async fn rest(
        self,
        file: BlobFile,
        position: u64,
        total: Option<u64>,
    ) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        let hash = tokio::task::spawn_blocking(move || hash(verifier, file.file(), position));
        let verifier =
            hash.await.map_err(|_| Error::GivenUp)?.map_err(|error| Error::Read(Arc::new(error)))?;
        self.open(hold, position, total, Proof::Pending(Box::new(verifier))).await
    }

    /// Says why a transfer that had begun is not kept.
    pub(super) fn say_why(&self, cause: &store::Error) {
        let error = cause as &dyn std::error::Error;
        if cause.is_by_limits() {
            info!(digest = %self.digest, error, "a transfer has no more room: its readers get the rest unstored");
        } else {
            warn!(digest = %self.digest, error, "the disk failed a transfer: its readers get the rest unstored");
        }
    }

    /// Passes on what lies behind `position`; `proof` knows what lies before it.
    async fn open(
        self,
        mut hold: Hold,
        position: u64,
        total: Option<u64>,
        proof: Proof,
    ) -> Result<Direct, Error> {
        let range = (position > 0).then_some(Range::From(position));
        let stream = self.from(&mut hold, range, total).await?;
        if stream.is_page && (position > 0 || matches!(proof, Proof::None)) {
            return Err(PAGE.into());
        }
        Ok(Direct {
            is_of_fallback: stream.is_of_fallback,
            is_page: stream.is_page,
            proof,
            hashed: position,
            waiting: VecDeque::new(),
            position: stream.start,
            received: stream.start,
            reach: stream.end,
            total: stream.total,
            // Where ranges are ignored, a further transfer would bring everything, too.
            jumps: if stream.start == position { 0 } else { JUMPS_MAX },
            pump: Some(Pump::start(stream, hold)),
            detour: self,
        })
    }

    async fn from(
        &self,
        hold: &mut Hold,
        range: Option<Range>,
        total: Option<u64>,
    ) -> Result<BlobStream, Error> {
        tokio::select! {
            stream = self.upstream.blob(&self.context, &self.name, &self.digest, range, total, &[]) => Ok(stream?),
            () = hold.is_lost(|| 0) => Err(Error::Displaced),
        }
    }

    /// Waits for a place among the transfers of this kind.
    async fn turn(&self) -> Result<Hold, Error> {
        let owner = Owner::new(self.upstream.registry(), self.context.client());
        let turn = timeout(self.context.patience(TURN_WAIT_MAX), self.permits.acquire(owner, 1));
        match turn.await {
            Ok(Ok(permit)) => Ok(Hold::new(permit, 0)),
            Ok(Err(_)) | Err(_) => Err(Error::Busy),
        }
    }
}

/// Hashes the first `len` bytes.
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

/// What is known of the content as a whole.
enum Proof {
    /// This has seen the beginning, and sees what comes.
    Pending(Box<Verifier>),
    /// The digest was found right.
    Done,
    /// Some of it is left out.
    None,
}

impl Proof {
    /// Everything has been seen: whether it is what it should be, as far as that is known.
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

/// One transfer from upstream to one client, or one after the other.
pub(super) struct Direct {
    detour: Detour,
    /// None as long as upstream has not said that.
    total: Option<u64>,
    /// A fallback sends it.
    is_of_fallback: bool,
    /// It calls itself a page.
    is_page: bool,
    /// None only while another takes its place.
    pump: Option<Pump>,
    proof: Proof,
    /// Position in the content up to which the verifier has seen it.
    hashed: u64,
    /// Received and not yet sent: the end that is held back, and a chunk.
    waiting: VecDeque<Bytes>,
    /// Position in the content of the first waiting byte.
    position: u64,
    /// Position in the content behind the last byte that was received.
    received: u64,
    /// Position in the content behind the last byte that this transfer brings.
    reach: u64,
    /// How often another transfer took the place of one, for what lies elsewhere.
    jumps: u32,
}

impl Direct {
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Whether a fallback sends it.
    pub(super) fn is_of_fallback(&self) -> bool {
        self.is_of_fallback
    }

    /// The next bytes of `part`, whose start goes on with what is read of it; none where the content ends. The end of the
    /// content waits for the proof if the part is open. `further` is read behind it.
    pub(super) async fn next(&mut self, part: Part, further: &[Part]) -> Result<Option<Bytes>, Error> {
        let Part { span: Span { start, end }, is_open: held } = part;
        if held && (start < self.position || matches!(self.proof, Proof::None)) {
            self.begin_again().await?;
        } else if !held && self.is_elsewhere(start) {
            self.jump(part, further).await?;
        }
        loop {
            self.skip_to(start);
            let visible = match self.proof {
                Proof::Pending(_) if self.is_page => 0,
                Proof::Pending(_) if held => {
                    self.received.min(self.total.unwrap_or(self.received).saturating_sub(HOLD_BACK))
                }
                Proof::Pending(_) | Proof::Done | Proof::None => self.received,
            };
            let ready = visible.min(end).saturating_sub(self.position);
            if self.position == start && ready > 0 {
                return Ok(Some(self.take(ready)));
            }
            if !matches!(self.proof, Proof::Pending(_)) && self.total == Some(start) {
                return Ok(None);
            }
            self.receive().await?;
        }
    }

    /// Whether what begins at `start` needs another transfer, or is worth one.
    fn is_elsewhere(&self, start: u64) -> bool {
        let is_far = start >= self.received.saturating_add(FAR) && self.jumps < JUMPS_MAX;
        start < self.position || start >= self.reach || is_far
    }

    /// Leaves out what nobody wants, and with it the proof.
    async fn jump(&mut self, part: Part, further: &[Part]) -> Result<(), Error> {
        if self.jumps >= RESTARTS_MAX {
            return Err(Error::GivenUp);
        }
        self.jumps += 1;
        let first = part.span.start;
        let last = near_end(part, further) - 1;
        let range = if self.jumps < JUMPS_MAX { Range::Closed { first, last } } else { Range::From(first) };
        self.restart(Some(range), Proof::None).await?;
        if self.position != first {
            // Upstream ignores ranges.
            self.jumps = self.jumps.max(JUMPS_MAX);
        }
        Ok(())
    }

    /// Has all of it come, for what needs the proof of what was left out.
    async fn begin_again(&mut self) -> Result<(), Error> {
        let verifier = Box::new(Verifier::new(self.detour.digest.algorithm()));
        self.restart(None, Proof::Pending(verifier)).await
    }

    async fn restart(&mut self, range: Option<Range>, proof: Proof) -> Result<(), Error> {
        let pump = self.pump.take().ok_or(Error::GivenUp)?;
        let mut hold = pump.stop().await?;
        let stream = self.detour.from(&mut hold, range, self.total).await?;
        if stream.is_page {
            return Err(PAGE.into());
        }
        (self.proof, self.hashed, self.is_page) = (proof, 0, false);
        self.total = self.total.or(stream.total);
        self.waiting.clear();
        (self.position, self.received, self.reach) = (stream.start, stream.start, stream.end);
        self.pump = Some(Pump::start(stream, hold));
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let Some(chunk) = self.pump.as_mut().ok_or(Error::GivenUp)?.chunk().await? else {
            // Only where nobody has said how long it is that was the end.
            if self.total.is_some() {
                return Err(Error::GivenUp);
            }
            self.total = Some(self.received);
            return self.prove();
        };
        let Detour { upstream, metrics, .. } = &self.detour;
        metrics.received(Kind::Blob, upstream.registry().label(), chunk.len() as u64);
        let known = self.hashed.saturating_sub(self.received).min(chunk.len() as u64);
        self.received += chunk.len() as u64;
        if let Proof::Pending(verifier) = &mut self.proof {
            verifier.update(&chunk[usize::try_from(known).expect("no more than the chunk's length")..]);
        }
        self.waiting.push_back(chunk);
        match self.total {
            Some(total) if self.received >= total => self.prove(),
            None if self.is_page && self.received > PAGE_BYTES_MAX => Err(PAGE.into()),
            Some(_) | None => Ok(()),
        }
    }

    /// All of it has come: whether it is what it should be.
    fn prove(&mut self) -> Result<(), Error> {
        let Detour { metrics, digest, key, name, mismatches, .. } = &self.detour;
        let is_whole = matches!(self.proof, Proof::Pending(_));
        if self.total != Some(self.received) || !self.proof.holds_for(digest) {
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

/// Up to where one request brings what is read from `part` on: it, and what is near behind it.
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
