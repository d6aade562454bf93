//! The berths that may speak for their clients: `[http] peers`.
//!
//! Any client can send `Via` or a deadline. From a peer these headers count: how long it waits, for which of its clients it
//! asks, and that it is the one to ask the registry where this berth would ask another. From any other client they only
//! show loops.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// One entry of `peers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Every berth in this network.
    Network(IpNet),
    /// The berths that log in as this user of `htpasswd`.
    Login(String),
}

impl Peer {
    fn is(&self, address: IpAddr, login: Option<&str>) -> bool {
        match self {
            Self::Network(network) => network.contains(&address),
            Self::Login(name) => login == Some(name),
        }
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        // No user of an htpasswd file has a colon; a slash belongs to a network that is mistyped.
        match text.contains([':', '/']) || text.is_empty() {
            true => Err(de::Error::custom(format!(
                "`{text}`: expected a network such as \"10.0.0.0/24\", or a user of http.htpasswd"
            ))),
            false => Ok(Self::Login(text)),
        }
    }
}

/// The peers of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Peers(Vec<Peer>);

impl Peers {
    /// The peers that the configuration names.
    pub fn new(peers: &[Peer]) -> Self {
        Self(peers.to_vec())
    }

    /// Whether a client at `address`, with this login, is one of them.
    pub fn have(&self, address: IpAddr, login: Option<&str>) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|peer| peer.is(address, login))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_of_a_network_or_has_a_login() {
        #[derive(Deserialize)]
        struct Table {
            peers: Vec<Peer>,
        }
        let read = |text: &str| toml::from_str::<Table>(text).map(|table| Peers::new(&table.peers));
        let peers = read("peers = ['10.1.0.0/16', '192.0.2.7', 'fd00::/8', 'site']").unwrap();
        let check = |address: &str, login: Option<&str>, expected: bool| {
            assert_eq!(peers.have(address.parse().unwrap(), login), expected, "{address} {login:?}");
        };
        check("10.1.2.3", None, true);
        check("::ffff:10.1.2.3", None, true);
        check("10.2.2.3", None, false);
        check("192.0.2.7", None, true);
        check("192.0.2.8", None, false);
        check("fd12::1", None, true);
        check("10.2.2.3", Some("site"), true);
        check("10.2.2.3", Some("other"), false);
        assert!(!Peers::default().have("127.0.0.1".parse().unwrap(), Some("site")));
        for wrong in ["10.0.0.0/33", "a:b", ""] {
            assert!(read(&format!("peers = ['{wrong}']")).is_err(), "{wrong}");
        }
    }
}
