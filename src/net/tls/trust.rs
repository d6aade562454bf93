//! Whom to believe in TLS: the authorities of the system and of the configuration, and what these are themselves.
//!
//! A certificate that *is* one of the configured ones needs nobody's signature. Many are made by `openssl req -x509`, which
//! makes authorities of them, so chains never lead to them; all other clients of registries accept them nevertheless. That
//! gives nothing away: whoever has the key of an authority can sign a certificate for any name. Dates and names count all
//! the same.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::x509::{self, Facts};

/// Certificates of the configuration, which are trusted as authorities and by themselves.
#[derive(Clone, Debug, Default)]
pub struct Own(Vec<CertificateDer<'static>>);

impl Own {
    /// These.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self(certificates)
    }

    /// Whether a certificate is one of them; whether it is good now is another question.
    ///
    /// # Errors
    /// What is the matter with one that is.
    fn has(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Option<Result<(), Error>> {
        self.0.iter().any(|own| own == certificate).then(|| check_dates(certificate, now))
    }
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let facts = x509::read(certificate).ok_or(CertificateError::BadEncoding)?;
    let [from, until] = [facts.from, facts.until].map(x509::unix);
    let stamp = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    if now.as_secs() < from {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: stamp(from) }.into());
    }
    if now.as_secs() > until {
        return Err(CertificateError::ExpiredContext { time: now, not_after: stamp(until) }.into());
    }
    Ok(())
}

/// Believes servers.
#[derive(Debug)]
pub struct ServerVerifier {
    chains: Arc<WebPkiServerVerifier>,
    own: Own,
}

