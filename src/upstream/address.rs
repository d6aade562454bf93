//! Which addresses an upstream may send berth to, and the resolver that holds to it.
//!
//! A redirect or a token realm is text from outside. Without a guard it could make berth, which stands inside a
//! site's network, ask the cloud's metadata server or some neighbour. The guard judges the very addresses
//! that are dialled, after the name is resolved, so a name that changes its mind between check and use gains
//! nothing. Networks where one of the upstream's own endpoints is are not foreign to it and are allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use url::{Host, Url};

use super::config::HostName;
use super::error::Refusal;
use super::lookups::lookups;
use super::redirect::is_same_origin;
use crate::oci::Registry;

/// Longest part of a foreign host name that is repeated in an error.
const HOST_CHARACTERS_MAX: usize = 253;

/// Addresses that answer to any neighbour with secrets, though their networks look harmless: the metadata
/// servers of Alibaba, Oracle, Azure and, by IPv6, AWS, with its agent for pods. The usual 169.254.169.254 is
/// link-local.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The Internet.
    Global,
    /// This machine.
    Loopback,
    /// A site's own network: RFC 1918, unique-local, benchmark nets.
    Private,
    /// Carrier-grade NAT, also used by overlay networks.
    Shared,
    /// This link; where metadata servers are.
    LinkLocal,
    /// A metadata server elsewhere.
    Metadata,
    /// Unspecified, multicast, reserved, or an IPv4 address in IPv6's clothes.
    Reserved,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "carrier-grade NAT",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata server's",
            Self::Reserved => "reserved",
        })
    }
}

impl Class {
    /// The class of `ip`.
    pub(super) fn of(ip: IpAddr) -> Self {
        if METADATA.contains(&ip) {
            return Self::Metadata;
        }
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [198, 18..=19, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Shared,
            [169, 254, ..] => Self::LinkLocal,
            [0 | 224..=255, ..] | [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Reserved,
            _ => Self::Global,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // NAT64: how an IPv6-only site reaches IPv4. What counts is the address behind it.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                Self::of(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            // Teredo, 6to4 and documentation lie inside the global range, but are not for dialling.
            [0x2001, 0 | 0xdb8, ..] | [0x2002, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Global,
            _ => Self::Reserved,
        }
    }

    /// Whether an upstream that is itself in such a network may point into it.
    fn may_be_home(self) -> bool {
        matches!(self, Self::Loopback | Self::Private | Self::Shared)
    }
}

/// Judges addresses on behalf of one upstream.
pub(super) struct Guard {
    endpoints: Vec<Url>,
    names: Arc<Names>,
}

/// Addresses by name: those of the configuration, else those that the system finds.
pub(super) struct Names {
    /// On whose behalf.
    registry: Registry,
    configured: BTreeMap<HostName, Vec<IpAddr>>,
}

impl Names {
    /// For an upstream of `registry`, with these addresses in the place of the system's.
    pub(super) fn new(registry: Registry, configured: BTreeMap<HostName, Vec<IpAddr>>) -> Arc<Self> {
        Arc::new(Self { registry, configured })
    }

    /// What the configuration says of a host.
    fn configured(&self, host: &str) -> Option<Vec<IpAddr>> {
        self.configured.iter().find(|(name, _)| name.is(host)).map(|(_, addresses)| addresses.clone())
    }

    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match self.configured(host) {
            Some(addresses) => Ok(addresses),
            None => lookups().find(&self.registry, host).await,
        }
    }
}

/// Why a guarded connection was not made; found again at the bottom of the client's error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Forbidden(pub(super) Refusal);

impl Guard {
    /// A guard that knows where the upstream itself is.
    pub(super) fn new(endpoints: Vec<Url>, names: Arc<Names>) -> Self {
        Self { endpoints, names }
    }

    /// Whether a URL is at one of the endpoints: scheme, host and port.
    pub(super) fn is_endpoint(&self, uri: &Uri) -> bool {
        let Ok(url) = Url::parse(&uri.to_string()) else { return false };
        self.endpoints.iter().any(|endpoint| is_same_origin(&url, endpoint))
    }

    /// Those of `addresses` that may be dialled for `host`.
    ///
    /// # Errors
    /// [`Refusal::Address`] when none is left.
    pub(super) async fn allowed(&self, host: &str, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refusal> {
        let mut allowed = Vec::new();
        let mut refused = None;
        for ip in addresses {
            let class = Class::of(ip);
            if class == Class::Global || (class.may_be_home() && self.is_home(class).await) {
                allowed.push(ip);
            } else {
                refused = Some(class);
            }
        }
        match refused {
            Some(class) if allowed.is_empty() => Err(Refusal::Address { host: shorten(host), class }),
            _ => Ok(allowed),
        }
    }

    /// Whether one of the endpoints is, with all its addresses, in a network of that class. The endpoints'
    /// names come from the configuration, so looking them up dials nothing that an upstream chose.
    async fn is_home(&self, class: Class) -> bool {
        for endpoint in &self.endpoints {
            let addresses = match endpoint.host() {
                Some(Host::Ipv4(ip)) => vec![IpAddr::V4(ip)],
                Some(Host::Ipv6(ip)) => vec![IpAddr::V6(ip)],
                Some(Host::Domain(name)) => self.names.lookup(name).await.unwrap_or_default(),
                None => Vec::new(),
            };
            if !addresses.is_empty() && addresses.into_iter().all(|ip| Class::of(ip) == class) {
                return true;
            }
        }
        false
    }
}

/// A foreign host, cut to what a name can be at most.
pub(super) fn shorten(host: &str) -> String {
    host.chars().take(HOST_CHARACTERS_MAX).collect()
}

/// Resolves names, through a guard if there is one.
#[derive(Clone)]
pub(super) struct Resolver {
    names: Arc<Names>,
    guard: Option<Arc<Guard>>,
}

impl Resolver {
    /// For what the configuration names.
    pub(super) fn open(names: Arc<Names>) -> Self {
        Self { names, guard: None }
    }

