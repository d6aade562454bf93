//! From a challenge to an `Authorization` header, and what to make of its refusal.
//!
//! The scheme that an endpoint asks for is remembered, so that only its first request is refused. A challenge
//! decides *how* berth logs in, never *for what*: scopes are built here, for pulling the repository that
//! is being asked for, so a hostile challenge cannot make berth collect rights to something else.

mod challenge;
mod realm;
pub(crate) mod token;

use std::future::pending;
use std::sync::Arc;

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};
use url::{Origin, Url};

use crate::credentials::CredentialSource;
use crate::credentials::login::Login;
use crate::net::DialPolicy;
use crate::net::HostName;
use crate::net::secret;
use crate::oci::{Registry, RepoName};
use crate::remote::auth::challenge::{Bearer, Challenge};
use crate::remote::auth::token::{Key, Token, Tokens};
use crate::remote::client::Client;
use crate::remote::error::{Error, Refusal};
use crate::remote::redirect::RedirectChain;

/// The most scopes without a repository, such as ECR Public's `aws`; one is usual.
const PLAIN_SCOPES_MAX: usize = 4;

/// An authentication scheme that an endpoint asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Name and password.
    Basic,
    /// A token from this server.
    Bearer(Arc<Realm>),
}

/// A token server that the rules permit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Realm {
    url: Url,
    way: DialPolicy,
    service: Option<String>,
    scopes: Scopes,
}

/// How the scopes of a repository are built for one token server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scopes {
    /// What stands before the repository's name where an endpoint's path hides a part of it.
    prefix: String,
    /// Scopes that name no repository.
    plain: Vec<String>,
    /// Whether `plain` is all that is asked for.
    only_plain: bool,
}

impl Scopes {
    /// Learns from the scope that a challenge named for `name`.
    fn learn(scope: Option<&str>, name: Option<&RepoName>) -> Self {
        let mut scopes = Self::default();
        let mut has_repository = false;
        for word in scope.unwrap_or_default().split_ascii_whitespace() {
            if let Some(rest) = word.strip_prefix("repository:") {
                has_repository = true;
                let resource = rest.rsplit_once(':').map_or(rest, |(resource, _)| resource);
                if let Some(prefix) = name.and_then(|name| resource.strip_suffix(name.as_str()))
                    && prefix.ends_with('/')
                    && RepoName::parse(resource).is_ok()
                {
                    scopes.prefix = prefix.to_owned();
                }
            } else if !word.contains(':') && scopes.plain.len() < PLAIN_SCOPES_MAX {
                scopes.plain.push(word.to_owned());
            }
        }
        scopes.plain.sort_unstable();
        scopes.only_plain = !has_repository && !scopes.plain.is_empty();
        scopes
    }

    /// The scopes for pulling `name`, sorted; without a name, those that name none.
    fn of(&self, name: Option<&RepoName>) -> Vec<String> {
        let mut scopes = self.plain.clone();
        if let Some(name) = name.filter(|_| !self.only_plain) {
            scopes.push(format!("repository:{}{name}:pull", self.prefix));
        }
        scopes.sort_unstable();
        scopes
    }
}

/// The `Authorization` header of a request, and what its refusal would mean.
pub(crate) struct Authorization {
    pub(crate) header: Option<HeaderValue>,
    proof: Proof,
}

impl Authorization {
    /// Whether no login was sent, so that anybody would have had the answer.
    pub(crate) fn is_anybody(&self) -> bool {
        matches!(self.proof, Proof::Nothing)
    }
}

/// A token that the target of a redirect gives to anybody.
pub(crate) struct Anybody {
    origin: Origin,
    key: Arc<Key>,
    token: Arc<Token>,
    new: bool,
}

impl Anybody {
    /// Adds the token to a request for `url`, if the token is from there.
    pub(crate) fn add_to(&self, url: &Url, headers: &mut HeaderMap) {
        if url.origin() == self.origin {
            headers.insert(AUTHORIZATION, self.token.header.clone());
        }
    }
}

/// What a header proves, and so what its refusal means.
enum Proof {
    /// Nothing was sent.
    Nothing,
    /// A password or token from the configuration: asking again changes nothing.
    Fixed,
    /// A token that could be renewed, unless it is `new`.
    Token { key: Arc<Key>, token: Arc<Token>, new: bool },
}

