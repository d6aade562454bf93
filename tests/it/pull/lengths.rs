//! Bodies without a length (row A1): what a 200 brings is served and kept, whatever HEAD says beside it.

use bytes::Bytes;

use crate::support::{
    Berth, Blob, Fault, Gate, Image, Setup, Upstream, eventually, folder, raw, together, within_deadline,
};

const REPO: &str = "library/chunked";
const HELD: usize = 64 << 10;

/// An upstream that does not say how long this blob is, nor knows ranges, and answers HEAD so.
async fn without_length(len: usize, head: Fault) -> (Upstream, Berth, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(17, &[len]);
    upstream.image(REPO, "1", &image);
    upstream.on("HEAD", "/blobs/").fault(head);
    upstream.on("GET", "/blobs/").fault(Fault::Chunked);
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image.layer().clone())
}

#[tokio::test]
async fn what_a_body_without_a_length_brings_is_served_and_later_hits_have_one() {
    let heads = [
        Fault::Status(404),
        Fault::Status(403),
        Fault::Status(405),
        Fault::Status(503),
        Fault::Chunked,
        Fault::Hangup,
        Fault::Html,
        Fault::Header("Content-Encoding", "gzip".into()),
    ];
    for (number, head) in heads.into_iter().enumerate() {
        for (len, framing) in [
            (0, Fault::Chunked),
            (1000, Fault::Chunked),
            (1 << 20, Fault::Chunked),
            (1000, Fault::UntilClose),
            ((3 << 20) + 7, Fault::UntilClose),
        ] {
            let (upstream, berth, blob) = without_length(len, head.clone()).await;
            upstream.on("GET", "/blobs/").fault(framing);
            let cold = berth.get(&blob.path(REPO)).await;
            assert_eq!(cold.expect(200), &blob.content, "{number}: {len}");
            assert_eq!(cold.header("content-type"), Some("application/octet-stream"));
            let length = cold.header("content-length").map(str::to_owned);
            assert!(length.is_none_or(|length| length == len.to_string()), "{number}: {len}");
            berth.until_idle().await;
            upstream.stop().await;
            let hit = berth.get(&blob.path(REPO)).await;
            assert_eq!(hit.expect(200), &blob.content);
            assert_eq!(hit.header("content-length"), Some(&*len.to_string()));
            assert_eq!(hit.header("cache-status"), Some("berth; hit"));
            assert_eq!(upstream.count("GET", "/blobs/"), 1, "{number}: {len}");
            assert_eq!(folder::verified(berth.data_dir()), 1);
        }
    }
}

