//! A second endpoint asked beside one that is late with the head of its answer.
//!
//! The first that has a usable head is used, and the request to the other is ended before it sends a body. An answer is
//! late that takes longer than nearly all answers of that endpoint did; a registry that is slow as a whole must not be asked twice
//! as much for it, so only one request in [`REQUESTS_PER_HEDGE`] has a second, however many are late.
//!
//! Endpoints of one registry are asked beside one another, and nobody else is. A parent that is slow is mostly fetching
//! what was asked for, which another would fetch again; and a fallback, which may have other tags and another login, is
//! for when the registry has no answer rather than a late one.

use std::sync::Mutex;

use crate::remote::endpoint::Endpoint;
use crate::remote::limits::LimitsConfig;
use crate::sync::lock;

/// The number of requests for each hedge: the load of an upstream grows by a tenth at most.
const REQUESTS_PER_HEDGE: u32 = 10;
/// The most hedges at once, after a quiet time and at the beginning: the layers of an image or two.
const HEDGES_SAVED_MAX: u32 = 10;

/// The hedges that the endpoints of one upstream may still have.
pub(super) struct Hedges(Mutex<Allowance>);

impl Hedges {
    /// `None` if there is no other endpoint, or if the operator says that requests are scarce.
    pub(super) fn new(endpoints: usize, limits: &LimitsConfig) -> Option<Self> {
        let are_scarce = limits.requests_per_second.is_some() || limits.concurrent_transfers.is_some();
        (endpoints > 1 && !are_scarce).then(|| Self(Mutex::new(Allowance::full())))
    }

    /// Records a request that may be hedged.
    pub(super) fn request(&self) {
        lock(&self.0).earn();
    }

    /// Takes one hedge. Returns whether there was one left.
    pub(super) fn take(&self) -> bool {
        lock(&self.0).spend()
    }
}

/// What requests have earned and hedges have not yet used.
struct Allowance(u32);

impl Allowance {
    const MAX: u32 = HEDGES_SAVED_MAX * REQUESTS_PER_HEDGE;

    fn full() -> Self {
        Self(Self::MAX)
    }

    fn earn(&mut self) {
        self.0 = (self.0 + 1).min(Self::MAX);
    }

    fn spend(&mut self) -> bool {
        let left = self.0.checked_sub(REQUESTS_PER_HEDGE);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// Whether an endpoint may be asked beside another: it is up, and asking it costs nothing that is scarce.
pub(super) fn is_fit(endpoint: &Endpoint) -> bool {
    !endpoint.is_down() && endpoint.rests_for().is_none() && !endpoint.is_short() && !endpoint.refuses_any()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_ten_is_hedged_once_the_first_are_spent() {
        let mut allowance = Allowance::full();
        let mut all_are_late = |requests: u32| {
            let hedged = |_: &u32| {
                allowance.earn();
                allowance.spend()
            };
            (0..requests).filter(hedged).count()
        };
        assert_eq!(all_are_late(10), 10, "those that were saved");
        all_are_late(20);
        for _ in 0..5 {
            assert_eq!(all_are_late(100), 10);
        }
        (0..10_000).for_each(|_| allowance.earn());
        let spent = (0..100).filter(|_| allowance.spend()).count();
        assert_eq!(spent, 10, "no more than these are saved");
    }

    #[test]
    fn where_requests_are_scarce_there_are_no_hedges() {
        let check = |endpoints: usize, limits: &str, expected: bool| {
            let limits = toml::from_str(limits).unwrap();
            assert_eq!(Hedges::new(endpoints, &limits).is_some(), expected, "{endpoints} {limits:?}");
        };
        check(1, "", false);
        check(2, "", true);
        check(2, "bytes_per_second = '1MiB'", true);
        check(2, "requests_per_second = 5", false);
        check(2, "concurrent_transfers = 5", false);
    }
}
