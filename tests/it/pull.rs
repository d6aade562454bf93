//! Pulling through berth as clients do: bytes, headers, statuses, and how often upstream is asked.

mod abandoned;
mod attestations;
mod cold;
mod documents;
mod flight;
mod hot;
mod labels;
mod lengths;
mod loose_manifests;
mod lying;
mod mismatches;
mod ranges;
mod several_ranges;

use crate::support::{Berth, Image, Reply, Upstream};

const IMAGE: &str = "library/alpine";

async fn alpine() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[100_000, 300]);
    upstream.image(IMAGE, "3", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image)
}

/// Pulls everything that belongs to an image, comparing every byte.
async fn pull(berth: &Berth, image: &Image, tag: &str) {
    let manifest = berth.get(&format!("/v2/{IMAGE}/manifests/{tag}")).await;
    assert_eq!(manifest.expect(200), &image.manifest);
    for part in image.closure() {
        assert_eq!(berth.get(&part.path(IMAGE)).await.expect(200), &part.manifest);
        for blob in &part.blobs {
            assert_eq!(berth.get(&blob.path(IMAGE)).await.expect(200), &blob.content);
        }
    }
}

fn assert_headers(reply: &Reply, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(reply.header(name), Some(*value), "{name} in {:?}", reply.headers);
    }
}

#[tokio::test]
async fn an_image_is_fetched_once_and_then_comes_from_disk() {
    let (upstream, berth, image) = alpine().await;
    pull(&berth, &image, "3").await;
    pull(&berth, &image, "3").await;
    assert_eq!(upstream.count("HEAD", "/manifests/3"), 1);
    assert_eq!(upstream.count("GET", "/manifests/"), 1);
    for blob in &image.blobs {
        assert_eq!(upstream.count("GET", &blob.digest.to_string()), 1);
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    }
    let before = upstream.requests().len();
    pull(&berth, &image, "3").await;
    assert_eq!(upstream.requests().len(), before, "a fresh hit asks nothing of upstream");
}

#[tokio::test]
async fn answers_have_the_headers_that_clients_depend_on() {
    let (_upstream, berth, image) = alpine().await;
    let (digest, length) = (image.digest().to_string(), image.manifest.len().to_string());
    let etag = format!("\"{digest}\"");
    let path = format!("/v2/{IMAGE}/manifests/3");
    let always = [
        ("content-type", image.media_type),
        ("content-length", &*length),
        ("docker-content-digest", &*digest),
        ("etag", &*etag),
        ("oci-namespace", "docker.io"),
        ("docker-distribution-api-version", "registry/2.0"),
    ];
    for (reply, status) in [
        (berth.get(&path).await, "berth; fwd=miss; stored"),
        (berth.get(&path).await, "berth; hit"),
        (berth.head(&path).await, "berth; hit"),
        (
            berth.get(&path).header("accept", "text/html").header("accept-encoding", "gzip").await,
            "berth; hit",
        ),
    ] {
        assert_headers(&reply, &always);
        assert_headers(&reply, &[("cache-status", status)]);
        assert_eq!(reply.header("content-encoding"), None);
    }
    for tag in [&*etag, &*digest, "W/\"x\", *"] {
        let reply = berth.get(&path).header("if-none-match", tag).await;
        assert_eq!((reply.status, reply.body.len()), (304, 0), "{tag}");
    }
    assert_eq!(berth.get(&path).header("if-none-match", "\"other\"").await.status, 200);

    let blob = image.layer();
    let (digest, length, path) = (blob.digest.to_string(), blob.len().to_string(), blob.path(IMAGE));
    let always = [
        ("location", &*path),
        ("content-type", "application/octet-stream"),
        ("content-length", &*length),
        ("docker-content-digest", &*digest),
        ("accept-ranges", "bytes"),
        ("oci-namespace", "docker.io"),
    ];
    for (reply, status) in [
        (berth.head(&blob.path(IMAGE)).await, "berth; fwd=miss"),
        (berth.get(&blob.path(IMAGE)).await, "berth; fwd=miss; stored"),
        (get_stored(&berth, &blob.path(IMAGE)).await, "berth; hit"),
        (berth.head(&blob.path(IMAGE)).await, "berth; hit"),
    ] {
        assert_headers(&reply, &always);
        assert_headers(&reply, &[("cache-status", status)]);
    }
}

