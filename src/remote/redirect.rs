//! Where a redirect leads, and whether berth goes there. Pure.
//!
//! Registries redirect blobs to signed URLs of object stores, and registry.k8s.io manifests to other registries.
//! A target is used for this one request only and never remembered, because signatures expire.

use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use url::Url;

use crate::net::DialPolicy;
use crate::net::HostName;
use crate::net::guard::shorten;
use crate::net::url::is_same_origin;
use crate::remote::error::{Error, Refusal};

/// The most redirects of one request: from the registry to its front end, to an object store, to a region, and one more.
pub(crate) const HOPS_MAX: usize = 5;

/// Whether an answer of this status is a redirect.
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The hosts that a remote may redirect to, besides those that any may.
#[derive(Debug, Default)]
pub(crate) struct Redirects {
    /// Hosts that may be dialled at any address.
    hosts: Vec<HostName>,
    /// Hosts that may be asked for blobs without TLS.
    plain_http_hosts: Vec<HostName>,
}

impl Redirects {
    /// Redirects to `hosts` at any address, and to `plain_http_hosts` without TLS.
    pub(crate) fn new(hosts: Vec<HostName>, plain_http_hosts: Vec<HostName>) -> Self {
        Self { hosts, plain_http_hosts }
    }
}

/// The redirects of one request, from the endpoint on.
pub(crate) struct RedirectChain<'a> {
    endpoint: &'a Url,
    allowed: &'a Redirects,
    /// Whether the request is for a blob, whose bytes are verified wherever they come from.
    pub(crate) is_of_blob: bool,
    /// The URL to ask next.
    pub(crate) url: Url,
    /// How the host of that URL may be dialled.
    pub(crate) way: DialPolicy,
    /// Whether the chain has left the endpoint's API. From then on nothing is sent that is for the endpoint alone.
    pub(crate) elsewhere: bool,
    /// Whether the chain has left what looks like the API of a registry: what answers then is a store.
    pub(crate) is_store: bool,
}

impl<'a> RedirectChain<'a> {
    /// A chain that begins at `url` of `endpoint`.
    pub(crate) fn new(endpoint: &'a Url, url: Url, allowed: &'a Redirects) -> Self {
        Self {
            endpoint,
            allowed,
            is_of_blob: false,
            url,
            way: DialPolicy::Direct,
            elsewhere: false,
            is_store: false,
        }
    }

    /// Goes on to where the headers of a redirect point.
    ///
    /// # Errors
    /// When they point nowhere, or to where no rule lets berth go.
    pub(crate) fn follow(&mut self, headers: &HeaderMap) -> Result<(), Error> {
        let location = headers.get(LOCATION).ok_or(Error::Malformed("a redirect to nowhere"))?;
        let plain_http_hosts: &[HostName] =
            if self.is_of_blob { &self.allowed.plain_http_hosts } else { &[] };
        self.url = next(&self.url, location, plain_http_hosts)?;
        let is_api = is_api(&self.url, self.endpoint);
        self.elsewhere |= !is_api || !is_same_origin(&self.url, self.endpoint);
        self.is_store |= !is_api;
        self.way = way(&self.url, self.endpoint, &self.allowed.hosts);
        Ok(())
    }
}

/// The URL that `location` means in an answer from `current`; TLS is left for `plain_http_hosts` alone.
///
/// # Errors
/// A [`Refusal`] that names the rule.
pub(crate) fn next(
    current: &Url,
    location: &HeaderValue,
    plain_http_hosts: &[HostName],
) -> Result<Url, Refusal> {
    let mut target = current.join(&in_ascii(location)).map_err(|_| Refusal::RedirectTarget)?;
    target.set_fragment(None);
    let has_login = !target.username().is_empty() || target.password().is_some();
    let (false, Some(host)) = (has_login, target.host_str()) else { return Err(Refusal::RedirectTarget) };
    if let Some(upgraded) = upgrade(current, &target) {
        return Ok(upgraded);
    }
    let is_plain_taken = plain_http_hosts.iter().any(|name| name.is_host_of(&target));
    match (current.scheme(), target.scheme()) {
        ("https", "http") if !is_plain_taken => Err(Refusal::RedirectToPlainText { host: shorten(host) }),
        (_, "http" | "https") => Ok(target),
        _ => Err(Refusal::RedirectTarget),
    }
}

