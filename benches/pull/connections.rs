//! An upstream that is slow on each connection: how much sooner is a large blob here over four of them?

use std::time::{Duration, Instant};

use crate::Bench;
use crate::client::Client;
use crate::scene::Scene;
use crate::server::{REPOSITORY, berth};
use crate::support::{Berth, Fault, Image};
use crate::table::{median, print};

/// Of upstream, on each connection.
const BYTES_PER_SECOND: u64 = 20_000_000;
/// Of upstream, to the first byte.
const DELAY: Duration = Duration::from_millis(200);
const CONNECTIONS: [usize; 2] = [1, 4];

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let image = Image::of(5, &[plan.connections_bytes]);
    scene.hold(&image);
    scene.upstream.on("*", "/blobs/").fault(Fault::Delay(DELAY));
    scene.upstream.on("*", "/blobs/").fault(Fault::Drip(BYTES_PER_SECOND));
    let blob = image.layer();
    let mut seconds: [Vec<f64>; 2] = Default::default();
    let mut gets: [Vec<f64>; 2] = Default::default();
    for _ in 0..plan.connections_rounds {
        for (number, connections) in CONNECTIONS.into_iter().enumerate() {
            let setup = Berth::with("docker.io", &scene.upstream);
            let server = berth(bench, setup.keys(&format!("connections_per_blob = {connections}")));
            scene.upstream.forget();
            let began = Instant::now();
            Client::connect(server.address).get(&blob.path(REPOSITORY));
            seconds[number].push(began.elapsed().as_secs_f64());
            gets[number].push(scene.upstream.count("GET", "/blobs/") as f64);
            eprintln!("{connections} connections: {:.2} s", began.elapsed().as_secs_f64());
        }
    }
    let (seconds, gets) = (seconds.map(median), gets.map(median));
    let row = |number: usize| {
        vec![
            CONNECTIONS[number].to_string(),
            format!("{:.2} s", seconds[number]),
            format!("{:.1}", plan.connections_bytes as f64 / 1e6 / seconds[number]),
            format!("{:.0}", gets[number]),
        ]
    };
    let title = format!(
        "**Capped upstream connections**: a blob of {} MiB, upstream 20 MB/s on each after 200 ms",
        plan.connections_bytes >> 20
    );
    let head = ["`connections_per_blob`", "here after", "MB/s", "GETs at upstream"];
    print(&title, &head, &[row(0), row(1)]);
    bench.bars.at_least("capped upstream connections", "speed of four, of one", seconds[0] / seconds[1], 3.0);
}
