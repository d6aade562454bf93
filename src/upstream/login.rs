//! Logins for the repositories of one registry, as Docker and Kubernetes write them down. Pure.
//!
//! Accepted are Docker's `config.json` and Kubernetes' `.dockerconfigjson` (a map below `auths`), and the older
//! `.dockercfg` (the map itself). A key is `host[:port][/path]`, with or without a scheme and a trailing `/v1/`
//! or `/v2/`; labels of the host may hold a `*`, as the kubelet allows. Of all keys that match a repository the one
//! with the longest path wins, so two robot accounts for two projects of one Harbor are normal.
//!
//! Where the file has no login, a program may have one (`helper`): that which `credHelpers` names for the registry, or else
//! `credsStore` for all.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::helper::Helper;
use super::secret::{self, Secret};
use crate::oci::{Algorithm, Digest, Registry, RepoName};

/// The names under which Docker's tools have stored the login for Docker Hub.
pub(super) const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// One login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// User name and password, for the registry or for its token server.
    Basic {
        /// Who.
        username: String,
        /// Proof.
        password: Secret,
    },
    /// What `docker login` got for the password: the token server takes it instead.
    IdentityToken(Secret),
    /// A token that the registry takes as it is.
    RegistryToken(Secret),
}

/// Stands for a login where tokens are kept; another login gives another identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity(Digest);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A hash of a poor password can be guessed.
        f.write_str("Identity")
    }
}

impl Login {
    /// What stands for this login.
    pub(super) fn identity(&self) -> Identity {
        let (kind, username, secret) = match self {
            Self::Basic { username, password } => ("basic", username.as_str(), password),
            Self::IdentityToken(token) => ("identity", "", token),
            Self::RegistryToken(token) => ("registry", "", token),
        };
        let text = format!("{kind}\0{username}\0{}", secret.expose());
        Identity(Digest::of(Algorithm::Sha256, text.as_bytes()))
    }

    /// `Authorization: Basic …`, if this is a name and a password.
    pub(super) fn to_basic(&self) -> Option<HeaderValue> {
        let Self::Basic { username, password } = self else { return None };
        secret::header("Basic", &STANDARD.encode(format!("{username}:{}", password.expose())))
    }
}

/// The logins of one registry, ready to be matched.
#[derive(Debug, Default)]
pub(super) struct Logins {
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

/// Why a text is no file of logins. The text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Docker config.json")]
pub(super) struct InvalidLogins;

impl Logins {
    /// One login for every repository.
    pub(super) fn single(login: Login) -> Self {
        Self { entries: vec![Entry { path: String::new(), is_pattern: false, login }], helper: None }
    }

    /// Reads a file of logins, keeping those of `registry`. Entries without a usable login are left out,
    /// as Docker leaves empty objects for what a credential helper keeps.
    ///
    /// # Errors
    /// [`InvalidLogins`] when the whole has another shape.
    pub(super) fn parse(text: &[u8], registry: &Registry) -> Result<Self, InvalidLogins> {
        let mut file: Map<String, Value> = serde_json::from_slice(text).map_err(|_| InvalidLogins)?;
        let helper = match helper_name(&mut file, registry) {
            Some(name) => Some(Helper::named(&name, registry).ok_or(InvalidLogins)?),
            None => None,
        };
        let auths = match file.remove("auths") {
            Some(Value::Object(auths)) => auths,
            Some(_) => return Err(InvalidLogins),
            // `.dockercfg`, where other keys than hosts have no business; an entry is an object.
            None => file,
        };
        let mut entries: Vec<Entry> = auths
            .into_iter()
            .filter_map(|(key, value)| {
                let (path, is_pattern) = match_host(&key, registry)?;
                Some(Entry { path, is_pattern, login: read_entry(value)? })
            })
            .collect();
        entries.sort_by_key(|entry| (std::cmp::Reverse(entry.path.len()), entry.is_pattern));
        Ok(Self { entries, helper })
    }

