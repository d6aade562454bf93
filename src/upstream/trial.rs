//! Logins tried at a registry's door, for whoever has just configured them.
//!
//! What is asked is `GET /v2/`, as `docker login` does. That proves who berth is, not what it may read. As always a
//! login is sent only where it is asked for, so at a door that is open to anybody it stays unproven.

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::Upstream;
use super::auth::{Authorization, Refused, Scheme};
use super::client::Way;
use super::config::Endpoint;
use super::error::Error;
use super::exchange::{self, AGENT, Reply};
use super::login::Login;
use super::parents::Parents;
use super::server::Server;
use crate::context::RequestContext;
use crate::oci::RepoName;

/// Stands for a repository of a project. No more than its scope is asked for, so it need not exist.
const ANY_REPOSITORY: &str = "login-check";

/// What came of one login at one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the names of the repositories begin with that the login is for; nothing if it is for all.
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
            Self::Missing | Self::Unsuited | Self::Failed { .. } => false,
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

    async fn try_own_logins(&self) -> Vec<Trial> {
        // The name of a registry does not say which of its fallbacks is meant.
        let first = self.servers.first().filter(|_| self.is_fallback());
        let endpoint = first.map(|server| server.endpoint().clone());
        let untried = |found| vec![Trial { path: String::new(), endpoint, found }];
        let all = timeout_at(self.deadline(), self.credential.all(&self.client)).await;
        let logins = match all.unwrap_or(Err(Error::Timeout)) {
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

    async fn knock(
        &self,
        server: &Server,
        tried: &Authorization,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::get(server.endpoint().at("", None).as_str())
            .header(USER_AGENT, AGENT)
            .header(ACCEPT_ENCODING, "identity")
            .body(Full::default())
            .map_err(|_| Error::Malformed("an endpoint that cannot be asked"))?;
        self.headers.add_to(request.headers_mut());
        self.stamp(&RequestContext::default(), &mut request, self.client.timeouts.header);
        request.headers_mut().extend(tried.header.clone().map(|header| (AUTHORIZATION, header)));
        let within = self.client.timeouts.header.min(deadline.saturating_duration_since(Instant::now()));
        self.client.send(Way::Direct, request, within).await
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
