//! What every request to a remote's endpoints goes out by: its connections, the headers that the configuration adds, and
//! where it may be redirected to.

mod ping;
pub(crate) mod request;

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use url::Url;

use crate::context::RequestContext;
use crate::context::via::Instance;
use crate::net::headers::Headers;
use crate::oci::Registry;
use crate::remote::client::Client;
use crate::remote::endpoint::Endpoint;
use crate::remote::error::Error;
use crate::remote::mirror::Mirror;
use crate::remote::redirect::{RedirectChain, Redirects};

/// Sends the requests of one remote.
pub(crate) struct Transport {
    client: Arc<Client>,
    headers: Headers,
    redirects: Redirects,
    /// What is known of the remote as a mirror, if it is one.
    mirror: Option<Mirror>,
}

impl Transport {
    /// By the connections of `client`, with these headers.
    pub(crate) fn new(
        client: Arc<Client>,
        headers: Headers,
        redirects: Redirects,
        mirror: Option<Mirror>,
    ) -> Self {
        Self { client, headers, redirects, mirror }
    }

    /// The connections.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// What is known of the remote as a mirror, if it is one.
    pub(crate) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    /// The chain of redirects that begins with a request for `url` to `endpoint`.
    pub(crate) fn chain<'a>(&'a self, endpoint: &'a Endpoint, url: Url) -> RedirectChain<'a> {
        RedirectChain::new(endpoint.url().as_url(), url, &self.redirects)
    }

    /// Adds what only an endpoint of the configuration is sent: the headers that are configured, the login, and where the
    /// request has come from. A mirror is also told for whom it is asked, and that it has the time `within`.
    pub(crate) fn add_headers<B>(
        &self,
        request: &mut Request<B>,
        authorization: Option<HeaderValue>,
        context: &RequestContext,
        within: Duration,
    ) {
        self.headers.add_to(request.headers_mut());
        request.headers_mut().extend(authorization.map(|header| (AUTHORIZATION, header)));
        context.stamp(request.headers_mut());
        if self.mirror.is_some() {
            context.stamp_for_parent(request.headers_mut(), within);
        }
    }

    /// Records which berth answers, if the remote is a mirror. Returns whether one does: then an error is about what was
    /// asked for rather than about the mirror.
    pub(crate) fn note_berth(
        &self,
        (registry, endpoint): (&Registry, &Endpoint),
        sent: &Result<Response<Incoming>, Error>,
    ) -> bool {
        let (Some(mirror), Ok(response)) = (&self.mirror, sent) else { return false };
        let Some(answering) = Instance::answering(response.headers()) else { return false };
        if mirror.note_instance(answering) {
            let endpoint = endpoint.url();
            tracing::info!(%registry, %endpoint, "a parent is this very process: the registry itself is asked in its place");
        }
        true
    }
}
