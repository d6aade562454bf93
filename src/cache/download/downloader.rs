//! A download: what is asked for of one content comes from upstream to disk, whatever happens to connections on the
//! way.
//!
//! Two halves run side by side. The asynchronous half asks upstream: a [`Coordinator`] decides with a [`Schedule`] what
//! to fetch, and each [`Connection`](super::connection::Connection) resumes after every break. The other half, the
//! [writer](super::writer), writes, hashes in order and announces progress. Between them is a short channel, so that a
//! slow disk slows the upstream connections down and nothing piles up in memory.
//!
//! In most cases all of a blob is asked for, comes over one connection, is verified and stored. Where only parts are
//! asked for, these come first; then [`Complete`] says whether the rest follows. If not, the flight waits a while for
//! more to do, and ends. The parts stay, and are read without a flight.
//!
//! A body that does not state its length comes in order over one connection. It is all of the content when the digest
//! is right at its end. A response that calls itself a page is asked for as a whole, and no reader hears of it before
//! it is verified.
//!
//! A flight ends whatever happens to its task: a panic, too, takes it out of the table and cuts its readers off.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::coordinator::{Completion, Coordinator, DownloadOutcome, FirstResponse};

use super::connection::{DownloadState, range_of};
use super::flight::{Flight, FlightEnd, Flights, HOLD_BACK};
use super::schedule::{self, BLOCK, Schedule};
use super::writer::{Writer, WriterResult};
use crate::cache::config::Complete;
use crate::cache::error::Error;
use crate::cache::fairness::{COMPLETIONS, HeldPermit};
use crate::cache::mismatches::Mismatches;
use crate::oci::range::Span;
use crate::oci::{Range, RepoName, Speaker};
use crate::shares::Shares;
use crate::store::{self, Grant, Next, Partial, PartialKey, Proof, RangeSet, Store};
use crate::telemetry::Metrics;
use crate::upstream::{self, BLOB_BYTES_MAX, PAGE, Upstream};

/// Interval between two attempts to open a partial file that is in use: its last owner is about to finish a call to the
/// disk.
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// The most attempts to open a partial file, so that a disk that hangs fails the flight.
const IN_USE_LOOKS: u32 = 100;

/// Runs flights: brings content from upstreams to the store.
pub(in crate::cache) struct Downloader {
    store: Store,
    flights: Arc<Flights>,
    metrics: Arc<Metrics>,
    /// When the rest of a blob is fetched that nobody asked for.
    completion: Completion,
    /// The contents that came with a wrong digest.
    mismatches: Arc<Mismatches>,
}

/// Why one attempt has failed.
enum Failure {
    /// The bytes of these endpoints do not have the digest.
    Mismatch { endpoints: Vec<usize> },
    /// The content was stored before this flight began.
    AlreadyStored,
    /// Any other error.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// What an attempt begins with.
struct Prepared {
    response: FirstResponse,
    partial: Partial,
    schedule: Schedule,
}

impl Downloader {
    pub(in crate::cache) fn new(
        store: &Store,
        metrics: &Arc<Metrics>,
        mismatches: &Arc<Mismatches>,
        complete: Complete,
    ) -> Self {
        Self {
            store: store.clone(),
            flights: Flights::new(),
            metrics: Arc::clone(metrics),
            completion: Completion::new(complete, Shares::new(COMPLETIONS)),
            mismatches: Arc::clone(mismatches),
        }
    }

    /// The same limits and flights under another configuration.
    pub(in crate::cache) fn with(&self, complete: Complete) -> Self {
        Self {
            store: self.store.clone(),
            flights: Arc::clone(&self.flights),
            metrics: Arc::clone(&self.metrics),
            completion: self.completion.with(complete),
            mismatches: Arc::clone(&self.mismatches),
        }
    }

    /// The flights under way.
    pub(in crate::cache) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    /// How long upstream is not to be asked for a content, because it has sent that with a wrong digest.
    pub(in crate::cache) fn mismatch_wait(&self, key: &PartialKey, name: &RepoName) -> Option<Duration> {
        self.mismatches.wait(key, name)
    }

