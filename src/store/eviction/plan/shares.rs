//! Fair shares: what of other registries' content is spared when one of them needs room.
//!
//! Nothing is set aside for anybody. A registry that no other competes with may use all there is; what others have
//! and nobody has asked for within [`RECENT`] goes by its age alone. But of what they *have* been asked for, each
//! keeps its fair share, the most wanted of it: the one that needs room can take from another only what that has
//! beyond its share. So no flood, of whatever bytes, empties the cache of all others.
//!
//! A fair share is by water filling: what a registry does not need of an equal part is left to the others.

use std::time::Duration;

use crate::store::eviction::plan::stock::{OwnerId, Stock, index};

/// Content that was used within this time counts as asked for. What a site pulls again every week is what it lives
/// on.
pub(in crate::store) const RECENT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The part of a fair share that an owner with more than that keeps. The rest is needed because images go whole, and
/// the one that brings content must be able to reach its own share.
const SPARED: (u64, u64) = (3, 4);

/// The bytes that each owner has of content that is asked for, and those that it keeps.
#[derive(Debug)]
pub(in crate::store) struct FairShares {
    left: Vec<u64>,
    spared: Vec<u64>,
}

impl FairShares {
    /// Computes the shares. `recent` says which blobs are asked for.
    pub(in crate::store) fn new(stock: &Stock, recent: &[bool]) -> Self {
        let mut held = stock.filling.clone();
        let mut left = vec![0; held.len()];
        for (blob, is_recent) in stock.blobs.iter().zip(recent) {
            *at(&mut held, blob.owner) += blob.bytes;
            if *is_recent {
                *at(&mut left, blob.owner) += blob.bytes;
            }
        }
        held.resize(held.len().max(left.len()), 0);
        left.resize(held.len(), 0);
        let bringer = stock.bringer.or_else(|| largest(&held));
        let others: Vec<u64> = (0..left.len())
            .filter(|owner| Some(*owner) != bringer.map(OwnerId::index))
            .filter(|owner| *owner != OwnerId::NOBODY.index())
            .map(|owner| left[owner])
            .collect();
        let share = fair_share(stock.limit, &others);
        let keeps = |left: &u64| if *left <= share { *left } else { share / SPARED.1 * SPARED.0 };
        let mut spared: Vec<u64> = left.iter().map(keeps).collect();
        for owner in bringer.into_iter().chain([OwnerId::NOBODY]) {
            *at(&mut spared, owner) = 0;
        }
        Self { left, spared }
    }

    /// Takes these blobs from their owners, if each keeps what is spared for it. Returns whether they may go.
    pub(in crate::store) fn take(&mut self, stock: &Stock, recent: &[bool], goes: &[u32]) -> bool {
        let asked_for = || goes.iter().map(|number| index(*number)).filter(|number| recent[*number]);
        let mut takes: Vec<(OwnerId, u64)> = Vec::new();
        for blob in asked_for().map(|number| stock.blobs[number]) {
            match takes.iter_mut().find(|(owner, _)| *owner == blob.owner) {
                Some((_, bytes)) => *bytes += blob.bytes,
                None => takes.push((blob.owner, blob.bytes)),
            }
        }
        let may_go = takes.iter().all(|(owner, bytes)| {
            let (left, spared) = (self.left[owner.index()], self.spared[owner.index()]);
            spared == 0 || left.saturating_sub(*bytes) >= spared
        });
        if may_go {
            for (owner, bytes) in takes {
                let left = &mut self.left[owner.index()];
                *left = left.saturating_sub(bytes);
            }
        }
        may_go
    }
}

/// Returns the owner with the most bytes, which counts as the one that brings content if none is named.
fn largest(held: &[u64]) -> Option<OwnerId> {
    let owners = (0..).zip(held).filter(|(number, bytes)| *number != OwnerId::NOBODY.0 && **bytes > 0);
    owners.max_by_key(|(_, bytes)| **bytes).map(|(number, _)| OwnerId(number))
}

/// Returns the level up to which each of `needs` is met, if one more owner takes as much as it can get.
pub(in crate::store) fn fair_share(limit: u64, needs: &[u64]) -> u64 {
    let mut needs = needs.to_vec();
    needs.sort_unstable();
    let (mut left, mut sharing) = (limit, needs.len() as u64 + 1);
    for need in needs {
        if need > left / sharing {
            break;
        }
        left -= need;
        sharing -= 1;
    }
    left / sharing
}

fn at(amounts: &mut Vec<u64>, owner: OwnerId) -> &mut u64 {
    if amounts.len() <= owner.index() {
        amounts.resize(owner.index() + 1, 0);
    }
    &mut amounts[owner.index()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_does_not_need_is_left_to_the_others() {
        let check = |needs: &[u64], share: u64| assert_eq!(fair_share(100, needs), share, "{needs:?}");
        check(&[], 100);
        check(&[1], 99);
        check(&[80], 50);
        check(&[10, 80], 45);
        check(&[80, 10, 80], 30);
        check(&[0, 0], 100);
        assert_eq!(fair_share(0, &[5]), 0);
    }
}
