//! A blob and a manifest that are there: how fast, and for how much CPU time of the server?
//!
//! The clients run on the same cores, so the CPU time says more than the rate.

use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::Plan;
use crate::client::Client;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::{Image, Upstream};
use crate::table::{median, print, with_ratio};
use crate::usage::cpu_seconds;

const SERVERS: [Kind; 3] = [Kind::Berth, Kind::NginxStatic, Kind::Distribution];
/// Bytes of further layers, so that the manifest is as long as that of a usual image.
const SMALL_LAYERS: [usize; 7] = [100; 7];
/// Connections of the blob's clients.
const READERS: usize = 8;
/// Connections of the manifest's clients.
const CONNECTIONS: usize = 32;

/// One turn with the blob: bytes in GB, over seconds and over CPU-seconds.
struct Blob {
    rate: f64,
    cpu_per_gb: f64,
}

/// One turn with the manifest.
struct Manifest {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

/// What came of one turn of a server.
struct Turn {
    kind: Kind,
    blob: Blob,
    manifest: Manifest,
}

pub(crate) fn run(runtime: &Runtime, plan: &Plan) {
    let upstream = runtime.block_on(Upstream::start());
    let image = Image::of(2, &[&[plan.hot_bytes], &SMALL_LAYERS[..]].concat());
    upstream.image(REPOSITORY, "latest", &image);
    let servers = SERVERS.map(|kind| (kind, kind.start(runtime, &upstream, &image)));
    let (blob, manifest) = (image.layer().path(REPOSITORY), image.path(REPOSITORY));
    let length = Duration::from_secs(plan.hot_seconds);
    for (_, server) in &servers {
        let mut client = Client::connect(server.address);
        client.get(&manifest);
        client.get(&blob);
    }
    let mut turns = Vec::new();
    for round in 0..plan.hot_rounds {
        for turn in 0..servers.len() {
            let (kind, server) = &servers[(turn + round) % servers.len()];
            let blob = read_blob(server, &blob, length);
            let manifest = ask_manifest(server, &manifest, &image, length);
            eprintln!("hot, {}: {:.2} GB/s, {:.0} GET/s", kind.name(), blob.rate, manifest.rate);
            turns.push(Turn { kind: *kind, blob, manifest });
        }
    }
    show_blob(plan, &turns);
    show_manifest(&image, &turns);
}

fn read_blob(server: &Server, path: &str, length: Duration) -> Blob {
    let address = server.address;
    let together = Barrier::new(READERS + 1);
    let cpu_before = cpu_seconds(server.pid);
    let (bytes, seconds) = thread::scope(|scope| {
        let read = || {
            let mut client = Client::connect(address);
            together.wait();
            let (began, mut bytes) = (Instant::now(), 0);
            while began.elapsed() < length {
                bytes += client.get(path).bytes;
            }
            bytes
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        together.wait();
        let began = Instant::now();
        let bytes: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        (bytes, began.elapsed().as_secs_f64())
    });
    let gigabytes = bytes as f64 / 1e9;
    Blob { rate: gigabytes / seconds, cpu_per_gb: (cpu_seconds(server.pid) - cpu_before) / gigabytes }
}

fn ask_manifest(server: &Server, path: &str, image: &Image, length: Duration) -> Manifest {
    let cpu_before = cpu_seconds(server.pid);
    let output = Command::new("wrk")
        .args(["--threads", "1", "--latency", "--connections", &CONNECTIONS.to_string()])
        .args(["--duration", &format!("{}s", length.as_secs())])
        .args(["--header", &format!("Accept: {}", image.media_type)])
        .arg(format!("http://{}{path}", server.address))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !text.contains("Non-2xx"), "wrk: {text}");
    let field = |name: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}")).trim()
    };
    let rate: f64 = field("Requests/sec:").parse().unwrap();
    let cpu = cpu_seconds(server.pid) - cpu_before;
    Manifest {
        rate,
        p50_ms: milliseconds(field("50%")),
        p99_ms: milliseconds(field("99%")),
        cpu_us: cpu * 1e6 / (rate * length.as_secs_f64()),
    }
}

/// wrk says `870.00us`, `1.20ms` or `1.01s`.
fn milliseconds(text: &str) -> f64 {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().unwrap();
    match unit {
        "us" => number / 1e3,
        "ms" => number,
        "s" => number * 1e3,
        other => panic!("wrk has a new unit: {other}"),
    }
}

fn middle(turns: &[Turn], kind: Kind, figure: fn(&Turn) -> f64) -> f64 {
    median(turns.iter().filter(|turn| turn.kind == kind).map(figure))
}

fn show_blob(plan: &Plan, turns: &[Turn]) {
    let of = |kind, figure| middle(turns, kind, figure);
    let row = |kind: Kind| {
        let rate: fn(&Turn) -> f64 = |turn| turn.blob.rate;
        let cpu: fn(&Turn) -> f64 = |turn| turn.blob.cpu_per_gb;
        vec![
            kind.name().to_owned(),
            with_ratio(of(kind, rate), of(Kind::Berth, rate), 2),
            with_ratio(of(kind, cpu), of(Kind::Berth, cpu), 2),
        ]
    };
    let title = format!("**Hot blob**: {} MiB over {READERS} connections (berth = 1)", plan.hot_bytes >> 20);
    print(&title, &["", "GB/s", "CPU-seconds per GB"], &SERVERS.map(row));
}

fn show_manifest(image: &Image, turns: &[Turn]) {
    let of = |kind, figure| middle(turns, kind, figure);
    let row = |kind: Kind| {
        let rate: fn(&Turn) -> f64 = |turn| turn.manifest.rate;
        vec![
            kind.name().to_owned(),
            with_ratio(of(kind, rate), of(Kind::Berth, rate), 0),
            format!("{:.2}", of(kind, |turn| turn.manifest.p50_ms)),
            format!("{:.1}", of(kind, |turn| turn.manifest.p99_ms)),
            format!("{:.0}", of(kind, |turn| turn.manifest.cpu_us)),
        ]
    };
    let title = format!(
        "**Hot manifest**: {} bytes, by digest, {CONNECTIONS} connections of wrk (berth = 1)",
        image.manifest.len()
    );
    print(&title, &["", "GET/s", "p50 ms", "p99 ms", "CPU µs per GET"], &SERVERS.map(row));
}
