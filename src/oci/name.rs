//! Names: registry, repository, tag and reference, parsed once at the door and never checked again.
//!
//! Grammar from distribution-spec "Pulling manifests". A value of these types is safe as a path below the
//! data folder: no empty, `.`, `..` or `_`-leading component can exist in it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::digest::{Algorithm, Digest, InvalidDigest};

/// Clients cap `host/name` at 255 characters in total; berth holds the name alone to it.
pub const NAME_CHARACTERS_MAX: usize = 255;
/// Longest tag (distribution-spec).
pub const TAG_CHARACTERS_MAX: usize = 128;
/// Where Docker Hub has the images whose name is one word.
const OFFICIAL: &str = "library/";
/// Length of a digest within a tag: the specification cuts a SHA-512.
const REFERRERS_HEX_CHARACTERS: usize = 64;

/// Why a text is not a name, tag or registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not `host[:port]`.
    #[error("not a registry: expected host[:port]")]
    Registry,
    /// Not a repository name.
    #[error("not a repository name: expected lower-case words joined by . _ - and /, at most 255 characters")]
    Repository,
    /// Not a tag.
    #[error("not a tag: expected at most 128 of letters, digits, _ . -, not starting with . or -")]
    Tag,
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

/// A registry as images name it: `host[:port]` in lower case, such as `docker.io` or `localhost:5000`.
///
/// Besides its name it knows whether it is unlisted: no part of the configuration. Those are as many as clients name, so
/// they share what listed ones have each for itself. Two of one name are equal either way.
#[derive(Clone)]
pub struct Registry(Arc<str>, bool);

impl PartialEq for Registry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Registry {}

impl Hash for Registry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Ord for Registry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Registry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Registry {
    /// Docker Hub, the registry of names without a host.
    pub const DOCKER_HUB: &'static str = "docker.io";
    /// The label in metrics of every registry that the configuration does not list.
    const LABEL_OF_UNLISTED: &'static str = "other";
    /// What stands for all of them; no registry can be called so.
    const ALL_UNLISTED: &'static str = "*";

    /// Reads `host[:port]`; the host may be a name, an IPv4 address or a bracketed IPv6 address.
    ///
    /// # Errors
    /// [`InvalidName::Registry`].
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let text = text.to_ascii_lowercase();
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(InvalidName::Registry)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| InvalidName::Registry)?;
            (None, rest.strip_prefix(':').or_else(|| (!rest.is_empty()).then_some("")))
        } else {
            match text.split_once(':') {
                Some((host, port)) => (Some(host), Some(port)),
                None => (Some(text.as_str()), None),
            }
        };
        let port_is_number = port.is_none_or(|port| {
            !port.is_empty()
                && !port.starts_with('0')
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok()
        });
        if text.len() > 255 || !host.is_none_or(is_host) || !port_is_number {
            return Err(InvalidName::Registry);
        }
        Ok(Self(text.into(), false))
    }

    /// The same, which the configuration does not list.
    pub fn unlisted(self) -> Self {
        Self(self.0, true)
    }

    /// What stands for every registry that the configuration does not list.
    pub fn all_unlisted() -> Self {
        Self(Self::ALL_UNLISTED.into(), true)
    }

    /// Whether the configuration does not list it.
    pub fn is_unlisted(&self) -> bool {
        self.1
    }

    /// Its label in metrics, of which there are no more than the configuration lists.
    pub fn label(&self) -> &str {
        if self.is_unlisted() { Self::LABEL_OF_UNLISTED } else { &self.0 }
    }

    /// To whom what is done for it is charged.
    pub fn owner(&self) -> Self {
        if self.is_unlisted() { Self::all_unlisted() } else { self.clone() }
    }

    /// The text that images carry.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether that is its name.
    pub fn is_named(&self, text: &str) -> bool {
        self.0.eq_ignore_ascii_case(text)
    }

    /// Whether a leading path segment can only be meant as a registry: a dot, a colon, or `localhost`.
    pub fn looks_like_host(segment: &str) -> bool {
        segment.contains(['.', ':']) || segment == "localhost"
    }

    /// Its folder below `repos/`: the colon of a port becomes `_5000_`, because other tools split at colons.
    pub fn to_folder(&self) -> String {
        let (host, port) = match self.0.rfind(']').map_or_else(
            || self.0.rfind(':'),
            |bracket| self.0[bracket..].find(':').map(|colon| bracket + colon),
        ) {
            Some(colon) => (&self.0[..colon], Some(&self.0[colon + 1..])),
            None => (&*self.0, None),
        };
        let host = host.replace(':', "_");
        port.map_or_else(|| host.clone(), |port| format!("{host}_{port}_"))
    }

    /// Reads what [`Registry::to_folder`] wrote.
    pub fn from_folder(folder: &str) -> Option<Self> {
        let (host, port) = match folder.strip_suffix('_') {
            Some(rest) => {
                let (host, port) = rest.rsplit_once('_')?;
                (host, Some(port))
            }
            None => (folder, None),
        };
        let host = if host.starts_with('[') { host.replace('_', ":") } else { host.to_owned() };
        let text = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        Self::parse(&text).ok()
    }
}

