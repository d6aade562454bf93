//! Upstreams that lie: nothing wrong is stored, nobody gets a complete wrong body, honest endpoints are used.

use crate::support::{Berth, Fault, Image, Upstream, eventually, get};

const REPO: &str = "library/lie";

/// What a body of this kind of lie may be: cut, or a clean error; never a complete 200.
async fn assert_never_complete(fault: Fault, len: usize) {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[len]);
    upstream.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(fault);
    let berth = Berth::with("docker.io", &upstream).start().await;
    let path = image.layer().path(REPO);
    for _ in 0..2 {
        if let Ok(reply) = berth.get(&path).try_send().await {
            assert!(reply.status != 200 || !reply.complete, "a complete lie of {len} bytes");
            assert!(reply.status == 200 || reply.status == 503, "{}", reply.status);
        }
    }
    upstream.behave();
    eventually("the honest blob", async || {
        let reply = berth.get(&path).try_send().await;
        reply.is_ok_and(|reply| reply.status == 200 && reply.body == image.layer().content)
    })
    .await;
}

#[tokio::test]
async fn wrong_bytes_are_never_served_whole() {
    assert_never_complete(Fault::WrongByte(0), 1000).await;
    assert_never_complete(Fault::WrongByte(100), 1 << 20).await;
    assert_never_complete(Fault::WrongByte((1 << 20) - 1), 1 << 20).await;
}

#[tokio::test]
async fn wrong_lengths_are_never_served_whole() {
    for len in [1000, 1 << 20] {
        assert_never_complete(Fault::Short(1), len).await;
        assert_never_complete(Fault::Long(1), len).await;
        assert_never_complete(Fault::ClaimLength(len as u64 - 10), len).await;
    }
}

#[tokio::test]
async fn a_web_page_is_not_a_blob() {
    assert_never_complete(Fault::Html, 1000).await;
    assert_never_complete(Fault::Html, 1 << 20).await;
}

#[tokio::test]
async fn the_next_honest_endpoint_is_used() {
    for len in [1000, 1 << 20] {
        let (liar, honest) = (Upstream::start().await, Upstream::start().await);
        let image = Image::of(3, &[len]);
        liar.image(REPO, "1", &image);
        honest.image(REPO, "1", &image);
        liar.on("GET", "/blobs/").fault(Fault::WrongByte(17));
        liar.on("GET", "/manifests/").fault(Fault::WrongByte(17));
        let berth = Berth::with("docker.io", &liar).endpoint(&honest).start().await;
        let manifest = berth.get(&image.path(REPO)).await;
        assert_eq!(manifest.expect(200), &image.manifest);
        eventually("the honest blob", async || {
            let reply = berth.get(&image.layer().path(REPO)).try_send().await;
            reply.is_ok_and(|reply| reply.complete && reply.body == image.layer().content)
        })
        .await;
        assert_eq!(honest.count("GET", "/blobs/"), 1);
    }
}

#[tokio::test]
async fn a_small_lie_is_a_clean_error_or_the_truth_from_elsewhere() {
    let (liar, honest) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(3, &[1000]);
    liar.image(REPO, "1", &image);
    honest.image(REPO, "1", &image);
    liar.on("GET", "/blobs/").fault(Fault::WrongByte(17));
    let alone = Berth::with("docker.io", &liar).start().await;
    let reply = alone.get(&image.layer().path(REPO)).await;
    assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"));
    let both = Berth::with("docker.io", &liar).endpoint(&honest).start().await;
    assert_eq!(both.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
}

#[tokio::test]
async fn a_manifest_that_is_none_is_an_outage_and_not_a_tag() {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[1000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream)
        .sections("[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"")
        .start()
        .await;
    let path = format!("/v2/{REPO}/manifests/1");
    upstream.on("*", "/manifests/").fault(Fault::Html);
    assert_eq!(berth.get(&path).await.status, 503);
    upstream.behave();
    eventually("the tag", async || berth.get(&path).await.status == 200).await;
    upstream.on("*", "/manifests/").fault(Fault::Html);
    let reply = berth.get(&path).await;
    assert_eq!(reply.expect(200), &image.manifest);
    assert_eq!(reply.header("cache-status"), Some("berth; hit; detail=stale"));
    assert!(reply.header("warning").is_some_and(|warning| warning.starts_with("299 - ")));
}

#[tokio::test]
async fn garbage_instead_of_http_is_a_clean_error() {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[1000]);
    upstream.image(REPO, "1", &image);
    upstream.on("*", REPO).fault(Fault::Garbage(b"SSH-2.0-OpenSSH_9.2\r\n"));
    let berth = Berth::with("docker.io", &upstream).start().await;
    for path in [image.path(REPO), image.layer().path(REPO), format!("/v2/{REPO}/manifests/1")] {
        let reply = get(berth.url(&path)).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{path}");
    }
}

#[tokio::test]
async fn an_upstream_that_gives_no_length_is_asked_for_it() {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[1 << 20]);
    upstream.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(Fault::Chunked);
    let berth = Berth::with("docker.io", &upstream).start().await;
    let reply = berth.get(&image.layer().path(REPO)).await;
    assert_eq!(reply.expect(200), &image.layer().content);
    assert_eq!(reply.header("content-length"), Some(&*image.layer().len().to_string()));
}
