//! The changing side of the admin plane: small JSON in, JSON out.
//!
//! A command is a POST with `Content-Type: application/json`, which may be `{}`; where there is nothing to say, it may also
//! be empty. Work that takes long is begun by a POST and followed by a GET of the same path: a client may go away and come
//! back.
//!
//! A web page that an administrator happens to look at can make the browser send requests here. It cannot
//! choose that content type, nor show a token, for another site without asking first (and such a question is not answered
//! here), and a request that a browser sends for a page carries an `Origin`: neither is let in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::error::{ApiError, json};
use super::paths;
use super::reload::ReloadRequests;
use super::types::{Pin, RefreshCommand, RefreshedTags, ReloadCommand, UnpinCommand, VerifyCommand};
use crate::http::registry::data_plane::DataPlane;
use crate::http::server::body::Body;
use crate::oci::{Image, Reference, Tag};
use crate::store::Store;

/// Most bytes of a command; all of them are small.
const COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Time that a command may take to arrive.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries out commands.
pub(super) struct Api {
    store: Store,
    data: Arc<DataPlane>,
    orders: ReloadRequests,
}

impl Api {
    pub(super) fn new(store: Store, data: Arc<DataPlane>, orders: ReloadRequests) -> Self {
        Self { store, data, orders }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.act(request).await.unwrap_or_else(ApiError::into_response)
    }

    async fn act(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let method = request.method().clone();
        match request.uri().path() {
            paths::VERIFY => match method {
                Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &self.store.verification())),
                Method::POST => {
                    let VerifyCommand {} = command(request).await?;
                    self.store.verify();
                    Ok(json(StatusCode::ACCEPTED, &self.store.verification()))
                }
                _ => Err(ApiError::expected_method("GET, HEAD, POST")),
            },
            paths::PINS => match method {
                Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &self.store.pins().await)),
                Method::POST => {
                    let Pin { image, platforms } = command(request).await?;
                    let pin = Pin { image: self.named(image), platforms };
                    Ok(json(StatusCode::OK, &self.store.pin(pin).await?))
                }
                _ => Err(ApiError::expected_method("GET, HEAD, POST")),
            },
            paths::UNPIN => match method {
                Method::POST => {
                    let UnpinCommand { image } = command(request).await?;
                    Ok(json(StatusCode::OK, &self.store.unpin(self.named(image)).await?))
                }
                _ => Err(ApiError::expected_method("POST")),
            },
            paths::REFRESH => match method {
                Method::POST => Ok(json(StatusCode::OK, &self.refresh(command(request).await?).await?)),
                _ => Err(ApiError::expected_method("POST")),
            },
            paths::RELOAD => match method {
                Method::POST => {
                    let ReloadCommand {} = command_or_nothing(request).await?;
                    Ok(json(StatusCode::OK, &self.orders.reload().await?))
                }
                _ => Err(ApiError::expected_method("POST")),
            },
            _ => {
                let expected = "expected /api/v1/verify, pins, unpin, refresh or reload";
                Err(ApiError::new(StatusCode::NOT_FOUND, expected))
            }
        }
    }

    /// The image by the name of its registry here, if that is configured.
    fn named(&self, image: Image) -> Image {
        self.data.now().registries().image(image)
    }

    async fn refresh(
        &self,
        RefreshCommand { image, all_tags, after }: RefreshCommand,
    ) -> Result<RefreshedTags, ApiError> {
        let Image { repo, reference } = self.named(image);
        if all_tags {
            let after = after.map(|after| Tag::parse(&after)).transpose();
            let after =
                after.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("after: {error}")))?;
            let (tags, more) = self.data.cache().refresh_known(&repo, after.as_ref()).await?;
            return Ok(RefreshedTags { tags, more });
        }
        match reference {
            Reference::Tag(tag) => {
                Ok(RefreshedTags { tags: vec![self.data.cache().refresh(&repo, &tag).await?], more: false })
            }
            Reference::Digest(_) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "expected a tag: what a digest names never changes",
            )),
        }
    }
}

/// Reads a command that says all by its path, with an empty body or `{}`.
async fn command_or_nothing<T: DeserializeOwned + Default>(
    request: Request<Incoming>,
) -> Result<T, ApiError> {
    if request.body().is_end_stream() {
        // `curl -X POST`. An empty body has no type.
        return refuse_origin(request.headers()).map(|()| T::default());
    }
    command(request).await
}

/// Reads a command, if it comes from no browser.
async fn command<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ApiError> {
    let (head, body) = request.into_parts();
    refuse_browsers(&head.headers)?;
    let body = tokio::time::timeout(COMMAND_TIMEOUT, Limited::new(body, COMMAND_BYTES_MAX).collect()).await;
    let too_slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the command did not arrive in time");
    let too_large = |_| {
        let error = format!("expected a whole command of at most {COMMAND_BYTES_MAX} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    let body: Bytes = body.map_err(too_slow)?.map_err(too_large)?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the command: {error}")))
}

fn refuse_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(ORIGIN) {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "expected no Origin: this is not for browsers"));
    }
    Ok(())
}

fn refuse_browsers(headers: &HeaderMap) -> Result<(), ApiError> {
    refuse_origin(headers)?;
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json"))
}
