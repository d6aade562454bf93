//! Files of logins as Docker, Podman and Kubernetes write them, for one registry. Pure.
//!
//! Accepted are Docker's `config.json` and Kubernetes' `.dockerconfigjson` (a map below `auths`), and the older
//! `.dockercfg` (the map itself). They are read as those read them, which are written in Go: names in any letter case, of
//! two the last, `null` as nothing, base64 with line breaks and with or without padding. What is there for this registry
//! and cannot be read is an error: without its login berth would be anybody, and nobody would know why.
//!
//! A key is `host[:port][/path]`, with or without a scheme and `/v1/` or `/v2/`; labels of the host may hold a `*`, as the
//! kubelet allows. Of all keys that match a repository the one with the longest path wins, so two robot accounts for two
//! projects of one Harbor are normal.
//!
//! Where the file has no login, a program may have one (`helper`): that which `credHelpers` names for the registry, or else
//! `credsStore` for all.

use std::cmp::Reverse;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::InvalidLogins;
use super::helper::Helper;
use super::login::Login;
use crate::net::secret::Secret;
use crate::oci::json::is_named;
use crate::oci::{Registry, RepoName};

/// The names under which Docker's tools have stored the login for Docker Hub.
pub(crate) const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What `docker login` stores beside a login that it got in a browser. They are no registries.
const NO_REGISTRIES: [&str; 2] = ["v1/access-token", "v1/refresh-token"];
/// What people put in the place of such a file.
const SECRET: &str = "what is in `.dockerconfigjson` of this Secret of Kubernetes, decoded: \
    `kubectl get secret NAME -o jsonpath='{.data.\\.dockerconfigjson}' | base64 -d` prints it, and so does a volume that \
    has the Secret";
const ENCODED: &str = "one that is not encoded: `base64 -d` decodes it";

/// As the kubelet reads it, which takes both kinds.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The logins of one registry, ready to be matched.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// Longest path first; exact hosts before patterns.
    entries: Vec<Entry>,
    /// Who has a login where no entry has.
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    is_pattern: bool,
    login: Login,
}

/// What a file says, in its order.
#[derive(Default)]
struct File {
    auths: Vec<Member>,
    helper_by_host: Vec<(String, String)>,
    helper_for_all: Option<String>,
}

/// A member of an object, and its text.
type Member = (String, Box<RawValue>);

impl Logins {
    /// One login for every repository.
    pub(crate) fn single(login: Login) -> Self {
        Self { entries: vec![Entry { path: String::new(), is_pattern: false, login }], helper: None }
    }

    /// Reads a file of logins, keeping those of `registry`. An entry without any login is left out, as Docker leaves empty
    /// objects for what a credential helper keeps.
    ///
    /// # Errors
    /// [`InvalidLogins`] when the whole has another shape, or a login for `registry` cannot be read.
    pub(crate) fn parse(text: &str, registry: &Registry) -> Result<Self, InvalidLogins> {
        let file = File::read(text)?;
        let helper = match file.helper(registry) {
            Some(name) => Some(Helper::named(&name, registry).ok_or_else(|| {
                InvalidLogins::Shape(
                    "`credsStore` and `credHelpers` to name programs, by what follows docker-credential-"
                        .to_owned(),
                )
            })?),
            None => None,
        };
        let mut entries: Vec<(bool, Entry)> = Vec::new();
        for (at, (key, value)) in file.auths.iter().enumerate() {
            let Some((path, is_pattern)) = match_host(key, registry) else { continue };
            if file.auths[at + 1..].iter().any(|(later, _)| later == key) {
                continue;
            }
            let read = read_entry(value.get(), helper.is_some());
            let login = read.map_err(|what| InvalidLogins::Login { key: key.clone(), what })?;
            entries.extend(login.map(|login| (key.contains("://"), Entry { path, is_pattern, login })));
        }
        entries.sort_by_key(|(is_url, entry)| (Reverse(entry.path.len()), entry.is_pattern, *is_url));
        Ok(Self { entries: entries.into_iter().map(|(_, entry)| entry).collect(), helper })
    }

