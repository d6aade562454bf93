//! Several ranges in one request (row A10 of the field's reports): a part for each, in their order, hot and cold; and
//! what is asked of upstream for them.

use bytes::Bytes;

use crate::support::crash::Disk;
use crate::support::{
    Berth, Blob, Certificate, Fault, Gate, Image, Reply, Setup, Upstream, eventually, folder, together,
};

const REPO: &str = "library/big";
const MIB: u64 = 1 << 20;

async fn with_blob(len: usize) -> (Upstream, Setup, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(23, &[len]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream).sections("[cache]\ncomplete = \"never\"");
    (upstream, setup, image.layer().clone())
}

async fn ranges(berth: &Berth, blob: &Blob, list: &str) -> Reply {
    berth.get(&blob.path(REPO)).range(list).await
}

async fn stored(setup: Setup, blob: &Blob) -> Berth {
    let berth = setup.start().await;
    berth.get(&blob.path(REPO)).await.expect(200);
    berth.until_idle().await;
    berth
}

/// The parts of a multipart answer: where each says that it lies, and its bytes. Whoever reads by the lengths and whoever
/// looks for the boundary must find the same.
#[track_caller]
fn parts_of(reply: &Reply) -> Vec<(String, Bytes)> {
    let body = reply.expect(206);
    assert_eq!(reply.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!((reply.header("content-range"), reply.header("accept-ranges")), (None, Some("bytes")));
    let boundary = reply.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.unwrap();
    assert!(boundary.len() >= 24 && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{boundary}");
    let (mut rest, mut parts) = (body.clone(), Vec::new());
    let take = |rest: &mut Bytes, text: &str| {
        let found = rest.split_to(text.len().min(rest.len()));
        assert!(found == text, "{found:?} in place of {text:?}, behind {} parts", parts.len());
    };
    take(&mut rest, &format!("--{boundary}"));
    loop {
        if rest == "--\r\n" {
            break;
        }
        let head_end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(rest.split_to(head_end + 4).to_vec()).unwrap();
        let lines: Vec<&str> = head.trim_end().lines().skip(1).collect();
        let ["Content-Type: application/octet-stream", place] = lines[..] else { panic!("{head}") };
        let place = place.strip_prefix("Content-Range: bytes ").unwrap();
        let (first, last) = place.split_once('/').unwrap().0.split_once('-').unwrap();
        let [first, last] = [first, last].map(|number| number.parse::<usize>().unwrap());
        let bytes = rest.split_to(last + 1 - first);
        let mark = format!("\r\n--{boundary}");
        let found = rest.split_to(mark.len().min(rest.len()));
        assert!(found == mark, "{found:?} behind part {}", parts.len());
        parts.push((place.to_owned(), bytes));
    }
    let marks = body.windows(boundary.len()).filter(|bytes| *bytes == boundary.as_bytes()).count();
    assert_eq!(marks, parts.len() + 1);
    parts
}

/// Expects these parts of the blob, each by its start and its end.
#[track_caller]
fn expect_parts(reply: &Reply, blob: &Blob, expected: &[(usize, usize)]) {
    let parts = parts_of(reply);
    let places: Vec<_> = parts.iter().map(|(place, _)| place.as_str()).collect();
    let place = |(start, end): &(usize, usize)| format!("{start}-{}/{}", end - 1, blob.len());
    assert_eq!(places, expected.iter().map(place).collect::<Vec<_>>());
    for ((place, bytes), (start, end)) in parts.iter().zip(expected) {
        assert!(*bytes == blob.content.slice(*start..*end), "other bytes in {place}");
    }
    assert_eq!(reply.header("docker-content-digest"), Some(&*blob.digest.to_string()));
    assert_eq!(reply.header("etag"), Some(&*format!("\"{}\"", blob.digest)));
}

fn ranges_asked(upstream: &Upstream, blob: &Blob) -> Vec<String> {
    let asked = upstream.seen("GET", &blob.digest.to_string());
    asked.iter().map(|request| request.header("range").unwrap_or("all").to_owned()).collect()
}

/// What is answered of a blob of 100,000 bytes with several parts.
const SEVERAL: [(&str, &[(usize, usize)]); 14] = [
    ("0-3,5-6", &[(0, 4), (5, 7)]),
    ("0-3,40000-40003", &[(0, 4), (40_000, 40_004)]),
    ("40000-40003,0-3", &[(40_000, 40_004), (0, 4)]),
    ("0-3,4-7,8-11", &[(0, 4), (4, 8), (8, 12)]),
    ("0-0,-1", &[(0, 1), (99_999, 100_000)]),
    ("-51,0-9", &[(99_949, 100_000), (0, 10)]),
    ("10-19,99990-", &[(10, 20), (99_990, 100_000)]),
    ("99990-,10-19", &[(99_990, 100_000), (10, 20)]),
    ("0-49999,50000-", &[(0, 50_000), (50_000, 100_000)]),
    ("0-3, 5-6 ,\t8-9", &[(0, 4), (5, 7), (8, 10)]),
    (",,0-3,,5-6,", &[(0, 4), (5, 7)]),
    ("0-3,200000-,99990-200000,-0", &[(0, 4), (99_990, 100_000)]),
    ("0-9,0-9,5-14", &[(0, 10), (0, 10), (5, 15)]),
    (
        "90000-99999,70000-79999,1-2,80000-89999",
        &[(90_000, 100_000), (70_000, 80_000), (1, 3), (80_000, 90_000)],
    ),
];

/// What is answered otherwise: the status, and for parts their place.
const OTHERWISE: [(&str, u16, Option<&str>); 16] = [
    ("0-3,", 206, Some("bytes 0-3/100000")),
    (",0-3", 206, Some("bytes 0-3/100000")),
    (" , 0-3 , ", 206, Some("bytes 0-3/100000")),
    ("100000-,0-3", 206, Some("bytes 0-3/100000")),
    ("-0,99990-200000", 206, Some("bytes 99990-99999/100000")),
    ("100000-,200000-200001,-0", 416, Some("bytes */100000")),
    ("0-,0-", 400, None),
    ("0-99999,0-0", 400, None),
    ("0-60000,50000-99999", 400, None),
    ("1-1,1-1,1-1,1-1", 400, None),
    ("0-9,1-2,3-4,5-6", 400, None),
    ("0-3,x", 200, None),
    ("0-3,9-5", 200, None),
    ("0-3;5-6", 200, None),
    (",", 200, None),
    ("0-3,bytes=5-6", 200, None),
];

async fn expect_all(berth: &Berth, blob: &Blob) {
    for (list, expected) in SEVERAL {
        expect_parts(&ranges(berth, blob, list).await, blob, expected);
    }
    for (list, status, place) in OTHERWISE {
        let reply = ranges(berth, blob, list).await;
        assert_eq!((reply.status, reply.header("content-range")), (status, place), "{list}");
        assert!(!reply.header("content-type").unwrap().starts_with("multipart"), "{list}");
        if status >= 400 {
            assert_eq!(reply.error_code(), "RANGE_INVALID", "{list}");
        }
    }
}

#[tokio::test]
async fn a_stored_blob_is_served_in_several_parts_over_any_wire() {
    let certificate = Certificate::new();
    for is_tls in [false, true] {
        let (upstream, setup, blob) = with_blob(100_000).await;
        let setup = if is_tls { setup.tls(&certificate) } else { setup };
        let berth = stored(setup, &blob).await;
        upstream.forget();
        expect_all(&berth, &blob).await;
        let reply = ranges(&berth, &blob, "0-3,5-6").await;
        assert_eq!(reply.header("cache-status"), Some("berth; hit"));
        let other = ranges(&berth, &blob, "0-3,5-6").await;
        assert_ne!(reply.header("content-type"), other.header("content-type"), "no two have one boundary");
        assert_eq!(upstream.requests().len(), 0);
    }
}

#[tokio::test]
async fn a_cold_blob_is_served_in_the_same_parts() {
    for (list, expected) in SEVERAL {
        let (upstream, setup, blob) = with_blob(100_000).await;
        let berth = setup.start().await;
        expect_parts(&ranges(&berth, &blob, list).await, &blob, expected);
        assert_eq!((upstream.count("GET", "/blobs/"), upstream.bytes_sent(&blob.digest)), (1, blob.len()));
    }
    let (_upstream, setup, blob) = with_blob(100_000).await;
    expect_all(&setup.start().await, &blob).await;
}

#[tokio::test]
async fn large_parts_come_by_every_wire() {
    let certificate = Certificate::new();
    let parts = [(5_000_000, 9_000_001), (0, 3), (70_000, 140_000), (9_000_001, 10_000_000), (200, 65_736)];
    let list: Vec<_> = parts.iter().map(|(start, end)| format!("{start}-{}", end - 1)).collect();
    for is_tls in [false, true] {
        let (upstream, setup, blob) = with_blob(10_000_000).await;
        let berth = if is_tls { setup.tls(&certificate) } else { setup }.start().await;
        for _ in 0..2 {
            expect_parts(&ranges(&berth, &blob, &list.join(",")).await, &blob, &parts);
            berth.until_idle().await;
        }
        berth.get(&blob.path(REPO)).await.expect(200);
        expect_parts(&ranges(&berth, &blob, &list.join(",")).await, &blob, &parts);
        assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
    }
}

#[tokio::test]
async fn far_ranges_of_a_cold_blob_cost_two_small_requests() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    let (list, expected) = ("0-3,40000000-40000003", [(0, 4), (40_000_000, 40_000_004)]);
    let reply = ranges(&berth, &blob, list).await;
    expect_parts(&reply, &blob, &expected);
    assert_eq!(reply.header("cache-status"), Some("berth; fwd=miss; stored; detail=unproven"));
    let asked = ["bytes=0-1048575", "bytes=39845888-40894463"];
    assert_eq!(
        (ranges_asked(&upstream, &blob), upstream.bytes_sent(&blob.digest)),
        (asked.map(str::to_owned).into(), 2 * MIB)
    );
    // They stay, with and without the flight.
    for _ in 0..2 {
        let again = ranges(&berth, &blob, "40000000-40000003,0-3").await;
        expect_parts(&again, &blob, &[(40_000_000, 40_000_004), (0, 4)]);
        assert_eq!(again.header("cache-status"), Some("berth; hit; detail=unproven"));
        berth.until_idle().await;
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn neighbouring_ranges_are_one_request_to_upstream_and_never_one_part() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    // Each in a mebibyte of its own: five that follow one another, and three further on.
    let starts: Vec<usize> = [0, 1, 2, 3, 4, 40, 41, 42].iter().map(|at| (at << 20) + 500_000).collect();
    let list: Vec<_> = starts.iter().map(|start| format!("{start}-{}", start + 99)).collect();
    let expected: Vec<_> = starts.iter().map(|start| (*start, start + 100)).collect();
    expect_parts(&ranges(&berth, &blob, &list.join(",")).await, &blob, &expected);
    assert_eq!(ranges_asked(&upstream, &blob), ["bytes=0-5242879", "bytes=41943040-45088767"]);
}

#[tokio::test]
async fn a_thousand_ranges_are_served_and_more_are_refused_before_upstream_is_asked() {
    let (upstream, setup, blob) = with_blob(8 << 20).await;
    let berth = setup.start().await;
    let list = |count: usize| {
        let each: Vec<_> = (0..count).map(|at| format!("{}-{}", at * 8000, at * 8000 + 99)).collect();
        each.join(",")
    };
    for count in [1025, 1500] {
        let reply = ranges(&berth, &blob, &list(count)).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "RANGE_INVALID"));
    }
    assert_eq!(upstream.requests().len(), 0);
    let expected: Vec<_> = (0..1024).map(|at| (at * 8000, at * 8000 + 100)).collect();
    expect_parts(&ranges(&berth, &blob, &list(1024)).await, &blob, &expected);
    assert_eq!((upstream.count("GET", "/blobs/"), upstream.bytes_sent(&blob.digest)), (1, blob.len()));
    berth.until_idle().await;
    expect_parts(&ranges(&berth, &blob, &list(1024)).await, &blob, &expected);
    assert_eq!(ranges(&berth, &blob, &list(1025)).await.status, 400);
}

