//! A manifest that is there, by digest: how many GETs and HEADs a second, how long does one take, and what does
//! it cost in CPU time and system calls?
//!
//! nginx's files and bare hyper answer with the headers of berth.

use crate::Bench;
use crate::bars::Better;
use crate::client::Reading;
use crate::parts::hot::start_filled;
use crate::requests::{CONNECTIONS, Requests, ask};
use crate::scene::Scene;
use crate::server::{Kind, REPOSITORY, Server};
use crate::support::Image;
use crate::table::{median, print, with_ratio};
use crate::usage::system_calls;

const METHODS: [&str; 2] = ["GET", "HEAD"];
/// Bytes of the layers: so many that the manifest is as long as that of a usual image.
const LAYERS: [usize; 8] = [100; 8];

/// What came of one turn of a server.
struct Turn {
    kind: Kind,
    method: &'static str,
    requests: Requests,
}

pub(crate) fn run(bench: &Bench) {
    let plan = &bench.plan;
    let mut scene = Scene::new(bench);
    let image = Image::of(2, &LAYERS);
    scene.hold(&image);
    let path = image.path(REPOSITORY);
    scene.learn_headers(&Kind::Berth.start(bench, &scene));
    let servers = start_filled(bench, &scene, bench.compared(Kind::OF_HOT), &Reading::Copy);
    for server in &servers {
        if [Kind::BareHyper, Kind::NginxStatic].contains(&server.kind) {
            scene.check_headers(server);
        }
    }
    let mut turns = Vec::new();
    for round in 0..plan.manifest_rounds {
        for method in METHODS {
            for turn in 0..servers.len() {
                let server = &servers[(turn + round) % servers.len()];
                let requests = ask(server, method, &path, plan.manifest_window);
                eprintln!("{method} of {}: {:.0} per second", server.kind.name(), requests.rate);
                turns.push(Turn { kind: server.kind, method, requests });
            }
        }
    }
    for method in METHODS {
        // Apart from the turns, because counting slows a server down.
        let calls = servers.iter().map(|server| calls_per_request(bench, server, method, &path));
        show(bench.compared(Kind::OF_HOT), &image, method, &turns, &calls.collect::<Vec<_>>());
        hold_to_bars(bench, method, &turns);
    }
}

fn calls_per_request(bench: &Bench, server: &Server, method: &str, path: &str) -> Option<f64> {
    let work = || ask(server, method, path, bench.plan.manifest_window).count;
    let (count, calls) = system_calls(server.pid, work);
    Some(calls? / count as f64)
}

fn middle(turns: &[Turn], kind: Kind, method: &str, figure: fn(&Requests) -> f64) -> f64 {
    let own = turns.iter().filter(|turn| turn.kind == kind && turn.method == method);
    median(own.map(|turn| figure(&turn.requests)))
}

fn show(kinds: &[Kind], image: &Image, method: &str, turns: &[Turn], calls: &[Option<f64>]) {
    let row = |(kind, calls): (Kind, &Option<f64>)| {
        let of = |figure| middle(turns, kind, method, figure);
        let berth = |figure| middle(turns, Kind::Berth, method, figure);
        vec![
            kind.name().to_owned(),
            with_ratio(of(|it| it.rate), berth(|it| it.rate), 0),
            format!("{:.2}", of(|it| it.p50_ms)),
            format!("{:.2}", of(|it| it.p99_ms)),
            with_ratio(of(|it| it.cpu_us), berth(|it| it.cpu_us), 1),
            calls.map_or_else(|| "–".to_owned(), |calls| format!("{calls:.1}")),
        ]
    };
    let title = format!(
        "**Hot manifest**, {method}: {} bytes, by digest, {CONNECTIONS} connections (berth = 1)",
        image.manifest.len()
    );
    let head = ["", "per second", "p50 ms", "p99 ms", "CPU µs each", "system calls each"];
    let rows: Vec<_> = kinds.iter().copied().zip(calls).map(row).collect();
    print(&title, &head, &rows);
}

fn hold_to_bars(bench: &Bench, method: &str, turns: &[Turn]) {
    let scenario = if method == "GET" { "hot manifest, GET" } else { "hot manifest, HEAD" };
    if bench.is_against_before() {
        return compare(bench, scenario, method, turns);
    }
    let ratio =
        |kind, figure| middle(turns, Kind::Berth, method, figure) / middle(turns, kind, method, figure);
    let bars = &bench.bars;
    let rate = ratio(Kind::NginxStatic, |it| it.rate);
    bars.at_least(scenario, "per second, of nginx, static files", rate, 1.0);
    let cpu = ratio(Kind::NginxStatic, |it| it.cpu_us);
    bars.at_most(scenario, "CPU each, of nginx, static files", cpu, 0.8);
    let cpu = ratio(Kind::BareHyper, |it| it.cpu_us);
    bars.at_most(scenario, "CPU each, of bare hyper", cpu, 1.25);
    let p99 = ratio(Kind::NginxStatic, |it| it.p99_ms);
    bars.at_most(scenario, "p99, of nginx, static files", p99, 2.0);
}

fn compare(bench: &Bench, scenario: &'static str, method: &str, turns: &[Turn]) {
    let compare = |what, better, figure: fn(&Requests) -> f64| {
        bench.bars.compare(scenario, what, better, |kind| middle(turns, kind, method, figure));
    };
    compare("per second", Better::More, |it| it.rate);
    compare("CPU each, us", Better::Less, |it| it.cpu_us);
    compare("p99, ms", Better::Less, |it| it.p99_ms);
}
