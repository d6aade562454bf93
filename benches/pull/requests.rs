//! Many small requests over connections that stay: one thread, a task for each connection, and no more parsing
//! than it takes to know where an answer ends.
//!
//! Of its own because wrk cannot HEAD, and what is compared should be measured alike.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use crate::client::ACCEPT;
use crate::server::Server;
use crate::table::percentile;
use crate::usage::cpu_seconds;

/// Connections, each with one request under way.
pub(crate) const CONNECTIONS: usize = 32;
/// Room for an answer.
const BUFFER_BYTES: usize = 64 * 1024;
/// No server is silent for so long.
const SILENCE: Duration = Duration::from_secs(30);

/// What came of one turn.
pub(crate) struct Requests {
    pub(crate) count: usize,
    /// Requests per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU time of the server for each.
    pub(crate) cpu_us: f64,
}

/// Asks for one path, by `GET` or `HEAD`, for some time.
pub(crate) fn ask(server: &Server, method: &str, path: &str, window: Duration) -> Requests {
    let cpu_before = cpu_seconds(server.pid);
    let began = Instant::now();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut latencies = LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (method, path) = (method.to_owned(), path.to_owned());
            tasks.spawn_local(keep_asking(server.address, method, path, began + window));
        }
        tasks.join_all().await.concat()
    });
    let seconds = began.elapsed().as_secs_f64();
    let count = latencies.len();
    Requests {
        count,
        rate: count as f64 / seconds,
        p50_ms: percentile(&mut latencies, 0.50),
        p99_ms: percentile(&mut latencies, 0.99),
        cpu_us: (cpu_seconds(server.pid) - cpu_before) * 1e6 / count as f64,
    }
}

/// One connection. Returns the milliseconds that each answer took.
async fn keep_asking(address: SocketAddr, method: String, path: String, until: Instant) -> Vec<f64> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; BUFFER_BYTES];
    // The same for every answer to the same request.
    let mut body_bytes = None;
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut filled = 0;
        loop {
            let reading = timeout(SILENCE, stream.read(&mut buffer[filled..]));
            let count = reading.await.expect("the server answers").unwrap();
            assert!(count > 0, "{method} {path}: no answer");
            filled += count;
            let Some(head) = head_end(&buffer[..filled]) else { continue };
            let body = *body_bytes.get_or_insert_with(|| body_length(&method, &buffer[..head]));
            if filled >= head + body {
                assert!(buffer.starts_with(b"HTTP/1.1 200 ") && filled == head + body, "{method} {path}");
                break;
            }
        }
        latencies.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    latencies
}

fn head_end(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4)
}

fn body_length(method: &str, head: &[u8]) -> usize {
    if method == "HEAD" {
        return 0;
    }
    let head = String::from_utf8_lossy(head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    length.unwrap_or_else(|| panic!("no length: {head}"))
}