#[tokio::test]
async fn what_is_refused_makes_upstream_send_no_more_than_its_size() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    for list in
        ["0-,0-", "0-3,9000000-,8000000-,-60000000", "5-5,9000000-9000009,40000000-,41000000-,42000000-,-1"]
    {
        let reply = ranges(&berth, &blob, list).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "RANGE_INVALID"), "{list}");
        berth.until_idle().await;
    }
    assert!(upstream.bytes_sent(&blob.digest) <= 2 * MIB, "{:?}", ranges_asked(&upstream, &blob));
}

#[tokio::test]
async fn the_first_part_does_not_wait_for_the_others() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").after(1).fault(Fault::Hold(gate.clone()));
    let list = "30000000-30000009,100-199,60000000-60000009";
    let mut open = berth.get(&blob.path(REPO)).range(list).open().await;
    assert_eq!(open.status, 206);
    let mut begun = Vec::new();
    while !begun.ends_with(&blob.content[30_000_000..30_000_010]) {
        begun.extend_from_slice(&open.bytes(1).await);
        assert!(begun.len() < 500, "the first part");
    }
    eventually("the others are asked for together", async || upstream.count("GET", "/blobs/") == 3).await;
    gate.open();
    let mut reply = open.read().await;
    reply.body = [&begun[..], &reply.body].concat().into();
    let expected = [(30_000_000, 30_000_010), (100, 200), (60_000_000, 60_000_010)];
    expect_parts(&reply, &blob, &expected);
}

