//! Byte ranges: what a client asked, what it is answered, and what an upstream says it answers.
//!
//! After RFC 9110 section 14. A whole header, which may name several, is read by [`Ranges`](super::ranges::Ranges).

use std::fmt;

/// One range as a client asked for it, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `bytes=first-last`, both included.
    Closed {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte, not before `first`.
        last: u64,
    },
    /// `bytes=first-`: all from there.
    From(u64),
    /// `bytes=-n`: the last n bytes.
    Suffix(u64),
}

/// A part of a content: never empty when it comes from [`Range::resolve`] or [`ContentRange::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

/// No byte of the content lies in the range: answer 416.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range begins behind the end of the content")]
pub struct Unsatisfiable;

/// What an upstream says a 206 holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes in the body.
    pub span: Span,
    /// The size of the whole, unless upstream keeps it to itself (`*`).
    pub total: Option<u64>,
}

impl Range {
    /// Reads one member of the list that a `Range` header has behind `bytes=`; `None` for what is no range.
    pub fn parse(member: &str) -> Option<Self> {
        let (range, rest) = Self::read(member.as_bytes())?;
        rest.is_empty().then_some(range)
    }

    /// Reads the member that begins `list`, with what stands behind it.
    pub(super) fn read(list: &[u8]) -> Option<(Self, &[u8])> {
        let (first, list) = offset(list);
        let (last, rest) = offset(list.strip_prefix(b"-")?);
        let range = match (first, last) {
            (None, Some(length)) => Self::Suffix(length),
            (Some(first), None) => Self::From(first),
            (Some(first), Some(last)) if first <= last => Self::Closed { first, last },
            _ => return None,
        };
        Some((range, rest))
    }

    /// The bytes that a content of `total` bytes has in this range, cut at its end.
    ///
    /// # Errors
    /// [`Unsatisfiable`] when there are none; so for every range of an empty content.
    pub fn resolve(self, total: u64) -> Result<Span, Unsatisfiable> {
        let (start, end) = match self {
            Self::Closed { first, last } => (first, last.saturating_add(1).min(total)),
            Self::From(first) => (first, total),
            Self::Suffix(length) => (total.saturating_sub(length), total),
        };
        if start < end { Ok(Span { start, end }) } else { Err(Unsatisfiable) }
    }
}

/// As a request carries it.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { first, last } => write!(f, "bytes={first}-{last}"),
            Self::From(first) => write!(f, "bytes={first}-"),
            Self::Suffix(length) => write!(f, "bytes=-{length}"),
        }
    }
}

impl Span {
    /// All of a content of `total` bytes.
    pub fn whole(total: u64) -> Self {
        Self { start: 0, end: total }
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte, which only [`Span::whole`] of an empty content does.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The `Content-Range` of a 206 with this part of `total` bytes.
    pub fn content_range(&self, total: u64) -> String {
        format!("bytes {}-{}/{total}", self.start, self.end.saturating_sub(1))
    }
}

impl Unsatisfiable {
    /// The `Content-Range` of a 416 for a content of `total` bytes.
    pub fn content_range(self, total: u64) -> String {
        format!("bytes */{total}")
    }
}

impl ContentRange {
    /// Reads a `Content-Range` header of a 206; `None` for nonsense and for what only a 416 may say.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, rest) = header.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (exact(first)?, exact(last)?);
        let total = if total == "*" { None } else { Some(exact(total)?) };
        let sound = first <= last && last < total.unwrap_or(u64::MAX);
        (sound && unit.eq_ignore_ascii_case("bytes"))
            .then(|| Self { span: Span { start: first, end: last + 1 }, total })
    }
}

/// The number that `text` begins with, if it does, and what stands behind it. One too large for 64 bits lies behind the
/// end of any content all the same, so it counts as the largest. By hand: a request may have two thousand of them, and its
/// answer waits.
fn offset(text: &[u8]) -> (Option<u64>, &[u8]) {
    let length = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(length);
    let values = digits.iter().map(|byte| u64::from(byte - b'0'));
    let number = match length {
        0 => None,
        // None of these overflows.
        1..=19 => Some(values.fold(0, |number, digit| number * 10 + digit)),
        _ => Some(values.fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(digit))),
    };
    (number, rest)
}

