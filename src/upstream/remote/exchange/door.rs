//! How an endpoint wants to be asked, learnt at its door: `GET /v2/`.
//!
//! Some registries challenge nowhere else: what is private is not there for nobody, rather than refused. So while it is
//! not known how an endpoint takes a login that applies, its refusal of a request without one is no word about what was
//! asked for. An endpoint that asks for no login at its door either is asked again there after a while only.

use std::time::Duration;

use http::StatusCode;

use crate::context::RequestContext;
use crate::upstream::login::Login;
use crate::upstream::remote::auth::{Refused, Scheme};
use crate::upstream::remote::error::Error;
use crate::upstream::remote::exchange::Exchange;
use crate::upstream::remote::exchange::verdict;
use crate::upstream::remote::transport::request::Reply;

/// For how long an endpoint is taken at its word that it asks for no login: a minute of 404s costs it one request.
const OPEN_FOR: Duration = Duration::from_secs(60);
impl Exchange<'_> {
    /// How the endpoint asks for `login` at its door, if that is another way than was `tried`; `None` if it asks for none
    /// there.
    ///
    /// # Errors
    /// When it cannot be asked, or asks for another kind of login.
    pub(in crate::upstream) async fn scheme_at_door(
        &self,
        tried: Option<&Scheme>,
        login: Option<&Login>,
    ) -> Result<Option<Scheme>, Error> {
        let (remote, server, name, deadline) = (self.remote(), self.server(), self.scope(), self.deadline());
        if let Some(learnt) = server.scheme().filter(|learnt| Some(learnt) != tried) {
            return Ok(Some(learnt));
        }
        if server.is_known_open() {
            return Ok(None);
        }
        let context = RequestContext::default();
        let seat = remote.limits().seat(&context, deadline);
        let tried = remote.auth().authorize(seat, None, name, login, deadline).await?;
        let response = remote.sender().knock(server, tried.header.clone(), deadline).await?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let reply = Reply { response, elsewhere: false, is_store: false, seat: None };
            verdict::judge(reply, login.is_some())?;
            return Ok(None);
        }
        let refused = Refused { status, headers: response.headers(), tried: &tried, scheme: None };
        match remote.auth().reconsider(server.endpoint().as_url(), name, login, refused).await? {
            Some(scheme) => Ok(Some(scheme)),
            None if status == StatusCode::UNAUTHORIZED => Err(verdict::UNSUITED),
            None => {
                server.found_open(OPEN_FOR);
                Ok(None)
            }
        }
    }
}
