//! Ranges: of stored blobs, of blobs on their way, and as the clients that fetch in pieces really ask.

use bytes::Bytes;

use crate::support::{Berth, Blob, Fault, Gate, Image, Reply, Upstream, eventually};

const REPO: &str = "library/big";

async fn with_blob(len: usize) -> (Upstream, Berth, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[len]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image.layer().clone())
}

async fn range(berth: &Berth, blob: &Blob, range: &str) -> Reply {
    berth.get(&blob.path(REPO)).range(range).await
}

/// Asks a range, and expects these bytes of the blob.
async fn expect_part(berth: &Berth, blob: &Blob, asked: &str, start: usize, end: usize) {
    let reply = range(berth, blob, asked).await;
    assert_eq!(reply.expect(206), &blob.content.slice(start..end), "{asked}");
    let content_range = format!("bytes {start}-{}/{}", end - 1, blob.len());
    assert_eq!(reply.header("content-range"), Some(&*content_range), "{asked}");
    assert_eq!(reply.header("content-length"), Some(&*(end - start).to_string()), "{asked}");
    assert_eq!(reply.header("docker-content-digest"), Some(&*blob.digest.to_string()));
}

/// Every range that means something, at a blob of 100 000 bytes.
async fn expect_all_kinds(berth: &Berth, blob: &Blob) {
    expect_part(berth, blob, "0-0", 0, 1).await;
    expect_part(berth, blob, "10-19", 10, 20).await;
    expect_part(berth, blob, "99990-", 99_990, 100_000).await;
    expect_part(berth, blob, "0-", 0, 100_000).await;
    expect_part(berth, blob, "-10", 99_990, 100_000).await;
    expect_part(berth, blob, "-200000", 0, 100_000).await;
    expect_part(berth, blob, "99990-200000", 99_990, 100_000).await;
    expect_part(berth, blob, "5-99999999999999999999999999", 5, 100_000).await;
}

#[tokio::test]
async fn a_stored_blob_is_served_in_parts() {
    let (upstream, berth, blob) = with_blob(100_000).await;
    berth.get(&blob.path(REPO)).await.expect(200);
    berth.until_stored(&blob.path(REPO)).await;
    upstream.forget();
    expect_all_kinds(&berth, &blob).await;
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_cold_blob_is_served_in_the_same_parts_and_asked_once() {
    for asked in ["10-19", "99990-", "-10", "0-"] {
        let (upstream, berth, blob) = with_blob(100_000).await;
        range(&berth, &blob, asked).await.expect(206);
        expect_all_kinds(&berth, &blob).await;
        assert_eq!(upstream.count("GET", "/blobs/"), 1, "{asked}");
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "{asked}");
    }
}

#[tokio::test]
async fn a_range_behind_the_end_is_416_and_says_how_long_the_blob_is() {
    let (_upstream, berth, blob) = with_blob(100_000).await;
    // First cold, then stored.
    for _ in 0..2 {
        for asked in ["100000-", "100000-100001", "-0", "99999999999999999999999999-"] {
            let reply = range(&berth, &blob, asked).await;
            assert_eq!((reply.status, &*reply.error_code()), (416, "RANGE_INVALID"), "{asked}");
            assert_eq!(reply.header("content-range"), Some("bytes */100000"), "{asked}");
        }
        berth.until_stored(&blob.path(REPO)).await;
    }
}

#[tokio::test]
async fn what_is_not_one_range_of_bytes_is_answered_with_everything() {
    let (_upstream, berth, blob) = with_blob(100_000).await;
    for asked in ["bytes=5-1", "bytes=-", "bytes=", "bytes", "lines=1-2", "bytes=a-b", "bytes=0x1-2", "="] {
        let reply = berth.get(&blob.path(REPO)).header("range", asked).await;
        assert_eq!(reply.expect(200), &blob.content, "{asked}");
        assert_eq!(reply.header("content-range"), None, "{asked}");
        assert_eq!(reply.header("accept-ranges"), Some("bytes"), "{asked}");
    }
    let twice = berth.get(&blob.path(REPO)).range("0-1").range("5-6").await;
    assert_eq!(twice.expect(200), &blob.content, "there is to be one line");
}

#[tokio::test]
async fn if_range_holds_for_this_content_only() {
    let (_upstream, berth, blob) = with_blob(100_000).await;
    let check = async |tag: &str, status: u16| {
        let reply = berth.get(&blob.path(REPO)).range("0-9").header("if-range", tag).await;
        assert_eq!(reply.status, status, "{tag}");
    };
    check(&format!("\"{}\"", blob.digest), 206).await;
    check(&format!("W/\"{}\"", blob.digest), 200).await;
    check("\"sha256:other\"", 200).await;
    check("Sun, 22 Nov 2026 00:00:00 GMT", 200).await;
}

