//! What is known of a request besides what it asks for: its client, the berths that it has come through, and how long it may
//! wait. Everything that is done for a request has it, so that all work has an owner.
//!
//! A berth that is asked by another says its own id in the answer's [`Via`](via), and with [`PUBLIC`] whether the
//! content is for everybody; with [`DEADLINE`] the one that asks says how long it waits.
//!
//! No request may wait for itself, also not by way of work that others have begun: two berths that point at each other
//! and are both asked for one blob would each wait for the other's transfer. So all work has a level: the number of
//! berths that its request has come through. What it asks of a parent arrives there with one more, and joins only work
//! of that level or a higher one. Levels rise along every chain of waits; where no parent is left, the registry itself is
//! asked, which is the highest level.
//!
//! Every endpoint of the configuration is told the berths that a request has come through. A request that has come
//! through this one before, or through more than [`HOPS_MAX`], is in a loop and is answered so at once.
//!
//! Anybody can write such headers. Of a peer that has proven itself they count: for how long it waits, for which of its
//! clients it asks, and that it goes round the parents which it has come through. What it fails at there is not remembered
//! for others. Of anybody else only loops are seen, and the levels kept.

pub mod via;

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::sync::Progress;
use via::{Instance, hops};

/// The number of berths that a request may have come through: more tiers than any site has.
pub const HOPS_MAX: usize = 4;
/// The header that says how long, in milliseconds, the berth that asks waits for the head of the response.
pub const DEADLINE: HeaderName = HeaderName::from_static("berth-deadline");
/// The header that says for which of its clients a berth asks, as a number that means nothing elsewhere. It is sent to
/// parents only.
const CLIENT: HeaderName = HeaderName::from_static("berth-client");
/// The header that says (`?1`, RFC 9651) that a content came from its registry without a credential, and so is public.
pub const PUBLIC: HeaderName = HeaderName::from_static("berth-public");
/// The header that says (`?1`) that another registry, a fallback, claims to have a content, and not the registry itself.
pub const FALLBACK: HeaderName = HeaderName::from_static("berth-fallback");
/// The header that says (`?1`) that the answering berth does not ask the registry that was named: the refusal is not the
/// registry's.
const UNKNOWN_REGISTRY: HeaderName = HeaderName::from_static("berth-unknown-registry");
const YES: HeaderValue = HeaderValue::from_static("?1");
/// The divisor of a peer's deadline for the time that it needs itself to receive the response and to go on.
const MARGIN_PART: u32 = 8;
/// The part of the remaining time that may be spent on a check whose failure can be answered from the cache.
const CHECK_PART: f64 = 0.75;
/// The shortest wait that is believed of a peer, and that a parent is told: little could be done in less, and other requests
/// may join the work that was begun for it. After four tiers a check still has twice as long.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// The client that work is done for. Limits are shared out by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Client {
    /// A client at this address, without a login.
    At(IpAddr),
    /// A client with this login, at any address.
    Login(Login),
    /// A client of another berth, which passed its request on.
    Behind(Behind),
    /// berth itself: no client waits.
    #[default]
    Own,
}

/// The hash of a login's name. Two names that have one hash by chance share their limits, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Login(u64);

impl Login {
    /// The login of this name.
    pub fn named(name: &str) -> Self {
        Self(hash(name))
    }
}

/// The hash of what another berth calls one of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Behind(u64);

/// A hash with a key of this process.
fn hash(value: impl Hash) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(value)
}

/// What is known of a request besides what it asks for. The default is that of berth's own work.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    client: Client,
    hops: Vec<Instance>,
    /// Whether it was passed on by a peer.
    is_proven: bool,
    /// Whether the registry itself is to be asked.
    is_local: bool,
    /// Whether it is so because of the berths that it has come through, where a client's own request would go to a parent.
    is_bypass: bool,
    /// When the response must be there so that the berth that asks can still go on.
    until: Option<Instant>,
    /// The progress of the shared work that is done for it.
    progress: Option<Progress>,
}

