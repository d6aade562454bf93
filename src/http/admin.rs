//! The admin plane.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process works |
//! | `/readyz` | 200 while it takes requests; 503 once it was asked to stop. Never depends on an upstream |
//! | `/metrics` | Prometheus text |
//!
//! A second listener (`metrics_listen`) offers these three to a network that must not administer berth.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;

use super::body::Body;
use crate::store::Store;
use crate::telemetry::{Metrics, metrics};

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
    draining: AtomicBool,
}

impl Admin {
    /// Tells of `metrics` and of how full `store` is.
    pub fn new(metrics: Arc<Metrics>, store: Store) -> Self {
        Self { metrics, store, draining: AtomicBool::new(false) }
    }

    /// From now on berth is not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
            }
            "/readyz" => text(StatusCode::OK, "ready\n"),
            "/metrics" => {
                self.measure().await;
                answer(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.text().into())
            }
            _ => text(StatusCode::NOT_FOUND, "expected /healthz, /readyz or /metrics\n"),
        }
    }

    /// Brings the gauges of the disk up to date.
    async fn measure(&self) {
        let usage = self.store.usage().await;
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.storage_used.set(gauge(usage.used_bytes));
        self.metrics.storage_total.set(gauge(usage.total_bytes));
        self.metrics.index_ratio.set(self.store.index_ratio());
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type.parse().expect("a fixed value"));
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}
