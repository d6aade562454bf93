//! How long an endpoint took to answer lately, and so when an answer is late.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Latencies that are kept of one endpoint: enough for a p95, few enough to follow a line that has become slower.
const ANSWERS_MAX: usize = 32;
/// The percentile that counts as the usual latency.
const PERCENT: usize = 95;

/// No answer is late sooner than this: users do not notice it, and a busy machine is not taken for a slow line.
const LATE_MIN: Duration = Duration::from_millis(200);
/// After how long an answer is late if the usual latency is not known: nearly every registry has answered by then.
const LATE_UNKNOWN: Duration = Duration::from_secs(1);

/// The latencies of the last answers of one endpoint, each up to the end of the head.
#[derive(Debug, Default)]
pub(crate) struct LatencyWindow(VecDeque<Duration>);

impl LatencyWindow {
    /// Adds the latency of one answer, in the place of the oldest if there are as many as are kept.
    pub(crate) fn note(&mut self, wait: Duration) {
        if self.0.len() == ANSWERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(wait);
    }

    /// How many latencies are known.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency that nearly all answers keep within; `None` before the first.
    pub(crate) fn usual(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * PERCENT / 100).copied()
    }
}

/// After how long an answer is late if nearly all keep within `usual`.
pub(crate) fn late_after(usual: Option<Duration>) -> Duration {
    usual.map_or(LATE_UNKNOWN, |usual| usual.max(LATE_MIN))
}

/// The signal that the answer to a request is late, for the one who sent it.
#[derive(Default)]
pub(crate) struct LateSignal(Notify);

impl LateSignal {
    /// Gives the signal to those who wait for it now.
    pub(crate) fn tell(&self) {
        // A caller that does not wait by now no longer has a use for it.
        self.0.notify_waiters();
    }

    /// Waits for the next signal.
    pub(crate) fn told(&self) -> Notified<'_> {
        self.0.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(waits: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut all = LatencyWindow::default();
        waits.into_iter().for_each(|wait| all.note(Duration::from_millis(wait)));
        all.usual().map(|usual| u64::try_from(usual.as_millis()).unwrap())
    }

    #[test]
    fn one_slow_answer_is_not_usual_and_old_ones_are_forgotten() {
        assert_eq!(usual([]), None);
        assert_eq!(usual([40]), Some(40));
        assert_eq!(usual((0..32).map(|at| if at == 7 { 9000 } else { 10 })), Some(10));
        assert_eq!(usual((0..64).map(|at| if at < 32 { 9000 } else { 10 })), Some(10));
        assert_eq!(usual((0..32).map(|at| if at % 4 == 0 { 3000 } else { 10 })), Some(3000));
    }

    #[test]
    fn late_is_later_than_usual() {
        let check = |usual: Option<u64>, expected: Duration| {
            assert_eq!(late_after(usual.map(Duration::from_millis)), expected, "{usual:?}");
        };
        check(None, LATE_UNKNOWN);
        check(Some(3), LATE_MIN);
        check(Some(700), Duration::from_millis(700));
        check(Some(4000), Duration::from_secs(4));
    }
}
