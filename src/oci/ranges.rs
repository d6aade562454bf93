//! The `Range` header of a request as a whole: one range, or several in an order of their own.
//!
//! After RFC 9110 sections 14.2 and 15.3.7. A header that is no list of byte ranges is no error: the whole content
//! with 200 is always a right answer. Several ranges are answered with a part for each, never with fewer that are
//! merged: containers/image counts the parts. What would make a small request a large answer is refused, and with
//! 400: that client then asks again for half as many, while a 200 would cost it everything.

use super::range::{Range, Span, Unsatisfiable};

/// Ranges of one request. containers/storage asks for so many at most.
pub const RANGES_MAX: usize = 1024;
/// How many of them may begin within what lies before them: RFC 9110 section 14.2 takes more for an attack.
const OVERLAPS_MAX: usize = 2;

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// One range.
    One(Range),
    /// Two or more, in the order in which they were asked for.
    Several(Box<[Range]>),
}

/// A part of the content that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its bytes.
    pub span: Span,
    /// It ends where the content does because no end was asked for: then its end waits until the whole is proven.
    pub is_open: bool,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// This part, as the body.
    One(Part),
    /// Each of these, framed.
    Several(Box<[Part]>),
}

/// Why ranges are not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More ranges than [`RANGES_MAX`]: answer 400, before anything else is done.
    #[error("more than {RANGES_MAX} ranges in one request: ask for fewer at once")]
    TooMany,
    /// No byte of the content lies in any of them: answer 416.
    #[error(transparent)]
    Unsatisfiable(#[from] Unsatisfiable),
    /// They have more bytes than the content: answer 400.
    #[error("the ranges are together longer than the blob: ask for each byte once")]
    TooLong,
    /// They overlap too often: answer 400.
    #[error("the ranges overlap in more than {OVERLAPS_MAX} places: ask for each byte once")]
    Overlapping,
}

impl Ranges {
    /// Reads a `Range` header. `None` means: answer with the whole content.
    ///
    /// # Errors
    /// [`Refusal::TooMany`].
    pub fn parse(header: &str) -> Result<Option<Self>, Refusal> {
        let Some((unit, list)) = header.split_once('=') else { return Ok(None) };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(None);
        }
        // Members of a list may be empty, and count for nothing (RFC 9110, 5.6.1).
        let is_between = |byte: &u8| matches!(byte, b',' | b' ' | b'\t');
        let (mut list, mut several) = (behind(list.as_bytes(), is_between), Vec::new());
        // Nearly all requests have one, which is to cost no memory.
        let mut only = None;
        while !list.is_empty() {
            let Some((range, rest)) = Range::read(list) else { return Ok(None) };
            let rest = rest.trim_ascii_start();
            if !matches!(rest.first(), None | Some(b',')) {
                return Ok(None);
            }
            if several.len() == RANGES_MAX {
                return Err(Refusal::TooMany);
            }
            match only {
                None => only = Some(range),
                Some(first) if several.is_empty() => several.extend([first, range]),
                Some(_) => several.push(range),
            }
            list = behind(rest, is_between);
        }
        Ok(if several.is_empty() { only.map(Self::One) } else { Some(Self::Several(several.into())) })
    }

    /// Whether all of them go to the end because no end was asked for.
    pub fn are_open(&self) -> bool {
        let is_open = |range: &Range| matches!(range, Range::From(_));
        match self {
            Self::One(range) => is_open(range),
            Self::Several(ranges) => ranges.iter().all(is_open),
        }
    }

    /// What a content of `total` bytes has in them. What lies behind its end is left out, as long as anything remains.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn select(&self, total: u64) -> Result<Selection, Refusal> {
        let ranges = match self {
            Self::One(range) => return Ok(Selection::One(range.part(total)?)),
            Self::Several(ranges) => ranges,
        };
        let parts: Vec<Part> = ranges.iter().filter_map(|range| range.part(total).ok()).collect();
        match parts[..] {
            [] => return Err(Unsatisfiable.into()),
            [part] => return Ok(Selection::One(part)),
            _ => {}
        }
        if parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.span.len())) > total {
            return Err(Refusal::TooLong);
        }
        if overlaps(&parts) > OVERLAPS_MAX {
            return Err(Refusal::Overlapping);
        }
        Ok(Selection::Several(parts.into()))
    }
}

