//! What is asked when a registry's own endpoints cannot answer, or do not have what is asked for.
//!
//! A fallback is an [`Upstream`] of its own: its login, certificates, headers, names, limits and circuits have nothing to
//! do with those of the registry, and neither is ever sent what is the other's. It is known by the host of its first
//! endpoint: that is what its logins are looked up by, and whose token servers it may name.
//!
//! What it answers counts as the registry's own word, also about a tag. Why no more doubt: digests are proven whoever
//! brings them, and whoever has a fallback would rather start what that says than nothing.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tokio::task::JoinSet;

use super::agent::UserAgent;
use super::config::{Config, CredentialsConfig, Endpoint, HostName, Timeouts};
use super::docker_config::DOCKER_HUB_HOSTS;
use super::headers::Headers;
use super::identity::{ClientCertificate, is_known};
use super::limit::LimitsConfig;
use super::proxy::Proxy;
use super::rename::Rewrite;
use super::section::{section, template};
use super::server::Server;
use super::{BuildError, Observer, Role, State, Upstream, resurface};
use crate::oci::{Registry, RepoName};

section! {
    /// `[[upstream.fallback]]`: what is asked in the place of a registry. The whole of a request has the registry's time.
    pub struct FallbackConfig {
        /// Where it is asked, in this order. All of them are one registry, and may be sent its login.
        pub endpoints: Vec<Endpoint>,
    }
    @registry
}

impl FallbackConfig {
    /// Whether it may know who berth is, so that what it answers is not for everybody.
    pub fn has_identity(&self) -> bool {
        is_known(self.credentials.as_ref(), self.client_certificate.as_ref(), &self.headers)
    }

    /// What it is asked with in the place of the registry of `config`.
    fn template(&self, config: &Config) -> Result<Config, BuildError> {
        let Some(first) = self.endpoints.first() else {
            return Err(BuildError::NoEndpoints { registry: config.registry.clone() });
        };
        let template = template!(self, registry_at(first)?, @registry);
        Ok(Config { offline: config.offline, ..template })
    }
}

/// The registry that an endpoint is, by its host and port.
fn registry_at(endpoint: &Endpoint) -> Result<Registry, BuildError> {
    let url = endpoint.as_url();
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    let text = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None if DOCKER_HUB_HOSTS.contains(&host) => Registry::DOCKER_HUB.to_owned(),
        None => host.to_owned(),
    };
    Registry::parse(&text).map_err(|_| BuildError::Host { endpoint: endpoint.clone() })
}

/// The fallbacks of `config`, in order. Nobody else's index is that of one of their endpoints.
///
/// # Errors
/// [`BuildError`] when the configuration names something that cannot be used.
pub(super) fn build_all(config: &Config, observer: &Observer) -> Result<Vec<Arc<Upstream>>, BuildError> {
    if config.never_leaves_parents() {
        return Ok(Vec::new());
    }
    let mut index = config.endpoints.len();
    let mut all = Vec::with_capacity(config.fallbacks.len());
    for fallback in &config.fallbacks {
        // What happens there is counted as the registry's.
        let (registry, inner) = (config.registry.clone(), Arc::clone(observer));
        let observer: Observer = Arc::new(move |_, event| inner(&registry, event));
        all.push(Upstream::build_as(Role::Fallback(index), &fallback.template(config)?, observer)?);
        index += fallback.endpoints.len();
    }
    Ok(all)
}

impl Upstream {
    /// What is asked after its own endpoints.
    pub(super) fn fallbacks(&self) -> &[Arc<Self>] {
        match &self.role {
            Role::Registry(_, fallbacks) => fallbacks,
            Role::Parent(_) | Role::Fallback(_) => &[],
        }
    }

    /// Whether another registry may answer in its place.
    pub fn has_fallbacks(&self) -> bool {
        !self.fallbacks().is_empty()
    }

    /// Whether it stands for a registry that has no answer.
    pub(super) fn is_fallback(&self) -> bool {
        matches!(self.role, Role::Fallback(_))
    }

    /// Whether none of them is told who asks for `name`. Any may bring the next part of it.
    pub(super) async fn are_fallbacks_public(&self, name: &RepoName) -> bool {
        for fallback in self.fallbacks() {
            if !fallback.is_own_public(name).await {
                return false;
            }
        }
        true
    }

    pub(super) fn are_fallbacks_down(&self) -> bool {
        self.fallbacks().iter().all(|fallback| fallback.state() == State::Down)
    }

    pub(super) fn is_fallback_short(&self) -> bool {
        self.fallbacks().iter().any(|fallback| fallback.servers.iter().any(Server::is_short))
    }

    pub(super) fn is_login_refused_by_fallback(&self) -> bool {
        self.fallbacks().iter().any(|fallback| fallback.is_login_refused())
    }

    /// Probes them, and renews their logins, for ever.
    pub(super) async fn tend_fallbacks(&self) {
        let mut tending = JoinSet::new();
        for fallback in self.fallbacks() {
            let fallback = Arc::clone(fallback);
            tending.spawn(async move { fallback.tend().await });
        }
        while let Some(ended) = tending.join_next().await {
            resurface(ended);
        }
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_is_known_by_its_host() {
        let check = |endpoint: &str, expected: &str| {
            let registry = registry_at(&Endpoint::parse(endpoint).unwrap()).unwrap();
            assert_eq!(registry.as_str(), expected, "{endpoint}");
        };
        check("https://Harbor.example.com/hub", "harbor.example.com");
        check("https://harbor.example.com:443", "harbor.example.com");
        check("http://harbor.example.com:443", "harbor.example.com:443");
        check("https://registry-1.docker.io", "docker.io");
        check("http://127.0.0.1:5000", "127.0.0.1:5000");
        check("http://[::1]:5000", "[::1]:5000");
    }

    #[test]
    fn every_endpoint_has_an_index_of_its_own() {
        let fallback = |endpoints: &[&str]| {
            let text = format!("endpoints = {endpoints:?}");
            toml::from_str::<FallbackConfig>(&text).unwrap()
        };
        let registry = Registry::parse("r.example").unwrap();
        let own = ["https://a", "https://b"].map(|url| Endpoint::parse(url).unwrap());
        let mut config = Config::new(registry.clone(), own.into());
        config.fallbacks = vec![fallback(&["https://c", "https://d"]), fallback(&["https://e"])];
        let upstream = Upstream::build(&config, Arc::new(|_, _| {})).unwrap();
        let all = std::iter::once(&upstream).chain(upstream.fallbacks());
        let indexes: Vec<_> = all.flat_map(|upstream| &upstream.servers).map(Server::index).collect();
        assert_eq!(indexes, [0, 1, 2, 3, 4]);
        config.fallbacks.push(fallback(&[]));
        assert!(Upstream::build(&config, Arc::new(|_, _| {})).is_err());
    }
}