/// `target` with TLS, if it is named without by a server with TLS at the same authority: behind a load balancer that ends
/// TLS, many do not know of it.
pub(crate) fn upgrade(current: &Url, target: &Url) -> Option<Url> {
    let is_same_port =
        current.port() == target.port() || current.port_or_known_default() == target.port_or_known_default();
    let is_same = current.host() == target.host() && is_same_port;
    if (current.scheme(), target.scheme()) != ("https", "http") || !is_same {
        return None;
    }
    let mut upgraded = target.clone();
    upgraded.set_scheme("https").ok()?;
    Some(upgraded)
}

/// A `Location` in ASCII: some servers write other letters as they are, in UTF-8 or another encoding.
fn in_ascii(location: &HeaderValue) -> String {
    let mut text = String::with_capacity(location.len());
    for byte in location.as_bytes() {
        match byte.is_ascii() {
            true => text.push(char::from(*byte)),
            false => text += &format!("%{byte:02X}"),
        }
    }
    text
}

/// Whether `target` is in a registry's API: the endpoint's own, or that of another registry.
///
/// Stores are often on the registry's own host, behind the same ingress, and still have signatures that expire and
/// errors that say nothing about what was asked of the registry.
fn is_api(target: &Url, endpoint: &Url) -> bool {
    let base = if is_same_origin(target, endpoint) { endpoint.path().trim_end_matches('/') } else { "" };
    target.path().strip_prefix(base).is_some_and(|path| path == "/v2" || path.starts_with("/v2/"))
}

