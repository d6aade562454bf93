//! What a server costs, as the kernel counts it: memory and CPU time of a process and its children.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Between two looks at the memory of a server.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The unit of CPU time in `/proc`, on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU time that a process and its children have used so far, in user and kernel mode.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks = |pid: u32| -> Option<f64> {
        let fields = stat(pid)?;
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    tree(root).into_iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// Does some work, and returns with it the most bytes of anonymous memory that a process and its children had
/// meanwhile: what they hold themselves, without the cached pages of files.
pub(crate) fn peak_memory<T>(root: u32, work: impl FnOnce() -> T) -> (T, u64) {
    let processes = tree(root);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(processes.iter().filter_map(|pid| anonymous_bytes(*pid)).sum());
                thread::sleep(LOOK_EVERY);
            }
            peak
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
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