impl RequestContext {
    /// The context of a request from this address, by what its headers say.
    pub fn read(client: IpAddr, headers: &HeaderMap) -> Self {
        Self { client: Client::At(client), hops: hops(headers), ..Self::default() }
    }

    /// The same, once it is known to come from a peer. Without a berth in its `Via` it is that peer's own request.
    pub fn from_peer(self, headers: &HeaderMap) -> Self {
        let Some(first) = self.hops.first() else { return self };
        let named = headers.get(CLIENT).and_then(|value| u64::from_str_radix(value.to_str().ok()?, 16).ok());
        // Without a name it is told apart by the berth that it came to first.
        let client = Client::Behind(Behind(hash((self.client, named, named.is_none().then_some(first)))));
        let told = headers.get(DEADLINE).and_then(|value| value.to_str().ok()?.parse().ok());
        let told = told.map(Duration::from_millis).filter(|wait| *wait >= WAIT_MIN);
        // A wait of centuries is none.
        let until = told.and_then(|wait| Instant::now().checked_add(wait - wait / MARGIN_PART));
        Self { client, is_proven: true, until, ..self }
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

    /// Whether it has come through this process before, or through so many berths that it must be in a loop.
    pub fn is_loop(&self) -> bool {
        self.hops.len() > HOPS_MAX || self.hops.contains(&Instance::own())
    }

    /// Whether the next berth will not take it for a loop.
    pub fn may_go_on(&self) -> bool {
        self.hops.len() < HOPS_MAX
    }

    /// Whether it may bypass the parents: it begins here, or a peer has passed it on.
    pub fn may_bypass(&self) -> bool {
        self.is_of_client() || self.is_proven
    }

    /// The same, for shared work with this progress.
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Notes that upstream has begun to answer.
    pub fn answered(&self) {
        if let Some(progress) = &self.progress {
            progress.answered();
        }
    }

    /// The number of berths that it has come through. It may wait for work of this level and of higher ones.
    pub fn hops(&self) -> usize {
        self.hops.len()
    }

    /// The level of the work that it begins.
    pub fn level(&self) -> usize {
        if self.is_local { usize::MAX } else { self.hops.len() }
    }

    /// The shorter of `wait` and the time until its deadline.
    pub fn patience(&self, wait: Duration) -> Duration {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(wait, |left| wait.min(left))
    }

    /// As [`RequestContext::patience`], with time left to answer in another way if the wait is in vain.
    pub fn patience_to_check(&self, wait: Duration) -> Duration {
        match self.until {
            Some(_) => wait.min(self.patience(Duration::MAX).mul_f64(CHECK_PART)),
            None => wait,
        }
    }

    /// The same with a deadline after `wait` at the latest.
    pub fn within(&self, wait: Duration) -> Self {
        let until = Instant::now() + self.patience(wait);
        Self { until: Some(until), ..self.clone() }
    }

    /// The same, but the registry itself is asked.
    pub fn local(&self) -> Self {
        Self { is_local: true, ..self.clone() }
    }

    /// The same, but the registry itself is asked, although a client's own request would go to a parent.
    pub fn bypass(&self) -> Self {
        Self { is_bypass: true, ..self.local() }
    }

    /// Whether it bypasses parents that other requests go to. What it is answered says nothing about those.
    pub fn is_bypass(&self) -> bool {
        self.is_bypass
    }

    /// Whether the registry itself is asked.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether it has come through this berth.
    pub fn has(&self, instance: Instance) -> bool {
        self.hops.contains(&instance)
    }

    /// Adds `Via`, which tells an endpoint the berths that the request has come through.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        let hops = self.hops.iter().copied().chain([Instance::own()]);
        let via: Vec<_> = hops.map(|hop| format!("1.1 {hop}")).collect();
        headers.extend(HeaderValue::try_from(via.join(", ")).map(|via| (VIA, via)));
    }

