//! Every metric of the process, as one struct, made of a part for each room that is measured.
//!
//! The `registry_http_*` and `registry_proxy_*` families have the names, labels and buckets of
//! distribution, so that dashboards made for it work; what is berth's own is under `berth_`. Labels are
//! bounded by the configuration: a registry at most, never a repository, a tag or a client.

mod clients;
mod configuration;
mod content;
mod families;
mod requests;
mod space;
mod storage;
mod upstreams;

use std::time::Duration;

use prometheus::{Encoder as _, Gauge, IntCounter, IntGauge, Registry, TextEncoder};

pub use clients::ClientLimit;
pub use configuration::{Configuration, Reload};
pub use content::{Kind, Source};
pub use families::ByRegistry;
pub use requests::{Handler, InFlight, Reason, Verb};
pub use storage::Verified;

use clients::ClientMetrics;
use content::ContentMetrics;
use families::Families;
use requests::RequestMetrics;
use space::Space;
use storage::StorageMetrics;
use upstreams::UpstreamMetrics;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The process's metrics.
pub struct Metrics {
    registry: Registry,
    requests: RequestMetrics,
    content: ContentMetrics,
    upstreams: UpstreamMetrics,
    /// Whether each registry is worth asking.
    pub upstream_up: ByRegistry,
    /// Whether each registry is never asked.
    pub upstream_offline: ByRegistry,
    /// Whether each registry refuses a configured login.
    pub login_refused: ByRegistry,
    clients: ClientMetrics,
    storage: StorageMetrics,
    /// Bytes of bodies sent to clients.
    pub sent: IntCounter,
    /// Connections that were closed for want of room.
    pub turned_away: IntCounter,
    /// The number of transfers from upstream under way.
    pub flights: IntGauge,
    /// Transfers from upstream whose content did not match its digest.
    pub mismatches: IntCounter,
    /// Claims to have content that is stored, which were wrong.
    pub refuted_claims: IntCounter,
    /// The room for content, and what is evicted for want of it.
    pub space: Space,
    /// Bytes of stored content.
    pub storage_used: IntGauge,
    /// Size of the file system that holds the data folder.
    pub storage_total: IntGauge,
    /// 1 while the disk does not take what it is given.
    pub degraded: IntGauge,
    /// Stored files that were found damaged.
    pub quarantined: IntCounter,
    /// Bytes of stored files that the background scrub has hashed.
    pub scrubbed: IntCounter,
    /// How much of the files is read into the index, from 0 to 1.
    pub index_ratio: Gauge,
    /// Reloads of the configuration file.
    pub configuration: Configuration,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let new = Families::of(&registry);
        let info = new.gauges("berth_build_info", "Always 1; the version is a label", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            requests: RequestMetrics::new(&new),
            content: ContentMetrics::new(&new),
            upstreams: UpstreamMetrics::new(&new),
            upstream_up: new.by_registry(
                "berth_upstream_up",
                "1 while a registry is worth asking; 0 while none of its endpoints answers, or it is offline",
            ),
            upstream_offline: new.by_registry(
                "berth_upstream_offline",
                "1 for a registry that is never asked, by configuration",
            ),
            login_refused: new.by_registry(
                "berth_upstream_login_refused",
                "1 while a registry refuses a configured login, and only probes use it",
            ),
            clients: ClientMetrics::new(&new),
            storage: StorageMetrics::new(&new),
            sent: new.counter("berth_sent_bytes_total", "Bytes of bodies sent to clients"),
            turned_away: new.counter("berth_turned_away_total", "Connections closed for want of room"),
            flights: new.gauge("berth_flights", "Transfers from upstream under way"),
            mismatches: new
                .counter("berth_digest_mismatches_total", "Transfers that did not match their digest"),
            refuted_claims: new.counter(
                "berth_refuted_claims_total",
                "Claims of upstreams to have content that berth holds, which were wrong",
            ),
            space: Space::new(&new),
            storage_used: new.gauge("registry_storage_used_bytes", "Bytes of stored content"),
            storage_total: new.gauge("registry_storage_total_bytes", "Size of the data folder's file system"),
            degraded: new.gauge("berth_degraded", "1 while the disk does not take what it is given"),
            quarantined: new.counter("berth_quarantined_total", "Stored files that were found damaged"),
            scrubbed: new
                .counter("berth_scrubbed_bytes_total", "Bytes of stored files hashed in the background"),
            index_ratio: new.ratio(
                "berth_index_rebuild_ratio",
                "How far reading the files into the index is; 1 when there is nothing to read",
            ),
            configuration: Configuration::new(&new),
            registry,
        }
    }

    /// Forgets the states of registries that are not configured any more. Counters stay: what was counted has happened.
    pub fn tell_only_of(&self, is_configured: impl Fn(&str) -> bool) {
        for state in [&self.upstream_up, &self.upstream_offline, &self.login_refused] {
            state.retain(&is_configured);
        }
        self.upstreams.retain(&is_configured);
    }

    /// Counts a request for `handler` as being answered, until the value is dropped.
    pub fn in_flight(&self, handler: Handler) -> InFlight {
        self.requests.in_flight(handler)
    }

    /// Counts a request that was answered, or whose connection was lost.
    pub fn request_ended(
        &self,
        handler: Handler,
        verb: Verb,
        status: u16,
        first_byte: Duration,
        whole: Duration,
    ) {
        self.requests.ended(handler, verb, status, first_byte, whole);
    }

    /// Counts a request that was answered with an error.
    pub fn refused(&self, reason: Reason) {
        self.requests.refused(reason);
    }

    /// Counts content that was served from `source`.
    pub fn served(&self, kind: Kind, source: Source) {
        self.content.served(kind, source);
    }

    /// Counts bytes of content that came from `registry`.
    pub fn received(&self, kind: Kind, registry: &str, bytes: u64) {
        self.content.received(kind, registry, bytes);
    }

    /// Counts bytes of content that were sent to a client.
    pub fn pushed(&self, kind: Kind, bytes: u64) {
        self.content.pushed(kind, bytes);
    }

    /// Counts an HTTP request to an upstream of `registry` that ended in `outcome`.
    pub fn upstream_request(&self, registry: &str, outcome: &str) {
        self.upstreams.request(registry, outcome);
    }

    /// Counts an HTTP request to a parent, about content of `registry`, that ended in `outcome`.
    pub fn parent_request(&self, registry: &str, outcome: &str) {
        self.upstreams.parent_request(registry, outcome);
    }

    /// Counts a request that a second endpoint of `registry` was asked beside one that was late.
    pub fn upstream_hedged(&self, registry: &str) {
        self.upstreams.hedged(registry);
    }

    /// Counts a request to an upstream of `registry` that had to wait because of `limit`.
    pub fn upstream_waited(&self, registry: &str, limit: &str) {
        self.upstreams.waited(registry, limit);
    }

    /// Counts a request to an upstream of `registry` that was not sent because of `limit`.
    pub fn upstream_refused(&self, registry: &str, limit: &str) {
        self.upstreams.refused(registry, limit);
    }

    /// Notes how many manifests an upstream of `registry` says it gives out, and how many are left.
    pub fn upstream_quota(&self, registry: &str, limit: u64, remaining: u64) {
        self.upstreams.quota(registry, limit, remaining);
    }

    /// Counts a client that was refused, or had to wait, because of a limit of its own.
    pub fn client_limited(&self, limit: ClientLimit) {
        self.clients.limited(limit);
    }

    /// Counts a stored file that begins to be hashed because of its readers.
    pub fn verified(&self, why: Verified) {
        self.storage.verified(why);
    }

    /// Counts an error of the disk. `kind` is one of a fixed set.
    pub fn storage_error(&self, kind: &str) {
        self.storage.error(kind);
    }

    /// All metrics as Prometheus text.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics could not be rendered whole");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_there_from_the_start() {
        let text = String::from_utf8(Metrics::new().text()).unwrap();
        for line in
            ["registry_proxy_hits_total{type=\"blob\"} 0", "berth_flights 0", "registry_storage_used_bytes 0"]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
