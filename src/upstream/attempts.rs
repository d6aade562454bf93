//! Which endpoint is asked, in what order, and when again. [`RemoteOrder`] is the order, [`Rounds`] carries it out.
//!
//! One round asks every endpoint that is worth asking, in order; between rounds berth waits, a little longer each time
//! and never equally long for two requests. Everything ends at the request's deadline. One that is late with its answer
//! may have another asked beside it (`hedge`).

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hedge::{self, Hedges};
use crate::remote::endpoint::Endpoint;
use crate::remote::endpoint::latency::LateSignal;
use crate::remote::error::{Error, Next, RETRY_AFTER_MAX};
use crate::remote::event::Event;
use crate::remote::exchange::Target;
use crate::remote::handle::Remote;

/// The number of rounds: the first and two more. A fourth finds nothing that the third did not.
pub(super) const ROUNDS_MAX: u32 = 3;

/// How often the endpoints are asked before a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// Once: there is something else to answer with.
    Once,
    /// In rounds, with waits in between: there is nothing else.
    Rounds,
}

impl Attempts {
    pub(super) fn rounds_max(self) -> u32 {
        match self {
            Self::Once => 1,
            Self::Rounds => ROUNDS_MAX,
        }
    }
}

/// The mean of the first wait between rounds.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// The mean of the longest wait between rounds.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// How long to wait after round `round` (from 0) failed: the base doubled each time, half of it at random.
fn backoff(round: u32, random: &mut fastrand::Rng) -> Duration {
    let middle = BACKOFF_BASE.saturating_mul(1 << round.min(16)).min(BACKOFF_MAX);
    middle.mul_f64(0.5 + random.f64())
}

/// An endpoint to ask.
#[derive(Clone)]
pub(super) enum Candidate<'a> {
    /// One of the registry itself, or of a fallback.
    Own(Target<'a>),
    /// That of a parent.
    Parent(Arc<Remote>),
}

impl Candidate<'_> {
    /// The endpoint, to be asked.
    pub(super) fn target(&self) -> Target<'_> {
        match self {
            Self::Own(target) => *target,
            Self::Parent(parent) => Target::new(parent, &parent.endpoints()[0]),
        }
    }

    fn endpoint(&self) -> &Endpoint {
        self.target().endpoint()
    }

    fn is_parent(&self) -> bool {
        matches!(self, Self::Parent(_))
    }
}

/// The endpoints to ask for one thing, in order: those of parents, of the registry itself, and of its fallbacks.
pub(super) struct RemoteOrder<'a> {
    own: &'a Remote,
    stops: VecDeque<Candidate<'a>>,
    hedges: Option<&'a Hedges>,
    may_bypass: bool,
    is_loop: bool,
    is_unknown: bool,
}

impl<'a> RemoteOrder<'a> {
    /// By these parents and fallbacks, for a request that may go round parents.
    pub(super) fn new(parents: Vec<Arc<Remote>>, own: &'a Remote, fallbacks: &'a [Arc<Remote>]) -> Self {
        let all = std::iter::once(own).chain(fallbacks.iter().map(Arc::as_ref));
        let all = all.flat_map(|of| {
            of.endpoints().iter().map(move |endpoint| Candidate::Own(Target::new(of, endpoint)))
        });
        let stops = parents.into_iter().map(Candidate::Parent).chain(all).collect();
        Self { own, stops, hedges: None, may_bypass: true, is_loop: false, is_unknown: false }
    }

    /// The same; with `hedges`, one endpoint of the registry itself may be asked beside another.
    pub(super) fn hedged_by(self, hedges: Option<&'a Hedges>) -> Self {
        Self { hedges, ..self }
    }

    /// The same for a request that may not go round parents which have been asked before. If it `is_loop`, nobody is asked.
    pub(super) fn without_bypass(self, is_loop: bool) -> Self {
        Self { may_bypass: false, is_loop, ..self }
    }

    /// The same; if `is_unknown`, a parent that is left out has said that it does not know the registry.
    pub(super) fn unknown_if(self, is_unknown: bool) -> Self {
        Self { is_unknown, ..self }
    }
}

