//! Freshness: whether what is known of a tag is still good. A pure function, and the rules it follows.
//!
//! A tag may move upstream at any time; a digest never does. [`judge`] takes what is known, the rule for the tag, the
//! time and the last word of upstream, and says what to do. It never looks at a clock itself. After a check has failed
//! it is asked again, with what upstream said or failed to say: so this is the one place that decides about a known
//! tag.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::clock::{age, is_within};
use crate::oci::{Repo, Tag};
use crate::units::{self, Given};

/// How long a tag is served without asking upstream whether it moved, by default.
pub const CHECK_AFTER_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The same for signatures and other referrers, which arrive soon after the push of what they are about.
pub const CHECK_REFERRERS_AFTER: Duration = Duration::from_secs(60);

/// One `[[tags]]` entry: which tags, and how fresh they must be. The first entry that matches decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `registry/repository:tag` with `*` for any text.
    #[serde(rename = "match")]
    pub pattern: TagPattern,
    /// The tag never moves: once known, upstream is not asked again.
    #[serde(default)]
    pub immutable: bool,
    /// How long a tag is served without asking, such as `"5m"`.
    #[serde(default = "check_after_default", deserialize_with = "units::duration")]
    pub check_after: Duration,
    /// Serve what is known at once, and ask upstream in the background (stale-while-revalidate, RFC 5861).
    #[serde(default)]
    pub check_behind: bool,
    /// How long after its last check a tag is served when upstream cannot be asked: `"forever"` or a duration
    /// (stale-if-error, RFC 5861).
    #[serde(default)]
    pub serve_stale: StaleLimit,
    /// What happens to a known tag when upstream says that there is no such tag, or none for us.
    #[serde(default)]
    pub on_removed: OnRemoved,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            pattern: TagPattern::any(),
            immutable: false,
            check_after: CHECK_AFTER_DEFAULT,
            check_behind: false,
            serve_stale: StaleLimit::Forever,
            on_removed: OnRemoved::Refuse,
        }
    }
}

/// The rules of a configuration, in order.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    about_digests: Rule,
    otherwise: Rule,
}

impl Rules {
    /// `rules` in the order in which they are tried. A tag that none matches follows the default rule; if it is
    /// about a digest (a list of referrers, a signature), one that differs in [`CHECK_REFERRERS_AFTER`].
    pub fn new(rules: Vec<Rule>) -> Self {
        let about_digests = Rule { check_after: CHECK_REFERRERS_AFTER, ..Rule::default() };
        Self { rules, about_digests, otherwise: Rule::default() }
    }

    /// The rule for `repo:tag`.
    pub fn find(&self, repo: &Repo, tag: &Tag) -> &Rule {
        let otherwise = if tag.is_about_digest() { &self.about_digests } else { &self.otherwise };
        if self.rules.is_empty() {
            // Usually there are no rules, and every request for a tag asks.
            return otherwise;
        }
        let name = format!("{repo}:{tag}");
        self.rules.iter().find(|rule| rule.pattern.matches(&name)).unwrap_or(otherwise)
    }
}

/// A glob over `registry/repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPattern(glob::Pattern);

impl TagPattern {
    fn any() -> Self {
        Self(glob::Pattern::default())
    }

    fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for TagPattern {
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

/// How old an unconfirmed tag may be to be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleLimit {
    /// Any age: better an old image than none.
    #[default]
    Forever,
    /// At most this long after its last check.
    For(Duration),
}

impl StaleLimit {
    /// Whether a tag that was confirmed at `at` may still be served at the time `now` without a confirmation by
    /// upstream. It may when it is exactly that old, and when a clock that jumped back makes it seem to be from the
    /// future.
    pub(in crate::cache) fn allows(self, at: u64, now: u64) -> bool {
        match self {
            Self::Forever => true,
            Self::For(limit) => age(at, now).is_none_or(|age| Duration::from_secs(age) <= limit),
        }
    }
}

impl<'de> Deserialize<'de> for StaleLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Given::deserialize(deserializer)? {
            Given::Text(text) if text == "forever" => Ok(Self::Forever),
            given => {
                let limit = given.duration().map_err(|error| format!("{error}, or \"forever\""));
                limit.map(Self::For).map_err(de::Error::custom)
            }
        }
    }
}

impl fmt::Display for StaleLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("forever"),
            Self::For(limit) => write!(f, "{}", units::show(*limit)),
        }
    }
}

/// What happens to a known tag that upstream says is not there, or not for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemoved {
    /// Upstream is believed: the tag is gone here, too. What it named can still be pulled by digest.
    #[default]
    Refuse,
    /// What is known is still served, marked stale, within `serve_stale`.
    Serve,
}

