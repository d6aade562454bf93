//! Plain operations on files and folders, without any state.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

use crate::oci::range::Span;
use crate::store::error::Error;

/// Syncs a folder, so that the names in it survive a power loss.
pub(in crate::store) fn sync_folder(folder: &Path) -> Result<(), Error> {
    match File::open(folder).and_then(|file| file.sync_all()) {
        // Some network file systems know no such thing, and write names through.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(|source| Error::io("sync", folder, source)),
    }
}

/// Lists the names in a folder, in no order. A folder that does not exist is empty.
pub(in crate::store) fn list(folder: &Path) -> Result<Vec<OsString>, Error> {
    names(folder)?.collect()
}

/// Lists the names in a folder one by one, because there may be a million.
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

/// Reads a whole file. The result is `None` if there is no such file, if it is no regular file, or if it is larger
/// than `bytes_max`.
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

/// Opens a file for reading; `None` if there is none. Never waits, even if a pipe is in its place.
pub(in crate::store) fn open(path: &Path, flags: OFlags) -> Result<Option<File>, Error> {
    let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(Error::io("open", path, source)),
    }
}

/// Opens a regular file. Anything else counts as absent, also a symbolic link, because the file that it leads to may
/// be written by anybody.
pub(in crate::store) fn open_file(path: &Path) -> Result<Option<(File, Metadata)>, Error> {
    let Some(file) = open(path, OFlags::NOFOLLOW)? else { return Ok(None) };
    let metadata = file.metadata().map_err(|source| Error::io("open", path, source))?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Whether an error says that there is no such file: nothing of that name, something that is no file (a folder, a
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

/// Returns reserved room to the file system. If that fails, the next start counts the room.
pub(in crate::store) fn give_back(file: &File, span: Span) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _ = fallocate(file, flags, span.start, span.len());
}

/// Reserves room for `span` of a file, without changing the length of the file.
pub(in crate::store) fn allocate(file: &File, span: Span) -> io::Result<()> {
    let allocate = || fallocate(file, FallocateFlags::KEEP_SIZE, span.start, span.len());
    match if span.start >= span.end { Ok(()) } else { retry_on_intr(allocate) } {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        // Other failures mean that this file system cannot reserve: then only writing can tell.
        Ok(()) | Err(_) => Ok(()),
    }
}
