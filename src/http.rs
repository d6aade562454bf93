//! HTTP at berth's own doors: listeners, TLS, the connection loop, its limits, and the drain.
//!
//! hyper speaks the protocol (HTTP/1.1, as every container client does towards a mirror). Everything that a
//! client may make berth keep is bounded here: connections, heads, handshakes, and how long a connection may
//! stand still. What is answered is decided in `registry` (data plane) and [`admin`].

pub(crate) mod access;
pub mod admin;
mod answers;
mod asked;
mod body;
mod content;
mod data;
mod drain;
mod head;
mod hosts;
mod idle;
mod journal;
mod limits;
mod lists;
mod multipart;
mod outlet;
mod peers;
mod refusal;
pub(crate) mod registry;
mod response;
#[expect(unsafe_code, reason = "asks the kernel for something that has no safe name")]
mod room;
mod seats;
pub(crate) mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

pub use data::Data;
pub use hosts::Reach;
pub use registry::Serving;
pub use seats::Seats;
pub use tls::Tls;

use crate::cache::Room;
use crate::units;
use crate::upstream::HostName;

use answers::Answers;
use body::Body;
use head::{Lines, Watched};
use idle::Idle;
use limits::Visit;
use outlet::{Outlet, Plain, Transport};
use room::Sealed;
use seats::{Rarely, Seat};

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

/// How long bodies may take to finish when berth is asked to stop.
const DRAIN: Duration = Duration::from_secs(25);

/// The data plane: `[http]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses of the data plane.
    pub listen: Vec<SocketAddr>,
    /// Names that requests to a listener on loopback may have as their `Host`, besides addresses and `localhost`.
    pub hosts: Vec<HostName>,
    /// Networks that may connect; empty: everybody.
    pub allow: Vec<IpNet>,
    /// Berths that may speak for their clients: networks, and users of `htpasswd`.
    pub peers: Vec<peers::Peer>,
    /// A file of `user:bcrypt` lines; clients must then log in.
    pub htpasswd: Option<PathBuf>,
    /// Certificate and key; without them the data plane speaks plain HTTP.
    pub tls: Option<tls::Config>,
    /// One log line a request.
    pub access_log: bool,
    /// Whether `_catalog` and `tags/list` also show what came from upstream with a credential. Where that is not said:
    /// if whoever may connect is known.
    pub list_private: Option<bool>,
    /// How long bodies may take to finish when berth is asked to stop.
    #[serde(rename = "drain_seconds", deserialize_with = "units::duration")]
    pub drain: Duration,
    /// What one client may take.
    pub limits: limits::Config,
    /// What one login of `htpasswd` may take.
    pub login_limits: limits::LoginConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000)],
            hosts: Vec::new(),
            allow: Vec::new(),
            peers: Vec::new(),
            htpasswd: None,
            tls: None,
            access_log: true,
            list_private: None,
            drain: DRAIN,
            limits: limits::Config::default(),
            login_limits: limits::LoginConfig::default(),
        }
    }
}

impl Config {
    /// Whether not everybody who can reach a listener may use it.
    fn is_guarded(&self) -> bool {
        is_restricted(&self.allow)
            || self.htpasswd.is_some()
            || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether lists also show what came from upstream with a credential. Who is let in may pull all of it anyway.
    pub fn lists_private(&self) -> bool {
        self.list_private.unwrap_or_else(|| self.is_guarded())
    }

    /// A listener that anybody in the network can reach and use.
    pub fn open_listener(&self) -> Option<SocketAddr> {
        if self.is_guarded() {
            return None;
        }
        self.listen.iter().find(|address| Reach::of(**address) == Reach::Network).copied()
    }
}

/// Whether these networks are named, and none of them is the whole Internet.
fn is_restricted(allow: &[IpNet]) -> bool {
    !allow.is_empty() && allow.iter().all(|network| network.prefix_len() > 0)
}

/// Checks what the data plane's files say, and what its keys say together.
///
/// # Errors
/// When `htpasswd` cannot be read, or should be there.
pub fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.htpasswd.is_some() || config.login_limits == limits::LoginConfig::default(),
        "http.login_limits: expected http.htpasswd with it: without that nobody logs in"
    );
    for peer in &config.peers {
        if let peers::Peer::Login(name) = peer {
            ensure!(
                config.htpasswd.is_some(),
                "http.peers: `{name}`: expected a network, or http.htpasswd with it: without that nobody logs in"
            );
        }
    }
    access::check(config.htpasswd.as_deref())
}

/// What answers behind a listener.
#[derive(Clone)]
pub enum Plane {
    /// The registry API, on a listener that can be reached so far.
    Data(Arc<Data>, Reach),
    /// Health, metrics and administration.
    Admin(Arc<admin::Admin>),
    /// Health and metrics alone.
    Metrics(Arc<admin::Admin>),
}

