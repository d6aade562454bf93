//! Texts that must not be seen: passwords and tokens.

use std::fmt;

use http::HeaderValue;

/// A text whose `Debug` says nothing; there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the request that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// An `Authorization` header that prints as `Sensitive`; `None` when `text` cannot stand in a header.
pub(crate) fn header(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret");
        assert_eq!(format!("{:?}", header("Bearer", "hunter2")), "Some(Sensitive)");
        assert!(header("Bearer", "a\r\nb").is_none());
    }
}
