//! The parts of a registry request that decide the response: conditional headers, ranges and host. And its body, which
//! is read and thrown away.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::Authority;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{HOST, IF_NONE_MATCH, IF_RANGE, LINK, RANGE};
use hyper::{HeaderMap, Method, Response, Uri, Version};
use tokio::time::timeout;
use url::form_urlencoded;

use crate::cache::{Blob, BlobReading, Way};
use crate::context::RequestContext;
use crate::http::server::body::Body;
use crate::http::server::byte_ranges::Framing;
use crate::http::server::response::value;
use crate::http::server::transport::BodyTransport;
use crate::http::server::transport::sendfile::SendfileGuard;
use crate::oci::ranges::{Part, Refusal};
use crate::oci::{Digest, Ranges};

/// Most bytes of a request's body that are read and thrown away.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// Time that this may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// A request to the registry API.
pub(super) struct RegistryRequest {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    /// The client, and the berths that the request has come through.
    context: RequestContext,
    /// How its connection takes the response.
    transport: BodyTransport,
}

impl RegistryRequest {
    /// A request with this head.
    pub(super) fn new(head: Parts, context: RequestContext, transport: BodyTransport) -> Self {
        let Parts { method, uri, version, headers, .. } = head;
        Self { method, uri, version, headers, context, transport }
    }

    /// Its method, which is GET or HEAD once it has a route.
    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// Its target, as it came.
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Its headers.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The client, and the berths that the request has come through.
    pub(super) fn context(&self) -> &RequestContext {
        &self.context
    }

    /// The host that the request is for.
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

    /// The ranges that are asked for, unless they are meant for other content (`If-Range`).
    ///
    /// # Errors
    /// When there are too many to be served.
    pub(super) fn ranges(&self, digest: &Digest) -> Result<Option<Ranges>, Refusal> {
        let is_other = self
            .headers
            .get(IF_RANGE)
            .is_some_and(|tag| tag.as_bytes() != format!("\"{digest}\"").as_bytes());
        if is_other {
            return Ok(None);
        }
        let mut lines = self.headers.get_all(RANGE).iter();
        match (lines.next(), lines.next()) {
            (Some(line), None) => str::from_utf8(line.as_bytes()).map_or(Ok(None), Ranges::parse),
            // There must be one header line, which may list several ranges.
            _ => Ok(None),
        }
    }

    /// Whether the client takes bodies in chunks. Only then can it tell the end of a body without a length from a broken
    /// connection.
    pub(super) fn is_chunked(&self) -> bool {
        self.version >= Version::HTTP_11
    }

    /// The body of a whole blob.
    pub(super) fn body_of_all(&self, blob: Blob) -> Body {
        let length = blob.total;
        self.body(blob, Part::whole(length.unwrap_or(u64::MAX)), length)
    }

    /// The body of a part of a blob.
    pub(super) fn body_of(&self, blob: Blob, part: Part) -> Body {
        self.body(blob, part, Some(part.span.len()))
    }

    fn body(&self, blob: Blob, part: Part, length: Option<u64>) -> Body {
        let (way, client) = (self.way(), self.context.client());
        let reading = blob.read(part, way, client);
        let enable_sendfile = self.enable_sendfile(&reading);
        Body::reading(reading, length, enable_sendfile)
    }

    /// The body of several parts of a blob, in `framing`.
    pub(super) fn body_of_parts(&self, blob: Blob, parts: Box<[Part]>, framing: Box<Framing>) -> Body {
        let length = framing.length(&parts);
        let reading = blob.read_parts(parts, self.way());
        let enable_sendfile = self.enable_sendfile(&reading);
        Body::parts(reading, framing, length, enable_sendfile)
    }

    /// How bytes of a file get to the connection.
    fn way(&self) -> Way {
        match &self.transport {
            BodyTransport::Plain(_) => Way::Mapped,
            BodyTransport::Tls(room) => Way::Copied(room.clone()),
        }
    }

    fn enable_sendfile(&self, reading: &BlobReading) -> Option<SendfileGuard> {
        match &self.transport {
            BodyTransport::Plain(outlet) => outlet.set(reading.mapped()),
            BodyTransport::Tls(_) => None,
        }
    }

    /// Links to the next page of a list of berth's own, which begins after `last`.
    pub(super) fn link_to_next(&self, response: &mut Response<Body>, n: usize, last: Option<String>) {
        let Some(last) = last else { return };
        let mut query = form_urlencoded::Serializer::new(String::new());
        let query = query.append_pair("n", &n.to_string()).append_pair("last", &last).finish();
        self.link_to(response, &query);
    }

    /// Links to the next page, which has this query. The link is a path of this host, so that it is right behind any proxy.
    /// It names the registry again, if the client has named it in the query.
    pub(super) fn link_to(&self, response: &mut Response<Body>, query: &str) {
        let mut own = form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes());
        let namespace = own.find(|(key, _)| key == "ns").map(|(_, namespace)| namespace);
        let mut target = format!("{}?", self.uri.path());
        if let Some(namespace) = namespace {
            target.push_str("ns=");
            target.extend(form_urlencoded::byte_serialize(namespace.as_bytes()));
            target.push('&');
        }
        response.headers_mut().insert(LINK, value(&format!("<{target}{query}>; rel=\"next\"")));
    }
}

/// The host that a request is for: that of an absolute URL, otherwise that of the `Host` header.
pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let header = || headers.get(HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(Authority::as_str).or_else(header)
}

/// Reads the body of a request that needs none. To close the connection with bytes of it unread would throw the response
/// away before the client has it. A body that is longer than any manifest, or takes longer, is the client's own risk.
pub(super) async fn discard(mut body: Incoming) {
    let read = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
            left = rest;
        }
    };
    // It does not matter whether the body came to its end: hyper closes the connection if it did not.
    let _ = timeout(DISCARD_TIME_MAX, read).await;
}
