//! The coordinator of a flight: which connections it has, what they fetch next, and when the flight is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::connection::{Connection, DownloadState};
use super::flight::{Flight, Flights, HOLD_BACK};
use super::schedule::Need;
use super::writer::WriterCommand;
use crate::cache::config::Complete;
use crate::cache::error::Error;
use crate::cache::fairness::HeldPermit;
use crate::oci::range::Span;
use crate::shares::{Permit, Shares};
use crate::upstream::BlobStream;

/// How long a flight waits for further ranges: those of a lazy puller come one after the other.
const LINGER: Duration = Duration::from_secs(1);
/// Interval at which the coordinator looks whether a reader waits for bytes that no connection is about to bring.
const LOOK: Duration = Duration::from_secs(1);
/// How long readers wait for a response head while the content would better be verified first: half of the time that
/// there is for a head.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// When the rest of a blob is fetched that nobody asked for, and how many blobs may do so at once.
pub(super) struct Completion {
    policy: Complete,
    room: Shares,
}

impl Completion {
    pub(super) fn new(policy: Complete, room: Shares) -> Self {
        Self { policy, room }
    }

    /// The same limit under another policy.
    pub(super) fn with(&self, policy: Complete) -> Self {
        Self { policy, room: self.room.clone() }
    }

    /// Whether to fetch the rest of `total` bytes, of which clients have read `read` bytes.
    fn is_worth_it(&self, read: u64, total: u64) -> bool {
        self.policy.is_worth_it(read, total)
    }

    /// Waits for a permit; `None` if the queue is full.
    async fn acquire(&self, flight: &Flight) -> Option<Permit> {
        self.room.acquire(flight.owner(), 1).await.ok()
    }
}

/// The first response of upstream.
pub(super) struct FirstResponse {
    pub stream: BlobStream,
    /// A range was asked for, and the response is not limited to it.
    pub ignores_ranges: bool,
}

impl FirstResponse {
    pub(super) fn new(stream: BlobStream, asked: Span) -> Self {
        Self { ignores_ranges: stream.start < asked.start || stream.end > asked.end, stream }
    }
}

/// How a download ended without an error.
pub(super) enum DownloadOutcome {
    /// All of the content is there.
    Whole,
    /// The ranges that were asked for are there, and that is enough.
    Parts,
}

/// The asynchronous half of a download: the connections of one flight.
pub(super) struct Coordinator<'a> {
    flights: &'a Flights,
    completion: &'a Completion,
    state: Arc<DownloadState>,
    chunks: mpsc::Sender<WriterCommand>,
    connections: JoinSet<Result<(), Error>>,
    /// A permit that is held to the end of the flight once it fetches what nobody asked for.
    completing: Option<HeldPermit>,
    began: Instant,
}

impl<'a> Coordinator<'a> {
    /// A coordinator that gives what comes to the writer behind `chunks`.
    pub(super) fn new(
        flights: &'a Flights,
        completion: &'a Completion,
        state: &Arc<DownloadState>,
        chunks: mpsc::Sender<WriterCommand>,
    ) -> Self {
        let (state, connections, began) = (Arc::clone(state), JoinSet::new(), Instant::now());
        Self { flights, completion, state, chunks, connections, completing: None, began }
    }

    /// Fetches what is asked for, for as long as more is asked for, and the rest if that is worth it.
    pub(super) async fn run(&mut self, response: FirstResponse) -> Result<DownloadOutcome, Error> {
        let state = Arc::clone(&self.state);
        let span = Span { start: response.stream.start, end: response.stream.end };
        let adopted = state.schedule().adopt(span);
        match adopted {
            Some(job) => {
                self.connections
                    .spawn(Connection::new(&state, job.id, &self.chunks, Some(response.stream)).run());
            }
            // The response occupies a place among the transfers of the upstream.
            None => drop(response),
        }
        loop {
            self.dispatch();
            if !self.connections.is_empty() {
                self.watch().await?;
                continue;
            }
            if state.schedule().is_whole() {
                return Ok(DownloadOutcome::Whole);
            }
            self.pause().await?;
            let is_worth_it = self.completion.is_worth_it(state.flight().count_read(), state.bound());
            if is_worth_it && self.may_complete().await {
                continue;
            }
            if timeout(LINGER, state.flight().readers_changed()).await.is_err()
                && self.flights.remove_if_idle(state.flight())
            {
                return Ok(DownloadOutcome::Parts);
            }
        }
    }

    /// Waits for a permit to fetch the rest; false if there is none to be had. Also returns when more is asked for.
    async fn may_complete(&mut self) -> bool {
        let flight = self.state.flight();
        tokio::select! {
            permit = self.completion.acquire(flight) => {
                let Some(permit) = permit else { return false };
                self.completing = Some(HeldPermit::new(permit, flight.bytes()));
                self.state.schedule().ask_whole();
                true
            }
            () = flight.readers_changed() => true,
        }
    }

    /// Makes every request that is due.
    fn dispatch(&mut self) {
        let flight = self.state.flight();
        let asked = flight.take_asked();
        let needs: Vec<Need> = flight.needs(self.state.bound());
        let mut schedule = self.state.schedule();
        schedule.at(Instant::now().into_std());
        asked.into_iter().for_each(|range| schedule.ask(range));
        if schedule.is_whole_asked() {
            flight.want_whole();
        }
        while let Some(job) = schedule.next(&needs) {
            debug!(digest = %flight.digest(), start = job.span.start, end = job.span.end, "a further request");
            self.connections.spawn(Connection::new(&self.state, job.id, &self.chunks, None).run());
        }
    }

    /// Waits until there may be a request to make, or a connection has failed for good.
    async fn watch(&mut self) -> Result<(), Error> {
        let flight = self.state.flight();
        flight.set_idle(false);
        if !flight.is_announced() && self.began.elapsed() >= HEAD_WAIT && !self.is_small() {
            self.chunks.send(WriterCommand::Announce).await.map_err(|_| Error::GivenUp)?;
        }
        let is_lost = async {
            match &mut self.completing {
                Some(completion) => completion.is_lost(|| flight.bytes()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(fetched) = self.connections.join_next() => fetched.map_err(|_| Error::GivenUp)?,
            () = flight.readers_changed() => Ok(()),
            () = tokio::time::sleep(LOOK) => Ok(()),
            () = is_lost => Err(Error::Displaced),
        }
    }

    /// Whether the content is so small that it is verified before any reader hears of it, however long that takes.
    fn is_small(&self) -> bool {
        self.state.total().is_some_and(|total| total <= HOLD_BACK)
    }

    /// No connection is open: what is there must survive a crash.
    async fn pause(&self) -> Result<(), Error> {
        self.state.flight().set_idle(true);
        self.chunks.send(WriterCommand::Pause).await.map_err(|_| Error::GivenUp)
    }

    /// Stops the connections, and leaves to the writer what it has been given.
    pub(super) async fn stop(mut self) {
        self.connections.shutdown().await;
    }
}
