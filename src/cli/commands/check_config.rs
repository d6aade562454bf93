//! `berth check-config`: what `serve` would make of the configuration.

use std::path::Path;
use std::process::ExitCode;

use super::prepare;
use crate::cli::exit::complain;
use crate::cli::output::{say, tell};
use crate::config::Overrides;

/// Reads `file` as `serve` would, and shows what is in force, or what is wrong.
pub(in crate::cli) fn run(file: Option<&Path>, overrides: &Overrides) -> ExitCode {
    let app = match prepare(file, overrides) {
        Ok(app) => app,
        Err(error) => return complain(&error, 2),
    };
    for warning in app.warnings() {
        tell(&format!("berth: warning: {warning}"));
    }
    let file = file.map(|path| format!("config {}\n", path.display())).unwrap_or_default();
    match say(&format!("the configuration is right\n{file}{}", app.config())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}
