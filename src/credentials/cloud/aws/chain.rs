//! Who berth is to AWS: keys from the environment, from a profile, for a web identity, from a container's endpoint or
//! from the instance.
//!
//! Which of them is chosen is decided once, in the order of AWS's own tools, by what the configuration and the
//! environment hold; the keys themselves are had anew whenever they are needed, a few times a day.

use std::path::{Path, PathBuf};

use super::keys::Keys;
use super::platform::{Platform, endpoint_url};
use super::profile::{self, Profile, SESSION_NAME};
use super::region::Region;
use super::sts::{Sts, WebIdentity};
use crate::credentials::error::LoginSetupError;
use crate::credentials::error::NoLogin;
use crate::credentials::service::Environment;
use crate::net::HttpClient;

const DEFAULT_PROFILE: &str = "default";

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

impl Source {
    /// The first that is there. `sts` is the host of the token service of `region`.
    ///
    /// # Errors
    /// [`LoginSetupError`] when what was chosen cannot be used.
    pub(super) fn choose(
        profile: Option<&str>,
        profile_file: Option<&Path>,
        region: Region,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let host = format!("sts.{region}.{}", region.domain());
        let sts = endpoint_url(&env("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://{host}")))?;
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
                return Err(LoginSetupError::Credentials(
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
    pub(super) async fn keys(&self, client: &HttpClient) -> Result<Keys, NoLogin> {
        match self {
            Self::Fixed(keys) => Ok(keys.clone()),
            Self::Profile(profile) => profile.keys(client).await,
            Self::WebIdentity(sts, identity) => sts.assume_with_token(client, identity).await,
            Self::Platform(platform) => platform.keys(client).await,
        }
    }
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
            Source::Platform(platform) => platform.described(),
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
}
