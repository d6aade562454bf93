//! Every metric of the process, as one struct.
//!
//! The `registry_http_*` and `registry_proxy_*` families have the names, labels and buckets of
//! distribution, so that dashboards made for it work; what is berth's own is under `berth_`. Labels are
//! bounded by the configuration: a registry at most, never a repository, a tag or a client.

mod configuration;
mod requests;
mod space;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use configuration::{Configuration, Reload};
pub use requests::{Handler, InFlight, Reason, Verb};

use requests::Requests;
use space::Space;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What a request was for, as distribution's `type` label has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A blob: layer, config or other content.
    Blob,
    /// A manifest or index.
    Manifest,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Blob, Self::Manifest];

    fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}

/// How content was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From disk.
    Hit,
    /// From disk, though upstream could not confirm it.
    Stale,
    /// By asking upstream.
    Miss,
    /// From a transfer that somebody else had started.
    Join,
}

/// What kept a client from having everything at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientLimit {
    /// Its many connections.
    Connections,
    /// Its many requests.
    Requests,
    /// The bytes that it has taken.
    Bytes,
}

impl ClientLimit {
    const ALL: [Self; 3] = [Self::Connections, Self::Requests, Self::Bytes];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Bytes => "bytes",
        }
    }
}

/// Why a stored file was verified behind its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// A client has asked for all of it once more.
    Reread,
    /// Nobody had read it for long.
    Unread,
}

impl Verified {
    /// A counter for each, in the order of the variants.
    fn counters(new: &Families<'_>) -> [IntCounter; 2] {
        let help = "Stored files that were hashed because of their readers";
        let family = new.counters("berth_verifications_total", help, &["cause"]);
        ["reread", "unread"].map(|cause| family.with_label_values(&[cause]))
    }
}

/// The process's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    proxy: Proxy,
    hits: ByKind,
    misses: ByKind,
    joins: ByKind,
    stale: ByKind,
    upstreams: Upstreams,
    /// Whether a registry is worth asking.
    pub upstream_up: ByRegistry,
    /// Whether it is never asked.
    pub upstream_offline: ByRegistry,
    /// Whether it refuses a configured login.
    pub login_refused: ByRegistry,
    clients_limited: [IntCounter; ClientLimit::ALL.len()],
    received: IntCounterVec,
    /// Bytes of bodies sent to clients.
    pub sent: IntCounter,
    /// Connections that found no seat.
    pub turned_away: IntCounter,
    /// Transfers from upstream under way.
    pub flights: IntGauge,
    /// Transfers from upstream whose content did not match its digest.
    pub mismatches: IntCounter,
    /// Claims to have content that is stored, which were wrong.
    pub refuted_claims: IntCounter,
    /// How much room there is, and what goes for want of it.
    pub space: Space,
    /// Bytes of stored content.
    pub storage_used: IntGauge,
    /// Size of the file system that holds the data folder.
    pub storage_total: IntGauge,
    storage_errors: IntCounterVec,
    /// 1 while the disk does not take what it is given.
    pub degraded: IntGauge,
    /// Stored files that were found damaged.
    pub quarantined: IntCounter,
    verified: [IntCounter; 2],
    /// Bytes of stored files that the background scrub has hashed.
    pub scrubbed: IntCounter,
    /// How far the index is with the files, from 0 to 1.
    pub index_ratio: Gauge,
    /// What became of the configuration file.
    pub configuration: Configuration,
}

/// What distribution tells of a pull-through cache.
struct Proxy {
    requests: ByKind,
    hits: ByKind,
    misses: ByKind,
    pulled: ByKind,
    pushed: ByKind,
}

/// A counter for each kind, there from the start, so that rates are right.
struct ByKind([IntCounter; Kind::ALL.len()]);

impl ByKind {
    fn of(&self, kind: Kind) -> &IntCounter {
        &self.0[kind as usize]
    }
}

/// Something that is so, or not, of each registry.
pub struct ByRegistry(IntGaugeVec);