/// A number of digits only that must fit: upstream's word is compared, not cut.
fn exact(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::ranges::{Part, RANGES_MAX, Ranges, Selection};

    /// The range of a header that has no more than one.
    fn range(header: &str) -> Option<Range> {
        match Ranges::parse(header) {
            Ok(Some(Ranges::One(range))) => Some(range),
            Ok(None) => None,
            other => panic!("{header}: {other:?}"),
        }
    }

    #[test]
    fn one_range_of_bytes_is_a_range_and_all_else_is_the_whole() {
        let check = |header: &str, expected: Option<Range>| assert_eq!(range(header), expected, "{header}");
        check("bytes=0-", Some(Range::From(0)));
        check("bytes=16777216-", Some(Range::From(16_777_216)));
        check("bytes=500-1499", Some(Range::Closed { first: 500, last: 1499 }));
        check("Bytes = 0-0", Some(Range::Closed { first: 0, last: 0 }));
        check("bytes=-500", Some(Range::Suffix(500)));
        check("bytes=-0", Some(Range::Suffix(0)));
        check("bytes=99999999999999999999999-", Some(Range::From(u64::MAX)));
        let whole = ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=500-0"];
        for header in
            whole.iter().chain(&["lines=0-1", "bytes=+1-2", "bytes=0--1", "bytes=0x1-", "bytes=1 -2"])
        {
            check(header, None);
        }
    }

    #[test]
    fn ranges_are_cut_at_the_end_and_refused_behind_it() {
        let check = |header: &str, total: u64, expected: &str| {
            let answer = match range(header).unwrap().resolve(total) {
                Ok(span) => span.content_range(total),
                Err(unsatisfiable) => unsatisfiable.content_range(total),
            };
            assert_eq!(answer, expected, "{header} of {total}");
        };
        check("bytes=0-", 10, "bytes 0-9/10");
        check("bytes=9-", 10, "bytes 9-9/10");
        check("bytes=10-", 10, "bytes */10");
        check("bytes=2-3", 10, "bytes 2-3/10");
        check("bytes=2-99", 10, "bytes 2-9/10");
        check("bytes=2-18446744073709551615", 10, "bytes 2-9/10");
        check("bytes=10-11", 10, "bytes */10");
        check("bytes=-3", 10, "bytes 7-9/10");
        check("bytes=-99", 10, "bytes 0-9/10");
        check("bytes=-0", 10, "bytes */10");
        check("bytes=0-", 0, "bytes */0");
        check("bytes=-1", 0, "bytes */0");
    }

    #[test]
    fn what_upstream_says_of_a_part_must_make_sense() {
        let check = |header: &str, expected: Option<(u64, u64, Option<u64>)>| {
            let parsed = ContentRange::parse(header).map(|it| (it.span.start, it.span.end, it.total));
            assert_eq!(parsed, expected, "{header}");
        };
        check("bytes 0-9/100", Some((0, 10, Some(100))));
        check("bytes 0-9/*", Some((0, 10, None)));
        check("bytes 90-99/100", Some((90, 100, Some(100))));
        let nonsense =
            ["", "bytes", "bytes */100", "bytes 9-0/100", "bytes 0-100/100", "bytes 0-9", "bytes=0-9/100"];
        for header in nonsense.iter().chain(&["bytes 0-/9", "lines 0-9/100", "bytes 0-9/", "bytes -1-9/100"])
        {
            check(header, None);
        }
        check("bytes 0-18446744073709551615/*", None);
        check("bytes 0-99999999999999999999/*", None);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in ".*", total: u64) {
            let _ = Ranges::parse(&header).map(|ranges| ranges.map(|ranges| ranges.select(total)));
            let _ = ContentRange::parse(&header);
        }

        #[test]
        fn a_range_reads_back_as_written(first: u64, last: u64, kind in 0..3) {
            let range = match kind {
                0 => Range::Closed { first: first.min(last), last: first.max(last) },
                1 => Range::From(first),
                _ => Range::Suffix(first),
            };
            prop_assert_eq!(Ranges::parse(&range.to_string()), Ok(Some(Ranges::One(range))));
        }

        #[test]
        fn an_answer_lies_within_the_content_and_reads_back(header in "bytes=[0-9]{0,3}-[0-9]{0,3}", total in 0..999u64) {
            if let Some(Ok(span)) = range(&header).map(|range| range.resolve(total)) {
                prop_assert!(!span.is_empty() && span.end <= total && span.len() <= total);
                let answered = ContentRange::parse(&span.content_range(total));
                prop_assert_eq!(answered, Some(ContentRange { span, total: Some(total) }));
            }
        }
    }

    #[test]
    fn fuzzed_ranges_lie_within_the_content() {
        let target = crate::fuzz::Target {
            name: "range",
            words: &[
                "bytes",
                "=",
                "-",
                "/",
                "*",
                ",",
                " ",
                "\t",
                "0",
                "1",
                "99",
                "+1",
                "0x",
                "\n",
                "18446744073709551615",
                "18446744073709551616",
            ],
        };
        target.holds(|input| {
            let text = String::from_utf8_lossy(input);
            let (header, total) = text.split_once('\n').unwrap_or((&text, "1000"));
            let total = total.trim().parse().unwrap_or(1000);
            if let Ok(Some(ranges)) = Ranges::parse(header) {
                let of_header = match &ranges {
                    Ranges::One(range) => std::slice::from_ref(range),
                    Ranges::Several(ranges) => ranges,
                };
                assert!((1..=RANGES_MAX).contains(&of_header.len()));
                // Each as it would be asked alone, without its unit.
                let texts = of_header.iter().map(|range| range.to_string().split_off("bytes=".len()));
                let written = format!("bytes={}", texts.collect::<Vec<_>>().join(","));
                assert_eq!(Ranges::parse(&written), Ok(Some(ranges.clone())));
                if let Ok(selection) = ranges.select(total) {
                    let parts = selection.parts();
                    assert_eq!(parts.len() > 1, matches!(selection, Selection::Several(_)));
                    for Part { span, .. } in parts {
                        assert!(span.start < span.end && span.end <= total);
                        let said = ContentRange { span: *span, total: Some(total) };
                        assert_eq!(ContentRange::parse(&span.content_range(total)), Some(said));
                    }
                    let bytes: u128 = parts.iter().map(|part| u128::from(part.span.len())).sum();
                    assert!(bytes <= u128::from(total));
                }
            }
            if let Some(ContentRange { span, total }) = ContentRange::parse(header) {
                assert!(span.start < span.end && total.is_none_or(|total| span.end <= total));
            }
        });
    }
}
