//! The admin plane.
//!
//! Open to every client that may connect and names a known host (`guard`):
//!
//! | path | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process works |
//! | `GET /readyz` | 200 while it takes requests, `ready` or `degraded: …` by the disk, then `offline: …` with the registries that are offline by configuration; 503 once it was asked to stop. Never depends on whether an upstream answers |
//! | `GET /metrics` | Prometheus text; names registries, no images |
//!
//! Everything below `/api/`, also paths that do not exist, changes something or names private images, and needs a token, from
//! loopback too (`token`); without one it is 401:
//!
//! | path | answer |
//! |---|---|
//! | `POST /api/v1/verify` | 202: a verification of every stored file has begun, or was running; a `Verification` |
//! | `POST /api/v1/pins` | pins an image, `{"ref": …, "platforms": […]}`; the pin and what of it is stored, a `Pinned` |
//! | `GET /api/v1/pins` | all pins |
//! | `POST /api/v1/unpin` | takes a pin back, `{"ref": …}`; whether there was one |
//! | `POST /api/v1/refresh` | asks upstream now what a tag means, `{"ref": …}`, or with `"all_tags": true` all known tags of its repository, some at a time, after `"after"`; `{"tags": [Refreshed…], "more": …}` |
//! | `POST /api/v1/reload` | reads the configuration file again, as SIGHUP does; a `Reloaded`, or 422 and why it was refused, 409 without a file |
//! | `GET /api/v1/verify` | how far the verification is, or what the last one has found; a `Verification` |
//!
//! A second listener (`metrics_listen`) offers the first three alone, to a network that must not administer berth,
//! whatever host a request names (`probes`). The API, which speaks JSON and answers failures with `{"error": "…"}`, is in
//! `api`; its [`paths`] and [`types`] are also those of the commands.
//!
//! The admin plane speaks plain HTTP. Beyond loopback it is refused without `allow` and `token_file`.

mod api;
mod config;
mod error;
mod guard;
pub mod paths;
mod probes;
mod reload;
mod token;
pub mod types;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::{Request, Response};

use super::registry::data_plane::DataPlane;
use super::server::body::Body;
use super::server::client_limits::ConnectionClient;
use super::server::handler::RequestHandler;
use super::server::transport::BodyTransport;
use crate::store::Store;
use crate::telemetry::Metrics;

pub use config::Config;
pub use guard::AdminGuard;
pub use reload::{NotReloaded, ReloadRequest, ReloadRequests, Reloaded, orders};
pub use token::{AdminToken, TokenFile, Unusable};

use api::Api;
use probes::Probes;

/// Answers the requests of the admin plane.
pub struct Admin {
    probes: Probes,
    store: Store,
    api: Api,
    guard: ArcSwap<AdminGuard>,
}

impl Admin {
    /// Shows `metrics`, the usage of `store` and the upstreams behind `data`, and carries out commands on them. Reloads are
    /// requested by `orders`, and `guard` says who may use it.
    pub fn new(
        metrics: Arc<Metrics>,
        store: Store,
        data: Arc<DataPlane>,
        orders: ReloadRequests,
        guard: AdminGuard,
    ) -> Self {
        Self {
            api: Api::new(store.clone(), Arc::clone(&data), orders),
            probes: Probes::new(metrics, store.clone(), data),
            store,
            guard: ArcSwap::from_pointee(guard),
        }
    }

    /// The same, once there is the token that commands need. Without a token the API stays closed, and all else works.
    pub async fn with_token(self) -> Arc<Self> {
        self.guard.load_full().renew_token(&self.store).await;
        Arc::new(self)
    }

    /// Lets `guard` say who may use it, from the next request on.
    pub fn replace_guard(&self, guard: AdminGuard) {
        self.guard.store(Arc::new(guard));
    }

    /// Notes that berth stops: from now on it is not ready.
    pub fn drain(&self) {
        self.probes.drain();
    }

    /// The part that needs no token: the metrics plane.
    pub(super) fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Answers a request of `peer`.
    async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let guard = self.guard.load_full();
        if let Some(refused) = guard.refuse(peer, request.uri(), request.headers()) {
            return refused;
        }
        if !request.uri().path().starts_with(paths::PREFIX) {
            return self.probes.answer(&request).await;
        }
        match guard.check(&self.store, peer, request.headers()).await {
            Ok(()) => self.api.answer(request).await,
            Err(error) => error.into_response(),
        }
    }
}

impl RequestHandler for Admin {
    async fn handle(
        &self,
        peer: SocketAddr,
        _client: &ConnectionClient,
        request: Request<Incoming>,
        _transport: BodyTransport,
    ) -> Response<Body> {
        self.answer(peer.ip(), request).await
    }
}
