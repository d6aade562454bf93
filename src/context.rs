//! What is known of a request besides what it asks for: which client it is of, which berths it has come through, and
//! how long it may wait. Everything that is done for a request has it, so that all work has an owner.
//!
//! A berth that is asked by another says its own id in the answer's [`Via`](via), and with [`PUBLIC`] whether the
//! content is for everybody; with [`DEADLINE`] the one that asks says how long it waits.
//!
//! No request may wait for itself, also not by way of work that others have begun: two berths that point at each other
//! and are both asked for one blob would each wait for the other's transfer. So all work has a level: the number of
//! berths that its request has come through. What it asks of a parent arrives there with one more, and joins only work
//! of that level or a higher one. Levels rise along every chain of waits; after [`HOPS_MAX`], or where the request has
//! been before, the registry itself is asked, which is the highest level.
//!
//! Anybody can write such a header. All it gains is a transfer of its own, of which there is a limited number: where it
//! goes round the parents, what it fails at is not remembered for others.

pub mod via;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use via::{Instance, hops};

/// Berths that a request may have come through and still be passed on to a parent: more tiers than any site has.
const HOPS_MAX: usize = 4;
/// How many milliseconds the berth that asks will wait for the head of the answer.
pub const DEADLINE: HeaderName = HeaderName::from_static("berth-deadline");
/// Whether a content came without any credential from its registry (`?1`, RFC 9651), so that it is for everybody.
pub const PUBLIC: HeaderName = HeaderName::from_static("berth-public");
const YES: HeaderValue = HeaderValue::from_static("?1");
/// The part of its time that the berth that asks needs to receive the answer and to go on.
const MARGIN_PART: u32 = 8;
/// The part of the time that there is for a question to which there is another answer than its own.
const CHECK_PART: f64 = 0.75;
/// A shorter wait is not believed, and not asked for: little could be done in it, and others may join in what was begun
/// for it. After four tiers a check still has twice as long.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// For whom something is done. What is scarce is shared out by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Client {
    /// A request from this address, which has no login.
    At(IpAddr),
    /// A request with this login, from wherever.
    Login(Login),
    /// berth itself, behind any request.
    #[default]
    Own,
}

/// A login by its name, hashed: two that have one hash by chance share what is scarce, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Login(u64);

impl Login {
    /// The login of this name.
    pub fn named(name: &str) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEY.hash_one(name))
    }
}

/// What is known of a request besides what it asks for. The default is of berth's own work.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    client: Client,
    hops: Vec<Instance>,
    /// Whether the registry itself is to be asked.
    is_local: bool,
    /// Whether that is for where it has come from: a client's own request would go to a parent.
    is_bypass: bool,
    /// When the berth that asks will wait no longer, with time left for it to go on.
    until: Option<Instant>,
}

impl RequestContext {
    /// What a request of the client, or the berth, at this address says about itself.
    pub fn read(client: IpAddr, headers: &HeaderMap) -> Self {
        let (client, hops) = (Client::At(client), hops(headers));
        if hops.is_empty() {
            return Self { client, ..Self::default() };
        }
        let told = headers.get(DEADLINE).and_then(|value| value.to_str().ok()?.parse().ok());
        let told = told.map(Duration::from_millis).filter(|wait| *wait >= WAIT_MIN);
        // A wait of centuries is none.
        let until = told.and_then(|wait| Instant::now().checked_add(wait - wait / MARGIN_PART));
        Self { client, is_local: !may_go_on(&hops), hops, until, ..Self::default() }
    }

    /// The client whose request it is.
    pub fn client(&self) -> Client {
        self.client
    }

    /// The same, once the client has logged in.
    pub fn with_login(self, name: &str) -> Self {
        Self { client: Client::Login(Login::named(name)), ..self }
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
    pub fn local(&self) -> Self {
        Self { is_local: true, ..self.clone() }
    }

    /// The same, but the registry itself is to be asked, although a client's own request would go to a parent.
    pub fn bypass(&self) -> Self {
        Self { is_bypass: true, ..self.local() }
    }

    /// Whether it passes by the parents that others have: what comes of it says nothing about what these will hear.
    pub fn is_bypass(&self) -> bool {
        self.is_bypass
    }

    /// Whether the registry itself is to be asked.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether it has come through that berth.
    pub fn has(&self, instance: Instance) -> bool {
        self.hops.contains(&instance)
    }

    /// Says to a parent where the request has come from, and that its answer is waited for so long.
    pub fn stamp(&self, headers: &mut HeaderMap, wait: Duration) {
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
pub fn is_public(headers: &HeaderMap) -> bool {
    headers.get(PUBLIC) == Some(&YES)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::via::HOPS_READ_MAX;
    use super::*;

    fn context(via: &[&str], deadline: Option<&str>) -> RequestContext {
        let mut headers = HeaderMap::new();
        headers.extend(via.iter().map(|line| (VIA, line.parse().unwrap())));
        headers.extend(deadline.map(|deadline| (DEADLINE, deadline.parse().unwrap())));
        RequestContext::read(Ipv4Addr::LOCALHOST.into(), &headers)
    }

    #[test]
    fn only_berths_count_and_after_four_or_oneself_the_registry_is_asked() {
        let own = format!("1.1 {}", Instance::own());
        let other = |number: u64| format!("1.1 {}", Instance(number));
        let check = |via: &[&str], hops: usize, local: bool, echo: bool| {
            let context = context(via, None);
            assert_eq!(
                (context.hops(), context.is_local(), context.is_echo()),
                (hops, local, echo),
                "{via:?}"
            );
            assert_eq!(context.level(), if local { usize::MAX } else { hops }, "{via:?}");
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
            let patience = context(&[&via], deadline).patience(most);
            assert_eq!(patience, Duration::from_secs_f64(expected), "{deadline:?}");
        };
        check(Some("8000"), 7.0);
        check(Some("60000"), 19.0);
        for nonsense in ["", "-1", "soon", "100", "999", "18446744073709551615"] {
            check(Some(nonsense), 19.0);
        }
        check(None, 19.0);
        assert_eq!(context(&[], Some("8000")).patience(most), most, "a client says no such thing");

        let told = |context: &RequestContext| {
            let mut headers = HeaderMap::new();
            context.stamp(&mut headers, Duration::from_secs(8));
            (hops(&headers).len(), headers[DEADLINE].to_str().unwrap().to_owned())
        };
        let child = context(&[&via], Some("4000"));
        assert_eq!(told(&child), (2, "3500".to_owned()));
        assert_eq!(told(&child.within(Duration::from_secs(1))), (2, "1000".to_owned()));
        assert_eq!(told(&RequestContext::default()), (1, "8000".to_owned()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(told(&child), (2, "8000".to_owned()), "others may wait for what it began");
    }
}
