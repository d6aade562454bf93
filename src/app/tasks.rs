//! The tasks of a running berth, and the order in which they end.
//!
//! At a stop the data plane takes no new connections and its bodies may finish. Everything else, the admin plane among it,
//! works until then, and ends after it.

use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::http;

/// How long background work may take to put its things in order at the end.
const TIDY_UP_MAX: Duration = Duration::from_secs(10);

/// The tasks of the data plane, and all others.
pub(super) struct Tasks {
    data_plane: JoinSet<()>,
    background: JoinSet<()>,
    stop_data: watch::Sender<bool>,
    stop_background: watch::Sender<bool>,
}

/// Turns true when it is time to stop.
pub(super) type Stop = watch::Receiver<bool>;

impl Tasks {
    /// No tasks yet.
    pub(super) fn new() -> Self {
        Self {
            data_plane: JoinSet::new(),
            background: JoinSet::new(),
            stop_data: watch::Sender::new(false),
            stop_background: watch::Sender::new(false),
        }
    }

    /// Starts a task of the data plane, which ends soon after it is told to stop.
    pub(super) fn spawn_data<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        task: impl FnOnce(Stop) -> F,
    ) {
        self.data_plane.spawn(task(self.stop_data.subscribe()));
    }

    /// Starts any other task, which ends soon after it is told to stop. One that ends before is a fault.
    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, task: impl FnOnce(Stop) -> F) {
        self.background.spawn(task(self.stop_background.subscribe()));
    }

    /// Starts work that may be dropped at any time, and is when it is time to stop.
    pub(super) fn spawn_until_stop(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(|mut stop| async move {
            tokio::select! {
                () = work => {}
                () = http::stopped(&mut stop) => {}
            }
        });
    }

    /// Waits until a task ends that must run for ever, which is a fault.
    pub(super) async fn death(&mut self) -> anyhow::Error {
        match self.background.join_next().await {
            Some(Err(error)) => anyhow!(error).context("background work has died"),
            Some(Ok(())) | None => anyhow!("background work has ended before it was asked to"),
        }
    }

    /// Tells the data plane to take no new connections.
    pub(super) fn stop_data(&self) {
        self.stop_data.send_replace(true);
    }

    /// Lets the bodies of the data plane finish for as long as `limit`.
    pub(super) async fn drain(&mut self, limit: Duration) {
        match timeout(limit, join_all(&mut self.data_plane)).await {
            Ok(()) => info!("drained"),
            Err(_) => warn!("some bodies did not finish in time and are cut"),
        }
    }

    /// Cuts the bodies that have not finished.
    pub(super) fn cut_data(&mut self) {
        self.data_plane.abort_all();
    }

    /// Ends all other tasks, and waits a while for them to put things in order.
    pub(super) async fn stop(mut self) {
        self.stop_background.send_replace(true);
        if timeout(TIDY_UP_MAX, join_all(&mut self.background)).await.is_err() {
            warn!("background work did not finish in time; the next start puts things in order");
        }
    }
}

async fn join_all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "a part did not end well");
        }
    }
}