    /// Adds what a parent is told: the client that is asked for, and how long the response is waited for.
    pub fn stamp_for_parent(&self, headers: &mut HeaderMap, wait: Duration) {
        if self.client != Client::Own {
            let client = HeaderValue::try_from(format!("{:016x}", hash(self.client)));
            headers.extend(client.map(|client| (CLIENT, client)));
        }
        // The request that began this work may have left meanwhile, while others wait for it.
        let patience = Some(self.patience(wait)).filter(|patience| *patience >= WAIT_MIN).unwrap_or(wait);
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        headers.insert(DEADLINE, milliseconds.into());
    }
}

/// Adds `Via`, which tells the berth that asked which berth answers.
pub fn introduce(headers: &mut HeaderMap) {
    let via = HeaderValue::try_from(format!("1.1 {}", Instance::own()));
    headers.extend(via.map(|via| (VIA, via)));
}

/// Tells the berth that asked that the content is public.
pub fn declare_public(headers: &mut HeaderMap) {
    headers.insert(PUBLIC, YES);
}

/// Tells the berth that asked that a fallback answers, and not the registry itself.
pub fn declare_fallback(headers: &mut HeaderMap) {
    headers.insert(FALLBACK, YES);
}

/// Tells the berth that asked that the registry which it named is not asked here.
pub fn declare_unknown_registry(headers: &mut HeaderMap) {
    headers.insert(UNKNOWN_REGISTRY, YES);
}

/// Whether a response says that the registry is not asked there.
pub fn is_unknown_registry(headers: &HeaderMap) -> bool {
    headers.get(UNKNOWN_REGISTRY) == Some(&YES)
}

/// Whether a response says that it is a fallback's.
pub fn is_fallback(headers: &HeaderMap) -> bool {
    headers.get(FALLBACK) == Some(&YES)
}

