//! Lists: the tags of a repository, what refers to a manifest, the repositories that are here.
//!
//! A list of tags keeps upstream's pages, with upstream's own cursor in the `Link`; only what is listed from disk has
//! pages of berth's own. Private names are not shown, and the refusal is one that clients know from registries that let
//! nobody list: they go on without.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::content::{NAMESPACE, cache_status};
use super::request::RegistryRequest;
use crate::cache::{self, Cache, Tags};
use crate::http::server::access_log::RequestLog;
use crate::http::server::body::Body;
use crate::http::server::response::{CACHE_STATUS, content, failure, value};
use crate::oci::error::ErrorCode;
use crate::oci::{Digest, Repo};
use crate::telemetry::metrics::Source;
use crate::upstream::{PageQuery, TagBody};

/// Response header with the filters that a list of referrers has gone through.
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Entries of a page of berth's own when the client does not say how many it wants.
const PAGE_DEFAULT: usize = 1000;
/// Most entries of such a page. A client that wants more gets this many and a link to the rest.
const PAGE_MAX: usize = 1000;

/// The lists of one configuration.
pub(super) struct Lists {
    cache: Cache,
    /// Whether they also show what came from upstream with a credential.
    show_private: bool,
}

impl Lists {
    /// Lists of what `cache` has, or asks for; with `show_private` also of what came from upstream with a credential.
    pub(super) fn new(cache: Cache, show_private: bool) -> Self {
        Self { cache, show_private }
    }

    /// The tags of a repository.
    pub(super) async fn tags(
        &self,
        request: &RegistryRequest,
        repo: &Repo,
        n: Option<usize>,
        last: Option<&str>,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        let is_hidden = async || -> Result<bool, cache::Error> {
            Ok(!self.show_private && !self.cache.is_public(repo).await?)
        };
        // Where there are parents, their response says whether it is.
        if is_hidden().await? && !self.cache.has_parents(repo)? {
            return Ok(hidden());
        }
        let size = n.unwrap_or(PAGE_DEFAULT).min(PAGE_MAX);
        let name = Some(repo.name.as_str());
        let page = PageQuery::read(request.uri().query().unwrap_or_default());
        if size == 0 && !page.is_continued() {
            return Ok(json(list("tags", name, std::iter::empty())));
        }
        let tags = self.cache.tags(repo, &page, (size, last), request.context()).await?;
        if is_hidden().await? {
            return Ok(hidden());
        }
        let (mut response, source) = match tags {
            Tags::Upstream(page) => {
                let mut response = match page.body {
                    TagBody::Whole(body) => json(body),
                    TagBody::Stream(stream) => {
                        let mut response = Response::new(Body::list(stream));
                        let json = HeaderValue::from_static("application/json");
                        response.headers_mut().insert(CONTENT_TYPE, json);
                        response
                    }
                };
                if let Some(next) = page.next {
                    request.link_to(&mut response, &next);
                }
                (response, if page.is_stale { Source::Stale } else { Source::Miss })
            }
            Tags::Stored(page) => {
                let body = list("tags", name, page.entries.iter().map(|tag| tag.as_str().to_owned()));
                let mut response = json(body);
                let next = page.entries.last().filter(|_| page.more);
                request.link_to_next(&mut response, size, next.map(|tag| tag.as_str().to_owned()));
                (response, page.source)
            }
        };
        response.headers_mut().insert(NAMESPACE, value(repo.registry.as_str()));
        let status = cache_status(source, false, false);
        log.set_cache_status(status);
        response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(status));
        Ok(response)
    }

    /// The repositories that are stored, and that `may_have` lets the client pull.
    pub(super) async fn catalog(
        &self,
        request: &RegistryRequest,
        n: Option<usize>,
        last: Option<&str>,
        may_have: impl Fn(&Repo) -> bool,
    ) -> Result<Response<Body>, cache::Error> {
        let size = n.unwrap_or(PAGE_DEFAULT).min(PAGE_MAX);
        let last = last.and_then(|last| {
            let (registry, name) = last.split_once('/')?;
            Some(Repo { registry: registry.parse().ok()?, name: name.parse().ok()? })
        });
        if size == 0 {
            return Ok(json(list("repositories", None, std::iter::empty())));
        }
        let page = self.cache.repositories(size, last, self.show_private, may_have).await?;
        let mut response = json(list("repositories", None, page.entries.iter().map(ToString::to_string)));
        let next = page.entries.last().filter(|_| page.more);
        request.link_to_next(&mut response, size, next.map(ToString::to_string));
        Ok(response)
    }

    /// The manifests that refer to a manifest.
    pub(super) async fn referrers(
        &self,
        request: &RegistryRequest,
        (repo, digest): (&Repo, &Digest),
        artifact_type: Option<&str>,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        let Some(referrers) = self.cache.referrers(repo, digest, request.context()).await? else {
            return Ok(failure(
                StatusCode::NOT_FOUND,
                ErrorCode::ManifestUnknown,
                "upstream does not say what refers to this manifest, and nothing is stored",
            ));
        };
        let status = cache_status(referrers.source, false, false);
        log.set_cache_status(status);
        let (referrers, is_filtered) = match artifact_type {
            Some(artifact_type) => referrers.of_type(artifact_type).await,
            None => (referrers, false),
        };
        let index = "application/vnd.oci.image.index.v1+json";
        let mut response = content(StatusCode::OK, index, referrers.body);
        let headers = response.headers_mut();
        headers.insert(NAMESPACE, value(repo.registry.as_str()));
        if is_filtered {
            headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
        Ok(response)
    }
}

/// The response to a list that is not shown.
fn hidden() -> Response<Body> {
    failure(
        StatusCode::FORBIDDEN,
        ErrorCode::Denied,
        "this mirror lists only tags that need no credential upstream, unless [http] list_private is true or its listener is guarded: images can be pulled all the same",
    )
}

/// A response of JSON.
pub(super) fn json(body: Bytes) -> Response<Body> {
    content(StatusCode::OK, "application/json", body)
}

/// `{"name": …, "tags": […]}`, or the like.
fn list(key: &str, name: Option<&str>, entries: impl Iterator<Item = String>) -> Bytes {
    let mut object = serde_json::Map::new();
    if let Some(name) = name {
        object.insert("name".to_owned(), name.into());
    }
    object.insert(key.to_owned(), entries.map(serde_json::Value::from).collect());
    serde_json::Value::from(object).to_string().into()
}
