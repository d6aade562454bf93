//! Where the readers of a flight are in what they asked for, and what of it the flight has not yet heard of.
//!
//! A reader of several ranges asks for the first of them, with what comes in the same request, and for the others once
//! the size is known and they are found to be within their limits: a request that is refused must not have made
//! upstream send all that it names.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::schedule::{self, Need};
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Range, Ranges};
use crate::store::Pieces;

/// Requests for what a reader of several parts comes to next, beside the one for what it stands before: upstream's own
/// time for a request is waited for once and not for every part. Of the side connections of a flight one is left for
/// others.
const AHEAD_MAX: usize = 3;

/// Where the readers are.
#[derive(Default)]
pub(in crate::cache) struct Places {
    all: Vec<Arc<Place>>,
    /// What was asked by readers that the flight has not yet heard of.
    asked: Vec<Option<Range>>,
}

/// Where a reader is in what it asked for.
pub(in crate::cache) struct Place {
    asked: Option<Range>,
    /// If it asks for several ranges: what it reads of them, once that is known.
    several: Option<OnceLock<Several>>,
    position: AtomicU64,
}

/// Parts that are read one after the other.
struct Several {
    parts: Box<[Part]>,
    /// What is asked of upstream for those that have an end of their own: neighbours together.
    pieces: Pieces,
    /// Which of them is read.
    at: AtomicUsize,
}

impl Place {
    fn new(asked: Option<&Ranges>) -> Self {
        let (asked, several) = match asked {
            None => (None, None),
            Some(Ranges::One(range)) => (Some(*range), None),
            Some(Ranges::Several(ranges)) => (Some(schedule::lead(ranges)), Some(OnceLock::new())),
        };
        Self { asked, several, position: AtomicU64::new(0) }
    }

