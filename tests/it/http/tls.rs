//! TLS at the data plane: certificates that change, clients that must show one, strangers.

use std::fs;

use tokio::net::TcpStream;

use crate::support::process::heavy;
use crate::support::{Berth, Certificate, Image, Upstream, eventually, file_of, get, raw};

const REPO: &str = "library/alpine";

async fn alpine() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[300_000]);
    upstream.image(REPO, "3", &image);
    (upstream, image)
}

/// As a renewal does, with `files` of the other one.
fn renew(certificate: &Certificate, other: &Certificate, files: &[&str]) {
    for file in files {
        let [from, to] = [other, certificate].map(|it| it.ca().with_file_name(file));
        fs::copy(from, to).unwrap();
    }
}

#[tokio::test]
async fn an_image_is_pulled_over_tls() {
    let (upstream, image) = alpine().await;
    let certificate = Certificate::new();
    let berth = Berth::with("docker.io", &upstream).tls(&certificate).start().await;
    berth.pull(REPO, "3", &image).await;
    berth.pull(REPO, "3", &image).await;
    let stranger = Certificate::new();
    assert!(get(berth.url("/v2/")).trusting(&stranger.ca()).try_send().await.is_err());
}

#[tokio::test]
async fn a_certificate_that_is_replaced_on_disk_is_used_without_a_restart() {
    let (upstream, _) = alpine().await;
    let (certificate, next) = (Certificate::new(), Certificate::new());
    let first_ca = file_of(&fs::read_to_string(certificate.ca()).unwrap());
    let berth = Berth::with("docker.io", &upstream).tls(&certificate).start().await;
    let accepted = async |ca: &std::path::Path| get(berth.url("/v2/")).trusting(ca).try_send().await.is_ok();
    assert!(accepted(&first_ca).await);
    // Only half of it: the pair in use stays.
    renew(&certificate, &next, &["cert.pem"]);
    berth.until_logged("cannot be used").await;
    assert!(accepted(&first_ca).await);
    renew(&certificate, &next, &["key.pem"]);
    eventually("the next one is in use", async || accepted(&next.ca()).await).await;
    assert!(!accepted(&first_ca).await);
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_are_served() {
    let (upstream, image) = alpine().await;
    let (server, clients, stranger) = (Certificate::new(), Certificate::new(), Certificate::new());
    let (cert, key, client_ca) = (server.cert(), server.key(), clients.ca());
    let berth = Berth::with("docker.io", &upstream)
        .http(&format!("tls = {{ cert = {cert:?}, key = {key:?}, client_ca = {client_ca:?} }}"))
        .start()
        .await;
    let url = format!("https://{}{}", berth.address(), image.layer().path(REPO));
    assert!(get(&url).trusting(&server.ca()).try_send().await.is_err(), "without a certificate");
    assert!(get(&url).trusting(&server.ca()).showing(&stranger).try_send().await.is_err());
    let reply = get(&url).trusting(&server.ca()).showing(&clients).await;
    assert_eq!(reply.expect(200), &image.layer().content);
}

#[tokio::test]
async fn whoever_does_not_speak_tls_harms_nobody() {
    let (upstream, _) = alpine().await;
    let certificate = Certificate::new();
    let berth = Berth::with("docker.io", &upstream).tls(&certificate).start().await;
    let answer = raw(berth.address(), b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(berth.address()).await.unwrap());
    }
    berth.get("/v2/").await.expect(200);
}

/// Resident memory of a process.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Waits until it is about the same for a while.
async fn resident_kib_at_rest(pid: u32) -> u64 {
    const LOOKS: usize = 50;
    let (mut last, mut same) = (0, 0);
    eventually("memory is at rest", async || {
        let now = resident_kib(pid);
        same = if now.abs_diff(last) <= 64 { same + 1 } else { 0 };
        last = now;
        same >= LOOKS
    })
    .await;
    last
}

/// F15 of the attacks.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_cost_little_memory_each() {
    const READERS: usize = 300;
    let _turn = heavy().await;
    let upstream = Upstream::start().await;
    let image = Image::of(7, &[16 << 20]);
    upstream.image(REPO, "3", &image);
    let certificate = Certificate::new();
    let path = image.layer().path(REPO);
    // More than the kernel keeps for a reader by itself.
    for taken in [0, 9 << 20] {
        let berth = Berth::with("docker.io", &upstream).tls(&certificate).start().await;
        berth.pull(REPO, "3", &image).await;
        let before = resident_kib_at_rest(berth.pid()).await;
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut reader = berth.get(&path).open().await;
            assert_eq!(reader.bytes(taken).await, image.layer().content[..taken]);
            readers.push(reader);
        }
        let each = resident_kib_at_rest(berth.pid()).await.saturating_sub(before) / READERS as u64;
        assert!(each <= 128, "{each} KiB each after {taken} bytes");
        berth.pull(REPO, "3", &image).await;
    }
}
