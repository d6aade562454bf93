//! A fill: what is asked of one content comes from upstream to disk, whatever happens to connections on the way.
//!
//! Two halves run side by side. The async half asks upstream: [`Course`] decides with a [`Schedule`] what to
//! fetch, and each connection is a [`Fetch`](super::connection::Fetch) that resumes after every break. The other half
//! ([`super::writer`]) writes, hashes in order and announces progress. Between them is a short channel, so that
//! a slow disk slows the upstream connections and nothing piles up in memory.
//!
//! Mostly all of a blob is asked for, comes over one connection, is proven and stored. Where only parts are
//! asked, these come first; then [`Complete`] says whether the rest follows. If not, the flight waits a while
//! for more to do, and ends. What is there stays, and is read without a flight.
//!
//! A body that does not say how long it is comes in order over one connection, and is all of the content when the digest
//! is right at its end. What calls itself a page is asked for as a whole, and nobody hears of it before it is proven.
//!
//! A flight ends whatever happens to its task: also a panic takes it out of the table and cuts its readers.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::coordinator::{Answer, Completion, Course, Outcome};

use super::connection::{Line, range_of};
use super::flight::{End, Flight, Flights, HOLD_BACK};
use super::schedule::{self, BLOCK, Schedule};
use super::writer::{Writer, Written};
use crate::cache::config::Complete;
use crate::cache::error::Error;
use crate::cache::fairness::{COMPLETIONS, Hold};
use crate::cache::mismatches::Mismatches;
use crate::oci::range::Span;
use crate::oci::{Range, RepoName, Speaker};
use crate::shares::Shares;
use crate::store::{self, Grant, Next, Partial, PartialKey, Pieces, Proof, Store};
use crate::telemetry::Metrics;
use crate::upstream::{self, BLOB_BYTES_MAX, PAGE, Upstream};

/// Between two looks whether a partial file is free; its last owner is gone but for a call to the disk.
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// Looks at most, so that a disk that hangs fails the flight.
const IN_USE_LOOKS: u32 = 100;

/// Runs flights: brings content of upstreams to the store.
pub(in crate::cache) struct Filler {
    store: Store,
    flights: Arc<Flights>,
    metrics: Arc<Metrics>,
    /// When what nobody asked for is fetched.
    completion: Completion,
    /// What came wrong.
    mismatches: Arc<Mismatches>,
}

/// How one try ended without success.
enum Failure {
    /// The bytes of these endpoints do not have the digest.
    Mismatch { endpoints: Vec<usize> },
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

/// What a flight begins with.
struct Prepared {
    answer: Answer,
    partial: Partial,
    schedule: Schedule,
}

impl Filler {
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

    /// The same under another configuration.
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

    /// For how long upstream is not to be asked for a content, because it has sent that wrong.
    pub(in crate::cache) fn distrusts(&self, key: &PartialKey, name: &RepoName) -> Option<Duration> {
        self.mismatches.wait(key, name)
    }

    /// Runs `flight` to its end: a stored blob, parts of it, or an error that its readers see.
    ///
    /// After a mismatch one more try is made over one connection, from another endpoint where there is one.
    /// Readers that have been told a length are cut; who comes later joins the second try.
    pub(in crate::cache) async fn run(self: Arc<Self>, flight: Arc<Flight>, upstream: Arc<Upstream>) {
        let mut current = UnderWay::new(&self, flight);
        let mut result = self.fly(&current.flight, &upstream, &[]).await;
        if let Err(Failure::Mismatch { endpoints }) = result {
            warn!(digest = %current.flight.digest(), repository = %current.flight.origin(), ?endpoints, "upstream sent content that does not match its digest; trying once more");
            if current.flight.is_announced() {
                let next = self.flights.replace(&current.flight);
                let flight = std::mem::replace(&mut current.flight, next);
                flight.end(End::Failed(Error::Mismatch));
            }
            result = self.fly(&current.flight, &upstream, &endpoints).await;
        }
        current.end = match result {
            Ok(Outcome::Whole) => End::Proven,
            Ok(Outcome::Parts) => End::Left,
            Err(Failure::Landed) => End::Landed,
            Err(Failure::Mismatch { .. }) => {
                let retry_after = self.mismatches.failed(current.flight.key(), &current.flight.origin().name);
                warn!(digest = %current.flight.digest(), repository = %current.flight.origin(), seconds = retry_after.as_secs(), "upstream sent content that does not match its digest twice; it is not asked for that for a while");
                End::Failed(Error::Distrusted { retry_after })
            }
            Err(Failure::Error(error)) => End::Failed(error),
        };
        if let End::Failed(Error::Displaced) = &current.end {
            info!(digest = %current.flight.digest(), repository = %current.flight.origin(), "a transfer hardly moved and gave its seat to others that wait; what it has is kept");
        } else if let End::Failed(error) = &current.end {
            debug!(digest = %current.flight.digest(), repository = %current.flight.origin(), %error, "a transfer failed");
        }
    }

