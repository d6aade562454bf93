//! Google's workload identity federation: the token of another identity provider, such as a cluster outside Google, is
//! exchanged for one of Google's, which may then act as a service account.
//!
//! The provider's token comes from a file, as clusters put it there. Google's tools know further sources, among them
//! programs and URLs that the same file names; these are left out, because a file that somebody else wrote should not make
//! berth run or ask anything but Google.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method};
use http_body_util::Full;
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::google::{SCOPE, is_of_google};
use crate::credentials::error::NoLogin;
use crate::credentials::oauth;
use crate::credentials::service::{ask, field, post_form, read_file, request};
use crate::net::HttpClient;
use crate::net::secret::Secret;

const STS: &str = "Google's security token service";
const IAM: &str = "Google's IAM credentials service";
const TOKEN_FILE: &str = "a token of the identity provider";
/// As long as an account's token may live without further settings at Google.
const IMPERSONATED_SECONDS: u64 = 3600;

/// What is in a file of the type `external_account`.
pub(super) struct Federation {
    audience: String,
    token_type: String,
    token_url: Url,
    impersonation_url: Option<Url>,
    impersonated_seconds: u64,
    file: PathBuf,
    /// The file is JSON, and the token in this field.
    json_field: Option<String>,
}

/// Hosts of the configuration, in the place of those in the file.
pub(super) struct ExchangeEndpoints<'a> {
    pub(crate) token: Option<&'a Url>,
    pub(crate) impersonation: Option<&'a Url>,
}

impl Federation {
    /// Reads the file; `None` if it is another, or names places that are not Google's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let file: Value = serde_json::from_str(text).ok()?;
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        if file["type"] != "external_account" {
            return None;
        }
        let google = |text: String| Url::parse(&text).ok().filter(is_of_google);
        let impersonation_url = match text(&file["service_account_impersonation_url"]) {
            Some(url) => Some(google(url)?),
            None => None,
        };
        let source = &file["credential_source"];
        let json_field = match source["format"]["type"].as_str() {
            None | Some("text") => None,
            Some("json") => Some(text(&source["format"]["subject_token_field_name"])?),
            Some(_) => return None,
        };
        Some(Self {
            audience: text(&file["audience"])?,
            token_type: text(&file["subject_token_type"])?,
            token_url: google(text(&file["token_url"])?)?,
            impersonation_url,
            impersonated_seconds: file["service_account_impersonation"]["token_lifetime_seconds"]
                .as_u64()
                .unwrap_or(IMPERSONATED_SECONDS),
            file: text(&source["file"])?.into(),
            json_field,
        })
    }

    /// An access token, and for how long it is good.
    pub(super) async fn token(
        &self,
        client: &HttpClient,
        endpoints: &ExchangeEndpoints<'_>,
    ) -> Result<(String, Duration), NoLogin> {
        let subject = self.subject().await?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
            .append_pair("audience", &self.audience)
            .append_pair("scope", SCOPE)
            .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
            .append_pair("subject_token_type", &self.token_type)
            .append_pair("subject_token", subject.expose())
            .finish();
        let url = endpoints.token.unwrap_or(&self.token_url);
        let body = ask(client, STS, post_form(url, form)).await?;
        let malformed = |what| NoLogin::Malformed { service: STS, what };
        let (federated, lifetime) = oauth::parse(&body).ok_or_else(|| malformed("no access token"))?;
        match &self.impersonation_url {
            None => Ok((federated, lifetime.ok_or_else(|| malformed("a token without its end"))?)),
            Some(url) => {
                let url = moved(url, endpoints.impersonation);
                impersonate(client, &url, &federated, self.impersonated_seconds).await
            }
        }
    }

    /// What the identity provider says of berth.
    async fn subject(&self) -> Result<Secret, NoLogin> {
        let text = read_file(&self.file, TOKEN_FILE).await?;
        let Some(name) = &self.json_field else { return Ok(text) };
        let found = serde_json::from_str::<Value>(text.expose()).ok();
        let found = found.and_then(|json| Some(json.get(name)?.as_str()?.to_owned()));
        found.map(Secret::new).ok_or_else(|| NoLogin::File { path: self.file.clone(), expected: TOKEN_FILE })
    }
}

/// A token of a service account, for one that may act as it.
async fn impersonate(
    client: &HttpClient,
    url: &Url,
    token: &str,
    seconds: u64,
) -> Result<(String, Duration), NoLogin> {
    let malformed = |what| NoLogin::Malformed { service: IAM, what };
    let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut bearer = bearer.map_err(|_| malformed("a token that fits into no header"))?;
    bearer.set_sensitive(true);
    let body = json!({ "scope": [SCOPE], "lifetime": format!("{seconds}s") }).to_string();
    let request = request(Method::POST, url)
        .header(AUTHORIZATION, bearer)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(body));
    let reply = ask(client, IAM, request).await?;
    let reply: Value = serde_json::from_slice(&reply).map_err(|_| malformed("no JSON"))?;
    let token = field(&reply, "accessToken", IAM, "no access token")?;
    let ends = field(&reply, "expireTime", IAM, "a token without its end")?;
    let ends = humantime::parse_rfc3339(&ends).map_err(|_| malformed("a token without its end"))?;
    Ok((token, ends.duration_since(SystemTime::now()).unwrap_or_default()))
}

/// The same path at another host.
fn moved(url: &Url, endpoint: Option<&Url>) -> Url {
    let Some(endpoint) = endpoint else { return url.clone() };
    let mut moved = endpoint.clone();
    moved.set_path(url.path());
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(changes: &Value) -> String {
        let mut file = json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": { "file": "/var/run/token" },
        });
        for (key, value) in changes.as_object().unwrap() {
            file[key] = value.clone();
        }
        file.to_string()
    }

    #[test]
    fn only_google_is_asked_and_only_a_file_is_read() {
        let check = |changes: Value, expected: bool| {
            assert_eq!(Federation::parse(&file(&changes)).is_some(), expected, "{changes}");
        };
        let as_account = |host: &str| json!({ "service_account_impersonation_url": format!("https://{host}/v1/x:generateAccessToken") });
        check(json!({}), true);
        check(as_account("iamcredentials.googleapis.com"), true);
        check(as_account("iamcredentials.evil.example"), false);
        check(json!({ "token_url": "https://sts.evil.example/v1/token" }), false);
        check(json!({ "token_url": "http://sts.googleapis.com/v1/token" }), false);
        check(json!({ "type": "authorized_user" }), false);
        check(json!({ "credential_source": { "executable": { "command": "/bin/sh" } } }), false);
        check(json!({ "credential_source": { "url": "http://169.254.169.254/" } }), false);
        let json = |format: Value| json!({ "credential_source": { "file": "/t", "format": format } });
        check(json(json!({ "type": "json", "subject_token_field_name": "access_token" })), true);
        check(json(json!({ "type": "json" })), false);
        check(json(json!({ "type": "xml" })), false);
    }
}
