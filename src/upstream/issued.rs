//! A login that somebody else issues to berth, or has in store for it: kept, renewed and asked for anew as `kept` says.

use std::sync::Arc;

use super::client::Client;
use super::cloud::Issuer;
use super::error::Error;
use super::kept::Kept;
use super::login::Login;
use crate::oci::Registry;

/// The login of one registry, and who issues it.
pub(super) struct Issued {
    issuer: Arc<Issuer>,
    kept: Kept<Login>,
}

impl Issued {
    /// Nothing has been issued yet; nobody is asked before the first request needs it.
    pub(super) fn new(issuer: Issuer, registry: Registry) -> Self {
        let kept = Kept::new(registry, issuer.fresh());
        Self { issuer: Arc::new(issuer), kept }
    }

    /// The login; asks the issuer if there is none that lasts.
    ///
    /// # Errors
    /// [`Error::NoLogin`] when there never was one and the issuer fails.
    pub(super) async fn get(&self, client: &Arc<Client>) -> Result<Login, Error> {
        let (issuer, client) = (Arc::clone(&self.issuer), Arc::clone(client));
        self.kept.get(|_| async move { issuer.issue(&client).await }).await
    }

    /// Notes that the registry refused `login`. True if another can be had.
    pub(super) fn refused(&self, login: &Login) -> bool {
        self.kept.refused(login)
    }

    /// Whether `login` is used past its end, for want of another.
    pub(super) fn is_over(&self, login: &Login) -> bool {
        self.kept.is_over(login)
    }

    /// Renews what ends by itself, for ever.
    pub(super) async fn keep(&self, client: &Client) {
        match &*self.issuer {
            // What is in store does not end, and is looked up when it is needed.
            Issuer::Vault(vault) => vault.keep().await,
            issuer => self.kept.keep(|_| issuer.issue(client)).await,
        }
    }
}