#[tokio::test]
async fn many_far_ranges_take_no_more_connections_than_single_ones_may() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").after(1).fault(Fault::Hold(gate.clone()));
    let starts: Vec<usize> = (0..16).map(|at| at * 4_000_000).collect();
    let list: Vec<_> = starts.iter().map(|start| format!("{start}-{}", start + 9)).collect();
    let open = berth.get(&blob.path(REPO)).range(&list.join(",")).open().await;
    eventually("some are asked for", async || upstream.count("GET", "/blobs/") >= 4).await;
    let single = berth.get(&blob.path(REPO)).range("62000000-62000009").open().await;
    eventually("another client's range is, too", async || {
        ranges_asked(&upstream, &blob).iter().any(|range| range == "bytes=61865984-62914559")
    })
    .await;
    assert!(upstream.count("GET", "/blobs/") <= 1 + 5, "{:?}", ranges_asked(&upstream, &blob));
    gate.open();
    assert_eq!(single.read().await.expect(206), &blob.content.slice(62_000_000..62_000_010));
    let expected: Vec<_> = starts.iter().map(|start| (*start, start + 10)).collect();
    expect_parts(&open.read().await, &blob, &expected);
    let sent = upstream.bytes_sent(&blob.digest);
    assert!(sent <= 17 * MIB, "{sent} bytes for 17 mebibytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_for_the_same_share_what_comes() {
    let (upstream, setup, blob) = with_blob(64 << 20).await;
    let berth = setup.start().await;
    let list = "50000000-50000009,0-9,20000000-22000000";
    let ask = berth.get(&blob.path(REPO)).range(list);
    for reply in together(20, move |_| ask.clone().into_future()).await {
        expect_parts(&reply, &blob, &[(50_000_000, 50_000_010), (0, 10), (20_000_000, 22_000_001)]);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 3, "{:?}", ranges_asked(&upstream, &blob));
    assert_eq!(upstream.bytes_sent(&blob.digest), 4 * MIB);
}

