//! The command line: what was asked for, put over environment and file, and run.
//!
//! Flags win over `BERTH_…` variables, those over the file, that over the defaults. Exit codes: 0 after a drain or a command
//! that did what it should, 2 for a bad configuration or usage, 1 for any other failure.
//!
//! A command that is about the data folder asks the daemon that has it, or else opens it itself (`folder`). `commands` has
//! a file for each. What a command says goes through `output`, and its exit code through `exit`.
//!
//! Uses every room; nothing but `main` uses it. In it `output`, `exit` and `admin_client` are lowest, then `folder`, then the
//! commands, and this file uses all.

mod admin_client;
mod commands;
mod exit;
mod folder;
mod output;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Overrides};
use crate::oci::route::Registries;
use crate::oci::{Image, Platform};
use crate::telemetry;

use commands::login_check::CheckTarget;
use commands::{check_config, login_check, pin, refresh, serve, verify};
use exit::{carry_out, complain};
use folder::Folder;

/// Where every command looks for its configuration that is told of no other.
const CONFIG_DEFAULT: &str = "/etc/berth/berth.toml";

/// The command line of `berth`.
#[derive(Debug, Parser)]
#[command(name = "berth", version, about = "A pull-through caching mirror for container registries")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: works without any configuration
    Serve(ServeArgs),
    /// Read the configuration as `serve` would, say what is wrong with it, and exit
    CheckConfig(ServeArgs),
    /// Try the configured logins at their registries: exit code 1 if one does not work
    LoginCheck {
        #[command(flatten)]
        file: ConfigFile,
        /// Only these, also those without credentials; with a repository, such as harbor.example.com/team/app, what a pull
        /// from there asks for
        #[arg(value_name = "REGISTRY[/REPOSITORY[:TAG]]")]
        targets: Vec<CheckTarget>,
    },
    /// Look at every stored file; what is damaged is put aside, and will be fetched again
    Verify(DataDirArgs),
    /// Keep an image, whatever is here of it and whatever comes; a tag is followed
    Pin {
        /// Such as alpine:3, or harbor.example.com/project/image@sha256:…
        #[arg(value_name = "REF")]
        image: Image,
        /// Only this platform, such as linux/amd64; may be given several times
        #[arg(long, value_name = "PLATFORM")]
        platform: Vec<Platform>,
        #[command(flatten)]
        data: DataDirArgs,
    },
    /// Take a pin back
    Unpin {
        /// As it was pinned
        #[arg(value_name = "REF")]
        image: Image,
        #[command(flatten)]
        data: DataDirArgs,
    },
    /// Ask upstream now what a tag means: exit code 1 if it has no such tag, or cannot be asked
    Refresh {
        /// Such as alpine:3
        #[arg(value_name = "REF")]
        image: Image,
        /// All tags of that repository that are known here, whatever tag is given
        #[arg(long)]
        all_tags: bool,
        #[command(flatten)]
        data: DataDirArgs,
    },
    /// Show all pins, and what of them is here
    Pins(DataDirArgs),
}

/// Which configuration.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// TOML file; without it /etc/berth/berth.toml, if that is there
    #[arg(long, value_name = "FILE", env = "BERTH_CONFIG")]
    config: Option<PathBuf>,
}

/// Which data folder, and who may have it.
#[derive(Clone, Debug, Args)]
struct DataDirArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Address of the admin plane
    #[arg(long, value_name = "ADDR", env = "BERTH_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Folder of what is kept
    #[arg(long, value_name = "DIR", env = "BERTH_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    data: DataDirArgs,
    /// Address of the data plane; may be given several times
    #[arg(long, value_name = "ADDR", env = "BERTH_LISTEN", value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// Add or replace an upstream; several of one name are tried in order
    #[arg(long, value_name = "NAME=URL", env = "BERTH_UPSTREAM", value_delimiter = ',')]
    upstream: Vec<String>,
    /// error, warn, info, debug or trace, or a list such as `info,berth::cache=debug`
    #[arg(long, value_name = "LEVEL", env = "BERTH_LOG", default_value = telemetry::LEVEL_DEFAULT)]
    log_level: String,
}

impl ConfigFile {
    /// The file, if there is one. One that cannot be looked at is there: it would be wrong to go on without it in silence.
    fn path(&self) -> Option<PathBuf> {
        let usual = || {
            let path = Path::new(CONFIG_DEFAULT);
            path.try_exists().unwrap_or(true).then(|| path.to_owned())
        };
        self.config.clone().or_else(usual)
    }
}

impl DataDirArgs {
    fn overrides(&self) -> Overrides {
        let Self { file: _, admin_listen, data_dir } = self;
        Overrides { admin_listen: *admin_listen, data_dir: data_dir.clone(), ..Overrides::default() }
    }
}

impl ServeArgs {
    fn overrides(&self) -> Overrides {
        let Self { data, listen, upstream, log_level: _ } = self;
        Overrides { listen: listen.clone(), upstreams: upstream.clone(), ..data.overrides() }
    }

    fn file(&self) -> Option<PathBuf> {
        self.data.file.path()
    }
}

/// Runs what the command line asks for.
pub fn run(cli: &Cli) -> ExitCode {
    keep_to_itself();
    match &cli.command {
        Command::Serve(args) => serve::run(args.file().as_deref(), &args.overrides(), &args.log_level),
        Command::CheckConfig(args) => check_config::run(args.file().as_deref(), &args.overrides()),
        Command::LoginCheck { file, targets } => login_check::run(file.path().as_deref(), targets),
        Command::Verify(data) => command(data, async |folder, _| verify::run(folder).await),
        Command::Pin { image, platform, data } => command(data, async |folder, names| {
            pin::pin(folder, names.image(image.clone()), platform.clone()).await
        }),
        Command::Unpin { image, data } => {
            command(data, async |folder, names| pin::unpin(folder, names.image(image.clone())).await)
        }
        Command::Refresh { image, all_tags, data } => command(data, async |folder, names| {
            refresh::run(folder, names.image(image.clone()), *all_tags).await
        }),
        Command::Pins(data) => command(data, async |folder, _| pin::list(folder).await),
    }
}

/// What berth makes is for nobody else, and what it has in memory, logins among it, ends up in no core dump and is not to
/// be read by other processes of its user.
fn keep_to_itself() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    // No kernel refuses it; without it everything works all the same.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Runs a command that is about a data folder, and may name images of the configured registries.
fn command(
    data: &DataDirArgs,
    run: impl AsyncFnOnce(&Folder, &Registries) -> anyhow::Result<bool>,
) -> ExitCode {
    let config = match Config::load(data.file.path().as_deref(), &data.overrides()) {
        Ok(config) => config,
        Err(error) => return complain(&error, 2),
    };
    carry_out(async {
        let folder = Folder::find(&config).await?;
        let ran = run(&folder, config.registries()).await;
        folder.close().await;
        ran
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
