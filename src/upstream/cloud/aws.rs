//! Who berth is to AWS: keys from the environment, from a profile, for a web identity, from a container's endpoint or
//! from the instance.
//!
//! Which of them is chosen is decided once, in the order of AWS's own tools, by what the configuration and the
//! environment hold; the keys themselves are had anew whenever they are needed, a few times a day.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method};
use http_body_util::Full;
use serde_json::Value;
use url::{Host, Url};

use super::ecr::Region;
use super::profile::{self, Profile, SESSION_NAME};
use super::sts::{Sts, WebIdentity};
use super::{Environment, NoLogin, ask, field, read_file, request};
use crate::upstream::client::Client;
use crate::upstream::config::Endpoint;
use crate::upstream::error::BuildError;
use crate::upstream::secret::Secret;

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
const DEFAULT_PROFILE: &str = "default";

/// What requests are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Proves keys that are good for a time only.
    pub(super) token: Option<Secret>,
}

impl Keys {
    /// Those in the environment.
    fn of(env: Environment<'_>) -> Option<Self> {
        let (id, secret) = (env("AWS_ACCESS_KEY_ID")?, Secret::new(env("AWS_SECRET_ACCESS_KEY")?));
        Some(Self { id, secret, token: env("AWS_SESSION_TOKEN").map(Secret::new) })
    }
}

/// Where keys come from.
pub(super) enum Source {
    /// The environment.
    Fixed(Keys),
    /// Files of AWS's tools.
    Profile(Box<Profile>),
    /// A token of the cluster.
    WebIdentity(Sts, WebIdentity),
    /// What the platform has.
    Platform(Platform),
}

/// What the environment and the machine have, in the order in which it is looked for.
pub(super) struct Platform {
    keys: Option<Keys>,
    /// An agent beside the container (ECS, EKS Pod Identity).
    container: Option<(Url, ContainerToken)>,
    /// The metadata service of the EC2 instance, for its role.
    instance: Url,
}

/// What an agent is shown.
pub(super) enum ContainerToken {
    /// Nothing.
    None,
    /// A value from the environment.
    Fixed(Secret),
    /// The content of a file, which rotates.
    File(PathBuf),
}

impl Source {
    /// The first that is there. `sts` is the host of the token service of `region`.
    ///
    /// # Errors
    /// [`BuildError`] when what was chosen cannot be used.
    pub(super) fn choose(
        profile: Option<&str>,
        profile_file: Option<&Path>,
        region: Region,
        env: Environment<'_>,
    ) -> Result<Self, BuildError> {
        let host = format!("sts.{region}.{}", region.domain());
        let sts = url(&env("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://{host}")))?;
        let sts = Sts { url: sts, region };
        let is_profile_configured = profile.is_some() || profile_file.is_some();
        if !is_profile_configured && let Some(keys) = Keys::of(env) {
            return Ok(Self::Fixed(keys));
        }
        if !is_profile_configured
            && let (Some(role), Some(token_file)) = (env("AWS_ROLE_ARN"), env("AWS_WEB_IDENTITY_TOKEN_FILE"))
        {
            let session = env("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| SESSION_NAME.to_owned());
            return Ok(Self::WebIdentity(sts, WebIdentity { role, token_file: token_file.into(), session }));
        }
        let platform = Platform::of(env)?;
        let (given_file, given_profile) = (env("AWS_SHARED_CREDENTIALS_FILE"), env("AWS_PROFILE"));
        let is_given = given_file.is_some() || given_profile.is_some();
        let of_home = |name: &str| env("HOME").map(|home| Path::new(&home).join(".aws").join(name));
        let credentials = || given_file.map(PathBuf::from).or_else(|| of_home("credentials"));
        let config = || env("AWS_CONFIG_FILE").map(PathBuf::from).or_else(|| of_home("config"));
        let files: Vec<_> = match profile_file {
            Some(file) => vec![file.to_owned()],
            None => credentials().into_iter().chain(config()).collect(),
        };
        if is_profile_configured || is_given || profile::is_usable(&files, DEFAULT_PROFILE) {
            if files.is_empty() {
                return Err(BuildError::Credentials(
                    "a profile is named, and neither profile_file nor AWS_SHARED_CREDENTIALS_FILE nor HOME says where",
                ));
            }
            let name = profile.map(str::to_owned).or(given_profile).unwrap_or_else(|| DEFAULT_PROFILE.into());
            return Ok(Self::Profile(Box::new(Profile { files, name, sts, platform })));
        }
        Ok(Self::Platform(platform))
    }