    /// The login for `name`, if one applies.
    pub(super) fn find(&self, name: &RepoName) -> Option<&Login> {
        let matches = |entry: &&Entry| match name.as_str().strip_prefix(entry.path.as_str()) {
            Some(rest) => entry.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        self.entries.iter().find(matches).map(|entry| &entry.login)
    }

    /// Who is to be asked where there is no login.
    pub(super) fn helper(&self) -> Option<&Helper> {
        self.helper.as_ref()
    }

    /// Every login that can be found, with its path.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Login)> {
        let is_first = |at: usize, path: &str| self.entries[..at].iter().all(|before| before.path != path);
        let found = self.entries.iter().enumerate().filter(move |(at, entry)| is_first(*at, &entry.path));
        found.map(|(_, entry)| (entry.path.as_str(), &entry.login))
    }
}

/// Takes out what a file says about helpers, and gives the name of that for `registry`.
fn helper_name(file: &mut Map<String, Value>, registry: &Registry) -> Option<String> {
    let (of_hosts, of_all) = (file.remove("credHelpers"), file.remove("credsStore"));
    let is_own = |key: &str| match_host(key, registry).is_some_and(|(path, _)| path.is_empty());
    let of_hosts = of_hosts.as_ref().and_then(Value::as_object);
    let own = of_hosts.and_then(|hosts| hosts.iter().find(|(key, _)| is_own(key)).map(|(_, name)| name));
    let name = own.or(of_all.as_ref())?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether `key` means all of `registry`, rather than another or a part of it.
pub(super) fn is_key_of(key: &str, registry: &Registry) -> bool {
    match_host(key, registry).is_some_and(|(path, _)| path.is_empty())
}

/// The path of `key` if its host is `registry`, and whether the host is a pattern.
fn match_host(key: &str, registry: &Registry) -> Option<(String, bool)> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path {
        "v1" | "v2" => "",
        path => path,
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

#[derive(Deserialize)]
struct RawEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

fn read_entry(value: Value) -> Option<Login> {
    let raw: RawEntry = serde_json::from_value(value).ok()?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(token) = filled(raw.registrytoken) {
        return Some(Login::RegistryToken(Secret::new(token)));
    }
    if let Some(token) = filled(raw.identitytoken) {
        return Some(Login::IdentityToken(Secret::new(token)));
    }
    let (username, password) = match filled(raw.auth) {
        Some(auth) => {
            let decoded = STANDARD.decode(auth.trim()).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (username, password) = text.split_once(':')?;
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        None => (filled(raw.username)?, raw.password?),
    };
    (!username.is_empty()).then(|| Login::Basic { username, password: Secret::new(password) })
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
        Logins::parse(text.as_bytes(), &Registry::parse(registry).unwrap())
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
    }

    #[test]
    fn an_exact_host_is_better_than_a_pattern() {
        let text = r#"{"auths": {"*.example.com": {"username": "star", "password": "x"},
                                 "a.example.com": {"username": "exact", "password": "x"}}}"#;
        let logins = parse("a.example.com", text).unwrap();
        assert_eq!(user(&logins, "x").as_deref(), Some("exact"));
        assert_eq!(logins.all().count(), 1, "the other is never used");
    }

    #[test]
    fn entries_have_many_shapes() {
        let check = |entry: &str, expected: Option<Login>| {
            let logins = parse("h", &format!(r#"{{"auths": {{"h": {entry}}}}}"#)).unwrap();
            assert_eq!(logins.find(&RepoName::parse("a").unwrap()), expected.as_ref(), "{entry}");
        };
        let secret = |text: &str| Secret::new(text.into());
        let basic = |password: &str| Some(Login::Basic { username: "u".into(), password: secret(password) });
        check(r#"{"auth": "dTpwOnE="}"#, basic("p:q"));
        check(r#"{"auth": "dTpwAAA="}"#, basic("p"));
        check(r#"{"username": "u", "password": "p", "email": "e"}"#, basic("p"));
        check(r#"{"auth": "dTpw", "identitytoken": "t"}"#, Some(Login::IdentityToken(secret("t"))));
        check(r#"{"registrytoken": "t"}"#, Some(Login::RegistryToken(secret("t"))));
        check(r#"{"auth": "OnA="}"#, None);
        check(r#"{"auth": "!"}"#, None);
        check("{}", None);
        check("[]", None);
    }

    #[test]
    fn the_file_may_be_a_dockercfg_but_not_anything() {
        let logins =
            parse("h", r#"{"https://h": {"username": "u", "password": "p"}, "HttpHeaders": 1}"#).unwrap();
        assert_eq!(user(&logins, "a").as_deref(), Some("u"));
        for text in ["", "[]", "{", r#"{"auths": []}"#] {
            assert_eq!(parse("h", text).unwrap_err(), InvalidLogins, "{text}");
        }
        assert_eq!(user(&parse("h", r#"{"credsStore": "desktop"}"#).unwrap(), "a"), None);
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
        assert_eq!(parse("h", r#"{"credsStore": "../x"}"#).unwrap_err(), InvalidLogins);
        assert!(parse("h", r#"{"credHelpers": {"i": "../x"}}"#).is_ok(), "another registry's");
    }

    #[test]
    fn another_password_is_another_identity_and_none_prints() {
        let login =
            |password: &str| Login::Basic { username: "u".into(), password: Secret::new(password.into()) };
        assert_ne!(login("hunter2").identity(), login("hunter3").identity());
        let printed = format!("{:?} {:?}", login("hunter2"), login("hunter2").identity());
        assert_eq!(printed, r#"Basic { username: "u", password: Secret } Identity"#);
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
            for registry in &registries {
                let Ok(logins) = Logins::parse(input, registry) else { continue };
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