#[tokio::test]
async fn they_join_the_transfer_of_the_whole() {
    let (upstream, setup, blob) = with_blob(40 << 20).await;
    let berth = setup.start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    whole.bytes(1000).await;
    let several = ranges(&berth, &blob, "20000000-20000009,5-9,30000000-30000009").await;
    expect_parts(&several, &blob, &[(20_000_000, 20_000_010), (5, 10), (30_000_000, 30_000_010)]);
    gate.open();
    assert_eq!(whole.read().await.expect(200), &blob.content.slice(1000..));
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test]
async fn an_upstream_without_ranges_makes_no_difference() {
    for cut in [None, Some(9 * MIB)] {
        let (upstream, setup, blob) = with_blob(32 << 20).await;
        upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
        if let Some(after) = cut {
            upstream.on("GET", "/blobs/").first(1).fault(Fault::Cut(after));
        }
        let berth = setup.start().await;
        let reply = ranges(&berth, &blob, "20000000-20000009,0-9,-51").await;
        let end = blob.content.len();
        expect_parts(&reply, &blob, &[(20_000_000, 20_000_010), (0, 10), (end - 51, end)]);
        assert_eq!(upstream.count("GET", "/blobs/"), 1 + usize::from(cut.is_some()));
    }
}

#[tokio::test]
async fn the_end_of_an_open_range_among_them_waits_for_the_proof() {
    let (upstream, setup, blob) = with_blob(16 << 20).await;
    upstream.on("GET", "/blobs/").fault(Fault::WrongByte(9_000_005));
    let berth = setup.start().await;
    let lie = berth.get(&blob.path(REPO)).range("0-9,9000000-").try_send().await;
    assert!(lie.is_ok_and(|lie| lie.status == 206 && !lie.complete), "a whole lie");
    upstream.behave();
    eventually("the right content", async || {
        let reply = ranges(&berth, &blob, "9000000-,0-9").await;
        reply.complete && reply.status == 206 && {
            expect_parts(&reply, &blob, &[(9_000_000, 16 << 20), (0, 10)]);
            true
        }
    })
    .await;
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

#[tokio::test]
async fn conditions_and_heads_are_answered_as_for_one_range() {
    let (_upstream, setup, blob) = with_blob(100_000).await;
    let berth = setup.start().await;
    for _ in 0..2 {
        let ask = || berth.get(&blob.path(REPO)).range("0-9,20-29");
        let tag = format!("\"{}\"", blob.digest);
        assert_eq!(ask().header("if-range", "\"sha256:other\"").await.expect(200), &blob.content);
        expect_parts(&ask().header("if-range", &tag).await, &blob, &[(0, 10), (20, 30)]);
        assert_eq!(ask().header("if-none-match", &tag).await.status, 304);
        let head = berth.head(&blob.path(REPO)).range("0-9,20-29").await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("100000")));
        let two_lines = berth.get(&blob.path(REPO)).range("0-9").range("20-29").await;
        assert_eq!(two_lines.expect(200), &blob.content);
        let many = "0-0,".repeat(2000);
        let other = berth.get(&blob.path(REPO)).range(&many).header("if-range", "\"sha256:other\"").await;
        assert_eq!(other.expect(200), &blob.content);
    }
}