/// Waits for the signal `late`; never ends without one.
async fn told(late: Option<&LateSignal>) {
    match late {
        Some(late) => late.told().await,
        None => pending().await,
    }
}

/// The endpoints to ask for one request, one after the other.
pub(super) struct Rounds<'a> {
    own: &'a Remote,
    hedges: Option<&'a Hedges>,
    left: VecDeque<Candidate<'a>>,
    again: VecDeque<Candidate<'a>>,
    round: u32,
    rounds_max: u32,
    deadline: Instant,
    hint: Duration,
    last: Option<Error>,
    /// Signals that an endpoint is late, as long as another may be asked beside it.
    late: Option<&'a LateSignal>,
    /// Whether it may go round parents that have been asked before.
    may_bypass: bool,
    /// Whether an endpoint has found the request to be in a loop.
    is_loop: bool,
}

impl<'a> Rounds<'a> {
    /// Rounds over all endpoints of `route`; those in `avoid` are asked last, since there may be no other.
    pub(super) fn new(route: RemoteOrder<'a>, avoid: &[usize], rounds_max: u32, deadline: Instant) -> Self {
        let RemoteOrder { own, stops, hedges, may_bypass, is_loop, is_unknown } = route;
        let (last, first): (Vec<_>, Vec<_>) =
            stops.into_iter().partition(|candidate| avoid.contains(&candidate.endpoint().index()));
        // It would be asked in the place of the parents that are left out.
        let left = if is_loop { VecDeque::new() } else { first.into_iter().chain(last).collect() };
        let (again, hint) = (VecDeque::new(), Duration::ZERO);
        let (last, late) = (is_unknown.then_some(Error::UnknownRegistry), None);
        Self {
            own,
            hedges,
            left,
            again,
            round: 0,
            rounds_max,
            deadline,
            hint,
            last,
            late,
            may_bypass,
            is_loop,
        }
    }

    /// The same for a request that tells `late` when its answer is late: one other endpoint may be asked beside.
    pub(super) fn hedging(mut self, late: &'a LateSignal) -> Self {
        if let Some(hedges) = self.hedges {
            hedges.request();
            self.late = Some(late);
        }
        self
    }

