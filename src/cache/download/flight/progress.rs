//! How far a flight is, and what a reader may see of that.

use crate::cache::error::Error;
use crate::oci::range::Span;
use crate::store::{BlobFile, Pieces};

/// Bytes at the end of a body that wait for the proof of the whole.
pub(in crate::cache) const HOLD_BACK: u64 = 64 * 1024;

/// How far a flight is.
#[derive(Clone, Default)]
pub(super) struct Progress {
    /// The growing file, once upstream has answered.
    file: Option<BlobFile>,
    /// How large it will be, once that is known.
    total: Option<u64>,
    /// What comes calls itself a page: none of it may be read before it is proven.
    is_page: bool,
    /// Bytes of the file that may be read.
    have: Pieces,
    /// Bytes from the start that are hashed, for who waits for the proof.
    hashed: u64,
    /// How it ended, if it has.
    end: Option<End>,
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

impl Progress {
    /// Upstream has answered; what there is can be read at once. `total`: how large it will be, if that is known.
    pub(super) fn announce(&mut self, file: BlobFile, total: Option<u64>, have: Pieces) {
        (self.file, self.total, self.have) = (Some(file), total, have);
    }

    /// What upstream sends calls itself a page.
    pub(super) fn be_page(&mut self) {
        self.is_page = true;
    }

    /// These bytes can be read, too.
    pub(super) fn advance(&mut self, span: Span) {
        self.have.insert(span);
    }

    /// Bytes from the start that are hashed by now.
    pub(super) fn set_hashed(&mut self, hashed: u64) {
        self.hashed = hashed;
    }

    /// Nothing changes any more.
    pub(super) fn set_end(&mut self, end: End) {
        self.end = Some(end);
    }

    pub(super) fn file(&self) -> Option<&BlobFile> {
        self.file.as_ref()
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    pub(super) fn is_page(&self) -> bool {
        self.is_page
    }

    pub(super) fn have(&self) -> &Pieces {
        &self.have
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// How large the content is, with the file of that size, if both are known by now.
    pub(super) fn known(&self) -> Option<(u64, BlobFile)> {
        self.total.zip(self.file.clone())
    }

    /// How far a reader at `position` may see; `held`: the end must wait for the proof.
    pub(super) fn visible(&self, position: u64, held: bool) -> u64 {
        let is_proven = matches!(self.end, Some(End::Proven));
        if self.file.is_none() || (self.is_page && !is_proven) {
            return 0;
        }
        let there = self.have.run_end(position);
        if held && !is_proven { there.min(self.held_from()) } else { there }
    }

    /// Where the end begins that waits for the proof. As long as nobody knows where the end is, it may be anywhere in what
    /// has come.
    fn held_from(&self) -> u64 {
        self.total.unwrap_or_else(|| self.have.run_end(0)).saturating_sub(HOLD_BACK)
    }

    /// How near the bytes at `position` are; or the proof, if those are held back.
    pub(super) fn toward(&self, position: u64, held: bool) -> (u64, u64) {
        if self.is_page || (held && position >= self.held_from()) {
            (self.have.bytes(), self.hashed)
        } else {
            (self.have.end_before(position), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(total: u64, there: &[(u64, u64)]) -> Progress {
        let mut have = Pieces::default();
        there.iter().for_each(|(start, end)| have.insert(Span { start: *start, end: *end }));
        Progress {
            file: Some(BlobFile::new(tempfile::tempfile().unwrap(), total)),
            total: Some(total),
            have,
            ..Progress::default()
        }
    }

    #[test]
    fn the_end_is_held_back_until_it_is_proven() {
        let check = |have: u64, end: Option<End>, held: bool, expected: u64| {
            let progress = Progress { end, ..progress(100_000, &[(0, have)]) };
            assert_eq!(progress.visible(0, held), expected);
        };
        check(10_000, None, true, 10_000);
        check(100_000, None, true, 100_000 - HOLD_BACK);
        check(100_000, None, false, 100_000);
        check(100_000, Some(End::Proven), true, 100_000);
        check(100_000, Some(End::Failed(Error::Mismatch)), true, 100_000 - HOLD_BACK);
        assert_eq!(Progress::default().visible(0, true), 0);
    }

    #[test]
    fn of_a_content_of_unknown_size_the_last_that_has_come_is_held_back() {
        let check = |have: u64, total: Option<u64>, end: Option<End>, expected: u64| {
            let progress = Progress { end, total, ..progress(0, &[(0, have)]) };
            assert_eq!(progress.visible(0, true), expected, "{have} {total:?}");
        };
        check(10_000, None, None, 0);
        check(100_000, None, None, 100_000 - HOLD_BACK);
        check(100_000, Some(200_000), None, 100_000);
        check(100_000, Some(100_000), None, 100_000 - HOLD_BACK);
        check(100_000, Some(100_000), Some(End::Proven), 100_000);
    }

    #[test]
    fn of_a_page_nothing_is_seen_before_it_is_proven() {
        let page = Progress { is_page: true, ..progress(1 << 20, &[(0, 500_000)]) };
        for held in [true, false] {
            assert_eq!(page.visible(5, held), 0);
            assert_eq!(page.toward(5, held).0, 500_000, "but it comes nearer");
            let proven = Progress { end: Some(End::Proven), ..page.clone() };
            assert_eq!(proven.visible(5, held), 500_000);
        }
    }

    #[test]
    fn a_reader_sees_the_piece_that_it_stands_in() {
        let progress = progress(1 << 20, &[(0, 10), (20, 30), (1_000_000, 1 << 20)]);
        let check = |position: u64, held: bool, seen: u64, near: u64| {
            assert_eq!(progress.visible(position, held), seen, "from {position}");
            assert_eq!(progress.toward(position, held).0, near, "toward {position}");
        };
        check(5, true, 10, 10);
        check(10, false, 10, 10);
        check(15, false, 15, 10);
        check(25, false, 30, 30);
        check(1_000_000, false, 1 << 20, 1 << 20);
        check(1_000_000, true, (1 << 20) - HOLD_BACK, 20 + (1 << 20) - 1_000_000);
    }
}
