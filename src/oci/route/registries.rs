//! The configured registries, and which of them a request means.
//!
//! `ns=`, else a virtual host, decides; then one leading segment equal to that registry or an alias of it is
//! stripped, and any other stays in the name: a Harbor project may be called `docker.io`. With neither, a
//! leading segment that is a registry or an alias decides, and one that could only be a registry but is not
//! configured is an error, so that a typo never asks Docker Hub for `ghcr.oi/…`. Else it is the default.
//!
//! Where parents are asked for any registry, one that is not configured is no error but [unlisted](Registry::is_unlisted).
//!
//! Invariant: no answer names a registry that is neither configured nor unlisted.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Repositories, RouteError};
use crate::oci::name::{InvalidName, Registry, RepoName};
use crate::oci::printable;
use crate::oci::{Image, Repo};

/// Other names of Docker Hub: its API host, and the host in its credentials.
const DOCKER_HUB_HOSTS: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

/// The port that a registry has where its name says none: `ghcr.io:443` is `ghcr.io`.
const HTTPS_PORT: &str = ":443";

/// A registry that requests may mean, with the names it goes by.
#[derive(Clone, Debug)]
pub struct KnownRegistry {
    /// Its name in images and in `ns=`.
    pub registry: Registry,
    /// Other names for it in `ns=` and as a leading path segment.
    pub aliases: Vec<String>,
    /// `Host` headers that mean it, with a port or for every port.
    pub hosts: Vec<String>,
    /// Which of its repositories may be pulled.
    pub repositories: Repositories,
}

/// The configured registries.
#[derive(Clone, Debug)]
pub struct Registries {
    /// By registry name and alias.
    names: HashMap<String, Registry>,
    /// By `Host` header.
    hosts: HashMap<String, Registry>,
    default: Option<Registry>,
    /// Whether any other registry may be meant, too.
    takes_any: bool,
    /// Of registries not all of whose repositories may be pulled.
    limits: HashMap<Registry, Repositories>,
}

/// Why registries cannot stand side by side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The alias could not be a path segment, or would be taken for the API.
    #[error("alias `{alias}` of {registry}: expected one lower-case word, or a host, other than `v2`")]
    Alias {
        /// The alias.
        alias: String,
        /// Whose it is.
        registry: Registry,
    },
    /// The default is not among the registries.
    #[error("the default registry {0} is not configured")]
    Default(Registry),
    /// The virtual host is no host.
    #[error("host `{host}` of {registry}: expected host[:port]")]
    Host {
        /// The virtual host.
        host: String,
        /// Whose it is.
        registry: Registry,
    },
    /// One name for two registries.
    #[error("`{name}` means both {first} and {second}")]
    Taken {
        /// The registry name, alias or virtual host.
        name: String,
        /// Who had it first.
        first: Registry,
        /// Who wants it too.
        second: Registry,
    },
}

impl Registries {
    /// The registries `known`; what names none of them means `default`.
    ///
    /// A registry's own name is a virtual host of it too, for clients that are led here by DNS, unless it is
    /// `localhost` or has a port: that may just be the address berth itself listens on.
    ///
    /// # Errors
    /// [`Conflict`], the first one found.
    pub fn new(known: Vec<KnownRegistry>, default: Option<Registry>) -> Result<Self, Conflict> {
        let mut names = HashMap::new();
        let mut hosts = HashMap::new();
        for it in &known {
            take(&mut names, it.registry.as_str(), &it.registry)?;
        }
        if let Some(unknown) = default.as_ref().filter(|default| !names.contains_key(default.as_str())) {
            return Err(Conflict::Default(unknown.clone()));
        }
        let mut limits = HashMap::new();
        for KnownRegistry { registry, aliases, hosts: virtual_hosts, repositories } in known {
            for alias in aliases {
                let alias = alias.to_ascii_lowercase();
                if !may_be_alias(&alias) {
                    return Err(Conflict::Alias { alias, registry });
                }
                take(&mut names, &alias, &registry)?;
            }
            for host in virtual_hosts {
                match Registry::parse(&host) {
                    Ok(host) => take(&mut hosts, host.as_str(), &registry)?,
                    Err(_) => return Err(Conflict::Host { host, registry }),
                }
            }
            if !repositories.have_no_limits() {
                limits.insert(registry, repositories);
            }
        }
        // What the configuration says of these names comes first, hence after the loop.
        for registry in names.values().cloned().collect::<Vec<_>>() {
            let hub = registry.as_str() == Registry::DOCKER_HUB;
            for name in DOCKER_HUB_HOSTS.into_iter().filter(|_| hub) {
                names.entry(name.to_owned()).or_insert_with(|| registry.clone());
                hosts.entry(name.to_owned()).or_insert_with(|| registry.clone());
            }
            if let Some(host) = registry.as_str().strip_suffix(HTTPS_PORT) {
                names.entry(host.to_owned()).or_insert_with(|| registry.clone());
            }
            if registry.as_str().contains('.') && !registry.as_str().contains(':') {
                hosts.entry(registry.as_str().to_owned()).or_insert(registry);
            }
        }
        Ok(Self { names, hosts, default, takes_any: false, limits })
    }

    /// The same; if so, a registry that is none of them may be meant, too.
    pub fn taking_any(self, takes_any: bool) -> Self {
        Self { takes_any, ..self }
    }

