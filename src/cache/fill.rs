//! A fill: one upstream body becomes one stored blob, whatever happens to connections on the way.
//!
//! Two halves run side by side. The async half, here, asks upstream and resumes after every break; the other
//! ([`super::writer`]) writes, hashes in order and announces progress. Between them is a short channel, so that
//! a slow disk slows the upstream connection and nothing piles up in memory.
//!
//! A flight ends whatever happens to its task: also a panic takes it out of the table and cuts its readers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::error::Error;
use super::flight::{End, Flight, Flights, Head};
use super::writer::{Writer, Written};
use crate::oci::Digest;
use crate::store::{self, Partial, Store};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Kind;
use crate::upstream::{self, BlobStream, Upstream};

/// Broken connections in a row, without a byte gained, after which a fill is given up.
const BREAKS_MAX: u32 = 8;
/// Pause before the first resume; doubled for each further break without progress.
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two resumes.
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether a partial file is free; its last owner is gone but for a call to the disk.
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// Looks at most, so that a disk that hangs fails the flight.
const IN_USE_LOOKS: u32 = 100;

/// What fills need.
pub(super) struct Filler {
    pub(super) store: Store,
    pub(super) flights: Arc<Flights>,
    pub(super) metrics: Arc<Metrics>,
}

/// How one try ended without success.
enum Failure {
    /// The bytes of this endpoint do not have the digest.
    Mismatch { endpoint: usize },
    /// Somebody stored the content before this flight began.
    Landed,
    /// Anything else.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Filler {
    /// Runs `flight` to its end: a stored blob, or an error that its readers see.
    ///
    /// After a mismatch one more try is made, from another endpoint where there is one. Readers that have
    /// been told a length are cut; who comes later joins the second try.
    pub(super) async fn run(self: Arc<Self>, flight: Arc<Flight>, upstream: Arc<Upstream>) {
        let mut current = UnderWay::new(&self, flight);
        let mut result = self.fly(&current.flight, &upstream, &[]).await;
        if let Err(Failure::Mismatch { endpoint }) = result {
            warn!(digest = %current.flight.digest, repository = %current.flight.origin, endpoint, "upstream sent content that does not match its digest; trying once more");
            if current.flight.is_announced() {
                let next = self.flights.replace(&current.flight);
                let flight = std::mem::replace(&mut current.flight, next);
                flight.end(End::Failed(Error::Mismatch));
            }
            result = self.fly(&current.flight, &upstream, &[endpoint]).await;
        }
        current.end = match result {
            Ok(()) => End::Proven,
            Err(Failure::Landed) => End::Landed,
            Err(Failure::Mismatch { .. }) => End::Failed(Error::Mismatch),
            Err(Failure::Error(error)) => End::Failed(error),
        };
        if let End::Failed(error) = &current.end {
            debug!(digest = %current.flight.digest, repository = %current.flight.origin, %error, "a transfer failed");
        }
    }

