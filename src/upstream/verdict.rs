//! What an answer of any status means.
//!
//! A refusal is the registry's own only if somebody spoke for it (`ping`). Everything else is an outage: what is known
//! already may be served.

use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::auth::{self, Authorization};
use super::error::Error;
use super::exchange::{Ask, Reply};
use super::login::Login;
use super::server::Server;
use super::{Upstream, path_pauses, retry};
use crate::context;
use crate::context::via::Instance;

impl Upstream {
    /// What an answer means; a refusal only if it is the registry that refuses.
    pub(super) async fn judged(
        &self,
        server: &Server,
        ask: &Ask<'_>,
        reply: Reply,
        (tried, login): (&Authorization, Option<&Login>),
        deadline: Instant,
    ) -> Result<Response<Incoming>, Error> {
        let (status, headers) = (reply.response.status(), reply.response.headers());
        if !reply.elsewhere && auth::is_token_refused(tried, status, headers) {
            return Err(Error::TokenRefused);
        }
        let Some(error) = refusal(&reply, login.is_some()) else { return Ok(reply.response) };
        // A berth means what it says to HEAD, but something else may have answered in its place.
        let is_left_to_get = ask.is_tentative && !self.is_berth();
        if error.is_outage()
            || is_left_to_get
            || self.is_registrys_word(server, reply.response, deadline).await
        {
            return Err(error);
        }
        Err(Error::NotFromRegistry { status: status.as_u16() })
    }
}

/// What an answer's status means.
pub(super) fn judge(reply: Reply, with_login: bool) -> Result<Response<Incoming>, Error> {
    refusal(&reply, with_login).map_or(Ok(reply.response), Err)
}

/// What an answer says in the place of content; `None` if it is content.
fn refusal(reply: &Reply, with_login: bool) -> Option<Error> {
    let Reply { response, elsewhere, is_store, .. } = reply;
    let status = response.status();
    Some(match status.as_u16() {
        200 | 206 => return None,
        // What a store lacks or refuses, such as a HEAD with a signature for GET or one that has expired, is not the
        // registry's word: that was to ask there.
        404 if !elsewhere && context::is_unknown_registry(response.headers()) => Error::UnknownRegistry,
        404 if !is_store => Error::NotFound,
        401 if !elsewhere => {
            let is_login = with_login && !auth::is_scope_refused(response.headers());
            if is_login { Error::LoginRefused } else { Error::Denied }
        }
        403 if !elsewhere => Error::Denied,
        416 => Error::Changed,
        508 if !elsewhere && Instance::answering(response.headers()).is_some() => Error::Loop,
        429 => Error::Limited { retry_after: retry::retry_after(response.headers()) },
        503 if let Some(wait) = retry::retry_after(response.headers()) => {
            Error::Limited { retry_after: Some(wait.min(path_pauses::PAUSE_MAX)) }
        }
        status => Error::Unavailable { status },
    })
}
