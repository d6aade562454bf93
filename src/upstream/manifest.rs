//! Tags and manifests: what a tag means now, and the bytes of a manifest.
//!
//! A tag is looked up by HEAD, which Docker Hub does not count. Whatever the client accepts, upstream is asked for
//! every type of manifest. An answer that is no manifest, or not the one asked for, is an endpoint's failure and
//! not the registry's word: the next endpoint is asked.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, HeaderName};
use tokio::time::Instant;

use super::exchange::{Ask, is_page, media_type};
use super::retry::{ROUNDS_MAX, Rounds};
use super::server::Server;
use super::{Error, Upstream, client};
use crate::oci::manifest::{self, InvalidManifest, MANIFEST_BYTES_MAX, Manifest};
use crate::oci::{Digest, Reference, RepoName, Tag};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a tag means now, as far as upstream said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest; `None` if upstream answers HEAD without saying: then only a GET tells.
    pub digest: Option<Digest>,
    /// Its media type.
    pub media_type: Option<String>,
    /// Its size.
    pub size: Option<u64>,
}

/// A manifest as it came. By digest its bytes are proven, by tag they are not; it is a manifest in either case.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes.
    pub body: Bytes,
    /// What they say.
    pub manifest: Manifest,
    /// Which endpoint it came from.
    pub endpoint: usize,
    /// Whether it came without any credential.
    pub public: bool,
}

impl Upstream {
    /// Asks what `tag` means. Every endpoint is asked once at most: who checks a tag has something to fall back on.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn resolve(&self, name: &RepoName, tag: &Tag) -> Result<Resolved, Error> {
        let deadline = self.deadline();
        let mut rounds = Rounds::new(self, &[], 1, deadline);
        let ask = Ask { accept: Some(manifest::ACCEPT), ..Ask::head(name, format!("manifests/{tag}")) };
        while let Some(server) = rounds.next().await {
            match self.exchange(server, &ask, deadline).await {
                Ok(answer) if is_page(answer.response.headers()) => {
                    rounds.failed(server, Error::Malformed("a page instead of a manifest"));
                }
                Ok(answer) => return Ok(resolved(answer.response.headers())),
                // Some registries and proxies know no HEAD.
                Err(Error::Unavailable { status: 405 | 501 }) => {
                    return Ok(Resolved { digest: None, media_type: None, size: None });
                }
                Err(error) => rounds.failed(server, error),
            }
        }
        Err(rounds.give_up())
    }

    /// Fetches a manifest.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none had it.
    pub async fn manifest(&self, name: &RepoName, reference: &Reference) -> Result<Fetched, Error> {
        self.manifest_until(name, reference, self.deadline()).await
    }

    /// As [`Upstream::manifest`], as a part of a longer request.
    pub(super) async fn manifest_until(
        &self,
        name: &RepoName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let mut rounds = Rounds::new(self, &[], ROUNDS_MAX, deadline);
        while let Some(server) = rounds.next().await {
            match self.manifest_from(server, name, reference, deadline).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => rounds.failed(server, error),
            }
        }
        Err(rounds.give_up())
    }

    async fn manifest_from(
        &self,
        server: &Server,
        name: &RepoName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let ask = Ask { accept: Some(manifest::ACCEPT), ..Ask::get(name, format!("manifests/{reference}")) };
        let spent = self.spend(server)?;
        let answer = self.exchange(server, &ask, deadline).await?;
        drop(spent);
        let (head, body) = answer.response.into_parts();
        let content_type = media_type(&head.headers).map(str::to_owned);
        let (endpoint, public) = (server.index(), answer.public);
        let body = client::read(body, MANIFEST_BYTES_MAX, self.client.timeouts.idle, deadline).await?;
        let reference = reference.clone();
        // Four megabytes take a few milliseconds to hash and parse: too long for the runtime.
        let verified = tokio::task::spawn_blocking(move || {
            let manifest = verify(content_type.as_deref(), &body, &reference)?;
            Ok(Fetched { body, manifest, endpoint, public })
        })
        .await;
        verified.unwrap_or(Err(Error::Malformed("a manifest that cannot be read")))
    }
}

fn verify(content_type: Option<&str>, body: &[u8], reference: &Reference) -> Result<Manifest, Error> {
    let manifest = Manifest::parse(content_type, body).map_err(|error| match error {
        InvalidManifest::Schema1 => Error::Malformed("a schema 1 manifest, which clients no longer take"),
        InvalidManifest::TooLarge => Error::Malformed("a manifest larger than clients take"),
        _ => Error::Malformed("something else than a manifest that clients take"),
    })?;
    match reference {
        Reference::Digest(digest) if Digest::of(digest.algorithm(), body) != *digest => {
            Err(Error::DigestMismatch)
        }
        Reference::Digest(_) | Reference::Tag(_) => Ok(manifest),
    }
}

fn resolved(headers: &HeaderMap) -> Resolved {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    Resolved {
        digest: text(&DOCKER_CONTENT_DIGEST).and_then(|digest| Digest::parse(digest).ok()),
        media_type: media_type(headers).map(str::to_owned),
        size: text(&CONTENT_LENGTH).and_then(|length| length.parse().ok()),
    }
}
