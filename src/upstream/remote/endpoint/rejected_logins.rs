//! Logins that an endpoint refuses: clients' requests fail at once, until a probe finds the login accepted.
//!
//! An expired password must not be tried again for every tag of every client: it costs them time, and some registries
//! lock such an account. But a refusal may be about one repository only, since there are registries that answer 401 for
//! what a login may not see. So a few in a row make a login suspect, and a probe that asks for nothing but the login
//! decides. A login that was changed is another one, and is trusted.

use std::num::NonZeroUsize;

use lru::LruCache;
use tokio::time::Instant;

use crate::bounded;
use crate::oci::RepoName;
use crate::upstream::login::Identity;
use crate::upstream::remote::endpoint::circuit::Circuit;

/// Logins for one endpoint that are in trouble at the same time.
const REFUSALS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("sixty-four is not zero");

/// The logins that one endpoint has refused lately.
pub(in crate::upstream) struct Refusals(LruCache<Identity, Refusal>);

struct Refusal {
    circuit: Circuit,
    /// Whether a probe has found it refused.
    is_proven: bool,
    /// A repository that the login is for.
    name: RepoName,
}

impl Default for Refusals {
    fn default() -> Self {
        Self(bounded::lru(REFUSALS_MAX))
    }
}

impl Refusals {
    /// Whether clients' requests with this login are to fail at once.
    pub(in crate::upstream) fn is_refused(&self, login: &Identity) -> bool {
        self.0.peek(login).is_some_and(|refusal| refusal.is_proven && refusal.circuit.is_open())
    }

    /// Whether any login is.
    pub(in crate::upstream) fn is_any_refused(&self) -> bool {
        self.0.iter().any(|(login, _)| self.is_refused(login))
    }

    /// Notes that a request for `name` was refused for its login; true if that is now suspect, and to be probed.
    pub(in crate::upstream) fn refused(
        &mut self,
        login: Identity,
        name: &RepoName,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        let new = || Refusal { circuit: Circuit::default(), is_proven: false, name: name.clone() };
        self.0.get_or_insert_mut(login, new).circuit.fail(now, random)
    }

    /// Notes that the login is accepted, or in use no more; true if it was refused until now.
    pub(in crate::upstream) fn clear(&mut self, login: &Identity) -> bool {
        self.0.pop(login).is_some_and(|refusal| refusal.is_proven)
    }

    /// Which login to probe next, with a repository that it is for, and when.
    pub(in crate::upstream) fn probe_at(&self) -> Option<(Instant, Identity, RepoName)> {
        let due = |(login, refusal): (&Identity, &Refusal)| {
            Some((refusal.circuit.probe_at()?, *login, refusal.name.clone()))
        };
        self.0.iter().filter_map(due).min_by_key(|(at, ..)| *at)
    }

    /// Notes that a probe of it begins.
    pub(in crate::upstream) fn probe_begins(
        &mut self,
        login: &Identity,
        now: Instant,
        random: &mut fastrand::Rng,
    ) {
        if let Some(refusal) = self.0.peek_mut(login) {
            refusal.circuit.probe_begins(now, random);
        }
    }

    /// Notes that a probe found it refused; true if that is news.
    pub(in crate::upstream) fn proven(&mut self, login: &Identity) -> bool {
        self.0.peek_mut(login).is_some_and(|refusal| !std::mem::replace(&mut refusal.is_proven, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::login::Login;
    use crate::upstream::secret::Secret;

    #[tokio::test(start_paused = true)]
    async fn a_login_is_refused_once_it_is_proven() {
        let identity = |password: &str| {
            Login::Basic { username: "u".to_owned(), password: Secret::new(password.to_owned()) }.identity()
        };
        let (old, new) = (identity("old"), identity("new"));
        let name = RepoName::parse("a").unwrap();
        let (now, mut random) = (Instant::now(), fastrand::Rng::with_seed(7));
        let mut refusals = Refusals::default();
        while !refusals.refused(old, &name, now, &mut random) {}
        assert!(!refusals.is_refused(&old), "it may be about that repository");
        let (at, login, of) = refusals.probe_at().unwrap();
        assert!(at > now && login == old && of == name);
        refusals.probe_begins(&old, at, &mut random);
        assert!(refusals.proven(&old) && !refusals.proven(&old));
        assert!(refusals.is_refused(&old) && refusals.is_any_refused() && !refusals.is_refused(&new));
        assert!(refusals.probe_at().unwrap().0 > at);
        assert!(refusals.clear(&old) && !refusals.is_refused(&old) && refusals.probe_at().is_none());
        // One that a probe finds accepted was never refused.
        while !refusals.refused(new, &name, now, &mut random) {}
        assert!(!refusals.clear(&new) && !refusals.is_any_refused());
    }
}
