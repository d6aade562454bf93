//! The speed of a connection. Pure: the caller tells it when bytes came.

use std::time::{Duration, Instant};

/// The length of the windows over which the speed is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// The speed is unknown before this time has passed: the first bytes come in one burst, or one by one.
const KNOWN_AFTER: Duration = Duration::from_millis(250);

/// The speed of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// When the current window began.
    since: Instant,
    bytes: u64,
    /// The bytes that came in the window before.
    before: Option<u64>,
}

impl Speed {
    /// The speed of a connection that begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, before: None }
    }

    /// Notes that `bytes` have come at `now`.
    pub(super) fn came(&mut self, bytes: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = Some(within(WINDOW, self.bytes, passed));
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// How many bytes the connection will bring within `time` if it goes on as it does; `None` while its speed is
    /// unknown.
    pub(super) fn reach(&self, time: Duration, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since);
        match self.before {
            // A window that has just begun says less than the one before.
            Some(before) if passed < WINDOW => Some(within(time, before.max(self.bytes), WINDOW)),
            None if passed < KNOWN_AFTER => None,
            Some(_) | None => Some(within(time, self.bytes, passed)),
        }
    }
}

/// The bytes that come in `time` at a speed of `bytes` in `passed`.
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
