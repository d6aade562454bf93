//! What is measured of the room for content, and counted of content for which there is none.

use prometheus::{IntCounter, IntGauge};

use super::families::Families;

/// What may be kept and is, what has gone, and what was not kept.
pub struct Space {
    /// Bytes that may be kept.
    pub budget: IntGauge,
    /// Bytes of these that are used.
    pub budget_used: IntGauge,
    /// Manifests and blobs that were evicted.
    pub evicted_blobs: IntCounter,
    /// Bytes of these, and of partial files.
    pub evicted_bytes: IntCounter,
    /// Refs and lists that were removed because there were too many.
    pub evicted_refs: IntCounter,
    /// Times that less was free on the file system than is left to others.
    pub floor_hits: IntCounter,
    /// Blobs that passed through unstored, because they or their images are larger than the budget.
    pub too_large: IntCounter,
}

impl Space {
    pub(super) fn new(new: &Families<'_>) -> Self {
        Self {
            budget: new.gauge("berth_budget_bytes", "Bytes that all that is kept may take: max_bytes"),
            budget_used: new.gauge("berth_budget_used_bytes", "Bytes that all that is kept takes"),
            evicted_blobs: new.counter("berth_evicted_blobs_total", "Manifests and blobs that were evicted"),
            evicted_bytes: new
                .counter("berth_evicted_bytes_total", "Bytes of what was evicted, partial files included"),
            evicted_refs: new
                .counter("berth_evicted_refs_total", "Refs and lists removed because there were too many"),
            floor_hits: new.counter(
                "berth_free_space_floor_hits_total",
                "Times that less than min_free was free on the file system",
            ),
            too_large: new.counter(
                "berth_passed_through_for_size_total",
                "Blobs not kept, because they or their images are larger than max_bytes",
            ),
        }
    }
}
