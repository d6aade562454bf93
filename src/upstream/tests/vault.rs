//! Logins in Vault: when it is asked, how long its tokens are used, and what of its answers is believed. What it is asked
//! is tested through the front door (`tests/it/auth/vault.rs`).

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;
use tokio::time::{advance, pause, resume, timeout};

use super::super::{
    CredentialsConfig, Endpoint, Error, KubernetesLogin, KvVersion, NoLogin, Upstream, VaultConfig,
    VaultLogin, VaultPath, VaultProblem,
};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_with};

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn path(text: &str) -> VaultPath {
    VaultPath::parse(text).unwrap()
}

fn in_vault(vault: &Fake, login: VaultLogin) -> VaultConfig {
    VaultConfig {
        address: Endpoint::parse(&vault.url()).unwrap(),
        namespace: None,
        ca: Vec::new(),
        mount: path("secret"),
        path: path("robot"),
        kv_version: KvVersion::V2,
        login,
    }
}

/// A Vault whose secret is `u:PASSWORD`, which gives out the tokens `token-1`, `token-2` and so on, and a registry that
/// takes the same password.
struct Site {
    vault: Fake,
    registry: Fake,
    upstream: Arc<Upstream>,
    state: Arc<Mutex<State>>,
    _jwt: NamedTempFile,
}

#[derive(Default)]
struct State {
    in_vault: String,
    at_registry: String,
    /// The number of the last token, the only one that is good unless it was revoked.
    issued: usize,
    is_revoked: bool,
    is_renewable: bool,
    /// What a renewal grants.
    renewed_seconds: u64,
}

