//! A login that is issued for a time: had once, shared by all requests, and renewed behind them long before it ends.
//!
//! - One call at a time: those who need the login wait for it and share what comes of it. It is nobody's own: it goes on
//!   when the time of whoever began it is over, so that an issuer that is slow is also found out.
//! - A login that cannot be renewed stays in use, even past its end. Then the registry says what it is worth, and a
//!   refusal is an outage, not upstream's word about what was asked for.
//! - After a failure the issuer is left alone for some seconds, more each time, so that a storm of pulls does not
//!   become a storm of logins.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use super::cloud::{Grant, Issuer, NoLogin};
use super::error::Error;
use super::login::Login;
use super::token::FRESH;
use crate::oci::Registry;

/// A metadata server hands out what it has cached, which may be near its end; to ask faster than this is no use.
const LIFETIME_MIN: Duration = Duration::from_secs(10);
/// The longest that any cloud grants is twelve hours; a mistaken date must not keep a login for years.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The first wait after a failure; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest: within this an issuer that is back is found.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The login of one registry, and who issues it.
pub(super) struct Issued(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    registry: Registry,
    state: Mutex<State>,
    /// Held while the issuer is asked.
    calling: tokio::sync::Mutex<()>,
    /// There is something to renew.
    changed: Notify,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    failure: Option<Failure>,
}

struct Current {
    login: Login,
    issued: Instant,
    /// When to ask for the next one, behind.
    renew: Instant,
    /// When requests wait for the next one.
    ends: Instant,
}

/// What the issuer said last, if it was not a login.
struct Failure {
    error: NoLogin,
    /// When it may be asked again.
    until: Instant,
    wait: Duration,
}

impl State {
    /// The login, while it lasts.
    fn valid(&self, now: Instant) -> Option<&Login> {
        self.current.as_ref().filter(|current| now < current.ends).map(|current| &current.login)
    }

    /// What a request takes without asking the issuer, if that.
    fn known(&self, now: Instant) -> Option<Result<Login, NoLogin>> {
        if let Some(login) = self.valid(now) {
            return Some(Ok(login.clone()));
        }
        let failure = self.failure.as_ref().filter(|failure| now < failure.until)?;
        Some(self.instead(&failure.error))
    }

    /// What a request takes when the issuer fails.
    fn instead(&self, error: &NoLogin) -> Result<Login, NoLogin> {
        self.current.as_ref().map(|current| current.login.clone()).ok_or_else(|| error.clone())
    }

    /// When the login is to be renewed behind; `None` while there is none.
    fn due(&self) -> Option<Instant> {
        let renew = self.current.as_ref()?.renew;
        Some(self.failure.as_ref().map_or(renew, |failure| failure.until.max(renew)))
    }

    fn succeed(&mut self, grant: &Grant, now: Instant) {
        let lifetime = grant.lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX);
        // A quarter of its life is left for what may be wrong with the issuer.
        let (renew, ends) = (now + lifetime.mul_f64(0.75), now + lifetime);
        self.current = Some(Current { login: grant.login.clone(), issued: now, renew, ends });
        self.failure = None;
    }

    fn fail(&mut self, error: NoLogin, now: Instant) {
        let wait = self.failure.as_ref().map_or(RETRY_MIN, |failure| (failure.wait * 2).min(RETRY_MAX));
        self.failure = Some(Failure { error, until: now + wait, wait });
    }
}

impl Issued {
    /// Nothing has been issued yet; nobody is asked before the first request needs it.
    pub(super) fn new(issuer: Issuer, registry: Registry) -> Self {
        let (state, calling, changed) = Default::default();
        Self(Arc::new(Inner { issuer, registry, state, calling, changed }))
    }

    /// The login; asks the issuer if there is none that lasts.
    ///
    /// # Errors
    /// [`Error::NoLogin`] when there never was one and the issuer fails.
    pub(super) async fn get(&self, client: &Arc<Client>) -> Result<Login, Error> {
        if let Some(known) = self.0.known() {
            return Ok(known?);
        }
        let (inner, client) = (Arc::clone(&self.0), Arc::clone(client));
        let call = tokio::spawn(async move {
            let _calling = inner.calling.lock().await;
            match inner.known() {
                // Whoever called meanwhile called for this request too.
                Some(known) => known,
                None => inner.renew(&client).await,
            }
        });
        // It is cut off only when all of berth stops.
        Ok(call.await.map_err(|_| Error::Timeout)??)
    }

