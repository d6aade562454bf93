//! The configuration: the parts' own sections put together, from file, environment and flags.
//!
//! Every section is a type beside the code that reads it, and values are parsed straight into what they mean. A file is a
//! [`RawConfig`] first (`raw`), and a [`Config`] only after [`Config::load`] has put everything together (`settle`). What
//! remains here is what no section can check alone, such as private images behind an open door. `redact` keeps secrets out
//! of errors, `diff` says what differs between two configurations, `shown` is what `check-config` prints.
//!
//! Uses every room that has a section; `app` and `cli` use it.

mod diff;
mod raw;
mod redact;
mod settle;
mod shown;

use std::path::PathBuf;

use anyhow::bail;

use crate::cache::{self, Rule, Rules};
use crate::http::{self, admin};
use crate::oci::route::Registries;
use crate::store::{self, Pin};
use crate::upstream;

pub use diff::Changes;
pub use raw::{DefaultUpstream, RawConfig, has_keys};
pub use settle::Overrides;

/// A configuration that can be used. [`Config::load`] is the only way to one.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of what is kept.
    pub data_dir: PathBuf,
    /// Which other users may read that folder.
    pub data_mode: store::Mode,
    /// The registry of names that carry none.
    pub default_upstream: DefaultUpstream,
    /// Whether no upstream is ever asked. Each of `upstreams` has it, too.
    pub offline: bool,
    /// Whether the well-known public registries are among `upstreams` without being listed.
    pub public_registries: bool,
    /// The data plane.
    pub http: http::Config,
    /// The admin plane.
    pub admin: admin::Config,
    /// What is kept, and how much of it.
    pub cache: cache::Config,
    /// The registries, each with the parents that are asked before it.
    pub upstreams: Vec<upstream::Config>,
    /// The berths that are asked before the registries.
    pub parents: Option<upstream::ParentsConfig>,
    /// The rules of how fresh tags must be. The first match decides.
    pub tags: Vec<Rule>,
    /// The images that are never evicted, by the names of their registries.
    pub pins: Vec<Pin>,
    /// Which registry a name means.
    registries: Registries,
}

impl Config {
    /// Which registry a request means.
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// The upstream for registries that are not listed, which is asked by way of the parents alone; `None` if such
    /// registries are refused.
    pub fn unlisted(&self) -> Option<upstream::Config> {
        upstream::Config::unlisted(self.parents.as_ref()?, self.offline)
    }

    /// All that is asked: an upstream for each registry, and one for those that are not listed.
    pub fn all_upstreams(&self) -> Vec<upstream::Config> {
        self.upstreams.iter().cloned().chain(self.unlisted()).collect()
    }

    /// The limits of the store.
    pub fn limits(&self) -> store::Limits {
        let listed = || self.upstreams.iter().map(|upstream| upstream.registry.clone()).collect();
        let sharing = self.unlisted().is_some().then(listed);
        store::Limits { sharing, ..self.cache.limits(self.pins.clone()) }
    }

    /// How fresh tags must be.
    pub fn rules(&self) -> Rules {
        Rules::new(self.tags.clone())
    }

