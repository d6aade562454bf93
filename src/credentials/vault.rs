//! A login that Vault or OpenBao has in store: a secret of a key/value engine with the properties `username` and
//! `password`, and `registry` if it is to say for which.
//!
//! A client of a few lines over the HTTP client that is there already, because berth makes five kinds of requests and the
//! crates for Vault bring an HTTP stack each. What is asked of Vault, and how berth logs in to it, is in `session`.
//!
//! - The secret is looked up again when it is needed and [`LOOK_EVERY`] old, behind the requests, and at once when the
//!   registry refuses what was in it (`renewing`). A Vault that nobody pulls through berth from is not asked.
//! - While Vault is sealed, down or talks nonsense, or the secret is away or not whole, the last login stays in force.
//! - Vault has connections and authorities of its own, is dialled where the configuration says, and no redirect is
//!   followed: its answer could send a token anywhere.

mod config;
mod session;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use url::Url;

pub use self::config::{AppRole, KubernetesLogin, KvVersion, VaultConfig, VaultLogin, VaultPath};

use self::session::{Session, Token};
use super::docker_config;
use super::error::{Error, LoginSetupError, NoLogin, VaultProblem};
use super::login::Login;
use super::renewing::{Answer, Expiring, LIFETIME_MAX, Renewing};
use super::service::Environment;
use crate::net::secret::Secret;
use crate::net::{self, ClientConfig, RequestObserver};
use crate::oci::Registry;

/// How old a secret can be that is in use. A secret that was replaced, and whose old one the registry no longer takes, is
/// found at once.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The login of one registry, in Vault.
pub(crate) struct Vault {
    session: Arc<Session>,
    /// What Vault knows berth by.
    token: Renewing<Token>,
    secret: Url,
    /// The secret's path below `/v1/`, for people.
    path: Arc<str>,
    version: KvVersion,
    registry: Registry,
}

impl Vault {
    /// For the registry of `upstream`; asks nobody.
    ///
    /// # Errors
    /// [`LoginSetupError`] when the address, the authorities or the token cannot be used.
    pub(crate) fn new(
        config: &VaultConfig,
        upstream: &ClientConfig,
        observer: &RequestObserver,
        env: Environment<'_>,
    ) -> Result<Self, LoginSetupError> {
        let session = Session::new(config, upstream, observer, env)?;
        let below_mount: &[&str] = match config.kv_version {
            KvVersion::V1 => &[],
            KvVersion::V2 => &["data"],
        };
        let path: Vec<_> = config
            .mount
            .segments()
            .chain(below_mount.iter().copied())
            .chain(config.path.segments())
            .collect();
        let registry = upstream.owner.clone();
        Ok(Self {
            secret: session.url(path.iter().copied()),
            path: path.join("/").into(),
            version: config.kv_version,
            // Whether a token is refused for its age is asked of Vault.
            token: Renewing::new(registry.clone(), Duration::ZERO),
            session: Arc::new(session),
            registry,
        })
    }

    /// What is there now.
    ///
    /// # Errors
    /// [`NoLogin`] says what is in the way.
    pub(crate) async fn look_up(&self) -> Answer<Login> {
        if let Some(token) = self.token.current()
            && self.session.is_replaced(&token).await
        {
            self.token.refused(&token);
        }
        let mut token = self.token().await?;
        let mut reply = self.session.read(&self.secret, &token).await?;
        let mut is_refused = false;
        if reply.status == StatusCode::FORBIDDEN {
            is_refused = self.session.refuses(&token).await?;
            if is_refused && self.token.refused(&token) {
                token = self.token().await?;
                reply = self.session.read(&self.secret, &token).await?;
                is_refused = reply.status == StatusCode::FORBIDDEN && self.session.refuses(&token).await?;
            }
        }
        let path = || Arc::clone(&self.path);
        match reply.status {
            StatusCode::OK => {
                let value = self.parse(&reply.body)?;
                Ok(Expiring { value, renew: LOOK_EVERY, ends: LIFETIME_MAX })
            }
            StatusCode::FORBIDDEN if is_refused => Err(VaultProblem::TokenRefused.into()),
            StatusCode::FORBIDDEN => Err(VaultProblem::PathDenied { path: path() }.into()),
            StatusCode::NOT_FOUND => Err(VaultProblem::NoSecret { path: path() }.into()),
            status => Err(VaultProblem::Status { status: status.as_u16() }.into()),
        }
    }

    /// Keeps the token from ending, for ever.
    pub(crate) async fn keep(&self) {
        self.token.keep(|current| self.session.token(current)).await;
    }

    async fn token(&self) -> Result<Token, NoLogin> {
        let session = Arc::clone(&self.session);
        let token = self.token.get(|current| async move { session.token(current).await }).await;
        token.map_err(|error| match error {
            Error::NoLogin(error) => error,
            Error::Stopped => session::unanswered(&net::Error::Timeout),
        })
    }

    fn parse(&self, body: &Value) -> Result<Login, NoLogin> {
        let data = match self.version {
            KvVersion::V1 => &body["data"],
            KvVersion::V2 => &body["data"]["data"],
        };
        let path = || Arc::clone(&self.path);
        if !data.is_object() {
            return Err(VaultProblem::NoSecret { path: path() }.into());
        }
        let text = |property: &'static str| {
            let text = data[property].as_str().filter(|text| !text.is_empty());
            text.ok_or_else(|| VaultProblem::Property { path: path(), property })
        };
        if !data["registry"].is_null() && !docker_config::is_key_of(text("registry")?, &self.registry) {
            return Err(VaultProblem::OtherRegistry { path: path() }.into());
        }
        let (username, password) = (text("username")?.to_owned(), text("password")?.to_owned());
        Ok(Login::Basic { username, password: Secret::new(password) })
    }
}
