//! The `Host` that a listener answers to.
//!
//! A web page can make its visitor's browser send requests to this machine, also from behind a firewall, and read the
//! answers, once it lets a name of its own stand for 127.0.0.1 (DNS rebinding). Its requests then carry that name as
//! their `Host`. So a listener that only this machine can reach, and the admin plane, answer only to hosts that no
//! stranger can have: an address, `localhost`, and names that are configured. Anything else is 421 (Misdirected Request).
//!
//! The spellings that tools send are accepted: a port, a zone of an IPv6 address, a dot at the end, upper case. So is a
//! request of HTTP/1.0 without `Host`, which load balancers send as a health check: no browser does. An absolute URL
//! counts, and a `Host` beside it as well. `X-Forwarded-Host` and the like are the client's own words, and do not count.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::uri::Authority;
use hyper::header::HOST;
use hyper::{HeaderMap, Uri};

use crate::upstream::HostName;

/// Name of this machine on every machine.
const LOCALHOST: &str = "localhost";

/// The machines that can reach a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine alone.
    Loopback,
    /// Other machines, too.
    Network,
}

impl Reach {
    /// The reach of a listener on `address`.
    pub fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// Whether all hosts that a request names are addresses, `localhost`, among `names`, or known to `is_other`.
pub(crate) fn are_known(
    uri: &Uri,
    headers: &HeaderMap,
    names: &[HostName],
    is_other: impl Fn(&str) -> bool,
) -> bool {
    let is_known = |host: &str| is_ours(host, names) || is_other(host);
    uri.authority().map(Authority::as_str).is_none_or(is_known)
        && headers.get_all(HOST).iter().all(|host| host.to_str().is_ok_and(is_known))
}

/// Whether `host[:port]` is an address, `localhost`, or one of `names`.
fn is_ours(host: &str, names: &[HostName]) -> bool {
    let Some(host) = without_port(host) else { return false };
    // A complete name ends with a dot.
    let host = host.strip_suffix('.').unwrap_or(host);
    is_address(host) || host.eq_ignore_ascii_case(LOCALHOST) || names.iter().any(|name| name.is(host))
}

/// The host of `host[:port]`. An IPv6 address keeps its brackets.
fn without_port(text: &str) -> Option<&str> {
    let end = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.bytes().position(|byte| byte == b':').unwrap_or(text.len())
    };
    let (host, port) = text.split_at(end);
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)
}

/// Whether a host is an address. One of IPv6 is in brackets, and may have a zone, which only this machine knows.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.split('%').next().is_some_and(|it| it.parse::<Ipv6Addr>().is_ok()),
        None => host.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(hosts: &[&str]) -> HeaderMap {
        hosts.iter().map(|host| (HOST, host.parse().unwrap())).collect()
    }

    fn names() -> Vec<HostName> {
        vec![HostName::parse("Mirror.example").unwrap()]
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_known_however_they_are_written() {
        let known = [
            "127.0.0.1",
            "127.0.0.1:5000",
            "127.0.0.1:",
            "10.1.2.3:5000",
            "[::1]",
            "[::1]:5000",
            "[::ffff:127.0.0.1]:5000",
            "[fe80::1%25eth0]:5000",
            "[fe80::1%eth0]",
            "localhost",
            "LocalHost:5000",
            "localhost.",
            "localhost.:5000",
            "mirror.example",
            "MIRROR.example.:5000",
        ];
        for host in known {
            assert!(are_known(&Uri::from_static("/v2/"), &headers(&[host]), &names(), |_| false), "{host}");
        }
        assert!(are_known(&Uri::from_static("/v2/"), &HeaderMap::new(), &[], |_| false), "HTTP/1.0");
    }

    #[test]
    fn what_a_stranger_can_have_is_not_known() {
        let unknown = [
            "",
            ":5000",
            "evil.example",
            "evil.example:5000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil.localhost",
            "localhost..",
            "xlocalhost",
            "evil@127.0.0.1",
            "127.0.0.1:5000:80",
            "127.0.0.1:port",
            "127.0.0.1, evil.example",
            "127.0.0.1 ",
            "2130706433",
            "127.1",
            "0x7f.1",
            "::1",
            "[::1",
            "[::1]x",
            "[evil.example]",
            "[]",
            "[::1%",
            "mirror.example.evil.example",
            "sub.mirror.example",
        ];
        for host in unknown {
            let known = is_ours(host, &names());
            assert!(!known, "{host}");
        }
        let bytes: HeaderMap = [(HOST, b"\xe4\xf6"[..].try_into().unwrap())].into_iter().collect();
        assert!(!are_known(&Uri::from_static("/"), &bytes, &[], |_| false));
    }

    #[test]
    fn of_several_hosts_all_must_be_known() {
        let check = |uri: &str, hosts: &[&str], expected: bool| {
            let known = are_known(&uri.parse().unwrap(), &headers(hosts), &[], |host| host == "docker.io");
            assert_eq!(known, expected, "{uri} {hosts:?}");
        };
        check("http://127.0.0.1:5000/v2/", &["127.0.0.1:5000"], true);
        check("http://evil.example/v2/", &["127.0.0.1:5000"], false);
        check("http://127.0.0.1:5000/v2/", &["evil.example"], false);
        check("http://docker.io/v2/", &["docker.io"], true);
        check("http://user@127.0.0.1/v2/", &[], false);
        check("/v2/", &["127.0.0.1", "evil.example"], false);
        check("/v2/", &["evil.example", "127.0.0.1"], false);
    }
}
