//! Logins that an endpoint rejects: requests of clients fail at once until a probe finds the login accepted.
//!
//! An expired password must not be tried again for every tag of every client: it costs them time, and some registries
//! lock such an account. But a rejection may be about one repository only, since there are registries that answer 401 for
//! what a login may not see. So a few in a row make a login suspect, and a probe that asks for nothing but the login
//! decides. A login that was changed is another one, and is trusted.

use std::num::NonZeroUsize;

use lru::LruCache;
use tokio::time::Instant;

use crate::bounded;
use crate::credentials::login::Fingerprint;
use crate::oci::RepoName;
use crate::remote::endpoint::circuit::Circuit;

/// The most logins that are remembered as rejected by one endpoint.
const REJECTED_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("sixty-four is not zero");

/// The logins that one endpoint has rejected lately.
pub(crate) struct RejectedLogins(LruCache<Fingerprint, Rejection>);

struct Rejection {
    circuit: Circuit,
    /// Whether a probe has found the login rejected.
    is_proven: bool,
    /// A repository that the login applies to, for the probe.
    name: RepoName,
}

impl Default for RejectedLogins {
    fn default() -> Self {
        Self(bounded::lru(REJECTED_MAX))
    }
}

impl RejectedLogins {
    /// Whether requests of clients with this login fail at once.
    pub(crate) fn is_refused(&self, login: &Fingerprint) -> bool {
        self.0.peek(login).is_some_and(|rejection| rejection.is_proven && rejection.circuit.is_open())
    }

    /// Whether that is so with any login.
    pub(crate) fn is_any_refused(&self) -> bool {
        self.0.iter().any(|(login, _)| self.is_refused(login))
    }

    /// Records that a request for `name` was rejected for its login. Returns whether the login should now be probed.
    pub(crate) fn refused(
        &mut self,
        login: Fingerprint,
        name: &RepoName,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        let new = || Rejection { circuit: Circuit::default(), is_proven: false, name: name.clone() };
        self.0.get_or_insert_mut(login, new).circuit.fail(now, random)
    }

    /// Records that the login is accepted, or no longer in use. Returns whether it counted as rejected until now.
    pub(crate) fn clear(&mut self, login: &Fingerprint) -> bool {
        self.0.pop(login).is_some_and(|rejection| rejection.is_proven)
    }

    /// The login to probe next, when, and a repository that it applies to.
    pub(crate) fn probe_at(&self) -> Option<(Instant, Fingerprint, RepoName)> {
        let due = |(login, rejection): (&Fingerprint, &Rejection)| {
            Some((rejection.circuit.probe_at()?, *login, rejection.name.clone()))
        };
        self.0.iter().filter_map(due).min_by_key(|(at, ..)| *at)
    }

    /// Records that a probe of the login begins.
    pub(crate) fn probe_begins(&mut self, login: &Fingerprint, now: Instant, random: &mut fastrand::Rng) {
        if let Some(rejection) = self.0.peek_mut(login) {
            rejection.circuit.probe_begins(now, random);
        }
    }

    /// Records that a probe has found the login rejected. Returns whether that is news.
    pub(crate) fn proven(&mut self, login: &Fingerprint) -> bool {
        self.0.peek_mut(login).is_some_and(|rejection| !std::mem::replace(&mut rejection.is_proven, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::login::Login;
    use crate::net::secret::Secret;

    #[tokio::test(start_paused = true)]
    async fn a_login_is_refused_once_it_is_proven() {
        let identity = |password: &str| {
            Login::Basic { username: "u".to_owned(), password: Secret::new(password.to_owned()) }.identity()
        };
        let (old, new) = (identity("old"), identity("new"));
        let name = RepoName::parse("a").unwrap();
        let (now, mut random) = (Instant::now(), fastrand::Rng::with_seed(7));
        let mut rejected = RejectedLogins::default();
        while !rejected.refused(old, &name, now, &mut random) {}
        assert!(!rejected.is_refused(&old), "it may be about that repository");
        let (at, login, of) = rejected.probe_at().unwrap();
        assert!(at > now && login == old && of == name);
        rejected.probe_begins(&old, at, &mut random);
        assert!(rejected.proven(&old) && !rejected.proven(&old));
        assert!(rejected.is_refused(&old) && rejected.is_any_refused() && !rejected.is_refused(&new));
        assert!(rejected.probe_at().unwrap().0 > at);
        assert!(rejected.clear(&old) && !rejected.is_refused(&old) && rejected.probe_at().is_none());
        // One that a probe finds accepted was never refused.
        while !rejected.refused(new, &name, now, &mut random) {}
        assert!(!rejected.clear(&new) && !rejected.is_any_refused());
    }
}