/// How `target` may be dialled by the upstream whose endpoint redirected.
pub(crate) fn way(target: &Url, endpoint: &Url, allowed: &[HostName]) -> DialPolicy {
    if is_same_origin(target, endpoint) || allowed.iter().any(|name| name.is_host_of(target)) {
        DialPolicy::Direct
    } else {
        DialPolicy::Guarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn targets_are_resolved_and_judged() {
        let check = |current: &str, location: &[u8], expected: Option<&str>| {
            let plain = [HostName::parse("plain.example").unwrap()];
            let next = next(&url(current), &HeaderValue::from_bytes(location).unwrap(), &plain);
            assert_eq!(next.ok().as_ref().map(Url::as_str), expected, "{current} {location:?}");
        };
        check("https://a/v2/x", b"https://b/y?sig=1#f", Some("https://b/y?sig=1"));
        check("https://a/v2/x", b"/y", Some("https://a/y"));
        check("https://a/v2/x", b"//b/y", Some("https://b/y"));
        check("http://a/x", b"https://b/y", Some("https://b/y"));
        check("http://a/x", b"http://b/y", Some("http://b/y"));
        // B9.
        check("https://a/x", b"http://a/y?z", Some("https://a/y?z"));
        check("https://a/x", b"http://A:80/y", Some("https://a/y"));
        check("https://a/x", b"http://a:443/y", Some("https://a/y"));
        check("https://a:8443/x", b"http://a:8443/y", Some("https://a:8443/y"));
        check("https://a:8443/x", b"http://a/y", None);
        check("https://a/x", b"http://a:8080/y", None);
        check("https://a/x", b"http://b/y", None);
        check("https://a/x", b"http://user@a/y", None);
        check("https://a/x", b"http://plain.example/y", Some("http://plain.example/y"));
        check("https://a/x", b"http://plain.example:9000/y", Some("http://plain.example:9000/y"));
        check("https://a/x", b"http://not.plain.example/y", None);
        check("https://a/x", b"http://user@plain.example/y", None);
        check("https://plain.example/x", b"http://plain.example/y", Some("https://plain.example/y"));
        check("https://a/x", b"https://user:pw@b/y", None);
        check("https://a/x", b"file:///etc/passwd", None);
        check("https://a/x", b"javascript:1", None);
        check("https://a/x", b"https://", None);
        check("https://a/x", "https://b/ümlaut?ä=ö".as_bytes(), Some("https://b/%C3%BCmlaut?%C3%A4=%C3%B6"));
        check("https://a/x", "/é".as_bytes(), Some("https://a/%C3%A9"));
        check("https://a/x", "https://bücher.example/y".as_bytes(), Some("https://xn--bcher-kva.example/y"));
        check("https://a/x", b"https://b/\xff", Some("https://b/%FF"));
        check("https://a/x", b"https://b\xff/y", None);
    }

    #[test]
    fn a_store_is_whatever_is_outside_of_an_api() {
        let check = |location: &[&str], elsewhere: bool, is_store: bool| {
            let endpoint = url("https://r.example/hub");
            let allowed = Redirects::default();
            let mut chain =
                RedirectChain::new(&endpoint, url("https://r.example/hub/v2/a/blobs/x"), &allowed);
            for location in location {
                let location = HeaderValue::from_str(location).unwrap();
                chain.follow(&HeaderMap::from_iter([(LOCATION, location)])).unwrap();
            }
            assert_eq!((chain.elsewhere, chain.is_store), (elsewhere, is_store), "{location:?}");
        };
        check(&["/hub/v2/b/blobs/x"], false, false);
        check(&["/v2/b/blobs/x"], true, true);
        check(&["/store/x?sig=1"], true, true);
        check(&["/hub/v2x/"], true, true);
        check(&["/hub/v2"], false, false);
        check(&["https://other.example/v2/a/blobs/x"], true, false);
        check(&["https://s3.example/docker/registry/v2/blobs/sha256/x/data"], true, true);
        check(&["/store/x", "/hub/v2/a/blobs/x"], true, true);
        check(&["https://other.example/v2/a/blobs/x", "https://r.example/hub/v2/a/blobs/x"], true, false);
    }

    #[test]
    fn only_configured_hosts_are_dialled_freely() {
        let allowed = [HostName::parse("minio.example.com").unwrap()];
        let check = |target: &str, expected: DialPolicy| {
            assert_eq!(way(&url(target), &url("https://r.example.com"), &allowed), expected, "{target}");
        };
        check("https://r.example.com/x", DialPolicy::Direct);
        check("https://r.example.com:8443/x", DialPolicy::Guarded);
        check("https://minio.example.com:9000/x", DialPolicy::Direct);
        check("https://x.minio.example.com/x", DialPolicy::Guarded);
        check("https://cdn.example.com/x", DialPolicy::Guarded);
    }

    #[test]
    fn fuzzed_redirects_lead_to_the_web_without_a_login() {
        let target = crate::fuzz::Target {
            name: "redirect",
            words: &[
                "\n",
                "https://",
                "http://",
                "HTTP:",
                "file:",
                "data:",
                "//",
                "/",
                "\\",
                "@",
                ":",
                "#",
                "?",
                "..",
                "h.example",
                "evil.com",
                "127.0.0.1",
                "2130706433",
                "[::1]",
                "user:pw",
                "\t",
                "%00",
                "%2f",
                "。",
                ":443",
                ":0",
                ":99999",
            ],
        };
        let endpoint = url("https://h.example");
        let allowed = [HostName::parse("cdn.example").unwrap()];
        target.holds(|input| {
            let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
            let current =
                String::from_utf8_lossy(&input[..line]).parse().unwrap_or_else(|_| endpoint.clone());
            let Ok(location) = HeaderValue::from_bytes(&input[(line + 1).min(input.len())..]) else { return };
            let Ok(target) = next(&current, &location, &[]) else { return };
            assert!(
                matches!(target.scheme(), "http" | "https")
                    && target.host_str().is_some_and(|host| !host.is_empty())
            );
            assert!(
                target.username().is_empty() && target.password().is_none() && target.fragment().is_none()
            );
            assert!(current.scheme() != "https" || target.scheme() == "https");
            let is_direct = way(&target, &endpoint, &allowed) == DialPolicy::Direct;
            let is_own = target.origin() == endpoint.origin() || allowed[0].is_host_of(&target);
            assert!(!is_direct || is_own, "{target}");
        });
    }
}
