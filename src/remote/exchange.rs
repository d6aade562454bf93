//! One request to one endpoint: logging in, following redirects, and reading the status.
//!
//! A credential goes to the endpoint itself or to its token server, nowhere else: the header is dropped at the first
//! hop to another scheme, host or port and never put on again, and the refusal of such a place is not answered
//! with a login, but at most with a token that it gives to anybody.

mod door;
pub(crate) mod optional;
mod silence;
pub(crate) mod verdict;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::credentials::login::Login;
use crate::oci::{Repo, RepoName};
use crate::remote::auth::{self, Anybody, Authorization, Refused, Scheme};
use crate::remote::endpoint::Endpoint;
use crate::remote::error::{Error, Refusal};
use crate::remote::exchange::silence::{silence, stuck};
use crate::remote::exchange::verdict::{UNSUITED, is_unasked_for, refusal, says_no};
use crate::remote::handle::Remote;
use crate::remote::redirect;
use crate::remote::transport::request::{ApiRequest, ApiResponse, RawResponse};

/// A timeout counts against an endpoint only if it had at least this fraction (1/n) of the header timeout.
const BLAME_PART: u32 = 4;

/// One endpoint of a remote, to be asked.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    remote: &'a Remote,
    endpoint: &'a Endpoint,
}

impl<'a> Target<'a> {
    /// An endpoint of this remote.
    pub(crate) fn new(remote: &'a Remote, endpoint: &'a Endpoint) -> Self {
        Self { remote, endpoint }
    }

    /// The remote of the endpoint.
    pub(crate) fn remote(self) -> &'a Remote {
        self.remote
    }

    /// The endpoint.
    pub(crate) fn endpoint(self) -> &'a Endpoint {
        self.endpoint
    }

    /// Asks the endpoint, logs in if it wants that, and yields its 200 or 206. A login that it is known to refuse is not
    /// tried.
    ///
    /// # Errors
    /// [`Error`]: what the answer means, or what kept the request from being sent.
    pub(crate) async fn exchange(
        self,
        ask: &ApiRequest<'_>,
        deadline: Instant,
    ) -> Result<ApiResponse, Error> {
        if self.remote.is_offline() {
            // Nor is a cloud asked for a login.
            return Err(Error::Offline);
        }
        let name = &*self.remote.name_there(ask.name)?;
        let exchange = Exchange::new(self, ask, name, deadline);
        let Some(login) = self.remote.auth().login(name, deadline).await? else {
            // What a request to an endpoint takes is on the heap: futures are moved before they run.
            return Box::pin(exchange.run(None)).await;
        };
        let endpoint = self.endpoint;
        if endpoint.refuses(&login.identity()) {
            return Err(Error::LoginRefused);
        }
        let (login, answer) = Box::pin(exchange.run_with(login)).await?;
        match &answer {
            Err(Error::LoginRefused) => endpoint.login_refused(login.identity(), ask.name),
            // That is about what was asked for: the endpoint has taken the login.
            Ok(ApiResponse { public: false, .. }) | Err(Error::NotFound | Error::Denied) => {
                endpoint.login_accepted(&login.identity());
            }
            Ok(_) | Err(_) => {}
        }
        answer
    }
}

/// One request to one endpoint, in the course of logging in and being redirected.
#[derive(Clone, Copy)]
pub(crate) struct Exchange<'a> {
    remote: &'a Remote,
    endpoint: &'a Endpoint,
    ask: &'a ApiRequest<'a>,
    /// What the repository is called there.
    name: &'a RepoName,
    deadline: Instant,
}

impl<'a> Exchange<'a> {
    /// The request `ask` to this endpoint; `name` is what the repository is called there.
    pub(crate) fn new(
        target: Target<'a>,
        ask: &'a ApiRequest<'a>,
        name: &'a RepoName,
        deadline: Instant,
    ) -> Self {
        let Target { remote, endpoint } = target;
        Self { remote, endpoint, ask, name, deadline }
    }

