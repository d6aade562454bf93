//! Many small requests over connections that stay: one thread, a task for each connection, and no more parsing
//! than it takes to know where an answer ends.
//!
//! Of its own because wrk cannot HEAD, and what is compared should be measured alike.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use crate::client::ACCEPT;
use crate::server::Server;
use crate::table::percentile;
use crate::usage::{CPU_COUNTABLE, TURN_DEADLINE, TURN_GOES_ON, cpu_seconds};

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

/// Asks for one path, by `GET` or `HEAD`, for some time from when all are connected, and until there is
/// something to count.
pub(crate) fn ask(server: &Server, method: &str, path: &str, window: Duration) -> Requests {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            streams.push(TcpStream::connect(server.address).await.unwrap());
        }
        let (cpu_before, began) = (cpu_seconds(server.pid), Instant::now());
        let done = Rc::new(Cell::new(false));
        let mut tasks = JoinSet::new();
        for stream in streams {
            let (method, path) = (method.to_owned(), path.to_owned());
            tasks.spawn_local(keep_asking(stream, method, path, Rc::clone(&done)));
        }
        sleep(window).await;
        while cpu_seconds(server.pid) - cpu_before < CPU_COUNTABLE && began.elapsed() < TURN_DEADLINE {
            sleep(TURN_GOES_ON).await;
        }
        done.set(true);
        let mut latencies = tasks.join_all().await.concat();
        let (cpu, seconds) = (cpu_seconds(server.pid) - cpu_before, began.elapsed().as_secs_f64());
        assert!(cpu > 0.0, "nothing to count of {} in {seconds:.0} s", server.kind.name());
        let count = latencies.len();
        Requests {
            count,
            rate: count as f64 / seconds,
            p50_ms: percentile(&mut latencies, 0.50),
            p99_ms: percentile(&mut latencies, 0.99),
            cpu_us: cpu * 1e6 / count as f64,
        }
    })
}

/// One connection, with one request at least. Returns the milliseconds that each answer took.
async fn keep_asking(mut stream: TcpStream, method: String, path: String, done: Rc<Cell<bool>>) -> Vec<f64> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n");
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; BUFFER_BYTES];
    // The same for every answer to the same request.
    let mut body_bytes = None;
    let mut latencies = Vec::new();
    loop {
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
        if done.get() {
            return latencies;
        }
    }
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