#[tokio::test]
async fn of_nothing_they_are_everything() {
    let (_upstream, setup, blob) = with_blob(0).await;
    let berth = setup.start().await;
    for _ in 0..2 {
        let reply = ranges(&berth, &blob, "0-,5-9").await;
        assert_eq!((reply.expect(200).len(), reply.header("content-length")), (0, Some("0")));
    }
}

#[tokio::test]
async fn their_bytes_are_counted_and_limited_with_what_frames_them() {
    let (_upstream, setup, blob) = with_blob(1 << 20).await;
    let setup = setup.sections("[http.limits]\nbytes_per_second = \"100KiB\"");
    let berth = setup.start().await;
    let before = berth.metric("berth_sent_bytes_total").await;
    let reply = ranges(&berth, &blob, "0-99999,200000-299999,100-199").await;
    expect_parts(&reply, &blob, &[(0, 100_000), (200_000, 300_000), (100, 200)]);
    let sent = berth.metric("berth_sent_bytes_total").await - before;
    assert_eq!(sent, reply.body.len() as f64);
    assert!(berth.metric("berth_client_limited_total").await >= 1.0);
    let line = format!("\"bytes\":{}", reply.body.len());
    berth.until_logged(&line).await;
}

#[tokio::test]
async fn whoever_reads_parts_of_a_damaged_file_is_cut() {
    let (upstream, setup, blob) = with_blob(60 << 20).await;
    let berth = stored(setup, &blob).await;
    folder::rot(&folder::blob(berth.data_dir(), &blob.digest));
    let mut slow = berth.get(&blob.path(REPO)).range("0-30000000,31000000-60000000").open().await;
    slow.bytes(1000).await;
    for _ in 0..2 {
        let _ = berth.get(&blob.path(REPO)).try_send().await;
    }
    assert!(!slow.read().await.complete);
    upstream.forget();
    let reply = ranges(&berth, &blob, "0-9,500-509").await;
    expect_parts(&reply, &blob, &[(0, 10), (500, 510)]);
    assert_eq!(upstream.count("GET", "/blobs/"), 1, "it is fetched anew");
}

