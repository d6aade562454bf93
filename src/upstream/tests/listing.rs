//! Lists: pages of tags, referrers, and what old registries do instead.

use super::super::Error;
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index(body: &str) -> Reply {
    Reply::ok(body.to_owned()).with("content-type", INDEX)
}

#[tokio::test]
async fn pages_of_tags_are_put_together() {
    let fake = Fake::start(|seen| match seen.path.split_once('?').unwrap().1 {
        "n=3" => Reply::ok(r#"{"name":"a","tags":["1","2"]}"#)
            .with("link", r#"<https://evil.example/x?n=2&last=2&orderby=>; rel="next""#),
        "n=2&last=2&orderby=" => Reply::ok(r#"{"tags":["3","not a tag","4"]}"#),
        _ => Reply::new(404, ""),
    })
    .await;
    let upstream = upstream_of(&fake);
    let page = upstream.tags(&client(), &name("a"), 3, None).await.unwrap();
    assert_eq!(page.tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(page.more);
    assert!(fake.seen().iter().all(|seen| seen.path.starts_with("/v2/a/tags/list?")));
}

#[tokio::test]
async fn a_list_without_tags_is_empty_and_nonsense_is_an_outage() {
    let fake = Fake::start(|seen| match seen.path.contains("/html/") {
        true => Reply::ok("<html>"),
        false => Reply::ok(r#"{"name":"a","tags":null}"#),
    })
    .await;
    let upstream = upstream_of(&fake);
    let page = upstream.tags(&client(), &name("a"), 5000, Some("x y")).await.unwrap();
    assert!(page.tags.is_empty() && !page.more);
    assert_eq!(fake.seen()[0].path, "/v2/a/tags/list?n=1000&last=x+y");
    assert!(matches!(
        error_of(upstream.tags(&client(), &name("html/a"), 5, None).await),
        Error::Malformed(_)
    ));
}

#[tokio::test]
async fn a_list_that_never_ends_is_cut() {
    let fake = Fake::start(|_| Reply::ok(r#"{"tags":[]}"#).with("link", r#"</?n=1>; rel="next""#)).await;
    assert!(upstream_of(&fake).tags(&client(), &name("a"), 5, None).await.unwrap().more);
    assert_eq!(fake.seen().len(), 20);
    let fake = Fake::start(|_| index(r#"{"manifests":[]}"#).with("link", r#"</?n=1>; rel="next""#)).await;
    let error = error_of(upstream_of(&fake).referrers(&client(), &name("a"), &digest_of(b"")).await);
    assert!(matches!(error, Error::Malformed(_)));
}

#[tokio::test]
async fn pages_of_referrers_are_merged() {
    let fake = Fake::start(|seen| match seen.path.split_once('?') {
        None => {
            index(r#"{"schemaVersion":2,"manifests":[{"size":1}]}"#).with("link", r#"</x?p=2>; rel="next""#)
        }
        Some(_) => index(r#"{"schemaVersion":2,"manifests":[{"size":2}]}"#),
    })
    .await;
    let merged = upstream_of(&fake).referrers(&client(), &name("a"), &digest_of(b"")).await.unwrap().unwrap();
    let merged: serde_json::Value = serde_json::from_slice(&merged.body).unwrap();
    assert_eq!(merged["manifests"], serde_json::json!([{"size": 1}, {"size": 2}]));
}

#[tokio::test]
async fn old_registries_keep_referrers_under_a_tag() {
    let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let digest = digest_of(b"");
    let check = async |api: fn() -> Reply, tag: fn() -> Reply, expected: Result<Option<&str>, Error>| {
        let fake = Fake::start(move |seen| match seen.path.as_str() {
            "/v2/" => Reply::ok("{}"),
            path if path.contains("/referrers/") => api(),
            _ => tag(),
        })
        .await;
        let referrers = upstream_of(&fake).referrers(&client(), &name("a"), &digest).await;
        let body = referrers.map(|list| list.map(|list| list.body));
        assert_eq!(body, expected.map(|body| body.map(|body| body.to_owned().into())));
        fake
    };
    let none = || Reply::new(404, "");
    let listed = || {
        index(r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#)
    };
    check(listed, none, Ok(Some(body))).await;
    let fake = check(none, listed, Ok(Some(body))).await;
    let path = format!("/v2/a/manifests/sha256-{}", digest.hex());
    assert_eq!(fake.seen().last().unwrap().path, path);
    check(none, none, Ok(None)).await;
    check(|| Reply::ok("<html>").with("content-type", "text/html"), none, Ok(None)).await;
    check(|| Reply::new(405, ""), none, Ok(None)).await;
    check(|| Reply::new(403, "{}"), none, Err(Error::Denied)).await;
}
