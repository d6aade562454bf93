//! The data plane: whatever configuration it serves by just now.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hyper::body::Incoming;
use hyper::{Request, Response};

use crate::cache::Cache;
use crate::http::registry::Serving;
use crate::http::server::body::Body;
use crate::http::server::client_limits::Visit;
use crate::http::server::handler::Handler;
use crate::http::server::head;
use crate::http::server::hosts::Reach;
use crate::http::server::transport::Transport;

/// The data plane.
pub struct Data(ArcSwap<Serving>);

impl Data {
    /// Serves this.
    pub fn new(serving: Serving) -> Self {
        Self(ArcSwap::from_pointee(serving))
    }

    /// Serves this from the next request on.
    pub fn replace(&self, serving: Serving) {
        self.0.store(Arc::new(serving));
    }

    /// What it serves now.
    pub fn serving(&self) -> Arc<Serving> {
        self.0.load_full()
    }

    /// Where its content comes from.
    pub fn cache(&self) -> Cache {
        self.0.load().cache().clone()
    }

    /// What it serves now, for one request: without a count of who has it, which would be one memory cell for all cores
    /// to write to.
    pub(crate) fn now(&self) -> Guard<Arc<Serving>> {
        self.0.load()
    }
}

/// The data plane, as a listener offers it.
pub(crate) struct DataListener<'a> {
    data: &'a Data,
    /// From where the listener can be reached.
    reach: Reach,
}

impl<'a> DataListener<'a> {
    pub(crate) fn new(data: &'a Data, reach: Reach) -> Self {
        Self { data, reach }
    }
}

impl Handler for DataListener<'_> {
    fn answers_late(&self) -> bool {
        true
    }

    fn connect(&self, peer: SocketAddr) -> Visit {
        Visit::begin(peer.ip(), self.data.now().limits())
    }

    async fn handle(
        &self,
        peer: SocketAddr,
        visit: &Visit,
        request: Request<Incoming>,
        transport: Transport,
    ) -> Response<Body> {
        let serving = self.data.now();
        serving.answer(peer, self.reach, visit, request, transport).await
    }

    fn refuse_head(&self, peer: SocketAddr, request: &Request<Incoming>, fault: &str) -> Response<Body> {
        self.data.now().refuse_head(peer, request, fault)
    }

    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        self.data.now().count_unreadable();
        head::tell_unreadable(peer, error);
    }
}
