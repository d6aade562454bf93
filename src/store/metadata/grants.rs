//! Which repositories may be served a digest: each by a grant of its own, or all because it is public.
//!
//! **What a registry merely claims changes nothing for anybody but its own repositories, until the digest is proven
//! by bytes that this registry sent.** So a grant says how it was proven, and by which server; the index knows for
//! each digest which registries hold it ([`Holding`]). What one registry holds is shared among its own repositories
//! by that registry's word; another registry must send the content itself.
//!
//! Content is public if a server has sent it without a credential. A parent may say so of what it has fetched, but
//! not of what this berth has fetched with a login.
//!
//! Earlier versions of berth took a claim for a proof. Their grants stand where one registry alone holds a digest: no
//! other can have claimed it. Where several hold content that came with a credential, none of these grants is
//! believed until it is proven again. A grant that stands is written anew when it is first used, so that it still
//! stands when another registry comes to hold the same content.

use crate::oci::{Registry, Speaker};
use crate::store::metadata::records::{Grant, Proof};

/// What one registry holds of a digest, by the grants of all its repositories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Holding(u8);

impl Holding {
    /// The content was sent without a credential.
    const PUBLIC: u8 = 1;
    /// There is a proven grant for one repository alone.
    const PRIVATE: u8 = 1 << 1;
    /// There is a public grant of an earlier version of berth.
    const PUBLIC_UNPROVEN: u8 = 1 << 2;
    /// There is a grant of an earlier version for one repository alone.
    const PRIVATE_UNPROVEN: u8 = 1 << 3;
    /// The content was, or may have been, fetched with a login of this berth's own.
    const OWN_LOGIN: u8 = 1 << 4;
    /// The content was sent by a parent.
    const BY_PARENT: u8 = 1 << 5;

    pub(in crate::store) fn of(grant: Grant) -> Self {
        // Berths before this one did not say who sent it.
        let is_sent = matches!(grant.proof, None | Some(Proof::Kept | Proof::Sent));
        let by_own_login = !grant.public && is_sent && grant.speaker != Speaker::Parent;
        let flags = [
            (grant.public && grant.proof.is_some(), Self::PUBLIC),
            (!grant.public && grant.proof.is_some(), Self::PRIVATE),
            (grant.public && grant.proof.is_none(), Self::PUBLIC_UNPROVEN),
            (!grant.public && grant.proof.is_none(), Self::PRIVATE_UNPROVEN),
            (by_own_login, Self::OWN_LOGIN),
            (grant.proof == Some(Proof::Sent) && grant.speaker == Speaker::Parent, Self::BY_PARENT),
        ];
        Self(flags.into_iter().filter(|(holds, _)| *holds).fold(0, |all, (_, flag)| all | flag))
    }

    pub(in crate::store) fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    pub(in crate::store) fn byte(self) -> u8 {
        self.0
    }

    pub(in crate::store) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any of it was, or may have been, fetched with a login of this berth's own.
    pub(in crate::store) fn is_by_own_login(self) -> bool {
        self.has(Self::OWN_LOGIN)
    }

    fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    fn is_proven(self) -> bool {
        self.has(Self::PUBLIC | Self::PRIVATE)
    }
}

/// What each registry holds of a digest.
pub(in crate::store) type Holdings = Vec<(Registry, Holding)>;

/// Whether grants of earlier versions are believed. They are not if several registries hold content that came with a
/// credential.
pub(in crate::store) fn unproven_stand(holdings: &Holdings) -> bool {
    let is_private = |(_, holding): &(Registry, Holding)| {
        holding.has(Holding::PRIVATE | Holding::PRIVATE_UNPROVEN | Holding::OWN_LOGIN)
    };
    holdings.len() <= 1 || !holdings.iter().any(is_private)
}

/// Whether some registry has sent it without a credential.
pub(in crate::store) fn is_sent_publicly(holdings: &Holdings) -> bool {
    holdings.iter().any(|(_, holding)| holding.has(Holding::PUBLIC))
}

/// Whether every repository may be served it.
pub(in crate::store) fn is_public(holdings: &Holdings) -> bool {
    is_sent_publicly(holdings)
        || unproven_stand(holdings)
            && holdings.iter().any(|(_, holding)| holding.has(Holding::PUBLIC_UNPROVEN))
}

