//! Failures of the admin API, and the JSON of its responses.

use hyper::header::{ALLOW, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::reload::NotReloaded;
use super::types::ApiFailure;
use crate::http::server::body::Body;
use crate::http::server::response::content;
use crate::{cache, store};

/// Why a command was not carried out.
pub(super) struct ApiError {
    status: StatusCode,
    error: String,
    /// A header of the response, such as the methods that there are.
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// A failure with this status, and why.
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), header: None }
    }

    /// The same, and the response says this besides.
    pub(super) fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// A method that the path does not have; `allow` lists those that it has.
    pub(super) fn expected_method(allow: &'static str) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("expected one of {allow}"));
        error.with_header(ALLOW, HeaderValue::from_static(allow))
    }

    /// The response to the command.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = json(self.status, &ApiFailure { error: self.error });
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
    }
}

impl From<NotReloaded> for ApiError {
    fn from(error: NotReloaded) -> Self {
        let status = match &error {
            NotReloaded::NoFile => StatusCode::CONFLICT,
            NotReloaded::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            NotReloaded::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<cache::Error> for ApiError {
    fn from(error: cache::Error) -> Self {
        let status = match error {
            cache::Error::NoUpstream => StatusCode::NOT_FOUND,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// A response of JSON, and a line break behind it.
pub(super) fn json(status: StatusCode, answer: &impl Serialize) -> Response<Body> {
    // Nothing that is answered here has a key that is no text.
    let mut body = serde_json::to_vec(answer).unwrap_or_default();
    body.push(b'\n');
    content(status, "application/json", body.into())
}
