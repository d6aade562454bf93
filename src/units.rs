//! Units in the configuration: bytes, bytes per second, and time. One home, so that every key takes every spelling.
//!
//! | | spelling |
//! |---|---|
//! | [`ByteSize`] | `"200GiB"`, `"1.5 TiB"`, `"500MB"`, `"8K"`, `"64kB"`, or a number of bytes |
//! | [`ByteRate`] | the same, in a second, and more than nothing |
//! | [`duration`] | `"90s"`, `"5m"`, `"1h 30m"`, or a number of seconds, such as 300 or 0.5 |
//!
//! With an `i` a prefix is a power of 1024, without one of 1000, as IEC and Kubernetes have it; the `B` may be left out.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// An amount of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Why a text is no amount of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as \"200GiB\", \"500MB\" or a number of bytes")]
pub struct InvalidByteSize;

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit_bytes = unit_bytes(unit.trim_start()).ok_or(InvalidByteSize)?;
        let bytes = match number.split_once('.') {
            None => number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_bytes)),
            Some((whole, fraction)) if !whole.is_empty() && !fraction.is_empty() && unit_bytes > 1 => {
                number.parse::<f64>().ok().and_then(|number| whole_bytes(number * unit_bytes as f64))
            }
            // There is no part of a byte.
            Some(_) => None,
        };
        bytes.map(Self).ok_or(InvalidByteSize)
    }
}

/// How many bytes a unit is.
fn unit_bytes(unit: &str) -> Option<u64> {
    let prefix = unit.strip_suffix('B').unwrap_or(unit);
    let (prefix, base) = prefix.strip_suffix('i').map_or((prefix, 1000_u64), |prefix| (prefix, 1024));
    let power = match prefix {
        "" if base == 1000 => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        _ => return None,
    };
    Some(base.pow(power))
}

fn whole_bytes(bytes: f64) -> Option<u64> {
    // Beyond this a fraction is no longer what was written.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (0.0..=EXACT_MAX).contains(&bytes).then_some(bytes as u64)
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match Given::deserialize(deserializer)? {
            Given::Whole(bytes) => Ok(Self(bytes)),
            Given::Text(text) => text.parse(),
            Given::Other(_) => Err(InvalidByteSize),
        };
        bytes.map_err(de::Error::custom)
    }
}

/// How fast bytes may go by, in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(pub NonZeroU64);

/// Why a text is no number of bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected bytes per second such as \"8MiB\", \"1.5GB\" or a number, more than 0")]
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
        text.parse::<ByteSize>().map_err(|_| InvalidByteRate)?.try_into()
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rate = match Given::deserialize(deserializer)? {
            Given::Whole(bytes) => ByteSize(bytes).try_into(),
            Given::Text(text) => text.parse(),
            Given::Other(_) => Err(InvalidByteRate),
        };
        rate.map_err(de::Error::custom)
    }
}

/// Why something is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}`: expected a duration such as \"30s\", \"5m\" or \"12h\", or a number of seconds")]
pub struct InvalidDuration(String);

/// A time as the configuration has it: for `deserialize_with`.
///
/// # Errors
/// [`InvalidDuration`].
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Given::deserialize(deserializer)?.duration().map_err(de::Error::custom)
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
    /// It, as a time.
    ///
    /// # Errors
    /// If it is none.
    pub fn duration(&self) -> Result<Duration, InvalidDuration> {
        let invalid = || InvalidDuration(self.to_string());
        match self {
            Self::Whole(seconds) => Ok(Duration::from_secs(*seconds)),
            Self::Other(seconds) => Duration::try_from_secs_f64(*seconds).map_err(|_| invalid()),
            Self::Text(text) => match text.parse() {
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
                Err(_) => humantime::parse_duration(text).map_err(|_| invalid()),
            },
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(f, "{number}"),
            Self::Other(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text}"),
        }
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

    fn read<T: de::DeserializeOwned>(value: &str) -> Result<T, String> {
        toml::from_str(&format!("n = {value}")).map_err(|error| error.message().to_owned())
    }

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
        ] {
            assert_eq!(read::<Size>(value).map(|size| size.n), Ok(ByteSize(bytes)), "{value}");
            let rate = read::<Rate>(value).map(|rate| rate.n.0.get());
            assert_eq!(rate.ok(), (bytes > 0).then_some(bytes), "{value}");
        }
        for bad in [
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
            "-1",
            "1.5",
            "true",
            "[]",
        ] {
            for error in [read::<Size>(bad).map(|_| ()), read::<Rate>(bad).map(|_| ())] {
                let error = error.unwrap_err();
                assert!(error.contains("expected"), "{bad}: {error}");
            }
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
        ] {
            let time = read::<Time>(value).map(|time| time.n);
            assert_eq!(time, Ok(Duration::from_millis(millis)), "{value}");
        }
        for bad in ["''", "'5x'", "'soon'", "'-5m'", "-1", "-0.5", "1e300", "nan", "true"] {
            let error = read::<Time>(bad).map(|time| time.n).unwrap_err();
            assert!(error.contains("expected"), "{bad}: {error}");
        }
    }
}
