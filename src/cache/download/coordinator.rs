//! The course of a flight: which connections it has, what they bring next, and when it is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::connection::{Fetch, Line};
use super::flight::{Flight, Flights, HOLD_BACK};
use super::schedule::Need;
use super::writer::Given;
use crate::cache::config::Complete;
use crate::cache::error::Error;
use crate::cache::fairness::Hold;
use crate::oci::range::Span;
use crate::shares::{Permit, Shares};
use crate::upstream::BlobStream;

/// How long a flight waits for further ranges to be asked: those of a lazy puller come one after the other.
const LINGER: Duration = Duration::from_secs(1);
/// Between two looks whether a reader has come to where nothing is under way.
const LOOK: Duration = Duration::from_secs(1);
/// How long readers wait for a head while what comes would better be proven first: half of the time that there is.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// When, and with what room, the rest of a blob is fetched that nobody asked for.
pub(in crate::cache) struct Completion {
    policy: Complete,
    room: Shares,
}

impl Completion {
    pub(in crate::cache) fn new(policy: Complete, room: Shares) -> Self {
        Self { policy, room }
    }

    /// The same room under another policy.
    pub(in crate::cache) fn with(&self, policy: Complete) -> Self {
        Self { policy, room: self.room.clone() }
    }

    /// Whether to fetch the rest of `total` bytes, of which clients have taken so many.
    fn is_worth_it(&self, taken: u64, total: u64) -> bool {
        self.policy.is_worth_it(taken, total)
    }

    /// Waits for room; none if the queue is full.
    async fn acquire(&self, flight: &Flight) -> Option<Permit> {
        self.room.acquire(flight.owner(), 1).await.ok()
    }
}

/// Upstream's first answer.
pub(in crate::cache) struct Answer {
    pub stream: BlobStream,
    /// A range was asked for, and everything is what came.
    pub ignores_ranges: bool,
}

impl Answer {
    pub(in crate::cache) fn new(stream: BlobStream, asked: Span) -> Self {
        Self { ignores_ranges: stream.start < asked.start || stream.end > asked.end, stream }
    }
}

/// What a flight came to.
pub(in crate::cache) enum Outcome {
    /// All of it is there.
    Whole,
    /// What was asked is there, and that is enough.
    Parts,
}

/// The async half of a fill: the connections of one flight.
pub(in crate::cache) struct Course<'a> {
    flights: &'a Flights,
    completion: &'a Completion,
    line: Arc<Line>,
    chunks: mpsc::Sender<Given>,
    fetches: JoinSet<Result<(), Error>>,
    /// Held to the end of the flight, once it fetches what nobody asked for.
    completing: Option<Hold>,
    began: Instant,
}

impl<'a> Course<'a> {
    /// What `chunks` takes goes to disk.
    pub(in crate::cache) fn new(
        flights: &'a Flights,
        completion: &'a Completion,
        line: &Arc<Line>,
        chunks: mpsc::Sender<Given>,
    ) -> Self {
        let (line, fetches, began) = (Arc::clone(line), JoinSet::new(), Instant::now());
        Self { flights, completion, line, chunks, fetches, completing: None, began }
    }

    /// Brings what is asked, as long as more is asked, and the rest if that is worth it.
    pub(in crate::cache) async fn run(&mut self, answer: Answer) -> Result<Outcome, Error> {
        let line = Arc::clone(&self.line);
        let span = Span { start: answer.stream.start, end: answer.stream.end };
        let adopted = line.schedule().adopt(span);
        match adopted {
            Some(job) => {
                self.fetches.spawn(Fetch::new(&line, job.id, &self.chunks, Some(answer.stream)).run());
            }
            // It takes the room of a transfer.
            None => drop(answer),
        }
        loop {
            self.dispatch();
            if !self.fetches.is_empty() {
                self.watch().await?;
                continue;
            }
            if line.schedule().is_whole() {
                return Ok(Outcome::Whole);
            }
            self.pause().await?;
            let is_worth_it = self.completion.is_worth_it(line.flight().taken_bytes(), line.bound());
            if is_worth_it && self.may_complete().await {
                continue;
            }
            if timeout(LINGER, line.flight().stirred()).await.is_err() && self.flights.retire(line.flight()) {
                return Ok(Outcome::Parts);
            }
        }
    }

    /// Waits for room to fetch the rest; false if there is none to be had. Also returns when more is asked.
    async fn may_complete(&mut self) -> bool {
        let flight = self.line.flight();
        tokio::select! {
            permit = self.completion.acquire(flight) => {
                let Some(permit) = permit else { return false };
                self.completing = Some(Hold::new(permit, flight.bytes()));
                self.line.schedule().ask_whole();
                true
            }
            () = flight.stirred() => true,
        }
    }

    /// Makes every request that is due.
    fn dispatch(&mut self) {
        let flight = self.line.flight();
        let asked = flight.asked();
        let needs: Vec<Need> = flight.needs(self.line.bound());
        let mut schedule = self.line.schedule();
        schedule.at(Instant::now().into_std());
        asked.into_iter().for_each(|range| schedule.ask(range));
        if schedule.is_whole_asked() {
            flight.want_whole();
        }
        while let Some(job) = schedule.next(&needs) {
            debug!(digest = %flight.digest(), start = job.span.start, end = job.span.end, "a further request");
            self.fetches.spawn(Fetch::new(&self.line, job.id, &self.chunks, None).run());
        }
    }

    /// Waits until there may be a request to make, or a connection has failed for good.
    async fn watch(&mut self) -> Result<(), Error> {
        let flight = self.line.flight();
        flight.set_idle(false);
        if !flight.is_announced() && self.began.elapsed() >= HEAD_WAIT && !self.is_small() {
            self.chunks.send(Given::Head).await.map_err(|_| Error::GivenUp)?;
        }
        let is_lost = async {
            match &mut self.completing {
                Some(completion) => completion.is_lost(|| flight.bytes()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(fetched) = self.fetches.join_next() => fetched.map_err(|_| Error::GivenUp)?,
            () = flight.stirred() => Ok(()),
            () = tokio::time::sleep(LOOK) => Ok(()),
            () = is_lost => Err(Error::Displaced),
        }
    }

    /// Whether it is so small that it is proven before anybody hears of it, however long that takes.
    fn is_small(&self) -> bool {
        self.line.total().is_some_and(|total| total <= HOLD_BACK)
    }

    /// Nothing is under way: what is there must survive a crash.
    async fn pause(&self) -> Result<(), Error> {
        self.line.flight().set_idle(true);
        self.chunks.send(Given::Pause).await.map_err(|_| Error::GivenUp)
    }

    /// Leaves to the writer what it has been given.
    pub(in crate::cache) async fn stop(mut self) {
        self.fetches.shutdown().await;
    }
}
