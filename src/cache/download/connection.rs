//! One of the connections of a flight: brings what it has claimed, and begins again after every break.
//!
//! Which bytes are its own is for the [`Schedule`] to say, chunk by chunk, because others may take from its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Buf as _;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::flight::Flight;
use super::schedule::{Receipt, Schedule};
use super::writer::Given;
use crate::cache::error::Error;
use crate::oci::range::Span;
use crate::oci::{Range, Speaker};
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Kind;
use crate::upstream::{self, BLOB_BYTES_MAX, BlobStream, PAGE, Upstream};

/// Broken connections in a row, without a byte gained, after which a fill is given up.
const BREAKS_MAX: u32 = 8;
/// Pause before the first resume; doubled for each further break without progress.
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two resumes.
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the connections of a flight share.
pub(in crate::cache) struct Line {
    flight: Arc<Flight>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    /// How large the content is, once that is known.
    total: OnceLock<u64>,
    /// Whether the answer itself did not say that.
    is_length_untold: bool,
    /// Whether all of the content has come without a credential so far.
    public: AtomicBool,
    /// Who has sent it: of several the one who says most about its rights.
    speaker: Mutex<Speaker>,
    schedule: Mutex<Schedule>,
    /// The endpoints that bytes came from.
    endpoints: Mutex<Vec<usize>>,
}

impl Line {
    pub(in crate::cache) fn new(
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

    /// The flight that they are of.
    pub(in crate::cache) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    pub(in crate::cache) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        lock(&self.schedule)
    }

    /// How large the content is, if that is known.
    pub(in crate::cache) fn total(&self) -> Option<u64> {
        self.total.get().copied()
    }

    /// Behind this there is nothing of it.
    pub(in crate::cache) fn bound(&self) -> u64 {
        self.total().unwrap_or(BLOB_BYTES_MAX)
    }

    /// Whether all that has come did so without a credential.
    pub(in crate::cache) fn is_public(&self) -> bool {
        self.public.load(Ordering::Relaxed)
    }

    /// Who has sent it. If any of it came from the registry itself, it is the registry's.
    pub(in crate::cache) fn speaker(&self) -> Speaker {
        *lock(&self.speaker)
    }

    /// Bytes come from there, too.
    fn note(&self, stream: &BlobStream) {
        self.public.fetch_and(stream.public, Ordering::Relaxed);
        if stream.is_of_fallback {
            self.flight.word().comes_from_fallback();
        }
        let mut speaker = lock(&self.speaker);
        if *speaker != stream.speaker {
            let has_registry = [*speaker, stream.speaker].contains(&Speaker::Registry);
            *speaker = if has_registry { Speaker::Registry } else { Speaker::Fallback };
        }
    }

    /// The endpoints that bytes came from.
    pub(in crate::cache) fn endpoints(&self) -> Vec<usize> {
        lock(&self.endpoints).clone()
    }

    /// Notes that bytes will come from there.
    fn uses(&self, endpoint: usize) {
        let mut endpoints = lock(&self.endpoints);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
}

/// One connection.
pub(in crate::cache) struct Fetch {
    line: Arc<Line>,
    /// Its claim in the schedule.
    id: u64,
    chunks: mpsc::Sender<Given>,
    stream: Option<BlobStream>,
    /// Whether the connection that is open has brought anything.
    has_gained: bool,
}

impl Fetch {
    /// For a claim, and the answer to it if that is there already.
    pub(in crate::cache) fn new(
        line: &Arc<Line>,
        id: u64,
        chunks: &mpsc::Sender<Given>,
        stream: Option<BlobStream>,
    ) -> Self {
        Self { line: Arc::clone(line), id, chunks: chunks.clone(), stream, has_gained: false }
    }

    /// Gives the writer every byte of the claim, once and in order.
    pub(in crate::cache) async fn run(mut self) -> Result<(), Error> {
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
            self.line.uses(stream.endpoint);
            self.has_gained = false;
            let endpoint = stream.endpoint;
            let Some(error) = self.drain(stream).await? else { return Ok(()) };
            debug!(digest = %self.line.flight.digest(), endpoint, error = %error, "upstream broke off");
            if self.has_gained {
                breaks = 0;
            } else if self.line.flight.is_page() {
                // What is in between sends the same again and again.
                return Err(error);
            }
            broken = Some((endpoint, error));
        }
    }