#[tokio::test]
async fn a_blob_that_passes_through_is_served_in_parts_whatever_their_order() {
    for ignores_ranges in [false, true] {
        let (upstream, setup, blob) = with_blob(40 << 20).await;
        if ignores_ranges {
            upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
        }
        let berth = setup.sections("max_bytes = \"16MiB\"").start().await;
        let end = blob.content.len();
        let check = async |list: &str, expected: &[(usize, usize)]| {
            upstream.forget();
            expect_parts(&ranges(&berth, &blob, list).await, &blob, expected);
            // The first has found out how large it is.
            upstream.count("GET", "/blobs/") - 1
        };
        assert_eq!(check("0-9,20-29,500000-500009", &[(0, 10), (20, 30), (500_000, 500_010)]).await, 1);
        let far = [(30_000_000, 30_000_010), (30_500_000, 30_500_010), (39_000_000, 39_000_010)];
        let requests = check("30000000-30000009,30500000-30500009,39000000-39000009", &far).await;
        assert!(requests <= 3, "{requests} requests");
        check("30000000-30000009,0-9,-51", &[(30_000_000, 30_000_010), (0, 10), (end - 51, end)]).await;
        check("20000000-20000009,0-9,30000000-", &[(20_000_000, 20_000_010), (0, 10), (30_000_000, end)])
            .await;
        check("39000000-,5-9", &[(39_000_000, end), (5, 10)]).await;
        assert!(!folder::blob(berth.data_dir(), &blob.digest).exists());
        let many: Vec<_> = (0..18).rev().map(|at| format!("{}-{}", at * 9000, at * 9000 + 9)).collect();
        let reply = ranges(&berth, &blob, &many.join(",")).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "RANGE_INVALID"));
        // In order there is no such limit; many that are far from one another are few requests all the same.
        let starts: Vec<usize> = (0..36).map(|at| at * 1_150_000).collect();
        let list: Vec<_> = starts.iter().map(|start| format!("{start}-{}", start + 9)).collect();
        let expected: Vec<_> = starts.iter().map(|start| (*start, start + 10)).collect();
        let requests = check(&list.join(","), &expected).await;
        assert!(requests <= 1 + 16, "{requests} requests");
    }
}

#[tokio::test]
async fn the_proof_of_what_passes_through_is_not_lost_among_ranges() {
    let (upstream, setup, blob) = with_blob(40 << 20).await;
    upstream.on("GET", "/blobs/").fault(Fault::WrongByte(3_000_000));
    let berth = setup.sections("max_bytes = \"16MiB\"").start().await;
    let lie = berth.get(&blob.path(REPO)).range("20000000-20000009,30000000-").try_send().await;
    assert!(lie.is_ok_and(|lie| lie.status == 206 && !lie.complete), "what was left out is proven, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_under_parts_costs_no_reader() {
    let disk = Disk::ext4(128).await;
    let (upstream, setup, blob) = with_blob(40 << 20).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(MIB, gate.clone()));
    let list = "0-2999999,30000000-30000009,10000000-10000009,39000000-";
    let mut open = berth.get(&blob.path(REPO)).range(list).open().await;
    let begun = open.bytes(500_000).await;
    disk.fail().await;
    gate.open();
    let mut reply = open.read().await;
    reply.body = [&begun[..], &reply.body].concat().into();
    let end = blob.content.len();
    expect_parts(
        &reply,
        &blob,
        &[(0, 3_000_000), (30_000_000, 30_000_010), (10_000_000, 10_000_010), (39_000_000, end)],
    );
}

