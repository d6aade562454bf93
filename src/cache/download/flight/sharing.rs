//! The terms on which a flight is shared: who sends the content, and which other repositories read along by a claim.

use std::sync::Mutex;

use crate::oci::{Repo, Speaker};
use crate::sync::lock;
use crate::upstream::Claim;

/// The most repositories that are granted the content of another repository's flight by their claims. Further ones are
/// asked about again.
const CLAIMS_MAX: usize = 64;

/// Who sends the content of a flight, and who reads along by a claim.
#[derive(Default)]
pub(in crate::cache::download) struct Sharing(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// Whether some of the content has come from a sender other than a parent.
    is_by_others: bool,
    /// Whether some of it has come from a fallback, which may have content that the registry itself has not.
    has_fallback: bool,
    /// The repositories that read along, each with its claim.
    claims: Vec<(Repo, Claim)>,
}

impl Sharing {
    /// Whether a claim of `repo` opens the flight to it. If so, the claim is noted.
    pub(super) fn admits(&self, repo: &Repo, claim: Claim) -> bool {
        let mut said = lock(&self.0);
        let counts = match claim.speaker {
            Speaker::Registry => !said.has_fallback,
            Speaker::Parent => !said.is_by_others && !said.has_fallback,
            Speaker::Fallback => false,
        };
        if counts && said.claims.len() < CLAIMS_MAX && !said.claims.iter().any(|(of, _)| of == repo) {
            said.claims.push((repo.clone(), claim));
        }
        counts
    }

    /// Whether bytes of `speaker` may be part of the content. They may not if somebody reads along by the claim of a
    /// parent: that claim says nothing about what comes with a login of this berth.
    pub(in crate::cache::download) fn allows(&self, speaker: Speaker) -> bool {
        let mut said = lock(&self.0);
        if speaker == Speaker::Parent {
            return true;
        }
        let is_open_by_parent = said.claims.iter().any(|(_, claim)| claim.speaker == Speaker::Parent);
        said.is_by_others |= !is_open_by_parent;
        !is_open_by_parent
    }

    /// Notes that a fallback sends some of the content.
    pub(in crate::cache::download) fn note_fallback(&self) {
        lock(&self.0).has_fallback = true;
    }

    /// Whether a fallback sends some of the content. A repository whose registry has the content itself does better
    /// without.
    pub(super) fn has_fallback(&self) -> bool {
        lock(&self.0).has_fallback
    }

    /// The repositories whose claim was right for a content of `total` bytes, each with the speaker of its claim.
    pub(in crate::cache::download) fn claimants(&self, total: u64) -> Vec<(Repo, Speaker)> {
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
        let sharing = Sharing::default();
        assert!(sharing.allows(Speaker::Parent));
        assert!(sharing.admits(&repo("a"), claim(5, Speaker::Parent)));
        assert!(sharing.admits(&repo("b"), claim(7, Speaker::Registry)));
        assert!(!sharing.admits(&repo("c"), claim(5, Speaker::Fallback)));
        assert!(!sharing.allows(Speaker::Registry) && !sharing.allows(Speaker::Fallback));
        assert_eq!(sharing.claimants(5), [(repo("a"), Speaker::Parent)]);
        let sharing = Sharing::default();
        assert!(sharing.allows(Speaker::Registry));
        assert!(!sharing.admits(&repo("a"), claim(5, Speaker::Parent)));
        assert!(sharing.admits(&repo("a"), claim(5, Speaker::Registry)));
        sharing.note_fallback();
        assert!(!sharing.admits(&repo("b"), claim(5, Speaker::Registry)));
        let sharing = Sharing::default();
        assert!(sharing.allows(Speaker::Parent));
        sharing.note_fallback();
        assert!(!sharing.admits(&repo("b"), claim(5, Speaker::Parent)));
    }
}
