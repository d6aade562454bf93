//! What a flight asks of upstream next. Pure: the caller says what was asked for, what has come and what the time is.
//!
//! - Every missing byte is *claimed* by at most one connection, and no byte that is there is claimed: so none is asked
//!   for twice. A connection at the end of its claim goes on with the rest of its response, if nobody else has claimed
//!   that.
//! - The bytes that a reader waits for are fetched at once. If the open connections are far from them, a side
//!   connection is opened; far is what they will not reach soon at their present speed. The claim of an open connection
//!   is cut there. A range is widened to blocks of [`BLOCK`], so that its neighbours need no request of their own.
//! - What was asked for and nobody waits for comes in order, over as many connections as the configuration allows.
//! - An upstream that ignores ranges gets one connection, which begins at the start and skips what is there. So does
//!   one that does not state the size of the content, until its end turns out.

use std::time::{Duration, Instant};

use super::speed::Speed;
use crate::oci::Range;
use crate::oci::range::Span;
use crate::store::RangeSet;

/// Ranges are widened to multiples of this many bytes: that costs little beside the request itself, and gains much for
/// a lazy puller.
pub(super) const BLOCK: u64 = 1 << 20;
/// A reader waits for a connection that reaches it within this time; else it gets one of its own. A request to a
/// registry and its storage takes less, and what slows one connection down mostly leaves another alone.
const NEAR: Duration = Duration::from_secs(2);
/// A reader waits only for a connection with no more than this many bytes to go, however fast it is now: it may slow
/// down.
const NEAR_BYTES: u64 = 4 << 20;
/// A reader that has this many bytes before it needs nothing yet.
const AHEAD: u64 = 4 << 20;
/// Bytes that one of several connections fetches at a time: enough to outweigh a request, and few enough for the
/// beginning, which clients read first, to come first.
const SEGMENT: u64 = 16 << 20;
/// Blobs of at most this many bytes come over one connection.
const SPLIT_MIN: u64 = 32 << 20;
/// Connections beyond those that the configuration allows, for readers far from the others.
const SIDES_MAX: usize = 4;
/// The largest offset that is asked for, in bytes: no content is larger, and some servers cannot read larger numbers.
const OFFSET_MAX: u64 = 1 << 40;

/// The span that a connection is to bring, with the id of its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub id: u64,
    pub span: Span,
}

/// A span that a reader wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub span: Span,
    /// The reader wants everything from here on: the request begins right here, not at the start of a block.
    pub is_open: bool,
    /// The reader is not here yet: no claim is cut for this need.
    pub is_ahead: bool,
}

/// What to do with bytes that have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipt {
    /// The span to keep.
    pub keep: Option<Span>,
    /// The connection has nothing more to bring.
    pub is_done: bool,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    id: u64,
    /// The first missing byte.
    at: u64,
    end: u64,
    speed: Speed,
}

impl Claim {
    fn holds(&self, position: u64) -> bool {
        self.at <= position && position < self.end
    }

    /// Whether the connection will soon be at `position`.
    fn is_near(&self, position: u64, now: Instant) -> bool {
        let reach = self.speed.reach(NEAR, now).unwrap_or(NEAR_BYTES);
        position - self.at <= reach.min(NEAR_BYTES)
    }
}

/// The requests of one flight: made, under way and due.
pub(super) struct Schedule {
    total: u64,
    have: RangeSet,
    asked: RangeSet,
    claims: Vec<Claim>,
    connections: usize,
    sides: usize,
    ranges: bool,
    next_id: u64,
    /// The present time, as the caller last gave it.
    now: Instant,
}

impl Schedule {
    /// The schedule for a content of `total` bytes, of which `have` is there.
    pub(super) fn new(total: u64, have: RangeSet, connections: usize) -> Self {
        Self {
            total,
            have,
            asked: RangeSet::default(),
            claims: Vec::new(),
            connections: if total > SPLIT_MIN { connections } else { 1 },
            sides: SIDES_MAX,
            ranges: true,
            next_id: 0,
            now: Instant::now(),
        }
    }

    /// Sets the present time.
    pub(super) fn at(&mut self, now: Instant) -> &mut Self {
        self.now = now;
        self
    }

    /// Allows only one connection, without side connections.
    pub(super) fn without_sides(self) -> Self {
        Self { connections: 1, sides: 0, ..self }
    }

