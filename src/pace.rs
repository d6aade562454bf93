//! Limits per second: whoever comes is told at once when its turn is.
//!
//! Who cannot have its turn in time hears so now, with the time after which to come back, and takes nobody's. In which
//! order those wait who can, is up to who uses this: `upstream::turns` lets clients take turns.
//!
//! Why not governor: it says whether something may happen now. It does not tell when the tenth in line has its turn, so
//! that nobody could be refused at once, and it takes no debts: of bytes it is known only after the read how many there
//! were.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use tokio::time::Instant;

use crate::units::{ByteRate, Given};

/// What was not used is kept for so long, and may then be used at once.
const BURST: Duration = Duration::from_secs(1);
/// A limit below one in an hour is a mistake: what waits for it waits in vain.
const PER_SECOND_MIN: f64 = 1.0 / 3600.0;
/// No machine does more.
const PER_SECOND_MAX: f64 = 1e9;

/// Who may do how much, when. Clones of an `Arc` share it.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    /// When all that was let through has had its time. It lies in the future by [`BURST`] at most, but for turns
    /// that are yet to come.
    used_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many in a second, and one at once in any case.
    pub fn new(per_second: PerSecond) -> Self {
        Self { per_second: per_second.0, used_until: Mutex::default() }
    }

    /// A pace of bytes.
    pub fn of_bytes(speed: ByteRate) -> Self {
        // As exact as anybody means it.
        Self { per_second: speed.0.get() as f64, used_until: Mutex::default() }
    }

    /// A turn for `cost` of what is limited: when it is, `now` or later.
    ///
    /// # Errors
    /// How long it would have to wait, if that is beyond `latest`. Then no turn is taken.
    pub fn take(&self, cost: u64, now: Instant, latest: Instant) -> Result<Instant, Duration> {
        let mut used_until = self.used_until();
        let (wait, until) = self.wait(cost, now, *used_until);
        if now + wait > latest {
            return Err(wait);
        }
        *used_until = Some(until);
        Ok(now + wait)
    }

    /// How long the last of so many that take their turns one after the other has to wait for it.
    pub fn after(&self, turns: u64, now: Instant) -> Duration {
        let time = self.time(1);
        let until = self.used_until().map_or(now, |until| until.max(now)) + self.time(turns);
        (until - now).saturating_sub(BURST.max(time))
    }

    /// As [`Pace::take`], for what has been used already: when it would have been its turn, and may be the next's.
    pub fn owe(&self, cost: u64, now: Instant) -> Instant {
        let mut used_until = self.used_until();
        let (wait, until) = self.wait(cost, now, *used_until);
        *used_until = Some(until);
        now + wait
    }

    fn wait(&self, cost: u64, now: Instant, used_until: Option<Instant>) -> (Duration, Instant) {
        let time = self.time(cost);
        let until = used_until.map_or(now, |until| until.max(now)) + time;
        ((until - now).saturating_sub(BURST.max(time)), until)
    }

    fn time(&self, cost: u64) -> Duration {
        Duration::from_secs_f64(cost as f64 / self.per_second)
    }

    /// A panic elsewhere leaves it whole: it is replaced in one step.
    fn used_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.used_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often something may happen: `10`, or `0.5` for once in two seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerSecond(f64);

impl<'de> Deserialize<'de> for PerSecond {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let per_second = Given::deserialize(deserializer)?.per_second();
        let sensible = per_second.filter(|number| (PER_SECOND_MIN..=PER_SECOND_MAX).contains(number));
        sensible.map(Self).ok_or_else(|| {
            de::Error::custom(
                "expected a number per second such as 10, 0.5 or \"10/s\", more than 0.0003 and at most a thousand millions",
            )
        })
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(number: &str) -> Result<PerSecond, toml::de::Error> {
        let table: std::collections::HashMap<String, PerSecond> = toml::from_str(&format!("n = {number}"))?;
        Ok(table["n"])
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_given_in_order_and_only_those_that_come_in_time() {
        let (pace, now) = (Pace::new(per_second("10").unwrap()), Instant::now());
        let latest = now + Duration::from_millis(250);
        let turn = || pace.take(1, now, latest).map(|turn| turn - now);
        for _ in 0..10 {
            assert_eq!(turn(), Ok(Duration::ZERO), "what was not used may be used at once");
        }
        assert_eq!(turn(), Ok(Duration::from_millis(100)));
        assert_eq!(turn(), Ok(Duration::from_millis(200)));
        for _ in 0..2 {
            assert_eq!(turn(), Err(Duration::from_millis(300)), "who is refused takes nobody's turn");
        }
        let later = now + Duration::from_secs(60);
        for _ in 0..10 {
            assert_eq!(pace.take(1, later, later), Ok(later));
        }
        assert!(pace.take(1, later, later).is_err(), "a long rest is worth no more than a second");
    }

    #[tokio::test(start_paused = true)]
    async fn one_goes_at_once_however_slow_the_pace() {
        let (pace, now) = (Pace::new(per_second("0.5").unwrap()), Instant::now());
        assert_eq!(pace.take(1, now, now), Ok(now));
        assert_eq!(pace.take(1, now, now), Err(Duration::from_secs(2)));
        let bytes = Pace::of_bytes("1KiB".parse().unwrap());
        assert_eq!(bytes.owe(10 << 10, now), now, "a piece larger than a second's worth");
        assert_eq!(bytes.owe(1 << 10, now), now + Duration::from_secs(10));
    }

    #[test]
    fn limits_are_numbers_that_make_sense() {
        assert_eq!(per_second("2").unwrap(), PerSecond(2.0));
        for (good, expected) in [("'10'", 10.0), ("'10/s'", 10.0), ("'0.5 /s'", 0.5), ("1e3", 1000.0)] {
            assert_eq!(per_second(good).unwrap(), PerSecond(expected), "{good}");
        }
        for bad in [
            "0", "'0/s'", "-1", "'-1'", "0.0001", "1e10", "nan", "inf", "'inf'", "'1e3'", "'10/m'", "'10 s'",
            "''", "true",
        ] {
            let error = per_second(bad).unwrap_err();
            assert!(error.message().contains("expected"), "{bad}: {error}");
        }
    }
}
