//! The configuration: the parts' own sections put together, from file, environment and flags.
//!
//! Every section is a type beside the code that reads it. Values are parsed straight into what they mean, so
//! that what remains here is what no section can check alone: two names for one registry, a default that is
//! not configured, private images behind an open door.

mod changes;
mod shown;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::{Deserialize, Deserializer, de};

use crate::cache::{self, Rule, Rules};
use crate::files;
use crate::http::{self, admin};
use crate::oci::Registry;
use crate::oci::route::{KnownRegistry, Registries};
use crate::store::{self, Pin};
use crate::upstream;

pub use changes::Changes;

/// The registries that berth knows without being told, with an endpoint each.
const PUBLIC_REGISTRIES: [(&str, &str); 10] = [
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

/// What stands in a line, or in the head of its section, if a value there may be secret.
const MAY_BE_LOGIN: [&str; 5] = ["credentials", "password", "headers", "token", "secret"];
/// A key that has one of these words in it, and never a secret behind it.
const NO_LOGIN: &str = "token_seconds";

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where content is kept.
    pub data_dir: PathBuf,
    /// Who else may look into it.
    pub data_mode: store::Mode,
    /// What a name without a registry means.
    pub default_upstream: DefaultUpstream,
    /// No upstream is ever asked, whatever its own setting: what is here is all there is.
    pub offline: bool,
    /// Whether the well-known public registries are configured without being listed.
    pub public_registries: bool,
    /// The data plane.
    pub http: http::Config,
    /// The admin plane.
    pub admin: admin::Config,
    /// What is kept, and how much of it.
    pub cache: cache::Config,
    /// The registries; one that is listed replaces the built-in one of its name.
    #[serde(rename = "upstream")]
    pub upstreams: Vec<upstream::Config>,
    /// Berths that are asked before the registries.
    pub parents: Option<upstream::ParentsConfig>,
    /// How fresh tags must be; the first match decides.
    pub tags: Vec<Rule>,
    /// Images that stay.
    #[serde(rename = "pin")]
    pub pins: Vec<Pin>,
}

impl Default for Config {
    fn default() -> Self {
        let docker_hub = Registry::parse(Registry::DOCKER_HUB).expect("a registry");
        Self {
            data_dir: data_dir_default(),
            data_mode: store::Mode::default(),
            default_upstream: DefaultUpstream(Some(docker_hub)),
            offline: false,
            public_registries: true,
            http: http::Config::default(),
            admin: admin::Config::default(),
            cache: cache::Config::default(),
            upstreams: Vec::new(),
            parents: None,
            tags: Vec::new(),
            pins: Vec::new(),
        }
    }
}

/// The registry of names that carry none; `"none"` if they are to be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultUpstream(pub Option<Registry>);

impl<'de> Deserialize<'de> for DefaultUpstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(Self(None));
        }
        let registry = Registry::parse(&text)
            .map_err(|error| de::Error::custom(format!("`{text}`: {error}, or \"none\"")))?;
        Ok(Self(Some(registry)))
    }
}