    /// The content turns out to have no more than `total` bytes.
    pub(super) fn learn(&mut self, total: u64) {
        self.total = total;
        let mut asked = RangeSet::default();
        for span in self.asked.spans() {
            asked.insert(Span { start: span.start, end: span.end.min(total) });
        }
        self.asked = asked;
        for claim in &mut self.claims {
            claim.end = claim.end.min(total);
        }
        self.claims.retain(|claim| claim.at < claim.end);
    }

    /// Adds what a reader asks for: everything, or a part with an end of its own.
    ///
    /// A reader of an open range is not given its end before the whole is verified, so it needs everything, too.
    pub(super) fn ask(&mut self, range: Option<Range>) {
        match range {
            None => self.ask_whole(),
            Some(Range::From(first)) if first < self.total => self.ask_whole(),
            // The same widening as in [`first_request`], which was made before the size was known.
            Some(Range::Suffix(length @ 1..)) => {
                self.asked
                    .insert(Span { start: self.total.saturating_sub(length.max(BLOCK)), end: self.total });
            }
            Some(range) => {
                // There is nothing to bring behind the end.
                if let Ok(span) = range.resolve(self.total) {
                    self.asked.insert(widened(span, self.total));
                }
            }
        }
    }

    pub(super) fn ask_whole(&mut self) {
        self.asked.insert(Span::whole(self.total));
    }

    /// Whether everything is asked for.
    pub(super) fn is_whole_asked(&self) -> bool {
        self.asked.bytes() == self.total
    }

    /// Whether everything has come.
    pub(super) fn is_whole(&self) -> bool {
        self.have.bytes() == self.total
    }

    /// Makes a claim for a response that has begun already. `None` if all its bytes are there, or claimed.
    pub(super) fn adopt(&mut self, response: Span) -> Option<Job> {
        let free = self.free(response)?;
        Some(self.claim(free))
    }

    /// The next request to make, if there is one. To be called until there is none.
    pub(super) fn next(&mut self, needs: &[Need]) -> Option<Job> {
        let span = needs.iter().find_map(|need| self.urgent(need)).or_else(|| self.next_in_order())?;
        if let Some(cut) = self.claims.iter_mut().find(|claim| claim.holds(span.start)) {
            cut.end = span.start;
        }
        Some(self.claim(span))
    }

    /// The span that a connection is to ask for, and whether by a range. `None` if it is no longer wanted.
    pub(super) fn wanted(&mut self, id: u64) -> Option<(Span, bool)> {
        let at = self.claims.iter().position(|claim| claim.id == id)?;
        if !self.ranges {
            let first = self.have.gap(Span::whole(self.total));
            let Some(first) = first.filter(|_| self.claims.len() == 1) else {
                self.claims.swap_remove(at);
                return None;
            };
            (self.claims[at].at, self.claims[at].end) = (first.start, first.end);
        }
        let Claim { at, end, .. } = self.claims[at];
        Some((Span { start: at, end }, self.ranges && end - at < self.total))
    }

    /// Upstream ignores ranges: from now on one connection brings everything.
    pub(super) fn ignores_ranges(&mut self) {
        self.ranges = false;
        self.ask_whole();
    }

