//! Several ranges in one request: 1, 2, 16 and 256 of them, of a blob that is here and of one that nobody has yet.
//!
//! Not compared with an earlier berth, which answered several with everything.

use std::time::Duration;

use crate::Bench;
use crate::client::Client;
use crate::parts::cold::{BYTES_PER_SECOND, DELAY};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::{Blob, Fault, Image};
use crate::table::{median, print};

/// Ranges in one request.
const COUNTS: [usize; 4] = [1, 2, 16, 256];
/// Of each range: a file of a layer.
const RANGE_BYTES: u64 = 4096;
/// Requests of one turn with a blob that is here: the middle of them is its figure.
const REQUESTS: usize = 200;
/// Connections of their own for the same, so that a lucky one does not decide.
const CONNECTIONS: usize = 5;
/// Between two requests: what the server does behind an answer, such as to let go of what it has mapped, is none of the
/// next one's first byte.
const REST: Duration = Duration::from_millis(1);
/// What frames a part, at most.
const FRAME_BYTES: u64 = 256;
/// How much later the first byte of many may be than that of one.
const LATER_MAX: f64 = 1.2;
/// The cold ranges lie in so many places, a mebibyte each, however many they are.
const PLACES: usize = 8;

/// What came of some ranges of a blob that nobody has.
struct Cold {
    first_byte_ms: f64,
    requests: f64,
    mebibytes: f64,
}

pub(super) fn run(bench: &Bench) {
    let mut scene = Scene::new(bench);
    let image = Image::of(6, &[bench.plan.range_bytes]);
    scene.hold(&image);
    let blob = image.layer();
    let hot = {
        let server = Kind::Berth.start(bench, &scene);
        for _ in 0..2 {
            Client::connect(server.address).get(&blob.path(REPOSITORY));
        }
        first_bytes(bench, &server, blob)
    };
    scene.upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    scene.upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let cold = COUNTS.map(|count| meet(bench, &scene, blob, count));
    show(bench, &hot, &cold);
    hold_to_bars(bench, &hot, &cold);
}

/// So many ranges in order, spread over the places.
fn list(blob: &Blob, count: usize) -> String {
    let places = count.min(PLACES);
    let place = blob.len() / places as u64;
    let range = |at: usize| {
        let (place_number, within) = (at * places / count, at % count.div_ceil(places));
        let start = place * place_number as u64 + 2 * RANGE_BYTES * within as u64;
        format!("{start}-{}", start + RANGE_BYTES - 1)
    };
    format!("bytes={}", (0..count).map(range).collect::<Vec<_>>().join(","))
}

/// Milliseconds until the first byte of one answer, whose parts must all be there.
fn first_byte(client: &mut Client, blob: &Blob, ranges: &str, count: usize) -> f64 {
    let got = client.fetch(&blob.path(REPOSITORY), Some(ranges), |_| true);
    let bytes = count as u64 * RANGE_BYTES;
    let frames = if count > 1 { (count as u64 + 1) * FRAME_BYTES } else { 0 };
    assert_eq!(got.status, 206, "{count} ranges");
    assert!((bytes..=bytes + frames).contains(&got.bytes), "{} bytes for {count} ranges", got.bytes);
    got.first_byte.as_secs_f64() * 1e3
}

/// The middle of many for each count, one of each in turn: none finds a processor that is warmer than another's.
fn first_bytes(bench: &Bench, server: &Server, blob: &Blob) -> [f64; COUNTS.len()] {
    let lists = COUNTS.map(|count| list(blob, count));
    let mut measured: [Vec<f64>; COUNTS.len()] = Default::default();
    for _ in 0..bench.plan.range_rounds * CONNECTIONS {
        let mut client = Client::connect(server.address);
        for turn in 0..REQUESTS {
            for step in 0..COUNTS.len() {
                // There and back: each comes behind fewer and behind more.
                let at = if turn % 2 == 0 { step } else { COUNTS.len() - 1 - step };
                std::thread::sleep(REST);
                measured[at].push(first_byte(&mut client, blob, &lists[at], COUNTS[at]));
            }
        }
    }
    measured.map(median)
}

fn meet(bench: &Bench, scene: &Scene, blob: &Blob, count: usize) -> Cold {
    let mut turns: Vec<Cold> = Vec::new();
    for _ in 0..bench.plan.range_rounds {
        let server = Kind::Berth.start(bench, scene);
        scene.upstream.forget();
        let mut client = Client::connect(server.address);
        let first_byte_ms = first_byte(&mut client, blob, &list(blob, count), count);
        let requests = scene.upstream.count("GET", "/blobs/") as f64;
        let mebibytes = scene.upstream.bytes_sent(&blob.digest) as f64 / f64::from(1 << 20);
        turns.push(Cold { first_byte_ms, requests, mebibytes });
    }
    let of = |figure: fn(&Cold) -> f64| median(turns.iter().map(figure));
    Cold {
        first_byte_ms: of(|it| it.first_byte_ms),
        requests: of(|it| it.requests),
        mebibytes: of(|it| it.mebibytes),
    }
}

fn show(bench: &Bench, hot: &[f64], cold: &[Cold]) {
    let row = |at: usize| {
        vec![
            COUNTS[at].to_string(),
            format!("{:.3} ms ({:.2}×)", hot[at], hot[at] / hot[0]),
            format!("{:.0} ms", cold[at].first_byte_ms),
            format!("{:.0}", cold[at].requests),
            format!("{:.0} MiB", cold[at].mebibytes),
        ]
    };
    let title = format!(
        "**Several ranges** of 4 KiB in one request, of a blob of {} MiB; cold, upstream 50 MB/s after 200 ms",
        bench.plan.range_bytes >> 20
    );
    let head = ["ranges", "hot: first byte", "cold: first byte", "GETs at upstream", "bytes from upstream"];
    print(&title, &head, &(0..COUNTS.len()).map(row).collect::<Vec<_>>());
}

fn hold_to_bars(bench: &Bench, hot: &[f64], cold: &[Cold]) {
    const SCENARIO: &str = "several ranges";
    for at in 1..COUNTS.len() {
        let what = |what: &str| format!("{} ranges: {what}", COUNTS[at]);
        let bar = |name: &str, measured, limit| bench.bars.at_most(SCENARIO, &what(name), measured, limit);
        bar("hot, first byte, of one range", hot[at] / hot[0], LATER_MAX);
        bar("cold, first byte after one range's, ms", cold[at].first_byte_ms - cold[0].first_byte_ms, 50.0);
        let places = COUNTS[at].min(PLACES) as f64;
        bar("GETs at upstream", cold[at].requests, places);
        bar("MiB from upstream", cold[at].mebibytes, places);
    }
}
