//! Logins tried at a registry's door, for whoever has just configured them.
//!
//! What is asked is `GET /v2/`, as `docker login` does. That proves who berth is, not what it may read. As always a
//! login is sent only where it is asked for, so at a door that is open to anybody it stays unproven. For a repository it
//! is asked what a pull from there asks, in the same way.

use http::StatusCode;
use tokio::time::timeout_at;

use super::auth::{Refused, Scheme};
use super::config::Endpoint;
use super::error::Error;
use super::exchange::{self, Ask, Reply};
use super::login::Login;
use super::parents::Parents;
use super::server::Server;
use super::{Upstream, rename};
use crate::context::RequestContext;
use crate::oci::manifest::ACCEPT;
use crate::oci::{Reference, RepoName};

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

impl Upstream {
    /// Tries every login that there is for this registry, one after the other, at every endpoint, those of its
    /// parents first and those of its fallbacks last; if it is to be asked without any, that. Each has the time of one request.
    pub async fn try_logins(&self) -> Vec<Trial> {
        let mut trials = Vec::new();
        for parent in self.parents().map(Parents::upstreams).unwrap_or_default() {
            trials.extend(parent.try_own_logins().await);
        }
        if !self.servers.is_empty() {
            trials.extend(self.try_own_logins().await);
        }
        for fallback in self.fallbacks() {
            trials.extend(fallback.try_own_logins().await);
        }
        trials
    }

    /// Asks every one of these endpoints for an image as a pull does; without a reference, for whatever there is in the
    /// repository.
    pub async fn try_pull(&self, name: &RepoName, reference: Option<&Reference>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for parent in self.parents().map(Parents::upstreams).unwrap_or_default() {
            trials.extend(parent.try_own_pull(name, reference).await);
        }
        trials.extend(self.try_own_pull(name, reference).await);
        for fallback in self.fallbacks() {
            trials.extend(fallback.try_own_pull(name, reference).await);
        }
        trials
    }

    async fn try_own_pull(&self, name: &RepoName, reference: Option<&Reference>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for server in &self.servers {
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
        let deadline = self.deadline();
        let there = rename::at_upstream(&self.rewrites, name).map_err(|error| (Party::Registry, error))?;
        let login = self.login(&there, deadline).await.map_err(|error| (Party::Issuer, error))?;
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
            answer = self.exchange_as(login, server, ask, there, self.deadline()).await;
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

    /// What an operator should know of its configuration, though berth can work with it.
    pub fn warnings(&self) -> Vec<String> {
        let of_parents = self.parents().map(Parents::upstreams).unwrap_or_default();
        let of_others = of_parents.iter().chain(self.fallbacks()).flat_map(|other| other.warnings());
        let own = self.credential.warning().into_iter().chain(self.client.warnings().iter().cloned());
        own.chain(of_others).collect()
    }

    async fn try_own_logins(&self) -> Vec<Trial> {
        // The name of a registry does not say which of its fallbacks is meant.
        let first = self.servers.first().filter(|_| self.is_fallback());
        let endpoint = first.map(|server| server.endpoint().clone());
        let untried = |found| vec![Trial { path: String::new(), endpoint, found }];
        let all = timeout_at(self.deadline(), self.credential.all(&self.client)).await;
        let logins = match all.map_or(Err(Error::Timeout), |all| all.map_err(Error::from)) {
            Ok(logins) if logins.is_empty() => return untried(Found::Missing),
            Ok(logins) => logins,
            Err(error) => return untried(Found::Failed { by: Party::Issuer, error }),
        };
        let mut trials = Vec::new();
        for (path, login) in &logins {
            let name = repository(path);
            for server in &self.servers {
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
        let deadline = self.deadline();
        let by_registry = |error| (Party::Registry, error);
        let ask = async |scheme: Option<&Scheme>| {
            let context = RequestContext::default();
            let seat = self.seat(&context, deadline);
            let tried = self.auth.authorize(&self.client, seat, scheme, name, login, deadline).await;
            let tried = tried.map_err(|error| (Party::TokenServer, error))?;
            let response = self.knock(server, &tried, deadline).await.map_err(by_registry)?;
            Ok((tried, response))
        };
        let (tried, first) = ask(None).await?;
        if first.status().is_success() {
            // A captive portal. (To a login that it takes, Quay answers with what it calls a page, too.)
            if exchange::is_page(first.headers()) {
                return Err(by_registry(Error::Malformed("a web page")));
            }
            return Ok(if login.is_some() { Found::Unproven } else { Found::Open });
        }
        let refused =
            Refused { status: first.status(), headers: first.headers(), tried: &tried, scheme: None };
        let again = self.auth.reconsider(server.endpoint().as_url(), name, login, refused).await;
        let response = match again.map_err(|refusal| by_registry(refusal.into()))? {
            Some(scheme) => ask(Some(&scheme)).await?.1,
            None if login.is_some() && first.status() == StatusCode::UNAUTHORIZED => {
                return Ok(Found::Unsuited);
            }
            None => first,
        };
        let reply = Reply { response, elsewhere: false, is_store: false, seat: None };
        exchange::judge(reply, login.is_some()).map_err(by_registry)?;
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
