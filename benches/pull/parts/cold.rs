//! Many clients want one blob that nobody has yet, half of them when the transfer is under way: what is asked
//! of upstream, when has who joins late the first byte, when are all served, and at what cost?
//!
//! Upstream sends 50 MB/s on each connection, 200 ms after it was asked. Each fan-out meets a new server with
//! an empty folder, so that each figure is of one fan-out alone. Two of the clients prove the digest. berth then
//! serves the same clients once more, from disk: what the machine can do at all.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use berth::oci::{Algorithm, Verifier};

use crate::Bench;
use crate::bars::Better;
use crate::client::{Client, Got};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY};
use crate::support::{Blob, Fault, Image};
use crate::table::{median, print};
use crate::usage::{cpu_seconds, watch};

const SERVERS: &[Kind] =
    &[Kind::Berth, Kind::NginxCache, Kind::Varnish, Kind::TrafficServer, Kind::Distribution];
const CLIENTS: [usize; 3] = [1, 8, 64];
/// Of upstream, on each connection.
pub(crate) const BYTES_PER_SECOND: u64 = 50_000_000;
/// Of upstream, to the first byte.
pub(crate) const DELAY: Duration = Duration::from_millis(200);
/// The part of the transfer, behind the first byte, after which the second half of the clients comes: 1.5 s from
/// the beginning, of the full plan.
const JOIN_AFTER: f64 = 0.25;
const SCENARIO: &str = "cold fan-out, 64 clients";

/// What came of one fan-out.
struct Figures {
    upstream_gets: f64,
    /// Bytes that upstream sent for each byte of the blob.
    upstream_ratio: f64,
    fan: Fan,
    cpu_per_gb: f64,
    anonymous_mib: f64,
    /// Bytes of disk for each byte of the blob, at most, if they are counted.
    disk_ratio: f64,
    /// Seconds that the same clients take once it is there, if that is measured.
    hot: f64,
}

/// What the clients saw of it.
struct Fan {
    /// Seconds until all are served.
    all_done: f64,
    /// Of the client that waited longest among those who came first, and among those who came late.
    early_first_byte: f64,
    late_first_byte: f64,
}

/// Figures of one server with some clients, in any order.
type Results = Vec<(usize, Kind, Figures)>;

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let image = Image::of(3, &[plan.cold_bytes]);
    scene.hold(&image);
    scene.upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    scene.upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let blob = image.layer();

    let kinds = bench.compared(SERVERS);
    let mut direct = Vec::new();
    let mut results = Results::new();
    for round in 0..plan.cold_rounds {
        direct.push(fan_out(scene.upstream.address(), blob, 1, Duration::ZERO).all_done);
        let join_after = DELAY + Duration::from_secs_f64(direct[0]).saturating_sub(DELAY).mul_f64(JOIN_AFTER);
        for clients in CLIENTS {
            for turn in 0..kinds.len() {
                let kind = kinds[(turn + round) % kinds.len()];
                let figures = meet(bench, &scene, kind, blob, clients, join_after);
                eprintln!("cold, {clients} clients, {}: {:.2} s", kind.name(), figures.fan.all_done);
                results.push((clients, kind, figures));
            }
        }
    }
    let direct = median(direct);
    show(bench, direct, &results);
    if bench.is_against_before() {
        CLIENTS.into_iter().for_each(|clients| compare(bench, clients, &results));
    } else {
        hold_to_bars(bench, direct, &results);
    }
}

/// One fan-out from a new server.
fn meet(
    bench: &Bench,
    scene: &Scene,
    kind: Kind,
    blob: &Blob,
    clients: usize,
    join_after: Duration,
) -> Figures {
    let server = kind.start(bench, scene);
    scene.upstream.forget();
    let cpu_before = cpu_seconds(server.pid);
    let (fan, peak) =
        watch(server.pid, server.folder.as_deref(), || fan_out(server.address, blob, clients, join_after));
    let cpu = cpu_seconds(server.pid) - cpu_before;
    let upstream_gets = scene.upstream.count("GET", "/blobs/") as f64;
    let upstream_ratio = scene.upstream.bytes_sent(&blob.digest) as f64 / blob.len() as f64;
    let hot = match kind {
        kind if Kind::OF_BERTH.contains(&kind) => {
            fan_out(server.address, blob, clients, Duration::ZERO).all_done
        }
        _ => f64::NAN,
    };
    Figures {
        upstream_gets,
        upstream_ratio,
        fan,
        cpu_per_gb: cpu / (blob.len() as f64 * clients as f64 / 1e9),
        anonymous_mib: peak.anonymous as f64 / f64::from(1 << 20),
        disk_ratio: server.folder.map_or(f64::NAN, |_| peak.disk as f64 / blob.len() as f64),
        hot,
    }
}

