//! How berth names itself to an upstream, where its operator wants another name than its own.
//!
//! It is no secret and tells nobody's identity, so that what comes with it is as public as without: it is a key of its own
//! rather than one of `headers`. Every request that is made for the upstream has it, those to token servers and stores
//! included.

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Deserializer, de};

/// How berth names itself where its operator gives it no other name.
pub(crate) const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// Names with contact and comments have some hundred letters.
const BYTES_MAX: usize = 512;

/// `user_agent`: what requests are sent as `User-Agent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserAgent(HeaderValue);

impl UserAgent {
    /// Names berth so in a request, unless that has a name of its own already.
    pub(crate) fn name(&self, headers: &mut HeaderMap) {
        if headers.get(USER_AGENT).is_none_or(|agent| agent == AGENT) {
            headers.insert(USER_AGENT, self.0.clone());
        }
    }
}

impl<'de> Deserialize<'de> for UserAgent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let is_usable = is_plain && !text.trim().is_empty() && text.len() <= BYTES_MAX;
        HeaderValue::try_from(text.trim()).ok().filter(|_| is_usable).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "expected plain text of at most {BYTES_MAX} letters, such as \"berth (ops@example.com)\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain_text_and_replaces_berths_own_alone() {
        let parse = |value: &str| {
            let table: Result<std::collections::HashMap<String, UserAgent>, _> =
                toml::from_str(&format!("n = {value}"));
            table.map(|mut table| table.remove("n").unwrap())
        };
        let agent = parse("'site (ops@example.com)'").unwrap();
        for (before, after) in [(AGENT, "site (ops@example.com)"), ("of headers", "of headers")] {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, HeaderValue::from_static(before));
            agent.name(&mut headers);
            assert_eq!(headers[USER_AGENT], after);
        }
        for wrong in ["''", "' '", "\"a\\nb\"", "'é'", "1", &format!("'{}'", "x".repeat(BYTES_MAX + 1))] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
