//! One request of a registry's API, and its answer.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, RANGE, USER_AGENT};
use http::{Method, Request, Response, request};
use http_body_util::Full;
use hyper::body::Incoming;
use url::Url;

use crate::context::RequestContext;
use crate::net::EndpointUrl;
use crate::net::user_agent::AGENT;
use crate::oci::RepoName;
use crate::remote::endpoint::latency::LateSignal;
use crate::remote::error::Error;
use crate::remote::limits::Seat;

/// What is asked.
pub(crate) struct ApiRequest<'a> {
    pub(crate) name: &'a RepoName,
    pub(crate) method: Method,
    /// Below `/v2/NAME/`.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) accept: Option<&'static str>,
    pub(crate) range: Option<String>,
    /// Whether the answer is a blob, for which other limits count.
    pub(crate) is_transfer: bool,
    /// Whether the request only finds out if the login for the repository is taken.
    pub(crate) is_login: bool,
    /// Whether a refusal needs no evidence that it is the registry's own, because the same is then asked by GET.
    pub(crate) is_tentative: bool,
    /// Whether the registry may not know the question at all, as some do not know referrers.
    pub(crate) is_optional: bool,
    /// What is known of the client's request that this is for; some of it is sent along.
    pub(crate) context: RequestContext,
    /// The signal to give when the answer is late.
    pub(crate) late: Option<&'a LateSignal>,
}

impl<'a> ApiRequest<'a> {
    /// A plain GET of `path`.
    pub(crate) fn get(name: &'a RepoName, path: String) -> Self {
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
    pub(crate) fn head(name: &'a RepoName, path: String) -> Self {
        Self { method: Method::HEAD, ..Self::get(name, path) }
    }

    /// The same request, whose refusal leads to a GET, which tells more.
    pub(crate) fn tentative(self) -> Self {
        Self { is_tentative: true, ..self }
    }

    /// The same request, made for `context`.
    pub(crate) fn along(self, context: &RequestContext) -> Self {
        Self { context: context.clone(), ..self }
    }

    /// The same request, which gives the signal `late` when its answer is late.
    pub(crate) fn telling(self, late: &'a LateSignal) -> Self {
        Self { late: Some(late), ..self }
    }

    /// A request that finds out whether the login for `name` is taken.
    pub(crate) fn login(name: &'a RepoName) -> Self {
        Self { is_login: true, ..Self::get(name, String::new()) }
    }

    /// The repository that a token must be good for, if any; `name` is what it is called there.
    pub(crate) fn scope<'n>(&self, name: &'n RepoName) -> Option<&'n RepoName> {
        (!self.is_login).then_some(name)
    }

    /// The URL of the request at this endpoint.
    pub(crate) fn url(&self, endpoint: &EndpointUrl, name: &RepoName) -> Url {
        match self.scope(name) {
            Some(name) => endpoint.at(&format!("{name}/{}", self.path), self.query.as_deref()),
            None => endpoint.at("", None),
        }
    }

    /// A GET of `url`, to find out whether anything answers there.
    pub(crate) fn look(url: &Url) -> Result<Request<Full<Bytes>>, Error> {
        body(request(Method::GET, url))
    }

    /// The HTTP request for `url`, without the headers that only the endpoint itself is sent.
    pub(crate) fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, Error> {
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

/// A 200 or 206, and what is known of it.
pub(crate) struct ApiResponse {
    pub(crate) response: Response<Incoming>,
    /// Whether the answer came without any credential.
    pub(crate) public: bool,
    /// The place among the requests at once, held until the answer is read.
    pub(crate) seat: Option<Seat>,
}

/// An answer of any status, and where it came from.
pub(crate) struct RawResponse {
    pub(crate) response: Response<Incoming>,
    pub(crate) elsewhere: bool,
    /// Whether that place is not even another registry's API.
    pub(crate) is_store: bool,
    pub(crate) seat: Option<Seat>,
}
