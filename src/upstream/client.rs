//! The HTTP client: two pools of connections, with time limits on everything.
//!
//! What the configuration names is dialled directly; what an upstream names goes through the guarded
//! resolver, and never shares a connection with the former. HTTP/1.1 only: one blob is one connection, so that
//! a slow body cannot hold up others, and no registry asks for more.

use std::error::Error as StdError;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::address::{Forbidden, Guard, Names, Resolver};
use super::agent::UserAgent;
use super::config::{Config, Timeouts};
use super::error::{BuildError, Error};
use super::identity::Identity;
use super::limit::Limit;
use super::lookups::Crowded;
use super::pool::Pool;
use super::proxy::{Dialer, Proxies};
use super::{Event, Observer, Outcome};
use crate::files;
use crate::net::pem::{self, InvalidPem};
use crate::net::trust::{self, Own, Servers};
use crate::oci::Registry;
use crate::parsing::{self, Place, SMALL_BYTES};
use crate::shares::Owner;
use crate::sync::lock;

/// Longer than the pauses within one pull, shorter than what registries' front ends allow.
pub(super) const POOL_IDLE: Duration = Duration::from_secs(60);
/// As many layers as a few nodes fetch at once.
pub(super) const POOL_IDLE_CONNECTIONS_MAX: usize = 32;
/// Bounds the head of an answer, and how much of a body is read at once.
pub(super) const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Most headers of an answer; registries behind CDNs send thirty.
pub(super) const HEADERS_MAX: usize = 128;
/// When the first of a name's address families does not connect, the other is tried beside it.
const HAPPY_EYEBALLS: Duration = Duration::from_millis(300);

/// When a document for which there was no place in time may be asked for again.
const PLACE_RETRY: Duration = Duration::from_secs(2);
/// When to come back if too many names wait to be looked up: most of them have been by then.
const NAMES_RETRY: Duration = Duration::from_secs(5);
/// A body is longer than its reader takes.
pub(super) const TOO_LARGE: Error = Error::Malformed("a body larger than any of its kind");
/// Between two log lines about what this machine lacks.
const LACK_WARNED_EVERY: Duration = Duration::from_secs(10);

/// How a host may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// At any address: the configuration names it.
    Direct,
    /// Only at addresses that an upstream may point to.
    Guarded,
}

/// A configured certificate, and the file that it is in.
struct Anchor {
    path: PathBuf,
    certificate: CertificateDer<'static>,
}

/// Sends requests for one upstream.
pub(super) struct Client {
    /// For the endpoints, if these are shown a certificate.
    own: Option<Pool>,
    direct: Pool,
    guarded: Pool,
    guard: Arc<Guard>,
    proxies: Arc<Proxies>,
    offline: bool,
    /// What looks wrong with the configured certificates.
    warnings: Vec<String>,
    registry: Registry,
    agent: Option<UserAgent>,
    observer: Observer,
    pub(super) timeouts: Timeouts,
}

impl Client {
    /// Sets up TLS and the pools; connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when a certificate file is unusable.
    pub(super) fn build(
        config: &Config,
        identity: Option<Arc<Identity>>,
        observer: Observer,
    ) -> Result<Self, BuildError> {
        let (tls, anchors) = tls(&config.ca)?;
        let endpoints: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.as_url().clone()).collect();
        let names = Names::new(config.registry.clone(), config.addresses.clone());
        let warnings = advise(&anchors, &endpoints);
        let guard = Arc::new(Guard::new(endpoints, Arc::clone(&names)));
        let proxies = Arc::new(Proxies::new(&config.proxy));
        let connector = |resolver| connector(resolver, config.timeouts.connect);
        let open = connector(Resolver::open(names));
        let direct = Dialer::new(open.clone(), open.clone(), Arc::clone(&proxies), false);
        let guarded = connector(Resolver::guarded(Arc::clone(&guard)));
        let guarded = Dialer::new(guarded, open, Arc::clone(&proxies), true);
        let with_certificate = |identity: Arc<Identity>| {
            let mut tls = tls.clone();
            tls.client_auth_cert_resolver = identity;
            Pool::new(direct.clone(), tls)
        };
        Ok(Self {
            own: identity.map(with_certificate),
            direct: Pool::new(direct, tls.clone()),
            guarded: Pool::new(guarded, tls),
            guard,
            proxies,
            offline: config.offline,
            warnings,
            registry: config.registry.clone(),
            agent: config.user_agent.clone(),
            observer,
            timeouts: config.timeouts,
        })
    }

    /// Whether nothing is ever sent.
    pub(super) fn is_offline(&self) -> bool {
        self.offline
    }

    /// What looks wrong with the configured certificates.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Sends one request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        way: Way,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        self.send_unless((pending(), pending()), way, request, within).await
    }

    /// The same, but does not go on waiting when it is `hopeless`, and not on a connection that was used before when it
    /// seems to be `stuck` there. Every request to an upstream and to what it names goes out here, so this is where one
    /// that is offline is left alone.
    pub(super) async fn send_unless(
        &self,
        (hopeless, stuck): (impl Future<Output = ()>, impl Future<Output = ()>),
        way: Way,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        if self.offline {
            return Err(Error::Offline);
        }
        let answer = tokio::select! {
            answer = timeout(within, self.dispatch(way, request, stuck)) => answer.unwrap_or(Err(Error::Timeout)),
            () = hopeless => Err(Error::Timeout),
        };
        match &answer {
            Err(Error::Local { reason }) => {
                self.tell(Event::Refused(Limit::Machine));
                warn_of_lack(reason);
            }
            answer => self.tell(Event::Ended(outcome(answer))),
        }
        answer
    }

    /// Lets the observer know.
    pub(super) fn tell(&self, event: Event) {
        (self.observer)(&self.registry, event);
    }

    async fn dispatch(
        &self,
        way: Way,
        mut request: Request<Full<Bytes>>,
        stuck: impl Future<Output = ()>,
    ) -> Result<Response<Incoming>, Error> {
        if let Some(agent) = &self.agent {
            agent.name(request.headers_mut());
        }
        if let Some(authorization) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let pool = match way {
            Way::Direct => match &self.own {
                Some(own) if self.guard.is_endpoint(request.uri()) => own,
                _ => &self.direct,
            },
            Way::Guarded => {
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
pub(super) async fn read(
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
                return Err(TOO_LARGE);
            }
            whole.extend_from_slice(&data);
        }
    }
}

