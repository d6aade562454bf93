//! A content that came wrong twice (row D3): it is refused before a head for a while, upstream is not asked for it, and
//! whatever brings the right bytes ends that.

use crate::support::{Berth, Blob, Fault, Gate, Image, Reply, Upstream, eventually};

const REPO: &str = "library/broken-edge";

async fn with_blob(len: usize, fault: Fault) -> (Upstream, Berth, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(29, &[len]);
    upstream.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(fault);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image.layer().clone())
}

async fn until_landed(berth: &Berth) {
    eventually("no transfer is under way", async || berth.metric("berth_flights").await == 0.0).await;
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
        let (upstream, berth, blob) = with_blob(len, Fault::WrongByte(7)).await;
        let first = berth.get(&blob.path(REPO)).try_send().await;
        assert!(first.is_ok_and(|reply| reply.status == 503 || !reply.complete), "{len}");
        until_landed(&berth).await;
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
    let upstream = Upstream::start().await;
    let image = Image::of(29, &[1 << 20]);
    let blob = image.layer();
    upstream.image(REPO, "1", &image);
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
    let (upstream, berth, blob) = with_blob(1 << 20, Fault::WrongByte(7)).await;
    let _cut = berth.get(&blob.path(REPO)).try_send().await;
    until_landed(&berth).await;
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
    let (edge, other) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(29, &[1 << 20]);
    let blob = image.layer();
    edge.image(REPO, "1", &image);
    other.image(REPO, "1", &image);
    edge.on("GET", "/blobs/").fault(Fault::WrongByte(7));
    let berth = Berth::with("docker.io", &edge).and("other.example", &other).start().await;
    let _cut = berth.get(&blob.path(REPO)).try_send().await;
    until_landed(&berth).await;
    expect_refusal(&berth.get(&blob.path(REPO)).await);
    // What this one sends without a login is for everybody, and is none of the broken edge's business.
    let whole = berth.get(&blob.path(&format!("other.example/{REPO}"))).await;
    assert_eq!(whole.expect(200), &blob.content);
    until_landed(&berth).await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(edge.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn another_upstream_in_its_place_is_asked_at_once() {
    let (edge, mended) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(29, &[1 << 20]);
    let blob = image.layer();
    edge.image(REPO, "1", &image);
    mended.image(REPO, "1", &image);
    edge.on("GET", "/blobs/").fault(Fault::WrongByte(7));
    let berth = Berth::with("docker.io", &edge).start().await;
    let _cut = berth.get(&blob.path(REPO)).try_send().await;
    until_landed(&berth).await;
    expect_refusal(&berth.get(&blob.path(REPO)).await);
    berth.reconfigure(&Berth::with("docker.io", &mended)).await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
}
