//! Clients that mean no good: what they may cost, and that nobody else is harmed.

use std::net::SocketAddr;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Berth, Fault, Gate, Image, Upstream, eventually, raw, together, within_deadline};

const REPO: &str = "library/alpine";

async fn alpine() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[100_000]);
    upstream.image(REPO, "3", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image)
}

/// The status lines of all answers to these bytes, until berth closes the connection.
async fn statuses(address: SocketAddr, request: &[u8]) -> Vec<String> {
    let answer = raw(address, request).await;
    let text = String::from_utf8_lossy(&answer);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)).map(str::to_owned).collect()
}

/// The bytes of a request that asks for the connection to be closed behind its answer.
fn request(line: &str, rest: &str) -> Vec<u8> {
    format!("{line}\r\nHost: localhost\r\nConnection: close\r\n{rest}\r\n").into_bytes()
}

#[tokio::test]
async fn a_path_that_climbs_out_leads_nowhere() {
    let (upstream, berth, image) = alpine().await;
    berth.pull(REPO, "3", &image).await;
    upstream.forget();
    let digest = image.layer().digest;
    for path in [
        "/v2/../../etc/passwd",
        "/v2/library/alpine/manifests/../../../../etc/passwd",
        "/v2/library/../library/alpine/manifests/3",
        "/v2/library/alpine/manifests/..",
        "/v2/library/alpine/manifests/..%2f..%2fetc%2fpasswd",
        "/v2/%2e%2e/%2e%2e/manifests/3",
        "/v2/library/%2e%2e/manifests/3",
        "/v2/_oci/refs/tags/3",
        "/v2/library/_oci/manifests/3",
        "/v2/library/alpine/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd",
        "/v2/library/alpine/blobs/sha256:../../../../../../../../../../../../../../../../../../../../etc/passwd",
        "/v2//etc/passwd",
        "//etc/passwd",
        "/v2/library/alpine/manifests/3%00",
        "/v2/library/alpine/manifests/%ff%fe",
        "/v2/library/alpine/manifests/.hidden",
    ] {
        for method in ["GET", "HEAD", "DELETE"] {
            let seen = statuses(berth.address(), &request(&format!("{method} {path} HTTP/1.1"), "")).await;
            assert!(
                seen.len() == 1 && ["400", "404", "405"].contains(&&*seen[0]),
                "{method} {path}: {seen:?}"
            );
        }
    }
    for name in ["%6cibrary/alpine/manifests/3", &format!("library/alpine/blobs/sha256%3A{}", digest.hex())] {
        let seen = statuses(berth.address(), &request(&format!("GET /v2/{name} HTTP/1.1"), "")).await;
        assert_eq!(seen, ["200"], "an escape that hides nothing: {name}");
    }
    assert_eq!(upstream.requests().len(), 0, "nothing of that is upstream's business");
}

#[tokio::test]
async fn what_is_too_long_is_refused_and_the_connection_closed() {
    let (_upstream, berth, _) = alpine().await;
    let address = berth.address();
    let long = "a".repeat(900);
    for (bytes, expected) in [
        (request(&format!("GET /v2/{long}/manifests/3 HTTP/1.1"), ""), "400"),
        (request(&format!("GET /v2/x/manifests/{long} HTTP/1.1"), ""), "400"),
        (request(&format!("GET /v2/?ns={long}{long} HTTP/1.1"), ""), "400"),
        (request(&format!("GET /v2/{} HTTP/1.1", "a/".repeat(10_000)), ""), "400"),
        (request(&format!("GET /v2/{} HTTP/1.1", "a".repeat(70_000)), ""), "431"),
        (request("GET /v2/ HTTP/1.1", &format!("X: {}\r\n", "y".repeat(70_000))), "431"),
        (request("GET /v2/ HTTP/1.1", &"X: y\r\n".repeat(200)), "431"),
    ] {
        let start = String::from_utf8_lossy(&bytes[..60]).into_owned();
        let seen = statuses(address, &bytes).await;
        assert!(seen == [expected] || (expected == "431" && seen == ["414"]), "{start}: {seen:?}");
    }
    berth.get("/v2/").await.expect(200);
}

