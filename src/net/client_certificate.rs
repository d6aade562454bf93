//! The certificate by which berth is known to an upstream, read again when its files change.
//!
//! Only the endpoints themselves are shown it, never a redirect's target. What came from an upstream that wants one
//! counts as private, as if it had come with a login.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use serde::Deserialize;

use super::tls::{TlsSetupError, pem};
use crate::files;
use crate::watch::Watch;

/// `client_certificate`: what berth shows to the endpoints of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// PEM file of the certificate, followed by its chain.
    pub cert: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
}

/// A certificate with its key, as the files have it now.
pub(crate) struct WatchedCertificate {
    files: ClientCertificate,
    current: RwLock<Arc<CertifiedKey>>,
}

impl WatchedCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsSetupError`] names the file and what was expected in it.
    pub(crate) fn load(files: &ClientCertificate) -> Result<Arc<Self>, TlsSetupError> {
        let current = RwLock::new(Arc::new(read(files)?));
        Ok(Arc::new(Self { files: files.clone(), current }))
    }

    /// Reads the files again whenever they change, for ever. A pair that does not fit stays unused: a renewal often
    /// replaces one after the other.
    pub(crate) async fn watch(&self) {
        let mut watch = Watch::new(vec![self.files.cert.clone(), self.files.key.clone()]);
        loop {
            watch.changed().await;
            let certificate = self.files.cert.display();
            match read(&self.files) {
                Ok(current) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
                    tracing::info!(%certificate, "a client certificate has changed and is in use");
                }
                Err(error) => {
                    tracing::warn!(%certificate, %error, "a client certificate has changed and cannot be used; the one before stays");
                }
            }
        }
    }
}

fn read(pair: &ClientCertificate) -> Result<CertifiedKey, TlsSetupError> {
    let content = |path: &Path| {
        files::read(path).map_err(|source| TlsSetupError::Read { path: path.to_owned(), source })
    };
    let wrong = |path: &Path, why| TlsSetupError::Pem { path: path.to_owned(), why };
    let chain = pem::certificates(&content(&pair.cert)?).map_err(|why| wrong(&pair.cert, why))?;
    let key = pem::private_key(&content(&pair.key)?).map_err(|why| wrong(&pair.key, why))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|_| TlsSetupError::Content {
        path: pair.key.clone(),
        expected: "the private key of `client_certificate.cert`",
    })
}

impl fmt::Debug for WatchedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.files, f)
    }
}

impl ResolvesClientCert for WatchedCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
