//! The check of logins at a registry, for an operator who has just configured them.
//!
//! What is asked is `GET /v2/`, as `docker login` does. That proves who berth is, not what it may read. As always a
//! login is sent only where it is asked for, so at a registry that is open to anybody it stays unproven. For a repository
//! the check asks what a pull from there asks, in the same way.

use http::StatusCode;

use crate::context::RequestContext;
use crate::credentials::login::Login;
use crate::net::EndpointUrl;
use crate::oci::manifest::ACCEPT;
use crate::oci::{Reference, RepoName, Speaker};
use crate::remote::auth::{Refused, Scheme};
use crate::remote::endpoint::Endpoint;
use crate::remote::error::Error;
use crate::remote::exchange::verdict;
use crate::remote::exchange::{Exchange, Target};
use crate::remote::handle::Remote;
use crate::remote::message::is_page;
use crate::remote::transport::request::{ApiRequest, RawResponse};

/// The name of a repository that stands for those of a project. Only its scope is asked for, so it need not exist.
const ANY_REPOSITORY: &str = "login-check";

/// The tag that clients ask for if none is given.
const LATEST: &str = "latest";

/// The result of one login at one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the names of the repositories begin with that the login is for, empty if it is for all; or the repository that
    /// was asked for.
    pub path: String,
    /// Where the login was tried, or would have been at a fallback; `None` if there was nothing to try.
    pub endpoint: Option<EndpointUrl>,
    /// What was found out.
    pub found: Found,
}

/// What was found out about a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The login was sent and accepted.
    Accepted,
    /// The login was not asked for: whether it is good shows when something is pulled.
    Unproven,
    /// There is no login, and none is needed.
    Open,
    /// The configuration names a file that has no login for this registry.
    Missing,
    /// Another kind of login is asked for, so this one was not sent.
    Unsuited,
    /// The login is accepted, or none is needed, and what was asked for does not exist for it.
    Absent,
    /// The login is refused, or there is none and one is needed, or the check failed.
    Failed {
        /// The party that refused or failed.
        by: Party,
        /// How it refused or failed.
        error: Error,
    },
}

impl Found {
    /// Whether there is nothing to put right.
    pub fn is_fine(&self) -> bool {
        match self {
            Self::Accepted | Self::Unproven | Self::Open => true,
            Self::Missing | Self::Unsuited | Self::Absent | Self::Failed { .. } => false,
        }
    }
}

/// A party that has a say in whether berth is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The registry itself.
    Registry,
    /// The token server that it names.
    TokenServer,
    /// The cloud that issues the login.
    Issuer,
}

/// The check of the logins for one remote.
pub(crate) struct LoginCheck<'a>(&'a Remote);

impl<'a> LoginCheck<'a> {
    /// The check for `remote`.
    pub(crate) fn of(remote: &'a Remote) -> Self {
        Self(remote)
    }

    /// Asks every endpoint for an image as a pull does; without a reference, for whatever there is in the repository.
    pub(crate) async fn pull(&self, name: &RepoName, reference: Option<&Reference>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for endpoint in self.0.endpoints() {
            let found = self.try_pull_at(endpoint, name, reference).await;
            let found = found.unwrap_or_else(|(by, error)| Found::Failed { by, error });
            let endpoint = Some(endpoint.url().clone());
            trials.push(Trial { path: name.to_string(), endpoint, found });
        }
        trials
    }

    async fn try_pull_at(
        &self,
        endpoint: &Endpoint,
        name: &RepoName,
        reference: Option<&Reference>,
    ) -> Result<Found, (Party, Error)> {
        let deadline = self.0.deadline();
        let there = self.0.name_there(name).map_err(|error| (Party::Registry, error))?;
        let login = self.0.auth().login(&there, deadline).await.map_err(|error| (Party::Issuer, error))?;
        let error = match self.ask_as_pulls_do(endpoint, login.as_ref(), (name, &there), reference).await {
            Ok(is_public) if is_public => return Ok(Found::Open),
            Ok(_) => return Ok(Found::Accepted),
            Err(Error::NotFound) => return Ok(Found::Absent),
            Err(error) => error,
        };
        // Which party it was shows when the login alone is tried.
        match self.try_login(endpoint, login.as_ref(), Some(&there)).await {
            Err((by, alone)) if alone == error => Err((by, error)),
            Ok(_) | Err(_) => Err((Party::Registry, error)),
        }
    }

