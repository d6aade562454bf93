//! What berth takes from systemd and tells it: sockets that it passes (`berth.socket`), and the state of the service.
//!
//! Such sockets are open before berth runs and stay open while it is restarted: a client that connects meanwhile waits a
//! moment rather than being refused. Each is used by the listener of the configuration that has its address. A socket that
//! no listener uses is a mistake, since nothing would ever answer there.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::warn;

use crate::config::Config;

/// The sockets that systemd has passed to this process, by their addresses.
#[derive(Debug)]
pub struct PassedSockets(Vec<(SocketAddr, TcpListener)>);

impl PassedSockets {
    /// Takes them from the environment, once. This must be called before there are threads, because it removes variables.
    ///
    /// # Errors
    /// When one is not a TCP socket.
    pub fn take() -> anyhow::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let expected = "systemd passes a socket that is none of TCP: expected ListenStream=ADDRESS:PORT in berth.socket";
            let Some(listener) = passed.take_tcp_listener(index).context(expected)? else { continue };
            listener.set_nonblocking(true)?;
            sockets.push((listener.local_addr()?, listener));
        }
        Ok(Self(sockets))
    }

    /// Checks that each is used by a listener of `config`.
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

    /// Takes the socket at `address` out, if there is one.
    pub(super) fn remove(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let index = self.0.iter().position(|(own, _)| *own == address)?;
        Some(self.0.swap_remove(index).1)
    }
}

/// Tells systemd that the service is ready.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells systemd that the service is stopping.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd what `systemctl status` is to show.
pub(super) fn status(text: &str) {
    notify(&[NotifyState::Status(&text.replace('\n', " "))]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "systemd could not be told");
    }
}