    /// Asks only the endpoints that are meant, if any is. Returns whether one is.
    pub(super) fn keep_if_any(&mut self, is_meant: impl Fn(&Candidate<'a>) -> bool) -> bool {
        let is_any = self.left.iter().any(&is_meant);
        if is_any {
            self.left.retain(is_meant);
        }
        is_any
    }

    /// The answer of the first endpoint that has one.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none had one.
    pub(super) async fn first<T, F>(mut self, send: impl Fn(Candidate<'a>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match self.answer(send).await {
            Some((_, answer)) => Ok(answer),
            None => Err(self.give_up()),
        }
    }

    /// The next endpoint that has an answer, and that answer; `None` when none or no time is left.
    pub(super) async fn answer<T, F>(
        &mut self,
        send: impl Fn(Candidate<'a>) -> F,
    ) -> Option<(Candidate<'a>, T)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        while let Some(candidate) = self.next().await {
            // On the heap: a request is a large future, and what waits for one would carry it along.
            let mut asked = Box::pin(send(candidate.clone()));
            let in_time = tokio::select! {
                biased;
                answer = asked.as_mut() => Some(answer),
                () = told(self.late) => None,
            };
            let answer = match in_time {
                Some(answer) => answer,
                None => match self.beside(&candidate) {
                    Some(second) => {
                        let mut beside = Box::pin(send(second.clone()));
                        match self.race((candidate, asked.as_mut()), (second, beside.as_mut())).await {
                            Some(found) => return Some(found),
                            None => continue,
                        }
                    }
                    None => asked.await,
                },
            };
            match answer {
                Ok(answer) => return Some((candidate, answer)),
                Err(error) => self.failed(candidate, error),
            }
        }
        None
    }

    /// Another endpoint to ask beside `late`, if this request may have one.
    fn beside(&mut self, late: &Candidate<'a>) -> Option<Candidate<'a>> {
        let own = self.own;
        let is_own = |candidate: &Candidate<'_>| matches!(candidate, Candidate::Own(target) if std::ptr::eq(target.remote(), own));
        let hedges = self.hedges.filter(|_| is_own(late))?;
        let at = self
            .left
            .iter()
            .position(|candidate| is_own(candidate) && hedge::is_fit(candidate.endpoint()))?;
        if !hedges.take() {
            return None;
        }
        self.late = None;
        own.tell(Event::Hedged);
        self.left.remove(at)
    }

    /// The first of two that has an answer; the other is hung up on. `None` if neither has.
    async fn race<T, F>(
        &mut self,
        (first, mut asked): (Candidate<'a>, Pin<&mut F>),
        (second, mut beside): (Candidate<'a>, Pin<&mut F>),
    ) -> Option<(Candidate<'a>, T)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (candidate, answer, (other, rest)) = tokio::select! {
            biased;
            answer = asked.as_mut() => (first, answer, (second, beside)),
            answer = beside.as_mut() => {
                if answer.is_ok() {
                    // It is not heard to the end: whether it says anything at all is found out apart from this.
                    first.endpoint().suspect();
                }
                (second, answer, (first, asked))
            }
        };
        match answer {
            Ok(answer) => return Some((candidate, answer)),
            Err(error) => self.failed(candidate, error),
        }
        match rest.await {
            Ok(answer) => Some((other, answer)),
            Err(error) => {
                self.failed(other, error);
                None
            }
        }
    }

    /// The endpoint to ask now; waits between rounds. `None` when there is none, or no time.
    async fn next(&mut self) -> Option<Candidate<'a>> {
        loop {
            if Instant::now() >= self.deadline {
                self.last.get_or_insert(Error::Timeout);
                return None;
            }
            if let Some(candidate) = self.left.pop_front() {
                if !candidate.endpoint().is_down() {
                    return Some(candidate);
                }
                if !self.is_outage() {
                    self.last = Some(Error::Unreachable { reason: "an endpoint is known to be down".into() });
                }
                continue;
            }
            self.round += 1;
            if self.again.is_empty() || self.round >= self.rounds_max {
                return None;
            }
            // Not all that were told the same time come back at the same time.
            let wait = self.hint + backoff(self.round - 1, &mut fastrand::Rng::new());
            if Instant::now() + wait >= self.deadline {
                return None;
            }
            tokio::time::sleep(wait).await;
            self.hint = Duration::ZERO;
            self.left = std::mem::take(&mut self.again);
        }
    }

    /// Records that an endpoint failed.
    ///
    /// A mirror in front of its registry says "not found" of what it does not have, so another endpoint is
    /// asked; and as long as one of them could not answer, nobody has said that there is no such thing.
    pub(super) fn failed(&mut self, candidate: Candidate<'a>, error: Error) {
        let registry = self.own.registry();
        tracing::debug!(%registry, endpoint = %candidate.endpoint().url(), %error, "an upstream endpoint gave no usable answer");
        let berth = candidate.target().remote().mirror().filter(|mirror| mirror.is_berth());
        if berth.is_some_and(|berth| berth.is_self() || !error.is_outage()) {
            // What it has not, the others would ask the same registry for. Where it is this process, that is next.
            self.left.retain(|candidate| !candidate.is_parent());
            self.again.retain(|candidate| !candidate.is_parent());
        }
        if error == Error::Loop {
            self.is_loop = true;
            if candidate.is_parent() && !self.may_bypass {
                // A request that claims to have come through a parent does not get the registry asked in its place.
                self.left.clear();
                self.again.clear();
            }
            return;
        }
        // It may be about one image, or a portal or a broken server that will say so of every image.
        if berth.is_none() && matches!(error, Error::Malformed(_) | Error::Unavailable { .. }) {
            candidate.endpoint().suspect();
        }
        match error.next() {
            Next::Again if berth.is_none() => self.again.push_back(candidate),
            // A berth has tried again itself.
            Next::Elsewhere | Next::Again => {}
        }
        if let Error::Limited { retry_after: Some(wait) } = error {
            self.hint = self.hint.max(wait.min(RETRY_AFTER_MAX));
        }
        if error.is_outage() || !self.is_outage() {
            self.last = Some(error);
        }
    }

    /// Whether an endpoint could not answer so far.
    fn is_outage(&self) -> bool {
        self.last.as_ref().is_some_and(Error::is_outage)
    }

    /// The error of the request when there is no endpoint left to ask.
    pub(super) fn give_up(self) -> Error {
        // Where one of several is in a loop, the others have said what there is to say. But it may be that only the chain
        // which the request claims is to blame: that must not become anybody's answer.
        if self.is_loop && (self.last.is_none() || !self.may_bypass) {
            return Error::Loop;
        }
        self.last.unwrap_or_else(|| match self.own.endpoints().is_empty() {
            true => {
                Error::Unreachable { reason: "there is no other endpoint than those of the parents".into() }
            }
            false => Error::Timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::config::Config;
    use super::*;
    use crate::remote::handle::Role;

    #[test]
    fn waits_grow_and_differ() {
        let mut random = fastrand::Rng::with_seed(7);
        for (round, middle) in [(0, 250), (1, 500), (2, 1000), (4, 4000), (5, 4000), (40, 4000)] {
            let waits: Vec<_> = (0..100).map(|_| backoff(round, &mut random).as_millis()).collect();
            assert!(
                waits.iter().all(|wait| (middle / 2..=middle * 3 / 2).contains(wait)),
                "{round}: {waits:?}"
            );
            assert!(waits.windows(2).any(|pair| pair[0] != pair[1]));
        }
    }

    /// One request to two endpoints, of which these say so after so many seconds, if they are asked: who was asked, who
    /// answered, and after how long. After two seconds it is late.
    async fn ask(answers: [(u64, Result<(), Error>); 2]) -> (Vec<usize>, Result<usize, Error>, u64) {
        let endpoints = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(|url| url.parse().unwrap());
        let config = Config::new("r.example".parse().unwrap(), endpoints.into());
        let observer = Arc::new(|_: &_, _| {});
        let own = build::remote(Role::Registry, &config, (0, &config.endpoints), observer).unwrap();
        let hedges = Hedges::new(config.endpoints.len(), &config.limits);
        let (late, asked, begun) = (LateSignal::default(), std::sync::Mutex::new(Vec::new()), Instant::now());
        let deadline = begun + Duration::from_secs(18);
        let route = RemoteOrder::new(Vec::new(), &own, &[]).hedged_by(hedges.as_ref());
        let rounds = Rounds::new(route, &[], 1, deadline).hedging(&late);
        let (late, asked, answers) = (&late, &asked, &answers);
        let answer = rounds.first(|candidate| async move {
            let index = candidate.endpoint().index();
            asked.lock().unwrap().push(index);
            let (seconds, answer) = &answers[index];
            let lateness = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                late.tell();
                pending().await
            };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(*seconds)) => answer.clone().map(|()| index),
                () = lateness => unreachable!("it is pending"),
            }
        });
        let answer = answer.await;
        let asked = asked.lock().unwrap().clone();
        (asked, answer, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn another_is_asked_beside_one_that_is_late_and_the_first_with_an_answer_counts() {
        let no = || Err(Error::NotFound);
        assert_eq!(ask([(1, Ok(())), (0, Ok(()))]).await, (vec![0], Ok(0), 1), "in time");
        assert_eq!(ask([(9, Ok(())), (1, Ok(()))]).await, (vec![0, 1], Ok(1), 3));
        assert_eq!(ask([(4, Ok(())), (9, Ok(()))]).await, (vec![0, 1], Ok(0), 4));
        assert_eq!(ask([(9, Ok(())), (1, no())]).await, (vec![0, 1], Ok(0), 9));
        assert_eq!(ask([(5, no()), (4, Ok(()))]).await, (vec![0, 1], Ok(1), 6));
        assert_eq!(ask([(1, no()), (4, Ok(()))]).await, (vec![0, 1], Ok(1), 5), "one after the other");
        assert_eq!(ask([(9, no()), (1, no())]).await, (vec![0, 1], no().map(|()| 0), 9));
    }
}
