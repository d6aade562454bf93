//! `WWW-Authenticate`, as registries really write it (RFC 9110 section 11.6.1, and what bends it).
//!
//! Seen in the wild and accepted here: any case of scheme and parameter names, bare values where quotes belong,
//! commas inside quotes and even inside bare scopes, several challenges in one line or over several
//! lines, parameters that are missing. Whatever the bytes are, reading ends and yields what was understood.

/// Bytes of the longest header line that is read; a challenge has some two hundred.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// The most challenges that are kept of one answer.
const CHALLENGES_MAX: usize = 8;

/// One way to log in that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from a token server.
    Bearer(Bearer),
}

/// What a Bearer challenge says. A challenge without a realm is no use and is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// The token server's URL, not yet judged.
    pub(crate) realm: String,
    /// The service that the token is for.
    pub(crate) service: Option<String>,
    /// The scopes of the token, separated by spaces.
    pub(crate) scope: Option<String>,
    /// Why the request was refused: `insufficient_scope`, `invalid_token`.
    pub(crate) error: Option<String>,
}

/// Reads all the `WWW-Authenticate` lines of one answer.
pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for line in lines {
        if line.len() <= LINE_BYTES_MAX {
            parse_line(line, &mut challenges);
        }
    }
    challenges.truncate(CHALLENGES_MAX);
    challenges
}

/// The scheme whose parameters are being read.
enum Scheme {
    Bearer(Bearer),
    /// `Basic`, whose parameters say nothing that is needed, or a scheme that is unknown here.
    Other,
}

fn parse_line(line: &[u8], challenges: &mut Vec<Challenge>) {
    let mut cursor = Cursor { line, at: 0 };
    let mut scheme = Scheme::Other;
    while let Some(word) = cursor.word() {
        if cursor.take(b'=') {
            let value = cursor.value();
            if let (Scheme::Bearer(bearer), Some(value)) = (&mut scheme, value) {
                set(bearer, &word, value);
            }
        } else if word.eq_ignore_ascii_case("bearer") {
            finish(std::mem::replace(&mut scheme, Scheme::Bearer(Bearer::default())), challenges);
        } else if word.eq_ignore_ascii_case("basic") {
            finish(std::mem::replace(&mut scheme, Scheme::Other), challenges);
            challenges.push(Challenge::Basic);
        } else if !cursor.at_end_of_element() {
            finish(std::mem::replace(&mut scheme, Scheme::Other), challenges);
        }
        // Else a lone word: a scheme without parameters, or the rest of a bare `scope=repository:a:pull,push`.
        // Neither ends the challenge before it.
    }
    finish(scheme, challenges);
}

fn finish(scheme: Scheme, challenges: &mut Vec<Challenge>) {
    if let Scheme::Bearer(bearer) = scheme
        && !bearer.realm.is_empty()
    {
        challenges.push(Challenge::Bearer(bearer));
    }
}

/// Keeps the first of two parameters with one name.
fn set(bearer: &mut Bearer, name: &str, value: String) {
    let slot = match name.to_ascii_lowercase().as_str() {
        "realm" => {
            if bearer.realm.is_empty() {
                bearer.realm = value;
            }
            return;
        }
        "service" => &mut bearer.service,
        "scope" => &mut bearer.scope,
        "error" => &mut bearer.error,
        _ => return,
    };
    if slot.is_none() && !value.is_empty() {
        *slot = Some(value);
    }
}

struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn skip(&mut self, mut skipped: impl FnMut(u8) -> bool) {
        while self.peek().is_some_and(&mut skipped) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        self.skip(is_space);
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    /// The next scheme or parameter name; steps over anything that cannot begin one.
    fn word(&mut self) -> Option<String> {
        self.skip(|byte| !is_word(byte));
        let start = self.at;
        self.skip(is_word);
        (self.at > start).then(|| text(&self.line[start..self.at]))?
    }

    /// Whether nothing more belongs to the word just read.
    fn at_end_of_element(&mut self) -> bool {
        self.skip(is_space);
        self.peek().is_none_or(|byte| byte == b',')
    }

    /// A quoted or bare value; `None` if it holds what no value may hold.
    fn value(&mut self) -> Option<String> {
        if !self.take(b'"') {
            let start = self.at;
            self.skip(|byte| !is_space(byte) && byte != b',');
            return text(&self.line[start..self.at]);
        }
        let mut value = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => return text(&value),
                b'\\' => {
                    value.extend(self.peek());
                    self.at += 1;
                }
                _ => value.push(byte),
            }
        }
        // The quote was never closed: what came is not trusted to be whole.
        None
    }
}

