//! `credentials = { vault = { … } }`: which secret, in which Vault, and who berth is there.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use crate::net::EndpointUrl;

/// Longest path; Vault's own limits are wider than anybody's habits.
const PATH_BYTES_MAX: usize = 512;
/// Where Kubernetes puts the token of a pod's account.
const ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A secret in Vault or OpenBao.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "VaultTable")]
pub struct VaultConfig {
    /// Where Vault is; `http` on this machine only.
    pub address: EndpointUrl,
    /// The namespace that everything here is in.
    pub namespace: Option<String>,
    /// PEM files of certificate authorities that are trusted for Vault besides the system's.
    pub ca: Vec<PathBuf>,
    /// Where the key/value engine is mounted.
    pub mount: VaultPath,
    /// The secret, below that.
    pub path: VaultPath,
    /// Of the engine.
    pub kv_version: KvVersion,
    /// Who berth is.
    pub login: VaultLogin,
}

/// The version of a key/value engine. It is configured, because asking needs rights that a token which may read the
/// secret need not have, and a wrong guess looks like a secret that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvVersion {
    /// Without versions of secrets.
    V1,
    /// With them: what is mounted today unless one asks for the other.
    #[default]
    V2,
}

impl<'de> Deserialize<'de> for KvVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            other => Err(de::Error::custom(format!("`{other}`: expected 1 or 2"))),
        }
    }
}

/// How berth becomes known to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultLogin {
    /// By a token in a file, which is read again when it changes.
    TokenFile(PathBuf),
    /// By a token in the environment.
    TokenEnv(String),
    /// By the account of its pod.
    Kubernetes(KubernetesLogin),
    /// By a role and its secret.
    AppRole(AppRole),
}

/// `kubernetes = { role = … }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesLogin {
    /// The role in Vault.
    pub role: String,
    /// Where the method is mounted.
    #[serde(default = "kubernetes_mount")]
    pub mount: VaultPath,
    /// The account's token, which is read anew each time.
    #[serde(default = "account_token")]
    pub token_file: PathBuf,
}

/// `app_role = { role_id = …, secret_id_file = … }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRole {
    /// Which role.
    pub role_id: String,
    /// The file of its secret, which is read anew each time.
    pub secret_id_file: PathBuf,
    /// Where the method is mounted.
    #[serde(default = "app_role_mount")]
    pub mount: VaultPath,
}

/// A path in Vault: parts with a slash between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultPath(String);

impl VaultPath {
    /// Reads a path; `None` when it is something else, or could mean another path than it seems to.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |part: &str| !part.is_empty() && !part.chars().all(|c| c == '.');
        let fits =
            text.len() <= PATH_BYTES_MAX && !text.ends_with('.') && !text.chars().any(char::is_control);
        (fits && text.split('/').all(is_plain)).then(|| Self(text.to_owned()))
    }

    /// Its parts.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The whole.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for VaultPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "`{text}`: expected a path without a slash at either end, such as registries/harbor"
            ))
        })
    }
}

fn kv_mount() -> VaultPath {
    VaultPath("secret".to_owned())
}

fn kubernetes_mount() -> VaultPath {
    VaultPath("kubernetes".to_owned())
}

fn app_role_mount() -> VaultPath {
    VaultPath("approle".to_owned())
}

fn account_token() -> PathBuf {
    ACCOUNT_TOKEN.into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VaultTable {
    address: EndpointUrl,
    namespace: Option<String>,
    #[serde(default)]
    ca: Vec<PathBuf>,
    #[serde(default = "kv_mount")]
    mount: VaultPath,
    path: VaultPath,
    #[serde(default)]
    kv_version: KvVersion,
    token_file: Option<PathBuf>,
    token_env: Option<String>,
    kubernetes: Option<KubernetesLogin>,
    app_role: Option<AppRole>,
}

impl TryFrom<VaultTable> for VaultConfig {
    type Error = &'static str;

    fn try_from(table: VaultTable) -> Result<Self, Self::Error> {
        let logins = [
            table.token_file.map(VaultLogin::TokenFile),
            table.token_env.map(VaultLogin::TokenEnv),
            table.kubernetes.map(VaultLogin::Kubernetes),
            table.app_role.map(VaultLogin::AppRole),
        ];
        let mut logins = logins.into_iter().flatten();
        let (Some(login), None) = (logins.next(), logins.next()) else {
            return Err("vault: expected one of token_file, token_env, kubernetes, app_role");
        };
        let VaultTable { address, namespace, ca, mount, path, kv_version, .. } = table;
        Ok(Self { address, namespace, ca, mount, path, kv_version, login })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_names_one_secret_and_one_login() {
        let check = |text: &str, expected: Result<VaultLogin, &str>| {
            let text = format!("address = 'https://vault:8200'\n{text}");
            match (toml::from_str::<VaultConfig>(&text), expected) {
                (Ok(config), Ok(login)) => assert_eq!(config.login, login, "{text}"),
                (Err(error), Err(part)) => assert!(error.message().contains(part), "{text}: {error}"),
                (config, _) => panic!("{text}: {config:?}"),
            }
        };
        let kubernetes = KubernetesLogin {
            role: "berth".into(),
            mount: VaultPath("kubernetes".into()),
            token_file: ACCOUNT_TOKEN.into(),
        };
        let app_role = AppRole {
            role_id: "r".into(),
            secret_id_file: "/s".into(),
            mount: VaultPath("auth/of/site".into()),
        };
        check("path = 'a/b'\ntoken_file = '/t'", Ok(VaultLogin::TokenFile("/t".into())));
        check("path = 'a'\ntoken_env = 'T'\nkv_version = 1", Ok(VaultLogin::TokenEnv("T".into())));
        check("path = 'a'\nkubernetes = { role = 'berth' }", Ok(VaultLogin::Kubernetes(kubernetes)));
        check(
            "path = 'a'\napp_role = { role_id = 'r', secret_id_file = '/s', mount = 'auth/of/site' }",
            Ok(VaultLogin::AppRole(app_role)),
        );
        check("path = 'a'", Err("one of token_file"));
        check("path = 'a'\ntoken_env = 'T'\ntoken_file = '/t'", Err("one of token_file"));
        check("path = 'a'\ntoken = 'hunter2'", Err("unknown field"));
        check("token_env = 'T'", Err("missing field `path`"));
        check("path = 'a'\ntoken_env = 'T'\nkv_version = 3", Err("expected 1 or 2"));
        for path in ["", "/a", "a/", "a//b", "a/../b", "a/.", "a.", &"x".repeat(PATH_BYTES_MAX + 1)] {
            check(&format!("path = '{path}'\ntoken_env = 'T'"), Err("expected a path"));
        }
    }
}
