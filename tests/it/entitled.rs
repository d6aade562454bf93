//! F1, F2: who was entitled to what. Random cases of the whole daemon against a model of its rights.
//!
//! No client gets a byte that came with a login unless its own registry granted it; no unproven byte of one registry
//! reaches the client of another; nobody waits for a registry that is not its own. The model is in
//! `support::entitlement`.
//!
//! `BERTH_CASES=2000 BERTH_SEED=7 cargo test --test it entitled` is a long run. A failure names the seed of its case,
//! and `BERTH_CASES=1 BERTH_SEED=…` plays that one alone.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::entitlement::{Case, Entry, World, play, prelude, sweep};

/// What every run of the tests plays.
const CASES: u64 = 200;
const SEED: u64 = 1;
/// Cases in one world: more would make what the fakes remember long, fewer would start daemons most of the time.
const WAVE: usize = 50;
/// Cases at once. Most of the time of a case is waiting.
const AT_ONCE: usize = 12;
/// Failed cases that are told.
const TOLD_MAX: usize = 20;

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_sees_what_its_own_registry_did_not_give() {
    let (cases, first) = (number("BERTH_CASES", CASES), number("BERTH_SEED", SEED));
    let seeds: Vec<u64> = (0..cases).map(|at| first.wrapping_add(at)).collect();
    let mut failed = Vec::new();
    // A case is always played in a world of one kind, so that its seed says everything.
    for (kind, complete) in [(0, "never"), (1, "auto")] {
        let of_kind: Vec<_> = seeds.iter().filter(|seed| *seed % 2 == kind).collect();
        for wave in of_kind.chunks(WAVE) {
            failed.extend(play_all(complete, wave.iter().map(|seed| Case::new(**seed)).collect()).await);
        }
    }
    let count = failed.len();
    failed.truncate(TOLD_MAX);
    assert!(failed.is_empty(), "{count} of {cases} cases failed, among them:\n{}", failed.join("\n"));
}

/// Plays cases in one world, and tells of those that failed.
async fn play_all(complete: &str, cases: Vec<Case>) -> Vec<String> {
    let world = Arc::new(World::start(complete).await);
    let gates: Vec<_> = cases.iter().map(|case| world.arm(case)).collect();
    for case in &cases {
        prelude(&world, case).await;
    }
    world.until_idle().await;
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut playing = JoinSet::new();
    for (case, gates) in cases.iter().cloned().zip(gates) {
        let (world, room) = (Arc::clone(&world), Arc::clone(&room));
        playing.spawn(async move {
            let _room = room.acquire().await;
            play(&world, &case, gates).await.err().map(|wrong| format!("{wrong}\n{case:?}"))
        });
    }
    let mut failed = playing.join_all().await;
    // What outlives the process was granted for good.
    let mut world = Arc::into_inner(world).expect("nobody plays any more");
    world.restart().await;
    let world = Arc::new(world);
    let mut sweeping = JoinSet::new();
    for case in cases.into_iter().filter(|case| case.steps[0].entry == Entry::Alone) {
        let (world, room) = (Arc::clone(&world), Arc::clone(&room));
        sweeping.spawn(async move {
            let _room = room.acquire().await;
            sweep(&world, &case, 1).await.err().map(|wrong| format!("after a restart: {wrong}\n{case:?}"))
        });
    }
    failed.extend(sweeping.join_all().await);
    failed.into_iter().flatten().collect()
}
