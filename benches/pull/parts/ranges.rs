//! The end of a large blob that nobody has yet, as lazy pullers read its footer: when does it come, what is
//! asked of upstream for it, and is it there for the next? And many ranges in one request, as zstd:chunked has them: is
//! the first byte of a blob that is here as soon there, and what do they cost of one that nobody has?
//!
//! Each cold range meets a new server with an empty folder. When it was answered, parts of it are asked for again.

mod several;

use std::net::SocketAddr;
use std::time::Instant;

use crate::Bench;
use crate::bars::Better;
use crate::client::Client;
use crate::parts::cold::{BYTES_PER_SECOND, DELAY};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY};
use crate::support::{Blob, Fault, Image};
use crate::table::{median, print};

/// distribution is not among them: to a range of what it does not have it answers 200, with everything.
const SERVERS: &[Kind] = &[Kind::Berth, Kind::NginxCache, Kind::Varnish, Kind::TrafficServer];
/// Of the footer of a stargz layer.
const FOOTER_BYTES: u64 = 51;
/// How far from the end the other range begins in a blob of 1 GiB: at byte 1,073,000,000.
const FROM_END: u64 = (1 << 30) - 1_073_000_000;
const RANGE_BYTES: u64 = 1000;
/// A range takes no longer if upstream is not asked.
const HIT_MS: f64 = 50.0;
const SCENARIO: &str = "cold ranges";
/// Later requests within a range that was answered.
const LATER: usize = 2;

/// A range near the end of a blob.
struct Asked {
    range: String,
    /// Within it.
    later: [(String, u64); LATER],
    bytes: u64,
}

/// What came of one cold range.
struct Figures {
    kind: Kind,
    /// Which range.
    range: usize,
    first_byte_ms: f64,
    /// Of the slower of the later ranges: one that is not here takes longer than upstream's delay.
    later_ms: f64,
    /// Upstream requests for the whole blob or all of its rest, and for a closed range.
    whole: f64,
    ranged: f64,
}

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let image = Image::of(4, &[plan.range_bytes]);
    scene.hold(&image);
    scene.upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    scene.upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let blob = image.layer();
    let ranges = ranges(blob.len());
    let mut direct: [Vec<f64>; 2] = Default::default();
    let mut results = Vec::new();
    for round in 0..plan.range_rounds {
        for (number, asked) in ranges.iter().enumerate() {
            direct[number].push(first_byte(scene.upstream.address(), blob, &asked.range, asked.bytes));
            for &kind in bench.compared(SERVERS) {
                // Those that fetch everything first take long, and the same time again.
                if round == 0 || Kind::OF_BERTH.contains(&kind) {
                    results.push(meet(bench, &scene, kind, blob, asked, number));
                }
            }
        }
    }
    let direct = direct.map(median);
    show(bench, &ranges, &direct, &results);
    if bench.is_against_before() {
        compare(bench, &ranges, &results);
    } else {
        hold_to_bars(bench, &ranges, &direct, &results);
        several::run(bench);
    }
}

fn ranges(length: u64) -> [Asked; 2] {
    let start = length - FROM_END;
    let closed = |from: u64, bytes: u64| format!("bytes={from}-{}", from + bytes - 1);
    [
        Asked {
            range: format!("bytes=-{FOOTER_BYTES}"),
            later: [("bytes=-8".to_owned(), 8), (closed(length - FOOTER_BYTES, 10), 10)],
            bytes: FOOTER_BYTES,
        },
        Asked {
            range: closed(start, RANGE_BYTES),
            later: [(closed(start, 100), 100), (closed(start + 500, 500), 500)],
            bytes: RANGE_BYTES,
        },
    ]
}

