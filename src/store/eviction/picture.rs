//! The picture that a plan is made from: everything that is stored, whose it is, and what must stay.

use std::collections::{HashMap, HashSet};

use crate::clock::{is_within, unix_seconds};
use crate::oci::manifest::Descriptor;
use crate::oci::{Digest, Manifest, Registry};
use crate::store::eviction::Sweeper;
use crate::store::eviction::plan::{self, Item, Node, Owner, RECENT, Stock};
use crate::store::metadata::Ledger;
use crate::store::metadata::index::{Short, short};
use crate::store::partial::PartialKey;

/// Everything that is stored, as it was a moment ago.
pub(in crate::store) struct Picture {
    pub(in crate::store) stock: Stock,
    /// The names of the blobs, sorted.
    pub(in crate::store) names: Vec<Short>,
    /// The names of the partial files that nobody has.
    pub(in crate::store) partials: Vec<PartialKey>,
    /// Pins as they were; others mean that the plan is void.
    pub(in crate::store) pins: u64,
}

/// Stands for the registries that have no share of their own: no registry can be called so.
const ALL_OTHERS: &str = "*";

/// The numbers that registries have in one picture.
#[derive(Default)]
pub(in crate::store) struct Owners {
    /// The registries with a number of their own, if not all have one.
    sharing: Option<HashSet<String>>,
    numbers: HashMap<String, Owner>,
    /// The one that was asked for last: what belongs to one registry comes together.
    last: Option<(String, Owner)>,
}

impl Owners {
    pub(in crate::store) fn among(sharing: Option<&[Registry]>) -> Self {
        let names = |all: &[Registry]| all.iter().map(|registry| registry.as_str().to_owned()).collect();
        Self { sharing: sharing.map(names), ..Self::default() }
    }

    pub(in crate::store) fn number(&mut self, registry: &str) -> Owner {
        if let Some((last, owner)) = &self.last
            && last == registry
        {
            return *owner;
        }
        let next = u16::try_from(self.numbers.len()).ok().and_then(|count| count.checked_add(Owner::FIRST));
        // More registries than have a number share one.
        let next = next.map_or(Owner::SEVERAL, Owner);
        let has_own = self.sharing.as_ref().is_none_or(|sharing| sharing.contains(registry));
        let name = if has_own { registry } else { ALL_OTHERS };
        let owner = *self.numbers.entry(name.to_owned()).or_insert(next);
        self.last = Some((registry.to_owned(), owner));
        owner
    }
}

impl Sweeper<'_> {
    /// Everything that is stored; `None` while not all of it is known.
    pub(in crate::store) fn look(&self, bringer: Option<&Registry>) -> Option<Picture> {
        let ledger = self.ledger;
        if !ledger.index.is_complete() {
            return None;
        }
        let pins = ledger.pins.changes();
        let keep = ledger.keep()?;
        self.note_parts()?;
        let (now, lease) = (unix_seconds(), ledger.budget.limits().lease);
        let mut stock = Stock::default();
        let (mut names, mut is_leased, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
        let are_all = ledger.index.each_blob(&mut |name, known| {
            names.push(name);
            if known.is_ahead(now) {
                ahead.push(name);
            }
            let known = known.believed(now);
            is_leased.push(is_within(known.last_use, lease, now));
            stock.blobs.push(Item {
                bytes: known.size,
                worth: plan::worth(known.first_use, known.last_use),
                owner: Owner::NOBODY,
                is_recent: is_within(known.last_use, RECENT, now),
            });
        });
        ledger.index.put_uses(&ahead, now);
        let kept: HashSet<Short> = keep.manifests.iter().map(short).collect();
        let chosen: HashMap<Short, HashSet<Short>> = keep
            .chosen
            .iter()
            .map(|(root, parts)| (short(root), parts.iter().map(short).collect()))
            .collect();
        let number_of = |name: &Short| names.binary_search(name).ok();
        let are_all = are_all
            && ledger.index.each_parts(&mut |name, _, parts| {
                let Some(number) = number_of(&name) else { return };
                let from = stock.parts.len();
                let parts =
                    parts.iter().filter(|part| chosen.get(&name).is_none_or(|chosen| chosen.contains(part)));
                stock.parts.extend(parts.filter_map(number_of).map(to_number));
                let (blob, from, to) = (to_number(number), to_number(from), to_number(stock.parts.len()));
                stock.manifests.push(Node { blob, from, to });
                if kept.contains(&name) {
                    stock.held.push(blob);
                } else if is_leased[number] {
                    stock.leased.push(blob);
                }
            });
        let mut owners = Owners::among(ledger.budget.limits().sharing.as_deref());
        let are_all = are_all
            && ledger.index.each_holding_of_all(&mut |registry, name| {
                let Some(number) = number_of(&name) else { return };
                let (own, owner) = (owners.number(registry), &mut stock.blobs[number].owner);
                *owner = if [own, Owner::NOBODY].contains(owner) { own } else { Owner::SEVERAL };
            });
        let partials = self.look_at_partials(&mut stock, &mut owners, now);
        stock.bringer = bringer.map(|bringer| owners.number(bringer.as_str()));
        stock.limit = ledger.budget.max_bytes(ledger.disk.root());
        are_all.then_some(Picture { stock, names, partials, pins })
    }

    /// Notes what manifests refer to of which nobody has done so.
    pub(in crate::store) fn note_parts(&self) -> Option<()> {
        let ledger = self.ledger;
        for (digest, media_type) in ledger.index.without_parts()? {
            // Noted by this. One that the disk does not give is asked for again by the next look.
            let _ = ledger.parts(&digest, &media_type);
        }
        Some(())
    }

    /// Partial files; those that nobody fills are each worth as much as their last change is young.
    fn look_at_partials(&self, stock: &mut Stock, owners: &mut Owners, now: u64) -> Vec<PartialKey> {
        let mut names = Vec::new();
        let (filling, abandoned) = self.ledger.budget.partials();
        for (key, bytes) in abandoned {
            let (worth, owner) = (self.partials.last_change(&key), owners.number(key.registry.as_str()));
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
}

impl Ledger {
    /// Notes what a manifest refers to, and what it claims its blobs to weigh: nothing if it cannot be read.
    pub(in crate::store) fn note_parts(&self, digest: &Digest, manifest: Option<&Manifest>) -> Vec<Short> {
        let blobs = manifest.iter().flat_map(|manifest| &manifest.blobs);
        let claimed_bytes = blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        let children = manifest.iter().flat_map(|manifest| manifest.children());
        let parts: Vec<Digest> = children.filter_map(Descriptor::digest).collect();
        self.index.put_parts(digest, claimed_bytes, &parts);
        parts.iter().map(short).collect()
    }

    /// Whether what a manifest refers to claims to weigh more than may be kept.
    pub(in crate::store) fn claims_too_much(&self, manifest: &Digest) -> bool {
        self.index.claimed(manifest).is_some_and(|claimed| claimed > self.budget.max_bytes(self.disk.root()))
    }
}

fn to_number(at: usize) -> u32 {
    u32::try_from(at).expect("a file system has no room for four thousand million blobs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_without_a_share_of_their_own_have_one_together() {
        let listed = [Registry::parse("a.example").unwrap()];
        let mut owners = Owners::among(Some(&listed));
        let numbers = ["x.example", "a.example", "y.example", "x.example"].map(|name| owners.number(name));
        assert!(numbers[0] == numbers[2] && numbers[0] == numbers[3] && numbers[0] != numbers[1]);
        let mut owners = Owners::among(None);
        assert_ne!(owners.number("x.example"), owners.number("y.example"));
    }
}
