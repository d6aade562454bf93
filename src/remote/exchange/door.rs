//! Which authentication scheme an endpoint asks for, found out at its base, `GET /v2/`.
//!
//! Some registries challenge nowhere else: to a request without a login, what is private does not exist. So as long as it
//! is not known how an endpoint takes a login that applies, its refusal of a request without one says nothing about what
//! was asked for. An endpoint that asks for no login at its base either is asked there again only after a while.

use std::time::Duration;

use http::StatusCode;

use crate::context::RequestContext;
use crate::credentials::login::Login;
use crate::remote::auth::{Refused, Scheme};
use crate::remote::error::Error;
use crate::remote::exchange::Exchange;
use crate::remote::exchange::verdict;
use crate::remote::transport::request::RawResponse;

/// How long an endpoint is believed to ask for no login: a minute of 404s costs it one request.
const OPEN_FOR: Duration = Duration::from_secs(60);
impl Exchange<'_> {
    /// The scheme by which the endpoint asks for `login` at its base, if that is another than was `tried`; `None` if it
    /// asks for no login there.
    ///
    /// # Errors
    /// When it cannot be asked, or asks for another kind of login.
    pub(crate) async fn scheme_at_door(
        &self,
        tried: Option<&Scheme>,
        login: Option<&Login>,
    ) -> Result<Option<Scheme>, Error> {
        let (remote, endpoint, name, deadline) =
            (self.remote(), self.endpoint(), self.scope(), self.deadline());
        if let Some(learnt) = endpoint.scheme().filter(|learnt| Some(learnt) != tried) {
            return Ok(Some(learnt));
        }
        if endpoint.is_known_open() {
            return Ok(None);
        }
        let context = RequestContext::default();
        let seat = remote.limits().seat(&context, deadline);
        let tried = remote.auth().authorize(seat, None, name, login, deadline).await?;
        let response = remote.transport().ask_base(endpoint, tried.header.clone(), deadline).await?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let reply = RawResponse { response, elsewhere: false, is_store: false, seat: None };
            verdict::judge(reply, login.is_some())?;
            return Ok(None);
        }
        let refused = Refused { status, headers: response.headers(), tried: &tried, scheme: None };
        match remote.auth().reconsider(endpoint.url().as_url(), name, login, refused).await? {
            Some(scheme) => Ok(Some(scheme)),
            None if status == StatusCode::UNAUTHORIZED => Err(verdict::UNSUITED),
            None => {
                endpoint.found_open(OPEN_FOR);
                Ok(None)
            }
        }
    }
}
