//! One of the connections of a flight: it fetches what it has claimed, and resumes after every break.
//!
//! The [`Schedule`] says chunk by chunk which bytes belong to the connection, because others may take from the end of
//! its claim.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Buf as _;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::flight::Flight;
use super::schedule::{Receipt, Schedule};
use super::writer::WriterCommand;
use crate::cache::error::Error;
use crate::oci::range::Span;
use crate::oci::{Range, Speaker};
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Kind;
use crate::upstream::{self, BLOB_BYTES_MAX, BlobStream, PAGE, Upstream};

/// Breaks in a row, without a byte gained, after which a download is given up.
const BREAKS_MAX: u32 = 8;
/// Pause before the first resume. It doubles with each further break without progress.
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a resume.
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the connections of one flight share.
pub(super) struct DownloadState {
    flight: Arc<Flight>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    /// The size of the content in bytes, once it is known.
    total: OnceLock<u64>,
    /// Whether the response itself did not state the size.
    is_length_untold: bool,
    /// Whether all of the content has come without a credential so far.
    public: AtomicBool,
    /// Who has sent the content. If there are several, the registry itself counts most.
    speaker: Mutex<Speaker>,
    schedule: Mutex<Schedule>,
    /// The indices of the endpoints that bytes came from.
    endpoints: Mutex<Vec<usize>>,
}

impl DownloadState {
    pub(super) fn new(
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        metrics: &Arc<Metrics>,
        stream: &BlobStream,
        schedule: Schedule,
    ) -> Arc<Self> {
        Arc::new(Self {
            flight: Arc::clone(flight),
            upstream: Arc::clone(upstream),
            metrics: Arc::clone(metrics),
            total: stream.total.map(OnceLock::from).unwrap_or_default(),
            is_length_untold: stream.is_length_untold,
            public: AtomicBool::new(stream.public),
            speaker: Mutex::new(stream.speaker),
            schedule: Mutex::new(schedule),
            endpoints: Mutex::default(),
        })
    }

    /// The flight of these connections.
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    pub(super) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        lock(&self.schedule)
    }

    /// The size of the content in bytes, if it is known.
    pub(super) fn total(&self) -> Option<u64> {
        self.total.get().copied()
    }

    /// An upper bound of the size of the content, in bytes.
    pub(super) fn bound(&self) -> u64 {
        self.total().unwrap_or(BLOB_BYTES_MAX)
    }

    /// Whether all of the content has come without a credential so far.
    pub(super) fn is_public(&self) -> bool {
        self.public.load(Ordering::Relaxed)
    }

    /// Who has sent the content. If any of it came from the registry itself, that is the registry.
    pub(super) fn speaker(&self) -> Speaker {
        *lock(&self.speaker)
    }

    /// Notes who sends the bytes of `stream`, and whether that took a credential.
    fn note_source(&self, stream: &BlobStream) {
        self.public.fetch_and(stream.public, Ordering::Relaxed);
        if stream.is_of_fallback {
            self.flight.sharing().note_fallback();
        }
        let mut speaker = lock(&self.speaker);
        if *speaker != stream.speaker {
            let has_registry = [*speaker, stream.speaker].contains(&Speaker::Registry);
            *speaker = if has_registry { Speaker::Registry } else { Speaker::Fallback };
        }
    }

    /// The endpoints that bytes came from.
    pub(super) fn endpoints(&self) -> Vec<usize> {
        lock(&self.endpoints).clone()
    }

    /// Notes that bytes come from `endpoint`.
    fn note_endpoint(&self, endpoint: usize) {
        let mut endpoints = lock(&self.endpoints);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
}

/// One connection of a flight.
pub(super) struct Connection {
    state: Arc<DownloadState>,
    /// The id of its claim in the schedule.
    id: u64,
    chunks: mpsc::Sender<WriterCommand>,
    stream: Option<BlobStream>,
    /// Whether the response that is being read has brought any bytes that were missing.
    has_gained: bool,
}

