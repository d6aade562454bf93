//! Google's Artifact Registry and gcr.io: an access token, which their token server takes as the password of
//! `oauth2accesstoken`.
//!
//! It is had for the key of a service account, by a JWT that the key has signed; for a token of another identity provider
//! that Google trusts (`google_federation`); or from the metadata server, for the account of the instance or (on GKE) of the pod.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use http_body_util::Full;
use ring::signature::RsaKeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::google_federation::{self, Federation};
use crate::credentials::error::LoginSetupError;
use crate::credentials::error::NoLogin;
use crate::credentials::login::IssuedLogin;
use crate::credentials::login::Login;
use crate::credentials::service::{Environment, ask, post_form, read_file, request};
use crate::credentials::{jwt, oauth};
use crate::files;
use crate::net::EndpointUrl;
use crate::net::HttpClient;
use crate::net::secret::Secret;

const OAUTH: &str = "Google's token service";
const METADATA: &str = "the Google metadata server";
const METADATA_HOST: &str = "169.254.169.254";
const METADATA_PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";
const USERNAME: &str = "oauth2accesstoken";
const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
/// What Artifact Registry demands; what the account may do is decided by its roles.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// As long as Google lets an assertion live.
const ASSERTION_SECONDS: u64 = 3600;
const KEY_FILE: &str =
    "the key of a Google service account, or a configuration of workload identity federation";

/// `credentials = { google = { … } }`: the login of a service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GoogleConfig {
    /// The account's key, as Google's console writes it, or a configuration of workload identity federation, as `gcloud`
    /// does; without it `GOOGLE_APPLICATION_CREDENTIALS`, and without that the account of the instance or pod.
    pub key_file: Option<PathBuf>,
    /// Another URL of the token service than the one in that file, such as that of a private network.
    pub token_endpoint: Option<EndpointUrl>,
    /// Another host than the one in that file, of the service that lets one account act as another.
    pub impersonation_endpoint: Option<EndpointUrl>,
}

/// Issues logins for Google's registries.
pub(crate) enum Google {
    /// To the owner of a key, or of a token that Google trusts.
    File { file: PathBuf, token_endpoint: Option<Url>, impersonation_endpoint: Option<Url> },
    /// To the instance or pod.
    Metadata { url: Url },
}

impl Google {
    /// For the account of the key that there is, or else of the instance or pod.
    ///
    /// # Errors
    /// [`LoginSetupError`] when the key or the metadata server cannot be used.
    pub(crate) fn new(config: &GoogleConfig, env: Environment<'_>) -> Result<Self, LoginSetupError> {
        let in_env = || env("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from);
        if let Some(file) = config.key_file.clone().or_else(in_env) {
            let text = files::read_text(&file)
                .map_err(|source| LoginSetupError::Read { path: file.clone(), source })?;
            if Key::parse(&text).is_none() && Federation::parse(&text).is_none() {
                return Err(LoginSetupError::Content { path: file, expected: KEY_FILE });
            }
            let url = |endpoint: &Option<EndpointUrl>| Some(endpoint.as_ref()?.as_url().clone());
            let (token_endpoint, impersonation_endpoint) =
                (url(&config.token_endpoint), url(&config.impersonation_endpoint));
            return Ok(Self::File { file, token_endpoint, impersonation_endpoint });
        }
        let host = env("GCE_METADATA_HOST").unwrap_or_else(|| METADATA_HOST.to_owned());
        let url = Url::parse(&format!("http://{host}/{METADATA_PATH}"));
        Ok(Self::Metadata {
            url: url.map_err(|_| LoginSetupError::Credentials("GCE_METADATA_HOST is no host"))?,
        })
    }

    /// Asks for a new login.
    pub(crate) async fn issue(&self, client: &HttpClient) -> Result<IssuedLogin, NoLogin> {
        let (service, body) = match self {
            Self::File { file, token_endpoint, impersonation_endpoint } => {
                let wrong = || NoLogin::File { path: file.clone(), expected: KEY_FILE };
                let text = read_file(file, KEY_FILE).await?;
                if let Some(federation) = Federation::parse(text.expose()) {
                    let endpoints = google_federation::ExchangeEndpoints {
                        token: token_endpoint.as_ref(),
                        impersonation: impersonation_endpoint.as_ref(),
                    };
                    let (text, lifetime) = federation.token(client, &endpoints).await?;
                    return Ok(grant(text, lifetime));
                }
                let key = Key::parse(text.expose()).ok_or_else(wrong)?;
                let assertion = key.assertion(SystemTime::now()).ok_or_else(wrong)?;
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
                    .append_pair("assertion", &assertion)
                    .finish();
                let url = token_endpoint.as_ref().unwrap_or(&key.token_url);
                (OAUTH, ask(client, OAUTH, post_form(url, form)).await?)
            }
            Self::Metadata { url } => {
                let request = request(Method::GET, url).header("metadata-flavor", "Google");
                (METADATA, ask(client, METADATA, request.body(Full::default())).await?)
            }
        };
        let (text, lifetime) =
            oauth::parse(&body).ok_or(NoLogin::Malformed { service, what: "no access token" })?;
        let lifetime = lifetime.ok_or(NoLogin::Malformed { service, what: "a token without its end" })?;
        Ok(grant(text, lifetime))
    }
}

/// What the registry takes for an access token.
fn grant(token: String, lifetime: Duration) -> IssuedLogin {
    IssuedLogin {
        login: Login::Basic { username: USERNAME.to_owned(), password: Secret::new(token) },
        lifetime,
    }
}

/// What is in the file of a key.
struct Key {
    id: String,
    account: String,
    token_url: Url,
    key: RsaKeyPair,
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let file: Value = serde_json::from_str(text).ok()?;
        let field = |name: &str| file[name].as_str();
        if field("type") != Some("service_account") {
            return None;
        }
        let token_url = Url::parse(field("token_uri").unwrap_or(TOKEN_URL)).ok()?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(field("private_key")?.as_bytes()).ok()?;
        let key = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?;
        let (id, account) = (field("private_key_id")?.to_owned(), field("client_email")?.to_owned());
        is_of_google(&token_url).then_some(Self { id, account, token_url, key })
    }