impl fmt::Display for OnRemoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Serve => "serve",
        })
    }
}

/// When upstream last confirmed a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The time of the confirmation, in seconds since 1970.
    pub at: u64,
    /// Whether upstream has said since then that there is no such tag: then the confirmation counts for nothing.
    pub revoked: bool,
}

/// What upstream last said about a tag, as far as that still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamWord {
    /// Upstream has said nothing, and can be asked.
    Open,
    /// Upstream could not be asked just now, or is known to be down or offline: no request waits to learn it again.
    Silent,
    /// Upstream said just now that there is no such tag, or none for us.
    Removed,
}

/// What to do about a request for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagVerdict {
    /// Answer from disk without asking upstream.
    Serve,
    /// Answer from disk, marked stale: upstream would have to confirm the tag and cannot.
    ServeStale,
    /// Answer from disk, marked stale: upstream has the tag no more.
    ServeRemoved,
    /// Answer from disk, and ask upstream in the background.
    ServeAndCheck,
    /// Ask upstream, and do not wait long: there is something to fall back on. Then judge again.
    CheckFirst,
    /// Ask upstream: what is known is too old to be served without a confirmation. Then judge again.
    CheckOrRefuse,
    /// Answer with the refusal of upstream, or else that what is known is too old.
    Refuse,
}

/// Judges a known tag at the time `now`, in seconds since 1970.
///
/// A clock that jumped back makes a check due; it never makes a tag too old to serve. Once upstream has spoken, or has
/// failed to, no verdict asks it again. A tag whose confirmation was revoked is not served before the check, not even
/// by a rule that checks behind.
pub fn judge(confirmed: Confirmed, rule: &Rule, now: u64, word: UpstreamWord) -> TagVerdict {
    let Confirmed { at, revoked } = confirmed;
    if rule.immutable || (!revoked && is_within(at, rule.check_after, now)) {
        return TagVerdict::Serve;
    }
    let is_too_old = !rule.serve_stale.allows(at, now);
    match (word, rule.on_removed) {
        (UpstreamWord::Open, _) if is_too_old => TagVerdict::CheckOrRefuse,
        (UpstreamWord::Open, _) if rule.check_behind && !revoked => TagVerdict::ServeAndCheck,
        (UpstreamWord::Open, _) => TagVerdict::CheckFirst,
        (UpstreamWord::Removed, OnRemoved::Refuse) => TagVerdict::Refuse,
        (UpstreamWord::Silent | UpstreamWord::Removed, _) if is_too_old => TagVerdict::Refuse,
        (UpstreamWord::Removed, OnRemoved::Serve) => TagVerdict::ServeRemoved,
        (UpstreamWord::Silent, _) => TagVerdict::ServeStale,
    }
}