    /// One try. With `avoid`, the second: then everything is asked for, over one connection.
    async fn fly(
        &self,
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        avoid: &[usize],
    ) -> Result<Outcome, Failure> {
        let (mut seat, prepared) = self.begin(flight, upstream, avoid).await?;
        let Prepared { answer, partial, schedule } = prepared;
        let line = Line::new(flight, upstream, &self.metrics, &answer.stream, schedule);
        let (chunks, writing) = Writer::spawn(flight, partial);
        let mut course = Course::new(&self.flights, &self.completion, &line, chunks);
        let flown = tokio::select! {
            flown = course.run(answer) => flown,
            () = flight.abandoned() => Err(Error::GivenUp),
            () = seat.is_lost(|| flight.bytes()) => Err(Error::Displaced),
        };
        course.stop().await;
        let Written { partial, digest: actual } = writing.await.map_err(|_| Error::GivenUp)??;
        match (flown, actual) {
            (Ok(Outcome::Whole), Some(actual)) if actual == *flight.digest() => {
                self.land(flight, partial, &line).await;
                Ok(Outcome::Whole)
            }
            (Ok(Outcome::Whole), Some(_)) | (Err(Error::Mismatch), _) => {
                discard(partial).await?;
                if flight.is_page() {
                    // It was one: whoever has the blob was asked before it was looked at.
                    return Err(PAGE.into());
                }
                self.metrics.mismatches.inc();
                Err(Failure::Mismatch { endpoints: line.endpoints() })
            }
            (Ok(Outcome::Whole), None) => Err(Error::GivenUp.into()),
            (Ok(Outcome::Parts), _) => Ok(Outcome::Parts),
            (Err(error), _) if flight.is_page() => {
                discard(partial).await?;
                Err(error.into())
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// A seat, and what the flight begins with. One that brings no answer while others wait for its seat goes back into
    /// the queue: its readers have heard nothing yet.
    async fn begin(
        &self,
        flight: &Arc<Flight>,
        upstream: &Arc<Upstream>,
        avoid: &[usize],
    ) -> Result<(Hold, Prepared), Failure> {
        loop {
            let permit = tokio::select! {
                permit = self.flights.seat(flight) => permit?,
                () = flight.abandoned() => return Err(Error::GivenUp.into()),
            };
            flight.be_seated();
            let mut seat = Hold::new(permit, flight.bytes());
            tokio::select! {
                prepared = self.prepare(flight, upstream, avoid) => return Ok((seat, prepared?)),
                () = flight.abandoned() => return Err(Error::GivenUp.into()),
                () = seat.is_lost(|| 0) => self.flights.unseat(flight),
            }
        }
    }

    /// Upstream's answer, the file for it, and what is to be fetched.
    async fn prepare(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        avoid: &[usize],
    ) -> Result<Prepared, Failure> {
        let digest = *flight.digest();
        let (is_granted, stored) = self.store.find(flight.origin(), &digest).await?;
        // What is stored for others is to be sent for this repository, too: that is its proof.
        if is_granted && stored.is_some() {
            return Err(Failure::Landed);
        }
        let is_second = !avoid.is_empty();
        let asked = if is_second { vec![None] } else { flight.asked() };
        let answer = self.open(flight, upstream, &asked, avoid).await?;
        let stream = &answer.stream;
        // A credential has come since the flight began, and others may have joined because there was none; or they have by
        // the word of a parent, and this is not from one.
        if flight.is_public() && !stream.public || !flight.word().allows(stream.speaker) {
            return Err(Error::GivenUp.into());
        }
        if stream.is_of_fallback {
            flight.word().comes_from_fallback();
        }
        let is_open = |range: &Option<Range>| matches!(range, None | Some(Range::From(_)));
        if stream.is_page && !is_second && self.has_left(flight).await {
            // What is there already came from somebody who has the blob: it is worth more than what looks like a portal.
            return Err(PAGE.into());
        }
        let is_known = stream.total.is_some();
        let is_whole = answer.ignores_ranges || !is_known || asked.iter().any(is_open);
        if stream.is_page {
            flight.be_page();
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
            // What is so small is proven before anybody hears of it.
            schedule.ask_whole();
        }
        if answer.ignores_ranges {
            schedule.ignores_ranges();
        }
        Ok(Prepared { answer, partial, schedule })
    }

    /// Whether an earlier flight has left some of it.
    async fn has_left(&self, flight: &Flight) -> bool {
        self.store.left(flight.key()).await.is_some_and(|left| left.pieces.bytes() > 0)
    }

    /// The partial file, once whoever had it before has let go of it.
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
                // There is one flight for it. The last one was stopped while it opened the file.
                Err(store::Error::InUse { .. }) if looks < IN_USE_LOOKS => looks += 1,
                other => return other,
            }
            tokio::time::sleep(IN_USE_PAUSE).await;
        }
    }

