//! Logging in: tokens, passwords, and where they go.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;

use super::super::{CredentialsConfig, Error, HostName, Refusal, Upstream};
use super::fake::{Fake, Reply, Seen};
use super::{client, digest_of, error_of, name, upstream_of, upstream_with};

/// `u:hunter2`
const BASIC: &str = "Basic dTpodW50ZXIy";

/// A file that ends with this value.
fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

fn password(file: &NamedTempFile) -> Option<CredentialsConfig> {
    Some(CredentialsConfig::PasswordFile { username: "u".into(), file: file.path().into() })
}

fn bearer(seen: &Seen) -> Reply {
    let scope = "repository:a/b:pull";
    Reply::challenge(&format!(r#"Bearer realm="{}/token?k=v",service="s",scope="{scope}""#, seen.base()))
}

/// Wants a token that names the repository; `generation` makes all earlier tokens invalid.
async fn token_registry(generation: Arc<AtomicUsize>) -> Fake {
    Fake::start(move |seen| {
        let generation = generation.load(Ordering::SeqCst);
        if let Some(query) = seen.path.strip_prefix("/token?k=v&service=s&scope=repository%3A") {
            let repository = query.strip_suffix("%3Apull").unwrap().replace("%2F", "/");
            return Reply::ok(format!(r#"{{"token":"{repository}-{generation}"}}"#));
        }
        let repository = seen.path.strip_prefix("/v2/").unwrap().split("/blobs/").next().unwrap();
        match seen.authorization() {
            Some(token) if token == format!("Bearer {repository}-{generation}") => Reply::ok("content"),
            _ => bearer(seen),
        }
    })
    .await
}

async fn twenty_heads(upstream: &Arc<Upstream>, repository: &str) {
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let (upstream, name) = (Arc::clone(upstream), name(repository));
        requests.spawn(async move { upstream.head_blob(&client(), &name, &digest_of(b"content")).await });
    }
    while let Some(result) = requests.join_next().await {
        assert_eq!(result.unwrap(), Ok(7));
    }
}

#[tokio::test]
async fn twenty_requests_share_one_token_and_later_ones_are_not_challenged() {
    let fake = token_registry(Arc::default()).await;
    let upstream = upstream_of(&fake);
    twenty_heads(&upstream, "a/b").await;
    assert_eq!(fake.count("/token"), 1);
    let before = fake.seen().len();
    twenty_heads(&upstream, "a/b").await;
    assert_eq!(fake.seen().len(), before + 20);

    twenty_heads(&upstream, "c/d").await;
    assert_eq!(fake.count("/token"), 2, "another repository has a token of its own");
    assert_eq!(fake.seen().len(), before + 20 + 21, "asked for at once, without a challenge");
    assert!(upstream.is_public(&name("a/b")).await);
}

#[tokio::test]
async fn a_token_that_became_invalid_is_replaced_once() {
    let generation = Arc::new(AtomicUsize::new(1));
    let fake = token_registry(Arc::clone(&generation)).await;
    let upstream = upstream_of(&fake);
    twenty_heads(&upstream, "a/b").await;
    generation.store(2, Ordering::SeqCst);
    twenty_heads(&upstream, "a/b").await;
    assert_eq!(fake.count("/token"), 2);
}

#[tokio::test]
async fn the_password_goes_to_the_token_server_and_the_token_to_the_registry() {
    let fake = Fake::start(|seen| match (seen.path.starts_with("/token"), seen.authorization()) {
        (true, Some(BASIC)) => Reply::ok(r#"{"access_token":"t","expires_in":300}"#),
        (true, _) => Reply::new(401, ""),
        (false, Some("Bearer t")) => Reply::ok("content"),
        (false, _) => bearer(seen),
    })
    .await;
    let secret = file("hunter2\n");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    let stream =
        upstream.blob(&client(), &name("a/b"), &digest_of(b"content"), None, None, &[]).await.unwrap();
    assert!(!stream.public && !upstream.is_public(&name("a/b")).await);
    for seen in fake.seen() {
        let is_token_request = seen.path.starts_with("/token");
        assert_eq!(seen.authorization() == Some(BASIC), is_token_request, "{seen:?}");
        assert!(!seen.path.contains("hunter2"));
    }
}

#[tokio::test]
async fn basic_is_sent_only_after_it_was_asked_for() {
    let fake = Fake::start(|seen| match seen.authorization() {
        Some(BASIC) => Reply::ok("content"),
        _ => Reply::challenge(r#"BASIC realm="Nexus""#),
    })
    .await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    let sent: Vec<_> = fake.seen().iter().map(|seen| seen.authorization().is_some()).collect();
    assert_eq!(sent, [false, true, true]);

    let anonymous = upstream_of(&fake);
    assert_eq!(anonymous.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Err(Error::Denied));
}

#[tokio::test]
async fn a_refused_credential_is_an_outage_and_is_not_tried_over_and_over() {
    let fake = Fake::start(|_| Reply::challenge("Basic")).await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    let error = error_of(upstream.head_blob(&client(), &name("a"), &digest_of(b"")).await);
    assert_eq!(error, Error::LoginRefused);
    assert!(error.is_outage() && !format!("{error} {error:?}").contains("hunter2"));
    assert_eq!(fake.seen().len(), 2);

    let fake = Fake::start(|seen| match seen.path.starts_with("/token") {
        true => Reply::new(403, ""),
        false => bearer(seen),
    })
    .await;
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    assert_eq!(upstream.head_blob(&client(), &name("a/b"), &digest_of(b"")).await, Err(Error::LoginRefused));
    assert_eq!(
        upstream_of(&fake).head_blob(&client(), &name("a/b"), &digest_of(b"")).await,
        Err(Error::Denied)
    );
}

#[tokio::test]
async fn a_scope_that_is_not_granted_is_upstreams_word() {
    let fake = Fake::start(|seen| match (seen.path.starts_with("/token"), seen.authorization()) {
        (true, _) => Reply::ok(r#"{"token":"t"}"#),
        (false, Some(_)) => {
            let realm = format!("{}/token?k=v", seen.base());
            Reply::challenge(&format!(r#"Bearer realm="{realm}",service="s",error="insufficient_scope""#))
        }
        (false, None) => bearer(seen),
    })
    .await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    assert_eq!(upstream.head_blob(&client(), &name("a/b"), &digest_of(b"")).await, Err(Error::Denied));
}

#[tokio::test]
async fn harbors_basic_challenge_to_a_token_does_not_get_the_password() {
    let fake = Fake::start(|seen| match (seen.path.starts_with("/token"), seen.authorization()) {
        (true, _) => Reply::ok(r#"{"token":"t"}"#),
        (false, Some(_)) => Reply::challenge(r#"Basic realm="harbor""#),
        (false, None) => bearer(seen),
    })
    .await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    for _ in 0..2 {
        assert_eq!(
            upstream.head_blob(&client(), &name("a/b"), &digest_of(b"")).await,
            Err(Error::LoginRefused)
        );
    }
    assert!(
        fake.seen().iter().all(|seen| seen.path.starts_with("/token") || seen.authorization() != Some(BASIC))
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_a_form() {
    let fake = Fake::start(|seen| match (seen.path.starts_with("/token"), seen.authorization()) {
        (true, None) => Reply::ok(r#"{"access_token":"t"}"#),
        (false, Some("Bearer t")) => Reply::ok("content"),
        _ => bearer(seen),
    })
    .await;
    let config = file(r#"{"auths":{"registry.example.com":{"auth":"dTpw","identitytoken":"id&tok"}}}"#);
    let upstream = upstream_with(&[&fake.url()], |it| {
        it.credentials = Some(CredentialsConfig::File(config.path().into()));
    });
    assert_eq!(upstream.head_blob(&client(), &name("a/b"), &digest_of(b"content")).await, Ok(7));
    let asked = fake.seen().into_iter().find(|seen| seen.path.starts_with("/token")).unwrap();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token?k=v"));
    let form = "grant_type=refresh_token&client_id=berth&service=s&scope=repository%3Aa%2Fb%3Apull&refresh_token=id%26tok";
    assert_eq!(asked.body, form);
}

#[tokio::test]
async fn two_robots_of_one_host_are_told_apart() {
    let fake = Fake::start(|seen| match seen.authorization() {
        Some("Basic b25lOng=") if seen.path.starts_with("/v2/team-one/") => Reply::ok("content"),
        Some("Basic dHdvOng=") if seen.path.starts_with("/v2/team-two/") => Reply::ok("content"),
        None if seen.path.starts_with("/v2/public/") => Reply::ok("content"),
        _ => Reply::challenge("Basic"),
    })
    .await;
    let config = file(
        r#"{"auths":{"registry.example.com/team-one":{"username":"one","password":"x"},
                     "registry.example.com/team-two":{"username":"two","password":"x"}}}"#,
    );
    let upstream = upstream_with(&[&fake.url()], |it| {
        it.credentials = Some(CredentialsConfig::File(config.path().into()));
    });
    for repository in ["team-one/a", "team-two/a", "public/a"] {
        assert_eq!(
            upstream.head_blob(&client(), &name(repository), &digest_of(b"content")).await,
            Ok(7),
            "{repository}"
        );
    }
    assert!(upstream.is_public(&name("public/a")).await && !upstream.is_public(&name("team-two/a")).await);
    assert_eq!(
        upstream.head_blob(&client(), &name("team-three/a"), &digest_of(b"content")).await,
        Err(Error::Denied)
    );
}

#[tokio::test]
async fn a_token_server_elsewhere_is_asked_only_if_the_configuration_names_it() {
    let tokens = Fake::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let realm = format!("http://localhost:{}/token", tokens.port());
    let fake = Fake::start(move |seen| match seen.authorization() {
        Some("Bearer t") => Reply::ok("content"),
        _ => Reply::challenge(&format!(r#"Bearer realm="{realm}""#)),
    })
    .await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    let error = error_of(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await);
    assert_eq!(error, Error::Refused(Refusal::RealmHost { host: "localhost".into() }));
    assert_eq!(upstream_of(&fake).head_blob(&client(), &name("a"), &digest_of(b"content")).await, Err(error));
    assert_eq!(tokens.seen().len(), 0);

    let upstream = upstream_with(&[&fake.url()], |config| {
        config.credentials = password(&secret);
        config.realm_hosts = vec![HostName::parse("localhost").unwrap()];
    });
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    assert_eq!(tokens.seen()[0].authorization(), Some(BASIC));
}

#[tokio::test]
async fn a_token_server_cannot_send_the_password_on() {
    let elsewhere = Fake::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let target = elsewhere.url();
    let fake = Fake::start(move |seen| match seen.path.starts_with("/token") {
        true => Reply::redirect(&target),
        false => bearer(seen),
    })
    .await;
    let secret = file("hunter2");
    let upstream = upstream_with(&[&fake.url()], |config| config.credentials = password(&secret));
    let error = error_of(upstream.head_blob(&client(), &name("a/b"), &digest_of(b"")).await);
    assert_eq!(error, Error::Refused(Refusal::RealmRedirects { host: "127.0.0.1".into() }));
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn a_token_server_that_talks_nonsense_is_an_outage() {
    let check = async |body: String| {
        let fake = Fake::start(move |seen| match seen.path.starts_with("/token") {
            true => Reply::ok(body.clone()),
            false => bearer(seen),
        })
        .await;
        let error = error_of(upstream_of(&fake).head_blob(&client(), &name("a/b"), &digest_of(b"")).await);
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    };
    check("<html>".into()).await;
    check(r#"{"token":""}"#.into()).await;
    check(r#"{"token":"a\nb"}"#.into()).await;
    check(format!(r#"{{"token":"{}"}}"#, "x".repeat(1 << 20))).await;
}

#[tokio::test]
async fn a_token_whose_reply_does_not_say_its_end_may_say_it_itself() {
    let check = async |token: String, expected: usize| {
        let fake = Fake::start(move |seen| match (seen.path.starts_with("/token"), seen.authorization()) {
            (true, _) => Reply::ok(format!(r#"{{"access_token":"{token}"}}"#)),
            (false, None) => bearer(seen),
            (false, Some(_)) => Reply::ok("content"),
        })
        .await;
        let upstream = upstream_of(&fake);
        for _ in 0..2 {
            assert_eq!(upstream.head_blob(&client(), &name("a/b"), &digest_of(b"content")).await, Ok(7));
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(3600)).await;
            tokio::time::resume();
        }
        assert_eq!(fake.count("/token"), expected);
    };
    check("opaque".into(), 2).await;
    let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":5500}"#);
    check(format!("e30.{claims}.c2ln"), 1).await;
}

#[tokio::test]
async fn a_token_server_that_moved_is_found_again() {
    let moved = Arc::new(AtomicUsize::new(0));
    let place = Arc::clone(&moved);
    let fake = Fake::start(move |seen| {
        let place = place.load(Ordering::SeqCst);
        match seen.authorization() {
            _ if seen.path.starts_with(&format!("/token{place}")) => {
                Reply::ok(format!(r#"{{"token":"{place}"}}"#))
            }
            _ if seen.path.starts_with("/token") => Reply::new(404, ""),
            Some(token) if token == format!("Bearer {place}") => Reply::ok("content"),
            _ => Reply::challenge(&format!(r#"Bearer realm="{}/token{place}""#, seen.base())),
        }
    })
    .await;
    let upstream = upstream_of(&fake);
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    moved.store(1, Ordering::SeqCst);
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    assert!(upstream.head_blob(&client(), &name("b"), &digest_of(b"content")).await.is_ok());
}
