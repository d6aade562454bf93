//! The account of one request: its line in the access log, and its numbers.
//!
//! It is opened when a request's head has arrived and closed when the last byte of the answer has been handed
//! to the connection, or the connection was lost. Nothing here ever holds a header's value of the client.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use tracing::info;

use super::refusal::{Refused, is_to_be_told};
use crate::cache;
use crate::oci::{Repo, Route};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Handler, InFlight, Kind, Verb};

/// The status of a request whose client left before there was an answer, as nginx counts it.
const CLIENT_LEFT: u16 = 499;
/// Bytes of a path that are logged when it names nothing.
const PATH_BYTES_MAX: usize = 256;

/// What is known of a request, and what became of its answer.
pub(crate) struct Account {
    metrics: Arc<Metrics>,
    log: bool,
    client: SocketAddr,
    method: Method,
    /// A number to find this request's lines by.
    request: u64,
    handler: Handler,
    /// What it led to; kept for the log alone.
    route: Option<Arc<Route>>,
    status: u16,
    cache: &'static str,
    /// The path, if it led to no route.
    path: Option<String>,
    /// The registry that it means, or seems to mean, if it led to no route.
    registry: Option<String>,
    /// Why it is answered with an error, if it is.
    refused: Option<Refused>,
    in_flight: InFlight,
    /// Why there is no content, if there is none.
    cause: String,
    began: Instant,
    first_byte: Option<Duration>,
    bytes: u64,
    promised: u64,
    broken: bool,
}

impl Account {
    /// A request of `client` has arrived.
    pub(crate) fn open(metrics: Arc<Metrics>, log: bool, client: SocketAddr, method: Method) -> Self {
        Self {
            in_flight: metrics.in_flight(Handler::None),
            metrics,
            log,
            client,
            method,
            request: fastrand::u64(..),
            handler: Handler::None,
            route: None,
            status: CLIENT_LEFT,
            cache: "",
            path: None,
            registry: None,
            refused: None,
            cause: String::new(),
            began: Instant::now(),
            first_byte: None,
            bytes: 0,
            promised: 0,
            broken: false,
        }
    }

    /// The number that this request's lines in the log have.
    pub(crate) fn request(&self) -> u64 {
        self.request
    }

    /// The `Cache-Status` of its content.
    pub(crate) fn cached(&mut self, status: &'static str) {
        self.cache = status;
    }

    /// It led to a route.
    pub(crate) fn begin(&mut self, route: &Arc<Route>) {
        self.handler = match **route {
            Route::Base | Route::Extensions => Handler::Base,
            Route::Catalog { .. } => Handler::Catalog,
            Route::Manifest { .. } => Handler::Manifest,
            Route::Blob { .. } => Handler::Blob,
            Route::Tags { .. } => Handler::Tags,
            Route::Referrers { .. } => Handler::Referrers,
        };
        self.in_flight = self.metrics.in_flight(self.handler);
        self.route = Some(Arc::clone(route));
    }

    /// It led to no route. A path holds no secret; a query may, and is not kept, but for the registry that it names.
    pub(crate) fn astray(&mut self, path: &str, registry: Option<String>) {
        self.path = Some(path.chars().take(PATH_BYTES_MAX).collect());
        self.registry = registry;
    }

    /// It is answered with an error.
    pub(crate) fn refused(&mut self, refused: Refused) {
        self.metrics.refused(refused.reason());
        self.refused = Some(refused);
    }

    /// The head of the answer is ready; `promised` bytes of body follow, or nobody knows how many.
    pub(crate) fn answered(&mut self, status: u16, promised: Option<u64>) {
        self.status = status;
        self.promised = if self.method == Method::HEAD { 0 } else { promised.unwrap_or(u64::MAX) };
        if self.promised == 0 {
            self.first_byte = Some(self.began.elapsed());
        }
    }