fn check_after_default() -> Duration {
    CHECK_AFTER_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn rule(text: &str) -> Rule {
        toml::from_str(&format!("match = \"*/*:*\"\n{text}")).unwrap()
    }

    /// Every combination of what matters, row by row: the age, the rule, then the verdict for each of upstream's words
    /// (open, silent, removed), first with a confirmation that holds and then with a revoked one.
    #[test]
    fn judges_by_age_rule_and_word() {
        use TagVerdict::{CheckFirst, CheckOrRefuse, Refuse, Serve, ServeAndCheck, ServeRemoved, ServeStale};
        const WORDS: [UpstreamWord; 3] = [UpstreamWord::Open, UpstreamWord::Silent, UpstreamWord::Removed];
        const SERVE: [TagVerdict; 3] = [Serve; 3];
        let check = |at: u64, text: &str, holds: [TagVerdict; 3], revoked: [TagVerdict; 3]| {
            let rule = rule(text);
            for (is_revoked, expected) in [(false, holds), (true, revoked)] {
                let confirmed = Confirmed { at, revoked: is_revoked };
                let verdicts = WORDS.map(|word| judge(confirmed, &rule, NOW, word));
                assert_eq!(verdicts, expected, "{at} {text:?} revoked: {is_revoked}");
            }
        };
        let behind = "check_behind = true\n";
        let limit = "serve_stale = \"1h\"\n";
        let serve = "on_removed = \"serve\"\n";
        // Fresh, due, and from a future that a clock has left: each with and without every key.
        for (at, is_fresh) in [(NOW, true), (NOW - 299, true), (NOW - 300, false), (NOW + 500, false)] {
            let fresh = |verdicts| if is_fresh { SERVE } else { verdicts };
            for limit in ["", limit] {
                let due = [CheckFirst, ServeStale, Refuse];
                check(at, limit, fresh(due), due);
                check(at, &[limit, behind].concat(), fresh([ServeAndCheck, ServeStale, Refuse]), due);
                let due = [CheckFirst, ServeStale, ServeRemoved];
                check(at, &[limit, serve].concat(), fresh(due), due);
                let keys = [limit, serve, behind].concat();
                check(at, &keys, fresh([ServeAndCheck, ServeStale, ServeRemoved]), due);
            }
        }
        // Older than serve_stale allows, or just not.
        let due = [CheckFirst, ServeStale, ServeRemoved];
        check(NOW - 3600, &[limit, serve].concat(), due, due);
        let too_old = [CheckOrRefuse, Refuse, Refuse];
        for keys in [[limit, "", ""], [limit, behind, ""], [limit, "", serve], [limit, behind, serve]] {
            check(NOW - 3601, &keys.concat(), too_old, too_old);
            // Never confirmed.
            check(0, &keys.concat(), too_old, too_old);
        }
        // Without a limit nothing is too old.
        check(0, serve, due, due);
        // What never moves is never asked about, whatever else the rule says and upstream has said.
        for keys in ["", behind, limit, serve, "check_after = \"0s\"\n"] {
            check(0, &["immutable = true\n", keys].concat(), SERVE, SERVE);
        }
        let always = [CheckFirst, ServeStale, Refuse];
        check(NOW, "check_after = \"0s\"", always, always);
        check(NOW, "check_after = \"0s\"\nserve_stale = \"0s\"", always, always);
    }

    #[test]
    fn a_clock_that_jumps_makes_a_check_due_and_refuses_nothing() {
        let limited = rule("serve_stale = \"0s\"");
        let confirmed = Confirmed { at: NOW, revoked: false };
        for now in [NOW - 1, NOW - 60] {
            assert_eq!(
                judge(confirmed, &limited, now, UpstreamWord::Open),
                TagVerdict::Serve,
                "a moment back to {now}"
            );
        }
        for now in [0, 1, NOW - 61] {
            assert_eq!(
                judge(confirmed, &limited, now, UpstreamWord::Open),
                TagVerdict::CheckFirst,
                "back to {now}"
            );
            assert_eq!(
                judge(confirmed, &limited, now, UpstreamWord::Silent),
                TagVerdict::ServeStale,
                "back to {now}"
            );
        }
        assert_eq!(
            judge(confirmed, &Rule::default(), u64::MAX, UpstreamWord::Silent),
            TagVerdict::ServeStale
        );
    }

    #[test]
    fn what_is_stale_is_allowed_to_its_very_limit_and_from_the_future() {
        let check = |limit: StaleLimit, at: u64, expected: bool| {
            assert_eq!(limit.allows(at, NOW), expected, "{limit:?} {at}");
        };
        let minute = StaleLimit::For(Duration::from_secs(60));
        for (at, is_within) in [(NOW + 1, true), (NOW, true), (NOW - 60, true), (NOW - 61, false), (0, false)]
        {
            check(minute, at, is_within);
            check(StaleLimit::Forever, at, true);
        }
        check(StaleLimit::For(Duration::ZERO), NOW, true);
        check(StaleLimit::For(Duration::ZERO), NOW - 1, false);
    }

    #[test]
    fn what_is_about_a_digest_has_a_rule_of_its_own_that_can_be_overridden() {
        let hex = "ab".repeat(32);
        let repo = Repo::new("docker.io".parse().unwrap(), "library/alpine".parse().unwrap());
        let check = |rules: &Rules, tag: &str, seconds: u64| {
            let found = rules.find(&repo, &tag.parse().unwrap()).check_after;
            assert_eq!(found, Duration::from_secs(seconds), "{tag}");
        };
        let rules = Rules::new(Vec::new());
        check(&rules, &format!("sha256-{hex}"), 60);
        check(&rules, &format!("sha256-{hex}.sig"), 60);
        check(&rules, &format!("sha256-{}", &hex[..10]), 300);
        let rules = Rules::new(vec![rule_for("*/*:sha256-*.sig", "7s"), rule_for("quay.io/*:*", "8s")]);
        check(&rules, &format!("sha256-{hex}.sig"), 7);
        check(&rules, &format!("sha256-{hex}.att"), 60);
        check(&rules, "3", 300);
    }

    fn rule_for(pattern: &str, after: &str) -> Rule {
        toml::from_str(&format!("match = {pattern:?}\ncheck_after = {after:?}")).unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let rules = [rule_for("docker.io/library/*:3*", "1s"), rule_for("docker.io/*:*", "2s")];
        let rules = Rules::new(rules.to_vec());
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
