//! Is what is known of a tag still good? A pure function, and the rules it follows.
//!
//! A tag may move upstream at any time; a digest never does. [`judge`] takes what is known, the rule for the
//! tag, the time and whether upstream can be reached, and says what to do. It never looks at a clock itself.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::oci::{Repo, Tag};

/// How long a tag is served without asking upstream whether it moved.
pub const CHECK_AFTER_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// One `[[tags]]` entry: which tags, and how fresh they must be. The first match decides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `registry/repository:tag` with `*` for any text.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// The tag never moves: once known, upstream is not asked again.
    #[serde(default)]
    pub immutable: bool,
    /// For how long a tag is served without asking, such as `"5m"`.
    #[serde(default = "check_after_default", deserialize_with = "duration")]
    pub check_after: Duration,
    /// Serve at once what is known and ask upstream behind the answer.
    #[serde(default)]
    pub check_behind: bool,
    /// For how long after its last check a tag is served when upstream cannot be asked: `"forever"` or a
    /// duration.
    #[serde(default)]
    pub serve_stale: StaleLimit,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            pattern: Pattern::any(),
            immutable: false,
            check_after: CHECK_AFTER_DEFAULT,
            check_behind: false,
            serve_stale: StaleLimit::Forever,
        }
    }
}

/// The rules of a configuration, in order.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    otherwise: Rule,
}

impl Rules {
    /// `rules` in the order in which they are tried; a tag that none matches follows the default rule.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, otherwise: Rule::default() }
    }

    /// The rule for `repo:tag`.
    pub fn find(&self, repo: &Repo, tag: &Tag) -> &Rule {
        if self.rules.is_empty() {
            // Mostly there are none, and every request for a tag asks.
            return &self.otherwise;
        }
        let name = format!("{repo}:{tag}");
        self.rules.iter().find(|rule| rule.pattern.matches(&name)).unwrap_or(&self.otherwise)
    }
}

/// A glob over `registry/repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(glob::Pattern);

impl Pattern {
    fn any() -> Self {
        Self(glob::Pattern::default())
    }

    fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = "expected registry/repository:tag with *, such as docker.io/library/*:*";
        if !text.contains('/') || !text.contains(':') {
            return Err(de::Error::custom(format!("`{text}`: {expected}")));
        }
        let pattern = glob::Pattern::new(&text)
            .map_err(|error| de::Error::custom(format!("`{text}`: {error}; {expected}")))?;
        Ok(Self(pattern))
    }
}

/// How old an unconfirmed tag may be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleLimit {
    /// Whatever its age: better an old image than none.
    #[default]
    Forever,
    /// At most so long after its last check.
    For(Duration),
}

impl<'de> Deserialize<'de> for StaleLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "forever" { Ok(Self::Forever) } else { Ok(Self::For(parse_duration(&text)?)) }
    }
}

/// What to do about a request for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer from disk; upstream need not know.
    Serve,
    /// Answer from disk, marked stale: upstream would have to confirm and cannot.
    ServeStale,
    /// Answer from disk, and ask upstream behind the answer.
    ServeAndCheck,
    /// Ask upstream first; if it cannot answer, serve what is known.
    CheckFirst,
    /// Ask upstream first; if it cannot answer, refuse: what is known is too old.
    CheckOrRefuse,
}

/// Judges a tag that was last confirmed at `checked_at`, at the time `now` (both in seconds since 1970).
///
/// `reachable` is false when upstream is known to be down, so that nobody waits to learn it again. A clock
/// that jumped back makes a check due; it never makes a tag too old to serve.
pub fn judge(checked_at: u64, rule: &Rule, now: u64, reachable: bool) -> Verdict {
    if rule.immutable || is_within(checked_at, rule.check_after, now) {
        return Verdict::Serve;
    }
    let age = now.checked_sub(checked_at).map(Duration::from_secs);
    let too_old = match rule.serve_stale {
        StaleLimit::Forever => false,
        StaleLimit::For(limit) => age.is_some_and(|age| age > limit),
    };
    match (too_old, reachable) {
        (true, _) => Verdict::CheckOrRefuse,
        (false, false) => Verdict::ServeStale,
        (false, true) if rule.check_behind => Verdict::ServeAndCheck,
        (false, true) => Verdict::CheckFirst,
    }
}

