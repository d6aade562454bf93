//! The framing of a `multipart/byteranges` body (RFC 9110, section 14.6; RFC 2046, section 5.1.1).
//!
//! The length of the whole body is computed before the first part is framed, and without making any of it: a request may
//! name a thousand parts.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};

use bytes::Bytes;

use crate::oci::ranges::Part;

/// The text before and after the numbers in the header of a part.
const BEFORE_NUMBERS: &str = "\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes ";
const BEHIND_NUMBERS: &str = "\r\n\r\n";

/// Bytes of memory for the header of a part: more than any needs.
const FRAME_BYTES_MAX: usize = 192;

/// The framing of one body.
pub(crate) struct Framing {
    /// The boundary: 128 bits that nobody can guess, so that content made by a stranger cannot contain it.
    boundary: String,
    /// Bytes of the whole content.
    total: u64,
    /// Whether a part has been framed: the line break after a part comes with the header of the next.
    has_begun: bool,
    /// Whether the first part has been sent.
    is_first_sent: bool,
}

impl Framing {
    /// The framing of parts of a content of `total` bytes.
    pub(crate) fn new(total: u64) -> Box<Self> {
        let keys = RandomState::new();
        let boundary = format!("{:016x}{:016x}", keys.hash_one(0_u8), keys.hash_one(1_u8));
        Box::new(Self { boundary, total, has_begun: false, is_first_sent: false })
    }

    /// The `Content-Type` of the response.
    pub(crate) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Bytes of the whole body: the parts and their framing.
    pub(crate) fn length(&self, parts: &[Part]) -> u64 {
        let fixed =
            "\r\n--".len() + self.boundary.len() + BEFORE_NUMBERS.len() + "-/".len() + BEHIND_NUMBERS.len();
        let fixed = fixed as u64 + digits(self.total);
        let of_part =
            |Part { span, .. }: &Part| fixed + digits(span.start) + digits(span.end - 1) + span.len();
        let end = "\r\n----\r\n".len() + self.boundary.len();
        // The first part begins without a line break.
        parts.iter().map(of_part).sum::<u64>() + end as u64 - "\r\n".len() as u64
    }

    /// Whether the first part has ended; true once. A client can begin with it, and need not wait for others.
    pub(crate) fn is_first_over(&mut self) -> bool {
        self.has_begun && !std::mem::replace(&mut self.is_first_sent, true)
    }

    /// The header of the next part.
    pub(crate) fn begin(&mut self, part: Part) -> Bytes {
        let line_break = if std::mem::replace(&mut self.has_begun, true) { "\r\n" } else { "" };
        let (Self { boundary, total, .. }, span) = (self, part.span);
        let last = span.end - 1;
        let mut frame = String::with_capacity(FRAME_BYTES_MAX);
        // A String takes all that is written.
        let _ = write!(
            frame,
            "{line_break}--{boundary}{BEFORE_NUMBERS}{}-{last}/{total}{BEHIND_NUMBERS}",
            span.start
        );
        frame.into()
    }

    /// The end of the body, after the last part.
    pub(crate) fn end(&self) -> Bytes {
        format!("\r\n--{}--\r\n", self.boundary).into()
    }
}

/// The number of decimal digits of a number.
fn digits(number: u64) -> u64 {
    u64::from(number.checked_ilog10().unwrap_or(0) + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::range::Span;

    #[test]
    fn numbers_are_as_long_as_their_text() {
        for number in [0, 1, 9, 10, 99, 100, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(digits(number), number.to_string().len() as u64, "{number}");
        }
    }

    #[test]
    fn two_answers_have_different_boundaries() {
        let boundaries: std::collections::BTreeSet<_> = (0..100).map(|_| Framing::new(1).boundary).collect();
        assert_eq!(boundaries.len(), 100);
        assert!(
            boundaries.iter().all(|it| it.len() == 32 && it.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }

    proptest! {
        #[test]
        fn the_length_is_that_of_what_is_made(
            parts in proptest::collection::vec((0..u64::MAX / 2, 1..1_000_000_u64), 1..20),
            total: u64,
        ) {
            let part = |(start, len): (u64, u64)| Part { span: Span { start, end: start + len }, is_open: false };
            let parts: Vec<Part> = parts.into_iter().map(part).collect();
            let mut framing = Framing::new(total);
            let length = framing.length(&parts);
            let frames: u64 = parts.iter().map(|part| framing.begin(*part).len() as u64 + part.span.len()).sum();
            prop_assert_eq!(length, frames + framing.end().len() as u64);
        }
    }
}
