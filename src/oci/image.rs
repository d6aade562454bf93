//! Images as people write them, and platforms: what a command line and a configuration name.
//!
//! The rules are Docker's: a first part with a dot or a colon, or `localhost`, is a registry; without one it is
//! Docker Hub, and a single word there is in `library/`. Without tag and digest it is `latest`; with both, the
//! digest counts, because it cannot move.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::digest::Digest;
use super::manifest::Described;
use super::name::{InvalidName, Reference, Registry, Repo, RepoName, Tag};

/// The tag of an image that is written without one.
const LATEST: &str = "latest";

/// An image by name, such as `alpine:3` or `harbor.example.com/p/app@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub repo: Repo,
    /// Which it is there.
    pub reference: Reference,
}

/// Why a text is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImage {
    /// A part of it is against the grammar of names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// `docker://alpine:3`, as skopeo and Helm have it, or a URL.
    #[error(
        "not an image: expected a name such as alpine:3 or ghcr.io/org/app:1; this looks like a name of skopeo's or Helm's, or a \
         URL: leave out what stands up to `://`"
    )]
    Transport,
    /// `docker-archive:…`, or another transport that is no registry.
    #[error(
        "not an image of a registry: expected a name such as alpine:3; this looks like a transport of skopeo's"
    )]
    Local,
}

/// Transports of skopeo whose images are not in a registry.
const LOCAL_TRANSPORTS: [&str; 7] =
    ["containers-storage", "dir", "docker-archive", "docker-daemon", "oci", "oci-archive", "sif"];

impl FromStr for Image {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        if text.contains("://") {
            return Err(InvalidImage::Transport);
        }
        Self::parse(text).map_err(|error| match text.split_once(':') {
            // Only where it can be nothing else: `dir:3` is an image of Docker Hub.
            Some((transport, _)) if LOCAL_TRANSPORTS.contains(&transport) => InvalidImage::Local,
            _ => error.into(),
        })
    }
}

impl Image {
    fn parse(text: &str) -> Result<Self, InvalidName> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((word, tag)) => (&name[..last + word.len()], Some(Tag::parse(tag)?)),
            None => (name, None),
        };
        let (registry, name) = match name.split_once('/') {
            Some((first, rest)) if Registry::looks_like_host(first) => (first, rest),
            _ => (Registry::DOCKER_HUB, name),
        };
        let repo = Repo::new(Registry::parse(registry)?, RepoName::parse(name)?);
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => Reference::Tag(Tag::parse(LATEST)?),
        };
        Ok(Self { repo, reference })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = if matches!(self.reference, Reference::Digest(_)) { '@' } else { ':' };
        write!(f, "{}{joint}{}", self.repo, self.reference)
    }
}

/// A platform: `os/architecture`, or `os/architecture/variant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlatform {
    /// Not words joined by slashes.
    #[error("expected a platform such as linux/amd64 or linux/arm/v7")]
    Form,
    /// `windows(10.0.17763)/amd64`.
    #[error(
        "expected a platform such as linux/amd64 or windows/amd64; this looks like one of containerd's: leave out the version \
         in parentheses"
    )]
    OsVersion,
    /// `linux/amd64,linux/arm64`.
    #[error("expected one platform, such as linux/amd64; this looks like several: give each by itself")]
    Several,
}

impl Platform {
    /// Whether an index says this of one of its manifests. Without a variant, any will do; an arm64 without one is
    /// a v8.
    pub fn is(&self, described: &Described) -> bool {
        let variant = match (&*described.variant, &*described.architecture) {
            ("", "arm64") => "v8",
            (variant, _) => variant,
        };
        *described.os == *self.os
            && *described.architecture == *self.architecture
            && self.variant.as_ref().is_none_or(|wanted| wanted == variant)
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        if text.contains('(') {
            return Err(InvalidPlatform::OsVersion);
        }
        if text.contains(',') {
            return Err(InvalidPlatform::Several);
        }
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(InvalidPlatform::Form),
        };
        if !parts.iter().all(is_word) {
            return Err(InvalidPlatform::Form);
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// As text in a configuration, in a file, and on the wire.
macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

as_text!(Image, Platform);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let check = |text: &str, expected: &str| {
            let image: Image = text.parse().unwrap();
            assert_eq!(image.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(image), "what is shown can be typed");
        };
        check("alpine", "docker.io/library/alpine:latest");
        check("alpine:3", "docker.io/library/alpine:3");
        check("grafana/loki:2", "docker.io/grafana/loki:2");
        check("docker.io/alpine", "docker.io/library/alpine:latest");
        check("quay.io/a/b:1", "quay.io/a/b:1");
        check("localhost:5000/a", "localhost:5000/a:latest");
        check("localhost/a:1", "localhost/a:1");
        check(&format!("h.example.com/p/i@{digest}"), &format!("h.example.com/p/i@{digest}"));
        check(&format!("alpine:3@{digest}"), &format!("docker.io/library/alpine@{digest}"));
        for text in ["", ":3", "alpine:", "alpine:-", "UPPER/x", "a@sha256:xyz", "a b", "quay.io/", "a//b"] {
            assert!(text.parse::<Image>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_other_programs_write_is_named() {
        let image = |text: &str| text.parse::<Image>().unwrap_err();
        for text in ["docker://alpine:3", "oci://ghcr.io/org/chart", "https://ghcr.io/org/app", "DOCKER://a"]
        {
            assert_eq!(image(text), InvalidImage::Transport, "{text}");
        }
        for text in ["docker-archive:/tmp/x.tar", "oci:/var/lib/x:1", "dir:/tmp/x", "docker-daemon:alpine:3"]
        {
            assert_eq!(image(text), InvalidImage::Local, "{text}");
        }
        assert_eq!("dir:3".parse::<Image>().unwrap().to_string(), "docker.io/library/dir:3");
        let platform = |text: &str| text.parse::<Platform>().unwrap_err();
        for text in ["windows(10.0.17763)/amd64", "windows(10.0.20348.2762)/amd64", "linux()/arm/v7"] {
            assert_eq!(platform(text), InvalidPlatform::OsVersion, "{text}");
        }
        assert_eq!(platform("linux/amd64,linux/arm64"), InvalidPlatform::Several);
    }

    #[test]
    fn platforms_match_what_an_index_says() {
        let check = |wanted: &str, described: &str, expected: bool| {
            let platform: Platform = wanted.parse().unwrap();
            let is = Described::read(described).is_some_and(|described| platform.is(&described));
            assert_eq!(is, expected, "{wanted} {described}");
            assert_eq!(platform.to_string(), wanted);
        };
        let amd64 = r#"{"os":"linux","architecture":"amd64"}"#;
        let arm = r#"{"os":"linux","architecture":"arm","variant":"v7"}"#;
        check("linux/amd64", amd64, true);
        check("linux/arm64", amd64, false);
        check("windows/amd64", amd64, false);
        check("linux/arm", arm, true);
        check("linux/arm/v6", arm, false);
        check("linux/arm64/v8", r#"{"os":"linux","architecture":"arm64"}"#, true);
        check("linux/amd64", "\"nonsense\"", false);
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd64/", "linux/a b"] {
            assert_eq!(text.parse::<Platform>(), Err(InvalidPlatform::Form), "{text}");
        }
    }
}