impl Range {
    fn part(self, total: u64) -> Result<Part, Unsatisfiable> {
        Ok(Part { span: self.resolve(total)?, is_open: matches!(self, Self::From(_)) })
    }
}

impl Part {
    /// All of a content.
    pub fn whole(total: u64) -> Self {
        Self { span: Span::whole(total), is_open: true }
    }
}

impl Selection {
    /// The parts, in the order in which they are sent.
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::One(part) => std::slice::from_ref(part),
            Self::Several(parts) => parts,
        }
    }
}

/// What is left of `list` behind the bytes of this kind that it begins with.
fn behind(list: &[u8], is_passed: impl Fn(&u8) -> bool) -> &[u8] {
    &list[list.iter().position(|byte| !is_passed(byte)).unwrap_or(list.len())..]
}

/// How many of these parts begin before the end of the one that is sent just before them.
pub fn steps_back(parts: &[Part]) -> usize {
    parts.windows(2).filter(|pair| pair[1].span.start < pair[0].span.end).count()
}

/// How many of these parts begin within what lies before them in the content.
fn overlaps(parts: &[Part]) -> usize {
    if steps_back(parts) == 0 {
        return 0;
    }
    let mut spans: Vec<Span> = parts.iter().map(|part| part.span).collect();
    spans.sort_unstable_by_key(|span| span.start);
    let mut reached = 0;
    let begins_within = |span: &&Span| {
        let is_within = span.start < reached;
        reached = reached.max(span.end);
        is_within
    };
    spans.iter().filter(begins_within).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is sent of 100 bytes, as text: parts, or why not.
    fn selected(header: &str) -> String {
        let ranges = match Ranges::parse(header) {
            Ok(Some(ranges)) => ranges,
            Ok(None) => return "whole".to_owned(),
            Err(refusal) => return format!("{refusal:?}"),
        };
        let text = |part: &Part| {
            let Part { span: Span { start, end }, is_open } = part;
            format!("{start}-{end}{}", if *is_open { "+" } else { "" })
        };
        match ranges.select(100) {
            Ok(Selection::One(part)) => format!("one {}", text(&part)),
            Ok(Selection::Several(parts)) => parts.iter().map(text).collect::<Vec<_>>().join(" "),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    #[test]
    fn several_ranges_are_sent_as_they_were_asked_for() {
        let check = |list: &str, expected: &str| {
            assert_eq!(selected(&format!("bytes={list}")), expected, "{list}");
        };
        check("0-3,10-19", "0-4 10-20");
        check("10-19,0-3", "10-20 0-4");
        check("0-3,4-7,8-8", "0-4 4-8 8-9");
        check("5-,0-3", "5-100+ 0-4");
        check("0-3,-5", "0-4 95-100");
        check(" 0-3 ,\t10-19\t", "0-4 10-20");
        check("0-3,90-200", "0-4 90-100");
        check("0-49,50-", "0-50 50-100+");
    }

    #[test]
    fn empty_members_count_for_nothing_and_one_range_is_one() {
        for list in ["0-3", "0-3,", ",0-3", ",,0-3,,", " , 0-3 , ", "0-3,\t,"] {
            assert_eq!(selected(&format!("bytes={list}")), "one 0-4", "{list:?}");
        }
        assert_eq!(selected("bytes=0-3,,10-19"), "0-4 10-20");
        assert_eq!(selected("Bytes=0-3,10-19"), "0-4 10-20");
        for list in ["", ",", ",,", " , "] {
            assert_eq!(selected(&format!("bytes={list}")), "whole", "{list:?}");
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_left_out() {
        let check = |list: &str, expected: &str| {
            assert_eq!(selected(&format!("bytes={list}")), expected, "{list}");
        };
        check("0-3,100-,10-19", "0-4 10-20");
        check("100-200,0-3", "one 0-4");
        check("-0,5-", "one 5-100+");
        check("100-,-0,99999999999999999999999-", "Unsatisfiable(Unsatisfiable)");
    }

    #[test]
    fn a_member_that_is_no_range_spoils_the_list() {
        for list in
            ["0-3,5-1", "0-3,x", "x,0-3", "0-3,-", "0-3;10-19", "0-3,10", "0-3,1 -2", "0-3,10-19,+1-2"]
        {
            assert_eq!(selected(&format!("bytes={list}")), "whole", "{list}");
        }
        assert_eq!(selected("bytes=0-3,bytes=10-19"), "whole");
        assert_eq!(selected("lines=0-3,10-19"), "whole");
    }

    #[test]
    fn what_would_make_a_small_request_a_large_answer_is_refused() {
        let check = |list: &str, expected: &str| {
            assert_eq!(selected(&format!("bytes={list}")), expected, "{list}");
        };
        check("0-,0-", "TooLong");
        check("0-98,1-2", "TooLong");
        check("0-49,0-49", "0-50 0-50");
        check("0-3,0-3,0-3", "0-4 0-4 0-4");
        check("0-3,0-3,0-3,0-3", "Overlapping");
        check("0-9,20-29,5-24,22-23", "Overlapping");
        check("0-9,20-29,5-24", "0-10 20-30 5-25");
        check("0-49,1-1,3-3,5-5", "Overlapping");
        let many = |count: usize| format!("bytes={}", "0-0,".repeat(count));
        assert_eq!(selected(&many(RANGES_MAX)), "TooLong");
        assert_eq!(selected(&many(RANGES_MAX + 1)), "TooMany");
        let apart: Vec<_> = (0..RANGES_MAX).map(|at| format!("{}-{}", 2 * at, 2 * at)).collect();
        let ranges = Ranges::parse(&format!("bytes={}", apart.join(","))).unwrap().unwrap();
        assert_eq!(ranges.select(4096).unwrap().parts().len(), RANGES_MAX);
    }

    proptest! {
        /// Whatever is asked: parts lie within the content, in the order of the header, and are no more than it is.
        #[test]
        fn parts_are_those_of_the_header_and_no_more_than_the_content(
            asked in proptest::collection::vec((0..120_u64, 0..120_u64), 2..8),
            total in 1..100_u64,
        ) {
            let asked: Vec<(u64, u64)> = asked.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let list: Vec<_> = asked.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let ranges = Ranges::parse(&format!("bytes={}", list.join(","))).unwrap().unwrap();
            let there = asked.iter().filter(|(first, _)| *first < total);
            let expected: Vec<Span> =
                there.map(|(first, last)| Span { start: *first, end: (last + 1).min(total) }).collect();
            let sum: u64 = expected.iter().map(Span::len).sum();
            // Bytes that lie in more than one of them, at the borders where another begins.
            let within = |at: usize| {
                let before = |other: usize| (expected[other].start, other) < (expected[at].start, at);
                (0..expected.len()).any(|other| before(other) && expected[other].end > expected[at].start)
            };
            let overlapping = (0..expected.len()).filter(|at| within(*at)).count();
            match ranges.select(total) {
                Err(Refusal::Unsatisfiable(_)) => prop_assert!(expected.is_empty()),
                Err(Refusal::TooLong) => prop_assert!(expected.len() > 1 && sum > total),
                Err(Refusal::Overlapping) => prop_assert!(overlapping > OVERLAPS_MAX),
                Err(Refusal::TooMany) => prop_assert!(false),
                Ok(selection) => {
                    let parts: Vec<Span> = selection.parts().iter().map(|part| part.span).collect();
                    prop_assert_eq!(&parts, &expected);
                    prop_assert!(parts.len() == 1 || (sum <= total && overlapping <= OVERLAPS_MAX));
                }
            }
        }
    }
}
