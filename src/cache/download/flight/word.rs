//! Whose word there is about a flight: who sends it, and for which other repositories the same was claimed.

use std::sync::Mutex;

use crate::oci::{Repo, Speaker};
use crate::sync::lock;
use crate::upstream::Claim;

/// Repositories that are granted a content with the one that its flight was for; further ones are asked about again.
const CLAIMS_MAX: usize = 64;

/// Who sends a flight, and who reads along by a claim.
#[derive(Default)]
pub(in crate::cache) struct Word(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// Whether some of it has come from others than parents.
    is_by_others: bool,
    /// Whether some of it has come from a fallback, which may have it where the registry itself has it not.
    is_by_fallback: bool,
    /// The repositories that read along.
    claims: Vec<(Repo, Claim)>,
}

impl Word {
    /// Whether a claim for a repository opens the flight to it; noted if so.
    pub(super) fn opens_to(&self, repo: &Repo, claim: Claim) -> bool {
        let mut said = lock(&self.0);
        let counts = match claim.speaker {
            Speaker::Registry => !said.is_by_fallback,
            Speaker::Parent => !said.is_by_others && !said.is_by_fallback,
            Speaker::Fallback => false,
        };
        if counts && said.claims.len() < CLAIMS_MAX && !said.claims.iter().any(|(of, _)| of == repo) {
            said.claims.push((repo.clone(), claim));
        }
        counts
    }

    /// Whether bytes of `speaker` may be a part of it: not for those who read along by a parent's claim, which says
    /// nothing about what comes with a login of this berth's own.
    pub(in crate::cache) fn allows(&self, speaker: Speaker) -> bool {
        let mut said = lock(&self.0);
        if speaker == Speaker::Parent {
            return true;
        }
        let is_open_by_parent = said.claims.iter().any(|(_, claim)| claim.speaker == Speaker::Parent);
        said.is_by_others |= !is_open_by_parent;
        !is_open_by_parent
    }

    /// A fallback sends some of it.
    pub(in crate::cache) fn comes_from_fallback(&self) {
        lock(&self.0).is_by_fallback = true;
    }

    /// Whether a fallback sends it: a repository for which the registry has it itself has no need of that.
    pub(super) fn is_by_fallback(&self) -> bool {
        lock(&self.0).is_by_fallback
    }

    /// The repositories for which just this was claimed, and by whom.
    pub(in crate::cache) fn claimants(&self, total: u64) -> Vec<(Repo, Speaker)> {
        let said = lock(&self.0);
        let right = said.claims.iter().filter(|(_, claim)| claim.size == total);
        right.map(|(repo, claim)| (repo.clone(), claim.speaker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parents_word_opens_what_only_parents_send() {
        let repo = |name: &str| Repo::new("r.example".parse().unwrap(), name.parse().unwrap());
        let claim = |size, speaker| Claim { size, speaker };
        let word = Word::default();
        assert!(word.allows(Speaker::Parent));
        assert!(word.opens_to(&repo("a"), claim(5, Speaker::Parent)));
        assert!(word.opens_to(&repo("b"), claim(7, Speaker::Registry)));
        assert!(!word.opens_to(&repo("c"), claim(5, Speaker::Fallback)));
        assert!(!word.allows(Speaker::Registry) && !word.allows(Speaker::Fallback));
        assert_eq!(word.claimants(5), [(repo("a"), Speaker::Parent)]);
        let word = Word::default();
        assert!(word.allows(Speaker::Registry));
        assert!(!word.opens_to(&repo("a"), claim(5, Speaker::Parent)));
        assert!(word.opens_to(&repo("a"), claim(5, Speaker::Registry)));
        word.comes_from_fallback();
        assert!(!word.opens_to(&repo("b"), claim(5, Speaker::Registry)));
        let word = Word::default();
        assert!(word.allows(Speaker::Parent));
        word.comes_from_fallback();
        assert!(!word.opens_to(&repo("b"), claim(5, Speaker::Parent)));
    }
}
