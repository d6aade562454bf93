//! A remote as the configuration has it: its credentials and certificates are read, and nothing is connected to.

use std::sync::Arc;

use super::config::{Config, Endpoint};
use super::identity::Identity;
use crate::credentials::CredentialSource;
use crate::remote::client::{Client, of_requests};
use crate::remote::error::BuildError;
use crate::remote::event::Observer;
use crate::remote::handle::{Remote, Role, Settings};
use crate::remote::redirect::Redirects;

/// The remote of `config` with these endpoints, whose indexes begin with `first`.
///
/// # Errors
/// [`BuildError`] when the configuration names something that cannot be used.
pub(super) fn remote(
    role: Role,
    config: &Config,
    (first, endpoints): (usize, &[Endpoint]),
    observer: Observer,
) -> Result<Arc<Remote>, BuildError> {
    let identity = config.client_certificate.as_ref().map(Identity::load).transpose()?;
    let client = config.client();
    let credential = CredentialSource::load(
        config.credentials.as_ref(),
        &client,
        &of_requests(&config.registry, &observer),
    )
    .map_err(BuildError::from)?;
    let client = Client::build(&client, identity.clone(), observer)?;
    let settings = Settings {
        registry: config.registry.clone(),
        credential,
        client,
        identity,
        is_always_known: config.is_always_known(),
        headers: config.headers.clone(),
        rewrites: config.rewrite.clone(),
        redirects: Redirects::new(config.redirect_hosts.clone(), config.plain_http_hosts.clone()),
        realm_hosts: config.realm_hosts.clone(),
        limits: config.limits.clone(),
    };
    Ok(Arc::new(Remote::new(role, settings, (first, endpoints))))
}
