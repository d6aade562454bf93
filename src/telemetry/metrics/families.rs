//! How metrics are made and registered, and the forms that several parts of berth use.

use prometheus::core::Collector;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::content::Kind;

/// Makes metrics and registers them.
pub(super) struct Families<'a>(&'a Registry);

impl<'a> Families<'a> {
    /// Makes metrics for `registry`.
    pub(super) fn of(registry: &'a Registry) -> Self {
        Self(registry)
    }

    /// Counters told apart by these labels.
    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A counter for each kind of content.
    pub(super) fn by_kind(&self, name: &str, help: &str) -> ByKind {
        let family = self.counters(name, help, &["type"]);
        ByKind(Kind::ALL.map(|kind| family.with_label_values(&[kind.as_str()])))
    }

    /// Gauges told apart by these labels.
    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A state of each registry.
    pub(super) fn by_registry(&self, name: &str, help: &str) -> ByRegistry {
        ByRegistry(self.gauges(name, help, &["registry"]))
    }

    /// Histograms with these buckets, told apart by these labels.
    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    /// One counter.
    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    /// One gauge of whole numbers.
    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    /// One gauge of a part of a whole, from 0 to 1.
    pub(super) fn ratio(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names of metrics are valid");
        self.0.register(Box::new(metric.clone())).expect("each name of a metric stands once");
        metric
    }
}

/// A counter for each kind of content. Each is there from the start, so that rates are right.
pub(super) struct ByKind([IntCounter; Kind::ALL.len()]);

impl ByKind {
    /// The counter of this kind.
    pub(super) fn of(&self, kind: Kind) -> &IntCounter {
        &self.0[kind as usize]
    }
}

/// A state that each registry is in or not.
pub struct ByRegistry(IntGaugeVec);

impl ByRegistry {
    /// Sets whether `registry` is in that state.
    pub fn set(&self, registry: &str, is_so: bool) {
        self.0.with_label_values(&[registry]).set(is_so.into());
    }

    /// Forgets the registries that are not `configured`.
    pub(super) fn retain(&self, is_configured: &dyn Fn(&str) -> bool) {
        retain(&self.0, is_configured);
    }
}

/// Forgets the registries that are not `configured` in a family whose first label they are.
pub(super) fn retain(gauges: &IntGaugeVec, is_configured: &dyn Fn(&str) -> bool) {
    for sample in gauges.collect().iter().flat_map(|family| family.get_metric()) {
        let registry = sample.get_label().first().map_or("", |label| label.value());
        if !is_configured(registry) {
            // Another look may have done it meanwhile.
            let _ = gauges.remove_label_values(&[registry]);
        }
    }
}
