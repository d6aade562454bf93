//! One request to one endpoint: logging in, following redirects, and reading the status.
//!
//! A credential goes to the endpoint itself or to its token server, nowhere else: the header is dropped at the first
//! hop to another scheme, host or port and never put on again, and the refusal of such a place is not answered
//! with a login, but at most with a token that it gives to anybody.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, RANGE, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::auth::{Anybody, Authorization, Refused, Scheme};
use super::error::{Error, Refusal};
use super::hedge::Late;
use super::limit::Seat;
use super::listing::optional;
use super::login::Login;
use super::redirect::Walk;
use super::server::Server;
use super::silence::stuck;
use super::{Upstream, door, redirect, rename};
use crate::context::RequestContext;
use crate::oci::{Repo, RepoName};

pub(super) use super::verdict::judge;

/// How berth names itself to upstreams.
pub(super) const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// A timeout says something about an endpoint only if it had at least this part of the usual time.
const BLAME_PART: u32 = 4;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) name: &'a RepoName,
    pub(super) method: Method,
    /// Below `/v2/NAME/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<String>,
    /// Whether it brings a blob, which has limits of its own.
    pub(super) is_transfer: bool,
    /// Whether nothing of the repository is asked for, but whether its login is taken.
    pub(super) is_login: bool,
    /// Whether a refusal need not be proven to be the registry's own: the same is asked again by GET then.
    pub(super) is_tentative: bool,
    /// Whether the registry may not know the question at all, as some know no referrers.
    pub(super) is_optional: bool,
    /// Where the request has come from; the endpoint is told.
    pub(super) context: RequestContext,
    /// Who is told when the endpoint is late.
    pub(super) late: Option<&'a Late>,
}

impl<'a> Ask<'a> {
    /// A plain GET of `path`.
    pub(super) fn get(name: &'a RepoName, path: String) -> Self {
        let (method, context) = (Method::GET, RequestContext::default());
        Self {
            name,
            method,
            path,
            query: None,
            accept: None,
            range: None,
            is_transfer: false,
            is_login: false,
            is_tentative: false,
            is_optional: false,
            context,
            late: None,
        }
    }

    /// A HEAD of `path`.
    pub(super) fn head(name: &'a RepoName, path: String) -> Self {
        Self { method: Method::HEAD, ..Self::get(name, path) }
    }

    /// The same, if a refusal leads to a GET, which tells more.
    pub(super) fn tentative(self) -> Self {
        Self { is_tentative: true, ..self }
    }

    /// The same on behalf of somebody who may have been passed on.
    pub(super) fn along(self, context: &RequestContext) -> Self {
        Self { context: context.clone(), ..self }
    }

    /// The same, telling when the endpoint is late.
    pub(super) fn telling(self, late: &'a Late) -> Self {
        Self { late: Some(late), ..self }
    }

    /// Whether the login for `name` is taken, whatever it may be used for.
    pub(super) fn login(name: &'a RepoName) -> Self {
        Self { is_login: true, ..Self::get(name, String::new()) }
    }

    /// The repository that a token must be good for; `name` as upstream has it.
    fn scope<'n>(&self, name: &'n RepoName) -> Option<&'n RepoName> {
        (!self.is_login).then_some(name)
    }

    fn url(&self, server: &Server, name: &RepoName) -> Url {
        match self.scope(name) {
            Some(name) => server.endpoint().at(&format!("{name}/{}", self.path), self.query.as_deref()),
            None => server.endpoint().at("", None),
        }
    }

    /// Whether anything is at `url` that answers.
    pub(super) fn look(url: &Url) -> Result<Request<Full<Bytes>>, Error> {
        body(request(Method::GET, url))
    }

    fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = request(self.method.clone(), url);
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &self.range {
            request = request.header(RANGE, range);
        }
        body(request)
    }
}

fn request(method: Method, url: &Url) -> request::Builder {
    let request = Request::builder().method(method).uri(url.as_str());
    // A coded body would have another digest.
    request.header(USER_AGENT, AGENT).header(ACCEPT_ENCODING, "identity")
}

