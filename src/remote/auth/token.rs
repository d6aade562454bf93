//! Tokens: asked of a token server once per scope and lifetime, and shared by all requests.
//!
//! A token is kept by realm, service, scopes and identity, because a token for one scope is refused for
//! another and a changed credential must not go on living in old tokens. While one request asks, the others
//! that need the same token wait for it, and take its failure too rather than ask again one by one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, LOCATION, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use lru::LruCache;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use crate::credentials::jwt;
use crate::credentials::login::{Fingerprint, Login};
use crate::credentials::{FRESH, oauth};
use crate::net::DialPolicy;
use crate::net::guard::shorten;
use crate::net::secret;
use crate::net::url::is_same_origin;
use crate::net::user_agent::AGENT;
use crate::remote::client::{self, Client};
use crate::remote::error::{Error, Refusal};
use crate::remote::redirect;
use crate::remote::retry_after::retry_after;
use crate::sync::lock;

/// The most tokens that are kept of one remote: enough for every repository of a busy site.
const TOKENS_MAX: usize = 10_000;
/// Bytes of all tokens of one remote, with their keys. A token mostly has one or two kilobytes.
const TOKENS_BYTES_MAX: usize = 4 << 20;
/// Bytes that a token takes besides its own and those of its key.
const SLOT_BYTES: usize = 512;
/// The interval between two searches for tokens that are over.
const SWEPT_EVERY: Duration = Duration::from_secs(60);
/// Bytes of the longest reply of a token server, and so of a token. A JWT with many grants has some ten kilobytes, and some replies list
/// all that an account may do besides; no registry takes a header as large as this.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// The most redirects of a token server on its own host: to https, and to where it has moved there.
const HOPS_MAX: usize = 3;
/// The lifetime of a token whose reply has no `expires_in`, and the shortest of any (distribution, "Token
/// Authentication").
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// The longest lifetime of a token: a credential that was withdrawn should not live on in one for ever.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long before its end a token is renewed; one with a short life is renewed after nine tenths of it.
const MARGIN_MAX: Duration = Duration::from_secs(30);

/// A token, ready for a request.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    fetched: Instant,
    renew: Instant,
}

impl Token {
    fn new(text: &str, lifetime: Option<Duration>, now: Instant) -> Option<Self> {
        let lifetime = lifetime.unwrap_or(LIFETIME_MIN).clamp(LIFETIME_MIN, LIFETIME_MAX);
        let renew = now + lifetime - MARGIN_MAX.min(lifetime / 10);
        Some(Self { header: secret::header("Bearer", text)?, fetched: now, renew })
    }

    /// Whether a 403 for it is about what was asked, and not about its age.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fetched.elapsed() < FRESH
    }

    /// Whether it was fetched after `started`, so that fetching again would change nothing.
    pub(crate) fn is_newer(&self, started: Instant) -> bool {
        self.fetched >= started
    }
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The token server.
    pub(crate) realm: Url,
    /// The service that the token is for.
    pub(crate) service: Option<String>,
    /// What it allows, sorted.
    pub(crate) scopes: Vec<String>,
    /// On whose behalf; `None` for anybody.
    pub(crate) identity: Option<Fingerprint>,
}

impl Key {
    /// What it takes in memory, with the slot that it is for.
    fn bytes(&self) -> usize {
        let service = self.service.as_ref().map_or(0, String::len);
        SLOT_BYTES + self.realm.as_str().len() + service + self.scopes.iter().map(String::len).sum::<usize>()
    }
}

/// All tokens of one upstream. Clients choose the repositories that there is a token for, and a token server how large
/// they are: together they never take more than [`TOKENS_BYTES_MAX`], and the one that has gone unused for longest goes
/// first.
pub(crate) struct Tokens(Mutex<Slots>);

struct Slots {
    by_key: LruCache<Arc<Key>, Entry>,
    bytes: usize,
    swept: Instant,
}

struct Entry {
    slot: Arc<tokio::sync::Mutex<Slot>>,
    bytes: usize,
    /// When it is of no more use.
    ends: Instant,
}

/// What is known of one token.
#[derive(Default)]
enum Slot {
    /// Nothing: ask.
    #[default]
    Empty,
    /// Use it until it is to be renewed.
    Token(Arc<Token>),
    /// Take this instead, if you were waiting already when it happened.
    Failed(Error, Instant),
}

impl Tokens {
    /// Without any token.
    pub(crate) fn new() -> Self {
        let (by_key, swept) = (LruCache::unbounded(), Instant::now());
        Self(Mutex::new(Slots { by_key, bytes: 0, swept }))
    }