impl State {
    fn answer(&mut self, path: &str, token: Option<&str>) -> Reply {
        let is_known = !self.is_revoked && token == Some(&format!("token-{}", self.issued));
        match path {
            "/v1/auth/kubernetes/login" => {
                self.issued += 1;
                self.is_revoked = false;
                let (number, renewable) = (self.issued, self.is_renewable);
                Reply::ok(format!(
                    r#"{{"auth":{{"client_token":"token-{number}","lease_duration":1000,"renewable":{renewable}}}}}"#
                ))
            }
            _ if !is_known => Reply::new(403, r#"{"errors":["permission denied"]}"#),
            "/v1/auth/token/lookup-self" => Reply::ok(r#"{"data":{"ttl":900}}"#),
            "/v1/auth/token/renew-self" => {
                Reply::ok(format!(r#"{{"auth":{{"lease_duration":{}}}}}"#, self.renewed_seconds))
            }
            "/v1/secret/data/robot" => Reply::ok(format!(
                r#"{{"data":{{"data":{{"username":"u","password":"{}"}}}}}}"#,
                self.in_vault
            )),
            _ => Reply::new(404, r#"{"errors":[]}"#),
        }
    }
}

impl Site {
    async fn start(is_renewable: bool) -> Self {
        let state = State {
            in_vault: "one".to_owned(),
            at_registry: "one".to_owned(),
            is_renewable,
            renewed_seconds: 1000,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let of_vault = Arc::clone(&state);
        let vault = Fake::start(move |seen| {
            of_vault.lock().unwrap().answer(&seen.path, seen.header("x-vault-token"))
        })
        .await;
        let of_registry = Arc::clone(&state);
        let registry = Fake::start(move |seen| {
            let login = STANDARD.encode(format!("u:{}", of_registry.lock().unwrap().at_registry));
            match seen.authorization() {
                Some(sent) if sent == format!("Basic {login}") => Reply::ok("content"),
                _ => Reply::challenge(r#"Basic realm="r""#),
            }
        })
        .await;
        let jwt = file("jwt");
        let login = VaultLogin::Kubernetes(KubernetesLogin {
            role: "berth".to_owned(),
            mount: path("kubernetes"),
            token_file: jwt.path().into(),
        });
        let upstream = upstream_with(&[&registry.url()], |config| {
            config.credentials = Some(CredentialsConfig::Vault(in_vault(&vault, login)));
        });
        Self { vault, registry, upstream, state, _jwt: jwt }
    }

    async fn head(&self) -> Result<u64, Error> {
        self.upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// How often it was asked for what ends so.
    fn asked(&self, end: &str) -> usize {
        self.vault.seen().iter().filter(|seen| seen.path.ends_with(end)).count()
    }

    async fn until_asked(&self, end: &str, times: usize) {
        let asked = async {
            while self.asked(end) < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(30), asked).await.unwrap_or_else(|_| panic!("{end} {times} times"));
    }

    /// Lets time pass until it was.
    async fn later_it_is_asked(&self, end: &str, times: usize) {
        let asked = async {
            while self.asked(end) < times {
                later(100).await;
                // For the answer, which takes real time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(24 * 3600), asked)
            .await
            .unwrap_or_else(|_| panic!("{end} {times} times"));
    }
}

async fn later(seconds: u64) {
    pause();
    advance(Duration::from_secs(seconds)).await;
    resume();
}

#[tokio::test]
async fn a_secret_is_looked_up_again_behind_whoever_needs_it() {
    let site = Site::start(true).await;
    assert!(!site.upstream.is_public(&name("a")).await);
    assert_eq!(site.vault.seen().len(), 0, "nobody is asked before it is needed");
    for _ in 0..3 {
        assert_eq!(site.head().await, Ok(7));
    }
    assert_eq!(site.asked("/robot"), 1);
    // The registry takes both for a while.
    site.with(|state| state.in_vault = "two".to_owned());
    later(60).await;
    assert_eq!(site.asked("/robot"), 1, "nor without need");
    assert_eq!(site.head().await, Ok(7));
    site.until_asked("/robot", 2).await;
    site.with(|state| state.at_registry = "two".to_owned());
    assert_eq!(site.head().await, Ok(7));
    assert!(site.asked("/login") == 1 && site.asked("/robot") <= 3);
}

#[tokio::test]
async fn a_secret_that_was_just_looked_up_is_looked_up_again_when_it_is_refused() {
    let site = Site::start(true).await;
    assert_eq!(site.head().await, Ok(7));
    for password in ["two", "three"] {
        site.with(|state| (state.in_vault, state.at_registry) = (password.to_owned(), password.to_owned()));
        assert_eq!(site.head().await, Ok(7), "{password}");
    }
    assert_eq!(site.asked("/robot"), 3);
    site.with(|state| state.at_registry = "another".to_owned());
    for _ in 0..20 {
        assert_eq!(site.head().await, Err(Error::LoginRefused));
    }
    // More would take a second each.
    assert!(site.asked("/robot") <= 6, "a secret that stays the same is not asked for by every request");
}

#[tokio::test]
async fn a_token_is_renewed_while_it_can_be_and_then_had_anew() {
    let site = Site::start(true).await;
    let running = tokio::spawn(Arc::clone(&site.upstream).run(std::future::pending()));
    assert_eq!(site.head().await, Ok(7));
    site.later_it_is_asked("/renew-self", 1).await;
    site.with(|state| state.renewed_seconds = 400);
    site.later_it_is_asked("/login", 2).await;
    assert_eq!(site.asked("/renew-self"), 2, "it nears its end for good");
    assert_eq!(site.head().await, Ok(7));
    running.abort();

    let site = Site::start(false).await;
    let running = tokio::spawn(Arc::clone(&site.upstream).run(std::future::pending()));
    assert_eq!(site.head().await, Ok(7));
    site.later_it_is_asked("/login", 2).await;
    assert_eq!(site.asked("/renew-self"), 0);
    running.abort();
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_once() {
    let site = Site::start(true).await;
    assert_eq!(site.head().await, Ok(7));
    site.with(|state| {
        state.is_revoked = true;
        (state.in_vault, state.at_registry) = ("two".to_owned(), "two".to_owned());
    });
    assert_eq!(site.head().await, Ok(7));
    assert_eq!((site.asked("/login"), site.asked("/lookup-self"), site.asked("/robot")), (2, 1, 3));
    assert!(site.registry.seen().len() <= 5);
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again() {
    let valid = Arc::new(Mutex::new("hvs.one"));
    let takes = Arc::clone(&valid);
    let vault = Fake::start(move |seen| {
        let is_known = seen.header("x-vault-token") == Some(*takes.lock().unwrap());
        match seen.path.as_str() {
            "/v1/secret/data/robot" if is_known => {
                Reply::ok(r#"{"data":{"data":{"username":"u","password":"p"}}}"#)
            }
            // Its policy is narrow.
            _ => Reply::new(403, r#"{"errors":["permission denied"]}"#),
        }
    })
    .await;
    let registry = Fake::start(|_| Reply::ok("content")).await;
    let token = file("hvs.one\n");
    let upstream = upstream_with(&[&registry.url()], |config| {
        let login = VaultLogin::TokenFile(token.path().into());
        config.credentials = Some(CredentialsConfig::Vault(in_vault(&vault, login)));
    });
    let head = async || upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await;
    assert_eq!(head().await, Ok(7));
    *valid.lock().unwrap() = "hvs.two";
    File::create(token.path()).unwrap().write_all(b"hvs.two").unwrap();
    let before = vault.seen().len();
    later(60).await;
    assert_eq!(head().await, Ok(7));
    let looked_up = async {
        while vault.seen()[before..].iter().all(|seen| seen.path != "/v1/secret/data/robot") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), looked_up).await.expect("the secret is looked up");
    assert!(vault.seen()[before..].iter().all(|seen| seen.header("x-vault-token") == Some("hvs.two")));

    *valid.lock().unwrap() = "hvs.three";
    let refused = error_of(head_with_token(&vault, &registry, &token).await);
    assert_eq!(refused, Error::NoLogin(VaultProblem::TokenRefused.into()));
}

async fn head_with_token(vault: &Fake, registry: &Fake, token: &NamedTempFile) -> Result<u64, Error> {
    let upstream = upstream_with(&[&registry.url()], |config| {
        let login = VaultLogin::TokenFile(token.path().into());
        config.credentials = Some(CredentialsConfig::Vault(in_vault(vault, login)));
    });
    upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await
}

#[tokio::test]
async fn a_hostile_answer_is_an_error_and_is_not_followed_elsewhere() {
    let elsewhere = Fake::start(|_| Reply::ok("{}")).await;
    let target = elsewhere.url();
    let registry = Fake::start(|_| Reply::ok("content")).await;
    let token = file("hvs.token");
    let check = async |answer: Box<dyn Fn() -> Reply + Send + Sync>, expected: NoLogin| {
        let vault = Fake::start(move |_| answer()).await;
        let error = error_of(head_with_token(&vault, &registry, &token).await);
        assert_eq!(error, Error::NoLogin(expected));
        assert!(error.is_outage() && !format!("{error} {error:?}").contains("hvs."));
    };
    let nonsense = |what| NoLogin::from(VaultProblem::Nonsense { what });
    check(Box::new(move || Reply::redirect(&target)), VaultProblem::Redirects { status: 307 }.into()).await;
    check(Box::new(|| Reply::ok("<html>")), nonsense("no JSON")).await;
    check(Box::new(|| Reply::new(403, "<html>hvs.token")), nonsense("no JSON")).await;
    check(Box::new(|| Reply::new(500, "hvs.token")), VaultProblem::Status { status: 500 }.into()).await;
    let none = VaultProblem::NoSecret { path: "secret/data/robot".into() };
    check(Box::new(|| Reply::ok("{}")), none.clone().into()).await;
    check(Box::new(|| Reply::ok(r#"{"data":{"data":"hvs.token"}}"#)), none.into()).await;
    let large = "malformed body".repeat(64 * 1024);
    check(
        Box::new(move || Reply::ok(large.clone()).without_length()),
        nonsense("a body larger than any of its kind"),
    )
    .await;
    assert_eq!((elsewhere.seen().len(), registry.seen().len()), (0, 0));
}

#[tokio::test]
async fn vault_has_authorities_of_its_own() {
    let (vault, pem) = Fake::start_tls(|seen| match seen.path.as_str() {
        "/v1/secret/data/robot" => Reply::ok(r#"{"data":{"data":{"username":"u","password":"p"}}}"#),
        _ => Reply::ok(r#"{"data":{"ttl":0}}"#),
    })
    .await;
    let registry = Fake::start(|_| Reply::ok("content")).await;
    let (token, pem) = (file("hvs.token"), file(&pem));
    let head = async |of_vault: bool| {
        let upstream = upstream_with(&[&registry.url()], |config| {
            let login = VaultLogin::TokenFile(token.path().into());
            let mut vault = in_vault(&vault, login);
            if of_vault { &mut vault.ca } else { &mut config.ca }.push(pem.path().into());
            config.credentials = Some(CredentialsConfig::Vault(vault));
        });
        upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await
    };
    assert_eq!(head(true).await, Ok(7));
    let refused = error_of(head(false).await);
    assert!(
        matches!(&refused, Error::NoLogin(NoLogin::Vault(VaultProblem::Unanswered { .. }))),
        "{refused:?}"
    );
}
