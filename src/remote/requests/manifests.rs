//! Tags and manifests: what a tag means now, and the bytes of a manifest.
//!
//! A tag is looked up by HEAD, which Docker Hub does not count. HEAD is optional for registries and their proxies, and its
//! answer has no body that shows whose refusal it is: after a refusal a GET decides, and so it does after a server's error
//! at the end of all rounds. Whatever the client accepts, the registry is asked for every type of manifest. An answer that is no manifest, or not the one asked for, is an endpoint's failure
//! and not the registry's word: the next endpoint is asked. A manifest that no client takes is the registry's word, and
//! final.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{AGE, CONTENT_LENGTH, HeaderName, WARNING};
use tokio::time::Instant;

use crate::context::RequestContext;
use crate::oci::manifest::{self, InvalidManifest, MANIFEST_BYTES_MAX, Manifest};
use crate::oci::{Digest, Reference, RepoName, Speaker, Tag};
use crate::parsing::{self, Place};
use crate::remote::client;
use crate::remote::endpoint::latency::LateSignal;
use crate::remote::error::Error;
use crate::remote::exchange::Target;
use crate::remote::handle::Remote;
use crate::remote::message::{is_page, media_type};
use crate::remote::transport::request::{ApiRequest, ApiResponse};
use crate::shares::Owner;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// What a warning begins with that says that an answer is stale: that of RFC 7234, and berth's own.
const STALE: [&str; 3] = ["110 ", "111 ", "299 - \"stale:"];
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a tag means now, as far as a HEAD told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The digest of the manifest; `None` if HEAD is answered without it: then only a GET tells.
    pub digest: Option<Digest>,
    /// The media type of the manifest.
    pub media_type: Option<String>,
    /// The size of the manifest in bytes.
    pub size: Option<u64>,
    /// How fresh the answer is.
    pub standing: Freshness,
    /// Why only a GET tells, if that is so.
    pub untold: Untold,
}

impl Resolved {
    /// A look-up that tells nothing of use.
    pub(crate) fn unknown(untold: Untold) -> Self {
        Self { digest: None, media_type: None, size: None, standing: Freshness::FRESH, untold }
    }
}

/// Why HEAD does not tell what a tag means, if it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// HEAD is not known there, or answered without a digest.
    Silent,
    /// HEAD is refused: there is no such tag, or none for this login.
    Refused,
    /// The registry, or a proxy before it, fails with a 5xx. It may do so for HEAD alone.
    Failed,
}

/// How fresh an answer about a tag is, as the parent says that gave it. The answer of a registry itself is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Seconds since the registry confirmed the answer; `None` if it never has.
    age: Option<u64>,
    /// Whether the registry should have confirmed the answer and could not.
    pub is_stale: bool,
}

impl Freshness {
    /// The freshness of an answer of a registry itself.
    pub(crate) const FRESH: Self = Self { age: Some(0), is_stale: false };

    /// When the registry confirmed the answer, in seconds since 1970; `now` is the present time.
    pub fn confirmed_at(self, now: u64) -> u64 {
        self.age.map_or(0, |age| now.saturating_sub(age))
    }

    /// How fresh an answer of `remote` about a tag is.
    pub(crate) fn of(remote: &Remote, headers: &HeaderMap) -> Self {
        if remote.mirror().is_some() { Self::read(headers) } else { Self::FRESH }
    }

    fn read(headers: &HeaderMap) -> Self {
        let texts = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let is_stale = texts(CACHE_STATUS).any(|text| text.contains("detail=stale"))
            || texts(WARNING).any(|text| STALE.iter().any(|begin| text.starts_with(begin)));
        let age = texts(AGE).next().and_then(|age| age.trim().parse().ok());
        // A mirror that says nothing of the kind is believed.
        Self { age: age.or_else(|| (!is_stale).then_some(0)), is_stale }
    }
}

