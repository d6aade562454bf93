//! The one way in which anything under the data folder changes.
//!
//! A file is staged in `partial/` under a name that no reader knows, synced, renamed to where it belongs, and then
//! the folder that got it is synced: after a power loss there is the old file or the new one, whole. A folder that
//! berth creates is synced into its parent before anything in it may be called durable.
//!
//! Why stage in one folder, and not beside the target: what a killed process leaves is swept with one small listing
//! at the next start, and other tools never see half a file in a layout. The price is that `blobs/`, `repos/` and
//! `partial/` must be on one file system.
//!
//! In this room are also the lock of the data folder, its permissions, the health of the disk with its probe, and
//! what happens to files that are in the way. It uses the errors only, and everything else in the store uses it.

pub(in crate::store) mod files;
pub(in crate::store) mod health;
pub(in crate::store) mod lock;
pub(in crate::store) mod obstacle;
pub(in crate::store) mod privacy;
pub(in crate::store) mod probe;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustix::io::Errno;

use crate::oci::Digest;
use crate::store::disk::files::{list, parent, sync_folder};
use crate::store::disk::health::Condition;
use crate::store::disk::obstacle::QuarantineFolder;
use crate::store::disk::privacy::open_to_group;
use crate::store::error::Error;
use crate::sync::lock;
use crate::telemetry::Metrics;

/// Prefix of the names of staged files.
const STAGED_PREFIX: &str = ".tmp-";
/// Number of folders that are remembered as synced, which take 20 MiB at worst. Beyond it all are forgotten, and are
/// synced once more.
const FOLDERS_MAX: usize = 100_000;

/// Size of the buffer that a file is written through, in bytes.
const WRITE_BYTES: usize = 64 * 1024;

/// The data folder, and which of its folders are known to outlive a power loss.
pub(in crate::store) struct Disk {
    root: PathBuf,
    durable: Mutex<HashSet<PathBuf>>,
    staged: AtomicU64,
    /// What is known of failures of the disk.
    condition: Condition,
    quarantine: QuarantineFolder,
}

/// The permissions of a file that is written, and its time of modification if that must not be the time of writing.
#[derive(Clone, Copy)]
pub(in crate::store) struct FileMode {
    mode: u32,
    modified: Option<SystemTime>,
}

impl FileMode {
    /// The mode of content under its digest, which is never written to again. The group can read it only if the data
    /// folder lets that group in.
    pub(in crate::store) const IMMUTABLE: Self = Self { mode: 0o440, modified: None };
    /// The mode of a ref. Berth replaces refs and never edits them; an administrator may edit them.
    pub(in crate::store) const PLAIN: Self = Self { mode: 0o640, modified: None };
    /// The mode of a secret: only berth's own user may read it, not the group that may read the rest.
    pub(in crate::store) const SECRET: Self = Self { mode: 0o600, modified: None };

    /// Returns the same permissions with a time of modification.
    pub(in crate::store) fn modified_at(self, modified: SystemTime) -> Self {
        Self { modified: Some(modified), ..self }
    }

    /// Returns the permissions alone.
    pub(in crate::store) fn permissions(self) -> Permissions {
        Permissions::from_mode(self.mode)
    }
}

impl Disk {
    /// Opens the data folder, and makes it if it is not there.
    pub(in crate::store) fn open(root: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        // Absolute, so that parents can be named, and so that nothing depends on the working folder.
        let root = std::path::absolute(root).map_err(|source| Error::io("find", root, source))?;
        let (condition, quarantine) = (Condition::new(metrics), QuarantineFolder::of(&root));
        let disk = Self { root, durable: Mutex::default(), staged: AtomicU64::new(0), condition, quarantine };
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

    /// What is known of failures of the disk.
    pub(in crate::store) fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Returns the metrics of the store.
    pub(in crate::store) fn metrics(&self) -> &Arc<Metrics> {
        self.condition.metrics()
    }

    /// Returns the folder of damaged files and of what stood in the way of a file.
    pub(in crate::store) fn quarantine(&self) -> &Path {
        self.quarantine.path()
    }

    pub(in crate::store) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Lists the files in the folders of partial files, of which each registry has one. Files beside these folders
    /// are staged, or left by an earlier version of berth.
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

    /// Removes files that a killed process had staged, and partial files of an earlier version that kept them for all
    /// registries together. Returns how many.
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

    /// Removes a file that nobody needs. Returns whether it was removed. Something of another user that cannot be
    /// moved is left alone, and does not prevent the start.
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

    /// Replaces `target` by a file with `content`, atomically and durably.
    pub(in crate::store) fn replace(
        &self,
        target: &Path,
        content: &[u8],
        mode: FileMode,
    ) -> Result<(), Error> {
        self.replace_with(target, mode, content.len() as u64, &|file| file.write_all(content))
    }

    /// Replaces `target` by what `write` writes, atomically and durably. `bytes` is about how much that is; it may be
    /// more than should be in memory at once.
    pub(in crate::store) fn replace_with(
        &self,
        target: &Path,
        mode: FileMode,
        bytes: u64,
        write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let write = |staged: &Path| {
            write_synced(staged, write, mode).map_err(|source| Error::io("write", staged, source))
        };
        self.condition.note(bytes, self.stage_and_move(target, write))
    }

    /// Replaces `target`, whatever file or link it is, by a symbolic link.
    pub(in crate::store) fn link(&self, target: &Path, points_to: &Path) -> Result<(), Error> {
        let link =
            |staged: &Path| symlink(points_to, staged).map_err(|source| Error::io("link", target, source));
        self.condition.note(0, self.stage_and_move(target, link))
    }

    /// Moves a file that is synced already to where it belongs.
    pub(in crate::store) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.condition.note(0, self.move_file(from, to))
    }

