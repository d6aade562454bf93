//! The admin plane.
//!
//! Open to whoever may connect and names a host that is known (`guard.rs`):
//!
//! | path | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process works |
//! | `GET /readyz` | 200 while it takes requests, `ready` or `degraded: …` by the disk, then `offline: …` with the registries that are so by configuration; 503 once it was asked to stop. Never depends on whether an upstream answers |
//! | `GET /metrics` | Prometheus text; names registries, no images |
//!
//! Everything below `/api/`, also what is not there, changes something or names private images, and needs a token, from
//! loopback too (`token.rs`); without one it is 401:
//!
//! | path | answer |
//! |---|---|
//! | `POST /api/v1/verify` | 202: a look at every stored file has begun, or was under way; a `Verification` |
//! | `POST /api/v1/pins` | keeps an image, `{"ref": …, "platforms": […]}`; the pin and what of it is here, a `Pinned` |
//! | `GET /api/v1/pins` | all of these |
//! | `POST /api/v1/unpin` | takes a pin back, `{"ref": …}`; whether there was one |
//! | `POST /api/v1/refresh` | asks upstream now what a tag means, `{"ref": …}`, or with `"all_tags": true` all of that repository that are known, some at a time, behind `"after"`; `{"tags": [Refreshed…], "more": …}` |
//! | `POST /api/v1/reload` | reads the configuration file again, as SIGHUP does; a `Reloaded`, or 422 and why it was refused, 409 without a file |
//! | `GET /api/v1/verify` | how far it is, or what the last one has found; a `Verification` |
//!
//! A second listener (`metrics_listen`) offers the first three alone, to a network that must not administer berth,
//! whatever host a request names. The API, which speaks JSON and answers failures with `{"error": "…"}`, is in
//! `admin/api.rs`.
//!
//! The admin plane speaks plain HTTP. Beyond loopback it is refused without `allow` and `token_file`.

mod api;
mod guard;
mod reload;
mod token;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;

use super::body::Body;
use super::data::Data;
use super::hosts::Reach;
use super::is_restricted;
use super::response::content;
use crate::store::{Health, Store};
use crate::telemetry::{Metrics, metrics};
use crate::upstream::{HostName, State};

pub use guard::Guard;
pub use reload::{NotReloaded, Order, Orders, Reloaded, orders};
pub use token::{Token, TokenFile, Unusable};

use api::Api;

/// The admin plane: `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the admin plane.
    pub listen: SocketAddr,
    /// Address of a listener for `/metrics`, `/healthz` and `/readyz` alone.
    pub metrics_listen: Option<SocketAddr>,
    /// Networks that may connect besides this machine.
    pub allow: Vec<IpNet>,
    /// A file with a token that opens the API, besides the one that berth makes.
    pub token_file: Option<PathBuf>,
    /// Names that requests may have as their `Host`, besides addresses and `localhost`.
    pub hosts: Vec<HostName>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001),
            metrics_listen: None,
            allow: Vec::new(),
            token_file: None,
            hosts: Vec::new(),
        }
    }
}

impl Config {
    /// Checks what these keys say together.
    ///
    /// # Errors
    /// When another machine could reach the admin plane, and nothing says which may and how it proves itself.
    pub fn check(&self) -> anyhow::Result<()> {
        let is_guarded = is_restricted(&self.allow) && self.token_file.is_some();
        ensure!(
            is_guarded || Reach::of(self.listen) == Reach::Loopback,
            "admin.listen {} can be reached from other machines, and whoever can connect could try to give commands. \
             Set admin.allow (networks, none of them the whole Internet) and admin.token_file, or listen on 127.0.0.1; \
             admin.metrics_listen is for /metrics, /healthz and /readyz alone",
            self.listen
        );
        Ok(())
    }
}

/// Answers the admin plane.
pub struct Admin {
    metrics: Arc<Metrics>,
    store: Store,
    data: Arc<Data>,
    api: Api,
    guard: ArcSwap<Guard>,
    draining: AtomicBool,
}

impl Admin {
    /// Tells of `metrics`, of how full `store` is and of the upstreams behind `data`, and does to them what it is told.
    /// Reloads are ordered by `orders`, and `guard` says who may use it.
    pub fn new(metrics: Arc<Metrics>, store: Store, data: Arc<Data>, orders: Orders, guard: Guard) -> Self {
        Self {
            metrics,
            api: Api::new(store.clone(), Arc::clone(&data), orders),
            store,
            data,
            guard: ArcSwap::from_pointee(guard),
            draining: AtomicBool::new(false),
        }
    }

    /// The same once there is the token that commands need. Without one the API stays closed, and all else works.
    pub async fn with_token(self) -> Arc<Self> {
        self.guard.load_full().renew_token(&self.store).await;
        Arc::new(self)
    }

    /// This says who may use it, from the next request on.
    pub fn replace_guard(&self, guard: Guard) {
        self.guard.store(Arc::new(guard));
    }

    /// From now on berth is not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers a request that comes from `peer`.
    pub(crate) async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let guard = self.guard.load_full();
        if let Some(refused) = guard.refuse(peer, request.uri(), request.headers()) {
            return refused;
        }
        if !request.uri().path().starts_with(api::PREFIX) {
            return self.show(&request).await;
        }
        match guard.check(&self.store, peer, request.headers()).await {
            Ok(()) => self.api.answer(request).await,
            Err(refusal) => refusal.answer(),
        }
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

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    content(status, "text/plain; charset=utf-8", text.into())
}
