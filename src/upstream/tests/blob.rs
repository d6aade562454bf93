//! Blobs: sizes, resumption, and bodies that are not what they should be.

use super::super::{BlobStream, Error};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of};
use crate::oci::Range;

const CONTENT: &str = "0123456789";

async fn read(mut stream: BlobStream) -> Result<String, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = stream.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(body).unwrap())
}

/// Asks one upstream that answers so for the blob from an offset; from 0 without a range.
async fn open(
    from: u64,
    total: Option<u64>,
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> (Result<BlobStream, Error>, Fake) {
    open_part((from > 0).then_some(Range::From(from)), total, reply).await
}

/// Asks one upstream that answers so for a part of the blob.
async fn open_part(
    range: Option<Range>,
    total: Option<u64>,
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> (Result<BlobStream, Error>, Fake) {
    let fake = Fake::start(move |_| reply()).await;
    let stream = upstream_of(&fake)
        .blob(&client(), &name("a"), &digest_of(CONTENT.as_bytes()), range, total, &[])
        .await;
    (stream, fake)
}

fn part(range: &'static str, body: &'static str) -> Reply {
    Reply::new(206, body).with("content-range", range)
}

#[tokio::test]
async fn a_whole_blob_has_upstreams_length() {
    let (stream, fake) = open(0, None, || Reply::ok(CONTENT)).await;
    let stream = stream.unwrap();
    assert_eq!((stream.total, stream.start, stream.endpoint, stream.public), (Some(10), 0, 0, true));
    assert_eq!(read(stream).await.as_deref(), Ok(CONTENT));
    let seen = &fake.seen()[0];
    assert_eq!((seen.header("range"), seen.header("accept-encoding")), (None, Some("identity")));
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_broke() {
    let (stream, fake) = open(4, Some(10), || part("bytes 4-9/10", "456789")).await;
    let stream = stream.unwrap();
    assert_eq!((stream.total, stream.start), (Some(10), 4));
    assert_eq!(read(stream).await.as_deref(), Ok("456789"));
    assert_eq!(fake.seen()[0].header("range"), Some("bytes=4-9"), "closed: some servers want two numbers");

    let (stream, fake) = open(4, None, || part("bytes 4-9/10", "456789")).await;
    assert_eq!(stream.unwrap().total, Some(10));
    assert_eq!(fake.seen()[0].header("range"), Some("bytes=4-"));

    let (stream, _) = open(4, Some(10), || part("bytes 4-9/*", "456789")).await;
    assert_eq!(stream.unwrap().total, Some(10));
}

#[tokio::test]
async fn an_upstream_without_ranges_begins_again() {
    let (stream, _) = open(4, Some(10), || Reply::ok(CONTENT)).await;
    let stream = stream.unwrap();
    assert_eq!((stream.total, stream.start), (Some(10), 0));
    assert_eq!(read(stream).await.as_deref(), Ok(CONTENT));
}

#[tokio::test]
async fn another_size_or_place_is_not_gone_on_with() {
    let check = async |total: Option<u64>, reply: fn() -> Reply, expected: fn(&Error) -> bool| {
        let error = error_of(open(4, total, reply).await.0);
        assert!(expected(&error), "{error:?}");
    };
    let changed = |error: &Error| *error == Error::Changed;
    let malformed = |error: &Error| matches!(error, Error::Malformed(_));
    check(Some(10), || part("bytes 4-10/11", "456789a"), changed).await;
    check(Some(10), || Reply::ok("another content"), changed).await;
    check(Some(10), || Reply::new(416, ""), changed).await;
    check(Some(10), || part("bytes 3-9/10", "3456789"), malformed).await;
    check(Some(10), || part("bytes 0-9/10", CONTENT), malformed).await;
    check(Some(10), || part("nonsense", "456789"), malformed).await;
    check(Some(10), || Reply::new(206, "456789"), malformed).await;
    check(None, || part("bytes 4-9/*", "456789"), malformed).await;
    check(Some(8), || part("bytes 4-9/*", "456789"), malformed).await;
    check(None, || part("bytes 4-9/99999999999999", "456789"), malformed).await;
}

#[tokio::test]
async fn a_part_is_taken_if_it_is_the_one_that_was_asked_for() {
    let check = async |range: Range, content_range: &'static str, expected: Option<(u64, u64, u64)>| {
        let (stream, fake) = open_part(Some(range), None, move || part(content_range, "x")).await;
        let found = stream.ok().map(|stream| (stream.start, stream.end, stream.total.unwrap()));
        assert_eq!(found, expected, "{range}: {content_range}");
        assert_eq!(fake.seen()[0].header("range"), Some(&*range.to_string()));
    };
    let closed = Range::Closed { first: 2, last: 5 };
    check(closed, "bytes 2-5/10", Some((2, 6, 10))).await;
    check(closed, "bytes 2-3/10", Some((2, 4, 10))).await;
    check(closed, "bytes 2-4/5", Some((2, 5, 5))).await;
    check(closed, "bytes 2-6/10", None).await;
    check(closed, "bytes 1-5/10", None).await;
    check(closed, "bytes 2-5/*", None).await;
    check(Range::Suffix(3), "bytes 7-9/10", Some((7, 10, 10))).await;
    check(Range::Suffix(3), "bytes 7-8/10", Some((7, 9, 10))).await;
    check(Range::Suffix(3), "bytes 6-9/10", None).await;
    check(Range::Suffix(30), "bytes 0-9/10", Some((0, 10, 10))).await;
    check(Range::From(0), "bytes 0-9/10", Some((0, 10, 10))).await;
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_taken_if_it_is_the_beginning() {
    let (stream, _) = open(0, None, || part("bytes 0-9/10", CONTENT)).await;
    assert_eq!(stream.unwrap().total, Some(10));
    let (stream, _) = open(0, None, || part("bytes 0-4/10", "01234")).await;
    assert_eq!(stream.ok().map(|stream| (stream.start, stream.end)), Some((0, 5)));
    let error = error_of(open(0, None, || part("bytes 5-9/10", "56789")).await.0);
    assert!(matches!(error, Error::Malformed(_)));
}

/// Some servers send a part with 200.
#[tokio::test]
async fn a_part_under_200_is_a_part_if_its_length_is_that_of_the_part() {
    let check = async |range: Option<Range>, reply: fn() -> Reply, expected: (u64, u64, u64)| {
        let stream = open_part(range, None, reply).await.0.unwrap();
        assert_eq!((stream.start, stream.end, stream.total.unwrap()), expected);
    };
    let closed = Some(Range::Closed { first: 2, last: 5 });
    check(closed, || Reply::ok("2345").with("content-range", "bytes 2-5/10"), (2, 6, 10)).await;
    check(closed, || Reply::ok("234").with("content-range", "bytes 2-4/10"), (2, 5, 10)).await;
    check(closed, || Reply::ok(CONTENT).with("content-range", "bytes 2-5/10"), (0, 10, 10)).await;
    check(closed, || Reply::ok(CONTENT).with("content-range", "bytes 0-3/10"), (0, 10, 10)).await;
    check(closed, || Reply::ok(CONTENT).with("content-range", "nonsense"), (0, 10, 10)).await;
    check(None, || Reply::ok(CONTENT).with("content-range", "bytes 0-9/10"), (0, 10, 10)).await;
    let suffix = Some(Range::Suffix(3));
    check(suffix, || Reply::ok("789").with("content-range", "bytes 7-9/10"), (7, 10, 10)).await;
}

/// The digest decides, not a label; but what calls itself a page says so, and its length is none of the blob's.
#[tokio::test]
async fn pages_and_coded_bodies_may_be_blobs() {
    let check = async |header: &'static str, value: &'static str, total: Option<u64>, size: Option<u64>| {
        let fake = Fake::start(move |_| Reply::ok(CONTENT).with(header, value)).await;
        let upstream = upstream_of(&fake);
        let digest = digest_of(CONTENT.as_bytes());
        let stream = upstream.blob(&client(), &name("a"), &digest, None, None, &[]).await.unwrap();
        assert_eq!((stream.total, stream.is_page), (total, total.is_none()), "{header}: {value}");
        assert_eq!(read(stream).await.as_deref(), Ok(CONTENT));
        let said = upstream.head_blob(&client(), &name("a"), &digest).await.ok();
        assert_eq!(said, size, "{header}: {value}");
    };
    check("content-type", "text/html; charset=utf-8", None, None).await;
    check("content-type", "TEXT/HTML", None, None).await;
    check("content-type", "application/octet-stream", Some(10), Some(10)).await;
    check("content-encoding", "gzip", Some(10), None).await;
    check("content-encoding", "identity", Some(10), Some(10)).await;
}

#[tokio::test]
async fn the_size_of_what_calls_itself_a_page_is_believed_if_it_names_the_digest() {
    let digest = digest_of(CONTENT.as_bytes());
    let fake = Fake::start(move |_| {
        Reply::ok(CONTENT)
            .with("content-type", "text/html")
            .with("docker-content-digest", &digest.to_string())
    })
    .await;
    assert_eq!(upstream_of(&fake).head_blob(&client(), &name("a"), &digest).await, Ok(10));
}

/// HEAD may tell what a body in chunks does not; whatever it says or fails at speaks against nothing.
#[tokio::test]
async fn head_is_asked_for_a_length_where_none_is_given_and_decides_nothing() {
    let check = async |head: fn() -> Reply, expected: Option<u64>| {
        let fake = Fake::start(move |seen| match seen.method.as_str() {
            "HEAD" => head(),
            _ => Reply::ok(CONTENT).without_length(),
        })
        .await;
        let upstream = upstream_of(&fake);
        let digest = digest_of(CONTENT.as_bytes());
        let stream = upstream.blob(&client(), &name("a"), &digest, None, None, &[]).await.unwrap();
        assert_eq!((stream.total, stream.is_length_untold), (expected, true));
        assert_eq!(read(stream).await.as_deref(), Ok(CONTENT));
        assert_eq!(fake.seen().len(), 2, "the body is asked for once");
        let stream = upstream.blob(&client(), &name("a"), &digest, None, None, &[0]).await.unwrap();
        assert_eq!((stream.total, fake.seen().len()), (None, 3), "a second try does without");
    };
    check(|| Reply::ok(CONTENT), Some(10)).await;
    check(|| Reply::ok("x").without_length(), None).await;
    check(|| Reply::ok(""), None).await;
    for status in [401, 403, 404, 405, 429, 500, 503] {
        let fake = Fake::start(move |seen| match seen.method.as_str() {
            "HEAD" => Reply::new(status, ""),
            _ => Reply::ok(CONTENT).without_length(),
        })
        .await;
        let digest = digest_of(CONTENT.as_bytes());
        let stream = upstream_of(&fake).blob(&client(), &name("a"), &digest, None, None, &[]).await;
        assert_eq!(stream.unwrap().total, None, "{status}");
    }
}

/// A range of one byte tells what HEAD does not.
#[tokio::test]
async fn a_size_is_asked_for_by_a_range_where_head_has_none() {
    let check = async |head: fn() -> Reply, first_byte: fn() -> Reply, expected: Result<u64, Error>| {
        let fake = Fake::start(move |seen| match (seen.method.as_str(), seen.header("range")) {
            ("HEAD", _) => head(),
            (_, Some("bytes=0-0")) => first_byte(),
            _ if seen.path == "/v2/" => Reply::ok("{}"),
            _ => Reply::new(500, ""),
        })
        .await;
        let digest = digest_of(CONTENT.as_bytes());
        assert_eq!(upstream_of(&fake).head_blob(&client(), &name("a"), &digest).await, expected);
    };
    let none = || Reply::ok("x").without_length();
    check(none, || part("bytes 0-0/10", "0"), Ok(10)).await;
    check(|| Reply::ok(""), || part("bytes 0-0/10", "0"), Ok(10)).await;
    check(|| Reply::new(405, ""), || part("bytes 0-0/10", "0"), Ok(10)).await;
    check(|| Reply::new(404, ""), || part("bytes 0-0/10", "0"), Ok(10)).await;
    check(|| Reply::new(403, ""), || Reply::ok(CONTENT), Ok(10)).await;
    check(|| Reply::new(404, ""), || Reply::new(404, ""), Err(Error::NotFound)).await;
    check(none, || part("bytes 0-0/*", "0"), Err(Error::NoLength)).await;
    check(none, none, Err(Error::NoLength)).await;
}

#[tokio::test]
async fn a_known_length_is_not_asked_for_again() {
    let (stream, fake) = open(4, Some(10), || Reply::ok(CONTENT).without_length()).await;
    assert_eq!(stream.unwrap().total, Some(10));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_signed_url_that_knows_no_head_still_tells_the_size() {
    let cdn = Fake::start(|seen| match seen.method.as_str() {
        "GET" => part("bytes 0-0/10", "0"),
        _ => Reply::new(403, "<Error>SignatureDoesNotMatch</Error>"),
    })
    .await;
    let target = cdn.url();
    let fake = Fake::start(move |_| Reply::redirect(&target)).await;
    let size = upstream_of(&fake).head_blob(&client(), &name("a"), &digest_of(CONTENT.as_bytes())).await;
    assert_eq!(size, Ok(10));
}

#[tokio::test]
async fn the_empty_blob_has_no_bytes() {
    let fake = Fake::start(|_| Reply::ok("")).await;
    assert_eq!(upstream_of(&fake).head_blob(&client(), &name("a"), &digest_of(b"")).await, Ok(0));
    let stream =
        upstream_of(&fake).blob(&client(), &name("a"), &digest_of(b""), None, None, &[]).await.unwrap();
    assert_eq!((stream.total, read(stream).await.as_deref()), (Some(0), Ok("")));
}

#[tokio::test]
async fn a_body_that_breaks_or_falls_silent_is_an_error() {
    let (stream, _fake) = open(0, None, || Reply::ok("0123").cut(10)).await;
    assert!(matches!(read(stream.unwrap()).await, Err(Error::Unreachable { .. })));
    let (stream, _fake) = open(0, None, || Reply::ok("0123").stalling(10)).await;
    let mut stream = stream.unwrap();
    assert_eq!(stream.chunk().await.unwrap().as_deref(), Some(b"0123".as_slice()));
    assert_eq!(stream.chunk().await, Err(Error::Timeout));
}
