//! Sockets that systemd holds (`berth.socket`), in the place of listeners of one's own.
//!
//! They are open before berth runs and stay so while it is started again: a client that connects meanwhile waits a moment
//! rather than being refused. Each is for the listener of the configuration that has its address. One that is for none is a
//! mistake, since nobody would ever answer there.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;

use crate::config::Config;

/// What systemd has passed to this process.
#[derive(Debug)]
pub struct Held(Vec<(SocketAddr, TcpListener)>);

impl Held {
    /// Takes them, once. To be called before there are threads: the variables that tell of them are removed.
    ///
    /// # Errors
    /// When one is no TCP socket.
    pub fn take() -> anyhow::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut held = Vec::new();
        for index in 0..passed.len() {
            let expected = "systemd passes a socket that is none of TCP: expected ListenStream=ADDRESS:PORT in berth.socket";
            let Some(listener) = passed.take_tcp_listener(index).context(expected)? else { continue };
            listener.set_nonblocking(true)?;
            held.push((listener.local_addr()?, listener));
        }
        Ok(Self(held))
    }

    /// Whether each is for a listener of `config`.
    ///
    /// # Errors
    /// Names the one that is not.
    pub fn check(&self, config: &Config) -> anyhow::Result<()> {
        let of_admin = [Some(config.admin.listen), config.admin.metrics_listen];
        let listeners: Vec<_> =
            config.http.listen.iter().copied().chain(of_admin.into_iter().flatten()).collect();
        match self.0.iter().find(|(address, _)| !listeners.contains(address)) {
            Some((address, _)) => bail!(
                "systemd passes a socket at {address}, where berth does not listen: expected the same address in ListenStream= \
                 of berth.socket and in `listen` of [http], or `listen` or `metrics_listen` of [admin]"
            ),
            None => Ok(()),
        }
    }

    /// The one for the listener at `address`.
    pub(super) fn remove(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let index = self.0.iter().position(|(own, _)| *own == address)?;
        Some(self.0.swap_remove(index).1)
    }
}
