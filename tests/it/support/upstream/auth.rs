//! Who may read what, and the token endpoint `/token`.
//!
//! A token is its own record, base64 of `serial repository…`, so that one fake takes the tokens of another.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::wire::{Answer, Request, pairs};

/// One more than the serial of the last token.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// How a registry asks for a login.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// Not at all.
    Open,
    Basic,
    /// By tokens, from `/token` unless another realm is set.
    Bearer,
}

/// Who may pass.
pub(super) struct Door {
    pub(super) auth: Auth,
    pub(super) users: Vec<User>,
    /// Beginnings of the names that everybody may read.
    pub(super) anonymous: Vec<String>,
    pub(super) realm: Option<String>,
    /// How what may not be read is answered, if not with a challenge.
    pub(super) refusal: Option<u16>,
    pub(super) expires_in: Option<u64>,
    /// Bytes that each token is longer than it need be.
    pub(super) padding: usize,
    /// What it offers besides, first.
    pub(super) offer: Option<String>,
    /// Tokens below this serial are worth nothing any more.
    first_valid_serial: u64,
}

#[derive(Clone)]
pub(super) struct User {
    name: String,
    password: String,
    prefix: String,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            auth: Auth::Open,
            users: Vec::new(),
            anonymous: Vec::new(),
            realm: None,
            refusal: None,
            expires_in: Some(300),
            padding: 0,
            offer: None,
            first_valid_serial: 0,
        }
    }
}

/// The `Authorization` of a user.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

impl Door {
    pub(super) fn user(&mut self, name: &str, password: &str, prefix: &str) {
        let [name, password, prefix] = [name, password, prefix].map(str::to_owned);
        self.users.push(User { name, password, prefix });
    }

    pub(super) fn revoke(&mut self) {
        self.first_valid_serial = NEXT_SERIAL.load(Ordering::SeqCst);
    }

    pub(super) fn revoke_for_ever(&mut self) {
        self.first_valid_serial = u64::MAX;
    }

    /// A token, a refusal, or nothing: then the request may pass.
    pub(super) fn answer(&self, request: &Request, origin: &str) -> Option<Answer> {
        if request.path() == "/token" {
            return Some(self.token(request));
        }
        if !request.path().starts_with("/v2/") {
            // A store, which goes by signatures.
            return None;
        }
        let repository = repository(request.path());
        let hidden =
            self.refusal.filter(|_| repository.is_some()).map(|status| Answer::error(status, "NAME_UNKNOWN"));
        let given = request.header("authorization").unwrap_or_default();
        match self.auth {
            Auth::Open => None,
            Auth::Basic => {
                let user = self.users.iter().find(|user| {
                    basic(&user.name, &user.password) == given
                        && repository.is_none_or(|name| name.starts_with(&user.prefix))
                });
                let passes = user.is_some() || repository.is_some_and(|name| self.is_anonymous(name));
                let offer = self.offer.iter().map(String::as_str);
                (!passes).then(|| hidden.unwrap_or_else(|| offers(offer.chain(["Basic realm=\"fake\""]))))
            }
            Auth::Bearer => {
                let token = given.strip_prefix("Bearer ");
                let passes = token.is_some_and(|token| self.admits(token, repository));
                let refuse = || refusal(&self.challenge(origin, repository, token));
                (!passes).then(|| hidden.unwrap_or_else(refuse))
            }
        }
    }

    fn challenge(&self, origin: &str, repository: Option<&str>, token: Option<&str>) -> String {
        let realm = self.realm.clone().unwrap_or_else(|| format!("{origin}/token"));
        let mut challenge = format!("Bearer realm=\"{realm}\",service=\"fake\"");
        if let Some(name) = repository {
            challenge += &format!(",scope=\"repository:{name}:pull\"");
        }
        if let Some(token) = token {
            let error = if self.admits(token, None) { "insufficient_scope" } else { "invalid_token" };
            challenge += &format!(",error=\"{error}\"");
        }
        challenge
    }

    fn admits(&self, token: &str, repository: Option<&str>) -> bool {
        let Some(record) = BASE64_STANDARD.decode(token).ok().and_then(|it| String::from_utf8(it).ok())
        else {
            return false;
        };
        let mut words = record.split(' ');
        let serial: Option<u64> = words.next().and_then(|word| word.parse().ok());
        serial.is_some_and(|serial| serial >= self.first_valid_serial)
            && repository.is_none_or(|name| words.any(|granted| granted == name))
    }

    /// For what was asked as far as it is allowed; only a wrong login is refused.
    fn token(&self, request: &Request) -> Answer {
        let form: Vec<_> = pairs(&request.body).collect();
        let field = |key: &str| form.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let refresh = field("refresh_token");
        let given = match (request.header("authorization"), field("username"), field("password")) {
            (Some(header), _, _) => Some(header.to_owned()),
            (None, Some(user), Some(password)) => Some(basic(user, password)),
            _ => None,
        };
        let is_it = |user: &&User| {
            refresh == Some(&user.password) || given.as_ref() == Some(&basic(&user.name, &user.password))
        };
        let users: Vec<_> = self.users.iter().filter(is_it).collect();
        if users.is_empty() && (given.is_some() || refresh.is_some()) {
            return refusal("Basic realm=\"fake\"");
        }
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let scopes = pairs(query.as_bytes()).chain(form.iter().cloned()).filter(|(name, _)| name == "scope");
        let mut record = NEXT_SERIAL.fetch_add(1, Ordering::SeqCst).to_string();
        for (_, scopes) in scopes {
            let names =
                scopes.split(' ').filter_map(|it| it.strip_prefix("repository:")?.strip_suffix(":pull"));
            let allowed = |name: &&str| {
                self.is_anonymous(name) || users.iter().any(|user| name.starts_with(&user.prefix))
            };
            for name in names.filter(allowed) {
                record += &format!(" {name}");
            }
        }
        record += &format!(" {}", "x".repeat(self.padding));
        let mut body = json!({ "token": BASE64_STANDARD.encode(record) });
        if let Some(seconds) = self.expires_in {
            body["expires_in"] = json!(seconds);
        }
        Answer::new(200, "application/json", body.to_string())
    }

    fn is_anonymous(&self, name: &str) -> bool {
        self.anonymous.iter().any(|prefix| name.starts_with(prefix))
    }
}

fn refusal(challenge: &str) -> Answer {
    Answer::error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge)
}

fn offers<'a>(challenges: impl Iterator<Item = &'a str>) -> Answer {
    let mut refusal = Answer::error(401, "UNAUTHORIZED");
    // Each in a line of its own.
    refusal.headers.extend(challenges.map(|it| ("WWW-Authenticate".to_owned(), it.to_owned())));
    refusal
}

/// The repository that a path is in, if any.
fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|word| Some(rest.rsplit_once(word)?.0))
}
