//! How much is asked of an upstream: what the operator allows, and what upstream itself asks for.
//!
//! Whoever finds a limit reached queues within its own deadline, and clients take turns (`turns`). Who cannot have its
//! turn in time hears so, with the time after which to come back; as a rule at once, and only for want of room for
//! a transfer or a request at its deadline, because nobody knows when one ends.
//!
//! Whatever clients ask for, and whether or not they wait for it, no more than `concurrent_requests` are under way.

mod fair_queue;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::context::{self, RequestContext};
use crate::pace::{Pace, PerSecond};
use crate::units::ByteRate;
use crate::upstream::client::Client;
use crate::upstream::remote::endpoint::pull_quota::{Reading, Reserve};
use crate::upstream::remote::endpoint::{Server, Spent};
use crate::upstream::remote::error::Error;
use crate::upstream::remote::event::{Event, Limit};
use crate::upstream::remote::limits::fair_queue::{Scarce, Turns};
use crate::upstream::remote::retry_after::retry_after;

/// When to come back for a transfer that found no room: one of those under way has mostly ended by then.
const TRANSFER_RETRY: Duration = Duration::from_secs(5);

/// Requests to one upstream at once that are no transfers of blobs, where the configuration does not say. Nobody who
/// pulls needs more: each takes a round trip or two. A registry is left in peace by it, whatever clients ask for.
const CONCURRENT_REQUESTS: usize = 64;
/// Each number of berths that a request has come through has seats of its own, or berths that ask each other in a ring
/// would wait for one another's.
const LEVELS: usize = context::HOPS_MAX + 1;

/// A request whose turn comes has at least this part of the usual time for the head of its answer.
const ANSWER_PART: u32 = 4;

/// `[upstream.limits]`: how much may be asked of one upstream. What is not set is not limited, but for
/// `concurrent_requests`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests to its endpoints in a second; those to token servers and redirect targets do not count.
    pub requests_per_second: Option<PerSecond>,
    /// Requests to its endpoints and token servers at once, but for those that bring blobs.
    pub concurrent_requests: Option<NonZeroUsize>,
    /// Connections that bring blobs, at once.
    pub concurrent_transfers: Option<NonZeroUsize>,
    /// Bytes of blobs in a second, all transfers together.
    pub bytes_per_second: Option<ByteRate>,
    /// Where upstream says how many manifests it still gives out: what of these is kept for images never seen.
    pub reserve: Reserve,
}

/// The limits of one remote at run time.
pub(in crate::upstream) struct Limits {
    client: Arc<Client>,
    requests: Option<Turns<Pace>>,
    seats: [Turns<Arc<Semaphore>>; LEVELS],
    transfers: Option<Turns<Arc<Semaphore>>>,
    bytes: Option<Arc<Pace>>,
}

impl Limits {
    /// As `config` says; what is held up is told to the observer of `client`.
    pub(in crate::upstream) fn new(config: &LimitsConfig, client: Arc<Client>) -> Self {
        let room = |count: NonZeroUsize| {
            Turns::new(Arc::new(Semaphore::new(count.get().min(Semaphore::MAX_PERMITS))))
        };
        let seats = config.concurrent_requests.map_or(CONCURRENT_REQUESTS, NonZeroUsize::get);
        let seats = seats.min(Semaphore::MAX_PERMITS);
        Self {
            client,
            seats: std::array::from_fn(|_| Turns::new(Arc::new(Semaphore::new(seats)))),
            requests: config.requests_per_second.map(|pace| Turns::new(Pace::new(pace))),
            transfers: config.concurrent_transfers.map(room),
            bytes: config.bytes_per_second.map(|speed| Arc::new(Pace::of_bytes(speed))),
        }
    }

    /// Waits until a request for `path` may be sent to `server`.
    ///
    /// # Errors
    /// [`Error::Limited`] while the endpoint wants to be left alone, [`Error::Busy`] if it is nobody's turn in time.
    pub(in crate::upstream) async fn admit(
        &self,
        server: &Server,
        path: &str,
        needs_seat: bool,
        context: &RequestContext,
        deadline: Instant,
    ) -> Result<Option<Seat>, Error> {
        self.check_rest(server)?;
        if let Some(requests) = &self.requests
            && requests.at_once().is_none()
        {
            self.queue(Limit::Requests, requests, context.client(), deadline).await?;
            // It may have asked to be left alone meanwhile.
            self.check_rest(server)?;
        }
        let seat = match needs_seat {
            true => Some(self.seat(context, deadline).await?),
            false => None,
        };
        self.check_rest(server)?;
        server.check_path(path).map_err(|left| self.left_alone(left))?;
        Ok(seat)
    }