impl Config {
    /// Reads a file; the built-in registries are not yet added.
    ///
    /// # Errors
    /// Names the file, the line, the key and what was expected.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        Self::read(path).with_context(|| format!("configuration {}", path.display()))
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        Self::parse(&Self::text(path)?)
    }

    fn text(path: &Path) -> anyhow::Result<String> {
        // At the start it may be a pipe, as a shell's `<(…)` is: it is read once.
        Ok(files::text(files::content(File::open(path)?)?)?)
    }

    /// Whether a file sets anything at all. One that was cut off, or is just being written, often does not; and what it
    /// says without a word, all defaults, is hardly ever meant where there was more before.
    ///
    /// # Errors
    /// If it cannot be read, or is no TOML.
    pub fn has_keys(path: &Path) -> anyhow::Result<bool> {
        fn has_key(table: &toml::Table) -> bool {
            table.values().any(|value| value.as_table().is_none_or(has_key))
        }
        let here = || format!("configuration {}", path.display());
        let text = Self::text(path).with_context(here)?;
        let table = text.parse().map_err(|error| anyhow!(describe(&error, &text))).with_context(here)?;
        Ok(has_key(&table))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| anyhow!(describe(&error, text)))
    }

    /// Replaces or adds an upstream, as `--upstream NAME=URL` does. Several of one name are its endpoints, in
    /// order.
    ///
    /// # Errors
    /// When the text is not `NAME=URL`.
    pub fn set_upstreams(&mut self, given: &[String]) -> anyhow::Result<()> {
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
        self.upstreams.retain(|upstream| replaced.iter().all(|other| other.registry != upstream.registry));
        self.upstreams.append(&mut replaced);
        Ok(())
    }

    /// Adds the built-in registries that are not listed.
    pub fn add_public_registries(&mut self) {
        if !self.public_registries {
            return;
        }
        for (name, url) in PUBLIC_REGISTRIES {
            let registry = Registry::parse(name).expect("a registry");
            if self.upstreams.iter().all(|upstream| upstream.registry != registry) {
                let endpoint = url.parse().expect("an endpoint");
                self.upstreams.push(upstream::Config::new(registry, vec![endpoint]));
            }
        }
    }

    /// Which registry a request means.
    ///
    /// # Errors
    /// When two registries claim one name, or the default is not configured.
    pub fn registries(&self) -> anyhow::Result<Registries> {
        let known = self.upstreams.iter().map(|upstream| KnownRegistry {
            registry: upstream.registry.clone(),
            aliases: upstream.aliases.clone(),
            hosts: upstream.hosts.clone(),
            repositories: upstream.repositories.clone(),
        });
        let registries = Registries::new(known.collect(), self.default_upstream.0.clone())
            .context("[[upstream]] and default_upstream")?;
        Ok(registries.taking_any(self.unlisted().is_some()))
    }

    /// What is asked for registries that are not listed; `None` if nobody is.
    pub fn unlisted(&self) -> Option<upstream::Config> {
        upstream::Config::unlisted(self.parents.as_ref()?, self.offline)
    }

    /// All that is asked: an upstream for each registry, and one for those that are not listed.
    pub fn all_upstreams(&self) -> Vec<upstream::Config> {
        self.upstreams.iter().cloned().chain(self.unlisted()).collect()
    }

    /// What the store must know.
    pub fn limits(&self) -> store::Limits {
        let listed = || self.upstreams.iter().map(|upstream| upstream.registry.clone()).collect();
        let sharing = self.unlisted().is_some().then(listed);
        store::Limits { sharing, ..self.cache.limits(self.pins.clone()) }
    }

    /// Applies what is said once for all, `offline` and `[parents]`, to every upstream that there is by now, and names what is
    /// pinned as they are named.
    pub fn settle(&mut self) {
        // Without an answer there is no configuration that could be used.
        if let Ok(registries) = self.registries() {
            for pin in &mut self.pins {
                pin.image = registries.image(pin.image.clone());
            }
        }
        for upstream in &mut self.upstreams {
            upstream.offline |= self.offline;
            upstream.parents = self.parents.clone().filter(|_| upstream.has_parents && !upstream.mirror);
        }
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

    /// Checks what no section can check alone.
    ///
    /// # Errors
    /// Names the keys and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.http.listen.is_empty(), "http.listen: expected at least one address");
        for (number, upstream) in self.upstreams.iter().enumerate() {
            ensure!(
                self.upstreams[..number].iter().all(|other| other.registry != upstream.registry),
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
        self.admin.check()?;
        let has_endpoints = self.parents.as_ref().is_none_or(|parents| !parents.endpoints.is_empty());
        ensure!(has_endpoints, "parents: endpoints: expected at least one URL");
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

/// Line, key, value and what was expected. What could be a login is not shown: people paste what they are shown.
fn describe(error: &toml::de::Error, text: &str) -> String {
    let message = error.message();
    let Some(span) = error.span().filter(|span| text.is_char_boundary(span.start)) else {
        return without_quoted(message);
    };
    let before = &text[..span.start];
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    let section = before.lines().rev().find(|line| line.trim_start().starts_with('[')).unwrap_or_default();
    let plain = line.replace(NO_LOGIN, "");
    let is_about = |word: &&str| plain.contains(word) || section.contains(word);
    let may_be_login = MAY_BE_LOGIN.iter().any(is_about) || line.contains('@');
    let key = match line.split_once('=') {
        // A value of several lines may have such a sign in it.
        Some((key, _)) if !may_be_login || is_key(key) => key.trim(),
        _ if may_be_login => "a login",
        _ => line,
    };
    if may_be_login {
        return format!("line {number}: {key}: {}", without_quoted(message));
    }
    let value = match text.get(span).unwrap_or_default() {
        value if value.is_empty() || value == key || value.contains(['@', '\n']) => String::new(),
        value => format!(" {value}:"),
    };
    let path = path_to(&before[before.rfind('\n').map_or(0, |end| end + 1)..]);
    format!("line {number}: {}:{value} {message}", path.as_deref().unwrap_or(key))
}

/// The key of what comes behind the beginning of a line, with those of the tables in that line that it is in:
/// `limits = { connections = 1, bytes_per_second = ` is about `limits.bytes_per_second`. None where that cannot be told.
fn path_to(line: &str) -> Option<String> {
    let (mut tables, mut key, mut begin) = (Vec::new(), "", 0);
    for (at, c) in line.char_indices() {
        match c {
            '=' => key = line[begin..at].trim(),
            '{' => tables.push(std::mem::take(&mut key)),
            '}' => key = tables.pop()?,
            ',' => {}
            _ => continue,
        }
        begin = at + 1;
    }
    tables.push(key);
    let path: Vec<_> = tables.into_iter().filter(|key| !key.is_empty()).collect();
    (!path.is_empty() && path.iter().all(|key| is_key(key))).then(|| path.join("."))
}

/// Whether a text in front of a `=` is a key, or several joined by dots, and nothing besides.
fn is_key(text: &str) -> bool {
    text.trim().chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A message without the values that it quotes. Numbers stand in backticks, as do the names of keys.
fn without_quoted(message: &str) -> String {
    // A quote within a value has a backslash before it, and so has a backslash.
    let plain = message.replace("\\\\", "").replace("\\\"", "");
    let parts = plain.split('"').enumerate();
    let unquoted: String = parts.map(|(at, part)| if at % 2 == 0 { part } else { "\"…\"" }).collect();
    let parts = unquoted.split('`').enumerate();
    let show = |(at, part): (usize, &str)| match at % 2 {
        0 => part.to_owned(),
        _ if part.contains('@') => "`…`".to_owned(),
        _ if part.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => "`…`".to_owned(),
        _ => format!("`{part}`"),
    };
    parts.map(show).collect()
}

/// `$XDG_DATA_HOME/berth`; without it `/var/lib/berth` for root and `~/.local/share/berth` for others.
fn data_dir_default() -> PathBuf {
    // As the XDG specification has it, a path that is not absolute counts as none.
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(data) = set("XDG_DATA_HOME") {
        return data.join("berth");
    }
    match set("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/share/berth"),
        _ => PathBuf::from("/var/lib/berth"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Config> {
        let mut config = Config::parse(text)?;
        config.add_public_registries();
        config.settle();
        config.registries()?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn the_sample_file_has_every_setting_at_its_default() {
        let sample = include_str!("../config/berth.toml");
        let mut config: Config = toml::from_str(sample).unwrap();
        config.data_dir = data_dir_default();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));

        // What is shown behind a `#` without a space has no default, or is one entry of a list; all of it is
        // read, and the entry of a tag rule has the defaults that it claims.
        let uncommented = sample.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let all: Config = toml::from_str(&uncommented.collect::<Vec<_>>().join("\n")).unwrap();
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
        assert_eq!(node.cache.min_free, store::Size::Share(20.0), "the kubelet evicts pods below 15 %");
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
    fn flags_replace_and_add_upstreams() {
        let mut config: Config =
            toml::from_str("[[upstream]]\nregistry = \"docker.io\"\nendpoints = [\"https://a.example\"]")
                .unwrap();
        let flags =
            ["docker.io=http://127.0.0.1:1", "x.example=http://127.0.0.1:2", "docker.io=http://127.0.0.1:3"];
        config.set_upstreams(&flags.map(str::to_owned)).unwrap();
        assert_eq!(config.upstreams.len(), 2);
        assert_eq!(config.upstreams[0].endpoints.len(), 2);
        for bad in ["docker.io", "=http://x", "docker.io=ftp://x", "docker.io=http://user:secret@x"] {
            assert!(config.set_upstreams(&[bad.to_owned()]).is_err(), "{bad}");
        }
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
