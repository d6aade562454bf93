//! A configuration as its file has it, every value parsed and nothing put together yet.
//!
//! A [`RawConfig`] is no configuration that could be used: flags, the built-in registries and what is said once for all
//! upstreams are still missing. [`Config::load`](super::Config::load) makes a [`Config`](super::Config) of it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Deserializer, de};

use super::redact::describe;
use crate::cache::{self, Rule};
use crate::files;
use crate::http::{self, admin};
use crate::oci::Registry;
use crate::store::{self, Pin};
use crate::upstream;

/// Everything that can be configured, as it stands in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// The folder of what is kept.
    pub data_dir: PathBuf,
    /// Which other users may read that folder.
    pub data_mode: store::Mode,
    /// The registry of names that carry none.
    pub default_upstream: DefaultUpstream,
    /// Whether no upstream is ever asked, whatever its own setting.
    pub offline: bool,
    /// Whether the well-known public registries are configured without being listed.
    pub public_registries: bool,
    /// The data plane.
    pub http: http::Config,
    /// The admin plane.
    pub admin: admin::Config,
    /// What is kept, and how much of it.
    pub cache: cache::Config,
    /// The registries. One that is listed replaces the built-in one of its name.
    #[serde(rename = "upstream")]
    pub upstreams: Vec<upstream::Config>,
    /// The berths that are asked before the registries.
    pub parents: Option<upstream::ParentsConfig>,
    /// The rules of how fresh tags must be. The first match decides.
    pub tags: Vec<Rule>,
    /// The images that are never evicted.
    #[serde(rename = "pin")]
    pub pins: Vec<Pin>,
}

impl Default for RawConfig {
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

impl RawConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, the line, the key and what was expected.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        text(path).and_then(|text| Self::parse(&text)).with_context(|| in_file(path))
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| anyhow!(describe(&error, text)))
    }
}

/// Whether a file sets anything at all. One that was cut off, or is just being written, often does not. Such a file means
/// all defaults, and that is hardly ever meant where there was more before.
///
/// # Errors
/// When it cannot be read, or is no TOML.
pub fn has_keys(path: &Path) -> anyhow::Result<bool> {
    fn has_key(table: &toml::Table) -> bool {
        table.values().any(|value| value.as_table().is_none_or(has_key))
    }
    let here = || in_file(path);
    let text = text(path).with_context(here)?;
    let table = text.parse().map_err(|error| anyhow!(describe(&error, &text))).with_context(here)?;
    Ok(has_key(&table))
}

fn text(path: &Path) -> anyhow::Result<String> {
    // At the start it may be a pipe, as a shell's `<(…)` is: it is read once.
    Ok(files::text(files::content(File::open(path)?)?)?)
}

/// What the errors about a file begin with.
pub(super) fn in_file(path: &Path) -> String {
    format!("configuration {}", path.display())
}

/// The registry of names that carry none. `"none"` if they are to be refused.
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

/// `$XDG_DATA_HOME/berth`. Without that variable `/var/lib/berth` for root and `~/.local/share/berth` for others.
pub(super) fn data_dir_default() -> PathBuf {
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