    /// Its reader has all that lies before `position`.
    pub(in crate::cache) fn go_to(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// Its reader has begun with another of its parts.
    pub(in crate::cache) fn turn_to(&self, part: usize) {
        if let Some(several) = self.several() {
            several.at.store(part, Ordering::Relaxed);
        }
    }

    fn several(&self) -> Option<&Several> {
        self.several.as_ref()?.get()
    }

    /// Whether it is still to say what it reads.
    pub(in crate::cache) fn is_undecided(&self) -> bool {
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
        let mut pieces = Pieces::default();
        for part in parts.iter().filter(|part| !part.is_open) {
            pieces.insert(schedule::widened(part.span, total));
        }
        Self { parts: parts.into(), pieces, at: AtomicUsize::new(0) }
    }

    /// What is wanted of the part that is read. All of a content goes on to its end, which may not have been known.
    fn need(&self, position: u64, total: u64) -> Option<Need> {
        let Part { span, is_open } = *self.parts.get(self.at.load(Ordering::Relaxed))?;
        let (start, end) = (span.start.max(position), span.end.min(total));
        (start < end).then(|| self.need_from(start, Part { span: Span { end, ..span }, is_open }))
    }

    /// What is wanted behind it, as far as it is not there.
    fn needs_ahead(&self, have: &Pieces) -> impl Iterator<Item = Need> {
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

    /// Of a part from `start` on, with its neighbours behind it.
    fn need_from(&self, start: u64, part: Part) -> Need {
        let end = if part.is_open { part.span.end } else { self.pieces.run_end(start).max(part.span.end) };
        Need { span: Span { start, end }, is_open: part.is_open, is_ahead: false }
    }
}

impl Places {
    /// A reader has come.
    pub(in crate::cache) fn enter(&mut self, asked: Option<&Ranges>) -> Arc<Place> {
        let place = Arc::new(Place::new(asked));
        self.all.push(Arc::clone(&place));
        if !self.asked.contains(&place.asked) {
            self.asked.push(place.asked);
        }
        place
    }

    /// A reader of several ranges says which parts of `total` bytes it reads, in this order.
    pub(in crate::cache) fn decide(&mut self, place: &Place, parts: &[Part], total: u64) {
        let Some(several) = &place.several else { return };
        if several.set(Several::new(parts, total)).is_err() {
            return;
        }
        self.asked.extend(parts.iter().map(|part| {
            let Span { start: first, end } = part.span;
            Some(if part.is_open { Range::From(first) } else { Range::Closed { first, last: end - 1 } })
        }));
    }

    /// A reader has left.
    pub(in crate::cache) fn leave(&mut self, place: &Arc<Place>) {
        self.all.retain(|other| !Arc::ptr_eq(other, place));
    }

    /// What was asked since the last call.
    pub(in crate::cache) fn take_asked(&mut self) -> Vec<Option<Range>> {
        std::mem::take(&mut self.asked)
    }

    /// Whether the flight has heard of everything.
    pub(in crate::cache) fn are_heard_of(&self) -> bool {
        self.asked.is_empty() && !self.all.iter().any(|place| place.is_undecided())
    }

    /// What the readers still want of `total` bytes of which there are those in `have`: what they stand before, in the
    /// order in which they came; then what they come to next.
    pub(in crate::cache) fn needs(&self, total: u64, have: &Pieces) -> Vec<Need> {
        let here = self.all.iter().filter_map(|place| place.need(total));
        let several = self.all.iter().filter_map(|place| place.several());
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
        let mut places = Places::default();
        let asked = ranges("5-9,1048580-1048590,50000000-50000009,90000000-");
        let place = places.enter(Some(&asked));
        assert_eq!(places.take_asked(), [Some(Range::Closed { first: 5, last: 2 * MIB - 1 })]);
        assert!(!places.are_heard_of(), "there is more to come");
        assert_eq!(spans(&places.needs(TOTAL, &Pieces::default())), [(0, 2)]);
        places.decide(&place, asked.select(TOTAL).unwrap().parts(), TOTAL);
        assert!(!places.are_heard_of());
        assert_eq!(places.take_asked().len(), 4);
        assert!(places.are_heard_of());
        places.leave(&place);
        assert!(places.needs(TOTAL, &Pieces::default()).is_empty());
        let place = places.enter(Some(&asked));
        places.decide(&place, &[], TOTAL);
        assert_eq!(places.take_asked().len(), 1, "what was refused is not asked for");
    }

    #[test]
    fn what_readers_stand_before_comes_first_and_a_few_pieces_ahead() {
        let mut places = Places::default();
        let list: Vec<_> = (0..20).map(|at| format!("{}-{}", at * 5 * MIB, at * 5 * MIB + 9)).collect();
        let asked = ranges(&list.join(","));
        let several = places.enter(Some(&asked));
        places.decide(&several, asked.select(TOTAL).unwrap().parts(), TOTAL);
        let single = places.enter(Some(&ranges("73400320-73400321")));
        let nothing = Pieces::default();
        assert_eq!(spans(&places.needs(TOTAL, &nothing)), [(0, 1), (70, 71), (5, 6), (10, 11), (15, 16)]);
        let mut have = Pieces::default();
        have.insert(Span { start: 5 * MIB, end: 11 * MIB });
        assert_eq!(spans(&places.needs(TOTAL, &have)), [(0, 1), (70, 71), (15, 16), (20, 21), (25, 26)]);
        places.leave(&single);
        several.turn_to(18);
        several.go_to(90 * MIB + 3);
        assert_eq!(spans(&places.needs(TOTAL, &nothing)), [(90, 91), (95, 96)]);
        several.turn_to(20);
        assert!(places.needs(TOTAL, &nothing).is_empty());
    }

    #[test]
    fn neighbours_are_one_piece_in_whatever_order_they_are_read() {
        let mut places = Places::default();
        let asked = ranges("2097152-2097160,1048576-1048580,3145728-3145730,100-110,4194304-4194305");
        let place = places.enter(Some(&asked));
        places.decide(&place, asked.select(TOTAL).unwrap().parts(), TOTAL);
        assert_eq!(spans(&places.needs(TOTAL, &Pieces::default())), [(2, 5)]);
    }
}
