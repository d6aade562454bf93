//! Every metric of the process, as one struct.
//!
//! The `registry_http_*` and `registry_proxy_*` families have the names, labels and buckets of
//! distribution, so that dashboards made for it work; what is berth's own is under `berth_`. Labels are
//! bounded by the configuration: a registry at most, never a repository, a tag or a client.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// distribution's buckets for request durations, in seconds.
const DURATION_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0];
/// A hit takes well under a millisecond, a cold token dance some seconds.
const FIRST_BYTE_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0];

/// What a request was for, as distribution's `type` label has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A blob: layer, config or other content.
    Blob,
    /// A manifest or index.
    Manifest,
}

impl Kind {
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

/// The process's metrics.
pub struct Metrics {
    registry: Registry,
    http: Http,
    proxy: Proxy,
    hits: IntCounterVec,
    misses: IntCounterVec,
    joins: IntCounterVec,
    stale: IntCounterVec,
    upstream_requests: IntCounterVec,
    received: IntCounterVec,
    /// Bytes of bodies sent to clients.
    pub sent: IntCounter,
    /// Connections that found no seat.
    pub turned_away: IntCounter,
    /// Transfers from upstream under way.
    pub flights: IntGauge,
    /// Transfers from upstream whose content did not match its digest.
    pub mismatches: IntCounter,
    /// Bytes of stored content.
    pub storage_used: IntGauge,
    /// Size of the file system that holds the data folder.
    pub storage_total: IntGauge,
    /// How far the index is with the files, from 0 to 1.
    pub index_ratio: Gauge,
}

/// Requests at berth's own door.
struct Http {
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    first_byte: HistogramVec,
}

/// A request that is being answered.
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What distribution tells of a pull-through cache.
struct Proxy {
    requests: IntCounterVec,
    hits: IntCounterVec,
    misses: IntCounterVec,
    pulled: IntCounterVec,
    pushed: IntCounterVec,
}

impl Http {
    fn new(new: &Families<'_>) -> Self {
        let labels = ["handler", "code", "method"];
        Self {
            requests: new.counters("registry_http_requests_total", "Requests answered", &labels),
            duration: new.histogram(
                "registry_http_request_duration_seconds",
                "Time until the last byte of an answer was sent",
                &DURATION_BUCKETS,
                &["handler", "method"],
            ),
            in_flight: new.gauges(
                "registry_http_in_flight_requests",
                "Requests being answered",
                &["handler"],
            ),
            first_byte: new.histogram(
                "berth_first_byte_seconds",
                "Time from a request's head to the first byte of its answer",
                &FIRST_BYTE_BUCKETS,
                &["handler"],
            ),
        }
    }
}

impl Proxy {
    fn new(new: &Families<'_>) -> Self {
        let counters = |name: &str, help: &str| new.counters(name, help, &["type"]);
        Self {
            requests: counters("registry_proxy_requests_total", "Requests for content"),
            hits: counters("registry_proxy_hits_total", "Requests answered from disk"),
            misses: counters("registry_proxy_misses_total", "Requests not answered from disk"),
            pulled: counters("registry_proxy_pulled_bytes_total", "Bytes received from upstream"),
            pushed: counters("registry_proxy_pushed_bytes_total", "Bytes sent to clients"),
        }
    }
}

/// Makes metrics and registers them.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
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
        let by_type = |name: &str, help: &str| new.counters(name, help, &["type"]);
        let info = new.gauges("berth_build_info", "Always 1; the version is a label", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            http: Http::new(&new),
            proxy: Proxy::new(&new),
            hits: by_type("berth_hits_total", "Answers from disk"),
            misses: by_type("berth_misses_total", "Answers for which upstream was asked"),
            joins: by_type("berth_joins_total", "Answers from a transfer that another request began"),
            stale: by_type("berth_stale_total", "Answers from disk that upstream could not confirm"),
            upstream_requests: new.counters(
                "berth_upstream_requests_total",
                "HTTP requests sent to upstreams, token servers included",
                &["registry", "outcome"],
            ),
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
            storage_used: new.gauge("registry_storage_used_bytes", "Bytes of stored content"),
            storage_total: new.gauge("registry_storage_total_bytes", "Size of the data folder's file system"),
            index_ratio: new.register(Gauge::new(
                "berth_index_rebuild_ratio",
                "How far reading the files into the index is; 1 when there is nothing to read",
            )),
            registry,
        };
        metrics.start_at_zero();
        metrics
    }

    /// Families with a fixed set of labels are there from the start, so that rates are right.
    fn start_at_zero(&self) {
        for kind in [Kind::Blob.as_str(), Kind::Manifest.as_str()] {
            for family in [
                &self.proxy.requests,
                &self.proxy.hits,
                &self.proxy.misses,
                &self.proxy.pulled,
                &self.proxy.pushed,
                &self.hits,
                &self.misses,
                &self.joins,
                &self.stale,
            ] {
                family.with_label_values(&[kind]);
            }
        }
    }

    /// Counts a request for `handler` as being answered, until the value is dropped.
    pub fn in_flight(&self, handler: &str) -> InFlight {
        let gauge = self.http.in_flight.with_label_values(&[handler]);
        gauge.inc();
        InFlight(gauge)
    }

    /// A request was answered, or its connection was lost. `method` in lower case, one of a fixed set.
    pub fn request_ended(
        &self,
        handler: &str,
        method: &str,
        status: u16,
        first_byte: Duration,
        whole: Duration,
    ) {
        self.http.requests.with_label_values(&[handler, &status.to_string(), method]).inc();
        self.http.duration.with_label_values(&[handler, method]).observe(whole.as_secs_f64());
        self.http.first_byte.with_label_values(&[handler]).observe(first_byte.as_secs_f64());
    }

    /// Content was found, or not.
    pub fn served(&self, kind: Kind, source: Source) {
        let labels = &[kind.as_str()];
        self.proxy.requests.with_label_values(labels).inc();
        let on_disk = matches!(source, Source::Hit | Source::Stale);
        (if on_disk { &self.proxy.hits } else { &self.proxy.misses }).with_label_values(labels).inc();
        match source {
            Source::Hit => &self.hits,
            Source::Stale => &self.stale,
            Source::Miss => &self.misses,
            Source::Join => &self.joins,
        }
        .with_label_values(labels)
        .inc();
    }

    /// Bytes of content arrived from `registry`.
    pub fn received(&self, kind: Kind, registry: &str, bytes: u64) {
        self.proxy.pulled.with_label_values(&[kind.as_str()]).inc_by(bytes);
        self.received.with_label_values(&[registry]).inc_by(bytes);
    }

    /// Bytes of content were sent to a client.
    pub fn pushed(&self, kind: Kind, bytes: u64) {
        self.proxy.pushed.with_label_values(&[kind.as_str()]).inc_by(bytes);
    }

    /// An HTTP request to an upstream of `registry` ended in `outcome`.
    pub fn upstream_request(&self, registry: &str, outcome: &str) {
        self.upstream_requests.with_label_values(&[registry, outcome]).inc();
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
