//! Amazon ECR and ECR Public: `GetAuthorizationToken`, which yields a name and a password for twelve hours.
//!
//! ECR takes them as Basic; ECR Public's token server does. The two differ in host, target, signing name and the
//! shape of the answer.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;
use url::{Position, Url};

use super::chain::Source;
use super::keys::Keys;
use super::region::Region;
use super::sigv4;
use crate::credentials::error::LoginSetupError;
use crate::credentials::error::NoLogin;
use crate::credentials::login::IssuedLogin;
use crate::credentials::login::Login;
use crate::credentials::service::{Environment, ask, field, request};
use crate::net::EndpointUrl;
use crate::net::HttpClient;
use crate::net::secret::Secret;
use crate::oci::Registry;

const JSON: &str = "application/x-amz-json-1.1";
/// ECR Public answers in one region only.
const PUBLIC_REGION: &str = "us-east-1";
/// `credentials = { ecr = { … } }` and `{ ecr_public = { … } }`: the login of an AWS identity.
///
/// Without a profile, AWS's variables are looked at in the order of AWS's own tools: keys, web identity, profile,
/// container, and in the end the EC2 instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EcrConfig {
    /// Where the registry is; without it, what its name says, or `AWS_REGION`. ECR Public has none.
    pub region: Option<Region>,
    /// A section of a file of AWS's tools: keys, a role with the profile that may assume it, or a program.
    pub profile: Option<String>,
    /// That file; without it `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`, and `AWS_CONFIG_FILE` or
    /// `~/.aws/config`.
    pub profile_file: Option<PathBuf>,
    /// Another host of the API than the region's usual one, such as that of a VPC.
    pub endpoint: Option<EndpointUrl>,
}

/// One of the two registries of Amazon.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    target: &'static str,
    signing_name: &'static str,
}

const PRIVATE: Kind = Kind {
    name: "Amazon ECR",
    target: "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    signing_name: "ecr",
};

const PUBLIC: Kind = Kind {
    name: "Amazon ECR Public",
    target: "SpencerFrontendService.GetAuthorizationToken",
    signing_name: "ecr-public",
};

/// Issues logins for ECR.
pub(crate) struct Ecr {
    kind: Kind,
    region: Region,
    url: Url,
    source: Source,
}

impl Ecr {
    /// For a private registry.
    ///
    /// # Errors
    /// [`LoginSetupError`] when the region is not to be found, or what AWS's variables say cannot be used.
    pub(crate) fn private(
        config: &EcrConfig,
        registry: &Registry,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let home = Home::of(registry);
        let home = home.filter(|home| config.region.as_ref().is_none_or(|region| *region == home.region));
        let in_name = home.as_ref().map(|home| home.region.clone());
        let region = config.region.clone().or(in_name).or_else(|| region_of(env)).ok_or(
            LoginSetupError::Credentials(
                "ecr: expected a region, since neither the registry's name nor AWS_REGION has one",
            ),
        )?;
        let host = home.map_or_else(|| format!("api.ecr.{region}.{}", region.domain()), |home| home.api);
        Self::new(PRIVATE, config, region, &host, env)
    }

    /// For `public.ecr.aws`.
    ///
    /// # Errors
    /// [`LoginSetupError`] when what AWS's variables say cannot be used.
    pub(crate) fn public(config: &EcrConfig, env: Environment<'_>) -> Result<Self, LoginSetupError> {
        if config.region.is_some() {
            return Err(LoginSetupError::Credentials("ecr_public has no region"));
        }
        let region = Region::parse(PUBLIC_REGION).expect("it is a region");
        Self::new(PUBLIC, config, region, "api.ecr-public.us-east-1.amazonaws.com", env)
    }

    fn new(
        kind: Kind,
        config: &EcrConfig,
        region: Region,
        host: &str,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let url = match &config.endpoint {
            Some(endpoint) => endpoint.as_url().clone(),
            None => Url::parse(&format!("https://{host}/")).expect("a region fits into a host"),
        };
        // A cluster may reach the token service of its own region only.
        let near = region_of(env).unwrap_or_else(|| region.clone());
        let source = Source::choose(config.profile.as_deref(), config.profile_file.as_deref(), near, env)?;
        Ok(Self { kind, region, url, source })
    }

    /// Asks for a new login.
    pub(crate) async fn issue(&self, client: &HttpClient) -> Result<IssuedLogin, NoLogin> {
        let keys = self.source.keys(client).await?;
        let body = ask(client, self.kind.name, self.request(&keys, SystemTime::now())).await?;
        self.parse(&body, SystemTime::now())
    }