/// Reads a document of at most `bytes_max` in the same way, once there is a place for it: `owner` is who sends it, for whom.
///
/// The place is for all of it, however slowly it comes, and is asked for only when it turns out to be a large one. One
/// that is taken already is for more than this document.
pub(super) async fn read_document(
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
pub(super) async fn place_for(owner: Owner, bytes: usize, deadline: Instant) -> Result<Place, Error> {
    let busy = Error::Busy { retry_after: PLACE_RETRY };
    match timeout_at(deadline, parsing::place(owner, bytes)).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(busy),
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

/// Trust in the system's authorities and the certificates of these files, which are given, too.
fn tls(paths: &[PathBuf]) -> Result<(rustls::ClientConfig, Vec<Anchor>), BuildError> {
    let (mut roots, mut anchors) = (Arc::clone(system_roots()), Vec::new());
    for path in paths {
        let content = files::read(path).map_err(|source| BuildError::Read { path: path.clone(), source })?;
        let wrong = |why| BuildError::Pem { path: path.clone(), why };
        for (number, certificate) in (1..).zip(pem::certificates(&content).map_err(wrong)?) {
            let added = Arc::make_mut(&mut roots).add(certificate.clone());
            added.map_err(|_| wrong(InvalidPem::Damaged { number }))?;
            anchors.push(Anchor { path: path.clone(), certificate });
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(BuildError::Tls)?;
    let own = Own::new(anchors.iter().map(|anchor| anchor.certificate.clone()).collect());
    let builder = match Servers::new(Arc::clone(&roots), own, provider) {
        Ok(servers) => builder.dangerous().with_custom_certificate_verifier(servers),
        // There are no authorities at all, so that no server is believed.
        Err(_) => builder.with_root_certificates(roots),
    };
    Ok((builder.with_no_client_auth(), anchors))
}

/// What is to be said of certificates that are configured for endpoints at these hosts.
fn advise(anchors: &[Anchor], endpoints: &[Url]) -> Vec<String> {
    let over_tls = endpoints.iter().filter(|url| url.scheme() == "https");
    let hosts: Vec<_> = over_tls.filter_map(Url::host_str).collect();
    let advice = |Anchor { path, certificate }: &Anchor| {
        let advice = trust::advise(certificate, &hosts, SystemTime::now())?;
        Some(format!("the certificate in {} {advice}", path.display()))
    };
    anchors.iter().filter_map(advice).collect()
}

/// The system's authorities, read and kept once: there are many upstreams and the files are large.
fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
        }
        if loaded.certs.is_empty() {
            tracing::warn!("the system has no certificate authorities: only those of `ca` are trusted");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(loaded.certs);
        roots.into()
    })
}

/// What stopped a request: a rule, time, or the network.
fn judge(error: &legacy::Error) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // An io::Error skips its inner error in the chain of sources.
            if let Some(Forbidden(refusal)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
                return Error::Refused(refusal.clone());
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

fn outcome(answer: &Result<Response<Incoming>, Error>) -> Outcome {
    match answer {
        Ok(response) => match response.status() {
            StatusCode::NOT_FOUND => Outcome::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Outcome::Denied,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Limited,
            StatusCode::LOOP_DETECTED => Outcome::Loop,
            status if status.is_success() || status.is_redirection() => Outcome::Ok,
            _ => Outcome::Error,
        },
        Err(Error::Timeout) => Outcome::Timeout,
        Err(_) => Outcome::Error,
    }
}
