//! Content digests: parsed strictly, because a digest becomes a file name.
//!
//! Only the registered algorithms berth can verify are accepted (`sha256`, `sha512`; image-spec
//! `descriptor.md`, "Digests"). A well-formed digest of another algorithm is told apart from nonsense, so
//! that a client hears "unsupported" rather than "malformed".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256, Sha512};

/// A digest algorithm that berth can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes; every registry supports it.
    Sha256,
    /// SHA-512, 64 bytes; optional in the specification.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in the order of their folders.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name in front of the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the raw digest in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// The digest of some content: an algorithm and its raw output.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// Zero beyond `algorithm.bytes()`.
    raw: [u8; 64],
}

/// Why a text is not a digest that berth can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// It does not follow the grammar, or the wrong length or case of hex.
    #[error("not a digest: expected algorithm:hex in lower case")]
    Malformed,
    /// It follows the grammar, with an algorithm other than sha256 and sha512.
    #[error("unsupported digest algorithm: expected sha256 or sha512")]
    Unsupported,
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl Digest {
    /// Reads `algorithm:hex`.
    ///
    /// # Errors
    /// [`InvalidDigest`] tells nonsense from an algorithm that is merely unknown here.
    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::Malformed)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm(other) && is_encoded(hex) => return Err(InvalidDigest::Unsupported),
            _ => return Err(InvalidDigest::Malformed),
        };
        Self::from_hex(algorithm, hex).ok_or(InvalidDigest::Malformed)
    }

    /// Reads the hex part of a digest whose algorithm is known, as in a file name.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Option<Self> {
        let mut raw = [0; 64];
        if hex.len() != algorithm.bytes() * 2 {
            return None;
        }
        for (byte, pair) in raw.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self { algorithm, raw })
    }

    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut verifier = Verifier::new(algorithm);
        verifier.update(content);
        verifier.finish()
    }

    /// The algorithm in front of the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw digest.
    pub fn raw(&self) -> &[u8] {
        &self.raw[..self.algorithm.bytes()]
    }

    /// The part behind the colon, in lower-case hex.
    pub fn hex(&self) -> String {
        self.with_hex(str::to_owned)
    }

    fn with_hex<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        // By hand: every request needs it several times, and formatting took a tenth of a hit.
        let mut hex = [0; 128];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.raw()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0xf)];
        }
        take(str::from_utf8(&hex[..self.raw().len() * 2]).unwrap_or_default())
    }

    /// `algorithm-hex`: one path component for a file about this digest.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.as_str(), self.hex())
    }

    /// Reads what [`Digest::file_name`] wrote.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (algorithm, hex) = name.split_once('-')?;
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.as_str() == algorithm)?;
        Self::from_hex(algorithm, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.as_str())?;
        f.write_str(":")?;
        self.with_hex(|hex| f.write_str(hex))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// Hashes content as it passes by.
#[derive(Clone)]
pub struct Verifier(Hasher);

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Verifier {
    /// Starts with no content.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        })
    }

    /// Takes the next bytes, in order.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            Hasher::Sha256(hasher) => hasher.update(content),
            Hasher::Sha512(hasher) => hasher.update(content),
        }
    }

    /// The digest of everything seen.
    pub fn finish(self) -> Digest {
        let mut raw = [0; 64];
        let algorithm = match self.0 {
            Hasher::Sha256(hasher) => {
                raw[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            Hasher::Sha512(hasher) => {
                raw.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, raw }
    }
}

fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

/// `[a-z0-9]+` components joined by one of `+._-`.
fn is_algorithm(text: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.split(['+', '.', '_', '-']).all(word)
}

fn is_encoded(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-');
    !text.is_empty() && text.len() <= 256 && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_what_may_become_a_file_name() {
        let check = |text: &str, expected: Result<(), InvalidDigest>| {
            assert_eq!(Digest::parse(text).map(|_| ()), expected, "{text}");
        };
        check(&format!("sha256:{}", "a1".repeat(32)), Ok(()));
        check(&format!("sha512:{}", "0f".repeat(64)), Ok(()));
        check(&format!("sha256:{}", "A1".repeat(32)), Err(InvalidDigest::Malformed));
        check(&format!("sha256:{}", "a1".repeat(31)), Err(InvalidDigest::Malformed));
        check(&format!("sha256:{}", "a1".repeat(64)), Err(InvalidDigest::Malformed));
        check("sha256:../../etc/passwd", Err(InvalidDigest::Malformed));
        check("blake3:abcdef", Err(InvalidDigest::Unsupported));
        check("sha256+b64:YWJj", Err(InvalidDigest::Unsupported));
        check("Blake3:abcdef", Err(InvalidDigest::Malformed));
        check("", Err(InvalidDigest::Malformed));
        check(":", Err(InvalidDigest::Malformed));
    }

    #[test]
    fn hashes_and_prints_known_content() {
        let empty = Digest::of(Algorithm::Sha256, b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        assert_eq!(Digest::parse(text), Ok(empty));
        assert_eq!(Digest::from_file_name(&empty.file_name()), Some(empty));
    }
}
