//! Clients that read one blob over and over, for as long as it takes to count.

use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Bench;
use crate::bars::{Bars, Better};
use crate::client::{Client, Reading};
use crate::server::{Kind, Server};
use crate::table::{self, geometric_mean, median, percentile};
use crate::usage::{CPU_COUNTABLE, TURN_DEADLINE, TURN_GOES_ON, anonymous_bytes, cpu_seconds};

/// Connections of one turn, each with a client of its own.
pub(crate) const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// A blob of some size, over some connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) bytes: usize,
    pub(crate) connections: usize,
}

/// What came of one turn of a server in a cell.
pub(crate) struct Turn {
    pub(crate) kind: Kind,
    pub(crate) cell: Cell,
    /// GB per second.
    pub(crate) rate: f64,
    pub(crate) cpu_per_gb: f64,
    /// The 99th percentile over all requests.
    pub(crate) first_byte_ms: f64,
    pub(crate) anonymous_mib: f64,
}

/// All cells, for blobs of these sizes.
pub(crate) fn cells(sizes: &[usize]) -> Vec<Cell> {
    let of = |bytes: &usize| CONNECTIONS.map(|connections| Cell { bytes: *bytes, connections });
    sizes.iter().flat_map(of).collect()
}

/// Each server in each cell, in turns. `path` says where a blob of some size is.
pub(crate) fn measure(
    bench: &Bench,
    servers: &[Server],
    path: impl Fn(usize) -> String,
    reading: &Reading,
    rounds: usize,
) -> Vec<Turn> {
    let mut turns = Vec::new();
    for round in 0..rounds {
        for cell in cells(&bench.plan.hot_bytes) {
            for turn in 0..servers.len() {
                let server = &servers[(turn + round) % servers.len()];
                let window = bench.plan.hot_window;
                turns.push(take_turn(bench, server, &path(cell.bytes), cell, reading, window));
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    turns
}

/// Counts while all clients are busy, from one moment to another: what is on its way then, it was before too.
pub(crate) fn take_turn(
    bench: &Bench,
    server: &Server,
    path: &str,
    cell: Cell,
    reading: &Reading,
    window: Duration,
) -> Turn {
    let bytes = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let busy = AtomicUsize::new(0);
    let first_bytes = Mutex::new(Vec::new());
    let read = || {
        let mut client = Client::reading(server.address, reading);
        let mut is_busy = false;
        while !done.load(Ordering::Relaxed) {
            let got = client.fetch(path, None, |piece| {
                if !mem::replace(&mut is_busy, true) {
                    busy.fetch_add(1, Ordering::Relaxed);
                }
                bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                !done.load(Ordering::Relaxed)
            });
            assert_eq!(got.status, 200, "{path} of {}", server.kind.name());
            // What was cut before its first byte has none.
            if got.bytes > 0 {
                first_bytes.lock().unwrap().push(got.first_byte.as_secs_f64() * 1e3);
            }
        }
    };
    let look = || (Instant::now(), cpu_seconds(server.pid), bytes.load(Ordering::Relaxed));
    let (began, ended, anonymous) = thread::scope(|scope| {
        for _ in 0..cell.connections {
            scope.spawn(read);
        }
        // Handshakes of many connections are not part of it.
        let asked = Instant::now();
        while busy.load(Ordering::Relaxed) < cell.connections && asked.elapsed() < TURN_DEADLINE {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(bench.plan.warm_up);
        let began = look();
        thread::sleep(window);
        let mut ended = look();
        while ended.1 - began.1 < CPU_COUNTABLE || ended.2 == began.2 {
            if asked.elapsed() > TURN_DEADLINE {
                break;
            }
            thread::sleep(TURN_GOES_ON);
            ended = look();
        }
        let anonymous = anonymous_bytes(server.pid);
        done.store(true, Ordering::Relaxed);
        (began, ended, anonymous)
    });
    let (seconds, cpu) = ((ended.0 - began.0).as_secs_f64(), ended.1 - began.1);
    let gigabytes = (ended.2 - began.2) as f64 / 1e9;
    // Nothing stands in for what was not measured: a mean over it would be made up.
    assert!(gigabytes > 0.0 && cpu > 0.0, "nothing to count of {} in {seconds:.0} s", server.kind.name());
    let mut first_bytes = first_bytes.into_inner().unwrap();
    Turn {
        kind: server.kind,
        cell,
        rate: gigabytes / seconds,
        cpu_per_gb: cpu / gigabytes,
        first_byte_ms: percentile(&mut first_bytes, 0.99),
        anonymous_mib: anonymous as f64 / f64::from(1 << 20),
    }
}

/// The median over the turns of a server in a cell.
pub(crate) fn middle(turns: &[Turn], kind: Kind, cell: Cell, figure: fn(&Turn) -> f64) -> f64 {
    median(turns.iter().filter(|turn| turn.kind == kind && turn.cell == cell).map(figure))
}

/// The geometric mean, over all cells, of a figure of one server.
fn mean(turns: &[Turn], kind: Kind, cells: &[Cell], figure: fn(&Turn) -> f64) -> f64 {
    geometric_mean(cells.iter().map(|cell| middle(turns, kind, *cell, figure)))
}

/// How many times the figure of one server berth's is, by geometric means over all cells.
pub(crate) fn berth_to(turns: &[Turn], kind: Kind, cells: &[Cell], figure: fn(&Turn) -> f64) -> f64 {
    mean(turns, Kind::Berth, cells, figure) / mean(turns, kind, cells, figure)
}

/// Compares what turns came to with those of an earlier berth.
pub(crate) fn compare(bars: &Bars, scenario: &'static str, turns: &[Turn], cells: &[Cell]) {
    let compare = |what, better, figure: fn(&Turn) -> f64| {
        bars.compare(scenario, what, better, |kind| mean(turns, kind, cells, figure));
    };
    compare("GB/s (geometric mean)", Better::More, |turn| turn.rate);
    compare("CPU-seconds per GB (geometric mean)", Better::Less, |turn| turn.cpu_per_gb);
    compare("first byte, p99, ms (geometric mean)", Better::Less, |turn| turn.first_byte_ms);
    compare("anonymous memory, MiB (geometric mean)", Better::Less, |turn| turn.anonymous_mib);
}

/// Prints a figure of all servers in all cells.
pub(crate) fn show(title: &str, turns: &[Turn], cells: &[Cell], digits: usize, figure: fn(&Turn) -> f64) {
    let mut kinds: Vec<Kind> = Vec::new();
    for turn in turns {
        if !kinds.contains(&turn.kind) {
            kinds.push(turn.kind);
        }
    }
    let row = |kind: &Kind| {
        let figures = cells.iter().map(|cell| format!("{:.digits$}", middle(turns, *kind, *cell, figure)));
        let mean = format!("{:.2}×", 1.0 / berth_to(turns, *kind, cells, figure));
        [kind.name().to_owned()].into_iter().chain(figures).chain([mean]).collect()
    };
    let rows: Vec<Vec<String>> = kinds.iter().map(row).collect();
    let column = |cell: &Cell| match cell.bytes >> 20 {
        0 => format!("{} KiB × {}", cell.bytes >> 10, cell.connections),
        mebibytes => format!("{mebibytes} MiB × {}", cell.connections),
    };
    let columns: Vec<String> = cells.iter().map(column).collect();
    let columns = columns.iter().map(String::as_str);
    let head: Vec<&str> = [""].into_iter().chain(columns).chain(["geometric mean (berth = 1)"]).collect();
    table::print(title, &head, &rows);
}