/// What containers/storage asks of a zstd:chunked layer: its table of contents and tar-split data at the end, two ranges;
/// then all chunks that it lacks, in order, in one request; and half as many at a time where that is refused.
#[tokio::test]
async fn a_layer_in_chunks_costs_what_it_costs_upstream() {
    let (upstream, setup, blob) = with_blob(63 << 20).await;
    let berth = setup.start().await;
    let end = blob.content.len();
    let toc = [(end - 180_000, end - 60_000), (end - 60_000, end - 72)];
    // A package in the middle has changed, and some files at the beginning.
    let at_beginning = (0..40).map(|at| 3_000_000 + at * 5_000..3_000_000 + at * 5_000 + 1_800);
    let in_the_middle = (0..100).map(|at| 33_000_000 + at * 21_000..33_000_000 + at * 21_000 + 19_000);
    let chunks: Vec<_> = at_beginning.chain(in_the_middle).map(|chunk| (chunk.start, chunk.end)).collect();
    let list = |parts: &[(usize, usize)]| {
        let each: Vec<_> = parts.iter().map(|(start, end)| format!("{start}-{}", end - 1)).collect();
        each.join(",")
    };
    let mut wanted = 0;
    for parts in [&toc[..], &chunks] {
        let reply = ranges(&berth, &blob, &list(parts)).await;
        expect_parts(&reply, &blob, parts);
        wanted += parts.iter().map(|(start, end)| end - start).sum::<usize>();
    }
    let sent = berth.metric("berth_sent_bytes_total").await;
    assert!(sent <= wanted as f64 + 142.0 * 200.0, "{sent} bytes for {wanted}");
    // As single ranges would: by mebibytes.
    assert!(upstream.bytes_sent(&blob.digest) <= 6 * MIB, "{:?}", ranges_asked(&upstream, &blob));
    assert!(upstream.count("GET", "/blobs/") <= 3, "{:?}", ranges_asked(&upstream, &blob));
}

/// An upstream that does not say how long this blob is, and sends all of it whatever is asked.
async fn without_length(len: usize) -> (Upstream, Setup, Blob) {
    let (upstream, setup, blob) = with_blob(len).await;
    upstream.on("HEAD", "/blobs/").fault(Fault::Status(404));
    upstream.on("GET", "/blobs/").fault(Fault::Chunked);
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    (upstream, setup, blob)
}

#[tokio::test]
async fn a_blob_without_a_length_is_served_in_the_same_parts() {
    let (upstream, setup, blob) = without_length(100_000).await;
    let berth = setup.start().await;
    expect_all(&berth, &blob).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn parts_wait_until_it_is_known_where_the_whole_ends() {
    let (upstream, setup, blob) = without_length(1 << 20).await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(500_000, gate.clone()));
    let berth = setup.start().await;
    let parts = tokio::spawn(berth.get(&blob.path(REPO)).range("0-9,1000000-,-10").into_future());
    eventually("it is under way", async || berth.metric("berth_flights").await == 1.0).await;
    gate.open();
    let end = blob.content.len();
    expect_parts(&parts.await.unwrap(), &blob, &[(0, 10), (1_000_000, end), (end - 10, end)]);
}

#[tokio::test]
async fn who_waits_in_vain_for_the_end_gets_everything() {
    let (upstream, setup, blob) = without_length(24 << 20).await;
    let berth = setup.sections("max_bytes = \"8MiB\"").start().await;
    let reply = ranges(&berth, &blob, "0-9,500-509").await;
    assert_eq!((reply.status, reply.complete), (200, true));
    assert_eq!(reply.body, blob.content);
    drop(upstream);
}

#[tokio::test]
async fn parts_of_what_calls_itself_a_page_are_held_back_until_it_is_proven() {
    for is_right in [true, false] {
        let (upstream, setup, blob) = with_blob(500_000).await;
        upstream.on("*", "/blobs/").fault(Fault::Header("Content-Type", "text/html".into()));
        if !is_right {
            upstream.on("GET", "/blobs/").fault(Fault::WrongByte(499_999));
        }
        let berth = setup.start().await;
        let reply = ranges(&berth, &blob, "0-9,400000-400009").await;
        if is_right {
            expect_parts(&reply, &blob, &[(0, 10), (400_000, 400_010)]);
        } else {
            assert_eq!(reply.status, 503);
        }
    }
}
