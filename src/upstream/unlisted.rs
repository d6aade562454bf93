//! Registries that the configuration does not list, which parents are asked for: a node cannot know what its site knows.
//!
//! Clients may name as many as they like, so none of them has anything of its own: one [`Upstream`](super::Upstream) stands for all, with its
//! parents, their circuits and connections, and what is asked for one registry is asked by a copy of it with another name.
//! What is remembered of single registries is bounded: what parents have said of their repositories, and that they do not
//! know them at all (`mirror`).

use super::config::Config;
use super::parents::ParentsConfig;
use crate::oci::Registry;

impl Config {
    /// What parents are asked with for every registry that is not listed; `None` if they are not.
    pub fn unlisted(parents: &ParentsConfig, offline: bool) -> Option<Self> {
        let parents = parents.take_any().then(|| ParentsConfig { only: true, ..parents.clone() });
        parents.map(|parents| Self {
            offline,
            parents: Some(parents),
            ..Self::new(Registry::all_unlisted(), Vec::new())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Upstream;
    use super::*;
    use crate::context::RequestContext;

    #[test]
    fn one_stands_for_all_of_them_and_shares_what_it_takes_to_ask() {
        let parents: ParentsConfig =
            toml::from_str("endpoints = ['http://site.example:5000']\nany = true").unwrap();
        let config = Config::unlisted(&parents, false).unwrap();
        let all = Upstream::build(&config, Arc::new(|_, _| {})).unwrap();
        let one = all.of_unlisted(&Registry::parse("a.example").unwrap());
        assert!(Arc::ptr_eq(&all.shared, &one.shared) && one.has_only_parents());
        assert_eq!((one.registry().as_str(), one.registry().label()), ("a.example", "other"));
        let asked = one.parents_in_order("key", &RequestContext::default());
        let names: Vec<_> = asked.iter().map(|parent| parent.registry().as_str()).collect();
        assert_eq!(names, ["a.example"]);
        asked[0].mirror().unwrap().note_unknown(one.registry());
        assert!(one.parents_in_order("key", &RequestContext::default()).is_empty());
        let other = all.of_unlisted(&Registry::parse("b.example").unwrap());
        assert!(one.is_unknown_to_parents() && !other.is_unknown_to_parents());
    }

    #[test]
    fn parents_alone_are_asked_for_any_registry_unless_that_is_forbidden() {
        let check = |keys: &str, expected: bool| {
            let parents: ParentsConfig =
                toml::from_str(&format!("endpoints = ['http://s']\n{keys}")).unwrap();
            assert_eq!(Config::unlisted(&parents, false).is_some(), expected, "{keys}");
        };
        check("", false);
        check("any = true", true);
        check("only = true", true);
        check("only = true\nany = false", false);
    }
}