/// How berth logs in to the endpoints of one remote, with the tokens that it has got for that.
pub(crate) struct Auth {
    registry: Registry,
    realm_hosts: Vec<HostName>,
    credential: CredentialSource,
    tokens: Tokens,
    client: Arc<Client>,
}

/// A request that was refused.
pub(crate) struct Refused<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) tried: &'a Authorization,
    pub(crate) scheme: Option<&'a Scheme>,
}

impl Auth {
    /// Without any token. The token servers of `registry` are near it, or at `realm_hosts`.
    pub(crate) fn new(
        (registry, realm_hosts): (Registry, Vec<HostName>),
        credential: CredentialSource,
        client: Arc<Client>,
    ) -> Self {
        Self { registry, realm_hosts, credential, tokens: Tokens::new(), client }
    }

    /// The login for the repository that is called `name` there, if one applies; may ask a cloud for it.
    ///
    /// # Errors
    /// When there should be a login and none can be had in time.
    pub(crate) async fn login(&self, name: &RepoName, deadline: Instant) -> Result<Option<Login>, Error> {
        let found = timeout_at(deadline, self.credential.find(&self.client, name)).await;
        Ok(found.map_err(|_| Error::Timeout)??)
    }

    /// Every login, with the path that it is for, which is empty for all; `None` is being anybody.
    ///
    /// # Errors
    /// When there should be one and none can be had in time.
    pub(crate) async fn logins(&self, deadline: Instant) -> Result<Vec<(String, Option<Login>)>, Error> {
        let all = timeout_at(deadline, self.credential.all(&self.client)).await;
        Ok(all.map_err(|_| Error::Timeout)??)
    }

    /// Whether a login applies to the repository that is called `name` there.
    pub(crate) async fn applies_to(&self, name: &RepoName) -> bool {
        self.credential.applies_to(name).await
    }

    /// Records that `login` was rejected. Returns whether there may be another.
    pub(crate) async fn login_refused(&self, login: &Login) -> bool {
        self.credential.refused(login).await
    }

    /// Whether `login` was issued for a time that is over.
    pub(crate) fn is_over(&self, login: &Login) -> bool {
        self.credential.issued().is_some_and(|issued| issued.is_over(login))
    }

    /// Renews a login that ends, for ever.
    pub(crate) async fn keep_login(&self) {
        match self.credential.issued() {
            Some(issued) => issued.keep(&self.client).await,
            None => pending().await,
        }
    }

    /// What an operator should know of the login that is configured.
    pub(crate) fn warning(&self) -> Option<String> {
        self.credential.warning()
    }

    /// The header for a request for `name`, or for no repository; may ask the token server, once it has a `seat`.
    pub(crate) async fn authorize<S>(
        &self,
        seat: impl Future<Output = Result<S, Error>>,
        scheme: Option<&Scheme>,
        name: Option<&RepoName>,
        login: Option<&Login>,
        deadline: Instant,
    ) -> Result<Authorization, Error> {
        let fixed = |header: Option<HeaderValue>| match header {
            Some(_) => Authorization { header, proof: Proof::Fixed },
            None => Authorization { header: None, proof: Proof::Nothing },
        };
        let realm = match (scheme, login) {
            (None, _) => return Ok(fixed(None)),
            (Some(Scheme::Basic), login) => return Ok(fixed(login.and_then(Login::to_basic))),
            (Some(Scheme::Bearer(_)), Some(Login::RegistryToken(token))) => {
                return Ok(fixed(secret::header("Bearer", token.expose())));
            }
            (Some(Scheme::Bearer(realm)), _) => realm,
        };
        let key = Arc::new(realm.key(name, login));
        let started = Instant::now();
        let fetch = async {
            let _seat = seat.await?;
            token::fetch(&self.client, realm.way, &key, login, deadline).await
        };
        // The time also bounds the wait for another request that fetches the same token.
        let token =
            timeout_at(deadline, self.tokens.get(&key, fetch)).await.map_err(|_| Error::Timeout)??;
        let new = token.is_newer(started);
        Ok(Authorization { header: Some(token.header.clone()), proof: Proof::Token { key, token, new } })
    }