/// Whether a claim that `speaker` makes for a repository of a registry proves its right. A registry may show what it
/// holds to more of its repositories; `registries` are its names. A parent does not vouch for content that came with
/// a login of this berth's own, and a fallback vouches for nothing.
pub(in crate::store) fn is_vouched(holdings: &Holdings, registries: &[Registry], speaker: Speaker) -> bool {
    let own = holdings.iter().filter(|(registry, _)| registries.contains(registry));
    let held = own.fold(Holding::default(), |all, (_, holding)| all.and(*holding));
    match speaker {
        Speaker::Registry => {
            held.is_proven() || held.has(Holding::PRIVATE_UNPROVEN) && unproven_stand(holdings)
        }
        Speaker::Parent => held.has(Holding::BY_PARENT) && !held.has(Holding::OWN_LOGIN),
        Speaker::Fallback => false,
    }
}

/// Returns the grant that `old` and `new` make together.
pub(in crate::store) fn merged(old: Grant, new: Grant) -> Grant {
    let public = old.public && old.proof.is_some() || new.public || old.public && new.proof.is_none();
    // That it came with a login of this berth's own must not be forgotten for a parent's word.
    let sent = [old, new].into_iter().filter(|grant| grant.proof == Some(Proof::Sent));
    let speaker = sent.map(|grant| grant.speaker).find(|speaker| *speaker != Speaker::Parent);
    Grant { public, proof: old.proof.max(new.proof), speaker: speaker.unwrap_or(new.speaker) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(public: bool, proof: Option<Proof>, speaker: Speaker) -> Grant {
        Grant { public, proof, speaker }
    }

    fn holdings(of: &[(&str, Grant)]) -> Holdings {
        of.iter().map(|(name, grant)| (Registry::parse(name).unwrap(), Holding::of(*grant))).collect()
    }

    const SENT: Option<Proof> = Some(Proof::Sent);

    #[test]
    fn an_earlier_berths_grants_stand_where_nobody_else_can_have_claimed_it() {
        let check = |of: &[(&str, Grant)], stand: bool, public: bool| {
            let holdings = holdings(of);
            assert_eq!((unproven_stand(&holdings), is_public(&holdings)), (stand, public), "{of:?}");
        };
        let (private, public) = (grant(false, None, Speaker::Registry), grant(true, None, Speaker::Registry));
        check(&[], true, false);
        check(&[("a.test", private)], true, false);
        check(&[("a.test", public)], true, true);
        check(&[("a.test", private), ("b.test", private)], false, false);
        check(&[("a.test", public), ("b.test", private)], false, false);
        check(&[("a.test", public), ("b.test", public)], true, true);
        check(&[("a.test", private), ("b.test", grant(true, SENT, Speaker::Registry))], false, true);
        check(&[("a.test", public), ("b.test", grant(false, SENT, Speaker::Registry))], false, false);
    }

    #[test]
    fn who_vouches_for_what() {
        let registries = [Registry::parse("a.test").unwrap()];
        let check = |of: &[(&str, Grant)], expected: [bool; 3]| {
            let vouched = [Speaker::Registry, Speaker::Parent, Speaker::Fallback]
                .map(|speaker| is_vouched(&holdings(of), &registries, speaker));
            assert_eq!(vouched, expected, "{of:?}");
        };
        let by = |speaker| grant(false, SENT, speaker);
        check(&[], [false, false, false]);
        check(&[("a.test", by(Speaker::Registry))], [true, false, false]);
        check(&[("a.test", by(Speaker::Parent))], [true, true, false]);
        check(&[("a.test", by(Speaker::Fallback))], [true, false, false]);
        check(&[("b.test", by(Speaker::Registry))], [false, false, false]);
        check(&[("a.test", grant(false, Some(Proof::Stated), Speaker::Registry))], [true, false, false]);
        let earlier = grant(false, None, Speaker::Registry);
        check(&[("a.test", earlier)], [true, false, false]);
        check(&[("a.test", earlier), ("b.test", earlier)], [false, false, false]);
        let both = merged(by(Speaker::Parent), by(Speaker::Registry));
        check(&[("a.test", both)], [true, false, false]);
    }

    #[test]
    fn a_grant_grows_and_never_shrinks() {
        let check = |old: Grant, new: Grant, expected: Grant| assert_eq!(merged(old, new), expected);
        let stated = grant(false, Some(Proof::Stated), Speaker::Registry);
        let sent = grant(false, SENT, Speaker::Registry);
        let public = grant(true, SENT, Speaker::Registry);
        check(stated, sent, sent);
        check(sent, stated, sent);
        check(sent, public, public);
        check(public, stated, public);
        // An earlier berth's word that it is public is no proof of that.
        check(grant(true, None, Speaker::Registry), sent, sent);
        check(sent, grant(false, SENT, Speaker::Parent), sent);
    }
}
