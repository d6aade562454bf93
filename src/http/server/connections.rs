//! Connections: they are accepted, answered one request after the other, and drained.
//!
//! hyper speaks the protocol (HTTP/1.1, as every container client does towards a mirror). Everything that a client may
//! make berth keep is bounded here and in the files beside: connections, heads, handshakes, and the time that a connection
//! may be idle or a write may stand still.
//!
//! # The drain
//! While berth stops, a handler may still answer clients that come back for more of what is in progress
//! ([`RequestHandler::answers_while_stopping`]): new connections are then accepted, and each closes after its response. The
//! drain is over when no body is in progress and none has been for [`PAUSE_MAX`].

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

use super::activity::Activity;
use super::body::Body;
use super::client_limits::ConnectionClient;
use super::connection_limit::{ConnectionLimit, ConnectionPermit};
use super::handler::RequestHandler;
use super::head;
use super::tls::Tls;
use super::transport::BodyTransport;
use super::transport::line_endings::{LineEndingStream, LineEndings};
use super::transport::sendfile::{RawSocket, Sendfile};
use super::transport::tls_stream::TlsSocket;
use super::transport::write_timeout::WriteTimeout;
use crate::cache::Room;
use crate::telemetry::LogThrottle;

/// Most bytes of a request's head; hyper answers 431 beyond it.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header lines of a request.
const HEADERS_MAX: usize = 100;
/// Time that a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system had no file descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that a connection which is accepted while berth stops may take for its request.
const LATE_REQUEST_MAX: Duration = Duration::from_secs(3);
/// Time that a connection without a response in progress may take for its last bytes when berth stops.
const LAST_BYTES_MAX: Duration = Duration::from_secs(3);

/// Time that a client may take from one part of a blob to its request for the next.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Answers the connections of `listener` by `handler` until `stop` turns true, and then drains them. With `tls` each begins
/// with a handshake; `limit` bounds their number.
///
/// Returns when every connection is closed.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: impl RequestHandler + Clone + 'static,
    tls: Option<Tls>,
    limit: Arc<ConnectionLimit>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let listener = Listener {
        socket: listener,
        handler,
        tls,
        limit,
        stop: stop.clone(),
        log_throttle: LogThrottle::default(),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => listener.spawn(accepted, &mut connections).await,
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                // One that was closed for another was cancelled, which is no fault.
                if let Err(panic) = ended && panic.is_panic() {
                    error!(%panic, "a fault of berth's own ended a connection; all others go on");
                }
            }
        }
    }
    listener.drain(connections).await;
}

/// A listening socket, and the handler of its connections.
struct Listener<H> {
    socket: TcpListener,
    handler: H,
    tls: Option<Tls>,
    limit: Arc<ConnectionLimit>,
    stop: watch::Receiver<bool>,
    log_throttle: LogThrottle,
}

