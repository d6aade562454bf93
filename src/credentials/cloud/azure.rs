//! Azure Container Registry: a token of Entra ID, which the registry itself exchanges for a refresh token; that is used
//! as an identity token is (`upstream`), and the access tokens that it yields say their end in themselves (`jwt`).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;
use url::{Position, Url, form_urlencoded};

use crate::credentials::error::LoginSetupError;
use crate::credentials::error::NoLogin;
use crate::credentials::login::IssuedLogin;
use crate::credentials::login::Login;
use crate::credentials::service::{Environment, ask, field, post_form, read_file, request};
use crate::credentials::{jwt, oauth};
use crate::net::EndpointUrl;
use crate::net::HttpClient;
use crate::net::secret::Secret;

const ENTRA: &str = "Microsoft Entra ID";
const METADATA: &str = "the Azure metadata service";
const APP: &str = "the identity endpoint of Azure App Service";
const EXCHANGE: &str = "the registry's /oauth2/exchange";
const METADATA_HOST: &str = "http://169.254.169.254";
/// Whom the token of Entra ID is for; one for all of Azure's clouds.
const AUDIENCE: &str = "https://containerregistry.azure.net";
/// What is assumed of a refresh token that does not say it; they live for three.
const REFRESH_LIFETIME: Duration = Duration::from_secs(3600);

/// `credentials = { azure = { … } }`: the login of a service principal, a workload identity or a managed identity, by
/// what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureConfig {
    /// The directory; without it `AZURE_TENANT_ID`.
    pub tenant: Option<String>,
    /// The application or managed identity; without it `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
    /// The file of a secret of the application, whose login is then that of the service principal.
    pub client_secret_file: Option<PathBuf>,
    /// The host of Entra ID; without it `AZURE_AUTHORITY_HOST`, or that of the registry's cloud.
    pub authority: Option<EndpointUrl>,
}

/// Issues logins for one registry of Azure.
pub(crate) struct Azure {
    exchange: Url,
    /// How the registry names itself.
    service: String,
    tenant: Option<String>,
    identity: Identity,
}

/// Who berth is to Entra ID.
enum Identity {
    /// An application with a secret.
    Principal { url: Url, client_id: String, secret: PrincipalSecret },
    /// An application that trusts the tokens of a cluster.
    Workload { url: Url, client_id: String, token_file: PathBuf },
    /// Whoever the machine is.
    Managed { url: Url },
    /// Whoever the app is, by App Service's own endpoint, which also Functions and Container Apps have.
    App { url: Url, header: Secret },
}

enum PrincipalSecret {
    Fixed(Secret),
    File(PathBuf),
}

impl Azure {
    /// For the registry at `endpoint`.
    ///
    /// # Errors
    /// [`LoginSetupError`] when a part of an identity is missing.
    pub(crate) fn new(
        config: &AzureConfig,
        endpoint: &EndpointUrl,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let registry = endpoint.as_url();
        let tenant = config.tenant.clone().or_else(|| env("AZURE_TENANT_ID"));
        let client_id = config.client_id.clone().or_else(|| env("AZURE_CLIENT_ID"));
        let secret = match &config.client_secret_file {
            Some(file) => Some(PrincipalSecret::File(file.clone())),
            None => env("AZURE_CLIENT_SECRET").map(|text| PrincipalSecret::Fixed(Secret::new(text))),
        };
        let token_file = env("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from);
        let application = || {
            let missing = LoginSetupError::Credentials("azure: expected tenant and client_id");
            let (Some(tenant), Some(client_id)) = (&tenant, &client_id) else { return Err(missing) };
            Ok((token_url(config, registry, tenant, env)?, client_id.clone()))
        };
        let identity = match (secret, token_file) {
            (Some(secret), _) => {
                let (url, client_id) = application()?;
                Identity::Principal { url, client_id, secret }
            }
            (None, Some(token_file)) => {
                let (url, client_id) = application()?;
                Identity::Workload { url, client_id, token_file }
            }
            (None, None) => match (env("IDENTITY_ENDPOINT"), env("IDENTITY_HEADER")) {
                (Some(endpoint), Some(header)) => {
                    let url = app_url(&endpoint, client_id.as_deref())?;
                    Identity::App { url, header: Secret::new(header) }
                }
                _ => Identity::Managed { url: metadata_url(client_id.as_deref(), env)? },
            },
        };
        let mut exchange = registry.clone();
        exchange.set_path("/oauth2/exchange");
        let service = registry[Position::BeforeHost..Position::AfterPort].to_owned();
        Ok(Self { exchange, service, tenant, identity })
    }

    /// Asks for a new login.
    pub(crate) async fn issue(&self, client: &HttpClient) -> Result<IssuedLogin, NoLogin> {
        let entra = self.identity.token(client).await?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "access_token")
            .append_pair("service", &self.service)
            .extend_pairs(self.tenant.as_ref().map(|tenant| ("tenant", tenant)))
            .append_pair("access_token", entra.expose())
            .finish();
        let body = ask(client, EXCHANGE, post_form(&self.exchange, form)).await?;
        let what = "no refresh token";
        let malformed = NoLogin::Malformed { service: EXCHANGE, what };
        let reply: Value = serde_json::from_slice(&body).map_err(|_| malformed)?;
        let text = field(&reply, "refresh_token", EXCHANGE, what)?;
        let lifetime = jwt::lifetime(&text, SystemTime::now()).unwrap_or(REFRESH_LIFETIME);
        Ok(IssuedLogin { login: Login::IdentityToken(Secret::new(text)), lifetime })
    }
}

