//! Headers that an upstream wants besides those of the protocol.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, RANGE, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;

use crate::context::DEADLINE;

/// What berth says itself, or the connection needs.
const RESERVED: [HeaderName; 13] = [
    ACCEPT,
    ACCEPT_ENCODING,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DEADLINE,
    HOST,
    PROXY_AUTHORIZATION,
    RANGE,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    VIA,
];

/// `headers`: sent to the endpoints themselves with every request, and nowhere else. They may say who berth is, so
/// they are not shown, and what comes with them counts as private.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds them to the headers of a request.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap) {
        headers.extend(self.0.clone());
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut headers = HeaderMap::new();
        for (name, text) in BTreeMap::<String, String>::deserialize(deserializer)? {
            let wrong = |expected| de::Error::custom(format!("`{name}`: {expected}"));
            let header = HeaderName::try_from(&name).map_err(|_| wrong("expected the name of a header"))?;
            if RESERVED.contains(&header) {
                return Err(wrong("expected a header that berth does not set itself"));
            }
            let mut value =
                HeaderValue::try_from(text).map_err(|_| wrong("expected the text of a header"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(Self(headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_shown_and_reserved_names_are_refused() {
        let parse = |text: &str| toml::from_str::<Headers>(text);
        let headers = parse("X-Api-Key = 'hunter2'").unwrap();
        assert!(!headers.is_empty() && !format!("{headers:?}").contains("hunter2"));
        for wrong in
            ["authorization = 'Basic hunter2'", "Host = 'x'", "'a b' = 'x'", "a = \"x\\ny\"", "a = 1"]
        {
            let error = parse(wrong).unwrap_err();
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }
}
