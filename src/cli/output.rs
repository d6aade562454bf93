//! What a command says: on standard output the answer that was asked for, on standard error what went wrong.
//!
//! The reader may go away before the end, as `head -1` does: that is no failure, and the rest is not said. `println!` would
//! panic.

use std::io::{self, ErrorKind, Write as _};

use anyhow::Context as _;

/// Says a line of the answer.
///
/// # Errors
/// When it cannot be written, such as to a full disk.
pub(super) fn say(line: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("standard output"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says a line on standard error: about progress, or what went wrong. There is nowhere to say that this failed.
pub(super) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
