//! The HTTP client of one registry: `net` with the registry's observer, and with errors as `remote` names them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use crate::net::client_certificate::WatchedCertificate;
use crate::net::{self, ClientConfig, DialPolicy, HttpClient, RequestEnd, RequestObserver};
use crate::oci::Registry;
use crate::parsing::{self, Place, SMALL_BYTES};
use crate::remote::error::{BuildError, Error};
use crate::remote::event::{Event, LimitKind, Observer, Outcome};
use crate::shares::Owner;

/// When a document for which there was no place in time may be asked for again.
const PLACE_RETRY: Duration = Duration::from_secs(2);
/// A body is longer than its reader takes.
pub(crate) const TOO_LARGE: Error = Error::Malformed(net::error::TOO_LARGE);

/// Sends requests for one remote.
pub(crate) struct Client {
    http: HttpClient,
    registry: Registry,
    observer: Observer,
}

impl Client {
    /// Sets up TLS and the pools; connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when a certificate file is unusable.
    pub(crate) fn build(
        config: &ClientConfig,
        identity: Option<Arc<WatchedCertificate>>,
        observer: Observer,
    ) -> Result<Self, BuildError> {
        let registry = config.owner.clone();
        let http = HttpClient::build(config, identity, of_requests(&registry, &observer))?;
        Ok(Self { http, registry, observer })
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        way: DialPolicy,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        Ok(self.http.send(way, request, within).await?)
    }

    /// The same, but does not go on waiting when it is `hopeless`, and not on a connection that was used before when it
    /// seems to be `stuck` there.
    pub(crate) async fn send_unless(
        &self,
        unless: (impl Future<Output = ()>, impl Future<Output = ()>),
        way: DialPolicy,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        Ok(self.http.send_unless(unless, way, request, within).await?)
    }

    /// Lets the observer know.
    pub(crate) fn tell(&self, event: Event) {
        (self.observer)(&self.registry, event);
    }
}

impl Deref for Client {
    type Target = HttpClient;

    fn deref(&self) -> &HttpClient {
        &self.http
    }
}

/// Tells `observer` how requests for `registry` end.
pub(crate) fn of_requests(registry: &Registry, observer: &Observer) -> RequestObserver {
    let (registry, observer) = (registry.clone(), Arc::clone(observer));
    Arc::new(move |end| observer(&registry, event(end)))
}

fn event(end: RequestEnd) -> Event {
    Event::Ended(match end {
        RequestEnd::Answered(status) => match status {
            StatusCode::NOT_FOUND => Outcome::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Outcome::Denied,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Limited,
            StatusCode::LOOP_DETECTED => Outcome::Loop,
            status if status.is_success() || status.is_redirection() => Outcome::Ok,
            _ => Outcome::Error,
        },
        RequestEnd::TimedOut => Outcome::Timeout,
        RequestEnd::Failed => Outcome::Error,
        RequestEnd::Lacking => return Event::Refused(LimitKind::Machine),
    })
}

/// Reads a body of at most `bytes_max`, whole, until `deadline`.
pub(crate) async fn read(
    body: Incoming,
    bytes_max: usize,
    idle: Duration,
    deadline: Instant,
) -> Result<Bytes, Error> {
    Ok(net::client::read(body, bytes_max, idle, deadline).await?)
}

/// Reads a document of at most `bytes_max` in the same way, once there is a place for it: `owner` is who sends it, for whom.
///
/// The place is for all of it, however slowly it comes, and is asked for only when it turns out to be a large one. One
/// that is taken already is for more than this document.
pub(crate) async fn read_document(
    owner: Owner,
    mut body: Incoming,
    bytes_max: usize,
    (idle, deadline): (Duration, Instant),
    place: &mut Option<Place>,
) -> Result<Bytes, Error> {
    let stated = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if stated.is_some_and(|bytes| bytes > bytes_max) {
        return Err(TOO_LARGE);
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = timeout_at(deadline.min(Instant::now() + idle), body.frame()).await;
        let Some(frame) = frame.map_err(|_| Error::Timeout)? else { return Ok(whole.freeze()) };
        let frame = frame.map_err(|error| Error::unreachable(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = whole.len() + data.len();
        if bytes > bytes_max {
            return Err(TOO_LARGE);
        }
        let all = stated.unwrap_or(bytes_max);
        if bytes > SMALL_BYTES && place.is_none() {
            *place = Some(place_for(owner.clone(), all, deadline).await?);
        }
        if bytes > SMALL_BYTES && whole.len() <= SMALL_BYTES {
            // Once: growth by doubling would hold it two and a half times.
            whole.reserve(all - whole.len());
        }
        whole.extend_from_slice(&data);
    }
}

/// Waits for a place for documents of so many bytes.
pub(crate) async fn place_for(owner: Owner, bytes: usize, deadline: Instant) -> Result<Place, Error> {
    let busy = Error::Busy { retry_after: PLACE_RETRY };
    match timeout_at(deadline, parsing::place(owner, bytes)).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(busy),
    }
}
