//! What a plan is made from: everything that is stored, by numbers.

/// Whose something is: a number that is given to a registry for one look. Content that several registries have is as
/// that of one more, and so is the content of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) struct OwnerId(pub u16);

impl OwnerId {
    /// Of what no repository is granted: it is never spared.
    pub(in crate::store) const NOBODY: Self = Self(0);
    /// Of what several registries have.
    pub(in crate::store) const SEVERAL: Self = Self(1);
    /// The first number that is a registry's.
    pub(in crate::store) const FIRST: u16 = 2;

    /// Whether what is said by a manifest of the one counts for content of the other: not if that is another
    /// registry's alone.
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
    pub manifests: Vec<Node>,
    /// What manifests refer to, of what is here.
    pub parts: Vec<u32>,
    /// Manifests whose closure stays.
    pub held: Vec<u32>,
    /// Manifests whose closure stays as far as it is their own registry's.
    pub leased: Vec<u32>,
    /// Partial files that nobody fills.
    pub partials: Vec<Item>,
    /// Bytes of the others, by their owners' numbers.
    pub filling: Vec<u64>,
    /// The most that all may take.
    pub limit: u64,
    /// Who needs the room. If nobody does just now, it is the one that has most.
    pub bringer: Option<OwnerId>,
}

/// Something that takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Item {
    pub bytes: u64,
    pub worth: u64,
    pub owner: OwnerId,
    /// Used within [`RECENT`].
    pub is_recent: bool,
}

/// A manifest among the blobs.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Node {
    pub blob: u32,
    /// Its first part in `parts`, and the one behind its last.
    pub from: u32,
    pub to: u32,
}

impl Stock {
    /// These, and all that they refer to; or only what is their own of that.
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

    /// What a blob refers to, but for what another registry alone has: a manifest can name anything, and what others
    /// have is neither kept nor worth more because of that.
    pub(super) fn own_parts_of(&self, blob: u32) -> impl Iterator<Item = u32> {
        let owner = self.blobs[index(blob)].owner;
        let is_own = move |part: &u32| owner.may_speak_for(self.blobs[index(*part)].owner);
        self.parts_of(blob).iter().copied().filter(is_own)
    }

    /// What of all that a blob refers to is here; nothing if it is no manifest.
    pub(super) fn parts_of(&self, blob: u32) -> &[u32] {
        match self.manifests.binary_search_by_key(&blob, |node| node.blob) {
            Ok(at) => &self.parts[index(self.manifests[at].from)..index(self.manifests[at].to)],
            Err(_) => &[],
        }
    }
}

/// A number as an index.
pub(in crate::store) fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit wherever berth runs")
}
