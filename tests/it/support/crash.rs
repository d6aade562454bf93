//! What a power loss leaves behind, and disks that are small.
//!
//! A [`Disk`] is a file system of a test's own, on a file. Its contents reach that file as those of a real one
//! reach a real disk: when somebody syncs, or when the kernel gets round to it. The kernel is told not to
//! hurry: the journal commits on sync only, and dirty pages are written back after half a minute (Linux's
//! default `vm.dirty_expire_centisecs`) or when they fill a tenth of the memory. So a copy of the file is what
//! the disk held at that instant: all that was synced and, in a short test, nothing more.
//! [`Disk::after_power_loss`] mounts such a copy, which replays the journal as the next boot would.
//!
//! ext4's rescue of files that are replaced without a sync (`auto_da_alloc`) is switched off: not every file
//! system has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::eventually;
use super::process::{run, tool};

/// `commit`: seconds between commits that nobody asked for; longer than any test takes.
const MOUNT_OPTIONS: &str = "loop,commit=3600,noauto_da_alloc,nodiscard";

/// How often a copy is made anew because the kernel wrote meanwhile.
const COPY_ATTEMPTS: usize = 20;

/// A mounted file system, unmounted when it is dropped. Everything that uses it must be dropped first.
pub(crate) struct Disk {
    /// Holds the file that it is on, and the folder that it is mounted at.
    folder: TempDir,
}

impl Disk {
    /// An empty ext4 of this size.
    pub(crate) async fn ext4(mebibytes: u64) -> Self {
        let disk = Self::unmounted();
        let image = disk.image();
        let file = fs::File::create_new(&image).expect("the folder is new");
        file.set_len(mebibytes << 20).expect("a sparse file may be larger than the disk");
        // Nothing is initialised behind: background writes would make copies unsteady.
        let features = "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0";
        run(tool("mkfs.ext4").args(["-q", "-m", "0", "-E", features]).arg(&image)).await;
        disk.mount().await;
        disk
    }

    /// An empty one in memory: quick, for what is about its size only.
    pub(crate) async fn tmpfs(mebibytes: u64) -> Self {
        let disk = Self::unmounted();
        let size = format!("size={mebibytes}m");
        run(tool("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(disk.path())).await;
        disk
    }

    /// Where it is mounted. Of an ext4, `lost+found` is there too.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Makes it read-only, as a kernel does after an error of the disk; or writable again.
    pub(crate) async fn read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        run(tool("mount").args(["-o", option]).arg(self.path())).await;
    }

    /// Makes an ext4 fail, as a kernel does when the disk below it fails: nothing can be written any more, and
    /// what was read or synced can still be read.
    pub(crate) async fn fail(&self) {
        run(tool("mount").args(["-o", "remount,abort"]).arg(self.path())).await;
    }

    /// Makes everything behind this many mebibytes unreadable, as a kernel reports bad sectors.
    pub(crate) fn lose_behind(&self, mebibytes: u64) {
        let image = fs::File::options().write(true).open(self.image()).expect("the image is there");
        image.set_len(mebibytes << 20).expect("a file can be made shorter");
    }

    /// The disk as it would be found if the power failed now, while `writers` are stopped at any instruction.
    pub(crate) async fn after_power_loss(&self, writers: &[u32]) -> Self {
        for writer in writers {
            signal(*writer, Signal::STOP);
        }
        // A thread in a system call, such as a sync, stops when that is done.
        eventually("the writers to stop", async || writers.iter().all(|writer| is_stopped(*writer))).await;
        let found = Self::unmounted();
        self.copy_to(&found.image()).await;
        for writer in writers {
            signal(*writer, Signal::CONT);
        }
        found.mount().await;
        found
    }

    fn unmounted() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::create_dir(folder.path().join("mounted")).expect("the folder is new");
        Self { folder }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    async fn mount(&self) {
        run(tool("mount").args(["-o", MOUNT_OPTIONS]).arg(self.image()).arg(self.path())).await;
    }

    /// Copies the file that the file system is on, as it is between two writes of the kernel.
    async fn copy_to(&self, target: &Path) {
        let device =
            run(tool("losetup").args(["--noheadings", "--output", "NAME", "--associated"]).arg(self.image()))
                .await;
        let statistics = Path::new("/sys/block").join(device.trim().trim_start_matches("/dev/")).join("stat");
        for _ in 0..COPY_ATTEMPTS {
            let before = writes(&statistics);
            run(tool("cp").arg("--sparse=always").arg(self.image()).arg(target)).await;
            if before == writes(&statistics) {
                return;
            }
        }
        panic!("the kernel writes to {device} all the time");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

/// A folder that nothing can be changed in, although others have files open on the same disk, until this is
/// dropped.
pub(crate) struct ReadOnly {
    folder: PathBuf,
}

impl ReadOnly {
    pub(crate) async fn folder(folder: &Path) -> Self {
        run(tool("mount").arg("--bind").arg(folder).arg(folder)).await;
        let mounted = Self { folder: folder.to_owned() };
        run(tool("mount").args(["-o", "remount,bind,ro"]).arg(folder)).await;
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

fn unmount(path: &Path) {
    let mut unmount = Command::new(tool("umount").as_std().get_program());
    // Lazily: a test that failed may not have ended all that uses it.
    unmount.arg("--lazy").arg(path).stderr(Stdio::null()).status().ok();
}

/// Requests to write, and those under way, of a block device: fields of the kernel's `block/stat.rst`.
fn writes(statistics: &Path) -> (String, String) {
    let text = fs::read_to_string(statistics).expect("a mounted disk has statistics");
    let fields: Vec<_> = text.split_whitespace().collect();
    (fields[4].to_owned(), fields[8].to_owned())
}

fn signal(process: u32, signal: Signal) {
    let process =
        process.try_into().ok().and_then(Pid::from_raw).expect("a process id is small and not zero");
    kill_process(process, signal).expect("the writer is there");
}

/// Whether every thread of a process has stopped.
fn is_stopped(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the process is there");
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses and may hold any character.
        status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}
