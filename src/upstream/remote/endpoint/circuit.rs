//! Whether an endpoint is worth asking: closed while it answers, open after it failed several times in a row, or was
//! found to be of no use by a look at it, which whoever doubts it can have.
//!
//! Clients never ask an endpoint whose circuit is open; a probe in the background does, ever more rarely, and any
//! answer closes it again. The next probe does not wait for the last: one that hangs must not hide a recovery. Each
//! comes a little early by chance, so that many berths do not all knock at the same time. Pure: time and chance are
//! parameters.

use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row are no accident.
const FAILURES_MAX: u32 = 3;
/// The first probe comes soon, because most outages are short.
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// The longest that a recovered upstream stays unasked.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// The part of a wait that is up to chance.
const JITTER: f64 = 0.25;

/// Looks at an endpoint that goes on being doubted are no burden to it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The circuit of one endpoint.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Circuit {
    state: State,
    /// When it is to be looked at, because somebody doubts it; while it is closed.
    look: Option<Instant>,
    looked: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Ask it; it failed so many times since its last answer.
    Closed { failures: u32 },
    /// Do not ask it; probe it at `probe`, about `wait` after it was last asked.
    Open { probe: Instant, wait: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Circuit {
    /// Whether clients should leave the endpoint alone.
    pub(in crate::upstream) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Notes an answer; true if this closed the circuit.
    pub(in crate::upstream) fn succeed(&mut self) -> bool {
        let was_open = self.is_open();
        self.state = State::default();
        was_open
    }

    /// Notes that it may be of no use, though it may not seem to fail; true if it is now to be looked at.
    pub(in crate::upstream) fn doubt(&mut self, now: Instant) -> bool {
        let is_news = !self.is_open() && self.look.is_none();
        if is_news {
            self.look = Some(self.looked.map_or(now, |looked| now.max(looked + LOOK_EVERY)));
        }
        is_news
    }

    /// Notes that a look has found it of no use; true if this opened the circuit.
    pub(in crate::upstream) fn condemn(&mut self, now: Instant, random: &mut fastrand::Rng) -> bool {
        let was_closed = !self.is_open();
        if was_closed {
            self.state = State::Open { probe: now + early(PROBE_FIRST, random), wait: PROBE_FIRST };
        }
        was_closed
    }

    /// Notes that a client's request failed; true if this opened the circuit.
    pub(in crate::upstream) fn fail(&mut self, now: Instant, random: &mut fastrand::Rng) -> bool {
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < FAILURES_MAX => *failures += 1,
            State::Closed { .. } => return self.condemn(now, random),
            // A request from before; the probe decides.
            State::Open { .. } => {}
        }
        false
    }

    /// When to probe, or to look; `None` while the circuit is closed and nobody doubts it.
    pub(in crate::upstream) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => self.look,
            State::Open { probe, .. } => Some(probe),
        }
    }

    /// Notes that a probe begins: if it fails, there will be another.
    pub(in crate::upstream) fn probe_begins(&mut self, now: Instant, random: &mut fastrand::Rng) {
        (self.look, self.looked) = (None, Some(now));
        if let State::Open { probe, wait } = &mut self.state {
            *wait = (*wait * 2).min(PROBE_MAX);
            *probe = now + early(*wait, random);
        }
    }
}

/// A wait, or a little less.
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
        assert!(circuit.doubt(now) && !circuit.doubt(now));
        assert_eq!(circuit.probe_at(), Some(now));
        circuit.probe_begins(now, &mut random);
        assert_eq!(circuit.probe_at(), None);
        assert!(circuit.doubt(now));
        assert_eq!(circuit.probe_at(), Some(now + LOOK_EVERY));
        assert!(circuit.condemn(now, &mut random) && circuit.is_open());
        assert!(!circuit.condemn(now, &mut random) && !circuit.doubt(now));
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