/// The clients with the lower numbers come late; the first and the last prove the digest.
fn fan_out(address: SocketAddr, blob: &Blob, clients: usize, join_after: Duration) -> Fan {
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
                let proves = number == 0 || number == clients - 1;
                if proves { get_proven(address, path, blob) } else { Client::connect(address).get(path) }
            })
        };
        let running: Vec<_> = (0..clients).map(client).collect();
        together.wait();
        let began = Instant::now();
        let got: Vec<Got> = running.into_iter().map(|client| client.join().unwrap()).collect();
        let all_done = began.elapsed().as_secs_f64();
        assert!(got.iter().all(|got| got.bytes == blob.len()));
        let slowest = |got: &[Got]| {
            let slowest = got.iter().map(|got| got.first_byte).max();
            slowest.unwrap_or_default().as_secs_f64()
        };
        // A single client is early and late at once.
        let late_first_byte = slowest(&got[..late.max(1)]);
        Fan { all_done, early_first_byte: slowest(&got[late..]), late_first_byte }
    })
}

fn get_proven(address: SocketAddr, path: &str, blob: &Blob) -> Got {
    let mut verifier = Verifier::new(Algorithm::Sha256);
    let got = Client::connect(address).fetch(path, None, |piece| {
        verifier.update(piece);
        true
    });
    assert_eq!(verifier.finish(), blob.digest, "{path}");
    got
}

fn middle(results: &Results, clients: usize, kind: Kind, figure: fn(&Figures) -> f64) -> f64 {
    let own = results.iter().filter(|(count, server, _)| *count == clients && *server == kind);
    median(own.map(|(_, _, figures)| figure(figures)))
}

fn show(bench: &Bench, direct: f64, results: &Results) {
    let mut rows = Vec::new();
    for clients in CLIENTS {
        for &kind in bench.compared(SERVERS) {
            let of = |figure: fn(&Figures) -> f64| middle(results, clients, kind, figure);
            let all_done = of(|it| it.fan.all_done);
            let if_known = |figure: f64, text: String| if figure.is_nan() { "–".to_owned() } else { text };
            let (hot, disk) = (of(|it| it.hot), of(|it| it.disk_ratio));
            rows.push(vec![
                clients.to_string(),
                kind.name().to_owned(),
                format!("{:.0}", of(|it| it.upstream_gets)),
                format!("{:.2}×", of(|it| it.upstream_ratio)),
                format!("{:.0} ms", of(|it| it.fan.early_first_byte) * 1e3),
                format!("{:.0} ms", of(|it| it.fan.late_first_byte) * 1e3),
                format!("{all_done:.2} s ({:.2}×)", all_done / direct),
                if_known(hot, format!("{hot:.2} s")),
                format!("{:.2}", of(|it| it.cpu_per_gb)),
                format!("{:.0} MiB", of(|it| it.anonymous_mib)),
                if_known(disk, format!("{disk:.2}×")),
            ]);
        }
    }
    let title = format!(
        "**Cold fan-out**: a blob of {} MiB, upstream 50 MB/s after 200 ms, half of the clients join under way; one direct \
         download takes {direct:.2} s",
        bench.plan.cold_bytes >> 20
    );
    let head = [
        "clients",
        "",
        "GETs at upstream",
        "bytes from upstream",
        "first byte, first to come",
        "first byte, last to join",
        "all done (direct = 1)",
        "all done, hot",
        "CPU-seconds per GB",
        "anonymous memory",
        "disk",
    ];
    print(&title, &head, &rows);
}

fn hold_to_bars(bench: &Bench, direct: f64, results: &Results) {
    let of = |figure: fn(&Figures) -> f64| middle(results, 64, Kind::Berth, figure);
    let bars = &bench.bars;
    bars.at_most(SCENARIO, "GETs at upstream", of(|it| it.upstream_gets), 1.0);
    bars.at_most(SCENARIO, "bytes from upstream, of the blob", of(|it| it.upstream_ratio), 1.0);
    bars.at_most(SCENARIO, "first byte of the last to join, ms", of(|it| it.fan.late_first_byte) * 1e3, 50.0);
    let bound = direct.max(of(|it| it.hot));
    let what = "all done, of one direct download or the same clients on the hot blob, whichever is longer";
    bars.at_most(SCENARIO, what, of(|it| it.fan.all_done) / bound, 1.1);
    bars.at_most(SCENARIO, "CPU-seconds per GB served", of(|it| it.cpu_per_gb), 0.35);
    bars.at_most(SCENARIO, "anonymous memory at most, MiB", of(|it| it.anonymous_mib), 64.0);
    bars.at_most(SCENARIO, "disk, of the blob", of(|it| it.disk_ratio), 1.0);
}

fn compare(bench: &Bench, clients: usize, results: &Results) {
    let compare = |what: &str, figure: fn(&Figures) -> f64| {
        let what = format!("{clients} clients: {what}");
        bench
            .bars
            .compare("cold fan-out", &what, Better::Less, |kind| middle(results, clients, kind, figure));
    };
    compare("GETs at upstream", |it| it.upstream_gets);
    compare("bytes from upstream, of the blob", |it| it.upstream_ratio);
    compare("first byte of the first, ms", |it| it.fan.early_first_byte * 1e3);
    compare("first byte of the last to join, ms", |it| it.fan.late_first_byte * 1e3);
    compare("all done, s", |it| it.fan.all_done);
    compare("CPU-seconds per GB", |it| it.cpu_per_gb);
    compare("anonymous memory, MiB", |it| it.anonymous_mib);
    compare("disk, of the blob", |it| it.disk_ratio);
}
