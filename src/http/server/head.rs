//! Heads of requests that mean different things to different programs.
//!
//! hyper refuses most of what is no HTTP. What it accepts, and another program in front of berth may read otherwise, is
//! refused here ([`fault`]): a client that makes two programs disagree about where a request ends, or what it asks for,
//! can slip one past the first of them. What hyper does not report is checked in `transport::line_endings`.

use std::net::SocketAddr;

use hyper::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Response, StatusCode, Version};
use tracing::{info, warn};

use super::body::Body;
use super::refusal::due_in_log;
use super::response::failure;
use crate::oci::error::ErrorCode;
use crate::telemetry::LogThrottle;
use crate::telemetry::metrics::Reason;

/// What is wrong with a head that hyper accepted. Every request is examined, in one pass: a single look-up costs as much.
pub(crate) fn fault(version: Version, headers: &HeaderMap) -> Option<&'static str> {
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

/// The bytes that `host[:port]` may have (RFC 3986, section 3.2), without the comma: two header lines have one between
/// them when a program has joined them.
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

/// Whether a value may be a host. It may be empty, for a target without a host.
fn is_host(host: &HeaderValue) -> bool {
    host.as_bytes().iter().all(|byte| OF_HOST[usize::from(*byte)])
}

/// The response to an ambiguous head. It closes the connection: it is not known where the next request begins.
pub(crate) fn refuse(fault: &str) -> Response<Body> {
    static REFUSED: LogThrottle = LogThrottle::new();
    if REFUSED.is_due() {
        warn!(fault, "a request is refused: programs disagree about what its head means");
    }
    let mut response = failure(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, fault);
    close(&mut response);
    response
}

/// Logs a request that hyper refused because it is no HTTP, or its head is too large. Nothing of it is shown: a secret
/// may be in any place.
pub(crate) fn log_unreadable(peer: SocketAddr, error: &hyper::Error) {
    if let Some(left_out) = due_in_log(Reason::Request) {
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

/// Makes a response the last of its connection.
pub(crate) fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
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
}
