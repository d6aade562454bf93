//! Limits on flights: how many there are at once, and how many nobody reads.

use crate::support::{Berth, Fault, Gate, Image, Upstream, eventually, within_deadline};

const REPO: &str = "library/crowd";
/// Transfers at once of one client at one registry (`FLIGHTS`, but for the reserve).
const FLIGHTS: usize = 224;
/// Transfers that go on without a reader (`UNATTENDED_MAX`).
const UNATTENDED: usize = 32;

/// Many blobs, of each of which upstream holds the end back until the gate opens.
async fn held(count: usize) -> (Upstream, Berth, Image, Gate) {
    let upstream = Upstream::start().await;
    let image = Image::of(51, &vec![100_000; count]);
    upstream.image(REPO, "1", &image);
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(90_000, gate.clone()));
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_beyond_the_limit_wait_for_their_turn() {
    let (upstream, berth, image, gate) = held(FLIGHTS + 20).await;
    let (first, late) = image.layers().split_at(FLIGHTS);
    let mut readers = Vec::new();
    for blob in first {
        readers.push(berth.get(&blob.path(REPO)).open().await);
    }
    let waiting = late.iter().map(|blob| tokio::spawn(berth.get(&blob.path(REPO)).into_future()));
    let waiting: Vec<_> = waiting.collect();
    eventually("all have asked", async || berth.metric("berth_flights").await >= (FLIGHTS + 20) as f64).await;
    assert_eq!(upstream.count("GET", "/blobs/"), FLIGHTS, "those beyond the limit have not begun");
    gate.open();
    for (reader, blob) in readers.into_iter().zip(first) {
        assert_eq!(reader.read().await.expect(200), &blob.content);
    }
    for (reply, blob) in waiting.into_iter().zip(late) {
        assert_eq!(within_deadline("its turn", reply).await.unwrap().expect(200), &blob.content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_transfers_go_on_without_a_reader() {
    let (upstream, berth, image, gate) = held(UNATTENDED + 8).await;
    let mut readers = Vec::new();
    for blob in image.layers() {
        readers.push(berth.get(&blob.path(REPO)).open().await);
    }
    assert_eq!(berth.metric("berth_flights").await, readers.len() as f64);
    let last = readers.pop().unwrap();
    drop(readers);
    eventually("all but the limit end", async || {
        berth.metric("berth_flights").await == (UNATTENDED + 1) as f64
    })
    .await;
    gate.open();
    assert_eq!(last.read().await.expect(200), &image.layers()[UNATTENDED + 7].content);
    berth.until_idle().await;
    upstream.stop().await;
    let mut stored = 0;
    for blob in image.layers() {
        stored += usize::from(berth.head(&blob.path(REPO)).await.status == 200);
    }
    assert_eq!(stored, UNATTENDED + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_waits_for_its_turn_can_be_stopped() {
    let (_upstream, mut berth, image, _gate) = held(FLIGHTS + 1).await;
    let (first, last) = image.layers().split_at(FLIGHTS);
    let mut readers = Vec::new();
    for blob in first {
        readers.push(berth.get(&blob.path(REPO)).open().await);
    }
    let waiting = tokio::spawn(berth.get(&last[0].path(REPO)).try_send());
    eventually("it has asked", async || berth.metric("berth_flights").await > FLIGHTS as f64).await;
    drop(readers);
    waiting.abort();
    berth.stop().await;
}
