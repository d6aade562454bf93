//! A registry of a few lines: it notes every request and answers as a closure says.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// `http://` and the host that was asked.
    pub(super) fn base(&self) -> String {
        format!("http://{}", self.header("host").unwrap())
    }
}

/// How a body ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Clean,
    Stall,
    Flush,
    Cut,
}

/// What to answer.
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    length: Option<u64>,
    end: End,
    hang: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        Self { status, headers: Vec::new(), body, length, end: End::Clean, hang: false }
    }

    pub(super) fn ok(body: impl Into<Bytes>) -> Self {
        Self::new(200, body)
    }

    /// Never answers.
    pub(super) fn hang() -> Self {
        Self { hang: true, ..Self::ok("") }
    }

    pub(super) fn redirect(location: &str) -> Self {
        Self::new(307, "").with("location", location)
    }

    /// 401 with a challenge.
    pub(super) fn challenge(challenge: &str) -> Self {
        Self::new(401, r#"{"errors":[]}"#).with("www-authenticate", challenge)
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends the body in chunks, without saying its length.
    pub(super) fn without_length(mut self) -> Self {
        self.length = None;
        self
    }

    /// Claims `length` bytes, sends the body, and then nothing more.
    pub(super) fn stalling(self, length: u64) -> Self {
        Self { length: Some(length), end: End::Stall, ..self }
    }

    /// Claims `length` bytes, sends the body, and then closes the connection.
    pub(super) fn cut(self, length: u64) -> Self {
        Self { length: Some(length), end: End::Flush, ..self }
    }
}

struct FakeBody {
    data: Option<Bytes>,
    length: Option<u64>,
    end: End,
}

impl Body for FakeBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match (self.data.take(), self.end) {
            (Some(data), _) => Poll::Ready(Some(Ok(Frame::data(data)))),
            (None, End::Clean) => Poll::Ready(None),
            (None, End::Stall) => Poll::Pending,
            // What came before leaves first.
            (None, End::Flush) => {
                self.end = End::Cut;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            (None, End::Cut) => Poll::Ready(Some(Err(io::Error::other("cut")))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A running server; it ends with this value.
pub(super) struct Fake {
    addr: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(handler), None).await
    }

    /// A server with TLS, and its certificate in PEM.
    pub(super) async fn start_tls(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> (Self, String) {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Self::listen(Arc::new(handler), Some(acceptor)).await, certified.cert.pem())
    }

    async fn listen(handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Arc::default();
        let task = tokio::spawn(accept(listener, handler, tls, Arc::clone(&seen)));
        Self { addr, scheme, seen, task }
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    pub(super) fn port(&self) -> u16 {
        self.addr.port()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had a path that begins so.
    pub(super) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.starts_with(path)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    handler: Handler,
    tls: Option<TlsAcceptor>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (handler, tls, seen) = (Arc::clone(&handler), tls.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &handler, &seen));
            // How a connection ends is the client's business.
            let _ = match tls {
                None => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
                }
            };
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: &Handler,
    seen: &Mutex<Vec<Seen>>,
) -> Result<Response<FakeBody>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let request = Seen {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    seen.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    if reply.hang {
        std::future::pending::<()>().await;
    }
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(FakeBody { data: Some(reply.body), length: reply.length, end: reply.end }).unwrap())
}
