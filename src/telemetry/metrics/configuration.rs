//! What is counted of a configuration file that changes while berth runs.

use prometheus::{IntCounter, IntGauge};

use super::families::Families;

/// How a reload of the configuration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Another configuration is in force.
    Applied,
    /// It was in force already.
    Unchanged,
    /// The one before stays in force.
    Refused,
}

impl Reload {
    const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// The families of the configuration file.
pub struct Configuration {
    reloads: [IntCounter; Reload::ALL.len()],
    current: IntGauge,
    success: IntGauge,
}

impl Configuration {
    pub(super) fn new(new: &Families<'_>) -> Self {
        let reloads = new.counters(
            "berth_config_reloads_total",
            "Times that the configuration was read again",
            &["result"],
        );
        Self {
            reloads: Reload::ALL.map(|result| reloads.with_label_values(&[result.as_str()])),
            current: new.gauge(
                "berth_config_current",
                "1 while the configuration in force is the one in the file; 0 after that was refused",
            ),
            success: new.gauge(
                "berth_config_last_success_timestamp_seconds",
                "When the file was last read and found to be right, since 1970",
            ),
        }
    }

    /// Notes that the file was read at the start.
    pub fn loaded(&self, unix_seconds: u64) {
        self.current.set(1);
        self.success.set(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
    }

    /// Counts that the file was read again.
    pub fn reloaded(&self, result: Reload, unix_seconds: u64) {
        self.reloads[result as usize].inc();
        match result {
            Reload::Applied | Reload::Unchanged => self.loaded(unix_seconds),
            Reload::Refused => self.current.set(0),
        }
    }
}