    /// A connection cannot be had. If there are others, they bring its span, and no further ones are tried: upstream
    /// may not allow more. False if there is no other.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        if self.claims.iter().all(|claim| claim.id == id) {
            return false;
        }
        self.claims.retain(|claim| claim.id != id);
        (self.connections, self.sides) = (1, 0);
        true
    }

    /// Takes note of bytes that came over the connection of a claim; its response goes on to `reach`.
    pub(super) fn receive(&mut self, id: u64, came: Span, reach: u64) -> Receipt {
        let Some(index) = self.claims.iter().position(|claim| claim.id == id) else {
            return Receipt { keep: None, is_done: true };
        };
        let (now, Claim { at, end, .. }) = (self.now, self.claims[index]);
        if came.end <= at {
            self.claims[index].speed.came(came.len(), now);
            return Receipt::default();
        }
        let keep = Span { start: came.start.max(at), end: came.end.min(end) };
        self.have.insert(keep);
        self.claims[index].speed.came(keep.len(), now);
        self.claims[index].at = keep.end;
        let is_done = keep.end == end && !self.go_on(index, reach);
        if is_done {
            self.claims.swap_remove(index);
        }
        Receipt { keep: Some(keep), is_done }
    }

    /// The position of the first byte that a connection is to bring.
    pub(super) fn begins_at(&self, id: u64) -> Option<u64> {
        self.claims.iter().find(|claim| claim.id == id).map(|claim| claim.at)
    }

    /// Gives a connection at the end of its claim what its response still holds.
    fn go_on(&mut self, index: usize, reach: u64) -> bool {
        let end = self.claims[index].end;
        // Where ranges are ignored, to skip what is there costs less than to begin again.
        let start = if self.ranges { end } else { self.have.run_end(end) };
        let asked = Span { start, end: self.asked.run_end(start).min(reach) };
        let Some(free) = self.free(asked).filter(|free| free.start == start) else { return false };
        (self.claims[index].at, self.claims[index].end) = (free.start, free.end);
        true
    }

    /// The span to fetch at once for a reader.
    fn urgent(&self, need: &Need) -> Option<Span> {
        if !self.ranges || self.claims.len() >= self.connections + self.sides {
            return None;
        }
        let missing = self.have.gap(need.span)?.start;
        if missing - need.span.start > AHEAD {
            return None;
        }
        let is_waited_for = |claim: &Claim| need.is_ahead || claim.is_near(missing, self.now);
        if self.claims.iter().any(|claim| claim.holds(missing) && is_waited_for(claim)) {
            return None;
        }
        let mut start = missing;
        if !need.is_open {
            let behind =
                self.claims.iter().map(|claim| if claim.holds(missing) { claim.at } else { claim.end });
            let floor = behind.filter(|end| *end <= missing).max().unwrap_or(0);
            start = block_start(missing).max(self.have.end_before(missing)).max(floor);
        }
        let end = if need.is_open { self.total } else { widened(need.span, self.total).end };
        let end = end.min(self.next_taken(missing));
        Some(self.segment(Span { start, end }))
    }

    /// The span to fetch although nobody waits for it.
    fn next_in_order(&self) -> Option<Span> {
        let connections = if self.ranges { self.connections } else { 1 };
        if self.claims.len() >= connections {
            return None;
        }
        let free = self.asked.spans().iter().find_map(|asked| self.free(*asked))?;
        Some(if self.ranges { self.segment(free) } else { free })
    }

    /// The first bytes of `within` that are neither there nor claimed, up to the next that are.
    fn free(&self, within: Span) -> Option<Span> {
        let mut start = within.start;
        loop {
            let gap = self.have.gap(Span { start, end: within.end.max(start) })?;
            match self.claims.iter().find(|claim| claim.holds(gap.start)) {
                Some(claim) => start = claim.end,
                None => return Some(Span { end: gap.end.min(self.next_taken(gap.start)), ..gap }),
            }
        }
    }

    /// The position behind `position` at which bytes begin that are there or claimed; else the end.
    fn next_taken(&self, position: u64) -> u64 {
        let claimed = self.claims.iter().map(|claim| claim.at).filter(|at| *at > position);
        claimed.chain(self.have.next_start(position)).min().unwrap_or(self.total)
    }

    fn segment(&self, span: Span) -> Span {
        let end = if self.connections > 1 { span.end.min(span.start + SEGMENT) } else { span.end };
        Span { end, ..span }
    }

    fn claim(&mut self, span: Span) -> Job {
        let id = self.next_id;
        self.next_id += 1;
        self.claims.push(Claim { id, at: span.start, end: span.end, speed: Speed::new(self.now) });
        Job { id, span }
    }
}

/// The first request for a content of unknown size; `None` for everything.
pub(super) fn first_request(asked: Option<Range>, connections: usize) -> Option<Range> {
    let beginning = (connections > 1).then_some(Range::Closed { first: 0, last: SEGMENT - 1 });
    match asked {
        None => beginning,
        Some(Range::From(first)) if first <= NEAR_BYTES => beginning,
        Some(Range::Suffix(length)) if length < OFFSET_MAX => Some(Range::Suffix(length.max(BLOCK))),
        Some(Range::Suffix(_)) => beginning,
        Some(Range::Closed { first, last }) if last < OFFSET_MAX => {
            Some(Range::Closed { first: block_start(first), last: block_end(last + 1) - 1 })
        }
        Some(Range::From(first) | Range::Closed { first, .. }) => Some(Range::From(first.min(OFFSET_MAX))),
    }
}

/// The first request for several ranges of a content of unknown size: the first of them, with those that come in the
/// same request. An open range is asked for once all of them are known to be served.
pub(super) fn first_of_several(ranges: &[Range]) -> Range {
    let mut pieces = RangeSet::default();
    for range in ranges {
        if let Range::Closed { first, last } = *range
            && last < OFFSET_MAX
        {
            pieces.insert(widened(Span { start: first, end: last + 1 }, u64::MAX));
        }
    }
    match ranges.first().copied().unwrap_or(Range::From(0)) {
        Range::Closed { first, last } => {
            Range::Closed { first, last: pieces.run_end(first).saturating_sub(1).max(last) }
        }
        Range::From(first) => Range::Closed { first, last: first },
        suffix @ Range::Suffix(_) => suffix,
    }
}