    /// Takes what the connection gives; none when everything is there, else how it broke.
    async fn drain(&mut self, mut stream: BlobStream) -> Result<Option<Error>, Error> {
        // An upstream that ignores ranges begins again: what is already there is passed over.
        let mut at = stream.start;
        if self.line.schedule().begins_at(self.id).is_some_and(|wanted| at > wanted) {
            return Ok(Some(upstream::Error::Malformed("the answer begins too late").into()));
        }
        loop {
            let mut chunk = match stream.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.line.is_length_untold => return self.ended(&stream).await,
                Ok(None) => return Ok(Some(ended_early())),
                Err(error) => return Ok(Some(error.into())),
            };
            let len = chunk.len() as u64;
            self.line.metrics.received(Kind::Blob, self.line.upstream.registry().label(), len);
            let end = at + len;
            if end > self.line.bound() {
                return Err(Error::Mismatch);
            }
            while at < end {
                let Receipt { keep, is_done } = self.line.schedule().at(Instant::now()).receive(
                    self.id,
                    Span { start: at, end },
                    stream.end,
                );
                if let Some(keep) = keep {
                    chunk.advance(bytes_of(keep.start - at));
                    let bytes = chunk.split_to(bytes_of(keep.len()));
                    at = keep.end;
                    self.has_gained = true;
                    self.give(Given::Bytes(keep.start, bytes)).await?;
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

    /// A body has ended that did not say how long it would be. If the digest is right, that was the end. If not, or if HEAD
    /// had promised more, a connection without a word about its end may have broken, and the rest is still to come. All
    /// else is another content than was asked for, or HEAD was wrong.
    async fn ended(&mut self, stream: &BlobStream) -> Result<Option<Error>, Error> {
        let may_be_broken = stream.ends_by_close && self.has_gained;
        if self.line.total().is_none() {
            let (answer, size) = oneshot::channel();
            self.give(Given::End(answer)).await?;
            if let Some(size) = size.await.map_err(|_| Error::GivenUp)? {
                self.learn(size).await?;
                return Ok(None);
            }
        }
        if may_be_broken { Ok(Some(ended_early())) } else { Err(Error::Mismatch) }
    }

    /// The content has this size, by an answer that says so or because it is proven.
    async fn learn(&mut self, total: u64) -> Result<(), Error> {
        if self.line.total.set(total).is_ok() {
            self.line.schedule().learn(total);
            self.give(Given::Total(total)).await?;
        }
        Ok(())
    }

    async fn give(&self, given: Given) -> Result<(), Error> {
        // A writer that has failed will say why.
        self.chunks.send(given).await.map_err(|_| Error::GivenUp)
    }

    /// Opens a connection for what is claimed, elsewhere if the last one brought nothing. None if it is no longer
    /// wanted.
    async fn open(
        &mut self,
        breaks: &mut u32,
        broken: Option<(usize, Error)>,
    ) -> Result<Option<BlobStream>, Error> {
        let line = Arc::clone(&self.line);
        let last = broken.as_ref().map(|(endpoint, _)| *endpoint);
        let mut error = broken.map_or(Error::GivenUp, |(_, error)| error);
        while *breaks < BREAKS_MAX {
            let avoid = if *breaks == 0 { &[][..] } else { last.as_slice() };
            tokio::time::sleep(pause(*breaks, fastrand::f64())).await;
            *breaks += 1;
            let Some((span, by_range)) = line.schedule().wanted(self.id) else { return Ok(None) };
            let (range, total) = (by_range.then(|| range_of(span, line.bound())), line.total());
            let name = &line.flight.origin().name;
            let (context, digest) = (line.flight.context(), line.flight.digest());
            match line.upstream.blob(context, name, digest, range, total, avoid).await {
                // A credential has come, and others may be reading along because there was none.
                Ok(stream) if line.flight.is_public() && !stream.public => return Err(Error::GivenUp),
                // Others read along by a parent's word, which is none about what the registry itself sends.
                Ok(stream) if !line.flight.word().allows(stream.speaker) => return Err(Error::GivenUp),
                // Something in between answers now.
                Ok(stream) if stream.is_page && !line.flight.is_page() => error = PAGE.into(),
                Ok(stream) => {
                    line.note(&stream);
                    if let Some(total) = stream.total {
                        if total < span.start {
                            return Err(Error::Mismatch);
                        }
                        self.learn(total).await?;
                    }
                    if by_range && (stream.start < span.start || stream.end > span.end) {
                        line.schedule().ignores_ranges();
                        if line.schedule().wanted(self.id).is_none() {
                            return Ok(None);
                        }
                    }
                    return Ok(Some(stream));
                }
                Err(no @ (upstream::Error::Malformed(_) | upstream::Error::Changed)) if by_range => {
                    debug!(digest = %line.flight.digest(), error = %no, "upstream has no sensible answer to a range");
                    line.schedule().ignores_ranges();
                    error = no.into();
                }
                // Of another size: it is another content, or was one.
                Err(no @ upstream::Error::Changed) => return Err(no.into()),
                Err(no) if !no.is_outage() => return Err(no.into()),
                Err(_) if line.schedule().give_up(self.id) => return Ok(None),
                Err(no) => error = no.into(),
            }
        }
        Err(error)
    }
}

/// As it is asked for. One to the end is closed when it is sent, and open to who reads it here.
pub(in crate::cache) fn range_of(span: Span, total: u64) -> Range {
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

/// How long to wait after `breaks` breaks without progress; `jitter` is in 0..1.
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
