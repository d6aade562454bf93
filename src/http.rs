//! HTTP at berth's own doors: listeners, connections, and the planes that answer behind them.
//!
//! What is answered is decided in `registry` (data plane) and [`admin`] (admin plane and metrics plane).

pub mod admin;
mod config;
pub(crate) mod registry;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use config::{Config, check};
pub use registry::Serving;
pub use registry::data_plane::Data;
pub use server::connection_limit::Seats;
pub(crate) use server::connections::turned_true;
pub use server::hosts::Reach;
pub(crate) use server::tls;
pub use server::tls::Tls;

use registry::data_plane::DataListener;
use server::body::Body;
use server::client_limits::Visit;
use server::connections;
use server::handler::Handler;
use server::transport::Transport;

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

/// Answers connections of `listener` until `stop` turns true; then lets each finish what it is answering.
///
/// Returns when every connection is closed. `tls`: handshakes come first. `seats` bounds connections.
pub async fn serve(
    listener: TcpListener,
    plane: Plane,
    tls: Option<Tls>,
    seats: Arc<Seats>,
    stop: watch::Receiver<bool>,
) {
    connections::serve(listener, plane, tls, seats, stop).await;
}

impl Handler for Plane {
    fn answers_late(&self) -> bool {
        match self {
            Self::Data(data, reach) => DataListener::new(data, *reach).answers_late(),
            Self::Admin(admin) => admin.answers_late(),
            Self::Metrics(admin) => admin.probes().answers_late(),
        }
    }

    fn connect(&self, peer: SocketAddr) -> Visit {
        match self {
            Self::Data(data, reach) => DataListener::new(data, *reach).connect(peer),
            Self::Admin(admin) => admin.connect(peer),
            Self::Metrics(admin) => admin.probes().connect(peer),
        }
    }

    async fn handle(
        &self,
        peer: SocketAddr,
        visit: &Visit,
        request: Request<Incoming>,
        transport: Transport,
    ) -> Response<Body> {
        match self {
            Self::Data(data, reach) => {
                DataListener::new(data, *reach).handle(peer, visit, request, transport).await
            }
            Self::Admin(admin) => admin.handle(peer, visit, request, transport).await,
            Self::Metrics(admin) => admin.probes().handle(peer, visit, request, transport).await,
        }
    }

    fn refuse_head(&self, peer: SocketAddr, request: &Request<Incoming>, fault: &str) -> Response<Body> {
        match self {
            Self::Data(data, reach) => DataListener::new(data, *reach).refuse_head(peer, request, fault),
            Self::Admin(admin) => admin.refuse_head(peer, request, fault),
            Self::Metrics(admin) => admin.probes().refuse_head(peer, request, fault),
        }
    }

    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        match self {
            Self::Data(data, reach) => DataListener::new(data, *reach).note_unreadable(peer, error),
            Self::Admin(admin) => admin.note_unreadable(peer, error),
            Self::Metrics(admin) => admin.probes().note_unreadable(peer, error),
        }
    }
}
