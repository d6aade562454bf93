//! Which bytes of a content are there: disjoint spans in order, with a gap between any two.
//!
//! Pure. Adding to the end of the last span, which is what a transfer in order does, costs nothing that grows.

use std::ops::Range as Indices;

use crate::oci::range::Span;

/// A set of bytes of one content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    spans: Vec<Span>,
    bytes: u64,
}

impl RangeSet {
    /// Returns the set of the first `len` bytes.
    pub fn prefix(len: u64) -> Self {
        let mut pieces = Self::default();
        pieces.insert(Span { start: 0, end: len });
        pieces
    }

    /// Adds the bytes of `span`.
    pub fn insert(&mut self, span: Span) {
        if span.start >= span.end {
            return;
        }
        let Indices { start: from, end: to } = self.touching(span);
        let mut grown = span;
        for old in &self.spans[from..to] {
            self.bytes -= old.len();
            grown = Span { start: grown.start.min(old.start), end: grown.end.max(old.end) };
        }
        self.bytes += grown.len();
        if to == from + 1 {
            self.spans[from] = grown;
        } else {
            self.spans.splice(from..to, [grown]);
        }
    }

    /// Returns how many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the spans, in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Whether every byte of `span` is there.
    pub fn contains(&self, span: Span) -> bool {
        self.run_end(span.start) >= span.end
    }

    /// Returns the end of the run of bytes that begins at `position`; `position` itself if that byte is missing.
    pub fn run_end(&self, position: u64) -> u64 {
        self.at_or_before(position).map_or(position, |span| span.end.max(position))
    }

    /// Returns the end of the last span that begins at or before `position`; 0 if there is none.
    pub fn end_before(&self, position: u64) -> u64 {
        self.at_or_before(position).map_or(0, |span| span.end)
    }

    /// Returns the start of the first span that begins behind `position`.
    pub fn next_start(&self, position: u64) -> Option<u64> {
        self.spans.get(self.count_to(position)).map(|span| span.start)
    }

    /// Returns the first missing bytes of `within`, up to the next that are there.
    pub fn gap(&self, within: Span) -> Option<Span> {
        let start = self.run_end(within.start);
        let end = self.next_start(start).unwrap_or(u64::MAX).min(within.end);
        (start < end).then_some(Span { start, end })
    }

    /// Counts the spans that begin at or before `position`.
    fn count_to(&self, position: u64) -> usize {
        // Readers and writers are mostly at the end.
        match self.spans.last() {
            Some(last) if last.start <= position => self.spans.len(),
            _ => self.spans.partition_point(|span| span.start <= position),
        }
    }

    fn at_or_before(&self, position: u64) -> Option<&Span> {
        self.spans[..self.count_to(position)].last()
    }

    /// Returns the indices of the spans that overlap `span` or touch it.
    fn touching(&self, span: Span) -> Indices<usize> {
        let to = self.count_to(span.end);
        let before = self.spans[..to].iter().rev().take_while(|old| old.end >= span.start).count();
        to - before..to
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 64;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn what_meets_becomes_one() {
        let mut pieces = RangeSet::prefix(10);
        pieces.insert(span(20, 30));
        pieces.insert(span(5, 5));
        assert_eq!(pieces.spans(), [span(0, 10), span(20, 30)]);
        assert_eq!((pieces.run_end(3), pieces.run_end(10), pieces.run_end(12)), (10, 10, 12));
        assert_eq!((pieces.end_before(15), pieces.end_before(20), pieces.next_start(10)), (10, 30, Some(20)));
        assert_eq!(pieces.gap(span(3, 25)), Some(span(10, 20)));
        assert_eq!(pieces.gap(span(3, 15)), Some(span(10, 15)));
        assert_eq!(pieces.gap(span(22, 30)), None);
        pieces.insert(span(10, 20));
        assert_eq!((pieces.spans(), pieces.bytes()), (&[span(0, 30)][..], 30));
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_was_put_in(added in proptest::collection::vec((0..TOTAL, 0..16_u64), 0..24), from in 0..TOTAL, len in 0..TOTAL) {
            let mut pieces = RangeSet::default();
            let mut model = [false; TOTAL as usize + 16];
            for (start, len) in added {
                pieces.insert(span(start, start + len));
                model[start as usize..(start + len) as usize].fill(true);
            }
            let has = |at: u64| model.get(at as usize).copied().unwrap_or(false);
            prop_assert_eq!(pieces.bytes(), model.iter().filter(|there| **there).count() as u64);
            prop_assert!(pieces.spans().iter().all(|span| span.start < span.end && (span.start..span.end).all(has)));
            prop_assert!(pieces.spans().windows(2).all(|pair| pair[0].end < pair[1].start));
            let run_end = (from..).find(|at| !has(*at)).unwrap();
            prop_assert_eq!(pieces.run_end(from), run_end);
            prop_assert_eq!(pieces.contains(span(from, from + len)), (from..from + len).all(has));
            let gap: Vec<u64> = (from..from + len).skip_while(|at| has(*at)).take_while(|at| !has(*at)).collect();
            let found = pieces.gap(span(from, from + len));
            prop_assert_eq!(found.map(|gap| gap.start), gap.first().copied());
            prop_assert_eq!(found.map_or(0, |gap| gap.len()), gap.len() as u64);
            let next = (from + 1..TOTAL + 16).find(|at| has(*at) && !has(at - 1));
            prop_assert_eq!(pieces.next_start(from), next);
        }
    }
}
