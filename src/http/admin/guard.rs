//! The rules for who may use the admin plane, and who may use its API.
//!
//! A client must come from this machine or from a network in `[admin] allow`, and must name a host that no web page can have
//! (`server::hosts`). The API needs a token besides, also on loopback, where any user of the machine and anything in its
//! network namespace can connect: as `Authorization: Bearer …`, and in no other way.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Response, StatusCode, Uri};
use ipnet::IpNet;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::config::Config;
use super::error::ApiError;
use super::token::{AdminToken, TOKEN_FILE, TokenFile, Unusable};
use crate::access::networks;
use crate::http::server::body::Body;
use crate::http::server::hosts;
use crate::store::Store;
use crate::telemetry::LogThrottle;
use crate::upstream::HostName;

/// The rules of one configuration for who may use the admin plane.
pub struct AdminGuard {
    allow: Vec<IpNet>,
    hosts: Vec<HostName>,
    /// The files of tokens, any of which is enough. The first is berth's own.
    tokens: Arc<[TokenFile]>,
    refused: LogThrottle,
}

impl AdminGuard {
    /// The rules of `config`, for a data folder.
    ///
    /// # Errors
    /// When `token_file` opens nothing.
    pub fn new(config: &Config, data_dir: &Path) -> anyhow::Result<Self> {
        let mut tokens = vec![TokenFile::of_data_dir(data_dir)];
        if let Some(path) = &config.token_file {
            let file = TokenFile::configured(path);
            file.read().with_context(|| format!("admin.token_file {file}"))?;
            tokens.push(file);
        }
        let Config { allow, hosts, .. } = config.clone();
        Ok(Self { allow, hosts, tokens: tokens.into(), refused: LogThrottle::default() })
    }

    /// The refusal of a request that comes from another network, or is meant for another host.
    pub(super) fn refuse(&self, peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Option<Response<Body>> {
        if !self.may_connect(peer) {
            let refusal = ApiError::new(StatusCode::FORBIDDEN, "this address is not in [admin] allow");
            let mut response = refusal.into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Some(response);
        }
        if !hosts::are_known(uri, headers, &self.hosts, |_| false) {
            let error = "expected an address, localhost or a name in [admin] hosts as the Host";
            return Some(ApiError::new(StatusCode::MISDIRECTED_REQUEST, error).into_response());
        }
        None
    }

    fn may_connect(&self, peer: IpAddr) -> bool {
        // A listener on loopback alone needs no list, and has no others.
        peer.to_canonical().is_loopback() || networks::contain(&self.allow, peer)
    }

    /// Refuses a request that does not show a token. If berth has no token of its own, one is made.
    pub(super) async fn check(
        &self,
        store: &Store,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        if let Some(shown) = bearer(headers)
            && self.is_right(shown).await
        {
            return Ok(());
        }
        // berth's own token may be gone, or could not be made so far.
        let state = self.make_token(store).await;
        if self.refused.is_due() {
            warn!(client = %peer, "a request to the admin API shows no right token");
        }
        Err(self.unauthorized(state.err()))
    }

    async fn is_right(&self, shown: String) -> bool {
        let tokens = Arc::clone(&self.tokens);
        let compared =
            spawn_blocking(move || tokens.iter().any(|file| file.read().is_ok_and(|token| token.is(&shown))));
        compared.await.unwrap_or(false)
    }

    /// Makes berth's own token if there is none.
    ///
    /// # Errors
    /// Why the token opens nothing.
    pub(super) async fn make_token(&self, store: &Store) -> Result<(), String> {
        match self.look().await {
            Ok(_) => Ok(()),
            Err(Unusable::Missing) => self.put_token(store).await,
            Err(unusable) => Err(unusable.to_string()),
        }
    }

    /// The same at the start, when a token that opens nothing, or that others may have read, is replaced.
    pub(super) async fn renew_token(&self, store: &Store) {
        let path = self.tokens[0].to_string();
        let renewed = match self.look().await {
            Ok(_) => return,
            Err(Unusable::Missing) => self.put_token(store).await,
            Err(unusable) if self.tokens[0].path().is_dir() => Err(unusable.to_string()),
            Err(unusable) => {
                warn!(path, %unusable, "the admin token is replaced by a new one");
                self.put_token(store).await
            }
        };
        match renewed {
            // The first lines of the log say where berth listens.
            Ok(()) => debug!(path, "the token of the admin API was made"),
            Err(error) => warn!(path, error, "there is no token for the admin API, which stays closed"),
        }
    }

    async fn look(&self) -> Result<AdminToken, Unusable> {
        let tokens = Arc::clone(&self.tokens);
        let look = spawn_blocking(move || tokens[0].read());
        look.await.unwrap_or_else(|fault| Err(Unusable::Unreadable(fault.into())))
    }

    async fn put_token(&self, store: &Store) -> Result<(), String> {
        let token = AdminToken::generate().map_err(|error| error.to_string())?;
        let put = store.put_secret(TOKEN_FILE, format!("{}\n", token.secret())).await;
        put.map_err(|error| error.to_string())
    }

    fn unauthorized(&self, closed: Option<String>) -> ApiError {
        let files: Vec<_> = self.tokens.iter().map(ToString::to_string).collect();
        let mut error =
            format!("expected `Authorization: Bearer …` with the token in {}", files.join(" or "));
        if let Some(reason) = closed {
            error += &format!("; {} opens nothing: {reason}", self.tokens[0]);
        }
        ApiError::new(StatusCode::UNAUTHORIZED, error)
            .with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"berth\""))
    }
}

/// The token that a request shows, which must be in one header, and one word.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (scheme, token) = line.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}