    /// How to ask `endpoint` again after a refusal; `None` if the refusal is final.
    ///
    /// # Errors
    /// [`Refusal`] when the answer points to a token server that the rules forbid.
    pub(crate) async fn reconsider(
        &self,
        endpoint: &Url,
        name: Option<&RepoName>,
        login: Option<&Login>,
        refused: Refused<'_>,
    ) -> Result<Option<Scheme>, Refusal> {
        if let Proof::Token { key, token, new } = &refused.tried.proof {
            let is_about_scope = refused.status == StatusCode::FORBIDDEN || is_scope_refused(refused.headers);
            let is_final = *new || (is_about_scope && token.is_fresh());
            if !is_final {
                self.tokens.forget(key, token).await;
                if refused.status == StatusCode::FORBIDDEN {
                    return Ok(refused.scheme.cloned());
                }
            }
            let scheme = match self.offered(endpoint, name, login, refused.headers)? {
                Some(Scheme::Bearer(realm)) if !is_final || realm.key(name, login) != **key => {
                    Scheme::Bearer(realm)
                }
                // Harbor offers Basic where a token is refused; it is still tokens that it wants.
                Some(Scheme::Basic) | None if !is_final => return Ok(refused.scheme.cloned()),
                _ => return Ok(None),
            };
            return Ok(Some(scheme));
        }
        if refused.status != StatusCode::UNAUTHORIZED {
            return Ok(None);
        }
        let offered = self.offered(endpoint, name, login, refused.headers)?;
        Ok(offered.filter(|offered| match (offered, &refused.tried.proof) {
            (Scheme::Basic, Proof::Nothing) => login.is_some_and(|login| login.to_basic().is_some()),
            (Scheme::Bearer(_), Proof::Nothing) => true,
            (Scheme::Bearer(_), Proof::Fixed) => refused.scheme == Some(&Scheme::Basic),
            (Scheme::Basic, Proof::Fixed) | (_, Proof::Token { .. }) => false,
        }))
    }

