//! The berths that a request has come through, and what they tell one another about it.
//!
//! Each names itself in `Via` (RFC 9110, 7.6.3) as `1.1 berth-ID`; the id is made anew by every process, so that a
//! copied data folder does not make two berths look like one. A berth that is asked so says its own id in the answer's
//! `Via`, and with [`PUBLIC`] whether the content is for everybody; with [`DEADLINE`] the one that asks says how long it
//! waits.
//!
//! No request may wait for itself, also not by way of work that others have begun: two berths that point at each other
//! and are both asked for one blob would each wait for the other's transfer. So all work has a level: the number of
//! berths that its request has come through. What it asks of a parent arrives there with one more, and joins only work
//! of that level or a higher one. Levels rise along every chain of waits; after [`HOPS_MAX`], or where the request has
//! been before, the registry itself is asked, which is the highest level.
//!
//! Anybody can write such a header. All it gains is a transfer of its own, of which there is a limited number: where it
//! goes round the parents, what it fails at is not remembered for others.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::Asker;

/// Berths that a request may have come through and still be passed on to a parent: more tiers than any site has.
const HOPS_MAX: usize = 4;
/// Entries of `Via` that are read; one more than matters.
const HOPS_READ_MAX: usize = 16;
/// What the name of a berth begins with in `Via`.
const PSEUDONYM: &str = "berth-";
/// How many milliseconds the berth that asks will wait for the head of the answer.
pub(super) const DEADLINE: HeaderName = HeaderName::from_static("berth-deadline");
/// Whether a content came without any credential from its registry (`?1`, RFC 9651), so that it is for everybody.
pub(super) const PUBLIC: HeaderName = HeaderName::from_static("berth-public");
const YES: HeaderValue = HeaderValue::from_static("?1");
/// The part of its time that the berth that asks needs to receive the answer and to go on.
const MARGIN_PART: u32 = 8;
/// The part of the time that there is for a question to which there is another answer than its own.
const CHECK_PART: f64 = 0.75;
/// A shorter wait is not believed, and not asked for: little could be done in it, and others may join in what was begun
/// for it. After four tiers a check still has twice as long.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// One running berth.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance(u64);

impl Instance {
    /// This process.
    pub(super) fn own() -> Self {
        static OWN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(PSEUDONYM));
        Self(*OWN)
    }

    /// The one that the last entry of an answer's `Via` names.
    pub(super) fn answering(headers: &HeaderMap) -> Option<Self> {
        hops(headers).pop()
    }

    fn parse(entry: &str) -> Option<Self> {
        let name = entry.split_whitespace().nth(1)?.strip_prefix(PSEUDONYM)?;
        if name.len() != 16 {
            return None;
        }
        u64::from_str_radix(name, 16).ok().map(Self)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PSEUDONYM}{:016x}", self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hops(headers: &HeaderMap) -> Vec<Instance> {
    let lines = headers.get_all(VIA).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(Instance::parse).take(HOPS_READ_MAX).collect()
}

/// Where a request has come from, and so whom it may be passed on to. The default is berth's own.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    asker: Asker,
    hops: Vec<Instance>,
    /// Whether the registry itself is to be asked.
    is_local: bool,
    /// Whether that is for where it has come from: a client's own request would go to a parent.
    is_bypass: bool,
    /// When the berth that asks will wait no longer, with time left for it to go on.
    until: Option<Instant>,
}

impl Trail {
    /// What a request of the client, or the berth, at this address says about itself.
    pub fn read(client: IpAddr, headers: &HeaderMap) -> Self {
        let (asker, hops) = (Asker::At(client), hops(headers));
        if hops.is_empty() {
            return Self { asker, ..Self::default() };
        }
        let told = headers.get(DEADLINE).and_then(|value| value.to_str().ok()?.parse().ok());
        let told = told.map(Duration::from_millis).filter(|wait| *wait >= WAIT_MIN);
        // A wait of centuries is none.
        let until = told.and_then(|wait| Instant::now().checked_add(wait - wait / MARGIN_PART));
        Self { asker, is_local: !may_go_on(&hops), hops, until, is_bypass: false }
    }

    /// Whose turn it is when it is this request's.
    pub(super) fn asker(&self) -> Asker {
        self.asker
    }

    /// Whether no berth has passed it on.
    pub fn is_of_client(&self) -> bool {
        self.hops.is_empty()
    }

    /// Whether this very process has sent it, to itself.
    pub fn is_echo(&self) -> bool {
        self.hops.last() == Some(&Instance::own())
    }

    /// Berths that it has come through: it may wait for work of this level and of higher ones.
    pub fn hops(&self) -> usize {
        self.hops.len()
    }

    /// The level of the work that it begins.
    pub fn level(&self) -> usize {
        if self.is_local { usize::MAX } else { self.hops.len() }
    }

    /// At most `wait`, and no longer than who asks.
    pub fn patience(&self, wait: Duration) -> Duration {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(wait, |left| wait.min(left))
    }

    /// At most `wait`, and so that who asks has an answer in time even if this is in vain.
    pub fn patience_to_check(&self, wait: Duration) -> Duration {
        match self.until {
            Some(_) => wait.min(self.patience(Duration::MAX).mul_f64(CHECK_PART)),
            None => wait,
        }
    }

