//! What a server costs, as the kernel counts it: memory, CPU time and system calls of a process and its
//! children, and blocks of a folder.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Between two looks at a server.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The unit of CPU time in `/proc`, on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Seconds of CPU time that a turn must take at least: less cannot be told from none with that unit, and a turn
/// goes on until it is so much.
pub(crate) const CPU_COUNTABLE: f64 = 5.0 / TICKS_PER_SECOND;
/// Between two looks at a turn that goes on.
pub(crate) const TURN_GOES_ON: Duration = Duration::from_millis(10);
/// No turn goes on for longer.
pub(crate) const TURN_DEADLINE: Duration = Duration::from_secs(30);
/// What `st_blocks` counts.
const BLOCK_BYTES: u64 = 512;
/// How long perf may take until it counts.
const PERF_STARTS: Duration = Duration::from_millis(300);

/// The most that was seen of a server while some work was done.
#[derive(Default)]
pub(crate) struct Peak {
    /// Bytes of anonymous memory: what it holds itself, without the cached pages of files.
    pub(crate) anonymous: u64,
    /// Bytes of memory, whatever stands behind it.
    pub(crate) resident: u64,
    /// Bytes of the blocks of a folder.
    pub(crate) disk: u64,
}

/// Seconds of CPU time that a process and its children have used so far, in user and kernel mode.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks = |pid: u32| -> Option<f64> {
        let fields = stat(pid)?;
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    tree(root).into_iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// Bytes of anonymous memory of a process and its children.
pub(crate) fn anonymous_bytes(root: u32) -> u64 {
    tree(root).into_iter().filter_map(|pid| status_bytes(pid, "RssAnon:")).sum()
}

/// Bytes of memory, whatever stands behind it, of a process and its children.
pub(crate) fn resident_bytes(root: u32) -> u64 {
    tree(root).into_iter().filter_map(|pid| status_bytes(pid, "VmRSS:")).sum()
}

/// Does some work, and looks at a server and at its folder meanwhile.
pub(crate) fn watch<T>(root: u32, folder: Option<&Path>, work: impl FnOnce() -> T) -> (T, Peak) {
    let processes = tree(root);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = Peak::default();
            loop {
                let is_last = done.load(Ordering::Relaxed);
                let sum = |name| processes.iter().filter_map(|pid| status_bytes(*pid, name)).sum();
                peak.anonymous = peak.anonymous.max(sum("RssAnon:"));
                peak.resident = peak.resident.max(sum("VmRSS:"));
                peak.disk = peak.disk.max(folder.map_or(0, disk_bytes));
                if is_last {
                    return peak;
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

/// Does some work, and counts the system calls of a process and its children meanwhile; `None` where there is
/// no perf, or it may not count.
pub(crate) fn system_calls<T>(root: u32, work: impl FnOnce() -> T) -> (T, Option<f64>) {
    let pids: Vec<String> = tree(root).iter().map(u32::to_string).collect();
    let perf = Command::new("perf")
        .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(",")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(perf) = perf else { return (work(), None) };
    // What a server calls while it has nothing to do is next to nothing.
    thread::sleep(PERF_STARTS);
    let result = work();
    // It may have ended already, for want of a permission.
    let _ = kill_process(Pid::from_child(&perf), Signal::INT);
    let said = perf.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| line.contains("raw_syscalls:sys_enter"));
    (result, line.and_then(|line| line.split(',').next()?.parse().ok()))
}

/// Bytes of the blocks of all files below a folder. What goes meanwhile is not counted.
fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * BLOCK_BYTES,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A process, its children, and theirs.
fn tree(root: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> =
        pids.filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect();
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let of = tree[at];
        tree.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    tree
}

/// The fields of `/proc/<pid>/stat` behind the name, which may itself contain anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}
