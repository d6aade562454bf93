//! The way to a host: straight, or through the site's egress proxy.
//!
//! An `https` URL is reached by CONNECT, so that the proxy sees a host name and nothing else; for an `http` URL the
//! proxy is asked itself, with the whole URL, as all of them allow. Names that go through a proxy are resolved by it.
//! So what an upstream points to, and the proxy would dial, is judged by its name alone: addresses as ever, and
//! names without a domain are refused, since only this site could know them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Extensions, HeaderValue, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Deserializer, de};
use tokio::net::TcpStream;
use tower_service::Service;

use super::error::{AtProxy, Forbidden};
use super::guard::{Resolver, shorten};
use super::ip_class::Class;
use super::url::EndpointUrl;

/// Through which egress proxy an upstream is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// `"environment"`: what `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say, also in lower case. This
    /// machine itself is asked directly.
    #[default]
    Environment,
    /// `"none"`, whatever the environment says.
    None,
    /// This one: `http://host[:port]`.
    Through(EndpointUrl),
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "environment" => return Ok(Self::Environment),
            "none" => return Ok(Self::None),
            _ => {}
        }
        // The text is not repeated: it may hold a password.
        let proxy = EndpointUrl::parse(&text).ok();
        let is_plain =
            |proxy: &EndpointUrl| proxy.as_url().scheme() == "http" && proxy.as_url().path() == "/";
        proxy.filter(is_plain).map(Self::Through).ok_or_else(|| {
            de::Error::custom(
                "expected \"environment\", \"none\" or http://host[:port]; a proxy that wants a login is given by the \
                 environment variable HTTPS_PROXY",
            )
        })
    }
}

/// Which proxy is used for which URL.
pub(crate) struct Proxies {
    matcher: Option<Matcher>,
    /// What of `NO_PROXY` the matcher does not know.
    exempt: Vec<Exempt>,
    /// It is the environment that says so. Then this machine itself is never asked through a proxy.
    is_environment: bool,
}

impl Proxies {
    /// As `config` wants it; reads the environment now.
    pub(crate) fn new(config: &Proxy) -> Self {
        let matcher = match config {
            Proxy::Environment => Some(Matcher::from_env()),
            Proxy::None => None,
            Proxy::Through(url) => Some(Matcher::builder().all(url.to_string()).build()),
        };
        let is_environment = matches!(config, Proxy::Environment);
        let list = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
        let exempt = list.filter(|_| is_environment).map(|list| Exempt::read(&list)).unwrap_or_default();
        Self { matcher, exempt, is_environment }
    }

    /// What a request to a plain `http` URL must carry for its proxy.
    pub(crate) fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let is_plain = uri.scheme_str() == Some("http");
        is_plain.then(|| self.of(uri))??.basic_auth().cloned()
    }

    fn of(&self, uri: &Uri) -> Option<Intercept> {
        let matcher = self.matcher.as_ref()?;
        let is_direct = match class(uri) {
            // A metadata server of the cloud, which gives out logins, answers its own machines alone.
            Some(Class::LinkLocal | Class::Metadata) => true,
            Some(Class::Loopback) => self.is_environment,
            _ => false,
        };
        let is_direct = is_direct || self.exempt.iter().any(|exempt| exempt.is_for(uri));
        (!is_direct).then(|| matcher.intercept(uri))?
    }
}

/// An entry of `NO_PROXY`, as curl and Go have it: a host with all below it, a network or `*`, for one port or for every
/// one. `*.domain` is `.domain`. Entries stand between commas or white space.
struct Exempt {
    /// It is for what this matcher would ask no proxy for.
    hosts: Matcher,
    port: Option<u16>,
}

impl Exempt {
    fn read(list: &str) -> Vec<Self> {
        let words = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        words.map(Self::one).collect()
    }

