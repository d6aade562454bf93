//! Whether an endpoint is worth asking: closed while it answers, open after it failed several times in a row.
//!
//! Clients never ask an endpoint whose circuit is open; a probe in the background does, ever more rarely, and any
//! answer closes it again. Pure: the time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row are no accident.
const FAILURES_MAX: u32 = 3;
/// The first probe comes soon, because most outages are short.
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// The longest that a recovered upstream stays unasked.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// The circuit of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Ask it; it failed so many times since its last answer.
    Closed { failures: u32 },
    /// Do not ask it; probe it at `probe`, and if that fails again after `wait`.
    Open { probe: Instant, wait: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Circuit {
    /// Whether clients should leave the endpoint alone.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Notes an answer; true if this closed the circuit.
    pub(super) fn succeed(&mut self) -> bool {
        let opened = self.is_open();
        self.state = State::default();
        opened
    }

    /// Notes that a client's request failed; true if this opened the circuit.
    pub(super) fn fail(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < FAILURES_MAX => *failures += 1,
            State::Closed { .. } => {
                self.state = State::Open { probe: now + PROBE_FIRST, wait: PROBE_FIRST };
                return true;
            }
            // A request from before; the probe decides.
            State::Open { .. } => {}
        }
        false
    }

    /// When to probe; `None` while the circuit is closed.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { probe, .. } => Some(probe),
        }
    }

    /// Notes that the probe failed.
    pub(super) fn probe_failed(&mut self, now: Instant) {
        if let State::Open { probe, wait } = &mut self.state {
            *wait = (*wait * 2).min(PROBE_MAX);
            *probe = now + *wait;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_closes_on_any_answer() {
        let now = Instant::now();
        let mut circuit = Circuit::default();
        assert!(!circuit.fail(now) && !circuit.fail(now));
        assert!(!circuit.succeed());
        assert!(!circuit.fail(now) && !circuit.fail(now) && !circuit.is_open());
        assert!(circuit.fail(now) && circuit.is_open());
        assert!(!circuit.fail(now), "opens only once");
        assert!(circuit.succeed() && !circuit.is_open());
        assert_eq!(circuit.probe_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_come_ever_more_rarely() {
        let mut now = Instant::now();
        let mut circuit = Circuit::default();
        while !circuit.fail(now) {}
        let mut waits = Vec::new();
        for _ in 0..6 {
            let probe = circuit.probe_at().unwrap();
            waits.push((probe - now).as_secs());
            now = probe;
            circuit.probe_failed(now);
        }
        assert_eq!(waits, [1, 2, 4, 5, 5, 5]);
    }
}