    /// Checks that a configuration which follows this one does not open what this one closes. It may be the first half of a
    /// file, and a door that stands open for a minute is open.
    ///
    /// # Errors
    /// Names the listener and the keys.
    pub fn check_next(&self, next: &Self) -> anyhow::Result<()> {
        match (self.http.open_listener(), next.http.open_listener()) {
            (None, Some(address)) => bail!(
                "http.listen {address}: expected http.allow, http.htpasswd or http.tls.client_ca, as there is now: without \
                 them it is open to everybody. If that is meant, restart berth"
            ),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Checks that it can be served: neither plane must be open to those that it is not meant for. A command that serves
    /// nothing may do without.
    ///
    /// # Errors
    /// Names the keys and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        self.admin.check()?;
        let private = self.all_upstreams().into_iter().find(upstream::Config::has_identity);
        if let (Some(address), Some(upstream)) = (self.http.open_listener(), private) {
            bail!(
                "http.listen {address} is open to everybody while upstream {} knows berth by credentials, a client \
                 certificate or headers: anyone could read its private images. Set http.allow, http.htpasswd or http.tls.client_ca, or listen on 127.0.0.1",
                upstream.registry.label()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::raw::data_dir_default;
    use super::settle::PUBLIC_REGISTRIES;
    use super::*;

    fn read(text: &str) -> anyhow::Result<Config> {
        let config = Config::settle(RawConfig::parse(text)?)?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn the_sample_file_has_every_setting_at_its_default() {
        let sample = include_str!("../config/berth.toml");
        let mut config: RawConfig = toml::from_str(sample).unwrap();
        config.data_dir = data_dir_default();
        assert_eq!(format!("{config:?}"), format!("{:?}", RawConfig::default()));

        // What is shown behind a `#` without a space has no default, or is one entry of a list; all of it is
        // read, and the entry of a tag rule has the defaults that it claims.
        let uncommented = sample.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let all: RawConfig = toml::from_str(&uncommented.collect::<Vec<_>>().join("\n")).unwrap();
        let default = Rule { pattern: all.tags[0].pattern.clone(), ..Rule::default() };
        assert_eq!(format!("{:?}", all.tags[0]), format!("{default:?}"));
        assert_eq!(all.upstreams[0].timeouts, upstream::Timeouts::default());
        assert_eq!(all.upstreams[0].connections_per_blob, upstream::Connections::default());
        assert!(!all.upstreams[0].offline);
    }

    #[test]
    fn the_examples_of_registries_are_right_and_show_their_logins() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/registries");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let config = read(&std::fs::read_to_string(&path).unwrap());
            let config = config.unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            let has_login = config.upstreams[0].credentials.is_some();
            assert_eq!(has_login, !path.ends_with("without-a-login.toml"), "{}", path.display());
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn the_examples_of_tiers_are_right() {
        let node = read(include_str!("../config/node.toml")).unwrap();
        assert!(node.unlisted().is_some(), "it cannot know what its site knows");
        assert_eq!(node.cache.min_free, store::SpaceLimit::Share(20.0), "the kubelet evicts pods below 15 %");
        assert!(node.upstreams.iter().all(|upstream| upstream.parents.is_some()));
        let site = read(include_str!("../config/site.toml")).unwrap();
        assert!(site.upstreams.iter().all(|upstream| upstream.parents.is_none()));
    }

    #[test]
    fn parents_are_for_all_but_those_that_do_without() {
        let with = |text: &str| {
            let text = format!("{text}\n[parents]\nendpoints = [\"http://site.example\"]\n{}", "only = true");
            read(&text).unwrap()
        };
        let own = "[[upstream]]\nregistry = \"h.example\"\nendpoints = [\"https://h.example\"]\n";
        for (keys, has_parents) in [("", true), ("parents = false", false), ("mirror = true", false)] {
            let config = with(&format!("{own}{keys}"));
            assert_eq!(config.upstreams[0].parents.is_some(), has_parents, "{keys}");
            assert!(config.upstreams[1..].iter().all(|upstream| upstream.parents.is_some()));
        }
        let error = read("[parents]\nendpoints = []").unwrap_err();
        assert!(error.to_string().contains("parents: endpoints"), "{error}");
        let open = "[http]\nlisten = [\"0.0.0.0:1\"]\n[parents]\nendpoints = [\"http://site.example\"]\n";
        let with_login = format!("{open}credentials = {{ username = \"u\", password_file = \"/p\" }}");
        assert!(read(open).is_ok() && read(&with_login).is_err());
    }

    #[test]
    fn nothing_configured_means_the_public_registries() {
        let config = read("").unwrap();
        assert_eq!(config.upstreams.len(), PUBLIC_REGISTRIES.len());
        assert!(read("public_registries = false").is_err(), "the default upstream is then not configured");
        assert!(read("public_registries = false\ndefault_upstream = \"none\"").unwrap().upstreams.is_empty());
    }

    #[test]
    fn errors_name_the_line_the_key_and_what_was_expected() {
        let check = |text: &str, parts: &[&str]| {
            let error = format!("{:#}", read(text).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error}");
            }
        };
        check("data_dirr = \"/x\"", &["line 1", "data_dirr", "data_dir"]);
        check("[http]\nlisten = [\"here\"]", &["line 2", "listen", "here", "socket address"]);
        check("[http]\nallow = [\"10.0.0.0/99\"]", &["line 2", "allow"]);
        check("default_upstream = \"a b\"", &["line 1", "host[:port]"]);
        check("default_upstream = \"nowhere.example\"", &["nowhere.example", "not configured"]);
        let open = "[http]\nlisten = [\"0.0.0.0:5000\"]\n[[upstream]]\nregistry = \"h.example\"\n\
                    endpoints = [\"https://h.example\"]\ncredentials = { file = \"/x\" }";
        check(open, &["0.0.0.0:5000", "h.example", "http.allow"]);
        let allowed = open.replace("[\"0.0.0.0:5000\"]", "[\"0.0.0.0:5000\"]\nallow = [\"10.0.0.0/8\"]");
        assert!(read(&allowed).is_ok());
        let fallback = "[[upstream.fallback]]\nendpoints = [\"https://f.example\"]";
        let (before, login) = open.split_once("credentials").unwrap();
        check(
            &format!("{before}{fallback}\ncredentials{login}"),
            &["0.0.0.0:5000", "h.example", "http.allow"],
        );
        assert!(read(&format!("{before}{fallback}")).is_ok());
        let with_ca = read(&format!("{before}{fallback}\nca = [\"/f.pem\"]")).unwrap();
        assert_eq!(with_ca.upstreams[0].authorities().collect::<Vec<_>>(), [Path::new("/f.pem")]);
        check(
            &format!("{before}[[upstream.fallback]]\nendpoints = []"),
            &["h.example", "fallback: endpoints"],
        );
        check(&format!("{before}{fallback}\nmirror = true"), &["mirror", "unknown field"]);
    }

    #[test]
    fn fuzzed_files_are_a_configuration_or_an_error_without_secrets() {
        let target = crate::fuzz::Target {
            name: "config",
            words: &[
                "[",
                "]",
                "[[",
                "]]",
                "{",
                "}",
                "=",
                "\"",
                "'",
                "\"\"\"",
                "\n",
                "#",
                ",",
                ".",
                "true",
                "1",
                "-1",
                "1e400",
                "\\u0000",
                "[[upstream]]",
                "registry = ",
                "endpoints = ",
                "credentials = ",
                "password = \"hunter2\"",
                "token = \"hunter2\"",
                "headers = ",
                "[cache]",
                "[http]",
                "[admin]",
                "[[tags]]",
                "[[pin]]",
                "[parents]",
                "[[upstream.fallback]]",
                "listen = ",
                "allow = ",
                "max_bytes = ",
                "check_after = ",
                "match = ",
                "\"80%\"",
                "\"5m\"",
                "\"https://u:hunter2@h.example\"",
                "\"*/*:*\"",
                "18446744073709551616",
                "é",
            ],
        };
        target.holds(|input| {
            let Ok(text) = std::str::from_utf8(input) else { return };
            match read(text) {
                Ok(config) => {
                    assert!(!config.http.listen.is_empty() && !config.upstreams.is_empty());
                    let _ = config.to_string();
                }
                Err(error) => {
                    let is_secret = |line: &str| {
                        ["password", "token", "headers", "credentials", "@"]
                            .iter()
                            .any(|word| line.contains(word))
                    };
                    let are_secret = text.lines().filter(|line| line.contains("hunter2")).all(is_secret);
                    assert!(!are_secret || !format!("{error:#}").contains("hunter2"), "{error:#}");
                }
            }
        });
    }
}
