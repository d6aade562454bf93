//! Certificates and private keys in PEM, as people and `cat` make them. Pure.
//!
//! Bundles are often files put one after the other: with a BOM in the midst, without a newline between an end and the next
//! beginning, with comments in any coding. So what counts is the marks themselves, wherever they stand, and there are as
//! many certificates as there are beginnings of one: what cannot be read is an error, because a bundle with one authority
//! too few looks right until that one is needed.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::x509;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// Longest name of a section; `ENCRYPTED PRIVATE KEY` has 21 characters.
const LABEL_BYTES_MAX: usize = 64;
/// The names by which tools have called certificates.
const CERTIFICATE: [&[u8]; 2] = [b"CERTIFICATE", b"X509 CERTIFICATE"];

/// As OpenSSL reads it: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a file has not what was expected in it. Nothing of it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPem {
    /// No certificate at all.
    #[error("expected certificates in PEM, which begin with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// The other format, which has no text around it.
    #[error(
        "expected PEM, which begins with -----BEGIN: this is DER; `openssl x509 -inform der -in THIS -out THAT` makes PEM \
         of a certificate"
    )]
    Der,
    /// One that says how far it is to be trusted, which is not looked at here.
    #[error(
        "expected plain certificates: number {number} is a TRUSTED CERTIFICATE; `openssl x509 -in THIS -out THAT` makes a \
         plain one of it"
    )]
    Trusted {
        /// Which section, counted from 1.
        number: usize,
    },
    /// A container of certificates.
    #[error(
        "expected certificates in PEM: this is PKCS #7; `openssl pkcs7 -print_certs -in THIS` shows what is in it"
    )]
    Container,
    /// A beginning without an end.
    #[error("certificate {number} does not end: expected -----END CERTIFICATE-----")]
    Unfinished {
        /// Which certificate, counted from 1.
        number: usize,
    },
    /// What stands between the marks is not base64 of a certificate.
    #[error("certificate {number} cannot be read")]
    Damaged {
        /// Which certificate, counted from 1.
        number: usize,
    },
    /// No key at all, or one that cannot be read.
    #[error("expected a PEM private key, which begins with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    /// A key that nobody can use without a password.
    #[error(
        "expected a private key without a password: this one is encrypted; `openssl pkey -in THIS -out THAT` makes a plain \
         one of it"
    )]
    EncryptedKey,
}

/// All certificates of a file, at least one.
///
/// # Errors
/// [`InvalidPem`] when there is none, or one that cannot be read.
pub fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidPem> {
    let mut certificates = Vec::new();
    let (mut number, mut has_container) = (0, false);
    for section in Sections(content) {
        number += usize::from(section.label.ends_with(b"CERTIFICATE"));
        match section.label {
            label if CERTIFICATE.contains(&label) => {
                let body = section.body.ok_or(InvalidPem::Unfinished { number })?;
                let der = decode(body).filter(|der| x509::read(der).is_some());
                certificates.push(CertificateDer::from(der.ok_or(InvalidPem::Damaged { number })?));
            }
            b"TRUSTED CERTIFICATE" => return Err(InvalidPem::Trusted { number }),
            b"PKCS7" => has_container = true,
            _ => {}
        }
    }
    match certificates.is_empty() {
        false => Ok(certificates),
        true if has_container => Err(InvalidPem::Container),
        true => Err(if is_der(content) { InvalidPem::Der } else { InvalidPem::NoCertificate }),
    }
}

/// The first private key of a file, which may hold its certificates, too.
///
/// # Errors
/// [`InvalidPem`] when there is none that can be used.
pub fn private_key(content: &[u8]) -> Result<PrivateKeyDer<'static>, InvalidPem> {
    let is_key = |section: &Section<'_>| section.label.ends_with(b"PRIVATE KEY");
    let Some(section) = Sections(content).find(is_key) else {
        return Err(if is_der(content) { InvalidPem::Der } else { InvalidPem::NoKey });
    };
    let body = section.body.ok_or(InvalidPem::NoKey)?;
    if section.label == b"ENCRYPTED PRIVATE KEY" || memmem::find(body, b"ENCRYPTED").is_some() {
        return Err(InvalidPem::EncryptedKey);
    }
    let kind = SectionKind::try_from(section.label).map_err(|()| InvalidPem::NoKey)?;
    let der = decode(body).ok_or(InvalidPem::NoKey)?;
    PrivateKeyDer::from_pem(kind, der).ok_or(InvalidPem::NoKey)
}

/// What stands between two marks.
struct Section<'a> {
    label: &'a [u8],
    /// `None` if it does not end before the next begins.
    body: Option<&'a [u8]>,
}

/// The sections of what is left of a file.
struct Sections<'a>(&'a [u8]);