    /// Removes a file durably. A file that is already gone is no error; a folder in its place is put aside.
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

    /// Removes the oldest files of the quarantine until it is within its limits.
    pub(in crate::store) fn bound_quarantine(&self) -> Result<(), Error> {
        for path in self.quarantine.excess()? {
            self.remove_all(&path)?;
        }
        Ok(())
    }

    fn remove_all(&self, path: &Path) -> Result<(), Error> {
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
            return fs::remove_dir_all(path).map_err(|source| Error::io("remove", path, source));
        }
        self.remove(path)
    }

    /// Moves away what stands in the place of one of berth's own files or folders.
    fn clear_way(&self, path: &Path) -> Result<(), Error> {
        // Only an empty folder can be removed so.
        if fs::remove_dir(path).is_ok() {
            tracing::warn!(path = %path.display(), "an empty folder was in the place of a file of berth's: it is removed");
            return sync_folder(parent(path));
        }
        let aside = self.quarantine.put_aside(path).map_err(|source| Error::io("put aside", path, source))?;
        tracing::warn!(
            path = %path.display(),
            aside = %aside.display(),
            "something else was in the place of a file or folder of berth's: it is put aside"
        );
        sync_folder(parent(path))?;
        if let Err(error) = self.bound_quarantine() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the quarantine cannot be kept small");
        }
        Ok(())
    }

    /// Makes `folder` and its parents below the data folder, and syncs each into its parent.
    pub(in crate::store) fn ensure(&self, folder: &Path) -> Result<(), Error> {
        self.make_folders(folder).inspect_err(|error| self.condition.failed(0, error))
    }

    /// Returns a fresh name for a file to be staged, in a folder that exists.
    pub(in crate::store) fn stage(&self) -> Result<PathBuf, Error> {
        let staged = self.stage_name();
        self.make_folders(&self.partials())?;
        Ok(staged)
    }

    /// Stages and moves a file. Tries once more if the staged file is gone: somebody may tidy up its folder at any
    /// moment.
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

    /// Makes folders durably, with the lock held: a thread that finds a folder which another one has just made must
    /// not take it for durable before that other has synced it. A folder of an earlier process is synced once, too.
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

    /// Attempts something, and tries once more if a folder that was known is gone or is no folder any more: somebody
    /// tidied up while berth runs.
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

    /// Returns a fresh name: only this process has the folder, which was swept at the start.
    fn stage_name(&self) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.partials().join(format!("{STAGED_PREFIX}{number}"))
    }
}

fn write_synced(
    path: &Path,
    write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    mode: FileMode,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode.mode).open(path)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BYTES, &file);
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    // The umask has taken bits away.
    file.set_permissions(Permissions::from_mode(mode.mode))?;
    if let Some(modified) = mode.modified {
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

/// Whether a file cannot be made or renamed because its folder is missing, or is something else.
fn is_without_folder(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::store::disk::files::read;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("a/b"), Arc::default()).unwrap();
        let target = disk.root().join("x/y/file");
        disk.replace(&target, b"one", FileMode::IMMUTABLE).unwrap();
        disk.replace(&target, b"two", FileMode::IMMUTABLE).unwrap();
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
        disk.replace(&target, b"one", FileMode::PLAIN).unwrap();
        fs::remove_dir_all(disk.root().join("x")).unwrap();
        disk.replace(&target, b"two", FileMode::PLAIN).unwrap();
        fs::remove_dir_all(disk.partials()).unwrap();
        disk.replace(&target, b"three", FileMode::PLAIN).unwrap();
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
