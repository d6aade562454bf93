//! The little that berth itself reads of a certificate: whose it is, from when to when, for which names. Pure.
//!
//! Chains and signatures are the TLS library's. It does not tell dates, though, and they are needed where a certificate
//! is trusted by itself, and to tell people what is the matter with one.

use std::time::{Duration, SystemTime};

/// What a certificate says.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    issuer: &'a [u8],
    subject: &'a [u8],
    /// Not good before.
    pub from: SystemTime,
    /// Not good after.
    pub until: SystemTime,
    /// Whether it has a DNS name or an address in its `subjectAltName`, where all clients look for them.
    pub has_names: bool,
    /// Whether it may sign others.
    pub is_authority: bool,
}

impl Facts<'_> {
    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether its subject, such as `CN=registry.example.com`, has this text.
    pub fn is_subject(&self, name: &str) -> bool {
        !name.is_empty() && memchr::memmem::find(self.subject, name.as_bytes()).is_some()
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const ADDRESS: u8 = 0x87;

/// `2.5.29.17`.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// `2.5.29.19`.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Reads a certificate; `None` if it is none.
pub fn read(der: &[u8]) -> Option<Facts<'_>> {
    let mut rest = der;
    let mut certificate = expect(&mut rest, SEQUENCE)?;
    let mut body = expect(&mut certificate, SEQUENCE)?;
    if body.first() == Some(&VERSION) {
        element(&mut body)?;
    }
    expect(&mut body, INTEGER)?;
    expect(&mut body, SEQUENCE)?;
    let issuer = expect(&mut body, SEQUENCE)?;
    let mut validity = expect(&mut body, SEQUENCE)?;
    let (from, until) = (time(&mut validity)?, time(&mut validity)?);
    let subject = expect(&mut body, SEQUENCE)?;
    let mut facts = Facts { issuer, subject, from, until, has_names: false, is_authority: false };
    expect(&mut body, SEQUENCE)?;
    while !body.is_empty() {
        let (tag, mut content) = element(&mut body)?;
        if tag == EXTENSIONS {
            let mut extensions = expect(&mut content, SEQUENCE)?;
            while !extensions.is_empty() {
                learn(&mut facts, expect(&mut extensions, SEQUENCE)?)?;
            }
        }
    }
    Some(facts)
}

/// Learns from one extension.
fn learn(facts: &mut Facts<'_>, mut extension: &[u8]) -> Option<()> {
    let id = expect(&mut extension, OBJECT_ID)?;
    if extension.first() == Some(&BOOLEAN) {
        element(&mut extension)?;
    }
    let mut value = expect(&mut extension, OCTET_STRING)?;
    if id == SUBJECT_ALT_NAME {
        let mut names = expect(&mut value, SEQUENCE)?;
        while !names.is_empty() {
            facts.has_names |= matches!(element(&mut names)?.0, DNS_NAME | ADDRESS);
        }
    } else if id == BASIC_CONSTRAINTS {
        let mut constraints = expect(&mut value, SEQUENCE)?;
        if constraints.first() == Some(&BOOLEAN) {
            facts.is_authority = element(&mut constraints)?.1 != [0];
        }
    }
    Some(())
}

/// Takes the next element off: its tag and its content.
fn element<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, after) = rest.split_first()?;
    let (first, mut after) = after.split_first()?;
    let mut length = usize::from(*first);
    if let Some(bytes @ 1..=4) = length.checked_sub(0x80) {
        let (digits, behind) = after.split_at_checked(bytes)?;
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        after = behind;
    } else if length >= 0x80 {
        return None;
    }
    let (content, behind) = after.split_at_checked(length)?;
    *rest = behind;
    Some((*tag, content))
}

fn expect<'a>(rest: &mut &'a [u8], expected: u8) -> Option<&'a [u8]> {
    element(rest).filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
}

/// `YYMMDDhhmmssZ`, or the same with a year of four digits.
fn time(rest: &mut &[u8]) -> Option<SystemTime> {
    let (tag, content) = element(rest)?;
    let text = std::str::from_utf8(content).ok()?;
    if !text.is_ascii() {
        return None;
    }
    let (year, text) = match tag {
        UTC_TIME => {
            // RFC 5280, section 4.1.2.5.1.
            let year: u16 = text.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        GENERALIZED_TIME => (text.get(..4)?.parse().ok()?, &text[4..]),
        _ => return None,
    };
    if text.len() != 11 || !text.ends_with('Z') {
        return None;
    }
    let part = |at: usize| &text[at..at + 2];
    let written = format!("{year:04}-{}-{}T{}:{}:{}Z", part(0), part(2), part(4), part(6), part(8));
    match humantime::parse_rfc3339(&written) {
        Ok(time) => Some(time),
        // Some old authorities began before computers count time.
        Err(_) if year < 1970 => Some(SystemTime::UNIX_EPOCH),
        Err(_) => None,
    }
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
    };

    use super::*;

    fn made(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "registry.example");
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_for_how_long() {
        let der = made(&["registry.example", "127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 2);
            params.not_after = date_time_ymd(2050, 12, 31);
        });
        let facts = read(&der).unwrap();
        let day = |text: &str| humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).unwrap();
        assert_eq!((facts.from, facts.until), (day("2020-01-02"), day("2050-12-31")));
        assert!(facts.has_names && !facts.is_authority && facts.is_self_issued());
        assert!(facts.is_subject("registry.example") && !facts.is_subject("other.example"));
        let der = made(&[], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let facts = read(&der).unwrap();
        assert!(!facts.has_names && facts.is_authority);
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_certificate_and_no_panic() {
        let der = made(&["registry.example"], |_| {});
        for length in 0..der.len() {
            assert_eq!(read(&der[..length]), None, "{length} bytes");
        }
        for at in 0..der.len() {
            for byte in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut der = der.clone();
                der[at] = byte;
                let _ = read(&der);
            }
        }
    }
}
