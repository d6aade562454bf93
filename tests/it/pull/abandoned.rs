//! Requests that nobody waits for any more, and more of them than an upstream should have at once (F9: they all went on),
//! and a machine that has no file descriptor left (F9: it counted as the upstream's failure).

use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::task::JoinSet;

use crate::support::{Berth, Fault, Gate, Image, Reply, Setup, Upstream, eventually, within_deadline};

const REPO: &str = "library/app";
/// Requests to one upstream at once, as it is by default.
const AT_ONCE: usize = 64;
/// Clients that come and leave.
const CROWD: usize = 100;
/// Nobody is to give up while a test holds an answer back.
const PATIENT: &str = "timeouts = { header_seconds = 17 }";

/// A crowd that asks for these paths.
fn crowd(berth: &Berth, path: impl Fn(usize) -> (&'static str, String)) -> JoinSet<Reply> {
    let mut asking = JoinSet::new();
    for number in 0..CROWD {
        let (method, path) = path(number);
        asking.spawn(berth.ask(method, &path).into_future());
    }
    asking
}

async fn in_flight(berth: &Berth) -> f64 {
    berth.metric("registry_http_in_flight_requests").await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_waits_for_stop_and_never_are_there_many_at_once() {
    let digest = Image::of(2, &[10]).layer().digest;
    let kinds: [&dyn Fn(usize) -> (&'static str, String); 4] = [
        &|number| ("GET", format!("/v2/{REPO}/manifests/held-{number}")),
        &|number| ("GET", format!("/v2/{REPO}/held-{number}/manifests/{digest}")),
        &|number| ("HEAD", format!("/v2/{REPO}/held-{number}/blobs/{digest}")),
        &|number| ("GET", format!("/v2/{REPO}/held-{number}/referrers/{digest}")),
    ];
    for kind in kinds {
        let upstream = Upstream::start().await;
        let image = Image::of(1, &[1000]);
        upstream.image(REPO, "1", &image);
        let gate = Gate::new();
        upstream.on("*", "held-").fault(Fault::Hold(gate.clone()));
        let berth = Berth::with("docker.io", &upstream).keys(PATIENT).start().await;
        let asking = crowd(&berth, kind);
        let what = kind(0).1;
        eventually(&format!("all have come: {what}"), async || in_flight(&berth).await == CROWD as f64).await;
        eventually("there is no room", async || upstream.count("*", "held-") == AT_ONCE).await;
        drop(asking);
        eventually(&format!("all have left: {what}"), async || in_flight(&berth).await == 0.0).await;
        // Whoever left last had the places of those before. With all answers still held back there is room again.
        let sent = upstream.count("*", "held-");
        assert!(sent < CROWD, "{what}: {sent}");
        berth.pull(REPO, "1", &image).await;
        gate.open();
        berth.get(&format!("/v2/{REPO}/tags/list")).await.expect(200);
        assert_eq!(upstream.count("*", "held-"), sent, "{what}: nobody waits for more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_find_no_room_in_time_say_when_to_come_back() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &Image::of(1, &[1000]));
    let gate = Gate::new();
    upstream.on("*", "held").fault(Fault::Hold(gate.clone()));
    let setup = Berth::with("docker.io", &upstream).keys("limits = { concurrent_requests = 1 }");
    let berth = setup.keys("timeouts = { header_seconds = 12, budget_seconds = 12 }").start().await;
    let held = tokio::spawn(berth.get(&format!("/v2/{REPO}/manifests/held")).into_future());
    eventually("it is held", async || upstream.count("*", "held") == 1).await;
    let reply = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    reply.expect(503);
    assert_eq!(reply.error_code(), "TOOMANYREQUESTS");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(upstream.count("*", "/manifests/1"), 0);
    gate.open();
    held.await.unwrap();
    berth.get(&format!("/v2/{REPO}/manifests/1")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_has_begun_to_answer_is_kept_although_the_client_has_left() {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[10]);
    upstream.image(REPO, "1", &image);
    let gate = Gate::new();
    let path = image.path(REPO);
    upstream.on("GET", &path).fault(Fault::HoldAfter(10, gate.clone()));
    let berth = Berth::with("docker.io", &upstream).keys(PATIENT).start().await;
    let asking = tokio::spawn(berth.get(&path).into_future());
    eventually("it comes", async || upstream.seen("GET", &path).iter().any(|it| it.bytes_sent() >= 10)).await;
    // The head of the answer is a word of upstream's: once it has been counted, it is here.
    eventually("the head is here", async || {
        berth.metric("berth_upstream_requests_total{outcome=\"ok\"").await >= 1.0
    })
    .await;
    asking.abort();
    eventually("the client has left", async || in_flight(&berth).await == 0.0).await;
    gate.open();
    eventually("it is kept", async || {
        let reply = berth.get(&path).await;
        reply.expect(200);
        reply.header("cache-status") == Some("berth; hit")
    })
    .await;
    assert_eq!(upstream.count("GET", &path), 1);
}

/// Leaves the daemon room for one more file than it has open now.
fn leave_room_for_one(pid: Pid) {
    let folder = Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("fd");
    let open: Vec<u64> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    let free = (0..).filter(|number| !open.contains(number)).take(1).last().unwrap();
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(free + 1), maximum: Some(4096) }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_for_a_connection_to_it_an_upstream_is_not_blamed() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(4, &[10]);
    upstream.image(REPO, "1", &image);
    other.image(REPO, "1", &image);
    // Every request needs a connection of its own: one that is open already needs no file.
    other.on("*", "").fault(Fault::UntilClose);
    let setup: Setup = Berth::with("docker.io", &upstream).and("other.example", &other);
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    let pid = Pid::from_raw(berth.pid().cast_signed()).unwrap();
    let path = format!("/v2/other.example/{REPO}/tags/list");
    // One may find no file for the client itself, and waits until there are more.
    let mut asking = JoinSet::new();
    eventually("it lacks files", async || {
        leave_room_for_one(pid);
        asking.spawn(berth.get(&path).try_send());
        berth.logs_contain("raise its limits")
    })
    .await;
    drop(asking);
    let more = Rlimit { current: Some(4096), maximum: Some(4096) };
    prlimit(Some(pid), Resource::Nofile, more).unwrap();
    within_deadline("an answer", async { berth.get(&path).await }).await.expect(200);
    assert_eq!(other.count("GET", "/v2/?") + other.count("GET", "/v2/ "), 0, "there was nothing to probe");
    assert!(!berth.logs_contain("does not answer"), "the circuit");
    assert!(!berth.logs_contain("gives no usable answer"), "the circuit");
    assert!(berth.metric("berth_upstream_refused_total{limit=\"machine\"").await >= 1.0);
    for outcome in ["error", "timeout"] {
        let name = format!("berth_upstream_requests_total{{outcome=\"{outcome}\",registry=\"other.example\"");
        assert_eq!(berth.metric(&name).await, 0.0, "{outcome}");
    }
}
