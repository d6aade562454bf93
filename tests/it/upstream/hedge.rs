//! A second endpoint asked beside one that is late with the head of its answer; a body comes from one.

use crate::support::{Berth, Blob, Fault, Gate, Image, Setup, Upstream, eventually, together};
use berth::oci::Algorithm;

const REPO: &str = "library/app";
/// Longer than any test, so that nothing but a hedge brings an answer.
const PATIENT: &str = "timeouts = { header_seconds = 60, budget_seconds = 60 }";
const HEDGES: &str = "berth_upstream_hedges_total{registry=\"docker.io\"";

async fn two() -> (Upstream, Upstream) {
    (Upstream::start().await, Upstream::start().await)
}

fn mirror(first: &Upstream, second: &Upstream) -> Setup {
    Berth::with("docker.io", first).endpoint(second).keys(PATIENT)
}

#[tokio::test]
async fn the_second_endpoint_answers_in_the_place_of_a_late_one() {
    for (method, part) in [("HEAD", "/manifests/"), ("GET", "/manifests/"), ("GET", "/blobs/")] {
        let (first, second) = two().await;
        let (prompt, late) = (Image::of(1, &[30_000]), Image::of(2, &[30_000]));
        for upstream in [&first, &second] {
            upstream.image(REPO, "prompt", &prompt).image(REPO, "late", &late);
        }
        let berth = mirror(&first, &second).start().await;
        berth.pull(REPO, "prompt", &prompt).await;
        // A machine that stands still for a second may have seen to one.
        let before = berth.metric(HEDGES).await;
        assert_eq!(second.requests().len() as f64, before, "without a hedge the second is not asked");

        let gate = Gate::new();
        first.on(method, part).first(1).fault(Fault::Hold(gate.clone()));
        first.forget();
        berth.pull(REPO, "late", &late).await;
        assert_eq!(
            first.count(method, part),
            if part == "/blobs/" { late.closure()[0].blobs.len() } else { 1 }
        );
        let hedges = berth.metric(HEDGES).await;
        assert_eq!(second.requests().len() as f64, hedges, "each is one request");
        assert!(second.count(method, part) > 0 && hedges > before, "{method} {part}");
        let sent = |upstream: &Upstream| -> u64 {
            late.closure()[0].blobs.iter().map(|blob| upstream.bytes_sent(&blob.digest)).sum()
        };
        let all: u64 = late.closure()[0].blobs.iter().map(Blob::len).sum();
        assert_eq!(sent(&first) + sent(&second), all, "one body");

        // What the first still has to say changes nothing.
        let pulled = berth.metric("registry_proxy_pulled_bytes_total").await;
        gate.open();
        berth.pull(REPO, "late", &late).await;
        assert_eq!(berth.metric("registry_proxy_pulled_bytes_total").await, pulled);
    }
}

/// Whose requests are all answered elsewhere never fails at one of them.
#[tokio::test]
async fn an_endpoint_that_has_become_silent_is_found_out_all_the_same() {
    let (first, second) = two().await;
    let (known, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    for upstream in [&first, &second] {
        upstream.image(REPO, "known", &known).image(REPO, "new", &new);
    }
    let berth = mirror(&first, &second).start().await;
    berth.pull(REPO, "known", &known).await;
    first.on("*", "").fault(Fault::StallHead);
    assert_eq!(berth.get(&new.layer().path(REPO)).await.expect(200), &new.layer().content);
    berth.until_logged("gives no usable answer to anything").await;
    first.forget();
    berth.pull(REPO, "new", &new).await;
    assert!(first.requests().iter().all(|request| request.target == "/v2/"), "{:?}", first.requests());
}

#[tokio::test]
async fn a_second_endpoint_without_the_content_leaves_it_to_the_late_one() {
    let (first, second) = two().await;
    let image = Image::of(1, &[30_000]);
    first.image(REPO, "1", &image);
    let gate = Gate::new();
    first.on("GET", "/blobs/").first(1).fault(Fault::Hold(gate.clone()));
    let berth = mirror(&first, &second).start().await;
    let pull = async {
        eventually("the second is asked", async || second.count("GET", "/blobs/") == 1).await;
        gate.open();
    };
    tokio::join!(berth.pull(REPO, "1", &image), pull);
    assert_eq!(first.bytes_sent(&image.layer().digest), image.layer().len());
}

#[tokio::test]
async fn a_slow_registry_is_not_asked_twice_as_much() {
    const BLOBS: usize = 40;
    let (first, second) = two().await;
    let blob = |at: usize| Blob::new(Algorithm::Sha256, format!("blob {at}").into());
    for at in 0..BLOBS {
        first.blob(REPO, &blob(at));
        second.blob(REPO, &blob(at));
    }
    let gate = Gate::new();
    first.on("GET", "/blobs/").fault(Fault::Hold(gate.clone()));
    let berth = mirror(&first, &second).start().await;
    let readers = together(BLOBS, |at| berth.get(&blob(at).path(REPO)).into_future());
    let slow = async {
        // Those that may not be hedged wait for the first.
        eventually("some are hedged", async || second.count("GET", "/blobs/") > 0).await;
        eventually("all are asked of the first", async || first.count("GET", "/blobs/") == BLOBS).await;
        gate.open();
    };
    let (replies, ()) = tokio::join!(readers, slow);
    for (at, reply) in replies.iter().enumerate() {
        assert_eq!(reply.expect(200), &blob(at).content);
    }
    let hedged = second.count("GET", "/blobs/");
    assert!(hedged <= 10 + BLOBS / 10, "{hedged} of {BLOBS} were asked twice");
}

/// What is late at a parent is mostly being fetched there.
#[tokio::test]
async fn nobody_is_asked_beside_a_parent() {
    let (parent, other) = two().await;
    let (first, second) = two().await;
    let image = Image::of(1, &[30_000]);
    for upstream in [&parent, &first, &second] {
        upstream.blob(REPO, image.layer());
    }
    let gate = Gate::new();
    parent.on("GET", "/blobs/").fault(Fault::Hold(gate.clone()));
    // A clock: this is asked later, and what is late there is so for as long.
    let (clock, clock_hand) = (Image::of(2, &[3000]), Upstream::start().await);
    other.blob(REPO, clock.layer()).on("GET", "/blobs/").fault(Fault::StallHead);
    clock_hand.blob(REPO, clock.layer());
    let setup = mirror(&first, &second).and("quay.io", &other).endpoint(&clock_hand);
    let setup = setup.keys(PATIENT).keys("parents = false");
    let parents = format!("[parents]\nendpoints = [{:?}]\n{PATIENT}", parent.url());
    let berth = setup.sections(&parents).start().await;
    let reader = tokio::spawn(berth.get(&image.layer().path(REPO)).into_future());
    eventually("the parent is asked", async || parent.count("GET", "/blobs/") == 1).await;
    let path = format!("/v2/quay.io{}", &clock.layer().path(REPO)["/v2".len()..]);
    assert_eq!(berth.get(&path).await.expect(200), &clock.layer().content);
    assert_eq!((first.count("*", "/blobs/"), second.count("*", "/blobs/")), (0, 0));
    gate.open();
    assert_eq!(reader.await.unwrap().expect(200), &image.layer().content);
    assert_eq!(berth.metric(HEDGES).await, 0.0);
}
