//! The signals that berth listens to.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// SIGTERM and SIGINT, which ask berth to stop.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Listens from now on.
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for either.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// SIGHUP, which asks berth to read its configuration again.
pub(super) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Listens from now on.
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for it. `None` if it can never come.
    pub(super) async fn recv(&mut self) -> Option<()> {
        self.0.recv().await
    }

    /// Answers it while berth stops. Never returns.
    pub(super) async fn ignore(&mut self) {
        while self.recv().await.is_some() {
            warn!("SIGHUP: nothing is reloaded, berth is stopping");
        }
        pending().await
    }
}