/// A repository's name within its registry, such as `library/alpine`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Arc<str>);

impl RepoName {
    /// Reads a name of one or more components.
    ///
    /// # Errors
    /// [`InvalidName::Repository`].
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.len() > NAME_CHARACTERS_MAX || !text.split('/').all(is_component) {
            return Err(InvalidName::Repository);
        }
        Ok(Self(text.into()))
    }

    /// The text between `/v2/` and `/manifests/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A repository of a registry: what content is granted to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repo {
    /// Where it comes from.
    pub registry: Registry,
    /// Its name there.
    pub name: RepoName,
}

impl Repo {
    /// The repository `name` of `registry`; a one-word name of Docker Hub means `library/…`, unless that is too long to be
    /// a name: there is no such image.
    pub fn new(registry: Registry, name: RepoName) -> Self {
        let is_official = registry.as_str() == Registry::DOCKER_HUB && !name.as_str().contains('/');
        let name = if is_official && name.as_str().len() + OFFICIAL.len() <= NAME_CHARACTERS_MAX {
            RepoName(format!("{OFFICIAL}{}", name.as_str()).into())
        } else {
            name
        };
        Self { registry, name }
    }
}

/// A tag, such as `3.20`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// Reads a tag.
    ///
    /// # Errors
    /// [`InvalidName::Tag`].
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(word);
        if !starts_well
            || text.len() > TAG_CHARACTERS_MAX
            || !bytes.all(|b| word(b) || b == b'.' || b == b'-')
        {
            return Err(InvalidName::Tag);
        }
        Ok(Self(text.into()))
    }

    /// The tag under which registries without the referrers API keep the list of what refers to `digest`.
    pub fn of_referrers(digest: &Digest) -> Self {
        let (algorithm, mut hex) = (digest.algorithm().as_str(), digest.hex());
        hex.truncate(REFERRERS_HEX_CHARACTERS);
        Self(format!("{algorithm}-{hex}").into())
    }

    /// Whether it can be such a tag.
    pub fn is_of_referrers(&self) -> bool {
        self.behind_digest().is_some_and(str::is_empty)
    }

    /// Whether it is such a tag, or belongs to a digest in the same way: cosign's signatures are at `sha256-….sig`.
    pub fn is_about_digest(&self) -> bool {
        self.behind_digest().is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// What follows the digest that it begins with, if it does.
    fn behind_digest(&self) -> Option<&str> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        Algorithm::ALL.iter().find_map(|algorithm| {
            let rest = self.0.strip_prefix(algorithm.as_str())?.strip_prefix('-')?;
            let (hex, rest) = rest.split_at_checked(REFERRERS_HEX_CHARACTERS)?;
            hex.bytes().all(is_hex).then_some(rest)
        })
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What names a manifest in a request: a tag, or the digest of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// Movable: ask upstream what it means now.
    Tag(Tag),
    /// Fixed for ever.
    Digest(Digest),
}

impl Reference {
    /// Reads a reference: a digest if it contains a colon, else a tag.
    ///
    /// # Errors
    /// [`InvalidName::Tag`] or [`InvalidName::Digest`].
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') {
            Ok(Self::Digest(Digest::parse(text)?))
        } else {
            Ok(Self::Tag(Tag::parse(text)?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => fmt::Display::fmt(tag, f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

impl fmt::Debug for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text conversions that the three plain names share.
macro_rules! plain_name {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(|error| de::Error::custom(format!("`{text}`: {error}")))
            }
        }
    )+};
}

