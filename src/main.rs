//! The `berth` binary: everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    berth::cli::run(&berth::cli::Cli::parse())
}
