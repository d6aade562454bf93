//! How long to wait for what.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::units;

/// A dead host on the same continent is told from a slow one well within this.
const CONNECT: Duration = Duration::from_secs(5);
/// Docker Hub's slowest honest answers take three to four seconds.
const HEADER: Duration = Duration::from_secs(8);
/// A body that says nothing for so long will not go on; the flight resumes elsewhere.
const IDLE: Duration = Duration::from_secs(10);
/// Two of these fit into the budget with the request that they are for.
const TOKEN: Duration = Duration::from_secs(5);
/// The promise is an answer within 20 s; this leaves time to find out and to send it.
const BUDGET: Duration = Duration::from_secs(18);
/// No setting can be longer than this.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a TCP connection.
    #[serde(rename = "connect_seconds", deserialize_with = "seconds")]
    pub connect: Duration,
    /// For the head of an answer, the connection included.
    #[serde(rename = "header_seconds", deserialize_with = "seconds")]
    pub header: Duration,
    /// Between two pieces of a body.
    #[serde(rename = "idle_seconds", deserialize_with = "seconds")]
    pub idle: Duration,
    /// For a token, from the connection to the last byte.
    #[serde(rename = "token_seconds", deserialize_with = "seconds")]
    pub token: Duration,
    /// For a request up to the head of its answer, logins, redirects and retries included. What is small, such
    /// as a manifest, must have come whole within it.
    #[serde(rename = "budget_seconds", deserialize_with = "seconds")]
    pub budget: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: CONNECT, header: HEADER, idle: IDLE, token: TOKEN, budget: BUDGET }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = units::duration(deserializer)?;
    if !time.is_zero() && time <= TIMEOUT_MAX {
        Ok(time)
    } else {
        Err(de::Error::custom(format!("expected more than 0 and at most {}", units::show(TIMEOUT_MAX))))
    }
}
