//! A login that somebody else issues to berth, or has in store for it: kept, renewed and asked for anew as `renewing` says.

use std::sync::Arc;
use std::time::Duration;

use super::cloud::{Azure, Ecr, Google};
use super::error::Error;
use super::login::Login;
use super::renewing::{Answer, Expiring, FRESH, Renewing};
use super::vault::Vault;
use crate::net::HttpClient;
use crate::oci::Registry;

/// Who issues the login of a registry.
pub(crate) enum Issuer {
    /// Amazon, for ECR and ECR Public.
    Ecr(Ecr),
    /// Google, for Artifact Registry and gcr.io.
    Google(Google),
    /// Microsoft, for a registry of Azure.
    Azure(Azure),
    /// Vault, which has it in store.
    Vault(Vault),
}

impl Issuer {
    /// Asks for a new login.
    ///
    /// # Errors
    /// [`NoLogin`] says who refused or failed.
    ///
    /// [`NoLogin`]: super::error::NoLogin
    async fn issue(&self, client: &HttpClient) -> Answer<Login> {
        let issued = match self {
            Self::Ecr(ecr) => ecr.issue(client).await,
            Self::Google(google) => google.issue(client).await,
            Self::Azure(azure) => azure.issue(client).await,
            Self::Vault(vault) => return vault.look_up().await,
        };
        issued.map(|issued| Expiring::new(issued.login, issued.lifetime))
    }

    /// How old a login is at least for its refusal to mean that another can be had.
    fn fresh(&self) -> Duration {
        match self {
            // Every answer is a new login: if the last is refused, so will the next be.
            Self::Ecr(_) | Self::Google(_) | Self::Azure(_) => FRESH,
            // It may have been replaced a moment ago.
            Self::Vault(_) => Duration::ZERO,
        }
    }
}

/// The login of one registry, and who issues it.
pub(crate) struct Issued {
    issuer: Arc<Issuer>,
    kept: Renewing<Login>,
}

impl Issued {
    /// Nothing has been issued yet; nobody is asked before the first request needs it.
    pub(crate) fn new(issuer: Issuer, registry: Registry) -> Self {
        let kept = Renewing::new(registry, issuer.fresh());
        Self { issuer: Arc::new(issuer), kept }
    }

    /// The login; asks the issuer if there is none that lasts.
    ///
    /// # Errors
    /// [`Error::NoLogin`] when there never was one and the issuer fails.
    pub(crate) async fn get(&self, client: &HttpClient) -> Result<Login, Error> {
        let (issuer, client) = (Arc::clone(&self.issuer), client.clone());
        self.kept.get(|_| async move { issuer.issue(&client).await }).await
    }

    /// Notes that the registry refused `login`. True if another can be had.
    pub(crate) fn refused(&self, login: &Login) -> bool {
        self.kept.refused(login)
    }

    /// Whether `login` is used past its end, for want of another.
    pub(crate) fn is_over(&self, login: &Login) -> bool {
        self.kept.is_over(login)
    }

    /// Renews what ends by itself, for ever.
    pub(crate) async fn keep(&self, client: &HttpClient) {
        match &*self.issuer {
            // What is in store does not end, and is looked up when it is needed.
            Issuer::Vault(vault) => vault.keep().await,
            issuer => self.kept.keep(|_| issuer.issue(client)).await,
        }
    }
}
