//! HTTP at berth's own listeners: connections, and the planes that answer behind them.
//!
//! | sub-room | what lives there | uses |
//! |---|---|---|
//! | `server` | connections, TLS, limits, bodies, the access log: what is true of each plane | |
//! | `config` | the section `[http]` | `server` |
//! | `registry` | the registry API: the data plane | `server`, `config` |
//! | [`admin`] | the admin API, health and metrics: the admin plane and the metrics plane | `server`, `registry` |
//!
//! The room uses `access`, `cache`, and the rooms beneath them. `app` puts planes behind listeners ([`serve`]), and commands
//! use the types of the admin API. An admission webhook and a status page would be further planes beside `admin`.

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
pub use registry::RegistryApi;
pub use registry::data_plane::DataPlane;
pub use server::connection_limit::ConnectionLimit;
pub(crate) use server::connections::stopped;
pub use server::hosts::Reach;
pub(crate) use server::tls;
pub use server::tls::Tls;

use registry::data_plane::DataListener;
use server::body::Body;
use server::client_limits::ConnectionClient;
use server::connections;
use server::handler::RequestHandler;
use server::transport::BodyTransport;

/// The plane that answers at a listener.
#[derive(Clone)]
pub enum Plane {
    /// The registry API, at a listener that these machines can reach.
    DataPlane(Arc<DataPlane>, Reach),
    /// Health, metrics and administration.
    Admin(Arc<admin::Admin>),
    /// Health and metrics alone.
    Metrics(Arc<admin::Admin>),
}

/// Serves connections of `listener` until `stop` turns true; then lets each finish what it is answering.
///
/// Returns when every connection is closed. `tls`: handshakes come first. `seats` bounds connections.
pub async fn serve(
    listener: TcpListener,
    plane: Plane,
    tls: Option<Tls>,
    seats: Arc<ConnectionLimit>,
    stop: watch::Receiver<bool>,
) {
    connections::serve(listener, plane, tls, seats, stop).await;
}

impl RequestHandler for Plane {
    fn answers_while_stopping(&self) -> bool {
        match self {
            Self::DataPlane(data, reach) => DataListener::new(data, *reach).answers_while_stopping(),
            Self::Admin(admin) => admin.answers_while_stopping(),
            Self::Metrics(admin) => admin.probes().answers_while_stopping(),
        }
    }

    fn connect(&self, peer: SocketAddr) -> ConnectionClient {
        match self {
            Self::DataPlane(data, reach) => DataListener::new(data, *reach).connect(peer),
            Self::Admin(admin) => admin.connect(peer),
            Self::Metrics(admin) => admin.probes().connect(peer),
        }
    }

    async fn handle(
        &self,
        peer: SocketAddr,
        client: &ConnectionClient,
        request: Request<Incoming>,
        transport: BodyTransport,
    ) -> Response<Body> {
        match self {
            Self::DataPlane(data, reach) => {
                DataListener::new(data, *reach).handle(peer, client, request, transport).await
            }
            Self::Admin(admin) => admin.handle(peer, client, request, transport).await,
            Self::Metrics(admin) => admin.probes().handle(peer, client, request, transport).await,
        }
    }

    fn refuse_head(&self, peer: SocketAddr, request: &Request<Incoming>, fault: &str) -> Response<Body> {
        match self {
            Self::DataPlane(data, reach) => DataListener::new(data, *reach).refuse_head(peer, request, fault),
            Self::Admin(admin) => admin.refuse_head(peer, request, fault),
            Self::Metrics(admin) => admin.probes().refuse_head(peer, request, fault),
        }
    }

    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        match self {
            Self::DataPlane(data, reach) => DataListener::new(data, *reach).note_unreadable(peer, error),
            Self::Admin(admin) => admin.note_unreadable(peer, error),
            Self::Metrics(admin) => admin.probes().note_unreadable(peer, error),
        }
    }
}
