//! How a command ends: 0 if all is as it should be, 1 if it is not or the command failed, 2 for a bad configuration.

use std::process::ExitCode;

use super::output::tell;

/// Runs a command to its end. What it returns says whether all is as it should be.
pub(super) fn carry_out(run: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let ran = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ran = runtime.block_on(run);
        runtime.shutdown_background();
        ran
    });
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => complain(&error, 1),
    }
}

/// Says what went wrong, with its causes, and gives the exit code. The process ends with it, whether or not logging works.
pub(super) fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    tell(&format!("berth: {error:#}"));
    ExitCode::from(code)
}
