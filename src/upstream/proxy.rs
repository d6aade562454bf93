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
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Deserializer, de};
use tokio::net::TcpStream;
use tower_service::Service;

use super::address::{Class, Forbidden, Resolver, shorten};
use super::config::Endpoint;
use super::error::Refusal;
use super::pool::Answered;

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
    Through(Endpoint),
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
        let proxy = Endpoint::parse(&text).ok();
        let is_plain = |proxy: &Endpoint| proxy.as_url().scheme() == "http" && proxy.as_url().path() == "/";
        proxy.filter(is_plain).map(Self::Through).ok_or_else(|| {
            de::Error::custom(
                "expected \"environment\", \"none\" or http://host[:port]; a proxy that wants a login is given by the \
                 environment variable HTTPS_PROXY",
            )
        })
    }
}

/// Which proxy is used for which URL.
pub(super) struct Proxies {
    matcher: Option<Matcher>,
    /// It is the environment that says so. Then this machine itself is never asked through a proxy.
    is_environment: bool,
}

impl Proxies {
    /// As `config` wants it; reads the environment now.
    pub(super) fn new(config: &Proxy) -> Self {
        let matcher = match config {
            Proxy::Environment => Some(Matcher::from_env()),
            Proxy::None => None,
            Proxy::Through(url) => Some(Matcher::builder().all(url.to_string()).build()),
        };
        Self { matcher, is_environment: matches!(config, Proxy::Environment) }
    }

    /// What a request to a plain `http` URL must carry for its proxy.
    pub(super) fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
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
        (!is_direct).then(|| matcher.intercept(uri))?
    }
}

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
pub(super) struct Dialer {
    straight: HttpConnector<Resolver>,
    to_proxies: HttpConnector<Resolver>,
    proxies: Arc<Proxies>,
    /// What is dialled is what an upstream points to.
    is_guarded: bool,
}

impl Dialer {
    /// `straight` dials hosts, `to_proxies` the proxies themselves, which the configuration names.
    pub(super) fn new(
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
            return Box::pin(async move { Err(io::Error::other(Forbidden(refusal)).into()) });
        }
        if proxy.uri().scheme_str() != Some("http") {
            let reason = "the proxy's URL must begin with http://";
            return Box::pin(async move { Err(io::Error::new(io::ErrorKind::Unsupported, reason).into()) });
        }
        if uri.scheme_str() == Some("http") {
            let connecting = self.to_proxies.call(proxy.uri().clone());
            return Box::pin(async move { Ok(Stream { tcp: connecting.await?, is_proxied: true }) });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxies.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(uri);
        Box::pin(async move { Ok(Stream { tcp: connecting.await?, is_proxied: false }) })
    }
}

/// Whether a name that an upstream points to may be given to a proxy, which will resolve it.
fn judge_name(host: &str) -> Result<(), Refusal> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let class = if name == "localhost" || name.ends_with(".localhost") {
        Class::Loopback
    } else if !name.contains(['.', ':']) {
        Class::Private
    } else {
        return Ok(());
    };
    Err(Refusal::Address { host: shorten(host), class })
}

/// A connection to a host, or to a proxy that is to be asked for whole URLs.
pub(super) struct Stream {
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
            let refused = judge_name(host).err().map(|refusal| match refusal {
                Refusal::Address { class, .. } => class,
                other => panic!("{host}: {other}"),
            });
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
}
