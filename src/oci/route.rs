//! Routes: what a request means. The only place that splits URLs.
//!
//! Clients put a mirror's path in three places: `/v2/X/NAME/…` (podman, BuildKit), `/X/v2/NAME/…` (Docker,
//! containerd) and `/X/NAME/…` (containerd with `override_path`). They are read alike: the tail says what is
//! asked (`manifests/R`, `blobs/D`, `tags/list`, `referrers/D`), the `v2` that marks the API is taken out,
//! and what remains is a name that may begin with a registry or an alias; [`Registries`] decides that. The
//! `v2` taken out is the first one that has some of the name behind it, so below `/v2/` a name may have a
//! component `v2` of its own.
//!
//! One thing has one name, however it is spelt: percent codes are resolved once, also that of a slash, and slashes that
//! are doubled or stand at the end mean nothing, as distribution has it (Portainer asks for `library%2Fapp`). What comes of
//! that is split and judged by the grammar of names, so that no spelling reaches what another does not. `..` is never
//! resolved, and no name contains it; nor does one contain a percent sign, which a code that is wrong leaves behind.

mod registries;
mod repositories;

use std::borrow::Cow;

use http::Method;
use url::form_urlencoded;

pub use registries::{Conflict, KnownRegistry, Registries};
pub use repositories::{Names, Repositories};

use super::digest::Digest;
use super::name::{InvalidName, Reference, Repo, RepoName};

/// The longest path: a name, a prefix of the same length, a keyword and a sha512 digest, all percent-coded
/// in part.
pub const PATH_BYTES_MAX: usize = 1024;
/// The longest query: `ns`, and a media type or a tag; a mirror has no use for more.
pub const QUERY_BYTES_MAX: usize = 1024;
/// The same for a list of tags: a registry's own cursor of 4,096 bytes, and what is added to it.
const LIST_QUERY_BYTES_MAX: usize = 5 * 1024;
/// Of a usual path: room for these is made at once.
const SEGMENTS_USUAL: usize = 8;

/// What a request asks for. `n` is a page size and `last` the entry after which the page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Base,
    /// `/v2/_catalog`: the repositories.
    Catalog {
        /// Page size.
        n: Option<usize>,
        /// Where the page begins.
        last: Option<String>,
    },
    /// `/v2/_oci/ext/discover`: extensions of the protocol.
    Extensions,
    /// A manifest, by tag or digest.
    Manifest {
        /// Of this repository.
        repo: Repo,
        /// Its tag or digest.
        reference: Reference,
    },
    /// A blob.
    Blob {
        /// Of this repository.
        repo: Repo,
        /// Its digest.
        digest: Digest,
    },
    /// The tags of a repository.
    Tags {
        /// Of this repository.
        repo: Repo,
        /// Page size.
        n: Option<usize>,
        /// Where the page begins.
        last: Option<String>,
    },
    /// The manifests that are about a digest.
    Referrers {
        /// In this repository.
        repo: Repo,
        /// What they are about.
        digest: Digest,
        /// Only those of this type.
        artifact_type: Option<String>,
    },
}

/// Why a request means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A repository that the configuration keeps from this mirror's clients.
    #[error("repository `{0}` may not be pulled through this mirror")]
    Forbidden(Box<Repo>),
    /// The method changes something: pushes and deletes.
    #[error("this is a pull-through mirror: push to the registry itself")]
    Method,
    /// A name, tag or digest against its grammar.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The name has no registry in front, and there is no default.
    #[error("the name has no registry, and this mirror has no default one")]
    NoDefault,
    /// No path of a registry.
    #[error("no such path")]
    NotFound,
    /// A page size that is not a number.
    #[error("the page size n is not a number")]
    Page,
    /// Path or query beyond any that a client sends.
    #[error("path or query too long")]
    PathTooLong,
    /// A registry that is not configured. The text is cut and printable.
    #[error("registry `{0}` is not configured on this mirror")]
    UnknownRegistry(String),
}

