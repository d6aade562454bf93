//! A client that hides nothing: one connection per request, no redirects, no retries, every header as it is.
//!
//! `get(url).await` is the whole answer. `get(url).open().await` is the answer with its body still in the
//! socket, to be read in pieces, slowly, or not at all.

use std::future::IntoFuture;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use berth::oci::{Algorithm, Digest};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use url::Url;

use super::{Certificate, Pace, certificate, within_deadline};

/// A request yet to be sent.
#[derive(Clone)]
pub(crate) struct Ask {
    method: String,
    url: Url,
    headers: Vec<(String, String)>,
    body: Bytes,
    ca: Option<PathBuf>,
    /// Certificate and key of the client.
    own: Option<(PathBuf, PathBuf)>,
    /// The address of the client.
    address: Option<IpAddr>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// As far as it came.
    pub(crate) body: Bytes,
    /// Whether the body came to the end that its framing promised.
    pub(crate) complete: bool,
}

/// An answer whose body has not been read. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// What hyper has handed over but nobody has taken.
    rest: Bytes,
}

pub(crate) fn get(url: impl AsRef<str>) -> Ask {
    ask("GET", url)
}

pub(crate) fn head(url: impl AsRef<str>) -> Ask {
    ask("HEAD", url)
}

pub(crate) fn ask(method: &str, url: impl AsRef<str>) -> Ask {
    let url = Url::parse(url.as_ref()).unwrap();
    let (method, headers, body) = (method.to_owned(), Vec::new(), Bytes::new());
    Ask { method, url, headers, body, ca: None, own: None, address: None }
}

/// Sends bytes that need not be HTTP, and returns all that comes back until the other side closes.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    within_deadline("an answer to raw bytes", async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        // Either may fail when the other side has had enough; what it said until then counts.
        let _ = stream.write_all(request).await;
        let _ = stream.read_to_end(&mut answer).await;
        answer
    })
    .await
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `bytes=` and this.
    pub(crate) fn range(self, range: &str) -> Self {
        self.header("range", &format!("bytes={range}"))
    }

    pub(crate) fn basic(self, user: &str, password: &str) -> Self {
        self.header("authorization", &super::upstream::basic(user, password))
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// For an `https` URL: whom to trust.
    pub(crate) fn trusting(mut self, ca: &Path) -> Self {
        self.ca = Some(ca.to_owned());
        self
    }

    /// For an `https` URL: who asks.
    pub(crate) fn showing(mut self, certificate: &Certificate) -> Self {
        self.own = Some((certificate.cert(), certificate.key()));
        self
    }

    /// From this address of the machine.
    pub(crate) fn coming_from(mut self, address: &str) -> Self {
        self.address = Some(address.parse().unwrap());
        self
    }

    /// Sends it, and returns once the head of the answer is here.
    pub(crate) async fn open(self) -> Open {
        let what = format!("{} {}", self.method, self.url);
        self.try_open().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The same, for when there may be nobody who answers.
    pub(crate) async fn try_open(self) -> io::Result<Open> {
        let what = format!("the head of {} {}", self.method, self.url);
        within_deadline(&what, self.connect_and_send()).await
    }

    /// The whole answer, for when there may be nobody who answers.
    pub(crate) async fn try_send(self) -> io::Result<Reply> {
        Ok(self.try_open().await?.read().await)
    }

    async fn connect_and_send(self) -> io::Result<Open> {
        let address = self.url.socket_addrs(|| None)?[0];
        let socket = TcpSocket::new_v4()?;
        if let Some(own) = self.address {
            socket.bind(SocketAddr::new(own, 0))?;
        }
        let stream = socket.connect(address).await?;
        let Some(ca) = &self.ca else {
            return self.send(stream).await;
        };
        let connector = tokio_rustls::TlsConnector::from(certificate::client_trusting(ca, self.own.as_ref()));
        let name = ServerName::try_from(self.url.host_str().unwrap().to_owned()).unwrap();
        let stream = connector.connect(name, stream).await?;
        self.send(stream).await
    }

    async fn send(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Open> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when the answer has been read or dropped; an error shows in the body as well.
        tokio::spawn(connection);
        let target = &self.url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::builder().method(self.method.as_str()).uri(target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", &self.url[url::Position::BeforeHost..url::Position::AfterPort]);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).unwrap();
        let (head, body) =
            sender.send_request(request).await.map(Response::into_parts).map_err(io::Error::other)?;
        Ok(Open { status: head.status.as_u16(), headers: head.headers, body, rest: Bytes::new() })
    }
}

/// Awaiting a request sends it and reads the whole answer, which may end early but must begin.
impl IntoFuture for Ask {
    type Output = Reply;
    type IntoFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.open().await.read().await })
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body of an answer that must be this, whole, and as long as it said.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> &Bytes {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]);
        assert_eq!(self.status, status, "{body}");
        assert!(self.complete, "the body broke off after {} bytes", self.body.len());
        &self.body
    }

    /// An answer from disk that upstream could not confirm, and that says so.
    #[track_caller]
    pub(crate) fn expect_stale(&self) {
        self.expect(200);
        assert_eq!(self.header("cache-status"), Some("berth; hit; detail=stale"));
        let warning = self.header("warning").unwrap_or_default();
        assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning:?}");
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of an OCI error body.
    pub(crate) fn error_code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The digest of the body: short in a failed comparison.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.body)
    }
}

impl Open {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The next `count` bytes, or fewer where the body ends or breaks.
    pub(crate) async fn bytes(&mut self, count: usize) -> Bytes {
        let mut taken = BytesMut::with_capacity(count);
        while taken.len() < count {
            if self.rest.is_empty() {
                match self.chunk().await {
                    Some(Ok(more)) => self.rest = more,
                    Some(Err(_)) | None => break,
                }
            }
            let fits = self.rest.len().min(count - taken.len());
            taken.extend_from_slice(&self.rest.split_to(fits));
        }
        taken.freeze()
    }

    /// All that is left, as fast as it comes.
    pub(crate) async fn read(self) -> Reply {
        self.read_through(None).await
    }

    /// All that is left, at a limited pace.
    pub(crate) async fn read_at(self, bytes_per_second: u64) -> Reply {
        self.read_through(Some(Pace::new(bytes_per_second))).await
    }

    async fn read_through(mut self, mut pace: Option<Pace>) -> Reply {
        let mut body = BytesMut::from(&*self.rest);
        let complete = loop {
            match self.chunk().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(more)) => {
                    body.extend_from_slice(&more);
                    if let Some(pace) = &mut pace {
                        pace.pass(more.len()).await;
                    }
                }
            }
        };
        Reply { status: self.status, headers: self.headers, body: body.freeze(), complete }
    }

    /// The next bytes, as they come; an error where the body breaks off.
    pub(crate) async fn chunk(&mut self) -> Option<hyper::Result<Bytes>> {
        let frame = within_deadline("more of a body", self.body.frame()).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}
