//! The `[[upstream]]` section: one registry, where it is asked, with which login, and within which time.
//!
//! Values are parsed into their final types here and never checked again. Endpoints cannot carry a login:
//! configuration files are shown to people, and URLs end up in logs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use url::{Host, Url};

use super::agent::UserAgent;
use super::cloud::{AzureConfig, EcrConfig, GoogleConfig};
use super::fallback::FallbackConfig;
use super::headers::Headers;
use super::identity::{ClientCertificate, is_known};
use super::parents::ParentsConfig;
use super::proxy::Proxy;
use super::remote::limits::LimitsConfig;
use super::remote::rewrite::Rewrite;
use super::section::section;
use super::vault::VaultConfig;
use crate::oci::Registry;
use crate::oci::route::Repositories;
use crate::units;

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

/// A dead host on the same continent is told from a slow one well within this.
const CONNECT: Duration = Duration::from_secs(5);
/// Docker Hub's slowest honest answers take three to four seconds.
const HEADER: Duration = Duration::from_secs(8);
/// A body that says nothing for so long will not go on; the flight resumes elsewhere.
const IDLE: Duration = Duration::from_secs(10);
/// Two of these fit into the budget with the request that they are for.
const TOKEN: Duration = Duration::from_secs(5);
/// The promise is an answer within 20 s; this leaves time to find out and to send it.
const BUDGET: Duration = Duration::from_secs(18);
/// No setting can be longer than this.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a TCP connection.
    #[serde(rename = "connect_seconds", deserialize_with = "seconds")]
    pub connect: Duration,
    /// For the head of an answer, the connection included.
    #[serde(rename = "header_seconds", deserialize_with = "seconds")]
    pub header: Duration,
    /// Between two pieces of a body.
    #[serde(rename = "idle_seconds", deserialize_with = "seconds")]
    pub idle: Duration,
    /// For a token, from the connection to the last byte.
    #[serde(rename = "token_seconds", deserialize_with = "seconds")]
    pub token: Duration,
    /// For a request up to the head of its answer, logins, redirects and retries included. What is small, such
    /// as a manifest, must have come whole within it.
    #[serde(rename = "budget_seconds", deserialize_with = "seconds")]
    pub budget: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: CONNECT, header: HEADER, idle: IDLE, token: TOKEN, budget: BUDGET }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = units::duration(deserializer)?;
    if !time.is_zero() && time <= TIMEOUT_MAX {
        Ok(time)
    } else {
        Err(de::Error::custom(format!("expected more than 0 and at most {}", units::show(TIMEOUT_MAX))))
    }
}

/// Where a registry's API is: `http[s]://host[:port][/prefix]`, to which `/v2/…` is added.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Why a text is not an endpoint. It is not repeated here, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Not an http or https URL.
    #[error("not an endpoint: expected http[s]://host[:port][/prefix]")]
    Url,
    /// `user:password@`.
    #[error("an endpoint cannot contain a login: use `credentials`")]
    Login,
    /// `?…`, `#…`.
    #[error("an endpoint cannot have a query or a fragment")]
    Query,
    /// Ends with `/v2`.
    #[error("an endpoint is given without its `/v2`")]
    Version,
}

impl Endpoint {
    /// Reads an endpoint.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] says what is wrong without repeating the text.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let mut url = Url::parse(text).map_err(|_| InvalidEndpoint::Url)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidEndpoint::Url);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::Login);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidEndpoint::Query);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if path.ends_with("/v2") {
            return Err(InvalidEndpoint::Version);
        }
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The URL itself.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// The URL of `rest` below `/v2/`.
    pub(super) fn at(&self, rest: &str, query: Option<&str>) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/v2/{rest}", self.0.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A host without port, in the form that URLs have: a DNS name in lower case, or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Reads a host; `None` when it is something else, such as `host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(Host::parse(text).ok()?.to_string()))
    }

    /// Whether `url` is on this host.
    pub(super) fn is_host_of(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.is(host))
    }

    /// Whether this is the host of that name.
    pub fn is(&self, name: &str) -> bool {
        name.trim_end_matches('.').eq_ignore_ascii_case(self.0.trim_end_matches('.'))
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("`{text}`: expected a host without scheme and port")))
    }
}

