//! Lists: the tags of a repository, and what refers to a manifest.
//!
//! Pages are followed by the query of upstream's `Link` only, on berth's own URL: an upstream cannot send
//! a list's reader anywhere else, and parameters of its own (ACR adds `orderby=`) survive.
//!
//! A list of tags streams through: of each page only the tags that the answer shows are kept, and of all pages one at a
//! time is in memory. A list of referrers is one document, which must not be cut; beyond its limits it is refused.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::LINK;
use hyper::body::Incoming;
use tokio::time::Instant;
use url::form_urlencoded;

use super::exchange::{Ask, media_type};
use super::limit::Seat;
use super::retry::{Attempts, ROUNDS_MAX, Rounds};
use super::server::Server;
use super::{Error, Fetched, Upstream, client};
use crate::context::RequestContext;
use crate::oci::manifest::Kind;
use crate::oci::referrers::{self, InvalidReferrers};
use crate::oci::tags::TagWindow;
use crate::oci::{Digest, Reference, RepoName, Tag};
use crate::parsing::{self, Place};
use crate::shares::Owner;

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
#[derive(Clone, Debug)]
pub struct ReferrerList {
    /// An OCI index.
    pub body: Bytes,
    /// Whether nothing does.
    pub is_empty: bool,
    /// Whether a parent has kept it from before and could not ask the registry.
    pub is_stale: bool,
    /// Its place in memory, until it is stored and answered with.
    pub place: Option<Arc<Place>>,
}

/// One page of a list, of which the body is still to come.
struct Page {
    headers: HeaderMap,
    body: Incoming,
    /// The query of the next.
    next: Option<String>,
    /// Held until the body has been read.
    seat: Option<Seat>,
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
        let mut window = TagWindow::new(n, last);
        let owner = Owner::new(&self.registry, context.client());
        for _ in 0..PAGES_MAX {
            let ask = Ask::get(name, "tags/list".to_owned()).along(context);
            let ask = Ask { query, accept: Some("application/json"), ..ask };
            let mut place = None;
            let Page { body, next, seat: _seat, .. } = self.open_page(server, &ask, deadline).await?;
            let body = self.read_page(&owner, body, deadline, &mut place).await?;
            let read = parsing::parse(body.len(), move || {
                let _place = place;
                window.read(&body).map(|()| window)
            });
            window = read.await.map_err(|_| Error::Malformed("something else than a list of tags"))?;
            query = next;
            if query.is_none() || window.is_full() {
                break;
            }
        }
        let more = query.is_some() || window.is_full();
        Ok(TagPage { tags: window.finish(), more })
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
        let mut pages = Pages::default();
        let owner = Owner::new(&self.registry, context.client());
        let mut query = None;
        let mut is_stale = false;
        for number in 0..PAGES_MAX {
            let ask = Ask::get(name, format!("referrers/{digest}")).along(context);
            let ask = Ask { query, accept: Some(OCI_INDEX), ..ask };
            let Page { headers, body, next, seat: _seat } = match self.open_page(server, &ask, deadline).await
            {
                Ok(page) => page,
                Err(Error::NotFound | Error::Unavailable { status: 405 | 501 }) if number == 0 => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            // Where the path is unknown, a registry with a web front answers with its home page.
            if number == 0 && media_type(&headers) != Some(OCI_INDEX) {
                return Ok(None);
            }
            is_stale |= self.standing(&headers).is_stale;
            if next.is_some() && pages.place.is_none() {
                // Before any of it is read: who has a place waits for no other.
                pages.place = Some(client::place_for(owner.clone(), REFERRERS_BYTES_MAX, deadline).await?);
            }
            let body = self.read_page(&owner, body, deadline, &mut pages.place).await?;
            pages.add(body)?;
            query = next;
            if query.is_none() {
                return pages.into_list(is_stale).await.map(Some);
            }
        }
        // A list that is cut could hide a signature.
        Err(Error::Malformed("a list of referrers with too many pages"))
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
        match self.manifest_until(context, name, &tag, Attempts::Rounds, deadline).await {
            Ok(Fetched { body, manifest, standing, place, .. }) if manifest.kind == Kind::Index => {
                let pages = Pages { bytes: body.len(), bodies: vec![body], place };
                pages.into_list(standing.is_stale).await.map(Some)
            }
            // An image that somebody has given this tag.
            Ok(_) => Ok(None),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn open_page(&self, server: &Server, ask: &Ask<'_>, deadline: Instant) -> Result<Page, Error> {
        let answer = self.exchange(server, ask, deadline).await?;
        let (head, body) = answer.response.into_parts();
        let next = next_query(&head.headers);
        Ok(Page { next, headers: head.headers, body, seat: answer.seat })
    }

    /// The body of a page; `place` is for all that are kept together.
    async fn read_page(
        &self,
        owner: &Owner,
        body: Incoming,
        deadline: Instant,
        place: &mut Option<Place>,
    ) -> Result<Bytes, Error> {
        let until = (self.client.timeouts.idle, deadline);
        client::read_document(owner.clone(), body, PAGE_BYTES_MAX, until, place).await
    }
}

/// The pages of a list of referrers so far.
#[derive(Default)]
struct Pages {
    bodies: Vec<Bytes>,
    bytes: usize,
    /// For all of them.
    place: Option<Place>,
}

impl Pages {
    fn add(&mut self, body: Bytes) -> Result<(), Error> {
        self.bytes += body.len();
        if self.bytes > REFERRERS_BYTES_MAX {
            return Err(Error::Malformed("a list of referrers that is too long"));
        }
        self.bodies.push(body);
        Ok(())
    }

    /// A list of one page stays as it came.
    async fn into_list(self, is_stale: bool) -> Result<ReferrerList, Error> {
        let Self { bodies, bytes, place } = self;
        let read = move || match bodies.as_slice() {
            [body] => Ok((referrers::count(body)?, body.clone())),
            pages => {
                let merged = referrers::merge(pages)?;
                Ok((referrers::count(&merged)?, merged.into()))
            }
        };
        let (count, body) = parsing::parse(bytes, read).await.map_err(|error| {
            Error::Malformed(match error {
                InvalidReferrers::NotAList => "something else than a list of referrers",
                InvalidReferrers::TooMany => "a list of more referrers than an image can need",
            })
        })?;
        Ok(ReferrerList { body, is_empty: count == 0, is_stale, place: place.map(Arc::new) })
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
    fn fuzzed_links_lead_to_a_query_only() {
        let target = crate::fuzz::Target {
            name: "link",
            words: &[
                "<",
                ">",
                ";",
                ",",
                "=",
                "\"",
                "?",
                "&",
                "#",
                " ",
                "rel",
                "next",
                "prev",
                "https://evil",
                "/v2/a/tags/list",
                "n=2",
                "last=b",
                "\n",
            ],
        };
        target.holds(|input| {
            let lines = input.split(|byte| *byte == b'\n');
            let values = lines.filter_map(|line| http::HeaderValue::from_bytes(line).ok());
            let headers = HeaderMap::from_iter(values.map(|value| (LINK, value)));
            if let Some(query) = next_query(&headers) {
                assert!(query.len() <= QUERY_BYTES_MAX && !query.contains(['>', '\n']));
            }
        });
    }
}