    /// The token for `key`, which `fetch` gets if there is none.
    pub(crate) async fn get(
        &self,
        key: &Arc<Key>,
        fetch: impl Future<Output = Result<Token, Error>>,
    ) -> Result<Arc<Token>, Error> {
        let started = Instant::now();
        let shared = self.slot(key);
        let mut slot = shared.lock().await;
        match &*slot {
            Slot::Token(token) if Instant::now() < token.renew => return Ok(token.clone()),
            Slot::Failed(error, at) if *at >= started => return Err(error.clone()),
            Slot::Empty | Slot::Token(_) | Slot::Failed(..) => {}
        }
        match fetch.await {
            Ok(token) => {
                let token = Arc::new(token);
                *slot = Slot::Token(token.clone());
                lock(&self.0).note(key, &shared, token.header.len(), token.renew);
                Ok(token)
            }
            Err(error) => {
                *slot = Slot::Failed(error.clone(), Instant::now());
                lock(&self.0).note(key, &shared, 0, Instant::now());
                Err(error)
            }
        }
    }

    /// Drops a token that was refused, unless another has taken its place already.
    pub(crate) async fn forget(&self, key: &Arc<Key>, refused: &Arc<Token>) {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if matches!(&*slot, Slot::Token(token) if Arc::ptr_eq(token, refused)) {
            *slot = Slot::Empty;
        }
    }

    fn slot(&self, key: &Arc<Key>) -> Arc<tokio::sync::Mutex<Slot>> {
        lock(&self.0).enter(key, Instant::now())
    }
}

impl Slots {
    /// The slot of `key`, made if there is none.
    fn enter(&mut self, key: &Arc<Key>, now: Instant) -> Arc<tokio::sync::Mutex<Slot>> {
        if let Some(entry) = self.by_key.get(key) {
            return Arc::clone(&entry.slot);
        }
        if now.duration_since(self.swept) >= SWEPT_EVERY {
            self.sweep(now);
        }
        let (slot, bytes) = (Arc::<tokio::sync::Mutex<Slot>>::default(), key.bytes());
        self.bytes += bytes;
        self.by_key.put(Arc::clone(key), Entry { slot: Arc::clone(&slot), bytes, ends: now + SWEPT_EVERY });
        self.trim();
        slot
    }

    /// Records the size of what a slot holds now, and until when that is of use.
    fn note(&mut self, key: &Arc<Key>, slot: &Arc<tokio::sync::Mutex<Slot>>, bytes: usize, ends: Instant) {
        let is_it = |entry: &&mut Entry| Arc::ptr_eq(&entry.slot, slot);
        // It may have been dropped meanwhile, while it was waited for.
        let Some(entry) = self.by_key.get_mut(key).filter(is_it) else { return };
        let bytes = key.bytes() + bytes;
        self.bytes = self.bytes + bytes - entry.bytes;
        (entry.bytes, entry.ends) = (bytes, ends);
        self.trim();
    }

    /// Drops what is of no more use.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let over = self.by_key.iter().filter(|(_, entry)| entry.ends <= now);
        let over: Vec<_> = over.map(|(key, _)| Arc::clone(key)).collect();
        for key in over {
            self.bytes -= self.by_key.pop(&key).map_or(0, |entry| entry.bytes);
        }
    }

    /// Drops the least recently used until the rest fits. A request that waits for one of them has it nevertheless.
    fn trim(&mut self) {
        while self.bytes > TOKENS_BYTES_MAX || self.by_key.len() > TOKENS_MAX {
            let Some((_, entry)) = self.by_key.pop_lru() else { return };
            self.bytes -= entry.bytes;
        }
    }
}