    /// A token for the target of a redirect that refused a request, if it gives tokens to anybody; its token server is
    /// judged by the target's own host. No login is ever sent there. A token that was `sent` may have been too old.
    ///
    /// # Errors
    /// [`Refusal`] when the answer points to a token server that the rules forbid, and why there is no token.
    pub(crate) async fn anybody_at(
        &self,
        target: &RedirectChain<'_>,
        headers: &HeaderMap,
        sent: Option<Anybody>,
        deadline: Instant,
    ) -> Result<Option<Anybody>, Error> {
        let origin = target.url.origin();
        if let Some(sent) = sent.filter(|sent| sent.origin == origin) {
            self.tokens.forget(&sent.key, &sent.token).await;
            if sent.new {
                return Ok(None);
            }
        }
        let is_bearer = |challenge: Challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        };
        let Some(bearer) = challenges(headers).into_iter().find_map(is_bearer) else { return Ok(None) };
        let (url, judged) = realm::judge(&bearer.realm, &target.url, &self.registry, &self.realm_hosts)?;
        // Its own host is dialled as the redirect was.
        let way = if url.host() == target.url.host() { target.way } else { judged };
        let name = repository(&target.url);
        let scopes = Scopes::learn(bearer.scope.as_deref(), name.as_ref());
        let realm = Realm { url, way, service: bearer.service, scopes };
        let (key, started) = (Arc::new(realm.key(name.as_ref(), None)), Instant::now());
        let fetch = token::fetch(&self.client, way, &key, None, deadline);
        match timeout_at(deadline, self.tokens.get(&key, fetch)).await.map_err(|_| Error::Timeout)? {
            Ok(token) => {
                let new = token.is_newer(started);
                Ok(Some(Anybody { origin, key, token, new }))
            }
            // It has none for anybody: that is no word of the registry's.
            Err(Error::Denied) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The best way to log in that an answer offers: tokens, because they travel instead of the password. An offer that
    /// the rules forbid hides no other.
    fn offered(
        &self,
        endpoint: &Url,
        name: Option<&RepoName>,
        login: Option<&Login>,
        headers: &HeaderMap,
    ) -> Result<Option<Scheme>, Refusal> {
        let (mut basic, mut forbidden) = (None, None);
        for challenge in challenges(headers) {
            let Challenge::Bearer(Bearer { realm, service, scope, .. }) = challenge else {
                basic = Some(Scheme::Basic);
                continue;
            };
            match realm::judge(&realm, endpoint, &self.registry, &self.realm_hosts) {
                Ok((url, way)) => {
                    let scopes = Scopes::learn(scope.as_deref(), name);
                    return Ok(Some(Scheme::Bearer(Arc::new(Realm { url, way, service, scopes }))));
                }
                Err(refusal) => {
                    forbidden.get_or_insert(refusal);
                }
            }
        }
        let has_basic = login.is_some_and(|login| login.to_basic().is_some());
        match forbidden {
            Some(refusal) if basic.is_none() || !has_basic => Err(refusal),
            _ => Ok(basic),
        }
    }
}

impl Realm {
    fn key(&self, name: Option<&RepoName>, login: Option<&Login>) -> Key {
        Key {
            realm: self.url.clone(),
            service: self.service.clone(),
            scopes: self.scopes.of(name),
            identity: login.map(Login::identity),
        }
    }
}

/// Whether a registry rejects a token of its own token server as invalid. That says nothing about what was asked for: their
/// clocks differ, or a key was changed on one side.
pub(crate) fn is_token_refused(tried: &Authorization, status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::UNAUTHORIZED
        && matches!(tried.proof, Proof::Token { .. })
        && has_error(headers, "invalid_token")
}

/// Whether a registry takes the token and says that its scope does not suffice: so Docker Hub says 404.
pub(crate) fn is_scope_refused(headers: &HeaderMap) -> bool {
    has_error(headers, "insufficient_scope")
}

fn has_error(headers: &HeaderMap, error: &str) -> bool {
    let is_it = |challenge: &Challenge| matches!(challenge, Challenge::Bearer(bearer) if bearer.error.as_deref() == Some(error));
    challenges(headers).iter().any(is_it)
}

/// The repository that a URL of a registry is about.
fn repository(url: &Url) -> Option<RepoName> {
    const KINDS: [&str; 4] = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let (_, rest) = url.path().split_once("/v2/")?;
    // The last one: a repository may be called so, too.
    let end = KINDS.iter().filter_map(|kind| rest.rfind(kind)).max()?;
    RepoName::parse(&rest[..end]).ok()
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    challenge::parse(headers.get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_registry_names_a_repository() {
        let check = |url: &str, expected: Option<&str>| {
            let found = repository(&Url::parse(url).unwrap());
            assert_eq!(found.map(|name| name.to_string()).as_deref(), expected, "{url}");
        };
        check("https://h/v2/a/b/manifests/1", Some("a/b"));
        check("https://h/prefix/v2/a/manifests/sha256:0?x=/v2/", Some("a"));
        check("https://h/v2/blobs/manifests/blobs/sha256:0", Some("blobs/manifests"));
        check("https://h/v2/a/blobs/manifests/1", Some("a/blobs"));
        check("https://h/v2/a/tags/list", Some("a"));
        check("https://h/v2/", None);
        check("https://h/v2/A/blobs/x", None);
        check("https://h/store/a", None);
    }

    #[test]
    fn scopes_are_for_pulling_what_is_asked_for() {
        let check = |scope: Option<&str>, expected: &[&str]| {
            let name = |text: &str| RepoName::parse(text).unwrap();
            let learned = Scopes::learn(scope, Some(&name("a/b")));
            assert_eq!(learned.of(Some(&name("c/d"))), expected, "{scope:?}");
            assert_eq!(learned.of(None), learned.plain, "{scope:?}");
        };
        let own = "repository:c/d:pull";
        check(None, &[own]);
        check(Some(""), &[own]);
        check(Some("repository:a/b:pull"), &[own]);
        check(Some("repository:a/b:pull,push,delete"), &[own]);
        check(Some("repository:user/image:pull"), &[own]);
        check(Some("repository:private/secret:* registry:catalog:*"), &[own]);
        check(Some("repository:proxy/a/b:pull"), &["repository:proxy/c/d:pull"]);
        check(Some("repository:../a/b:pull"), &[own]);
        check(Some("aws"), &["aws"]);
        check(Some("x repository:a/b:pull aws"), &["aws", own, "x"]);
        assert!(Scopes::learn(Some("repository:a/b:pull"), None).of(None).is_empty());
    }
}
