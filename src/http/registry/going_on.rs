//! The blobs that are still served while berth stops.
//!
//! A client that fetches a blob in parts asks for each over whatever connection it has, and does not go elsewhere for the
//! rest when there is none. So while bodies go on, new connections are taken: a request for a blob that is being brought
//! or read is answered, and everything else is refused at once, with words that send a client to its next host. Each of
//! these connections closes after its answer.

use std::collections::HashSet;
use std::sync::Mutex;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Response};

use super::error_table::outage;
use super::request::Asked;
use crate::cache::Cache;
use crate::http::server::body::Body;
use crate::http::server::client_limits::Visit;
use crate::oci::{Digest, Route};
use crate::sync::lock;

/// Blobs that are remembered: more than are under way at once.
const GOING_ON_MAX: usize = 4096;

/// The blobs of which a part was asked for while berth stops. One that has come whole meanwhile has no transfer any more, and
/// perhaps no reader just now.
#[derive(Default)]
pub(super) struct GoingOn(Mutex<HashSet<Digest>>);

impl GoingOn {
    /// Whether a request goes on with a blob that is under way, for a connection that was taken while berth stops.
    pub(super) fn has_more(&self, cache: &Cache, visit: &Visit, asked: &Asked, route: &Route) -> bool {
        let (Route::Blob { repo, digest }, &Method::GET) = (route, asked.method()) else { return false };
        let goes_on = self.has(digest) || cache.is_going_on(repo, digest);
        if goes_on {
            self.note(digest);
            visit.go_on();
        }
        goes_on
    }

    fn note(&self, digest: &Digest) {
        let mut all = lock(&self.0);
        if all.len() < GOING_ON_MAX {
            all.insert(*digest);
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        lock(&self.0).contains(digest)
    }
}

/// What is refused because berth stops: the next that is started may have it.
pub(super) fn stopping() -> Response<Body> {
    let mut response = outage("this mirror is being stopped: try again, or ask the registry itself");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