/// Whether a response says that its content is public.
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
        RequestContext::read(Ipv4Addr::LOCALHOST.into(), &headers).from_peer(&headers)
    }

    #[test]
    fn a_peer_tells_its_clients_apart_and_nobody_else_does() {
        let parent = Ipv4Addr::new(10, 0, 0, 1).into();
        let at_parent = |passed_on: &RequestContext, is_peer: bool| {
            let mut headers = HeaderMap::new();
            passed_on.stamp(&mut headers);
            passed_on.stamp_for_parent(&mut headers, Duration::from_secs(8));
            let context = RequestContext::read(parent, &headers);
            if is_peer { context.from_peer(&headers) } else { context }
        };
        let node = |last: u8| RequestContext::read(Ipv4Addr::new(10, 1, 0, last).into(), &HeaderMap::new());
        let seen = |last: u8, is_peer: bool| at_parent(&node(last), is_peer).client();
        assert_eq!(seen(1, true), seen(1, true));
        assert_ne!(seen(1, true), seen(2, true));
        assert_eq!((seen(1, false), seen(2, false)), (Client::At(parent), Client::At(parent)));
        // By way of one more.
        let further = |last: u8| at_parent(&at_parent(&node(last), true), true).client();
        assert_eq!(further(1), further(1));
        assert_ne!(further(1), further(2));
        assert_eq!(node(1).from_peer(&HeaderMap::new()).client(), node(1).client(), "a client of its own");
        let own = at_parent(&RequestContext::default(), true);
        assert!(matches!(own.client(), Client::Behind(_)) && own.may_bypass());
        assert!(!at_parent(&node(1), false).may_bypass() && node(1).may_bypass());
    }

    #[test]
    fn whoever_is_no_peer_has_no_deadline() {
        let mut headers = HeaderMap::new();
        headers.insert(VIA, format!("1.1 {}", Instance::numbered(1)).parse().unwrap());
        headers.insert(DEADLINE, "1000".parse().unwrap());
        let read = || RequestContext::read(Ipv4Addr::LOCALHOST.into(), &headers);
        let most = Duration::from_secs(19);
        assert_eq!((read().patience(most), read().hops()), (most, 1));
        assert!(read().from_peer(&headers).patience(most) < most);
    }

    #[test]
    fn only_berths_count_and_more_than_four_or_oneself_are_a_loop() {
        let own = format!("1.1 {}", Instance::own());
        let other = |number: u64| format!("1.1 {}", Instance::numbered(number));
        let check = |via: &[&str], hops: usize, is_loop: bool| {
            let context = context(via, None);
            assert_eq!((context.hops(), context.is_loop()), (hops, is_loop), "{via:?}");
            assert_eq!(context.level(), hops, "{via:?}");
        };
        check(&[], 0, false);
        check(&["1.1 squid (Squid/6)", "1.0 berth-1, HTTP/1.1 berth-zzzzzzzzzzzzzzzz"], 0, false);
        check(&[&other(1), "1.1 squid"], 1, false);
        check(&[&format!("{}, {}", other(1), other(2)), &other(3)], 3, false);
        check(&[&[other(1), other(2), other(3), other(4)].join(",")], 4, false);
        check(&[&[other(1), other(2), other(3), other(4), other(5)].join(",")], 5, true);
        check(&[&own, &other(1)], 2, true);
        check(&[&own], 1, true);
        check(&[&vec![other(7); 100].join(",")], HOPS_READ_MAX, true);
    }

    #[tokio::test(start_paused = true)]
    async fn each_tier_waits_less_than_the_one_before() {
        let most = Duration::from_secs(19);
        let via = format!("1.1 {}", Instance::numbered(1));
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
            context.stamp(&mut headers);
            context.stamp_for_parent(&mut headers, Duration::from_secs(8));
            (hops(&headers).len(), headers[DEADLINE].to_str().unwrap().to_owned())
        };
        let child = context(&[&via], Some("4000"));
        assert_eq!(told(&child), (2, "3500".to_owned()));
        assert_eq!(told(&child.within(Duration::from_secs(1))), (2, "1000".to_owned()));
        assert_eq!(told(&RequestContext::default()), (1, "8000".to_owned()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(told(&child), (2, "8000".to_owned()), "others may wait for what it began");
    }

    #[test]
    fn fuzzed_headers_of_berths_are_few_and_make_nobody_wait_longer() {
        let target = crate::fuzz::Target {
            name: "via",
            words: &[
                "1.1 ",
                "HTTP/1.1 ",
                "berth-",
                "0123456789abcdef",
                "ffffffffffffffff",
                "squid (x)",
                ",",
                " ",
                "\t",
                "\n",
                "8000",
                "999",
                "-1",
                "é",
                "18446744073709551615",
            ],
        };
        let most = Duration::from_secs(19);
        target.holds(|input| {
            let mut headers = HeaderMap::new();
            for line in input.split(|byte| *byte == b'\n') {
                let Ok(value) = HeaderValue::from_bytes(line) else { continue };
                let name = if line.first().is_some_and(u8::is_ascii_digit) && line.len() > 6 {
                    VIA
                } else {
                    DEADLINE
                };
                headers.append(name, value);
            }
            let stranger = RequestContext::read(Ipv4Addr::LOCALHOST.into(), &headers);
            assert_eq!(stranger.patience(most), most, "a stranger hurries nobody");
            let context = stranger.from_peer(&headers);
            assert!(context.hops() <= HOPS_READ_MAX && (context.hops() <= HOPS_MAX || context.is_loop()));
            assert!(context.patience(most) <= most && context.patience_to_check(most) <= most);
            let mut next = HeaderMap::new();
            context.stamp(&mut next);
            assert_eq!(hops(&next).len(), (context.hops() + 1).min(HOPS_READ_MAX));
        });
    }
}
