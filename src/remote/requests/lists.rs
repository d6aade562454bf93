//! Lists: the tags of a repository (`tags`, by pages: `cursor`), and what refers to a manifest.
//!
//! A list of referrers is one document, put together of the pages of the registry, which must not be cut: it could hide a
//! signature. Beyond its limits it is refused. Pages are followed by the query of upstream's `Link` only, on berth's own
//! URL: an upstream cannot send a list's reader anywhere else, and parameters of its own survive.
//!
//! A registry that does not know the question (`optional`) may keep such a list under a tag. What is there is one only if it
//! is an OCI index, and not the manifest itself that it would be about.

mod cursor;
pub(crate) mod tags;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use tokio::time::Instant;

pub use self::cursor::PageQuery;
pub use self::tags::{TagBody, TagPage, TagStream};

use crate::context::RequestContext;
use crate::oci::manifest::Kind;
use crate::oci::referrers::{self, InvalidReferrers};
use crate::oci::{Digest, RepoName};
use crate::parsing::{self, Place};
use crate::remote::client;
use crate::remote::error::Error;
use crate::remote::exchange::Target;
use crate::remote::exchange::optional;
use crate::remote::message::media_type;
use crate::remote::requests::manifests::{Fetched, Freshness};
use crate::remote::transport::request::{ApiRequest, ApiResponse};
use crate::shares::Owner;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The most pages that are put together for one list of referrers.
const PAGES_MAX: usize = 20;
/// Bytes of the longest list of referrers, all pages together: clients read no longer manifest.
const REFERRERS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest time for which a registry that does not know the question is not asked again, whatever a rule says: it may
/// be upgraded.
const REMEMBERED_MAX: Duration = Duration::from_secs(60);

const LOST_PAGE: &str = "a list of referrers whose next page is not there";

/// The list of what refers to a manifest.
#[derive(Clone, Debug)]
pub struct ReferrerList {
    /// The list as an OCI index.
    pub body: Bytes,
    /// Whether the list is empty.
    pub is_empty: bool,
    /// Whether a parent has kept the list from before and could not ask the registry.
    pub is_stale: bool,
    /// The place of the list in memory, until it is stored and sent.
    pub place: Option<Arc<Place>>,
}

/// Asks `target` by the API for what refers to a manifest, unless the endpoint is known not to have that API. That it has
/// not is remembered for `remember`.
///
/// # Errors
/// [`Error::NotFound`] if there is no such API, [`Error::Denied`] if this login may not use it.
pub(crate) async fn referrers(
    target: Target<'_>,
    context: &RequestContext,
    (name, digest): (&RepoName, &Digest),
    remember: Duration,
    deadline: Instant,
) -> Result<ReferrerList, Error> {
    let endpoint = target.endpoint();
    let error = match endpoint.says_nothing_of(name, digest) {
        Some(error) => error,
        None => match referrers_by_api((target, context), name, digest, deadline).await {
            Ok(listed) => return Ok(listed),
            Err(error) => {
                if error.is_refusal() {
                    let wait = remember.min(REMEMBERED_MAX);
                    endpoint.said_nothing_of(name, digest, error.clone(), wait);
                }
                error
            }
        },
    };
    Err(if error.is_unknown_question() { Error::NotFound } else { error })
}

async fn referrers_by_api(
    (target, context): (Target<'_>, &RequestContext),
    name: &RepoName,
    digest: &Digest,
    deadline: Instant,
) -> Result<ReferrerList, Error> {
    let (mut pages, remote) = (Pages::default(), target.remote());
    let owner = Owner::new(remote.registry(), context.client());
    let until = (remote.transport().client().timeouts.idle, deadline);
    let mut query = None;
    let mut is_stale = false;
    for number in 0..PAGES_MAX {
        let ask = ApiRequest::get(name, format!("referrers/{digest}")).along(context);
        let ask = ApiRequest { query, accept: Some(OCI_INDEX), is_optional: number == 0, ..ask };
        let answer = match target.exchange(&ask, deadline).await {
            // Somebody has said that there is one.
            Err(error) if number > 0 && error.is_refusal() => Err(Error::Malformed(LOST_PAGE)),
            answer => answer,
        };
        let ApiResponse { response, seat: _seat, .. } = answer?;
        let (Parts { headers, .. }, body) = response.into_parts();
        // Where the path is unknown, a registry with a web front answers with its home page.
        if number == 0 && media_type(&headers) != Some(OCI_INDEX) {
            return Err(optional::NO_SUCH_PATH);
        }
        is_stale |= Freshness::of(remote, &headers).is_stale;
        let next = cursor::next_query(&headers)?;
        if next.is_some() && pages.place.is_none() {
            // Before any of it is read: a request that has a place waits for no other.
            pages.place = Some(client::place_for(owner.clone(), REFERRERS_BYTES_MAX, deadline).await?);
        }
        let owner = owner.clone();
        let body = client::read_document(owner, body, REFERRERS_BYTES_MAX, until, &mut pages.place);
        let body = body.await?;
        pages.add(body)?;
        query = next;
        if query.is_none() {
            let listed = pages.into_list(digest, is_stale).await?;
            return listed.ok_or(optional::NO_SUCH_PATH);
        }
    }
    Err(Error::Malformed("a list of referrers with too many pages"))
}

/// The list of what refers to `digest`, if the manifest under the tag for that is such a list.
///
/// # Errors
/// [`Error::Malformed`] if it is a list that no client can read.
pub(crate) async fn in_manifest(fetched: Fetched, digest: &Digest) -> Result<Option<ReferrerList>, Error> {
    let Fetched { body, manifest, standing, place, .. } = fetched;
    if manifest.kind != Kind::Index || manifest.media_type != OCI_INDEX {
        // An image that somebody has given this tag.
        return Ok(None);
    }
    let pages = Pages { bytes: body.len(), bodies: vec![body], place };
    pages.into_list(digest, standing.is_stale).await
}

/// The pages of a list of referrers so far.
#[derive(Default)]
struct Pages {
    bodies: Vec<Bytes>,
    bytes: usize,
    /// The place in memory of all pages together.
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

    /// The list that the pages are; one page stays as it came. `None` if it is not about `digest`.
    async fn into_list(self, digest: &Digest, is_stale: bool) -> Result<Option<ReferrerList>, Error> {
        let Self { bodies, bytes, place } = self;
        let digest = *digest;
        let read = move || {
            if let [body] = bodies.as_slice() {
                return Ok((referrers::count(body)?, body.clone(), referrers::is_about(body, &digest)));
            }
            let merged = referrers::merge(&bodies)?;
            Ok((referrers::count(&merged)?, merged.into(), true))
        };
        let (count, body, is_list) = parsing::parse(bytes, read).await.map_err(|error| {
            Error::Malformed(match error {
                InvalidReferrers::NotAList => "something else than a list of referrers",
                InvalidReferrers::TooMany => "a list of more referrers than an image can need",
            })
        })?;
        let place = place.map(Arc::new);
        Ok(is_list.then_some(ReferrerList { body, is_empty: count == 0, is_stale, place }))
    }
}