impl ByRegistry {
    /// Whether it is so.
    pub fn set(&self, registry: &str, is_so: bool) {
        self.0.with_label_values(&[registry]).set(is_so.into());
    }
}

impl Proxy {
    fn new(new: &Families<'_>) -> Self {
        let counters = |name: &str, help: &str| new.by_kind(name, help);
        Self {
            requests: counters("registry_proxy_requests_total", "Requests for content"),
            hits: counters("registry_proxy_hits_total", "Requests answered from disk"),
            misses: counters("registry_proxy_misses_total", "Requests not answered from disk"),
            pulled: counters("registry_proxy_pulled_bytes_total", "Bytes received from upstream"),
            pushed: counters("registry_proxy_pushed_bytes_total", "Bytes sent to clients"),
        }
    }
}

/// What is asked of upstreams, and what is not.
struct Upstreams {
    requests: IntCounterVec,
    parent_requests: IntCounterVec,
    hedges: IntCounterVec,
    waits: IntCounterVec,
    refused: IntCounterVec,
    quota: IntGaugeVec,
    quota_remaining: IntGaugeVec,
}

impl Upstreams {
    fn new(new: &Families<'_>) -> Self {
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
}

/// Makes metrics and registers them.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    /// Says which version this is.
    fn version(&self) {
        let info = self.gauges("berth_build_info", "Always 1; the version is a label", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Each kind is there from the start, at zero.
    fn storage_errors(&self) -> IntCounterVec {
        let (name, help) = ("berth_storage_errors_total", "What the disk did not take, or give back");
        let errors = self.counters(name, help, &["kind"]);
        for kind in ["full", "read_only", "io"] {
            errors.with_label_values(&[kind]);
        }
        errors
    }

    fn clients_limited(&self) -> [IntCounter; ClientLimit::ALL.len()] {
        let (name, help) = ("berth_client_limited_total", "Times that a client's limit was reached");
        let limited = self.counters(name, help, &["limit"]);
        ClientLimit::ALL.map(|limit| limited.with_label_values(&[limit.as_str()]))
    }

    fn by_kind(&self, name: &str, help: &str) -> ByKind {
        let family = self.counters(name, help, &["type"]);
        ByKind(Kind::ALL.map(|kind| family.with_label_values(&[kind.as_str()])))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn by_registry(&self, name: &str, help: &str) -> ByRegistry {
        ByRegistry(self.gauges(name, help, &["registry"]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the names below are valid");
        self.0.register(Box::new(metric.clone())).expect("each name below stands once");
        metric
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let new = Families(&registry);
        let by_type = |name: &str, help: &str| new.by_kind(name, help);
        new.version();
        Self {
            requests: Requests::new(&new),
            proxy: Proxy::new(&new),
            hits: by_type("berth_hits_total", "Answers from disk"),
            misses: by_type("berth_misses_total", "Answers for which upstream was asked"),
            joins: by_type("berth_joins_total", "Answers from a transfer that another request began"),
            stale: by_type("berth_stale_total", "Answers from disk that upstream could not confirm"),
            upstreams: Upstreams::new(&new),
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
            clients_limited: new.clients_limited(),
            received: new.counters(
                "berth_received_bytes_total",
                "Bytes of content from upstream",
                &["registry"],
            ),
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
            storage_errors: new.storage_errors(),
            degraded: new.gauge("berth_degraded", "1 while the disk does not take what it is given"),
            quarantined: new.counter("berth_quarantined_total", "Stored files that were found damaged"),
            verified: Verified::counters(&new),
            scrubbed: new
                .counter("berth_scrubbed_bytes_total", "Bytes of stored files hashed in the background"),
            index_ratio: new.register(Gauge::new(
                "berth_index_rebuild_ratio",
                "How far reading the files into the index is; 1 when there is nothing to read",
            )),
            configuration: Configuration::new(&new),
            registry,
        }
    }

    /// Of what is so just now, forgets it for registries that are not configured any more. Counters stay: what was
    /// counted has happened.
    pub fn tell_only_of(&self, is_configured: impl Fn(&str) -> bool) {
        let states = [&self.upstream_up, &self.upstream_offline, &self.login_refused].map(|state| &state.0);
        for gauge in states.into_iter().chain([&self.upstreams.quota, &self.upstreams.quota_remaining]) {
            for sample in gauge.collect().iter().flat_map(|family| family.get_metric()) {
                let registry = sample.get_label().first().map_or("", |label| label.value());
                if !is_configured(registry) {
                    // Another look may have done it meanwhile.
                    let _ = gauge.remove_label_values(&[registry]);
                }
            }
        }
    }

    /// Counts a request for `handler` as being answered, until the value is dropped.
    pub fn in_flight(&self, handler: Handler) -> InFlight {
        self.requests.in_flight(handler)
    }

    /// A request was answered, or its connection was lost.
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

    /// A request was answered with an error.
    pub fn refused(&self, reason: Reason) {
        self.requests.refused(reason);
    }

    /// Content was found, or not.
    pub fn served(&self, kind: Kind, source: Source) {
        self.proxy.requests.of(kind).inc();
        let on_disk = matches!(source, Source::Hit | Source::Stale);
        if on_disk { &self.proxy.hits } else { &self.proxy.misses }.of(kind).inc();
        let by_source = match source {
            Source::Hit => &self.hits,
            Source::Stale => &self.stale,
            Source::Miss => &self.misses,
            Source::Join => &self.joins,
        };
        by_source.of(kind).inc();
    }

    /// Bytes of content arrived from `registry`.
    pub fn received(&self, kind: Kind, registry: &str, bytes: u64) {
        self.proxy.pulled.of(kind).inc_by(bytes);
        self.received.with_label_values(&[registry]).inc_by(bytes);
    }

    /// Bytes of content were sent to a client.
    pub fn pushed(&self, kind: Kind, bytes: u64) {
        self.proxy.pushed.of(kind).inc_by(bytes);
    }

    /// An HTTP request to an upstream of `registry` ended in `outcome`.
    pub fn upstream_request(&self, registry: &str, outcome: &str) {
        self.upstreams.requests.with_label_values(&[registry, outcome]).inc();
    }

    /// An HTTP request to a parent, about content of `registry`, ended in `outcome`.
    pub fn parent_request(&self, registry: &str, outcome: &str) {
        self.upstreams.parent_requests.with_label_values(&[registry, outcome]).inc();
    }

    /// A second endpoint of `registry` was asked beside one that was late.
    pub fn upstream_hedged(&self, registry: &str) {
        self.upstreams.hedges.with_label_values(&[registry]).inc();
    }

    /// A request to an upstream of `registry` had to wait, because of `limit`.
    pub fn upstream_waited(&self, registry: &str, limit: &str) {
        self.upstreams.waits.with_label_values(&[registry, limit]).inc();
    }

    /// A request to an upstream of `registry` was not sent, because of `limit`.
    pub fn upstream_refused(&self, registry: &str, limit: &str) {
        self.upstreams.refused.with_label_values(&[registry, limit]).inc();
    }

    /// An upstream of `registry` has said how many manifests it gives out, and how many are left.
    pub fn upstream_quota(&self, registry: &str, limit: u64, remaining: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.upstreams.quota.with_label_values(&[registry]).set(gauge(limit));
        self.upstreams.quota_remaining.with_label_values(&[registry]).set(gauge(remaining));
    }

    /// A client was refused, or had to wait, because of a limit of its own.
    pub fn client_limited(&self, limit: ClientLimit) {
        self.clients_limited[limit as usize].inc();
    }

    /// A stored file begins to be hashed because somebody reads it.
    pub fn verified(&self, why: Verified) {
        self.verified[why as usize].inc();
    }

    /// The disk has failed: `kind` is one of a fixed set.
    pub fn storage_error(&self, kind: &str) {
        self.storage_errors.with_label_values(&[kind]).inc();
    }

    /// The Prometheus text of everything.
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
