//! One case, played: each step is begun when the one before has its answer, or waits for what the case holds back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::case::{Case, Place, Registry, Source, Step, What};
use super::verdict::{Seen, judge};
use super::world::{Gates, World};
use crate::support::Berth;

/// How long an answer may take that nothing stands in the way of: less than a runtime's patience.
const ANSWER_MAX: Duration = Duration::from_secs(18);
/// How long a client has patience with a registry that lies. Nothing is concluded from it.
const PATIENCE: Duration = Duration::from_millis(150);
/// Between two looks whether a transfer stands still.
const PAUSE: Duration = Duration::from_millis(3);
/// Places that are asked once more in the end.
const SWEEP: usize = 2;

/// A request under way, and what came so far.
struct Asked {
    step: Step,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// The part of a case that leaves pieces of the content behind.
pub(crate) async fn prelude(world: &World, case: &Case) {
    if let Some(step) = case.prelude {
        let mut asked = begin(world.berth(step.entry), case, step);
        let _ = timeout(ANSWER_MAX, &mut asked.task).await;
    }
}

/// Plays the rest, and says what was wrong.
///
/// # Errors
/// The step, and what its client should not have seen.
pub(crate) async fn play(world: &World, case: &Case, gates: Gates) -> Result<(), String> {
    let mut waiting = Vec::new();
    for step in &case.steps {
        let mut asked = begin(world.berth(step.entry), case, *step);
        if ends(world, case, &mut asked).await? {
            check(world, case, &asked)?;
        } else {
            waiting.push(asked);
        }
    }
    for (_, gate) in gates {
        gate.open();
    }
    for mut asked in waiting {
        let _ = timeout(PATIENCE, &mut asked.task).await;
        asked.task.abort();
        check(world, case, &asked)?;
    }
    // What was kept of all that counts for whoever comes later, too.
    sweep(world, case, SWEEP).await
}

/// Asks some places for the content once more, when all is over.
///
/// # Errors
/// The place, and what its client should not have seen.
pub(crate) async fn sweep(world: &World, case: &Case, places: usize) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(case.seed ^ places as u64);
    for _ in 0..places {
        let registry = Registry::ALL[random.usize(..Registry::ALL.len())];
        let place = Place { registry, repository: random.usize(..registry.repositories().len()) };
        let what = if case.is_manifest && random.bool() { What::Manifest } else { What::Get };
        let mut asked = begin(world.berth(case.steps[0].entry), case, Step { place, what, ..case.steps[0] });
        let patience = if case.is_served_at(place) { ANSWER_MAX } else { PATIENCE };
        let _ = timeout(patience, &mut asked.task).await;
        asked.task.abort();
        check(world, case, &asked)?;
        check_served(case, &asked)?;
    }
    Ok(())
}

/// Waits for the end of a request; false if it is to be left waiting, because its own registry holds it up or lies.
async fn ends(world: &World, case: &Case, asked: &mut Asked) -> Result<bool, String> {
    let place = asked.step.place;
    if case.is_served_at(place) {
        let _ = timeout(ANSWER_MAX, &mut asked.task).await;
        check(world, case, asked)?;
        return check_served(case, asked).map(|()| true);
    }
    let until = Instant::now() + PATIENCE;
    while !asked.task.is_finished() && Instant::now() < until {
        if world.is_holding(case, place.registry) {
            break;
        }
        let _ = timeout(PAUSE, &mut asked.task).await;
    }
    Ok(asked.task.is_finished())
}

/// A registry that has the content, and holds nothing back, gives it, whatever others do.
fn check_served(case: &Case, asked: &Asked) -> Result<(), String> {
    let step = asked.step;
    if !case.is_served_at(step.place) {
        return Ok(());
    }
    let seen = asked.seen.lock().unwrap();
    let size = case.size();
    let content = &case.content.manifest;
    let (status, start, end) = match step.what {
        What::Get => (200, 0, size),
        What::Manifest if case.is_manifest => (200, 0, size),
        What::Closed(first, last) => (206, first, last + 1),
        What::From(first) => (206, first, size),
        What::Suffix(count) => (206, size - count.min(size), size),
        What::Head => (200, 0, 0),
        What::Abort(_) | What::Trap | What::Referrers | What::Manifest => return Ok(()),
    };
    let is_right = seen.status == status
        && seen.is_complete
        && seen.body == content[start as usize..end as usize]
        && seen.total.is_none_or(|total| total == size);
    if is_right {
        return Ok(());
    }
    let came = seen.body.len();
    Err(format!(
        "{step:?}: its registry has it and gives it, but {} and {came} bytes came, complete: {}",
        seen.status, seen.is_complete
    ))
}

fn check(world: &World, case: &Case, asked: &Asked) -> Result<(), String> {
    let seen = asked.seen.lock().unwrap().clone();
    let sent = Source::ALL.into_iter().map(|source| (source, world.sent(case, source))).collect();
    judge(case, asked.step.place, asked.step.what, &seen, &sent)
        .map_err(|wrong| format!("{:?}: {wrong}", asked.step))
}

/// Sends a request, and keeps what comes of it as it comes.
fn begin(berth: &Berth, case: &Case, step: Step) -> Asked {
    let repository = format!("{}/{}", step.place.registry.name(), step.place.repository(case));
    let digest = case.digest;
    let blob = format!("/v2/{repository}/blobs/{digest}");
    let ask = match step.what {
        What::Get | What::Abort(_) => berth.get(&blob),
        What::Head => berth.head(&blob),
        What::Closed(first, last) => berth.get(&blob).range(&format!("{first}-{last}")),
        What::From(first) => berth.get(&blob).range(&format!("{first}-")),
        What::Suffix(count) => berth.get(&blob).range(&format!("-{count}")),
        What::Manifest => berth.get(&format!("/v2/{repository}/manifests/{digest}")),
        What::Trap => berth.get(&format!("/v2/{repository}/manifests/trap")),
        What::Referrers => berth.get(&format!("/v2/{repository}/referrers/{digest}")),
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let written = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        let Ok(mut open) = ask.try_open().await else { return };
        let number = |name: &str| open.header(name).and_then(|value| value.parse().ok());
        let range = open.header("content-range").and_then(berth::oci::range::ContentRange::parse);
        let (total, start) = match range {
            Some(range) => (range.total, range.span.start),
            None => (number("content-length"), 0),
        };
        {
            let mut seen = written.lock().unwrap();
            (seen.status, seen.total, seen.start) = (open.status, total, start);
        }
        let enough = if let What::Abort(bytes) = step.what { bytes } else { u64::MAX };
        let mut came = 0;
        while came < enough {
            match open.chunk().await {
                None => {
                    written.lock().unwrap().is_complete = true;
                    return;
                }
                Some(Err(_)) => return,
                Some(Ok(more)) => {
                    came += more.len() as u64;
                    written.lock().unwrap().body.extend_from_slice(&more);
                }
            }
        }
    });
    Asked { step, seen, task }
}
