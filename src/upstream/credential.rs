//! Who berth is to one registry, by where that comes from.
//!
//! What stands in a file is re-read when it changes (`watched`); what a cloud issues is renewed before it ends, and what
//! is in Vault is looked up again (`issued`). Either way the old login stays in force while there is no new one.

use std::sync::Arc;

use super::Observer;
use super::client::Client;
use super::cloud::{self, Issuer};
use super::config::{Config, CredentialsConfig};
use super::error::{BuildError, Error};
use super::issued::Issued;
use super::login::Login;
use super::secret::Secret;
use super::vault::Vault;
use super::watched::Watched;
use crate::oci::RepoName;

/// Where the logins of one registry come from.
pub(super) enum Credential {
    /// Nowhere: berth is anybody.
    Anonymous,
    /// From the environment: one login, for as long as the process lives.
    Fixed(Login),
    /// From a file, or from a credential helper that it names.
    Watched(Watched),
    /// From a service of the cloud that the registry belongs to, for some hours, or from Vault: one login.
    Issued(Issued),
}

impl Credential {
    /// Reads what `config` names as far as that can be done without asking anybody.
    ///
    /// # Errors
    /// [`BuildError`] when there should be a login and there cannot be one.
    pub(super) fn load(config: &Config, observer: &Observer) -> Result<Self, BuildError> {
        Self::load_with(config, observer, &environment)
    }

    fn load_with(
        config: &Config,
        observer: &Observer,
        env: cloud::Environment<'_>,
    ) -> Result<Self, BuildError> {
        let registry = &config.registry;
        let Some(credentials) = &config.credentials else { return Ok(Self::Anonymous) };
        let issuer = match credentials {
            CredentialsConfig::PasswordEnv { username, variable } => {
                let Some(password) = env(variable) else {
                    return Err(BuildError::Environment { name: variable.clone() });
                };
                let (username, password) = (username.clone(), Secret::new(password));
                return Ok(Self::Fixed(Login::Basic { username, password }));
            }
            CredentialsConfig::File(path) => return Ok(Self::Watched(Watched::load(path, None, registry)?)),
            CredentialsConfig::PasswordFile { username, file } => {
                return Ok(Self::Watched(Watched::load(file, Some(username), registry)?));
            }
            CredentialsConfig::Ecr(ecr) => Issuer::Ecr(cloud::Ecr::private(ecr, registry, env)?),
            CredentialsConfig::EcrPublic(ecr) => Issuer::Ecr(cloud::Ecr::public(ecr, env)?),
            CredentialsConfig::Google(google) => Issuer::Google(cloud::Google::new(google, env)?),
            CredentialsConfig::Azure(azure) => {
                let Some(endpoint) = config.endpoints.first() else {
                    return Err(BuildError::NoEndpoints { registry: registry.clone() });
                };
                Issuer::Azure(cloud::Azure::new(azure, endpoint, env)?)
            }
            CredentialsConfig::Vault(vault) => Issuer::Vault(Vault::new(vault, config, observer, env)?),
        };
        Ok(Self::Issued(Issued::new(issuer, registry.clone())))
    }

    /// The login for a repository, if one applies.
    ///
    /// # Errors
    /// When one applies and none can be had.
    pub(super) async fn find(&self, client: &Arc<Client>, name: &RepoName) -> Result<Option<Login>, Error> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(login) => Ok(Some(login.clone())),
            Self::Watched(watched) => watched.find(name).await,
            Self::Issued(issued) => issued.get(client).await.map(Some),
        }
    }

    /// Every login, with the path that it is for, which is empty for all; `None` is being anybody.
    ///
    /// # Errors
    /// When there should be one and none can be had.
    pub(super) async fn all(&self, client: &Arc<Client>) -> Result<Vec<(String, Option<Login>)>, Error> {
        let everywhere = |login| Ok(vec![(String::new(), login)]);
        match self {
            Self::Anonymous => everywhere(None),
            Self::Fixed(login) => everywhere(Some(login.clone())),
            Self::Watched(watched) => {
                Ok(watched.all().await?.into_iter().map(|(path, login)| (path, Some(login))).collect())
            }
            Self::Issued(issued) => everywhere(Some(issued.get(client).await?)),
        }
    }

    /// Whether one applies to a repository, which nobody needs to be asked for.
    pub(super) async fn applies_to(&self, name: &RepoName) -> bool {
        match self {
            Self::Anonymous => false,
            Self::Fixed(_) | Self::Issued(_) => true,
            Self::Watched(watched) => watched.applies_to(name).await,
        }
    }

    /// What an operator should know of what is configured.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::Watched(watched) => watched.warning(),
            Self::Anonymous | Self::Fixed(_) | Self::Issued(_) => None,
        }
    }

    /// Notes that the registry refused `login`. True if there may be another.
    pub(super) async fn refused(&self, login: &Login) -> bool {
        match self {
            Self::Anonymous | Self::Fixed(_) => false,
            Self::Watched(watched) => watched.refused(login).await,
            Self::Issued(issued) => issued.refused(login),
        }
    }

    /// The login, if it is one that is renewed.
    pub(super) fn issued(&self) -> Option<&Issued> {
        match self {
            Self::Issued(issued) => Some(issued),
            Self::Anonymous | Self::Fixed(_) | Self::Watched(_) => None,
        }
    }
}

/// A variable of the process; one that is empty counts as none.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::config::Endpoint;
    use super::*;
    use crate::oci::Registry;

    fn load(credentials: Option<CredentialsConfig>) -> Result<Credential, BuildError> {
        let endpoint = Endpoint::parse("https://h").unwrap();
        let config = Config { credentials, ..Config::new(Registry::parse("h").unwrap(), vec![endpoint]) };
        let set = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
        let observer: Observer = Arc::new(|_, _| {});
        Credential::load_with(&config, &observer, &set)
    }

    #[tokio::test]
    async fn what_is_in_the_environment_applies_to_everything_and_must_be_there() {
        let in_variable = |variable: &str| {
            load(Some(CredentialsConfig::PasswordEnv { username: "u".into(), variable: variable.into() }))
        };
        let found = in_variable("PASSWORD").unwrap();
        assert!(
            matches!(&found, Credential::Fixed(Login::Basic { password, .. }) if password.expose() == "hunter2")
        );
        assert!(found.applies_to(&RepoName::parse("a/b").unwrap()).await);
        let error = in_variable("OTHER").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("OTHER"), "{error}");
    }

    #[tokio::test]
    async fn without_configuration_nothing_applies() {
        let none = load(None).unwrap();
        assert!(matches!(none, Credential::Anonymous));
        assert!(!none.applies_to(&RepoName::parse("a/b").unwrap()).await);
    }
}