#[tokio::test]
async fn ranges_are_for_getting_blobs_only() {
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[100_000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    let blob = image.layer();
    for _ in 0..2 {
        let head = berth.head(&blob.path(REPO)).range("0-9").await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("100000")));
        assert_eq!(head.header("content-range"), None);
        let manifest = berth.get(&format!("/v2/{REPO}/manifests/1")).range("0-9").await;
        assert_eq!(manifest.expect(200), &image.manifest);
        berth.get(&blob.path(REPO)).await.expect(200);
    }
    let error = range(&berth, &Blob { digest: image.digest(), content: Bytes::new() }, "0-9").await;
    assert!([200, 206, 404].contains(&error.status), "a manifest by the path of a blob: {}", error.status);
}

#[tokio::test]
async fn of_nothing_every_range_is_everything() {
    let (_upstream, berth, blob) = with_blob(0).await;
    for _ in 0..2 {
        for asked in ["0-", "0-0", "-1", "5-"] {
            let reply = range(&berth, &blob, asked).await;
            assert_eq!((reply.expect(200).len(), reply.header("content-length")), (0, Some("0")), "{asked}");
        }
    }
}

/// containerd's parallel fetch: everything from 0, then open-ended requests from every chunk on, each
/// dropped when a chunk of it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_in_chunks_whose_connections_are_dropped_half_read_gets_every_byte() {
    const CHUNK: usize = 1 << 20;
    let (upstream, berth, blob) = with_blob(10 << 20).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(3 << 20, gate.clone()));
    for round in ["cold", "stored"] {
        let mut first = berth.get(&blob.path(REPO)).range("0-").open().await;
        assert_eq!(first.status, 206, "{round}");
        let mut content = first.bytes(CHUNK).await.to_vec();
        drop(first);
        let mut chunks = Vec::new();
        for at in 1..10 {
            let open = berth.get(&blob.path(REPO)).range(&format!("{}-", at * CHUNK)).open().await;
            let expected = format!("bytes {}-{}/{}", at * CHUNK, blob.len() - 1, blob.len());
            assert_eq!((open.status, open.header("content-range")), (206, Some(&*expected)), "{round} {at}");
            chunks.push(open);
        }
        gate.open();
        for mut chunk in chunks {
            content.extend_from_slice(&chunk.bytes(CHUNK).await);
        }
        assert!(content == blob.content, "{round}: other bytes");
        berth.until_stored(&blob.path(REPO)).await;
    }
    // What is near the transfer is waited for; from 8 MiB on there is one of its own, and it runs to the end.
    let asked = upstream.seen("GET", "/blobs/");
    let asked: Vec<_> = asked.iter().map(|request| request.header("range")).collect();
    assert_eq!(asked, [None, Some("bytes=8388608-10485759")]);
    let again = berth.metric("berth_received_bytes_total").await as u64 - blob.len();
    assert!(again <= 1 << 20, "{again} bytes came twice");
}

#[tokio::test]
async fn a_blob_that_answered_206_goes_on_doing_so_when_upstream_breaks() {
    let (upstream, berth, blob) = with_blob(4 << 20).await;
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Stall(1 << 20));
    let mut cold = berth.get(&blob.path(REPO)).range("0-").open().await;
    assert_eq!(cold.status, 206);
    assert_eq!(cold.bytes(1 << 20).await, blob.content.slice(..1 << 20));
    let filling = berth.get(&blob.path(REPO)).range("2097152-").open().await;
    assert_eq!(filling.status, 206);
    // The connection dies, and the same server comes back.
    upstream.stop().await;
    let broken = berth.get(&blob.path(REPO)).range("1048576-").open().await;
    assert_eq!(broken.status, 206, "while upstream is away");
    upstream.start_again().await;
    assert_eq!(broken.read().await.expect(206), &blob.content.slice(1 << 20..));
    assert_eq!(filling.read().await.expect(206), &blob.content.slice(2 << 20..));
    assert_eq!(cold.read().await.expect(206), &blob.content.slice(1 << 20..));
    berth.until_stored(&blob.path(REPO)).await;
    upstream.stop().await;
    expect_part(&berth, &blob, "3145728-", 3 << 20, 4 << 20).await;
}

#[tokio::test]
async fn an_upstream_without_ranges_makes_no_difference() {
    let (upstream, berth, blob) = with_blob(4 << 20).await;
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Cut(1 << 20));
    expect_part(&berth, &blob, "2097152-", 2 << 20, 4 << 20).await;
    expect_part(&berth, &blob, "0-", 0, 4 << 20).await;
}

/// Row D5: what a slow connection will not reach soon is fetched over another, however few bytes it is away.
#[tokio::test]
async fn a_reader_that_a_slow_connection_will_not_reach_soon_has_one_of_its_own() {
    let (upstream, berth, blob) = with_blob(16 << 20).await;
    upstream.on("GET", "/blobs/").fault(Fault::Drip(64 << 10));
    let first = berth.get(&blob.path(REPO)).range("0-").open().await;
    let second = berth.get(&blob.path(REPO)).range("4194304-").open().await;
    eventually("each has a connection", async || upstream.count("GET", "/blobs/") == 2).await;
    let asked = upstream.seen("GET", "/blobs/");
    let asked: Vec<_> = asked.iter().map(|request| request.header("range")).collect();
    assert_eq!(asked, [None, Some("bytes=4194304-16777215")]);
    drop((first, second));
}