fn body(request: request::Builder) -> Result<Request<Full<Bytes>>, Error> {
    request.body(Full::default()).map_err(|_| Error::Malformed("a redirect to a URL that cannot be asked"))
}

/// A 200 or 206.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// Whether it came without any credential.
    pub(super) public: bool,
    /// Its share of the upstream's limit, until the answer is read.
    pub(super) seat: Option<Seat>,
}

/// An answer of any status, and whether it came from another place than the endpoint's API.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) elsewhere: bool,
    /// Whether that place is not even another registry's API.
    pub(super) is_store: bool,
    pub(super) seat: Option<Seat>,
}

impl Upstream {
    /// Asks `server`, logs in if it wants that, and yields its 200 or 206. A login that it is known to refuse is not
    /// tried.
    pub(super) async fn exchange(
        &self,
        server: &Server,
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        if self.client.is_offline() {
            // Nor is a cloud asked for a login.
            return Err(Error::Offline);
        }
        let name = &*rename::at_upstream(&self.rewrites, ask.name)?;
        let Some(login) = self.login(name, deadline).await? else {
            // What a request to an endpoint takes is on the heap: futures are moved before they run.
            return Box::pin(self.exchange_as(None, server, ask, name, deadline)).await;
        };
        if server.refuses(&login.identity()) {
            return Err(Error::LoginRefused);
        }
        let (login, answer) = Box::pin(self.exchange_anew(login, server, ask, name, deadline)).await?;
        match &answer {
            Err(Error::LoginRefused) => {
                if server.login_refused(login.identity(), ask.name) {
                    self.opened.notify_one();
                }
            }
            // Its word about what was asked for: it has taken the login.
            Ok(Answer { public: false, .. }) | Err(Error::NotFound | Error::Denied) => {
                server.login_accepted(&login.identity());
            }
            Ok(_) | Err(_) => {}
        }
        answer
    }

    /// The same, and again with the next login if this one was issued for a time and is refused; with the login that
    /// was used last.
    async fn exchange_anew(
        &self,
        login: Login,
        server: &Server,
        ask: &Ask<'_>,
        name: &RepoName,
        deadline: Instant,
    ) -> Result<(Login, Result<Answer, Error>), Error> {
        let answer = self.exchange_as(Some(&login), server, ask, name, deadline).await;
        match answer {
            // A login that is issued for a time can end before it.
            Err(Error::LoginRefused) if self.credential.refused(&login).await => {
                let new = self.login(name, deadline).await?;
                let Some(new) = new.filter(|new| *new != login) else {
                    return Ok((login, Err(Error::LoginRefused)));
                };
                let answer = self.exchange_as(Some(&new), server, ask, name, deadline).await;
                Ok((new, answer))
            }
            // So ECR answers when one is over: that is no word about what was asked for.
            Err(Error::Denied) if self.credential.issued().is_some_and(|issued| issued.is_over(&login)) => {
                Ok((login, Err(Error::LoginRefused)))
            }
            answer => Ok((login, answer)),
        }
    }

    /// Who to be for `name`; may ask a cloud.
    pub(super) async fn login(&self, name: &RepoName, deadline: Instant) -> Result<Option<Login>, Error> {
        let found = timeout_at(deadline, self.credential.find(&self.client, name)).await;
        Ok(found.map_err(|_| Error::Timeout)??)
    }

