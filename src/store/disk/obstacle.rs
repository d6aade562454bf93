//! What stands where berth's own files belong: a folder, a pipe or a link in the place of a file, a file in the place
//! of a folder.
//!
//! Only berth has names like these under its data folder, so what somebody else has put there is in the way. It says
//! nothing about the disk, and must not cost more requests to upstream than it has to: when berth needs the place, an
//! empty folder is removed, and anything else is moved to `quarantine/`, which is bounded. A file that is renamed
//! onto a pipe, a socket, a device or a link simply replaces it.
//!
//! What is in the place of `quarantine` itself becomes `quarantine.rejected`. What cannot be moved, such as a folder
//! that another disk is mounted on, stays, and is logged each time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::clock::{believed, unix_seconds};
use crate::store::disk::files::{list, parent};
use crate::store::error::Error;

/// Number of files kept in the quarantine. The oldest go first.
const FILES_MAX: usize = 16;
/// Bytes kept in the quarantine; on a small disk one part in [`DISK_PART`] of it, because content that is fetched
/// again needs room.
const BYTES_MAX: u64 = 1 << 30;
const DISK_PART: u64 = 64;
/// Number of names that are tried for something that is put aside. The quarantine keeps fewer files.
const NAMES_MAX: u32 = 64;

/// Whether an operation failed because something else is in the place of a file or of a folder above it.
pub(in crate::store) fn is_obstacle(error: &Error) -> bool {
    let kinds = [
        io::ErrorKind::AlreadyExists,
        io::ErrorKind::DirectoryNotEmpty,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::NotADirectory,
    ];
    let is_loop = |source: &io::Error| source.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    matches!(error, Error::Io { source, .. } if kinds.contains(&source.kind()) || is_loop(source))
}

/// The folder `quarantine/`, which holds damaged files and what was in the way of a file. It is bounded.
pub(in crate::store) struct QuarantineFolder {
    path: PathBuf,
}

impl QuarantineFolder {
    /// Returns the quarantine of a data folder.
    pub(in crate::store) fn of(root: &Path) -> Self {
        Self { path: root.join("quarantine") }
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    /// Lists what exceeds the limits, the newest first. A folder counts as one file, without its content.
    pub(in crate::store) fn excess(&self) -> Result<Vec<PathBuf>, Error> {
        let (mut files, now) = (Vec::new(), unix_seconds());
        for name in list(&self.path)? {
            let path = self.path.join(name);
            // A file's name changes its times of change, not of modification: it tells when it came here.
            if let Ok(metadata) = fs::symlink_metadata(&path) {
                let came_at = believed(u64::try_from(metadata.ctime()).unwrap_or(0), now);
                files.push((came_at, metadata.ctime_nsec(), metadata.len(), path));
            }
        }
        files.sort();
        let disk_bytes = rustix::fs::statvfs(parent(&self.path)).map_or(0, |it| it.f_blocks * it.f_frsize);
        let bytes_max = BYTES_MAX.min(disk_bytes / DISK_PART);
        let (mut bytes, mut excess) = (0, Vec::new());
        for (number, (_, _, len, path)) in files.into_iter().rev().enumerate() {
            bytes += len;
            if number >= FILES_MAX || bytes > bytes_max {
                excess.push(path);
            }
        }
        Ok(excess)
    }

    /// Moves what is at `path` into the quarantine, under a free name. Returns its new path.
    pub(in crate::store) fn put_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = &self.path;
        if path == folder {
            return reject(folder);
        }
        if fs::symlink_metadata(folder).is_ok() && !folder.is_dir() {
            reject(folder)?;
        }
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let name = path.file_name().unwrap_or_default();
        for number in 0..NAMES_MAX {
            let mut free = name.to_owned();
            if number > 0 {
                free.push(format!(".{number}"));
            }
            let aside = folder.join(free);
            // Never onto something: a folder replaces an empty one in silence.
            if fs::symlink_metadata(&aside).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                fs::rename(path, &aside)?;
                return Ok(aside);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Renames what is in the place of the quarantine folder. Returns its new path.
fn reject(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("rejected");
    fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::*;

    use crate::store::disk::files::read;
    use crate::store::disk::{Disk, FileMode};

    fn write(path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut fs::File::create(path)?, content)
    }

    fn disk() -> (tempfile::TempDir, Arc<Disk>) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::open(folder.path(), Arc::default()).unwrap());
        (folder, disk)
    }

