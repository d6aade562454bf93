//! The data plane: the configuration that it serves by now, and the listeners that offer it.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::cache::Cache;
use crate::http::registry::RegistryApi;
use crate::http::server::body::Body;
use crate::http::server::client_limits::ConnectionClient;
use crate::http::server::handler::RequestHandler;
use crate::http::server::head;
use crate::http::server::hosts::Reach;
use crate::http::server::transport::BodyTransport;

/// The data plane. Its configuration can be replaced while it serves.
pub struct DataPlane(ArcSwap<RegistryApi>);

impl DataPlane {
    /// A data plane that serves `serving`.
    pub fn new(serving: RegistryApi) -> Self {
        Self(ArcSwap::from_pointee(serving))
    }

    /// Serves `serving` from the next request on.
    pub fn replace(&self, serving: RegistryApi) {
        self.0.store(Arc::new(serving));
    }

    /// The configuration that it serves by now.
    pub fn serving(&self) -> Arc<RegistryApi> {
        self.0.load_full()
    }

    /// The cache that its content comes from.
    pub fn cache(&self) -> Cache {
        self.0.load().cache().clone()
    }

    /// The configuration for one request. It is not reference-counted: a count would be one memory cell that all cores write
    /// to.
    pub(crate) fn now(&self) -> Guard<Arc<RegistryApi>> {
        self.0.load()
    }
}

/// The data plane as one listener offers it.
pub(crate) struct DataListener<'a> {
    data: &'a DataPlane,
    /// The machines that can reach the listener.
    reach: Reach,
}

impl<'a> DataListener<'a> {
    /// The data plane at a listener that these machines can reach.
    pub(crate) fn new(data: &'a DataPlane, reach: Reach) -> Self {
        Self { data, reach }
    }
}

impl RequestHandler for DataListener<'_> {
    fn answers_while_stopping(&self) -> bool {
        true
    }

    fn connect(&self, peer: SocketAddr) -> ConnectionClient {
        ConnectionClient::new(peer.ip(), self.data.now().limits())
    }

    async fn handle(
        &self,
        peer: SocketAddr,
        client: &ConnectionClient,
        request: Request<Incoming>,
        transport: BodyTransport,
    ) -> Response<Body> {
        let serving = self.data.now();
        serving.answer(peer, self.reach, client, request, transport).await
    }

    fn refuse_head(&self, peer: SocketAddr, request: &Request<Incoming>, fault: &str) -> Response<Body> {
        self.data.now().refuse_head(peer, request, fault)
    }

    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        self.data.now().count_unreadable();
        head::log_unreadable(peer, error);
    }
}
