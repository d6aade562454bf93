//! TLS of the data plane: certificate, key and client CAs, read again when the files change.
//!
//! A renewal often replaces certificate and key one after the other: a pair that does not fit is reported
//! and the pair in use stays.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::{Stamp, stamp};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `[http.tls]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file of the certificate, followed by its chain.
    pub cert: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// PEM file of the CAs whose client certificates are demanded; without it none are.
    pub client_ca: Option<PathBuf>,
}

impl Config {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca)
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.files().map(|path| stamp(path)).collect()
    }

    fn load(&self) -> anyhow::Result<ServerConfig> {
        let certificates = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("http.tls.cert {}: expected PEM certificates", self.cert.display()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("http.tls.key {}: expected a PEM private key", self.key.display()))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let here = || format!("http.tls.client_ca {}: expected PEM certificates", path.display());
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(path).with_context(here)? {
                    roots.add(certificate.with_context(here)?).with_context(here)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().with_context(here)?)
            }
        };
        let mut config = builder.with_single_cert(certificates, key).with_context(|| {
            format!("http.tls: {} and {} do not belong together", self.cert.display(), self.key.display())
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificate in use.
#[derive(Clone)]
pub struct Tls {
    config: Arc<Config>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what was expected in it.
    pub fn load(config: Config) -> anyhow::Result<Self> {
        let current = Arc::new(RwLock::new(Arc::new(config.load()?)));
        Ok(Self { config: Arc::new(config), current })
    }

    /// Accepts with the certificate as it is now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads the files again whenever they change, until the process ends.
    pub async fn run(self) {
        let mut seen = self.config.stamps();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamps = self.config.stamps();
            if stamps == seen {
                continue;
            }
            seen = stamps;
            match self.config.load() {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    info!(certificate = %self.config.cert.display(), "the TLS certificate has changed and is in use");
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
}
