//! Redirects: followed without credentials, and not everywhere.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tempfile::NamedTempFile;

use super::super::{Attempts, Class, Config, CredentialsConfig, Endpoint, Error, Refusal, Upstream};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of, upstream_with};
use crate::net::DialPolicy as Way;
use crate::oci::{Reference, Registry};
use crate::remote::client::Client;

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

/// An upstream with a login.
fn with_password(fake: &Fake, secret: &NamedTempFile) -> Arc<Upstream> {
    upstream_with(&[&fake.url()], |config| {
        let file = secret.path().into();
        config.credentials = Some(CredentialsConfig::PasswordFile { username: "u".into(), file });
    })
}

#[tokio::test]
async fn credentials_stay_with_the_endpoint() {
    let cdn = Fake::start(|_| Reply::ok("content")).await;
    let target = format!("{}/signed?sig=1", cdn.url());
    let fake = Fake::start(move |seen| match seen.authorization() {
        None => Reply::challenge("Basic"),
        Some(_) if seen.path == "/v2/same-origin" => Reply::redirect(&target),
        Some(_) => Reply::redirect("/v2/same-origin"),
    })
    .await;
    let secret = file("hunter2");
    let upstream = with_password(&fake, &secret);
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    let sent: Vec<_> = fake.seen().iter().map(|seen| seen.authorization().is_some()).collect();
    assert_eq!(sent, [false, true, true]);
    let [seen] = cdn.seen().try_into().unwrap();
    assert_eq!((seen.path.as_str(), seen.authorization()), ("/signed?sig=1", None));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn credentials_are_not_picked_up_again_on_the_way_back() {
    let cdn = Fake::start(|seen| Reply::redirect(seen.path.split_once("?to=").unwrap().1)).await;
    let away = cdn.url();
    let fake = Fake::start(move |seen| match (seen.path.as_str(), seen.authorization()) {
        ("/back", None) => Reply::ok("content"),
        (_, None) => Reply::challenge("Basic"),
        (_, Some(_)) => Reply::redirect(&format!("{away}/?to={}/back", seen.base())),
    })
    .await;
    let secret = file("hunter2");
    let upstream = with_password(&fake, &secret);
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    let sent: Vec<_> = fake.seen().iter().map(|seen| seen.authorization().is_some()).collect();
    assert_eq!((sent.as_slice(), cdn.seen()[0].authorization()), ([false, true, false].as_slice(), None));
}

#[tokio::test]
async fn a_challenge_from_elsewhere_gets_no_login_and_is_no_denial() {
    let cdn =
        Fake::start(|seen| Reply::challenge(&format!(r#"Basic, Bearer realm="{}/token""#, seen.base())))
            .await;
    let target = cdn.url();
    let fake = Fake::start(move |_| Reply::redirect(&target)).await;
    let secret = file("hunter2");
    let upstream = with_password(&fake, &secret);
    let error = error_of(upstream.blob(&client(), &name("a"), &digest_of(b""), None, None, &[]).await);
    assert_eq!(error, Error::Unavailable { status: 401 });
    assert!(cdn.seen().iter().all(|seen| seen.authorization().is_none()));
    assert_eq!(cdn.count("/token"), 1, "a token for anybody, which it does not give");
}

#[tokio::test]
async fn manifests_are_redirected_too() {
    let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let other =
        Fake::start(move |_| Reply::ok(body).with("content-type", "application/vnd.oci.image.index.v1+json"))
            .await;
    let target = other.url();
    let fake = Fake::start(move |seen| Reply::redirect(&format!("{target}{}", seen.path))).await;
    let reference = Reference::Digest(digest_of(body.as_bytes()));
    let fetched =
        upstream_of(&fake).manifest(&client(), &name("a"), &reference, Attempts::Rounds).await.unwrap();
    assert_eq!(fetched.body, body);
    assert!(other.seen()[0].header("accept").unwrap().contains("manifest.list.v2"));
}

#[tokio::test]
async fn tls_is_never_left() {
    let plain = Fake::start(|_| Reply::ok("content")).await;
    let target = plain.url();
    let (secure, certificate) = Fake::start_tls(move |seen| match seen.path.contains("/plain/") {
        true => Reply::redirect(&target),
        false => Reply::ok("content"),
    })
    .await;
    let ca = file(&certificate);
    let upstream = upstream_with(&[&secure.url()], |config| config.ca = vec![ca.path().into()]);
    assert_eq!(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await, Ok(7));
    let error = error_of(upstream.head_blob(&client(), &name("plain/a"), &digest_of(b"content")).await);
    assert_eq!(error, Error::Refused(Refusal::RedirectToPlainText { host: "127.0.0.1".into() }));
    assert_eq!(plain.seen().len(), 0);

    let distrustful = upstream_of(&secure);
    let error = error_of(distrustful.head_blob(&client(), &name("a"), &digest_of(b"content")).await);
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_redirect_goes_round_only_so_often() {
    let fake = Fake::start(|seen| Reply::redirect(&format!("{}x", seen.path))).await;
    let error = error_of(upstream_of(&fake).head_blob(&client(), &name("a"), &digest_of(b"")).await);
    assert_eq!(error, Error::Refused(Refusal::TooManyRedirects));
    assert_eq!(fake.seen().len(), 6);
}

#[tokio::test]
async fn inner_addresses_are_not_dialled() {
    let check = async |target: &'static str, class: Class| {
        let fake = Fake::start(move |_| Reply::redirect(target)).await;
        let error =
            error_of(upstream_of(&fake).blob(&client(), &name("a"), &digest_of(b""), None, None, &[]).await);
        assert!(
            matches!(&error, Error::Refused(Refusal::Address { class: found, .. }) if *found == class),
            "{error:?}"
        );
        assert_eq!(fake.seen().len(), 1, "a refusal is not retried");
    };
    check("http://169.254.169.254/latest/meta-data", Class::LinkLocal).await;
    check("http://[fd00:ec2::254]/latest/meta-data", Class::Metadata).await;
    check("http://10.0.0.1/", Class::Private).await;
    check("http://0x0a000001/", Class::Private).await;
    check("http://[::ffff:127.0.0.1]/", Class::Reserved).await;
    check("http://0.0.0.0/", Class::Reserved).await;
}

/// The upstream is on the Internet here, so that even loopback is foreign to it.
#[tokio::test]
async fn a_guarded_client_judges_names_by_their_addresses() {
    let inner = Fake::start(|_| Reply::ok("secret")).await;
    let endpoint = Endpoint::parse("https://192.88.99.1").unwrap();
    let config = Config::new(Registry::parse("registry.example.com").unwrap(), vec![endpoint]);
    let client = Client::build(&config.client(), None, Arc::new(|_, _| {})).unwrap();
    let send = async |way: Way, host: &str| {
        let url = format!("http://{host}:{}/", inner.port());
        let request = Request::get(url).body(Full::<Bytes>::default()).unwrap();
        client.send(way, request, Duration::from_secs(5)).await.map(|response| response.status().as_u16())
    };
    let refused =
        |host: &str| Err(Error::Refused(Refusal::Address { host: host.into(), class: Class::Loopback }));
    assert_eq!(send(Way::Direct, "localhost").await, Ok(200));
    assert_eq!(send(Way::Guarded, "localhost").await, refused("localhost"));
    assert_eq!(send(Way::Guarded, "127.0.0.1").await, refused("127.0.0.1"));
    assert_eq!(inner.seen().len(), 1);
}
