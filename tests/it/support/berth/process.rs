//! The process of a daemon: its log, its listeners, its end.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Setup;
use crate::support::{eventually, process};

/// The program that is tested.
pub(crate) const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// A daemon's process, which ends with this value at the latest.
pub(super) struct Process {
    child: Child,
    exited: Option<ExitStatus>,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    /// Nothing more can come.
    ended: bool,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// `None` if by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) lines: Vec<String>,
}

impl Exit {
    /// All that it wrote to its log.
    pub(crate) fn log(&self) -> String {
        self.lines.join("\n")
    }
}

impl Process {
    /// Runs it, and waits until it listens for every plane.
    pub(super) async fn start(setup: &Setup, data_dir: &Path) -> Self {
        let mut process = Self::spawn(setup, data_dir).await;
        eventually("berth listens", async || {
            assert!(!process.has_exited(), "berth ended at once:\n{}", process.logs().join("\n"));
            setup.planes().iter().all(|plane| process.listener(plane).is_some())
        })
        .await;
        process
    }

    pub(super) async fn spawn(setup: &Setup, data_dir: &Path) -> Self {
        let mut command = match (setup.files, setup.name_server) {
            _ if let Some(held) = setup.held => {
                let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&{held}");
                // The plainer shell knows descriptors of one digit only.
                let mut command = Command::new("/bin/bash");
                command.arg("-c").arg(script).arg(&setup.program);
                command
            }
            (None, None) => Command::new(&setup.program),
            (None, Some(address)) => {
                let script = "mount --bind \"$1\" /etc/resolv.conf; shift; exec \"$@\"";
                let resolver = data_dir.with_extension("resolv.conf");
                process::write(&resolver, format!("nameserver {address}\n"));
                let mut command = process::tool("unshare").into_std();
                command.args(["--mount", "sh", "-ec", script, "sh"]).arg(resolver).arg(&setup.program);
                command
            }
            (Some(files), _) => {
                let mut command = process::tool("prlimit").into_std();
                command.arg(format!("--nofile={files}:{files}")).arg(&setup.program);
                command
            }
        };
        command.arg("serve");
        if setup.has_file {
            // Beside the data folder, which is the daemon's own to create.
            let config = data_dir.with_extension("toml");
            tokio::fs::write(&config, setup.toml(data_dir)).await.unwrap();
            command.arg("--config").arg(config);
        }
        let mut child = command
            .args(&setup.args)
            // Of the environment of the tests, nothing may change what the daemon does.
            .env_clear()
            .envs(setup.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let stderr = child.stderr.take().unwrap();
        let written = Arc::clone(&log);
        std::thread::spawn(move || follow(stderr, &written));
        Self { child, exited: None, log }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(super) fn logs(&self) -> Vec<String> {
        self.log.lock().unwrap().lines.clone()
    }

    /// The first address that the log names for a plane.
    pub(super) fn listener(&self, plane: &str) -> Option<SocketAddr> {
        let listening = |line: &String| {
            let line: Value = serde_json::from_str(line).ok()?;
            let fields = line.get("fields").unwrap_or(&line);
            let matches = fields["message"] == "listening" && fields["plane"] == plane;
            fields["address"].as_str().filter(|_| matches)?.parse().ok()
        };
        self.log.lock().unwrap().lines.iter().find_map(listening)
    }

    pub(super) fn has_exited(&mut self) -> bool {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().unwrap();
        }
        self.exited.is_some()
    }

    /// Waits for its end, and for the end of its log.
    pub(super) async fn exit(&mut self) -> Exit {
        eventually("berth ends", async || self.has_exited() && self.log.lock().unwrap().ended).await;
        Exit { code: self.exited.unwrap().code(), lines: self.logs() }
    }
}

impl Drop for Process {
    #[allow(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        if !self.has_exited() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of berth\n{}\n---", self.logs().join("\n"));
        }
    }
}

fn follow(stderr: ChildStderr, log: &Mutex<Log>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        log.lock().unwrap().lines.push(line);
    }
    log.lock().unwrap().ended = true;
}
