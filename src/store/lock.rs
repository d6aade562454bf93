//! One process per data folder.
//!
//! An advisory lock on `<data_dir>/lock`, which the kernel drops with the process, however that ends. The file
//! holds the process id only for the message that the second process prints.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::Error;

/// Longest process id that is believed, in digits.
const PID_CHARACTERS_MAX: u64 = 20;

/// Holds the data folder for as long as it lives.
pub(super) struct Lock {
    /// Closing the file drops the lock.
    _file: File,
}

impl Lock {
    pub(super) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("lock");
        let mut file = open(folder, &path).map_err(|source| Error::io("open", &path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { pid: read_pid(&mut file), path }),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
        }
        // Without room for it the lock holds all the same; only the other process's message is the poorer.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

/// A disk that is read-only or full still serves what it has, so the lock must not need to write: an existing
/// file is locked through a read-only handle, and where there is none, the folder itself is locked.
fn open(folder: &Path, path: &PathBuf) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull) =>
        {
            File::open(path).or_else(|_| File::open(folder))
        }
        other => other,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_CHARACTERS_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_process_is_told_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let Err(Error::Locked { pid, path }) = Lock::take(folder.path()) else { panic!("locked twice") };
        assert_eq!(pid, Some(std::process::id()));
        assert!(
            Error::Locked { pid, path }.to_string().ends_with(&format!("process {}", std::process::id()))
        );
        drop(first);
        assert!(Lock::take(folder.path()).is_ok());
    }
}
