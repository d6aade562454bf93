//! The `credentials` key: where the login of a registry comes from.

use std::path::PathBuf;

use serde::Deserialize;

use super::cloud::{AzureConfig, EcrConfig, GoogleConfig};
use super::vault::VaultConfig;

/// Where the login of a registry comes from. A secret never stands in the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CredentialsTable")]
pub enum CredentialsConfig {
    /// A Docker `config.json`, a Kubernetes `.dockerconfigjson` or `.dockercfg`; the longest matching path wins.
    File(PathBuf),
    /// One login, its password being the content of a file.
    PasswordFile {
        /// Who berth is to the registry.
        username: String,
        /// Re-read when it changes; a newline at its end is not part of the password.
        file: PathBuf,
    },
    /// One login, its password being in the environment.
    PasswordEnv {
        /// Who berth is to the registry.
        username: String,
        /// The variable's name.
        variable: String,
    },
    /// What Amazon issues for ECR.
    Ecr(EcrConfig),
    /// What Amazon issues for ECR Public.
    EcrPublic(EcrConfig),
    /// What Google issues for its registries.
    Google(GoogleConfig),
    /// What Azure issues for its registries.
    Azure(AzureConfig),
    /// What Vault or OpenBao has in store.
    Vault(VaultConfig),
}

impl CredentialsConfig {
    /// The Vault that has the login, if one has.
    pub(crate) fn vault(&self) -> Option<&VaultConfig> {
        match self {
            Self::Vault(vault) => Some(vault),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with file, with username and password_file or password_env, with a cloud, or with vault"
)]
struct CredentialsTable {
    file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    ecr: Option<EcrConfig>,
    ecr_public: Option<EcrConfig>,
    google: Option<GoogleConfig>,
    azure: Option<AzureConfig>,
    vault: Option<VaultConfig>,
}

const ONE_OF: &str = "credentials are one of: file; username and password_file; username and password_env; ecr; \
     ecr_public; google; azure; vault";

impl TryFrom<CredentialsTable> for CredentialsConfig {
    type Error = &'static str;

    fn try_from(table: CredentialsTable) -> Result<Self, Self::Error> {
        let clouds = [
            table.ecr.map(Self::Ecr),
            table.ecr_public.map(Self::EcrPublic),
            table.google.map(Self::Google),
            table.azure.map(Self::Azure),
            table.vault.map(Self::Vault),
        ];
        let mut clouds = clouds.into_iter().flatten();
        let file = match (table.file, table.username, table.password_file, table.password_env) {
            (None, None, None, None) => None,
            (Some(file), None, None, None) => Some(Self::File(file)),
            (None, Some(username), Some(file), None) => Some(Self::PasswordFile { username, file }),
            (None, Some(username), None, Some(variable)) => Some(Self::PasswordEnv { username, variable }),
            _ => return Err(ONE_OF),
        };
        match (file, clouds.next(), clouds.next()) {
            (Some(one), None, None) | (None, Some(one), None) => Ok(one),
            _ => Err(ONE_OF),
        }
    }
}
