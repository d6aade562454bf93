//! The trees whose records are counted, and what a record stands for on disk.

/// What a file takes at least, and on average half of which is lost in its last block.
pub(in crate::store) const BLOCK_BYTES: u64 = 4096;
/// What a repository itself takes: its folders with `oci-layout` and a small `index.json`: a block each, one level of names.
pub(in crate::store) const REPO_BYTES: u64 = 9 * BLOCK_BYTES;
/// What a tag or manifest takes of `index.json`.
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
    /// Each at the place that its number says.
    pub(in crate::store) const ALL: [Self; 7] =
        [Self::Blob, Self::Grant, Self::Holding, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
    /// What is said of content, rather than the content itself.
    pub(in crate::store) const REFS: [Self; 5] =
        [Self::Grant, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
}

/// The bytes on disk that a record stands for; of a blob, those of its content.
pub(super) fn weight(part: CountedTree, value: &[u8]) -> u64 {
    match part {
        CountedTree::Blob => first_number(value),
        CountedTree::Grant => BLOCK_BYTES,
        // A file says what the record does.
        CountedTree::Tag | CountedTree::Manifest => in_blocks(value.len() as u64) + ENTRY_BYTES,
        CountedTree::Repo => REPO_BYTES,
        CountedTree::Referrers => in_blocks(first_number(value)),
        CountedTree::Holding => 0,
    }
}

/// What a file of so many bytes takes.
fn in_blocks(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK_BYTES)
}

/// The big-endian number that a value begins with; zero if it is too short.
pub(in crate::store) fn first_number(value: &[u8]) -> u64 {
    let bytes = value.get(..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}
