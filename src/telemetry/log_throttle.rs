//! A limit on how often the log tells of one trouble.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Least time between two lines of the log about the same trouble.
const INTERVAL: Duration = Duration::from_secs(10);

/// Says when another line about a trouble that comes in thousands may be written.
#[derive(Default)]
pub struct LogThrottle(Mutex<Option<Instant>>);

impl LogThrottle {
    /// A throttle that lets the first line through.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may be written now; if so, the next ones may not for a while.
    pub fn is_due(&self) -> bool {
        let mut last = lock(&self.0);
        let is_due = last.is_none_or(|last| last.elapsed() >= INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}
