//! The changing side of the admin plane: small JSON in, JSON out.
//!
//! A command is a POST with `Content-Type: application/json`, which may be `{}`; where there is nothing to say, it may also
//! be empty. What takes long is begun by its
//! POST and followed by a GET of the same path: whoever began it may go away and come back.
//!
//! A web page that an administrator happens to look at can make the browser send requests here. It cannot
//! choose that content type, nor show a token, for another site without asking first (and nobody here answers such a
//! question), and what a browser sends for a page carries an `Origin`: neither is let in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::body::Body;
use super::super::data::Data;
use super::super::response::content;
use super::reload::{NotReloaded, Orders};
use crate::cache::{self, Refreshed};
use crate::oci::{Image, Reference, Tag};
use crate::store::{self, Pin, Store};

/// What every path of the API begins with.
pub(super) const PREFIX: &str = "/api/";

/// Bytes of a command; all of them are small.
const COMMAND_BYTES_MAX: usize = 64 * 1024;
/// How long a command may take to arrive.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries out commands.
pub(super) struct Api {
    store: Store,
    data: Arc<Data>,
    orders: Orders,
}

/// Why a command was not carried out.
pub(super) struct Refusal {
    status: StatusCode,
    error: String,
    /// What the answer says besides, such as the methods that there are.
    header: Option<(HeaderName, HeaderValue)>,
}

/// `POST /api/v1/verify` needs to be told nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {}

/// `POST /api/v1/reload` needs to be told nothing.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reload {}

/// `POST /api/v1/unpin` needs to be told which.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unpin {
    #[serde(rename = "ref")]
    image: Image,
}

/// `POST /api/v1/refresh` needs to be told which.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    #[serde(rename = "ref")]
    image: Image,
    /// All known tags of that repository.
    #[serde(default)]
    all_tags: bool,
    /// Of these, those behind this one.
    #[serde(default)]
    after: Option<String>,
}

/// Tags that were refreshed, and whether there are more.
#[derive(Serialize)]
struct RefreshedTags {
    tags: Vec<Refreshed>,
    more: bool,
}

impl Api {
    pub(super) fn new(store: Store, data: Arc<Data>, orders: Orders) -> Self {
        Self { store, data, orders }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.act(request).await.unwrap_or_else(Refusal::answer)
    }

    async fn act(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let method = request.method().clone();
        match request.uri().path() {
            "/api/v1/verify" => match method {
                Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &self.store.verification())),
                Method::POST => {
                    let Verify {} = command(request).await?;
                    self.store.verify();
                    Ok(json(StatusCode::ACCEPTED, &self.store.verification()))
                }
                _ => Err(Refusal::method("GET, HEAD, POST")),
            },
            "/api/v1/pins" => match method {
                Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &self.store.pins().await)),
                Method::POST => {
                    let Pin { image, platforms } = command(request).await?;
                    let pin = Pin { image: self.named(image), platforms };
                    Ok(json(StatusCode::OK, &self.store.pin(pin).await?))
                }
                _ => Err(Refusal::method("GET, HEAD, POST")),
            },
            "/api/v1/unpin" => match method {
                Method::POST => {
                    let Unpin { image } = command(request).await?;
                    Ok(json(StatusCode::OK, &self.store.unpin(self.named(image)).await?))
                }
                _ => Err(Refusal::method("POST")),
            },
            "/api/v1/refresh" => match method {
                Method::POST => Ok(json(StatusCode::OK, &self.refresh(command(request).await?).await?)),
                _ => Err(Refusal::method("POST")),
            },
            "/api/v1/reload" => match method {
                Method::POST => {
                    let Reload {} = command_or_nothing(request).await?;
                    Ok(json(StatusCode::OK, &self.orders.reload().await?))
                }
                _ => Err(Refusal::method("POST")),
            },
            _ => {
                let expected = "expected /api/v1/verify, pins, unpin, refresh or reload";
                Err(Refusal::new(StatusCode::NOT_FOUND, expected))
            }
        }
    }

    /// The image, by the name of a configured registry if it is one's.
    fn named(&self, image: Image) -> Image {
        self.data.now().registries().image(image)
    }

    async fn refresh(&self, Refresh { image, all_tags, after }: Refresh) -> Result<RefreshedTags, Refusal> {
        let Image { repo, reference } = self.named(image);
        if all_tags {
            let after = after.map(|after| Tag::parse(&after)).transpose();
            let after =
                after.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("after: {error}")))?;
            let (tags, more) = self.data.cache().refresh_known(&repo, after.as_ref()).await?;
            return Ok(RefreshedTags { tags, more });
        }
        match reference {
            Reference::Tag(tag) => {
                Ok(RefreshedTags { tags: vec![self.data.cache().refresh(&repo, &tag).await?], more: false })
            }
            Reference::Digest(_) => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "expected a tag: what a digest names never changes",
            )),
        }
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
    }
}

impl From<NotReloaded> for Refusal {
    fn from(error: NotReloaded) -> Self {
        let status = match &error {
            NotReloaded::NoFile => StatusCode::CONFLICT,
            NotReloaded::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            NotReloaded::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<cache::Error> for Refusal {
    fn from(error: cache::Error) -> Self {
        let status = match error {
            cache::Error::NoUpstream => StatusCode::NOT_FOUND,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), header: None }
    }

    pub(super) fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    fn method(allow: &'static str) -> Self {
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("expected one of {allow}"));
        refusal.with_header(ALLOW, HeaderValue::from_static(allow))
    }

    pub(super) fn answer(self) -> Response<Body> {
        #[derive(Serialize)]
        struct Failure<'a> {
            error: &'a str,
        }
        let mut response = json(self.status, &Failure { error: &self.error });
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// A command that says all by its path, with an empty body or `{}`.
async fn command_or_nothing<T: DeserializeOwned + Default>(request: Request<Incoming>) -> Result<T, Refusal> {
    if request.body().is_end_stream() {
        // `curl -X POST`. Of nothing there is no type.
        return refuse_origin(request.headers()).map(|()| T::default());
    }
    command(request).await
}

/// A command, if it comes from no browser and can be read.
async fn command<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let (head, body) = request.into_parts();
    refuse_browsers(&head.headers)?;
    let body = tokio::time::timeout(COMMAND_TIMEOUT, Limited::new(body, COMMAND_BYTES_MAX).collect()).await;
    let too_slow = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the command did not arrive in time");
    let too_large = |_| {
        let error = format!("expected a whole command of at most {COMMAND_BYTES_MAX} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    let body: Bytes = body.map_err(too_slow)?.map_err(too_large)?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the command: {error}")))
}

fn refuse_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "expected no Origin: this is not for browsers"));
    }
    Ok(())
}

fn refuse_browsers(headers: &HeaderMap) -> Result<(), Refusal> {
    refuse_origin(headers)?;
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json"))
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response<Body> {
    // Nothing that is answered here has a key that is no text.
    let mut body = serde_json::to_vec(answer).unwrap_or_default();
    body.push(b'\n');
    content(status, "application/json", body.into())
}
