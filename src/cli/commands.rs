//! The commands that are about the configuration, one file each: `serve`, `check-config` and `login-check`.

pub(super) mod check_config;
pub(super) mod login_check;
pub(super) mod serve;

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