/// A manifest as it came. Asked for by digest its bytes are verified, by tag they are not; it is a manifest in either case.
#[derive(Debug)]
pub struct Fetched {
    /// The bytes of the manifest.
    pub body: Bytes,
    /// The parsed manifest.
    pub manifest: Manifest,
    /// The index of the endpoint that it came from.
    pub endpoint: usize,
    /// Whether the manifest came without any credential.
    pub public: bool,
    /// As whose word the manifest counts.
    pub speaker: Speaker,
    /// How fresh the answer is, if the manifest was asked for by tag.
    pub standing: Freshness,
    /// The place of the manifest in memory, until it is stored.
    pub place: Option<Place>,
}

/// Asks `target` by HEAD what `tag` means. Gives the signal `late` when the answer is late.
///
/// # Errors
/// [`Error`], as [`Target::exchange`].
pub(crate) async fn resolve(
    target: Target<'_>,
    (context, late): (&RequestContext, &LateSignal),
    (name, tag): (&RepoName, &Tag),
    deadline: Instant,
) -> Result<Resolved, Error> {
    let ask = ApiRequest::head(name, format!("manifests/{tag}")).along(context).telling(late).tentative();
    let ask = ApiRequest { accept: Some(manifest::ACCEPT), ..ask };
    match target.exchange(&ask, deadline).await {
        Ok(answer) => {
            let headers = answer.response.headers();
            let resolved = resolved(headers, Freshness::of(target.remote(), headers));
            // With a digest it is a manifest, whatever it is labelled: the digest will be held against it.
            if resolved.digest.is_none() && is_page(headers) {
                return Err(Error::Malformed("a page instead of a manifest"));
            }
            Ok(resolved)
        }
        Err(error) if is_about_head(&error) => Ok(Resolved::unknown(Untold::Silent)),
        Err(error) => Err(error),
    }
}

/// Asks `target` for a manifest, up to the head of the answer.
///
/// # Errors
/// [`Error`], as [`Target::exchange`].
pub(crate) async fn open(
    target: Target<'_>,
    (context, late): (&RequestContext, &LateSignal),
    (name, reference): (&RepoName, &Reference),
    deadline: Instant,
) -> Result<ApiResponse, Error> {
    let ask = ApiRequest::get(name, format!("manifests/{reference}")).along(context).telling(late);
    let ask = ApiRequest { accept: Some(manifest::ACCEPT), ..ask };
    let _spent = target.remote().limits().acquire(target.endpoint())?;
    target.exchange(&ask, deadline).await
}

/// Reads the manifest that `answer` is the head of, and verifies it.
///
/// # Errors
/// [`Error`], if it does not come whole, or is none that clients take, or another than was asked for.
pub(crate) async fn read(
    target: Target<'_>,
    context: &RequestContext,
    answer: ApiResponse,
    reference: &Reference,
    deadline: Instant,
) -> Result<Fetched, Error> {
    let remote = target.remote();
    let (head, body) = answer.response.into_parts();
    let _seat = answer.seat;
    let content_type = media_type(&head.headers).map(str::to_owned);
    let standing = Freshness::of(remote, &head.headers);
    let (endpoint, public, speaker) = (target.endpoint().index(), answer.public, remote.speaker());
    let (until, mut place) = ((remote.transport().client().timeouts.idle, deadline), None);
    let owner = Owner::new(remote.registry(), context.client());
    let read = client::read_document(owner, body, MANIFEST_BYTES_MAX, until, &mut place).await;
    let body = read.map_err(|error| match error {
        client::TOO_LARGE if !is_page(&head.headers) => unsupported(&InvalidManifest::TooLarge),
        error => error,
    })?;
    let (bytes, reference, stated) = (body.clone(), reference.clone(), content_digest(&head.headers));
    // The place goes along: it is taken until the work is done, also if nobody waits for that.
    let verify = move || (verify(content_type.as_deref(), &bytes, &reference, stated), place);
    let (manifest, place) = parsing::parse(body.len(), verify).await;
    Ok(Fetched { body, manifest: manifest?, endpoint, public, speaker, standing, place })
}