/// Answers connections of `listener` until `stop` turns true; then lets each finish what it is answering (`drain`).
///
/// Returns when every connection is closed. `tls`: handshakes come first. `seats` bounds connections.
pub async fn serve(
    listener: TcpListener,
    plane: Plane,
    tls: Option<Tls>,
    seats: Arc<Seats>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let door = Door { listener, plane, tls, seats, stop: stop.clone(), trouble: Rarely::default() };
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
struct Door {
    listener: TcpListener,
    plane: Plane,
    tls: Option<Tls>,
    seats: Arc<Seats>,
    stop: watch::Receiver<bool>,
    trouble: Rarely,
}

impl Door {
    /// Whether connections are taken while berth stops.
    fn takes_more(&self) -> bool {
        matches!(self.plane, Plane::Data(..))
    }

    /// A connection of its own, if there is one. It ends with whether it has answered what keeps berth from stopping.
    async fn begin(&self, accepted: Option<Accepted>, connections: &mut JoinSet<bool>) {
        let Some((stream, peer, seat)) = accepted else { return };
        seat.settled().await;
        let (plane, tls, stop) = (self.plane.clone(), self.tls.clone(), self.stop.clone());
        let (answers, number) = (Answers::new(), seat.number());
        let connection = connections.spawn({
            let answers = Arc::clone(&answers);
            async move {
                let _seat = seat;
                connection(stream, peer, plane, tls, answers, stop).await.unwrap_or_else(|error| {
                    debug!(client = %peer, error, "a connection ended early");
                    false
                })
            }
        });
        self.seats.may_close(peer.ip(), number, answers, connection);
    }
}

type Accepted = (TcpStream, SocketAddr, Seat);

/// The next connection; none when it failed or finds no seat, and the next but one must be waited for.
async fn accept(door: &Door) -> Option<Accepted> {
    match door.listener.accept().await {
        Ok((stream, peer)) => door.seats.take(peer.ip()).map(|seat| (stream, peer, seat)),
        Err(error) => {
            if door.trouble.is_time() {
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
    plane: Plane,
    tls: Option<Tls>,
    answers: Arc<Answers>,
    stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match tls {
        None => {
            let outlet = Outlet::default();
            let stream = Idle::new(Plain::new(stream, outlet.clone()), Arc::clone(&answers));
            exchange(stream, peer, plane, Transport::Plain(outlet), answers, stop).await
        }
        Some(tls) => {
            let handshake =
                timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(Idle::new(stream, Arc::clone(&answers))));
            let stream = handshake.await.map_err(|_| "the TLS handshake took too long".to_owned())?;
            let room = Room::unknown();
            let stream = Sealed::new(stream.map_err(|error| error.to_string())?, room.clone());
            exchange(stream, peer, plane, Transport::Tls(room), answers, stop).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    plane: Plane,
    transport: Transport,
    answers: Arc<Answers>,
    mut stop: watch::Receiver<bool>,
) -> Result<bool, String> {
    let beginning = Arc::clone(&answers);
    let is_late = matches!(plane, Plane::Data(..)) && *stop.borrow();
    let ours = Arc::new((plane.greet(peer).late(is_late), plane));
    let begun = Arc::clone(&ours);
    let lines = Lines::default();
    let stream = Watched::new(stream, lines.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let ours = Arc::clone(&ours);
        let (transport, answer) = (transport.clone(), beginning.begin());
        let is_last = lines.are_bare();
        async move {
            let answer = answer.ok_or("another connection has its seat")?;
            let (visit, plane) = &*ours;
            let mut response = match head::fault(request.version(), request.headers()) {
                None => plane.answer(peer, visit, request, transport).await,
                Some(fault) => plane.refuse(peer, &request, fault),
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
            if answers.are_yet_to_come() && matches!(begun.1, Plane::Data(..)) {
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
fn ended(peer: SocketAddr, plane: &Plane, error: &hyper::Error) -> String {
    if error.is_parse() {
        plane.note_unreadable(peer, error);
    }
    error.to_string()
}

/// Lets a connection have one answer while berth stops.
async fn answer_late(
    connection: impl Future<Output = hyper::Result<()>>,
    answers: &Answers,
    peer: SocketAddr,
    (visit, plane): &(Visit, Plane),
) -> Result<bool, String> {
    let result = tokio::select! {
        result = connection => result,
        () = says_nothing(answers) => return Err("no request came in time, and berth stops".to_owned()),
    };
    result.map(|()| visit.has_gone_on()).map_err(|error| ended(peer, plane, &error))
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

impl Plane {
    /// A connection of `peer` begins.
    fn greet(&self, peer: SocketAddr) -> Visit {
        match self {
            Self::Data(data, _) => data.greet(peer.ip()),
            Self::Admin(_) | Self::Metrics(_) => Visit::begin(peer.ip(), None),
        }
    }

    /// Refuses a request whose head means different things to different programs.
    fn refuse(&self, peer: SocketAddr, request: &Request<Incoming>, fault: &str) -> Response<Body> {
        match self {
            Self::Data(data, _) => data.now().refuse_head(peer, request, fault),
            Self::Admin(_) | Self::Metrics(_) => head::refuse(fault),
        }
    }

    /// Notes that a request could not be read.
    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        if let Self::Data(data, _) = self {
            data.now().count_unreadable();
        }
        head::tell_unreadable(peer, error);
    }

    async fn answer(
        &self,
        peer: SocketAddr,
        visit: &Visit,
        request: Request<Incoming>,
        transport: Transport,
    ) -> Response<Body> {
        match self {
            Self::Data(data, reach) => {
                let serving = data.now();
                serving.answer(peer, *reach, visit, request, transport).await
            }
            Self::Admin(admin) => admin.answer(peer.ip(), request).await,
            Self::Metrics(admin) => admin.show(&request).await,
        }
    }
}