    /// The same for somebody who waits for `wait` at most.
    pub fn within(&self, wait: Duration) -> Self {
        let until = Instant::now() + self.patience(wait);
        Self { until: Some(until), ..self.clone() }
    }

    /// The same, but the registry itself is to be asked.
    pub(super) fn local(&self) -> Self {
        Self { is_local: true, ..self.clone() }
    }

    /// The same, but the registry itself is to be asked, although a client's own request would go to a parent.
    pub(super) fn bypass(&self) -> Self {
        Self { is_bypass: true, ..self.local() }
    }

    /// Whether it passes by the parents that others have: what comes of it says nothing about what these will hear.
    pub fn is_bypass(&self) -> bool {
        self.is_bypass
    }

    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether it has come through that berth.
    pub(super) fn has(&self, instance: Instance) -> bool {
        self.hops.contains(&instance)
    }

    /// Says to a parent where the request has come from, and that its answer is waited for so long.
    pub(super) fn stamp(&self, headers: &mut HeaderMap, wait: Duration) {
        let hops = self.hops.iter().copied().chain([Instance::own()]);
        let via: Vec<_> = hops.map(|hop| format!("1.1 {hop}")).collect();
        headers.extend(HeaderValue::try_from(via.join(", ")).map(|via| (VIA, via)));
        // Who began this work may have left meanwhile, and others wait for it.
        let patience = Some(self.patience(wait)).filter(|patience| *patience >= WAIT_MIN).unwrap_or(wait);
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        headers.insert(DEADLINE, milliseconds.into());
    }
}

/// Whether a request that has come so far may be passed on to a parent.
fn may_go_on(hops: &[Instance]) -> bool {
    hops.len() <= HOPS_MAX && !hops.contains(&Instance::own())
}

/// Says to the berth that asked who answers.
pub fn introduce(headers: &mut HeaderMap) {
    let via = HeaderValue::try_from(format!("1.1 {}", Instance::own()));
    headers.extend(via.map(|via| (VIA, via)));
}

/// Says to the berth that asked that the content is for everybody.
pub fn declare_public(headers: &mut HeaderMap) {
    headers.insert(PUBLIC, YES);
}

/// Whether an answer is said to be for everybody.
pub(super) fn is_public(headers: &HeaderMap) -> bool {
    headers.get(PUBLIC) == Some(&YES)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn trail(via: &[&str], deadline: Option<&str>) -> Trail {
        let mut headers = HeaderMap::new();
        headers.extend(via.iter().map(|line| (VIA, line.parse().unwrap())));
        headers.extend(deadline.map(|deadline| (DEADLINE, deadline.parse().unwrap())));
        Trail::read(Ipv4Addr::LOCALHOST.into(), &headers)
    }

    #[test]
    fn only_berths_count_and_after_four_or_oneself_the_registry_is_asked() {
        let own = format!("1.1 {}", Instance::own());
        let other = |number: u64| format!("1.1 {}", Instance(number));
        let check = |via: &[&str], hops: usize, local: bool, echo: bool| {
            let trail = trail(via, None);
            assert_eq!((trail.hops(), trail.is_local(), trail.is_echo()), (hops, local, echo), "{via:?}");
            assert_eq!(trail.level(), if local { usize::MAX } else { hops }, "{via:?}");
        };
        check(&[], 0, false, false);
        check(&["1.1 squid (Squid/6)", "1.0 berth-1, HTTP/1.1 berth-zzzzzzzzzzzzzzzz"], 0, false, false);
        check(&[&other(1), "1.1 squid"], 1, false, false);
        check(&[&format!("{}, {}", other(1), other(2)), &other(3)], 3, false, false);
        check(&[&[other(1), other(2), other(3), other(4)].join(",")], 4, false, false);
        check(&[&[other(1), other(2), other(3), other(4), other(5)].join(",")], 5, true, false);
        check(&[&own, &other(1)], 2, true, false);
        check(&[&own], 1, true, true);
        check(&[&vec![other(7); 100].join(",")], HOPS_READ_MAX, true, false);
    }

    #[tokio::test(start_paused = true)]
    async fn each_tier_waits_less_than_the_one_before() {
        let most = Duration::from_secs(19);
        let via = format!("1.1 {}", Instance(1));
        let check = |deadline: Option<&str>, expected: f64| {
            let patience = trail(&[&via], deadline).patience(most);
            assert_eq!(patience, Duration::from_secs_f64(expected), "{deadline:?}");
        };
        check(Some("8000"), 7.0);
        check(Some("60000"), 19.0);
        for nonsense in ["", "-1", "soon", "100", "999", "18446744073709551615"] {
            check(Some(nonsense), 19.0);
        }
        check(None, 19.0);
        assert_eq!(trail(&[], Some("8000")).patience(most), most, "a client says no such thing");

        let told = |trail: &Trail| {
            let mut headers = HeaderMap::new();
            trail.stamp(&mut headers, Duration::from_secs(8));
            (hops(&headers).len(), headers[DEADLINE].to_str().unwrap().to_owned())
        };
        let child = trail(&[&via], Some("4000"));
        assert_eq!(told(&child), (2, "3500".to_owned()));
        assert_eq!(told(&child.within(Duration::from_secs(1))), (2, "1000".to_owned()));
        assert_eq!(told(&Trail::default()), (1, "8000".to_owned()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(told(&child), (2, "8000".to_owned()), "others may wait for what it began");
    }
}
