//! How much is asked of a remote: what the operator allows, and what the remote itself asks for.
//!
//! A request that finds a limit reached queues within its own deadline, and clients take turns (`fair_queue`). One that
//! cannot have its turn in time fails with the time after which to come back: as a rule at once, and at its deadline only
//! if it waits for room for a transfer or a request, because it is not known when one of those ends.
//!
//! Whatever clients ask for, and whether or not they wait for it, no more than `concurrent_requests` are under way.

mod fair_queue;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::context::{self, RequestContext};
use crate::ratelimit::{ByteLimit, Debt, RateLimit};
use crate::remote::client::Client;
use crate::remote::endpoint::pull_quota::{QuotaReading, Reserve};
use crate::remote::endpoint::{Endpoint, Spent};
use crate::remote::error::Error;
use crate::remote::event::{Event, LimitKind};
use crate::remote::limits::fair_queue::{Scarce, Turns};
use crate::remote::retry_after::retry_after;
use crate::units::{ByteRate, PerSecond};

/// After how long to come back for a transfer that found no room: one of those under way has mostly ended by then.
const TRANSFER_RETRY: Duration = Duration::from_secs(5);

/// Requests to one remote at once, transfers of blobs apart, if the configuration does not say. Pulls need no more: each
/// request takes a round trip or two. It protects the registry, whatever clients ask for.
const CONCURRENT_REQUESTS: usize = 64;
/// The number of separate limits of requests at once, one for each number of berths that a request may have come through:
/// otherwise berths that ask each other in a ring would wait for one another.
const LEVELS: usize = context::HOPS_MAX + 1;

/// A request whose turn comes has at least this fraction (1/n) of the header timeout left for its answer.
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
pub(crate) struct Limits {
    client: Arc<Client>,
    requests: Option<Turns<RateLimit>>,
    seats: [Turns<Arc<Semaphore>>; LEVELS],
    transfers: Option<Turns<Arc<Semaphore>>>,
    bytes: Option<Arc<ByteLimit>>,
}

impl Limits {
    /// As `config` says; what is held up is told to the observer of `client`.
    pub(crate) fn new(config: &LimitsConfig, client: Arc<Client>) -> Self {
        let room = |count: NonZeroUsize| {
            Turns::new(Arc::new(Semaphore::new(count.get().min(Semaphore::MAX_PERMITS))))
        };
        let seats = config.concurrent_requests.map_or(CONCURRENT_REQUESTS, NonZeroUsize::get);
        let seats = seats.min(Semaphore::MAX_PERMITS);
        Self {
            client,
            seats: std::array::from_fn(|_| Turns::new(Arc::new(Semaphore::new(seats)))),
            requests: config.requests_per_second.map(|rate| Turns::new(RateLimit::new(rate))),
            transfers: config.concurrent_transfers.map(room),
            bytes: config.bytes_per_second.map(ByteLimit::new),
        }
    }

    /// Waits until a request for `path` may be sent to `endpoint`.
    ///
    /// # Errors
    /// [`Error::Limited`] while the endpoint wants to be left alone, [`Error::Busy`] if it is nobody's turn in time.
    pub(crate) async fn admit(
        &self,
        endpoint: &Endpoint,
        path: &str,
        needs_seat: bool,
        context: &RequestContext,
        deadline: Instant,
    ) -> Result<Option<Seat>, Error> {
        self.check_rest(endpoint)?;
        if let Some(requests) = &self.requests
            && requests.at_once().is_none()
        {
            self.queue(LimitKind::Requests, requests, context.client(), deadline).await?;
            // It may have asked to be left alone meanwhile.
            self.check_rest(endpoint)?;
        }
        let seat = match needs_seat {
            true => Some(self.seat(context, deadline).await?),
            false => None,
        };
        self.check_rest(endpoint)?;
        endpoint.check_path(path).map_err(|left| self.left_alone(left))?;
        Ok(seat)
    }

