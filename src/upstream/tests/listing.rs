//! Lists: pages of tags, referrers, and what old registries do instead.

use std::time::Duration;

use super::super::{Error, PageQuery, TagBody};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index(body: &str) -> Reply {
    Reply::ok(body.to_owned()).with("content-type", INDEX)
}

/// How long is remembered who has no such API.
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_page_of_tags_goes_on_as_it_came_and_its_link_is_followed_by_the_query_alone() {
    let fake = Fake::start(|seen| match seen.path.split_once('?').unwrap().1 {
        "n=3" => Reply::ok(r#"{"name":"b","tags":["1","2"]}"#)
            .with("link", r#"<https://evil.example/x?n=2&last=2&orderby=>; rel="next""#),
        "n=2&last=2&orderby=" => Reply::ok(r#"{"tags":["3","not a tag","4"]}"#),
        _ => Reply::new(404, ""),
    })
    .await;
    let upstream = upstream_of(&fake);
    let page = upstream.tags(&client(), &name("a"), &PageQuery::read("n=3")).await.unwrap();
    assert_eq!(whole(page.body), r#"{"name":"a","tags":["1","2"]}"#);
    let next = PageQuery::read(&page.next.unwrap());
    let page = upstream.tags(&client(), &name("a"), &next).await.unwrap();
    assert_eq!((&*whole(page.body), page.next), (r#"{"tags":["3","not a tag","4"]}"#, None));
    upstream.tags(&client(), &name("b"), &next).await.unwrap();
    assert_eq!(fake.seen()[2].path, "/v2/b/tags/list?n=2&last=2&orderby=", "these keys any client may write");
}

fn whole(body: TagBody) -> String {
    match body {
        TagBody::Whole(body) => String::from_utf8(body.to_vec()).unwrap(),
        TagBody::Stream(_) => panic!("a long page"),
    }
}

#[tokio::test]
async fn a_list_without_tags_is_empty_and_nonsense_is_an_outage() {
    let fake = Fake::start(|seen| match seen.path.contains("/html/") {
        true => Reply::ok("<html>"),
        false => Reply::ok(r#"{"name":"a","tags":null}"#),
    })
    .await;
    let upstream = upstream_of(&fake);
    let page = PageQuery::read("n=5000&last=x+y");
    let answer = upstream.tags(&client(), &name("a"), &page).await.unwrap();
    assert_eq!((&*whole(answer.body), answer.next), (r#"{"name":"a","tags":[]}"#, None));
    assert_eq!(fake.seen()[0].path, "/v2/a/tags/list?n=5000&last=x+y");
    let error = error_of(upstream.tags(&client(), &name("html/a"), &page).await);
    assert!(matches!(error, Error::Malformed(_)));
}

#[tokio::test]
async fn a_list_of_referrers_that_never_ends_is_refused() {
    let fake = Fake::start(|_| index(r#"{"manifests":[]}"#).with("link", r#"</?n=1>; rel="next""#)).await;
    let asked = upstream_of(&fake).referrers(&client(), &name("a"), &digest_of(b""), MINUTE).await;
    assert!(matches!(error_of(asked), Error::Malformed(_)));
    assert_eq!(fake.seen().len(), 20);
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
    let merged =
        upstream_of(&fake).referrers(&client(), &name("a"), &digest_of(b""), MINUTE).await.unwrap().unwrap();
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
        let referrers = upstream_of(&fake).referrers(&client(), &name("a"), &digest, MINUTE).await;
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
