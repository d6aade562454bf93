//! The data folder of a command: opened by the command itself if no daemon has it, else that daemon is asked.

use std::sync::Arc;

use anyhow::{Context as _, ensure};

use super::admin_client::AdminClient;
use crate::config::Config;
use crate::store::{self, Store};

/// The data folder that a command is about.
pub(super) enum Folder {
    /// The command has opened it. No other process can have it meanwhile.
    Ours(Store),
    /// A daemon has it, and does what the command asks.
    Theirs(AdminClient),
}

impl Folder {
    /// Opens the data folder of `config`, or finds the daemon that has it. A folder that is not there is not made.
    pub(super) async fn find(config: &Config) -> anyhow::Result<Self> {
        let path = &config.data_dir;
        ensure!(path.is_dir(), "there is no data folder {}", path.display());
        let limits = config.cache.limits(config.pins.clone());
        let (pid, admin) = match Store::open_within(path, limits, Arc::default()).await {
            Ok(store) => {
                // It is another process's to look after as long as that has it.
                store::close_to_others(path, config.data_mode);
                return Ok(Self::Ours(store));
            }
            Err(store::Error::Locked { pid, admin, .. }) => (pid, admin),
            Err(error) => return Err(error).with_context(|| format!("data folder {}", path.display())),
        };
        // What the daemon says of itself comes first. It cannot say so on a disk that is read-only.
        let addresses: Vec<_> = admin.into_iter().chain([config.admin.listen]).collect();
        let remote = AdminClient::find(&addresses, config).await.with_context(|| {
            let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            format!(
                "{holder} has the data folder {}, and cannot be asked (--admin-listen says where)",
                path.display()
            )
        })?;
        Ok(Self::Theirs(remote))
    }

    /// Puts it in order and lets go of it.
    pub(super) async fn close(self) {
        match self {
            Self::Ours(store) => store.close().await,
            Self::Theirs(_) => {}
        }
    }
}
