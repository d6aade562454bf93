//! What is had from elsewhere for a time, such as a login that a cloud issues: had once, shared by all requests, renewed
//! behind them before it ends, and kept while there is no other.
//!
//! - One call at a time: those who need the value wait for it and share what comes of it. It is nobody's own: it goes on
//!   when the time of whoever began it is over, so that a source that is slow is also found out.
//! - A value that cannot be renewed stays in use, even past its end. Then the registry says what it is worth, and a
//!   refusal is an outage, not upstream's word about what was asked for.
//! - A value that is refused is asked for anew, once, by a call that begins after the refusal: one that was already under
//!   way may bring what has been replaced meanwhile.
//! - After a failure the source is left alone for some seconds, more each time, so that a storm of pulls does not
//!   become a storm of logins.
//!
//! Three sources use it: `issued` (clouds, and what is in Vault), `helper` (programs), and `vault` for its own tokens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep_until};

use super::error::{Error, NoLogin};
use crate::oci::Registry;

/// How old a token or a login can be for its refusal to be about what was asked for, or about itself, and not about its
/// age.
pub(crate) const FRESH: Duration = Duration::from_secs(30);
/// A metadata server hands out what it has cached, which may be near its end; to ask faster than this is no use.
const LIFETIME_MIN: Duration = Duration::from_secs(10);
/// The longest that any cloud grants is twelve hours; a mistaken date must not keep a login for years.
pub(crate) const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// A quarter of its life is left for what may be wrong with the source.
const RENEWED_AFTER: f64 = 0.75;
/// The first wait after a failure; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest: within this a source that is back is found.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long it is believed that a refused value has no successor, once the source was asked for one.
const CONFIRMED: Duration = Duration::from_secs(1);

/// A value, and for how long it is good.
#[derive(Debug)]
pub(crate) struct Expiring<T> {
    pub(crate) value: T,
    /// After this it is asked for anew behind the requests, which still use it.
    pub(crate) renew: Duration,
    /// After this requests wait for another.
    pub(crate) ends: Duration,
}

impl<T> Expiring<T> {
    /// What is good for so long by the word of whoever issued it.
    pub(crate) fn new(value: T, lifetime: Duration) -> Self {
        let ends = lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX);
        Self { value, renew: ends.mul_f64(RENEWED_AFTER), ends }
    }
}

/// What a source answers.
pub(crate) type Answer<T> = Result<Expiring<T>, NoLogin>;

/// A value that is renewed.
pub(crate) struct Renewing<T>(Arc<Inner<T>>);

struct Inner<T> {
    registry: Registry,
    /// A value that was asked for less long ago is refused for another reason than its age.
    fresh: Duration,
    state: Mutex<State<T>>,
    /// Held while the source is asked.
    calling: Arc<tokio::sync::Mutex<()>>,
    /// There is something to renew.
    changed: Notify,
}

struct State<T> {
    current: Option<Current<T>>,
    failure: Option<Failure>,
}

struct Current<T> {
    value: T,
    /// When the call began that brought it.
    asked: Instant,
    /// When to ask for the next one, behind.
    renew: Instant,
    /// When requests wait for the next one.
    ends: Instant,
    /// Since when it is known to be refused.
    refused: Option<Instant>,
    /// When it was had again for the question whether there is another.
    confirmed: Option<Instant>,
}

/// What the source said last, if it was no value.
struct Failure {
    error: NoLogin,
    /// When it may be asked again.
    until: Instant,
    wait: Duration,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { current: None, failure: None }
    }
}

impl<T: Clone + PartialEq> State<T> {
    /// What a request takes without asking the source, if that.
    fn known(&self, now: Instant) -> Option<Result<T, NoLogin>> {
        let is_valid = |current: &&Current<T>| now < current.ends && current.refused.is_none();
        if let Some(current) = self.current.as_ref().filter(is_valid) {
            return Some(Ok(current.value.clone()));
        }
        let failure = self.failure.as_ref().filter(|failure| now < failure.until)?;
        Some(self.instead(&failure.error))
    }

    /// What a request takes when the source fails.
    fn instead(&self, error: &NoLogin) -> Result<T, NoLogin> {
        self.current.as_ref().map(|current| current.value.clone()).ok_or_else(|| error.clone())
    }

    /// What the source can renew rather than issue anew.
    fn renewable(&self) -> Option<T> {
        let current = self.current.as_ref().filter(|current| current.refused.is_none())?;
        Some(current.value.clone())
    }