    /// The registry that `ns=` or the virtual host names, if either does.
    pub(super) fn decided(
        &self,
        ns: Option<&str>,
        host: Option<&str>,
    ) -> Result<Option<Cow<'_, Registry>>, RouteError> {
        match (ns, host) {
            (Some(ns), _) => match self.named(ns) {
                Some(registry) => Ok(Some(Cow::Borrowed(registry))),
                None => self.unlisted(ns).map(|registry| Some(Cow::Owned(registry))),
            },
            (None, Some(host)) => Ok(self.at_host(host).map(Cow::Borrowed)),
            (None, None) => Ok(None),
        }
    }

    /// The registry, and those of the segments that are the name within it.
    pub(super) fn resolve<'a>(
        &'a self,
        decided: Option<Cow<'a, Registry>>,
        segments: &'a [&'a str],
    ) -> Result<(Cow<'a, Registry>, &'a [&'a str]), RouteError> {
        let (first, rest) = segments.split_first().ok_or(InvalidName::Repository)?;
        // A prefix without a name behind it is itself the name, as in `hub` of `docker.io/library/hub`.
        let prefix = if rest.is_empty() { None } else { self.named(first) };
        match (decided, prefix) {
            (Some(decided), Some(prefix)) if *decided == *prefix => Ok((decided, rest)),
            (Some(decided), _) if decided.is_unlisted() && !rest.is_empty() && decided.is_named(first) => {
                Ok((decided, rest))
            }
            (Some(decided), _) => Ok((decided, segments)),
            (None, Some(prefix)) => Ok((Cow::Borrowed(prefix), rest)),
            (None, None) if [".", ".."].contains(first) => Err(InvalidName::Repository.into()),
            (None, None) if Registry::looks_like_host(first) => {
                let registry = match self.named(first) {
                    Some(_) => return Err(InvalidName::Repository.into()),
                    None => self.unlisted(first)?,
                };
                if rest.is_empty() {
                    Err(InvalidName::Repository.into())
                } else {
                    Ok((Cow::Owned(registry), rest))
                }
            }
            (None, None) => {
                Ok((Cow::Borrowed(self.default.as_ref().ok_or(RouteError::NoDefault)?), segments))
            }
        }
    }

    /// The same image by the name that its registry has here: `ghcr.io:443/org/app` is `ghcr.io/org/app`.
    pub fn image(&self, mut image: Image) -> Image {
        if let Some(registry) = self.named(image.repo.registry.as_str()) {
            image.repo.registry = registry.clone();
        }
        image
    }

    /// Whether a `Host` header means a registry.
    pub fn have_host(&self, host: &str) -> bool {
        self.at_host(host).is_some()
    }

    /// Whether a repository may be pulled here, as far as its registry's `repositories` go.
    pub fn may_have(&self, repo: &Repo) -> bool {
        self.check_limits(repo).is_ok()
    }

    /// Whether a repository may be pulled here.
    pub(super) fn check_limits(&self, repo: &Repo) -> Result<(), RouteError> {
        match self.limits.get(&repo.registry) {
            Some(limits) if !limits.may_have(&repo.name) => {
                Err(RouteError::Forbidden(Box::new(repo.clone())))
            }
            _ => Ok(()),
        }
    }

    /// Whether the segments in front of one of the API's own paths could be a prefix of berth.
    pub(super) fn check_prefix(&self, decided: Option<&Registry>, prefix: &[&str]) -> Result<(), RouteError> {
        match prefix.first() {
            Some(first)
                if decided.is_none() && Registry::looks_like_host(first) && self.named(first).is_none() =>
            {
                self.unlisted(first).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The registry of a name that is not configured, if any may be meant and it is one.
    fn unlisted(&self, name: &str) -> Result<Registry, RouteError> {
        let is_possible = self.takes_any && Registry::looks_like_host(name);
        let registry = is_possible.then(|| Registry::parse(name).ok()).flatten();
        registry.map(Registry::unlisted).ok_or_else(|| unknown(name))
    }

    fn named(&self, name: &str) -> Option<&Registry> {
        let name = lower_case(name);
        let without_port = || self.names.get(name.strip_suffix(HTTPS_PORT)?);
        self.names.get(&*name).or_else(without_port)
    }

    fn at_host(&self, host: &str) -> Option<&Registry> {
        let host = lower_case(host);
        // With a dot at its end a name is complete, and the same.
        let whole = |host: &str| {
            let without_dot = || self.hosts.get(host.strip_suffix('.')?);
            self.hosts.get(host).or_else(without_dot)
        };
        let without_port = || {
            let (name, port) = host.split_at(host.bytes().rposition(|byte| byte == b':')?);
            port.bytes().skip(1).all(|byte| byte.is_ascii_digit()).then(|| whole(name))?
        };
        whole(&host).or_else(without_port)
    }
}

/// A name as it is looked up; nearly all come so.
fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

fn take(names: &mut HashMap<String, Registry>, name: &str, registry: &Registry) -> Result<(), Conflict> {
    match names.insert(name.to_owned(), registry.clone()) {
        Some(first) if first != *registry => {
            Err(Conflict::Taken { name: name.to_owned(), first, second: registry.clone() })
        }
        _ => Ok(()),
    }
}

fn may_be_alias(alias: &str) -> bool {
    let word = !alias.contains('/') && RepoName::parse(alias).is_ok();
    (word || Registry::parse(alias).is_ok()) && alias != "v2"
}

fn unknown(name: &str) -> RouteError {
    RouteError::UnknownRegistry(printable(name))
}
