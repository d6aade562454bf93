//! A blob that is there: how fast does it go out, for how much CPU time of the server, and how long does the
//! first byte take?
//!
//! Once for clients that copy what they get, as every client does, and once for clients that have the kernel
//! drop it, so that the server's core alone is the limit.

use crate::Bench;
use crate::client::{Client, Reading};
use crate::load::{self, Cell, Turn, berth_to, measure, show};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::Image;

const SCENARIO: &str = "hot blob";

pub(crate) fn run(bench: &Bench) {
    let mut scene = Scene::new(bench);
    let image = hold_blobs(bench, &mut scene);
    let servers = start_filled(bench, &scene, bench.compared(Kind::OF_HOT), &Reading::Copy);
    let plan = &bench.plan;
    let path = |bytes| path_of(&image, bytes);
    let copied = measure(bench, &servers, path, &Reading::Copy, plan.hot_rounds);
    let discarded = measure(bench, &servers, path, &Reading::Discard, plan.other_rounds);
    let cells = load::cells(&plan.hot_bytes);
    let title =
        |figure: &str, how: &str| format!("**Hot blob**: {figure}; size × connections, clients {how}");
    show(&title("GB/s", "copy"), &copied, &cells, 2, |turn| turn.rate);
    show(&title("CPU-seconds per GB", "copy"), &copied, &cells, 2, |turn| turn.cpu_per_gb);
    show(&title("99th percentile of the first byte, ms", "copy"), &copied, &cells, 1, |turn| {
        turn.first_byte_ms
    });
    show(&title("GB/s", "discard"), &discarded, &cells, 2, |turn| turn.rate);
    show(&title("CPU-seconds per GB", "discard"), &discarded, &cells, 2, |turn| turn.cpu_per_gb);
    if bench.is_against_before() {
        load::compare(&bench.bars, "hot blob, clients copy", &copied, &cells);
        load::compare(&bench.bars, "hot blob, clients discard", &discarded, &cells);
    } else {
        hold_to_bars(bench, &copied, &cells);
    }
}

fn hold_to_bars(bench: &Bench, turns: &[Turn], cells: &[Cell]) {
    let rates = [
        (Kind::NginxStatic, 1.2),
        (Kind::Varnish, 1.2),
        (Kind::TrafficServer, 0.85),
        (Kind::BareHyper, 0.95),
        (Kind::Distribution, 3.0),
    ];
    for (kind, floor) in rates {
        let ratio = berth_to(turns, kind, cells, |turn| turn.rate);
        bench.bars.at_least(SCENARIO, &format!("GB/s, of {} (geometric mean)", kind.name()), ratio, floor);
    }
    for (kind, ceiling) in [(Kind::TrafficServer, 1.0), (Kind::NginxStatic, 0.75)] {
        let ratio = berth_to(turns, kind, cells, |turn| turn.cpu_per_gb);
        let what = format!("CPU-seconds per GB, of {} (geometric mean)", kind.name());
        bench.bars.at_most(SCENARIO, &what, ratio, ceiling);
    }
    let own = turns.iter().filter(|turn| turn.kind == Kind::Berth);
    let most = own.map(|turn| turn.anonymous_mib).fold(0.0, f64::max);
    bench.bars.at_most(SCENARIO, "anonymous memory at most, MiB", most, 64.0);
}

/// An image with one layer for each of the plan's sizes.
pub(crate) fn hold_blobs(bench: &Bench, scene: &mut Scene) -> Image {
    let image = Image::of(1, &bench.plan.hot_bytes);
    scene.hold(&image);
    image
}

/// Where the layer of a size is.
pub(crate) fn path_of(image: &Image, bytes: usize) -> String {
    let layer = image.layers().iter().find(|layer| layer.len() == bytes as u64).unwrap();
    layer.path(REPOSITORY)
}

/// Servers that have everything already.
pub(crate) fn start_filled(bench: &Bench, scene: &Scene, kinds: &[Kind], reading: &Reading) -> Vec<Server> {
    let filled = |kind: &Kind| {
        let server = kind.start(bench, scene);
        for page in &scene.pages {
            // Twice: some keep content in memory only when it is asked for again.
            for _ in 0..2 {
                let got = Client::reading(server.address, reading).get(&page.path);
                assert_eq!(got.bytes, page.body.len() as u64, "{} of {}", page.path, kind.name());
            }
        }
        server
    };
    kinds.iter().map(filled).collect()
}
