//! F1, F2: who was entitled to what. Random cases of the whole daemon against a model of its rights.
//!
//! No client gets a byte that came with a login unless its own registry granted it; no unproven byte of one registry
//! reaches the client of another; nobody waits for a registry that is not its own. The model is in
//! `support::entitlement`.
//!
//! `BERTH_CASES=2000 BERTH_SEED=7 cargo test --test it entitled` is a long run. A failure names the seed of its case,
//! and `BERTH_CASES=1 BERTH_SEED=…` plays that one alone.

use std::sync::Arc;

use berth::store::RangeSet;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::entitlement::{
    Case, Course, Entry, Place, Registry, Seen, Size, Source, Stance, What, World, judge, play, prelude,
    sweep,
};

/// What every run of the tests plays.
const CASES: u64 = 200;
const SEED: u64 = 1;
/// Cases in one world: more would make what the fakes remember long, fewer would start daemons most of the time.
const WAVE: usize = 50;
/// Cases at once. Most of the time of a case is waiting.
const AT_ONCE: usize = 24;
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

#[test]
fn the_model_tells_whose_a_byte_is() {
    let is_wanted = |case: &Case| {
        !case.is_manifest
            && case.stance(Source::Private) == Stance::Honest
            && case.stance(Source::Evil) == Stance::Claims(Size::Wrong)
            && case.stance(Source::EvilLogin) == Stance::Lies(Size::Right, Course::Whole)
    };
    let case = (0..).map(Case::new).find(is_wanted).unwrap();
    let (content, size) = (case.content.manifest.clone(), case.size());
    let seen = |body: &[u8]| Seen {
        status: 200,
        total: Some(size),
        start: 0,
        body: body.to_vec(),
        is_complete: false,
    };
    let check = |registry, repository, seen: &Seen, who_sent: &[Source], is_right: bool| {
        let sent = who_sent.iter().map(|source| (*source, RangeSet::prefix(size))).collect();
        let judged = judge(&case, Place { registry, repository }, What::Get, seen, &sent);
        assert_eq!(judged.is_ok(), is_right, "{registry:?} {repository}: {judged:?}");
    };
    let right = seen(&content);
    check(Registry::Private, 0, &right, &[Source::Private], true);
    check(Registry::Private, 1, &right, &[Source::Private], case.is_in_both);
    check(Registry::Private, 2, &right, &[Source::Private], false);
    for registry in [Registry::Evil, Registry::EvilLogin, Registry::Open, Registry::Guarded] {
        check(registry, 0, &right, &[Source::Private], false);
        check(registry, 0, &right, &[Source::Open], true);
    }
    check(Registry::Evil, 1, &right, &[Source::Private, Source::Evil], true);
    let lie = seen(&case.sent_by(Source::EvilLogin).unwrap());
    check(Registry::EvilLogin, 0, &lie, &[], true);
    check(Registry::Evil, 0, &lie, &[], false);
    check(Registry::EvilLogin, 0, &Seen { is_complete: true, ..lie }, &[], false);
    let empty = |total| Seen { total: Some(total), ..seen(&[]) };
    check(Registry::Evil, 0, &empty(case.wrong_size(Source::Evil)), &[], true);
    check(Registry::Open, 0, &empty(case.wrong_size(Source::Evil)), &[], false);
    check(Registry::Evil, 0, &empty(size), &[Source::Private], false);
}