impl Identity {
    /// A token of Entra ID for registries.
    async fn token(&self, client: &HttpClient) -> Result<Secret, NoLogin> {
        let (service, request) = match self {
            Self::Principal { url, client_id, secret } => {
                let secret = match secret {
                    PrincipalSecret::Fixed(secret) => secret.clone(),
                    PrincipalSecret::File(file) => read_file(file, "a client secret").await?,
                };
                let proof = [("client_secret", secret.expose())];
                (ENTRA, post_form(url, client_credentials(client_id, &proof)))
            }
            Self::Workload { url, client_id, token_file } => {
                let token = read_file(token_file, "a federated token").await?;
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                let proof = [("client_assertion_type", kind), ("client_assertion", token.expose())];
                (ENTRA, post_form(url, client_credentials(client_id, &proof)))
            }
            Self::Managed { url } => {
                let request = request(Method::GET, url).header("metadata", "true");
                (METADATA, request.body(Full::default()))
            }
            Self::App { url, header } => {
                let header = HeaderValue::from_str(header.expose());
                let what = "an IDENTITY_HEADER that fits into no header";
                let mut header = header.map_err(|_| NoLogin::Malformed { service: APP, what })?;
                header.set_sensitive(true);
                (APP, request(Method::GET, url).header("x-identity-header", header).body(Full::default()))
            }
        };
        let body = ask(client, service, request).await?;
        let (text, _) = oauth::parse(&body).ok_or(NoLogin::Malformed { service, what: "no access token" })?;
        Ok(Secret::new(text))
    }
}

fn client_credentials(client_id: &str, proof: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", client_id)
        .append_pair("scope", &format!("{AUDIENCE}/.default"))
        .extend_pairs(proof)
        .finish()
}

fn token_url(
    config: &AzureConfig,
    registry: &Url,
    tenant: &str,
    env: Environment<'_>,
) -> Result<Url, LoginSetupError> {
    let wrong = LoginSetupError::Credentials("azure: AZURE_AUTHORITY_HOST is no URL");
    let mut url = match (&config.authority, env("AZURE_AUTHORITY_HOST")) {
        (Some(authority), _) => authority.as_url().clone(),
        (None, Some(text)) => EndpointUrl::parse(&text).map_err(|_| wrong)?.as_url().clone(),
        (None, None) => Url::parse(authority_of(registry)).expect("it is a URL"),
    };
    let segments = [tenant, "oauth2", "v2.0", "token"];
    url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(segments);
    Ok(url)
}

/// The Entra ID of the cloud that a registry is in.
fn authority_of(registry: &Url) -> &'static str {
    match registry.host_str().unwrap_or_default().rsplit('.').next() {
        Some("cn") => "https://login.chinacloudapi.cn",
        Some("us") => "https://login.microsoftonline.us",
        _ => "https://login.microsoftonline.com",
    }
}

