//! Signals, and the end: what a supervisor and the clients see of a stop (D2: also a client that fetches a blob in parts).

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Berth, Blob, Fault, Gate, Image, Open, Setup, Upstream, eventually, within_deadline};

const REPO: &str = "library/big";

/// A body of 4 MiB under way, of which upstream sends the first one and then waits for the gate.
async fn body_under_way(setup: impl FnOnce(Setup) -> Setup) -> (Upstream, Berth, Blob, Open, Gate) {
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[4 << 20]);
    upstream.image(REPO, "1", &image);
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, gate.clone()));
    let berth = setup(Berth::with("docker.io", &upstream)).start().await;
    let blob = image.layer().clone();
    let mut open = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(open.bytes(1000).await, blob.content.slice(..1000));
    (upstream, berth, blob, open, gate)
}

/// While a body goes on, what is new is refused with words.
async fn until_stopping(berth: &Berth) {
    eventually("what is new is refused", async || berth.get("/v2/").await.status == 503).await;
}

#[tokio::test]
async fn a_body_under_way_is_finished_and_nothing_new_begins() {
    let (_upstream, mut berth, blob, open, gate) = body_under_way(|setup| setup).await;
    assert_eq!(berth.admin("/readyz").await.status, 200);
    berth.signal(Signal::TERM);
    eventually("it is not ready", async || berth.admin("/readyz").await.status == 503).await;
    assert_eq!(berth.admin("/healthz").await.status, 200);
    until_stopping(&berth).await;
    gate.open();
    assert_eq!(open.read().await.expect(200), &blob.content.slice(1000..));
    assert_eq!(berth.exit().await.code, Some(0));
    assert!(berth.logs_contain("drained"));
}

/// As containerd does with several workers on one layer: each asks for its next part over a new connection, as its old one
/// is closed, and never of another host.
#[tokio::test]
async fn a_client_that_fetches_a_blob_in_parts_gets_all_of_them_while_berth_stops() {
    for is_stored in [false, true] {
        let upstream = Upstream::start().await;
        let (image, other) = (Image::of(7, &[24 << 20]), Image::of(8, &[1000]));
        upstream.image(REPO, "1", &image).image(REPO, "2", &other);
        let mut berth = Berth::with("docker.io", &upstream).start().await;
        let (blob, path) = (image.layer(), image.layer().path(REPO));
        if is_stored {
            assert_eq!(berth.get(&path).await.expect(200), &blob.content);
        }
        berth.pull(REPO, "2", &other).await;
        let part = |number: u64| {
            let (first, last) = (number << 20, ((number + 1) << 20) - 1);
            (
                berth.get(&path).range(&format!("{first}-{last}")),
                blob.content.slice(first as usize..=last as usize),
            )
        };
        // Larger than what the sockets take, so that it goes on until it is read.
        let slow = berth.get(&path).open().await;
        berth.signal(Signal::TERM);
        until_stopping(&berth).await;
        for number in 0..8 {
            let (ask, expected) = part(number);
            let reply = ask.await;
            assert_eq!(reply.expect(206), &expected, "part {number}, stored: {is_stored}");
            assert_eq!(reply.header("connection"), Some("close"));
        }
        for path in [format!("/v2/{REPO}/manifests/2"), other.path(REPO)] {
            let reply = berth.get(&path).await;
            assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{path}");
            assert_eq!(reply.header("connection"), Some("close"));
        }
        assert_eq!(slow.read().await.expect(200), &blob.content);
        // The last part was read a moment ago: there may be a next one.
        let (ask, expected) = part(0);
        assert_eq!(ask.await.expect(206), &expected);
        assert_eq!(berth.exit().await.code, Some(0));
    }
}

#[tokio::test]
async fn a_connection_that_comes_late_and_says_nothing_does_not_hold_up_the_end() {
    let (_upstream, mut berth, blob, open, gate) =
        body_under_way(|setup| setup.http("drain_seconds = 600")).await;
    berth.signal(Signal::TERM);
    until_stopping(&berth).await;
    let _silent = TcpStream::connect(berth.address()).await.unwrap();
    let mut half = TcpStream::connect(berth.address()).await.unwrap();
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHost:").await.unwrap();
    gate.open();
    assert_eq!(open.read().await.expect(200), &blob.content.slice(1000..));
    assert_eq!(berth.exit().await.code, Some(0));
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_cut() {
    let (_upstream, mut berth, _, open, _gate) =
        body_under_way(|setup| setup.http("drain_seconds = 1")).await;
    berth.signal(Signal::TERM);
    assert!(!open.read().await.complete);
    assert_eq!(berth.exit().await.code, Some(0));
    assert!(berth.logs_contain("did not finish in time"));
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let (_upstream, mut berth, _, open, _gate) =
        body_under_way(|setup| setup.http("drain_seconds = 600")).await;
    berth.signal(Signal::TERM);
    until_stopping(&berth).await;
    berth.signal(Signal::TERM);
    assert!(!open.read().await.complete);
    assert_eq!(berth.exit().await.code, Some(0));
}

#[tokio::test]
async fn what_was_cut_is_resumed_after_the_next_start() {
    let (upstream, mut berth, blob, _open, gate) =
        body_under_way(|setup| setup.http("drain_seconds = 0")).await;
    let pulled = "registry_proxy_pulled_bytes_total{type=\"blob\"}";
    eventually("a part is here", async || berth.metric(pulled).await >= f64::from(1 << 20)).await;
    berth.stop().await;
    gate.open();
    berth.start_again().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "no byte was asked twice");
}

#[tokio::test]
async fn connections_at_rest_do_not_hold_up_the_end() {
    let upstream = Upstream::start().await;
    let mut berth = Berth::with("docker.io", &upstream).http("drain_seconds = 600").start().await;
    let mut resting = TcpStream::connect(berth.address()).await.unwrap();
    resting.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    resting.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let _silent = TcpStream::connect(berth.address()).await.unwrap();
    let mut half = TcpStream::connect(berth.address()).await.unwrap();
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHost:").await.unwrap();
    // All three were accepted before the signal.
    berth.get("/v2/").await.expect(200);
    berth.stop().await;
}

#[tokio::test]
async fn sighup_does_not_cut_a_drain_short() {
    let (_upstream, mut berth, blob, open, gate) = body_under_way(|setup| setup).await;
    berth.signal(Signal::TERM);
    until_stopping(&berth).await;
    berth.signal(Signal::HUP);
    berth.until_logged("SIGHUP").await;
    gate.open();
    assert_eq!(open.read().await.expect(200), &blob.content.slice(1000..));
    assert_eq!(berth.exit().await.code, Some(0));
}

#[tokio::test]
async fn the_supervisor_is_told_when_it_serves_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let told = move || {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).expect("systemd is told in time");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let upstream = Upstream::start().await;
    let setup = Berth::with("docker.io", &upstream).env("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut berth = setup.start().await;
    let (ready, told) = tokio::task::spawn_blocking(move || (told(), told)).await.unwrap();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    berth.get("/v2/").await.expect(200);
    berth.signal(Signal::TERM);
    let stopping = within_deadline("STOPPING", tokio::task::spawn_blocking(told)).await.unwrap();
    assert!(stopping.lines().any(|line| line == "STOPPING=1"), "{stopping}");
    assert_eq!(berth.exit().await.code, Some(0));
}