    /// Whether there is no login, and nobody to ask for one.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.helper.is_none()
    }

    /// The login for `name`, if one applies.
    pub(crate) fn find(&self, name: &RepoName) -> Option<&Login> {
        let matches = |entry: &&Entry| match name.as_str().strip_prefix(entry.path.as_str()) {
            Some(rest) => entry.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        self.entries.iter().find(matches).map(|entry| &entry.login)
    }

    /// Who is to be asked where there is no login.
    pub(crate) fn helper(&self) -> Option<&Helper> {
        self.helper.as_ref()
    }

    /// Every login that can be found, with its path.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Login)> {
        let is_first = |at: usize, path: &str| self.entries[..at].iter().all(|before| before.path != path);
        let found = self.entries.iter().enumerate().filter(move |(at, entry)| is_first(*at, &entry.path));
        found.map(|(_, entry)| (entry.path.as_str(), &entry.login))
    }
}

impl File {
    fn read(text: &str) -> Result<Self, InvalidLogins> {
        let shape = |expected: &str| InvalidLogins::Shape(expected.to_owned());
        let members = match serde_json::from_str::<Option<Members>>(text) {
            Ok(members) => members.unwrap_or_default().0,
            Err(error) => return Err(InvalidLogins::Shape(describe(text, &error))),
        };
        if members.iter().any(|(name, value)| name == "kind" && value.get() == "\"Secret\"") {
            return Err(shape(SECRET));
        }
        let (mut file, mut has_auths, mut others) = (Self::default(), false, Vec::new());
        for (name, value) in members {
            let is_null = value.get() == "null";
            if is_named(&name, "auths") {
                has_auths = true;
                let more = object(&value).ok_or_else(|| shape("`auths` to be an object"))?;
                if is_null {
                    file.auths.clear();
                }
                file.auths.extend(more);
            } else if is_named(&name, "credHelpers") {
                let wrong = || shape("`credHelpers` to be an object of names");
                let more = object(&value).ok_or_else(wrong)?;
                if is_null {
                    file.helper_by_host.clear();
                }
                for (host, helper) in more {
                    let helper: Option<String> = serde_json::from_str(helper.get()).map_err(|_| wrong())?;
                    file.helper_by_host.push((host, helper.unwrap_or_default()));
                }
            } else if is_named(&name, "credsStore") {
                let helper: Option<String> =
                    serde_json::from_str(value.get()).map_err(|_| shape("`credsStore` to be a name"))?;
                file.helper_for_all = helper.or(file.helper_for_all);
            } else {
                others.push((name, value));
            }
        }
        if !has_auths {
            // `.dockercfg`, where other keys than hosts have no business.
            file.auths = others;
        }
        Ok(file)
    }

    /// The name of the helper for `registry`.
    fn helper(&self, registry: &Registry) -> Option<String> {
        let own = self.helper_by_host.iter().rev().find(|(host, _)| is_key_of(host, registry));
        let name = own.map(|(_, name)| name).or(self.helper_for_all.as_ref())?;
        (!name.is_empty()).then(|| name.clone())
    }
}

/// The members of an object, in their order.
#[derive(Default)]
struct Members(Vec<Member>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Whole;

        impl<'de> Visitor<'de> for Whole {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        json.deserialize_map(Whole)
    }
}

/// The members of an object; none of `null`, and `None` of anything else.
fn object(value: &RawValue) -> Option<Vec<Member>> {
    serde_json::from_str::<Option<Members>>(value.get()).ok().map(|members| members.unwrap_or_default().0)
}