    /// Bytes of the body were handed to the connection.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.first_byte.get_or_insert_with(|| self.began.elapsed());
        self.bytes += bytes;
    }

    /// A body of which nobody knew how long it is has come to its end.
    pub(crate) fn ended(&mut self) {
        self.promised = self.bytes;
    }

    /// The body had to be broken off.
    pub(crate) fn broke_off(&mut self, error: &cache::Error) {
        self.broken = true;
        self.cause = error.to_string();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let whole = self.began.elapsed();
        let first_byte = self.first_byte.unwrap_or(whole);
        self.metrics.request_ended(self.handler, Verb::from(&self.method), self.status, first_byte, whole);
        self.metrics.sent.inc_by(self.bytes);
        let kind = match self.handler {
            Handler::Blob => Some(Kind::Blob),
            Handler::Manifest => Some(Kind::Manifest),
            Handler::None | Handler::Base | Handler::Catalog | Handler::Tags | Handler::Referrers => None,
        };
        if let Some(kind) = kind.filter(|_| matches!(self.status, 200 | 206)) {
            self.metrics.pushed(kind, self.bytes);
        }
        if self.log {
            self.tell(first_byte, whole);
        } else if let Some(refused) = &self.refused
            && let Some(left_out) = is_to_be_told(refused.reason())
        {
            self.tell_of(refused, left_out);
        }
    }
}

impl Account {
    /// The line of the access log.
    fn tell(&self, first_byte: Duration, whole: Duration) {
        let end = match (self.broken, self.bytes < self.promised) {
            (true, _) => "broken_off",
            (false, _) if self.status == CLIENT_LEFT => "client_left",
            (false, true) => "client_left",
            (false, false) => "whole",
        };
        let (repo, reference) = self.route.as_ref().map_or((None, String::new()), |route| subject(route));
        let (reason, cache, cause) = match &self.refused {
            Some(refused) => (refused.reason().as_str(), refused.cache_status().into(), refused.cause()),
            None => ("", Cow::Borrowed(self.cache), &*self.cause),
        };
        info!(
            target: "berth::access",
            request = format_args!("{:016x}", self.request),
            client = %self.client.ip(),
            method = %self.method,
            handler = self.handler.as_str(),
            registry = self.registry(repo),
            repository = repo.map_or("", |repo| repo.name.as_str()),
            reference,
            status = self.status,
            bytes = self.bytes,
            first_byte_seconds = first_byte.as_secs_f64(),
            duration_seconds = whole.as_secs_f64(),
            cache = &*cache,
            path = self.path,
            reason,
            cause,
            end,
            "request",
        );
    }

    /// A line about a refusal while the access log is switched off.
    fn tell_of(&self, refused: &Refused, left_out: u64) {
        let (repo, reference) = self.route.as_ref().map_or((None, String::new()), |route| subject(route));
        info!(
            target: "berth::refused",
            request = format_args!("{:016x}", self.request),
            client = %self.client.ip(),
            method = %self.method,
            registry = self.registry(repo),
            repository = repo.map_or("", |repo| repo.name.as_str()),
            reference,
            status = self.status,
            path = self.path,
            reason = refused.reason().as_str(),
            cause = refused.cause(),
            left_out,
            "a request was refused; others for the same reason are not told of for a minute",
        );
    }

    fn registry<'a>(&'a self, repo: Option<&'a Repo>) -> &'a str {
        repo.map_or_else(|| self.registry.as_deref().unwrap_or_default(), |repo| repo.registry.as_str())
    }
}

/// The repository and the reference that a route is about.
fn subject(route: &Route) -> (Option<&Repo>, String) {
    match route {
        Route::Base | Route::Extensions | Route::Catalog { .. } => (None, String::new()),
        Route::Manifest { repo, reference } => (Some(repo), reference.to_string()),
        Route::Blob { repo, digest } | Route::Referrers { repo, digest, .. } => {
            (Some(repo), digest.to_string())
        }
        Route::Tags { repo, .. } => (Some(repo), String::new()),
    }
}