#[tokio::test]
async fn a_head_that_is_refused_keeps_nobody_from_the_blob() {
    for head in [Fault::Status(404), Fault::Status(405), Fault::Chunked] {
        let (_upstream, berth, blob) = without_length(300_000, head).await;
        let cold = berth.head(&blob.path(REPO)).await;
        assert_eq!((cold.status, cold.header("content-length")), (200, None));
        assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
        berth.until_stored(&blob.path(REPO)).await;
        assert_eq!(berth.head(&blob.path(REPO)).await.header("content-length"), Some("300000"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_still_not_there() {
    let (upstream, berth, blob) = without_length(1000, Fault::Status(404)).await;
    upstream.remove(REPO, &blob.digest);
    for _ in 0..2 {
        assert_eq!(berth.head(&blob.path(REPO)).await.status, 404);
        assert_eq!(berth.get(&blob.path(REPO)).await.status, 404);
    }
    assert_eq!(upstream.count("*", "/blobs/"), 2, "and that is remembered");
}

#[tokio::test]
async fn readers_share_it_from_the_first_byte_and_its_end_waits_for_the_proof() {
    let (upstream, berth, blob) = without_length(1 << 20, Fault::Status(404)).await;
    let middle = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(500_000, middle.clone()));
    let mut first = berth.get(&blob.path(REPO)).open().await;
    assert_eq!((first.status, first.header("content-length")), (200, None));
    assert_eq!(first.header("transfer-encoding"), Some("chunked"));
    let seen = 500_000 - HELD;
    assert_eq!(first.bytes(seen).await, blob.content.slice(..seen), "long before it is all there");
    let held = tokio::time::timeout(std::time::Duration::from_millis(300), first.bytes(1)).await;
    assert!(held.is_err(), "of what has come the last is held back");
    let asks: Vec<_> = (0..4).map(|_| berth.get(&blob.path(REPO))).collect();
    let mut others = Vec::new();
    for mut open in together(4, move |at| asks[at].clone().open()).await {
        assert_eq!(open.header("cache-status"), Some("berth; fwd=miss; collapsed"));
        assert_eq!(open.bytes(seen).await, blob.content.slice(..seen));
        others.push(open);
    }
    let head = berth.head(&blob.path(REPO)).await;
    assert_eq!((head.status, head.header("content-length")), (200, None), "nobody knows yet");
    middle.open();
    assert_eq!(first.read().await.expect(200), &blob.content.slice(seen..));
    for other in others {
        assert_eq!(other.read().await.expect(200), &blob.content.slice(seen..));
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn wrong_bytes_without_a_length_are_never_served_whole() {
    for len in [0, 1000, 1 << 20] {
        for fault in [Fault::WrongByte(len as u64 / 2), Fault::Long(1), Fault::Short(1)] {
            for framing in [Fault::Chunked, Fault::UntilClose] {
                let (upstream, berth, blob) = without_length(len, Fault::Status(404)).await;
                upstream.on("GET", "/blobs/").fault(fault.clone());
                upstream.on("GET", "/blobs/").fault(framing);
                let is_right = len == 0 && !matches!(fault, Fault::Long(_));
                let reply = berth.get(&blob.path(REPO)).try_send().await;
                let is_whole = reply.is_ok_and(|reply| reply.complete && reply.status == 200);
                assert_eq!(is_whole, is_right, "{len}");
                berth.until_idle().await;
                assert_eq!(folder::blob(berth.data_dir(), &blob.digest).exists(), is_right);
            }
        }
    }
}

#[tokio::test]
async fn a_part_of_it_is_a_part() {
    for asked in ["10-19", "-10", "99990-", "0-"] {
        let (upstream, berth, blob) = without_length(100_000, Fault::Status(404)).await;
        let (start, end) = match asked {
            "10-19" => (10, 20),
            "0-" => (0, 100_000),
            _ => (99_990, 100_000),
        };
        for _ in 0..2 {
            let reply = berth.get(&blob.path(REPO)).range(asked).await;
            assert_eq!(reply.expect(206), &blob.content.slice(start..end), "{asked}");
            let content_range = format!("bytes {start}-{}/100000", end - 1);
            assert_eq!(reply.header("content-range"), Some(&*content_range));
            berth.until_idle().await;
        }
        let behind = berth.get(&blob.path(REPO)).range("100000-").await;
        assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */100000")));
        assert_eq!(upstream.count("GET", "/blobs/"), 1, "{asked}");
    }
}

#[tokio::test]
async fn a_part_waits_until_it_is_known_where_the_whole_ends() {
    let (upstream, berth, blob) = without_length(1 << 20, Fault::Status(404)).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(500_000, gate.clone()));
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    whole.bytes(1000).await;
    let part = tokio::spawn(berth.get(&blob.path(REPO)).range("-10").into_future());
    eventually("it has joined", async || berth.metric("berth_joins_total{type=\"blob\"}").await >= 1.0).await;
    gate.open();
    assert_eq!(part.await.unwrap().expect(206), &blob.content.slice((1 << 20) - 10..));
    assert_eq!(whole.read().await.expect(200), &blob.content.slice(1000..));
}

#[tokio::test]
async fn a_body_that_breaks_is_resumed_or_begins_again() {
    for knows_ranges in [true, false] {
        for framing in [Fault::Chunked, Fault::UntilClose] {
            let upstream = Upstream::start().await;
            let image = Image::of(17, &[1 << 20]);
            let blob = image.layer();
            upstream.image(REPO, "1", &image);
            upstream.on("HEAD", "/blobs/").fault(Fault::Status(404));
            upstream.on("GET", "/blobs/").fault(framing);
            if !knows_ranges {
                upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
            }
            for attempt in 1..=3 {
                upstream.on("GET", "/blobs/").nth(attempt).fault(Fault::Cut(attempt as u64 * 200_000));
            }
            let berth = Berth::with("docker.io", &upstream).start().await;
            let reply = within_deadline("the whole body", berth.get(&blob.path(REPO))).await;
            assert_eq!(reply.expect(200), &blob.content, "{knows_ranges}");
            berth.until_stored(&blob.path(REPO)).await;
            assert_eq!(folder::verified(berth.data_dir()), 1);
            if knows_ranges {
                assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "no byte is asked twice");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_too_early_as_if_it_were_whole_is_never_kept() {
    // Some proxies end a body of chunks in good order when what is behind them breaks.
    for framing in [Fault::Chunked, Fault::UntilClose] {
        let (upstream, berth, blob) = without_length(1 << 20, Fault::Status(404)).await;
        upstream.on("GET", "/blobs/").first(1).fault(Fault::Short(300_000));
        upstream.on("GET", "/blobs/").fault(framing);
        eventually("the whole", async || {
            let reply = berth.get(&blob.path(REPO)).await;
            assert!(!reply.complete || reply.body == blob.content);
            reply.complete && reply.status == 200
        })
        .await;
        berth.until_stored(&blob.path(REPO)).await;
        assert_eq!(upstream.count("GET", "/blobs/"), 2);
    }
}

#[tokio::test]
async fn a_size_that_head_only_claims_keeps_nobody_from_the_blob() {
    for len in [1000, 1 << 20] {
        for claimed in [1, len as u64 - 1, len as u64 + 1] {
            let (_upstream, berth, blob) = without_length(len, Fault::ClaimLength(claimed)).await;
            eventually("the whole", async || {
                let reply = berth.get(&blob.path(REPO)).try_send().await;
                reply.is_ok_and(|reply| {
                    let is_whole = reply.complete && reply.status == 200;
                    assert!(!is_whole || reply.body == blob.content, "a whole lie");
                    is_whole
                })
            })
            .await;
        }
    }
}

#[tokio::test]
async fn what_outgrows_the_budget_passes_through() {
    let upstream = Upstream::start().await;
    let image = Image::of(17, &[24 << 20]);
    let blob = image.layer();
    upstream.image(REPO, "1", &image);
    upstream.on("HEAD", "/blobs/").fault(Fault::Status(404));
    upstream.on("GET", "/blobs/").fault(Fault::Chunked);
    let berth = Berth::with("docker.io", &upstream).sections("[cache]\nmax_bytes = \"8MiB\"").start().await;
    let reply = within_deadline("the whole body", berth.get(&blob.path(REPO))).await;
    assert_eq!(reply.expect(200), &blob.content);
    berth.until_idle().await;
    assert!(!folder::blob(berth.data_dir(), &blob.digest).exists());
    let partial = folder::partial(berth.data_dir(), &blob.digest);
    let kept = std::fs::metadata(partial).map_or(0, |file| file.len());
    assert!(kept <= 8 << 20, "{kept}");
}

#[tokio::test]
async fn a_client_that_knows_no_chunks_gets_a_length_or_nothing() {
    let (upstream, berth, blob) = without_length(300_000, Fault::Status(404)).await;
    let request = format!("GET {} HTTP/1.0\r\nHost: localhost\r\n\r\n", blob.path(REPO));
    let answer = Bytes::from(raw(berth.address(), request.as_bytes()).await);
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    assert!(text.contains(" 200 ") && text.contains("content-length: 300000"), "{text}");
    assert_eq!(answer.slice(head + 4..), blob.content);

    let image = Image::of(18, &[300_000]);
    upstream.image(REPO, "2", &image);
    upstream.on("GET", "/blobs/").fault(Fault::WrongByte(5));
    let request = format!("GET {} HTTP/1.0\r\nHost: localhost\r\n\r\n", image.layer().path(REPO));
    let answer = raw(berth.address(), request.as_bytes()).await;
    assert!(String::from_utf8_lossy(&answer[..20]).contains(" 503 "), "what is cut off would look whole");
}

#[tokio::test]
async fn a_tier_passes_it_on() {
    let (upstream, site, blob) = without_length(1 << 20, Fault::Status(404)).await;
    let node = Setup::new("docker.io").endpoint_url(&site.url("")).keys("mirror = true").start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(500_000, gate.clone()));
    let mut cold = node.get(&blob.path(REPO)).open().await;
    assert_eq!((cold.status, cold.header("content-length")), (200, None));
    assert_eq!(cold.bytes(100_000).await, blob.content.slice(..100_000));
    gate.open();
    assert_eq!(cold.read().await.expect(200), &blob.content.slice(100_000..));
    node.until_stored(&blob.path(REPO)).await;
    site.until_stored(&blob.path(REPO)).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}
