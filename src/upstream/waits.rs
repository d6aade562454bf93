//! How long an endpoint took to answer lately: whether one that says nothing is late. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers that are remembered: enough for a p95, few enough to follow a line that has become slower.
const ANSWERS_MAX: usize = 32;
/// Of so many in a hundred it is known how long they take.
const PERCENT: usize = 95;

/// How long the last answers took until their head was here.
#[derive(Debug, Default)]
pub(super) struct Waits(VecDeque<Duration>);

impl Waits {
    /// Notes how long one took.
    pub(super) fn note(&mut self, wait: Duration) {
        if self.0.len() == ANSWERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(wait);
    }

    /// How many are known.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Within what nearly all are here; `None` if there was none yet.
    pub(super) fn usual(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * PERCENT / 100).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(waits: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut all = Waits::default();
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
}
