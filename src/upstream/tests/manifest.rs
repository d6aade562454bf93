//! Tags and manifests: what counts as one, and what the next endpoint is asked for.

use bytes::Bytes;

use super::super::{Attempts, Error, Freshness, Resolved, Untold};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of, upstream_with};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Reference, Tag};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BODY: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn tag() -> Tag {
    Tag::parse("3.20").unwrap()
}

fn manifest() -> Reply {
    Reply::ok(BODY).with("content-type", INDEX)
}

#[tokio::test]
async fn a_tag_is_looked_up_by_head() {
    let digest = digest_of(BODY.as_bytes());
    let text = digest.to_string();
    let fake = Fake::start(move |_| manifest().with("docker-content-digest", &text)).await;
    let resolved = upstream_of(&fake).resolve(&client(), &name("a/b"), &tag(), Attempts::Once).await;
    let size = Some(BODY.len() as u64);
    let (media_type, standing) = (Some(INDEX.into()), Freshness::FRESH);
    assert_eq!(
        resolved,
        Ok(Resolved { digest: Some(digest), media_type, size, standing, untold: Untold::Silent })
    );
    let [seen] = fake.seen().try_into().unwrap();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("HEAD", "/v2/a/b/manifests/3.20"));
    let accept = seen.header("accept").unwrap();
    assert!(accept.contains(INDEX) && accept.contains("docker.distribution.manifest.v2+json"));
    assert!(seen.header("user-agent").unwrap().starts_with("berth/"));
}

#[tokio::test]
async fn a_head_that_says_nothing_leaves_it_to_the_get() {
    let check = async |reply: fn() -> Reply, expected: Result<Option<&str>, Error>| {
        let fake = Fake::start(move |_| reply()).await;
        let resolved = upstream_of(&fake).resolve(&client(), &name("a"), &tag(), Attempts::Once).await;
        let digest = resolved.map(|resolved| resolved.digest.map(|digest| digest.to_string()));
        assert_eq!(digest, expected.map(|digest| digest.map(str::to_owned)));
        assert_eq!(fake.seen().len(), 1, "a check is not repeated");
    };
    check(|| Reply::new(405, ""), Ok(None)).await;
    check(manifest, Ok(None)).await;
    check(|| manifest().with("docker-content-digest", "sha256:short"), Ok(None)).await;
    check(
        || Reply::ok("<html>").with("content-type", "text/html"),
        Err(Error::Malformed("a page instead of a manifest")),
    )
    .await;
    check(|| Reply::new(404, ""), Ok(None)).await;
    check(|| Reply::new(403, "{}"), Ok(None)).await;
    check(|| Reply::new(403, "").with("content-type", "text/html"), Ok(None)).await;
    check(|| Reply::new(406, ""), Ok(None)).await;
    check(|| Reply::new(501, ""), Ok(None)).await;
    check(|| Reply::new(500, ""), Err(Error::Unavailable { status: 500 })).await;
    let retry_after = Some(std::time::Duration::from_secs(3600));
    check(|| Reply::new(429, "").with("retry-after", "3600"), Err(Error::Limited { retry_after })).await;
}

/// What a GET is told, where `/v2/` is answered with `base`.
async fn refused(reply: fn() -> Reply, base: fn() -> Reply) -> (Error, usize) {
    let fake = Fake::start(move |seen| if seen.path == "/v2/" { base() } else { reply() }).await;
    let upstream = upstream_of(&fake);
    let reference = Reference::Tag(tag());
    let error = error_of(upstream.manifest(&client(), &name("a"), &reference, Attempts::Once).await);
    let looks = fake.seen().iter().filter(|seen| seen.path == "/v2/").count();
    (error, looks)
}

