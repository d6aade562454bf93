//! How many manifests an endpoint still gives out, by its own word: Docker Hub's `ratelimit-limit` and
//! `ratelimit-remaining`, which other registries have copied.
//!
//! Only GETs of manifests are counted there; HEADs are free, and tell as well what is left. A request under way
//! counts as spent until its answer is here, so that many requests at once ask for no more than there is. An endpoint that
//! says nothing of the kind has no quota. Pure: the time is a parameter.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Deserializer, de};
use tokio::time::Instant;

use crate::units::{self, Given};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
/// The window of a quota whose answer does not name one: Docker Hub's.
const WINDOW_DEFAULT: Duration = Duration::from_secs(6 * 3600);
/// The longest window that is believed.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);
/// The time after which one request finds out whether an exhausted quota has been filled up: no answer says when.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The time allowed for requests in flight to report the remaining quota.
const SOON: Duration = Duration::from_millis(250);
/// The percentage of a quota that is kept for images never seen: of Docker Hub's 100 pulls for anonymous clients, twenty
/// images in six hours.
const RESERVE_PERCENT: f64 = 20.0;

/// What of a quota is kept for images never seen: `20`, or `"20%"` of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reserve {
    /// This number of manifests.
    Count(u64),
    /// This percentage of the quota.
    Percent(f64),
}

impl Default for Reserve {
    fn default() -> Self {
        Self::Percent(RESERVE_PERCENT)
    }
}

impl Reserve {
    fn of(self, limit: u64) -> u64 {
        match self {
            Self::Count(count) => count,
            // Exact enough: a quota has some hundred manifests.
            Self::Percent(percent) => (limit as f64 * percent / 100.0) as u64,
        }
    }
}

impl<'de> Deserialize<'de> for Reserve {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reserve = match Given::deserialize(deserializer)? {
            Given::Whole(count) => Some(Self::Count(count)),
            Given::Other(_) => None,
            Given::Text(text) => {
                let count = || text.parse().ok().map(Self::Count);
                units::percent(&text).map(Self::Percent).or_else(count)
            }
        };
        reserve.ok_or_else(|| {
            de::Error::custom("expected a number of manifests, or a share of the quota such as \"20%\"")
        })
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What the headers of one answer say of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuotaReading {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    window: Duration,
}

impl QuotaReading {
    /// What the headers of an answer say; none if that is nothing that makes sense.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let (limit, window) = parse(headers.get(LIMIT)?.to_str().ok()?)?;
        let (remaining, _) = parse(headers.get(REMAINING)?.to_str().ok()?)?;
        Some(Self { limit, remaining, window: window.unwrap_or(WINDOW_DEFAULT).min(WINDOW_MAX) })
    }
}

/// Parses `100;w=21600`: a number, and the window in seconds.
fn parse(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((number, window.map(Duration::from_secs)))
}

/// The quota of one endpoint.
#[derive(Debug)]
pub(crate) struct Quota {
    reserve: Reserve,
    known: Option<Known>,
    /// Requests that count against the quota, sent and not yet answered.
    under_way: u64,
}

#[derive(Debug)]
struct Known {
    reading: QuotaReading,
    /// When the answer came.
    at: Instant,
}

impl Quota {
    pub(crate) fn new(reserve: Reserve) -> Self {
        Self { reserve, known: None, under_way: 0 }
    }

    /// Takes one pull, which counts as used until [`Quota::answered`].
    ///
    /// # Errors
    /// After how long to try again, if none is left.
    pub(crate) fn acquire(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(Known { reading, at }) = self.current(now)
            && reading.remaining <= self.under_way
        {
            if reading.remaining > 0 {
                return Err(SOON);
            }
            let wait = (*at + LOOK_AGAIN).saturating_duration_since(now);
            if !wait.is_zero() || self.under_way > 0 {
                return Err(wait.max(SOON));
            }
        }
        self.under_way += 1;
        Ok(())
    }

