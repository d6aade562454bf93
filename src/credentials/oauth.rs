//! What token servers answer: an access token and for how long it is good. Pure.

use std::time::Duration;

use crate::oci::json::{self, Scalar};

/// `token` and `access_token` mean the same; `expires_in` is a number, though some write it as a text.
pub(crate) fn parse(body: &[u8]) -> Option<(String, Option<Duration>)> {
    let names = ["token", "access_token", "expires_in"];
    let [token, access_token, expires_in] = json::scalars(body, names)?;
    let text = |scalar| match scalar {
        Scalar::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    };
    let token = text(token).or_else(|| text(access_token))?;
    let seconds = match expires_in {
        Scalar::Number(number) => Some(number),
        Scalar::Text(text) => text.parse().ok(),
        Scalar::Other => None,
    };
    let lifetime = seconds.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    Some((token, lifetime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_differ() {
        let check = |body: &str, expected: Option<(&str, Option<u64>)>| {
            let expected =
                expected.map(|(token, seconds)| (token.to_owned(), seconds.map(Duration::from_secs)));
            assert_eq!(parse(body.as_bytes()), expected, "{body}");
        };
        check(r#"{"token":"t","expires_in":300}"#, Some(("t", Some(300))));
        check(r#"{"access_token":"t","expires_in":"300"}"#, Some(("t", Some(300))));
        check(r#"{"token":"","access_token":"t"}"#, Some(("t", None)));
        check(r#"{"token":"t","expires_in":-5}"#, Some(("t", None)));
        check(r#"{"token":"t","expires_in":1e300}"#, Some(("t", None)));
        check(r#"{"token":""}"#, None);
        check(r#"{"token":1}"#, None);
        check(r#"{"token":null,"access_token":"t","x":[{"token":"u"}]}"#, Some(("t", None)));
        check(r#"{"token":["t"],"expires_in":{}}"#, None);
        check(r#"{"token":"t","token":"u"}"#, None);
        check("[]", None);
        check("<html>", None);
    }

    #[test]
    fn fuzzed_replies_give_a_token_or_nothing() {
        let target = crate::fuzz::Target {
            name: "token",
            words: &[
                "\"token\":",
                "\"access_token\":",
                "\"expires_in\":",
                "0.5",
                "1e308",
                "1e19",
                "\"NaN\"",
                "\"inf\"",
                "18446744073709551616",
            ],
        };
        target.holds_for_json(|input| {
            if let Some((token, _)) = parse(input) {
                assert!(!token.is_empty() && token.len() <= input.len());
            }
        });
    }
}