/// Where the login of a registry comes from. A secret never stands in the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CredentialsTable")]
pub enum CredentialsConfig {
    /// A Docker `config.json`, a Kubernetes `.dockerconfigjson` or `.dockercfg`; the longest matching path wins.
    File(PathBuf),
    /// One login, its password being the content of a file.
    PasswordFile {
        /// Who berth is to the registry.
        username: String,
        /// Re-read when it changes; a newline at its end is not part of the password.
        file: PathBuf,
    },
    /// One login, its password being in the environment.
    PasswordEnv {
        /// Who berth is to the registry.
        username: String,
        /// The variable's name.
        variable: String,
    },
    /// What Amazon issues for ECR.
    Ecr(EcrConfig),
    /// What Amazon issues for ECR Public.
    EcrPublic(EcrConfig),
    /// What Google issues for its registries.
    Google(GoogleConfig),
    /// What Azure issues for its registries.
    Azure(AzureConfig),
    /// What Vault or OpenBao has in store.
    Vault(VaultConfig),
}

impl CredentialsConfig {
    fn vault(&self) -> Option<&VaultConfig> {
        match self {
            Self::Vault(vault) => Some(vault),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with file, with username and password_file or password_env, with a cloud, or with vault"
)]
struct CredentialsTable {
    file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    ecr: Option<EcrConfig>,
    ecr_public: Option<EcrConfig>,
    google: Option<GoogleConfig>,
    azure: Option<AzureConfig>,
    vault: Option<VaultConfig>,
}

const ONE_OF: &str = "credentials are one of: file; username and password_file; username and password_env; ecr; \
     ecr_public; google; azure; vault";

impl TryFrom<CredentialsTable> for CredentialsConfig {
    type Error = &'static str;

    fn try_from(table: CredentialsTable) -> Result<Self, Self::Error> {
        let clouds = [
            table.ecr.map(Self::Ecr),
            table.ecr_public.map(Self::EcrPublic),
            table.google.map(Self::Google),
            table.azure.map(Self::Azure),
            table.vault.map(Self::Vault),
        ];
        let mut clouds = clouds.into_iter().flatten();
        let file = match (table.file, table.username, table.password_file, table.password_env) {
            (None, None, None, None) => None,
            (Some(file), None, None, None) => Some(Self::File(file)),
            (None, Some(username), Some(file), None) => Some(Self::PasswordFile { username, file }),
            (None, Some(username), None, Some(variable)) => Some(Self::PasswordEnv { username, variable }),
            _ => return Err(ONE_OF),
        };
        match (file, clouds.next(), clouds.next()) {
            (Some(one), None, None) | (None, Some(one), None) => Ok(one),
            _ => Err(ONE_OF),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Region;
    use super::*;

    #[test]
    fn endpoints_are_plain_urls() {
        let check = |text: &str, expected: Result<&str, InvalidEndpoint>| {
            let parsed = Endpoint::parse(text).map(|endpoint| endpoint.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{text}");
        };
        check("https://registry-1.docker.io", Ok("https://registry-1.docker.io"));
        check("https://Nexus.example/repository/x/", Ok("https://nexus.example/repository/x"));
        check("http://127.0.0.1:5000/", Ok("http://127.0.0.1:5000"));
        check("https://h/v2/", Err(InvalidEndpoint::Version));
        check("https://user:secret@h", Err(InvalidEndpoint::Login));
        check("https://user@h", Err(InvalidEndpoint::Login));
        check("https://h?x=1", Err(InvalidEndpoint::Query));
        check("ftp://h", Err(InvalidEndpoint::Url));
        check("registry.example.com", Err(InvalidEndpoint::Url));
        check("", Err(InvalidEndpoint::Url));
    }

    #[test]
    fn requests_go_below_the_prefix() {
        let endpoint = Endpoint::parse("https://h:8443/repository/x").unwrap();
        let url = endpoint.at("a/b/manifests/sha256:00", Some("n=1"));
        assert_eq!(url.as_str(), "https://h:8443/repository/x/v2/a/b/manifests/sha256:00?n=1");
    }

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
        assert_eq!(timeouts.budget, BUDGET);
    }
}