    /// When the value is to be renewed behind; `None` while there is none.
    fn due(&self) -> Option<Instant> {
        let current = self.current.as_ref()?;
        let renew = current.refused.unwrap_or(current.renew);
        Some(self.failure.as_ref().map_or(renew, |failure| failure.until.max(renew)))
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Notes the answer to a call that began at `asked`.
    fn succeed(&mut self, lease: &Expiring<T>, asked: Instant, now: Instant) {
        let refused = match &self.current {
            Some(current) if current.value == lease.value => current.refused,
            _ => None,
        };
        let (refused, confirmed) = match refused {
            // It may have been replaced after this call was answered.
            Some(at) if asked <= at => (Some(at), None),
            Some(_) => (None, Some(now)),
            None => (None, None),
        };
        let (value, renew, ends) = (lease.value.clone(), now + lease.renew, now + lease.ends);
        self.current = Some(Current { value, asked, renew, ends, refused, confirmed });
        self.failure = None;
    }

    fn fail(&mut self, error: NoLogin, now: Instant) {
        let wait = self.failure.as_ref().map_or(RETRY_MIN, |failure| (failure.wait * 2).min(RETRY_MAX));
        self.failure = Some(Failure { error, until: now + wait, wait });
    }

    /// Notes that `value` was refused; true if another may be had.
    fn refuse(&mut self, value: &T, fresh: Duration, is_calling: bool, now: Instant) -> bool {
        let current = match &mut self.current {
            Some(current) if current.value == *value => current,
            current => return current.is_some(),
        };
        let is_fresh = now.duration_since(current.asked) < fresh;
        let is_confirmed = current.confirmed.is_some_and(|at| now.duration_since(at) < CONFIRMED);
        if (is_fresh || is_confirmed) && !is_calling {
            return false;
        }
        // It was replaced or withdrawn, or a clock is wrong.
        current.refused = Some(now);
        true
    }
}

impl<T: Clone + PartialEq + Send + 'static> Renewing<T> {
    /// There is nothing yet; nobody is asked before the first request needs it. What was asked for less than `fresh` ago
    /// has no successor yet: that is for sources whose every answer is a new one.
    pub(crate) fn new(registry: Registry, fresh: Duration) -> Self {
        let (state, calling, changed) = Default::default();
        Self(Arc::new(Inner { registry, fresh, state, calling, changed }))
    }

    /// The value; asks the source if there is none that lasts, and behind if it is time to renew it. The source is told
    /// what there is to be renewed, if anything.
    ///
    /// # Errors
    /// [`Error::NoLogin`] when there never was one and the source fails.
    pub(crate) async fn get<F>(&self, ask: impl FnOnce(Option<T>) -> F + Send + 'static) -> Result<T, Error>
    where
        F: Future<Output = Answer<T>> + Send,
    {
        let inner = Arc::clone(&self.0);
        let now = Instant::now();
        if let Some(known) = inner.known(now) {
            if inner.lock().is_due(now)
                && let Ok(calling) = Arc::clone(&inner.calling).try_lock_owned()
            {
                // A failure is logged, and the value stays.
                tokio::spawn(async move { inner.renew(ask, calling).await.is_ok() });
            }
            return Ok(known?);
        }
        let call = tokio::spawn(async move {
            let calling = Arc::clone(&inner.calling).lock_owned().await;
            match inner.known(Instant::now()) {
                // Whoever called meanwhile called for this request too.
                Some(known) => known,
                None => inner.renew(ask, calling).await,
            }
        });
        // It is cut off only when all of berth stops.
        Ok(call.await.map_err(|_| Error::Stopped)??)
    }

    /// The value, if there is one; nobody is asked.
    pub(crate) fn current(&self) -> Option<T> {
        self.0.lock().current.as_ref().map(|current| current.value.clone())
    }

    /// Notes that `value` was refused. True if another may be had.
    pub(crate) fn refused(&self, value: &T) -> bool {
        let is_calling = self.0.calling.try_lock().is_err();
        self.0.lock().refuse(value, self.0.fresh, is_calling, Instant::now())
    }

    /// Whether `value` is used past its end, for want of another.
    pub(crate) fn is_over(&self, value: &T) -> bool {
        let state = self.0.lock();
        let is_over =
            |it: &Current<T>| it.value == *value && (it.ends <= Instant::now() || it.refused.is_some());
        state.current.as_ref().is_some_and(is_over)
    }

    /// Renews the value whenever it is time to, also if nobody asks for it, for ever.
    pub(crate) async fn keep<F>(&self, ask: impl Fn(Option<T>) -> F)
    where
        F: Future<Output = Answer<T>>,
    {
        loop {
            let Some(due) = self.0.lock().due() else {
                self.0.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = self.0.changed.notified() => {}
                () = sleep_until(due) => {
                    let calling = Arc::clone(&self.0.calling).lock_owned().await;
                    let is_due = self.0.lock().is_due(Instant::now());
                    if is_due {
                        // A failure was logged, and is tried again when it is due.
                        let _ = self.0.renew(&ask, calling).await;
                    }
                }
            }
        }
    }
}

impl<T: Clone + PartialEq> Inner<T> {
    /// Asks the source; only for whoever holds `calling`.
    async fn renew<F>(
        &self,
        ask: impl FnOnce(Option<T>) -> F,
        _calling: OwnedMutexGuard<()>,
    ) -> Result<T, NoLogin>
    where
        F: Future<Output = Answer<T>>,
    {
        let asked = Instant::now();
        let renewable = self.lock().renewable();
        let answer = ask(renewable).await;
        let registry = &self.registry;
        let mut state = self.lock();
        match answer {
            Ok(lease) => {
                if state.failure.is_some() {
                    tracing::info!(%registry, "a login is to be had again");
                }
                tracing::debug!(%registry, renewed_after_seconds = lease.renew.as_secs(), "a login was had");
                state.succeed(&lease, asked, Instant::now());
                self.changed.notify_one();
                Ok(lease.value)
            }
            Err(error) => {
                let is_news = state.failure.as_ref().is_none_or(|failure| failure.error != error);
                let old = state.current.is_some();
                if is_news {
                    tracing::warn!(%registry, %error, old_stays = old, "no login is to be had");
                }
                state.fail(error.clone(), Instant::now());
                state.instead(&error)
            }
        }
    }