#[tokio::test]
async fn nonsense_instead_of_http_is_refused_and_what_stands_before_it_is_answered() {
    let (_upstream, berth, _) = alpine().await;
    let address = berth.address();
    let fine = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (bytes, expected) in [
        (b"\0\x01\x02\x03 nonsense\r\n\r\n".to_vec(), &["400"][..]),
        (format!("{fine}{fine}\x16\x03\x01 garbage\r\n\r\n").into_bytes(), &["200", "200", "400"]),
        (b"GET /v2/ HTTP/9.9\r\n\r\n".to_vec(), &["400"]),
        (b"GET  /v2/ \r\n\r\n".to_vec(), &["400"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &["400"]),
        (format!("{fine}{}", "x".repeat(100_000)).into_bytes(), &["200", "431"]),
    ] {
        let seen = statuses(address, &bytes).await;
        let is_close = seen == expected || (seen.is_empty() && expected == ["400"]);
        assert!(is_close, "{:?}: {seen:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
    }
    berth.get("/v2/").await.expect(200);
}

#[tokio::test]
async fn unusual_but_right_requests_are_answered() {
    let (_upstream, berth, _) = alpine().await;
    let address = berth.address();
    let manifest = format!("/v2/{REPO}/manifests/3");
    for (line, rest) in [
        ("GET /v2/ HTTP/1.0".to_owned(), ""),
        (format!("GET {manifest} HTTP/1.0"), ""),
        (format!("GET http://docker.io{manifest} HTTP/1.1"), "Host: localhost\r\n"),
        (format!("GET {manifest} HTTP/1.1"), "Host: localhost\r\nContent-Length: 5\r\n\r\nhello"),
        (
            format!("GET {manifest} HTTP/1.1"),
            "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        ),
        (format!("GET {manifest} HTTP/1.1"), "Host: localhost\r\nRange: bytes=99999999999999999999-\r\n"),
        (
            format!("GET {manifest} HTTP/1.1"),
            "Host: localhost\r\nIf-None-Match: \u{ff}\r\nAccept: \u{ff}\r\nAuthorization: \u{ff}\r\n",
        ),
    ] {
        let seen = statuses(address, format!("{line}\r\nConnection: close\r\n{rest}\r\n").as_bytes()).await;
        assert_eq!(seen, ["200"], "{line} {rest}");
    }
}

#[tokio::test]
async fn methods_that_a_mirror_does_not_know_are_405() {
    let (upstream, berth, _) = alpine().await;
    for method in ["OPTIONS", "TRACE", "BREW", "PROPFIND", "POST", "PUT", "PATCH", "DELETE"] {
        for path in ["/v2/", "/v2/library/alpine/manifests/3", "/v2/library/alpine/blobs/uploads/"] {
            let reply = berth.ask(method, path).await;
            assert_eq!((reply.status, &*reply.error_code()), (405, "UNSUPPORTED"), "{method} {path}");
            assert_eq!(reply.header("allow"), Some("GET, HEAD"));
        }
    }
    for line in ["CONNECT registry-1.docker.io:443 HTTP/1.1", "OPTIONS * HTTP/1.1"] {
        let seen = statuses(berth.address(), &request(line, "")).await;
        assert!(seen.len() == 1 && ["400", "404", "405"].contains(&&*seen[0]), "{line}: {seen:?}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_large_push_gets_its_refusal_whole() {
    let (_upstream, berth, _) = alpine().await;
    for length in [1000, 1 << 20, 8 << 20] {
        let reply = berth.ask("PUT", "/v2/library/alpine/manifests/3").body(vec![b'x'; length]).await;
        assert_eq!((reply.status, &*reply.error_code()), (405, "UNSUPPORTED"), "{length} bytes");
    }
    // One that announces much and sends nothing is answered all the same.
    let announced =
        b"PUT /v2/x/manifests/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
    assert_eq!(statuses(berth.address(), announced).await, ["405"]);
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_become_the_next_request() {
    let (_upstream, berth, _) = alpine().await;
    let smuggled =
        "GET /v2/library/alpine/manifests/3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let bytes = format!(
        "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    let after = "GET /v2/_catalog HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = raw(berth.address(), format!("{bytes}{after}").as_bytes()).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(!text.contains("schemaVersion"), "{text}");
    assert!(text.contains("repositories"), "the connection goes on behind the body: {text}");
    let both = "POST /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let seen = statuses(berth.address(), format!("{both}{after}").as_bytes()).await;
    assert_eq!(seen.len(), 1, "two lengths: answered once, then closed: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_at_once_are_all_served() {
    let (upstream, berth, image) = alpine().await;
    let asks = [berth.get(&format!("/v2/{REPO}/manifests/3")), berth.get(&image.layer().path(REPO))];
    let replies = together(200, move |at| asks[at % 2].clone().into_future()).await;
    for (at, reply) in replies.iter().enumerate() {
        let expected = if at % 2 == 0 { &image.manifest } else { &image.layer().content };
        assert_eq!(reply.expect(200), expected);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    assert_eq!(upstream.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn heads_that_never_end_stop_nobody() {
    let (_upstream, berth, image) = alpine().await;
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(berth.address()).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
        slow.push(stream);
    }
    berth.pull(REPO, "3", &image).await;
    drop(slow);
}

#[tokio::test]
async fn one_address_cannot_take_every_seat_and_others_are_turned_away_at_once() {
    let (upstream, image) = (Upstream::start().await, Image::of(1, &[100_000]));
    upstream.image(REPO, "3", &image);
    // What it may have open bounds how many it lets in: the rest is for files.
    let berth = Berth::with("docker.io", &upstream).files(256).start().await;
    let gate = Gate::new();
    upstream.on("*", "/blobs/").fault(Fault::Hold(gate.clone()));
    let path = image.layer().path(REPO);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut crowd = Vec::new();
    for _ in 0..250 {
        let mut stream = TcpStream::connect(berth.address()).await.unwrap();
        // It may have been turned away by then.
        let _ = stream.write_all(request.as_bytes()).await;
        crowd.push(stream);
    }
    berth.until_logged("too many connections").await;
    eventually("250 connections of 256 files are not let in", async || {
        berth.metric("berth_turned_away_total").await >= 150.0
    })
    .await;
    assert_eq!(berth.admin("/readyz").await.status, 200);
    // From another address of this machine there is room.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(berth.address()).await.unwrap();
    other.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    within_deadline("an answer to the other", other.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    gate.open();
    drop(crowd);
    eventually("there is room again", async || {
        berth.get("/v2/").try_send().await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
    assert!(!berth.logs_contain("Too many open files"));
}

#[tokio::test]
async fn without_a_file_for_a_new_connection_it_waits_and_goes_on() {
    let (_upstream, berth, image) = alpine().await;
    berth.pull(REPO, "3", &image).await;
    let pid = Pid::from_raw(berth.pid().cast_signed());
    // No more files than the first one: nothing can be accepted or opened.
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(1), maximum: Some(4096) }).unwrap();
    let mut waiting = TcpStream::connect(berth.address()).await.unwrap();
    waiting.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    berth.until_logged("a connection could not be accepted").await;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(4096), maximum: Some(4096) }).unwrap();
    let mut answer = [0; 12];
    within_deadline("an answer when there are files", waiting.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let complaints = berth.logs().iter().filter(|line| line.contains("could not be accepted")).count();
    assert_eq!(complaints, 1, "the log is not flooded");
    berth.pull(REPO, "3", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_their_body_cost_little_and_stop_nobody() {
    const READERS: u64 = 40;
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[64 << 20]);
    upstream.image(REPO, "3", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    let blob = image.layer();
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200).len() as u64, blob.len());
    let before = berth.peak_memory();
    let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", blob.path(REPO));
    let mut idle = Vec::new();
    for _ in 0..READERS {
        let mut stream = TcpStream::connect(berth.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The first bytes only: the answer is under way.
        stream.read_exact(&mut [0; 12]).await.unwrap();
        idle.push(stream);
    }
    let reply = within_deadline("somebody else", berth.get(&blob.path(REPO))).await;
    assert_eq!(reply.expect(200).len() as u64, blob.len());
    let grown = berth.peak_memory().saturating_sub(before);
    assert!(grown < READERS * (2 << 20), "{grown} bytes for {READERS} readers");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_names_that_are_not_there_are_soon_forgotten() {
    let (upstream, berth, image) = alpine().await;
    berth.pull(REPO, "3", &image).await;
    let flood = async |from: usize| {
        let asks: Vec<_> = (0..2000)
            .map(|at| berth.get(&format!("/v2/library/name-{}-{}/manifests/1", from + at, "x".repeat(150))))
            .collect();
        for chunk in asks.chunks(50) {
            let chunk = chunk.to_vec();
            for reply in together(chunk.len(), move |at| chunk[at].clone().into_future()).await {
                assert_eq!(reply.status, 404);
            }
        }
    };
    flood(0).await;
    let before = berth.peak_memory();
    upstream.forget();
    flood(2000).await;
    upstream.forget();
    flood(4000).await;
    let grown = berth.peak_memory().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes for 4000 names");
    let folder = std::fs::read_dir(berth.data_dir().join("repos/docker.io/library")).unwrap();
    assert_eq!(folder.count(), 1, "names that are not there leave nothing on disk");
    berth.pull(REPO, "3", &image).await;
}
