//! The scrub: verifies stored files in the background, slowly and for ever, as
//! [`verify`](crate::store::integrity::verify) does.
//!
//! A round goes through the index in the order of digests, and notes there how far it is, so that a restart does not
//! begin anew; if that note is lost, only time is lost. There is at most one round a day.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use tokio::time::{Instant, sleep};

use crate::clock::unix_seconds;
use crate::oci::Digest;
use crate::ratelimit::{ByteLimit, Debt};
use crate::store::blocking::blocking;
use crate::store::error::Error;
use crate::store::integrity::Integrity;
use crate::store::integrity::verify::{FileVerdict, Hashing, conclude};
use crate::units::{ByteRate, Given};

/// The default rate in bytes per second: 200 GiB in seven hours, for half a per cent of a core.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// Seconds from the beginning of a round to the beginning of the next.
const ROUND_INTERVAL_SECONDS: u64 = 24 * 60 * 60;
/// Time between two checks whether a round is due and the index complete.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two notes of how far a round is.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of digests that are read from the index at once.
const PAGE: usize = 256;
/// What a file costs at least: opening one is work for the disk, too.
const FILE_BYTES_MIN: u64 = 64 * 1024;

/// How fast stored files are looked at in the background, in bytes per second; `"off"` for not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Option<NonZeroU64>);

impl Default for Rate {
    fn default() -> Self {
        Self(NonZeroU64::new(BYTES_PER_SECOND))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Given::deserialize(deserializer)?;
        if given == Given::Text("off".to_owned()) {
            return Ok(Self(None));
        }
        let rate = given.rate().map_err(|error| de::Error::custom(format!("{error}, or \"off\"")))?;
        Ok(Self(Some(rate.0)))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => fmt::Display::fmt(&ByteRate(bytes), f),
            None => f.write_str("off"),
        }
    }
}

/// A round of the scrub, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    /// When it began, in seconds since 1970.
    began_at: u64,
    /// The last blob that was verified; `None` when the round has ended.
    at: Option<Digest>,
}

impl Round {
    fn of((began_at, at): (u64, Option<Digest>)) -> Self {
        Self { began_at, at }
    }

    /// Returns the round to continue or to begin, if one is due.
    fn due(last: Option<Self>, now: u64) -> Option<Self> {
        match last {
            Some(Self { at: Some(_), .. }) => last,
            // A clock that was wrong must not put the next round off for years.
            Some(Self { began_at, at: None })
                if now >= began_at && now - began_at < ROUND_INTERVAL_SECONDS =>
            {
                None
            }
            Some(Self { at: None, .. }) | None => Some(Self { began_at: now, at: None }),
        }
    }
}

/// Looks at what is stored, round after round. Never returns; may be dropped at any time.
pub(in crate::store) async fn run(integrity: Arc<Integrity>, Rate(rate): Rate) {
    let Some(rate) = rate else { return std::future::pending().await };
    let mut read = Debt::new(ByteLimit::new(ByteRate(rate)));
    loop {
        let asked = Arc::clone(&integrity);
        if let Some(round) =
            blocking(move || Round::due(asked.index().scrub_round().map(Round::of), unix_seconds())).await
        {
            once(&integrity, round, &mut read).await;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// One round, or as much of it as the index can tell.
async fn once(integrity: &Arc<Integrity>, mut round: Round, read: &mut Debt) {
    let mut noted = Instant::now();
    loop {
        let (asked, after) = (Arc::clone(integrity), round.at);
        // Without the index it goes on later.
        let Some(page) = blocking(move || asked.index().blobs(after.as_ref(), PAGE)).await else { return };
        let is_over = page.is_empty();
        for digest in page {
            if let Err(error) = look(integrity, &digest, read).await {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored file cannot be looked at");
            }
            round.at = Some(digest);
            if noted.elapsed() >= NOTE_INTERVAL {
                noted = Instant::now();
                note(integrity, round).await;
            }
        }
        if is_over {
            // One that has found nothing was none: content may come any moment.
            if round.at.take().is_some() {
                note(integrity, round).await;
            }
            return;
        }
    }
}

async fn note(integrity: &Arc<Integrity>, round: Round) {
    let integrity = Arc::clone(integrity);
    blocking(move || integrity.index().set_scrub_round(round.began_at, round.at.as_ref())).await;
}

/// Hashes one stored file, a little at a time.
async fn look(integrity: &Arc<Integrity>, digest: &Digest, read: &mut Debt) -> Result<FileVerdict, Error> {
    let (asked, of) = (Arc::clone(integrity), *digest);
    let mut begun = blocking(move || Hashing::begin(asked.blobs(), &of)).await;
    let mut bytes = 0;
    let looked = loop {
        match begun {
            Ok(Ok(mut hashing)) => {
                let (stepped, count) = blocking(move || {
                    let count = hashing.step();
                    (hashing, count)
                })
                .await;
                match count {
                    Ok(0) => break Ok(stepped.end()),
                    Ok(count) => {
                        bytes += count as u64;
                        integrity.disk().metrics().scrubbed.inc_by(count as u64);
                        read.pay_without_burst(count as u64).await;
                        begun = Ok(Ok(stepped));
                    }
                    Err(error) => break Err(Error::io("verify", &integrity.blobs().path(digest), error)),
                }
            }
            Ok(Err(verdict)) => break Ok(verdict),
            Err(error) => break Err(error),
        }
    };
    read.pay_without_burst(FILE_BYTES_MIN.saturating_sub(bytes)).await;
    let (told, of) = (Arc::clone(integrity), *digest);
    blocking(move || conclude(&told, &of, looked)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_rate_is_of_bytes_or_off() {
        let check = |value: &str, expected: Option<Option<u64>>| {
            let read = toml::from_str::<std::collections::HashMap<String, Rate>>(&format!("rate = {value}"));
            let rate = read.ok().map(|read| read["rate"].0.map(NonZeroU64::get));
            assert_eq!(rate, expected, "{value}");
        };
        check("'off'", Some(None));
        check("'8MiB'", Some(Some(8 << 20)));
        check("'1.5 MiB'", Some(Some(3 << 19)));
        check("8000", Some(Some(8000)));
        for bad in ["''", "0", "'0MiB'", "-1", "'80%'", "'Off'", "false"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_round_goes_on_or_begins_once_a_day() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let begun = |began_at, at| Some(Round { began_at, at });
        let day = ROUND_INTERVAL_SECONDS;
        for (last, now, expected) in [
            (None, 5, begun(5, None)),
            (begun(5, Some(digest)), 9 * day, begun(5, Some(digest))),
            (begun(5, None), day, None),
            (begun(5, None), day + 5, begun(day + 5, None)),
            (begun(50 * day, None), day, begun(day, None)),
        ] {
            assert_eq!(Round::due(last, now), expected, "{last:?} at {now}");
        }
    }
}
