//! AWS's token service: roles, for keys that may assume them or for the token of a web identity.

use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request};
use http_body_util::Full;
use url::{Position, Url, form_urlencoded};

use super::keys::Keys;
use super::region::Region;
use super::sigv4;
use crate::credentials::error::NoLogin;
use crate::credentials::service::{FORM, ask, element, post_form, read_file};
use crate::net::HttpClient;
use crate::net::secret::Secret;

const SERVICE: &str = "AWS STS";
const VERSION: &str = "2011-06-15";

/// The token service of a region.
#[derive(Clone)]
pub(super) struct Sts {
    pub(crate) url: Url,
    pub(crate) region: Region,
}

/// A role that is assumed with keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AssumedRole {
    pub(crate) arn: String,
    pub(crate) session: String,
    /// What its owner wants to hear.
    pub(crate) external_id: Option<String>,
}

/// A role that a signed token of the cluster is exchanged for (IRSA).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WebIdentity {
    pub(crate) role: String,
    pub(crate) token_file: PathBuf,
    pub(crate) session: String,
}

impl Sts {
    /// `AssumeRoleWithWebIdentity`, which needs no signature: the token is the proof.
    pub(super) async fn assume_with_token(
        &self,
        client: &HttpClient,
        WebIdentity { role, token_file, session }: &WebIdentity,
    ) -> Result<Keys, NoLogin> {
        let token = read_file(token_file, "a web identity token").await?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRoleWithWebIdentity")
            .append_pair("Version", VERSION)
            .append_pair("RoleArn", role)
            .append_pair("RoleSessionName", session)
            .append_pair("WebIdentityToken", token.expose())
            .finish();
        keys(client, self.request(form)).await
    }

    /// `AssumeRole`, signed with the keys that may.
    pub(super) async fn assume(
        &self,
        client: &HttpClient,
        with: &Keys,
        role: &AssumedRole,
    ) -> Result<Keys, NoLogin> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRole")
            .append_pair("Version", VERSION)
            .append_pair("RoleArn", &role.arn)
            .append_pair("RoleSessionName", &role.session)
            .extend_pairs(role.external_id.as_ref().map(|id| ("ExternalId", id)))
            .finish();
        keys(client, self.signed(with, form, SystemTime::now())).await
    }

    fn signed(
        &self,
        keys: &Keys,
        form: String,
        now: SystemTime,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let date = sigv4::date(now);
        let host = &self.url[Position::BeforeHost..Position::AfterPort];
        let token = keys.token.as_ref().map(|token| ("x-amz-security-token", token.expose()));
        let headers = [("content-type", FORM), ("host", host), ("x-amz-date", &date)];
        let headers: Vec<_> = headers.into_iter().chain(token).collect();
        let scope = sigv4::Scope { region: self.region.as_str(), service: "sts", date: &date };
        let to_sign = sigv4::Request { path: self.url.path(), headers: &headers, body: form.as_bytes() };
        let mut authorization = HeaderValue::from_str(&sigv4::authorization(keys, &scope, &to_sign))?;
        authorization.set_sensitive(true);
        let (date, host) = (HeaderValue::from_str(&date)?, HeaderValue::from_str(host)?);
        let token = keys.token.as_ref().map(|token| HeaderValue::from_str(token.expose())).transpose()?;
        let mut request = self.request(form)?;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, authorization);
        headers.insert(HOST, host);
        headers.insert("x-amz-date", date);
        if let Some(mut token) = token {
            token.set_sensitive(true);
            headers.insert("x-amz-security-token", token);
        }
        Ok(request)
    }

    fn request(&self, form: String) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = post_form(&self.url, form)?;
        // Its JSON is documented nowhere.
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/xml"));
        Ok(request)
    }
}

async fn keys(
    client: &HttpClient,
    request: Result<Request<Full<Bytes>>, http::Error>,
) -> Result<Keys, NoLogin> {
    let body = ask(client, SERVICE, request).await?;
    let malformed = || NoLogin::Malformed { service: SERVICE, what: "no keys" };
    let text = std::str::from_utf8(&body).map_err(|_| malformed())?;
    let one = |name| element(text, name).map(str::to_owned).ok_or_else(malformed);
    let id = one("AccessKeyId")?;
    let secret = Secret::new(one("SecretAccessKey")?);
    Ok(Keys { id, secret, token: Some(Secret::new(one("SessionToken")?)) })
}
