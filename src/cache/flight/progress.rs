//! How far a flight is, and what a reader may see of that.

use crate::cache::error::Error;
use crate::store::{BlobFile, Pieces};

/// Bytes at the end of a body that wait for the proof of the whole.
pub(in crate::cache) const HOLD_BACK: u64 = 64 * 1024;

/// How far a flight is.
#[derive(Clone, Default)]
pub(in crate::cache) struct Progress {
    /// The growing file, once upstream has answered.
    pub(in crate::cache) file: Option<BlobFile>,
    /// How large it will be, once that is known.
    pub(in crate::cache) total: Option<u64>,
    /// What comes calls itself a page: none of it may be read before it is proven.
    pub(in crate::cache) is_page: bool,
    /// Bytes of the file that may be read.
    pub(in crate::cache) have: Pieces,
    /// Bytes from the start that are hashed, for who waits for the proof.
    pub(in crate::cache) hashed: u64,
    /// How it ended, if it has.
    pub(in crate::cache) end: Option<End>,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(in crate::cache) enum End {
    /// Every byte is there and the digest is right.
    Proven,
    /// The content had been stored before this flight began: look again.
    Landed,
    /// What was asked is there, and the rest is not worth fetching.
    Left,
    /// There is no more to come; readers that lack bytes are cut.
    Failed(Error),
}

/// How far a reader at `position` may see.
pub(super) fn visible(progress: &Progress, position: u64, held: bool) -> u64 {
    let is_proven = matches!(progress.end, Some(End::Proven));
    if progress.file.is_none() || (progress.is_page && !is_proven) {
        return 0;
    }
    let there = progress.have.run_end(position);
    if held && !is_proven { there.min(held_from(progress)) } else { there }
}

/// Where the end begins that waits for the proof. As long as nobody knows where the end is, it may be anywhere in what
/// has come.
fn held_from(progress: &Progress) -> u64 {
    progress.total.unwrap_or_else(|| progress.have.run_end(0)).saturating_sub(HOLD_BACK)
}

/// How near the bytes at `position` are; or the proof, if those are held back.
pub(super) fn toward(progress: &Progress, position: u64, held: bool) -> (u64, u64) {
    if progress.is_page || (held && position >= held_from(progress)) {
        (progress.have.bytes(), progress.hashed)
    } else {
        (progress.have.end_before(position), 0)
    }
}
