//! What is asked when a registry's own endpoints cannot answer, or do not have what is asked for.
//!
//! A fallback is a [`Remote`] of its own: its login, certificates, headers, names, limits and circuits have nothing to
//! do with those of the registry, and neither is ever sent what is the other's. It is known by the host of its first
//! endpoint: that is what its logins are looked up by, and whose token servers it may name.
//!
//! What it answers counts as the registry's own word, also about a tag. That is enough: digests are verified
//! wherever bytes come from, and an operator with a fallback would rather start what that says than nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::build;
use super::config::{Config, CredentialsConfig, Endpoint, HostName, Timeouts};
use super::identity::{ClientCertificate, is_known};
use super::section::{section, template};
use crate::credentials::docker_config::DOCKER_HUB_HOSTS;
use crate::net::headers::Headers;
use crate::net::proxy::Proxy;
use crate::net::user_agent::UserAgent;
use crate::oci::Registry;
use crate::remote::error::BuildError;
use crate::remote::event::Observer;
use crate::remote::handle::{Remote, Role};
use crate::remote::limits::LimitsConfig;
use crate::remote::rewrite::Rewrite;

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

/// The fallbacks of `config`, in order. The indexes of their endpoints are used for no other endpoint.
///
/// # Errors
/// [`BuildError`] when the configuration names something that cannot be used.
pub(super) fn build_all(config: &Config, observer: &Observer) -> Result<Vec<Arc<Remote>>, BuildError> {
    if config.never_leaves_parents() {
        return Ok(Vec::new());
    }
    let mut index = config.endpoints.len();
    let mut all = Vec::with_capacity(config.fallbacks.len());
    for fallback in &config.fallbacks {
        // What happens there is counted as the registry's.
        let (registry, inner) = (config.registry.clone(), Arc::clone(observer));
        let observer: Observer = Arc::new(move |_, event| inner(&registry, event));
        let template = fallback.template(config)?;
        let endpoints = (index, &template.endpoints[..]);
        all.push(build::remote(Role::Fallback, &template, endpoints, observer)?);
        index += fallback.endpoints.len();
    }
    Ok(all)
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
        let observer: Observer = Arc::new(|_, _| {});
        let all = build_all(&config, &observer).unwrap();
        let indexes: Vec<_> =
            all.iter().flat_map(|remote| remote.endpoints()).map(|endpoint| endpoint.index()).collect();
        assert_eq!(indexes, [2, 3, 4], "those of the registry itself are 0 and 1");
        config.fallbacks.push(fallback(&[]));
        assert!(build_all(&config, &observer).is_err());
    }
}
