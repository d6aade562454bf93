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
use url::{Host, Url, form_urlencoded};

use super::{Environment, NoLogin, ask, element, field, post_form, read_file, request};
use crate::upstream::client::Client;
use crate::upstream::config::Endpoint;
use crate::upstream::error::BuildError;
use crate::upstream::secret::Secret;

const STS: &str = "AWS STS";
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
/// How sessions of berth are named in CloudTrail.
const SESSION_NAME: &str = "berth";

/// What requests are signed with.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Proves keys that are good for a time only.
    pub(super) token: Option<Secret>,
}

/// Where keys come from.
pub(super) enum Source {
    /// The environment.
    Fixed(Keys),
    /// A section of a file of keys.
    Profile { file: PathBuf, name: String },
    /// A role that a signed token of the cluster is exchanged for (IRSA).
    WebIdentity { sts: Url, role: String, token_file: PathBuf, session: String },
    /// An agent beside the container (ECS, EKS Pod Identity).
    Container { url: Url, token: ContainerToken },
    /// The role of the EC2 instance.
    Instance { service: Url },
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
    /// The first that is there. `sts` is the host of the region's token service.
    ///
    /// # Errors
    /// [`BuildError`] when what was chosen cannot be used.
    pub(super) fn choose(
        profile: Option<&str>,
        profile_file: Option<&Path>,
        sts: &str,
        env: Environment<'_>,
    ) -> Result<Self, BuildError> {
        let is_profile_configured = profile.is_some() || profile_file.is_some();
        if !is_profile_configured
            && let (Some(id), Some(secret)) = (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY"))
        {
            let token = env("AWS_SESSION_TOKEN").map(Secret::new);
            return Ok(Self::Fixed(Keys { id, secret: Secret::new(secret), token }));
        }
        if !is_profile_configured
            && let (Some(role), Some(token_file)) = (env("AWS_ROLE_ARN"), env("AWS_WEB_IDENTITY_TOKEN_FILE"))
        {
            let sts = url(&env("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://{sts}")))?;
            let session = env("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| SESSION_NAME.to_owned());
            return Ok(Self::WebIdentity { sts, role, token_file: token_file.into(), session });
        }
        let (given_file, given_profile) = (env("AWS_SHARED_CREDENTIALS_FILE"), env("AWS_PROFILE"));
        let is_given = given_file.is_some() || given_profile.is_some();
        let of_home = env("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
        if is_profile_configured || is_given || of_home.as_deref().is_some_and(has_default_profile) {
            let file = profile_file.map(Path::to_owned).or_else(|| given_file.map(PathBuf::from)).or(of_home);
            let file = file.ok_or(BuildError::Credentials(
                "a profile is named, and neither profile_file nor AWS_SHARED_CREDENTIALS_FILE nor HOME says where",
            ))?;
            let name = profile.map(str::to_owned).or(given_profile).unwrap_or_else(|| DEFAULT_PROFILE.into());
            return Ok(Self::Profile { file, name });
        }
        let full = env("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let relative = env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        if let Some(text) = relative.map(|path| format!("{CONTAINER_HOST}{path}")).or(full) {
            let token = match env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
                Some(file) => ContainerToken::File(file.into()),
                None => env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
                    .map_or(ContainerToken::None, |token| ContainerToken::Fixed(Secret::new(token))),
            };
            return Ok(Self::Container { url: agent_url(&text)?, token });
        }
        let service = env("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE_HOST.into());
        Ok(Self::Instance { service: url(&service)? })
    }

    /// Keys that are good now.
    ///
    /// # Errors
    /// [`NoLogin`] says who has none.
    pub(super) async fn keys(&self, client: &Client) -> Result<Keys, NoLogin> {
        match self {
            Self::Fixed(keys) => Ok(keys.clone()),
            Self::Profile { file, name } => {
                let expected = "a file of AWS keys with this profile";
                let text = read_file(file, expected).await?;
                parse_profile(text.expose(), name)
                    .ok_or_else(|| NoLogin::File { path: file.clone(), expected })
            }
            Self::WebIdentity { sts, role, token_file, session } => {
                let token = read_file(token_file, "a web identity token").await?;
                assume_role(client, sts, role, session, &token).await
            }
            Self::Container { url, token } => container(client, url, token).await,
            Self::Instance { service } => instance(client, service).await,
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

/// Whether a file that nobody has named is meant: where keys are, as AWS's tools leave them for a person.
fn has_default_profile(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| parse_profile(&text, DEFAULT_PROFILE).is_some())
}

/// The keys of a section `[name]`.
fn parse_profile(text: &str, name: &str) -> Option<Keys> {
    let mut within = false;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            within = section.trim() == name;
        } else if within
            && let Some((key, value)) = line.split_once('=')
            && !value.trim().is_empty()
        {
            let value = value.trim().to_owned();
            match key.trim() {
                "aws_access_key_id" => id = Some(value),
                "aws_secret_access_key" => secret = Some(Secret::new(value)),
                "aws_session_token" => token = Some(Secret::new(value)),
                _ => {}
            }
        }
    }
    Some(Keys { id: id?, secret: secret?, token })
}

/// `AssumeRoleWithWebIdentity`, which needs no signature: the token is the proof.
async fn assume_role(
    client: &Client,
    sts: &Url,
    role: &str,
    session: &str,
    token: &Secret,
) -> Result<Keys, NoLogin> {
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", session)
        .append_pair("WebIdentityToken", token.expose())
        .finish();
    let mut request = post_form(sts, form);
    if let Ok(request) = &mut request {
        // Its JSON is documented nowhere.
        request.headers_mut().insert(http::header::ACCEPT, HeaderValue::from_static("text/xml"));
    }
    let body = ask(client, STS, request).await?;
    let what = "no keys";
    let text = std::str::from_utf8(&body).map_err(|_| NoLogin::Malformed { service: STS, what })?;
    let one = |name| element(text, name).map(str::to_owned).ok_or(NoLogin::Malformed { service: STS, what });
    let id = one("AccessKeyId")?;
    let secret = Secret::new(one("SecretAccessKey")?);
    Ok(Keys { id, secret, token: Some(Secret::new(one("SessionToken")?)) })
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
            Source::choose(profile, None, "sts.x.amazonaws.com", &env).map_err(|it| it.to_string())?;
        Ok(match source {
            Source::Fixed(keys) => format!("fixed {} {}", keys.id, keys.token.is_some()),
            Source::Profile { file, name } => format!("profile {name} {}", file.display()),
            Source::WebIdentity { sts, role, token_file, session } => {
                format!("web {sts} {role} {} {session}", token_file.display())
            }
            Source::Container { url, token } => {
                let token = match token {
                    ContainerToken::None => "-".into(),
                    ContainerToken::Fixed(token) => token.expose().to_owned(),
                    ContainerToken::File(file) => file.display().to_string(),
                };
                format!("container {url} {token}")
            }
            Source::Instance { service } => format!("instance {service}"),
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
        check(&[agent, ("HOME", "/h"), ("AWS_PROFILE", "p")], "profile p /h/.aws/credentials");
        check(&[("AWS_SHARED_CREDENTIALS_FILE", "/c")], "profile default /c");
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
        check(&[home, agent], &format!("profile default {}", file.display()));

        let configured = choose(Some("robot"), &[keys[0], keys[1], web[0], web[1], ("HOME", "/h")]);
        assert_eq!(configured.as_deref(), Ok("profile robot /h/.aws/credentials"));
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
    fn a_profile_is_a_section() {
        let text = "# keys\n[default]\naws_access_key_id=A\naws_secret_access_key = a=b\n\n[ robot ]\n\
                    aws_access_key_id = R\r\naws_secret_access_key = r\naws_session_token = t\nregion = x\n[half]\n\
                    aws_access_key_id = H\naws_secret_access_key =\n";
        let check = |name: &str, expected: Option<(&str, &str, Option<&str>)>| {
            let keys = parse_profile(text, name);
            let found = keys
                .as_ref()
                .map(|keys| (&*keys.id, keys.secret.expose(), keys.token.as_ref().map(Secret::expose)));
            assert_eq!(found, expected, "{name}");
        };
        check("default", Some(("A", "a=b", None)));
        check("robot", Some(("R", "r", Some("t"))));
        check("half", None);
        check("other", None);
    }

    #[test]
    fn a_role_name_stays_within_its_path() {
        assert!(is_role_name("node-role_1+=,.@"));
        for text in ["", "a/b", "..", "a?b", "<html>", &"x".repeat(65)] {
            assert!(!is_role_name(text), "{text}");
        }
    }
}
