//! Connections: they are accepted, answered one request after the other, and drained.
//!
//! hyper speaks the protocol (HTTP/1.1, as every container client does towards a mirror). Everything that a client may
//! make berth keep is bounded here and beside: connections, heads, handshakes, and how long a connection may stand still.
//!
//! # The drain
//! While berth stops, a handler may still answer clients that come back for more of what goes on
//! ([`Handler::answers_late`]): new connections are then taken, and each closes after its answer. It is over when no body
//! goes on and none has for [`PAUSE_MAX`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, warn};

use super::activity::Answers;
use super::body::Body;
use super::client_limits::Visit;
use super::connection_limit::{Seat, Seats};
use super::handler::Handler;
use super::head;
use super::tls::Tls;
use super::transport::Transport;
use super::transport::line_endings::{Lines, Watched};
use super::transport::sendfile::{Outlet, Plain};
use super::transport::tls_stream::Sealed;
use super::transport::write_timeout::Idle;
use crate::cache::Room;
use crate::telemetry::LogThrottle;

/// Bytes of a request's head; hyper answers 431 beyond it.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Header lines of a request.
const HEADERS_MAX: usize = 100;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system had no file descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that comes while berth stops may take to say what it wants.
const LATE_REQUEST_MAX: Duration = Duration::from_secs(3);
/// How long a connection that answers nothing any more may take for its last bytes when berth stops.
const LAST_BYTES_MAX: Duration = Duration::from_secs(3);

/// How long a client may take from one part of a blob to its request for the next.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Answers connections of `listener` until `stop` turns true; then lets each finish what it is answering (`drain`).
///
/// Returns when every connection is closed. `tls`: handshakes come first. `seats` bounds connections.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: impl Handler + Clone + 'static,
    tls: Option<Tls>,
    seats: Arc<Seats>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let door = Door { listener, handler, tls, seats, stop: stop.clone(), trouble: LogThrottle::default() };
    loop {
        tokio::select! {
            accepted = accept(&door) => door.begin(accepted, &mut connections).await,
            () = turned_true(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                // One that had to leave was cancelled, which is no fault.
                if let Err(panic) = ended && panic.is_panic() {
                    error!(%panic, "a fault of berth's own ended a connection; all others go on");
                }
            }
        }
    }
    door.drain(connections).await;
}

/// A listener, and what its connections are answered by.
struct Door<H> {
    listener: TcpListener,
    handler: H,
    tls: Option<Tls>,
    seats: Arc<Seats>,
    stop: watch::Receiver<bool>,
    trouble: LogThrottle,
}

impl<H: Handler + Clone + 'static> Door<H> {
    /// A connection of its own, if there is one. It ends with whether it has answered what keeps berth from stopping.
    async fn begin(&self, accepted: Option<Accepted>, connections: &mut JoinSet<bool>) {
        let Some((stream, peer, seat)) = accepted else { return };
        seat.settled().await;
        let (handler, tls, stop) = (self.handler.clone(), self.tls.clone(), self.stop.clone());
        let (answers, number) = (Answers::new(), seat.number());
        let connection = connections.spawn({
            let answers = Arc::clone(&answers);
            async move {
                let _seat = seat;
                connection(stream, peer, handler, tls, answers, stop).await.unwrap_or_else(|error| {
                    debug!(client = %peer, error, "a connection ended early");
                    false
                })
            }
        });
        self.seats.may_close(peer.ip(), number, answers, connection);
    }

    /// Lets every connection finish what it is answering, and clients come back for more of it.
    async fn drain(self, mut connections: JoinSet<bool>) {
        if !self.handler.answers_late() {
            drop(self);
            while connections.join_next().await.is_some() {}
            return;
        }
        let mut over_at = Instant::now();
        loop {
            tokio::select! {
                Some(ended) = connections.join_next() => {
                    // One that was cancelled, or has failed, has answered nothing.
                    if ended.unwrap_or(false) {
                        over_at = Instant::now() + PAUSE_MAX;
                    }
                }
                accepted = accept(&self) => self.begin(accepted, &mut connections).await,
                () = sleep_until(over_at), if connections.is_empty() => return,
            }
        }
    }
}

type Accepted = (TcpStream, SocketAddr, Seat);