    fn request(
        &self,
        keys: &Keys,
        now: SystemTime,
    ) -> Result<http::Request<Full<bytes::Bytes>>, http::Error> {
        const BODY: &str = "{}";
        let date = sigv4::date(now);
        let host = &self.url[Position::BeforeHost..Position::AfterPort];
        let token = keys.token.as_ref().map(|token| ("x-amz-security-token", token.expose()));
        let signed: Vec<_> = [("content-type", JSON), ("host", host), ("x-amz-date", &date)]
            .into_iter()
            .chain(token)
            .chain([("x-amz-target", self.kind.target)])
            .collect();
        let scope =
            sigv4::Scope { region: self.region.as_str(), service: self.kind.signing_name, date: &date };
        let to_sign = sigv4::Request { path: self.url.path(), headers: &signed, body: BODY.as_bytes() };
        let mut authorization = HeaderValue::from_str(&sigv4::authorization(keys, &scope, &to_sign))?;
        authorization.set_sensitive(true);

        let mut request = request(Method::POST, &self.url)
            .header(CONTENT_TYPE, JSON)
            .header(HOST, host)
            .header("x-amz-date", &date)
            .header("x-amz-target", self.kind.target)
            .header(AUTHORIZATION, authorization);
        if let Some(token) = &keys.token {
            let mut token = HeaderValue::from_str(token.expose())?;
            token.set_sensitive(true);
            request = request.header("x-amz-security-token", token);
        }
        request.body(Full::from(BODY))
    }

    /// A list of one for ECR, for ECR Public the one itself.
    fn parse(&self, body: &[u8], now: SystemTime) -> Result<IssuedLogin, NoLogin> {
        let service = self.kind.name;
        let malformed = |what| NoLogin::Malformed { service, what };
        let reply: Value = serde_json::from_slice(body).map_err(|_| malformed("no JSON"))?;
        let data = &reply["authorizationData"];
        let data = data.get(0).unwrap_or(data);
        let what = "no token";
        let token = field(data, "authorizationToken", service, what)?;
        let decoded = STANDARD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
        let decoded = decoded.ok_or_else(|| malformed(what))?;
        let (username, password) = decoded.split_once(':').ok_or_else(|| malformed(what))?;
        let login =
            Login::Basic { username: username.to_owned(), password: Secret::new(password.to_owned()) };
        let expires = data["expiresAt"].as_f64().ok_or_else(|| malformed("a token without its end"))?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let lifetime = Duration::try_from_secs_f64(expires - now).unwrap_or_default();
        Ok(IssuedLogin { login, lifetime })
    }
}

fn region_of(env: Environment<'_>) -> Option<Region> {
    env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION")).and_then(|text| Region::parse(&text))
}

/// The domains of Amazon's partitions.
const DOMAINS: [&str; 7] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "sc2s.sgov.gov",
    "c2s.ic.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];

/// What the name of a private registry says: `ACCOUNT.dkr.ecr.REGION.DOMAIN`, with `ecr-fips` for `ecr`, or, where IPv6
/// is spoken too, `ACCOUNT.dkr-ecr.REGION.on.aws`.
struct Home {
    region: Region,
    /// The host of the API.
    api: String,
}

