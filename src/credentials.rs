//! Credentials: what berth is to somebody, and where that comes from.
//!
//! A `CredentialSource` is what `remote::auth` asks for the login of a registry. It comes from the configuration, a file, a
//! program, a cloud or Vault; it is read again when the file changes, and renewed before it ends. Nothing here knows what
//! a registry answers, or when it wants a login: `remote` does. It may use `net`, to ask clouds and Vault over HTTP, and
//! lower rooms; it must never use `remote` or `upstream`.
//!
//! - `config` is the `credentials` key; `source` is what is built from it.
//! - `file` watches a file, which is a password or a `docker_config`; that may name a `helper`, whose program `command`
//!   runs.
//! - `issued` has what a service issues: `cloud` of a cloud, `vault` of Vault, both asked by `service`. `renewing` decides
//!   when; `jwt` and `oauth` read what services answer.

pub(crate) mod cloud;
mod command;
pub(crate) mod config;
pub(crate) mod docker_config;
mod error;
mod file;
mod helper;
mod issued;
pub(crate) mod jwt;
pub(crate) mod login;
pub(crate) mod oauth;
mod renewing;
mod service;
mod source;
pub(crate) mod vault;

pub use self::cloud::{AzureConfig, EcrConfig, GoogleConfig, Region};
pub use self::config::CredentialsConfig;
pub use self::error::{Error, InvalidLogins, LoginSetupError, NoLogin, VaultProblem};
pub(crate) use self::renewing::FRESH;
pub(crate) use self::source::CredentialSource;
pub use self::vault::{AppRole, KubernetesLogin, KvVersion, VaultConfig, VaultLogin, VaultPath};
