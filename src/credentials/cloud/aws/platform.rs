//! The keys that the platform has: of the environment, of an agent beside the container, of the EC2 instance.

use std::net::IpAddr;
use std::path::PathBuf;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method};
use http_body_util::Full;
use serde_json::Value;
use url::{Host, Url};

use super::keys::Keys;
use crate::credentials::error::LoginSetupError;
use crate::credentials::error::NoLogin;
use crate::credentials::service::{Environment, ask, field, read_file, request};
use crate::net::EndpointUrl;
use crate::net::HttpClient;
use crate::net::secret::Secret;

const CONTAINER: &str = "the AWS container credentials endpoint";
const INSTANCE: &str = "the EC2 metadata service";

/// Where ECS's agent answers paths that are given without a host.
const CONTAINER_HOST: &str = "http://169.254.170.2";
/// Hosts that may be asked for keys in plain text, besides this machine: the agents of ECS and of EKS Pod Identity.
const CONTAINER_AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
const INSTANCE_HOST: &str = "http://169.254.169.254";
/// How long a session with the metadata service lasts; one is needed for three requests.
const INSTANCE_SESSION_SECONDS: &str = "60";
/// As IAM names roles.
const ROLE_NAME_CHARACTERS_MAX: usize = 64;
/// What the environment and the machine have, in the order in which it is looked for.
pub(super) struct Platform {
    keys: Option<Keys>,
    /// An agent beside the container (ECS, EKS Pod Identity).
    container: Option<(Url, ContainerToken)>,
    /// The metadata service of the EC2 instance, for its role.
    instance: Url,
}

/// What an agent is shown.
enum ContainerToken {
    /// Nothing.
    None,
    /// A value from the environment.
    Fixed(Secret),
    /// The content of a file, which rotates.
    File(PathBuf),
}

impl Platform {
    pub(super) fn of(env: Environment<'_>) -> Result<Self, LoginSetupError> {
        let full = env("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let relative = env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let container = relative.map(|path| format!("{CONTAINER_HOST}{path}")).or(full);
        let container = container.map(|text| {
            let token = match env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
                Some(file) => ContainerToken::File(file.into()),
                None => env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
                    .map_or(ContainerToken::None, |token| ContainerToken::Fixed(Secret::new(token))),
            };
            Ok::<_, LoginSetupError>((agent_url(&text)?, token))
        });
        let service = env("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE_HOST.into());
        Ok(Self { keys: Keys::of(env), container: container.transpose()?, instance: endpoint_url(&service)? })
    }

    /// What there is, in a word.
    #[cfg(test)]
    pub(super) fn described(&self) -> String {
        let Some((url, token)) = &self.container else { return format!("instance {}", self.instance) };
        let token = match token {
            ContainerToken::None => "-".into(),
            ContainerToken::Fixed(token) => token.expose().to_owned(),
            ContainerToken::File(file) => file.display().to_string(),
        };
        format!("container {url} {token}")
    }

    /// Those of the container, or else of the instance.
    pub(super) async fn keys(&self, client: &HttpClient) -> Result<Keys, NoLogin> {
        match &self.container {
            Some((url, token)) => container(client, url, token).await,
            None => instance(client, &self.instance).await,
        }
    }

    /// Those that a profile's `credential_source` names; `None` if they are not there.
    pub(super) async fn keys_of(&self, client: &HttpClient, source: &str) -> Option<Result<Keys, NoLogin>> {
        match source {
            "Environment" => self.keys.clone().map(Ok),
            "EcsContainer" => {
                let (url, token) = self.container.as_ref()?;
                Some(container(client, url, token).await)
            }
            "Ec2InstanceMetadata" => Some(instance(client, &self.instance).await),
            _ => None,
        }
    }
}

/// Keys travel in plain text to agents on this machine or link only.
fn agent_url(text: &str) -> Result<Url, LoginSetupError> {
    let url = Url::parse(text);
    let url = url.map_err(|_| LoginSetupError::Credentials("AWS_CONTAINER_CREDENTIALS_…_URI is no URL"))?;
    let is_near = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback() || is_agent(ip.into()),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || is_agent(ip.into()),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_near => Ok(url),
        _ => Err(LoginSetupError::Credentials(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI would send keys in plain text over a network",
        )),
    }
}

