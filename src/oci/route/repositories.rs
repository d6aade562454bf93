//! Which repositories of a registry may be pulled through this mirror.

use serde::{Deserialize, Deserializer, de};

use crate::oci::RepoName;

/// `repositories`: who is in `deny`, or is not in an `allow` that there is, is answered 403, also from disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repositories {
    /// Those that may be pulled; empty: all.
    pub allow: Vec<Names>,
    /// Those of them that may not.
    pub deny: Vec<Names>,
}

impl Repositories {
    /// Whether this one may be pulled.
    pub fn may_have(&self, name: &RepoName) -> bool {
        let is_among = |patterns: &[Names]| patterns.iter().any(|pattern| pattern.0.matches(name.as_str()));
        (self.allow.is_empty() || is_among(&self.allow)) && !is_among(&self.deny)
    }

    /// Whether that is true of all.
    pub fn have_no_limits(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// Repositories by name: `*` is any text, slashes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(glob::Pattern);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = "expected a repository with *, such as library/*, without registry and tag";
        if text.is_empty() || text.contains(':') {
            return Err(de::Error::custom(format!("`{text}`: {expected}")));
        }
        let pattern = glob::Pattern::new(&text);
        pattern.map(Self).map_err(|error| de::Error::custom(format!("`{text}`: {error}; {expected}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_or_not_allowed_may_not_be_had() {
        let check = |text: &str, name: &str, expected: bool| {
            let repositories: Repositories = toml::from_str(text).unwrap();
            assert_eq!(repositories.may_have(&RepoName::parse(name).unwrap()), expected, "{text}: {name}");
        };
        check("", "a/b", true);
        check("allow = ['library/*']", "library/alpine", true);
        check("allow = ['library/*']", "grafana/loki", false);
        check("allow = ['a', 'b/*']", "b/c/d", true);
        check("deny = ['*/secret*']", "a/b/secrets/c", false);
        check("deny = ['*/secret*']", "a/b", true);
        check("allow = ['a/*']\ndeny = ['a/b']", "a/b", false);
        for wrong in ["allow = ['']", "allow = ['a:1']", "deny = ['a/[']", "only = []"] {
            assert!(toml::from_str::<Repositories>(wrong).is_err(), "{wrong}");
        }
    }
}
