//! TLS of the data plane: certificate, key and client CAs, which are read again when the files change.
//!
//! A renewal often replaces certificate and key one after the other: a pair that does not fit is reported
//! and the pair in use stays.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use anyhow::{Context as _, anyhow};
use rustls::crypto::ring;
use rustls::server::ServerConfig;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::files;
use crate::net::pem;
use crate::net::trust::{ClientVerifier, Own};
use crate::watch::Watch;

/// `[http.tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file of the certificate, followed by its chain.
    pub cert: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// PEM file of the CAs for client certificates. If it is set, every client must have one of these.
    pub client_ca: Option<PathBuf>,
}

impl Config {
    fn files(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    fn load(&self) -> anyhow::Result<ServerConfig> {
        let here = || format!("http.tls.cert {}", self.cert.display());
        let content = files::read(&self.cert).with_context(here)?;
        let certificates = pem::certificates(&content).with_context(here)?;
        let here = || format!("http.tls.key {}", self.key.display());
        let content = files::read(&self.key).with_context(here)?;
        let key = pem::private_key(&content).with_context(here)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let here = || format!("http.tls.client_ca {}", path.display());
                let content = files::read(path).with_context(here)?;
                let own = Own::new(pem::certificates(&content).with_context(here)?);
                let clients =
                    ClientVerifier::new(own, provider).map_err(|error| anyhow!(error)).with_context(here)?;
                builder.with_client_cert_verifier(clients)
            }
        };
        let mut config = builder.with_single_cert(certificates, key).with_context(|| {
            format!("http.tls: {} and {} do not belong together", self.cert.display(), self.key.display())
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificate in use. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<TlsState>);

struct TlsState {
    current: RwLock<Certificate>,
    /// Notified when other files are in use.
    replaced: Notify,
}

struct Certificate {
    config: Config,
    server: Arc<ServerConfig>,
}

/// A certificate that was read and found to be good, and is not in use yet.
pub struct Next(Certificate);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what was expected in it.
    pub fn load(config: Config) -> anyhow::Result<Self> {
        let Next(current) = Next::load(config)?;
        Ok(Self(Arc::new(TlsState { current: RwLock::new(current), replaced: Notify::new() })))
    }

    /// Uses other files from the next handshake on.
    pub fn replace(&self, Next(next): Next) {
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.0.replaced.notify_one();
    }

    /// The acceptor of the next handshake, with the certificate as it is now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.read().server))
    }

    /// Reads the files again whenever they change, until the process ends.
    pub async fn run(self) {
        loop {
            let config = self.read().config.clone();
            tokio::select! {
                () = self.follow(config) => {}
                () = self.0.replaced.notified() => {}
            }
        }
    }

    async fn follow(&self, config: Config) {
        let mut watch = Watch::new(config.files());
        loop {
            watch.changed().await;
            match config.load() {
                Ok(server) => {
                    let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
                    // Otherwise other files are in use by now.
                    if current.config == config {
                        current.server = Arc::new(server);
                        info!(certificate = %config.cert.display(), "the TLS certificate has changed and is in use");
                    }
                }
                Err(error) => {
                    warn!(
                        error = format!("{error:#}"),
                        "the TLS certificate has changed and cannot be used; the one before stays"
                    );
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Certificate> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Next {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what was expected in it.
    pub fn load(config: Config) -> anyhow::Result<Self> {
        let server = Arc::new(config.load()?);
        Ok(Self(Certificate { config, server }))
    }
}