    /// Returns whether what was asked for came without a login. A HEAD comes first, as with a pull; some registries know
    /// none.
    async fn ask_as_pulls_do(
        &self,
        endpoint: &Endpoint,
        login: Option<&Login>,
        (name, there): (&RepoName, &RepoName),
        reference: Option<&Reference>,
    ) -> Result<bool, Error> {
        let path = match reference {
            Some(reference) => format!("manifests/{reference}"),
            None => format!("manifests/{LATEST}"),
        };
        let manifest = |ask| ApiRequest { accept: Some(ACCEPT), ..ask };
        let mut asks =
            vec![manifest(ApiRequest::head(name, path.clone())), manifest(ApiRequest::get(name, path))];
        if reference.is_none() {
            // It may have other tags.
            asks.push(ApiRequest {
                query: Some("n=1".to_owned()),
                ..ApiRequest::get(name, "tags/list".to_owned())
            });
        }
        let mut answer = Err(Error::NotFound);
        for ask in &asks {
            answer =
                Exchange::new(Target::new(self.0, endpoint), ask, there, self.0.deadline()).run(login).await;
            let is_worth_more = matches!(
                answer,
                Err(Error::NotFound | Error::Denied | Error::Unavailable { .. } | Error::Malformed(_))
            );
            if !is_worth_more {
                break;
            }
        }
        answer.map(|answer| answer.public)
    }

    /// Tries every login that there is, one after the other, at every endpoint; if none is configured, whether none is
    /// needed. Each has the time of one request.
    pub(crate) async fn logins(&self) -> Vec<Trial> {
        // The name of a registry does not say which of its fallbacks is meant.
        let first = self.0.endpoints().first().filter(|_| self.0.speaker() == Speaker::Fallback);
        let endpoint = first.map(|endpoint| endpoint.url().clone());
        let untried = |found| vec![Trial { path: String::new(), endpoint, found }];
        let logins = match self.0.auth().logins(self.0.deadline()).await {
            Ok(logins) if logins.is_empty() => return untried(Found::Missing),
            Ok(logins) => logins,
            Err(error) => return untried(Found::Failed { by: Party::Issuer, error }),
        };
        let mut trials = Vec::new();
        for (path, login) in &logins {
            let name = repository(path);
            for endpoint in self.0.endpoints() {
                let tried = self.try_login(endpoint, login.as_ref(), name.as_ref()).await;
                let found = tried.unwrap_or_else(|(by, error)| Found::Failed { by, error });
                let endpoint = Some(endpoint.url().clone());
                trials.push(Trial { path: path.clone(), endpoint, found });
            }
        }
        trials
    }

    async fn try_login(
        &self,
        endpoint: &Endpoint,
        login: Option<&Login>,
        name: Option<&RepoName>,
    ) -> Result<Found, (Party, Error)> {
        let deadline = self.0.deadline();
        let by_registry = |error| (Party::Registry, error);
        let ask = async |scheme: Option<&Scheme>| {
            let context = RequestContext::default();
            let seat = self.0.limits().seat(&context, deadline);
            let tried = self.0.auth().authorize(seat, scheme, name, login, deadline).await;
            let tried = tried.map_err(|error| (Party::TokenServer, error))?;
            let response = self
                .0
                .transport()
                .ask_base(endpoint, tried.header.clone(), deadline)
                .await
                .map_err(by_registry)?;
            Ok((tried, response))
        };
        let (tried, first) = ask(None).await?;
        if first.status().is_success() {
            // A captive portal. (To a login that it takes, Quay answers with what it calls a page, too.)
            if is_page(first.headers()) {
                return Err(by_registry(Error::Malformed("a web page")));
            }
            return Ok(if login.is_some() { Found::Unproven } else { Found::Open });
        }
        let refused =
            Refused { status: first.status(), headers: first.headers(), tried: &tried, scheme: None };
        let again = self.0.auth().reconsider(endpoint.url().as_url(), name, login, refused).await;
        let response = match again.map_err(|refusal| by_registry(refusal.into()))? {
            Some(scheme) => ask(Some(&scheme)).await?.1,
            None if login.is_some() && first.status() == StatusCode::UNAUTHORIZED => {
                return Ok(Found::Unsuited);
            }
            None => first,
        };
        let reply = RawResponse { response, elsewhere: false, is_store: false, seat: None };
        verdict::judge(reply, login.is_some()).map_err(by_registry)?;
        Ok(if login.is_some() { Found::Accepted } else { Found::Open })
    }
}

/// A repository that a login for `path` is for: a token server that knows the login for that path only needs something to
/// grant.
fn repository(path: &str) -> Option<RepoName> {
    match path.split_once('/') {
        Some(_) => RepoName::parse(path).ok(),
        // One part is a project, whose name alone token servers take for no repository at all.
        None => RepoName::parse(&format!("{path}/{ANY_REPOSITORY}")).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_for_a_path_is_tried_for_a_repository_there() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(repository(path).map(|name| name.to_string()).as_deref(), expected, "{path}");
        };
        check("", None);
        check("team", Some("team/login-check"));
        check("team/app", Some("team/app"));
        check("Team", None);
    }
}