/// A GET once every transfer has ended: who was sent the last byte may be faster than the file finds its place.
async fn get_stored(berth: &Berth, path: &str) -> Reply {
    berth.until_idle().await;
    berth.get(path).await
}

#[tokio::test]
async fn a_head_costs_upstream_no_body() {
    let (upstream, berth, image) = alpine().await;
    let blob = image.layer();
    assert_eq!(berth.head(&blob.path(IMAGE)).await.status, 200);
    assert_eq!(upstream.count("GET", "/blobs/"), 0);
    assert_eq!(upstream.count("HEAD", "/blobs/"), 1);
}

#[tokio::test]
async fn upstream_is_asked_for_every_manifest_type_and_no_coding() {
    let (upstream, berth, image) = alpine().await;
    pull(&berth, &image, "3").await;
    for request in upstream.seen("*", "/manifests/") {
        let accept = request.header("accept").unwrap_or_default();
        for media_type in
            ["image.index.v1+json", "manifest.list.v2+json", "image.manifest.v1+json", "manifest.v2+json"]
        {
            assert!(accept.contains(media_type), "{media_type} in {accept}");
        }
    }
    for request in upstream.requests() {
        assert!(
            matches!(request.header("accept-encoding"), None | Some("identity")),
            "{:?}",
            request.headers
        );
    }
}

