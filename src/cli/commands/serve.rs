//! `berth serve`: the daemon.

use std::path::Path;
use std::process::ExitCode;

use super::prepare;
use crate::app::{PassedSockets, Source};
use crate::cli::exit::complain;
use crate::config::{Config, Overrides};
use crate::telemetry;

/// Threads for blocking work at most: writers of transfers, reads of files, password checks.
const BLOCKING_THREADS_MAX: usize = 1024;

/// Serves by the configuration in `file`, which is read again while it runs, until it is asked to stop.
pub(in crate::cli) fn run(file: Option<&Path>, overrides: &Overrides, log_level: &str) -> ExitCode {
    let passed = match PassedSockets::take() {
        Ok(passed) => passed,
        Err(error) => return complain(&error, 2),
    };
    let log = match telemetry::start(log_level) {
        Ok(log) => log,
        Err(error) => return complain(&error.into(), 2),
    };
    let source = file.map(|file| source(file, overrides));
    let app = match prepare(file, overrides) {
        Ok(app) => app,
        Err(error) => return complain(&error, 2),
    };
    if let Err(error) = passed.check(app.config()) {
        return complain(&error, 2);
    }
    for warning in app.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build();
    let served = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let served = runtime.block_on(app.serve(source, passed));
        // A thread that waits for a disk or a name server must not hold the process up.
        runtime.shutdown_background();
        served
    });
    drop(log);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// The file as it is read again while berth runs.
fn source(file: &Path, overrides: &Overrides) -> Source {
    let (path, overrides) = (file.to_owned(), overrides.clone());
    Source::new(file.to_owned(), move || Config::load_to_serve(Some(&path), &overrides))
}
