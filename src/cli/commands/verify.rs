//! `berth verify`: verifies every stored file, by the daemon that has the data folder or without one.

use std::time::{Duration, Instant};

use crate::cli::folder::Folder;
use crate::cli::output::{say, tell};
use crate::http::admin::paths;
use crate::http::admin::types::{Verification, VerifyCommand};

/// Time between two requests for the progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two lines about the progress.
const TELL_INTERVAL: Duration = Duration::from_secs(2);

/// Verifies every stored file, and prints what is damaged. Returns whether all files are sound.
pub(in crate::cli) async fn run(folder: &Folder) -> anyhow::Result<bool> {
    let mut state: Verification = match folder {
        Folder::Ours(store) => {
            store.verify();
            store.verification()
        }
        Folder::Theirs(remote) => remote.post(paths::VERIFY, &VerifyCommand {}).await?,
    };
    let mut told = Instant::now();
    while state.running {
        tokio::time::sleep(LOOK_INTERVAL).await;
        state = match folder {
            Folder::Ours(store) => store.verification(),
            Folder::Theirs(remote) => remote.get(paths::VERIFY).await?,
        };
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            tell(&progress(&state));
        }
    }
    conclude(&state)?;
    Ok(state.complete && state.damaged == 0 && state.skipped == 0)
}

/// A line about the progress, which is no result.
fn progress(state: &Verification) -> String {
    let Verification { blobs, blobs_total, bytes, damaged, .. } = state;
    format!("{blobs} of {blobs_total} files, {bytes} bytes, {damaged} damaged")
}

fn conclude(state: &Verification) -> anyhow::Result<()> {
    for finding in &state.findings {
        say(&format!("damaged {}: {}", finding.digest, finding.damage.as_str()))?;
    }
    if state.damaged > 0 {
        say("what is damaged was taken out of service, and is fetched again when it is next asked for")?;
    }
    if !state.complete {
        say(&format!("stopped early, after {} of {} files", state.blobs, state.blobs_total))?;
    }
    let Verification { blobs, bytes, damaged, foreign, skipped, .. } = state;
    say(&format!(
        "{blobs} files, {bytes} bytes: {damaged} damaged, {skipped} could not be looked at, {foreign} not berth's"
    ))
}
