//! A command of `berth` that is about a data folder, run to its end.

use std::path::Path;

use tokio::process::Command;

use super::{BERTH, within_deadline};

/// What a command said and returned.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    /// Both of its outputs.
    pub(crate) text: String,
}

/// Runs `berth` with these arguments on a data folder.
pub(crate) async fn command(data_dir: &Path, args: &[&str]) -> Said {
    let mut command = Command::new(BERTH);
    let data_dir = ["--data-dir", data_dir.to_str().unwrap()];
    let output = command.args(args).args(data_dir).env_clear().kill_on_drop(true).output();
    let output = within_deadline(&format!("berth {args:?}"), output).await.unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Said { code: output.status.code(), text }
}