    /// The names in the quarantine, sorted.
    fn aside(disk: &Disk) -> Vec<String> {
        let names = list(disk.quarantine()).unwrap();
        let mut names: Vec<_> = names.into_iter().map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_gives_way_to_a_file_and_is_kept_unless_it_is_empty() {
        let (_folder, disk) = disk();
        let target = disk.root().join("x/file");
        for expected in [&[][..], &["file"], &["file", "file.1"]] {
            fs::create_dir_all(&target).unwrap();
            if !expected.is_empty() {
                write(target.join("below"), b"mine").unwrap();
            }
            disk.replace(&target, b"one", FileMode::PLAIN).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"one");
            assert_eq!(aside(&disk), expected);
            fs::remove_file(&target).unwrap();
        }
        assert_eq!(fs::read(disk.quarantine().join("file/below")).unwrap(), b"mine");
        fs::create_dir_all(target.join("below")).unwrap();
        disk.remove(&target).unwrap();
        assert!(!target.exists(), "to remove a file frees its place, whatever is there");
    }

    #[test]
    fn a_file_gives_way_to_a_folder_also_to_one_that_was_known() {
        let (_folder, disk) = disk();
        let target = disk.root().join("x/y/file");
        disk.replace(&target, b"one", FileMode::PLAIN).unwrap();
        fs::remove_dir_all(disk.root().join("x")).unwrap();
        write(disk.root().join("x"), b"mine").unwrap();
        disk.replace(&target, b"two", FileMode::PLAIN).unwrap();
        assert_eq!((fs::read(&target).unwrap(), aside(&disk)), (b"two".to_vec(), vec!["x".to_owned()]));
        fs::remove_dir_all(disk.partials()).unwrap();
        symlink("/nowhere/at/all", disk.partials()).unwrap();
        fs::remove_dir_all(disk.root().join("x/y")).unwrap();
        symlink("y", disk.root().join("x/y")).unwrap();
        disk.replace(&target, b"three", FileMode::PLAIN).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"three");
        assert_eq!(aside(&disk), ["partial", "x", "y"]);
    }

    #[test]
    fn what_is_in_the_place_of_the_quarantine_gives_way_too() {
        let (_folder, disk) = disk();
        write(disk.quarantine(), b"mine").unwrap();
        let target = disk.root().join("file");
        fs::create_dir_all(target.join("below")).unwrap();
        disk.replace(&target, b"one", FileMode::PLAIN).unwrap();
        assert_eq!(aside(&disk), ["file"]);
        assert_eq!(fs::read(disk.root().join("quarantine.rejected")).unwrap(), b"mine");
    }

    #[test]
    fn pipes_sockets_and_links_are_no_files_and_are_replaced() {
        let (folder, disk) = disk();
        let target = disk.root().join("file");
        let elsewhere = folder.path().join("elsewhere");
        write(&elsewhere, b"mine").unwrap();
        let pipe = || {
            rustix::fs::mknodat(rustix::fs::CWD, &target, rustix::fs::FileType::Fifo, 0o644.into(), 0)
                .unwrap();
        };
        let socket = || {
            rustix::fs::mknodat(rustix::fs::CWD, &target, rustix::fs::FileType::Socket, 0o644.into(), 0)
                .unwrap();
        };
        let link = || symlink(&elsewhere, &target).unwrap();
        let broken_link = || symlink("/nowhere", &target).unwrap();
        for (make, is_read) in
            [(&pipe as &dyn Fn(), false), (&socket, false), (&broken_link, false), (&link, true)]
        {
            make();
            assert_eq!(read(&target, 99).unwrap().is_some(), is_read);
            disk.replace(&target, b"one", FileMode::PLAIN).unwrap();
            assert_eq!(read(&target, 99).unwrap().as_deref(), Some(&b"one"[..]));
            fs::remove_file(&target).unwrap();
        }
        assert_eq!(fs::read(&elsewhere).unwrap(), b"mine");
        assert!(!disk.quarantine().exists());
    }

    #[test]
    fn what_is_in_the_way_is_no_failure_of_the_disk() {
        let (_folder, disk) = disk();
        let target = disk.root().join("file");
        // Neither can be moved: the place to put it is taken twice.
        write(disk.quarantine(), b"").unwrap();
        fs::create_dir_all(disk.root().join("quarantine.rejected/below")).unwrap();
        fs::create_dir_all(target.join("below")).unwrap();
        let error = disk.replace(&target, b"one", FileMode::PLAIN).unwrap_err();
        assert!(is_obstacle(&error), "{error}");
        assert_eq!(disk.condition().health(), crate::store::Health::Healthy);
        assert!(list(&disk.partials()).unwrap().is_empty());
    }
}
