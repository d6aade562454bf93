//! A site's egress proxy: whatever host is named, it dials this machine, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1 as client;
use hyper::header::PROXY_AUTHORIZATION;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

/// Dropping it stops it.
pub(crate) struct EgressProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    running: JoinHandle<()>,
}

impl EgressProxy {
    /// Without a login.
    pub(crate) async fn start() -> Self {
        Self::build(None).await
    }

    /// For who sends this as `Proxy-Authorization`.
    pub(crate) async fn with_login(authorization: &str) -> Self {
        Self::build(Some(authorization.to_owned())).await
    }

    async fn build(login: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let (login, all) = (Arc::new(login), Arc::clone(&seen));
        let running = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (login, all) = (Arc::clone(&login), Arc::clone(&all));
                let answer = service_fn(move |request: Request<Incoming>| {
                    all.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                    let may_pass = login.as_ref().as_ref().is_none_or(|login| {
                        request.headers().get(PROXY_AUTHORIZATION).is_some_and(|sent| sent == login.as_str())
                    });
                    async move {
                        if may_pass {
                            pass(request).await
                        } else {
                            Ok(bare(StatusCode::PROXY_AUTHENTICATION_REQUIRED))
                        }
                    }
                });
                tokio::spawn(
                    server::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades(),
                );
            }
        });
        Self { address, seen, running }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Method and target of every request so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for EgressProxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn bare(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Right(Empty::new()));
    *answer.status_mut() = status;
    answer
}

async fn pass(mut request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let port = request.uri().port_u16().unwrap_or(80);
    let mut place = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    if request.method() == Method::CONNECT {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let _ = copy_bidirectional(&mut TokioIo::new(upgraded), &mut place).await;
        });
        return Ok(bare(StatusCode::OK));
    }
    let path = request.uri().path_and_query().unwrap().as_str().parse::<Uri>().unwrap();
    *request.uri_mut() = path;
    let (mut sender, connection) = client::handshake(TokioIo::new(place)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Either::Left))
}