    fn known(&self, now: Instant) -> Option<Result<T, NoLogin>> {
        self.lock().known(now)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing is left half-done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(value: &'static str, seconds: u64) -> Expiring<&'static str> {
        Expiring::new(value, Duration::from_secs(seconds))
    }

    fn failure() -> NoLogin {
        NoLogin::Malformed { service: "a cloud", what: "nothing" }
    }

    #[tokio::test]
    async fn a_value_is_renewed_early_and_kept_past_its_end() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut state = State::default();
        assert!(state.known(start).is_none() && state.due().is_none());

        state.succeed(&lease("one", 12 * 3600), start, start);
        assert_eq!(state.due(), Some(at(9 * 3600)));
        state.fail(failure(), at(9 * 3600));
        assert_eq!(state.due(), Some(at(9 * 3600 + 1)));
        assert_eq!(state.known(at(9 * 3600)), Some(Ok("one")), "the failure is nobody's business yet");
        for _ in 0..8 {
            state.fail(failure(), at(12 * 3600));
        }
        assert_eq!(state.due(), Some(at(12 * 3600) + RETRY_MAX));
        assert_eq!(state.known(at(12 * 3600)), Some(Ok("one")), "rather than nothing");
        assert_eq!(state.known(at(12 * 3600) + RETRY_MAX), None, "the source is asked again");

        state.succeed(&lease("two", 3600), at(13 * 3600), at(13 * 3600));
        assert_eq!(state.known(at(13 * 3600)), Some(Ok("two")));
    }

    #[tokio::test]
    async fn without_any_value_a_failure_is_shared_for_a_while() {
        let now = Instant::now();
        let mut state = State::<&str>::default();
        state.fail(failure(), now);
        assert_eq!(state.known(now), Some(Err(failure())));
        assert_eq!(state.known(now + RETRY_MIN), None);
        assert_eq!(state.due(), None, "nothing is renewed before anybody needed it");
    }

    #[tokio::test]
    async fn lifetimes_are_bounded() {
        let now = Instant::now();
        let check = |seconds: u64, ends: Duration| {
            let mut state = State::default();
            state.succeed(&lease("t", seconds), now, now);
            assert!(state.known(now + ends - Duration::from_millis(1)).is_some(), "{seconds}");
            assert!(state.known(now + ends).is_none(), "{seconds}");
        };
        check(0, LIFETIME_MIN);
        check(3600, Duration::from_secs(3600));
        check(u64::MAX >> 1, LIFETIME_MAX);
    }

    #[tokio::test]
    async fn what_is_new_is_not_asked_for_anew_unless_it_may_have_been_replaced() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut state = State::default();
        assert!(!state.refuse(&"one", FRESH, false, start), "there is none");
        state.succeed(&lease("one", 3600), start, start);
        assert!(state.refuse(&"old", FRESH, false, start), "there is another already");
        assert!(!state.refuse(&"one", FRESH, false, at(29)));
        assert!(
            state.refuse(&"one", Duration::ZERO, false, at(29)),
            "its source may have another at any time"
        );
        assert_eq!((state.known(at(29)), state.renewable(), state.due()), (None, None, Some(at(29))));
        state.succeed(&lease("two", 3600), at(30), at(30));
        assert_eq!(state.known(at(30)), Some(Ok("two")));
    }

    #[tokio::test]
    async fn only_a_call_that_began_after_a_refusal_answers_it() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let none = Duration::ZERO;
        let mut state = State::default();
        state.succeed(&lease("one", 3600), start, start);
        // A call begins at 10, is answered with what is then replaced, and comes back at 30.
        assert!(state.refuse(&"one", none, true, at(20)));
        state.succeed(&lease("one", 3600), at(10), at(30));
        assert_eq!(state.known(at(30)), None, "it is asked for once more");
        state.succeed(&lease("one", 3600), at(31), at(40));
        assert_eq!(state.known(at(40)), Some(Ok("one")), "there is no other");
        assert!(!state.refuse(&"one", none, false, at(50)), "nor is there one a moment later");
        assert!(state.refuse(&"one", none, false, at(40) + CONFIRMED));
    }
}