fn is_agent(ip: IpAddr) -> bool {
    CONTAINER_AGENTS.iter().any(|agent| agent.parse() == Ok(ip))
}

async fn container(client: &HttpClient, url: &Url, token: &ContainerToken) -> Result<Keys, NoLogin> {
    let token = match token {
        ContainerToken::None => None,
        ContainerToken::Fixed(token) => Some(token.clone()),
        ContainerToken::File(file) => Some(read_file(file, "a container authorization token").await?),
    };
    let mut request = request(Method::GET, url);
    if let Some(token) = &token {
        request = request.header(AUTHORIZATION, sensitive(token, CONTAINER)?);
    }
    let body = ask(client, CONTAINER, request.body(Full::default())).await?;
    parse_keys(&body, CONTAINER)
}

/// Version 2 of the metadata service: a session first, which a forged request from elsewhere cannot have.
async fn instance(client: &HttpClient, service: &Url) -> Result<Keys, NoLogin> {
    const SESSION_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
    const SESSION: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
    let at = |path: &str| {
        let mut url = service.clone();
        url.set_path(&format!("{}/latest/{path}", service.path().trim_end_matches('/')));
        url
    };
    let start = request(Method::PUT, &at("api/token")).header(SESSION_TTL, INSTANCE_SESSION_SECONDS);
    let session = text(&ask(client, INSTANCE, start.body(Full::default())).await?);
    let session = sensitive(&Secret::new(session), INSTANCE)?;
    let get = async |path: &str| {
        let request = request(Method::GET, &at(path)).header(SESSION, session.clone());
        ask(client, INSTANCE, request.body(Full::default())).await
    };
    let roles = text(&get("meta-data/iam/security-credentials/").await?);
    let role = roles.lines().next().unwrap_or_default().trim();
    if !is_role_name(role) {
        return Err(NoLogin::Malformed { service: INSTANCE, what: "no role of the instance" });
    }
    parse_keys(&get(&format!("meta-data/iam/security-credentials/{role}")).await?, INSTANCE)
}

fn is_role_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    (1..=ROLE_NAME_CHARACTERS_MAX).contains(&text.len()) && text.chars().all(is_plain) && text != ".."
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}

fn sensitive(secret: &Secret, service: &'static str) -> Result<HeaderValue, NoLogin> {
    let value = HeaderValue::from_str(secret.expose());
    let mut value =
        value.map_err(|_| NoLogin::Malformed { service, what: "a token that fits into no header" })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How agents and the metadata service write keys.
fn parse_keys(body: &[u8], service: &'static str) -> Result<Keys, NoLogin> {
    let what = "no keys";
    let reply: Value = serde_json::from_slice(body).map_err(|_| NoLogin::Malformed { service, what })?;
    let id = field(&reply, "AccessKeyId", service, what)?;
    let secret = Secret::new(field(&reply, "SecretAccessKey", service, what)?);
    Ok(Keys { id, secret, token: Some(Secret::new(field(&reply, "Token", service, what)?)) })
}

/// An endpoint that a variable of the environment names.
pub(super) fn endpoint_url(text: &str) -> Result<Url, LoginSetupError> {
    let endpoint = EndpointUrl::parse(text);
    let endpoint =
        endpoint.map_err(|_| LoginSetupError::Credentials("an AWS endpoint in the environment is no URL"))?;
    Ok(endpoint.as_url().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_name_stays_within_its_path() {
        assert!(is_role_name("node-role_1+=,.@"));
        for text in ["", "a/b", "..", "a?b", "<html>", &"x".repeat(65)] {
            assert!(!is_role_name(text), "{text}");
        }
    }
}
