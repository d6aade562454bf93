//! What berth asks of Vault, and how it becomes known there.
//!
//! A token that a login has yielded is renewed while Vault says that it can be, and replaced by another login when it
//! cannot, or when its lease has grown short because it nears the end that its role allows. A token that was given is
//! renewed too, so that it does not end in berth's hands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::Instant;
use url::{Host, Url};

use super::config::{AppRole, KubernetesLogin, VaultConfig, VaultLogin};
use crate::credentials::error::{LoginSetupError, NoLogin, VaultProblem};
use crate::credentials::renewing::{Answer, Expiring, LIFETIME_MAX};
use crate::credentials::service::{self, Environment, REPLY_BYTES_MAX, read_file};
use crate::net::error::TOO_LARGE;
use crate::net::secret::Secret;
use crate::net::{ClientConfig, DialPolicy, EndpointUrl, Error, HttpClient, Proxy, RequestObserver, client};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Without it a Vault Proxy may refuse to answer, which keeps out requests that were forged elsewhere.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const TOKEN_FILE: &str = "a file with a Vault token";
/// After this a given token is looked at again whose end Vault does not tell.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(300);

/// One Vault, and who berth is there.
pub(super) struct Session {
    /// Of its own: other authorities, no client certificate of the upstream's.
    client: HttpClient,
    address: EndpointUrl,
    namespace: Option<HeaderValue>,
    who: Who,
}

enum Who {
    /// Whoever has the token.
    Given(Secret),
    /// Whoever has the token in a file.
    File(PathBuf),
    /// The account of the pod.
    Kubernetes(KubernetesLogin),
    /// Whoever knows the role's secret.
    AppRole(AppRole),
}

/// What Vault knows berth by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    secret: Secret,
    is_renewable: bool,
    /// For how long it was granted at first.
    granted: Duration,
}

/// What Vault says to a request, if that is about what was asked: 200, 204, 400, 403, 404.
pub(super) struct Reply {
    pub(crate) status: StatusCode,
    /// `null` if there is none.
    pub(crate) body: Value,
}

impl Session {
    pub(super) fn new(
        config: &VaultConfig,
        upstream: &ClientConfig,
        observer: &RequestObserver,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        if !is_safe(config.address.as_url()) {
            return Err(LoginSetupError::Credentials(
                "vault: expected https:// in address, since tokens would travel in plain text; http is for this machine \
                 alone",
            ));
        }
        let namespace = config.namespace.as_deref().map(HeaderValue::from_str).transpose();
        let namespace =
            namespace.map_err(|_| LoginSetupError::Credentials("vault: expected the name of a namespace"))?;
        let who = match &config.login {
            VaultLogin::TokenEnv(name) => {
                let missing = || LoginSetupError::Environment { name: name.clone() };
                Who::Given(Secret::new(env(name).ok_or_else(missing)?.trim().to_owned()))
            }
            VaultLogin::TokenFile(file) => Who::File(file.clone()),
            VaultLogin::Kubernetes(login) => Who::Kubernetes(login.clone()),
            VaultLogin::AppRole(login) => Who::AppRole(login.clone()),
        };
        let client = ClientConfig {
            owner: upstream.owner.clone(),
            endpoints: vec![config.address.clone()],
            ca: config.ca.clone(),
            addresses: upstream.addresses.clone(),
            // A proxy that is named there is for the registry.
            proxy: if upstream.proxy == Proxy::None { Proxy::None } else { Proxy::Environment },
            user_agent: None,
            offline: upstream.offline,
            timeouts: upstream.timeouts,
        };
        let client = HttpClient::build(&client, None, Arc::clone(observer))?;
        Ok(Self { client, address: config.address.clone(), namespace, who })
    }

