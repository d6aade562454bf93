//! The `[[upstream]]` section: one registry, where it is asked, with which login, and within which time.
//!
//! Values are parsed into their final types here and never checked again. Endpoints cannot carry a login:
//! configuration files are shown to people, and URLs end up in logs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

pub(super) use crate::credentials::CredentialsConfig;
pub(super) use crate::net::{EndpointUrl as Endpoint, HostName, Timeouts};

use super::fallback::FallbackConfig;
use super::identity::{ClientCertificate, is_known};
use super::parents::ParentsConfig;
use super::section::section;
use crate::net::{ClientConfig, Headers, Proxy, UserAgent};
use crate::oci::Registry;
use crate::oci::route::Repositories;
use crate::remote::limits::LimitsConfig;
use crate::remote::rewrite::Rewrite;

section! {
    /// One registry that berth may ask.
    pub struct Config {
        /// The name that images carry, and containerd's `ns=`.
        pub registry: Registry,
        /// Other leading path segments that mean this registry.
        #[serde(default)]
        pub aliases: Vec<String>,
        /// `Host` headers that mean this registry.
        #[serde(default)]
        pub hosts: Vec<String>,
        /// Where the registry is asked, in this order, until one has what is asked for.
        pub endpoints: Vec<Endpoint>,
        /// Whether the endpoints are mirrors of many registries, such as other berths: they are sent `ns=`, and asked as
        /// parents are.
        #[serde(default)]
        pub mirror: bool,
        /// Whether mirrors are believed when they say that content is for everybody. Those with TLS are in any case: they
        /// prove who they are.
        #[serde(default)]
        pub trusted: bool,
        /// What is asked, in this order, when the endpoints have no answer or not what is asked for.
        #[serde(default, rename = "fallback")]
        pub fallbacks: Vec<FallbackConfig>,
        /// Whether `[parents]` are asked before it.
        #[serde(default = "yes", rename = "parents")]
        pub has_parents: bool,
        /// The parents that are asked before it. The whole configuration is needed to know them.
        #[serde(skip)]
        pub parents: Option<ParentsConfig>,
        /// Whether it is never asked, whatever for: what is here is all there is.
        #[serde(default)]
        pub offline: bool,
        /// The number of connections over which one large blob is fetched at once.
        #[serde(default)]
        pub connections_per_blob: Connections,
        /// Which of its repositories may be pulled here.
        #[serde(default)]
        pub repositories: Repositories,
    }
    @registry
}

