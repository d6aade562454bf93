//! Logins tried at a registry's door, for whoever has just configured them.
//!
//! What is asked is `GET /v2/`, as `docker login` does. That proves who berth is, not what it may read. As always a
//! login is sent only where it is asked for, so at a door that is open to anybody it stays unproven. For a repository it
//! is asked what a pull from there asks, in the same way.

use http::StatusCode;

use crate::context::RequestContext;
use crate::oci::manifest::ACCEPT;
use crate::oci::{Reference, RepoName, Speaker};
use crate::upstream::config::Endpoint;
use crate::upstream::login::Login;
use crate::upstream::remote::auth::{Refused, Scheme};
use crate::upstream::remote::endpoint::Server;
use crate::upstream::remote::error::Error;
use crate::upstream::remote::exchange::verdict;
use crate::upstream::remote::exchange::{Exchange, Target};
use crate::upstream::remote::handle::Remote;
use crate::upstream::remote::message::is_page;
use crate::upstream::remote::transport::request::{Ask, Reply};

/// Stands for a repository of a project. No more than its scope is asked for, so it need not exist.
const ANY_REPOSITORY: &str = "login-check";

/// The tag that clients ask for if none is given.
const LATEST: &str = "latest";

/// What came of one login at one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the names of the repositories begin with that the login is for, nothing if it is for all; or the repository
    /// that was asked for.
    pub path: String,
    /// Where it was tried, or would have been at a fallback; `None` if there was nothing to try.
    pub endpoint: Option<Endpoint>,
    /// What came of it.
    pub found: Found,
}

/// What was found out about a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was sent, and is good.
    Accepted,
    /// Nobody asked for it: whether it is good shows when something is pulled.
    Unproven,
    /// There is none, and anybody is let in.
    Open,
    /// The configuration names a file, and that has none for this registry.
    Missing,
    /// Another kind of login is asked for: it was not sent.
    Unsuited,
    /// Whoever berth is there is let in, and what was asked for is not there for them.
    Absent,
    /// Nobody is let in with it, or without one if there is none.
    Failed {
        /// Who refused or failed.
        by: Party,
        /// How.
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

/// Who has a say in whether berth is let in.
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
pub(in crate::upstream) struct LoginCheck<'a>(&'a Remote);

impl<'a> LoginCheck<'a> {
    /// Of this remote's.
    pub(in crate::upstream) fn of(remote: &'a Remote) -> Self {
        Self(remote)
    }

    /// Asks every endpoint for an image as a pull does; without a reference, for whatever there is in the repository.
    pub(in crate::upstream) async fn pull(
        &self,
        name: &RepoName,
        reference: Option<&Reference>,
    ) -> Vec<Trial> {
        let mut trials = Vec::new();
        for server in self.0.endpoints() {
            let found = self.try_pull_at(server, name, reference).await;
            let found = found.unwrap_or_else(|(by, error)| Found::Failed { by, error });
            let endpoint = Some(server.endpoint().clone());
            trials.push(Trial { path: name.to_string(), endpoint, found });
        }
        trials
    }

    async fn try_pull_at(
        &self,
        server: &Server,
        name: &RepoName,
        reference: Option<&Reference>,
    ) -> Result<Found, (Party, Error)> {
        let deadline = self.0.deadline();
        let there = self.0.name_there(name).map_err(|error| (Party::Registry, error))?;
        let login = self.0.auth().login(&there, deadline).await.map_err(|error| (Party::Issuer, error))?;
        let error = match self.ask_as_pulls_do(server, login.as_ref(), (name, &there), reference).await {
            Ok(is_public) if is_public => return Ok(Found::Open),
            Ok(_) => return Ok(Found::Accepted),
            Err(Error::NotFound) => return Ok(Found::Absent),
            Err(error) => error,
        };
        // Who it was shows when that is asked alone.
        match self.try_login(server, login.as_ref(), Some(&there)).await {
            Err((by, alone)) if alone == error => Err((by, error)),
            Ok(_) | Err(_) => Err((Party::Registry, error)),
        }
    }

    /// Whether what was asked for came without a login. A HEAD comes first, as ever; some registries know none.
    async fn ask_as_pulls_do(
        &self,
        server: &Server,
        login: Option<&Login>,
        (name, there): (&RepoName, &RepoName),
        reference: Option<&Reference>,
    ) -> Result<bool, Error> {
        let path = match reference {
            Some(reference) => format!("manifests/{reference}"),
            None => format!("manifests/{LATEST}"),
        };
        let manifest = |ask| Ask { accept: Some(ACCEPT), ..ask };
        let mut asks = vec![manifest(Ask::head(name, path.clone())), manifest(Ask::get(name, path))];
        if reference.is_none() {
            // It may have other tags.
            asks.push(Ask { query: Some("n=1".to_owned()), ..Ask::get(name, "tags/list".to_owned()) });
        }
        let mut answer = Err(Error::NotFound);
        for ask in &asks {
            answer =
                Exchange::new(Target::new(self.0, server), ask, there, self.0.deadline()).run(login).await;
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

    /// Tries every login that there is, one after the other, at every endpoint; if it is to be asked without any, that.
    /// Each has the time of one request.
    pub(in crate::upstream) async fn logins(&self) -> Vec<Trial> {
        // The name of a registry does not say which of its fallbacks is meant.
        let first = self.0.endpoints().first().filter(|_| self.0.speaker() == Speaker::Fallback);
        let endpoint = first.map(|server| server.endpoint().clone());
        let untried = |found| vec![Trial { path: String::new(), endpoint, found }];
        let logins = match self.0.auth().logins(self.0.deadline()).await {
            Ok(logins) if logins.is_empty() => return untried(Found::Missing),
            Ok(logins) => logins,
            Err(error) => return untried(Found::Failed { by: Party::Issuer, error }),
        };
        let mut trials = Vec::new();
        for (path, login) in &logins {
            let name = repository(path);
            for server in self.0.endpoints() {
                let tried = self.try_login(server, login.as_ref(), name.as_ref()).await;
                let found = tried.unwrap_or_else(|(by, error)| Found::Failed { by, error });
                let endpoint = Some(server.endpoint().clone());
                trials.push(Trial { path: path.clone(), endpoint, found });
            }
        }
        trials
    }

    async fn try_login(
        &self,
        server: &Server,
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
            let response =
                self.0.sender().knock(server, tried.header.clone(), deadline).await.map_err(by_registry)?;
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
        let again = self.0.auth().reconsider(server.endpoint().as_url(), name, login, refused).await;
        let response = match again.map_err(|refusal| by_registry(refusal.into()))? {
            Some(scheme) => ask(Some(&scheme)).await?.1,
            None if login.is_some() && first.status() == StatusCode::UNAUTHORIZED => {
                return Ok(Found::Unsuited);
            }
            None => first,
        };
        let reply = Reply { response, elsewhere: false, is_store: false, seat: None };
        verdict::judge(reply, login.is_some()).map_err(by_registry)?;
        Ok(if login.is_some() { Found::Accepted } else { Found::Open })
    }
}

/// A repository that a login for `path` is for, so that a token server which knows the login for that path only has
/// something to grant.
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