impl Connection {
    /// A connection for a claim, with the response to it if there is one already.
    pub(super) fn new(
        state: &Arc<DownloadState>,
        id: u64,
        chunks: &mpsc::Sender<WriterCommand>,
        stream: Option<BlobStream>,
    ) -> Self {
        Self { state: Arc::clone(state), id, chunks: chunks.clone(), stream, has_gained: false }
    }

    /// Gives the writer every byte of the claim, once and in order.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut breaks = 0;
        let mut broken = None;
        loop {
            let stream = match self.stream.take() {
                Some(stream) => stream,
                None => match self.open(&mut breaks, broken.take()).await? {
                    Some(stream) => stream,
                    None => return Ok(()),
                },
            };
            self.state.note_endpoint(stream.endpoint);
            self.has_gained = false;
            let endpoint = stream.endpoint;
            let Some(error) = self.receive(stream).await? else { return Ok(()) };
            debug!(digest = %self.state.flight.digest(), endpoint, error = %error, "upstream broke off");
            if self.has_gained {
                breaks = 0;
            } else if self.state.flight.is_page() {
                // A portal or a proxy in between would send the same page again and again.
                return Err(error);
            }
            broken = Some((endpoint, error));
        }
    }

    /// Reads a response. `None` when the claim is done, else the error that broke the response off.
    async fn receive(&mut self, mut stream: BlobStream) -> Result<Option<Error>, Error> {
        // An upstream that ignores ranges begins again: bytes that are there already are skipped.
        let mut at = stream.start;
        if self.state.schedule().begins_at(self.id).is_some_and(|wanted| at > wanted) {
            return Ok(Some(upstream::Error::Malformed("the answer begins too late").into()));
        }
        loop {
            let mut chunk = match stream.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.state.is_length_untold => return self.ended(&stream).await,
                Ok(None) => return Ok(Some(ended_early())),
                Err(error) => return Ok(Some(error.into())),
            };
            let len = chunk.len() as u64;
            self.state.metrics.received(Kind::Blob, self.state.upstream.registry().label(), len);
            let end = at + len;
            if end > self.state.bound() {
                return Err(Error::Mismatch);
            }
            while at < end {
                let Receipt { keep, is_done } = self.state.schedule().at(Instant::now()).receive(
                    self.id,
                    Span { start: at, end },
                    stream.end,
                );
                if let Some(keep) = keep {
                    chunk.advance(bytes_of(keep.start - at));
                    let bytes = chunk.split_to(bytes_of(keep.len()));
                    at = keep.end;
                    self.has_gained = true;
                    self.send(WriterCommand::Write(keep.start, bytes)).await?;
                }
                if is_done {
                    return Ok(None);
                }
                if keep.is_none() {
                    at = end;
                }
            }
        }
    }

    /// The end of a body that did not state its length. If the digest is right, that was the end of the content. If it
    /// is wrong, or HEAD had promised more, a connection that ends by being closed may have broken, and the rest is
    /// still to come. In every other case it is another content than was asked for, or HEAD was wrong.
    async fn ended(&mut self, stream: &BlobStream) -> Result<Option<Error>, Error> {
        let may_be_broken = stream.ends_by_close && self.has_gained;
        if self.state.total().is_none() {
            let (sender, size) = oneshot::channel();
            self.send(WriterCommand::End(sender)).await?;
            if let Some(size) = size.await.map_err(|_| Error::GivenUp)? {
                self.learn(size).await?;
                return Ok(None);
            }
        }
        if may_be_broken { Ok(Some(ended_early())) } else { Err(Error::Mismatch) }
    }

    /// The size of the content is known now: from a response that states it, or because the digest is verified.
    async fn learn(&mut self, total: u64) -> Result<(), Error> {
        if self.state.total.set(total).is_ok() {
            self.state.schedule().learn(total);
            self.send(WriterCommand::Total(total)).await?;
        }
        Ok(())
    }

    async fn send(&self, command: WriterCommand) -> Result<(), Error> {
        // If the writer has failed, it will say why.
        self.chunks.send(command).await.map_err(|_| Error::GivenUp)
    }

    /// Opens a connection for the claim; at another endpoint if the last one brought nothing. `None` if the claim is no
    /// longer wanted.
    async fn open(
        &mut self,
        breaks: &mut u32,
        broken: Option<(usize, Error)>,
    ) -> Result<Option<BlobStream>, Error> {
        let state = Arc::clone(&self.state);
        let last = broken.as_ref().map(|(endpoint, _)| *endpoint);
        let mut error = broken.map_or(Error::GivenUp, |(_, error)| error);
        while *breaks < BREAKS_MAX {
            let avoid = if *breaks == 0 { &[][..] } else { last.as_slice() };
            tokio::time::sleep(pause(*breaks, fastrand::f64())).await;
            *breaks += 1;
            let Some((span, by_range)) = state.schedule().wanted(self.id) else { return Ok(None) };
            let (range, total) = (by_range.then(|| range_of(span, state.bound())), state.total());
            let name = &state.flight.origin().name;
            let (context, digest) = (state.flight.context(), state.flight.digest());
            match state.upstream.blob(context, name, digest, range, total, avoid).await {
                // This took a credential, and others may be reading along because none was needed.
                Ok(stream) if state.flight.is_public() && !stream.public => return Err(Error::GivenUp),
                // Others read along by the claim of a parent, which says nothing about what the registry itself sends.
                Ok(stream) if !state.flight.sharing().allows(stream.speaker) => return Err(Error::GivenUp),
                // A portal or a proxy in between answers now.
                Ok(stream) if stream.is_page && !state.flight.is_page() => error = PAGE.into(),
                Ok(stream) => {
                    state.note_source(&stream);
                    if let Some(total) = stream.total {
                        if total < span.start {
                            return Err(Error::Mismatch);
                        }
                        self.learn(total).await?;
                    }
                    if by_range && (stream.start < span.start || stream.end > span.end) {
                        state.schedule().ignores_ranges();
                        if state.schedule().wanted(self.id).is_none() {
                            return Ok(None);
                        }
                    }
                    return Ok(Some(stream));
                }
                Err(no @ (upstream::Error::Malformed(_) | upstream::Error::Changed)) if by_range => {
                    debug!(digest = %state.flight.digest(), error = %no, "upstream has no sensible answer to a range");
                    state.schedule().ignores_ranges();
                    error = no.into();
                }
                // The size is another: it is, or was, another content.
                Err(no @ upstream::Error::Changed) => return Err(no.into()),
                Err(no) if !no.is_outage() => return Err(no.into()),
                Err(_) if state.schedule().give_up(self.id) => return Ok(None),
                Err(no) => error = no.into(),
            }
        }
        Err(error)
    }
}