/// Printable ASCII only: values become URLs, form fields and log lines.
fn text(bytes: &[u8]) -> Option<String> {
    let printable = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    printable.then(|| bytes.iter().map(|byte| char::from(*byte)).collect())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// `token` of RFC 9110, section 5.6.2.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str, error: &str) -> Challenge {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: some(service),
            scope: some(scope),
            error: some(error),
        })
    }

    #[test]
    fn reads_what_registries_write() {
        let check = |lines: &[&str], expected: &[Challenge]| {
            assert_eq!(parse(lines.iter().map(|line| line.as_bytes())), expected, "{lines:?}");
        };
        let hub = bearer(
            "https://auth.docker.io/token",
            "registry.docker.io",
            "repository:library/alpine:pull",
            "",
        );
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
            ],
            std::slice::from_ref(&hub),
        );
        check(
            &[
                r#"bEARER  Realm = "https://auth.docker.io/token" , SERVICE=registry.docker.io scope=repository:library/alpine:pull"#,
            ],
            std::slice::from_ref(&hub),
        );
        check(
            &[r#"Bearer realm="https://gcr.io/v2/token",service=gcr.io,scope="repository:a:pull,push""#],
            &[bearer("https://gcr.io/v2/token", "gcr.io", "repository:a:pull,push", "")],
        );
        check(
            &[r#"Bearer scope=repository:a:pull,push,realm="https://quay.io/v2/auth""#],
            &[bearer("https://quay.io/v2/auth", "", "repository:a:pull", "")],
        );
        check(&[r#"Bearer realm="https://h/token""#], &[bearer("https://h/token", "", "", "")]);
        check(
            &[r#"Bearer realm="https://h/t",service="",scope="x y",error="insufficient_scope""#],
            &[bearer("https://h/t", "", "x y", "insufficient_scope")],
        );
        check(&[r#"Bearer realm="https://h/\"t\\""#], &[bearer(r#"https://h/"t\"#, "", "", "")]);
        check(&[r#"Bearer realm="a",realm="b""#], &[bearer("a", "", "", "")]);
    }

    #[test]
    fn reads_several_challenges() {
        let check = |lines: &[&str], expected: &[Challenge]| {
            assert_eq!(parse(lines.iter().map(|line| line.as_bytes())), expected, "{lines:?}");
        };
        let token = bearer("https://h/t", "s", "", "");
        check(&[r#"Basic realm="x, y=z""#], &[Challenge::Basic]);
        check(&["BASIC"], &[Challenge::Basic]);
        check(
            &[r#"Basic realm="x", Bearer realm="https://h/t",service="s""#],
            &[Challenge::Basic, token.clone()],
        );
        check(
            &[r#"Bearer realm="https://h/t",service="s", Basic realm="x""#],
            &[token.clone(), Challenge::Basic],
        );
        check(
            &[r#"Negotiate, Bearer realm="https://h/t",service=s"#, "Basic"],
            &[token.clone(), Challenge::Basic],
        );
        check(
            &[r#"Digest realm="d",nonce="n", Bearer realm="https://h/t",service=s"#],
            std::slice::from_ref(&token),
        );
        check(&["Negotiate YIIabc==", r#"Bearer realm="https://h/t",service=s"#], &[token]);
    }

    #[test]
    fn nonsense_offers_nothing() {
        for line in [
            "",
            ",,,",
            "=",
            "Bearer",
            "Bearer realm",
            "Bearer realm=",
            r#"Bearer realm="https://h"#,
            "\u{7f}",
        ] {
            assert_eq!(parse([line.as_bytes()]), [], "{line}");
        }
        let long = format!(r#"Bearer realm="{}""#, "x".repeat(LINE_BYTES_MAX));
        assert_eq!(parse([long.as_bytes()]), []);
        assert_eq!(parse([b"Bearer realm=\"https://h\xff\"".as_slice()]), []);
        assert_eq!(parse([b"Basic, ".repeat(100).as_slice()]).len(), CHALLENGES_MAX);
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_bounded(line in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse([line.as_slice()]).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn never_panics_near_the_grammar(line in r#"(Bearer|Basic|realm|scope|=|"|,| |\\|x){0,40}"#) {
            for challenge in parse([line.as_bytes()]) {
                if let Challenge::Bearer(bearer) = challenge {
                    prop_assert!(!bearer.realm.is_empty());
                }
            }
        }

        #[test]
        fn finds_quoted_values_again(realm in "[!#-\\[\\]-~]{1,60}", scope in "[a-z:/, ]{1,60}") {
            let line = format!(r#"Bearer realm="{realm}",scope="{scope}""#);
            let expected = Bearer { realm, scope: Some(scope), ..Bearer::default() };
            prop_assert_eq!(parse([line.as_bytes()]), [Challenge::Bearer(expected)]);
        }
    }

    #[test]
    fn fuzzed_challenges_are_few_and_of_plain_text() {
        let target = crate::fuzz::Target {
            name: "challenge",
            words: &[
                "Bearer ",
                "bearer",
                "Basic ",
                "Negotiate",
                "Digest ",
                "realm",
                "service",
                "scope",
                "error",
                "=",
                "\"",
                "\\",
                ",",
                " ",
                "\t",
                "\n",
                "https://h/t",
                "repository:a:pull,push",
                "\u{7f}",
                "é",
            ],
        };
        target.holds(|input| {
            let challenges = parse(input.split(|byte| *byte == b'\n'));
            assert!(challenges.len() <= CHALLENGES_MAX);
            for challenge in challenges {
                let Challenge::Bearer(Bearer { realm, service, scope, error }) = challenge else { continue };
                assert!(!realm.is_empty());
                for text in [Some(realm), service, scope, error].into_iter().flatten() {
                    assert!(
                        text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.len() <= input.len()
                    );
                }
            }
        });
    }
}