impl<'a> Iterator for Sections<'a> {
    type Item = Section<'a>;

    fn next(&mut self) -> Option<Section<'a>> {
        loop {
            let at = memmem::find(self.0, BEGIN)?;
            let rest = &self.0[at + BEGIN.len()..];
            self.0 = rest;
            let within = &rest[..rest.len().min(LABEL_BYTES_MAX + DASHES.len())];
            let Some(end) = memmem::find(within, DASHES) else { continue };
            let (label, rest) = (&rest[..end], &rest[end + DASHES.len()..]);
            let until = memmem::find(rest, BEGIN).unwrap_or(rest.len());
            let end = [END, label, DASHES].concat();
            let body = memmem::find(&rest[..until], &end).map(|at| &rest[..at]);
            self.0 = rest;
            return Some(Section { label, body });
        }
    }
}

fn decode(body: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(text).ok()
}

/// Whether it begins as DER does: a sequence with a length of two bytes.
fn is_der(content: &[u8]) -> bool {
    content.starts_with(&[0x30, 0x82])
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Two certificates and the key of the first.
    fn made() -> [String; 3] {
        let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
        let certificate = |key: &KeyPair| {
            CertificateParams::new(vec!["h.example".to_owned()]).unwrap().self_signed(key).unwrap().pem()
        };
        [certificate(&keys[0]), certificate(&keys[1]), keys[0].serialize_pem()]
    }

    /// B6.
    #[test]
    fn there_are_as_many_certificates_as_beginnings_of_one() {
        let [one, other, key] = made();
        let (glued, other_glued) = (one.trim_end(), other.trim_end());
        let check = |content: &[u8], expected: Result<usize, InvalidPem>| {
            let found = certificates(content).map(|found| found.len());
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(content));
        };
        let text = |text: String, expected| check(text.as_bytes(), expected);
        text(format!("{one}{other}"), Ok(2));
        text(format!("{glued}{other_glued}"), Ok(2));
        text(format!("{glued}\u{feff}{other}"), Ok(2));
        text(format!("\u{feff}{one}\u{feff}{other}"), Ok(2));
        text(format!("{one}{other}").replace('\n', "\r\n"), Ok(2));
        text(format!("{one}{other}").replace('\n', "\r"), Ok(2));
        text(format!("{one}{other}").replace('\n', "\n    "), Ok(2));
        text(format!("{one}{other}").replace('\n', " "), Ok(2));
        text(format!("# one\n{glued}# the other\n{other}\n# end"), Ok(2));
        text(format!("{key}{one}{key}{other}"), Ok(2));
        text(one.replace("CERTIFICATE", "X509 CERTIFICATE"), Ok(1));
        check(&[b"# caf\xe9\n", one.as_bytes()].concat(), Ok(1));
        text(one.replace('=', ""), Ok(1));
        let cut = &one[..one.len() / 2];
        text(format!("{cut}{other}"), Err(InvalidPem::Unfinished { number: 1 }));
        text(format!("{other}{cut}"), Err(InvalidPem::Unfinished { number: 2 }));
        text(format!("{other}{}", one.replace("MII", "!!!")), Err(InvalidPem::Damaged { number: 2 }));
        let empty = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        text(format!("{one}{empty}"), Err(InvalidPem::Damaged { number: 2 }));
        text(
            format!("{one}{}", other.replace("CERT", "TRUSTED CERT")),
            Err(InvalidPem::Trusted { number: 2 }),
        );
        text(one.replace("CERTIFICATE", "PKCS7"), Err(InvalidPem::Container));
        check(&certificates(one.as_bytes()).unwrap()[0], Err(InvalidPem::Der));
        text(key, Err(InvalidPem::NoCertificate));
        text(String::new(), Err(InvalidPem::NoCertificate));
        text("-----BEGIN ".to_owned(), Err(InvalidPem::NoCertificate));
    }

    #[test]
    fn a_key_is_found_among_certificates() {
        let [one, other, key] = made();
        let check = |content: String, expected: Option<InvalidPem>| {
            assert_eq!(private_key(content.as_bytes()).err(), expected, "{content}");
        };
        check(format!("{}{key}{other}", one.trim_end()), None);
        check(format!("\u{feff}{key}").replace('\n', "\r\n"), None);
        check(one.clone(), Some(InvalidPem::NoKey));
        check(key.replace("PRIVATE", "ENCRYPTED PRIVATE"), Some(InvalidPem::EncryptedKey));
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        check(old.to_owned(), Some(InvalidPem::EncryptedKey));
        check(key[..key.len() / 2].to_owned(), Some(InvalidPem::NoKey));
        check(String::new(), Some(InvalidPem::NoKey));
    }
}