impl Route {
    /// The repository that the request is about, if it is about one.
    pub fn repository(&self) -> Option<&Repo> {
        match self {
            Self::Manifest { repo, .. }
            | Self::Blob { repo, .. }
            | Self::Referrers { repo, .. }
            | Self::Tags { repo, .. } => Some(repo),
            Self::Base | Self::Extensions | Self::Catalog { .. } => None,
        }
    }
}

/// Why a request has no route. Whether its client may know that depends on the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrouted {
    /// The repository that the request is about, if that much is known.
    pub repo: Option<Box<Repo>>,
    /// What is wrong with the request.
    pub error: RouteError,
}

impl From<RouteError> for Unrouted {
    fn from(error: RouteError) -> Self {
        Self { repo: None, error }
    }
}

impl From<InvalidName> for Unrouted {
    fn from(error: InvalidName) -> Self {
        RouteError::from(error).into()
    }
}

impl Registries {
    /// What a request means, if its repository may be pulled here. `host` is its `Host` header, `path` and `query` are as
    /// they came.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn route(
        &self,
        method: &Method,
        host: Option<&str>,
        path: &str,
        query: Option<&str>,
    ) -> Result<Route, RouteError> {
        let routed = self.route_of_any(method, host, path, query);
        let repo = routed.as_ref().map_or_else(|unrouted| unrouted.repo.as_deref(), Route::repository);
        repo.map_or(Ok(()), |repo| self.check_limits(repo))?;
        routed.map_err(|unrouted| unrouted.error)
    }

    /// What a request means, whether or not its repository may be pulled here: the caller decides that
    /// ([`Registries::may_have`]).
    ///
    /// # Errors
    /// [`Unrouted`], never with [`RouteError::Forbidden`].
    pub fn route_of_any(
        &self,
        method: &Method,
        host: Option<&str>,
        path: &str,
        query: Option<&str>,
    ) -> Result<Route, Unrouted> {
        let query = query.unwrap_or_default();
        if path.len() > PATH_BYTES_MAX || query.len() > QUERY_BYTES_MAX {
            let is_cursor = path.ends_with("/tags/list") && query.len() <= LIST_QUERY_BYTES_MAX;
            if path.len() > PATH_BYTES_MAX || !is_cursor {
                return Err(RouteError::PathTooLong.into());
            }
        }
        let (mut segments, is_coded) = split(path);
        let decoded;
        if is_coded {
            decoded = decode_all(&segments);
            segments = parts(&decoded);
        }
        let (head, tail) = Tail::split(&segments).ok_or(RouteError::NotFound)?;
        if ![Method::GET, Method::HEAD].contains(method) {
            return Err(RouteError::Method.into());
        }
        let query = Query::parse(query);
        let decided = self.decided(query.ns.as_deref(), host)?;
        let Some(name) = without_api_root(head, tail) else {
            self.check_prefix(decided.as_deref(), head)?;
            return Ok(query.route_of_api(tail)?);
        };
        let (registry, name) = self.resolve(decided, &name)?;
        let repo = Repo::new(registry.into_owned(), RepoName::parse(&name.join("/"))?);
        query.route_in(repo, tail)
    }
}

impl Registries {
    /// The registry that a request without a route means, or seems to mean; one that is not configured as it was named.
    pub fn meant(&self, host: Option<&str>, path: &str, query: Option<&str>) -> Option<String> {
        let query = query.unwrap_or_default();
        if path.len() > PATH_BYTES_MAX || query.len() > QUERY_BYTES_MAX {
            return None;
        }
        let (segments, _) = split(path);
        let decoded = decode_all(&segments);
        let segments = parts(&decoded);
        let found = self.decided(Query::parse(query).ns.as_deref(), host).and_then(|decided| {
            if let Some(registry) = decided {
                return Ok(registry.to_string());
            }
            let (head, tail) = Tail::split(&segments).ok_or(RouteError::NotFound)?;
            let name = without_api_root(head, tail).ok_or(RouteError::NotFound)?;
            self.resolve(None, &name).map(|(registry, _)| registry.to_string())
        });
        match found {
            Ok(registry) | Err(RouteError::UnknownRegistry(registry)) => Some(registry),
            Err(_) => None,
        }
    }
}

