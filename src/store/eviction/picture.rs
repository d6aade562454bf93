//! The picture that a plan is made from: everything that is stored, its owners, and what must stay.

use std::collections::{HashMap, HashSet};

use crate::clock::{is_within, unix_seconds};
use crate::oci::{Digest, Registry};
use crate::store::blobs::partials::{PartialKey, Partials};
use crate::store::eviction::budget::Budget;
use crate::store::eviction::owners::Owners;
use crate::store::eviction::pins::Pins;
use crate::store::eviction::plan::shares::RECENT;
use crate::store::eviction::plan::stock::{ContentNode, Item, OwnerId, Stock, index};
use crate::store::eviction::plan::{self, Goal, Plan};
use crate::store::metadata::Metadata;
use crate::store::metadata::index::Index;
use crate::store::metadata::index::blob_use::{ShortDigest, short};

/// Everything that is stored, at one moment.
pub(in crate::store) struct Picture {
    stock: Stock,
    /// The short digests of the blobs, sorted.
    names: Vec<ShortDigest>,
    /// The keys of the partial files that are not in use.
    partials: Vec<PartialKey>,
    /// The number of changes of the pins. If it has grown, a plan is void.
    pins: u64,
}

impl Picture {
    /// Looks at everything that is stored; `None` while the index is not complete.
    pub(in crate::store) fn take(
        metadata: &Metadata,
        budget: &Budget,
        pins: &Pins,
        partials: &Partials,
        bringer: Option<&Registry>,
    ) -> Option<Self> {
        let (index, limits) = (metadata.index(), budget.limits());
        if !index.is_complete() {
            return None;
        }
        let pins_at = pins.changes();
        let keep = pins.keep(&limits.pins)?;
        metadata.note_all_parts()?;
        let now = unix_seconds();
        let lease = limits.lease;
        let inventory = index.inventory();
        let mut stock = Stock::default();
        let (mut names, mut is_leased, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
        let are_all = inventory.each_blob(&mut |name, known| {
            names.push(name);
            if known.is_ahead(now) {
                ahead.push(name);
            }
            let known = known.believed(now);
            is_leased.push(is_within(known.last_use, lease, now));
            stock.blobs.push(Item {
                bytes: known.size,
                worth: plan::worth(known.first_use, known.last_use),
                owner: OwnerId::NOBODY,
                is_recent: is_within(known.last_use, RECENT, now),
            });
        });
        index.put_uses(&ahead, now);
        let kept: HashSet<ShortDigest> = keep.manifests.iter().map(short).collect();
        let chosen: HashMap<ShortDigest, HashSet<ShortDigest>> = keep
            .chosen
            .iter()
            .map(|(root, parts)| (short(root), parts.iter().map(short).collect()))
            .collect();
        let number_of = |name: &ShortDigest| names.binary_search(name).ok();
        let are_all = are_all
            && inventory.each_parts(&mut |name, _, parts| {
                let Some(number) = number_of(&name) else { return };
                let from = stock.parts.len();
                let parts =
                    parts.iter().filter(|part| chosen.get(&name).is_none_or(|chosen| chosen.contains(part)));
                stock.parts.extend(parts.filter_map(number_of).map(to_number));
                let (blob, from, to) = (to_number(number), to_number(from), to_number(stock.parts.len()));
                stock.manifests.push(ContentNode { blob, from, to });
                if kept.contains(&name) {
                    stock.held.push(blob);
                } else if is_leased[number] {
                    stock.leased.push(blob);
                }
            });
        let mut owners = Owners::among(budget.limits().sharing.as_deref());
        let are_all = are_all
            && inventory.each_holding_of_all(&mut |registry, name| {
                let Some(number) = number_of(&name) else { return };
                let (own, owner) = (owners.number(registry), &mut stock.blobs[number].owner);
                *owner = if [own, OwnerId::NOBODY].contains(owner) { own } else { OwnerId::SEVERAL };
            });
        let partials = look_at_partials(budget, partials, &mut stock, &mut owners, now);
        stock.bringer = bringer.map(|bringer| owners.number(bringer.as_str()));
        stock.limit = budget.max_bytes(metadata.root());
        are_all.then_some(Self { stock, names, partials, pins: pins_at })
    }

    /// Whether the pins have not changed since.
    pub(in crate::store) fn has_pins(&self, pins: &Pins) -> bool {
        self.pins == pins.changes()
    }

    /// Plans what to evict for `goal`. `is_in_use` says whether a blob must not go just now.
    pub(in crate::store) fn plan(
        &self,
        goal: Goal,
        index: &Index,
        is_in_use: &dyn Fn(&Digest) -> bool,
    ) -> Plan {
        let is_number_in_use = |number: u32| {
            let digest = self.digest(index, number);
            digest.is_none_or(|digest| is_in_use(&digest))
        };
        plan::plan(&self.stock, goal, &is_number_in_use)
    }

    /// Returns the digest of a blob's number, if the blob is still stored.
    pub(in crate::store) fn digest(&self, in_index: &Index, number: u32) -> Option<Digest> {
        in_index.full_digest(self.names[index(number)])
    }

    /// Returns the key of a partial file's number.
    pub(in crate::store) fn partial(&self, number: u32) -> &PartialKey {
        &self.partials[index(number)]
    }
}

/// Adds the partial files. One that is not in use has its last change as its worth.
fn look_at_partials(
    budget: &Budget,
    partials: &Partials,
    stock: &mut Stock,
    owners: &mut Owners,
    now: u64,
) -> Vec<PartialKey> {
    let mut names = Vec::new();
    let (filling, abandoned) = budget.partials(&partials.in_use());
    for (key, bytes) in abandoned {
        let (worth, owner) = (partials.last_change(&key), owners.number(key.registry.as_str()));
        stock.partials.push(Item { bytes, worth, owner, is_recent: is_within(worth, RECENT, now) });
        names.push(key);
    }
    for (key, bytes) in filling {
        let number = usize::from(owners.number(key.registry.as_str()).0);
        if stock.filling.len() <= number {
            stock.filling.resize(number + 1, 0);
        }
        stock.filling[number] += bytes;
    }
    names
}

fn to_number(at: usize) -> u32 {
    u32::try_from(at).expect("a file system has no room for four thousand million blobs")
}
