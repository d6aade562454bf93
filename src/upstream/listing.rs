//! Lists: the tags of a repository, and what refers to a manifest.
//!
//! Pages are followed by the query of upstream's `Link` only, on berth's own URL: an upstream cannot send
//! a list's reader anywhere else, and parameters of its own (ACR adds `orderby=`) survive.

use bytes::Bytes;
use http::HeaderMap;
use http::header::LINK;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use url::form_urlencoded;

use super::exchange::{Ask, media_type};
use super::retry::{ROUNDS_MAX, Rounds};
use super::server::Server;
use super::{Error, Fetched, Upstream, client};
use crate::context::RequestContext;
use crate::oci::{Digest, Reference, RepoName, Tag};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// ECR refuses to list more at once.
const TAGS_PER_PAGE_MAX: usize = 1000;
/// Most pages that are put together for one answer.
const PAGES_MAX: usize = 20;
/// Longest body of one page: ten thousand tags of the greatest length, twice over.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest list of referrers, all pages together; clients read no longer manifest.
const REFERRERS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest query that a `Link` may add.
const QUERY_BYTES_MAX: usize = 2048;

/// Some tags of a repository, in upstream's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPage {
    /// The tags.
    pub tags: Vec<Tag>,
    /// Whether there are more behind the last of them.
    pub more: bool,
}

/// What refers to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrerList {
    /// An OCI index.
    pub body: Bytes,
    /// Whether a parent has kept it from before and could not ask the registry.
    pub is_stale: bool,
}

#[derive(Deserialize)]
struct TagList {
    /// Null for a repository without tags, as Go writes it.
    tags: Option<Vec<String>>,
}

impl Upstream {
    /// At most `n` tags behind `last`.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn tags(
        &self,
        context: &RequestContext,
        name: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<TagPage, Error> {
        let deadline = self.deadline();
        let key = format!("{}/{name}", self.registry);
        let rounds = Rounds::new(self, (&key, context), &[], ROUNDS_MAX, deadline);
        rounds
            .first(|stop| async move {
                stop.upstream().tags_from((stop.server(), context), name, n, last, deadline).await
            })
            .await
    }

    async fn tags_from(
        &self,
        (server, context): (&Server, &RequestContext),
        name: &RepoName,
        n: usize,
        last: Option<&str>,
        deadline: Instant,
    ) -> Result<TagPage, Error> {
        let mut query = Some(first_page(n, last));
        let mut tags = Vec::new();
        for _ in 0..PAGES_MAX {
            let ask = Ask::get(name, "tags/list".to_owned()).along(context);
            let ask = Ask { query, accept: Some("application/json"), ..ask };
            let (_, body, next) = self.page(server, &ask, deadline).await?;
            let list: TagList = serde_json::from_slice(&body)
                .map_err(|_| Error::Malformed("something else than a list of tags"))?;
            let listed = list.tags.unwrap_or_default();
            tags.extend(listed.iter().filter_map(|tag| Tag::parse(tag).ok()));
            query = next;
            if query.is_none() || tags.len() > n {
                break;
            }
        }
        Ok(cut(tags, n, last, query.is_some()))
    }

    /// What refers to `digest`; `None` if upstream says that nothing does. Registries without
    /// the referrers API keep such an index under a tag.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none answered.
    pub async fn referrers(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
    ) -> Result<Option<ReferrerList>, Error> {
        let deadline = self.deadline();
        let rounds = Rounds::new(self, (&digest.to_string(), context), &[], ROUNDS_MAX, deadline);
        let listed = rounds.first(|stop| async move {
            stop.upstream().referrers_from((stop.server(), context), name, digest, deadline).await
        });
        match listed.await? {
            Some(listed) => Ok(Some(listed)),
            None => self.referrers_by_tag(context, name, digest, deadline).await,
        }
    }

