//! One request to one endpoint: logging in, following redirects, and reading the status.
//!
//! A credential goes to the endpoint itself or to its token server, nowhere else: the header is dropped at the first
//! hop to another scheme, host or port and never put on again, and the refusal of such a place is not answered
//! with a login.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::auth::{self, Authorization, Refused};
use super::client::Way;
use super::error::{Error, Refusal};
use super::login::Login;
use super::server::Server;
use super::{Upstream, redirect, rename, retry};
use crate::oci::RepoName;

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
}

impl<'a> Ask<'a> {
    /// A plain GET of `path`.
    pub(super) fn get(name: &'a RepoName, path: String) -> Self {
        Self { name, method: Method::GET, path, query: None, accept: None, range: None }
    }

    /// A HEAD of `path`.
    pub(super) fn head(name: &'a RepoName, path: String) -> Self {
        Self { method: Method::HEAD, ..Self::get(name, path) }
    }

    fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(url.as_str())
            .header(USER_AGENT, AGENT)
            // A coded body would have another digest.
            .header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &self.range {
            request = request.header(RANGE, range);
        }
        request
            .body(Full::default())
            .map_err(|_| Error::Malformed("a redirect to a URL that cannot be asked"))
    }
}

/// A 200 or 206.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// Whether it came without any credential.
    pub(super) public: bool,
}

/// An answer of any status, and whether it came from another place than the endpoint.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) elsewhere: bool,
}

impl Upstream {
    /// Asks `server`, logs in if it wants that, and yields its 200 or 206.
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
        let login = self.login(name, deadline).await?;
        let answer = self.exchange_as(login.as_ref(), server, ask, name, deadline).await;
        let Some(old) = &login else { return answer };
        match answer {
            // A login that is issued for a time can end before it.
            Err(Error::LoginRefused) if self.credential.refused(old).await => {
                let new = self.login(name, deadline).await?;
                if new == login {
                    return Err(Error::LoginRefused);
                }
                self.exchange_as(new.as_ref(), server, ask, name, deadline).await
            }
            // So ECR answers when one is over: that is no word about what was asked for.
            Err(Error::Denied) if self.credential.issued().is_some_and(|issued| issued.is_over(old)) => {
                Err(Error::LoginRefused)
            }
            answer => answer,
        }
    }

    /// Who to be for `name`; may ask a cloud.
    async fn login(&self, name: &RepoName, deadline: Instant) -> Result<Option<Login>, Error> {
        let found = timeout_at(deadline, self.credential.find(&self.client, name)).await;
        found.map_err(|_| Error::Timeout)?
    }

    async fn exchange_as(
        &self,
        login: Option<&Login>,
        server: &Server,
        ask: &Ask<'_>,
        name: &RepoName,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let scheme = server.scheme();
        let mut tried =
            match self.auth.authorize(&self.client, scheme.as_ref(), Some(name), login, deadline).await {
                Ok(tried) => tried,
                Err(error) => {
                    // The token server may have moved: the next request hears of the new one.
                    server.learn(None);
                    return Err(error);
                }
            };
        let mut reply = self.follow(server, ask, name, &tried, deadline).await?;
        if !reply.elsewhere
            && matches!(reply.response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        {
            let (status, headers) = (reply.response.status(), reply.response.headers());
            let refused = Refused { status, headers, tried: &tried, scheme: scheme.as_ref() };
            let again = self.auth.reconsider(server.endpoint().as_url(), Some(name), login, refused).await?;
            if let Some(again) = again {
                tried = self.auth.authorize(&self.client, Some(&again), Some(name), login, deadline).await?;
                reply = self.follow(server, ask, name, &tried, deadline).await?;
                if scheme.as_ref() != Some(&again) {
                    server.learn(Some(again));
                }
            }
        }
        let public = !self.is_always_known && (tried.header.is_none() || login.is_none());
        judge(reply, login.is_some()).map(|response| Answer { response, public })
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
        self.admit(server, deadline).await?;
        let endpoint = server.endpoint().as_url();
        let mut url = server.endpoint().at(&format!("{name}/{}", ask.path), ask.query.as_deref());
        let mut elsewhere = false;
        let mut way = Way::Direct;
        for hop in 0..=redirect::HOPS_MAX {
            let sent_at = Instant::now();
            let within = self.client.timeouts.header.min(deadline.saturating_duration_since(Instant::now()));
            let mut request = ask.request(&url)?;
            if !elsewhere {
                self.headers.add_to(request.headers_mut());
                request.headers_mut().extend(tried.header.clone().map(|header| (AUTHORIZATION, header)));
            }
            let sent = self.client.send(way, request, within).await;
            if hop == 0 && within >= self.client.timeouts.header / BLAME_PART {
                self.note(server, &sent);
            }
            let response = sent?;
            if !elsewhere {
                self.heed(server, &response, sent_at);
            }
            if !redirect::is_redirect(response.status()) {
                return Ok(Reply { response, elsewhere });
            }
            let location =
                response.headers().get(LOCATION).ok_or(Error::Malformed("a redirect to nowhere"))?;
            url = redirect::next(&url, location)?;
            if !redirect::is_same_origin(&url, endpoint) {
                elsewhere = true;
            }
            way = redirect::way(&url, endpoint, &self.redirect_hosts);
        }
        Err(Refusal::TooManyRedirects.into())
    }

    /// Notes whether an endpoint answered. A 500 may be about one image; gateway errors are about the server.
    fn note(&self, server: &Server, sent: &Result<Response<Incoming>, Error>) {
        let is_failure = match sent {
            Ok(response) => matches!(response.status().as_u16(), 502..=504),
            Err(error) => matches!(error, Error::Timeout | Error::Unreachable { .. }),
        };
        if !is_failure {
            server.succeeded();
        } else if server.failed() {
            self.opened.notify_one();
        }
    }
}

/// What an answer's status means.
pub(super) fn judge(reply: Reply, with_login: bool) -> Result<Response<Incoming>, Error> {
    let Reply { response, elsewhere } = reply;
    let status = response.status();
    match status.as_u16() {
        200 | 206 => Ok(response),
        404 => Err(Error::NotFound),
        // What an object store refuses, such as a HEAD with a signature for GET, is not the registry's word.
        401 if !elsewhere => {
            let is_login = with_login && !auth::is_scope_refused(response.headers());
            Err(if is_login { Error::LoginRefused } else { Error::Denied })
        }
        // A page is from something in between, such as a firewall; registries explain themselves in JSON.
        403 if !elsewhere && !is_page(response.headers()) => Err(Error::Denied),
        416 => Err(Error::Changed),
        429 => Err(Error::Limited { retry_after: retry::retry_after(response.headers()) }),
        503 if let retry_after @ Some(_) = retry::retry_after(response.headers()) => {
            Err(Error::Limited { retry_after })
        }
        status => Err(Error::Unavailable { status }),
    }
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
