//! The HTTP client: two pools of connections, with time limits on everything.
//!
//! What the configuration names is dialled directly; what an upstream names goes through the guarded
//! resolver, and never shares a connection with the former. HTTP/1.1 only: one blob is one connection, so that
//! a slow body cannot hold up others, and no registry asks for more.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::{Instant, timeout, timeout_at};

use super::client_certificate::WatchedCertificate;
use super::error::{Error, Forbidden};
use super::guard::{Guard, Names, Resolver};
use super::lookups::Crowded;
use super::pool::Pool;
use super::proxy::{Dialer, Proxies, Proxy};
use super::timeouts::Timeouts;
use super::tls::{self, TlsSetupError};
use super::url::{EndpointUrl, HostName};
use super::user_agent::UserAgent;
use crate::oci::Registry;
use crate::sync::lock;

/// When the first of a name's address families does not connect, the other is tried beside it.
const HAPPY_EYEBALLS: Duration = Duration::from_millis(300);

/// When to come back if too many names wait to be looked up: most of them have been by then.
const NAMES_RETRY: Duration = Duration::from_secs(5);
/// Between two log lines about what this machine lacks.
const LACK_WARNED_EVERY: Duration = Duration::from_secs(10);

/// How a host may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialPolicy {
    /// At any address: the configuration names it.
    Direct,
    /// Only at addresses that an upstream may point to.
    Guarded,
}

/// What an [`HttpClient`] is built from.
#[derive(Clone, Debug)]
pub(crate) struct ClientConfig {
    /// The registry on whose behalf requests are sent: it has a share of the look-ups of names, and no more than that.
    pub(crate) owner: Registry,
    /// Where requests are sent first of all. They may be shown a certificate, and what they point to may be in their own
    /// network.
    pub(crate) endpoints: Vec<EndpointUrl>,
    /// PEM files of certificate authorities that are trusted besides the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Addresses of hosts, used instead of those in DNS.
    pub(crate) addresses: BTreeMap<HostName, Vec<IpAddr>>,
    /// The egress proxy.
    pub(crate) proxy: Proxy,
    /// The `User-Agent` that is sent instead of berth's own.
    pub(crate) user_agent: Option<UserAgent>,
    /// Whether nothing is ever sent.
    pub(crate) offline: bool,
    /// How long to wait for what.
    pub(crate) timeouts: Timeouts,
}

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestEnd {
    /// The head of a response came, with this status.
    Answered(StatusCode),
    /// No head came in time.
    TimedOut,
    /// There was no connection, or it broke, or a rule forbids it.
    Failed,
    /// This machine lacks what a connection needs: nothing was sent.
    Lacking,
}

/// A listener that is told of the end of every request, so that it can be counted.
pub(crate) type RequestObserver = Arc<dyn Fn(RequestEnd) + Send + Sync>;

/// The HTTP client of one registry, or of a service that has its login. A clone shares its connections.
#[derive(Clone)]
pub(crate) struct HttpClient {
    inner: Arc<Inner>,
    pub(crate) timeouts: Timeouts,
}

struct Inner {
    /// For the endpoints, if these are shown a certificate.
    own: Option<Pool>,
    direct: Pool,
    guarded: Pool,
    guard: Arc<Guard>,
    proxies: Arc<Proxies>,
    offline: bool,
    /// What looks wrong with the configured certificates.
    warnings: Vec<String>,
    agent: Option<UserAgent>,
    observer: RequestObserver,
}