fn meet(bench: &Bench, scene: &Scene, kind: Kind, blob: &Blob, asked: &Asked, range: usize) -> Figures {
    let server = kind.start(bench, scene);
    let upstream = &scene.upstream;
    upstream.forget();
    let first_byte_ms = first_byte(server.address, blob, &asked.range, asked.bytes);
    eprintln!("{} of {}: {first_byte_ms:.0} ms", asked.range, kind.name());
    let later = asked.later.iter().map(|(range, bytes)| first_byte(server.address, blob, range, *bytes));
    let later_ms = later.fold(0.0, f64::max);
    let seen = upstream.seen("GET", "/blobs/");
    let is_whole = |range: Option<&str>| range.is_none_or(|range| range.ends_with('-'));
    let whole = seen.iter().filter(|request| is_whole(request.header("range"))).count();
    let (whole, ranged) = (whole as f64, (seen.len() - whole) as f64);
    Figures { kind, range, first_byte_ms, later_ms, whole, ranged }
}

/// Milliseconds until the first byte of a range that is whole in the end.
fn first_byte(address: SocketAddr, blob: &Blob, range: &str, bytes: u64) -> f64 {
    let asked = Instant::now();
    let got = Client::connect(address).fetch(&blob.path(REPOSITORY), Some(range), |_| true);
    assert_eq!((got.status, got.bytes), (206, bytes), "{range} after {:?}", asked.elapsed());
    got.first_byte.as_secs_f64() * 1e3
}

fn middle(results: &[Figures], kind: Kind, range: usize, figure: fn(&Figures) -> f64) -> f64 {
    let own = results.iter().filter(|figures| figures.kind == kind && figures.range == range);
    median(own.map(figure))
}

fn show(bench: &Bench, ranges: &[Asked], direct: &[f64], results: &[Figures]) {
    let mut rows = Vec::new();
    for (number, (asked, direct)) in ranges.iter().zip(direct).enumerate() {
        for &kind in bench.compared(SERVERS) {
            let of = |figure| middle(results, kind, number, figure);
            rows.push(vec![
                format!("`{}`", asked.range),
                kind.name().to_owned(),
                format!("{:.0} ms ({direct:.0} ms)", of(|it| it.first_byte_ms)),
                format!("{:.0} ms", of(|it| it.later_ms)),
                format!("{:.0}", of(|it| it.whole)),
                format!("{:.0}", of(|it| it.ranged)),
            ]);
        }
    }
    let title = format!(
        "**Cold ranges** at the end of a blob of {} MiB, upstream 50 MB/s after 200 ms",
        bench.plan.range_bytes >> 20
    );
    let head = [
        "range",
        "",
        "first byte (upstream's own)",
        "ranges within it, later",
        "whole GETs at upstream",
        "ranged GETs at upstream",
    ];
    print(&title, &head, &rows);
}

fn hold_to_bars(bench: &Bench, ranges: &[Asked], direct: &[f64], results: &[Figures]) {
    for (number, (asked, direct)) in ranges.iter().zip(direct).enumerate() {
        let of = |figure| middle(results, Kind::Berth, number, figure);
        let bar = |what: &str, measured, limit| {
            bench.bars.at_most(SCENARIO, &format!("`{}`: {what}", asked.range), measured, limit);
        };
        bar("first byte after upstream's own, ms", of(|it| it.first_byte_ms) - direct, 50.0);
        bar("whole GETs at upstream", of(|it| it.whole), 1.0);
        bar("ranged GETs at upstream", of(|it| it.ranged), 1.0);
        bar("ranges within it, later, ms", of(|it| it.later_ms), HIT_MS);
    }
}

fn compare(bench: &Bench, ranges: &[Asked], results: &[Figures]) {
    for (number, asked) in ranges.iter().enumerate() {
        let compare = |what: &str, figure: fn(&Figures) -> f64| {
            let what = format!("`{}`: {what}", asked.range);
            let of = |kind| middle(results, kind, number, figure);
            bench.bars.compare(SCENARIO, &what, Better::Less, of);
        };
        compare("first byte, ms", |it| it.first_byte_ms);
        compare("ranges within it, later, ms", |it| it.later_ms);
        compare("whole GETs at upstream", |it| it.whole);
        compare("ranged GETs at upstream", |it| it.ranged);
    }
}
