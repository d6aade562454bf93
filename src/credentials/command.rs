//! Programs that are asked for a secret: run without a shell, in berth's own environment, within limits.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// As much as a token of a cloud can be long, several times over.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// Programs ask a cloud at most; this leaves time for the request that the secret is for.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// What a program that has ended wrote.
pub(crate) struct Ran {
    pub(crate) is_success: bool,
    pub(crate) output: Vec<u8>,
}

/// Runs a program, found in `PATH`, with this on its standard input.
///
/// # Errors
/// What is wrong, for people; nothing that the program wrote is in it.
pub(crate) async fn run(program: &str, args: &[&str], input: &str) -> Result<Ran, &'static str> {
    let ran = match timeout(ANSWER_MAX, run_on(program, args, input)).await {
        Ok(Ok(ran)) => ran,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err("is not in PATH"),
        Ok(Err(_)) => return Err("cannot be run"),
        Err(_) => return Err("gave no answer in time"),
    };
    if ran.output.len() as u64 > OUTPUT_BYTES_MAX { Err("wrote too much") } else { Ok(ran) }
}

async fn run_on(program: &str, args: &[&str], input: &str) -> io::Result<Ran> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has only one login may not read for which it is asked.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await?;
    }
    Ok(Ran { is_success: child.wait().await?.success(), output })
}