    /// Keys that are good now.
    ///
    /// # Errors
    /// [`NoLogin`] says who has none.
    pub(super) async fn keys(&self, client: &Client) -> Result<Keys, NoLogin> {
        match self {
            Self::Fixed(keys) => Ok(keys.clone()),
            Self::Profile(profile) => profile.keys(client).await,
            Self::WebIdentity(sts, identity) => sts.assume_with_token(client, identity).await,
            Self::Platform(Platform { container: Some((url, token)), .. }) => {
                container(client, url, token).await
            }
            Self::Platform(Platform { instance: service, .. }) => instance(client, service).await,
        }
    }
}

impl Platform {
    fn of(env: Environment<'_>) -> Result<Self, BuildError> {
        let full = env("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let relative = env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let container = relative.map(|path| format!("{CONTAINER_HOST}{path}")).or(full);
        let container = container.map(|text| {
            let token = match env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
                Some(file) => ContainerToken::File(file.into()),
                None => env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
                    .map_or(ContainerToken::None, |token| ContainerToken::Fixed(Secret::new(token))),
            };
            Ok((agent_url(&text)?, token))
        });
        let service = env("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE_HOST.into());
        Ok(Self { keys: Keys::of(env), container: container.transpose()?, instance: url(&service)? })
    }

    /// Those that a profile's `credential_source` names; `None` if they are not there.
    pub(super) async fn keys(&self, client: &Client, source: &str) -> Option<Result<Keys, NoLogin>> {
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

fn url(text: &str) -> Result<Url, BuildError> {
    let endpoint = Endpoint::parse(text);
    let endpoint =
        endpoint.map_err(|_| BuildError::Credentials("an AWS endpoint in the environment is no URL"))?;
    Ok(endpoint.as_url().clone())
}

/// Keys travel in plain text to agents on this machine or link only.
fn agent_url(text: &str) -> Result<Url, BuildError> {
    let url = Url::parse(text);
    let url = url.map_err(|_| BuildError::Credentials("AWS_CONTAINER_CREDENTIALS_…_URI is no URL"))?;
    let is_near = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback() || is_agent(ip.into()),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || is_agent(ip.into()),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_near => Ok(url),
        _ => Err(BuildError::Credentials(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI would send keys in plain text over a network",
        )),
    }
}

fn is_agent(ip: IpAddr) -> bool {
    CONTAINER_AGENTS.iter().any(|agent| agent.parse() == Ok(ip))
}

async fn container(client: &Client, url: &Url, token: &ContainerToken) -> Result<Keys, NoLogin> {
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
async fn instance(client: &Client, service: &Url) -> Result<Keys, NoLogin> {
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What is chosen, in a word.
    fn choose(profile: Option<&str>, variables: &[(&str, &str)]) -> Result<String, String> {
        let env =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let source =
            Source::choose(profile, None, Region::parse("x").unwrap(), &env).map_err(|it| it.to_string())?;
        Ok(match source {
            Source::Fixed(keys) => format!("fixed {} {}", keys.id, keys.token.is_some()),
            Source::Profile(profile) => {
                format!("profile {} {:?}", profile.name, profile.files)
            }
            Source::WebIdentity(sts, WebIdentity { role, token_file, session }) => {
                format!("web {} {role} {} {session}", sts.url, token_file.display())
            }
            Source::Platform(Platform { container: Some((url, token)), .. }) => {
                let token = match token {
                    ContainerToken::None => "-".into(),
                    ContainerToken::Fixed(token) => token.expose().to_owned(),
                    ContainerToken::File(file) => file.display().to_string(),
                };
                format!("container {url} {token}")
            }
            Source::Platform(Platform { instance, .. }) => format!("instance {instance}"),
        })
    }

    #[test]
    fn the_first_source_that_is_there_is_chosen() {
        let check = |variables: &[(&str, &str)], expected: &str| {
            assert_eq!(choose(None, variables).as_deref(), Ok(expected), "{variables:?}");
        };
        let keys = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let web = [("AWS_ROLE_ARN", "arn:r"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")];
        let agent = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
        check(&[], "instance http://169.254.169.254/");
        check(
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[fd00:ec2::254]/")],
            "instance http://[fd00:ec2::254]/",
        );
        check(&[agent], "container http://169.254.170.23/v1/credentials -");
        check(
            &[
                agent,
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/f"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t"),
            ],
            "container http://169.254.170.23/v1/credentials /f",
        );
        check(
            &[
                ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t"),
            ],
            "container http://169.254.170.2/v2/x t",
        );
        check(
            &[agent, ("HOME", "/h"), ("AWS_PROFILE", "p")],
            "profile p [\"/h/.aws/credentials\", \"/h/.aws/config\"]",
        );
        check(&[("AWS_SHARED_CREDENTIALS_FILE", "/c")], "profile default [\"/c\"]");
        let files = [("AWS_SHARED_CREDENTIALS_FILE", "/c"), ("AWS_CONFIG_FILE", "/f")];
        check(&files, "profile default [\"/c\", \"/f\"]");
        check(&[web[0], web[1], agent], "web https://sts.x.amazonaws.com/ arn:r /t berth");
        check(&[web[0], agent], "container http://169.254.170.23/v1/credentials -");
        check(&[keys[0], keys[1], web[0], web[1], agent], "fixed AKID false");
        check(&[keys[0], keys[1], ("AWS_SESSION_TOKEN", "t")], "fixed AKID true");
        check(&[keys[0]], "instance http://169.254.169.254/");

        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".aws/credentials");
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let mut write = std::fs::File::create(&file).unwrap();
        let home = ("HOME", home.path().to_str().unwrap());
        check(&[home, agent], "container http://169.254.170.23/v1/credentials -");
        write.write_all(b"[default]\naws_access_key_id = A\naws_secret_access_key = s\n").unwrap();
        let config = file.with_file_name("config");
        check(&[home, agent], &format!("profile default [{file:?}, {config:?}]"));

        let configured = choose(Some("robot"), &[keys[0], keys[1], web[0], web[1], ("HOME", "/h")]);
        assert_eq!(configured.as_deref(), Ok("profile robot [\"/h/.aws/credentials\", \"/h/.aws/config\"]"));
        assert!(choose(Some("robot"), &[]).unwrap_err().contains("profile_file"));
    }

    #[test]
    fn agents_in_plain_text_are_near() {
        let check = |url: &str, expected: bool| {
            let chosen = choose(None, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)]);
            assert_eq!(chosen.is_ok(), expected, "{url}");
        };
        check("http://127.0.0.1:1/x", true);
        check("http://localhost:1/x", true);
        check("http://169.254.170.2/x", true);
        check("http://[fd00:ec2::23]/x", true);
        check("https://agent.example/x", true);
        check("http://agent.example/x", false);
        check("http://169.254.169.254/x", false);
        check("http://10.0.0.1/x", false);
        check("ftp://127.0.0.1/x", false);
        check("x", false);
    }

    #[test]
    fn a_role_name_stays_within_its_path() {
        assert!(is_role_name("node-role_1+=,.@"));
        for text in ["", "a/b", "..", "a?b", "<html>", &"x".repeat(65)] {
            assert!(!is_role_name(text), "{text}");
        }
    }
}
