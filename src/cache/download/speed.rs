//! How fast a connection is. Pure: it is told when bytes came.

use std::time::{Duration, Instant};

/// What came in so long says how fast a connection is.
const WINDOW: Duration = Duration::from_secs(1);
/// Nothing is known before: the first bytes come in one burst, or one by one.
const KNOWN_AFTER: Duration = Duration::from_millis(250);

/// The speed of one connection.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) struct Speed {
    /// When the current window began, and what has come in it.
    since: Instant,
    bytes: u64,
    /// Bytes in the window before.
    before: Option<u64>,
}

impl Speed {
    /// Of a connection that begins now.
    pub(in crate::cache) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, before: None }
    }

    /// Bytes have come.
    pub(in crate::cache) fn came(&mut self, bytes: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = Some(within(WINDOW, self.bytes, passed));
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// How many bytes it will bring in this time, if it goes on as it does; none if nothing is known yet.
    pub(in crate::cache) fn reach(&self, time: Duration, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since);
        match self.before {
            // A window that has just begun says less than the one before.
            Some(before) if passed < WINDOW => Some(within(time, before.max(self.bytes), WINDOW)),
            None if passed < KNOWN_AFTER => None,
            Some(_) | None => Some(within(time, self.bytes, passed)),
        }
    }
}

/// What is brought in `time` by what brings `bytes` in `passed`.
fn within(time: Duration, bytes: u64, passed: Duration) -> u64 {
    let reach = u128::from(bytes) * time.as_millis() / passed.as_millis().max(1);
    u64::try_from(reach).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_as_fast_as_it_was_last() {
        let (begun, two) = (Instant::now(), Duration::from_secs(2));
        let at = |milliseconds: u64| begun + Duration::from_millis(milliseconds);
        let mut speed = Speed::new(begun);
        speed.came(1000, at(10));
        assert_eq!(speed.reach(two, at(100)), None, "one burst");
        assert_eq!(speed.reach(two, at(500)), Some(4000));
        speed.came(1000, at(1000));
        assert_eq!(speed.reach(two, at(1010)), Some(2000), "the window before");
        speed.came(5000, at(1100));
        assert_eq!(speed.reach(two, at(1200)), Some(12_000), "it has become faster");
        assert_eq!(speed.reach(two, at(5000)), Some(3000), "it has become slower");
        assert_eq!(speed.reach(two, at(13_000)), Some(1000), "nothing comes any more");
    }
}