#[tokio::test]
async fn a_refusal_is_the_registrys_if_somebody_speaks_for_it() {
    let check = async |reply: fn() -> Reply, base: fn() -> Reply, expected: Error, looks: usize| {
        assert_eq!(refused(reply, base).await, (expected, looks));
    };
    let ok = || Reply::ok("{}");
    let own = || Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    let page = || Reply::new(404, "404 page not found");
    let blocked = || Reply::new(403, "<html>").with("content-type", "text/html");
    let nobody = Error::NotFromRegistry { status: 404 };
    check(own, || Reply::new(404, ""), Error::NotFound, 0).await;
    check(|| Reply::new(403, r#"{"errors":[{"code":"X"}]}"#), page, Error::Denied, 0).await;
    check(page, ok, Error::NotFound, 1).await;
    check(blocked, || Reply::challenge("Basic"), Error::Denied, 1).await;
    check(|| Reply::challenge("Basic"), || Reply::challenge("Basic"), Error::Denied, 1).await;
    check(page, page, nobody.clone(), 1).await;
    check(page, || Reply::new(503, ""), nobody.clone(), 1).await;
    check(page, || Reply::ok("<html>Log in"), nobody.clone(), 1).await;
    check(page, || Reply::redirect("/login"), nobody, 1).await;
    check(blocked, blocked, Error::NotFromRegistry { status: 403 }, 1).await;
}

#[tokio::test]
async fn a_manifest_is_kept_byte_for_byte() {
    let fake = Fake::start(|_| manifest()).await;
    let fetched = upstream_of(&fake)
        .manifest(&client(), &name("a"), &Reference::Tag(tag()), Attempts::Rounds)
        .await
        .unwrap();
    assert_eq!((fetched.body.as_ref(), fetched.endpoint, fetched.public), (BODY.as_bytes(), 0, true));
    assert_eq!(fetched.manifest.media_type, INDEX);
}

#[tokio::test]
async fn the_next_honest_endpoint_is_used() {
    let honest = Fake::start(|_| manifest()).await;
    let reference = Reference::Digest(digest_of(BODY.as_bytes()));
    let check = async |reply: fn() -> Reply| {
        let lying = Fake::start(move |_| reply()).await;
        let upstream = upstream_with(&[&lying.url(), &honest.url()], |_| {});
        let fetched = upstream.manifest(&client(), &name("a"), &reference, Attempts::Rounds).await.unwrap();
        assert_eq!((fetched.body.as_ref(), fetched.endpoint), (BODY.as_bytes(), 1));
        assert_eq!(lying.seen().len(), 1);
    };
    check(|| Reply::ok(BODY.replace("[]", "[ ]")).with("content-type", INDEX)).await;
    check(|| Reply::ok("<html>").with("content-type", "text/html")).await;
    check(|| Reply::ok("{}").with("content-type", "application/json")).await;
    check(|| Reply::ok(vec![b' '; MANIFEST_BYTES_MAX + 1]).with("content-type", INDEX)).await;
    check(|| Reply::ok(BODY).cut(1000)).await;
    check(|| Reply::new(503, "")).await;
}

#[tokio::test]
async fn a_lie_is_not_asked_for_twice() {
    let fake = Fake::start(|_| manifest()).await;
    let reference = Reference::Digest(digest_of(b"something else"));
    let error =
        error_of(upstream_of(&fake).manifest(&client(), &name("a"), &reference, Attempts::Rounds).await);
    assert_eq!(error, Error::DigestMismatch);
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn the_largest_manifest_passes() {
    let mut body = BODY.as_bytes().to_vec();
    body.resize(MANIFEST_BYTES_MAX, b' ');
    let body = Bytes::from(body);
    let reference = Reference::Digest(digest_of(&body));
    let fake =
        Fake::start(move |_| Reply::ok(body.clone()).with("content-type", INDEX).without_length()).await;
    let fetched =
        upstream_of(&fake).manifest(&client(), &name("a"), &reference, Attempts::Rounds).await.unwrap();
    assert_eq!(fetched.body.len(), MANIFEST_BYTES_MAX);
}
