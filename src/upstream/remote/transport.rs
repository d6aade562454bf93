//! What every request to a remote's endpoints goes out by: its connections, the headers that the configuration adds, and
//! where it may be redirected to.

mod ping;
pub(in crate::upstream) mod request;

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use url::Url;

use crate::context::RequestContext;
use crate::context::via::Instance;
use crate::oci::Registry;
use crate::upstream::client::Client;
use crate::upstream::headers::Headers;
use crate::upstream::remote::endpoint::Endpoint;
use crate::upstream::remote::error::Error;
use crate::upstream::remote::mirror::Mirror;
use crate::upstream::remote::redirect::{RedirectChain, Redirects};

/// Sends the requests of one remote.
pub(in crate::upstream) struct Transport {
    client: Arc<Client>,
    headers: Headers,
    redirects: Redirects,
    /// What is known of the remote as a mirror, if it is one.
    mirror: Option<Mirror>,
}

impl Transport {
    /// By the connections of `client`, with these headers.
    pub(in crate::upstream) fn new(
        client: Arc<Client>,
        headers: Headers,
        redirects: Redirects,
        mirror: Option<Mirror>,
    ) -> Self {
        Self { client, headers, redirects, mirror }
    }

    /// The connections.
    pub(in crate::upstream) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// What is known of the remote as a mirror, if it is one.
    pub(in crate::upstream) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    /// The chain of redirects that begins with a request for `url` to `endpoint`.
    pub(in crate::upstream) fn chain<'a>(&'a self, endpoint: &'a Endpoint, url: Url) -> RedirectChain<'a> {
        RedirectChain::new(endpoint.url().as_url(), url, &self.redirects)
    }

    /// Adds what only an endpoint of the configuration is sent: the headers that are configured, the login, and where the
    /// request has come from. A mirror is also told for whom it is asked, and that it has the time `within`.
    pub(in crate::upstream) fn dress<B>(
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
    pub(in crate::upstream) fn note_berth(
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
