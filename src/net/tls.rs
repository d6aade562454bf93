//! What both ends of TLS need: certificates and keys as files have them, and whom to believe.
//!
//! `http` reads its own certificates with [`pem`] and judges those of clients with [`trust`]; the HTTP client is set up
//! here.

pub mod pem;
pub mod trust;
pub mod x509;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use url::Url;

use self::pem::InvalidPem;
use self::trust::{Own, ServerVerifier};
use crate::files;

/// A certificate, or a list of authorities, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path} is not {expected}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
    },
    /// A file holds no certificates or key that can be used.
    #[error("cannot use {path}: {why}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: InvalidPem,
    },
    /// The TLS library refuses its own set-up.
    #[error("cannot set up TLS")]
    Library(#[source] rustls::Error),
}

/// A configured certificate, and the file that it is in.
pub(super) struct Anchor {
    path: PathBuf,
    certificate: CertificateDer<'static>,
}

/// Trust in the system's authorities and the certificates of these files, which are given, too.
pub(super) fn client(paths: &[PathBuf]) -> Result<(rustls::ClientConfig, Vec<Anchor>), TlsSetupError> {
    let (mut roots, mut anchors) = (Arc::clone(system_roots()), Vec::new());
    for path in paths {
        let content =
            files::read(path).map_err(|source| TlsSetupError::Read { path: path.clone(), source })?;
        let wrong = |why| TlsSetupError::Pem { path: path.clone(), why };
        for (number, certificate) in (1..).zip(pem::certificates(&content).map_err(wrong)?) {
            let added = Arc::make_mut(&mut roots).add(certificate.clone());
            added.map_err(|_| wrong(InvalidPem::Damaged { number }))?;
            anchors.push(Anchor { path: path.clone(), certificate });
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsSetupError::Library)?;
    let own = Own::new(anchors.iter().map(|anchor| anchor.certificate.clone()).collect());
    let builder = match ServerVerifier::new(Arc::clone(&roots), own, provider) {
        Ok(servers) => builder.dangerous().with_custom_certificate_verifier(servers),
        // There are no authorities at all, so that no server is believed.
        Err(_) => builder.with_root_certificates(roots),
    };
    Ok((builder.with_no_client_auth(), anchors))
}

/// What is to be said of certificates that are configured for endpoints at these hosts.
pub(super) fn advise(anchors: &[Anchor], endpoints: &[Url]) -> Vec<String> {
    let over_tls = endpoints.iter().filter(|url| url.scheme() == "https");
    let hosts: Vec<_> = over_tls.filter_map(Url::host_str).collect();
    let advice = |Anchor { path, certificate }: &Anchor| {
        let advice = trust::advise(certificate, &hosts, SystemTime::now())?;
        Some(format!("the certificate in {} {advice}", path.display()))
    };
    anchors.iter().filter_map(advice).collect()
}

/// The system's authorities, read and kept once: there are many upstreams and the files are large.
fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
        }
        if loaded.certs.is_empty() {
            tracing::warn!("the system has no certificate authorities: only those of `ca` are trusted");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(loaded.certs);
        roots.into()
    })
}
