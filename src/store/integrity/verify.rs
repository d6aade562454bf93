//! Verification of stored files: do they still have the content that their digests say?
//!
//! Berth never changes a file in `blobs/`, but disks, other tools and people do. Damaged files go to the
//! [quarantine](crate::store::integrity). Content that is in memory is hashed from there, so a sector that has gone
//! bad under a page that is still cached is found later; pages that are read from the disk for this alone are dropped
//! again, because a verification of everything must not push out what is served.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, Verifier};
use crate::store::blobs::{Blobs, is_writable};
use crate::store::disk::files::open_file;
use crate::store::error::Error;
use crate::store::integrity::Integrity;
use crate::store::integrity::damaged::Damage;
use crate::sync::lock;

/// Bytes hashed in one step: enough that the cost of system calls does not matter, and few enough to stop at once.
const STEP_BYTES: usize = 256 * 1024;
/// Number of damaged blobs that are listed; all are counted.
const NAMED_MAX: usize = 1000;

/// How far a verification of all stored files is, and what it has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether it is running.
    pub running: bool,
    /// Whether it came to its end, rather than being stopped.
    pub complete: bool,
    /// Number of files that were there when it began.
    pub blobs_total: u64,
    /// Number of files that it has verified.
    pub blobs: u64,
    /// Number of bytes that it has hashed.
    pub bytes: u64,
    /// Number of damaged files.
    pub damaged: u64,
    /// The first damaged files.
    pub findings: Vec<Finding>,
    /// Number of files that another tool is still writing, or that are no blobs. Berth serves none of them.
    pub foreign: u64,
    /// Number of files that could not be read for want of permission or memory.
    pub skipped: u64,
}

/// A damaged blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its digest.
    pub digest: Digest,
    /// What is wrong with it.
    pub damage: Damage,
}

/// The result of verifying one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum FileVerdict {
    Sound,
    Damaged(Damage),
    /// The file is not berth's, or not yet.
    Foreign,
    /// The file is gone.
    Gone,
}

/// A stored file that is being hashed.
pub(in crate::store) struct Hashing {
    digest: Digest,
    file: File,
    verifier: Verifier,
    at: u64,
    chunk: Vec<u8>,
}

impl Hashing {
    /// Begins to hash a file; returns the verdict instead if that is known without hashing.
    pub(in crate::store) fn begin(
        blobs: &Blobs,
        digest: &Digest,
    ) -> Result<Result<Self, FileVerdict>, Error> {
        let path = blobs.path(digest);
        let Some((file, metadata)) = open_file(&path)? else {
            let is_there = path.symlink_metadata().is_ok();
            return Ok(Err(if is_there { FileVerdict::Foreign } else { FileVerdict::Gone }));
        };
        if is_writable(&metadata) {
            // It is hashed there, and is berth's from then on.
            let is_proven = blobs.open(digest)?.is_some();
            return Ok(Err(if is_proven { FileVerdict::Sound } else { FileVerdict::Foreign }));
        }
        // Read-ahead would bring pages that cannot be told from those that others have read.
        let _ = fadvise(&file, 0, None, Advice::Random);
        let verifier = Verifier::new(digest.algorithm());
        Ok(Ok(Self { digest: *digest, file, verifier, at: 0, chunk: vec![0; STEP_BYTES] }))
    }

    /// Hashes the next bytes. Returns how many; zero at the end.
    pub(in crate::store) fn step(&mut self) -> io::Result<usize> {
        let count = read_gently(&self.file, &mut self.chunk, self.at)?;
        self.verifier.update(&self.chunk[..count]);
        self.at += count as u64;
        Ok(count)
    }

    /// Returns the verdict after all bytes are hashed.
    pub(in crate::store) fn end(self) -> FileVerdict {
        if self.verifier.finish() == self.digest {
            FileVerdict::Sound
        } else {
            FileVerdict::Damaged(Damage::Changed)
        }
    }
}