    /// Runs `flight` to its end: a stored blob, parts of it, or an error that its readers see.
    ///
    /// After a mismatch the download is attempted once more over one connection, from another endpoint where there is
    /// one. Readers that have been told a size are cut off; later ones join the second attempt.
    pub(in crate::cache) async fn run(self: Arc<Self>, flight: Arc<Flight>, upstream: Arc<Upstream>) {
        let mut current = ActiveGuard::new(&self, flight);
        let mut result = self.attempt(&current.flight, &upstream, &[]).await;
        if let Err(Failure::Mismatch { endpoints }) = result {
            warn!(digest = %current.flight.digest(), repository = %current.flight.origin(), ?endpoints, "upstream sent content that does not match its digest; trying once more");
            if current.flight.is_announced() {
                let next = self.flights.replace(&current.flight);
                let flight = std::mem::replace(&mut current.flight, next);
                flight.end(FlightEnd::Failed(Error::Mismatch));
            }
            result = self.attempt(&current.flight, &upstream, &endpoints).await;
        }
        current.end = match result {
            Ok(DownloadOutcome::Whole) => FlightEnd::Verified,
            Ok(DownloadOutcome::Parts) => FlightEnd::PartialKept,
            Err(Failure::AlreadyStored) => FlightEnd::AlreadyStored,
            Err(Failure::Mismatch { .. }) => {
                let retry_after = self.mismatches.failed(current.flight.key(), &current.flight.origin().name);
                warn!(digest = %current.flight.digest(), repository = %current.flight.origin(), seconds = retry_after.as_secs(), "upstream sent content that does not match its digest twice; it is not asked for that for a while");
                FlightEnd::Failed(Error::Distrusted { retry_after })
            }
            Err(Failure::Error(error)) => FlightEnd::Failed(error),
        };
        if let FlightEnd::Failed(Error::Displaced) = &current.end {
            info!(digest = %current.flight.digest(), repository = %current.flight.origin(), "a transfer hardly moved and gave its seat to others that wait; what it has is kept");
        } else if let FlightEnd::Failed(error) = &current.end {
            debug!(digest = %current.flight.digest(), repository = %current.flight.origin(), %error, "a transfer failed");
        }
    }

