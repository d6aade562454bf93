//! The one way in which anything under the data folder changes.
//!
//! A file is staged in `partial/` under a name that no reader knows, synced, renamed to where it belongs, and
//! then the folder that got it is synced: after a power loss there is the old file or the new one, whole.
//! A folder that berth creates is synced into its parent before anything in it may be called durable.
//!
//! Why stage in one folder, and not beside the target: what a killed process leaves is swept with one small
//! listing at the next start, and other tools never see half a file in a layout. The price is that `blobs/`,
//! `repos/` and `partial/` must be on one file system.

pub(in crate::store) mod health;
pub(in crate::store) mod lock;
pub(in crate::store) mod obstacle;
pub(in crate::store) mod privacy;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::oci::Digest;
use crate::store::Error;
use crate::store::disk::health::Condition;
use crate::store::disk::privacy::open_to_group;
use crate::sync::lock;
use crate::telemetry::Metrics;

/// Files that are not yet anything begin so.
const STAGED_PREFIX: &str = ".tmp-";
/// Folders remembered as synced: some 20 MiB at worst. Beyond it all are forgotten, and synced once more.
const FOLDERS_MAX: usize = 100_000;

/// Written at a time.
const WRITE_BYTES: usize = 64 * 1024;

/// The data folder, and which of its folders are known to outlive a power loss.
pub(in crate::store) struct Disk {
    root: PathBuf,
    durable: Mutex<HashSet<PathBuf>>,
    staged: AtomicU64,
    /// Whether changes succeed.
    pub(in crate::store) condition: Condition,
}

/// How a file is to look besides its content.
#[derive(Clone, Copy)]
pub(in crate::store) struct Look {
    pub(in crate::store) mode: u32,
    /// Its time of modification, if that must not be the time of writing.
    pub(in crate::store) modified: Option<SystemTime>,
}

impl Look {
    /// Content under its digest: nobody has a reason to write to it ever again. The group is one that the data folder lets
    /// in, if it lets in any.
    pub(in crate::store) const IMMUTABLE: Self = Self { mode: 0o440, modified: None };
    /// A ref, which is replaced and never edited, but may be by hand.
    pub(in crate::store) const PLAIN: Self = Self { mode: 0o640, modified: None };
}