/// The range to ask upstream for. One that goes to the end of the content is `Range::From`: the request closes it where
/// the size is known.
pub(super) fn range_of(span: Span, total: u64) -> Range {
    if span.end == total {
        Range::From(span.start)
    } else {
        Range::Closed { first: span.start, last: span.end - 1 }
    }
}

fn ended_early() -> Error {
    upstream::Error::Malformed("the body ended early").into()
}

fn bytes_of(len: u64) -> usize {
    usize::try_from(len).expect("no more than the chunk's length")
}

/// The pause after `breaks` breaks without progress. `jitter` is between 0 and 1.
fn pause(breaks: u32, jitter: f64) -> Duration {
    match breaks {
        0 => Duration::ZERO,
        _ => {
            RESUME_PAUSE.saturating_mul(1 << breaks.min(16)).min(RESUME_PAUSE_MAX).mul_f64(0.5 + jitter / 2.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_resume_is_at_once_and_later_ones_wait_longer() {
        assert_eq!(pause(0, 0.9), Duration::ZERO);
        assert_eq!(pause(1, 1.0), RESUME_PAUSE * 2);
        assert_eq!(pause(1, 0.0), RESUME_PAUSE);
        assert_eq!(pause(30, 1.0), RESUME_PAUSE_MAX);
    }
}