/// What was expected in the place of a text that is no JSON object.
fn describe(text: &str, error: &serde_json::Error) -> String {
    let is_word = |line: &str, word: &str| line.trim_start().starts_with(word);
    let has = |word: &str| text.lines().any(|line| is_word(line, word));
    let is_secret =
        (has("kind:") && text.contains("Secret")) || has(".dockerconfigjson:") || has(".dockercfg:");
    let decoded = || decode(text).is_some_and(|decoded| decoded.trim_ascii_start().starts_with(b"{"));
    if is_secret {
        SECRET.to_owned()
    } else if !text.trim().is_empty() && decoded() {
        ENCODED.to_owned()
    } else {
        format!("an object in JSON (line {}, column {})", error.line(), error.column())
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(text).ok()
}

/// Whether `key` means all of `registry`, rather than another or a part of it.
pub(crate) fn is_key_of(key: &str, registry: &Registry) -> bool {
    match_host(key, registry).is_some_and(|(path, _)| path.is_empty())
}

/// The path of `key` if its host is `registry`, and whether the host is a pattern.
fn match_host(key: &str, registry: &Registry) -> Option<(String, bool)> {
    let key = key.trim();
    let key = match key.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") =>
        {
            rest
        }
        _ => key,
    };
    let key = key.trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    if NO_REGISTRIES.contains(&path) {
        return None;
    }
    let path = match path.split_once('/') {
        Some(("v1" | "v2", path)) => path,
        None if path == "v1" || path == "v2" => "",
        _ => path,
    };
    let host = host.to_ascii_lowercase();
    let wanted = registry.as_str();
    let same = host == wanted || (DOCKER_HUB_HOSTS.contains(&wanted) && DOCKER_HUB_HOSTS.contains(&&*host));
    let is_pattern = !same && matches_pattern(&host, wanted);
    (same || is_pattern).then(|| (path.to_owned(), is_pattern))
}

/// `*.dkr.ecr.*.amazonaws.com`: label by label, equally many, with at most one star in each.
fn matches_pattern(pattern: &str, host: &str) -> bool {
    let labels_match = |(pattern, label): (&str, &str)| match pattern.split_once('*') {
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
        None => pattern == label,
    };
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    let name =
        |text: &str| text.rsplit_once(':').map_or_else(|| text.to_owned(), |(name, _)| name.to_owned());
    let (pattern_name, host_name) = (name(pattern), name(host));
    pattern_name.contains('*')
        && port(pattern) == port(host)
        && pattern_name.split('.').count() == host_name.split('.').count()
        && pattern_name.split('.').zip(host_name.split('.')).all(labels_match)
}

/// The login of an entry, if it has one. It may have a part of one for which a helper has the rest.
fn read_entry(text: &str, has_helper: bool) -> Result<Option<Login>, String> {
    const FIELDS: [&str; 5] = ["auth", "username", "password", "identitytoken", "registrytoken"];
    let members = serde_json::from_str::<Option<Members>>(text).map_err(|_| "is not an object".to_owned())?;
    let mut fields = [const { None::<String> }; 5];
    for (name, value) in members.unwrap_or_default().0 {
        let Some(at) = FIELDS.iter().position(|field| is_named(&name, field)) else { continue };
        let text: Option<String> = serde_json::from_str(value.get())
            .map_err(|_| format!("cannot be read: expected text as its `{}`", FIELDS[at]))?;
        fields[at] = text.or_else(|| fields[at].take());
    }
    let [auth, username, password, identity_token, registry_token] = fields;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(token) = filled(registry_token) {
        return Ok(Some(Login::RegistryToken(Secret::new(token))));
    }
    if let Some(token) = filled(identity_token) {
        return Ok(Some(Login::IdentityToken(Secret::new(token))));
    }
    if let Some(auth) = filled(auth) {
        return read_auth(&auth).map(Some);
    }
    match (filled(username), password) {
        (Some(username), Some(password)) => {
            Ok(Some(Login::Basic { username, password: Secret::new(password) }))
        }
        (Some(_), None) if has_helper => Ok(None),
        (Some(_), None) => Err("has a user name and no password".to_owned()),
        (None, password) if filled(password.clone()).is_some() => {
            Err("has a password and no user name".to_owned())
        }
        (None, _) => Ok(None),
    }
}

