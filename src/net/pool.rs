//! Connections to hosts: kept ones, and fresh ones for requests that a kept one has lost.
//!
//! A server may close a connection that is kept just when a request is sent on it, and something in between may forget
//! one without a word. Neither says anything about the server, so a request to which no byte of an answer came is sent
//! again, at once, once, on a connection that was never used. One that fails on its first request is not: that is the
//! server's doing. hyper itself only repeats requests that were not sent at all.

use std::error::Error as _;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::proxy::{Answered, Dialer};

/// Longer than the pauses within one pull, shorter than what registries' front ends allow.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// As many layers as a few nodes fetch at once.
const POOL_IDLE_CONNECTIONS_MAX: usize = 32;
/// Bounds the head of an answer, and how much of a body is read at once.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Most headers of an answer; registries behind CDNs send thirty.
const HEADERS_MAX: usize = 128;

type Http = legacy::Client<HttpsConnector<Dialer>, Full<Bytes>>;

/// Sends requests on connections of one kind.
pub(crate) struct Pool {
    kept: Http,
    /// Keeps none of its connections.
    fresh: Http,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, tls: rustls::ClientConfig) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(dialer);
        let build = |idle_max: usize| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(idle_max)
                .http1_max_buf_size(BUFFER_BYTES_MAX)
                .http1_max_headers(HEADERS_MAX)
                .build(connector.clone())
        };
        Self { kept: build(POOL_IDLE_CONNECTIONS_MAX), fresh: build(0) }
    }

    /// The head of the answer. If the request turns out to be `stuck`, a connection that was used before is given up.
    pub(crate) async fn request(
        &self,
        mut request: Request<Full<Bytes>>,
        stuck: impl Future<Output = ()>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        if !request.method().is_safe() {
            return self.kept.request(request).await;
        }
        let again = request.clone();
        let connection = capture_connection(&mut request);
        let mut asked = pin!(self.kept.request(request));
        let answer = tokio::select! {
            answer = asked.as_mut() => answer,
            () = stuck => match is_kept(&connection) {
                true => return self.fresh.request(again).await,
                false => asked.await,
            },
        };
        match answer {
            Ok(response) => {
                Answered::note(&response);
                Ok(response)
            }
            Err(error) if is_lost(&error) => self.fresh.request(again).await,
            Err(error) => Err(error),
        }
    }
}

/// Whether the connection that a request is on has brought an answer before.
fn is_kept(connection: &CaptureConnection) -> bool {
    connection.connection_metadata().as_ref().is_some_and(Answered::of)
}

/// Whether a connection that was used before has ended under a request. What it has sent was no answer, then.
fn is_lost(error: &legacy::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
    let is_nonsense = cause.is_some_and(|cause| cause.is_parse() || cause.is_user());
    error.connect_info().is_some_and(Answered::of) && !is_nonsense
}