    /// Waits until there is a seat for one more request that is no transfer.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time.
    pub(in crate::upstream) async fn seat(
        &self,
        context: &RequestContext,
        deadline: Instant,
    ) -> Result<Seat, Error> {
        let seats = &self.seats[context.hops().min(LEVELS - 1)];
        let seat = match seats.at_once() {
            Some(seat) => seat,
            None => self.queue(Limit::ConcurrentRequests, seats, context.client(), deadline).await?,
        };
        Ok(Seat { _permit: seat })
    }

    /// Waits for a turn.
    async fn queue<S: Scarce>(
        &self,
        limit: Limit,
        turns: &Turns<S>,
        client: context::Client,
        deadline: Instant,
    ) -> Result<S::Turn, Error> {
        let turn = match turns.join(client, self.latest(deadline)) {
            Ok(place) => {
                self.client.tell(Event::Waited(limit));
                place.turn().await
            }
            Err(wait) => Err(wait),
        };
        turn.map_err(|wait| {
            self.client.tell(Event::Refused(limit));
            // Of rooms nobody knows when there is one.
            let retry_after = if wait.is_zero() { TRANSFER_RETRY } else { wait };
            Error::Busy { retry_after }
        })
    }

    fn check_rest(&self, server: &Server) -> Result<(), Error> {
        server.rests_for().map_or(Ok(()), |left| Err(self.left_alone(left)))
    }

    fn left_alone(&self, left: Duration) -> Error {
        self.client.tell(Event::Refused(Limit::RetryAfter));
        Error::Limited { retry_after: Some(left) }
    }

    /// Takes one of the manifests that `server` still gives out.
    ///
    /// # Errors
    /// [`Error::Limited`] if there is none left.
    pub(in crate::upstream) fn spend<'a>(&self, server: &'a Server) -> Result<Spent<'a>, Error> {
        server.spend().map_err(|wait| {
            self.client.tell(Event::Refused(Limit::Quota));
            Error::Limited { retry_after: Some(wait) }
        })
    }

    /// Takes to heart what an answer of `server` says about further requests.
    pub(in crate::upstream) fn heed<B>(
        &self,
        server: &Server,
        path: &str,
        response: &Response<B>,
        sent_at: Instant,
    ) {
        let (status, headers) = (response.status(), response.headers());
        let wait = retry_after(headers);
        match (status, wait) {
            (StatusCode::TOO_MANY_REQUESTS, Some(wait)) => server.rest(wait),
            (StatusCode::TOO_MANY_REQUESTS, None) => server.exhausted(),
            // Of one repository, perhaps.
            (StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => server.pause_path(path, wait),
            _ => server.path_answers(path),
        }
        if let Some(reading) = Reading::read(headers)
            && server.hear(reading, sent_at)
        {
            self.client.tell(Event::Quota { limit: reading.limit, remaining: reading.remaining });
        }
    }

    /// Waits until there is room for a transfer for `client`.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time.
    pub(in crate::upstream) async fn transfer(
        &self,
        client: context::Client,
        deadline: Instant,
    ) -> Result<Transfer, Error> {
        let room = match &self.transfers {
            None => None,
            Some(transfers) => match transfers.at_once() {
                Some(room) => Some(room),
                None => Some(self.queue(Limit::Transfers, transfers, client, deadline).await?),
            },
        };
        Ok(Transfer { room, bytes: self.bytes.clone(), turn: None })
    }

    /// When a request must have its turn, so that there is time left for the answer.
    fn latest(&self, deadline: Instant) -> Instant {
        let latest = deadline.checked_sub(self.client.timeouts.header / ANSWER_PART);
        latest.map_or(deadline, |latest| latest.max(Instant::now()))
    }
}

/// The room that a request takes which is no transfer, until it is dropped.
pub(in crate::upstream) struct Seat {
    _permit: OwnedSemaphorePermit,
}

/// The room that a transfer takes until it is dropped, and its part of the speed.
pub(in crate::upstream) struct Transfer {
    room: Option<OwnedSemaphorePermit>,
    bytes: Option<Arc<Pace>>,
    /// When the next bytes may be taken.
    turn: Option<Instant>,
}

impl Transfer {
    /// Waits until more bytes may be taken.
    pub(in crate::upstream) async fn turn(&mut self) {
        if let Some(turn) = self.turn {
            sleep_until(turn).await;
            self.turn = None;
        }
    }

    /// Notes that bytes were taken.
    pub(in crate::upstream) fn took(&mut self, bytes: u64) {
        self.turn = self.bytes.as_ref().map(|pace| pace.owe(bytes, Instant::now()));
    }

    /// Gives its room to another.
    pub(in crate::upstream) fn end(&mut self) {
        self.room = None;
    }
}
