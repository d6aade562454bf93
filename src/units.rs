//! Units in the configuration: sizes, rates, shares and durations. They are all read here, so that every key takes every
//! spelling.
//!
//! | | spelling |
//! |---|---|
//! | [`ByteSize`] | `"200GiB"`, `"1.5 TiB"`, `"500MB"`, `"8K"`, `"64kB"`, or a number of bytes |
//! | [`ByteRate`] | the same, in a second, and more than nothing; `/s` may follow: `"8MiB/s"` |
//! | [`PerSecond`] | `10`, `0.5`, `"10/s"` |
//! | [`percent`] | `"80%"`, `"12.5 %"` |
//! | [`duration`] | `"90s"`, `"5m"`, `"1h 30m"`, `"1.5h"`, or a number of seconds, such as 300 or 0.5 |
//!
//! With an `i` a prefix is a power of 1024, without one of 1000, as IEC and Kubernetes have it; the `B` may be left out.
//! Prefixes have one case only: `m` is a minute or a thousandth elsewhere, and `Mb` a million bits. A number in quotes
//! is that number. What is shown, by [`fmt::Display`] and [`show`], can be typed.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest duration in years of 365.25 days: nobody means more, and it can be added to the time of any clock.
const YEARS_MAX: u64 = 1000;
const DURATION_MAX: Duration = Duration::from_secs(YEARS_MAX * 31_557_600);
/// The lowest rate of requests per second: one in an hour. A lower one is a mistake: what waits for it waits in vain.
const PER_SECOND_MIN: f64 = 1.0 / 3600.0;
/// The highest rate of requests per second. No machine does more.
const PER_SECOND_MAX: f64 = 1e9;
/// The number up to which every whole number has a floating-point number of its own.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// An amount of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Why a text is no amount of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a size such as \"200GiB\", \"1.5TB\" or a whole number of bytes, less than 16EiB (units: kB, MB, GB, TB, PB, EB \
     and KiB, MiB, GiB, TiB, PiB, EiB)"
)]
pub struct InvalidByteSize;

/// The letters of unit prefixes, each for one more power of 1000 or 1024.
const PREFIXES: [&str; 6] = ["K", "M", "G", "T", "P", "E"];

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit_bytes = unit_bytes(unit.trim_start()).ok_or(InvalidByteSize)?;
        times(number, unit_bytes).map(Self).ok_or(InvalidByteSize)
    }
}

/// The number of bytes of a unit.
fn unit_bytes(unit: &str) -> Option<u64> {
    let prefix = unit.strip_suffix('B').unwrap_or(unit);
    let (prefix, base) = prefix.strip_suffix('i').map_or((prefix, 1000_u64), |prefix| (prefix, 1024));
    let power = match prefix {
        "" if base == 1000 => 0,
        "k" => 1,
        prefix => 1 + PREFIXES.iter().position(|known| *known == prefix)?,
    };
    base.checked_pow(u32::try_from(power).ok()?)
}

/// A decimal number of units, exactly; a part of a byte is dropped. There is no part of a unit that is a byte itself.
fn times(number: &str, unit: u64) -> Option<u64> {
    let Some((whole, fraction)) = number.split_once('.') else {
        return number.parse::<u64>().ok()?.checked_mul(unit);
    };
    if unit == 1 {
        return None;
    }
    let (whole, numerator): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
    let denominator = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(numerator) * u128::from(unit) / denominator;
    whole.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

/// A whole number that was written with a point or an exponent, such as `2e11`.
fn whole(number: f64) -> Option<u64> {
    let is_whole = (0.0..=EXACT_MAX).contains(&number) && number.fract() == 0.0;
    is_whole.then_some(number as u64)
}

/// Shows it in the largest unit of which it is a whole number.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let units = [1, 2, 3, 4, 5, 6].into_iter().zip(PREFIXES).flat_map(|(power, prefix)| {
            let decimal = if power == 1 { "kB".to_owned() } else { format!("{prefix}B") };
            [(1000_u64.pow(power), decimal), (1024_u64.pow(power), format!("{prefix}iB"))]
        });
        let whole = units.filter(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
        match whole.max_by_key(|(unit, _)| *unit) {
            Some((unit, name)) => write!(f, "{}{name}", bytes / unit),
            None => write!(f, "{bytes}B"),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Given::deserialize(deserializer)?.size().map_err(de::Error::custom)
    }
}

