//! What is still answered while berth stops.
//!
//! A client that fetches a blob in parts asks for each over whatever connection it has, and does not go elsewhere for the
//! rest when there is none. So while bodies go on, new connections are taken: a request for a blob that is being brought
//! or read is answered, and everything else is refused at once, with words that send a client to its next host. Each of
//! these connections closes after its answer. It is over when no body goes on and none has for [`PAUSE_MAX`].

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Response};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::asked::Asked;
use super::body::Body;
use super::limits::Visit;
use super::registry::Serving;
use super::response::outage;
use super::{Door, accept};
use crate::oci::{Digest, Route};
use crate::sync::lock;

/// How long a client may take from one part of a blob to its request for the next.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Blobs that are remembered: more than are under way at once.
const GOING_ON_MAX: usize = 4096;

impl Door {
    /// Lets every connection finish what it is answering, and clients come back for more of it.
    pub(super) async fn drain(self, mut connections: JoinSet<bool>) {
        if !self.takes_more() {
            drop(self);
            while connections.join_next().await.is_some() {}
            return;
        }
        let mut over_at = Instant::now();
        loop {
            tokio::select! {
                Some(ended) = connections.join_next() => {
                    // One that was cancelled, or has failed, has answered nothing.
                    if ended.unwrap_or(false) {
                        over_at = Instant::now() + PAUSE_MAX;
                    }
                }
                accepted = accept(&self) => self.begin(accepted, &mut connections).await,
                () = sleep_until(over_at), if connections.is_empty() => return,
            }
        }
    }
}

impl Serving {
    /// Whether a request goes on with a blob that is under way, for a connection that was taken while berth stops.
    pub(super) fn goes_on(&self, visit: &Visit, asked: &Asked, route: &Route) -> bool {
        let (Route::Blob { repo, digest }, &Method::GET) = (route, &asked.method) else { return false };
        let goes_on = self.going_on.has(digest) || self.cache().is_going_on(repo, digest);
        if goes_on {
            self.going_on.note(digest);
            visit.go_on();
        }
        goes_on
    }
}

/// The blobs of which a part was asked for while berth stops. One that has come whole meanwhile has no transfer any more, and
/// perhaps no reader just now.
#[derive(Default)]
pub(super) struct GoingOn(Mutex<HashSet<Digest>>);

impl GoingOn {
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
