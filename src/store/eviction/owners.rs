//! The numbers that registries have in one picture.

use std::collections::{HashMap, HashSet};

use crate::oci::Registry;
use crate::store::eviction::plan::stock::OwnerId;

/// Stands for the registries without a share of their own. No registry can have this name.
const ALL_OTHERS: &str = "*";

/// The numbers that registries have in one picture.
#[derive(Default)]
pub(in crate::store) struct Owners {
    /// The registries with a number of their own, if not all have one.
    sharing: Option<HashSet<String>>,
    numbers: HashMap<String, OwnerId>,
    /// The registry that was asked for last. Content of one registry comes together.
    last: Option<(String, OwnerId)>,
}

impl Owners {
    pub(in crate::store) fn among(sharing: Option<&[Registry]>) -> Self {
        let names = |all: &[Registry]| all.iter().map(|registry| registry.as_str().to_owned()).collect();
        Self { sharing: sharing.map(names), ..Self::default() }
    }

    pub(in crate::store) fn number(&mut self, registry: &str) -> OwnerId {
        if let Some((last, owner)) = &self.last
            && last == registry
        {
            return *owner;
        }
        let next = u16::try_from(self.numbers.len()).ok().and_then(|count| count.checked_add(OwnerId::FIRST));
        // More registries than have a number share one.
        let next = next.map_or(OwnerId::SEVERAL, OwnerId);
        let has_own = self.sharing.as_ref().is_none_or(|sharing| sharing.contains(registry));
        let name = if has_own { registry } else { ALL_OTHERS };
        let owner = *self.numbers.entry(name.to_owned()).or_insert(next);
        self.last = Some((registry.to_owned(), owner));
        owner
    }
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
