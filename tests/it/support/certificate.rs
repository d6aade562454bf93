//! A certificate for 127.0.0.1 and localhost, with the authority that signed it, as PEM files.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

use super::process::{run, tool};

/// The files live as long as this.
pub(crate) struct Certificate {
    folder: TempDir,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut leaf = CertificateParams::new(names).unwrap();
        let good = leaf.signed_by(&key, &authority).unwrap().pem();
        leaf.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = leaf.signed_by(&key, &authority).unwrap().pem();
        let files = [
            ("ca.pem", authority.pem()),
            ("cert.pem", good),
            ("expired.pem", expired),
            ("key.pem", key.serialize_pem()),
        ];
        for (name, text) in files {
            File::create(folder.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        Self { folder }
    }

    /// One that has signed itself, as an authority, for these names: it is its own `ca`.
    pub(crate) fn self_signed(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut own = CertificateParams::new(names).unwrap();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let good = own.self_signed(&key).unwrap().pem();
        own.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = own.self_signed(&key).unwrap().pem();
        // A file of authorities is often a bundle.
        let ca = format!("{good}{expired}");
        for (name, text) in
            [("ca.pem", ca), ("cert.pem", good), ("expired.pem", expired), ("key.pem", key.serialize_pem())]
        {
            File::create(folder.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        Self { folder }
    }

    /// One that `openssl req` makes with these further arguments: it is its own `ca`.
    pub(crate) async fn of_openssl(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut openssl = tool("openssl");
        openssl.arg("req").args(args).args(["-keyout", "key.pem", "-out", "cert.pem"]);
        run(openssl.current_dir(folder.path())).await;
        std::fs::copy(folder.path().join("cert.pem"), folder.path().join("ca.pem")).unwrap();
        Self { folder }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// A server that demands certificates of these authorities, if there are any.
    pub(crate) fn server(&self, clients: &[PathBuf]) -> Arc<ServerConfig> {
        self.server_with(&self.cert(), clients)
    }

    /// One whose certificate was good until some years ago.
    pub(crate) fn expired_server(&self) -> Arc<ServerConfig> {
        self.server_with(&self.folder.path().join("expired.pem"), &[])
    }

    fn server_with(&self, certificate: &Path, clients: &[PathBuf]) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.key()).unwrap();
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.unwrap();
        if clients.is_empty() {
            return Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        }
        let mut roots = RootCertStore::empty();
        for ca in clients {
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        Arc::new(config.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
    }
}

/// A client that trusts this authority alone, and shows a certificate of its own if it has one.
pub(crate) fn client_trusting(ca: &Path, own: Option<&(PathBuf, PathBuf)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.unwrap().with_root_certificates(roots);
    let Some((certificate, key)) = own else { return Arc::new(config.with_no_client_auth()) };
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    Arc::new(config.with_client_auth_cert(chain, key).unwrap())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