    /// Records that a request for which a pull was taken has its answer, or has none.
    pub(crate) fn answered(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Records what the answer to a request that was sent at `sent_at` says. Returns whether that is news.
    ///
    /// Answers overtake each other: one that says more than another is believed only if it was asked for later.
    pub(crate) fn update(&mut self, reading: QuotaReading, sent_at: Instant, now: Instant) -> bool {
        let is_late = |known: &Known| sent_at < known.at && reading.remaining > known.reading.remaining;
        if self.current(now).is_some_and(is_late) {
            return false;
        }
        self.known = Some(Known { reading, at: now });
        true
    }

    /// Records that nothing is left, although no answer has said so in numbers.
    pub(crate) fn exhausted(&mut self, now: Instant) {
        if let Some(known) = &mut self.known {
            *known = Known { reading: QuotaReading { remaining: 0, ..known.reading }, at: now };
        }
    }

    /// Whether what is left is kept for images never seen.
    pub(crate) fn is_short(&self, now: Instant) -> bool {
        self.current(now).is_some_and(|Known { reading, .. }| {
            reading.remaining.saturating_sub(self.under_way) <= self.reserve.of(reading.limit)
        })
    }

    /// What is known, unless its window is over.
    fn current(&self, now: Instant) -> Option<&Known> {
        self.known.as_ref().filter(|known| now < known.at + known.reading.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(limit: u64, remaining: u64) -> QuotaReading {
        QuotaReading { limit, remaining, window: WINDOW_DEFAULT }
    }

    #[test]
    fn headers_are_read_or_ignored() {
        let check = |limit: &'static str, remaining: &'static str, expected: Option<(u64, u64, u64)>| {
            let value = http::HeaderValue::from_static;
            let headers = HeaderMap::from_iter([(LIMIT, value(limit)), (REMAINING, value(remaining))]);
            let read = QuotaReading::read(&headers);
            let read = read.map(|read| (read.limit, read.remaining, read.window.as_secs()));
            assert_eq!(read, expected, "{limit} {remaining}");
        };
        check("100;w=21600", "76;w=21600", Some((100, 76, 21600)));
        check("200; w=60", "0", Some((200, 0, 60)));
        check("100", "76", Some((100, 76, 21600)));
        check("100;w=99999999", "76", Some((100, 76, 86400)));
        check("100;w=", "76;x", Some((100, 76, 21600)));
        for bad in ["", "-1", "many", ";w=1", "99999999999999999999"] {
            check("100;w=21600", bad, None);
            check(bad, "76;w=21600", None);
        }
        assert_eq!(QuotaReading::read(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_spent() {
        let (mut quota, now) = (Quota::new(Reserve::Count(0)), Instant::now());
        assert!(quota.acquire(now).is_ok() && !quota.is_short(now), "nobody speaks of a quota");
        quota.answered();
        assert!(quota.update(reading(100, 2), now, now));
        assert_eq!([0; 3].map(|_| quota.acquire(now)), [Ok(()), Ok(()), Err(SOON)]);
        assert!(quota.is_short(now));
        quota.update(reading(100, 1), now, now);
        quota.answered();
        assert_eq!(quota.acquire(now), Err(SOON), "the other one is not answered yet");
        quota.update(reading(100, 0), now, now);
        quota.answered();
        assert_eq!(quota.acquire(now), Err(LOOK_AGAIN));
        let later = now + LOOK_AGAIN;
        assert_eq!(
            [0; 2].map(|_| quota.acquire(later)),
            [Ok(()), Err(SOON)],
            "one looks whether there is more"
        );
        quota.update(reading(100, 99), later, later);
        quota.answered();
        assert!(quota.acquire(later).is_ok() && !quota.is_short(later));
        quota.exhausted(later);
        assert!(quota.acquire(later).is_err());
        assert!(quota.acquire(later + WINDOW_DEFAULT).is_ok(), "the window is over");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_overtaken_does_not_add() {
        let (mut quota, early) = (Quota::new(Reserve::default()), Instant::now());
        let late = early + Duration::from_secs(1);
        assert!(quota.update(reading(100, 20), early, late));
        assert!(!quota.update(reading(100, 21), early, late), "it was asked before the other was heard");
        assert!(quota.is_short(late));
        assert!(quota.update(reading(100, 19), early, late));
        assert!(quota.update(reading(100, 100), late, late));
        assert!(!quota.is_short(late));
    }

    #[test]
    fn a_reserve_is_a_number_or_a_share() {
        let check = |text: &str, expected: Option<u64>| {
            let table = toml::from_str::<std::collections::HashMap<String, Reserve>>(&format!("r = {text}"));
            assert_eq!(table.ok().map(|table| table["r"].of(200)), expected, "{text}");
        };
        check("10", Some(10));
        check("'20%'", Some(40));
        check("'0%'", Some(0));
        check("'20'", Some(20));
        for bad in ["-1", "'101%'", "'%'", "1.5", "true"] {
            check(bad, None);
        }
        assert_eq!(Reserve::default().of(100), 20);
        assert_eq!(Reserve::Percent(100.0).of(u64::MAX), u64::MAX);
    }

    #[test]
    fn fuzzed_quotas_are_never_believed_beyond_a_day() {
        let target = crate::fuzz::Target {
            name: "quota",
            words: &[
                "0",
                "1",
                "100",
                ";",
                "w=",
                " ",
                "-1",
                "\n",
                "21600",
                "18446744073709551615",
                "18446744073709551616",
                "1e9",
                "+1",
            ],
        };
        target.holds(|input| {
            let mut lines = input.splitn(2, |byte| *byte == b'\n').map(http::HeaderValue::from_bytes);
            let (Some(Ok(limit)), Some(Ok(remaining))) = (lines.next(), lines.next()) else { return };
            let Some(reading) =
                QuotaReading::read(&HeaderMap::from_iter([(LIMIT, limit), (REMAINING, remaining)]))
            else {
                return;
            };
            assert!(reading.window <= WINDOW_MAX);
            let (mut quota, now) = (Quota::new(Reserve::default()), Instant::now());
            quota.update(reading, now, now);
            // A window of no length is over at once.
            assert_eq!(quota.acquire(now).is_ok(), reading.remaining > 0 || reading.window.is_zero());
            let _ = quota.is_short(now);
        });
    }
}
