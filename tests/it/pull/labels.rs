//! Labels that contradict the bytes (row A8): the digest decides, and what looks like a portal's page reaches nobody
//! before it is proven to be a blob.

use bytes::Bytes;

use crate::support::{Berth, Blob, Fault, Image, Upstream, eventually, folder};

const REPO: &str = "library/labelled";
const PAGE: &str = "<!doctype html><title>Log in to the hotel's network</title>";

async fn with_blob(len: usize) -> (Upstream, Berth, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(23, &[len]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image.layer().clone())
}

fn label(upstream: &Upstream, name: &'static str, value: &str) {
    upstream.on("*", "/blobs/").fault(Fault::Header(name, value.to_owned()));
}

/// A page of so many bytes, as everything that is asked.
fn portal(upstream: &Upstream, len: usize) {
    let page: Bytes = PAGE.repeat(len / PAGE.len() + 1).into();
    upstream.on("*", "/blobs/").fault(Fault::Content("text/html; charset=utf-8", page));
}

#[tokio::test]
async fn right_bytes_under_a_wrong_label_are_a_blob() {
    for (name, value) in [
        ("Content-Type", "text/html"),
        ("Content-Type", "TEXT/HTML; charset=utf-8"),
        ("Content-Type", "application/xhtml+xml"),
        ("Content-Type", "application/vnd.oci.image.layer.v1.tar"),
        ("Content-Type", "application/json"),
        ("Content-Encoding", "x-gzip"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "zstd, identity"),
    ] {
        for (len, framing) in [(0, None), (1000, None), (5 << 20, None), (5 << 20, Some(Fault::Chunked))] {
            let (upstream, berth, blob) = with_blob(len).await;
            label(&upstream, name, value);
            if let Some(framing) = framing {
                upstream.on("*", "/blobs/").fault(framing);
            }
            let reply = berth.get(&blob.path(REPO)).await;
            assert_eq!(reply.expect(200), &blob.content, "{name}: {value}");
            assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
            assert_eq!(reply.header("content-encoding"), None);
            berth.until_idle().await;
            upstream.stop().await;
            let hit = berth.get(&blob.path(REPO)).await;
            assert_eq!(hit.expect(200), &blob.content, "{name}: {value}");
            assert_eq!(hit.header("content-length"), Some(&*len.to_string()));
            assert_eq!(upstream.count("GET", "/blobs/"), 1, "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn parts_and_sizes_of_it_are_right_too() {
    for (name, value) in [("Content-Type", "text/html"), ("Content-Encoding", "x-gzip")] {
        for asked in ["10-19", "-10", "4000000-", "4000000-4000009"] {
            let (upstream, berth, blob) = with_blob(5 << 20).await;
            label(&upstream, name, value);
            let head = berth.head(&blob.path(REPO)).await;
            assert_eq!((head.status, head.header("content-length")), (200, Some("5242880")), "{value}");
            let reply = berth.get(&blob.path(REPO)).range(asked).await;
            let (start, end) = match asked {
                "10-19" => (10, 20),
                "-10" => ((5 << 20) - 10, 5 << 20),
                "4000000-" => (4_000_000, 5 << 20),
                _ => (4_000_000, 4_000_010),
            };
            assert_eq!(reply.expect(206), &blob.content.slice(start..end), "{value}: {asked}");
        }
    }
}

#[tokio::test]
async fn a_transfer_under_a_wrong_label_goes_on_where_it_broke() {
    let (upstream, berth, blob) = with_blob(5 << 20).await;
    label(&upstream, "Content-Type", "text/html");
    for attempt in 1..=3 {
        upstream.on("GET", "/blobs/").nth(attempt).fault(Fault::Cut(attempt as u64 * 500_000));
    }
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "no byte is asked twice");
}

#[tokio::test]
async fn a_portals_page_reaches_nobody_and_nothing_of_it_is_kept() {
    for len in [100, 300_000, 2 << 20] {
        for framing in [None, Some(Fault::Chunked), Some(Fault::UntilClose), Some(Fault::Cut(len as u64 / 2))]
        {
            let (upstream, berth, blob) = with_blob(5 << 20).await;
            portal(&upstream, len);
            if let Some(framing) = framing {
                upstream.on("GET", "/blobs/").fault(framing);
            }
            for asked in [None, Some("0-99"), Some("-100"), Some("70000-")] {
                let ask = berth.get(&blob.path(REPO));
                let reply = asked.into_iter().fold(ask, |ask, range| ask.range(range)).await;
                assert_eq!(reply.status, 503, "{len} {asked:?}");
                assert!(!reply.text().contains("hotel"), "{len} {asked:?}");
            }
            assert_ne!(berth.head(&blob.path(REPO)).await.status, 200);
            berth.until_idle().await;
            assert!(!folder::partial(berth.data_dir(), &blob.digest).exists(), "{len}");
            upstream.behave();
            eventually("the blob", async || {
                let reply = berth.get(&blob.path(REPO)).await;
                reply.status == 200 && reply.expect(200) == &blob.content
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_portal_that_comes_up_in_the_middle_reaches_nobody_and_costs_no_byte() {
    for framing in [None, Some(Fault::Chunked)] {
        let (upstream, berth, blob) = with_blob(5 << 20).await;
        upstream.on("GET", "/blobs/").nth(1).fault(Fault::Cut(2 << 20));
        let page: Bytes = PAGE.repeat(100_000).into();
        upstream.on("GET", "/blobs/").after(1).fault(Fault::Content("text/html", page));
        if let Some(framing) = framing {
            upstream.on("GET", "/blobs/").after(1).fault(framing);
        }
        let reply = berth.get(&blob.path(REPO)).await;
        assert!(!reply.complete && blob.content.starts_with(&reply.body), "{}", reply.body.len());
        berth.until_idle().await;
        let again = berth.get(&blob.path(REPO)).await;
        assert!(!again.text().contains("hotel"));
        berth.until_idle().await;
        upstream.behave();
        upstream.forget();
        eventually("the blob", async || {
            let reply = berth.get(&blob.path(REPO)).await;
            reply.status == 200 && reply.expect(200) == &blob.content
        })
        .await;
        assert_eq!(upstream.bytes_sent(&blob.digest), 3 << 20, "what was there before is kept");
    }
}

#[tokio::test]
async fn an_endpoint_without_a_page_is_asked_before_one_is_looked_at() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(23, &[1 << 20]);
    let blob = image.layer();
    first.image(REPO, "1", &image);
    second.image(REPO, "1", &image);
    portal(&first, 1000);
    let berth = Berth::with("docker.io", &first).endpoint(&second).start().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!((first.count("GET", "/blobs/"), second.count("GET", "/blobs/")), (1, 1));
    // And where nobody else has it, it is looked at.
    let other = Image::of(24, &[1 << 20]);
    first.behave();
    first.image(REPO, "2", &other);
    label(&first, "Content-Type", "text/html");
    eventually("the one that looks like a page", async || {
        let reply = berth.get(&other.layer().path(REPO)).await;
        reply.status == 200 && reply.expect(200) == &other.layer().content
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_really_coded_is_never_a_blob() {
    let (upstream, berth, blob) = with_blob(1000).await;
    upstream.on("GET", "/blobs/").fault(Fault::Content("application/octet-stream", "coded".into()));
    label(&upstream, "Content-Encoding", "gzip");
    assert_eq!(berth.get(&blob.path(REPO)).await.status, 503);
    berth.until_idle().await;
    assert!(!folder::blob(berth.data_dir(), &blob.digest).exists());
}
