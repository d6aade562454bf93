//! An upstream that is slow on each connection: how much sooner is a large blob here over four of them?

use std::time::{Duration, Instant};

use crate::Bench;
use crate::bars::Better;
use crate::client::Client;
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, berth};
use crate::support::{Berth, Fault, Image};
use crate::table::{median, print};

/// Of upstream, on each connection.
const BYTES_PER_SECOND: u64 = 20_000_000;
/// Of upstream, to the first byte.
const DELAY: Duration = Duration::from_millis(200);
const CONNECTIONS: [usize; 2] = [1, 4];
const SCENARIO: &str = "capped upstream connections";

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let image = Image::of(5, &[plan.connections_bytes]);
    scene.hold(&image);
    scene.upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    scene.upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let blob = image.layer();
    let kinds = bench.compared(&[Kind::Berth]);
    let mut results = Vec::new();
    for _ in 0..plan.connections_rounds {
        for connections in CONNECTIONS {
            for &kind in kinds {
                let setup = Berth::with("docker.io", &scene.upstream);
                let setup = setup.keys(&format!("connections_per_blob = {connections}"));
                let server = berth(bench, kind, setup);
                scene.upstream.forget();
                let began = Instant::now();
                Client::connect(server.address).get(&blob.path(REPOSITORY));
                let seconds = began.elapsed().as_secs_f64();
                let gets = scene.upstream.count("GET", "/blobs/") as f64;
                eprintln!("{connections} connections of {}: {seconds:.2} s", kind.name());
                results.push((kind, connections, seconds, gets));
            }
        }
    }
    let middle = |of: Kind, over: usize| {
        let own = results.iter().filter(|(kind, connections, ..)| (*kind, *connections) == (of, over));
        let (seconds, gets): (Vec<_>, Vec<_>) = own.map(|(.., seconds, gets)| (*seconds, *gets)).unzip();
        (median(seconds), median(gets))
    };
    let row = |connections: usize| {
        let (seconds, gets) = middle(Kind::Berth, connections);
        vec![
            connections.to_string(),
            format!("{seconds:.2} s"),
            format!("{:.1}", plan.connections_bytes as f64 / 1e6 / seconds),
            format!("{gets:.0}"),
        ]
    };
    let title = format!(
        "**Capped upstream connections**: a blob of {} MiB, upstream 20 MB/s on each after 200 ms",
        plan.connections_bytes >> 20
    );
    let head = ["`connections_per_blob`", "here after", "MB/s", "GETs at upstream"];
    print(&title, &head, &CONNECTIONS.map(row));
    if bench.is_against_before() {
        for connections in CONNECTIONS {
            let what = format!("{connections} connections: here after, s");
            bench.bars.compare(SCENARIO, &what, Better::Less, |kind| middle(kind, connections).0);
        }
    } else {
        let [one, four] = CONNECTIONS.map(|connections| middle(Kind::Berth, connections).0);
        bench.bars.at_least(SCENARIO, "speed of four, of one", one / four, 3.0);
    }
}