/// Asks the token server for the token of `key`.
pub(crate) async fn fetch(
    client: &Client,
    way: DialPolicy,
    key: &Key,
    login: Option<&Login>,
    deadline: Instant,
) -> Result<Token, Error> {
    let deadline = deadline.min(Instant::now() + client.timeouts.token);
    let mut url = match login {
        Some(Login::IdentityToken(_)) => key.realm.clone(),
        _ => with_query(key),
    };
    let mut hops = 0;
    let response = loop {
        let request = match login {
            Some(Login::IdentityToken(token)) => by_form(key, &url, token)?,
            _ => by_query(&url, login)?,
        };
        let within = deadline.saturating_duration_since(Instant::now());
        let response = client.send(way, request, within).await?;
        if !redirect::is_redirect(response.status()) {
            break response;
        }
        let is_form = matches!(login, Some(Login::IdentityToken(_)));
        hops += 1;
        let next = follow(&url, response.status(), response.headers().get(LOCATION), is_form);
        url = next.filter(|_| hops <= HOPS_MAX).ok_or_else(|| Refusal::RealmRedirects {
            host: shorten(key.realm.host_str().unwrap_or_default()),
        })?;
    };
    let status = response.status();
    if !status.is_success() {
        return Err(refused(status, login.is_some(), retry_after(response.headers())));
    }
    let body = client::read(response.into_body(), REPLY_BYTES_MAX, client.timeouts.idle, deadline).await?;
    let (text, lifetime) = oauth::parse(&body).ok_or(Error::Malformed("a token reply without a token"))?;
    // Azure's registries say it in the token alone.
    let lifetime = lifetime.or_else(|| jwt::lifetime(&text, SystemTime::now()));
    Token::new(&text, lifetime, Instant::now()).ok_or(Error::Malformed("a token that fits into no header"))
}

/// What a token server's refusal means. GitLab says 403 to a wrong password, others 401, OAuth 400.
fn refused(status: StatusCode, with_login: bool, retry_after: Option<Duration>) -> Error {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if with_login => {
            Error::LoginRefused
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied,
        StatusCode::TOO_MANY_REQUESTS => Error::Limited { retry_after },
        _ => Error::Unavailable { status: status.as_u16() },
    }
}

/// Where a token server that redirects is to be asked: at itself, or at its host by https where it was http, which is where
/// the rules let a credential go. A form is sent again only where that is what the redirect means.
fn follow(url: &Url, status: StatusCode, location: Option<&HeaderValue>, is_form: bool) -> Option<Url> {
    let next = redirect::next(url, location?, &[]).ok()?;
    let is_upgrade = next.host() == url.host() && (url.scheme(), next.scheme()) == ("http", "https");
    let is_near = is_upgrade || is_same_origin(url, &next);
    let is_as_it_was = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    (is_near && (is_as_it_was || !is_form)).then_some(next)
}

/// `realm?service=…&scope=…`.
fn with_query(key: &Key) -> Url {
    let mut url = key.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &key.service {
            query.append_pair("service", service);
        }
        for scope in &key.scopes {
            query.append_pair("scope", scope);
        }
    }
    // Neither service nor scope leaves an empty query behind.
    if url.query() == Some("") {
        url.set_query(None);
    }
    url
}

/// A GET, with Basic if there is a password.
fn by_query(url: &Url, login: Option<&Login>) -> Result<Request<Full<Bytes>>, Error> {
    let mut request = request(Method::GET, url, Bytes::new())?;
    if let Some(basic) = login.and_then(Login::to_basic) {
        request.headers_mut().insert(AUTHORIZATION, basic);
    }
    Ok(request)
}

/// The OAuth form, which takes an identity token.
fn by_form(key: &Key, url: &Url, token: &secret::Secret) -> Result<Request<Full<Bytes>>, Error> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token").append_pair("client_id", "berth");
    if let Some(service) = &key.service {
        form.append_pair("service", service);
    }
    if !key.scopes.is_empty() {
        form.append_pair("scope", &key.scopes.join(" "));
    }
    form.append_pair("refresh_token", token.expose());
    let mut request = request(Method::POST, url, form.finish().into())?;
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    request.headers_mut().insert(CONTENT_TYPE, form_type);
    Ok(request)
}

