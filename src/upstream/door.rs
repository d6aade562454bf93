//! How an endpoint wants to be asked, learnt at its door: `GET /v2/`.
//!
//! Some registries challenge nowhere else: what is private is not there for nobody, rather than refused. So while it is
//! not known how an endpoint takes a login that applies, its refusal of a request without one is no word about what was
//! asked for. An endpoint that asks for no login at its door either is asked again there after a while only.

use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Upstream;
use super::auth::{Authorization, Refused, Scheme};
use super::client::Way;
use super::error::Error;
use super::exchange::{self, AGENT, Reply};
use super::login::Login;
use super::server::Server;
use crate::context::RequestContext;
use crate::oci::RepoName;

/// For how long an endpoint is taken at its word that it asks for no login: a minute of 404s costs it one request.
const OPEN_FOR: Duration = Duration::from_secs(60);
/// It asks for a login, and what is configured is none of that kind.
pub(super) const UNSUITED: Error =
    Error::Malformed("a 401 that asks for no login of the kind that is configured");

/// Whether an answer to nobody may be another to somebody.
pub(super) fn says_no(reply: &Reply) -> bool {
    let is_no = matches!(
        reply.response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
    );
    !reply.elsewhere && (is_no || exchange::is_portal(&reply.response))
}

/// Whether it is a 401, which to nobody is no word about a login that was not sent.
pub(super) fn is_unasked_for(reply: &Reply) -> bool {
    !reply.elsewhere && reply.response.status() == StatusCode::UNAUTHORIZED
}

impl Upstream {
    /// How `server` asks for `login` at its door, if that is another way than was `tried`; `None` if it asks for none there.
    ///
    /// # Errors
    /// When it cannot be asked, or asks for another kind of login.
    pub(super) async fn scheme_at_door(
        &self,
        server: &Server,
        tried: Option<&Scheme>,
        name: Option<&RepoName>,
        login: Option<&Login>,
        deadline: Instant,
    ) -> Result<Option<Scheme>, Error> {
        if let Some(learnt) = server.scheme().filter(|learnt| Some(learnt) != tried) {
            return Ok(Some(learnt));
        }
        if server.is_known_open() {
            return Ok(None);
        }
        let context = RequestContext::default();
        let tried = self
            .auth
            .authorize(&self.client, self.seat(&context, deadline), None, name, login, deadline)
            .await?;
        let response = self.knock(server, &tried, deadline).await?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            exchange::judge(
                Reply { response, elsewhere: false, is_store: false, seat: None },
                login.is_some(),
            )?;
            return Ok(None);
        }
        let refused = Refused { status, headers: response.headers(), tried: &tried, scheme: None };
        match self.auth.reconsider(server.endpoint().as_url(), name, login, refused).await? {
            Some(scheme) => Ok(Some(scheme)),
            None if status == StatusCode::UNAUTHORIZED => Err(UNSUITED),
            None => {
                server.found_open(OPEN_FOR);
                Ok(None)
            }
        }
    }

    /// Asks at the door of `server`.
    pub(super) async fn knock(
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
