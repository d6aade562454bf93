//! Health, readiness and metrics: the part of the admin plane that needs no token, and all of the metrics plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use crate::http::registry::data_plane::DataPlane;
use crate::http::server::body::Body;
use crate::http::server::client_limits::ConnectionClient;
use crate::http::server::handler::RequestHandler;
use crate::http::server::response::content;
use crate::http::server::transport::BodyTransport;
use crate::store::{Health, Store};
use crate::telemetry::{Metrics, metrics};
use crate::upstream::State;

/// Answers `/healthz`, `/readyz` and `/metrics`.
pub(crate) struct Probes {
    metrics: Arc<Metrics>,
    store: Store,
    data: Arc<DataPlane>,
    /// Whether berth was asked to stop.
    draining: AtomicBool,
}

impl Probes {
    /// Shows `metrics`, the usage of `store` and the upstreams behind `data`.
    pub(super) fn new(metrics: Arc<Metrics>, store: Store, data: Arc<DataPlane>) -> Self {
        Self { metrics, store, data, draining: AtomicBool::new(false) }
    }

    /// Notes that berth stops: from now on it is not ready.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers a request for one of them.
    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
            }
            "/readyz" => text(StatusCode::OK, self.readiness()),
            "/metrics" => {
                self.measure().await;
                content(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.text().into())
            }
            _ => text(StatusCode::NOT_FOUND, "expected /healthz, /readyz or /metrics\n"),
        }
    }

    /// The body of `/readyz`. berth is ready in any case: content that a failing disk cannot keep passes through.
    fn readiness(&self) -> Bytes {
        let mut text = match self.store.health() {
            Health::Healthy => "ready\n".to_owned(),
            Health::Degraded { reason, .. } => format!("degraded: {reason}\n"),
        };
        let cache = self.data.cache();
        let offline = cache.upstreams().filter(|upstream| upstream.state() == State::Offline);
        let mut offline: Vec<_> = offline.map(|upstream| upstream.registry().label()).collect();
        offline.sort_unstable();
        if !offline.is_empty() {
            text += &format!("offline: {}\n", offline.join(", "));
        }
        text.into()
    }

    /// Brings the gauges of the disk and of upstreams up to date.
    async fn measure(&self) {
        let usage = self.store.usage().await;
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.storage_used.set(gauge(usage.used_bytes));
        self.metrics.space.budget.set(gauge(usage.budget_bytes));
        self.metrics.space.budget_used.set(gauge(usage.budget_used_bytes));
        self.metrics.storage_total.set(gauge(usage.total_bytes));
        self.metrics.index_ratio.set(self.store.index_ratio());
        let cache = self.data.cache();
        for upstream in cache.upstreams() {
            let state = upstream.state();
            let of = |gauge: &metrics::ByRegistry, is_so| gauge.set(upstream.registry().label(), is_so);
            of(&self.metrics.upstream_up, state == State::Up);
            of(&self.metrics.upstream_offline, state == State::Offline);
            of(&self.metrics.login_refused, upstream.is_login_refused());
        }
        self.metrics.tell_only_of(|registry| cache.upstreams().any(|it| it.registry().label() == registry));
    }
}

impl RequestHandler for Probes {
    async fn handle(
        &self,
        _peer: SocketAddr,
        _client: &ConnectionClient,
        request: Request<Incoming>,
        _transport: BodyTransport,
    ) -> Response<Body> {
        self.answer(&request).await
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    content(status, "text/plain; charset=utf-8", text.into())
}
