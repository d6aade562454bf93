//! Parts of blobs that are not here: what is asked comes first and is kept, nothing comes twice, and the rest
//! comes if it is worth it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::support::crash::Disk;
use crate::support::{Berth, Blob, Fault, Gate, Image, Open, Reply, Setup, Upstream, eventually, folder};

const REPO: &str = "library/big";
const OTHER: &str = "library/other";
const MIB: u64 = 1 << 20;

async fn with_blob(mebibytes: usize) -> (Upstream, Setup, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(41, &[mebibytes << 20]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image.layer().clone())
}

fn completing(setup: Setup, rule: &str) -> Setup {
    setup.sections(&format!("[cache]\ncomplete = \"{rule}\""))
}

async fn range(berth: &Berth, blob: &Blob, range: &str) -> Reply {
    berth.get(&blob.path(REPO)).range(range).await
}

async fn open(berth: &Berth, blob: &Blob, range: &str) -> Open {
    berth.get(&blob.path(REPO)).range(range).open().await
}

/// Asks a range with an end of its own, and expects these bytes and this way to have come by them.
async fn expect_part(berth: &Berth, blob: &Blob, asked: &str, start: usize, end: usize, status: &str) {
    let reply = range(berth, blob, asked).await;
    assert_eq!(reply.expect(206), &blob.content.slice(start..end), "{asked}");
    let content_range = format!("bytes {start}-{}/{}", end - 1, blob.len());
    assert_eq!(reply.header("content-range"), Some(&*content_range), "{asked}");
    assert_eq!(reply.header("cache-status"), Some(status), "{asked}");
}

fn is_stored(berth: &Berth, blob: &Blob) -> bool {
    folder::blob(berth.data_dir(), &blob.digest).exists()
}

async fn received(berth: &Berth) -> u64 {
    berth.metric("berth_received_bytes_total").await as u64
}

fn ranges_asked(upstream: &Upstream, blob: &Blob) -> Vec<Option<String>> {
    let asked = upstream.seen("GET", &blob.digest.to_string());
    asked.iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

const MISS: &str = "berth; fwd=miss; stored; detail=unproven";
const HIT: &str = "berth; hit; detail=unproven";

#[tokio::test]
async fn the_end_of_a_large_blob_costs_one_small_request() {
    let (upstream, setup, blob) = with_blob(64).await;
    let mut berth = setup.start().await;
    let end = blob.content.len();
    expect_part(&berth, &blob, "-51", end - 51, end, MISS).await;
    for _ in 0..2 {
        expect_part(&berth, &blob, "67100000-67100999", 67_100_000, 67_101_000, HIT).await;
        expect_part(&berth, &blob, "-51", end - 51, end, HIT).await;
        berth.until_idle().await;
    }
    assert_eq!((upstream.count("*", "/blobs/"), upstream.bytes_sent(&blob.digest)), (1, MIB));
    // Nor does a crash take it away.
    berth.kill().await;
    upstream.stop().await;
    berth.start_again().await;
    expect_part(&berth, &blob, "67100000-67100999", 67_100_000, 67_101_000, HIT).await;
    assert_eq!(range(&berth, &blob, "0-9").await.status, 503, "this is not there, and upstream is away");
    upstream.start_again().await;
    eventually("it is believed to be back", async || berth.head(&blob.path(REPO)).await.status == 200).await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "not a byte is asked twice");
}

#[tokio::test]
async fn neighbours_of_a_range_are_there_and_what_is_far_is_not_touched() {
    let (upstream, setup, blob) = with_blob(64).await;
    let berth = completing(setup, "never").start().await;
    expect_part(&berth, &blob, "33000000-33000009", 33_000_000, 33_000_010, MISS).await;
    expect_part(&berth, &blob, "33000010-33000999", 33_000_010, 33_001_000, HIT).await;
    expect_part(&berth, &blob, "32505856-32505856", 31 << 20, (31 << 20) + 1, HIT).await;
    assert_eq!(ranges_asked(&upstream, &blob), [Some("bytes=32505856-33554431".to_owned())]);
    // Over the edge of what is there: the missing part alone is asked.
    let reply = range(&berth, &blob, "33000000-34000000").await;
    assert_eq!(reply.expect(206), &blob.content.slice(33_000_000..34_000_001));
    assert_eq!(upstream.bytes_sent(&blob.digest), 2 * MIB);
}