impl ServerVerifier {
    /// Believes those that an authority of `roots` answers for, and `own` themselves.
    ///
    /// # Errors
    /// When there are no roots.
    pub fn new(
        roots: Arc<RootCertStore>,
        own: Own,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, VerifierBuilderError> {
        let chains = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Arc::new(Self { chains, own }))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chained = self.chains.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let Err(error) = chained else { return chained };
        match self.own.has(certificate, now) {
            Some(own) => {
                own?;
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            None => Err(explain(certificate, now).unwrap_or(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Believes clients.
#[derive(Debug)]
pub struct ClientVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    own: Own,
}

impl ClientVerifier {
    /// Believes those that one of `own` answers for, and `own` themselves.
    ///
    /// # Errors
    /// When one of them cannot be an authority, or there is none.
    pub fn new(
        own: Own,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, Box<dyn StdError + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in &own.0 {
            roots.add(certificate.clone())?;
        }
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Arc::new(Self { chains, own }))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chained = self.chains.verify_client_cert(certificate, intermediates, now);
        match (chained, self.own.has(certificate, now)) {
            (Err(_), Some(own)) => own.map(|()| ClientCertVerified::assertion()),
            (chained, _) => chained,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// A server that shows an authority's own certificate, which is not a configured one.
struct Unknown;

/// The library shows it so.
impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "it is the certificate of an authority, as `openssl req -x509` makes it: that very certificate must be in a \
             file of `ca`",
        )
    }
}

impl StdError for Unknown {}

/// Says it better than the library, where that can be done.
fn explain(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<Error> {
    let facts = x509::read(certificate)?;
    let is_it = facts.is_authority && facts.is_self_issued() && check_dates(certificate, now).is_ok();
    is_it.then(|| CertificateError::Other(OtherError(Arc::new(Unknown))).into())
}

/// What is the matter with a configured certificate that looks as if it were the very one of a server at one of `hosts`,
/// and how to make a right one.
pub fn advise(certificate: &CertificateDer<'_>, hosts: &[&str], now: SystemTime) -> Option<String> {
    let facts = x509::read(certificate)?;
    let host = hosts.first()?;
    if !facts.is_self_issued() {
        return None;
    }
    let is_for = |host: &&str| {
        let name = ServerName::try_from(host.trim_matches(['[', ']'])).ok();
        let parsed = ParsedCertificate::try_from(certificate).ok();
        parsed.zip(name).is_some_and(|(parsed, name)| verify_server_name(&parsed, &name).is_ok())
    };
    let is_for_one = hosts.iter().any(is_for);
    let what = if is_for_one || is_meant_for(&facts, hosts) {
        match (now < facts.from, now > facts.until) {
            (true, _) => format!("is not good before {}", humantime::format_rfc3339_seconds(facts.from)),
            (_, true) => format!("has expired on {}", humantime::format_rfc3339_seconds(facts.until)),
            _ if is_for_one => return None,
            _ => "has no subjectAltName, without which no client takes it for that of a server".to_owned(),
        }
    } else if facts.has_names {
        format!("is for other hosts than {}", hosts.join(", "))
    } else {
        return None;
    };
    let host = host.trim_matches(['[', ']']);
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    Some(format!(
        "{what}; if a server there shows it as its own, it is refused. This makes a right one: openssl req -x509 -newkey \
         rsa:4096 -nodes -days 365 -subj /CN={host} -addext subjectAltName={kind}:{host} -keyout key.pem -out cert.pem"
    ))
}

/// Whether one without names was made for one of these hosts: it stands in its subject, where clients once looked.
fn is_meant_for(facts: &Facts<'_>, hosts: &[&str]) -> bool {
    !facts.has_names && hosts.iter().any(|host| facts.is_subject(host.trim_matches(['[', ']'])))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
    use rustls::crypto::ring;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "r.example");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        params
    }

    fn authority(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = params(names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn servers(own: &[CertificateDer<'static>]) -> Arc<ServerVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(own.iter().cloned());
        ServerVerifier::new(roots.into(), Own::new(own.to_vec()), ring::default_provider().into()).unwrap()
    }

    fn verify(own: &[CertificateDer<'static>], shown: &CertificateDer<'_>, name: &str) -> Result<(), String> {
        let name = ServerName::try_from(name).unwrap();
        let now = UnixTime::since_unix_epoch(NOW);
        let verified = servers(own).verify_server_cert(shown, &[], &name, &[], now);
        verified.map(|_| ()).map_err(|error| error.to_string())
    }

    /// A3.
    #[test]
    fn a_configured_certificate_is_its_own_anchor_for_its_names_and_dates() {
        let own = authority(&["r.example", "127.0.0.1"], |_| {});
        let check = |shown: &CertificateDer<'static>,
                     own: &[CertificateDer<'static>],
                     name: &str,
                     expected: &str| {
            let verified = verify(own, shown, name);
            match verified {
                Ok(()) => assert_eq!(expected, "", "{name}"),
                Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{name}: {error}"),
            }
        };
        let other = authority(&["r.example"], |_| {});
        let both = [other.clone(), own.clone()];
        check(&own, &both, "r.example", "");
        check(&own, &both, "127.0.0.1", "");
        check(&own, &both, "s.example", "not valid for name");
        check(&own, std::slice::from_ref(&other), "r.example", "must be in a file of `ca`");
        let over = authority(&["r.example"], |params| params.not_after = date_time_ymd(2021, 1, 1));
        check(&over, std::slice::from_ref(&over), "r.example", "expired");
        check(&over, std::slice::from_ref(&other), "r.example", "expired");
        let early = authority(&["r.example"], |params| params.not_before = date_time_ymd(2039, 1, 1));
        check(&early, std::slice::from_ref(&early), "r.example", "not valid yet");
        let nameless = authority(&[], |_| {});
        check(&nameless, std::slice::from_ref(&nameless), "r.example", "not valid for");

        // One that somebody else has signed, of whom nothing is known.
        let key = KeyPair::generate().unwrap();
        let mut issuer = params(&[]);
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(issuer, KeyPair::generate().unwrap()).unwrap();
        let leaf = params(&["r.example"]).signed_by(&key, &issuer).unwrap().der().clone();
        check(&leaf, std::slice::from_ref(&leaf), "r.example", "");
        check(&leaf, std::slice::from_ref(&leaf), "s.example", "not valid for name");
        check(&leaf, std::slice::from_ref(&own), "r.example", "invalid peer certificate");
    }

    #[test]
    fn a_client_may_show_a_configured_certificate_itself() {
        let own = authority(&[], |_| {});
        let over = authority(&[], |params| params.not_after = date_time_ymd(2021, 1, 1));
        let clients =
            ClientVerifier::new(Own::new(vec![own.clone(), over.clone()]), ring::default_provider().into())
                .unwrap();
        let is_believed = |shown: &CertificateDer<'_>| {
            clients.verify_client_cert(shown, &[], UnixTime::since_unix_epoch(NOW)).is_ok()
        };
        assert!(is_believed(&own));
        assert!(!is_believed(&over));
        assert!(!is_believed(&authority(&[], |_| {})));
    }

    #[test]
    fn a_certificate_that_cannot_work_is_told_with_how_to_make_one() {
        let check = |certificate: CertificateDer<'static>, hosts: &[&str], expected: Option<&str>| {
            let advice = advise(&certificate, hosts, SystemTime::UNIX_EPOCH + NOW);
            match (&advice, expected) {
                (Some(advice), Some(expected)) => assert!(advice.contains(expected), "{advice}"),
                (advice, expected) => assert_eq!(advice.as_deref(), expected),
            }
        };
        check(authority(&["r.example"], |_| {}), &["s.example", "r.example"], None);
        check(authority(&["127.0.0.1"], |_| {}), &["127.0.0.1"], None);
        check(authority(&["s.example"], |_| {}), &["r.example"], Some("is for other hosts than r.example; "));
        check(authority(&[], |_| {}), &["r.example"], Some("-addext subjectAltName=DNS:r.example"));
        check(authority(&["x.example"], |_| {}), &["127.0.0.1"], Some("-addext subjectAltName=IP:127.0.0.1"));
        let over = |params: &mut CertificateParams| params.not_after = date_time_ymd(2021, 1, 1);
        check(authority(&["r.example"], over), &["r.example"], Some("has expired on 2021-01-01T00:00:00Z"));
        // An authority as any other, whose servers show what it has signed.
        check(authority(&[], |_| {}), &["s.example"], None);
        check(authority(&[], over), &["s.example"], None);
        check(authority(&["r.example"], |_| {}), &[], None);
    }
}
