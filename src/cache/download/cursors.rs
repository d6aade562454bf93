//! The cursors of a flight: where each reader is in the ranges that it asked for, and which of these the flight has not
//! heard of yet.
//!
//! A reader of several ranges first asks for the first of them, with what comes in the same request. It asks for the
//! others once the size is known and they are found to be within the limits: a request that is refused must not have
//! made upstream send everything that it names.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::schedule::{self, Need};
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Range, Ranges};
use crate::store::RangeSet;

/// The most requests made ahead for a reader of several parts, beside the one for the part it is at. So the response
/// time of upstream is waited for once and not for every part. One of the flight's side connections is left for other
/// readers.
const AHEAD_MAX: usize = 3;

/// The cursors of all readers of a flight.
#[derive(Default)]
pub(super) struct Cursors {
    all: Vec<Arc<Cursor>>,
    /// The ranges of readers that the flight has not heard of yet.
    asked: Vec<Option<Range>>,
}

/// Where one reader is in the ranges that it asked for.
pub(super) struct Cursor {
    asked: Option<Range>,
    /// For a request of several ranges: the parts that it reads, once they are known.
    several: Option<OnceLock<Several>>,
    position: AtomicU64,
}

/// Parts that are read one after the other.
struct Several {
    parts: Box<[Part]>,
    /// The pieces that are asked of upstream for parts with an end of their own: neighbours are one piece.
    pieces: RangeSet,
    /// The index of the part that is being read.
    at: AtomicUsize,
}

impl Cursor {
    fn new(asked: Option<&Ranges>) -> Self {
        let (asked, several) = match asked {
            None => (None, None),
            Some(Ranges::One(range)) => (Some(*range), None),
            Some(Ranges::Several(ranges)) => {
                (Some(schedule::first_of_several(ranges)), Some(OnceLock::new()))
            }
        };
        Self { asked, several, position: AtomicU64::new(0) }
    }

    /// The reader has everything before `position`.
    pub(super) fn go_to(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// The reader has begun with the part of this index.
    pub(super) fn start_part(&self, part: usize) {
        if let Some(several) = self.several() {
            several.at.store(part, Ordering::Relaxed);
        }
    }

    fn several(&self) -> Option<&Several> {
        self.several.as_ref()?.get()
    }

    /// Whether the reader has still to choose its parts.
    pub(super) fn is_undecided(&self) -> bool {
        self.several.as_ref().is_some_and(|several| several.get().is_none())
    }

    fn need(&self, total: u64) -> Option<Need> {
        let position = self.position.load(Ordering::Relaxed);
        if let Some(several) = self.several() {
            return several.need(position, total);
        }
        let span = self.asked.map_or_else(|| Ok(Span::whole(total)), |range| range.resolve(total)).ok()?;
        let start = span.start.max(position);
        let is_open = matches!(self.asked, None | Some(Range::From(_)));
        (start < span.end).then_some(Need { span: Span { start, ..span }, is_open, is_ahead: false })
    }
}

impl Several {
    fn new(parts: &[Part], total: u64) -> Self {
        let mut pieces = RangeSet::default();
        for part in parts.iter().filter(|part| !part.is_open) {
            pieces.insert(schedule::widened(part.span, total));
        }
        Self { parts: parts.into(), pieces, at: AtomicUsize::new(0) }
    }

    /// The need for the part that is being read. An open part goes on to `total`, which may have been unknown before.
    fn need(&self, position: u64, total: u64) -> Option<Need> {
        let Part { span, is_open } = *self.parts.get(self.at.load(Ordering::Relaxed))?;
        let (start, end) = (span.start.max(position), span.end.min(total));
        (start < end).then(|| self.need_from(start, Part { span: Span { end, ..span }, is_open }))
    }

    /// The needs for the parts behind it that are not there yet.
    fn needs_ahead(&self, have: &RangeSet) -> impl Iterator<Item = Need> {
        let at = self.at.load(Ordering::Relaxed).min(self.parts.len());
        let mut behind = self.parts[at..].iter();
        let mut piece = behind.next().map(|part| self.pieces.run_end(part.span.start));
        // Parts in one piece are one need.
        let begins_another = move |part: &&Part| {
            let own = Some(self.pieces.run_end(part.span.start));
            std::mem::replace(&mut piece, own) != own
        };
        let needs = behind.filter(|part| !part.is_open).filter(begins_another);
        let needs = needs.map(|part| Need { is_ahead: true, ..self.need_from(part.span.start, *part) });
        needs.filter(|need| have.gap(need.span).is_some()).take(AHEAD_MAX)
    }

    /// The need for a part from `start` on, together with its neighbours behind it.
    fn need_from(&self, start: u64, part: Part) -> Need {
        let end = if part.is_open { part.span.end } else { self.pieces.run_end(start).max(part.span.end) };
        Need { span: Span { start, end }, is_open: part.is_open, is_ahead: false }
    }
}

impl Cursors {
    /// Adds the cursor of a reader that has come.
    pub(super) fn enter(&mut self, asked: Option<&Ranges>) -> Arc<Cursor> {
        let cursor = Arc::new(Cursor::new(asked));
        self.all.push(Arc::clone(&cursor));
        if !self.asked.contains(&cursor.asked) {
            self.asked.push(cursor.asked);
        }
        cursor
    }

