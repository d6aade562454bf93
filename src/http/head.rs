//! Heads of requests that mean different things to different programs.
//!
//! hyper refuses most of what is no HTTP. What it takes, and another program in front of berth may take otherwise, is
//! refused here ([`fault`]), because whoever makes two programs disagree about where a request ends, or what it asks for,
//! can slip one past the first of them. A line that ends without a carriage return is not shown by hyper: the answer to
//! such a request is the last of its connection ([`Lines`]), so that nothing can hide behind it. This is no second parser:
//! it looks for one byte.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::{info, warn};

use super::body::Body;
use super::refusal::is_to_be_told;
use super::response::failure;
use crate::oci::error::ErrorCode;
use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Reason;

/// What is wrong with a head that hyper took. Every request is examined, in one pass: a look-up costs as much.
pub(super) fn fault(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let (mut host, mut coding) = (None, None);
    for (name, value) in headers {
        if *name == HOST && host.replace(value).is_some() {
            return Some("expected one Host header");
        }
        if *name == TRANSFER_ENCODING && coding.replace(value).is_some() {
            return Some("expected one Transfer-Encoding header");
        }
    }
    match host {
        None if version == Version::HTTP_11 => return Some("expected a Host header"),
        Some(host) if !is_host(host) => return Some("expected a host, and perhaps a port, as Host"),
        Some(_) | None => {}
    }
    match coding {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Some("expected no Transfer-Encoding but chunked")
        }
        Some(_) | None => None,
    }
}

/// The bytes that `host[:port]` may have (RFC 3986, 3.2). A comma is allowed there, but is what two lines become when a
/// program joins them.
const OF_HOST: [bool; 256] = {
    let mut is_fine = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        is_fine[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut others: &[u8] = b"-._~%!$&'()*+;=:[]";
    while let [byte, rest @ ..] = others {
        is_fine[*byte as usize] = true;
        others = rest;
    }
    is_fine
};

/// Whether this may be a host, or is empty, for a target without one.
fn is_host(host: &HeaderValue) -> bool {
    host.as_bytes().iter().all(|byte| OF_HOST[usize::from(*byte)])
}

/// Refuses a request, and closes its connection: it is not known where the next one begins.
pub(super) fn refuse(fault: &str) -> Response<Body> {
    static REFUSED: LogThrottle = LogThrottle::new();
    if REFUSED.is_due() {
        warn!(fault, "a request is refused: programs disagree about what its head means");
    }
    let mut response = failure(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, fault);
    close(&mut response);
    response
}

/// Tells of a request that hyper refused because it is no HTTP, or its head is too large. Nothing of it is shown: a secret
/// may be in any place.
pub(super) fn tell_unreadable(peer: SocketAddr, error: &hyper::Error) {
    if let Some(left_out) = is_to_be_told(Reason::Request) {
        info!(
            target: "berth::refused",
            client = %peer.ip(),
            reason = Reason::Request.as_str(),
            cause = %error,
            left_out,
            "a request could not be read; others refused for the same reason are not told of for a minute",
        );
    }
}

/// Makes an answer the last of its connection.
pub(super) fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Whether a line came without a carriage return on a connection. In a body that is as it should be, and costs no more
/// than a new connection. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<AtomicBool>);

impl Lines {
    /// Whether one did.
    pub(super) fn are_bare(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks at bytes that were read behind `before`.
    fn look(&self, before: u8, bytes: &[u8]) {
        let Some(first) = bytes.first() else { return };
        let is_bare = |before: u8, byte: u8| u8::from(byte == b'\n') & u8::from(before != b'\r');
        // Without a branch, so that sixteen bytes are looked at together: a head has a line every thirty bytes.
        let pairs = bytes.iter().zip(&bytes[1..]);
        let found =
            pairs.fold(is_bare(before, *first), |found, (before, byte)| found | is_bare(*before, *byte));
        if found != 0 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// `stream`, with a look at the lines that come in.
pub(super) struct Watched<S> {
    stream: S,
    lines: Lines,
    /// The last byte that came.
    last: u8,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, lines: Lines) -> Self {
        Self { stream, lines, last: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        if let Some(last) = bytes.last() {
            self.lines.look(self.last, bytes);
            self.last = *last;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn heads_that_are_ambiguous_are_refused() {
        let check = |version, lines: &[(&'static str, &str)], is_fine: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(fault(version, &headers).is_none(), is_fine, "{version:?} {lines:?}");
        };
        let (old, now) = (Version::HTTP_10, Version::HTTP_11);
        check(now, &[], false);
        check(old, &[], true);
        for fine in
            ["a", "a:1", "127.0.0.1:5000", "[::1]:5000", "[::1]", "[fe80::1%25eth0]:1", "a_b.example", ""]
        {
            check(now, &[("host", fine)], true);
            check(now, &[("host", fine), ("host", fine)], false);
            check(old, &[("host", fine), ("host", "other")], false);
        }
        for bad in ["a b", "a,b", "a@b", "a/b", "http://a", "\u{e4}", "]:::[%00/../.."] {
            check(now, &[("host", bad)], false);
        }
        for (codings, is_fine) in [
            (&["chunked"][..], true),
            (&["Chunked"], true),
            (&["chunked, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["gzip, chunked"], false),
            (&["identity"], false),
            (&["chunked,"], false),
        ] {
            let lines: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
            check(now, &[&[("host", "a")], &*lines].concat(), is_fine);
        }
    }

    #[tokio::test]
    async fn a_bare_line_is_found_wherever_reads_cut_it() {
        for (text, expected) in [
            ("a\r\nb\r\n\r\n", false),
            ("a\r\nb\n\r\n", true),
            ("\r\n", false),
            ("a\n", true),
            ("\n", true),
            ("\n\n", true),
            ("a\r\r\n", false),
            ("no line", false),
        ] {
            for piece in 1..=text.len() {
                let lines = Lines::default();
                let mut watched = Watched::new(text.as_bytes(), lines.clone());
                let mut read = vec![0; piece];
                while watched.read(&mut read).await.unwrap() > 0 {}
                assert_eq!(lines.are_bare(), expected, "{text:?} in pieces of {piece}");
            }
        }
    }
}
