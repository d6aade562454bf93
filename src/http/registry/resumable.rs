//! The blobs that are still served while berth stops.
//!
//! A client that fetches a blob in parts asks for each over any connection that it has, and does not go elsewhere for the
//! rest when there is none. So while bodies are in progress, new connections are accepted: a request for a blob that is
//! being fetched or read is answered, and everything else is refused at once, with a text that sends a client to its next
//! host. Each of these connections closes after its response.

use std::collections::HashSet;
use std::sync::Mutex;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Response};

use super::error_table::outage;
use super::request::RegistryRequest;
use crate::cache::Cache;
use crate::http::server::body::Body;
use crate::http::server::client_limits::ConnectionClient;
use crate::oci::{Digest, Route};
use crate::sync::lock;

/// Most blobs that are remembered: more than are in progress at once.
const BLOBS_MAX: usize = 4096;

/// The blobs of which a part was asked for while berth stops. One that has been stored meanwhile has no transfer any more,
/// and perhaps no reader just now.
#[derive(Default)]
pub(super) struct ResumableBlobs(Mutex<HashSet<Digest>>);

impl ResumableBlobs {
    /// Whether a request resumes a blob that is in progress, on a connection that was accepted while berth stops.
    pub(super) fn is_resumed(
        &self,
        cache: &Cache,
        client: &ConnectionClient,
        request: &RegistryRequest,
        route: &Route,
    ) -> bool {
        let (Route::Blob { repo, digest }, &Method::GET) = (route, request.method()) else { return false };
        let is_resumed = self.has(digest) || cache.is_going_on(repo, digest);
        if is_resumed {
            self.note(digest);
            client.note_resumed();
        }
        is_resumed
    }

    fn note(&self, digest: &Digest) {
        let mut all = lock(&self.0);
        if all.len() < BLOBS_MAX {
            all.insert(*digest);
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        lock(&self.0).contains(digest)
    }
}

/// The refusal of a request because berth stops. The berth that is started next may answer it.
pub(super) fn stopping() -> Response<Body> {
    let mut response = outage("this mirror is being stopped: try again, or ask the registry itself");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
