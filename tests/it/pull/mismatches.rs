//! A content that came wrong twice (row D3): it is refused before a head for a while, upstream is not asked for it, and
//! whatever brings the right bytes ends that.

use crate::support::{Berth, Blob, Fault, Gate, Image, Reply, Upstream, eventually};

const REPO: &str = "library/broken-edge";

/// A registry with an image, and the image's only layer.
async fn registry(len: usize) -> (Upstream, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(29, &[len]);
    upstream.image(REPO, "1", &image);
    (upstream, image.layer().clone())
}

/// The same, but that each answer with the layer has one wrong byte.
async fn broken_edge(len: usize) -> (Upstream, Blob) {
    let (upstream, blob) = registry(len).await;
    upstream.on("GET", "/blobs/").fault(Fault::WrongByte(7));
    (upstream, blob)
}

/// Has the layer come wrong twice.
async fn until_refused(berth: &Berth, blob: &Blob) {
    let first = berth.get(&blob.path(REPO)).try_send().await;
    assert!(first.is_ok_and(|reply| reply.status == 503 || !reply.complete), "{}", blob.len());
    berth.until_idle().await;
    expect_refusal(&berth.get(&blob.path(REPO)).await);
}

/// A refusal that sends a client to its next host, and says when to come back.
fn expect_refusal(reply: &Reply) {
    reply.expect(503);
    assert_eq!(reply.error_code(), "UNAVAILABLE");
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn what_came_wrong_twice_is_refused_before_a_head_and_not_asked_for() {
    for len in [1000, 1 << 20, 5 << 20] {
        let (upstream, blob) = broken_edge(len).await;
        let berth = Berth::with("docker.io", &upstream).start().await;
        until_refused(&berth, &blob).await;
        assert_eq!(upstream.count("GET", "/blobs/"), 2, "both tries: {len}");
        for range in [None, Some("0-"), Some("100-"), Some("0-99"), Some("-10")] {
            let ask = berth.get(&blob.path(REPO));
            let reply = range.into_iter().fold(ask, |ask, range| ask.range(range)).await;
            expect_refusal(&reply);
        }
        assert_eq!(upstream.count("GET", "/blobs/"), 2, "{len}");
        assert_eq!(berth.metric("berth_digest_mismatches_total").await, 2.0);
    }
}

#[tokio::test]
async fn a_first_wrong_answer_alone_is_no_reason() {
    let (upstream, blob) = registry(1 << 20).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").nth(1).fault(Fault::WrongByte(7));
    upstream.on("GET", "/blobs/").nth(2).fault(Fault::HoldAfter(1000, gate.clone()));
    let berth = Berth::with("docker.io", &upstream).start().await;
    let cut = berth.get(&blob.path(REPO)).await;
    assert!(!cut.complete);
    let second = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(second.status, 200);
    gate.open();
    assert_eq!(second.read().await.expect(200), &blob.content);
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn an_upstream_that_is_mended_is_found_so_after_a_while() {
    let (upstream, blob) = broken_edge(1 << 20).await;
    let berth = Berth::with("docker.io", &upstream).start().await;
    until_refused(&berth, &blob).await;
    upstream.behave();
    upstream.forget();
    expect_refusal(&berth.get(&blob.path(REPO)).await);
    assert_eq!(upstream.count("GET", "/blobs/"), 0);
    eventually("the right bytes", async || berth.get(&blob.path(REPO)).await.status == 200).await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn right_bytes_that_come_another_way_are_served_at_once() {
    let ((edge, blob), (other, _)) = (broken_edge(1 << 20).await, registry(1 << 20).await);
    let berth = Berth::with("docker.io", &edge).and("other.example", &other).start().await;
    until_refused(&berth, &blob).await;
    // What this one sends without a login is for everybody, and is none of the broken edge's business.
    let whole = berth.get(&blob.path(&format!("other.example/{REPO}"))).await;
    assert_eq!(whole.expect(200), &blob.content);
    berth.until_idle().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(edge.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn another_upstream_in_its_place_is_asked_at_once() {
    let ((edge, blob), (mended, _)) = (broken_edge(1 << 20).await, registry(1 << 20).await);
    let berth = Berth::with("docker.io", &edge).start().await;
    until_refused(&berth, &blob).await;
    berth.reconfigure(&Berth::with("docker.io", &mended)).await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
}
