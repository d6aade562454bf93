//! Logins that a cloud issues for its own registries: to the machine, the pod or the account that berth runs as.
//!
//! An [`Issuer`] knows how to come from what the platform provides to something that the registry takes as a
//! login. It keeps nothing: `issued` does, and decides when to ask. Files and what a metadata server says are
//! read anew each time, because they rotate. (Vault is another issuer, with a module of its own.)
//!
//! Issuers dial the clouds' public API hosts, metadata servers on their link-local addresses, and what the
//! configuration or the platform's own environment variables name instead, without the guard that judges where an
//! *upstream* points. The configuration asks for that by naming the cloud. No redirect is followed.

mod aws;
mod azure;
mod ecr;
mod federation;
mod google;
mod profile;
mod sigv4;
mod sts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, StatusCode, request};
use http_body_util::Full;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

pub use self::azure::AzureConfig;
pub use self::ecr::{EcrConfig, Region};
pub use self::google::GoogleConfig;

pub(super) use self::azure::Azure;
pub(super) use self::ecr::Ecr;
pub(super) use self::google::Google;

use super::client::{self, Client, Way};
use super::error::Error;
use super::exchange::AGENT;
use super::kept::{self, Lease};
use super::login::Login;
use super::secret::Secret;
use super::token::FRESH;
use super::vault::{Vault, VaultProblem};
use crate::files;

/// An ECR token has some two kilobytes, a JWT with many claims some ten.
pub(super) const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Longest error code of a cloud that is repeated.
const CODE_CHARACTERS_MAX: usize = 64;
const FORM: &str = "application/x-www-form-urlencoded";

/// Where settings of the platform are looked up: the process's environment, but for tests.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who issues the login of a registry.
pub(super) enum Issuer {
    /// Amazon, for ECR and ECR Public.
    Ecr(Ecr),
    /// Google, for Artifact Registry and gcr.io.
    Google(Google),
    /// Microsoft, for a registry of Azure.
    Azure(Azure),
    /// Vault, which has it in store.
    Vault(Vault),
}

/// A login, and for how long it is good.
pub(super) struct Grant {
    pub(super) login: Login,
    pub(super) lifetime: Duration,
}

impl Issuer {
    /// Asks for a new login.
    ///
    /// # Errors
    /// [`NoLogin`] says who refused or failed.
    pub(super) async fn issue(&self, client: &Client) -> kept::Answer<Login> {
        let grant = match self {
            Self::Ecr(ecr) => ecr.issue(client).await,
            Self::Google(google) => google.issue(client).await,
            Self::Azure(azure) => azure.issue(client).await,
            Self::Vault(vault) => return vault.look_up().await,
        };
        grant.map(|grant| Lease::new(grant.login, grant.lifetime))
    }

    /// How old a login is at least for its refusal to mean that another can be had.
    pub(super) fn fresh(&self) -> Duration {
        match self {
            // Every answer is a new login: if the last is refused, so will the next be.
            Self::Ecr(_) | Self::Google(_) | Self::Azure(_) => FRESH,
            // It may have been replaced a moment ago.
            Self::Vault(_) => Duration::ZERO,
        }
    }
}

/// Why a cloud, a credential helper or Vault gave no login. Nothing of what was sent or answered is repeated but an error's
/// code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLogin {
    /// A file that the platform should have put there is not, or is something else.
    #[error("{} is not {expected}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
    },
    /// The service was asked and says no.
    #[error("{service} answered with status {status}, {code}")]
    Refused {
        /// Who says no.
        service: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its own word for it.
        code: Arc<str>,
    },
    /// The service was not reached, or not in time.
    #[error("{service} gave no answer: {cause}")]
    Unanswered {
        /// Who was asked.
        service: &'static str,
        /// Why it was in vain.
        cause: Arc<str>,
    },
    /// The service's answer makes no sense.
    #[error("{service} answered with {what}")]
    Malformed {
        /// Who answered.
        service: &'static str,
        /// How.
        what: &'static str,
    },
    /// A credential helper gave none.
    #[error("{program} {what}")]
    Helper {
        /// Which program.
        program: Arc<str>,
        /// How it failed.
        what: &'static str,
    },
    /// Vault was asked and does not give it.
    #[error(transparent)]
    Vault(#[from] VaultProblem),
}

/// A request to a service of a cloud.
pub(super) fn request(method: Method, url: &Url) -> request::Builder {
    Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT_ENCODING, "identity")
}

/// A POST of a form.
fn post_form(url: &Url, form: String) -> Result<Request<Full<Bytes>>, http::Error> {
    request(Method::POST, url)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, FORM)
        .body(Full::new(form.into()))
}

/// Sends a request and reads the whole answer, which must be a 200.
async fn ask(
    client: &Client,
    service: &'static str,
    request: Result<Request<Full<Bytes>>, http::Error>,
) -> Result<Bytes, NoLogin> {
    let request = request.map_err(|_| NoLogin::Malformed { service, what: "what fits into no request" })?;
    let within = client.timeouts.token;
    let deadline = Instant::now() + within;
    let unanswered = |error| NoLogin::Unanswered { service, cause: cause(&error) };
    let response = client.send(Way::Direct, request, within).await.map_err(unanswered)?;
    let status = response.status();
    let body = client::read(response.into_body(), REPLY_BYTES_MAX, client.timeouts.idle, deadline).await;
    let body = match body {
        Err(Error::Malformed(what)) => return Err(NoLogin::Malformed { service, what }),
        body => body.map_err(unanswered)?,
    };
    if status != StatusCode::OK {
        return Err(NoLogin::Refused { service, status: status.as_u16(), code: code(&body) });
    }
    Ok(body)
}

pub(super) fn cause(error: &Error) -> Arc<str> {
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
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (!text.is_empty() && !text.contains(['<', '&'])).then_some(text)
}

/// A text field of a JSON answer that must be there.
fn field(reply: &Value, name: &str, service: &'static str, what: &'static str) -> Result<String, NoLogin> {
    let text = reply.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or(NoLogin::Malformed { service, what })
}

/// The content of a file that rotates, without white space around it.
pub(super) async fn read_file(path: &Path, expected: &'static str) -> Result<Secret, NoLogin> {
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
