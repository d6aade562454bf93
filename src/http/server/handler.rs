//! What a listener answers with.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::{Request, Response};

use super::body::Body;
use super::client_limits::Visit;
use super::head;
use super::transport::Transport;

/// Answers the requests of a listener. The data plane, the admin plane and the metrics plane do; a listener's one is
/// chosen where berth is put together. The calls are static: one that went through a table would cost each hit.
pub(crate) trait Handler: Send + Sync {
    /// Whether connections that come while berth stops have an answer each.
    fn answers_late(&self) -> bool {
        false
    }

    /// A connection of `peer` begins.
    fn connect(&self, peer: SocketAddr) -> Visit {
        Visit::begin(peer.ip(), None)
    }

    /// Answers a request of `peer`, for a connection that takes bodies by `transport`.
    fn handle(
        &self,
        peer: SocketAddr,
        visit: &Visit,
        request: Request<Incoming>,
        transport: Transport,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Refuses a request whose head means different things to different programs.
    fn refuse_head(&self, _peer: SocketAddr, _request: &Request<Incoming>, fault: &str) -> Response<Body> {
        head::refuse(fault)
    }

    /// Notes that a request of `peer` could not be read.
    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        head::tell_unreadable(peer, error);
    }
}
