//! The section `[admin]` of the configuration: the admin plane and the metrics plane.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::ensure;
use ipnet::IpNet;
use serde::Deserialize;

use crate::access::networks;
use crate::http::server::hosts::Reach;
use crate::upstream::HostName;

/// The admin plane: `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the admin plane.
    pub listen: SocketAddr,
    /// Address of a listener for `/metrics`, `/healthz` and `/readyz` alone.
    pub metrics_listen: Option<SocketAddr>,
    /// Networks that may connect besides this machine.
    pub allow: Vec<IpNet>,
    /// A file with a token that opens the API, besides the one that berth makes.
    pub token_file: Option<PathBuf>,
    /// Names that requests may have as their `Host`, besides addresses and `localhost`.
    pub hosts: Vec<HostName>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001),
            metrics_listen: None,
            allow: Vec::new(),
            token_file: None,
            hosts: Vec::new(),
        }
    }
}

impl Config {
    /// Checks what these keys say together.
    ///
    /// # Errors
    /// When another machine could reach the admin plane, and nothing says which may and how it proves itself.
    pub fn check(&self) -> anyhow::Result<()> {
        let is_guarded = networks::are_restricted(&self.allow) && self.token_file.is_some();
        ensure!(
            is_guarded || Reach::of(self.listen) == Reach::Loopback,
            "admin.listen {} can be reached from other machines, and whoever can connect could try to give commands. \
             Set admin.allow (networks, none of them the whole Internet) and admin.token_file, or listen on 127.0.0.1; \
             admin.metrics_listen is for /metrics, /healthz and /readyz alone",
            self.listen
        );
        Ok(())
    }
}