#[tokio::test]
async fn the_base_answers_whatever_upstream_does() {
    let (upstream, berth, _) = alpine().await;
    upstream.stop().await;
    for path in ["/v2/", "/v2", "/v2/?ns=docker.io", "/docker.io/v2/"] {
        let reply = berth.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_headers(&reply, &[("docker-distribution-api-version", "registry/2.0")]);
        assert_eq!(berth.head(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn every_way_to_name_a_registry_works() {
    let hub = Upstream::start().await;
    let harbor = Upstream::start().await;
    let (alpine, own) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    hub.image(IMAGE, "3", &alpine);
    harbor.image("docker.io/library/alpine", "3", &own).image("a/b/c/d/e", "3", &own);
    let berth = Berth::with("docker.io", &hub)
        .keys("aliases = [\"hub\"]\nhosts = [\"hub.mirror.example\"]")
        .and("harbor.example:8443", &harbor)
        .start()
        .await;
    let check = async |path: &str, host: Option<&str>, image: &Image, registry: &str| {
        let mut ask = berth.get(path);
        if let Some(host) = host {
            ask = ask.header("host", host);
        }
        let reply = ask.await;
        assert_eq!(reply.expect(200), &image.manifest, "{path}");
        assert_headers(&reply, &[("oci-namespace", registry)]);
    };
    for path in [
        "/v2/library/alpine/manifests/3",
        "/v2/alpine/manifests/3",
        "/v2/library/alpine/manifests/3?ns=docker.io",
        "/v2/library/alpine/manifests/3?ns=index.docker.io",
        "/v2/docker.io/library/alpine/manifests/3",
        "/v2/docker.io/alpine/manifests/3",
        "/v2/hub/library/alpine/manifests/3",
        "/v2/hub/library/alpine/manifests/3?ns=docker.io",
        "/hub/v2/library/alpine/manifests/3",
        "/hub/v2/library/alpine/manifests/3?ns=docker.io",
        "/hub/library/alpine/manifests/3?ns=docker.io",
        "/hub/library/alpine/manifests/3",
        "/docker.io/v2/alpine/manifests/3",
    ] {
        check(path, None, &alpine, "docker.io").await;
    }
    check("/v2/library/alpine/manifests/3", Some("hub.mirror.example"), &alpine, "docker.io").await;
    let harbor_host = "harbor.example:8443";
    check("/v2/docker.io/library/alpine/manifests/3?ns=harbor.example:8443", None, &own, harbor_host).await;
    check("/v2/harbor.example:8443/docker.io/library/alpine/manifests/3", None, &own, harbor_host).await;
    check("/v2/a/b/c/d/e/manifests/3?ns=harbor.example:8443", None, &own, harbor_host).await;
}

#[tokio::test]
async fn what_is_not_configured_or_not_a_name_is_a_clean_error() {
    let (upstream, berth, image) = alpine().await;
    let digest = image.layer().digest;
    let check = async |path: &str, status: u16, code: &str| {
        let reply = berth.get(path).await;
        assert_eq!((reply.status, &*reply.error_code()), (status, code), "{path}");
        assert_headers(&reply, &[("content-type", "application/json")]);
        assert!(!reply.text().contains("docker.io"), "{path} lists what is configured: {}", reply.text());
    };
    check("/v2/library/alpine/manifests/3?ns=evil.example", 404, "NAME_UNKNOWN").await;
    check("/v2/evil.example/alpine/manifests/3", 404, "NAME_UNKNOWN").await;
    check("/v2/localhost/alpine/manifests/3", 404, "NAME_UNKNOWN").await;
    check("/v2/127.0.0.1:22/alpine/manifests/3", 404, "NAME_UNKNOWN").await;
    check("/v2/Library/Alpine/manifests/3", 400, "NAME_INVALID").await;
    check("/v2/library/alpine/manifests/-bad-", 400, "TAG_INVALID").await;
    check("/v2/library/alpine/manifests/sha256:abc", 400, "DIGEST_INVALID").await;
    check("/v2/library/alpine/blobs/sha256:..%2f..%2fetc", 400, "DIGEST_INVALID").await;
    check(&format!("/v2/{}/blobs/{digest}", "a/".repeat(200) + "a"), 400, "NAME_INVALID").await;
    check("/v2/library/alpine/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID").await;
    check("/", 404, "NAME_UNKNOWN").await;
    check("/etc/passwd", 404, "NAME_UNKNOWN").await;
    assert_eq!(upstream.requests().len(), 0, "nothing of that is upstream's business");
    check("/v2/library/nothing/manifests/3", 404, "MANIFEST_UNKNOWN").await;
    check("/v2/library/alpine/manifests/none", 404, "MANIFEST_UNKNOWN").await;
    check(&format!("/v2/library/alpine/blobs/sha256:{}", "0".repeat(64)), 404, "BLOB_UNKNOWN").await;
}

#[tokio::test]
async fn a_push_is_refused_with_a_reason() {
    let (upstream, berth, image) = alpine().await;
    let digest = image.layer().digest;
    for (method, path) in [
        ("POST", "/v2/library/alpine/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/library/alpine/blobs/uploads/1".to_owned()),
        ("PUT", "/v2/library/alpine/manifests/3".to_owned()),
        ("DELETE", format!("/v2/library/alpine/blobs/{digest}")),
        ("DELETE", "/v2/library/alpine/manifests/3".to_owned()),
    ] {
        let reply = berth.ask(method, &path).body("some bytes").await;
        assert_eq!((reply.status, &*reply.error_code()), (405, "UNSUPPORTED"), "{method} {path}");
        assert!(reply.text().contains("push"), "{}", reply.text());
        assert_headers(&reply, &[("allow", "GET, HEAD")]);
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn all_kinds_of_images_are_kept_byte_for_byte() {
    let upstream = Upstream::start().await;
    let (one, two) = (Image::of(1, &[4000]), Image::of(2, &[5000, 0]));
    let subject = Image::of(3, &[2000]);
    let artifact = Image::draft(4, &[100]).artifact("application/vnd.example.sbom").about(&subject).build();
    let kinds = [
        ("index", Image::index(&[&one, &two])),
        ("list", Image::docker_list(&[&Image::draft(5, &[4000]).docker().build()])),
        ("docker", Image::draft(6, &[4000]).docker().build()),
        ("artifact", artifact),
        ("sha512", Image::draft(7, &[4000]).sha512().build()),
        ("zstd", Image::draft(8, &[4000]).layer_type("application/vnd.oci.image.layer.v1.tar+zstd").build()),
        ("large", Image::draft(9, &[10]).annotation("large", &"x".repeat(3_900_000)).build()),
        ("many", Image::of(10, &[2000; 40])),
    ];
    for (tag, image) in &kinds {
        upstream.image(IMAGE, tag, image);
    }
    let berth = Berth::with("docker.io", &upstream).start().await;
    for (tag, image) in &kinds {
        pull(&berth, image, tag).await;
    }
    upstream.stop().await;
    for (tag, image) in &kinds {
        pull(&berth, image, tag).await;
    }
}