/// Where the machine's own identity is, or that of its identities which is meant.
fn metadata_url(client_id: Option<&str>, env: Environment<'_>) -> Result<Url, LoginSetupError> {
    let host = env("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or_else(|| METADATA_HOST.to_owned());
    let wrong = LoginSetupError::Credentials("azure: AZURE_POD_IDENTITY_AUTHORITY_HOST is no URL");
    let mut url = EndpointUrl::parse(&host).map_err(|_| wrong)?.as_url().clone();
    url.set_path("/metadata/identity/oauth2/token");
    Ok(with_query(url, "2018-02-01", client_id))
}

/// Where the app's identity is. The endpoint is on the machine, and speaks plain text.
fn app_url(endpoint: &str, client_id: Option<&str>) -> Result<Url, LoginSetupError> {
    let wrong = LoginSetupError::Credentials("azure: IDENTITY_ENDPOINT is no URL");
    let url = EndpointUrl::parse(endpoint).map_err(|_| wrong)?.as_url().clone();
    Ok(with_query(url, "2019-08-01", client_id))
}

fn with_query(mut url: Url, version: &str, client_id: Option<&str>) -> Url {
    url.query_pairs_mut().append_pair("api-version", version).append_pair("resource", AUDIENCE);
    if let Some(client_id) = client_id {
        url.query_pairs_mut().append_pair("client_id", client_id);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who berth is, and where it goes with that.
    fn build(
        config: &AzureConfig,
        endpoint: &str,
        variables: &[(&str, &str)],
    ) -> Result<(&'static str, String), String> {
        let env =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let azure = Azure::new(config, &EndpointUrl::parse(endpoint).unwrap(), &env);
        let azure = azure.map_err(|error| error.to_string())?;
        assert_eq!(azure.exchange.as_str(), format!("{endpoint}/oauth2/exchange"));
        Ok(match azure.identity {
            Identity::Principal { url, .. } => ("principal", url.to_string()),
            Identity::Workload { url, .. } => ("workload", url.to_string()),
            Identity::Managed { url } => ("managed", url.to_string()),
            Identity::App { url, .. } => ("app", url.to_string()),
        })
    }

    #[test]
    fn the_identity_is_what_is_there() {
        let usual = AzureConfig::default();
        let registry = "https://x.azurecr.io";
        let check = |config: &AzureConfig, endpoint: &str, variables: &[(&str, &str)], who, url: &str| {
            assert_eq!(build(config, endpoint, variables), Ok((who, url.to_owned())), "{variables:?}");
        };
        let managed = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01\
                       &resource=https%3A%2F%2Fcontainerregistry.azure.net";
        check(&usual, registry, &[], "managed", managed);
        let one = AzureConfig { client_id: Some("id".into()), ..usual.clone() };
        check(&one, registry, &[], "managed", &format!("{managed}&client_id=id"));

        let app = [("IDENTITY_ENDPOINT", "http://localhost:42356/msi/token"), ("IDENTITY_HEADER", "h")];
        let at_app =
            managed.replace("169.254.169.254/metadata/identity/oauth2/token", "localhost:42356/msi/token");
        check(&usual, registry, &app, "app", &at_app.replace("2018-02-01", "2019-08-01"));
        check(&usual, registry, &app[..1], "managed", managed);

        let (tenant, client) = (("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c"));
        let federated = [tenant, client, ("AZURE_FEDERATED_TOKEN_FILE", "/f")];
        let at = |host: &str| format!("{host}/t/oauth2/v2.0/token");
        check(&usual, registry, &federated, "workload", &at("https://login.microsoftonline.com"));
        check(
            &usual,
            "https://x.azurecr.us",
            &federated,
            "workload",
            &at("https://login.microsoftonline.us"),
        );
        check(&usual, "https://x.azurecr.cn", &federated, "workload", &at("https://login.chinacloudapi.cn"));
        let host = ("AZURE_AUTHORITY_HOST", "https://login.example/");
        check(
            &usual,
            registry,
            &[tenant, client, federated[2], host],
            "workload",
            &at("https://login.example"),
        );

        let secret = ("AZURE_CLIENT_SECRET", "s");
        let with_secret = [tenant, client, federated[2], secret];
        check(&usual, registry, &with_secret, "principal", &at("https://login.microsoftonline.com"));
        assert!(build(&usual, registry, &[secret, client]).unwrap_err().contains("tenant"));
        let odd = AzureConfig { tenant: Some("../../x?y".into()), ..usual };
        let escaped = "https://login.microsoftonline.com/..%2F..%2Fx%3Fy/oauth2/v2.0/token";
        check(&odd, registry, &with_secret, "principal", escaped);
    }
}
