//! Requests to read the configuration again, and their results. `app` carries them out.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Most requests that wait for one that is being carried out.
const ORDERS_MAX: usize = 4;
/// Time that a result is waited for; the reload goes on. It reads some files, which may be on the network.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The result of a reload of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The keys that differ. Empty if the configuration in force is the one in the file already.
    pub changed: Vec<String>,
}

/// Why a configuration was not reloaded. The one before stays in force, all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    /// There is no file to read.
    #[error(
        "there is no configuration file: what is configured are flags and environment, and these need a restart"
    )]
    NoFile,
    /// The file, the key, the value and what was expected.
    #[error("{0}")]
    Refused(String),
    /// Too many reloads wait, it takes too long, or berth is stopping.
    #[error("the configuration cannot be reloaded just now; the log will say what came of it")]
    Busy,
}

/// One request, to be answered with its result.
pub type ReloadRequest = oneshot::Sender<Result<Reloaded, NotReloaded>>;

/// Requests reloads. Clones share one queue.
#[derive(Clone)]
pub struct ReloadRequests(mpsc::Sender<ReloadRequest>);

/// A queue of requests: the end that fills it, and the end that is read.
pub fn orders() -> (ReloadRequests, mpsc::Receiver<ReloadRequest>) {
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    (ReloadRequests(orders), ordered)
}

impl ReloadRequests {
    /// Requests a reload, and waits for its result.
    pub(super) async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        let (order, answer) = oneshot::channel();
        self.0.try_send(order).map_err(|_| NotReloaded::Busy)?;
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotReloaded::Busy),
        }
    }
}
