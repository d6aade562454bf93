//! How far a pass over all files is: a log line every few seconds, and a ratio for the metrics.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Time between two log lines of a pass.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The pass that is under way, if one is.
#[derive(Default)]
pub(in crate::store) struct PassProgress(Mutex<Option<Pass>>);

struct Pass {
    total: u64,
    done: u64,
    /// When the progress was last logged.
    said: Instant,
}

impl PassProgress {
    /// Begins a pass over `total` files.
    pub(in crate::store) fn begin(&self, total: u64) {
        *lock(&self.0) = Some(Pass { total, done: 0, said: Instant::now() });
    }

    /// Notes that one file is done. Files that are counted twice or came meanwhile do not make a pass more than
    /// complete.
    pub(in crate::store) fn step(&self) {
        let mut pass = lock(&self.0);
        let Some(pass) = &mut *pass else { return };
        pass.done = (pass.done + 1).min(pass.total);
        // Asked now and then only: a clock costs more than the rest.
        if pass.done.is_multiple_of(1024) && pass.said.elapsed() >= SAY_EVERY {
            pass.said = Instant::now();
            let percent = pass.done.saturating_mul(100) / pass.total.max(1);
            tracing::info!(done = pass.done, of = pass.total, percent, "reading the files into the index");
        }
    }

    pub(in crate::store) fn end(&self) {
        *lock(&self.0) = None;
    }

    /// Returns how far the pass is, from 0 to 1; 1 if there is none.
    pub(in crate::store) fn ratio(&self) -> f64 {
        match &*lock(&self.0) {
            // Exact to more digits than anybody reads.
            #[expect(clippy::cast_precision_loss, reason = "a ratio for a person")]
            Some(pass) => pass.done as f64 / pass.total.max(1) as f64,
            None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_goes_from_nothing_to_all() {
        let progress = PassProgress::default();
        let is = |ratio: f64| (progress.ratio() - ratio).abs() < 1e-9;
        progress.step();
        assert!(is(1.0), "nothing to do");
        progress.begin(4);
        assert!(is(0.0));
        progress.step();
        assert!(is(0.25));
        for _ in 0..9 {
            progress.step();
        }
        assert!(is(1.0), "never more than all");
        progress.end();
        assert!(is(1.0));
        progress.begin(0);
        assert!(is(0.0));
    }
}
