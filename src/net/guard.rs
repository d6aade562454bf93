//! Which addresses an upstream may send berth to, and the resolver that holds to it.
//!
//! A redirect or a token realm is text from outside. Without a guard it could make berth, which stands inside a
//! site's network, ask the cloud's metadata server or some neighbour. The guard judges the very addresses
//! that are dialled, after the name is resolved, so a name that changes its mind between check and use gains
//! nothing. Networks where one of the upstream's own endpoints is are not foreign to it and are allowed.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use url::{Host, Url};

use super::error::Forbidden;
use super::ip_class::Class;
use super::lookups::lookups;
use super::url::{HostName, is_same_origin};
use crate::oci::Registry;

/// Longest part of a foreign host name that is repeated in an error.
const HOST_CHARACTERS_MAX: usize = 253;

/// Judges addresses on behalf of one upstream.
pub(crate) struct Guard {
    endpoints: Vec<Url>,
    names: Arc<Names>,
}

/// Addresses by name: those of the configuration, else those that the system finds.
pub(crate) struct Names {
    /// On whose behalf.
    registry: Registry,
    configured: BTreeMap<HostName, Vec<IpAddr>>,
}

impl Names {
    /// For an upstream of `registry`, with these addresses in the place of the system's.
    pub(crate) fn new(registry: Registry, configured: BTreeMap<HostName, Vec<IpAddr>>) -> Arc<Self> {
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

impl Guard {
    /// A guard that knows where the upstream itself is.
    pub(crate) fn new(endpoints: Vec<Url>, names: Arc<Names>) -> Self {
        Self { endpoints, names }
    }

    /// Whether a URL is at one of the endpoints: scheme, host and port.
    pub(crate) fn is_endpoint(&self, uri: &Uri) -> bool {
        let Ok(url) = Url::parse(&uri.to_string()) else { return false };
        self.endpoints.iter().any(|endpoint| is_same_origin(&url, endpoint))
    }

    /// Those of `addresses` that may be dialled for `host`.
    ///
    /// # Errors
    /// [`Forbidden`] when none is left.
    pub(crate) async fn allowed(&self, host: &str, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Forbidden> {
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
            Some(class) if allowed.is_empty() => Err(Forbidden { host: shorten(host), class }),
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
pub(crate) fn shorten(host: &str) -> String {
    host.chars().take(HOST_CHARACTERS_MAX).collect()
}

/// Resolves names, through a guard if there is one.
#[derive(Clone)]
pub(crate) struct Resolver {
    names: Arc<Names>,
    guard: Option<Arc<Guard>>,
}

impl Resolver {
    /// For what the configuration names.
    pub(crate) fn open(names: Arc<Names>) -> Self {
        Self { names, guard: None }
    }

    /// For what an upstream names.
    pub(crate) fn guarded(guard: Arc<Guard>) -> Self {
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
                addresses = judged.map_err(io::Error::other)?;
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
        let refusal = Forbidden { host: "h".into(), class: Class::Loopback };
        assert_eq!(guard.allowed("h", vec![bad]).await, Err(refusal));
    }
}
