//! Programs that tests run: found where Debian puts them, ended with the test, waited for within a deadline.
//!
//! Only Debian's own folders are searched, because the tests are proven against Debian's versions and a newer
//! `docker` elsewhere in the path may not speak to Debian's engine. A program that is missing fails the test
//! with the name of its package: a proof that skips itself proves nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Where programs are looked for.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Which Debian package brings a program; `tests/run` installs the same list.
const PACKAGES: &[(&str, &str)] = &[
    ("buildah", "buildah"),
    ("containerd", "containerd"),
    ("cp", "coreutils"),
    ("ctr", "containerd"),
    ("curl", "curl"),
    ("docker", "docker.io"),
    ("docker-registry", "docker-registry"),
    ("dockerd", "docker.io"),
    ("gzip", "gzip"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("openssl", "openssl"),
    ("podman", "podman"),
    ("prlimit", "util-linux"),
    ("rsync", "rsync"),
    ("script", "bsdutils"),
    ("setpriv", "util-linux"),
    ("skopeo", "skopeo"),
    ("tar", "tar"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
    ("zstd", "zstd"),
];

/// Long enough for the slowest pull on two busy cores, short enough that a hung client is no hung run.
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);

/// How long a program may take to end after SIGTERM; dockerd needs the most, for its containerd.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Client engines at work at the same time: as many as the smallest machine has cores.
const HEAVY_AT_ONCE: usize = 2;

static HEAVY: Semaphore = Semaphore::const_new(HEAVY_AT_ONCE);

/// Waits for a turn: tests that run an engine, or move hundreds of megabytes, hold one. A pull of
/// [`super::clients`] takes its own turn, so a test must not hold one meanwhile.
pub(crate) async fn heavy() -> SemaphorePermit<'static> {
    HEAVY.acquire().await.expect("the semaphore is never closed")
}

/// A command for a program of [`PACKAGES`], ended when it is dropped. Of the environment it sees nothing: most
/// of these programs take settings from there.
pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(find(name));
    command.env_clear().env("PATH", SEARCH_PATH).kill_on_drop(true).stdin(Stdio::null());
    command
}

fn find(name: &str) -> PathBuf {
    let found = SEARCH_PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    let package = PACKAGES.iter().find(|(tool, _)| *tool == name).map(|(_, package)| *package);
    let package = package.unwrap_or_else(|| panic!("{name} is not in the list of programs that tests use"));
    found.unwrap_or_else(|| panic!("{name} is not installed: apt-get install {package} (tests/run does so)"))
}

/// Runs a command to its end and gives what it printed, or the whole story of its failure.
pub(crate) async fn try_run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{:?}", command.as_std());
    let output = match timeout(COMMAND_DEADLINE, command.output()).await {
        Ok(output) => output.unwrap_or_else(|error| panic!("cannot run {shown}: {error}")),
        Err(_) => return Err(format!("{shown}: no end within {COMMAND_DEADLINE:?}")),
    };
    let Output { status, stdout, stderr } = output;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    Err(format!("{shown}: {status}\n{stdout}{}", String::from_utf8_lossy(&stderr)))
}

/// Runs a command that must succeed and gives what it printed.
pub(crate) async fn run(command: &mut Command) -> String {
    try_run(command).await.unwrap_or_else(|failure| panic!("{failure}"))
}

/// A server that a test started, ended and reaped when it is dropped, so that its folder can go next.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the command with both its outputs appended to `log`.
    pub(crate) fn spawn(command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log can be written");
        let errors = file.try_clone().expect("a handle can be copied");
        let mut command = command.into_std();
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// The process to send signals to.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// All that it has printed so far.
    pub(crate) fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        let asked = Instant::now();
        while !self.has_ended() && asked.elapsed() < STOP_DEADLINE {
            thread::sleep(Duration::from_millis(5)); // `drop` cannot await
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port that nobody listened on a moment ago. Somebody else may take it: callers try again.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    listener.local_addr().expect("it is bound").port()
}

/// Writes a file of a test's own set-up.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    let written = File::create(path).and_then(|mut file| file.write_all(content.as_ref()));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// The most memory that a process has ever had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// What a process has read from files and sockets so far, in bytes.
pub(crate) fn read_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// For how many ticks of the clock each thread of a process has run so far.
pub(crate) fn thread_ticks(pid: u32) -> HashMap<u32, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let ticks = |thread: fs::DirEntry| {
        // It may have ended.
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // The name of the program, in parentheses, may have spaces; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ")?;
        let times = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
        Some((thread.file_name().to_str()?.parse().ok()?, times.sum()))
    };
    threads.filter_map(ticks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_run_installs_every_package() {
        let script = include_str!("../../run");
        for (program, package) in PACKAGES {
            let is_listed = script.split_whitespace().any(|word| word == *package);
            assert!(is_listed, "tests/run does not install {package} for {program}");
        }
    }
}
