//! `GET /v2/`, without a login: whether an endpoint answers at all, and whether a registry does.
//!
//! Two questions are answered by it. A probe wants to know whether the endpoint is of any use. A refusal wants to know
//! whether it was the registry that refused (`evidence`): an ingress that has lost its backend, a firewall or a proxy
//! answers 404 or 403 in the registry's place, for seconds or for good, and that must not make an image that is stored
//! here one that does not exist. So a refusal is believed only if there is evidence that it is the registry's: its body is an error
//! as the distribution spec has it, or `/v2/` is answered with 200 or 401 as registries do. Media types decide nothing:
//! there are registries that refuse with pages, and ingresses that refuse with JSON.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::RequestContext;
use crate::context::via::Instance;
use crate::net::DialPolicy;
use crate::oci::Registry;
use crate::oci::error::is_error_body;
use crate::remote::client;
use crate::remote::endpoint::Endpoint;
use crate::remote::error::{Error, Refusal};
use crate::remote::message;
use crate::remote::redirect;
use crate::remote::transport::Transport;
use crate::remote::transport::request::ApiRequest;

/// Bytes of the longest body that is read of a refusal or of `/v2/`. The errors of registries have a few hundred.
const BODY_BYTES_MAX: usize = 64 * 1024;

impl Transport {
    /// The answer of `/v2/`, wherever that is redirected to. Records which berth it is, if the remote is a mirror.
    async fn ping(
        &self,
        (registry, endpoint): (&Registry, &Endpoint),
        within: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let mut chain = self.chain(endpoint, endpoint.url().at("", None));
        for _ in 0..=redirect::HOPS_MAX {
            let mut request = ApiRequest::look(&chain.url)?;
            if !chain.elsewhere {
                self.add_headers(&mut request, None, &RequestContext::default(), within);
            }
            // Half of the time is left for another connection than a kept one that may have been forgotten on the way.
            let stuck = (pending(), sleep(within / 2));
            let sent = self.client().send_unless(stuck, chain.way, request, within).await;
            self.note_berth((registry, endpoint), &sent);
            let response = sent?;
            if !redirect::is_redirect(response.status()) {
                return Ok(response);
            }
            chain.follow(response.headers())?;
        }
        Err(Refusal::TooManyRedirects.into())
    }

    /// The answer of `/v2/` to a request with this header; redirects are not followed.
    pub(crate) async fn ask_base(
        &self,
        endpoint: &Endpoint,
        authorization: Option<HeaderValue>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Error> {
        let header = self.client().timeouts.header;
        let mut request = ApiRequest::look(&endpoint.url().at("", None))?;
        self.add_headers(&mut request, authorization, &RequestContext::default(), header);
        let within = header.min(deadline.saturating_duration_since(Instant::now()));
        self.client().send(DialPolicy::Direct, request, within).await
    }

    /// Whether an endpoint says anything that is neither the error of a gateway or of a broken server, nor the page of
    /// something in between, be it by way of a redirect. Registries ask for a login with pages, too. `None` if this
    /// machine lacks what it takes to ask.
    pub(crate) async fn answers(&self, at: (&Registry, &Endpoint), within: Duration) -> Option<bool> {
        let (_, endpoint) = at;
        let response = match self.ping(at, within).await {
            Ok(response) => response,
            Err(Error::Local { .. }) => return None,
            Err(error) => return endpoint.is_useless(&error.to_string()),
        };
        let status = response.status();
        match message::is_usable(&response) {
            true => Some(true),
            false => endpoint.is_useless(&format!("it answers everything with {status}, or a page")),
        }
    }

    /// Whether the registry itself has refused by `response`. May read its body, and may ask for `/v2/`.
    pub(crate) async fn is_registrys_word(
        &self,
        at: (&Registry, &Endpoint),
        response: Response<Incoming>,
        deadline: Instant,
    ) -> bool {
        if self.mirror().is_some() && Instance::answering(response.headers()).is_some() {
            // A berth has asked for the evidence itself.
            return true;
        }
        let (_, endpoint) = at;
        let until = deadline.min(Instant::now() + endpoint.look_within());
        let idle = self.client().timeouts.idle;
        match client::read(response.into_body(), BODY_BYTES_MAX, idle, until).await {
            Ok(body) if is_error_body(&body) => true,
            _ => self.is_registry(at, deadline).await,
        }
    }

    /// Whether a registry answers at `/v2/`, as far as that is known in time. One request asks for all.
    pub(crate) async fn is_registry(&self, at: (&Registry, &Endpoint), deadline: Instant) -> bool {
        let (_, endpoint) = at;
        let looked = async {
            let within = endpoint.look_within().min(self.client().timeouts.header);
            let until = deadline.min(Instant::now() + within);
            match self.ping(at, within).await {
                Ok(response) => {
                    let status = response.status();
                    let body = client::read(response.into_body(), BODY_BYTES_MAX, within, until).await;
                    body.is_ok_and(|body| speaks_for_registry(status, &body))
                }
                Err(_) => false,
            }
        };
        timeout_at(deadline, endpoint.evidence().get(looked)).await.unwrap_or(false)
    }
}

/// Whether this is how a registry answers `/v2/`. With 200 portals and sign-on pages answer, too; a registry's body is
/// JSON or nothing, whatever it is labelled.
fn speaks_for_registry(status: StatusCode, body: &Bytes) -> bool {
    match status {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::OK => !body.trim_ascii_start().starts_with(b"<"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_known_by_how_it_answers_its_base() {
        let check = |status: u16, body: &'static str, expected: bool| {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                speaks_for_registry(status, &Bytes::from_static(body.as_bytes())),
                expected,
                "{status} {body}"
            );
        };
        check(200, "", true);
        check(200, "{}", true);
        check(200, "true", true);
        check(200, "\n <!doctype html><title>Log in</title>", false);
        check(401, "<html>who are you?</html>", true);
        check(401, "", true);
        check(403, "{}", false);
        check(404, "404 page not found", false);
        check(204, "", false);
        check(503, "{}", false);
    }
}