    /// The URL of a path below `/v1/`.
    pub(super) fn url<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.address.as_url().clone();
        let mut segments = url.path_segments_mut().expect("an http URL has a path");
        segments.pop_if_empty().push("v1").extend(path);
        drop(segments);
        url
    }

    /// Reads what is at a URL.
    pub(super) async fn read(&self, url: &Url, token: &Token) -> Result<Reply, NoLogin> {
        self.ask(Method::GET, url, Some(&token.secret), None).await
    }

    /// Whether Vault knows the token no more. (It answers 403 for what a token may not do, too.)
    pub(super) async fn refuses(&self, token: &Token) -> Result<bool, NoLogin> {
        Ok(self.look_at(&token.secret).await?.status != StatusCode::OK)
    }

    /// Whether the token is to come from a file, and that has another by now.
    pub(super) async fn is_replaced(&self, token: &Token) -> bool {
        let Who::File(file) = &self.who else { return false };
        read_file(file, TOKEN_FILE).await.is_ok_and(|found| found != token.secret)
    }

    /// A token: `current`, if that can be renewed, or else another.
    pub(super) async fn token(&self, current: Option<Token>) -> Answer<Token> {
        let (mount, proof) = match &self.who {
            Who::Given(secret) => return self.given(secret.clone()).await,
            Who::File(file) => return self.given(read_file(file, TOKEN_FILE).await?).await,
            Who::Kubernetes(login) => {
                let jwt = read_file(&login.token_file, "a token of a Kubernetes account").await?;
                (&login.mount, json!({ "role": login.role, "jwt": jwt.expose() }))
            }
            Who::AppRole(login) => {
                let secret = read_file(&login.secret_id_file, "a secret_id of Vault's").await?;
                (&login.mount, json!({ "role_id": login.role_id, "secret_id": secret.expose() }))
            }
        };
        if let Some(token) = current.filter(|token| token.is_renewable)
            && let Some(lifetime) = self.renew(&token.secret).await?
            && lifetime >= token.granted / 2
        {
            return Ok(Expiring::new(token, lifetime));
        }
        let url = self.url(["auth"].into_iter().chain(mount.segments()).chain(["login"]));
        let reply = self.ask(Method::POST, &url, None, Some(&proof)).await?;
        if reply.status != StatusCode::OK {
            let at = format!("auth/{}/login", mount.as_str()).into();
            return Err(VaultProblem::LoginRefused { at, status: reply.status.as_u16() }.into());
        }
        let auth = &reply.body["auth"];
        let secret = auth["client_token"].as_str().filter(|text| !text.is_empty());
        let secret = secret.ok_or_else(|| nonsense("a login without a token"))?;
        let granted = lifetime(&auth["lease_duration"]);
        let is_renewable = auth["renewable"] == true;
        Ok(Expiring::new(Token { secret: Secret::new(secret.to_owned()), is_renewable, granted }, granted))
    }

    /// A token that was had elsewhere, for as long as Vault says that it lives.
    async fn given(&self, secret: Secret) -> Answer<Token> {
        let reply = self.look_at(&secret).await?;
        let granted = if reply.status == StatusCode::OK {
            let data = &reply.body["data"];
            let renewed = if data["renewable"] == true { self.renew(&secret).await? } else { None };
            renewed.unwrap_or_else(|| lifetime(&data["ttl"]))
        } else {
            // It may read the secret all the same, if its policy is narrow.
            UNKNOWN_LIFETIME
        };
        Ok(Expiring::new(Token { secret, is_renewable: false, granted }, granted))
    }

    /// Extends the life of a token; `None` if Vault does not.
    async fn renew(&self, token: &Secret) -> Result<Option<Duration>, NoLogin> {
        let url = self.url(["auth", "token", "renew-self"]);
        let reply = self.ask(Method::POST, &url, Some(token), Some(&json!({}))).await?;
        Ok((reply.status == StatusCode::OK).then(|| lifetime(&reply.body["auth"]["lease_duration"])))
    }

    async fn look_at(&self, token: &Secret) -> Result<Reply, NoLogin> {
        self.ask(Method::GET, &self.url(["auth", "token", "lookup-self"]), Some(token), None).await
    }

    async fn ask(
        &self,
        method: Method,
        url: &Url,
        token: Option<&Secret>,
        body: Option<&Value>,
    ) -> Result<Reply, NoLogin> {
        let mut request = service::request(method, url).header(REQUEST, "true");
        if let Some(namespace) = &self.namespace {
            request = request.header(NAMESPACE, namespace);
        }
        if let Some(token) = token {
            let token = HeaderValue::from_str(token.expose());
            let mut token = token.map_err(|_| nonsense("a token that fits into no header"))?;
            token.set_sensitive(true);
            request = request.header(TOKEN, token);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body)).map_err(|_| nonsense("what fits into no request"))?;
        self.send(request).await
    }

    async fn send(&self, request: http::Request<Full<Bytes>>) -> Result<Reply, NoLogin> {
        let within = self.client.timeouts.token;
        let deadline = Instant::now() + within;
        let response = self.client.send(DialPolicy::Direct, request, within).await;
        let response = response.map_err(|error| unanswered(&error))?;
        let status = response.status();
        match status.as_u16() {
            200 | 204 | 400 | 403 | 404 => {}
            503 => return Err(VaultProblem::Sealed.into()),
            status @ 300..=399 => return Err(VaultProblem::Redirects { status }.into()),
            status => return Err(VaultProblem::Status { status }.into()),
        }
        let body =
            client::read(response.into_body(), REPLY_BYTES_MAX, self.client.timeouts.idle, deadline).await;
        let body = match body {
            Err(Error::TooLarge) => return Err(nonsense(TOO_LARGE)),
            body => body.map_err(|error| unanswered(&error))?,
        };
        let body = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        // A proxy that denies access is not Vault.
        Ok(Reply { status, body: body.map_err(|_| nonsense("no JSON"))? })
    }
}

/// Whether what is sent there can be read by nobody in between.
fn is_safe(url: &Url) -> bool {
    url.scheme() == "https"
        || match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
}

/// Of seconds; none is for ever.
fn lifetime(seconds: &Value) -> Duration {
    match seconds.as_u64() {
        Some(0) | None => LIFETIME_MAX,
        Some(seconds) => Duration::from_secs(seconds),
    }
}

fn nonsense(what: &'static str) -> NoLogin {
    VaultProblem::Nonsense { what }.into()
}

pub(super) fn unanswered(error: &Error) -> NoLogin {
    VaultProblem::Unanswered { cause: service::cause(error) }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_do_not_travel_in_plain_text() {
        let check = |url: &str, expected: bool| {
            assert_eq!(is_safe(&Url::parse(url).unwrap()), expected, "{url}");
        };
        check("https://vault.example:8200", true);
        check("http://127.0.0.1:8200", true);
        check("http://[::1]:8200", true);
        check("http://localhost:8200", true);
        check("http://vault.example:8200", false);
        check("http://10.0.0.1:8200", false);
        check("http://localhost.example:8200", false);
    }
}