fn request(method: Method, url: &Url, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
    Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "application/json")
        .header(ACCEPT_ENCODING, "identity")
        .body(Full::new(body))
        .map_err(|_| Error::Malformed("a token server's URL that cannot be asked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_follows_a_token_server_to_itself_alone() {
        let check = |from: &str, location: &str, is_form: bool, status: u16, expected: Option<&str>| {
            let location = HeaderValue::try_from(location).unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            let next = follow(&Url::parse(from).unwrap(), status, Some(&location), is_form);
            assert_eq!(next.as_ref().map(Url::as_str), expected, "{from} {location:?}");
        };
        check("https://h/token?a=1", "/auth/token?a=1", false, 301, Some("https://h/auth/token?a=1"));
        check("http://h/token", "https://h/token", false, 302, Some("https://h/token"));
        check("http://h:8080/t", "https://h:8443/t", false, 308, Some("https://h:8443/t"));
        check("https://h/token", "http://h/token", false, 302, Some("https://h/token"));
        check("https://h/token", "http://h:8080/token", false, 302, None);
        check("https://h/token", "https://h:8443/token", false, 302, None);
        check("http://h/token", "http://h:8080/token", false, 302, None);
        check("https://h/token", "https://evil.h/token", false, 307, None);
        check("https://h/token", "https://u:p@h/token", false, 307, None);
        check("https://h/token", "/t", true, 302, None);
        check("https://h/token", "/t", true, 307, Some("https://h/t"));
        assert_eq!(follow(&Url::parse("https://h/t").unwrap(), StatusCode::FOUND, None, false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_a_minute_at_least_and_is_renewed_early() {
        let now = Instant::now();
        let check = |lifetime: Option<u64>, renew: u64| {
            let token = Token::new("t", lifetime.map(Duration::from_secs), now).unwrap();
            assert_eq!((token.renew - now).as_secs(), renew, "{lifetime:?}");
        };
        check(None, 54);
        check(Some(1), 54);
        check(Some(200), 180);
        check(Some(300), 270);
        check(Some(3600), 3570);
        check(Some(u64::MAX >> 1), 24 * 3600 - 30);
        assert!(Token::new("a\nb", None, now).is_none());
    }

    fn key() -> Arc<Key> {
        let realm = Url::parse("https://h/t").unwrap();
        Arc::new(Key { realm, service: None, scopes: Vec::new(), identity: None })
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_token_is_renewed_and_a_refused_one_is_forgotten_once() {
        let tokens = Tokens::new();
        let fetch = async |text: &'static str| {
            let fetched = async { Ok(Token::new(text, None, Instant::now()).unwrap()) };
            tokens.get(&key(), fetched).await.unwrap()
        };
        let first = fetch("1").await;
        assert!(Arc::ptr_eq(&first, &fetch("2").await));
        tokio::time::advance(Duration::from_secs(55)).await;
        let second = fetch("2").await;
        assert_eq!(second.header, "Bearer 2");

        tokens.forget(&key(), &first).await;
        assert!(Arc::ptr_eq(&second, &fetch("3").await), "the first has been replaced already");
        tokens.forget(&key(), &second).await;
        assert_eq!(fetch("3").await.header, "Bearer 3");
    }

    fn key_of(number: usize) -> Arc<Key> {
        Arc::new(Key { scopes: vec![format!("repository:a/{number}:pull")], ..Key::clone(&key()) })
    }

    async fn keep(tokens: &Tokens, number: usize, bytes: usize) -> bool {
        let is_new = std::cell::Cell::new(false);
        let fetch = async {
            is_new.set(true);
            Ok(Token::new(&"x".repeat(bytes), None, Instant::now()).unwrap())
        };
        tokens.get(&key_of(number), fetch).await.unwrap();
        is_new.get()
    }

    #[tokio::test(start_paused = true)]
    async fn large_tokens_of_many_names_take_a_bounded_part_of_the_memory() {
        let tokens = Tokens::new();
        let state = || {
            let slots = lock(&tokens.0);
            let counted: usize = slots.by_key.iter().map(|(_, entry)| entry.bytes).sum();
            assert_eq!(slots.bytes, counted);
            (slots.by_key.len(), slots.bytes)
        };
        for number in 0..3200 {
            assert!(keep(&tokens, number, 60 << 10).await);
            // One that is in use stays.
            assert!(!keep(&tokens, 0, 60 << 10).await);
        }
        let (count, bytes) = state();
        assert!(bytes <= TOKENS_BYTES_MAX && count > 50, "{count} tokens, {bytes} bytes");
        assert!(!keep(&tokens, 3199, 1).await && keep(&tokens, 1, 1).await);
        for number in 0..2 * TOKENS_MAX {
            keep(&tokens, 10_000 + number, 1).await;
        }
        assert!(state().0 <= TOKENS_MAX);
        // All are over: the next one that comes finds them gone.
        tokio::time::advance(LIFETIME_MIN + SWEPT_EVERY).await;
        keep(&tokens, 5, 1000).await;
        let (count, bytes) = state();
        assert!(count == 1 && bytes < 3000, "{count} tokens, {bytes} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_a_failure_and_the_next_asks_again() {
        let tokens = Tokens::new();
        let slow = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(Error::Timeout)
        };
        let (key_one, key_two) = (key(), key());
        let (one, two) =
            tokio::join!(tokens.get(&key_one, slow), tokens.get(&key_two, async { unreachable!() }));
        assert_eq!((one.unwrap_err(), two.unwrap_err()), (Error::Timeout, Error::Timeout));
        tokio::time::advance(Duration::from_millis(1)).await;
        let next = tokens.get(&key(), async { Ok(Token::new("t", None, Instant::now()).unwrap()) }).await;
        assert_eq!(next.unwrap().header, "Bearer t");
    }
}
