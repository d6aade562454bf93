//! Heads of requests that programs disagree about (F21 of the attacks): refused, or the last of their connection.

use crate::support::{Berth, Image, Upstream, eventually, raw};

const REPO: &str = "library/alpine";
const HOST: &str = "Host: localhost\r\n";

async fn alpine() -> (Upstream, Berth) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "3", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    berth.pull(REPO, "3", &image).await;
    (upstream, berth)
}

/// The status of every answer to these bytes, until berth closes the connection.
async fn statuses(address: std::net::SocketAddr, bytes: &str) -> Vec<String> {
    let answer = raw(address, bytes.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_request_has_one_host_one_length_and_one_end() {
    let (upstream, berth) = alpine().await;
    upstream.forget();
    let get = format!("GET /v2/{REPO}/manifests/3 HTTP/1.1\r\n");
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    // Whatever comes behind it on its connection is not answered.
    let behind = format!("GET /v2/_catalog HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
    for (rest, expected) in [
        ("\r\n".to_owned(), "400"),
        (format!("{HOST}{HOST}\r\n"), "400"),
        (format!("{HOST}Host: docker.io\r\n\r\n"), "400"),
        ("Host: a, b\r\n\r\n".to_owned(), "400"),
        ("Host: user@localhost\r\n\r\n".to_owned(), "400"),
        ("Host: ]:::[%00/../..\r\n\r\n".to_owned(), "400"),
        (format!("{HOST}Transfer-Encoding: chunked, chunked\r\n\r\n{chunks}"), "400"),
        (format!("{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), "400"),
        (format!("{HOST}Transfer-Encoding: gzip, chunked\r\n\r\n{chunks}"), "400"),
        (format!("{HOST}Transfer-Encoding: chunked, identity\r\n\r\n{chunks}"), "400"),
        (format!("{HOST}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), "400"),
        (format!("{HOST}Content-Length: +5\r\n\r\nhello"), "400"),
        (format!("{HOST}X: y\r\n folded\r\n\r\n"), "400"),
        // hyper does not show these.
        (format!("{HOST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), "200"),
        (format!("{HOST}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{chunks}"), "200"),
        (format!("{HOST}X: y\nZ: z\r\n\r\n"), "200"),
        (format!("{HOST}X: y\r\n\n"), "200"),
    ] {
        let seen = statuses(berth.address(), &format!("{get}{rest}{behind}")).await;
        assert_eq!(seen, [expected], "{rest:?}");
    }
    let bare = format!("GET /v2/ HTTP/1.1\n{HOST}\r\n");
    assert_eq!(statuses(berth.address(), &format!("{bare}{behind}")).await, ["200"]);
    for twice in ["GET /v2/ HTTP/1.0\r\nHost: localhost\r\nHost: docker.io\r\n\r\n"] {
        assert_eq!(statuses(berth.address(), twice).await, ["400"]);
    }
    let admin = format!("GET /metrics HTTP/1.1\r\n{HOST}{HOST}\r\n");
    assert_eq!(statuses(berth.listener("admin"), &admin).await, ["400"]);
    assert_eq!(upstream.requests().len(), 0);
    berth.until_logged("programs disagree").await;
}

#[tokio::test]
async fn what_is_unusual_and_clear_is_answered() {
    let (_upstream, berth) = alpine().await;
    let ends = "Connection: close\r\n\r\n";
    for (head, rest) in [
        (format!("GET /v2/ HTTP/1.1\r\n{HOST}"), ""),
        ("GET /v2/ HTTP/1.1\r\nHost: localhost:5000\r\n".to_owned(), ""),
        ("GET /v2/ HTTP/1.1\r\nHost: [::1]:5000\r\n".to_owned(), ""),
        ("GET /v2/ HTTP/1.0\r\n".to_owned(), ""),
        (format!("GET /v2/ HTTP/1.1\r\n{HOST}Content-Length: 5\r\n"), "hello"),
        (format!("GET /v2/ HTTP/1.1\r\n{HOST}Transfer-Encoding: Chunked\r\n"), "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let seen = statuses(berth.address(), &format!("{head}{ends}{rest}")).await;
        assert_eq!(seen, ["200"], "{head:?}");
    }
    // Two on one connection, as ever.
    let two = format!("GET /v2/ HTTP/1.1\r\n{HOST}\r\nGET /v2/ HTTP/1.1\r\n{HOST}{ends}");
    assert_eq!(statuses(berth.address(), &two).await, ["200", "200"]);
}

#[tokio::test]
async fn a_head_may_have_thirty_two_kibibytes_and_not_one_more() {
    let (_upstream, berth) = alpine().await;
    let head = |bytes: usize| {
        let (start, end) = (format!("GET /v2/ HTTP/1.1\r\n{HOST}Connection: close\r\nX: "), "\r\n\r\n");
        let value = "y".repeat(bytes - start.len() - end.len());
        format!("{start}{value}{end}")
    };
    for (bytes, expected) in [(32 << 10, "200"), ((32 << 10) + 1, "431"), (40_000, "431"), (70_000, "431")] {
        assert_eq!(statuses(berth.address(), &head(bytes)).await, [expected], "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_told_of_and_counted_and_nothing_of_it_is_shown() {
    let (_upstream, berth) = alpine().await;
    let refused = async || berth.metric("berth_refusals_total{reason=\"bad_request\"}").await;
    for (number, bytes) in [
        // TLS towards a port without it.
        "\x16\x03\x01\x02\0\x01\0\x01\x7f hush-hush \r\n\r\n".to_owned(),
        format!("GET /v2/ HTTP/1.1\r\n{HOST}hush-hush\r\n\r\n"),
        format!("GET /v2/{} HTTP/1.1\r\n{HOST}\r\n", "hush-hush".repeat(10_000)),
    ]
    .iter()
    .enumerate()
    {
        statuses(berth.address(), bytes).await;
        eventually("it is counted", async || refused().await == number as f64 + 1.0).await;
    }
    berth.until_logged("a request could not be read").await;
    assert!(!berth.logs_contain("hush-hush"));
}