/// Verifies that a body is a manifest, and the one that was asked for; `stated` is the digest that came with it.
fn verify(
    content_type: Option<&str>,
    body: &[u8],
    reference: &Reference,
    stated: Option<Digest>,
) -> Result<Manifest, Error> {
    let is_it = |digest: &Digest| Digest::of(digest.algorithm(), body) == *digest;
    let manifest = Manifest::parse(content_type, body).map_err(|error| {
        let is_proven = match reference {
            Reference::Digest(digest) => is_it(digest),
            Reference::Tag(_) => stated.as_ref().is_some_and(is_it),
        };
        // What is not proven may be anything, such as the page of a portal.
        if is_proven || error.is_manifest() {
            unsupported(&error)
        } else {
            Error::Malformed("something else than a manifest that clients take")
        }
    })?;
    match reference {
        Reference::Digest(digest) if !is_it(digest) => Err(Error::DigestMismatch),
        Reference::Digest(_) | Reference::Tag(_) => Ok(manifest),
    }
}

/// The error for a manifest that no client takes, in words for the user who pulls it.
fn unsupported(error: &InvalidManifest) -> Error {
    Error::Unsupported(match error {
        InvalidManifest::Schema1 => {
            "only a manifest of schema 1, which clients no longer take: push the image again with a current client"
        }
        InvalidManifest::TooLarge => "a manifest of more than 4 MiB, which is more than clients read",
        InvalidManifest::TooManyParts => "a manifest of more parts than any image has",
        InvalidManifest::UnknownType(_) => "a manifest of a media type that is neither Docker's nor OCI's",
        InvalidManifest::Shape(_) => {
            "a manifest that lacks the fields of its type, or is of two types at once (CVE-2021-41190)"
        }
        InvalidManifest::NotJson(_) | InvalidManifest::Untyped => {
            "content of this digest that is no manifest: is it the digest of a blob?"
        }
    })
}

/// Whether the error seems to be about HEAD alone: some registries and proxies know no HEAD, and stores have signatures for
/// GET alone.
fn is_about_head(error: &Error) -> bool {
    matches!(error, Error::Unavailable { status: 400..=407 | 409..=428 | 430..=499 | 501 })
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    let digest = headers.get(&DOCKER_CONTENT_DIGEST)?.to_str().ok()?;
    Digest::parse(digest).ok()
}

fn resolved(headers: &HeaderMap, standing: Freshness) -> Resolved {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    Resolved {
        digest: content_digest(headers),
        media_type: media_type(headers).map(str::to_owned),
        size: length.and_then(|length| length.parse().ok()),
        standing,
        untold: Untold::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parents_answer_is_as_old_as_it_says_and_stale_if_it_says_so() {
        let check = |lines: &[(&'static str, &'static str)], confirmed_at: u64, is_stale: bool| {
            let lines = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)));
            let standing = Freshness::read(&HeaderMap::from_iter(lines));
            assert_eq!(
                (standing.confirmed_at(1000), standing.is_stale),
                (confirmed_at, is_stale),
                "{standing:?}"
            );
        };
        check(&[], 1000, false);
        check(&[("age", "30"), ("cache-status", "berth; hit")], 970, false);
        check(&[("age", "300"), ("cache-status", "berth; hit; detail=stale")], 700, true);
        check(
            &[("age", "300"), ("warning", "299 - \"stale: upstream could not confirm this tag\"")],
            700,
            true,
        );
        check(&[("warning", "110 - \"Response is stale\"")], 0, true);
        check(&[("warning", "299 - \"this image is deprecated\"")], 1000, false);
        check(&[("age", "soon")], 1000, false);
        check(&[("age", "5000")], 0, false);
    }
}
