//! The wall clock as records have it, and what of a recorded time is believed.
//!
//! Machines start with a wrong clock and are corrected later, so a record can have a time that has not come yet. **A
//! time of the future is no time**: it says nothing about an age, it never outlives the next confirmation, and nothing
//! waits for it to pass. A clock that is slewed, or set back by a moment, is no wrong clock: what is ahead by
//! `AHEAD_MAX_SECONDS` at most counts as just now.
//!
//! What only has to last while the process lives is timed by `Instant`, which no correction touches.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far ahead of the clock a time may be and still count as "now": more than the clocks of one site differ by.
const AHEAD_MAX_SECONDS: u64 = 60;

/// Now, in seconds since 1970; a clock before that counts as 1970.
pub fn unix_seconds() -> u64 {
    seconds_of(SystemTime::now())
}

/// A time of a file in seconds since 1970; one before that counts as 1970.
pub fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How many seconds ago `then` was; none if it is a time of the future.
pub fn age(then: u64, now: u64) -> Option<u64> {
    (then <= now.saturating_add(AHEAD_MAX_SECONDS)).then(|| now.saturating_sub(then))
}

/// Whether `limit` has not passed since `then`. A time of the future has no age, and is not within any limit.
pub fn is_within(then: u64, limit: Duration, now: u64) -> bool {
    age(then, now).is_some_and(|age| Duration::from_secs(age) < limit)
}

/// `then` as far as it is believed: a time of the future is zero, which stands for never.
pub fn believed(then: u64, now: u64) -> u64 {
    if age(then, now).is_some() { then } else { 0 }
}

/// The later of two times, of which one of the future does not count.
pub fn later(one: u64, other: u64, now: u64) -> u64 {
    believed(one, now).max(believed(other, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;
    const YEAR: u64 = 365 * 24 * 3600;

    #[test]
    fn a_time_of_the_future_is_no_time_and_a_moment_ahead_is_now() {
        let check = |then: u64, expected: Option<u64>| {
            assert_eq!(age(then, NOW), expected, "{then}");
            assert_eq!(believed(then, NOW), if expected.is_some() { then } else { 0 }, "{then}");
        };
        check(0, Some(NOW));
        check(NOW - 1, Some(1));
        check(NOW, Some(0));
        check(NOW + 1, Some(0));
        check(NOW + 60, Some(0));
        check(NOW + 61, None);
        check(NOW + YEAR, None);
        check(u64::MAX, None);
        assert_eq!(age(u64::MAX, u64::MAX), Some(0));
    }

    #[test]
    fn nothing_of_the_future_is_within_a_limit() {
        let minute = Duration::from_secs(60);
        let check = |then: u64, expected: bool| assert_eq!(is_within(then, minute, NOW), expected, "{then}");
        check(NOW - 60, false);
        check(NOW - 59, true);
        check(NOW, true);
        check(NOW + 60, true);
        check(NOW + 61, false);
        check(u64::MAX, false);
    }

    #[test]
    fn the_later_of_two_times_is_one_that_has_been() {
        let check = |one: u64, other: u64, expected: u64| {
            assert_eq!(later(one, other, NOW), expected, "{one} {other}");
            assert_eq!(later(other, one, NOW), expected, "{other} {one}");
        };
        check(3, 5, 5);
        check(NOW, NOW - 5, NOW);
        check(NOW + 30, NOW, NOW + 30);
        check(NOW + YEAR, NOW, NOW);
        check(NOW + YEAR, 0, 0);
        check(NOW + YEAR, NOW + 2 * YEAR, 0);
    }
}
