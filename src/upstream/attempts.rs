//! When a failed request is tried again, and where. The decisions are pure; [`Rounds`] carries them out.
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

use crate::upstream::hedge::{self, Hedges};
use crate::upstream::remote::endpoint::Server;
use crate::upstream::remote::endpoint::latency::Late;
use crate::upstream::remote::error::{Error, Next, RETRY_AFTER_MAX};
use crate::upstream::remote::event::Event;
use crate::upstream::remote::exchange::Target;
use crate::upstream::remote::handle::Remote;

/// First time, and two more: a fourth finds nothing that the third did not.
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

/// The middle of the first wait.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// The middle of the longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// How long to wait after round `round` (from 0) failed: the base doubled each time, half of it at random.
fn backoff(round: u32, random: &mut fastrand::Rng) -> Duration {
    let middle = BACKOFF_BASE.saturating_mul(1 << round.min(16)).min(BACKOFF_MAX);
    middle.mul_f64(0.5 + random.f64())
}

/// An endpoint to ask.
#[derive(Clone)]
pub(super) enum Stop<'a> {
    /// One of the registry itself, or of a fallback.
    Own(Target<'a>),
    /// That of a parent.
    Parent(Arc<Remote>),
}

impl Stop<'_> {
    /// The endpoint, to be asked.
    pub(super) fn target(&self) -> Target<'_> {
        match self {
            Self::Own(target) => *target,
            Self::Parent(parent) => Target::new(parent, &parent.endpoints()[0]),
        }
    }

    fn server(&self) -> &Server {
        self.target().server()
    }

    fn is_parent(&self) -> bool {
        matches!(self, Self::Parent(_))
    }
}

/// Whom to ask for one thing, in order: parents, the registry itself, and its fallbacks.
pub(super) struct Route<'a> {
    own: &'a Remote,
    stops: VecDeque<Stop<'a>>,
    hedges: Option<&'a Hedges>,
    may_bypass: bool,
    is_loop: bool,
    is_unknown: bool,
}

impl<'a> Route<'a> {
    /// By these parents and fallbacks, for a request that may go round parents.
    pub(super) fn new(parents: Vec<Arc<Remote>>, own: &'a Remote, fallbacks: &'a [Arc<Remote>]) -> Self {
        let all = std::iter::once(own).chain(fallbacks.iter().map(Arc::as_ref));
        let all =
            all.flat_map(|of| of.endpoints().iter().map(move |server| Stop::Own(Target::new(of, server))));
        let stops = parents.into_iter().map(Stop::Parent).chain(all).collect();
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

    /// The same; it may be that the parents that are left out do not know the registry.
    pub(super) fn to_unknown(self, is_unknown: bool) -> Self {
        Self { is_unknown, ..self }
    }
}

/// Ends when `late` is told; never without one.
async fn told(late: Option<&Late>) {
    match late {
        Some(late) => late.told().await,
        None => pending().await,
    }
}

/// The endpoints to ask for one request, one after the other.
pub(super) struct Rounds<'a> {
    own: &'a Remote,
    hedges: Option<&'a Hedges>,
    left: VecDeque<Stop<'a>>,
    again: VecDeque<Stop<'a>>,
    round: u32,
    rounds_max: u32,
    deadline: Instant,
    hint: Duration,
    last: Option<Error>,
    /// Told when a stop is late, as long as another may be asked beside it.
    late: Option<&'a Late>,
    /// Whether it may go round parents that have been asked before.
    may_bypass: bool,
    /// Whether a stop has found the request to be in a loop.
    is_loop: bool,
}

