//! What an answer depends on in a request: its conditions, its range, its host; and what is done with its body.

use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{HOST, IF_NONE_MATCH, IF_RANGE, LINK, RANGE};
use hyper::{HeaderMap, Method, Response, Uri};
use tokio::time::timeout;

use super::body::Body;
use super::outlet::Transport;
use super::response::value;
use crate::cache::{Blob, Way};
use crate::context::RequestContext;
use crate::oci::Digest;
use crate::oci::range::Range;

/// Bytes of a request's body that are read and thrown away.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The parts of a request that an answer depends on.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// Where it has come from.
    pub(super) context: RequestContext,
    /// How its connection takes the answer.
    pub(super) transport: Transport,
}

impl Asked {
    /// The host that was asked.
    pub(super) fn host(&self) -> Option<&str> {
        host_of(&self.uri, &self.headers)
    }

    /// Whether the client says that it already has this content (`If-None-Match`, quoted or bare).
    pub(super) fn has(&self, digest: &Digest) -> bool {
        if !self.headers.contains_key(IF_NONE_MATCH) {
            return false;
        }
        let digest = digest.to_string();
        let is_it = |tag: &str| {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || tag.trim_matches('"') == digest
        };
        let lines = self.headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(is_it)
    }

    /// The range that was asked, unless it was asked of other content (`If-Range`).
    pub(super) fn range(&self, digest: &Digest) -> Option<Range> {
        let is_other = self
            .headers
            .get(IF_RANGE)
            .is_some_and(|tag| tag.as_bytes() != format!("\"{digest}\"").as_bytes());
        if is_other {
            return None;
        }
        let mut lines = self.headers.get_all(RANGE).iter();
        match (lines.next(), lines.next()) {
            (Some(line), None) => Range::parse(line.to_str().ok()?),
            // Several lines are one list, and a list of ranges is answered with everything.
            _ => None,
        }
    }

    /// The bytes of a blob from `start` up to `end` as a body; `held` as for [`Blob::read`].
    pub(super) fn body_of(&self, blob: Blob, start: u64, end: u64, held: bool) -> Body {
        let client = self.context.client();
        match &self.transport {
            Transport::Plain(outlet) => {
                let reading = blob.read((start, end), held, Way::Mapped, client);
                let sending = outlet.set(reading.mapped());
                Body::reading(reading, end - start, sending)
            }
            Transport::Tls(room) => {
                let reading = blob.read((start, end), held, Way::Copied(room.clone()), client);
                Body::reading(reading, end - start, None)
            }
        }
    }

    /// Links to the rest of a list: a path of this host, so that it is right behind any proxy.
    pub(super) fn link_to_next(&self, response: &mut Response<Body>, n: usize, last: Option<String>) {
        let Some(last) = last else { return };
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (key, value) in url::form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes()) {
            if key != "n" && key != "last" {
                query.append_pair(&key, &value);
            }
        }
        let query = query.append_pair("n", &n.to_string()).append_pair("last", &last).finish();
        response.headers_mut().insert(LINK, value(&format!("<{}?{query}>; rel=\"next\"", self.uri.path())));
    }
}

/// The host that a request is for: that of a URL in full, else that of the `Host` header.
pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let header = || headers.get(HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(Authority::as_str).or_else(header)
}

/// Takes the body of a request that has no use for one. Closing the connection with bytes of it unread would
/// throw the answer away before the client has it; more than a manifest or for longer is the client's own risk.
pub(super) async fn discard(mut body: Incoming) {
    let read = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
            left = rest;
        }
    };
    // Whether it came to its end does not matter: hyper closes the connection if it did not.
    let _ = timeout(DISCARD_TIME_MAX, read).await;
}