/// The blocks around a part of a content of `total` bytes.
pub(super) fn widened(span: Span, total: u64) -> Span {
    Span { start: block_start(span.start), end: block_end(span.end).min(total) }
}

fn block_start(position: u64) -> u64 {
    position / BLOCK * BLOCK
}

fn block_end(position: u64) -> u64 {
    position.div_ceil(BLOCK) * BLOCK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn need(start: u64, end: u64, is_open: bool) -> Need {
        Need { span: span(start, end), is_open, is_ahead: false }
    }

    fn spans(schedule: &mut Schedule, needs: &[Need]) -> Vec<Span> {
        std::iter::from_fn(|| schedule.next(needs)).map(|job| job.span).collect()
    }

    #[test]
    fn the_first_request_of_an_unknown_size() {
        let check = |asked: Option<&str>, expected: Option<&str>| {
            let asked = asked.map(|text| Range::parse(text).unwrap());
            let first = first_request(asked, 1).map(|range| range.to_string());
            assert_eq!(first, expected.map(|text| format!("bytes={text}")), "{asked:?}");
        };
        check(None, None);
        check(Some("0-"), None);
        check(Some("4194304-"), None);
        check(Some("8388608-"), Some("8388608-"));
        check(Some("99999999999999999999999999-"), Some("1099511627776-"));
        check(Some("-51"), Some("-1048576"));
        check(Some("-2000000"), Some("-2000000"));
        check(Some("-99999999999999999999999999"), None);
        check(Some("0-0"), Some("0-1048575"));
        check(Some("1073000000-1073000999"), Some("1072693248-1073741823"));
        check(Some("5-99999999999999999999999999"), Some("5-"));
        assert_eq!(first_request(None, 4), Some(Range::Closed { first: 0, last: SEGMENT - 1 }));
    }

    #[test]
    fn the_first_request_for_several_ranges() {
        let check = |list: &[&str], expected: &str| {
            let ranges: Vec<_> = list.iter().map(|text| Range::parse(text).unwrap()).collect();
            assert_eq!(first_of_several(&ranges).to_string(), format!("bytes={expected}"), "{list:?}");
        };
        check(&["5-9", "40000000-40000009"], "5-1048575");
        check(&["40000000-40000009", "5-9"], "40000000-40894463");
        check(&["5-9", "3145728-3145729", "1048576-2097152"], "5-4194303");
        check(&["5-9", "-51", "7-"], "5-1048575");
        check(&["-51", "5-9"], "-51");
        check(&["5-", "0-1"], "5-5");
        check(&["99999999999999999999-", "0-1"], "18446744073709551615-18446744073709551615");
        check(&["5-99999999999999999999", "0-1"], "5-18446744073709551615");
    }

    #[test]
    fn everything_comes_over_one_connection() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
        schedule.ask(None);
        let whole = need(0, 100 * MIB, true);
        assert_eq!(spans(&mut schedule, &[whole, whole]), [span(0, 100 * MIB)]);
    }

    #[test]
    fn what_is_far_is_fetched_at_once_and_what_is_near_is_waited_for() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
        schedule.ask(None);
        let whole = need(0, 100 * MIB, true);
        let main = schedule.next(&[whole]).unwrap();
        assert_eq!(spans(&mut schedule, &[whole, need(4 * MIB, 5 * MIB, false)]), []);
        let footer = need(99 * MIB + 5, 99 * MIB + 6, false);
        assert_eq!(spans(&mut schedule, &[whole, footer]), [span(99 * MIB, 100 * MIB)]);
        let onward = need(50 * MIB + 7, 100 * MIB, true);
        assert_eq!(spans(&mut schedule, &[whole, footer, onward]), [span(50 * MIB + 7, 99 * MIB)]);
        let receipt = schedule.receive(main.id, span(0, 51 * MIB), 100 * MIB);
        assert_eq!(receipt, Receipt { keep: Some(span(0, 50 * MIB + 7)), is_done: true });
    }

    #[test]
    fn near_is_what_a_connection_will_soon_bring() {
        let begun = Instant::now();
        let far = |mebibytes_per_second: u64, distance: u64| {
            let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
            schedule.at(begun).ask(None);
            let main = schedule.next(&[]).unwrap();
            for second in 1..=3 {
                let at = (second - 1) * mebibytes_per_second;
                let came = span(at * MIB / 4, (at + mebibytes_per_second) * MIB / 4);
                schedule.at(begun + Duration::from_secs(second)).receive(main.id, came, 100 * MIB);
            }
            let start = schedule.claims[0].at + distance;
            spans(&mut schedule, &[need(start, start + 1, true)]).len() == 1
        };
        // In quarters of a mebibyte per second.
        assert!(far(1, MIB) && !far(1, MIB / 2));
        assert!(far(4, 3 * MIB) && !far(4, 2 * MIB));
        assert!(far(40, 5 * MIB) && !far(40, 4 * MIB));
    }

    #[test]
    fn what_is_read_later_cuts_nothing_that_is_under_way() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
        schedule.ask(Some(Range::Closed { first: 0, last: 40 * MIB - 1 }));
        let main = schedule.next(&[need(0, 40 * MIB, false)]).unwrap();
        let ahead = |start: u64| Need { is_ahead: true, ..need(start * MIB, (start + 1) * MIB, false) };
        assert_eq!(spans(&mut schedule, &[ahead(30), ahead(60)]), [span(60 * MIB, 61 * MIB)]);
        assert_eq!(spans(&mut schedule, &[need(30 * MIB, 31 * MIB, false)]), [span(30 * MIB, 31 * MIB)]);
        assert_eq!(schedule.wanted(main.id), Some((span(0, 30 * MIB), true)));
    }

    #[test]
    fn side_connections_are_bounded() {
        let mut schedule = Schedule::new(1000 * MIB, RangeSet::default(), 1);
        let needs: Vec<_> = (0..20).map(|n| need(n * 50 * MIB, n * 50 * MIB + 1, false)).collect();
        assert_eq!(spans(&mut schedule, &needs).len(), 1 + SIDES_MAX);
    }

    #[test]
    fn several_connections_take_the_earliest_segments() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 3);
        schedule.ask(None);
        let first = [span(0, 16 * MIB), span(16 * MIB, 32 * MIB), span(32 * MIB, 48 * MIB)];
        assert_eq!(spans(&mut schedule, &[need(0, 100 * MIB, true)]), first);
        let mut small = Schedule::new(32 * MIB, RangeSet::default(), 3);
        small.ask(None);
        assert_eq!(spans(&mut small, &[]), [span(0, 32 * MIB)]);
    }

    #[test]
    fn a_connection_goes_on_with_what_nobody_else_brings() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
        schedule.ask(None);
        let main = schedule.next(&[]).unwrap();
        let side = schedule.next(&[need(50 * MIB, 51 * MIB, false)]).unwrap();
        assert_eq!(side.span, span(50 * MIB, 51 * MIB));
        // The side turns out to be ignored by upstream, so what it claimed is free again.
        schedule.ignores_ranges();
        assert_eq!(schedule.wanted(side.id), None);
        let receipt = schedule.receive(main.id, span(0, 50 * MIB), 100 * MIB);
        assert_eq!(receipt, Receipt { keep: Some(span(0, 50 * MIB)), is_done: false });
        assert_eq!(schedule.wanted(main.id), Some((span(50 * MIB, 100 * MIB), false)));
    }

    #[test]
    fn a_connection_that_cannot_be_had_leaves_its_part_to_the_others() {
        let mut schedule = Schedule::new(100 * MIB, RangeSet::default(), 1);
        schedule.ask(None);
        let main = schedule.next(&[]).unwrap();
        let needs = [need(50 * MIB, 51 * MIB, false), need(70 * MIB, 71 * MIB, false)];
        let side = schedule.next(&needs).unwrap();
        assert!(schedule.give_up(side.id));
        assert_eq!(schedule.next(&needs), None);
        let receipt = schedule.receive(main.id, span(0, 100 * MIB), 100 * MIB);
        assert_eq!(receipt, Receipt { keep: Some(span(0, 50 * MIB)), is_done: false });
        assert!(!schedule.give_up(main.id), "it is the last");
    }

    #[test]
    fn a_content_whose_size_turns_out_is_asked_for_to_its_end() {
        let whole = need(0, 1000 * MIB, true);
        let mut schedule = Schedule::new(1000 * MIB, RangeSet::default(), 1).without_sides();
        schedule.ask(None);
        let only = schedule.adopt(span(0, 1000 * MIB)).unwrap();
        schedule.receive(only.id, span(0, 3 * MIB), 1000 * MIB);
        assert_eq!(spans(&mut schedule, &[whole, need(90 * MIB, 91 * MIB, false)]), [], "no sides");
        assert_eq!(schedule.wanted(only.id), Some((span(3 * MIB, 1000 * MIB), true)));
        schedule.learn(5 * MIB);
        assert_eq!(schedule.wanted(only.id), Some((span(3 * MIB, 5 * MIB), true)));
        assert!(!schedule.is_whole() && schedule.is_whole_asked());
        let receipt = schedule.receive(only.id, span(3 * MIB, 5 * MIB), 5 * MIB);
        assert_eq!(receipt, Receipt { keep: Some(span(3 * MIB, 5 * MIB)), is_done: true });
        assert!(schedule.is_whole());

        let mut ended = Schedule::new(1000 * MIB, RangeSet::default(), 1).without_sides();
        ended.ask(None);
        let only = ended.adopt(span(0, 1000 * MIB)).unwrap();
        ended.receive(only.id, span(0, MIB), 1000 * MIB);
        ended.learn(MIB);
        assert!(ended.is_whole() && ended.wanted(only.id).is_none());
    }

    #[test]
    fn without_ranges_what_is_there_is_passed_over() {
        let mut have = RangeSet::prefix(5);
        have.insert(span(10, 20));
        let mut schedule = Schedule::new(30, have, 1);
        schedule.ignores_ranges();
        let only = schedule.adopt(span(0, 30)).unwrap();
        assert_eq!(schedule.receive(only.id, span(0, 4), 30), Receipt::default());
        let check = |schedule: &mut Schedule, came: Span, keep: Span, is_done: bool| {
            assert_eq!(schedule.receive(only.id, came, 30), Receipt { keep: Some(keep), is_done });
        };
        check(&mut schedule, span(4, 30), span(5, 10), false);
        check(&mut schedule, span(10, 30), span(20, 30), true);
        assert!(schedule.is_whole());
    }

    proptest! {
        /// Whatever is asked, in whatever order answers come and break off: all of it comes, and nothing twice.
        #[test]
        fn all_that_was_asked_comes_and_nothing_twice(
            total in 1..200 * MIB,
            connections in 1..5_usize,
            there in proptest::collection::vec((0..200 * MIB, 0..20 * MIB), 0..4),
            asks in proptest::collection::vec((0..200 * MIB, 0..200 * MIB, 0..4), 1..6),
            seed: u64,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut came = RangeSet::default();
            for (start, len) in there {
                came.insert(span(start.min(total), (start + len).min(total)));
            }
            let mut schedule = Schedule::new(total, came.clone(), connections);
            let (mut needs, mut jobs, mut asks) = (Vec::new(), Vec::<Job>::new(), asks);
            loop {
                if let Some((a, b, kind)) = asks.pop() {
                    let (first, last) = (a.min(b), a.max(b));
                    let range = match kind { 0 => None, 1 => Some(Range::From(first)), 2 => Some(Range::Suffix(a)), _ => Some(Range::Closed { first, last }) };
                    schedule.ask(range);
                    if let Ok(span) = range.map_or_else(|| Ok(Span::whole(total)), |range| range.resolve(total)) {
                        needs.push(Need { span, is_open: matches!(range, None | Some(Range::From(_))), is_ahead: random.bool() });
                    }
                }
                jobs.extend(std::iter::from_fn(|| schedule.next(&needs)));
                let mut claims: Vec<_> = schedule.claims.iter().map(|claim| span(claim.at, claim.end)).collect();
                claims.sort_by_key(|claim| claim.start);
                prop_assert!(claims.windows(2).all(|pair| pair[0].end <= pair[1].start), "{claims:?}");
                prop_assert!(claims.len() <= connections + SIDES_MAX);
                if jobs.is_empty() {
                    if asks.is_empty() { break }
                    continue;
                }
                let index = random.usize(..jobs.len());
                let job = jobs[index];
                let at = schedule.begins_at(job.id).unwrap();
                let chunk = span(at, (at + random.u64(1..=8 * MIB)).min(job.span.end));
                let receipt = schedule.receive(job.id, chunk, job.span.end);
                let keep = receipt.keep.unwrap();
                prop_assert!(came.gap(keep) == Some(keep), "{keep:?} came twice");
                came.insert(keep);
                if receipt.is_done {
                    jobs.swap_remove(index);
                }
            }
            for need in needs {
                prop_assert!(came.contains(need.span), "{need:?}");
            }
        }
    }
}
