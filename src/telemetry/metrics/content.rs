//! What is counted of content: how it was come by, and its bytes.

use prometheus::IntCounterVec;

use super::families::{ByKind, Families};

/// What a request was for, as distribution's `type` label has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A blob: layer, config or other content.
    Blob,
    /// A manifest or index.
    Manifest,
}

impl Kind {
    /// Every kind, in the order of the variants.
    pub(super) const ALL: [Self; 2] = [Self::Blob, Self::Manifest];

    /// Its name in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}

/// Where the content of a response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From disk.
    Hit,
    /// From disk, though upstream could not confirm it.
    Stale,
    /// By asking upstream.
    Miss,
    /// From a transfer that another request had started.
    Collapsed,
}

/// The families of content.
pub(super) struct ContentMetrics {
    proxy: Proxy,
    hits: ByKind,
    misses: ByKind,
    joins: ByKind,
    stale: ByKind,
    received: IntCounterVec,
}

/// The families that distribution has of a pull-through cache.
struct Proxy {
    requests: ByKind,
    hits: ByKind,
    misses: ByKind,
    pulled: ByKind,
    pushed: ByKind,
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

impl ContentMetrics {
    pub(super) fn new(new: &Families<'_>) -> Self {
        Self {
            proxy: Proxy::new(new),
            hits: new.by_kind("berth_hits_total", "Answers from disk"),
            misses: new.by_kind("berth_misses_total", "Answers for which upstream was asked"),
            joins: new.by_kind("berth_joins_total", "Answers from a transfer that another request began"),
            stale: new.by_kind("berth_stale_total", "Answers from disk that upstream could not confirm"),
            received: new.counters(
                "berth_received_bytes_total",
                "Bytes of content from upstream",
                &["registry"],
            ),
        }
    }

    pub(super) fn served(&self, kind: Kind, source: Source) {
        self.proxy.requests.of(kind).inc();
        let on_disk = matches!(source, Source::Hit | Source::Stale);
        if on_disk { &self.proxy.hits } else { &self.proxy.misses }.of(kind).inc();
        let by_source = match source {
            Source::Hit => &self.hits,
            Source::Stale => &self.stale,
            Source::Miss => &self.misses,
            Source::Collapsed => &self.joins,
        };
        by_source.of(kind).inc();
    }

    pub(super) fn received(&self, kind: Kind, registry: &str, bytes: u64) {
        self.proxy.pulled.of(kind).inc_by(bytes);
        self.received.with_label_values(&[registry]).inc_by(bytes);
    }

    pub(super) fn pushed(&self, kind: Kind, bytes: u64) {
        self.proxy.pushed.of(kind).inc_by(bytes);
    }
}
