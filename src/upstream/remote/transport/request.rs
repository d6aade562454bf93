//! One request of a registry's API, and its answer.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, RANGE, USER_AGENT};
use http::{Method, Request, Response, request};
use http_body_util::Full;
use hyper::body::Incoming;
use url::Url;

use crate::context::RequestContext;
use crate::oci::RepoName;
use crate::upstream::config::Endpoint;
use crate::upstream::remote::endpoint::latency::Late;
use crate::upstream::remote::error::Error;
use crate::upstream::remote::limits::Seat;
use crate::upstream::remote::message::AGENT;

/// What is asked.
pub(in crate::upstream) struct Ask<'a> {
    pub(in crate::upstream) name: &'a RepoName,
    pub(in crate::upstream) method: Method,
    /// Below `/v2/NAME/`.
    pub(in crate::upstream) path: String,
    pub(in crate::upstream) query: Option<String>,
    pub(in crate::upstream) accept: Option<&'static str>,
    pub(in crate::upstream) range: Option<String>,
    /// Whether it brings a blob, which has limits of its own.
    pub(in crate::upstream) is_transfer: bool,
    /// Whether nothing of the repository is asked for, but whether its login is taken.
    pub(in crate::upstream) is_login: bool,
    /// Whether a refusal need not be proven to be the registry's own: the same is asked again by GET then.
    pub(in crate::upstream) is_tentative: bool,
    /// Whether the registry may not know the question at all, as some know no referrers.
    pub(in crate::upstream) is_optional: bool,
    /// Where the request has come from; the endpoint is told.
    pub(in crate::upstream) context: RequestContext,
    /// Who is told when the endpoint is late.
    pub(in crate::upstream) late: Option<&'a Late>,
}

impl<'a> Ask<'a> {
    /// A plain GET of `path`.
    pub(in crate::upstream) fn get(name: &'a RepoName, path: String) -> Self {
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
    pub(in crate::upstream) fn head(name: &'a RepoName, path: String) -> Self {
        Self { method: Method::HEAD, ..Self::get(name, path) }
    }

    /// The same, if a refusal leads to a GET, which tells more.
    pub(in crate::upstream) fn tentative(self) -> Self {
        Self { is_tentative: true, ..self }
    }

    /// The same on behalf of somebody who may have been passed on.
    pub(in crate::upstream) fn along(self, context: &RequestContext) -> Self {
        Self { context: context.clone(), ..self }
    }

    /// The same, telling when the endpoint is late.
    pub(in crate::upstream) fn telling(self, late: &'a Late) -> Self {
        Self { late: Some(late), ..self }
    }

    /// Whether the login for `name` is taken, whatever it may be used for.
    pub(in crate::upstream) fn login(name: &'a RepoName) -> Self {
        Self { is_login: true, ..Self::get(name, String::new()) }
    }

    /// The repository that a token must be good for; `name` as upstream has it.
    pub(in crate::upstream) fn scope<'n>(&self, name: &'n RepoName) -> Option<&'n RepoName> {
        (!self.is_login).then_some(name)
    }

    /// Where it is asked at this endpoint.
    pub(in crate::upstream) fn url(&self, endpoint: &Endpoint, name: &RepoName) -> Url {
        match self.scope(name) {
            Some(name) => endpoint.at(&format!("{name}/{}", self.path), self.query.as_deref()),
            None => endpoint.at("", None),
        }
    }

    /// Whether anything is at `url` that answers.
    pub(in crate::upstream) fn look(url: &Url) -> Result<Request<Full<Bytes>>, Error> {
        body(request(Method::GET, url))
    }

    /// The request for `url`, without what only some places are sent.
    pub(in crate::upstream) fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, Error> {
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
pub(in crate::upstream) struct Answer {
    pub(in crate::upstream) response: Response<Incoming>,
    /// Whether it came without any credential.
    pub(in crate::upstream) public: bool,
    /// Its share of the upstream's limit, until the answer is read.
    pub(in crate::upstream) seat: Option<Seat>,
}

/// An answer of any status, and whether it came from another place than the endpoint's API.
pub(in crate::upstream) struct Reply {
    pub(in crate::upstream) response: Response<Incoming>,
    pub(in crate::upstream) elsewhere: bool,
    /// Whether that place is not even another registry's API.
    pub(in crate::upstream) is_store: bool,
    pub(in crate::upstream) seat: Option<Seat>,
}