impl Home {
    fn of(registry: &Registry) -> Option<Self> {
        let labels: Vec<_> = registry.as_str().split('.').collect();
        let is_account = |label: &str| label.len() == 12 && label.bytes().all(|byte| byte.is_ascii_digit());
        match labels.as_slice() {
            [account, "dkr", kind @ ("ecr" | "ecr-fips"), region, domain @ ..] if is_account(account) => {
                let domain = domain.join(".");
                let prefix = if *kind == "ecr" { "api.ecr" } else { "ecr-fips" };
                let api = format!("{prefix}.{region}.{domain}");
                DOMAINS.contains(&&*domain).then_some(Self { region: Region::parse(region)?, api })
            }
            [account, kind @ ("dkr-ecr" | "dkr-ecr-fips"), region, "on", "aws"] if is_account(account) => {
                let prefix = if *kind == "dkr-ecr" { "ecr" } else { "ecr-fips" };
                Some(Self { region: Region::parse(region)?, api: format!("{prefix}.{region}.api.aws") })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_says_where_it_is() {
        let check = |registry: &str, expected: Option<(&str, &str)>| {
            let home = Home::of(&Registry::parse(registry).unwrap());
            let found = home.as_ref().map(|home| (home.region.as_str(), &*home.api));
            assert_eq!(found, expected, "{registry}");
        };
        check(
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
            Some(("eu-central-1", "api.ecr.eu-central-1.amazonaws.com")),
        );
        check(
            "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
            Some(("us-gov-west-1", "ecr-fips.us-gov-west-1.amazonaws.com")),
        );
        check(
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            Some(("cn-north-1", "api.ecr.cn-north-1.amazonaws.com.cn")),
        );
        check("123456789012.dkr-ecr.eu-west-1.on.aws", Some(("eu-west-1", "ecr.eu-west-1.api.aws")));
        check("12345.dkr.ecr.eu-central-1.amazonaws.com", None);
        check("123456789012.dkr.ecr.eu-central-1.example.com", None);
        check("public.ecr.aws", None);
        check("ecr.example.com:5000", None);
    }

    fn build(config: &EcrConfig, registry: &str, env: Environment<'_>) -> Result<(String, String), String> {
        let registry = Registry::parse(registry).unwrap();
        let ecr = Ecr::private(config, &registry, env).map_err(|error| error.to_string())?;
        Ok((ecr.region.to_string(), ecr.url.to_string()))
    }

    #[test]
    fn the_region_is_configured_or_in_the_name_or_in_the_environment() {
        let none = |_: &str| None;
        let set = |name: &str| (name == "AWS_REGION").then(|| "cn-north-1".to_owned());
        let named = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let expect = |region: &str, url: &str| Ok((region.to_owned(), url.to_owned()));
        let usual = EcrConfig::default();
        let north = EcrConfig { region: Region::parse("eu-north-1"), ..EcrConfig::default() };
        let eu_west = "https://api.ecr.eu-west-1.amazonaws.com/";
        assert_eq!(build(&usual, named, &set), expect("eu-west-1", eu_west));
        let china = "https://api.ecr.cn-north-1.amazonaws.com.cn/";
        assert_eq!(build(&usual, "ecr.example.com", &set), expect("cn-north-1", china));
        let stockholm = "https://api.ecr.eu-north-1.amazonaws.com/";
        assert_eq!(build(&north, "ecr.example.com", &set), expect("eu-north-1", stockholm));
        assert!(build(&usual, "ecr.example.com", &none).unwrap_err().contains("AWS_REGION"));

        let own = EcrConfig { endpoint: EndpointUrl::parse("https://vpce-1.example").ok(), ..usual };
        assert_eq!(build(&own, named, &none), expect("eu-west-1", "https://vpce-1.example/"));
        for text in ["", "eu west", "Eu-west-1", "a.b", &"x".repeat(33)] {
            assert_eq!(Region::parse(text), None, "{text}");
        }
    }

    #[test]
    fn answers_have_two_shapes_and_must_be_whole() {
        let ecr = Ecr::public(&EcrConfig::default(), &|_| None).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |body: &str, expected: Option<(&str, u64)>| {
            let grant = ecr.parse(body.as_bytes(), now).ok();
            let found = grant.as_ref().map(|grant| match &grant.login {
                Login::Basic { username, password } if username == "AWS" => {
                    (password.expose(), grant.lifetime.as_secs())
                }
                other => panic!("{other:?}"),
            });
            assert_eq!(found, expected, "{body}");
        };
        // `AWS:pass:word`
        let data = r#"{"authorizationToken":"QVdTOnBhc3M6d29yZA==","expiresAt":1043200.5}"#;
        check(&format!(r#"{{"authorizationData":[{data}]}}"#), Some(("pass:word", 43200)));
        check(&format!(r#"{{"authorizationData":{data}}}"#), Some(("pass:word", 43200)));
        check(
            &format!(r#"{{"authorizationData":[{}]}}"#, data.replace("1043200.5", "5")),
            Some(("pass:word", 0)),
        );
        check(&format!(r#"{{"authorizationData":[{}]}}"#, data.replace("1043200.5", "\"x\"")), None);
        check(&format!(r#"{{"authorizationData":[{}]}}"#, data.replace("QVdT", "!")), None);
        check(r#"{"authorizationData":[{"authorizationToken":"QVdT","expiresAt":1043200}]}"#, None);
        check(r#"{"authorizationData":[]}"#, None);
        check("{}", None);
        check("[]", None);
        check("<html>", None);
    }
}