    /// A reader of several ranges chooses these parts of `total` bytes, and reads them in this order.
    pub(super) fn choose_parts(&mut self, cursor: &Cursor, parts: &[Part], total: u64) {
        let Some(several) = &cursor.several else { return };
        if several.set(Several::new(parts, total)).is_err() {
            return;
        }
        self.asked.extend(parts.iter().map(|part| {
            let Span { start: first, end } = part.span;
            Some(if part.is_open { Range::From(first) } else { Range::Closed { first, last: end - 1 } })
        }));
    }

    /// Removes the cursor of a reader that has left.
    pub(super) fn leave(&mut self, cursor: &Arc<Cursor>) {
        self.all.retain(|other| !Arc::ptr_eq(other, cursor));
    }

    /// Takes the ranges that were asked for since the last call.
    pub(super) fn take_asked(&mut self) -> Vec<Option<Range>> {
        std::mem::take(&mut self.asked)
    }

    /// Whether the flight has heard of every range.
    pub(super) fn are_all_taken(&self) -> bool {
        self.asked.is_empty() && !self.all.iter().any(|cursor| cursor.is_undecided())
    }

    /// The needs of all readers, for a content of `total` bytes of which `have` is there: first what they are waiting
    /// for, in the order in which the readers came; then what they will read next.
    pub(super) fn needs(&self, total: u64, have: &RangeSet) -> Vec<Need> {
        let here = self.all.iter().filter_map(|cursor| cursor.need(total));
        let several = self.all.iter().filter_map(|cursor| cursor.several());
        here.chain(several.flat_map(|several| several.needs_ahead(have))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TOTAL: u64 = 100 * MIB;

    fn ranges(list: &str) -> Ranges {
        Ranges::parse(&format!("bytes={list}")).unwrap().unwrap()
    }

    /// In mebibytes, and whether to the end.
    fn spans(needs: &[Need]) -> Vec<(u64, u64)> {
        needs.iter().map(|need| (need.span.start / MIB, need.span.end.div_ceil(MIB))).collect()
    }

    #[test]
    fn a_reader_of_several_ranges_asks_for_the_first_until_it_has_decided() {
        let mut cursors = Cursors::default();
        let asked = ranges("5-9,1048580-1048590,50000000-50000009,90000000-");
        let cursor = cursors.enter(Some(&asked));
        assert_eq!(cursors.take_asked(), [Some(Range::Closed { first: 5, last: 2 * MIB - 1 })]);
        assert!(!cursors.are_all_taken(), "there is more to come");
        assert_eq!(spans(&cursors.needs(TOTAL, &RangeSet::default())), [(0, 2)]);
        cursors.choose_parts(&cursor, asked.select(TOTAL).unwrap().parts(), TOTAL);
        assert!(!cursors.are_all_taken());
        assert_eq!(cursors.take_asked().len(), 4);
        assert!(cursors.are_all_taken());
        cursors.leave(&cursor);
        assert!(cursors.needs(TOTAL, &RangeSet::default()).is_empty());
        let cursor = cursors.enter(Some(&asked));
        cursors.choose_parts(&cursor, &[], TOTAL);
        assert_eq!(cursors.take_asked().len(), 1, "what was refused is not asked for");
    }

    #[test]
    fn what_readers_stand_before_comes_first_and_a_few_pieces_ahead() {
        let mut cursors = Cursors::default();
        let list: Vec<_> = (0..20).map(|at| format!("{}-{}", at * 5 * MIB, at * 5 * MIB + 9)).collect();
        let asked = ranges(&list.join(","));
        let several = cursors.enter(Some(&asked));
        cursors.choose_parts(&several, asked.select(TOTAL).unwrap().parts(), TOTAL);
        let single = cursors.enter(Some(&ranges("73400320-73400321")));
        let nothing = RangeSet::default();
        assert_eq!(spans(&cursors.needs(TOTAL, &nothing)), [(0, 1), (70, 71), (5, 6), (10, 11), (15, 16)]);
        let mut have = RangeSet::default();
        have.insert(Span { start: 5 * MIB, end: 11 * MIB });
        assert_eq!(spans(&cursors.needs(TOTAL, &have)), [(0, 1), (70, 71), (15, 16), (20, 21), (25, 26)]);
        cursors.leave(&single);
        several.start_part(18);
        several.go_to(90 * MIB + 3);
        assert_eq!(spans(&cursors.needs(TOTAL, &nothing)), [(90, 91), (95, 96)]);
        several.start_part(20);
        assert!(cursors.needs(TOTAL, &nothing).is_empty());
    }

    #[test]
    fn neighbours_are_one_piece_in_whatever_order_they_are_read() {
        let mut cursors = Cursors::default();
        let asked = ranges("2097152-2097160,1048576-1048580,3145728-3145730,100-110,4194304-4194305");
        let cursor = cursors.enter(Some(&asked));
        cursors.choose_parts(&cursor, asked.select(TOTAL).unwrap().parts(), TOTAL);
        assert_eq!(spans(&cursors.needs(TOTAL, &RangeSet::default())), [(2, 5)]);
    }
}