#[tokio::test]
async fn a_far_range_does_not_wait_for_the_transfer_under_way() {
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    whole.bytes(1000).await;
    let far = range(&berth, &blob, "20000000-20000009").await;
    assert_eq!(far.expect(206), &blob.content.slice(20_000_000..20_000_010));
    expect_part(&berth, &blob, "20000010-20000019", 20_000_010, 20_000_020, HIT).await;
    let end = blob.content.len();
    let last = range(&berth, &blob, "-51").await;
    assert_eq!(last.expect(206), &blob.content.slice(end - 51..));
    gate.open();
    assert_eq!(whole.read().await.expect(200), &blob.content.slice(1000..));
    berth.until_idle().await;
    assert!(is_stored(&berth, &blob));
    // The whole, two parts, and what lies between them.
    assert_eq!(upstream.count("GET", "/blobs/"), 4);
    let again = received(&berth).await - blob.len();
    assert!(again <= MIB, "{again} bytes came twice");
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test]
async fn an_open_range_is_fetched_from_where_it_begins_and_the_beginning_behind() {
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.start().await;
    let reply = range(&berth, &blob, "20000000-").await;
    assert_eq!(reply.expect(206), &blob.content.slice(20_000_000..));
    let asked = ["bytes=20000000-", "bytes=0-19999999"].map(|range| Some(range.to_owned()));
    assert_eq!(ranges_asked(&upstream, &blob), asked);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    berth.until_idle().await;
    assert!(is_stored(&berth, &blob));
}

#[tokio::test]
async fn the_end_of_an_open_range_waits_for_the_proof() {
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").nth(2).fault(Fault::Hold(gate.clone()));
    let mut tail = open(&berth, &blob, "20000000-").await;
    let held = blob.content.len() - (64 << 10);
    assert_eq!(tail.bytes(held - 20_000_000).await, blob.content.slice(20_000_000..held));
    eventually("the beginning is asked", async || upstream.count("GET", "/blobs/") == 2).await;
    let more = tokio::time::timeout(std::time::Duration::from_millis(300), tail.bytes(1)).await;
    assert!(more.is_err(), "a byte of the held-back end arrived before the digest was proven");
    gate.open();
    berth.until_idle().await;
    assert!(is_stored(&berth, &blob));
}

#[tokio::test]
async fn the_rest_follows_when_it_is_worth_it() {
    let check = async |rule: &str, asked: &[&str], completed: bool| {
        let (upstream, setup, blob) = with_blob(16).await;
        let berth = completing(setup, rule).start().await;
        for asked in asked {
            range(&berth, &blob, asked).await.expect(206);
        }
        berth.until_idle().await;
        assert_eq!(is_stored(&berth, &blob), completed, "{rule}: {asked:?}");
        let sent = upstream.bytes_sent(&blob.digest);
        assert_eq!(sent == blob.len(), completed, "{rule}: {asked:?}: {sent} bytes");
        let partial = folder::partial(berth.data_dir(), &blob.digest);
        assert_eq!(partial.exists(), !completed);
    };
    check("auto", &["5000000-5000009", "5000000-5000009", "15000000-15000009"], false).await;
    check("auto", &["1000000-3000000", "9000000-11500000"], true).await;
    check("always", &["5000000-5000009"], true).await;
    check("never", &["1000000-9000000"], false).await;
    check("never", &["5000000-"], true).await;
}

#[tokio::test]
async fn what_readers_took_is_remembered_between_transfers() {
    let (upstream, setup, blob) = with_blob(8).await;
    let berth = setup.start().await;
    range(&berth, &blob, "0-1500000").await.expect(206);
    berth.until_idle().await;
    assert!(!is_stored(&berth, &blob));
    range(&berth, &blob, "4194304-5194304").await.expect(206);
    berth.until_idle().await;
    assert!(is_stored(&berth, &blob));
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
}

#[tokio::test]
async fn parts_are_for_the_repository_that_they_came_for() {
    let (upstream, setup, blob) = with_blob(16).await;
    let berth = completing(setup, "never").start().await;
    expect_part(&berth, &blob, "0-9", 0, 10, MISS).await;
    berth.until_idle().await;
    upstream.forget();
    let elsewhere = async || berth.get(&blob.path(OTHER)).range("0-9").await;
    assert_eq!(elsewhere().await.status, 404);
    assert_eq!(upstream.count("GET", OTHER), 1);
    let third = "library/third";
    upstream.blob(third, &blob);
    let reply = berth.get(&blob.path(third)).range("0-9").await;
    assert_eq!(reply.expect(206), &blob.content.slice(..10));
    assert_eq!(upstream.count("GET", third), 1, "its own upstream has said that it may have them");
}