/// A rate in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(pub NonZeroU64);

/// Why a text is no number of bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected bytes per second such as \"8MiB/s\", \"1.5GB\" or a whole number, more than 0 (units: kB, MB, GB, TB and KiB, \
     MiB, GiB, TiB; of bits an eighth)"
)]
pub struct InvalidByteRate;

impl TryFrom<ByteSize> for ByteRate {
    type Error = InvalidByteRate;

    fn try_from(ByteSize(bytes): ByteSize) -> Result<Self, InvalidByteRate> {
        NonZeroU64::new(bytes).map(Self).ok_or(InvalidByteRate)
    }
}

impl FromStr for ByteRate {
    type Err = InvalidByteRate;

    fn from_str(text: &str) -> Result<Self, InvalidByteRate> {
        without_second(text).parse::<ByteSize>().map_err(|_| InvalidByteRate)?.try_into()
    }
}

/// A text without `/s` at its end.
fn without_second(text: &str) -> &str {
    text.strip_suffix("/s").map_or(text, str::trim_end)
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0.get()))
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Given::deserialize(deserializer)?.rate().map_err(de::Error::custom)
    }
}

/// How often something may happen: `10`, or `0.5` for once in two seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerSecond(f64);

impl PerSecond {
    /// The number per second.
    pub fn get(self) -> f64 {
        self.0
    }
}

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

/// Reads a share of a whole in per cent, from 0 to 100. `None` if the text is something else.
pub fn percent(text: &str) -> Option<f64> {
    decimal(text.strip_suffix('%')?.trim_end()).filter(|share| *share <= 100.0)
}

/// Reads a number of digits, with at most a point among them.
fn decimal(text: &str) -> Option<f64> {
    let is_plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_plain.then(|| text.parse().ok())?
}

/// Why something is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a duration such as \"30s\", \"5m\", \"1h 30m\" or \"1.5h\", or a number of seconds, at most {years} years",
    years = YEARS_MAX
)]
pub struct InvalidDuration;

/// Reads a duration, as a serde `deserialize_with`.
///
/// # Errors
/// [`InvalidDuration`].
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Given::deserialize(deserializer)?.duration().map_err(de::Error::custom)
}

/// Shows a duration as it can be typed.
pub fn show(time: Duration) -> impl fmt::Display {
    humantime::format_duration(time)
}

/// Whether there is white space within a number, as in `1 30m`, which may have been meant as `1h 30m`.
fn has_split_number(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let Some(mut before) = words.next() else { return false };
    words.any(|word| {
        let ends_with_digit = before.ends_with(|c: char| c.is_ascii_digit() || c == '.');
        before = word;
        ends_with_digit && word.starts_with(|c: char| c.is_ascii_digit() || c == '.')
    })
}

/// A value that may be a number or a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// A whole number that is not negative.
    Whole(u64),
    /// Any other number.
    Other(f64),
    /// A text.
    Text(String),
}

impl Given {
    /// Reads it as an amount of bytes.
    ///
    /// # Errors
    /// If it is none.
    pub fn size(&self) -> Result<ByteSize, InvalidByteSize> {
        match self {
            Self::Whole(bytes) => Ok(ByteSize(*bytes)),
            Self::Other(bytes) => whole(*bytes).map(ByteSize).ok_or(InvalidByteSize),
            Self::Text(text) => text.parse(),
        }
    }

    /// Reads it as bytes per second.
    ///
    /// # Errors
    /// If it is none, or zero.
    pub fn rate(&self) -> Result<ByteRate, InvalidByteRate> {
        match self {
            Self::Text(text) => text.parse(),
            Self::Whole(_) | Self::Other(_) => self.size().map_err(|_| InvalidByteRate)?.try_into(),
        }
    }

    /// Reads it as a number per second. `None` if it is something else.
    pub fn per_second(&self) -> Option<f64> {
        match self {
            // As exact as anybody means it.
            Self::Whole(number) => Some(*number as f64),
            Self::Other(number) => Some(*number).filter(|number| number.is_finite()),
            Self::Text(text) => decimal(without_second(text)),
        }
    }

