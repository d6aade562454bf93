//! A manifest as it is served: its bytes, and the headers that describe them, made once.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Digest;

/// What tells a client which content it was given (distribution-spec, "Pulling manifests").
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest, whole and of the digest that it has here.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// The digest of `body`.
    pub digest: Digest,
    /// Exactly as upstream named it.
    pub media_type: String,
    /// Byte for byte what upstream sent.
    pub body: Bytes,
    /// Type, length, digest and `ETag`.
    pub headers: HeaderMap,
}

impl Document {
    /// `body` with what every answer says of it. A type that cannot stand in a header is left empty.
    pub fn new(digest: Digest, media_type: String, body: Bytes) -> Self {
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        // Room for what an answer adds to it.
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, text(&media_type));
        headers.insert(CONTENT_LENGTH, body.len().into());
        headers.insert(CONTENT_DIGEST, text(&digest.to_string()));
        headers.insert(ETAG, text(&format!("\"{digest}\"")));
        Self { digest, media_type, body, headers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn the_headers_say_what_the_body_is() {
        let body = Bytes::from_static(b"{}");
        let digest = Digest::of(Algorithm::Sha256, &body);
        let document = Document::new(digest, "a/b".to_owned(), body.clone());
        let header = |name: &HeaderName| document.headers[name].to_str().unwrap().to_owned();
        assert_eq!(header(&CONTENT_TYPE), "a/b");
        assert_eq!(header(&CONTENT_LENGTH), "2");
        assert_eq!(header(&CONTENT_DIGEST), digest.to_string());
        assert_eq!(header(&ETAG), format!("\"{digest}\""));
        let odd = Document::new(digest, "a\nb".to_owned(), body);
        assert_eq!(odd.headers[CONTENT_TYPE], "");
    }
}
