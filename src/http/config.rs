//! The section `[http]` of the configuration: the data plane.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use ipnet::IpNet;
use serde::Deserialize;

use super::server::hosts::Reach;
use super::server::{client_limits, tls};
use crate::access::{self, Peer, networks};
use crate::units;
use crate::upstream::HostName;

/// Default of the time that bodies may take to finish when berth is asked to stop.
const DRAIN: Duration = Duration::from_secs(25);

/// The data plane: `[http]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses of the data plane.
    pub listen: Vec<SocketAddr>,
    /// Names that requests to a listener on loopback may have as their `Host`, besides addresses and `localhost`.
    pub hosts: Vec<HostName>,
    /// Networks that may connect. An empty list lets everybody connect.
    pub allow: Vec<IpNet>,
    /// Berths that may speak for their clients: networks, and users of `htpasswd`.
    pub peers: Vec<Peer>,
    /// A file of `user:bcrypt` lines. If it is set, clients must log in.
    pub htpasswd: Option<PathBuf>,
    /// Certificate and key. Without them the data plane speaks plain HTTP.
    pub tls: Option<tls::Config>,
    /// Whether each request has a line in the log.
    pub access_log: bool,
    /// Whether `_catalog` and `tags/list` also show what came from upstream with a credential. If it is not set they do
    /// where not everybody may connect.
    pub list_private: Option<bool>,
    /// Time that bodies may take to finish when berth is asked to stop.
    #[serde(rename = "drain_seconds", deserialize_with = "units::duration")]
    pub drain: Duration,
    /// The limits of one client.
    pub limits: client_limits::Config,
    /// The limits of one login of `htpasswd`.
    pub login_limits: client_limits::LoginConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000)],
            hosts: Vec::new(),
            allow: Vec::new(),
            peers: Vec::new(),
            htpasswd: None,
            tls: None,
            access_log: true,
            list_private: None,
            drain: DRAIN,
            limits: client_limits::Config::default(),
            login_limits: client_limits::LoginConfig::default(),
        }
    }
}

impl Config {
    /// Whether some clients that can reach a listener may not use it.
    fn is_guarded(&self) -> bool {
        networks::are_restricted(&self.allow)
            || self.htpasswd.is_some()
            || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether lists also show what came from upstream with a credential. A client that is let in may pull all of it anyway.
    pub fn lists_private(&self) -> bool {
        self.list_private.unwrap_or_else(|| self.is_guarded())
    }

    /// The first listener that anybody in the network can reach and use, if there is one.
    pub fn open_listener(&self) -> Option<SocketAddr> {
        if self.is_guarded() {
            return None;
        }
        self.listen.iter().find(|address| Reach::of(**address) == Reach::Network).copied()
    }
}

/// Checks the files of the data plane, and that its keys fit together.
///
/// # Errors
/// When `htpasswd` cannot be read, or should be there.
pub fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.htpasswd.is_some() || config.login_limits == client_limits::LoginConfig::default(),
        "http.login_limits: expected http.htpasswd with it: without that nobody logs in"
    );
    for peer in &config.peers {
        if let Peer::Login(name) = peer {
            ensure!(
                config.htpasswd.is_some(),
                "http.peers: `{name}`: expected a network, or http.htpasswd with it: without that nobody logs in"
            );
        }
    }
    access::check(config.htpasswd.as_deref())
}
