//! The berths that a request has come through, as they name themselves in `Via` (RFC 9110, 7.6.3).
//!
//! An entry is `1.1 berth-ID`. The id is made anew by every process, so that a copied data folder does not make two
//! berths look like one.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

use http::HeaderMap;
use http::header::VIA;

/// The number of entries of `Via` that are read: more than matter.
pub(super) const HOPS_READ_MAX: usize = 16;
/// The beginning of a berth's pseudonym in `Via`.
const PSEUDONYM: &str = "berth-";

/// One running berth.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(u64);

impl Instance {
    /// This process.
    pub fn own() -> Self {
        static OWN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(PSEUDONYM));
        Self(*OWN)
    }

    /// The berth that the last entry of a response's `Via` names.
    pub fn answering(headers: &HeaderMap) -> Option<Self> {
        hops(headers).pop()
    }

    /// The process of this number.
    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }

    fn parse(entry: &str) -> Option<Self> {
        let name = entry.split_whitespace().nth(1)?.strip_prefix(PSEUDONYM)?;
        if name.len() != 16 {
            return None;
        }
        u64::from_str_radix(name, 16).ok().map(Self)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PSEUDONYM}{:016x}", self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The berths that `headers` name, in the order in which the request came through them.
pub(super) fn hops(headers: &HeaderMap) -> Vec<Instance> {
    let lines = headers.get_all(VIA).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(Instance::parse).take(HOPS_READ_MAX).collect()
}
