//! `tags/list` and `_catalog`: pages, links, and what they keep to themselves.

use serde_json::{Value, json};

use crate::support::{Berth, Fault, Image, Reply, Setup, Upstream};

const REPO: &str = "library/app";

async fn with_tags(tags: &[&str]) -> (Upstream, Setup) {
    let upstream = Upstream::start().await;
    for tag in tags {
        upstream.image(REPO, tag, &Image::of(1, &[3000]));
    }
    let setup = Berth::with("docker.io", &upstream).keys("aliases = [\"hub\"]");
    (upstream, setup)
}

/// Where the `Link` to the next page points.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.header("link")?;
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    Some(target.unwrap_or_else(|| panic!("{link}")).to_owned())
}

/// Every page of a list, from this path on.
async fn pages(berth: &Berth, path: &str, key: &str) -> Vec<Value> {
    let mut pages = Vec::new();
    let mut path = Some(path.to_owned());
    while let Some(at) = path {
        let reply = berth.get(&at).await;
        reply.expect(200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        pages.push(reply.json()[key].clone());
        assert!(pages.len() < 10, "it goes round: {at}");
        path = next(&reply);
    }
    pages
}

#[tokio::test]
async fn tags_come_in_pages_from_upstream_and_from_disk() {
    let (upstream, setup) = with_tags(&["a", "b", "c", "d", "e"]).await;
    let berth = setup.start().await;
    for tag in ["a", "b", "c", "d", "e"] {
        berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await.expect(200);
    }
    let path = format!("/v2/{REPO}/tags/list");
    for status in ["berth; fwd=miss", "berth; hit; detail=stale"] {
        let whole = berth.get(&path).await;
        assert_eq!(whole.json(), json!({ "name": REPO, "tags": ["a", "b", "c", "d", "e"] }));
        assert_eq!((whole.header("link"), whole.header("cache-status")), (None, Some(status)));
        let expected = [json!(["a", "b"]), json!(["c", "d"]), json!(["e"])];
        assert_eq!(pages(&berth, &format!("{path}?n=2"), "tags").await, expected);
        assert_eq!(pages(&berth, &format!("{path}?last=c"), "tags").await, [json!(["d", "e"])]);
        assert_eq!(pages(&berth, &format!("{path}?n=5"), "tags").await, [json!(["a", "b", "c", "d", "e"])]);
        assert_eq!(pages(&berth, &format!("{path}?last=zzz"), "tags").await, [json!([])]);
        assert_eq!(pages(&berth, &format!("{path}?n="), "tags").await, [json!(["a", "b", "c", "d", "e"])]);
        let none = berth.get(&format!("{path}?n=0")).await;
        assert_eq!((&none.json()["tags"], none.header("link")), (&json!([]), None));
        assert_eq!(berth.head(&path).await.header("content-length"), whole.header("content-length"));
        upstream.stop().await;
    }
}

#[tokio::test]
async fn links_are_relative_and_keep_prefix_and_namespace() {
    let (upstream, setup) = with_tags(&["a", "b", "c"]).await;
    upstream.page_size(1);
    let berth = setup.start().await;
    for path in [
        "/v2/library/app/tags/list?n=2",
        "/v2/library/app/tags/list?n=2&ns=docker.io",
        "/v2/hub/library/app/tags/list?n=2",
        "/hub/v2/library/app/tags/list?ns=docker.io&n=2",
        "/v2/docker.io/app/tags/list?n=2",
    ] {
        let reply = berth.get(path).await;
        let link = next(&reply).unwrap();
        assert!(link.starts_with(path.split('?').next().unwrap()), "{path} → {link}");
        assert_eq!(link.contains("ns=docker.io"), path.contains("ns=docker.io"), "{path} → {link}");
        assert_eq!(pages(&berth, path, "tags").await, [json!(["a"]), json!(["b"]), json!(["c"])], "{path}");
    }
}

#[tokio::test]
async fn an_outage_lists_what_is_known_or_says_so() {
    let (upstream, setup) = with_tags(&["a", "b"]).await;
    let berth = setup.keys("timeouts = { header_seconds = 600, budget_seconds = 600 }").start().await;
    berth.get(&format!("/v2/{REPO}/manifests/b")).await.expect(200);
    for fault in [Fault::Status(500), Fault::Status(429), Fault::Html, Fault::StallHead] {
        upstream.behave();
        upstream.on("*", "/tags/list").fault(fault);
        let reply = berth.get(&format!("/v2/{REPO}/tags/list")).await;
        assert_eq!(reply.expect(200), &json!({ "name": REPO, "tags": ["b"] }).to_string());
        assert_eq!(reply.header("cache-status"), Some("berth; hit; detail=stale"));
    }
    upstream.behave();
    let reply = berth.get("/v2/library/none/tags/list").await;
    assert_eq!((reply.status, &*reply.error_code()), (404, "NAME_UNKNOWN"));
    upstream.stop().await;
    let reply = berth.get("/v2/library/none/tags/list").await;
    assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"));
}

#[tokio::test]
async fn what_came_with_a_credential_is_listed_only_on_request() {
    for list_private in [false, true] {
        let (open, closed) = (Upstream::start().await, Upstream::start().await);
        let image = Image::of(1, &[3000]);
        open.image("library/app", "1", &image).image("team/b", "1", &image);
        closed.auth(crate::support::Auth::Basic).user("robot", "secret", "");
        closed.image("secret/project", "1", &Image::of(2, &[3000]));
        let mut setup = Berth::with("docker.io", &open)
            .and("harbor.example", &closed)
            .keys("credentials = { username = \"robot\", password_env = \"ROBOT\" }")
            .env("ROBOT", "secret");
        if list_private {
            setup = setup.http("list_private = true");
        }
        let mut berth = setup.start().await;
        for path in ["library/app", "team/b", "harbor.example/secret/project"] {
            berth.get(&format!("/v2/{path}/manifests/1")).await.expect(200);
        }
        let mut expected = vec!["docker.io/library/app", "docker.io/team/b"];
        if list_private {
            expected.push("harbor.example/secret/project");
        }
        for _ in 0..2 {
            let catalog = berth.get("/v2/_catalog").await;
            assert_eq!(catalog.json(), json!({ "repositories": expected }));
            let expected: Vec<_> = expected.iter().map(|name| json!([name])).collect();
            assert_eq!(pages(&berth, "/v2/_catalog?n=1", "repositories").await, expected);
            assert_eq!(berth.get("/v2/_catalog?n=0").await.json(), json!({ "repositories": [] }));
            let tags = berth.get("/v2/harbor.example/secret/project/tags/list").await;
            assert_eq!(tags.status, if list_private { 200 } else { 403 });
            assert_eq!(tags.text().contains("\"1\""), list_private);
            open.stop().await;
            closed.stop().await;
            berth.restart().await;
        }
    }
}
