//! The vocabulary of the OCI distribution protocol: pure types, no I/O, no clock.

pub mod digest;
pub mod document;
pub mod error;
pub mod graph;
pub mod image;
pub mod json;
pub mod link;
pub mod manifest;
pub mod name;
pub mod range;
pub mod ranges;
pub mod referrers;
pub mod route;
pub mod speaker;
pub mod tags;

pub use digest::{Algorithm, Digest, Verifier};
pub use document::Document;
pub use error::ErrorCode;
pub use image::{Image, Platform};
pub use manifest::Manifest;
pub use name::{Reference, Registry, Repo, RepoName, Tag};
pub use range::Range;
pub use ranges::Ranges;
pub use route::{Registries, Route};
pub use speaker::Speaker;

/// Enough of a foreign text to recognise it in a message.
const PRINTABLE_CHARACTERS_MAX: usize = 64;

/// A foreign text as it may stand in a message or a log line: cut, and of visible ASCII only.
fn printable(text: &str) -> String {
    let visible = |character: char| if character.is_ascii_graphic() { character } else { '?' };
    text.chars().take(PRINTABLE_CHARACTERS_MAX).map(visible).collect()
}

#[cfg(test)]
mod tests;