    /// Asks upstream, for what is first wanted of what an earlier flight has not left behind.
    async fn open(
        &self,
        flight: &Flight,
        upstream: &Upstream,
        asked: &[Option<Range>],
        avoid: &[usize],
    ) -> Result<Answer, Error> {
        let (name, digest) = (&flight.origin().name, flight.digest());
        let left = if avoid.is_empty() { self.store.left(flight.key()).await } else { None };
        if let Some(left) = left.filter(|left| left.pieces.bytes() > 0) {
            let total = left.total;
            let mut schedule = Schedule::new(total, left.pieces, upstream.connections_per_blob());
            asked.iter().for_each(|range| schedule.ask(*range));
            // All that is asked may be there: upstream is still to say that it may be had.
            let job = schedule.next(&flight.needs(total));
            let wanted = job.map_or(Span { start: total - 1, end: total }, |job| job.span);
            match upstream
                .blob(flight.context(), name, digest, Some(range_of(wanted, total)), Some(total), avoid)
                .await
            {
                // Of another size now, or a range that makes no sense: perhaps all of it does.
                Err(upstream::Error::Changed | upstream::Error::Malformed(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(stream) => return Ok(Answer::new(stream, wanted)),
            }
        }
        let first = schedule::first(asked.first().copied().flatten(), upstream.connections_per_blob());
        // Some have no answer to a range of this kind. The beginning tells the size too, and so does everything.
        let beginning = Range::Closed { first: 0, last: BLOCK - 1 };
        let second = first.is_some_and(|first| first != beginning).then_some(beginning);
        for range in first.into_iter().chain(second) {
            match upstream.blob(flight.context(), name, digest, Some(range), None, avoid).await {
                Err(upstream::Error::Changed | upstream::Error::Malformed(_)) => {}
                Err(upstream::Error::Unavailable { status: 400 | 501 }) => {}
                Err(error) => return Err(error.into()),
                // Only from its start on it turns out where it ends.
                Ok(stream) if stream.is_page && stream.start > 0 => break,
                Ok(stream) => {
                    let asked = stream.total.and_then(|total| range.resolve(total).ok());
                    let asked = asked.unwrap_or_else(|| Span::whole(0));
                    return Ok(Answer::new(stream, asked));
                }
            }
        }
        let stream = upstream.blob(flight.context(), name, digest, None, None, avoid).await?;
        Ok(Answer { stream, ignores_ranges: first.is_some() })
    }

    /// The content is proven: readers get the rest at once, and the file its place.
    ///
    /// The grant is on disk before the blob is: a blob that nobody was granted serves nobody. It comes after the
    /// proof: what upstream merely claimed to have must not be its repository's, or even everybody's, when
    /// another brings it.
    async fn land(&self, flight: &Flight, partial: Partial, line: &Line) {
        let digest = *flight.digest();
        // What was there already may be another's word, and private.
        let speaker = if partial.began_by_parents() { line.speaker() } else { Speaker::Registry };
        let public = line.is_public() && partial.began_public();
        let (total, sent) = (line.bound(), Grant { public, proof: Some(Proof::Sent), speaker });
        self.mismatches.clear(flight.key(), &flight.origin().name);
        if !flight.is_announced() {
            flight.announce(partial.file(), Some(total), Pieces::prefix(total));
        }
        flight.end(End::Proven);
        let kept = async {
            self.store.grant(flight.origin(), &digest, sent).await?;
            for (repo, speaker) in flight.word().claimants(total) {
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
    use crate::cache::download::flight::{Asker, Entry};
    use crate::oci::{Algorithm, Digest, Repo};

    #[tokio::test]
    async fn a_flight_whose_task_dies_leaves_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Arc::default()).await.unwrap();
        let mismatches = Arc::new(Mismatches::new(std::num::NonZeroUsize::MIN));
        let filler = Filler::new(&store, &Arc::new(Metrics::new()), &mismatches, Complete::Auto);
        let (digest, repo) = (Digest::of(Algorithm::Sha256, b"x"), "a/b".parse().unwrap());
        let repo = Repo::new("docker.io".parse().unwrap(), repo);
        let context = crate::context::RequestContext::default();
        let asker = Asker { repo: &repo, granted: true, claim: None, asked: None, context: &context };
        let enter = || filler.flights.enter(&PartialKey::new(&repo.registry, &digest), true, &asker);
        let Entry::Lead(flight, mut reader) = enter() else { panic!("nobody else asked for it") };
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _current = UnderWay::new(&filler, flight);
            panic!("in a test");
        }));
        assert!(died.is_err());
        assert!(matches!(reader.file().await, Err(Error::GivenUp)));
        assert!(matches!(enter(), Entry::Lead(..)), "the next one begins anew");
    }
}
