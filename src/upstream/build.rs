//! A remote as the configuration has it: its credentials and certificates are read, and nothing is connected to.

use std::sync::Arc;

use super::client::{self, Client};
use super::config::{Config, Endpoint};
use super::identity::Identity;
use super::remote::error::BuildError;
use super::remote::event::Observer;
use super::remote::handle::{Remote, Role, Settings};
use super::remote::redirect::Redirects;

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
    let credential = client::login_of(config, &observer)?;
    let client = Client::build(config, identity.clone(), observer)?;
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
