//! Regions of AWS.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// Longest name of a region; the longest so far has 14 characters.
const REGION_CHARACTERS_MAX: usize = 32;

/// The name of a region of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region(String);

impl Region {
    /// Reads a region; `None` when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits = (1..=REGION_CHARACTERS_MAX).contains(&text.len());
        (fits && text.chars().all(is_plain)).then(|| Self(text.to_owned()))
    }

    /// Its name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain of a region's API hosts where the registry's name does not say it.
    pub(super) fn domain(&self) -> &'static str {
        if self.0.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("expected a region, such as eu-central-1"))
    }
}
