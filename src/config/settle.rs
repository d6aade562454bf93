//! The one way from what a file says to a configuration that can be used.
//!
//! File, then flags over it, then the built-in registries, then what is said once for all upstreams: every command, the
//! daemon and its reload do these steps here, in this order, so that they mean the same by the same file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::Config;
use super::raw::{DefaultUpstream, RawConfig, in_file};
use crate::oci::Registry;
use crate::oci::route::{KnownRegistry, Registries};
use crate::upstream;

/// The registries that berth knows without being told, with an endpoint each.
pub(super) const PUBLIC_REGISTRIES: [(&str, &str); 10] = [
    ("docker.io", "https://registry-1.docker.io"),
    ("ghcr.io", "https://ghcr.io"),
    ("quay.io", "https://quay.io"),
    ("registry.k8s.io", "https://registry.k8s.io"),
    ("gcr.io", "https://gcr.io"),
    ("mcr.microsoft.com", "https://mcr.microsoft.com"),
    ("public.ecr.aws", "https://public.ecr.aws"),
    ("registry.gitlab.com", "https://registry.gitlab.com"),
    ("cgr.dev", "https://cgr.dev"),
    ("lscr.io", "https://lscr.io"),
];

/// What flags and variables say in the place of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The addresses of the data plane. Empty: those of the file.
    pub listen: Vec<SocketAddr>,
    /// The address of the admin plane.
    pub admin_listen: Option<SocketAddr>,
    /// The folder of what is kept.
    pub data_dir: Option<PathBuf>,
    /// Upstreams as `NAME=URL`, added to those of the file or in the place of one of its names.
    pub upstreams: Vec<String>,
}

impl Config {
    /// Reads `file`, if there is one, and makes a configuration of what it says with `overrides` over it.
    ///
    /// # Errors
    /// Names the file, the line, the key and what was expected; or the flag.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> anyhow::Result<Self> {
        let raw = file.map(RawConfig::load).transpose()?.unwrap_or_default();
        about(file, Self::settle(overrides.over(raw)?))
    }

    /// As [`Config::load`], for a configuration that is to be served, as [`Config::check`] has it.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Config::check`].
    pub fn load_to_serve(file: Option<&Path>, overrides: &Overrides) -> anyhow::Result<Self> {
        let config = Self::load(file, overrides)?;
        about(file, config.check())?;
        Ok(config)
    }

    /// Adds the built-in registries that are not listed, applies what is said once for all upstreams, `offline` and
    /// `[parents]`, and names what is pinned as the registries are named.
    ///
    /// # Errors
    /// When a list that must not be empty is, two registries claim one name, or the default is not configured.
    pub(super) fn settle(raw: RawConfig) -> anyhow::Result<Self> {
        let RawConfig {
            data_dir,
            data_mode,
            default_upstream,
            offline,
            public_registries,
            http,
            admin,
            cache,
            mut upstreams,
            parents,
            tags,
            mut pins,
        } = raw;
        ensure!(!http.listen.is_empty(), "http.listen: expected at least one address");
        if public_registries {
            add_public_registries(&mut upstreams);
        }
        check_endpoints(&upstreams, parents.as_ref())?;
        for upstream in &mut upstreams {
            upstream.offline |= offline;
            upstream.parents = parents.clone().filter(|_| upstream.has_parents && !upstream.mirror);
        }
        let unlisted = parents.as_ref().and_then(|parents| upstream::Config::unlisted(parents, offline));
        let registries = registries(&upstreams, &default_upstream)?.taking_any(unlisted.is_some());
        for pin in &mut pins {
            pin.image = registries.image(pin.image.clone());
        }
        Ok(Self {
            data_dir,
            data_mode,
            default_upstream,
            offline,
            public_registries,
            http,
            admin,
            cache,
            upstreams,
            parents,
            tags,
            pins,
            registries,
        })
    }
}

impl Overrides {
    /// A file's configuration with these in the place of what it says.
    fn over(&self, mut raw: RawConfig) -> anyhow::Result<RawConfig> {
        let Self { listen, admin_listen, data_dir, upstreams } = self;
        if !listen.is_empty() {
            raw.http.listen.clone_from(listen);
        }
        if let Some(address) = admin_listen {
            raw.admin.listen = *address;
        }
        if let Some(folder) = data_dir {
            raw.data_dir.clone_from(folder);
        }
        set_upstreams(&mut raw.upstreams, upstreams)?;
        Ok(raw)
    }
}

