//! A blob that is there, over TLS 1.3 with AES-128-GCM: how fast, and for how much CPU time of the server?
//!
//! Varnish and distribution are not asked: the one speaks no TLS, the other's is Go's and would tell of that.
//! The client decrypts on a core of its own, and may be the limit: then the CPU time says more than the rate.

use crate::Bench;
use crate::client::{Reading, tls_configuration};
use crate::load::{self, berth_to, measure, show};
use crate::parts::hot::{hold_blobs, path_of, start_filled};
use crate::scene::Scene;
use crate::server::Kind;

const SERVERS: &[Kind] = &[Kind::Berth, Kind::NginxStatic, Kind::TrafficServer];
const SCENARIO: &str = "TLS 1.3 blob";

pub(crate) fn run(bench: &Bench) {
    let mut scene = Scene::new(bench).over_tls();
    let image = hold_blobs(bench, &mut scene);
    let reading = Reading::Tls(tls_configuration(&scene.certificate.as_ref().unwrap().ca()));
    let servers = start_filled(bench, &scene, bench.compared(SERVERS), &reading);
    let path = |bytes| path_of(&image, bytes);
    let turns = measure(bench, &servers, path, &reading, bench.plan.other_rounds);
    let cells = load::cells(&bench.plan.hot_bytes);
    show("**Hot blob over TLS**: GB/s; size × connections", &turns, &cells, 2, |turn| turn.rate);
    show("**Hot blob over TLS**: CPU-seconds per GB", &turns, &cells, 2, |turn| turn.cpu_per_gb);
    if bench.is_against_before() {
        return load::compare(&bench.bars, SCENARIO, &turns, &cells);
    }
    let rate = berth_to(&turns, Kind::NginxStatic, &cells, |turn| turn.rate);
    bench.bars.at_least(SCENARIO, "GB/s, of nginx, static files (geometric mean)", rate, 1.3);
    let cpu = berth_to(&turns, Kind::NginxStatic, &cells, |turn| turn.cpu_per_gb);
    bench.bars.at_most(SCENARIO, "CPU-seconds per GB, of nginx, static files (geometric mean)", cpu, 0.7);
}