    /// For what an upstream names.
    pub(super) fn guarded(guard: Arc<Guard>) -> Self {
        Self { names: Arc::clone(&guard.names), guard: Some(guard) }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (names, guard) = (Arc::clone(&self.names), self.guard.clone());
        Box::pin(async move {
            let mut addresses = names.lookup(name.as_str()).await?;
            // Addresses of the configuration are its own choice.
            if let Some(guard) = guard
                && names.configured(name.as_str()).is_none()
            {
                let judged = guard.allowed(name.as_str(), addresses).await;
                addresses = judged.map_err(|refusal| io::Error::other(Forbidden(refusal)))?;
            }
            // The connector puts the port of the URL in the place of this one.
            let addresses: Vec<_> = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_class() {
        let check = |text: &str, class: Class| assert_eq!(Class::of(text.parse().unwrap()), class, "{text}");
        check("8.8.8.8", Class::Global);
        check("172.15.0.1", Class::Global);
        check("172.32.0.1", Class::Global);
        check("100.128.0.1", Class::Global);
        check("2606:4700::1111", Class::Global);
        check("127.0.0.1", Class::Loopback);
        check("127.255.255.254", Class::Loopback);
        check("::1", Class::Loopback);
        check("10.1.2.3", Class::Private);
        check("172.16.0.1", Class::Private);
        check("172.31.255.255", Class::Private);
        check("192.168.1.1", Class::Private);
        check("fd12::1", Class::Private);
        check("100.64.0.1", Class::Shared);
        check("169.254.169.254", Class::LinkLocal);
        check("fe80::1", Class::LinkLocal);
        check("fd00:ec2::254", Class::Metadata);
        check("fd00:ec2::23", Class::Metadata);
        check("100.100.100.200", Class::Metadata);
        check("168.63.129.16", Class::Metadata);
        for reserved in
            ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "192.0.2.1", "240.0.0.1"]
        {
            check(reserved, Class::Reserved);
        }
        for dressed_up in
            ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2001:0:1::", "fec0::1"]
        {
            check(dressed_up, Class::Reserved);
        }
        check("64:ff9b::7f00:1", Class::Loopback);
        check("64:ff9b::a9fe:a9fe", Class::LinkLocal);
        check("64:ff9b::808:808", Class::Global);
        check("64:ff9b:1::1", Class::Reserved);
    }

    fn names() -> Arc<Names> {
        Names::new(Registry::parse("r.example").unwrap(), BTreeMap::new())
    }

    #[tokio::test]
    async fn only_the_upstreams_own_network_is_open_to_it() {
        let check = async |endpoint: &str, target: &str, allowed: bool| {
            let guard = Guard::new(vec![Url::parse(endpoint).unwrap()], names());
            let judged = guard.allowed("h", vec![target.parse().unwrap()]).await;
            assert_eq!(judged.is_ok(), allowed, "{endpoint} {target}");
        };
        check("https://1.2.3.4", "8.8.8.8", true).await;
        check("https://1.2.3.4", "127.0.0.1", false).await;
        check("https://1.2.3.4", "10.0.0.1", false).await;
        check("http://127.0.0.1:5000", "127.0.0.2", true).await;
        check("http://localhost:5000", "127.0.0.1", true).await;
        check("http://127.0.0.1:5000", "10.0.0.1", false).await;
        check("http://10.0.0.1", "192.168.0.1", true).await;
        check("http://10.0.0.1", "127.0.0.1", false).await;
        check("http://10.0.0.1", "fd00:ec2::254", false).await;
        check("http://169.254.0.1", "169.254.169.254", false).await;
        check("http://100.64.0.1", "100.100.100.200", false).await;
        check("http://0.0.0.0", "0.0.0.0", false).await;
    }

    #[tokio::test]
    async fn forbidden_addresses_of_a_name_are_left_out() {
        let guard = Guard::new(vec![Url::parse("https://1.2.3.4").unwrap()], names());
        let [good, bad]: [IpAddr; 2] = [[8, 8, 8, 8].into(), [127, 0, 0, 1].into()];
        assert_eq!(guard.allowed("h", vec![bad, good]).await, Ok(vec![good]));
        let refusal = Refusal::Address { host: "h".into(), class: Class::Loopback };
        assert_eq!(guard.allowed("h", vec![bad]).await, Err(refusal));
    }
}
