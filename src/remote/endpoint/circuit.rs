//! The circuit breaker of an endpoint: closed while it answers, open after it failed several times in a row, or after a
//! probe found it of no use. Any caller that suspects it can have it probed.
//!
//! Clients never ask an endpoint whose circuit is open; a probe in the background does, ever more rarely, and any
//! answer closes it again. The next probe does not wait for the last: one that hangs must not hide a recovery. Each
//! comes a little early by chance, so that many berths do not all ask at the same time. Pure: time and chance are
//! parameters.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which the circuit opens.
const FAILURES_MAX: u32 = 3;
/// The wait before the first probe: short, because most outages are.
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// The longest wait between probes, and so the longest time for which an endpoint that has recovered is not asked.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// The part of a wait that is random.
const JITTER: f64 = 0.25;

/// The shortest time between two probes of an endpoint that is suspected again and again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The circuit of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Circuit {
    state: State,
    /// When the endpoint is to be probed because a caller suspects it; only while the circuit is closed.
    look: Option<Instant>,
    looked: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// The endpoint is asked. It has failed this many times since its last answer.
    Closed { failures: u32 },
    /// The endpoint is not asked but probed at `probe`, about `wait` after it was last asked.
    Open { probe: Instant, wait: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Circuit {
    /// Whether the circuit is open, so that only probes ask the endpoint.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Records an answer. Returns whether it closed the circuit.
    pub(crate) fn succeed(&mut self) -> bool {
        let was_open = self.is_open();
        self.state = State::default();
        was_open
    }

    /// Records that the endpoint may be of no use, although it may not seem to fail. Returns whether a new probe is due.
    pub(crate) fn suspect(&mut self, now: Instant) -> bool {
        let is_news = !self.is_open() && self.look.is_none();
        if is_news {
            self.look = Some(self.looked.map_or(now, |looked| now.max(looked + LOOK_EVERY)));
        }
        is_news
    }

    /// Records that a probe has found the endpoint of no use. Returns whether that opened the circuit.
    pub(crate) fn mark_down(&mut self, now: Instant, random: &mut fastrand::Rng) -> bool {
        let was_closed = !self.is_open();
        if was_closed {
            self.state = State::Open { probe: now + early(PROBE_FIRST, random), wait: PROBE_FIRST };
        }
        was_closed
    }

    /// Records that a request of a client failed. Returns whether that opened the circuit.
    pub(crate) fn fail(&mut self, now: Instant, random: &mut fastrand::Rng) -> bool {
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < FAILURES_MAX => *failures += 1,
            State::Closed { .. } => return self.mark_down(now, random),
            // A request from before; the probe decides.
            State::Open { .. } => {}
        }
        false
    }

    /// When to probe; `None` while the circuit is closed and the endpoint is not suspected.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => self.look,
            State::Open { probe, .. } => Some(probe),
        }
    }

    /// Records that a probe begins: if it fails, there will be another.
    pub(crate) fn probe_begins(&mut self, now: Instant, random: &mut fastrand::Rng) {
        (self.look, self.looked) = (None, Some(now));
        if let State::Open { probe, wait } = &mut self.state {
            *wait = (*wait * 2).min(PROBE_MAX);
            *probe = now + early(*wait, random);
        }
    }
}

/// `wait`, or at random a little less.
fn early(wait: Duration, random: &mut fastrand::Rng) -> Duration {
    wait.mul_f64(1.0 - JITTER * random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_closes_on_any_answer() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut circuit = Circuit::default();
        let mut fail = |circuit: &mut Circuit| circuit.fail(Instant::now(), &mut random);
        assert!(!fail(&mut circuit) && !fail(&mut circuit));
        assert!(!circuit.succeed());
        assert!(!fail(&mut circuit) && !fail(&mut circuit) && !circuit.is_open());
        assert!(fail(&mut circuit) && circuit.is_open());
        assert!(!fail(&mut circuit), "opens only once");
        assert!(circuit.succeed() && !circuit.is_open());
        assert_eq!(circuit.probe_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_doubted_is_looked_at_and_not_all_the_time() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut circuit = Circuit::default();
        let now = Instant::now();
        assert!(circuit.suspect(now) && !circuit.suspect(now));
        assert_eq!(circuit.probe_at(), Some(now));
        circuit.probe_begins(now, &mut random);
        assert_eq!(circuit.probe_at(), None);
        assert!(circuit.suspect(now));
        assert_eq!(circuit.probe_at(), Some(now + LOOK_EVERY));
        assert!(circuit.mark_down(now, &mut random) && circuit.is_open());
        assert!(!circuit.mark_down(now, &mut random) && !circuit.suspect(now));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_come_ever_more_rarely_and_never_all_at_once() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut waits = || {
            let mut now = Instant::now();
            let mut circuit = Circuit::default();
            while !circuit.fail(now, &mut random) {}
            [(); 6].map(|()| {
                let wait = circuit.probe_at().unwrap() - now;
                now += wait;
                circuit.probe_begins(now, &mut random);
                wait
            })
        };
        let (one, other) = (waits(), waits());
        for (at, seconds) in [1, 2, 4, 5, 5, 5].into_iter().enumerate() {
            let usual = Duration::from_secs(seconds);
            for wait in [one[at], other[at]] {
                assert!((usual.mul_f64(1.0 - JITTER)..=usual).contains(&wait), "{wait:?} for {usual:?}");
            }
            assert_ne!(one[at], other[at]);
        }
    }
}
