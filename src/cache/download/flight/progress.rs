//! How far a flight is, and what a reader may see of that.

use crate::cache::error::Error;
use crate::oci::range::Span;
use crate::store::{BlobFile, RangeSet};

/// Bytes at the end of a body that are held back until the digest of the whole is verified.
pub(in crate::cache) const HOLD_BACK: u64 = 64 * 1024;

/// How far a flight has come.
#[derive(Clone, Default)]
pub(super) struct FlightProgress {
    /// The growing file, once upstream has answered.
    file: Option<BlobFile>,
    /// The size of the content in bytes, once it is known.
    total: Option<u64>,
    /// The response calls itself a page: none of it may be read before the digest is verified.
    is_page: bool,
    /// Bytes of the file that may be read.
    have: RangeSet,
    /// Bytes from the start that are hashed by now. It shows progress to readers that wait for the digest.
    hashed: u64,
    /// How it ended, if it has.
    end: Option<FlightEnd>,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(in crate::cache::download) enum FlightEnd {
    /// Every byte is there and the digest is right.
    Verified,
    /// The content had been stored before this flight began: look again.
    AlreadyStored,
    /// The ranges that were asked for are there, and the rest is not worth fetching.
    PartialKept,
    /// No more bytes come. Readers that lack bytes are cut off.
    Failed(Error),
}

impl FlightProgress {
    /// Upstream has answered: `have` can be read at once. `total` is the size of the content, if it is known.
    pub(super) fn announce(&mut self, file: BlobFile, total: Option<u64>, have: RangeSet) {
        (self.file, self.total, self.have) = (Some(file), total, have);
    }

    /// What upstream sends calls itself a page.
    pub(super) fn mark_page(&mut self) {
        self.is_page = true;
    }

    /// The bytes of `span` can be read from now on, too.
    pub(super) fn advance(&mut self, span: Span) {
        self.have.insert(span);
    }

    /// `hashed` bytes from the start are hashed by now.
    pub(super) fn set_hashed(&mut self, hashed: u64) {
        self.hashed = hashed;
    }

    /// The flight has ended: nothing changes any more.
    pub(super) fn set_end(&mut self, end: FlightEnd) {
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

    pub(super) fn have(&self) -> &RangeSet {
        &self.have
    }

    pub(super) fn end(&self) -> Option<&FlightEnd> {
        self.end.as_ref()
    }

    /// The size of the content with the file of that size, once both are known.
    pub(super) fn known(&self) -> Option<(u64, BlobFile)> {
        self.total.zip(self.file.clone())
    }

    /// The position up to which a reader at `position` may read. With `held`, the end waits for the verification.
    pub(super) fn visible(&self, position: u64, held: bool) -> u64 {
        let is_verified = matches!(self.end, Some(FlightEnd::Verified));
        if self.file.is_none() || (self.is_page && !is_verified) {
            return 0;
        }
        let there = self.have.run_end(position);
        if held && !is_verified { there.min(self.held_from()) } else { there }
    }

    /// Where the end begins that waits for the verification. While the size is unknown, the end may be anywhere in what
    /// has come.
    fn held_from(&self) -> u64 {
        self.total.unwrap_or_else(|| self.have.run_end(0)).saturating_sub(HOLD_BACK)
    }

    /// How near the bytes at `position` are; for bytes that are held back, how near the verification is. Any change is
    /// progress for a reader there.
    pub(super) fn nearness(&self, position: u64, held: bool) -> (u64, u64) {
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

    fn progress(total: u64, there: &[(u64, u64)]) -> FlightProgress {
        let mut have = RangeSet::default();
        there.iter().for_each(|(start, end)| have.insert(Span { start: *start, end: *end }));
        FlightProgress {
            file: Some(BlobFile::new(tempfile::tempfile().unwrap(), total)),
            total: Some(total),
            have,
            ..FlightProgress::default()
        }
    }

    #[test]
    fn the_end_is_held_back_until_it_is_proven() {
        let check = |have: u64, end: Option<FlightEnd>, held: bool, expected: u64| {
            let progress = FlightProgress { end, ..progress(100_000, &[(0, have)]) };
            assert_eq!(progress.visible(0, held), expected);
        };
        check(10_000, None, true, 10_000);
        check(100_000, None, true, 100_000 - HOLD_BACK);
        check(100_000, None, false, 100_000);
        check(100_000, Some(FlightEnd::Verified), true, 100_000);
        check(100_000, Some(FlightEnd::Failed(Error::Mismatch)), true, 100_000 - HOLD_BACK);
        assert_eq!(FlightProgress::default().visible(0, true), 0);
    }

    #[test]
    fn of_a_content_of_unknown_size_the_last_that_has_come_is_held_back() {
        let check = |have: u64, total: Option<u64>, end: Option<FlightEnd>, expected: u64| {
            let progress = FlightProgress { end, total, ..progress(0, &[(0, have)]) };
            assert_eq!(progress.visible(0, true), expected, "{have} {total:?}");
        };
        check(10_000, None, None, 0);
        check(100_000, None, None, 100_000 - HOLD_BACK);
        check(100_000, Some(200_000), None, 100_000);
        check(100_000, Some(100_000), None, 100_000 - HOLD_BACK);
        check(100_000, Some(100_000), Some(FlightEnd::Verified), 100_000);
    }

    #[test]
    fn of_a_page_nothing_is_seen_before_it_is_proven() {
        let page = FlightProgress { is_page: true, ..progress(1 << 20, &[(0, 500_000)]) };
        for held in [true, false] {
            assert_eq!(page.visible(5, held), 0);
            assert_eq!(page.nearness(5, held).0, 500_000, "but it comes nearer");
            let verified = FlightProgress { end: Some(FlightEnd::Verified), ..page.clone() };
            assert_eq!(verified.visible(5, held), 500_000);
        }
    }

    #[test]
    fn a_reader_sees_the_piece_that_it_stands_in() {
        let progress = progress(1 << 20, &[(0, 10), (20, 30), (1_000_000, 1 << 20)]);
        let check = |position: u64, held: bool, seen: u64, near: u64| {
            assert_eq!(progress.visible(position, held), seen, "from {position}");
            assert_eq!(progress.nearness(position, held).0, near, "toward {position}");
        };
        check(5, true, 10, 10);
        check(10, false, 10, 10);
        check(15, false, 15, 10);
        check(25, false, 30, 30);
        check(1_000_000, false, 1 << 20, 1 << 20);
        check(1_000_000, true, (1 << 20) - HOLD_BACK, 20 + (1 << 20) - 1_000_000);
    }
}