    /// The same with this login, whatever is known of it; `name` as upstream has it.
    pub(super) async fn exchange_as(
        &self,
        login: Option<&Login>,
        server: &Server,
        ask: &Ask<'_>,
        name: &RepoName,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let scheme = server.scheme();
        let scope = ask.scope(name);
        let authorize = async |scheme: Option<&Scheme>| {
            let seat = self.seat(&ask.context, deadline);
            match self.auth.authorize(&self.client, seat, scheme, scope, login, deadline).await {
                // Where something answers in the registry's place, it may do so in the token server's, too.
                Err(Error::Denied) if !self.is_registry(server, deadline).await => {
                    Err(Error::NotFromRegistry { status: StatusCode::FORBIDDEN.as_u16() })
                }
                authorized => authorized,
            }
        };
        let mut tried = match authorize(scheme.as_ref()).await {
            Ok(tried) => tried,
            Err(error) => {
                // The token server may have moved: the next request hears of the new one.
                server.learn(None);
                return Err(error);
            }
        };
        let mut reply = self.follow(server, ask, name, &tried, deadline).await?;
        let is_refused = matches!(reply.response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let mut again = None;
        if !reply.elsewhere && is_refused {
            // Whoever has a seat never waits for another.
            reply.seat = None;
            let (status, headers) = (reply.response.status(), reply.response.headers());
            let refused = Refused { status, headers, tried: &tried, scheme: scheme.as_ref() };
            again = self.auth.reconsider(server.endpoint().as_url(), scope, login, refused).await?;
        }
        if again.is_none() && !ask.is_login && login.is_some() && tried.is_anybody() && door::says_no(&reply)
        {
            reply.seat = None;
            again = self.scheme_at_door(server, scheme.as_ref(), scope, login, deadline).await?;
        }
        if let Some(again) = again {
            tried = authorize(Some(&again)).await?;
            reply = self.follow(server, ask, name, &tried, deadline).await?;
            if scheme.as_ref() != Some(&again) {
                server.learn(Some(again));
            }
        }
        let public = !self.is_always_known && (tried.header.is_none() || login.is_none());
        let seat = reply.seat.take();
        ask.context.answered();
        let judged = if login.is_some() && tried.is_anybody() && door::is_unasked_for(&reply) {
            Err(door::UNSUITED)
        } else if ask.is_optional {
            optional::judge(reply, login.is_some(), (self.client.timeouts.idle, deadline)).await
        } else {
            self.judged(server, ask, reply, (&tried, login), deadline).await
        };
        self.heard(ask, judged, (public, seat))
    }

    /// What a parent says besides is heard.
    fn heard(
        &self,
        ask: &Ask<'_>,
        judged: Result<Response<Incoming>, Error>,
        (public, seat): (bool, Option<Seat>),
    ) -> Result<Answer, Error> {
        let Some(peer) = self.peer() else {
            let judged = match judged {
                // Nobody but a parent is asked for more registries than its own.
                Err(Error::UnknownRegistry) => Err(Error::NotFound),
                judged => judged,
            };
            return judged.map(|response| Answer { response, public, seat });
        };
        match judged {
            // Of one that is listed it is told by asking for it.
            Err(Error::UnknownRegistry) if !self.registry.is_unlisted() => Err(Error::NotFound),
            Err(Error::UnknownRegistry) => {
                peer.unknown().note(&self.registry);
                Err(Error::UnknownRegistry)
            }
            Ok(response) => {
                let repo = Repo::new(self.registry.clone(), ask.name.clone());
                let public = peer.hear(repo, response.headers(), public);
                Ok(Answer { response, public, seat })
            }
            // What a berth cannot get now says nothing about how often it may be asked.
            Err(Error::Limited { .. }) if peer.is_berth() => Err(Error::Unavailable { status: 503 }),
            Err(error) => Err(error),
        }
    }

    /// Sends the request, and again wherever it is redirected to.
    async fn follow(
        &self,
        server: &Server,
        ask: &Ask<'_>,
        name: &RepoName,
        tried: &Authorization,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let url = self.with_namespace(ask.url(server, name));
        let path = url.path().to_owned();
        let seat = self.admit(server, &path, !ask.is_transfer, &ask.context, deadline).await?;
        let mut walk = Walk::new(server.endpoint().as_url(), url, &self.redirects);
        walk.is_of_blob = ask.is_transfer;
        // What a redirect's target gives to anybody, while it is that which is asked.
        let mut anybody: Option<Anybody> = None;
        for hop in 0..=redirect::HOPS_MAX {
            let sent_at = Instant::now();
            let within = self.client.timeouts.header.min(deadline.saturating_duration_since(Instant::now()));
            let mut request = ask.request(&walk.url)?;
            if !walk.elsewhere {
                self.headers.add_to(request.headers_mut());
                request.headers_mut().extend(tried.header.clone().map(|header| (AUTHORIZATION, header)));
                self.stamp(&ask.context, &mut request, within);
            } else if let Some(anybody) = &anybody {
                anybody.add_to(&walk.url, request.headers_mut());
            }
            let sent = match hop {
                0 => {
                    let silent = (self.silence(server, ask.late), stuck(server, &ask.method));
                    self.client.send_unless(silent, walk.way, request, within).await
                }
                _ => self.client.send(walk.way, request, within).await,
            };
            let is_berth = !walk.elsewhere && self.meets_berth(server, &sent);
            if is_berth {
                server.waited(sent_at.elapsed());
                server.succeeded();
            } else if hop == 0 && within >= self.client.timeouts.header / BLAME_PART {
                self.note(server, &sent, sent_at.elapsed());
            }
            let response = sent?;
            if !walk.elsewhere && !is_berth {
                self.heed(server, &path, &response, sent_at);
            }
            if redirect::is_redirect(response.status()) {
                walk.on(response.headers())?;
                continue;
            }
            if walk.elsewhere && response.status() == StatusCode::UNAUTHORIZED {
                let (headers, sent) = (response.headers(), anybody.take());
                anybody = self.auth.anybody_at(&self.client, &walk, headers, sent, deadline).await?;
                if anybody.is_some() {
                    continue;
                }
            }
            return Ok(Reply { response, elsewhere: walk.elsewhere, is_store: walk.is_store, seat });
        }
        Err(Refusal::TooManyRedirects.into())
    }

    /// Says to an endpoint of the configuration where a request has come from.
    pub(super) fn stamp<B>(&self, context: &RequestContext, request: &mut Request<B>, within: Duration) {
        context.stamp(request.headers_mut());
        if self.peer().is_some() {
            context.stamp_for_parent(request.headers_mut(), within);
        }
    }

    /// A mirror of many registries is told which one is meant.
    fn with_namespace(&self, mut url: Url) -> Url {
        if self.peer().is_some() {
            url.query_pairs_mut().append_pair("ns", self.registry.as_str());
        }
        url
    }

    /// Has an endpoint looked at that may be of no use at all.
    pub(super) fn doubt(&self, server: &Server) {
        if server.doubt() {
            self.opened.notify_one();
        }
    }

    /// Notes whether an endpoint answered, and after what time. A 5xx may be about one image or repository: a look at
    /// the endpoint decides. What this machine lacks says nothing about the endpoint.
    fn note(&self, server: &Server, sent: &Result<Response<Incoming>, Error>, wait: Duration) {
        match sent {
            Ok(response) if matches!(response.status().as_u16(), 502..=504) => return self.doubt(server),
            // Says nothing about the server; `doubt` finds out.
            Ok(response) if response.status().is_server_error() || is_portal(response) => return,
            Err(Error::Local { .. } | Error::Busy { .. }) => return,
            Err(error @ (Error::Timeout | Error::Unreachable { .. })) => {
                if server.failed(error) {
                    self.opened.notify_one();
                }
                return;
            }
            Ok(_) | Err(_) => {}
        }
        server.waited(wait);
        server.succeeded();
    }
}

/// Whether something in between answers with a page whatever is asked for. Registries have pages for refusals only.
pub(super) fn is_portal(response: &Response<Incoming>) -> bool {
    response.status().is_success() && is_page(response.headers())
}

/// Whether an answer is one that a registry can give, whatever it is asked for.
pub(super) fn is_usable(response: &Response<Incoming>) -> bool {
    let status = response.status();
    let is_of_proxy = status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    !status.is_server_error() && !is_of_proxy && !is_portal(response)
}

/// Whether an answer is made for people.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media_type| {
        media_type.eq_ignore_ascii_case("text/html")
            || media_type.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// `Content-Type` without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim())
}