impl Config {
    /// An anonymous upstream with defaults everywhere else.
    pub fn new(registry: Registry, endpoints: Vec<Endpoint>) -> Self {
        Self {
            registry,
            aliases: Vec::new(),
            hosts: Vec::new(),
            endpoints,
            mirror: false,
            trusted: false,
            fallbacks: Vec::new(),
            has_parents: true,
            parents: None,
            offline: false,
            credentials: None,
            ca: Vec::new(),
            realm_hosts: Vec::new(),
            redirect_hosts: Vec::new(),
            plain_http_hosts: Vec::new(),
            connections_per_blob: Connections::default(),
            repositories: Repositories::default(),
            rewrite: Vec::new(),
            proxy: Proxy::default(),
            addresses: BTreeMap::new(),
            client_certificate: None,
            headers: Headers::default(),
            user_agent: None,
            limits: LimitsConfig::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Whether an upstream built from `other` would be the same. By what names it is meant here, and what of it may be
    /// pulled, does not matter for that.
    pub fn is_same_upstream(&self, other: &Self) -> bool {
        let (aliases, hosts) = (other.aliases.clone(), other.hosts.clone());
        let repositories = other.repositories.clone();
        Self { aliases, hosts, repositories, ..self.clone() } == *other
    }

    /// Whether its endpoints may know who berth is, so that what they answer is not for everybody.
    pub fn has_identity(&self) -> bool {
        let by_parents = self.parents.as_ref().is_some_and(ParentsConfig::has_identity);
        let by_others = by_parents || self.fallbacks.iter().any(FallbackConfig::has_identity);
        by_others || is_known(self.credentials.as_ref(), self.client_certificate.as_ref(), &self.headers)
    }

    /// The files of certificate authorities that are read when it is built: for its endpoints, its parents and fallbacks,
    /// and a Vault that has the login of any of them.
    pub fn authorities(&self) -> impl Iterator<Item = &PathBuf> {
        let (parents, fallbacks) = (self.parents.as_ref(), &self.fallbacks);
        let of_parents = parents.and_then(|parents| parents.credentials.as_ref());
        let of_fallbacks = fallbacks.iter().filter_map(|fallback| fallback.credentials.as_ref());
        let logins = self.credentials.iter().chain(of_parents).chain(of_fallbacks);
        let of_vaults = logins.filter_map(CredentialsConfig::vault).flat_map(|vault| &vault.ca);
        let of_others = parents.into_iter().flat_map(|parents| &parents.ca);
        let of_others = of_others.chain(fallbacks.iter().flat_map(|fallback| &fallback.ca));
        self.ca.iter().chain(of_others).chain(of_vaults)
    }

    /// Whether a login is configured, for its own endpoints or for a fallback.
    pub fn has_own_login(&self) -> bool {
        self.credentials.is_some() || self.fallbacks.iter().any(|fallback| fallback.credentials.is_some())
    }

    /// Whether a login is configured, for it, its fallbacks or its parents.
    pub fn has_login(&self) -> bool {
        self.has_own_login() || self.parents.as_ref().is_some_and(|parents| parents.credentials.is_some())
    }

    /// How its endpoints, and what they point to, are connected to.
    pub(super) fn client(&self) -> ClientConfig {
        ClientConfig {
            owner: self.registry.clone(),
            endpoints: self.endpoints.clone(),
            ca: self.ca.clone(),
            addresses: self.addresses.clone(),
            proxy: self.proxy.clone(),
            user_agent: self.user_agent.clone(),
            offline: self.offline,
            timeouts: self.timeouts,
        }
    }

    /// Whether there are no endpoints of its own.
    pub(super) fn asks_only_parents(&self) -> bool {
        self.mirror || self.never_leaves_parents()
    }

    /// Whether nobody but parents is ever asked.
    pub(super) fn never_leaves_parents(&self) -> bool {
        self.parents.as_ref().is_some_and(|parents| parents.only)
    }

    /// Whether they know with every request.
    pub(super) fn is_always_known(&self) -> bool {
        is_known(None, self.client_certificate.as_ref(), &self.headers)
    }
}

fn yes() -> bool {
    true
}

/// More than this gains nothing on any line, and looks like an attack.
const CONNECTIONS_MAX: usize = 16;

/// A number of connections for one blob. One is what every registry expects; more are for upstreams that limit
/// the speed of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections(usize);

impl Connections {
    /// The number, at least one.
    pub fn count(self) -> usize {
        self.0
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self(1)
    }
}

impl<'de> Deserialize<'de> for Connections {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = usize::deserialize(deserializer)?;
        if (1..=CONNECTIONS_MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(de::Error::custom(format!("`{count}`: expected 1 to {CONNECTIONS_MAX} connections")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{AzureConfig, EcrConfig, GoogleConfig, Region};
    use super::*;

    #[test]
    fn every_authority_counts_that_is_read_once() {
        let vault = "vault = { address = 'https://v', path = 'p', token_env = 'T', ca = ['/vault'] }";
        let text =
            format!("registry = 'a.example'\nendpoints = ['https://a']\nca = ['/own']\ncredentials.{vault}");
        let mut config: Config = toml::from_str(&text).unwrap();
        let parents = format!("endpoints = ['https://p']\nca = ['/parents']\ncredentials.{vault}");
        config.parents = Some(toml::from_str(&parents.replace("/vault", "/theirs")).unwrap());
        let paths: Vec<_> = config.authorities().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/own", "/parents", "/vault", "/theirs"]);
    }

    #[test]
    fn a_section_is_read_and_unknown_keys_are_errors() {
        let check = |text: &str, expected: Result<CredentialsConfig, &str>| {
            let text = format!("registry = 'h'\nendpoints = ['https://h']\n{text}");
            let config = toml::from_str::<Config>(&text);
            match (config, expected) {
                (Ok(config), Ok(credentials)) => assert_eq!(config.credentials, Some(credentials), "{text}"),
                (Err(error), Err(part)) => assert!(error.message().contains(part), "{text}: {error}"),
                (config, _) => panic!("{text}: {config:?}"),
            }
        };
        let username = || "u".to_owned();
        check("credentials = { file = '/c' }", Ok(CredentialsConfig::File("/c".into())));
        check(
            "credentials = { username = 'u', password_file = '/p' }",
            Ok(CredentialsConfig::PasswordFile { username: username(), file: "/p".into() }),
        );
        check(
            "credentials = { username = 'u', password_env = 'P' }",
            Ok(CredentialsConfig::PasswordEnv { username: username(), variable: "P".into() }),
        );
        let ecr = EcrConfig { region: Region::parse("eu-west-1"), ..EcrConfig::default() };
        check("credentials = { ecr = { region = 'eu-west-1' } }", Ok(CredentialsConfig::Ecr(ecr)));
        check("credentials.ecr_public = {}", Ok(CredentialsConfig::EcrPublic(EcrConfig::default())));
        check("credentials.google = {}", Ok(CredentialsConfig::Google(GoogleConfig::default())));
        let azure = AzureConfig { tenant: Some("t".into()), ..AzureConfig::default() };
        check("credentials.azure.tenant = 't'", Ok(CredentialsConfig::Azure(azure)));
        check("credentials.azure = { client_secret = 'x' }", Err("unknown field"));
        check("credentials.ecr = { region = 'a.b' }", Err("expected a region"));
        check("credentials.ecr = { key = 'x' }", Err("unknown field"));
        check("credentials = { ecr = {}, ecr_public = {} }", Err("one of"));
        check("credentials = { ecr = {}, file = '/c' }", Err("one of"));
        check("credentials = {}", Err("one of"));
        check("credentials = { username = 'u' }", Err("one of"));
        check("credentials = { file = '/c', username = 'u' }", Err("one of"));
        check("credentials = { password = 'p' }", Err("unknown field"));
        check("credentials = 'u:p'", Err("expected a table with file"));
        check("endpoint = 1", Err("unknown field"));
        check("timeouts = { connect_seconds = 0 }", Err("more than 0"));
        check("connections_per_blob = 0", Err("expected 1 to 16"));
        check("connections_per_blob = 17", Err("expected 1 to 16"));
        check("realm_hosts = ['a:1']", Err("without scheme and port"));
        check("addresses = { 'a:1' = ['10.0.0.1'] }", Err("without scheme and port"));
        check("addresses = { a = ['b'] }", Err("IP address"));
        for proxy in ["https://p:3128", "http://u:hunter2@p:3128", "socks5://p", "http://p/x", "p:3128"] {
            check(
                &format!("proxy = '{proxy}'"),
                Err("expected \"environment\", \"none\" or http://host[:port]"),
            );
        }
    }

    #[test]
    fn timeouts_are_in_seconds() {
        let text = "registry = 'h'\nendpoints = ['https://h']\ntimeouts = { connect_seconds = 0.5, idle_seconds = 3 }";
        let timeouts = toml::from_str::<Config>(text).unwrap().timeouts;
        assert_eq!((timeouts.connect, timeouts.idle), (Duration::from_millis(500), Duration::from_secs(3)));
        assert_eq!(timeouts.budget, Timeouts::default().budget);
    }
}