/// `user:password` in base64.
fn read_auth(auth: &str) -> Result<Login, String> {
    let wrong = |what: &str| format!("cannot be read: its `auth` is {what}");
    let decoded = decode(auth).ok_or_else(|| wrong("not base64"))?;
    let text = String::from_utf8(decoded).map_err(|_| wrong("base64 of something else than text"))?;
    let (username, password) =
        text.split_once(':').ok_or_else(|| wrong("base64 of something else than user:password"))?;
    if username.is_empty() {
        return Err(wrong("base64 of :password, without a user name"));
    }
    let password = Secret::new(password.trim_matches('\0').to_owned());
    Ok(Login::Basic { username: username.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(logins: &Logins, name: &str) -> Option<String> {
        match logins.find(&RepoName::parse(name).unwrap())? {
            Login::Basic { username, .. } => Some(username.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    fn parse(registry: &str, text: &str) -> Result<Logins, InvalidLogins> {
        Logins::parse(text, &Registry::parse(registry).unwrap())
    }

    #[test]
    fn the_longest_matching_path_wins() {
        let text = r#"{"auths": {
            "harbor.example.com/team-a": {"username": "a", "password": "x"},
            "https://harbor.example.com/team-a/app/": {"auth": "YXBwOnA6dw=="},
            "harbor.example.com": {"username": "all", "password": "x"},
            "other.example.com/team-a/app/deep": {"username": "other", "password": "x"},
            "harbor.example.com:8443/team-a/app/port": {"username": "port", "password": "x"}}}"#;
        let logins = parse("harbor.example.com", text).unwrap();
        let check =
            |name: &str, expected: &str| assert_eq!(user(&logins, name).as_deref(), Some(expected), "{name}");
        check("team-a/x", "a");
        check("team-a", "a");
        check("team-a/app", "app");
        check("team-a/app/deep", "app");
        check("team-a/application", "a");
        check("team-ab/x", "all");
        check("team-a/app/port", "app");
    }

    #[test]
    fn keys_name_hosts_in_many_ways() {
        let check = |registry: &str, key: &str, expected: bool| {
            let text = format!(r#"{{"auths": {{"{key}": {{"username": "u", "password": "p"}}}}}}"#);
            assert_eq!(user(&parse(registry, &text).unwrap(), "a/b").is_some(), expected, "{registry} {key}");
        };
        check("docker.io", "https://index.docker.io/v1/", true);
        check("docker.io", "docker.io", true);
        check("docker.io", "registry-1.docker.io", true);
        check("docker.io", "hub.docker.com", false);
        check("ghcr.io", "https://ghcr.io/v2/", true);
        check("ghcr.io", "GHCR.io", true);
        check("ghcr.io", "ghcr.io:443", false);
        check("ghcr.io", "ghcr.io/b", false);
        check("localhost:5000", "localhost:5000", true);
        check("localhost:5000", "localhost", false);
        check("1.dkr.ecr.eu-west-1.amazonaws.com", "*.dkr.ecr.*.amazonaws.com", true);
        check("evil.example.com", "*.com", false);
        check("a.example.com", "*.example.com", true);
        check("a.b.example.com", "*.example.com", false);
        check("a.example.com:1", "*.example.com", false);
        check("example.com", "*", false);
        check("ghcr.io", "HTTPS://ghcr.io", true);
        check("ghcr.io", " ghcr.io ", true);
        check("ghcr.io", "https://ghcr.io/v2/a", true);
        check("ghcr.io", "ghcr.io/a/", true);
        check("docker.io", "https://index.docker.io/v1/access-token", false);
        check("docker.io", "https://index.docker.io/v1/refresh-token", false);
    }

    #[test]
    fn an_exact_host_is_better_than_a_pattern() {
        let text = r#"{"auths": {"*.example.com": {"username": "star", "password": "x"},
                                 "a.example.com": {"username": "exact", "password": "x"}}}"#;
        let logins = parse("a.example.com", text).unwrap();
        assert_eq!(user(&logins, "x").as_deref(), Some("exact"));
        assert_eq!(logins.all().count(), 1, "the other is never used");
    }

    /// B5.
    #[test]
    fn entries_have_many_shapes() {
        let parsed = |entry: &str| parse("h", &format!(r#"{{"auths": {{"h": {entry}}}}}"#));
        let check = |entry: &str, expected: Option<Login>| {
            let logins = parsed(entry).unwrap();
            assert_eq!(logins.find(&RepoName::parse("a").unwrap()), expected.as_ref(), "{entry}");
            assert_eq!(logins.is_empty(), expected.is_none(), "{entry}");
        };
        let secret = |text: &str| Secret::new(text.into());
        let basic = |password: &str| Some(Login::Basic { username: "u".into(), password: secret(password) });
        check(r#"{"auth": "dTpwOnE="}"#, basic("p:q"));
        check(r#"{"auth": "dTpwOnE"}"#, basic("p:q"));
        check(r#"{"auth": "dTpw\nOnE=\n"}"#, basic("p:q"));
        check(r#"{"auth": "dTpw\r\nOnE\r\n"}"#, basic("p:q"));
        check(r#"{"auth": " dTpw OnE= "}"#, basic("p:q"));
        check(r#"{"auth": "dTpwAAA="}"#, basic("p"));
        check(r#"{"auth": "dTo="}"#, basic(""));
        check(r#"{"Auth": "dTpw"}"#, basic("p"));
        check(r#"{"AUTH": "dTpw", "Email": 5}"#, basic("p"));
        check(r#"{"auth": "dTpx", "Auth": "dTpw"}"#, basic("p"));
        check(r#"{"auth": "dTpx", "auth": "dTpw"}"#, basic("p"));
        check(r#"{"auth": "dTpw", "auth": null}"#, basic("p"));
        check(r#"{"auth": "dTpw", "username": "v", "password": "q"}"#, basic("p"));
        check(r#"{"auth": "", "username": "u", "password": "p"}"#, basic("p"));
        check(r#"{"auth": null, "username": "u", "password": "p"}"#, basic("p"));
        check(r#"{"username": "u", "password": "p", "email": "e"}"#, basic("p"));
        check(r#"{"Username": "u", "Password": "p"}"#, basic("p"));
        check(r#"{"username": "u", "password": ""}"#, basic(""));
        check(r#"{"auth": "dTpw", "identitytoken": "t"}"#, Some(Login::IdentityToken(secret("t"))));
        check(r#"{"IdentityToken": "t"}"#, Some(Login::IdentityToken(secret("t"))));
        check(r#"{"registrytoken": "t"}"#, Some(Login::RegistryToken(secret("t"))));
        for nothing in ["{}", "null", r#"{"auth": ""}"#, r#"{"auth": null}"#, r#"{"email": "e"}"#] {
            check(nothing, None);
        }
        let refuse = |entry: &str, expected: &str| {
            let error = parsed(entry).unwrap_err();
            assert!(
                matches!(&error, InvalidLogins::Login { key, what } if key == "h" && what.contains(expected)),
                "{entry}: {error}"
            );
        };
        refuse(r#"{"auth": "hunter2!"}"#, "not base64");
        refuse(r#"{"auth": "dTp_"}"#, "not base64");
        refuse(r#"{"auth": "dXA="}"#, "something else than user:password");
        refuse(r#"{"auth": "OnA="}"#, "without a user name");
        refuse(r#"{"auth": "/zpw"}"#, "something else than text");
        refuse(r#"{"auth": 5}"#, "expected text as its `auth`");
        refuse(r#"{"username": "u"}"#, "no password");
        refuse(r#"{"password": "p"}"#, "no user name");
        refuse("[]", "not an object");
        refuse("\"dTpw\"", "not an object");
        refuse("5", "not an object");
    }

    #[test]
    fn what_is_for_others_need_not_be_right() {
        let text =
            r#"{"auths": {"other.example": {"auth": "!"}, "third.example": 5, "h": {"auth": "dTpw"}}}"#;
        assert_eq!(user(&parse("h", text).unwrap(), "a").as_deref(), Some("u"));
        assert!(parse("i", text).unwrap().is_empty());
        assert!(parse("other.example", text).is_err());
    }

    #[test]
    fn the_file_may_be_a_dockercfg_but_not_anything() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(user(&parse("h", text).unwrap(), "a").as_deref(), expected, "{text}");
        };
        let entry = r#"{"username": "u", "password": "p"}"#;
        check(&format!(r#"{{"https://h": {entry}, "HttpHeaders": 1}}"#), Some("u"));
        check(&format!(r#"{{"Auths": {{"h": {entry}}}}}"#), Some("u"));
        check(&format!(r#"{{"auths": null, "h": {entry}}}"#), None);
        check(&format!(r#"{{"auths": {{"h": {entry}}}, "auths": {{"i": {{}}}}}}"#), Some("u"));
        check(&format!(r#"{{"auths": {{"h": {entry}}}, "auths": null}}"#), None);
        check(&format!(r#"{{"auths": {{"h": {{"auth": "!"}}, "h": {entry}}}}}"#), Some("u"));
        check(r#"{"auths": null}"#, None);
        check(r#"{"auths": {}}"#, None);
        check(r#"{"credsStore": null, "credHelpers": null}"#, None);
        check(r#"{"credsStore": "desktop"}"#, None);
        check("null", None);
        check("{}", None);
        let refuse = |text: &str, expected: &str| {
            let error = parse("h", text).unwrap_err();
            assert!(
                matches!(&error, InvalidLogins::Shape(what) if what.contains(expected)),
                "{text}: {error}"
            );
        };
        refuse("", "in JSON");
        refuse("[]", "in JSON");
        refuse("{", "line 1");
        refuse("{\n  \"auths\": {\n  \"h\": hunter2 }}", "line 3, column");
        refuse(r#"{"auths": []}"#, "`auths`");
        refuse(r#"{"auths": "h"}"#, "`auths`");
        refuse(r#"{"credHelpers": ["h"]}"#, "`credHelpers`");
        refuse(r#"{"credHelpers": {"h": 5}}"#, "`credHelpers`");
        refuse(r#"{"credsStore": {}}"#, "`credsStore`");
        let yaml = "apiVersion: v1\nkind: Secret\ndata:\n  .dockerconfigjson: eyJhdXRocyI6e319\n";
        for secret in
            [yaml, "data:\n  .dockerconfigjson: e30=\n", r#"{"apiVersion": "v1", "kind": "Secret"}"#]
        {
            refuse(secret, "base64 -d");
        }
        refuse("eyJhdXRocyI6e319\n", "not encoded");
        refuse("[default]\naws_access_key_id=A\n", "in JSON");
    }

    #[test]
    fn a_helper_is_that_of_the_registry_or_of_all() {
        let check = |text: &str, expected: Option<&str>| {
            let logins = parse("h", text).unwrap();
            let helper = logins.helper().map(|helper| format!("{helper:?}"));
            assert_eq!(helper.as_deref(), expected, "{text}");
        };
        let (own, all) = (Some("docker-credential-own"), Some("docker-credential-all"));
        check(r#"{"credHelpers": {"h": "own", "i": "other"}, "credsStore": "all"}"#, own);
        check(r#"{"credHelpers": {"https://h/v2/": "own"}}"#, own);
        check(r#"{"auths": {}, "credHelpers": {"i": "other"}, "credsStore": "all"}"#, all);
        check(r#"{"credHelpers": {"h": ""}, "credsStore": "all"}"#, None);
        check(r#"{"credHelpers": {"i": "other"}, "credsStore": ""}"#, None);
        check(r#"{"auths": {"h": {"username": "u"}}, "credsStore": "all"}"#, all);
        check(r#"{"CredsStore": "all"}"#, all);
        assert!(
            parse("h", r#"{"credsStore": "../x"}"#).unwrap_err().to_string().contains("docker-credential-")
        );
        assert!(parse("h", r#"{"credHelpers": {"i": "../x"}}"#).is_ok(), "another registry's");
    }

    #[test]
    fn fuzzed_files_give_a_login_only_for_its_own_path() {
        let target = crate::fuzz::Target {
            name: "docker-config",
            words: &[
                "\"auths\":",
                "\"credHelpers\":",
                "\"credsStore\":",
                "\"auth\":",
                "\"username\":",
                "\"password\":",
                "\"identitytoken\":",
                "\"registrytoken\":",
                "r.example",
                "https://",
                "/v1/",
                "/v2/",
                "*.example",
                "*",
                ".*.",
                "docker.io",
                "index.docker.io",
                ":8443",
                "dTpw",
                "=",
                "../",
                "é",
            ],
        };
        let registries = ["r.example", "docker.io", "r.example:8443"].map(|it| Registry::parse(it).unwrap());
        let names = ["team-a/app", "team-a", "x"].map(|it| RepoName::parse(it).unwrap());
        target.holds_for_json(|input| {
            let text = String::from_utf8_lossy(input);
            for registry in &registries {
                let Ok(logins) = Logins::parse(&text, registry) else { continue };
                for name in &names {
                    let Some(found) = logins.find(name) else { continue };
                    let is_for = |path: &str| {
                        path.is_empty()
                            || name.as_str() == path
                            || name.as_str().starts_with(&format!("{}/", path.trim_end_matches('/')))
                    };
                    assert!(logins.all().any(|(path, login)| login == found && is_for(path)), "{name}");
                }
            }
        });
    }
}
