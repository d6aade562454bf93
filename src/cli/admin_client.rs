//! A client of the admin API of a daemon on this machine. It finds the token in the daemon's data folder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::http::admin::types::ApiFailure;
use crate::http::admin::{AdminToken, TokenFile, Unusable};

/// Time that a response may take. None waits for work on the disk to be done, and a check of tags has a shorter limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a response.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The daemon that has the data folder.
pub(super) struct AdminClient {
    address: SocketAddr,
    /// The files that a token may be in; the first that exists is used.
    tokens: Vec<TokenFile>,
}

/// A response as it came.
struct AdminResponse {
    status: StatusCode,
    body: Bytes,
}

impl AdminClient {
    /// The daemon at the first of these addresses that accepts a connection.
    pub(super) async fn find(addresses: &[SocketAddr], config: &Config) -> anyhow::Result<Self> {
        let own = TokenFile::of_data_dir(&config.data_dir);
        let named = config.admin.token_file.as_deref().map(TokenFile::configured);
        let tokens: Vec<_> = std::iter::once(own).chain(named).collect();
        let mut failure = anyhow!("no address is known");
        for address in addresses {
            let remote = Self { address: reachable(*address), tokens: tokens.clone() };
            match remote.connect().await {
                Ok(_) => return Ok(remote),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Gets `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Has the daemon carry out `command`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        command: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.ask(Method::POST, path, serde_json::to_vec(command)?.into()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let what = format!("{method} http://{}{path}", self.address);
        let answer = timeout(ANSWER_TIMEOUT, self.ask_with_token(&method, path, body)).await;
        let answer = answer.map_err(|_| anyhow!("no answer within {ANSWER_TIMEOUT:?}")).flatten();
        answer.and_then(|answer| answer.read()).context(what)
    }

    /// A daemon that finds its token gone makes another and answers 401: then it is asked once more.
    async fn ask_with_token(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<AdminResponse> {
        let answer = self.exchange(method, path, body.clone(), self.token()?).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match self.token()? {
            Some(token) => self.exchange(method, path, body, Some(token)).await,
            None => Ok(answer),
        }
    }

    /// The token to show; `None` if no file of one exists, about which the daemon knows more.
    fn token(&self) -> anyhow::Result<Option<AdminToken>> {
        let mut failure = None;
        for file in &self.tokens {
            match file.read() {
                Ok(token) => return Ok(Some(token)),
                Err(Unusable::Missing) => {}
                Err(unusable) => failure = failure.or(Some((file, unusable))),
            }
        }
        match failure {
            None => Ok(None),
            Some((file, Unusable::Unreadable(error))) => {
                bail!("the admin token {file}: {error}: run this as the user that berth runs as")
            }
            Some((file, unusable)) => bail!("the admin token {file}: {unusable}"),
        }
    }

    /// Sends one request, on a connection of its own: they are few.
    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        token: Option<AdminToken>,
    ) -> anyhow::Result<AdminResponse> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let (head, body) = sender.send_request(request.body(Full::new(body))?).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
        Ok(AdminResponse { status: head.status, body: body.to_bytes() })
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connected = timeout(ANSWER_TIMEOUT, TcpStream::connect(self.address)).await;
        connected.map_err(anyhow::Error::from).and_then(|it| Ok(it?)).context(self.address.to_string())
    }
}

impl AdminResponse {
    /// Reads the body, or the failure that it tells.
    fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let Self { status, body } = self;
        let failure = || {
            serde_json::from_slice(body)
                .map_or_else(|_| "not an answer of berth's".to_owned(), |ApiFailure { error }| error)
        };
        ensure!(status.is_success(), "{status}: {}", failure());
        serde_json::from_slice(body).context("not an answer of berth's")
    }
}

/// The address of a listener as seen from this machine: one that listens everywhere names no address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_for_everywhere_is_asked_here() {
        let check = |listens: &str, asked: &str| {
            assert_eq!(reachable(listens.parse().unwrap()), asked.parse().unwrap(), "{listens}");
        };
        check("0.0.0.0:5001", "127.0.0.1:5001");
        check("[::]:5001", "[::1]:5001");
        check("10.0.0.7:5001", "10.0.0.7:5001");
    }
}
