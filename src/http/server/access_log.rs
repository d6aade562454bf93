//! The log of one request: its line in the access log, and its metrics.
//!
//! It begins when a request's head has arrived, and is written when the last byte of the response has been handed to the
//! connection, or the connection was lost. Nothing here ever holds a header's value of the client.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use tracing::info;

use super::refusal::{RequestRefusal, due_in_log};
use crate::cache;
use crate::oci::{Repo, Route};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Handler, InFlight, Kind, Verb};

/// Status of a request whose client closed the connection before there was a response: nginx's number for it.
const CLIENT_CLOSED: u16 = 499;
/// Characters of a path without a route that are logged.
const PATH_BYTES_MAX: usize = 256;

/// What is known of a request, and what became of its response. It is written to the log when it is dropped.
pub(crate) struct RequestLog {
    metrics: Arc<Metrics>,
    /// Whether the access log is switched on.
    is_on: bool,
    client: SocketAddr,
    method: Method,
    /// A random number that all lines about this request have.
    request_id: u64,
    handler: Handler,
    /// The route, kept for the log alone.
    route: Option<Arc<Route>>,
    status: u16,
    cache: &'static str,
    /// The path, if it has no route.
    path: Option<String>,
    /// The registry that the request means, or seems to mean, if it has no route.
    registry: Option<String>,
    /// Why the response is an error, if it is one.
    refused: Option<RequestRefusal>,
    in_flight: InFlight,
    /// Why the body broke off, if it did.
    cause: String,
    began: Instant,
    first_byte: Option<Duration>,
    /// Bytes of the body that were sent.
    bytes: u64,
    /// Bytes of the body that there are to send; the largest number where that is not known.
    promised: u64,
    /// Whether the body broke off.
    broken: bool,
}

impl RequestLog {
    /// The log of a request of `client` that has just arrived. It is a line of the access log if that `is_on`.
    pub(crate) fn begin(metrics: Arc<Metrics>, is_on: bool, client: SocketAddr, method: Method) -> Self {
        Self {
            in_flight: metrics.in_flight(Handler::None),
            metrics,
            is_on,
            client,
            method,
            request_id: fastrand::u64(..),
            handler: Handler::None,
            route: None,
            status: CLIENT_CLOSED,
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

    /// The number that all lines about this request have.
    pub(crate) fn request_id(&self) -> u64 {
        self.request_id
    }

    /// Notes the `Cache-Status` of the content.
    pub(crate) fn set_cache_status(&mut self, status: &'static str) {
        self.cache = status;
    }

    /// Notes the route of the request.
    pub(crate) fn routed(&mut self, route: &Arc<Route>) {
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

    /// Notes that the request has no route. A path holds no secret; a query may, and is not kept, but for the registry that
    /// it names.
    pub(crate) fn unrouted(&mut self, path: &str, registry: Option<String>) {
        self.path = Some(path.chars().take(PATH_BYTES_MAX).collect());
        self.registry = registry;
    }

    /// Notes why the response is an error.
    pub(crate) fn refused(&mut self, refused: RequestRefusal) {
        self.metrics.refused(refused.reason());
        self.refused = Some(refused);
    }

    /// Notes that the head of the response is ready. `promised` bytes of body follow; `None` if that is not known.
    pub(crate) fn head_sent(&mut self, status: u16, promised: Option<u64>) {
        self.status = status;
        self.promised = if self.method == Method::HEAD { 0 } else { promised.unwrap_or(u64::MAX) };
        if self.promised == 0 {
            self.first_byte = Some(self.began.elapsed());
        }
    }

    /// Notes that bytes of the body were handed to the connection.
    pub(crate) fn body_sent(&mut self, bytes: u64) {
        self.first_byte.get_or_insert_with(|| self.began.elapsed());
        self.bytes += bytes;
    }

    /// Notes the end of a body whose length was not known before.
    pub(crate) fn body_ended(&mut self) {
        self.promised = self.bytes;
    }

    /// Notes that the body broke off.
    pub(crate) fn body_failed(&mut self, error: &cache::Error) {
        self.broken = true;
        self.cause = error.to_string();
    }
}

impl Drop for RequestLog {
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
        if self.is_on {
            self.write_line(first_byte, whole);
        } else if let Some(refused) = &self.refused
            && let Some(left_out) = due_in_log(refused.reason())
        {
            self.write_refusal(refused, left_out);
        }
    }
}

impl RequestLog {
    /// Writes the line of the access log.
    fn write_line(&self, first_byte: Duration, whole: Duration) {
        let end = match (self.broken, self.bytes < self.promised) {
            (true, _) => "broken_off",
            (false, _) if self.status == CLIENT_CLOSED => "client_left",
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
            request = format_args!("{:016x}", self.request_id),
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

    /// Writes a line about a refusal while the access log is switched off.
    fn write_refusal(&self, refused: &RequestRefusal, left_out: u64) {
        let (repo, reference) = self.route.as_ref().map_or((None, String::new()), |route| subject(route));
        info!(
            target: "berth::refused",
            request = format_args!("{:016x}", self.request_id),
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