/// What the end of a path asks for.
#[derive(Clone, Copy)]
enum Tail<'a> {
    Base,
    Catalog,
    Extensions,
    Manifest(&'a str),
    Blob(&'a str),
    Tags,
    Referrers(&'a str),
    /// The way in for pushes; not even its status can be asked here.
    Upload,
}

impl<'a> Tail<'a> {
    /// Splits a path into what stands in front, and what is asked. In front of the API's own paths there may
    /// be a prefix; in front of the others there is at least one segment of a name.
    fn split<'s>(segments: &'s [&'a str]) -> Option<(&'s [&'a str], Self)> {
        if let Some(root) = segments.iter().position(|segment| *segment == "v2") {
            let own = match &segments[root + 1..] {
                [] => Some(Tail::Base),
                ["_catalog"] => Some(Tail::Catalog),
                ["_oci", "ext", "discover"] => Some(Tail::Extensions),
                _ => None,
            };
            if let Some(tail) = own {
                return Some((&segments[..root], tail));
            }
        }
        let (head, tail) = match segments {
            [head @ .., "blobs", "uploads", _] | [head @ .., "blobs", "uploads"] => (head, Tail::Upload),
            [head @ .., "tags", "list"] => (head, Tail::Tags),
            [head @ .., "manifests", reference] => (head, Tail::Manifest(reference)),
            [head @ .., "blobs", digest] => (head, Tail::Blob(digest)),
            [head @ .., "referrers", digest] => (head, Tail::Referrers(digest)),
            _ => return None,
        };
        (!head.is_empty() && head != ["v2"]).then_some((head, tail))
    }
}

/// The segments of the name, with the `v2` of the API taken out; `None` for the API's own paths.
fn without_api_root<'a>(head: &[&'a str], tail: Tail<'_>) -> Option<Vec<&'a str>> {
    if matches!(tail, Tail::Base | Tail::Catalog | Tail::Extensions) {
        return None;
    }
    let root = head.iter().position(|segment| *segment == "v2").filter(|root| root + 1 < head.len());
    let mut name = head.to_vec();
    if let Some(root) = root {
        name.remove(root);
    }
    Some(name)
}

/// The parameters of a request; of several with one name the first counts.
#[derive(Default)]
struct Query<'a> {
    ns: Option<Cow<'a, str>>,
    n: Option<Cow<'a, str>>,
    last: Option<Cow<'a, str>>,
    artifact_type: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn parse(query: &'a str) -> Self {
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let field = match &*key {
                "ns" => &mut parsed.ns,
                "n" => &mut parsed.n,
                "last" => &mut parsed.last,
                "artifactType" => &mut parsed.artifact_type,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        parsed
    }

    /// One of the API's own paths.
    fn route_of_api(self, tail: Tail<'_>) -> Result<Route, RouteError> {
        match tail {
            Tail::Base => Ok(Route::Base),
            Tail::Catalog => {
                Ok(Route::Catalog { n: self.page_size()?, last: self.last.map(Cow::into_owned) })
            }
            Tail::Extensions => Ok(Route::Extensions),
            Tail::Manifest(_) | Tail::Blob(_) | Tail::Tags | Tail::Referrers(_) | Tail::Upload => {
                Err(RouteError::NotFound)
            }
        }
    }

    /// A path below a repository.
    fn route_in(self, repo: Repo, tail: Tail<'_>) -> Result<Route, Unrouted> {
        let wrong = |repo: Repo, error| Unrouted { repo: Some(Box::new(repo)), error };
        match tail {
            Tail::Manifest(reference) => match Reference::parse(reference) {
                Ok(reference) => Ok(Route::Manifest { repo, reference }),
                Err(error) => Err(wrong(repo, error.into())),
            },
            Tail::Blob(digest) => match parse_digest(digest) {
                Ok(digest) => Ok(Route::Blob { repo, digest }),
                Err(error) => Err(wrong(repo, error)),
            },
            Tail::Tags => match self.page_size() {
                Ok(n) => Ok(Route::Tags { repo, n, last: self.last.map(Cow::into_owned) }),
                Err(error) => Err(wrong(repo, error)),
            },
            Tail::Referrers(digest) => {
                // A plus that was not percent-coded decodes to a space, which no media type has.
                let artifact_type =
                    self.artifact_type.map(|it| it.replace(' ', "+")).filter(|it| !it.is_empty());
                match parse_digest(digest) {
                    Ok(digest) => Ok(Route::Referrers { repo, digest, artifact_type }),
                    Err(error) => Err(wrong(repo, error)),
                }
            }
            Tail::Base | Tail::Catalog | Tail::Extensions | Tail::Upload => {
                Err(wrong(repo, RouteError::NotFound))
            }
        }
    }

    fn page_size(&self) -> Result<Option<usize>, RouteError> {
        // As the registry that everybody knows: what is empty is not there, and no number is larger than Go's.
        let n = self.n.as_deref().filter(|n| !n.is_empty()).map(str::parse::<i64>).transpose();
        let n = n.map_err(|_| RouteError::Page)?;
        n.map(usize::try_from).transpose().map_err(|_| RouteError::Page)
    }
}

fn parse_digest(text: &str) -> Result<Digest, RouteError> {
    Digest::parse(text).map_err(|error| RouteError::Name(error.into()))
}

/// The segments of a path that are not empty, and whether it has percent codes, as nearly none has.
fn split(path: &str) -> (Vec<&str>, bool) {
    let (mut segments, mut begin, mut is_coded) = (Vec::with_capacity(SEGMENTS_USUAL), 0, false);
    // Half of what `str::split` takes, and each request has a path.
    for at in memchr::memchr2_iter(b'/', b'%', path.as_bytes()) {
        if path.as_bytes()[at] == b'%' {
            is_coded = true;
        } else {
            if at > begin {
                segments.push(&path[begin..at]);
            }
            begin = at + 1;
        }
    }
    if begin < path.len() {
        segments.push(&path[begin..]);
    }
    (segments, is_coded)
}

fn decode_all<'a>(segments: &[&'a str]) -> Vec<Cow<'a, str>> {
    segments.iter().map(|segment| decode(segment)).collect()
}

/// The segments of segments that may have had slashes as percent codes in them. A reference has none: it stays as it is.
fn parts<'a>(decoded: &'a [Cow<'_, str>]) -> Vec<&'a str> {
    let Some((last, before)) = decoded.split_last() else { return Vec::new() };
    let of = |segment: &'a Cow<'_, str>| segment.split('/').filter(|part| !part.is_empty());
    let mut parts: Vec<_> = before.iter().flat_map(of).collect();
    match parts.last() {
        Some(&("manifests" | "blobs" | "referrers")) => parts.push(last.trim_matches('/')),
        _ => parts.extend(of(last)),
    }
    parts
}

/// A segment with its percent codes resolved, unless they are malformed or not UTF-8.
fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let value = match byte {
            b'%' => match (bytes.next().and_then(hex_value), bytes.next().and_then(hex_value)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Cow::Borrowed(segment),
            },
            other => other,
        };
        decoded.push(value);
    }
    match String::from_utf8(decoded) {
        Ok(decoded) => Cow::Owned(decoded),
        Err(_) => Cow::Borrowed(segment),
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests;