impl<'a> Rounds<'a> {
    /// Rounds over all endpoints of `route`; those in `avoid` are asked last, since there may be no other.
    pub(super) fn new(route: Route<'a>, avoid: &[usize], rounds_max: u32, deadline: Instant) -> Self {
        let Route { own, stops, hedges, may_bypass, is_loop, is_unknown } = route;
        let (last, first): (Vec<_>, Vec<_>) =
            stops.into_iter().partition(|stop| avoid.contains(&stop.server().index()));
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
    pub(super) fn hedging(mut self, late: &'a Late) -> Self {
        if let Some(hedges) = self.hedges {
            hedges.request();
            self.late = Some(late);
        }
        self
    }

    /// Asks only those that are meant, if any is. Returns whether one is.
    pub(super) fn keep_if_any(&mut self, is_meant: impl Fn(&Stop<'a>) -> bool) -> bool {
        let is_any = self.left.iter().any(&is_meant);
        if is_any {
            self.left.retain(is_meant);
        }
        is_any
    }

    /// What the first stop says that has an answer.
    ///
    /// # Errors
    /// [`Error`]; the last endpoint's if none had one.
    pub(super) async fn first<T, F>(mut self, send: impl Fn(Stop<'a>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match self.answer(send).await {
            Some((_, answer)) => Ok(answer),
            None => Err(self.give_up()),
        }
    }

    /// The next stop that has an answer, and that; `None` when there is none left or no time.
    pub(super) async fn answer<T, F>(&mut self, send: impl Fn(Stop<'a>) -> F) -> Option<(Stop<'a>, T)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        while let Some(stop) = self.next().await {
            // On the heap: a request is a large future, and what waits for one would carry it along.
            let mut asked = Box::pin(send(stop.clone()));
            let in_time = tokio::select! {
                biased;
                answer = asked.as_mut() => Some(answer),
                () = told(self.late) => None,
            };
            let answer = match in_time {
                Some(answer) => answer,
                None => match self.beside(&stop) {
                    Some(second) => {
                        let mut beside = Box::pin(send(second.clone()));
                        match self.race((stop, asked.as_mut()), (second, beside.as_mut())).await {
                            Some(found) => return Some(found),
                            None => continue,
                        }
                    }
                    None => asked.await,
                },
            };
            match answer {
                Ok(answer) => return Some((stop, answer)),
                Err(error) => self.failed(stop, error),
            }
        }
        None
    }

    /// Another endpoint to ask beside `late`, if this request may have one.
    fn beside(&mut self, late: &Stop<'a>) -> Option<Stop<'a>> {
        let own = self.own;
        let is_own =
            |stop: &Stop<'_>| matches!(stop, Stop::Own(target) if std::ptr::eq(target.remote(), own));
        let hedges = self.hedges.filter(|_| is_own(late))?;
        let at = self.left.iter().position(|stop| is_own(stop) && hedge::is_fit(stop.server()))?;
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
        (first, mut asked): (Stop<'a>, Pin<&mut F>),
        (second, mut beside): (Stop<'a>, Pin<&mut F>),
    ) -> Option<(Stop<'a>, T)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (stop, answer, (other, rest)) = tokio::select! {
            biased;
            answer = asked.as_mut() => (first, answer, (second, beside)),
            answer = beside.as_mut() => {
                if answer.is_ok() {
                    // It is not heard to the end: whether it says anything at all is found out apart from this.
                    first.server().doubt();
                }
                (second, answer, (first, asked))
            }
        };
        match answer {
            Ok(answer) => return Some((stop, answer)),
            Err(error) => self.failed(stop, error),
        }
        match rest.await {
            Ok(answer) => Some((other, answer)),
            Err(error) => {
                self.failed(other, error);
                None
            }
        }
    }

    /// The endpoint to ask now; waits if it is time to. `None` when there is none or no time.
    async fn next(&mut self) -> Option<Stop<'a>> {
        loop {
            if Instant::now() >= self.deadline {
                self.last.get_or_insert(Error::Timeout);
                return None;
            }
            if let Some(stop) = self.left.pop_front() {
                if !stop.server().is_down() {
                    return Some(stop);
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

    /// Notes that a stop failed.
    ///
    /// A mirror in front of its registry says "not found" of what it does not have, so another endpoint is
    /// asked; and as long as one of them could not answer, nobody has said that there is no such thing.
    pub(super) fn failed(&mut self, stop: Stop<'a>, error: Error) {
        let registry = self.own.registry();
        tracing::debug!(%registry, endpoint = %stop.server().endpoint(), %error, "an upstream endpoint gave no usable answer");
        let berth = stop.target().remote().mirror().filter(|mirror| mirror.is_berth());
        if berth.is_some_and(|berth| berth.is_self() || !error.is_outage()) {
            // What it has not, the others would ask the same registry for. Where it is this process, that is next.
            self.left.retain(|stop| !stop.is_parent());
            self.again.retain(|stop| !stop.is_parent());
        }
        if error == Error::Loop {
            self.is_loop = true;
            if stop.is_parent() && !self.may_bypass {
                // Whoever says that it has come through a parent does not get the registry asked in its place.
                self.left.clear();
                self.again.clear();
            }
            return;
        }
        // It may be about one image, or a portal or a broken server that will say so of every image.
        if berth.is_none() && matches!(error, Error::Malformed(_) | Error::Unavailable { .. }) {
            stop.server().doubt();
        }
        match error.next() {
            Next::Again if berth.is_none() => self.again.push_back(stop),
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

    /// What to say when there is nobody left to ask.
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
    use super::*;
    use crate::upstream::config::Config;
    use crate::upstream::remote::handle::Role;

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
        let own = Remote::build(Role::Registry, &config, (0, &config.endpoints), observer).unwrap();
        let hedges = Hedges::new(config.endpoints.len(), &config.limits);
        let (late, asked, begun) = (Late::default(), std::sync::Mutex::new(Vec::new()), Instant::now());
        let deadline = begun + Duration::from_secs(18);
        let route = Route::new(Vec::new(), &own, &[]).hedged_by(hedges.as_ref());
        let rounds = Rounds::new(route, &[], 1, deadline).hedging(&late);
        let (late, asked, answers) = (&late, &asked, &answers);
        let answer = rounds.first(|stop| async move {
            let index = stop.server().index();
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
