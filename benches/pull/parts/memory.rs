//! What does a server hold when it has worked and rests, and what while 64 clients read from it?
//!
//! *Resident* is all that the kernel counts for its processes, programs and mapped files included, what two of
//! them share twice; *anonymous* is what they hold themselves. All servers rest at the same time, because a minute is a minute.

use std::thread;

use crate::Bench;
use crate::bars::Better;
use crate::client::{Client, Reading};
use crate::load::{Cell, take_turn};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::Image;
use crate::table::{median, print};
use crate::usage::{anonymous_bytes, resident_bytes, watch};

const SERVERS: &[Kind] =
    &[Kind::Berth, Kind::NginxCache, Kind::Varnish, Kind::TrafficServer, Kind::Distribution];
/// Clients at a time while images are pulled.
const PULLERS: usize = 8;
const STREAMS: usize = 64;
const MIB: f64 = 1_048_576.0;

/// What one server holds, in MiB.
struct Figures {
    rested: f64,
    rested_anonymous: f64,
    streaming: f64,
    streaming_anonymous: f64,
}

type Figure = fn(&Figures) -> f64;

/// With their names.
const FIGURES: [(&str, Figure); 4] = [
    ("at rest, resident", |it| it.rested),
    ("at rest, anonymous", |it| it.rested_anonymous),
    ("streaming, resident", |it| it.streaming),
    ("streaming, anonymous", |it| it.streaming_anonymous),
];

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
    let kinds = bench.compared(SERVERS);
    let path = large.layer().path(REPOSITORY);
    let rounds: Vec<_> =
        (0..plan.memory_rounds).map(|_| look(bench, &scene, kinds, &images, &path)).collect();
    let middle = |kind, figure: Figure| {
        let own = rounds.iter().flatten().filter(|(of, _)| *of == kind);
        median(own.map(|(_, figures)| figure(figures)))
    };
    let row = |kind: &Kind| {
        let figures = FIGURES.map(|(_, figure)| format!("{:.0} MiB", middle(*kind, figure)));
        [kind.name().to_owned()].into_iter().chain(figures).collect()
    };
    let title = format!(
        "**Memory**: after {} pulls and {} s of rest, and at most under {STREAMS} streams",
        plan.pulls,
        plan.rest.as_secs()
    );
    let rows: Vec<Vec<String>> = kinds.iter().map(row).collect();
    let head: Vec<_> = [""].into_iter().chain(FIGURES.map(|(name, _)| name)).collect();
    print(&title, &head, &rows);
    if bench.is_against_before() {
        for (name, figure) in FIGURES {
            let what = format!("{name}, MiB");
            bench.bars.compare("memory", &what, Better::Less, |kind| middle(kind, figure));
        }
    } else {
        bench.bars.at_most("memory at rest", "resident, MiB", middle(Kind::Berth, |it| it.rested), 30.0);
    }
}

/// New servers, looked at once.
fn look(bench: &Bench, scene: &Scene, kinds: &[Kind], images: &[Image], path: &str) -> Vec<(Kind, Figures)> {
    let plan = &bench.plan;
    let servers: Vec<_> = kinds.iter().map(|kind| kind.start(bench, scene)).collect();
    for server in &servers {
        pull(server, images);
    }
    eprintln!("all servers rest for {:?}", plan.rest);
    thread::sleep(plan.rest);
    let rested: Vec<_> =
        servers.iter().map(|server| (resident_bytes(server.pid), anonymous_bytes(server.pid))).collect();
    let figures = servers.iter().zip(rested).map(|(server, (resident, anonymous))| {
        Client::connect(server.address).get(path);
        let cell = Cell { bytes: plan.hot_bytes[2], connections: STREAMS };
        let work = || take_turn(bench, server, path, cell, &Reading::Copy, plan.streams_window);
        let peak = watch(server.pid, None, work).1;
        let mebibytes = |bytes: u64| bytes as f64 / MIB;
        let figures = Figures {
            rested: mebibytes(resident),
            rested_anonymous: mebibytes(anonymous),
            streaming: mebibytes(peak.resident),
            streaming_anonymous: mebibytes(peak.anonymous),
        };
        (server.kind, figures)
    });
    figures.collect()
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
