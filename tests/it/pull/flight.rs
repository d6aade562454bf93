//! One transfer per blob: many readers, slow readers, leaving readers, and upstreams that break.

use std::time::Duration;

use crate::support::{Berth, Fault, Gate, Image, Upstream, eventually, within_deadline};

const REPO: &str = "library/big";

async fn with_blob(len: usize) -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[len]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_readers_share_one_transfer() {
    let (upstream, berth, image) = with_blob(100 << 20).await;
    let blob = image.layer();
    let (half, rest) = (Gate::new(), Gate::new());
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(50 << 20, rest.clone()));
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (ask, half) = (berth.get(&blob.path(REPO)), half.clone());
        let digest = blob.digest;
        readers.spawn(async move {
            if number >= 32 {
                half.opened().await;
            }
            let reply = ask.await;
            reply.expect(200);
            assert!(reply.complete);
            assert_eq!(reply.digest(), digest);
        });
    }
    eventually("half of it has come", async || upstream.bytes_sent(&blob.digest) >= 50 << 20).await;
    half.open();
    eventually("the late ones have joined", async || {
        berth.metric("berth_joins_total{type=\"blob\"}").await >= 63.0
    })
    .await;
    rest.open();
    while let Some(reader) = within_deadline("all readers", readers.join_next()).await {
        reader.unwrap();
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
}

#[tokio::test]
async fn the_first_bytes_come_long_before_the_last() {
    let (upstream, berth, image) = with_blob(10 << 20).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, gate.clone()));
    let mut reply = berth.get(&image.layer().path(REPO)).open().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.bytes(1 << 20).await, image.layer().content.slice(..1 << 20));
    gate.open();
    assert_eq!(reply.read().await.body, image.layer().content.slice(1 << 20..));
}

#[tokio::test]
async fn a_head_is_answered_by_the_transfer_under_way() {
    let (upstream, berth, image) = with_blob(1 << 20).await;
    let blob = image.layer();
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(100_000, gate.clone()));
    let mut reader = berth.get(&blob.path(REPO)).open().await;
    reader.bytes(1).await;
    let head = berth.head(&blob.path(REPO)).await;
    assert_eq!((head.status, head.header("cache-status")), (200, Some("berth; fwd=miss; collapsed")));
    assert_eq!(head.header("content-length"), Some(&*blob.len().to_string()));
    assert_eq!(upstream.count("HEAD", "/blobs/"), 0);
    gate.open();
}

#[tokio::test]
async fn a_slow_reader_delays_nobody() {
    let (upstream, berth, image) = with_blob(20 << 20).await;
    let blob = image.layer();
    let slow = berth.get(&blob.path(REPO)).open().await;
    let slow = tokio::spawn(slow.read_at(1 << 20));
    let fast = within_deadline("the fast reader", berth.get(&blob.path(REPO))).await;
    assert_eq!(fast.expect(200), &blob.content);
    assert!(!slow.is_finished());
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    slow.abort();
}

#[tokio::test]
async fn the_fill_goes_on_when_its_readers_leave() {
    let (upstream, berth, image) = with_blob(10 << 20).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, gate.clone()));
    let mut reader = berth.get(&image.layer().path(REPO)).open().await;
    reader.bytes(1000).await;
    drop(reader);
    gate.open();
    let head = berth.head(&image.layer().path(REPO));
    drop(head);
    berth.until_stored(&image.layer().path(REPO)).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
}

#[tokio::test]
async fn a_body_cut_twenty_times_arrives_whole_and_in_order() {
    let (upstream, berth, image) = with_blob(21 << 20).await;
    let mut random = fastrand::Rng::with_seed(11);
    for attempt in 1..=20 {
        upstream.on("GET", "/blobs/").nth(attempt).fault(Fault::Cut(random.u64(1..1 << 20)));
    }
    let reply = within_deadline("the whole body", berth.get(&image.layer().path(REPO))).await;
    assert_eq!(reply.expect(200), &image.layer().content);
    let asked = upstream.seen("GET", "/blobs/");
    assert_eq!(asked.len(), 21);
    assert!(asked.iter().skip(1).all(|request| request.header("range").is_some()));
    assert_eq!(upstream.bytes_sent(&image.layer().digest), image.layer().len(), "no byte is asked twice");
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_costs_bytes_and_no_reader() {
    let (upstream, berth, image) = with_blob(4 << 20).await;
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Cut(1 << 20));
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn a_stalled_upstream_is_left_for_a_new_connection() {
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[4 << 20]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).keys("timeouts = { idle_seconds = 0.3 }").start().await;
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Stall(1 << 20));
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
    assert_eq!(upstream.bytes_sent(&image.layer().digest), image.layer().len());
}

#[tokio::test]
async fn the_next_endpoint_brings_the_rest() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(7, &[4 << 20]);
    first.image(REPO, "1", &image);
    second.image(REPO, "1", &image);
    first.on("GET", "/blobs/").nth(1).fault(Fault::Cut(1 << 20));
    first.on("GET", "/blobs/").after(1).fault(Fault::Status(500));
    let berth = Berth::with("docker.io", &first).endpoint(&second).start().await;
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
    assert_eq!(second.bytes_sent(&image.layer().digest), image.layer().len() - (1 << 20));
}

#[tokio::test]
async fn the_end_of_a_body_waits_for_the_proof() {
    let (upstream, berth, image) = with_blob(1 << 20).await;
    let blob = image.layer();
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(blob.len() - 1, gate.clone()));
    let held = blob.content.len() - (64 << 10);
    let mut reader = berth.get(&blob.path(REPO)).open().await;
    reader.bytes(held).await;
    let more = tokio::time::timeout(Duration::from_millis(300), reader.bytes(1)).await;
    assert!(more.is_err(), "a byte of the held-back end arrived before the digest was proven");
    gate.open();
    berth.until_idle().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
}