#[tokio::test]
async fn killed_between_ranges_it_asks_no_byte_again() {
    let (upstream, setup, blob) = with_blob(64).await;
    let mut berth = completing(setup, "never").start().await;
    let at = |number: usize| number * 9_000_000;
    for number in 0..7 {
        let (start, end) = (at(number), at(number) + 10);
        expect_part(&berth, &blob, &format!("{start}-{}", end - 1), start, end, MISS).await;
        berth.until_idle().await;
        berth.kill().await;
        berth.start_again().await;
        for earlier in 0..=number {
            let (start, end) = (at(earlier), at(earlier) + 10);
            expect_part(&berth, &blob, &format!("{start}-{}", end - 1), start, end, HIT).await;
        }
    }
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test]
async fn killed_in_the_middle_of_pieces_it_goes_on_with_what_is_there() {
    let (upstream, setup, blob) = with_blob(80).await;
    let mut berth = setup.start().await;
    // The beginning comes as far as the second sync, a part of the end is there, and the rest never comes.
    upstream.on("GET", "/blobs/").nth(2).fault(Fault::HoldAfter(40 * MIB, Gate::new()));
    range(&berth, &blob, "-51").await.expect(206);
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(whole.bytes(40 << 20).await, blob.content.slice(..40 << 20));
    berth.kill().await;
    berth.start_again().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    let again = upstream.bytes_sent(&blob.digest) - blob.len();
    assert!(again <= 48 * MIB, "{again} bytes were asked again");
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn power_fails_under_pieces() {
    let disk = Disk::ext4(200).await;
    let (upstream, setup, blob) = with_blob(60).await;
    let berth = completing(setup, "never").data_dir(&disk.path().join("data")).start().await;
    let parts = [5_000_000, 23_000_000, 44_000_000].map(|start| (format!("{start}-{}", start + 9), start));
    for (asked, start) in &parts {
        expect_part(&berth, &blob, asked, *start, start + 10, MISS).await;
    }
    berth.until_idle().await;
    // What had been settled is there; then the power fails twice in what is fetched between the parts.
    let (first, second) = (Gate::new(), Gate::new());
    upstream.on("GET", "/blobs/").nth(2).fault(Fault::HoldAfter(10 * MIB, first.clone()));
    upstream.on("GET", "/blobs/").nth(4).fault(Fault::HoldAfter(5 * MIB, second.clone()));
    let whole = berth.get(&blob.path(REPO)).open().await;
    let whole = tokio::spawn(whole.read());
    let mut found = Vec::new();
    for (gate, mebibytes) in [(first, 3 + 4 + 10), (second, 3 + 4 + 16 + 19 + 5)] {
        eventually("some of it has come", async || upstream.bytes_sent(&blob.digest) >= mebibytes * MIB)
            .await;
        found.push(disk.after_power_loss(&[berth.pid()]).await);
        gate.open();
    }
    for found in found {
        let away = Upstream::start().await;
        away.image(REPO, "1", &Image::of(41, &[60 << 20]));
        away.stop().await;
        let setup = completing(Berth::with("docker.io", &away), "never");
        let found_berth = setup.data_dir(&found.path().join("data")).start().await;
        for (asked, start) in &parts {
            expect_part(&found_berth, &blob, asked, *start, start + 10, HIT).await;
        }
        away.start_again().await;
        eventually("the whole", async || {
            let reply = found_berth.get(&blob.path(REPO)).await;
            reply.status == 200 && reply.expect(200) == &blob.content
        })
        .await;
        found_berth.until_idle().await;
        folder::verified(found_berth.data_dir());
    }
    assert_eq!(whole.await.unwrap().expect(200), &blob.content);
}

#[tokio::test]
async fn an_upstream_without_ranges_sends_everything_once() {
    let (upstream, setup, blob) = with_blob(32).await;
    let berth = completing(setup, "never").start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(MIB, gate.clone()));
    let end = blob.content.len();
    let last = open(&berth, &blob, "-51").await;
    let middle = open(&berth, &blob, "20000000-20000009").await;
    let onward = open(&berth, &blob, "10000000-").await;
    gate.open();
    assert_eq!(last.read().await.expect(206), &blob.content.slice(end - 51..));
    assert_eq!(middle.read().await.expect(206), &blob.content.slice(20_000_000..20_000_010));
    assert_eq!(onward.read().await.expect(206), &blob.content.slice(10_000_000..));
    assert_eq!((upstream.count("GET", "/blobs/"), upstream.bytes_sent(&blob.digest)), (1, blob.len()));
    berth.until_idle().await;
    assert!(is_stored(&berth, &blob));
}

