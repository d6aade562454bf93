//! A blob that passes through unstored, because the disk cannot take it, or because the transfer that is under way may
//! be waiting for the one who asks.
//!
//! The one exception to "upstream is asked once": each client has a transfer of its own. The promises to the
//! client hold all the same: the content is hashed from its first byte, and its last [`HOLD_BACK`] bytes are
//! sent only when the digest is right. A range with an end of its own is asked for as such, and as unproven as
//! it is from a flight; so a blob that has answered 206 goes on answering 206 when the disk fails underneath.
//!
//! A reader of a flight whose disk fails takes this way for the rest: what it has read is still in the file,
//! and hashed there. Where that is not all of the beginning, the whole is asked for from its start if the proof
//! is needed, and the rest alone if not.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::time::timeout;
use tracing::{info, warn};

use super::error::Error;
use super::fairness::Hold;
use super::flight::HOLD_BACK;
use super::pump::Pump;
use crate::context::RequestContext;
use crate::oci::{Digest, Range, RepoName, Verifier};
use crate::shares::{Owner, Shares};
use crate::store::{self, BlobFile};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Kind;
use crate::upstream::{BlobStream, Upstream};

/// How long a request waits for its turn: half of the time that there is for the head of its answer.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// A range that begins later than this is asked for on its own, if it may go out unproven.
const FAR: u64 = 1 << 20;
/// Bytes hashed at once of what a failed flight has left.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// The way around the disk, for one blob of one repository.
#[derive(Clone)]
pub(super) struct Detour {
    pub(super) upstream: Arc<Upstream>,
    pub(super) context: RequestContext,
    pub(super) name: RepoName,
    pub(super) digest: Digest,
    pub(super) metrics: Arc<Metrics>,
    /// Room for transfers of this kind.
    pub(super) permits: Shares,
}

impl Detour {
    /// All of the content.
    pub(super) async fn whole(self) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        self.open(hold, 0, None, Some(verifier)).await
    }

    /// What lies behind `position`, to go out unproven.
    pub(super) async fn unproven(self, position: u64, total: u64) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        self.open(hold, position, Some(total), None).await
    }

    /// What lies behind `position`, the bytes before it being in `file`.
    pub(super) async fn rest(self, file: BlobFile, position: u64, total: u64) -> Result<Direct, Error> {
        let hold = self.turn().await?;
        let verifier = Verifier::new(self.digest.algorithm());
        let hash = tokio::task::spawn_blocking(move || hash(verifier, file.file(), position));
        let verifier =
            hash.await.map_err(|_| Error::GivenUp)?.map_err(|error| Error::Read(Arc::new(error)))?;
        self.open(hold, position, Some(total), Some(verifier)).await
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

    /// Passes on what lies behind `position`; `verifier` has seen what lies before it.
    async fn open(
        self,
        mut hold: Hold,
        position: u64,
        total: Option<u64>,
        verifier: Option<Verifier>,
    ) -> Result<Direct, Error> {
        let stream = self.from(&mut hold, position, total).await?;
        Ok(Direct {
            verifier,
            hashed: position,
            waiting: VecDeque::new(),
            position: stream.start,
            received: stream.start,
            total: stream.total,
            pump: Some(Pump::start(stream, hold)),
            detour: self,
        })
    }

    async fn from(&self, hold: &mut Hold, position: u64, total: Option<u64>) -> Result<BlobStream, Error> {
        let range = (position > 0).then_some(Range::From(position));
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

/// One transfer from upstream to one client.
pub(super) struct Direct {
    detour: Detour,
    total: u64,
    /// None only while another takes its place.
    pump: Option<Pump>,
    /// None once the digest was found right, or if it will never be known.
    verifier: Option<Verifier>,
    /// Position in the content up to which the verifier has seen it.
    hashed: u64,
    /// Received and not yet sent: the end that is held back, and a chunk.
    waiting: VecDeque<Bytes>,
    /// Position in the content of the first waiting byte.
    position: u64,
    /// Position in the content behind the last byte that was received.
    received: u64,
}

impl Direct {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The next bytes from `start`, which never goes back, and not beyond `end`. `held`: the end of the content
    /// must wait for the proof.
    pub(super) async fn next(&mut self, start: u64, end: u64, held: bool) -> Result<Bytes, Error> {
        if !held && self.verifier.is_some() && start >= self.received.saturating_add(FAR) {
            self.jump(start).await?;
        }
        loop {
            self.skip_to(start);
            let visible = match self.verifier {
                Some(_) if held => self.received.min(self.total().saturating_sub(HOLD_BACK)),
                Some(_) | None => self.received,
            };
            let ready = visible.min(end).saturating_sub(self.position);
            if self.position == start && ready > 0 {
                return Ok(self.take(ready));
            }
            self.receive().await?;
        }
    }

    /// Leaves out what nobody wants, and with it the proof.
    async fn jump(&mut self, start: u64) -> Result<(), Error> {
        let pump = self.pump.take().ok_or(Error::GivenUp)?;
        let mut hold = pump.stop().await?;
        let stream = self.detour.from(&mut hold, start, Some(self.total)).await?;
        self.verifier = None;
        self.waiting.clear();
        self.position = stream.start;
        self.received = stream.start;
        self.pump = Some(Pump::start(stream, hold));
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let chunk = self.pump.as_mut().ok_or(Error::GivenUp)?.chunk().await?;
        let Detour { upstream, metrics, digest, .. } = &self.detour;
        metrics.received(Kind::Blob, upstream.registry().label(), chunk.len() as u64);
        let known = self.hashed.saturating_sub(self.received).min(chunk.len() as u64);
        self.received += chunk.len() as u64;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&chunk[usize::try_from(known).expect("no more than the chunk's length")..]);
        }
        self.waiting.push_back(chunk);
        if self.received >= self.total() {
            let actual = self.verifier.take().map(Verifier::finish);
            if self.received != self.total() || actual.is_some_and(|actual| actual != *digest) {
                metrics.mismatches.inc();
                return Err(Error::Mismatch);
            }
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