    fn one(word: &str) -> Self {
        let host_and_port = word.rsplit_once(':').and_then(|(host, port)| {
            // Without brackets several colons are an address.
            let is_host = !host.contains(':') || host.ends_with(']');
            Some((host, port.parse().ok().filter(|_| is_host)?))
        });
        let (host, port) = host_and_port.map_or((word, None), |(host, port)| (host, Some(port)));
        let host = host.trim_matches(['[', ']']);
        let host = if host.starts_with("*.") { &host[1..] } else { host };
        Self { hosts: Matcher::builder().all(ANY_PROXY).no(host).build(), port }
    }

    fn is_for(&self, uri: &Uri) -> bool {
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let is_port = self.port.is_none_or(|port| port == uri.port_u16().unwrap_or(usual));
        is_port && self.hosts.intercept(uri).is_none()
    }
}

/// Stands for one that would be asked.
const ANY_PROXY: &str = "http://proxy.invalid";

/// What kind of address a URL names, if it names one and not a host.
fn class(uri: &Uri) -> Option<Class> {
    let host = uri.host()?.trim_matches(['[', ']']);
    if host.eq_ignore_ascii_case("localhost") {
        return Some(Class::Loopback);
    }
    host.parse().ok().map(Class::of)
}

/// Makes connections, by the way that each URL needs.
#[derive(Clone)]
pub(crate) struct Dialer {
    straight: HttpConnector<Resolver>,
    to_proxies: HttpConnector<Resolver>,
    proxies: Arc<Proxies>,
    /// What is dialled is what an upstream points to.
    is_guarded: bool,
}

