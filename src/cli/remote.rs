//! A client of the admin plane of a daemon on this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take; none waits for work on the disk to be done, and a check of tags has a shorter limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The daemon that has the data folder.
pub(super) struct Remote {
    address: SocketAddr,
}

/// What the admin plane says when it does not do what it was asked.
#[derive(Deserialize)]
struct Failure {
    error: String,
}

impl Remote {
    /// The first of these addresses where somebody listens.
    pub(super) async fn find(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut failure = anyhow!("no address is known");
        for address in addresses {
            let remote = Self { address: reachable(*address) };
            match remote.connect().await {
                Ok(_) => return Ok(remote),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// What there is to know at `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Has `command` carried out.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        command: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.ask(Method::POST, path, serde_json::to_vec(command)?.into()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let what = format!("{method} http://{}{path}", self.address);
        let answer = timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await;
        answer.map_err(|_| anyhow!("no answer within {ANSWER_TIMEOUT:?}")).flatten().context(what)
    }

    /// Each on a connection of its own: they are few.
    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
        let body = body.to_bytes();
        if !head.status.is_success() {
            let failure = serde_json::from_slice(&body).map(|Failure { error }| error);
            bail!("{}: {}", head.status, failure.unwrap_or_else(|_| "not an answer of berth's".to_owned()));
        }
        serde_json::from_slice(&body).context("not an answer of berth's")
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connected = timeout(ANSWER_TIMEOUT, TcpStream::connect(self.address)).await;
        connected.map_err(anyhow::Error::from).and_then(|it| Ok(it?)).context(self.address.to_string())
    }
}

/// Where a listener can be reached from this machine: one that listens everywhere names no address.
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