impl<H: RequestHandler + Clone + 'static> Listener<H> {
    /// The next connection. `None` if it could not be accepted, or got no permit.
    async fn accept(&self) -> Option<Accepted> {
        match self.socket.accept().await {
            Ok((stream, peer)) => self.limit.acquire(peer.ip()).map(|permit| (stream, peer, permit)),
            Err(error) => {
                if self.log_throttle.is_due() {
                    warn!(%error, "a connection could not be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    /// Runs an accepted connection in a task of its own, if there is one. The task returns whether a response has kept
    /// berth from stopping.
    async fn spawn(&self, accepted: Option<Accepted>, connections: &mut JoinSet<bool>) {
        let Some((stream, peer, permit)) = accepted else { return };
        permit.until_replaced().await;
        let (handler, tls, stop) = (self.handler.clone(), self.tls.clone(), self.stop.clone());
        let (activity, number) = (Activity::new(), permit.number());
        let connection = connections.spawn({
            let activity = Arc::clone(&activity);
            async move {
                let _permit = permit;
                run_connection(stream, peer, handler, tls, activity, stop).await.unwrap_or_else(|error| {
                    debug!(client = %peer, error, "a connection ended early");
                    false
                })
            }
        });
        self.limit.set_closable(peer.ip(), number, activity, connection);
    }

    /// Lets every connection finish its response, and clients come back for more of the same.
    async fn drain(self, mut connections: JoinSet<bool>) {
        if !self.handler.answers_while_stopping() {
            drop(self);
            while connections.join_next().await.is_some() {}
            return;
        }
        let mut over_at = Instant::now();
        loop {
            tokio::select! {
                Some(ended) = connections.join_next() => {
                    // One that was cancelled, or has failed, has kept berth from nothing.
                    if ended.unwrap_or(false) {
                        over_at = Instant::now() + PAUSE_MAX;
                    }
                }
                accepted = self.accept() => self.spawn(accepted, &mut connections).await,
                () = sleep_until(over_at), if connections.is_empty() => return,
            }
        }
    }
}

type Accepted = (TcpStream, SocketAddr, ConnectionPermit);

/// Runs a connection: the handshake, if there is one, and HTTP. Returns whether a response has kept berth from stopping.
async fn run_connection(
    stream: TcpStream,
    peer: SocketAddr,
    handler: impl RequestHandler + Clone + 'static,
    tls: Option<Tls>,
    activity: Arc<Activity>,
    stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match tls {
        None => {
            let sendfile = Sendfile::default();
            let stream = WriteTimeout::new(RawSocket::new(stream, sendfile.clone()), Arc::clone(&activity));
            serve_http(stream, peer, handler, BodyTransport::Plain(sendfile), activity, stop).await
        }
        Some(tls) => {
            let handshake = timeout(
                HANDSHAKE_TIMEOUT,
                tls.acceptor().accept(WriteTimeout::new(stream, Arc::clone(&activity))),
            );
            let stream = handshake.await.map_err(|_| "the TLS handshake took too long".to_owned())?;
            let room = Room::unknown();
            let stream = TlsSocket::new(stream.map_err(|error| error.to_string())?, room.clone());
            serve_http(stream, peer, handler, BodyTransport::Tls(room), activity, stop).await
        }
    }
}

/// Speaks HTTP over `stream`. Returns whether a response has kept berth from stopping.
async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    handler: impl RequestHandler,
    transport: BodyTransport,
    activity: Arc<Activity>,
    mut stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    let responses = Arc::clone(&activity);
    let is_late = handler.answers_while_stopping() && *stop.borrow();
    let ends = Arc::new((handler.connect(peer).late(is_late), handler));
    let both_ends = Arc::clone(&ends);
    let line_endings = LineEndings::default();
    let stream = LineEndingStream::new(stream, line_endings.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let ends = Arc::clone(&ends);
        let (transport, in_progress) = (transport.clone(), responses.begin());
        let is_last = line_endings.are_bare();
        async move {
            let in_progress = in_progress.ok_or("it was closed for another connection")?;
            let (client, handler) = &*ends;
            let mut response = match head::fault(request.version(), request.headers()) {
                None => handler.handle(peer, client, request, transport).await,
                Some(fault) => handler.refuse_head(peer, &request, fault),
            };
            if is_last || client.is_late() {
                head::close(&mut response);
            }
            Ok::<Response<Body>, &str>(response.map(|body| body.in_progress(in_progress)))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        // `max_buf_size` alone is noticed only when that many bytes are read and the head is still not whole.
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(!is_late)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    if is_late {
        return answer_once(connection, &activity, peer, &both_ends).await;
    }
    tokio::select! {
        result = connection.as_mut() => return result.map(|()| false).map_err(|error| describe(peer, &both_ends.1, &error)),
        () = activity.idle_for_too_long() => return Err("no request came in time".to_owned()),
        () = stopped(&mut stop) => {
            if activity.is_unused() && both_ends.1.answers_while_stopping() {
                // It was accepted a moment ago, and its request is on its way.
                both_ends.0.set_late();
                return answer_once(connection, &activity, peer, &both_ends).await;
            }
            connection.as_mut().graceful_shutdown();
        }
    }
    let was_answering = !activity.is_idle();
    // hyper would go on waiting for a head that never begins, or never ends.
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = activity.until_idle() => {
            timeout(LAST_BYTES_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    result.map(|()| was_answering).map_err(|error| describe(peer, &both_ends.1, &error))
}

/// Describes why a connection ended early. A request that hyper refused, with 400, 414 or 431, is logged here: no handler
/// sees it.
fn describe(peer: SocketAddr, handler: &impl RequestHandler, error: &hyper::Error) -> String {
    if error.is_parse() {
        handler.note_unreadable(peer, error);
    }
    error.to_string()
}

/// Lets a connection have one response while berth stops.
async fn answer_once(
    connection: impl Future<Output = hyper::Result<()>>,
    activity: &Activity,
    peer: SocketAddr,
    (client, handler): &(ConnectionClient, impl RequestHandler),
) -> Result<bool, String> {
    let result = tokio::select! {
        result = connection => result,
        () = no_request_came(activity) => return Err("no request came in time, and berth stops".to_owned()),
    };
    result.map(|()| client.has_resumed()).map_err(|error| describe(peer, handler, &error))
}

/// Ends when a connection that may have one response has none in progress although there was time for its request.
async fn no_request_came(activity: &Activity) {
    sleep(LATE_REQUEST_MAX).await;
    activity.until_idle().await;
    // The last bytes of the response.
    sleep(LAST_BYTES_MAX).await;
}

/// Waits until `stop` turns true, or its sender is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
