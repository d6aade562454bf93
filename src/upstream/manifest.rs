//! Tags and manifests: what a tag means now, and the bytes of a manifest.
//!
//! A tag is looked up by HEAD, which Docker Hub does not count. Whatever the client accepts, upstream is asked for
//! every type of manifest. An answer that is no manifest, or not the one asked for, is an endpoint's failure and
//! not the registry's word: the next endpoint is asked.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{AGE, CONTENT_LENGTH, HeaderName, WARNING};
use tokio::time::Instant;

use super::exchange::{Answer, Ask, is_page, media_type};
use super::hedge::Late;
use super::retry::{ROUNDS_MAX, Rounds};
use super::server::Server;
use super::{Error, Upstream, client};
use crate::context::RequestContext;
use crate::oci::manifest::{self, InvalidManifest, MANIFEST_BYTES_MAX, Manifest};
use crate::oci::{Digest, Reference, RepoName, Speaker, Tag};
use crate::parsing::{self, Place};
use crate::shares::Owner;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Warnings that an answer is stale: RFC 7234, and berth's own.
const STALE: [&str; 3] = ["110 ", "111 ", "299 - \"stale:"];
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
    /// How fresh that is.
    pub standing: Standing,
}

/// How fresh an answer about a tag is by the word of the parent that gave it. A registry's own is as fresh as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// For how many seconds the registry has not confirmed it; none if it never has.
    age: Option<u64>,
    /// Whether the registry should have and could not.
    pub is_stale: bool,
}

impl Standing {
    pub(super) const FRESH: Self = Self { age: Some(0), is_stale: false };

    /// When the registry confirmed it, in seconds since 1970, at the time `now`.
    pub fn confirmed_at(self, now: u64) -> u64 {
        self.age.map_or(0, |age| now.saturating_sub(age))
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

/// A manifest as it came. By digest its bytes are proven, by tag they are not; it is a manifest in either case.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub body: Bytes,
    /// What they say.
    pub manifest: Manifest,
    /// Which endpoint it came from.
    pub endpoint: usize,
    /// Whether it came without any credential.
    pub public: bool,
    /// Who sent it.
    pub speaker: Speaker,
    /// If it was asked for by tag: how fresh that is.
    pub standing: Standing,
    /// Its place in memory, until it is stored.
    pub place: Option<Place>,
}

impl Upstream {
    /// Asks what `tag` means. Every endpoint is asked once at most: who checks a tag has something to fall back on.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn resolve(
        &self,
        context: &RequestContext,
        name: &RepoName,
        tag: &Tag,
    ) -> Result<Resolved, Error> {
        let deadline = self.deadline();
        let late = Late::default();
        let rounds =
            Rounds::new(self, (&self.key_of_tag(name, tag), context), &[], 1, deadline).hedging(&late);
        let ask = Ask::head(name, format!("manifests/{tag}")).along(context).telling(&late);
        let ask = &Ask { accept: Some(manifest::ACCEPT), ..ask };
        rounds
            .first(|stop| async move {
                match stop.upstream().exchange(stop.server(), ask, deadline).await {
                    Ok(answer) if is_page(answer.response.headers()) => {
                        Err(Error::Malformed("a page instead of a manifest"))
                    }
                    Ok(answer) => {
                        let headers = answer.response.headers();
                        Ok(resolved(headers, stop.upstream().standing(headers)))
                    }
                    // Some registries and proxies know no HEAD.
                    Err(Error::Unavailable { status: 405 | 501 }) => {
                        let standing = Standing::FRESH;
                        Ok(Resolved { digest: None, media_type: None, size: None, standing })
                    }
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Fetches a manifest.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none had it.
    pub async fn manifest(
        &self,
        context: &RequestContext,
        name: &RepoName,
        reference: &Reference,
    ) -> Result<Fetched, Error> {
        self.manifest_until(context, name, reference, self.deadline()).await
    }

    /// As [`Upstream::manifest`], as a part of a longer request.
    pub(super) async fn manifest_until(
        &self,
        context: &RequestContext,
        name: &RepoName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let key = match reference {
            Reference::Digest(digest) => digest.to_string(),
            Reference::Tag(tag) => self.key_of_tag(name, tag),
        };
        let late = &Late::default();
        let mut rounds = Rounds::new(self, (&key, context), &[], ROUNDS_MAX, deadline).hedging(late);
        while let Some((stop, answer)) = rounds
            .answer(|stop| async move {
                let from = (stop.server(), context, late);
                stop.upstream().open_manifest(from, name, reference, deadline).await
            })
            .await
        {
            match stop.upstream().read_manifest((stop.server(), context), answer, reference, deadline).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => rounds.failed(stop, error),
            }
        }
        Err(rounds.give_up())
    }

    /// Its head.
    async fn open_manifest(
        &self,
        (server, context, late): (&Server, &RequestContext, &Late),
        name: &RepoName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let ask = Ask::get(name, format!("manifests/{reference}")).along(context).telling(late);
        let ask = Ask { accept: Some(manifest::ACCEPT), ..ask };
        let _spent = self.spend(server)?;
        self.exchange(server, &ask, deadline).await
    }

    async fn read_manifest(
        &self,
        (server, context): (&Server, &RequestContext),
        answer: Answer,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let (head, body) = answer.response.into_parts();
        let _seat = answer.seat;
        let content_type = media_type(&head.headers).map(str::to_owned);
        let (endpoint, public, standing) = (server.index(), answer.public, self.standing(&head.headers));
        let speaker = self.speaker();
        let (until, mut place) = ((self.client.timeouts.idle, deadline), None);
        let owner = Owner::new(&self.registry, context.client());
        let body = client::read_document(owner, body, MANIFEST_BYTES_MAX, until, &mut place).await?;
        let (bytes, reference) = (body.clone(), reference.clone());
        // The place goes along: it is taken until the work is done, also if nobody waits for that.
        let verify = move || (verify(content_type.as_deref(), &bytes, &reference), place);
        let (manifest, place) = parsing::parse(body.len(), verify).await;
        Ok(Fetched { body, manifest: manifest?, endpoint, public, speaker, standing, place })
    }

    /// How fresh an answer about a tag is.
    pub(super) fn standing(&self, headers: &HeaderMap) -> Standing {
        if self.peer().is_some() { Standing::read(headers) } else { Standing::FRESH }
    }
}

fn verify(content_type: Option<&str>, body: &[u8], reference: &Reference) -> Result<Manifest, Error> {
    let manifest = Manifest::parse(content_type, body).map_err(|error| match error {
        InvalidManifest::Schema1 => Error::Malformed("a schema 1 manifest, which clients no longer take"),
        InvalidManifest::TooLarge => Error::Malformed("a manifest larger than clients take"),
        InvalidManifest::TooManyParts => Error::Malformed("a manifest of more parts than any image has"),
        _ => Error::Malformed("something else than a manifest that clients take"),
    })?;
    match reference {
        Reference::Digest(digest) if Digest::of(digest.algorithm(), body) != *digest => {
            Err(Error::DigestMismatch)
        }
        Reference::Digest(_) | Reference::Tag(_) => Ok(manifest),
    }
}

fn resolved(headers: &HeaderMap, standing: Standing) -> Resolved {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    Resolved {
        digest: text(&DOCKER_CONTENT_DIGEST).and_then(|digest| Digest::parse(digest).ok()),
        media_type: media_type(headers).map(str::to_owned),
        size: text(&CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        standing,
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
            let standing = Standing::read(&HeaderMap::from_iter(lines));
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
