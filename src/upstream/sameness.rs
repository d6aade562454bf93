//! When two configured registries are one: what it says of one of its repositories counts for those of both names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::config::{Config, CredentialsConfig, Endpoint, HostName};
use super::identity::ClientCertificate;
use crate::net::headers::Headers;
use crate::remote::rewrite::Rewrite;

/// What makes two configured registries one: where they are, and as whom they are asked.
#[derive(PartialEq)]
pub(super) struct Sameness {
    endpoints: Vec<Endpoint>,
    credentials: Option<CredentialsConfig>,
    client_certificate: Option<ClientCertificate>,
    headers: Headers,
    rewrite: Vec<Rewrite>,
    addresses: BTreeMap<HostName, Vec<IpAddr>>,
    ca: Vec<PathBuf>,
}

impl Sameness {
    /// What makes the registry of `config` one with another; `None` if others answer for it, because what they say depends
    /// on its name.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let is_asked_itself = !config.mirror && config.parents.is_none() && config.fallbacks.is_empty();
        is_asked_itself.then(|| Self {
            endpoints: config.endpoints.clone(),
            credentials: config.credentials.clone(),
            client_certificate: config.client_certificate.clone(),
            headers: config.headers.clone(),
            rewrite: config.rewrite.clone(),
            addresses: config.addresses.clone(),
            ca: config.ca.clone(),
        })
    }
}
