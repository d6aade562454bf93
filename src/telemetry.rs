//! What berth tells about itself: logs (`log_writer`) and [`metrics`].
//!
//! Logs go to standard error: for people when it is a terminal, one JSON object a line otherwise. A message can be read
//! alone, and what a query needs is in fields. Tokens, credentials and bodies are never logged. Panics are lines of the log,
//! too.
//!
//! Uses no other room; all that have something to tell use it.

mod log_throttle;
mod log_writer;
pub mod metrics;

use std::io::{self, IsTerminal as _};
use std::panic;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, fmt};

pub use log_throttle::LogThrottle;
pub use log_writer::Flush;
pub use metrics::Metrics;

use log_writer::LogWriter;

/// The level of the log if none is given.
pub const LEVEL_DEFAULT: &str = "info";

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--log-level` or `BERTH_LOG` is neither a level nor a list of `target=level`.
    #[error(
        "log level `{0}`: expected error, warn, info, debug, trace, or a list such as `info,berth::cache=debug`"
    )]
    Level(String),
    /// Something else in the process already logs.
    #[error("logging is already set up")]
    Twice(#[from] TryInitError),
    /// The system gives no thread for it.
    #[error("logging cannot start")]
    Thread(#[from] io::Error),
}

/// Starts logging for the process. `level` is a level or a comma-separated list of `target=level`. The returned value must
/// be kept until the process ends.
///
/// # Errors
/// [`Error`], when the level cannot be read or logging was started before.
pub fn start(level: &str) -> Result<Flush, Error> {
    let filter = filter(level).ok_or_else(|| Error::Level(level.to_owned()))?;
    // sled narrates its own recovery at info; only its complaints are of use to an operator.
    let filter = filter.with_target("sled", LevelFilter::ERROR);
    let writer = LogWriter::start(io::stderr())?;
    let flush = writer.flush_at_end();
    let layer = fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry();
    if io::stderr().is_terminal() {
        registry.with(layer.compact().with_filter(filter)).try_init()?;
    } else {
        registry.with(layer.json().flatten_event(true).with_ansi(false).with_filter(filter)).try_init()?;
    }
    panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, backtrace = %std::backtrace::Backtrace::capture(), "a fault of berth's own");
    }));
    Ok(flush)
}

/// Reads a level or a list of `target=level`. A single word that is no level is a slip of the pen, and not, as `tracing` has
/// it, the only target to be logged.
fn filter(level: &str) -> Option<Targets> {
    let is_plain = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_known = |word: &str| word.contains('=') || is_plain(word.trim());
    level.split(',').all(is_known).then(|| level.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_read_and_slips_are_not() {
        for good in ["info", "WARN", "off", "info,berth::cache=debug", "berth=trace"] {
            assert!(filter(good).is_some(), "{good}");
        }
        for bad in ["", "loud", "inf", "info,berth::cache", "berth=loud", "info,"] {
            assert!(filter(bad).is_none(), "{bad}");
        }
    }
}
