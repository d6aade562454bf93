//! Who berth is to one registry, by where that comes from.
//!
//! What stands in a file is re-read when it changes (`file`); what a cloud issues is renewed before it ends, and what
//! is in Vault is looked up again (`issued`). Either way the old login stays in force while there is no new one.

use super::cloud::{Azure, Ecr, Google};
use super::config::CredentialsConfig;
use super::error::{Error, LoginSetupError};
use super::file::CredentialFile;
use super::issued::{Issued, Issuer};
use super::login::Login;
use super::service::Environment;
use super::vault::Vault;
use crate::net::secret::Secret;
use crate::net::{ClientConfig, HttpClient, RequestObserver};
use crate::oci::RepoName;

/// Where the logins of one registry come from.
pub(crate) enum CredentialSource {
    /// Nowhere: berth is anybody.
    Anonymous,
    /// From the environment: one login, for as long as the process lives.
    Fixed(Login),
    /// From a file, or from a credential helper that it names.
    CredentialFile(CredentialFile),
    /// From a service of the cloud that the registry belongs to, for some hours, or from Vault: one login.
    Issued(Issued),
}

impl CredentialSource {
    /// Reads what `credentials` name, as far as that can be done without asking anybody. `client` says which registry they
    /// are for, and how a Vault is connected to; `observer` is told of requests to a Vault.
    ///
    /// # Errors
    /// [`LoginSetupError`] when there should be a login and there cannot be one.
    pub(crate) fn load(
        credentials: Option<&CredentialsConfig>,
        client: &ClientConfig,
        observer: &RequestObserver,
    ) -> Result<Self, LoginSetupError> {
        Self::load_with(credentials, client, observer, &environment)
    }

    fn load_with(
        credentials: Option<&CredentialsConfig>,
        client: &ClientConfig,
        observer: &RequestObserver,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let registry = &client.owner;
        let Some(credentials) = credentials else { return Ok(Self::Anonymous) };
        let issuer = match credentials {
            CredentialsConfig::PasswordEnv { username, variable } => {
                let Some(password) = env(variable) else {
                    return Err(LoginSetupError::Environment { name: variable.clone() });
                };
                let (username, password) = (username.clone(), Secret::new(password));
                return Ok(Self::Fixed(Login::Basic { username, password }));
            }
            CredentialsConfig::File(path) => {
                return Ok(Self::CredentialFile(CredentialFile::load(path, None, registry)?));
            }
            CredentialsConfig::PasswordFile { username, file } => {
                return Ok(Self::CredentialFile(CredentialFile::load(file, Some(username), registry)?));
            }
            CredentialsConfig::Ecr(ecr) => Issuer::Ecr(Ecr::private(ecr, registry, env)?),
            CredentialsConfig::EcrPublic(ecr) => Issuer::Ecr(Ecr::public(ecr, env)?),
            CredentialsConfig::Google(google) => Issuer::Google(Google::new(google, env)?),
            CredentialsConfig::Azure(azure) => {
                let Some(endpoint) = client.endpoints.first() else {
                    return Err(LoginSetupError::NoEndpoints { registry: registry.clone() });
                };
                Issuer::Azure(Azure::new(azure, endpoint, env)?)
            }
            CredentialsConfig::Vault(vault) => Issuer::Vault(Vault::new(vault, client, observer, env)?),
        };
        Ok(Self::Issued(Issued::new(issuer, registry.clone())))
    }

    /// The login for a repository, if one applies.
    ///
    /// # Errors
    /// When one applies and none can be had.
    pub(crate) async fn find(&self, client: &HttpClient, name: &RepoName) -> Result<Option<Login>, Error> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(login) => Ok(Some(login.clone())),
            Self::CredentialFile(watched) => watched.find(name).await,
            Self::Issued(issued) => issued.get(client).await.map(Some),
        }
    }

    /// Every login, with the path that it is for, which is empty for all; `None` is being anybody.
    ///
    /// # Errors
    /// When there should be one and none can be had.
    pub(crate) async fn all(&self, client: &HttpClient) -> Result<Vec<(String, Option<Login>)>, Error> {
        let everywhere = |login| Ok(vec![(String::new(), login)]);
        match self {
            Self::Anonymous => everywhere(None),
            Self::Fixed(login) => everywhere(Some(login.clone())),
            Self::CredentialFile(watched) => {
                Ok(watched.all().await?.into_iter().map(|(path, login)| (path, Some(login))).collect())
            }
            Self::Issued(issued) => everywhere(Some(issued.get(client).await?)),
        }
    }

    /// Whether one applies to a repository, which nobody needs to be asked for.
    pub(crate) async fn applies_to(&self, name: &RepoName) -> bool {
        match self {
            Self::Anonymous => false,
            Self::Fixed(_) | Self::Issued(_) => true,
            Self::CredentialFile(watched) => watched.applies_to(name).await,
        }
    }

    /// What an operator should know of what is configured.
    pub(crate) fn warning(&self) -> Option<String> {
        match self {
            Self::CredentialFile(watched) => watched.warning(),
            Self::Anonymous | Self::Fixed(_) | Self::Issued(_) => None,
        }
    }

    /// Notes that the registry refused `login`. True if there may be another.
    pub(crate) async fn refused(&self, login: &Login) -> bool {
        match self {
            Self::Anonymous | Self::Fixed(_) => false,
            Self::CredentialFile(watched) => watched.refused(login).await,
            Self::Issued(issued) => issued.refused(login),
        }
    }

    /// The login, if it is one that is renewed.
    pub(crate) fn issued(&self) -> Option<&Issued> {
        match self {
            Self::Issued(issued) => Some(issued),
            Self::Anonymous | Self::Fixed(_) | Self::CredentialFile(_) => None,
        }
    }
}

/// A variable of the process; one that is empty counts as none.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::net::{EndpointUrl, Proxy, Timeouts};
    use crate::oci::Registry;

    fn load(credentials: Option<&CredentialsConfig>) -> Result<CredentialSource, LoginSetupError> {
        let client = ClientConfig {
            owner: Registry::parse("h").unwrap(),
            endpoints: vec![EndpointUrl::parse("https://h").unwrap()],
            ca: Vec::new(),
            addresses: Default::default(),
            proxy: Proxy::None,
            user_agent: None,
            offline: false,
            timeouts: Timeouts::default(),
        };
        let set = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
        let observer: RequestObserver = Arc::new(|_| {});
        CredentialSource::load_with(credentials, &client, &observer, &set)
    }

    #[tokio::test]
    async fn what_is_in_the_environment_applies_to_everything_and_must_be_there() {
        let in_variable = |variable: &str| {
            load(Some(&CredentialsConfig::PasswordEnv { username: "u".into(), variable: variable.into() }))
        };
        let found = in_variable("PASSWORD").unwrap();
        assert!(
            matches!(&found, CredentialSource::Fixed(Login::Basic { password, .. }) if password.expose() == "hunter2")
        );
        assert!(found.applies_to(&RepoName::parse("a/b").unwrap()).await);
        let error = in_variable("OTHER").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("OTHER"), "{error}");
    }

    #[tokio::test]
    async fn without_configuration_nothing_applies() {
        let none = load(None).unwrap();
        assert!(matches!(none, CredentialSource::Anonymous));
        assert!(!none.applies_to(&RepoName::parse("a/b").unwrap()).await);
    }
}