impl HttpClient {
    /// Sets up TLS and the pools; connects to nothing.
    ///
    /// # Errors
    /// [`TlsSetupError`] when a certificate file is unusable.
    pub(crate) fn build(
        config: &ClientConfig,
        certificate: Option<Arc<WatchedCertificate>>,
        observer: RequestObserver,
    ) -> Result<Self, TlsSetupError> {
        let (tls, anchors) = tls::client(&config.ca)?;
        let endpoints: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.as_url().clone()).collect();
        let names = Names::new(config.owner.clone(), config.addresses.clone());
        let warnings = tls::advise(&anchors, &endpoints);
        let guard = Arc::new(Guard::new(endpoints, Arc::clone(&names)));
        let proxies = Arc::new(Proxies::new(&config.proxy));
        let connector = |resolver| connector(resolver, config.timeouts.connect);
        let open = connector(Resolver::open(names));
        let direct = Dialer::new(open.clone(), open.clone(), Arc::clone(&proxies), false);
        let guarded = connector(Resolver::guarded(Arc::clone(&guard)));
        let guarded = Dialer::new(guarded, open, Arc::clone(&proxies), true);
        let with_certificate = |certificate: Arc<WatchedCertificate>| {
            let mut tls = tls.clone();
            tls.client_auth_cert_resolver = certificate;
            Pool::new(direct.clone(), tls)
        };
        let inner = Inner {
            own: certificate.map(with_certificate),
            direct: Pool::new(direct, tls.clone()),
            guarded: Pool::new(guarded, tls),
            guard,
            proxies,
            offline: config.offline,
            warnings,
            agent: config.user_agent.clone(),
            observer,
        };
        Ok(Self { inner: Arc::new(inner), timeouts: config.timeouts })
    }

    /// Whether nothing is ever sent.
    pub(crate) fn is_offline(&self) -> bool {
        self.inner.offline
    }

    /// What looks wrong with the configured certificates.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        policy: DialPolicy,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        self.send_unless((pending(), pending()), policy, request, within).await
    }

    /// The same, but does not go on waiting when it is `hopeless`, and not on a connection that was used before when it
    /// seems to be `stuck` there. Every request to an upstream and to what it names goes out here, so this is where one
    /// that is offline is left alone.
    pub(crate) async fn send_unless(
        &self,
        (hopeless, stuck): (impl Future<Output = ()>, impl Future<Output = ()>),
        policy: DialPolicy,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        if self.inner.offline {
            return Err(Error::Offline);
        }
        let answer = tokio::select! {
            answer = timeout(within, self.inner.dispatch(policy, request, stuck)) => answer.unwrap_or(Err(Error::Timeout)),
            () = hopeless => Err(Error::Timeout),
        };
        let end = match &answer {
            Ok(response) => RequestEnd::Answered(response.status()),
            Err(Error::Timeout) => RequestEnd::TimedOut,
            Err(Error::Local { reason }) => {
                warn_of_lack(reason);
                RequestEnd::Lacking
            }
            Err(_) => RequestEnd::Failed,
        };
        (self.inner.observer)(end);
        answer
    }
}

impl Inner {
    async fn dispatch(
        &self,
        policy: DialPolicy,
        mut request: Request<Full<Bytes>>,
        stuck: impl Future<Output = ()>,
    ) -> Result<Response<Incoming>, Error> {
        if let Some(agent) = &self.agent {
            agent.name(request.headers_mut());
        }
        if let Some(authorization) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let pool = match policy {
            DialPolicy::Direct => match &self.own {
                Some(own) if self.guard.is_endpoint(request.uri()) => own,
                _ => &self.direct,
            },
            DialPolicy::Guarded => {
                // The connector dials addresses as they stand, without a resolver.
                if let Some(host) = request.uri().host()
                    && let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>()
                {
                    self.guard.allowed(host, vec![ip]).await?;
                }
                &self.guarded
            }
        };
        pool.request(request, stuck).await.map_err(|error| judge(&error))
    }
}

/// Reads a body of at most `bytes_max`, whole, until `deadline`.
pub(crate) async fn read(
    mut body: Incoming,
    bytes_max: usize,
    idle: Duration,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let mut whole = BytesMut::new();
    loop {
        let frame = timeout_at(deadline.min(Instant::now() + idle), body.frame()).await;
        let Some(frame) = frame.map_err(|_| Error::Timeout)? else { return Ok(whole.freeze()) };
        let frame = frame.map_err(|error| Error::unreachable(&error))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > bytes_max {
                return Err(Error::TooLarge);
            }
            whole.extend_from_slice(&data);
        }
    }
}

fn connector(resolver: Resolver, connect: Duration) -> HttpConnector<Resolver> {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect));
    connector.set_happy_eyeballs_timeout(Some(HAPPY_EYEBALLS));
    connector
}

/// What stopped a request: a rule, time, or the network.
fn judge(error: &legacy::Error) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // An io::Error skips its inner error in the chain of sources.
            if let Some(forbidden) = error.get_ref().and_then(|inner| inner.downcast_ref::<Forbidden>()) {
                return Error::Forbidden(forbidden.clone());
            }
            if error.get_ref().is_some_and(|inner| inner.is::<Crowded>()) {
                return Error::Busy { retry_after: NAMES_RETRY };
            }
            if error.kind() == std::io::ErrorKind::TimedOut {
                return Error::Timeout;
            }
        }
        cause = error.source();
    }
    Error::unreachable(error)
}

/// Says what this machine lacks, now and then: every request finds it out.
fn warn_of_lack(reason: &str) {
    static WARNED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut warned = lock(&WARNED);
    if warned.is_none_or(|at| at.elapsed() >= LACK_WARNED_EVERY) {
        *warned = Some(Instant::now());
        tracing::error!(
            reason,
            "berth lacks what a connection needs (file descriptors, ports, memory), so upstreams cannot be asked: raise its limits, such as LimitNOFILE= of its systemd unit"
        );
    }
}
