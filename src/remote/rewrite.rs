//! The names of repositories at a remote that is itself a mirror, such as a Harbor project.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de};

use crate::oci::RepoName;
use crate::remote::error::Error;

/// One entry of `rewrite`: names that begin with `from` begin with `to` at the upstream. The first match decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    from: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteTable {
    from: String,
    to: String,
}

impl<'de> Deserialize<'de> for Rewrite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RewriteTable { from, to } = RewriteTable::deserialize(deserializer)?;
        for text in [&from, &to] {
            let is_prefix =
                text.is_empty() || text.strip_suffix('/').is_some_and(|name| RepoName::parse(name).is_ok());
            if !is_prefix {
                let expected = "expected the beginning of a repository's name up to a `/`, such as `library/`, or nothing";
                return Err(de::Error::custom(format!("`{text}`: {expected}")));
            }
        }
        Ok(Self { from, to })
    }
}

/// What the repository `name` is called at the upstream.
///
/// # Errors
/// When it would be longer than a name can be.
pub(crate) fn at_upstream<'a>(rewrites: &[Rewrite], name: &'a RepoName) -> Result<Cow<'a, RepoName>, Error> {
    let found =
        rewrites.iter().find_map(|rewrite| Some((rewrite, name.as_str().strip_prefix(&rewrite.from)?)));
    let Some((rewrite, rest)) = found else { return Ok(Cow::Borrowed(name)) };
    let renamed = RepoName::parse(&format!("{}{rest}", rewrite.to));
    renamed.map(Cow::Owned).map_err(|_| Error::Malformed("a name that `rewrite` makes too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_prefix_that_matches_is_replaced() {
        let rewrite = |from: &str, to: &str| Rewrite { from: from.to_owned(), to: to.to_owned() };
        let rewrites = [rewrite("library/", "hub/official/"), rewrite("old/", ""), rewrite("", "hub/")];
        let check = |name: &str, expected: Option<&str>| {
            let name = RepoName::parse(name).unwrap();
            let renamed = at_upstream(&rewrites, &name).ok();
            assert_eq!(renamed.as_deref().map(RepoName::as_str), expected, "{name}");
        };
        check("library/alpine", Some("hub/official/alpine"));
        check("old/app", Some("app"));
        check("grafana/loki", Some("hub/grafana/loki"));
        check(&format!("a/{}", "b".repeat(250)), None);
    }

    #[test]
    fn a_prefix_ends_with_a_slash() {
        let check = |text: &str, is_good: bool| {
            assert_eq!(toml::from_str::<Rewrite>(text).is_ok(), is_good, "{text}");
        };
        check("from = 'library/'\nto = 'hub/library/'", true);
        check("from = ''\nto = 'hub/'", true);
        check("from = 'library'\nto = 'hub/'", false);
        check("from = '/'\nto = ''", false);
        check("from = ''\nto = '../'", false);
        check("from = ''", false);
    }
}