    async fn fly(
        &self,
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        avoid: &[usize],
    ) -> Result<(), Failure> {
        let _seat = tokio::select! {
            seat = self.flights.seats.acquire() => seat.map_err(|_| Error::Busy)?,
            () = flight.abandoned() => return Err(Error::GivenUp.into()),
        };
        let (stream, partial) = tokio::select! {
            prepared = self.prepare(flight, upstream, avoid) => prepared?,
            () = flight.abandoned() => return Err(Error::GivenUp.into()),
        };
        let (digest, endpoint, public) = (flight.digest, stream.endpoint, stream.public);
        let (total, offset) = (partial.total(), partial.have());
        let (chunks, writing) = Writer::spawn(flight, partial);
        let feed = Feed { flight, upstream, metrics: &self.metrics, stream, total, offset };
        let fed = tokio::select! {
            fed = feed.run(chunks) => fed,
            () = flight.abandoned() => Err(Error::GivenUp),
        };
        let Written { partial, digest: actual, have } = writing.await.map_err(|_| Error::GivenUp)??;
        match fed {
            Ok(()) if actual == digest && have == total => {
                self.land(flight, partial, public).await;
                Ok(())
            }
            Ok(()) | Err(Error::Mismatch) => {
                self.metrics.mismatches.inc();
                blocking(move || {
                    partial.discard();
                    Ok(())
                })
                .await?;
                Err(Failure::Mismatch { endpoint })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Upstream's answer, and the file for it.
    async fn prepare(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        avoid: &[usize],
    ) -> Result<(BlobStream, Partial), Failure> {
        let digest = flight.digest;
        if self.store.blob(&digest).await?.is_some() {
            return Err(Failure::Landed);
        }
        let stream = self.open(flight, upstream, avoid).await?;
        if flight.public && !stream.public {
            // A credential has come since the flight began, and others may have joined because there was none.
            return Err(Error::GivenUp.into());
        }
        let partial = self.partial(&digest, stream.total).await?;
        Ok((stream, partial))
    }

    /// The partial file, once whoever had it before has let go of it.
    async fn partial(&self, digest: &Digest, total: u64) -> Result<Partial, store::Error> {
        let mut looks = 0;
        loop {
            match self.store.partial(digest, total).await {
                // There is one flight for a digest. The last one was stopped while it opened the file.
                Err(store::Error::InUse { .. }) if looks < IN_USE_LOOKS => looks += 1,
                other => return other,
            }
            tokio::time::sleep(IN_USE_PAUSE).await;
        }
    }

    /// Asks upstream, for the rest only if an earlier flight left the beginning behind.
    async fn open(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        avoid: &[usize],
    ) -> Result<BlobStream, Failure> {
        let (name, digest) = (&flight.origin.name, &flight.digest);
        let there = if avoid.is_empty() { self.store.partial_total(digest).await } else { None };
        if let Some((total, have)) = there.filter(|(_, have)| *have > 0) {
            // All of it, left by a process that ended just then: upstream is still to say that it may be had.
            let from = have.min(total - 1);
            match upstream.blob(name, digest, from, Some(total), avoid).await {
                // Of another size now, or a range that makes no sense: perhaps all of it does.
                Err(upstream::Error::Changed | upstream::Error::Malformed(_)) => {}
                other => return Ok(other?),
            }
        }
        Ok(upstream.blob(name, digest, 0, None, avoid).await?)
    }

    /// The content is proven: readers get the rest at once, and the file its place.
    ///
    /// The grant is on disk before the blob is: a blob that nobody was granted serves nobody. It comes after the
    /// proof: what upstream merely claimed to have must not be its repository's, or even everybody's, when
    /// another brings it.
    async fn land(&self, flight: &Flight, partial: Partial, public: bool) {
        let digest = flight.digest;
        if !flight.is_announced() {
            flight.announce(Head { total: partial.total(), file: partial.file() }, partial.total());
        }
        flight.end(End::Proven);
        let kept = async {
            self.store.grant(&flight.origin, &digest, public).await?;
            blocking(move || partial.commit(&digest)).await
        };
        if let Err(error) = kept.await {
            warn!(%digest, %error, "the content was served but could not be stored");
        }
    }
}

/// A flight whose task runs. Dropped, also by a panic, it tells everybody how the flight ended.
struct UnderWay<'a> {
    filler: &'a Filler,
    flight: Arc<Flight>,
    end: End,
}

impl<'a> UnderWay<'a> {
    fn new(filler: &'a Filler, flight: Arc<Flight>) -> Self {
        filler.metrics.flights.inc();
        Self { filler, flight, end: End::Failed(Error::GivenUp) }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // Out of the table first: who sees the end and comes again must not find this flight.
        self.filler.flights.leave(&self.flight);
        self.flight.end(self.end.clone());
        self.filler.metrics.flights.dec();
    }
}

/// The async half of a fill.
struct Feed<'a> {
    flight: &'a Flight,
    upstream: &'a Upstream,
    metrics: &'a Metrics,
    stream: BlobStream,
    total: u64,
    /// Bytes that the writer has, or will have from what it was given.
    offset: u64,
}

impl Feed<'_> {
    /// Gives the writer every byte from `offset` to the end, once and in order.
    async fn run(mut self, chunks: mpsc::Sender<Bytes>) -> Result<(), Error> {
        let mut breaks = 0;
        loop {
            let before = self.offset;
            let Some(broken) = self.drain(&chunks).await? else { return Ok(()) };
            debug!(digest = %self.flight.digest, offset = self.offset, error = %broken, "upstream broke off");
            if self.offset > before {
                breaks = 0;
            }
            self.resume(&mut breaks, broken).await?;
        }
    }

