//! Who speaks when an upstream is asked for content of a registry.
//!
//! What a speaker merely claims (an answer to HEAD, a length, a descriptor, a tag) changes nothing for anybody but the
//! repositories of its own registry, until the digest is proven by bytes that it sent. Even there a fallback does not
//! vouch for what the registry itself gave to other repositories, nor a parent for what came with berth's own login.

use serde::{Deserialize, Serialize};

/// Who an answer is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// One of the registry's own endpoints.
    #[default]
    Registry,
    /// A mirror of many registries that is asked in its place, such as another berth.
    Parent,
    /// Another registry that is asked when the registry has no answer.
    Fallback,
}
