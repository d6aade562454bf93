//! The trees whose records are counted, and what a record stands for on disk.

/// Bytes that a file takes at least on disk. On average half of this is lost in its last block.
pub(in crate::store) const BLOCK_BYTES: u64 = 4096;
/// Bytes that a repository itself takes: a block each for its folders, one level of names, `oci-layout` and a small
/// `index.json`.
pub(in crate::store) const REPO_BYTES: u64 = 9 * BLOCK_BYTES;
/// Bytes that a tag or manifest takes in `index.json`.
const ENTRY_BYTES: u64 = 256;
/// The trees whose records are counted.
#[derive(Clone, Copy)]
pub(in crate::store) enum CountedTree {
    Blob,
    Grant,
    Holding,
    Tag,
    Manifest,
    Repo,
    Referrers,
}

impl CountedTree {
    /// All trees, each at the index of its number.
    pub(in crate::store) const ALL: [Self; 7] =
        [Self::Blob, Self::Grant, Self::Holding, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
    /// The trees of facts about content, rather than of content itself.
    pub(in crate::store) const REFS: [Self; 5] =
        [Self::Grant, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
}

/// Returns the bytes on disk that a record stands for; for a blob, those of its content.
pub(super) fn weight(tree: CountedTree, value: &[u8]) -> u64 {
    match tree {
        CountedTree::Blob => first_number(value),
        CountedTree::Grant => BLOCK_BYTES,
        // A file says what the record does.
        CountedTree::Tag | CountedTree::Manifest => in_blocks(value.len() as u64) + ENTRY_BYTES,
        CountedTree::Repo => REPO_BYTES,
        CountedTree::Referrers => in_blocks(first_number(value)),
        CountedTree::Holding => 0,
    }
}

/// Returns the bytes that a file of this size takes on disk.
fn in_blocks(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK_BYTES)
}

/// Reads the big-endian number that a value begins with; zero if it is too short.
pub(in crate::store) fn first_number(value: &[u8]) -> u64 {
    let bytes = value.get(..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}