    /// Notes that the registry refused `login`. True if another can be had.
    pub(super) fn refused(&self, login: &Login) -> bool {
        let mut state = self.0.lock();
        match &mut state.current {
            Some(current) if current.login == *login => {
                if current.issued.elapsed() < FRESH {
                    return false;
                }
                // It was withdrawn, or a clock is wrong.
                let now = Instant::now();
                (current.renew, current.ends) = (now, now);
                true
            }
            current => current.is_some(),
        }
    }

    /// Whether `login` is used past its end, for want of another.
    pub(super) fn is_over(&self, login: &Login) -> bool {
        let state = self.0.lock();
        state.current.as_ref().is_some_and(|it| it.login == *login && it.ends <= Instant::now())
    }

    /// Renews the login whenever it is time to, for ever.
    pub(super) async fn keep(&self, client: &Client) {
        loop {
            let Some(due) = self.0.lock().due() else {
                self.0.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = self.0.changed.notified() => {}
                () = sleep_until(due) => {
                    let _calling = self.0.calling.lock().await;
                    let is_due = self.0.lock().due().is_some_and(|due| due <= Instant::now());
                    if is_due {
                        // A failure was logged, and is tried again when it is due.
                        let _ = self.0.renew(client).await;
                    }
                }
            }
        }
    }
}

impl Inner {
    /// Asks the issuer; only for whoever holds `calling`.
    async fn renew(&self, client: &Client) -> Result<Login, NoLogin> {
        let answer = self.issuer.issue(client).await;
        let registry = &self.registry;
        let mut state = self.lock();
        match answer {
            Ok(grant) => {
                if state.failure.is_some() {
                    tracing::info!(%registry, "a login is issued again");
                }
                let hours = grant.lifetime.as_secs_f64() / 3600.0;
                tracing::debug!(%registry, hours, "a login was issued");
                state.succeed(&grant, Instant::now());
                self.changed.notify_one();
                Ok(grant.login)
            }
            Err(error) => {
                let is_news = state.failure.as_ref().is_none_or(|failure| failure.error != error);
                let old = state.current.is_some();
                if is_news {
                    tracing::warn!(%registry, %error, old_stays = old, "no login is issued");
                }
                state.fail(error.clone(), Instant::now());
                state.instead(&error)
            }
        }
    }

    fn known(&self) -> Option<Result<Login, NoLogin>> {
        self.lock().known(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Secret;
    use super::*;

    fn grant(token: &str, seconds: u64) -> Grant {
        let login = Login::Basic { username: "AWS".into(), password: Secret::new(token.into()) };
        Grant { login, lifetime: Duration::from_secs(seconds) }
    }

    fn failure() -> NoLogin {
        NoLogin::Malformed { service: "a cloud", what: "nothing" }
    }

    #[tokio::test]
    async fn a_login_is_renewed_early_and_kept_past_its_end() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut state = State::default();
        assert!(state.known(start).is_none() && state.due().is_none());

        state.succeed(&grant("one", 12 * 3600), start);
        assert_eq!(state.due(), Some(at(9 * 3600)));
        state.fail(failure(), at(9 * 3600));
        assert_eq!(state.due(), Some(at(9 * 3600 + 1)));
        let one = Ok(grant("one", 0).login);
        assert_eq!(state.known(at(9 * 3600)), Some(one.clone()), "the failure is nobody's business yet");
        for _ in 0..8 {
            state.fail(failure(), at(12 * 3600));
        }
        assert_eq!(state.due(), Some(at(12 * 3600) + RETRY_MAX));
        assert_eq!(state.known(at(12 * 3600)), Some(one), "rather than nothing");
        assert_eq!(state.known(at(12 * 3600) + RETRY_MAX), None, "the issuer is asked again");

        state.succeed(&grant("two", 3600), at(13 * 3600));
        assert_eq!(state.known(at(13 * 3600)), Some(Ok(grant("two", 0).login)));
    }

    #[tokio::test]
    async fn without_any_login_a_failure_is_shared_for_a_while() {
        let now = Instant::now();
        let mut state = State::default();
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
            state.succeed(&grant("t", seconds), now);
            assert!(state.valid(now + ends - Duration::from_millis(1)).is_some(), "{seconds}");
            assert!(state.valid(now + ends).is_none(), "{seconds}");
        };
        check(0, LIFETIME_MIN);
        check(3600, Duration::from_secs(3600));
        check(u64::MAX >> 1, LIFETIME_MAX);
    }
}
