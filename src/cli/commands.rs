//! The commands, one file for each or for those that belong together. `serve`, `check-config` and `login-check` are about the
//! configuration; the others are about a data folder, by way of `folder`: on it, or through the daemon that has it.

pub(super) mod check_config;
pub(super) mod login_check;
pub(super) mod pin;
pub(super) mod refresh;
pub(super) mod serve;
pub(super) mod verify;

use std::path::Path;

use anyhow::Context as _;

use crate::app::App;
use crate::config::{Config, Overrides};

/// What is to be served, with everything checked that needs neither the data folder nor the network.
fn prepare(file: Option<&Path>, overrides: &Overrides) -> anyhow::Result<App> {
    let app = App::prepare(Config::load_to_serve(file, overrides)?);
    match file {
        Some(file) => app.with_context(|| format!("configuration {}", file.display())),
        None => app,
    }
}