impl Disk {
    /// Makes the data folder if it is not there.
    pub(in crate::store) fn open(root: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        // Absolute, so that parents can be named, and so that nothing depends on the working folder.
        let root = std::path::absolute(root).map_err(|source| Error::io("find", root, source))?;
        let condition = Condition::new(metrics);
        let disk = Self { root, durable: Mutex::default(), staged: AtomicU64::new(0), condition };
        let missing: Vec<&Path> = disk.root.ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            make_folder(folder)?;
        }
        // A folder made by a process that was killed right then. Nothing can be done if it may not be read.
        let _ = sync_folder(parent(&disk.root));
        Ok(disk)
    }

    pub(in crate::store) fn root(&self) -> &Path {
        &self.root
    }

    pub(in crate::store) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// The files of the folders of partial files, one for each registry. What stands beside these folders is staged, or of
    /// a berth before this one.
    pub(in crate::store) fn partial_files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut files = Vec::new();
        for name in list(&self.partials())? {
            let folder = self.partials().join(name);
            if fs::symlink_metadata(&folder).is_ok_and(|folder| folder.is_dir()) {
                files.extend(list(&folder)?.into_iter().map(|name| folder.join(name)));
            }
        }
        Ok(files)
    }

    /// Removes what a killed process had staged, and the partial files of a berth that kept them for all registries.
    pub(in crate::store) fn sweep(&self) -> Result<usize, Error> {
        let is_left = |name: &OsStr| {
            name.to_str().is_some_and(|name| {
                let of_all = name.strip_suffix(".map").unwrap_or(name);
                name.starts_with(STAGED_PREFIX) || Digest::from_file_name(of_all).is_some()
            })
        };
        let mut count = 0;
        for name in list(&self.partials())?.into_iter().filter(|name| is_left(name)) {
            count += usize::from(self.remove_leftover(&self.partials().join(name))?);
        }
        Ok(count)
    }

    /// Removes a file that nobody needs. Returns whether it did: what somebody else has put there, and cannot be moved,
    /// is no reason not to start.
    pub(in crate::store) fn remove_leftover(&self, path: &Path) -> Result<bool, Error> {
        match self.remove(path) {
            Err(error @ Error::Full { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "left alone");
                Ok(false)
            }
            Ok(()) => Ok(true),
        }
    }

    /// Puts `content` at `target`, at once and for good.
    pub(in crate::store) fn replace(&self, target: &Path, content: &[u8], look: Look) -> Result<(), Error> {
        self.replace_with(target, look, content.len() as u64, &|file| file.write_all(content))
    }

    /// The same with what `write` writes, some `bytes`, which may be more than should be in memory at once.
    pub(in crate::store) fn replace_with(
        &self,
        target: &Path,
        look: Look,
        bytes: u64,
        write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let write = |staged: &Path| {
            write_synced(staged, write, look).map_err(|source| Error::io("write", staged, source))
        };
        self.condition.note(bytes, self.stage_and_move(target, write))
    }

    /// Makes `target` a symbolic link, whatever file or link it was.
    pub(in crate::store) fn link(&self, target: &Path, points_to: &Path) -> Result<(), Error> {
        let link =
            |staged: &Path| symlink(points_to, staged).map_err(|source| Error::io("link", target, source));
        self.condition.note(0, self.stage_and_move(target, link))
    }

    /// Moves a file that is already synced to where it belongs.
    pub(in crate::store) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.condition.note(0, self.move_file(from, to))
    }

    /// Removes a file for good. One that is already gone is no error; a folder in its place is put aside.
    pub(in crate::store) fn remove(&self, path: &Path) -> Result<(), Error> {
        let removed = match fs::remove_file(path) {
            Ok(()) => sync_folder(parent(path)),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => self.clear_way(path),
            // Says nothing about the disk.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => Err(Error::io("remove", path, source)),
        };
        self.condition.note(0, removed)
    }

    /// Makes `folder` and its parents down from the root, each synced into its parent.
    pub(in crate::store) fn ensure(&self, folder: &Path) -> Result<(), Error> {
        self.make_folders(folder).inspect_err(|error| self.condition.failed(0, error))
    }

    /// A fresh name for a file to be staged, in a folder that is there.
    pub(in crate::store) fn stage(&self) -> Result<PathBuf, Error> {
        let staged = self.stage_name();
        self.make_folders(&self.partials())?;
        Ok(staged)
    }

    /// Tries once more if what was staged is gone: its folder may be tidied up at any moment, too.
    fn stage_and_move(&self, target: &Path, write: impl Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
        match self.stage_and_move_once(target, &write) {
            Err(Error::Io { source, .. }) if is_without_folder(&source) => {
                self.stage_and_move_once(target, &write)
            }
            other => other,
        }
    }

    fn stage_and_move_once(
        &self,
        target: &Path,
        write: impl Fn(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let staged = self.stage()?;
        let result = self.retry_without_folder(|| write(&staged));
        let result = result.and_then(|()| self.move_file(&staged, target));
        if result.is_err() {
            let _ = fs::remove_file(&staged);
        }
        result
    }

    fn move_file(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let folder = parent(to);
        let rename = || {
            self.retry_without_folder(|| {
                self.make_folders(folder)?;
                fs::rename(from, to).map_err(|source| Error::io("rename into place", to, source))
            })
        };
        match rename() {
            // The place of a file is taken by a folder.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::IsADirectory => {
                self.clear_way(to)?;
                rename()?;
            }
            other => other?,
        }
        sync_folder(folder)
    }

    /// The lock is held meanwhile: who finds a folder that another thread has just made must not take it for
    /// durable before that thread has synced it. A folder left by an earlier process is synced once, too.
    fn make_folders(&self, folder: &Path) -> Result<(), Error> {
        let mut durable = lock(&self.durable);
        if durable.contains(folder) {
            return Ok(());
        }
        let below_root: Vec<&Path> = folder.ancestors().take_while(|path| *path != self.root).collect();
        for path in below_root.into_iter().rev() {
            if durable.contains(path) {
                continue;
            }
            if fs::symlink_metadata(path).is_ok() && !path.is_dir() {
                self.clear_way(path)?;
            }
            make_folder(path)?;
            if durable.len() >= FOLDERS_MAX {
                durable.clear();
            }
            durable.insert(path.to_owned());
        }
        Ok(())
    }

    /// Tries once more if a folder that was known is gone, or is none any more: somebody tidied up under a running
    /// berth.
    pub(in crate::store) fn retry_without_folder<T>(
        &self,
        attempt: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match attempt() {
            Err(Error::Io { source, .. }) if is_without_folder(&source) => {
                lock(&self.durable).clear();
                self.make_folders(&self.partials())?;
                attempt()
            }
            other => other,
        }
    }

    /// A fresh name: one process has the folder, and it was swept before that process began.
    fn stage_name(&self) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.partials().join(format!("{STAGED_PREFIX}{number}"))
    }
}