    /// By the API; `None` if there is no such API.
    async fn referrers_from(
        &self,
        (server, context): (&Server, &RequestContext),
        name: &RepoName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<ReferrerList>, Error> {
        let mut merged: Option<Value> = None;
        let mut query = None;
        let mut bytes = 0;
        let mut is_stale = false;
        for page in 0..PAGES_MAX {
            let ask = Ask::get(name, format!("referrers/{digest}")).along(context);
            let ask = Ask { query, accept: Some(OCI_INDEX), ..ask };
            let (headers, body, next) = match self.page(server, &ask, deadline).await {
                Ok(page) => page,
                Err(Error::NotFound | Error::Unavailable { status: 405 | 501 }) if page == 0 => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            // Where the path is unknown, a registry with a web front answers with its home page.
            if page == 0 && media_type(&headers) != Some(OCI_INDEX) {
                return Ok(None);
            }
            bytes += body.len();
            is_stale |= self.standing(&headers).is_stale;
            let index = parse_index(&body).filter(|_| bytes <= REFERRERS_BYTES_MAX);
            let index = index
                .ok_or(Error::Malformed("something else than a list of referrers, or too long a one"))?;
            query = next;
            match (merged.as_mut(), query.is_none()) {
                (None, true) => return Ok(Some(ReferrerList { body, is_stale })),
                (None, false) => merged = Some(index),
                (Some(merged), _) => append(merged, index),
            }
            if query.is_none() {
                break;
            }
        }
        match (merged, query) {
            (Some(merged), None) => Ok(Some(ReferrerList { body: merged.to_string().into(), is_stale })),
            // A list that is cut could hide a signature.
            _ => Err(Error::Malformed("a list of referrers with too many pages")),
        }
    }

    async fn referrers_by_tag(
        &self,
        context: &RequestContext,
        name: &RepoName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<ReferrerList>, Error> {
        if self.is_short() {
            // What refers to an image can be done without; an image cannot.
            return Err(Error::Limited { retry_after: None });
        }
        let tag = Reference::Tag(Tag::of_referrers(digest));
        match self.manifest_until(context, name, &tag, deadline).await {
            Ok(Fetched { body, standing, .. }) => {
                let is_stale = standing.is_stale;
                Ok(parse_index(&body).map(|_| ReferrerList { body, is_stale }))
            }
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page: its headers, its body, and the query of the next.
    async fn page(
        &self,
        server: &Server,
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<(HeaderMap, Bytes, Option<String>), Error> {
        let answer = self.exchange(server, ask, deadline).await?;
        let (head, body) = answer.response.into_parts();
        let _seat = answer.seat;
        let body = client::read(body, PAGE_BYTES_MAX, self.client.timeouts.idle, deadline).await?;
        let next = next_query(&head.headers);
        Ok((head.headers, body, next))
    }
}

/// At most `n` tags. An upstream that does not know `last` begins from the start: what the reader has already
/// is passed over, or it would go round for ever.
fn cut(mut tags: Vec<Tag>, n: usize, last: Option<&str>, more: bool) -> TagPage {
    if let Some(at) = last.and_then(|last| tags.iter().position(|tag| tag.as_str() == last)) {
        tags.drain(..=at);
    }
    let more = more || tags.len() > n;
    tags.truncate(n);
    TagPage { tags, more }
}

/// An index, as far as a list of referrers needs to be one.
fn parse_index(body: &[u8]) -> Option<Value> {
    let index: Value = serde_json::from_slice(body).ok()?;
    index.get("manifests")?.is_array().then_some(index)
}

fn append(index: &mut Value, mut page: Value) {
    let more = page.get_mut("manifests").and_then(Value::as_array_mut);
    if let (Some(all), Some(more)) = (index.get_mut("manifests").and_then(Value::as_array_mut), more) {
        all.append(more);
    }
}

/// The query of the `Link` to the next page (RFC 8288); where it points besides is of no interest.
fn next_query(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|text| {
        let (target, parameters) = text.split_once('<')?.1.split_once('>')?;
        let is_next = parameters.split([';', ',']).any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
            })
        });
        let query = target.split_once('?')?.1;
        (is_next && query.len() <= QUERY_BYTES_MAX).then(|| query.to_owned())
    })
}

/// The query of the first page of a list.
fn first_page(n: usize, last: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &n.clamp(1, TAGS_PER_PAGE_MAX).to_string());
    if let Some(last) = last {
        query.append_pair("last", last);
    }
    query.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_query_of_a_link_is_followed() {
        let check = |link: &'static str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(LINK, http::HeaderValue::from_static(link))]);
            assert_eq!(next_query(&headers).as_deref(), expected, "{link}");
        };
        check(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("n=2&last=b"));
        check("<https://evil/v2/a/tags/list?last=b&orderby=>; rel=next", Some("last=b&orderby="));
        check(r#"</v2/a/tags/list?n=2>; title="x"; REL="Next""#, Some("n=2"));
        check(r#"</v2/a/tags/list?n=2>; rel="prev""#, None);
        check(r#"</v2/a/tags/list>; rel="next""#, None);
        check("nonsense", None);
        check("<", None);
    }

    #[test]
    fn a_page_is_cut_and_always_goes_on() {
        let check = |tags: &[&str], n: usize, last: Option<&str>, more: bool, expected: (&[&str], bool)| {
            let page = cut(tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect(), n, last, more);
            let tags: Vec<_> = page.tags.iter().map(Tag::as_str).collect();
            assert_eq!((tags.as_slice(), page.more), expected);
        };
        check(&["a", "b"], 2, None, false, (&["a", "b"], false));
        check(&["a", "b"], 2, None, true, (&["a", "b"], true));
        check(&["a", "b", "c"], 2, None, false, (&["a", "b"], true));
        check(&["a", "b", "c"], 2, Some("a"), false, (&["b", "c"], false));
        check(&["b"], 2, Some("a"), false, (&["b"], false));
        check(&["a"], 2, Some("a"), false, (&[], false));
    }
}
