//! The lock of the data folder: one process at a time.
//!
//! It is an advisory lock on `<data_dir>/lock`, which the kernel releases with the process, however that ends.
//! Another process that finds the folder locked reads from the file which process has it, and where the admin plane
//! of that process is:
//!
//! ```text
//! 4711                the process
//! 127.0.0.1:5001      its admin plane, once it has one
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::store::error::Error;

/// Bytes of the lock file that are read at most: it holds a process id and an address.
const TEXT_BYTES_MAX: u64 = 128;

/// The lock of a data folder, held as long as this value lives.
pub(in crate::store) struct Lock {
    /// The locked file; closing it releases the lock.
    file: File,
}

impl Lock {
    pub(in crate::store) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("lock");
        let file = open(folder, &path).map_err(|source| Error::io("open", &path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let (pid, admin) = read_holder(file);
                return Err(Error::Locked { path, pid, admin });
            }
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
        }
        let lock = Self { file };
        lock.write(&format!("{}\n", std::process::id()));
        Ok(lock)
    }

    /// Writes down for other processes where the admin plane of this process is.
    pub(in crate::store) fn announce(&self, admin: SocketAddr) {
        self.write(&format!("{}\n{admin}\n", std::process::id()));
    }

    /// Writes the text of the lock file. The lock holds even if there is no room for it; other processes then know
    /// less.
    fn write(&self, text: &str) {
        let written = self.file.set_len(0).and_then(|()| self.file.write_all_at(text.as_bytes(), 0));
        if let Err(error) = written {
            tracing::debug!(%error, "other processes cannot be told who has the data folder");
        }
    }
}

/// Opens the file to lock. A disk that is read-only, full or failing still serves stored content, so the lock must
/// not need to write: an existing file is locked through a read-only handle, and without one the data folder itself
/// is locked. The folder is also locked if `lock` is no file, because a process that moved that away could not tell
/// whether another one has locked it.
fn open(folder: &Path, path: &PathBuf) -> io::Result<File> {
    if is_something_else(path) {
        tracing::warn!(path = %path.display(), "no file, as it should be: the data folder itself is locked. Remove it while berth is stopped");
        return File::open(folder);
    }
    match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path) {
        Err(error) if cannot_write(&error) => File::open(path).or_else(|_| File::open(folder)),
        other => other,
    }
}

/// Whether there is something at `path` that is no file, or a link to none.
fn is_something_else(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(metadata) => !metadata.is_file(),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

fn cannot_write(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

fn read_holder(file: File) -> (Option<u32>, Option<SocketAddr>) {
    // Of a folder that is locked there is nothing to read.
    let mut text = String::new();
    if file.take(TEXT_BYTES_MAX).read_to_string(&mut text).is_err() {
        return (None, None);
    }
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok());
    (pid, lines.next().and_then(|line| line.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_process_is_told_who_was_first_and_where_to_ask_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let check = |expected: Option<&str>| {
            let Err(error) = Lock::take(folder.path()) else { panic!("locked twice") };
            assert!(error.to_string().ends_with(&format!("process {}", std::process::id())), "{error}");
            let Error::Locked { pid, admin, .. } = error else { panic!("{error}") };
            assert_eq!(pid, Some(std::process::id()));
            assert_eq!(admin, expected.map(|address| address.parse().unwrap()));
        };
        check(None);
        first.announce("[::1]:50001".parse().unwrap());
        first.announce("[::1]:5001".parse().unwrap());
        check(Some("[::1]:5001"));
        drop(first);
        assert!(Lock::take(folder.path()).is_ok());
    }

    #[test]
    fn what_is_no_file_keeps_nobody_from_locking_and_lets_only_one() {
        let make_folder = |path: &Path| std::fs::create_dir(path).unwrap();
        let make_link = |path: &Path| std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap();
        let make_pipe = |path: &Path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
        };
        let make_socket = |path: &Path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Socket, 0o644.into(), 0)
                .unwrap();
        };
        let all: [&dyn Fn(&Path); 4] = [&make_folder, &make_link, &make_pipe, &make_socket];
        for make in all {
            let folder = tempfile::tempdir().unwrap();
            make(&folder.path().join("lock"));
            let first = Lock::take(folder.path()).unwrap();
            first.announce("[::1]:5001".parse().unwrap());
            let Err(Error::Locked { pid: None, admin: None, .. }) = Lock::take(folder.path()) else {
                panic!("locked twice")
            };
            drop(first);
            assert!(Lock::take(folder.path()).is_ok());
        }
    }
}
