//! Connections to hosts: kept ones, and fresh ones for requests that a kept one has lost.
//!
//! A server may close a connection that is kept just when a request is sent on it, and something in between may forget
//! one without a word. Neither says anything about the server, so a request to which no byte of an answer came is sent
//! again, at once, once, on a connection that was never used. One that fails on its first request is not: that is the
//! server's doing. hyper itself only repeats requests that were not sent at all.

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::client::{BUFFER_BYTES_MAX, HEADERS_MAX, POOL_IDLE, POOL_IDLE_CONNECTIONS_MAX};
use super::proxy::Dialer;

type Http = legacy::Client<HttpsConnector<Dialer>, Full<Bytes>>;

/// Whether a connection has brought an answer before.
#[derive(Clone, Debug, Default)]
pub(super) struct Answered(Arc<AtomicBool>);

impl Answered {
    fn of(connected: &Connected) -> bool {
        let mut extensions = Extensions::new();
        connected.get_extras(&mut extensions);
        extensions.get::<Self>().is_some_and(|answered| answered.0.load(Ordering::Relaxed))
    }

    fn note(response: &Response<Incoming>) {
        if let Some(answered) = response.extensions().get::<Self>() {
            answered.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Sends requests on connections of one kind.
pub(super) struct Pool {
    kept: Http,
    /// Keeps none of its connections.
    fresh: Http,
}

impl Pool {
    pub(super) fn new(dialer: Dialer, tls: rustls::ClientConfig) -> Self {
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
    pub(super) async fn request(
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