    /// Proves for an hour that whoever shows it has the key.
    fn assertion(&self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let claims = json!({
            "iss": self.account,
            "scope": SCOPE,
            "aud": self.token_url.as_str(),
            "iat": now,
            "exp": now + ASSERTION_SECONDS,
        });
        jwt::sign(&self.key, &self.id, &claims)
    }
}

/// A file that somebody else wrote must not make berth show an assertion elsewhere. Keys of old say
/// `accounts.google.com/o/oauth2/token`, which still answers.
pub(super) fn is_of_google(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let is_known =
        ["googleapis.com", "accounts.google.com"].contains(&host) || host.ends_with(".googleapis.com");
    url.scheme() == "https" && is_known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assertions_are_shown_to_google_only() {
        let check = |url: &str, expected: bool| {
            assert_eq!(is_of_google(&Url::parse(url).unwrap()), expected, "{url}");
        };
        check(TOKEN_URL, true);
        check("https://oauth2-x.p.googleapis.com/token", true);
        check("https://accounts.google.com/o/oauth2/token", true);
        check("https://www.googleapis.com/oauth2/v4/token", true);
        check("https://x.accounts.google.com/o/oauth2/token", false);
        check("https://sites.google.com/o/oauth2/token", false);
        check("http://accounts.google.com/o/oauth2/token", false);
        check("https://evilgoogleapis.com/token", false);
        check("https://googleapis.com.evil.example/token", false);
        check("http://oauth2.googleapis.com/token", false);
        check("https://oauth2.googleapis.com@evil.example/", false);
    }

    #[test]
    fn the_metadata_server_is_asked_when_there_is_no_key() {
        let url = |env: Environment<'_>| match Google::new(&GoogleConfig::default(), env) {
            Ok(Google::Metadata { url }) => Ok(url.to_string()),
            Ok(Google::File { file, .. }) => Ok(file.display().to_string()),
            Err(error) => Err(error.to_string()),
        };
        let usual = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token";
        assert_eq!(url(&|_| None).as_deref(), Ok(usual));
        let host = |name: &str| (name == "GCE_METADATA_HOST").then(|| "a b".to_owned());
        assert!(url(&host).unwrap_err().contains("GCE_METADATA_HOST"));
        let file = |name: &str| (name == "GOOGLE_APPLICATION_CREDENTIALS").then(|| "/no/key.json".to_owned());
        assert!(url(&file).unwrap_err().contains("/no/key.json"));
    }
}
