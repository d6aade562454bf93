//! What a plan is made from: everything that is stored, by numbers.

/// The owner of content: a number that a registry has in one picture. Content of several registries has an owner of
/// its own, and so has content of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) struct OwnerId(pub u16);

impl OwnerId {
    /// The owner of content that no repository is granted. It is never spared.
    pub(in crate::store) const NOBODY: Self = Self(0);
    /// The owner of content that several registries have.
    pub(in crate::store) const SEVERAL: Self = Self(1);
    /// The first number that is a registry's.
    pub(in crate::store) const FIRST: u16 = 2;

    /// Whether a manifest of this owner counts for content of `part`. It does not if that is another registry's
    /// alone.
    pub(in crate::store) fn may_speak_for(self, part: Self) -> bool {
        [self, Self::NOBODY, Self::SEVERAL].contains(&part) || self == Self::SEVERAL
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Everything that is stored, by numbers: a million blobs take some 50 MiB.
#[derive(Default)]
pub(in crate::store) struct Stock {
    pub blobs: Vec<Item>,
    /// The blobs that are manifests, in the order of their numbers.
    pub manifests: Vec<ContentNode>,
    /// The stored blobs that manifests refer to.
    pub parts: Vec<u32>,
    /// Manifests whose closure stays.
    pub held: Vec<u32>,
    /// Manifests whose closure stays as far as it is their own registry's.
    pub leased: Vec<u32>,
    /// Partial files that are not in use.
    pub partials: Vec<Item>,
    /// Bytes of the partial files in use, by the numbers of their owners.
    pub filling: Vec<u64>,
    /// The most that everything may take, in bytes.
    pub limit: u64,
    /// The owner that needs the room; `None` stands for the one that has most.
    pub bringer: Option<OwnerId>,
}

/// Something that takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Item {
    pub bytes: u64,
    pub worth: u64,
    pub owner: OwnerId,
    /// Whether it was used within a week.
    pub is_recent: bool,
}

/// A manifest among the blobs.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct ContentNode {
    pub blob: u32,
    /// The index in `parts` of its first part, and that behind its last.
    pub from: u32,
    pub to: u32,
}

impl Stock {
    /// Marks these blobs and all that they refer to; if `own`, only as far as it may be their own.
    pub(super) fn closure(&self, mut waiting: Vec<u32>, own: bool) -> Vec<bool> {
        let mut closure = vec![false; self.blobs.len()];
        while let Some(number) = waiting.pop() {
            if !std::mem::replace(&mut closure[index(number)], true) {
                if own {
                    waiting.extend(self.own_parts_of(number));
                } else {
                    waiting.extend_from_slice(self.parts_of(number));
                }
            }
        }
        closure
    }

    /// Returns what a blob refers to, but for what another registry alone has. A manifest can name anything, and
    /// content of others is neither kept nor worth more because of that.
    pub(super) fn own_parts_of(&self, blob: u32) -> impl Iterator<Item = u32> {
        let owner = self.blobs[index(blob)].owner;
        let is_own = move |part: &u32| owner.may_speak_for(self.blobs[index(*part)].owner);
        self.parts_of(blob).iter().copied().filter(is_own)
    }

    /// Returns the stored blobs that a blob refers to: none if it is no manifest.
    pub(super) fn parts_of(&self, blob: u32) -> &[u32] {
        match self.manifests.binary_search_by_key(&blob, |node| node.blob) {
            Ok(at) => &self.parts[index(self.manifests[at].from)..index(self.manifests[at].to)],
            Err(_) => &[],
        }
    }
}

/// Converts a number to an index.
pub(in crate::store) fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit wherever berth runs")
}