/// The next connection; none when it failed or finds no seat, and the next but one must be waited for.
async fn accept<H>(door: &Door<H>) -> Option<Accepted> {
    match door.listener.accept().await {
        Ok((stream, peer)) => door.seats.take(peer.ip()).map(|seat| (stream, peer, seat)),
        Err(error) => {
            if door.trouble.is_due() {
                warn!(%error, "a connection could not be accepted");
            }
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    handler: impl Handler + Clone + 'static,
    tls: Option<Tls>,
    answers: Arc<Answers>,
    stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match tls {
        None => {
            let outlet = Outlet::default();
            let stream = Idle::new(Plain::new(stream, outlet.clone()), Arc::clone(&answers));
            exchange(stream, peer, handler, Transport::Plain(outlet), answers, stop).await
        }
        Some(tls) => {
            let handshake =
                timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(Idle::new(stream, Arc::clone(&answers))));
            let stream = handshake.await.map_err(|_| "the TLS handshake took too long".to_owned())?;
            let room = Room::unknown();
            let stream = Sealed::new(stream.map_err(|error| error.to_string())?, room.clone());
            exchange(stream, peer, handler, Transport::Tls(room), answers, stop).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    handler: impl Handler,
    transport: Transport,
    answers: Arc<Answers>,
    mut stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    let beginning = Arc::clone(&answers);
    let is_late = handler.answers_late() && *stop.borrow();
    let ours = Arc::new((handler.connect(peer).late(is_late), handler));
    let begun = Arc::clone(&ours);
    let lines = Lines::default();
    let stream = Watched::new(stream, lines.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let ours = Arc::clone(&ours);
        let (transport, answer) = (transport.clone(), beginning.begin());
        let is_last = lines.are_bare();
        async move {
            let answer = answer.ok_or("another connection has its seat")?;
            let (visit, handler) = &*ours;
            let mut response = match head::fault(request.version(), request.headers()) {
                None => handler.handle(peer, visit, request, transport).await,
                Some(fault) => handler.refuse_head(peer, &request, fault),
            };
            if is_last || visit.is_late() {
                head::close(&mut response);
            }
            Ok::<Response<Body>, &str>(response.map(|body| body.under_way(answer)))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        // By itself that is noticed only when more than so many bytes are read and the head is still not whole.
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(!is_late)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    if is_late {
        return answer_late(connection, &answers, peer, &begun).await;
    }
    tokio::select! {
        result = connection.as_mut() => return result.map(|()| false).map_err(|error| ended(peer, &begun.1, &error)),
        () = answers.rested_too_long() => return Err("no request came in time".to_owned()),
        () = turned_true(&mut stop) => {
            if answers.are_yet_to_come() && begun.1.answers_late() {
                // It was taken a moment ago, and its request is on its way.
                begun.0.be_late();
                return answer_late(connection, &answers, peer, &begun).await;
            }
            connection.as_mut().graceful_shutdown();
        }
    }
    let was_answering = !answers.are_none();
    // hyper would go on waiting for a head that was never begun, or never ended.
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = answers.none_left() => {
            timeout(LAST_BYTES_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    result.map(|()| was_answering).map_err(|error| ended(peer, &begun.1, &error))
}

/// Why a connection ended early. A request that hyper refused, with 400, 414 or 431, is told of here: nobody else sees it.
fn ended(peer: SocketAddr, handler: &impl Handler, error: &hyper::Error) -> String {
    if error.is_parse() {
        handler.note_unreadable(peer, error);
    }
    error.to_string()
}

/// Lets a connection have one answer while berth stops.
async fn answer_late(
    connection: impl Future<Output = hyper::Result<()>>,
    answers: &Answers,
    peer: SocketAddr,
    (visit, handler): &(Visit, impl Handler),
) -> Result<bool, String> {
    let result = tokio::select! {
        result = connection => result,
        () = says_nothing(answers) => return Err("no request came in time, and berth stops".to_owned()),
    };
    result.map(|()| visit.has_gone_on()).map_err(|error| ended(peer, handler, &error))
}

/// Ends when a connection that is to have one answer has none under way, though there was time to ask for it.
async fn says_nothing(answers: &Answers) {
    sleep(LATE_REQUEST_MAX).await;
    answers.none_left().await;
    // The last bytes of the answer.
    sleep(LAST_BYTES_MAX).await;
}

/// Waits to be asked to stop; an client that is gone asks, too.
pub(crate) async fn turned_true(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