#[tokio::test]
async fn ranges_that_are_ignored_later_cost_no_reader() {
    let (upstream, setup, blob) = with_blob(32).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    let whole = berth.get(&blob.path(REPO)).open().await;
    let far = open(&berth, &blob, "20000000-20000009").await;
    eventually("a range was tried", async || upstream.count("GET", "/blobs/") == 2).await;
    gate.open();
    assert_eq!(far.read().await.expect(206), &blob.content.slice(20_000_000..20_000_010));
    assert_eq!(whole.read().await.expect(200), &blob.content);
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn an_upstream_that_lies_about_ranges_is_asked_for_everything() {
    for lie in ["bytes 0-9/16777216", "bytes 5-0/16777216", "bytes 0-16777215/*", "lines 1-2/3", "nonsense"] {
        let (upstream, setup, blob) = with_blob(16).await;
        upstream.on("GET", "/blobs/").fault(Fault::Header("Content-Range", lie.to_owned()));
        let berth = setup.start().await;
        let end = blob.content.len();
        for (asked, start, end) in [("-51", end - 51, end), ("9000000-9000009", 9_000_000, 9_000_010)] {
            let reply = range(&berth, &blob, asked).await;
            assert_eq!(reply.expect(206), &blob.content.slice(start..end), "{lie}: {asked}");
        }
        berth.until_idle().await;
        assert_eq!(folder::verified(berth.data_dir()), 1, "{lie}");
    }
}

#[tokio::test]
async fn a_lie_about_the_size_ends_with_the_proof() {
    let (upstream, setup, blob) = with_blob(16).await;
    upstream
        .on("GET", "/blobs/")
        .first(1)
        .fault(Fault::Header("Content-Range", "bytes 0-1048575/9999999".into()));
    let berth = completing(setup, "never").start().await;
    assert_eq!(range(&berth, &blob, "0-9").await.status, 206);
    eventually("the right content", async || {
        let reply = berth.get(&blob.path(REPO)).await;
        assert!(!reply.complete || reply.status != 200 || reply.body == blob.content, "a whole lie");
        reply.complete && reply.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_knows_no_suffix_is_asked_otherwise() {
    for status in [400, 416, 501] {
        let (upstream, setup, blob) = with_blob(16).await;
        upstream.on("GET", "/blobs/").first(1).fault(Fault::Status(status));
        let berth = completing(setup, "never").start().await;
        let end = blob.content.len();
        expect_part(&berth, &blob, "-51", end - 51, end, MISS).await;
        let asked = ["bytes=-1048576", "bytes=0-1048575", "bytes=15728640-16777215"];
        assert_eq!(ranges_asked(&upstream, &blob), asked.map(|range| Some(range.to_owned())), "{status}");
    }
}

#[tokio::test]
async fn a_wrong_part_never_becomes_a_blob() {
    let (upstream, setup, blob) = with_blob(16).await;
    upstream.on("GET", "/blobs/").first(1).fault(Fault::WrongByte(9_000_005));
    let berth = completing(setup, "never").start().await;
    range(&berth, &blob, "9000000-9000009").await.expect(206);
    eventually("the right content", async || {
        let reply = berth.get(&blob.path(REPO)).await;
        assert!(!reply.complete || reply.status != 200 || reply.body == blob.content, "a whole lie");
        reply.complete && reply.status == 200
    })
    .await;
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
    expect_part(&berth, &blob, "9000000-9000009", 9_000_000, 9_000_010, "berth; hit").await;
}

#[tokio::test]
async fn side_connections_that_break_are_resumed() {
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    for attempt in 2..6 {
        upstream.on("GET", "/blobs/").nth(attempt).fault(Fault::Cut(300_000));
    }
    let whole = berth.get(&blob.path(REPO)).open().await;
    let reply = range(&berth, &blob, "20000000-23000000").await;
    assert_eq!(reply.expect(206), &blob.content.slice(20_000_000..23_000_001));
    gate.open();
    assert_eq!(whole.read().await.expect(200), &blob.content);
}

#[tokio::test]
async fn an_upstream_that_takes_one_connection_alone_costs_nobody_the_transfer() {
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    upstream.on("GET", "/blobs/").after(1).fault(Fault::Status(503));
    let whole = berth.get(&blob.path(REPO)).open().await;
    let far = open(&berth, &blob, "20000000-20000009").await;
    eventually("more was tried in vain", async || upstream.count("GET", "/blobs/") >= 4).await;
    gate.open();
    assert_eq!(far.read().await.expect(206), &blob.content.slice(20_000_000..20_000_010));
    assert_eq!(whole.read().await.expect(200), &blob.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_comes_over_several_connections() {
    let (upstream, setup, blob) = with_blob(80).await;
    let gate = Gate::new();
    upstream.on("GET", &blob.digest.to_string()).fault(Fault::HoldAfter(MIB, gate.clone()));
    let berth = setup.keys("connections_per_blob = 4").start().await;
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(whole.bytes(1 << 20).await, blob.content.slice(..1 << 20), "the beginning comes first");
    eventually("four connections", async || upstream.count("GET", "/blobs/") == 4).await;
    gate.open();
    assert_eq!(whole.read().await.expect(200), &blob.content.slice(1 << 20..));
    let asked: Vec<_> = ranges_asked(&upstream, &blob).into_iter().flatten().collect();
    for segment in ["bytes=0-16777215", "bytes=50331648-67108863", "bytes=67108864-83886079"] {
        assert!(asked.contains(&segment.to_owned()), "{asked:?}");
    }
    assert_eq!((asked.len(), upstream.bytes_sent(&blob.digest)), (5, blob.len()));
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_are_one_where_ranges_are_ignored() {
    let (upstream, setup, blob) = with_blob(40).await;
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    let berth = setup.keys("connections_per_blob = 4").start().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!((upstream.count("GET", "/blobs/"), upstream.bytes_sent(&blob.digest)), (1, blob.len()));
}

#[tokio::test]
async fn a_part_of_a_blob_larger_than_the_budget_passes_through() {
    let disk = Disk::tmpfs(16).await;
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    // That it is so large is merely claimed: nothing is kept for it.
    let part = range(&berth, &blob, "30000000-30000009").await;
    assert_eq!(part.expect(206), &blob.content.slice(30_000_000..30_000_010));
    assert!(!folder::partial(berth.data_dir(), &blob.digest).exists());
    let reply = berth.get(&blob.path(REPO)).await;
    assert_eq!(reply.expect(200), &blob.content);
    assert!(upstream.bytes_sent(&blob.digest) >= blob.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_under_pieces_costs_no_reader() {
    let disk = Disk::ext4(128).await;
    let (upstream, setup, blob) = with_blob(40).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(2).fault(Fault::HoldAfter(2 * MIB, gate.clone()));
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(whole.bytes(1 << 20).await, blob.content.slice(..1 << 20));
    let mut onward = open(&berth, &blob, "20000000-").await;
    assert_eq!(onward.bytes(1000).await, blob.content.slice(20_000_000..20_001_000));
    let mut part = open(&berth, &blob, "20000500-29999999").await;
    assert_eq!(part.bytes(1000).await, blob.content.slice(20_000_500..20_001_500));
    disk.fail().await;
    gate.open();
    let whole = whole.read().await;
    assert!(whole.complete && whole.body == blob.content.slice(1 << 20..), "{}", whole.body.len());
    let onward = onward.read().await;
    assert!(onward.complete && onward.body == blob.content.slice(20_001_000..), "{}", onward.body.len());
    let part = part.read().await;
    assert!(part.complete && part.body == blob.content.slice(20_001_500..30_000_000), "{}", part.body.len());
}

#[tokio::test]
async fn a_map_that_is_not_sound_names_nothing() {
    let (upstream, setup, blob) = with_blob(16).await;
    let mut berth = completing(setup, "never").start().await;
    for at in [0, 17, 70] {
        expect_part(&berth, &blob, "0-9", 0, 10, MISS).await;
        berth.until_idle().await;
        berth.stop().await;
        let map = folder::partial(berth.data_dir(), &blob.digest).with_extension("map");
        let map = File::options().write(true).open(map).unwrap();
        // Both records, so that there is no older one to believe.
        for page in [0, 4096] {
            map.write_all_at(&[0x55; 8], page + at).unwrap();
        }
        berth.start_again().await;
    }
    expect_part(&berth, &blob, "0-9", 0, 10, MISS).await;
    assert_eq!(upstream.bytes_sent(&blob.digest), 4 * MIB);
}
