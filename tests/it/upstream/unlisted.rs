//! A node berth asks its parents for registries that it does not list itself (issue 11, item 9; newcomer 2.4).

use std::path::Path;

use crate::support::{Auth, Berth, Image, Setup, Upstream, docker_config, eventually, file_of};

const REPO: &str = "team-a/app";
const ONLY_AT_SITE: &str = "harbor.test";
const NOWHERE: &str = "nowhere.test";

/// A site that lists a registry besides Docker Hub.
async fn site(hub: &Upstream, harbor: &Upstream) -> Berth {
    Berth::with("docker.io", hub).and(ONLY_AT_SITE, harbor).start().await
}

/// A node that lists Docker Hub alone, with these keys of `[parents]`.
fn node(site: &Berth, hub: &Upstream, keys: &str) -> Setup {
    let parents = format!("[parents]\nendpoints = [\"http://{}\"]\n{keys}", site.address());
    Berth::with("docker.io", hub).sections(&parents)
}

fn manifest(registry: &str, repository: &str) -> String {
    format!("/v2/{repository}/manifests/1?ns={registry}")
}

/// Everything of an image, by containerd's `ns=`.
async fn pull(berth: &Berth, registry: &str, image: &Image) {
    assert_eq!(berth.get(&manifest(registry, REPO)).await.expect(200), &image.manifest);
    for blob in &image.blobs {
        let reply = berth.get(&format!("{}?ns={registry}", blob.path(REPO))).await;
        assert_eq!(reply.expect(200), &blob.content);
    }
}

/// Whether a file or folder below has this in its name.
fn is_named_below(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let is_folder = entry.file_type().unwrap().is_dir();
        entry.file_name().to_str().unwrap().contains(name) || is_folder && is_named_below(&entry.path(), name)
    })
}

#[tokio::test]
async fn a_registry_that_only_the_site_lists_is_pulled_through_the_node_and_kept_there() {
    let (hub, harbor) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(1, &[300_000, 2000]);
    harbor.image(REPO, "1", &image);
    let mut site = site(&hub, &harbor).await;
    let node = node(&site, &hub, "any = true").start().await;
    pull(&node, ONLY_AT_SITE, &image).await;
    for blob in &image.blobs {
        assert_eq!(harbor.count("GET", &blob.digest.to_string()), 1);
    }
    // In the path, in both forms, as other clients have it.
    for path in [format!("/v2/{ONLY_AT_SITE}/{REPO}"), format!("/{ONLY_AT_SITE}/v2/{REPO}")] {
        let reply = node.get(&format!("{path}/manifests/1")).await;
        assert_eq!(reply.expect(200), &image.manifest);
        assert_eq!(reply.header("oci-namespace"), Some(ONLY_AT_SITE));
    }
    assert!(node.get(&format!("/v2/?ns={ONLY_AT_SITE}")).await.status == 200);
    assert_eq!(hub.requests().len(), 0, "nothing is taken for the default registry");

    site.stop().await;
    pull(&node, ONLY_AT_SITE, &image).await;
    let metrics = node.metrics().await;
    assert!(metrics.contains("registry=\"other\"") && !metrics.contains(ONLY_AT_SITE), "{metrics}");
}

#[tokio::test]
async fn it_is_so_by_a_key_and_by_default_where_parents_alone_are_asked() {
    let (hub, harbor) = (Upstream::start().await, Upstream::start().await);
    harbor.image(REPO, "1", &Image::of(2, &[1000]));
    let site = site(&hub, &harbor).await;
    for (keys, status) in
        [("", 404), ("only = true", 200), ("any = true", 200), ("only = true\nany = false", 404)]
    {
        let node = node(&site, &hub, keys).start().await;
        assert_eq!(node.get(&manifest(ONLY_AT_SITE, REPO)).await.status, status, "{keys}");
    }
    // And with the next configuration.
    let node_with = |keys| node(&site, &hub, keys);
    let node = node_with("any = true").start().await;
    for (keys, status) in [("any = false", 404), ("any = true", 200)] {
        assert!(node.reconfigure(&node_with(keys)).await.contains(&"parents".to_owned()));
        assert_eq!(node.get(&manifest(ONLY_AT_SITE, REPO)).await.status, status, "{keys}");
    }
}

