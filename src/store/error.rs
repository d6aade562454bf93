//! What can go wrong in the store, named for what the caller may still do about it.
//!
//! Absence is never an error: a blob, tag or grant that is not there is `None` or `false`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::oci::Digest;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No space, no quota, too large a file, or a read-only file system: serve without storing.
    #[error("no room, or read-only: cannot {action} {}", path.display())]
    Full {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Upstream says that the content is larger than the whole budget: serve without storing.
    #[error("{bytes} bytes are more than the {max_bytes} of max_bytes")]
    TooLarge {
        /// Size of the content, or of its image.
        bytes: u64,
        /// The budget in bytes.
        max_bytes: u64,
    },
    /// Nothing more may be evicted to make room within the budget: serve without storing.
    #[error(
        "{least} bytes are missing within max_bytes and min_free, and nothing more may be evicted for it"
    )]
    NoRoom {
        /// Number of bytes that are missing.
        least: u64,
    },
    /// Another process holds the data folder: do not start.
    #[error("{} is in use by another berth{}", path.display(), describe(*pid))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process whose id is in the lock file.
        pid: Option<u32>,
        /// The address of the admin plane of that process, if it is in the lock file.
        admin: Option<SocketAddr>,
    },
    /// The content is not what its digest says: nothing was stored.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The digest that was asked for.
        expected: Box<Digest>,
        /// The digest of the content.
        actual: Box<Digest>,
    },
    /// Another download of this digest still holds its partial file.
    #[error("{digest} is already being filled")]
    InUse {
        /// The digest of the partial file.
        digest: Box<Digest>,
    },
    /// Any other failure of the disk.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl Error {
    /// Makes an error of a failed operation: `Full` if the disk is merely full or read-only, else `Io`.
    pub(in crate::store) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::ReadOnlyFilesystem => Self::Full { path, action, source },
            _ => Self::Io { path, action, source },
        }
    }

    /// Makes the error of a disk that has no room for `path`.
    pub(in crate::store) fn disk_full(path: &Path) -> Self {
        let source = io::Error::new(io::ErrorKind::StorageFull, "nothing more may be evicted for it");
        Self::Full { path: path.to_owned(), action: "make room for", source }
    }

    /// Whether berth's own limits are the reason that something is not kept, and the disk is sound.
    pub fn is_by_limits(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::NoRoom { .. })
    }

    /// Whether more room would help.
    pub(in crate::store) fn is_for_want_of_room(&self) -> bool {
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Full { source, .. } if kinds.contains(&source.kind()))
    }

    pub(in crate::store) fn mismatch(expected: &Digest, actual: Digest) -> Self {
        Self::DigestMismatch { expected: Box::new(*expected), actual: Box::new(actual) }
    }
}

fn describe(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_full_or_read_only_disk_is_told_from_a_failing_one() {
        let check = |code: i32, full: bool| {
            let error = Error::io("write", Path::new("x"), io::Error::from_raw_os_error(code));
            assert_eq!(matches!(error, Error::Full { .. }), full, "{code}: {error}");
        };
        check(rustix::io::Errno::NOSPC.raw_os_error(), true);
        check(rustix::io::Errno::DQUOT.raw_os_error(), true);
        check(rustix::io::Errno::ROFS.raw_os_error(), true);
        check(rustix::io::Errno::FBIG.raw_os_error(), true);
        check(rustix::io::Errno::IO.raw_os_error(), false);
        check(rustix::io::Errno::ACCESS.raw_os_error(), false);

        let mut device = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = device.write_all(b"x").unwrap_err();
        assert!(matches!(Error::io("write", Path::new("/dev/full"), error), Error::Full { .. }));
    }
}
