//! What does a server hold when it has worked and rests, and what while 64 clients read from it?
//!
//! *Resident* is all that the kernel counts for its processes, programs and mapped files included, what two of
//! them share twice; *anonymous* is what they hold themselves. All servers rest at the same time, because a minute is a minute.

use std::thread;

use crate::Bench;
use crate::client::{Client, Reading};
use crate::load::{Cell, take_turn};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::Image;
use crate::table::print;
use crate::usage::{anonymous_bytes, resident_bytes, watch};

const SERVERS: [Kind; 5] =
    [Kind::Berth, Kind::NginxCache, Kind::Varnish, Kind::TrafficServer, Kind::Distribution];
/// Clients at a time while images are pulled.
const PULLERS: usize = 8;
const STREAMS: usize = 64;
const MIB: f64 = 1_048_576.0;

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let images: Vec<Image> =
        (0..plan.pulls).map(|number| Image::of(100 + number as u64, &[plan.pull_bytes])).collect();
    for image in &images {
        scene.hold(image);
    }
    let large = Image::of(6, &[plan.hot_bytes[2]]);
    scene.hold(&large);
    let servers = SERVERS.map(|kind| kind.start(bench, &scene));
    for server in &servers {
        pull(server, &images);
    }
    eprintln!("all servers rest for {:?}", plan.rest);
    thread::sleep(plan.rest);
    let rested = servers.each_ref().map(|server| (resident_bytes(server.pid), anonymous_bytes(server.pid)));
    let path = large.layer().path(REPOSITORY);
    let streaming = servers.each_ref().map(|server| {
        Client::connect(server.address).get(&path);
        let cell = Cell { bytes: plan.hot_bytes[2], connections: STREAMS };
        let work = || take_turn(bench, server, &path, cell, &Reading::Copy, plan.streams_window);
        watch(server.pid, None, work).1
    });
    let row = |at: usize| {
        let mebibytes = |bytes: u64| format!("{:.0} MiB", bytes as f64 / MIB);
        let (resident, anonymous) = rested[at];
        vec![
            SERVERS[at].name().to_owned(),
            mebibytes(resident),
            mebibytes(anonymous),
            mebibytes(streaming[at].resident),
            mebibytes(streaming[at].anonymous),
        ]
    };
    let title = format!(
        "**Memory**: after {} pulls and {} s of rest, and at most under {STREAMS} streams",
        plan.pulls,
        plan.rest.as_secs()
    );
    let rows: Vec<_> = (0..SERVERS.len()).map(row).collect();
    let head = ["", "at rest, resident", "at rest, anonymous", "streaming, resident", "streaming, anonymous"];
    print(&title, &head, &rows);
    bench.bars.at_most("memory at rest", "resident, MiB", rested[0].0 as f64 / MIB, 30.0);
}

/// All images, each once: the manifest by tag or digest, then what it names.
fn pull(server: &Server, images: &[Image]) {
    thread::scope(|scope| {
        for puller in 0..PULLERS {
            scope.spawn(move || {
                let mut client = Client::connect(server.address);
                for image in images.iter().skip(puller).step_by(PULLERS) {
                    client.get(&image.path(REPOSITORY));
                    for blob in &image.blobs {
                        client.get(&blob.path(REPOSITORY));
                    }
                }
            });
        }
    });
}