fn write_synced(path: &Path, write: &dyn Fn(&mut dyn Write) -> io::Result<()>, look: Look) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(look.mode).open(path)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BYTES, &file);
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    // The umask has taken bits away.
    file.set_permissions(Permissions::from_mode(look.mode))?;
    if let Some(modified) = look.modified {
        file.set_modified(modified)?;
    }
    // Not only the data: mode and times are part of what the name will stand for.
    file.sync_all()
}

fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("make folder", path, source));
        }
        // A file system that knows no modes has its own for all.
        Ok(()) => drop(open_to_group(path)),
        Err(_) => {}
    }
    sync_folder(parent(path))
}

/// Makes the names in a folder outlive a power loss.
pub(in crate::store) fn sync_folder(folder: &Path) -> Result<(), Error> {
    match File::open(folder).and_then(|file| file.sync_all()) {
        // Some network file systems know no such thing, and write names through.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(|source| Error::io("sync", folder, source)),
    }
}

/// The names in a folder, in no order; a folder that is not there is empty.
pub(in crate::store) fn list(folder: &Path) -> Result<Vec<OsString>, Error> {
    names(folder)?.collect()
}

/// The same, one by one: a folder may have a million.
pub(in crate::store) fn names(folder: &Path) -> Result<impl Iterator<Item = Result<OsString, Error>>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(error) if is_absent(&error) => None,
        Err(source) => return Err(Error::io("list", folder, source)),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name());
    let failed = |source| Error::io("list", folder, source);
    Ok(entries.into_iter().flatten().map(move |entry| name(entry).map_err(failed)))
}

/// A whole file, at most `bytes_max` of it; one that is not there, or larger, or something else is `None`.
pub(in crate::store) fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let Some(file) = open(path, OFlags::empty())? else { return Ok(None) };
    let is_file = file.metadata().map_err(|source| Error::io("open", path, source))?.is_file();
    if !is_file {
        return Ok(None);
    }
    let mut content = Vec::new();
    match file.take(bytes_max + 1).read_to_end(&mut content) {
        Ok(_) => Ok((content.len() as u64 <= bytes_max).then_some(content)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(Error::io("read", path, source)),
    }
}

/// Opens a file for reading; one that is not there is `None`. Never waits, as a pipe in its place would have it.
pub(in crate::store) fn open(path: &Path, flags: OFlags) -> Result<Option<File>, Error> {
    let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(Error::io("open", path, source)),
    }
}

/// Whether a file cannot be made or renamed for want of its folder: there is none, or something else instead.
fn is_without_folder(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Whether the error says that there is no such file: nothing of that name, something that is no file (a folder, a
/// socket, a device without a driver), or a link that leads nowhere.
pub(in crate::store) fn is_absent(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory, io::ErrorKind::IsADirectory];
    let codes = [Errno::LOOP, Errno::NXIO, Errno::NODEV].map(Errno::raw_os_error);
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

pub(in crate::store) fn parent(path: &Path) -> &Path {
    // Only a root has no parent, and nothing is ever written at one.
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("a/b"), Arc::default()).unwrap();
        let target = disk.root().join("x/y/file");
        disk.replace(&target, b"one", Look::IMMUTABLE).unwrap();
        disk.replace(&target, b"two", Look::IMMUTABLE).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"two");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o440);
        assert!(list(&disk.partials()).unwrap().is_empty());
        assert_eq!(read(&target, 3).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(read(&target, 2).unwrap(), None);
        assert_eq!(read(&target.join("below a file"), 2).unwrap(), None);
    }

    #[test]
    fn folders_removed_under_it_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), Arc::default()).unwrap();
        let target = disk.root().join("x/y/file");
        disk.replace(&target, b"one", Look::PLAIN).unwrap();
        fs::remove_dir_all(disk.root().join("x")).unwrap();
        disk.replace(&target, b"two", Look::PLAIN).unwrap();
        fs::remove_dir_all(disk.partials()).unwrap();
        disk.replace(&target, b"three", Look::PLAIN).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"three");
    }

    #[test]
    fn what_a_killed_process_staged_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), Arc::default()).unwrap();
        disk.ensure(&disk.partials()).unwrap();
        File::create(disk.partials().join(".tmp-0")).unwrap();
        File::create(disk.partials().join("sha256-kept")).unwrap();
        assert_eq!(disk.sweep().unwrap(), 1);
        assert_eq!(list(&disk.partials()).unwrap(), ["sha256-kept"]);
    }
}
