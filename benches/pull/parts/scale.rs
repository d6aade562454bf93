//! Few blobs and very many: how long until the first is served after a start, what does a hit cost, in how much
//! memory?
//!
//! The store is made by the generator that the tests use. A start is one after an orderly end, one after a kill,
//! and one without an index. Hits go to a hundred blobs all over the store.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Bench;
use crate::bars::Better;
use crate::client::Client;
use crate::server::Kind;
use crate::support::many::Many;
use crate::support::{Berth, Upstream};
use crate::table::{median, print};
use crate::usage::cpu_seconds;

const WITHOUT_INDEX: &str = "without an index";
const FEW: Many = Many { blobs: 100, tags: 20 };
/// Blobs that are asked for, again and again.
const ASKED: usize = 100;
const HITS: usize = 20_000;
/// A server that takes less CPU time than this, in each of so many seconds, is at rest: what has no hurry has pauses.
const REST_SECONDS: f64 = 0.03;
const REST_FOR: u32 = 5;
/// The longest that it may take until then.
const REST_MAX: Duration = Duration::from_secs(900);

/// What one start came to.
struct Start {
    seconds: f64,
    memory_then: f64,
    /// Until it is at rest.
    settled: f64,
    memory_at_rest: f64,
    cpu_us: f64,
}

pub(crate) fn run(bench: &Bench) {
    if bench.is_against_before() {
        return compare(bench);
    }
    let (runtime, plan) = (&bench.runtime, &bench.plan);
    let upstream = runtime.block_on(Upstream::start());
    let mut rows = Vec::new();
    let (mut few_cpu_us, mut bars) = (Vec::new(), Vec::new());
    for many in [FEW, Many { blobs: plan.many_blobs, tags: plan.many_blobs / 5 }] {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let began = Instant::now();
        many.make(&data_dir);
        eprintln!("scale, {} blobs made in {:.0} s", many.blobs, began.elapsed().as_secs_f64());
        // What the generator has written must not be written while others are measured.
        rustix::fs::sync();
        let mut start = |how: &str, end: Signal| {
            let start = measure(bench, Kind::Berth, &upstream, &data_dir, many, end);
            eprintln!("scale, {} blobs, {how}: served after {:.2} s", many.blobs, start.seconds);
            if many.blobs == FEW.blobs {
                few_cpu_us.push(start.cpu_us);
            } else {
                bars.push((how.to_owned(), start.seconds, start.cpu_us, start.memory_at_rest));
            }
            vec![
                many.blobs.to_string(),
                how.to_owned(),
                format!("{:.2} s", start.seconds),
                format!("{:.0} MiB", start.memory_then),
                format!("{:.0} s", start.settled),
                format!("{:.0} MiB", start.memory_at_rest),
                format!("{:.0}", start.cpu_us),
            ]
        };
        rows.push(start(WITHOUT_INDEX, Signal::TERM));
        rows.push(start("after an orderly end", Signal::KILL));
        rows.push(start("after a kill", Signal::TERM));
    }
    let head = [
        "blobs",
        "start",
        "first hit after",
        "resident then",
        "at rest after",
        "resident at rest",
        "CPU µs per hit",
    ];
    let few_cpu_us = median(few_cpu_us);
    for (how, seconds, cpu_us, memory) in &bars {
        if how.as_str() != WITHOUT_INDEX {
            bench.bars.at_most("many blobs", &format!("start {how}, s"), *seconds, 3.0);
        }
        bench.bars.at_most("many blobs", &format!("{how}: resident at rest, MiB"), *memory, 300.0);
        bench.bars.at_most(
            "many blobs",
            &format!("{how}: CPU per hit, few blobs = 1"),
            cpu_us / few_cpu_us,
            1.1,
        );
    }
    print("**Scale**: a fifth as many tags, half of them in one repository", &head, &rows);
}