impl Dialer {
    /// `straight` dials hosts, `to_proxies` the proxies themselves, which the configuration names.
    pub(crate) fn new(
        straight: HttpConnector<Resolver>,
        to_proxies: HttpConnector<Resolver>,
        proxies: Arc<Proxies>,
        is_guarded: bool,
    ) -> Self {
        Self { straight, to_proxies, proxies, is_guarded }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.of(&uri) else {
            let connecting = self.straight.call(uri);
            return Box::pin(async move { Ok(Stream { tcp: connecting.await?, is_proxied: false }) });
        };
        if self.is_guarded
            && let Err(refusal) = judge_name(uri.host().unwrap_or_default())
        {
            return Box::pin(async move { Err(io::Error::other(refusal).into()) });
        }
        if proxy.uri().scheme_str() != Some("http") {
            let reason = "the proxy's URL must begin with http://";
            return Box::pin(async move { Err(io::Error::new(io::ErrorKind::Unsupported, reason).into()) });
        }
        let name = proxy.uri().authority().map_or_else(String::new, ToString::to_string);
        let at_proxy = move |source: BoxError| AtProxy::new(name, source);
        if uri.scheme_str() == Some("http") {
            let connecting = self.to_proxies.call(proxy.uri().clone());
            return Box::pin(async move {
                let tcp = connecting.await.map_err(|error| at_proxy(error.into()))?;
                Ok(Stream { tcp, is_proxied: true })
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxies.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(uri);
        Box::pin(async move {
            let tcp = connecting.await.map_err(|error| at_proxy(error.into()))?;
            Ok(Stream { tcp, is_proxied: false })
        })
    }
}

/// Whether a name that an upstream points to may be given to a proxy, which will resolve it.
fn judge_name(host: &str) -> Result<(), Forbidden> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let class = if name == "localhost" || name.ends_with(".localhost") {
        Class::Loopback
    } else if !name.contains(['.', ':']) {
        Class::Private
    } else {
        return Ok(());
    };
    Err(Forbidden { host: shorten(host), class })
}

/// Whether a connection has brought an answer before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered(Arc<AtomicBool>);

impl Answered {
    /// Whether the connection has.
    pub(crate) fn of(connected: &Connected) -> bool {
        let mut extensions = Extensions::new();
        connected.get_extras(&mut extensions);
        extensions.get::<Self>().is_some_and(|answered| answered.0.load(Ordering::Relaxed))
    }

    /// Notes that the connection of this response has.
    pub(crate) fn note(response: &Response<Incoming>) {
        if let Some(answered) = response.extensions().get::<Self>() {
            answered.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A connection to a host, or to a proxy that is to be asked for whole URLs.
pub(crate) struct Stream {
    tcp: TokioIo<TcpStream>,
    is_proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.tcp.connected().proxy(self.is_proxied).extra(Answered::default())
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_only_a_site_knows_are_not_given_to_a_proxy() {
        let check = |host: &str, class: Option<Class>| {
            let refused = judge_name(host).err().map(|refusal| refusal.class);
            assert_eq!(refused, class, "{host}");
        };
        check("cdn.example.com", None);
        check("cdn.example.com.", None);
        check("[2606:4700::1111]", None);
        check("localhost", Some(Class::Loopback));
        check("x.LOCALHOST.", Some(Class::Loopback));
        check("metadata", Some(Class::Private));
    }

    #[test]
    fn what_is_near_is_asked_directly() {
        let proxies = |is_environment| Proxies {
            matcher: Some(Matcher::builder().all("http://proxy.example:3128").build()),
            exempt: Vec::new(),
            is_environment,
        };
        let check = |url: &str, by_environment: bool, by_configuration: bool| {
            let is_proxied = |proxies: Proxies| proxies.of(&url.parse().unwrap()).is_some();
            let found = (is_proxied(proxies(true)), is_proxied(proxies(false)));
            assert_eq!(found, (by_environment, by_configuration), "{url}");
        };
        check("https://h.example/", true, true);
        check("http://10.1.2.3/", true, true);
        check("http://localhost:5000/", false, true);
        check("https://[::1]:1/", false, true);
        check("http://169.254.169.254/latest", false, false);
        check("http://[fd00:ec2::23]/v1/credentials", false, false);
    }

    #[test]
    fn what_no_proxy_names_is_asked_directly() {
        let check = |list: &str, url: &str, expected: bool| {
            let matcher = Some(Matcher::builder().all("http://proxy.example:3128").build());
            let proxies = Proxies { matcher, exempt: Exempt::read(list), is_environment: true };
            assert_eq!(proxies.of(&url.parse().unwrap()).is_none(), expected, "{list} {url}");
        };
        check("h.example:5000", "http://h.example:5000/v2/", true);
        check("h.example:5000", "https://h.example:5000/v2/", true);
        check("h.example:5000", "http://h.example/v2/", false);
        check("h.example:5000", "http://x.h.example:5000/", true);
        check("h.example:443", "https://h.example/", true);
        check("h.example:443", "http://h.example/", false);
        check("h.example:80", "http://h.example/", true);
        check("*.h.example", "https://x.h.example/", true);
        check("*.h.example", "https://evilh.example/", false);
        check("*.h.example:8443", "https://x.h.example:8443/", true);
        check("*.h.example:8443", "https://x.h.example/", false);
        check("a.example, *.b.example b.test", "https://x.b.example/", true);
        check("a.example, *.b.example b.test", "https://b.test/", true);
        check("H.Example", "https://h.example:5000/", true);
        check(".h.example", "https://x.h.example/", true);
        check("10.0.0.0/8:5000", "http://10.1.2.3:5000/", true);
        check("10.0.0.0/8", "http://10.1.2.3:5000/", true);
        check("10.1.2.3:5000", "http://10.1.2.3:5001/", false);
        check("[fd00::1]:5000", "http://[fd00::1]:5000/", true);
        check("[fd00::1]:5000", "http://[fd00::1]/", false);
        check("fd00::1", "http://[fd00::1]:5000/", true);
        check("*", "https://h.example/", true);
        check("*:443", "http://h.example/", false);
        check("", "https://h.example/", false);
        check(",, ,", "https://h.example/", false);
        check("h.example:port", "https://h.example/", false);
        check("*.", "https://h.example/", false);
    }
}
