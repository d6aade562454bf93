//! `Retry-After`: how long an answer asks to be left alone (RFC 9110, 10.2.3). Pure.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// The longest `Retry-After` that is passed on: a mistaken date must not disable an upstream for years.
const RETRY_AFTER_REPORTED_MAX: Duration = Duration::from_secs(24 * 3600);

/// `Retry-After` as seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let wait = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that has passed means: now.
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_REPORTED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_has_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        };
        check("5", Some(5));
        check(" 120 ", Some(120));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:30 GMT", Some(0));
        check("99999999999", Some(24 * 3600));
        check("-1", None);
        check("soon", None);
        check("", None);
    }

    #[test]
    fn fuzzed_waits_are_bounded() {
        let target = crate::fuzz::Target {
            name: "retry-after",
            words: &[
                "0",
                "1",
                "3600",
                "-",
                " ",
                ".",
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "Nov",
                "9999",
                "GMT",
                "18446744073709551615",
                "+1",
                "é",
            ],
        };
        target.holds(|input| {
            let wait = parse_retry_after(&String::from_utf8_lossy(input), SystemTime::UNIX_EPOCH);
            assert!(wait.is_none_or(|wait| wait <= RETRY_AFTER_REPORTED_MAX));
        });
    }
}
