//! What every request to a remote's endpoints goes out by: its connections, the headers that the configuration adds, and
//! where it may be redirected to.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use url::Url;

use super::client::Client;
use super::config::Config;
use super::error::Error;
use super::headers::Headers;
use super::mirror::Mirror;
use super::redirect::{Redirects, Walk};
use super::server::Server;
use crate::context::RequestContext;
use crate::context::via::Instance;
use crate::oci::Registry;

/// Sends the requests of one remote.
pub(super) struct Sender {
    client: Arc<Client>,
    headers: Headers,
    redirects: Redirects,
    /// What is known of the remote as a mirror, if it is one.
    mirror: Option<Mirror>,
}

impl Sender {
    /// As `config` says, by the connections of `client`.
    pub(super) fn new(config: &Config, client: Arc<Client>, mirror: Option<Mirror>) -> Self {
        Self { client, headers: config.headers.clone(), redirects: Redirects::new(config), mirror }
    }

    /// The connections.
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// What is known of the remote as a mirror, if it is one.
    pub(super) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    /// A request for `url` on its way to wherever `server` redirects it.
    pub(super) fn walk<'a>(&'a self, server: &'a Server, url: Url) -> Walk<'a> {
        Walk::new(server.endpoint().as_url(), url, &self.redirects)
    }

    /// Adds what only an endpoint of the configuration is sent: the headers that are configured, the login, and where the
    /// request has come from. A mirror is also told for whom it is asked, and that it has the time `within`.
    pub(super) fn dress<B>(
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

    /// Notes which berth answers, if the remote is a mirror. Returns whether one does: then an error is about what was
    /// asked for rather than about the mirror.
    pub(super) fn note_berth(
        &self,
        (registry, server): (&Registry, &Server),
        sent: &Result<Response<Incoming>, Error>,
    ) -> bool {
        let (Some(mirror), Ok(response)) = (&self.mirror, sent) else { return false };
        let Some(answering) = Instance::answering(response.headers()) else { return false };
        if mirror.note_instance(answering) {
            let endpoint = server.endpoint();
            tracing::info!(%registry, %endpoint, "a parent is this very process: the registry itself is asked in its place");
        }
        true
    }
}