/// Reads bytes without leaving more of the file in memory than before.
pub(in crate::store) fn read_gently(file: &File, chunk: &mut [u8], at: u64) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(chunk)];
    let in_memory = preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT);
    if let Ok(count @ 1..) = in_memory {
        return Ok(count);
    }
    let count = loop {
        match file.read_at(chunk, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if in_memory == Err(Errno::AGAIN) {
        let len = std::num::NonZeroU64::new(count as u64);
        let _ = len.map(|len| fadvise(file, at, Some(len), Advice::DontNeed));
    }
    Ok(count)
}

/// Verifies one blob, and takes it out of service if it is damaged. `step` is called with the size of every piece; if
/// it returns false, there is no verdict.
pub(in crate::store) fn look(
    integrity: &Integrity,
    digest: &Digest,
    mut step: impl FnMut(usize) -> bool,
) -> Result<Option<FileVerdict>, Error> {
    let verdict = match Hashing::begin(integrity.blobs(), digest) {
        Ok(Ok(mut hashing)) => loop {
            match hashing.step() {
                Ok(0) => break Ok(hashing.end()),
                Ok(count) if step(count) => {}
                Ok(_) => return Ok(None),
                Err(error) => break Err(Error::io("verify", &integrity.blobs().path(digest), error)),
            }
        },
        Ok(Err(verdict)) => Ok(verdict),
        Err(error) => Err(error),
    };
    conclude(integrity, digest, verdict).map(Some)
}

/// Takes a blob out of service if it was found damaged, or if the disk cannot read it. Any other failure says nothing
/// about the content.
pub(in crate::store) fn conclude(
    integrity: &Integrity,
    digest: &Digest,
    looked: Result<FileVerdict, Error>,
) -> Result<FileVerdict, Error> {
    let verdict = match looked {
        Err(error) => match integrity.is_lost(digest, &error) {
            true => FileVerdict::Damaged(Damage::Unreadable),
            false => return Err(error),
        },
        Ok(FileVerdict::Damaged(damage)) => {
            integrity.quarantine(digest, damage);
            FileVerdict::Damaged(damage)
        }
        Ok(verdict) => verdict,
    };
    Ok(verdict)
}

/// Verifies stored files on request: all of them, or one that a reader could not read.
pub(in crate::store) struct Verify {
    integrity: Arc<Integrity>,
    /// The verification of all files that is running, or the last one.
    state: Mutex<Verification>,
    /// Held while a blob is verified that a reader could not read.
    suspect: Arc<tokio::sync::Mutex<()>>,
    stop: Arc<AtomicBool>,
}

impl Verify {
    /// `stop` ends a verification early.
    pub(in crate::store) fn new(integrity: Arc<Integrity>, stop: Arc<AtomicBool>) -> Self {
        Self { integrity, state: Mutex::default(), suspect: Arc::default(), stop }
    }

    /// Verifies, in the background, a blob that a reader could not read.
    pub(in crate::store) fn suspect(self: &Arc<Self>, digest: &Digest) {
        self.integrity.open_files().forget(digest);
        // One at a time: where it is the disk that fails, every blob is suspect, and readers come again.
        let Ok(turn) = Arc::clone(&self.suspect).try_lock_owned() else { return };
        let (verify, digest) = (Arc::clone(self), *digest);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let looked = look(&verify.integrity, &digest, |_| !verify.stop.load(Ordering::Relaxed));
            if let Err(error) = looked {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored file cannot be looked at");
            }
        });
    }

    /// Begins to verify all stored files, unless that is running.
    pub(in crate::store) fn begin(self: &Arc<Self>) {
        {
            let mut state = lock(&self.state);
            if state.running {
                return;
            }
            *state = Verification { running: true, ..Verification::default() };
        }
        let verify = Arc::clone(self);
        tokio::task::spawn_blocking(move || run(&verify.integrity, &verify.state, &verify.stop));
    }

    /// Returns how far the verification of all stored files is, or the result of the last one.
    pub(in crate::store) fn state(&self) -> Verification {
        lock(&self.state).clone()
    }
}

/// Verifies every stored file, in no order. `stop` ends it early.
fn run(integrity: &Integrity, state: &Mutex<Verification>, stop: &AtomicBool) {
    let _ended = Ended(state);
    let counted = for_each(integrity, stop, |_| lock(state).blobs_total += 1);
    let looked = for_each(integrity, stop, |digest| look_and_note(integrity, &digest, state, stop));
    match counted.and(looked) {
        Ok(()) => lock(state).complete = !stop.load(Ordering::Relaxed),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at every stored file");
        }
    }
}

fn look_and_note(integrity: &Integrity, digest: &Digest, state: &Mutex<Verification>, stop: &AtomicBool) {
    let looked = look(integrity, digest, |count| {
        lock(state).bytes += count as u64;
        !stop.load(Ordering::Relaxed)
    });
    let mut state = lock(state);
    match looked {
        Ok(None) => return,
        Ok(Some(FileVerdict::Sound | FileVerdict::Gone)) => {}
        Ok(Some(FileVerdict::Foreign)) => state.foreign += 1,
        Ok(Some(FileVerdict::Damaged(damage))) => {
            state.damaged += 1;
            if state.findings.len() < NAMED_MAX {
                state.findings.push(Finding { digest: *digest, damage });
            }
        }
        Err(error) => {
            state.skipped += 1;
            tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored file cannot be looked at");
        }
    }
    state.blobs += 1;
}

/// Visits the digests of stored files while they are read from the folders: there may be millions.
fn for_each(integrity: &Integrity, stop: &AtomicBool, mut each: impl FnMut(Digest)) -> Result<(), Error> {
    for algorithm in Algorithm::ALL {
        let folder = integrity.blobs().folder(algorithm);
        let failed = |source| Error::io("list", &folder, source);
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        for entry in entries {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let name = entry.map_err(failed)?.file_name();
            name.to_str().and_then(|hex| Digest::from_hex(algorithm, hex)).into_iter().for_each(&mut each);
        }
    }
    Ok(())
}

/// Marks a verification as not running when it is dropped.
struct Ended<'a>(&'a Mutex<Verification>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(self.0).running = false;
    }
}
