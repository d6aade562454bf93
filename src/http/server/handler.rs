//! What answers the requests of a listener.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::{Request, Response};

use super::body::Body;
use super::client_limits::ConnectionClient;
use super::head;
use super::transport::BodyTransport;

/// A plane: it answers the requests of a listener. There are the data plane, the admin plane and the metrics plane, and
/// `app` chooses one for each listener. The calls are static: a call through a table would cost each hit.
pub(crate) trait RequestHandler: Send + Sync {
    /// Whether connections that are accepted while berth stops are answered, one request each.
    fn answers_while_stopping(&self) -> bool {
        false
    }

    /// Notes that a connection of `peer` begins.
    fn connect(&self, peer: SocketAddr) -> ConnectionClient {
        ConnectionClient::new(peer.ip(), None)
    }

    /// Answers a request of `peer`, on the connection of `client`, which takes bodies by `transport`.
    fn handle(
        &self,
        peer: SocketAddr,
        client: &ConnectionClient,
        request: Request<Incoming>,
        transport: BodyTransport,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Refuses a request whose head means different things to different programs.
    fn refuse_head(&self, _peer: SocketAddr, _request: &Request<Incoming>, fault: &str) -> Response<Body> {
        head::refuse(fault)
    }

    /// Logs and counts a request of `peer` that could not be read.
    fn note_unreadable(&self, peer: SocketAddr, error: &hyper::Error) {
        head::log_unreadable(peer, error);
    }
}
