//! The admin plane.
//!
//! | path | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process works |
//! | `GET /readyz` | 200 while it takes requests, `ready` or `degraded: …` by the disk, then `offline: …` with the registries that are so by configuration; 503 once it was asked to stop. Never depends on whether an upstream answers |
//! | `GET /metrics` | Prometheus text |
//! | `POST /api/v1/verify` | 202: a look at every stored file has begun, or was under way; a `Verification` |
//! | `POST /api/v1/pins` | keeps an image, `{"ref": …, "platforms": […]}`; the pin and what of it is here, a `Pinned` |
//! | `GET /api/v1/pins` | all of these |
//! | `POST /api/v1/unpin` | takes a pin back, `{"ref": …}`; whether there was one |
//! | `POST /api/v1/refresh` | asks upstream now what a tag means, `{"ref": …}`, or with `"all_tags": true` all of that repository that are known, some at a time, behind `"after"`; `{"tags": [Refreshed…], "more": …}` |
//! | `POST /api/v1/reload` | reads the configuration file again, as SIGHUP does; a `Reloaded`, or 422 and why it was refused, 409 without a file |
//! | `GET /api/v1/verify` | how far it is, or what the last one has found; a `Verification` |
//!
//! A second listener (`metrics_listen`) offers the first three to a network that must not administer berth. The
//! others, which speak JSON and answer failures with `{"error": "…"}`, are in `admin/api.rs`.

mod api;
mod reload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;

use super::body::Body;
use super::registry::Data;
use super::response::content;
use crate::store::{Health, Store};
use crate::telemetry::{Metrics, metrics};
use crate::upstream::State;

pub use reload::{NotReloaded, Order, Orders, Reloaded, orders};

use api::Api;

/// The admin plane: `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the admin plane.
    pub listen: SocketAddr,
    /// Address of a listener for `/metrics`, `/healthz` and `/readyz` alone.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001), metrics_listen: None }
    }
}

/// Answers the admin plane.
pub struct Admin {
    metrics: Arc<Metrics>,
    store: Store,
    data: Arc<Data>,
    api: Api,
    draining: AtomicBool,
}

impl Admin {
    /// Tells of `metrics`, of how full `store` is and of the upstreams behind `data`, and does to them what it is told.
    /// Reloads are ordered by `orders`.
    pub fn new(metrics: Arc<Metrics>, store: Store, data: Arc<Data>, orders: Orders) -> Self {
        Self {
            metrics,
            api: Api::new(store.clone(), Arc::clone(&data), orders),
            store,
            data,
            draining: AtomicBool::new(false),
        }
    }

    /// From now on berth is not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers an administrator.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path().starts_with(api::PREFIX) {
            return self.api.answer(request).await;
        }
        self.show(&request).await
    }

    /// Answers anybody who may look but not touch.
    pub(crate) async fn show(&self, request: &Request<Incoming>) -> Response<Body> {
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

    /// Ready it is in any case: what a failing disk cannot keep passes through.
    fn readiness(&self) -> Bytes {
        let mut text = match self.store.health() {
            Health::Healthy => "ready\n".to_owned(),
            Health::Degraded { reason, .. } => format!("degraded: {reason}\n"),
        };
        let cache = self.data.cache();
        let offline = cache.upstreams().filter(|upstream| upstream.state() == State::Offline);
        let mut offline: Vec<_> = offline.map(|upstream| upstream.registry().as_str()).collect();
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
        self.metrics.budget.set(gauge(usage.budget_bytes));
        self.metrics.budget_used.set(gauge(usage.budget_used_bytes));
        self.metrics.storage_total.set(gauge(usage.total_bytes));
        self.metrics.index_ratio.set(self.store.index_ratio());
        let cache = self.data.cache();
        for upstream in cache.upstreams() {
            let state = upstream.state();
            let of = |gauge: &metrics::ByRegistry, is_so| gauge.set(upstream.registry().as_str(), is_so);
            of(&self.metrics.upstream_up, state == State::Up);
            of(&self.metrics.upstream_offline, state == State::Offline);
            of(&self.metrics.login_refused, upstream.is_login_refused());
        }
        self.metrics.tell_only_of(|registry| cache.upstreams().any(|it| it.registry().as_str() == registry));
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    content(status, "text/plain; charset=utf-8", text.into())
}
