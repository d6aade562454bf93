//! What is counted of requests to upstreams.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::families::{Families, retain};

/// The families of upstreams.
pub(super) struct UpstreamMetrics {
    requests: IntCounterVec,
    parent_requests: IntCounterVec,
    hedges: IntCounterVec,
    waits: IntCounterVec,
    refused: IntCounterVec,
    quota: IntGaugeVec,
    quota_remaining: IntGaugeVec,
}

impl UpstreamMetrics {
    pub(super) fn new(new: &Families<'_>) -> Self {
        Self {
            requests: new.counters(
                "berth_upstream_requests_total",
                "HTTP requests sent to registries, token servers included",
                &["registry", "outcome"],
            ),
            parent_requests: new.counters(
                "berth_parent_requests_total",
                "HTTP requests sent to parents",
                &["registry", "outcome"],
            ),
            hedges: new.counters(
                "berth_upstream_hedges_total",
                "Requests that a second endpoint was asked beside the first, which was late",
                &["registry"],
            ),
            waits: new.counters(
                "berth_upstream_waits_total",
                "Requests to upstreams that had to wait for their turn",
                &["registry", "limit"],
            ),
            refused: new.counters(
                "berth_upstream_refused_total",
                "Requests to upstreams that a limit kept from being sent",
                &["registry", "limit"],
            ),
            quota: new.gauges(
                "berth_upstream_quota",
                "Manifests that an upstream gives out in its window, as it last said",
                &["registry"],
            ),
            quota_remaining: new.gauges(
                "berth_upstream_quota_remaining",
                "Manifests of these that are left, as it last said",
                &["registry"],
            ),
        }
    }

    pub(super) fn request(&self, registry: &str, outcome: &str) {
        self.requests.with_label_values(&[registry, outcome]).inc();
    }

    pub(super) fn parent_request(&self, registry: &str, outcome: &str) {
        self.parent_requests.with_label_values(&[registry, outcome]).inc();
    }

    pub(super) fn hedged(&self, registry: &str) {
        self.hedges.with_label_values(&[registry]).inc();
    }

    pub(super) fn waited(&self, registry: &str, limit: &str) {
        self.waits.with_label_values(&[registry, limit]).inc();
    }

    pub(super) fn refused(&self, registry: &str, limit: &str) {
        self.refused.with_label_values(&[registry, limit]).inc();
    }

    pub(super) fn quota(&self, registry: &str, limit: u64, remaining: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.quota.with_label_values(&[registry]).set(gauge(limit));
        self.quota_remaining.with_label_values(&[registry]).set(gauge(remaining));
    }

    /// Forgets the states of registries that are not configured.
    pub(super) fn retain(&self, is_configured: &dyn Fn(&str) -> bool) {
        retain(&self.quota, is_configured);
        retain(&self.quota_remaining, is_configured);
    }
}