/// Names the file in an error, if there is one.
fn about<T>(file: Option<&Path>, result: anyhow::Result<T>) -> anyhow::Result<T> {
    match file {
        Some(file) => result.with_context(|| in_file(file)),
        None => result,
    }
}

/// Replaces or adds upstreams, as `--upstream NAME=URL` does. Several of one name are its endpoints, in order.
///
/// # Errors
/// When a text is not `NAME=URL`.
fn set_upstreams(upstreams: &mut Vec<upstream::Config>, given: &[String]) -> anyhow::Result<()> {
    let mut replaced: Vec<upstream::Config> = Vec::new();
    for text in given {
        let expected = "expected NAME=URL, such as docker.io=https://mirror.example.com";
        let (name, url) = text.split_once('=').with_context(|| format!("--upstream: {expected}"))?;
        // The URL is not repeated: it may hold a password.
        let here = || format!("--upstream {name}=…: {expected}");
        let registry = Registry::parse(name).with_context(here)?;
        let endpoint = url.parse::<upstream::Endpoint>().with_context(here)?;
        match replaced.iter_mut().find(|upstream| upstream.registry == registry) {
            Some(upstream) => upstream.endpoints.push(endpoint),
            None => replaced.push(upstream::Config::new(registry, vec![endpoint])),
        }
    }
    upstreams.retain(|upstream| replaced.iter().all(|other| other.registry != upstream.registry));
    upstreams.append(&mut replaced);
    Ok(())
}

fn add_public_registries(upstreams: &mut Vec<upstream::Config>) {
    for (name, url) in PUBLIC_REGISTRIES {
        let registry = Registry::parse(name).expect("a registry");
        if upstreams.iter().all(|upstream| upstream.registry != registry) {
            let endpoint = url.parse().expect("an endpoint");
            upstreams.push(upstream::Config::new(registry, vec![endpoint]));
        }
    }
}

/// Checks that each registry is there once, and that everything that is asked has an endpoint.
fn check_endpoints(
    upstreams: &[upstream::Config],
    parents: Option<&upstream::ParentsConfig>,
) -> anyhow::Result<()> {
    for (number, upstream) in upstreams.iter().enumerate() {
        ensure!(
            upstreams[..number].iter().all(|other| other.registry != upstream.registry),
            "upstream {}: expected one [[upstream]] for each registry; several endpoints go into one",
            upstream.registry
        );
        ensure!(
            !upstream.endpoints.is_empty(),
            "upstream {}: endpoints: expected at least one URL",
            upstream.registry
        );
        ensure!(
            upstream.fallbacks.iter().all(|fallback| !fallback.endpoints.is_empty()),
            "upstream {}: fallback: endpoints: expected at least one URL",
            upstream.registry
        );
    }
    let has_endpoints = parents.is_none_or(|parents| !parents.endpoints.is_empty());
    ensure!(has_endpoints, "parents: endpoints: expected at least one URL");
    Ok(())
}

/// Which registry a request means.
fn registries(upstreams: &[upstream::Config], default: &DefaultUpstream) -> anyhow::Result<Registries> {
    let known = upstreams.iter().map(|upstream| KnownRegistry {
        registry: upstream.registry.clone(),
        aliases: upstream.aliases.clone(),
        hosts: upstream.hosts.clone(),
        repositories: upstream.repositories.clone(),
    });
    Registries::new(known.collect(), default.0.clone()).context("[[upstream]] and default_upstream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_replace_and_add_upstreams() {
        let raw: RawConfig =
            toml::from_str("[[upstream]]\nregistry = \"docker.io\"\nendpoints = [\"https://a.example\"]")
                .unwrap();
        let over = |given: &[&str]| {
            let upstreams = given.iter().map(|text| (*text).to_owned()).collect();
            Overrides { upstreams, ..Overrides::default() }.over(raw.clone())
        };
        let flags =
            ["docker.io=http://127.0.0.1:1", "x.example=http://127.0.0.1:2", "docker.io=http://127.0.0.1:3"];
        let with_flags = over(&flags).unwrap();
        assert_eq!(with_flags.upstreams.len(), 2);
        assert_eq!(with_flags.upstreams[0].endpoints.len(), 2);
        for bad in ["docker.io", "=http://x", "docker.io=ftp://x", "docker.io=http://user:secret@x"] {
            assert!(over(&[bad]).is_err(), "{bad}");
        }
    }
}
