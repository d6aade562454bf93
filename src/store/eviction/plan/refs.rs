//! Which refs go when there are too many of them: a pure plan, as for the content that they are about.
//!
//! Refs are small beside content, as long as nobody makes them for their own sake: one tiny manifest can have any number
//! of tags, and any number of repositories. So they have a limit of their own, and nothing else ever goes to make room
//! for more of them. The registry that has more than its fair share of that pays, and a repository that has more than
//! any should. There go first those that serve nobody in an outage, because nothing is whole that they lead to;
//! each time the least recently used.

use std::collections::HashMap;

use crate::store::eviction::plan::shares::fair_share;
use crate::store::eviction::plan::stock::OwnerId;

/// Once there are too many refs, they are reduced to `DOWN_TO` parts in [`DOWN_OF`] of the limit, so that a look at
/// all of them lasts.
const DOWN_TO: u64 = 7;
const DOWN_OF: u64 = 8;

/// One ref.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct RefItem {
    pub owner: OwnerId,
    /// The number of its repository.
    pub repo: u32,
    pub bytes: u64,
    /// When it was last of use, in seconds since 1970.
    pub worth: u64,
    /// Whether it leads to something that can be served without upstream.
    pub is_whole: bool,
}

/// Bytes that all refs may take, and those of one repository.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct RefLimits {
    pub all: u64,
    pub repo: u64,
    /// Bytes that a repository itself takes as long as it has refs.
    pub repo_itself: u64,
}

/// The bytes of refs of one owner or repository, how many of them are to go, and the number of refs.
#[derive(Clone, Copy, Default)]
struct Amount {
    bytes: u64,
    excess: u64,
    refs: u64,
}

impl Amount {
    fn over(self, limit: u64) -> Self {
        let excess = if self.bytes > limit { self.bytes - limit / DOWN_OF * DOWN_TO } else { 0 };
        Self { excess, ..self }
    }
}

/// Returns the indices of the refs to remove. `kept` has the bytes of each owner that must stay, such as those of
/// pins.
pub(in crate::store) fn plan_refs(
    refs: &[RefItem],
    kept: &HashMap<OwnerId, u64>,
    limits: RefLimits,
) -> Vec<usize> {
    let mut owners: HashMap<OwnerId, Amount> = HashMap::new();
    let mut repos: HashMap<u32, Amount> = HashMap::new();
    for (owner, bytes) in kept {
        owners.entry(*owner).or_default().bytes += bytes;
    }
    for item in refs {
        let repo = repos.entry(item.repo).or_default();
        let itself = if repo.refs == 0 { limits.repo_itself } else { 0 };
        repo.bytes += item.bytes + itself;
        repo.refs += 1;
        owners.entry(item.owner).or_default().bytes += item.bytes + itself;
    }
    let mut all: Vec<u64> = owners.values().map(|amount| amount.bytes).collect();
    all.sort_unstable();
    all.pop();
    let share = fair_share(limits.all, &all);
    owners.values_mut().for_each(|amount| *amount = amount.over(share));
    repos.values_mut().for_each(|amount| *amount = amount.over(limits.repo));

    let mut order: Vec<usize> = (0..refs.len()).collect();
    order.sort_unstable_by_key(|at| (refs[*at].is_whole, refs[*at].worth, *at));
    let mut goes = Vec::new();
    for at in order {
        let item = refs[at];
        let owner = owners.entry(item.owner).or_default();
        let repo = repos.entry(item.repo).or_default();
        if owner.excess == 0 && repo.excess == 0 {
            continue;
        }
        repo.refs -= 1;
        let itself = if repo.refs == 0 { limits.repo_itself } else { 0 };
        owner.excess = owner.excess.saturating_sub(item.bytes + itself);
        repo.excess = repo.excess.saturating_sub(item.bytes + itself);
        goes.push(at);
    }
    goes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(owner: u16, repo: u32, worth: u64, is_whole: bool) -> RefItem {
        RefItem { owner: OwnerId(owner), repo, bytes: 4, worth, is_whole }
    }

    fn plan(refs: &[RefItem], all: u64, repo: u64) -> Vec<usize> {
        plan_refs(refs, &HashMap::new(), RefLimits { all, repo, repo_itself: 8 })
    }

    #[test]
    fn the_registry_with_more_than_its_share_pays_and_the_least_useful_goes_first() {
        let mut refs = vec![item(2, 0, 1, false), item(2, 0, 2, true)];
        refs.extend((0..20).map(|number| item(3, 1, 100 + number, number % 2 == 0)));
        assert!(plan(&refs, 104, 999).is_empty(), "16 of the one, 88 of the other");
        // The other may have 80, and is brought down to 70.
        assert_eq!(plan(&refs, 96, 999), [3, 5, 7, 9, 11], "without a whole image, oldest first");
        let many = plan(&refs, 32, 999);
        assert_eq!(many[..10], [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]);
        assert_eq!(many[10..12], [2, 4], "then the others");
        assert!(!many.contains(&0), "the first registry has less than its share");
    }

    #[test]
    fn a_repository_has_a_limit_of_its_own_and_an_empty_one_is_gain() {
        let refs: Vec<_> = (0..10).map(|number| item(2, 0, number, true)).collect();
        assert!(plan(&refs, 999, 48).is_empty(), "as much as it may have");
        assert_eq!(plan(&refs, 999, 40), [0, 1, 2, 3]);
        let small: Vec<_> = (0..10).map(|number| item(2, number, u64::from(number), true)).collect();
        assert_eq!(plan(&small, 80, 48), [0, 1, 2, 3, 4], "12 each");
        let kept = HashMap::from([(OwnerId(2), 1000)]);
        let limits = RefLimits { all: 80, repo: 48, repo_itself: 8 };
        assert_eq!(plan_refs(&small, &kept, limits).len(), 10, "what pins need stays, and counts");
    }
}