    /// The remote that is asked.
    pub(crate) fn remote(&self) -> &'a Remote {
        self.remote
    }

    /// The endpoint that is asked.
    pub(crate) fn endpoint(&self) -> &'a Endpoint {
        self.endpoint
    }

    /// When it must have its answer.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The repository that a token must be good for.
    pub(crate) fn scope(&self) -> Option<&'a RepoName> {
        self.ask.scope(self.name)
    }

    /// Asks with `login`, and again with the next one if this one was issued for a time and is refused; with the login
    /// that was used last.
    async fn run_with(&self, login: Login) -> Result<(Login, Result<ApiResponse, Error>), Error> {
        let answer = self.run(Some(&login)).await;
        let auth = self.remote.auth();
        match answer {
            // A login that is issued for a time can end before it.
            Err(Error::LoginRefused) if auth.login_refused(&login).await => {
                let new = auth.login(self.name, self.deadline).await?;
                let Some(new) = new.filter(|new| *new != login) else {
                    return Ok((login, Err(Error::LoginRefused)));
                };
                let answer = self.run(Some(&new)).await;
                Ok((new, answer))
            }
            // So ECR answers when one is over: that is no word about what was asked for.
            Err(Error::Denied) if auth.is_over(&login) => Ok((login, Err(Error::LoginRefused))),
            answer => Ok((login, answer)),
        }
    }

    /// Asks with this login, even if the endpoint is known to reject it.
    ///
    /// # Errors
    /// As [`Target::exchange`].
    pub(crate) async fn run(&self, login: Option<&Login>) -> Result<ApiResponse, Error> {
        let (endpoint, ask, scope) = (self.endpoint, self.ask, self.scope());
        let scheme = endpoint.scheme();
        let mut tried = match self.authorize(scheme.as_ref(), login).await {
            Ok(tried) => tried,
            Err(error) => {
                // The token server may have moved: the next request learns where to.
                endpoint.set_scheme(None);
                return Err(error);
            }
        };
        let mut reply = self.follow(&tried).await?;
        let is_refused = matches!(reply.response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let mut again = None;
        if !reply.elsewhere && is_refused {
            // A request that has a seat never waits for another.
            reply.seat = None;
            let (status, headers) = (reply.response.status(), reply.response.headers());
            let refused = Refused { status, headers, tried: &tried, scheme: scheme.as_ref() };
            again = self.remote.auth().reconsider(endpoint.url().as_url(), scope, login, refused).await?;
        }
        if again.is_none() && !ask.is_login && login.is_some() && tried.is_anybody() && says_no(&reply) {
            reply.seat = None;
            again = self.scheme_at_door(scheme.as_ref(), login).await?;
        }
        if let Some(again) = again {
            tried = self.authorize(Some(&again), login).await?;
            reply = self.follow(&tried).await?;
            if scheme.as_ref() != Some(&again) {
                endpoint.set_scheme(Some(again));
            }
        }
        let public = !self.remote.is_always_known() && (tried.header.is_none() || login.is_none());
        let seat = reply.seat.take();
        ask.context.answered();
        let judged = if login.is_some() && tried.is_anybody() && is_unasked_for(&reply) {
            Err(UNSUITED)
        } else if ask.is_optional {
            let idle = self.remote.transport().client().timeouts.idle;
            optional::judge(reply, login.is_some(), (idle, self.deadline)).await
        } else {
            self.judge(reply, (&tried, login)).await
        };
        let (response, public) = self.heard(judged, public)?;
        Ok(ApiResponse { response, public, seat })
    }

    /// What to send the request with; may ask the token server.
    async fn authorize(
        &self,
        scheme: Option<&Scheme>,
        login: Option<&Login>,
    ) -> Result<Authorization, Error> {
        let (remote, deadline) = (self.remote, self.deadline);
        let seat = remote.limits().seat(&self.ask.context, deadline);
        match remote.auth().authorize(seat, scheme, self.scope(), login, deadline).await {
            // Where something answers in the registry's place, it may do so in the token server's, too.
            Err(Error::Denied)
                if !remote.transport().is_registry((remote.registry(), self.endpoint), deadline).await =>
            {
                Err(Error::NotFromRegistry { status: StatusCode::FORBIDDEN.as_u16() })
            }
            authorized => authorized,
        }
    }

    /// Sends the request, and again wherever it is redirected to.
    async fn follow(&self, tried: &Authorization) -> Result<RawResponse, Error> {
        let Self { remote, endpoint, ask, deadline, .. } = *self;
        let (transport, limits) = (remote.transport(), remote.limits());
        let client = transport.client();
        let mut url = ask.url(endpoint.url(), self.name);
        if transport.mirror().is_some() {
            // A mirror of many registries is told which one is meant.
            url.query_pairs_mut().append_pair("ns", remote.registry().as_str());
        }
        let path = url.path().to_owned();
        let seat = limits.admit(endpoint, &path, !ask.is_transfer, &ask.context, deadline).await?;
        let mut chain = transport.chain(endpoint, url);
        chain.is_of_blob = ask.is_transfer;
        // The token that the target of a redirect gives to anybody, while that target is asked.
        let mut anybody: Option<Anybody> = None;
        for hop in 0..=redirect::HOPS_MAX {
            let sent_at = Instant::now();
            let within = client.timeouts.header.min(deadline.saturating_duration_since(Instant::now()));
            let mut request = ask.request(&chain.url)?;
            if !chain.elsewhere {
                transport.add_headers(&mut request, tried.header.clone(), &ask.context, within);
            } else if let Some(anybody) = &anybody {
                anybody.add_to(&chain.url, request.headers_mut());
            }
            let sent = match hop {
                0 => {
                    let silent = (silence(endpoint, ask.late), stuck(endpoint, &ask.method));
                    client.send_unless(silent, chain.way, request, within).await
                }
                _ => client.send(chain.way, request, within).await,
            };
            let is_berth = !chain.elsewhere && transport.note_berth((remote.registry(), endpoint), &sent);
            if is_berth {
                endpoint.waited(sent_at.elapsed());
                endpoint.succeeded();
            } else if hop == 0 && within >= client.timeouts.header / BLAME_PART {
                endpoint.heard(&sent, sent_at.elapsed());
            }
            let response = sent?;
            if !chain.elsewhere && !is_berth {
                limits.apply_headers(endpoint, &path, &response, sent_at);
            }
            if redirect::is_redirect(response.status()) {
                chain.follow(response.headers())?;
                continue;
            }
            if chain.elsewhere && response.status() == StatusCode::UNAUTHORIZED {
                let (headers, sent) = (response.headers(), anybody.take());
                anybody = remote.auth().anybody_at(&chain, headers, sent, deadline).await?;
                if anybody.is_some() {
                    continue;
                }
            }
            return Ok(RawResponse { response, elsewhere: chain.elsewhere, is_store: chain.is_store, seat });
        }
        Err(Refusal::TooManyRedirects.into())
    }

    /// What an answer means; a refusal only if it is the registry that refuses.
    async fn judge(
        &self,
        reply: RawResponse,
        (tried, login): (&Authorization, Option<&Login>),
    ) -> Result<Response<Incoming>, Error> {
        let (status, headers) = (reply.response.status(), reply.response.headers());
        if !reply.elsewhere && auth::is_token_refused(tried, status, headers) {
            return Err(Error::TokenRefused);
        }
        let Some(error) = refusal(&reply, login.is_some()) else { return Ok(reply.response) };
        let Self { remote, endpoint, deadline, .. } = *self;
        // A berth means what it says to HEAD, but something else may have answered in its place.
        let is_left_to_get = self.ask.is_tentative && !remote.is_berth();
        let at = (remote.registry(), endpoint);
        if error.is_outage()
            || is_left_to_get
            || remote.transport().is_registrys_word(at, reply.response, deadline).await
        {
            return Err(error);
        }
        Err(Error::NotFromRegistry { status: status.as_u16() })
    }

    /// Records what a mirror says besides. Returns the answer, and whether its content is for everybody.
    fn heard(
        &self,
        judged: Result<Response<Incoming>, Error>,
        public: bool,
    ) -> Result<(Response<Incoming>, bool), Error> {
        let registry = self.remote.registry();
        let Some(mirror) = self.remote.mirror() else {
            let judged = match judged {
                // Only a parent is asked for registries other than its own.
                Err(Error::UnknownRegistry) => Err(Error::NotFound),
                judged => judged,
            };
            return judged.map(|response| (response, public));
        };
        match judged {
            // A registry that is listed is asked for again, so that it is known when the parent knows it.
            Err(Error::UnknownRegistry) if !registry.is_unlisted() => Err(Error::NotFound),
            Err(Error::UnknownRegistry) => {
                mirror.note_unknown(registry);
                Err(Error::UnknownRegistry)
            }
            Ok(response) => {
                let repo = Repo::new(registry.clone(), self.ask.name.clone());
                let public = mirror.note_public(repo, response.headers(), public);
                Ok((response, public))
            }
            // What a berth cannot get now says nothing about how often it may be asked.
            Err(Error::Limited { .. }) if mirror.is_berth() => Err(Error::Unavailable { status: 503 }),
            Err(error) => Err(error),
        }
    }
}