    /// Waits until there is a seat for one more request that is no transfer.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time.
    pub(crate) async fn seat(&self, context: &RequestContext, deadline: Instant) -> Result<Seat, Error> {
        let seats = &self.seats[context.hops().min(LEVELS - 1)];
        let seat = match seats.at_once() {
            Some(seat) => seat,
            None => self.queue(LimitKind::ConcurrentRequests, seats, context.client(), deadline).await?,
        };
        Ok(Seat { _permit: seat })
    }

    /// Waits for a turn of this limit.
    async fn queue<S: Scarce>(
        &self,
        limit: LimitKind,
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
            // It is not known when there will be room.
            let retry_after = if wait.is_zero() { TRANSFER_RETRY } else { wait };
            Error::Busy { retry_after }
        })
    }

    fn check_rest(&self, endpoint: &Endpoint) -> Result<(), Error> {
        endpoint.rests_for().map_or(Ok(()), |left| Err(self.left_alone(left)))
    }

    fn left_alone(&self, left: Duration) -> Error {
        self.client.tell(Event::Refused(LimitKind::RetryAfter));
        Error::Limited { retry_after: Some(left) }
    }

    /// Takes one of the pulls that are left of the quota of `endpoint`.
    ///
    /// # Errors
    /// [`Error::Limited`] if there is none left.
    pub(crate) fn acquire<'a>(&self, endpoint: &'a Endpoint) -> Result<Spent<'a>, Error> {
        endpoint.acquire().map_err(|wait| {
            self.client.tell(Event::Refused(LimitKind::Quota));
            Error::Limited { retry_after: Some(wait) }
        })
    }

    /// Applies what the headers of an answer of `endpoint` say about further requests.
    pub(crate) fn apply_headers<B>(
        &self,
        endpoint: &Endpoint,
        path: &str,
        response: &Response<B>,
        sent_at: Instant,
    ) {
        let (status, headers) = (response.status(), response.headers());
        let wait = retry_after(headers);
        match (status, wait) {
            (StatusCode::TOO_MANY_REQUESTS, Some(wait)) => endpoint.back_off(wait),
            (StatusCode::TOO_MANY_REQUESTS, None) => endpoint.exhausted(),
            // It may be about one repository.
            (StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => endpoint.pause_path(path, wait),
            _ => endpoint.path_answers(path),
        }
        if let Some(reading) = QuotaReading::read(headers)
            && endpoint.update_quota(reading, sent_at)
        {
            self.client.tell(Event::Quota { limit: reading.limit, remaining: reading.remaining });
        }
    }

    /// Waits until there is room for a transfer for `client`.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none in time.
    pub(crate) async fn transfer(
        &self,
        client: context::Client,
        deadline: Instant,
    ) -> Result<Transfer, Error> {
        let room = match &self.transfers {
            None => None,
            Some(transfers) => match transfers.at_once() {
                Some(room) => Some(room),
                None => Some(self.queue(LimitKind::Transfers, transfers, client, deadline).await?),
            },
        };
        Ok(Transfer { room, debt: self.bytes.clone().map(Debt::new) })
    }

    /// The latest time for the turn of a request, so that there is time left for its answer.
    fn latest(&self, deadline: Instant) -> Instant {
        let latest = deadline.checked_sub(self.client.timeouts.header / ANSWER_PART);
        latest.map_or(deadline, |latest| latest.max(Instant::now()))
    }
}

/// The place of one request, transfers apart, among those at once; until it is dropped.
pub(crate) struct Seat {
    _permit: OwnedSemaphorePermit,
}

/// The place of one transfer among those at once, until it is dropped, and its part of the speed.
pub(crate) struct Transfer {
    room: Option<OwnedSemaphorePermit>,
    /// Bytes that it has taken and not yet paid for, if there is a limit of them.
    debt: Option<Debt>,
}

impl Transfer {
    /// Waits until more bytes may be taken.
    pub(crate) async fn turn(&mut self) {
        if let Some(debt) = &mut self.debt {
            debt.pay().await;
        }
    }

    /// Records that bytes were taken.
    pub(crate) fn took(&mut self, bytes: u64) {
        if let Some(debt) = &mut self.debt {
            debt.add(bytes);
        }
    }

    /// Gives up its place, which another transfer may have.
    pub(crate) fn end(&mut self) {
        self.room = None;
    }
}
