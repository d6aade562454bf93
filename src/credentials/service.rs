//! Requests to a service that issues logins: a cloud's, or Vault.
//!
//! Files and what a metadata server says are read anew each time, because they rotate. Services are dialled without the
//! guard that judges where an *upstream* points: the configuration asks for that by naming the cloud or the Vault. No
//! redirect is followed.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, StatusCode, request};
use http_body_util::Full;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::error::NoLogin;
use crate::files;
use crate::net::error::TOO_LARGE;
use crate::net::secret::Secret;
use crate::net::user_agent::AGENT;
use crate::net::{DialPolicy, Error, HttpClient, client};

/// An ECR token has some two kilobytes, a JWT with many claims some ten.
pub(crate) const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Longest error code of a cloud that is repeated.
const CODE_CHARACTERS_MAX: usize = 64;
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// Where settings of the platform are looked up: the process's environment, but for tests.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A request to a service of a cloud.
pub(crate) fn request(method: Method, url: &Url) -> request::Builder {
    Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT_ENCODING, "identity")
}

/// A POST of a form.
pub(crate) fn post_form(url: &Url, form: String) -> Result<Request<Full<Bytes>>, http::Error> {
    request(Method::POST, url)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, FORM)
        .body(Full::new(form.into()))
}

/// Sends a request and reads the whole answer, which must be a 200.
pub(crate) async fn ask(
    client: &HttpClient,
    service: &'static str,
    request: Result<Request<Full<Bytes>>, http::Error>,
) -> Result<Bytes, NoLogin> {
    let request = request.map_err(|_| NoLogin::Malformed { service, what: "what fits into no request" })?;
    let within = client.timeouts.token;
    let deadline = Instant::now() + within;
    let unanswered = |error| NoLogin::Unanswered { service, cause: cause(&error) };
    let response = client.send(DialPolicy::Direct, request, within).await.map_err(unanswered)?;
    let status = response.status();
    let body = client::read(response.into_body(), REPLY_BYTES_MAX, client.timeouts.idle, deadline).await;
    let body = match body {
        Err(Error::TooLarge) => return Err(NoLogin::Malformed { service, what: TOO_LARGE }),
        body => body.map_err(unanswered)?,
    };
    if status != StatusCode::OK {
        return Err(NoLogin::Refused { service, status: status.as_u16(), code: code(&body) });
    }
    Ok(body)
}

pub(crate) fn cause(error: &Error) -> Arc<str> {
    match error {
        Error::Timeout => "not in time".into(),
        Error::Unreachable { reason } => reason.clone(),
        other => other.to_string().into(),
    }
}

/// The word by which clouds name an error: `error` of OAuth, `__type` of AWS's JSON, `<Code>` of its XML.
fn code(body: &[u8]) -> Arc<str> {
    let found = match serde_json::from_slice::<Value>(body) {
        Ok(reply) => ["error", "__type", "code", "Code"]
            .iter()
            .find_map(|key| reply.get(key)?.as_str().map(str::to_owned)),
        Err(_) => std::str::from_utf8(body).ok().and_then(|text| element(text, "Code")).map(str::to_owned),
    };
    let found = found.unwrap_or_default();
    let word = found.rsplit('#').next().unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let word: String = word.chars().take_while(is_plain).take(CODE_CHARACTERS_MAX).collect();
    if word.is_empty() { "without an error code".into() } else { word.into() }
}

/// The text of the first XML element of that name, of those whose texts hold neither elements nor entities.
pub(crate) fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (!text.is_empty() && !text.contains(['<', '&'])).then_some(text)
}

/// A text field of a JSON answer that must be there.
pub(crate) fn field(
    reply: &Value,
    name: &str,
    service: &'static str,
    what: &'static str,
) -> Result<String, NoLogin> {
    let text = reply.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or(NoLogin::Malformed { service, what })
}

/// The content of a file that rotates, without white space around it.
pub(crate) async fn read_file(path: &Path, expected: &'static str) -> Result<Secret, NoLogin> {
    let wrong = || NoLogin::File { path: path.to_owned(), expected };
    let owned = path.to_owned();
    let text = tokio::task::spawn_blocking(move || files::read_text(&owned))
        .await
        .map_err(|_| wrong())?
        .map_err(|_| wrong())?;
    let text = text.trim();
    if text.is_empty() { Err(wrong()) } else { Ok(Secret::new(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_named_by_its_code_and_nothing_else() {
        let check = |body: &str, expected: &str| assert_eq!(&*code(body.as_bytes()), expected, "{body}");
        check(
            r#"{"__type":"com.amazonaws.ecr#AccessDeniedException","message":"hunter2"}"#,
            "AccessDeniedException",
        );
        check(r#"{"error":"invalid_client","error_description":"hunter2"}"#, "invalid_client");
        check("<ErrorResponse><Error><Code>ExpiredToken</Code></Error></ErrorResponse>", "ExpiredToken");
        check(r#"{"error":"not a word"}"#, "not");
        check(r#"{"error":{"status":1}}"#, "without an error code");
        check("<html>", "without an error code");
        check(&format!(r#"{{"error":"{}"}}"#, "x".repeat(1000)), &"x".repeat(CODE_CHARACTERS_MAX));
    }

    #[test]
    fn elements_are_plain() {
        assert_eq!(element("<a><Key>x+/=</Key></a>", "Key"), Some("x+/="));
        for xml in ["", "<Key>", "<Key></Key>", "<Key>a&amp;b</Key>", "<Key><b/></Key>"] {
            assert_eq!(element(xml, "Key"), None, "{xml}");
        }
    }
}