/// A start with a large store after an orderly end, of one berth and an earlier one, each with a store of its own.
fn compare(bench: &Bench) {
    let upstream = bench.runtime.block_on(Upstream::start());
    let many = Many { blobs: bench.plan.many_blobs, tags: bench.plan.many_blobs / 5 };
    let folder = tempfile::tempdir().unwrap();
    let data_dir = |kind: Kind| folder.path().join(kind.name());
    for kind in Kind::OF_BERTH {
        many.make(&data_dir(*kind));
        measure(bench, *kind, &upstream, &data_dir(*kind), many, Signal::TERM);
    }
    rustix::fs::sync();
    let mut starts = Vec::new();
    for round in 0..bench.plan.many_rounds {
        for kind in Kind::OF_BERTH {
            starts.push((*kind, measure(bench, *kind, &upstream, &data_dir(*kind), many, Signal::TERM)));
        }
        eprintln!("scale, round {} of {}", round + 1, bench.plan.many_rounds);
    }
    let compare = |what, figure: fn(&Start) -> f64| {
        bench.bars.compare("many blobs", what, Better::Less, |of| {
            median(starts.iter().filter(|(kind, _)| *kind == of).map(|(_, start)| figure(start)))
        });
    };
    compare("first hit after a start, s", |it| it.seconds);
    compare("resident then, MiB", |it| it.memory_then);
    compare("at rest after, s", |it| it.settled);
    compare("resident at rest, MiB", |it| it.memory_at_rest);
    compare("CPU per hit, us", |it| it.cpu_us);
}

fn measure(
    bench: &Bench,
    kind: Kind,
    upstream: &Upstream,
    data_dir: &Path,
    many: Many,
    end: Signal,
) -> Start {
    let runtime = &bench.runtime;
    let setup = bench.of(kind, Berth::with("docker.io", upstream)).data_dir(data_dir);
    // The content is not what its names say.
    let setup = setup.sections("[cache]\nscrub = \"off\"");
    let began = Instant::now();
    let mut berth = bench.cores.as_server(|| runtime.block_on(setup.start()));
    let paths: Vec<String> = (0..ASKED).map(|at| many.path(at * many.blobs / ASKED)).collect();
    hit(&mut Client::connect(berth.address()), &paths[0]);
    let seconds = began.elapsed().as_secs_f64();
    let pid = berth.pid();
    let memory_then = resident_mebibytes(pid);
    let settled = rest(pid, began);
    // Anew: a connection that rests for so long is closed.
    let mut client = Client::connect(berth.address());
    for path in &paths {
        hit(&mut client, path);
    }
    let before = cpu_seconds(pid);
    for path in paths.iter().cycle().take(HITS) {
        hit(&mut client, path);
    }
    let cpu_us = (cpu_seconds(pid) - before) * 1e6 / HITS as f64;
    let memory_at_rest = resident_mebibytes(pid);
    runtime.block_on(async {
        berth.signal(end);
        berth.exit().await;
    });
    Start { seconds, memory_then, settled, memory_at_rest, cpu_us }
}

/// Reads the first byte of a blob: a second read of the whole has it verified, and these are not what their names say.
fn hit(client: &mut Client, path: &str) {
    assert_eq!(client.fetch(path, Some("bytes=0-0"), |_| true).status, 206, "{path}");
}

/// Waits until a process has next to nothing to do, and returns the seconds since `began`.
fn rest(pid: u32, began: Instant) -> f64 {
    let mut quiet = 0;
    loop {
        let before = cpu_seconds(pid);
        std::thread::sleep(Duration::from_secs(1));
        quiet = if cpu_seconds(pid) - before < REST_SECONDS { quiet + 1 } else { 0 };
        if quiet == REST_FOR {
            return began.elapsed().as_secs_f64() - f64::from(REST_FOR);
        }
        assert!(began.elapsed() < REST_MAX, "no rest");
    }
}

fn resident_mebibytes(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.0
}