    /// Takes what the connection gives; none when everything is there, else how it broke.
    async fn drain(&mut self, chunks: &mpsc::Sender<Bytes>) -> Result<Option<Error>, Error> {
        // An upstream that ignores ranges begins again: what is already there is passed over.
        let mut at = self.stream.start;
        if at > self.offset {
            // The partial file turned out to have less than was asked for.
            return Ok(Some(upstream::Error::Malformed("the answer begins too late").into()));
        }
        while self.offset < self.total {
            let mut chunk = match self.stream.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Some(upstream::Error::Malformed("the body ended early").into())),
                Err(error) => return Ok(Some(error.into())),
            };
            self.metrics.received(Kind::Blob, self.upstream.registry().as_str(), chunk.len() as u64);
            let known = self.offset.saturating_sub(at).min(chunk.len() as u64);
            at += chunk.len() as u64;
            let fresh = chunk.split_off(usize::try_from(known).expect("no more than the chunk's length"));
            self.offset += fresh.len() as u64;
            if self.offset > self.total {
                return Err(Error::Mismatch);
            }
            if !fresh.is_empty() && chunks.send(fresh).await.is_err() {
                // The writer has failed and will say why.
                return Err(Error::GivenUp);
            }
        }
        Ok(None)
    }

    /// Opens a new connection for the rest, elsewhere if the last one brought nothing.
    async fn resume(&mut self, breaks: &mut u32, mut broken: Error) -> Result<(), Error> {
        let (name, digest) = (&self.flight.origin.name, &self.flight.digest);
        while *breaks < BREAKS_MAX {
            let avoid = if *breaks == 0 { &[][..] } else { &[self.stream.endpoint][..] };
            tokio::time::sleep(pause(*breaks, fastrand::f64())).await;
            *breaks += 1;
            match self.upstream.blob(name, digest, self.offset, Some(self.total), avoid).await {
                // A credential has come or gone: who may read along has changed with it.
                Ok(stream) if stream.public != self.stream.public => return Err(Error::GivenUp),
                Ok(stream) => {
                    self.stream = stream;
                    return Ok(());
                }
                Err(error) if !error.is_outage() => return Err(error.into()),
                Err(error) => broken = error.into(),
            }
        }
        Err(broken)
    }
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::GivenUp)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::flight::Entry;
    use crate::oci::{Algorithm, Repo};

    #[tokio::test]
    async fn a_flight_whose_task_dies_leaves_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Arc::default()).await.unwrap();
        let filler = Filler { store, flights: Flights::new(), metrics: Arc::new(Metrics::new()) };
        let (digest, repo) = (Digest::of(Algorithm::Sha256, b"x"), "a/b".parse().unwrap());
        let repo = Repo::new("docker.io".parse().unwrap(), repo);
        let enter = || filler.flights.enter(digest, &repo, true, true);
        let Entry::Lead(flight, mut reader) = enter() else { panic!("nobody else asked for it") };
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _current = UnderWay::new(&filler, flight);
            panic!("in a test");
        }));
        assert!(died.is_err());
        assert!(matches!(reader.head().await, Err(Error::GivenUp)));
        assert!(matches!(enter(), Entry::Lead(..)), "the next one begins anew");
    }

    #[test]
    fn the_first_resume_is_at_once_and_later_ones_wait_longer() {
        assert_eq!(pause(0, 0.9), Duration::ZERO);
        assert_eq!(pause(1, 1.0), RESUME_PAUSE * 2);
        assert_eq!(pause(1, 0.0), RESUME_PAUSE);
        assert_eq!(pause(30, 1.0), RESUME_PAUSE_MAX);
    }
}
