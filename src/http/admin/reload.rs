//! Orders to read the configuration again, and what comes of it. Who carries them out is not known here.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Orders that wait for one that is being carried out.
const ORDERS_MAX: usize = 4;
/// How long an answer is waited for; the reload goes on. It reads some files, which may be on the network.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What a reload of the configuration came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different, by its keys; nothing if the configuration in force is the one in the file already.
    pub changed: Vec<String>,
}

/// Why a configuration was not reloaded; the one before stays in force, all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    /// There is nothing to read.
    #[error(
        "there is no configuration file: what is configured are flags and environment, and these need a restart"
    )]
    NoFile,
    /// The file, the key, the value and what was expected.
    #[error("{0}")]
    Refused(String),
    /// Too many have ordered it, it takes too long, or berth is stopping.
    #[error("the configuration cannot be reloaded just now; the log will say what came of it")]
    Busy,
}

/// One order, to be answered.
pub type Order = oneshot::Sender<Result<Reloaded, NotReloaded>>;

/// Gives orders.
#[derive(Clone)]
pub struct Orders(mpsc::Sender<Order>);

/// Somebody who gives orders, and what they come out at.
pub fn orders() -> (Orders, mpsc::Receiver<Order>) {
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    (Orders(orders), ordered)
}

impl Orders {
    /// Has the configuration read again, and waits for what comes of it.
    pub(super) async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        let (order, answer) = oneshot::channel();
        self.0.try_send(order).map_err(|_| NotReloaded::Busy)?;
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotReloaded::Busy),
        }
    }
}