    /// One attempt. With `avoid` it is the second: then everything is asked for, over one connection.
    async fn attempt(
        &self,
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        avoid: &[usize],
    ) -> Result<DownloadOutcome, Failure> {
        let (mut slot, prepared) = self.begin(flight, upstream, avoid).await?;
        let Prepared { response, partial, schedule } = prepared;
        let state = DownloadState::new(flight, upstream, &self.metrics, &response.stream, schedule);
        let (chunks, writing) = Writer::spawn(flight, partial);
        let mut coordinator = Coordinator::new(&self.flights, &self.completion, &state, chunks);
        let ended = tokio::select! {
            ended = coordinator.run(response) => ended,
            () = flight.abandoned() => Err(Error::GivenUp),
            () = slot.is_lost(|| flight.bytes()) => Err(Error::Displaced),
        };
        coordinator.stop().await;
        let WriterResult { partial, digest: actual } = writing.await.map_err(|_| Error::GivenUp)??;
        match (ended, actual) {
            (Ok(DownloadOutcome::Whole), Some(actual)) if actual == *flight.digest() => {
                self.commit(flight, partial, &state).await;
                Ok(DownloadOutcome::Whole)
            }
            (Ok(DownloadOutcome::Whole), Some(_)) | (Err(Error::Mismatch), _) => {
                discard(partial).await?;
                if flight.is_page() {
                    // It was indeed a page: whoever has the blob was asked before the page was looked at.
                    return Err(PAGE.into());
                }
                self.metrics.mismatches.inc();
                Err(Failure::Mismatch { endpoints: state.endpoints() })
            }
            (Ok(DownloadOutcome::Whole), None) => Err(Error::GivenUp.into()),
            (Ok(DownloadOutcome::Parts), _) => Ok(DownloadOutcome::Parts),
            (Err(error), _) if flight.is_page() => {
                discard(partial).await?;
                Err(error.into())
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Acquires a slot and prepares the attempt. A flight that gets no response while others wait for its slot goes
    /// back into the queue: its readers have heard nothing yet.
    async fn begin(
        &self,
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        avoid: &[usize],
    ) -> Result<(HeldPermit, Prepared), Failure> {
        loop {
            let permit = tokio::select! {
                permit = self.flights.acquire_slot(flight) => permit?,
                () = flight.abandoned() => return Err(Error::GivenUp.into()),
            };
            flight.mark_slot();
            let mut slot = HeldPermit::new(permit, flight.bytes());
            tokio::select! {
                prepared = self.prepare(flight, upstream, avoid) => return Ok((slot, prepared?)),
                () = flight.abandoned() => return Err(Error::GivenUp.into()),
                () = slot.is_lost(|| 0) => self.flights.requeue(flight),
            }
        }
    }

    /// Gets the first response of upstream, the file for it, and the schedule of what to fetch.
    async fn prepare(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        avoid: &[usize],
    ) -> Result<Prepared, Failure> {
        let digest = *flight.digest();
        let (is_granted, stored) = self.store.find(flight.origin(), &digest).await?;
        // What is stored for others must be sent for this repository, too: that authorizes it.
        if is_granted && stored.is_some() {
            return Err(Failure::AlreadyStored);
        }
        let is_second = !avoid.is_empty();
        let asked = if is_second { vec![None] } else { flight.take_asked() };
        let response = self.open(flight, upstream, &asked, avoid).await?;
        let stream = &response.stream;
        // A credential has been configured since the flight began, and others may have joined because there was none;
        // or they have joined by the claim of a parent, and this response is not from one.
        if flight.is_public() && !stream.public || !flight.sharing().allows(stream.speaker) {
            return Err(Error::GivenUp.into());
        }
        if stream.is_of_fallback {
            flight.sharing().note_fallback();
        }
        let is_open = |range: &Option<Range>| matches!(range, None | Some(Range::From(_)));
        if stream.is_page && !is_second && self.has_left(flight).await {
            // The parts that are there came from a server that has the blob: they are worth more than what looks like a
            // portal.
            return Err(PAGE.into());
        }
        let is_known = stream.total.is_some();
        let is_whole = response.ignores_ranges || !is_known || asked.iter().any(is_open);
        if stream.is_page {
            flight.mark_page();
        }
        if is_whole {
            flight.want_whole();
        }
        let (is_by_parents, speaker) = (upstream.has_only_parents(), stream.speaker);
        let next =
            Next { repo: flight.origin(), is_granted, is_public: flight.is_public(), is_by_parents, speaker };
        let partial = self.partial(flight, stream.total, next, is_whole).await?;
        let (total, have) = (stream.total.unwrap_or(BLOB_BYTES_MAX), partial.have().clone());
        let schedule = Schedule::new(total, have, upstream.connections_per_blob());
        let mut schedule = if is_second || !is_known { schedule.without_sides() } else { schedule };
        asked.into_iter().for_each(|range| schedule.ask(range));
        if total <= HOLD_BACK || !is_known {
            // Content as small as this is verified before any reader hears of it.
            schedule.ask_whole();
        }
        if response.ignores_ranges {
            schedule.ignores_ranges();
        }
        Ok(Prepared { response, partial, schedule })
    }

    /// Whether an earlier flight has left parts of the content.
    async fn has_left(&self, flight: &Flight) -> bool {
        self.store.left(flight.key()).await.is_some_and(|left| left.pieces.bytes() > 0)
    }

    /// Opens the partial file, once its last owner has let go of it.
    async fn partial(
        &self,
        flight: &Flight,
        total: Option<u64>,
        next: Next<'_>,
        is_whole: bool,
    ) -> Result<Partial, store::Error> {
        let mut looks = 0;
        loop {
            match self.store.partial(flight.key(), total, next, is_whole).await {
                // There is one flight for each partial file. The last one was stopped while it opened the file.
                Err(store::Error::InUse { .. }) if looks < IN_USE_LOOKS => looks += 1,
                other => return other,
            }
            tokio::time::sleep(IN_USE_PAUSE).await;
        }
    }

    /// Asks upstream for the first part that is wanted and that an earlier flight has not left.
    async fn open(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        asked: &[Option<Range>],
        avoid: &[usize],
    ) -> Result<FirstResponse, Error> {
        let (name, digest) = (&flight.origin().name, flight.digest());
        let left = if avoid.is_empty() { self.store.left(flight.key()).await } else { None };
        if let Some(left) = left.filter(|left| left.pieces.bytes() > 0) {
            let total = left.total;
            let mut schedule = Schedule::new(total, left.pieces, upstream.connections_per_blob());
            asked.iter().for_each(|range| schedule.ask(*range));
            // All that is asked for may be there: upstream must still confirm that this repository may have it.
            let job = schedule.next(&flight.needs(total));
            let wanted = job.map_or(Span { start: total - 1, end: total }, |job| job.span);
            match upstream
                .blob(flight.context(), name, digest, Some(range_of(wanted, total)), Some(total), avoid)
                .await
            {
                // The size is another now, or the range makes no sense: perhaps a request for everything does.
                Err(upstream::Error::Changed | upstream::Error::Malformed(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(stream) => return Ok(FirstResponse::new(stream, wanted)),
            }
        }
        let first =
            schedule::first_request(asked.first().copied().flatten(), upstream.connections_per_blob());
        // Some servers cannot answer a range of this kind. A range at the beginning tells the size too, and so does
        // everything.
        let beginning = Range::Closed { first: 0, last: BLOCK - 1 };
        let second = first.is_some_and(|first| first != beginning).then_some(beginning);
        for range in first.into_iter().chain(second) {
            match upstream.blob(flight.context(), name, digest, Some(range), None, avoid).await {
                Err(upstream::Error::Changed | upstream::Error::Malformed(_)) => {}
                Err(upstream::Error::Unavailable { status: 400 | 501 }) => {}
                Err(error) => return Err(error.into()),
                // Only a response from the start tells where a page ends.
                Ok(stream) if stream.is_page && stream.start > 0 => break,
                Ok(stream) => {
                    let asked = stream.total.and_then(|total| range.resolve(total).ok());
                    let asked = asked.unwrap_or_else(|| Span::whole(0));
                    return Ok(FirstResponse::new(stream, asked));
                }
            }
        }
        let stream = upstream.blob(flight.context(), name, digest, None, None, avoid).await?;
        Ok(FirstResponse { stream, ignores_ranges: first.is_some() })
    }

    /// The digest is verified: readers get the rest at once, and the file goes to its place.
    ///
    /// The grant is on disk before the blob is: a blob without a grant serves nobody. It comes after the verification:
    /// what upstream merely claimed to have must not become its repository's, or even public, when another registry
    /// brings it.
    async fn commit(&self, flight: &Flight, partial: Partial, state: &DownloadState) {
        let digest = *flight.digest();
        // The bytes that were there already may have come from another sender, with a credential.
        let speaker = if partial.began_by_parents() { state.speaker() } else { Speaker::Registry };
        let public = state.is_public() && partial.began_public();
        let (total, sent) = (state.bound(), Grant { public, proof: Some(Proof::Sent), speaker });
        self.mismatches.clear(flight.key(), &flight.origin().name);
        if !flight.is_announced() {
            flight.announce(partial.file(), Some(total), RangeSet::prefix(total));
        }
        flight.end(FlightEnd::Verified);
        let kept = async {
            self.store.grant(flight.origin(), &digest, sent).await?;
            for (repo, speaker) in flight.sharing().claimants(total) {
                let stated = Grant { public: false, proof: Some(Proof::Stated), speaker };
                self.store.grant(&repo, &digest, stated).await?;
            }
            blocking(move || partial.commit(&digest)).await
        };
        if let Err(error) = kept.await {
            warn!(%digest, %error, "the content was served but could not be stored");
        }
    }
}

/// A flight whose task is running. When it is dropped, also by a panic, it ends the flight for everybody.
struct ActiveGuard<'a> {
    downloader: &'a Downloader,
    flight: Arc<Flight>,
    end: FlightEnd,
}

impl<'a> ActiveGuard<'a> {
    fn new(downloader: &'a Downloader, flight: Arc<Flight>) -> Self {
        downloader.metrics.flights.inc();
        Self { downloader, flight, end: FlightEnd::Failed(Error::GivenUp) }
    }
}

impl Drop for ActiveGuard<'_> {
    fn drop(&mut self) {
        // The table first: a reader that sees the end and comes again must not find this flight.
        self.downloader.flights.remove(&self.flight);
        self.flight.end(self.end.clone());
        self.downloader.metrics.flights.dec();
    }
}

async fn discard(partial: Partial) -> Result<(), Error> {
    blocking(move || {
        partial.discard();
        Ok(())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::GivenUp)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::download::flight::{FlightEntry, FlightRequest};
    use crate::oci::{Algorithm, Digest, Repo};

    #[tokio::test]
    async fn a_flight_whose_task_dies_leaves_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Arc::default()).await.unwrap();
        let mismatches = Arc::new(Mismatches::new(std::num::NonZeroUsize::MIN));
        let downloader = Downloader::new(&store, &Arc::new(Metrics::new()), &mismatches, Complete::Auto);
        let (digest, repo) = (Digest::of(Algorithm::Sha256, b"x"), "a/b".parse().unwrap());
        let repo = Repo::new("docker.io".parse().unwrap(), repo);
        let context = crate::context::RequestContext::default();
        let request =
            FlightRequest { repo: &repo, granted: true, claim: None, asked: None, context: &context };
        let enter = || downloader.flights.enter(&PartialKey::new(&repo.registry, &digest), true, &request);
        let FlightEntry::Lead(flight, mut reader) = enter() else { panic!("nobody else asked for it") };
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _current = ActiveGuard::new(&downloader, flight);
            panic!("in a test");
        }));
        assert!(died.is_err());
        assert!(matches!(reader.wait_for_file().await, Err(Error::GivenUp)));
        assert!(matches!(enter(), FlightEntry::Lead(..)), "the next one begins anew");
    }
}
