//! What is counted of stored files.

use prometheus::{IntCounter, IntCounterVec};

use super::families::Families;

/// Why a stored file was verified behind its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// A client has asked for all of it once more.
    Reread,
    /// Nobody had read it for long.
    Unread,
}

/// The families of stored files that have labels.
pub(super) struct StorageMetrics {
    errors: IntCounterVec,
    /// In the order of the variants of [`Verified`].
    verified: [IntCounter; 2],
}

impl StorageMetrics {
    pub(super) fn new(new: &Families<'_>) -> Self {
        let (name, help) = ("berth_storage_errors_total", "What the disk did not take, or give back");
        let errors = new.counters(name, help, &["kind"]);
        // Each kind is there from the start, at zero.
        for kind in ["full", "read_only", "io"] {
            errors.with_label_values(&[kind]);
        }
        let help = "Stored files that were hashed because of their readers";
        let verified = new.counters("berth_verifications_total", help, &["cause"]);
        let verified = ["reread", "unread"].map(|cause| verified.with_label_values(&[cause]));
        Self { errors, verified }
    }

    pub(super) fn verified(&self, why: Verified) {
        self.verified[why as usize].inc();
    }

    pub(super) fn error(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }
}