#[tokio::test]
async fn what_no_parent_knows_is_asked_once_and_leaves_nothing_behind() {
    let (hub, harbor) = (Upstream::start().await, Upstream::start().await);
    let site = site(&hub, &harbor).await;
    let node = node(&site, &hub, "any = true").start().await;
    let asked = async || site.metric("registry_http_requests_total{code=\"404\"").await;
    let blob = Image::of(3, &[10]);
    for path in [
        manifest(NOWHERE, "one"),
        manifest(NOWHERE, "two"),
        format!("{}?ns={NOWHERE}", blob.layer().path("three")),
        format!("/v2/four/tags/list?ns={NOWHERE}"),
    ] {
        let reply = node.get(&path).await;
        assert_eq!((reply.status, &*reply.error_code()), (404, "NAME_UNKNOWN"), "{path}: {}", reply.text());
        assert_eq!(reply.header("retry-after"), None);
    }
    eventually("the site has counted what it was asked", async || asked().await >= 1.0).await;
    assert_eq!(asked().await, 1.0, "its word is about the registry, not about one image");
    for number in 0..200 {
        assert_eq!(node.get(&manifest(&format!("r{number}.{NOWHERE}"), "one")).await.status, 404);
    }
    assert!(!is_named_below(node.data_dir(), NOWHERE));
    assert!(!node.metrics().await.contains(NOWHERE));
    // A name that could be no registry's asks nobody.
    let before = asked().await;
    for name in ["", "nowhere", "a..b", "a/b.example", "u@h.example", "h.example:0"] {
        assert_ne!(node.get(&manifest(name, "one")).await.status, 200, "{name}");
    }
    assert_eq!(asked().await, before);
}

#[tokio::test]
async fn a_parents_word_that_it_does_not_know_the_registry_takes_nothing_away_that_is_known() {
    let (hub, harbor) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(4, &[1000]);
    harbor.image(REPO, "1", &image);
    let site = site(&hub, &harbor).await;
    let checks = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let node = node(&site, &hub, "any = true").sections(checks).start().await;
    pull(&node, ONLY_AT_SITE, &image).await;
    site.reconfigure(&Berth::with("docker.io", &hub)).await;
    let reply = node.get(&manifest(ONLY_AT_SITE, REPO)).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    assert_eq!(node.get(&manifest(ONLY_AT_SITE, "team-a/other")).await.status, 404);
}

#[tokio::test]
async fn a_registry_of_one_site_is_found_although_another_does_not_know_it() {
    let (hub, harbor) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(5, &[1000, 2000, 3000]);
    harbor.image(REPO, "1", &image);
    let (knows, without) = (site(&hub, &harbor).await, Berth::with("docker.io", &hub).start().await);
    let endpoints = [&knows, &without].map(|site| format!("http://{}", site.address()));
    let parents = format!("[parents]\nendpoints = {endpoints:?}\nany = true");
    let node = Berth::with("docker.io", &hub).sections(&parents).start().await;
    pull(&node, ONLY_AT_SITE, &image).await;
}

/// A parent's login stays what it is: content that came with one is nobody else's.
#[tokio::test]
async fn what_a_parent_has_with_a_login_is_private_to_its_repository() {
    let (hub, harbor, other) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let image = Image::of(6, &[5000]);
    harbor.image(REPO, "1", &image).auth(Auth::Basic).user("u", "hunter2", "");
    let logins = file_of(&docker_config(&[(ONLY_AT_SITE, "u", "hunter2")]));
    let site = Berth::with("docker.io", &hub)
        .and("public.test", &other)
        .and(ONLY_AT_SITE, &harbor)
        .keys(&format!("credentials = {{ file = {logins:?} }}"))
        .start()
        .await;
    let node = node(&site, &hub, "any = true").start().await;
    pull(&node, ONLY_AT_SITE, &image).await;
    for registry in ["public.test", NOWHERE, "docker.io"] {
        let reply = node.get(&format!("{}?ns={registry}", image.layer().path(REPO))).await;
        assert_eq!(reply.status, 404, "{registry}");
    }
    assert_eq!(node.get(&format!("/v2/{REPO}/tags/list?ns={ONLY_AT_SITE}")).await.status, 403);
    assert!(!node.get("/v2/_catalog").await.text().contains(REPO));
}