plain_name!(Registry, RepoName, Tag);

/// DNS labels: letters, digits and inner hyphens, joined by dots.
fn is_host(text: &str) -> bool {
    text.split('.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes.split(word).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_survive_the_way_to_a_folder_and_back() {
        let check = |text: &str, folder: &str| {
            let registry = Registry::parse(text).unwrap();
            assert_eq!(registry.to_folder(), folder);
            assert_eq!(Registry::from_folder(folder), Some(registry));
            assert!(!folder.contains(':'));
        };
        check("docker.io", "docker.io");
        check("localhost:5000", "localhost_5000_");
        check("[::1]", "[__1]");
        check("[::1]:5000", "[__1]_5000_");
        check("Registry.Example.com:443", "registry.example.com_443_");
    }

    #[test]
    fn registries_that_are_not_listed_share_an_owner_and_a_label() {
        let registry = |text: &str| Registry::parse(text).unwrap();
        let (a, b) = (registry("a.example").unlisted(), registry("b.example").unlisted());
        assert_eq!((a.owner(), a.label()), (b.owner(), b.label()));
        assert_eq!(a, registry("a.example"), "it is the same place");
        assert_eq!(registry("a.example").label(), "a.example");
        assert_ne!(registry("other").owner(), a.owner());
        assert!(Registry::parse(a.owner().as_str()).is_err());
    }

    #[test]
    fn refuses_what_is_not_a_registry() {
        let bad = [
            "", ".", "..", "a..b", "-a", "a/b", "a:b", "a:", "a:0", "a:99999", "a_b", "[::1", "[::1]x", "[]",
        ];
        for text in bad {
            assert_eq!(Registry::parse(text), Err(InvalidName::Registry), "{text}");
        }
    }

    #[test]
    fn repository_names_follow_the_grammar() {
        for text in ["a", "library/alpine", "a/b/c/d/e", "a-b--c", "a_b__c.d", "0/1", "docker.io/x"] {
            assert!(RepoName::parse(text).is_ok(), "{text}");
        }
        let long = "a/".repeat(128);
        for text in
            ["", "/", "a/", "/a", "a//b", "A", "_oci", "a/_oci", "..", "a/..", "a___b", "a..b", "a._b", &long]
        {
            assert!(RepoName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_word_names_of_docker_hub_are_in_library() {
        let repo = |registry: &str, name: &str| {
            Repo::new(Registry::parse(registry).unwrap(), RepoName::parse(name).unwrap()).to_string()
        };
        assert_eq!(repo("docker.io", "alpine"), "docker.io/library/alpine");
        assert_eq!(repo("docker.io", "grafana/loki"), "docker.io/grafana/loki");
        assert_eq!(repo("quay.io", "alpine"), "quay.io/alpine");
    }

    #[test]
    fn a_list_of_referrers_has_a_tag() {
        for algorithm in Algorithm::ALL {
            let tag = Tag::of_referrers(&Digest::of(algorithm, b"x"));
            assert!(tag.is_of_referrers() && Tag::parse(tag.as_str()).is_ok(), "{tag}");
            assert_eq!(tag.as_str().len(), "sha256-".len() + 64);
            let signature = Tag::parse(&format!("{tag}.sig")).unwrap();
            assert!(tag.is_about_digest() && signature.is_about_digest() && !signature.is_of_referrers());
            for other in [format!("{tag}0"), tag.to_string().to_uppercase(), format!("x{tag}")] {
                let other = Tag::parse(&other).unwrap();
                assert!(!other.is_of_referrers() && !other.is_about_digest(), "{other}");
            }
        }
    }

    #[test]
    fn a_reference_with_a_colon_is_a_digest() {
        assert!(matches!(Reference::parse("3.20_x-1"), Ok(Reference::Tag(_))));
        assert!(
            Reference::parse(".x").is_err()
                && Reference::parse("-x").is_err()
                && Reference::parse("").is_err()
        );
        assert!(matches!(Reference::parse("sha256:abc"), Err(InvalidName::Digest(InvalidDigest::Malformed))));
        assert!(Reference::parse(&"x".repeat(129)).is_err());
    }
}
