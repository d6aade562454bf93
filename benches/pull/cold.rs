//! Many clients want one blob that nobody has yet, half of them when the transfer is under way.
//!
//! Upstream sends 50 MB/s on each connection, 200 ms after it was asked. Each fan-out meets a new server with
//! an empty folder, so that each figure is of one fan-out alone.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::Plan;
use crate::client::{Client, Got};
use crate::server::{Kind, REPOSITORY};
use crate::support::{Blob, Fault, Image, Upstream};
use crate::table::{median, print};
use crate::usage;

const SERVERS: [Kind; 3] = [Kind::Berth, Kind::NginxCache, Kind::Distribution];
const CLIENTS: [usize; 3] = [1, 8, 64];
/// Of upstream, on each connection.
const BYTES_PER_SECOND: u64 = 50_000_000;
/// Of upstream, to the first byte.
const DELAY: Duration = Duration::from_millis(200);
/// The part of a direct download after which the second half of the clients comes: about 1 s of the full plan.
const JOIN_AFTER: f64 = 0.35;

/// What came of one fan-out.
struct Figures {
    upstream_gets: f64,
    /// Bytes that upstream sent for each byte of the blob.
    upstream_ratio: f64,
    /// Of the late client that waited longest.
    late_first_byte: f64,
    /// Until all are served.
    all_done: f64,
    peak_memory: f64,
}

pub(crate) fn run(runtime: &Runtime, plan: &Plan) {
    let upstream = runtime.block_on(Upstream::start());
    let image = Image::of(1, &[plan.cold_bytes]);
    upstream.image(REPOSITORY, "latest", &image);
    upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let blob = image.layer();

    let mut direct = Vec::new();
    let mut figures: Vec<(usize, Kind, Figures)> = Vec::new();
    for round in 0..plan.cold_rounds {
        direct.push(fan_out(upstream.address(), blob, 1, Duration::ZERO).0);
        let join_after = Duration::from_secs_f64(direct[0] * JOIN_AFTER);
        for clients in CLIENTS {
            for turn in 0..SERVERS.len() {
                let kind = SERVERS[(turn + round) % SERVERS.len()];
                let server = kind.start(runtime, &upstream, &image);
                upstream.forget();
                let ((all_done, late_first_byte), peak) =
                    usage::peak_memory(server.pid, || fan_out(server.address, blob, clients, join_after));
                let result = Figures {
                    upstream_gets: upstream.count("GET", "/blobs/") as f64,
                    upstream_ratio: upstream.bytes_sent(&blob.digest) as f64 / blob.len() as f64,
                    late_first_byte,
                    all_done,
                    peak_memory: peak as f64 / f64::from(1 << 20),
                };
                eprintln!("cold, {clients} clients, {}: {all_done:.2} s", kind.name());
                figures.push((clients, kind, result));
            }
        }
    }
    show(plan, median(direct), &figures);
}

/// Seconds until all clients are served, and until the slowest of those that came late had its first byte.
fn fan_out(address: SocketAddr, blob: &Blob, clients: usize, join_after: Duration) -> (f64, f64) {
    let path = blob.path(REPOSITORY);
    let together = Barrier::new(clients + 1);
    let late = clients / 2;
    thread::scope(|scope| {
        let client = |number: usize| {
            let (path, together) = (&path, &together);
            scope.spawn(move || {
                together.wait();
                if number < late {
                    thread::sleep(join_after);
                }
                Client::connect(address).get(path)
            })
        };
        let running: Vec<_> = (0..clients).map(client).collect();
        together.wait();
        let began = Instant::now();
        let got: Vec<Got> = running.into_iter().map(|client| client.join().unwrap()).collect();
        let all_done = began.elapsed().as_secs_f64();
        assert!(got.iter().all(|got| got.bytes == blob.len()));
        // A single client is early and late at once.
        let first_byte = got[..late.max(1)].iter().map(|got| got.first_byte).max();
        (all_done, first_byte.unwrap_or_default().as_secs_f64())
    })
}

fn show(plan: &Plan, direct: f64, figures: &[(usize, Kind, Figures)]) {
    let mut rows = Vec::new();
    for clients in CLIENTS {
        for kind in SERVERS {
            let of = |figure: fn(&Figures) -> f64| {
                let own = figures.iter().filter(|(count, server, _)| *count == clients && *server == kind);
                median(own.map(|(_, _, result)| figure(result)))
            };
            let all_done = of(|it| it.all_done);
            rows.push(vec![
                clients.to_string(),
                kind.name().to_owned(),
                format!("{:.0}", of(|it| it.upstream_gets)),
                format!("{:.2}×", of(|it| it.upstream_ratio)),
                format!("{:.0} ms", of(|it| it.late_first_byte) * 1e3),
                format!("{all_done:.1} s ({:.2}×)", all_done / direct),
                format!("{:.0} MiB", of(|it| it.peak_memory)),
            ]);
        }
    }
    let title = format!(
        "**Cold fan-out**: a blob of {} MiB, upstream 50 MB/s after 200 ms, half of the clients join after {:.1} s; one \
         direct download takes {direct:.2} s",
        plan.cold_bytes >> 20,
        direct * JOIN_AFTER
    );
    let head = [
        "clients",
        "",
        "GETs at upstream",
        "bytes from upstream",
        "first byte of the last to join",
        "all done (direct = 1)",
        "anonymous memory",
    ];
    print(&title, &head, &rows);
}
