//! The command line: what was asked, put over environment and file, and run.
//!
//! Flags win over `BERTH_…` variables, those over the file, that over the defaults. Exit codes: 0 after a
//! drain or a command that did what it should, 2 for a bad configuration or usage, 1 for any other failure.
//!
//! A command that is about the data folder asks the daemon that has it, or else opens it itself (`folder`).

mod folder;
mod login_check;
mod output;
mod pin;
mod refresh;
mod remote;
mod verify;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::app::{App, Held, Source};
use crate::config::Config;
use crate::oci::route::Registries;
use crate::oci::{Image, Platform};
use crate::telemetry;

use folder::Folder;
use login_check::Target;
use output::{say, tell};

/// Where every command looks for its configuration that is told of no other.
const CONFIG_DEFAULT: &str = "/etc/berth/berth.toml";

/// Threads for blocking work: writers of transfers, reads of files, password checks.
const BLOCKING_THREADS_MAX: usize = 1024;

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
    Serve(Settings),
    /// Read the configuration as `serve` would, say what is wrong with it, and exit
    CheckConfig(Settings),
    /// Try the configured logins at their registries: exit code 1 if one does not work
    LoginCheck {
        #[command(flatten)]
        file: ConfigFile,
        /// Only these, also those without credentials; with a repository, such as harbor.example.com/team/app, what a pull
        /// from there asks for
        #[arg(value_name = "REGISTRY[/REPOSITORY[:TAG]]")]
        targets: Vec<Target>,
    },
    /// Look at every stored file; what is damaged is put aside, and will be fetched again
    Verify(Place),
    /// Keep an image, whatever is here of it and whatever comes; a tag is followed
    Pin {
        /// Such as alpine:3, or harbor.example.com/project/image@sha256:…
        #[arg(value_name = "REF")]
        image: Image,
        /// Only this platform, such as linux/amd64; may be given several times
        #[arg(long, value_name = "PLATFORM")]
        platform: Vec<Platform>,
        #[command(flatten)]
        place: Place,
    },
    /// Take a pin back
    Unpin {
        /// As it was pinned
        #[arg(value_name = "REF")]
        image: Image,
        #[command(flatten)]
        place: Place,
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
        place: Place,
    },
    /// Show all pins, and what of them is here
    Pins(Place),
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
struct Place {
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
struct Settings {
    #[command(flatten)]
    place: Place,
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

    fn load(&self) -> anyhow::Result<Config> {
        Ok(self.path().as_deref().map(Config::load).transpose()?.unwrap_or_default())
    }
}

impl Place {
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = self.file.load()?;
        if let Some(address) = self.admin_listen {
            config.admin.listen = address;
        }
        if let Some(folder) = &self.data_dir {
            config.data_dir.clone_from(folder);
        }
        Ok(config)
    }
}

impl Settings {
    /// What is to be served, with everything checked that needs neither the data folder nor the network.
    fn prepare(&self) -> anyhow::Result<App> {
        self.load().and_then(|config| self.in_file(App::prepare(config)))
    }

    /// What the file says now, with flags and environment over it.
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = self.place.load()?;
        if !self.listen.is_empty() {
            config.http.listen.clone_from(&self.listen);
        }
        config.set_upstreams(&self.upstream)?;
        config.add_public_registries();
        config.settle();
        self.in_file(config.check())?;
        Ok(config)
    }

    fn in_file<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        match self.place.file.path() {
            Some(file) => result.with_context(|| format!("configuration {}", file.display())),
            None => result,
        }
    }

    /// The file, if there is one, to be read again while berth runs.
    fn source(&self) -> Option<Source> {
        let (file, settings) = (self.place.file.path()?, self.clone());
        Some(Source::new(file, move || settings.load()))
    }
}

/// Runs what the command line asks for.
pub fn run(cli: &Cli) -> ExitCode {
    keep_to_itself();
    match &cli.command {
        Command::Serve(settings) => serve(settings),
        Command::CheckConfig(settings) => check_config(settings),
        Command::LoginCheck { file, targets } => login_check(file, targets),
        Command::Verify(place) => command(place, async |folder, _| verify::run(folder).await),
        Command::Pin { image, platform, place } => command(place, async |folder, names| {
            pin::pin(folder, names.image(image.clone()), platform.clone()).await
        }),
        Command::Unpin { image, place } => {
            command(place, async |folder, names| pin::unpin(folder, names.image(image.clone())).await)
        }
        Command::Refresh { image, all_tags, place } => command(place, async |folder, names| {
            refresh::run(folder, names.image(image.clone()), *all_tags).await
        }),
        Command::Pins(place) => command(place, async |folder, _| pin::list(folder).await),
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
fn command(place: &Place, run: impl AsyncFnOnce(&Folder, &Registries) -> anyhow::Result<bool>) -> ExitCode {
    let load = || {
        let mut config = place.load()?;
        config.add_public_registries();
        config.settle();
        let registries = config.registries()?;
        Ok((config, registries))
    };
    let (config, registries) = match load() {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, 2),
    };
    carry_out(async {
        let folder = Folder::find(&config).await?;
        let ran = run(&folder, &registries).await;
        folder.close().await;
        ran
    })
}

fn login_check(file: &ConfigFile, named: &[Target]) -> ExitCode {
    let load = || {
        let mut config = file.load()?;
        config.add_public_registries();
        config.settle();
        login_check::choose(config.upstreams, named)
    };
    match load() {
        Ok(upstreams) => carry_out(login_check::run(&upstreams, named)),
        Err(error) => complain(&error, 2),
    }
}

/// Runs a command to its end. What it returns says whether all is as it should be.
fn carry_out(run: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
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

fn serve(settings: &Settings) -> ExitCode {
    let held = match Held::take() {
        Ok(held) => held,
        Err(error) => return complain(&error, 2),
    };
    let log = match telemetry::start(&settings.log_level) {
        Ok(log) => log,
        Err(error) => return complain(&error.into(), 2),
    };
    let source = settings.source();
    let app = match settings.prepare() {
        Ok(app) => app,
        Err(error) => return complain(&error, 2),
    };
    if let Err(error) = held.check(app.config()) {
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
        let served = runtime.block_on(app.serve(source, held));
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

fn check_config(settings: &Settings) -> ExitCode {
    let app = match settings.prepare() {
        Ok(app) => app,
        Err(error) => return complain(&error, 2),
    };
    for warning in app.warnings() {
        tell(&format!("berth: warning: {warning}"));
    }
    let file = settings.place.file.path().map(|path| format!("config {}\n", path.display()));
    let file = file.unwrap_or_default();
    match say(&format!("the configuration is right\n{file}{}", app.config())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// Says what went wrong, with its causes, and gives the exit code. The process ends with it, whether or not logging works.
fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    tell(&format!("berth: {error:#}"));
    ExitCode::from(code)
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