/// Whether `limit` has not passed since `then`. What seems to be from the future has no age, and is not.
pub(super) fn is_within(then: u64, limit: Duration, now: u64) -> bool {
    now.checked_sub(then).is_some_and(|age| Duration::from_secs(age) < limit)
}

fn check_after_default() -> Duration {
    CHECK_AFTER_DEFAULT
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?)
}

fn parse_duration<E: de::Error>(text: &str) -> Result<Duration, E> {
    humantime::parse_duration(text).map_err(|error| {
        E::custom(format!("`{text}`: {error}; expected a duration such as \"30s\", \"5m\" or \"12h\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn rule(text: &str) -> Rule {
        toml::from_str(&format!("match = \"*/*:*\"\n{text}")).unwrap()
    }

    #[test]
    fn judges_by_age_rule_and_reach() {
        let check = |checked_at: u64, rule: &Rule, reachable: bool, expected: Verdict| {
            assert_eq!(
                judge(checked_at, rule, NOW, reachable),
                expected,
                "{checked_at} {rule:?} {reachable}"
            );
        };
        let usual = Rule::default();
        check(NOW, &usual, true, Verdict::Serve);
        check(NOW - 299, &usual, false, Verdict::Serve);
        check(NOW - 300, &usual, true, Verdict::CheckFirst);
        check(NOW - 300, &usual, false, Verdict::ServeStale);
        check(0, &usual, false, Verdict::ServeStale);
        check(NOW + 500, &usual, true, Verdict::CheckFirst);
        check(NOW + 500, &usual, false, Verdict::ServeStale);
        check(0, &rule("immutable = true"), true, Verdict::Serve);
        check(NOW - 400, &rule("check_behind = true"), true, Verdict::ServeAndCheck);
        let limited = rule("serve_stale = \"1h\"");
        check(NOW - 3600, &limited, false, Verdict::ServeStale);
        check(NOW - 3601, &limited, false, Verdict::CheckOrRefuse);
        check(NOW - 3601, &limited, true, Verdict::CheckOrRefuse);
        check(NOW + 9999, &limited, false, Verdict::ServeStale);
        check(NOW, &rule("check_after = \"0s\""), true, Verdict::CheckFirst);
    }

    #[test]
    fn a_clock_that_jumps_makes_a_check_due_and_refuses_nothing() {
        let minute = Duration::from_secs(60);
        assert!(is_within(NOW, minute, NOW) && is_within(NOW - 59, minute, NOW));
        assert!(!is_within(NOW - 60, minute, NOW) && !is_within(NOW + 1, minute, NOW));
        let limited = rule("serve_stale = \"0s\"");
        for now in [0, 1, NOW - 1] {
            assert_eq!(judge(NOW, &limited, now, true), Verdict::CheckFirst, "back to {now}");
            assert_eq!(judge(NOW, &limited, now, false), Verdict::ServeStale, "back to {now}");
        }
        assert_eq!(judge(NOW, &Rule::default(), u64::MAX, false), Verdict::ServeStale);
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let read = |pattern: &str, after: &str| -> Rule {
            toml::from_str(&format!("match = {pattern:?}\ncheck_after = {after:?}")).unwrap()
        };
        let rules = Rules::new(vec![read("docker.io/library/*:3*", "1s"), read("docker.io/*:*", "2s")]);
        let check = |registry: &str, name: &str, tag: &str, seconds: u64| {
            let repo = Repo::new(registry.parse().unwrap(), name.parse().unwrap());
            let found = rules.find(&repo, &tag.parse().unwrap()).check_after;
            assert_eq!(found, Duration::from_secs(seconds), "{repo}:{tag}");
        };
        check("docker.io", "alpine", "3.20", 1);
        check("docker.io", "alpine", "edge", 2);
        check("docker.io", "grafana/loki", "3.20", 2);
        check("docker.io", "a/b/c", "3", 2);
        check("quay.io", "library/alpine", "3.20", 300);
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for text in ["match = \"alpine\"", "match = \"a/b:*\"\ncheck_after = \"soon\"", "match = \"a/b:***\""]
        {
            assert!(toml::from_str::<Rule>(text).is_err(), "{text}");
        }
    }
}