    /// Reads it as a duration.
    ///
    /// # Errors
    /// If it is none.
    pub fn duration(&self) -> Result<Duration, InvalidDuration> {
        let time = match self {
            Self::Whole(seconds) => Some(Duration::from_secs(*seconds)),
            Self::Other(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Self::Text(text) if has_split_number(text) => None,
            Self::Text(text) => match (text.parse(), decimal(text)) {
                (Ok(seconds), _) => Some(Duration::from_secs(seconds)),
                (Err(_), Some(seconds)) => Duration::try_from_secs_f64(seconds).ok(),
                (Err(_), None) => humantime::parse_duration(text).ok(),
            },
        };
        time.filter(|time| *time <= DURATION_MAX).ok_or(InvalidDuration)
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyOf;

        impl Visitor<'_> for AnyOf {
            type Value = Given;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number, or a text with a unit")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Given, E> {
                Ok(Given::Whole(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Given, E> {
                Ok(u64::try_from(number).map_or(Given::Other(number as f64), Given::Whole))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Given, E> {
                Ok(Given::Other(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Given, E> {
                Ok(Given::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(AnyOf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Size {
        n: ByteSize,
    }

    #[derive(Deserialize)]
    struct Rate {
        n: ByteRate,
    }

    #[derive(Deserialize)]
    struct Time {
        #[serde(deserialize_with = "duration")]
        n: Duration,
    }

    #[derive(Deserialize)]
    struct Frequency {
        n: PerSecond,
    }

    fn frequency(value: &str) -> Result<PerSecond, String> {
        read::<Frequency>(value).map(|frequency| frequency.n)
    }

    fn read<T: de::DeserializeOwned>(value: &str) -> Result<T, String> {
        toml::from_str(&format!("n = {value}")).map_err(|error| error.message().to_owned())
    }

    /// Neither amounts nor rates.
    const NO_SIZES: [&str; 39] = [
        "''",
        "'GiB'",
        "'-1GiB'",
        "'5iB'",
        "'5i'",
        "'5gib'",
        "'5m'",
        "'5g'",
        "'1.2.3GB'",
        "'5 XB'",
        "'80%'",
        "'1e3B'",
        "'1.5'",
        "'.5GiB'",
        "'1.GiB'",
        "'1.5B'",
        "'99999999999GiB'",
        "'5 Gi B'",
        "' 5GiB'",
        "'off'",
        "'16EiB'",
        "'-0GiB'",
        "'+5GiB'",
        "'0x10'",
        "'5GiB/m'",
        "'5GiBps'",
        "'5Mb/s'",
        "'5mb'",
        "'/s'",
        "'NaN'",
        "nan",
        "inf",
        "1e300",
        "-0.5",
        "99999999999999999999",
        "-1",
        "1.5",
        "true",
        "[]",
    ];

    #[test]
    fn bytes_have_a_unit_or_none() {
        for (value, bytes) in [
            ("'200GiB'", 200 << 30),
            ("'200 GiB'", 200 << 30),
            ("'1.5GiB'", 3 << 29),
            ("'1.5 TiB'", 3 << 39),
            ("'1PiB'", 1 << 50),
            ("'500MB'", 500_000_000),
            ("'64kB'", 64_000),
            ("'1KB'", 1000),
            ("'8K'", 8000),
            ("'8k'", 8000),
            ("'8Ki'", 8192),
            ("'5Gi'", 5 << 30),
            ("'2M'", 2_000_000),
            ("'64KiB'", 65_536),
            ("'0B'", 0),
            ("'7B'", 7),
            ("'1073741824'", 1 << 30),
            ("1073741824", 1 << 30),
            ("0", 0),
            ("'9007199254740993'", 9_007_199_254_740_993),
            ("'0.5KiB'", 512),
            ("'1.5kB'", 1500),
            ("'9000.5TiB'", 9_896_154_405_797_888),
            ("'15EiB'", 15 << 60),
            ("'1TB'", 1_000_000_000_000),
            ("2e11", 200_000_000_000),
            ("3.0", 3),
        ] {
            assert_eq!(read::<Size>(value).map(|size| size.n), Ok(ByteSize(bytes)), "{value}");
            let rate = read::<Rate>(value).map(|rate| rate.n.0.get());
            assert_eq!(rate.ok(), (bytes > 0).then_some(bytes), "{value}");
        }
    }

    #[test]
    fn what_is_no_amount_is_told_what_one_is() {
        for bad in NO_SIZES {
            for error in [read::<Size>(bad).map(|_| ()), read::<Rate>(bad).map(|_| ())] {
                let error = error.unwrap_err();
                assert!(error.contains("expected"), "{bad}: {error}");
            }
        }
    }

    #[test]
    fn a_rate_may_say_that_it_is_in_a_second() {
        for (value, bytes) in [("'8MiB/s'", 8 << 20), ("'1.5 GB /s'", 1_500_000_000), ("'1000/s'", 1000)] {
            assert_eq!(read::<Rate>(value).map(|rate| rate.n.0.get()), Ok(bytes), "{value}");
            assert!(read::<Size>(value).is_err(), "{value} is no amount");
        }
    }

    #[test]
    fn what_is_shown_is_short_and_can_be_typed() {
        for (bytes, shown) in [
            (0, "0B"),
            (1, "1B"),
            (1000, "1kB"),
            (1024, "1KiB"),
            (1_500_000, "1500kB"),
            (3 << 29, "1536MiB"),
            (200 << 30, "200GiB"),
            (2_000_000_000_000, "2TB"),
            (u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), shown);
            assert_eq!(shown.parse(), Ok(ByteSize(bytes)));
        }
        let rate: ByteRate = "8MiB".parse().unwrap();
        assert_eq!((rate.to_string().as_str(), rate.to_string().parse()), ("8MiB/s", Ok(rate)));
        for (millis, shown) in [(0, "0s"), (900_000, "15m"), (5_400_000, "1h 30m"), (500, "500ms")] {
            let time = Duration::from_millis(millis);
            assert_eq!(show(time).to_string(), shown);
            assert_eq!(Given::Text(shown.to_owned()).duration(), Ok(time));
        }
    }

    #[test]
    fn shares_are_from_0_to_100_per_cent() {
        for (text, share) in [("80%", 80.0), ("12.5 %", 12.5), ("0%", 0.0), ("100%", 100.0)] {
            assert_eq!(percent(text), Some(share), "{text}");
        }
        for bad in ["", "%", "80", "101%", "-1%", "+1%", "nan%", "inf%", "1e1%", "5%%", ".5%", "5.%", " 5%"] {
            assert_eq!(percent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        for (value, millis) in [
            ("'90s'", 90_000),
            ("'15m'", 900_000),
            ("'1h 30m'", 5_400_000),
            ("'2d'", 172_800_000),
            ("'250ms'", 250),
            ("'300'", 300_000),
            ("300", 300_000),
            ("0", 0),
            ("0.5", 500),
            ("'0.5'", 500),
            ("'1.5h'", 5_400_000),
            ("'1h30m'", 5_400_000),
            ("'15 m'", 900_000),
            ("'2 hours 5 min'", 7_500_000),
            ("'1000y'", 1000 * 31_557_600_000),
        ] {
            let time = read::<Time>(value).map(|time| time.n);
            assert_eq!(time, Ok(Duration::from_millis(millis)), "{value}");
        }
        for bad in [
            "''",
            "' '",
            "'5x'",
            "'soon'",
            "'-5m'",
            "'1 30m'",
            "'1. 5h'",
            "'m5'",
            "'5GiB'",
            "'1e3'",
            "'inf'",
            "'1001y'",
            "'18446744073709551615'",
            "'99999999999999999999d'",
            "99999999999",
            "-1",
            "-0.5",
            "1e300",
            "nan",
            "inf",
            "true",
            "[]",
        ] {
            let error = read::<Time>(bad).map(|time| time.n).unwrap_err();
            assert!(error.contains("expected"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_number_per_second_makes_sense() {
        assert_eq!(frequency("2").unwrap(), PerSecond(2.0));
        for (good, expected) in [("'10'", 10.0), ("'10/s'", 10.0), ("'0.5 /s'", 0.5), ("1e3", 1000.0)] {
            assert_eq!(frequency(good).unwrap(), PerSecond(expected), "{good}");
        }
        for bad in [
            "0", "'0/s'", "-1", "'-1'", "0.0001", "1e10", "nan", "inf", "'inf'", "'1e3'", "'10/m'", "'10 s'",
            "''", "true",
        ] {
            let error = frequency(bad).unwrap_err();
            assert!(error.contains("expected"), "{bad}: {error}");
        }
    }
}
