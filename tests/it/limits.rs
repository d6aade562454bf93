//! Limits: how much is asked of an upstream, and what clients hear when it is no more.

mod crowd;
mod shares;

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Berth, Blob, Fault, Gate, Image, Reply, Setup, Upstream, eventually, together};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
const CHECK_ALWAYS: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";

/// An upstream with an image of so many layers, and a berth with these limits of it.
async fn limited(layers: usize, limits: &str) -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &vec![3000; layers]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream).keys(&format!("limits = {{ {limits} }}"));
    (upstream, setup, image)
}

fn blob(seed: u64, len: usize) -> Blob {
    Image::of(seed, &[len]).layer().clone()
}

/// Asks for all blobs of an image at once.
async fn all_blobs(berth: &Berth, image: &Image) -> Vec<Reply> {
    let asks: Vec<_> = image.blobs.iter().map(|blob| berth.get(&blob.path(REPO))).collect();
    together(asks.len(), move |at| asks[at].clone().into_future()).await
}

async fn waits(berth: &Berth, limit: &str) -> f64 {
    berth.metric(&format!("berth_upstream_waits_total{{limit=\"{limit}\",registry=\"docker.io\"}}")).await
}

async fn refused(berth: &Berth, limit: &str) -> f64 {
    berth.metric(&format!("berth_upstream_refused_total{{limit=\"{limit}\",registry=\"docker.io\"}}")).await
}

/// The seconds of an answer that says to come again later.
#[track_caller]
fn later(reply: &Reply) -> u64 {
    reply.expect(503);
    assert_eq!(reply.error_code(), "TOOMANYREQUESTS");
    reply.header("retry-after").expect("when to come again").parse().unwrap()
}

// === What the operator allows

#[tokio::test]
async fn requests_to_an_upstream_wait_for_their_turn() {
    let (upstream, setup, image) = limited(19, "requests_per_second = 10").await;
    let berth = setup.start().await;
    let start = Instant::now();
    for (reply, blob) in all_blobs(&berth, &image).await.iter().zip(&image.blobs) {
        assert_eq!(reply.expect(200), &blob.content);
    }
    let allowed = 10.0 + start.elapsed().as_secs_f64() * 10.0;
    assert!(upstream.requests().len() as f64 <= allowed, "{} of {allowed}", upstream.requests().len());
    assert!(waits(&berth, "requests").await >= 1.0);
    assert_eq!(refused(&berth, "requests").await, 0.0);
}

#[tokio::test]
async fn who_cannot_have_a_turn_in_time_hears_so_at_once() {
    let (upstream, setup, image) = limited(30, "requests_per_second = 1").await;
    let keys = "timeouts = { header_seconds = 1, budget_seconds = 3 }";
    let berth = setup.keys(keys).sections(CHECK_ALWAYS).start().await;
    let mut replies = all_blobs(&berth, &image).await;
    let sent = upstream.requests().len();
    replies.retain(|reply| reply.status != 200);
    assert_eq!(replies.len() + sent, image.blobs.len(), "who is refused has asked nobody");
    assert!(replies.iter().all(|reply| (2..=40).contains(&later(reply))));
    assert_eq!(refused(&berth, "requests").await, replies.len() as f64);
    assert!(replies.len() >= 20, "there is no time for so many");
}

#[tokio::test]
async fn a_limit_is_no_reason_not_to_serve_what_is_known() {
    let (upstream, setup, image) = limited(1, "requests_per_second = 0.01").await;
    let data = tempfile::tempdir().unwrap();
    let mut free = Berth::with("docker.io", &upstream).data_dir(&data.path().join("data")).start().await;
    free.pull(REPO, "1", &image).await;
    free.until_idle().await;
    free.stop().await;
    let berth = setup.data_dir(&data.path().join("data")).sections(CHECK_ALWAYS).start().await;
    assert_eq!(berth.get(TAG).await.header("warning"), None, "the one request that may be sent");
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    assert_eq!(later(&berth.get("/v2/library/app/manifests/2").await), 100);
}

#[tokio::test]
async fn transfers_wait_for_room() {
    let (upstream, setup, image) = limited(5, "concurrent_transfers = 2").await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(10, gate.clone()));
    let berth = setup.start().await;
    let asks: Vec<_> = image.blobs.iter().map(|blob| berth.get(&blob.path(REPO))).collect();
    let count = asks.len();
    let clients = tokio::spawn(together(count, move |at| asks[at].clone().into_future()));
    let waiting = (count - 2) as f64;
    eventually("all but two wait", async || waits(&berth, "transfers").await == waiting).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
    gate.open();
    for (reply, blob) in clients.await.unwrap().iter().zip(&image.blobs) {
        assert_eq!(reply.expect(200), &blob.content);
    }
}

#[tokio::test]
async fn a_client_that_wants_much_holds_up_nobody_who_wants_little() {
    let (upstream, setup, image) = limited(8, "concurrent_transfers = 1").await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(10, gate.clone()));
    let berth = setup.start().await;
    let (last, first) = image.blobs.split_last().unwrap();
    let much: Vec<_> = first.iter().map(|blob| berth.get(&blob.path(REPO))).collect();
    let much = tokio::spawn(together(first.len(), move |at| much[at].clone().into_future()));
    eventually("all but one wait", async || waits(&berth, "transfers").await == (first.len() - 1) as f64)
        .await;
    let little = tokio::spawn(berth.get(&last.path(REPO)).coming_from("127.0.0.2").into_future());
    eventually("and another", async || waits(&berth, "transfers").await == first.len() as f64).await;
    gate.open();
    assert_eq!(little.await.unwrap().expect(200), &last.content);
    for reply in much.await.unwrap() {
        reply.expect(200);
    }
    let gets: Vec<_> =
        upstream.requests().into_iter().filter(|request| request.target.contains("/blobs/")).collect();
    let place = gets.iter().position(|request| request.target == last.path(REPO));
    assert!(place.is_some_and(|place| place <= 2), "{place:?} of {}", gets.len());
}

#[tokio::test]
async fn who_finds_no_room_for_a_transfer_is_told_when_to_come_again() {
    let (upstream, setup, image) = limited(2, "concurrent_transfers = 1").await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(10, gate.clone()));
    let berth = setup.keys("timeouts = { header_seconds = 1, budget_seconds = 1 }").start().await;
    let first = tokio::spawn(berth.get(&image.blobs[0].path(REPO)).into_future());
    eventually("one is under way", async || upstream.count("GET", "/blobs/") == 1).await;
    assert_eq!(later(&berth.get(&image.blobs[1].path(REPO)).await), 5);
    assert_eq!(refused(&berth, "transfers").await, 1.0);
    gate.open();
    first.await.unwrap().expect(200);
    berth.get(&image.blobs[1].path(REPO)).await.expect(200);
}

#[tokio::test]
async fn an_answer_of_which_nothing_is_needed_takes_no_room() {
    let (upstream, setup, _) = limited(1, "concurrent_transfers = 1").await;
    let (blob, other) = (blob(7, 8 << 20), "library/other");
    upstream.blob(REPO, &blob).blob(other, &blob);
    let berth = setup.sections("[cache]\ncomplete = \"never\"").start().await;
    let part = |repository: &str, range: &str| berth.get(&blob.path(repository)).header("range", range);
    part(REPO, "bytes=8000000-8000009").await.expect(206);
    berth.until_idle().await;
    // Another repository must ask whether it may have what is here.
    part(other, "bytes=8000000-8000009").await.expect(206);
    part(other, "bytes=0-9").await.expect(206);
}

#[tokio::test]
async fn blobs_come_no_faster_than_allowed() {
    let (upstream, setup, _) = limited(1, "bytes_per_second = \"1MiB\"").await;
    let blobs = [blob(7, 1 << 20), blob(8, 2 << 20)];
    upstream.blob(REPO, &blobs[0]).blob(REPO, &blobs[1]);
    let berth = setup.start().await;
    let start = Instant::now();
    let asks = blobs.clone().map(|blob| berth.get(&blob.path(REPO)));
    for (reply, blob) in together(2, move |at| asks[at].clone().into_future()).await.iter().zip(&blobs) {
        assert_eq!(reply.digest(), blob.digest);
    }
    // The first second's worth comes at once, and the last piece is in before its time is over.
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
}

// === What upstream asks for

#[tokio::test]
async fn an_upstream_that_asks_to_be_left_alone_is() {
    let (upstream, setup, image) = limited(3, "").await;
    let berth = setup.sections(CHECK_ALWAYS).start().await;
    berth.get(TAG).await.expect(200);
    berth.get(&image.blobs[0].path(REPO)).await.expect(200);
    upstream.forget();
    upstream.on("GET", &image.blobs[1].path(REPO)).fault(Fault::Limited(60));
    let first = later(&berth.get(&image.blobs[1].path(REPO)).await);
    assert!((58..=60).contains(&first), "{first}");
    assert!(later(&berth.get(&image.blobs[2].path(REPO)).await) <= 60);
    assert!(later(&berth.get("/v2/library/other/manifests/1").await) <= 60);
    // What is here is served all the same.
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    berth.get(&image.blobs[0].path(REPO)).await.expect(200);
    assert_eq!(upstream.requests().len(), 1);
    assert!(refused(&berth, "retry_after").await >= 3.0);
}

/// F14: one throttled repository shut the registry for as long as its `Retry-After` said.
#[tokio::test]
async fn a_path_that_answers_503_is_left_alone_for_seconds_and_no_other_is() {
    const OTHERS: usize = 60;
    let (upstream, setup, image) = limited(1, "").await;
    for number in 0..OTHERS {
        upstream.image(&format!("other/app-{number}"), "1", &image);
    }
    upstream.on("*", "/throttled/").fault(Fault::Status(503));
    upstream.on("*", "/throttled/").fault(Fault::Header("Retry-After", "3600".to_owned()));
    upstream.image("throttled/app", "1", &image);
    let berth = setup.start().await;
    let path = "/v2/throttled/app/manifests/1";
    for _ in 0..5 {
        let wait = later(&berth.get(path).await);
        assert!(wait <= 30, "{wait}");
    }
    assert_eq!(upstream.count("*", "/throttled/"), 1, "it is left alone meanwhile");
    let asks: Vec<_> =
        (0..OTHERS).map(|number| berth.get(&format!("/v2/other/app-{number}/manifests/1"))).collect();
    for reply in together(OTHERS, move |at| asks[at].clone().into_future()).await {
        assert_eq!(reply.expect(200), &image.manifest);
    }
    upstream.behave();
    eventually("it is asked again, within seconds", async || berth.get(path).await.status == 200).await;
}

/// F14: nor do the other errors of gateways, with or without a wait.
#[tokio::test]
async fn the_gateway_errors_of_one_repository_shut_no_other() {
    for status in [500, 502, 503, 504] {
        let (upstream, setup, image) = limited(1, "").await;
        upstream.on("*", "/broken/").fault(Fault::Status(status));
        let berth = setup.start().await;
        let asks: Vec<_> =
            (0..8).map(|number| berth.get(&format!("/v2/broken/app/manifests/{number}"))).collect();
        for reply in together(asks.len(), move |at| asks[at].clone().into_future()).await {
            reply.expect(503);
        }
        for number in 0..20 {
            let other = format!("other/app-{number}");
            upstream.image(&other, "1", &image);
            berth.get(&format!("/v2/{other}/manifests/1")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn a_short_rest_is_waited_for() {
    let (upstream, setup, image) = limited(1, "").await;
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Limited(1));
    let berth = setup.start().await;
    let start = Instant::now();
    berth.get(&image.layer().path(REPO)).await.expect(200);
    assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
}

#[tokio::test]
async fn who_waits_for_a_turn_heeds_what_others_were_told() {
    let (upstream, setup, image) = limited(1, "requests_per_second = 0.5").await;
    let gate = Gate::new();
    upstream.on("*", "").fault(Fault::Limited(60));
    upstream.on("*", "").fault(Fault::Hold(gate.clone()));
    let berth = setup.start().await;
    let asks: Vec<_> = image.blobs.iter().map(|blob| berth.get(&blob.path(REPO))).collect();
    let clients = tokio::spawn(together(asks.len(), move |at| asks[at].clone().into_future()));
    eventually("the other one waits", async || waits(&berth, "requests").await == 1.0).await;
    gate.open();
    for reply in clients.await.unwrap() {
        assert!(later(&reply) <= 60);
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn while_one_endpoint_rests_the_next_is_asked() {
    let (tired, setup, image) = limited(2, "").await;
    let fresh = Upstream::start().await;
    fresh.image(REPO, "1", &image);
    tired.on("*", "").fault(Fault::Limited(60));
    let berth = setup.endpoint(&fresh).start().await;
    berth.pull(REPO, "1", &image).await;
    let statuses = tired.requests().iter().map(|request| request.status()).collect::<Vec<_>>();
    assert_eq!(statuses, [429]);
}

#[tokio::test]
async fn a_limited_object_store_says_nothing_about_the_registry() {
    let (upstream, setup, image) = limited(1, "").await;
    let setup = setup.keys("redirect_hosts = [\"127.0.0.1\"]");
    let store = Upstream::start().await;
    store.image(REPO, "1", &image).on("*", "").fault(Fault::Limited(60));
    upstream.on("GET", "/blobs/").fault(Fault::Redirect(store.url().to_owned()));
    let berth = setup.start().await;
    assert_eq!(later(&berth.get(&image.layer().path(REPO)).await), 60);
    berth.get(TAG).await.expect(200);
}

#[tokio::test]
async fn the_size_of_a_blob_is_asked_once_for_all_who_want_it() {
    let (upstream, setup, image) = limited(1, "").await;
    let gate = Gate::new();
    upstream.on("HEAD", "/blobs/").fault(Fault::Hold(gate.clone()));
    let berth = setup.start().await;
    let ask = berth.head(&image.layer().path(REPO));
    let clients = tokio::spawn(together(50, move |_| ask.clone().into_future()));
    let asking = "registry_http_in_flight_requests{handler=\"blob\"}";
    eventually("all have asked", async || berth.metric(asking).await == 50.0).await;
    gate.open();
    for reply in clients.await.unwrap() {
        assert_eq!(reply.expect(200).len(), 0);
        assert_eq!(reply.header("content-length"), Some(&*image.layer().len().to_string()));
    }
    // Who was slow to come may have found nobody asking any more.
    assert!(upstream.count("HEAD", "/blobs/") < 10, "{}", upstream.count("HEAD", "/blobs/"));
}

// === What upstream gives out

/// Asks for a manifest.
async fn manifest(berth: &Berth, reference: &str) -> Reply {
    berth.get(&format!("/v2/{REPO}/manifests/{reference}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_limit_is_spent_on_what_is_not_here() {
    const MANIFESTS: u64 = 100;
    const CLIENTS: usize = 8;
    const PULLS: usize = 10_000;
    let upstream = Upstream::start().await;
    let image = |seed| Image::of(seed, &[]);
    // 80 tags over 200 manifests: those of the first 40 tags, 120, are here before there is a limit.
    let mut images: Vec<_> =
        (0..40).map(|at| Image::index(&[&image(1000 + at), &image(2000 + at)])).collect();
    images.extend((0..40).map(|at| Image::index(&[&image(3000 + at)])));
    for (at, image) in images.iter().enumerate() {
        upstream.image(REPO, &format!("v{at}"), image);
    }
    let berth = std::sync::Arc::new(Berth::with("docker.io", &upstream).sections(CHECK_ALWAYS).start().await);
    let pull = |at: usize| {
        let (berth, image) = (std::sync::Arc::clone(&berth), images[at].clone());
        async move {
            assert_eq!(manifest(&berth, &format!("v{at}")).await.expect(200), &image.manifest);
            for child in &image.children {
                assert_eq!(berth.get(&child.path(REPO)).await.expect(200), &child.manifest);
            }
        }
    };
    together(40, pull).await;
    upstream.forget();

    upstream.quota(MANIFESTS);
    for first in (0..PULLS).step_by(CLIENTS) {
        // 37 has no divisor in common with 80.
        together(CLIENTS, |at| pull((first + at) * 37 % images.len())).await;
    }
    let counted = || upstream.count("GET", "/manifests/");
    assert_eq!(counted(), 80, "what is not here is asked for once");
    assert_eq!(berth.metric("berth_upstream_quota").await, 100.0);
    assert_eq!(berth.metric("berth_upstream_quota_remaining").await, 20.0);

    // The rest is a fifth, and so the reserve: what has moved is served as it was.
    for at in 0..10 {
        upstream.image(REPO, &format!("v{at}"), &image(4000 + at));
        let reply = manifest(&berth, &format!("v{at}")).await;
        assert_eq!(reply.expect(200), &images[at as usize].manifest);
        reply.expect_stale();
    }
    assert_eq!(counted(), 80);

    // It is for images never seen, as long as it lasts.
    for at in 0..120 {
        upstream.image(REPO, &format!("new{at}"), &image(5000 + at));
    }
    let (mut served, mut refused) = (0, 0);
    for first in (0..120).step_by(CLIENTS) {
        let asks = (first..first + CLIENTS).map(|at| berth.get(&format!("/v2/{REPO}/manifests/new{at}")));
        let asks: Vec<_> = asks.collect();
        for reply in together(CLIENTS, move |at| asks[at].clone().into_future()).await {
            if reply.status == 200 {
                served += 1;
                continue;
            }
            refused += 1;
            assert!((1..=60).contains(&later(&reply)));
        }
    }
    assert_eq!((served, refused, counted()), (20, 100, 100), "nothing is asked for in vain");
    together(images.len(), pull).await;
    assert_eq!(counted(), 100);
}

#[tokio::test]
async fn a_tag_that_has_moved_is_worth_a_manifest_only_above_the_reserve() {
    let (upstream, setup, _) = limited(1, "reserve = 5").await;
    let rules = format!(
        "[[tags]]\nmatch = \"*/*:strict\"\ncheck_after = \"0s\"\nserve_stale = \"0s\"\n{CHECK_ALWAYS}"
    );
    let images: Vec<_> = (0..6).map(|seed| Image::of(seed, &[])).collect();
    let berth = setup.sections(&rules).start().await;
    upstream.image(REPO, "strict", &images[0]).image(REPO, "other", &images[0]);
    upstream.quota(8);
    for reference in ["strict", "other", "1"] {
        manifest(&berth, reference).await.expect(200);
    }
    // 6 are left: one of these is for what is known already.
    for (image, expected) in [(1, 1), (2, 1)] {
        upstream.image(REPO, "1", &images[image]);
        let reply = manifest(&berth, "1").await;
        assert_eq!(reply.expect(200), &images[expected].manifest);
        assert_eq!(reply.header("warning").is_some(), image != expected);
    }
    upstream.image(REPO, "strict", &images[3]);
    eventually("it may not be served as it was", async || {
        manifest(&berth, "strict").await.body == images[3].manifest
    })
    .await;
    upstream.quota(100).image(REPO, "other", &images[4]);
    let reply = manifest(&berth, "other").await;
    assert_eq!(reply.expect(200), &images[4].manifest, "a look at a tag shows that there is more again");
}

#[tokio::test]
async fn what_refers_to_an_image_is_not_worth_the_reserve() {
    let (upstream, setup, image) = limited(1, "reserve = \"100%\"").await;
    upstream.without_referrers_api().quota(100);
    let berth = setup.start().await;
    berth.get(TAG).await.expect(200);
    upstream.forget();
    let path = format!("/v2/{REPO}/referrers/{}", image.digest());
    assert_eq!(berth.get(&path).await.status, 404);
    assert_eq!(upstream.count("GET", "/manifests/"), 0);
}

#[tokio::test]
async fn a_quota_that_makes_no_sense_is_none() {
    for (limit, remaining) in [("100;w=21600", "-1"), ("many", "0"), ("", ""), ("100", "1e3")] {
        let (upstream, setup, image) = limited(1, "").await;
        for (name, value) in [("ratelimit-limit", limit), ("ratelimit-remaining", remaining)] {
            upstream.on("*", "/manifests/").fault(Fault::Header(name, value.to_owned()));
        }
        let berth = setup.start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(!berth.metrics().await.contains("berth_upstream_quota{"));
    }
}

// === What a client may take

/// A berth with these limits of its clients, an image that is stored, and the folder that it is in.
async fn for_clients(limits: &str, layer: usize) -> (Berth, Image, TempDir) {
    let (upstream, folder) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let image = Image::of(1, &[layer]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream).data_dir(&folder.path().join("data"));
    let mut free = setup.clone().start().await;
    free.pull(REPO, "1", &image).await;
    free.until_idle().await;
    free.stop().await;
    (setup.http(&format!("limits = {{ {limits} }}")).start().await, image, folder)
}

async fn clients_limited(berth: &Berth, limit: &str) -> f64 {
    berth.metric(&format!("berth_client_limited_total{{limit=\"{limit}\"}}")).await
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let (berth, image, _folder) = for_clients("requests_per_second = 5", 3000).await;
    let start = Instant::now();
    let asks: Vec<_> = (0..40).map(|_| berth.get(TAG)).collect();
    let replies = together(asks.len(), move |at| asks[at].clone().into_future()).await;
    let (served, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert!((5.0..=5.0 + start.elapsed().as_secs_f64() * 5.0).contains(&(served.len() as f64)));
    assert!(served.iter().all(|reply| *reply.expect(200) == image.manifest));
    assert!(refused.iter().all(|reply| later(reply) == 1));
    assert_eq!(clients_limited(&berth, "requests").await, refused.len() as f64);
    eventually("it may ask again", async || berth.get(TAG).await.status == 200).await;
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let (berth, image, _folder) = for_clients("connections = 2", 16 << 20).await;
    let blob = image.layer();
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(berth.get(&blob.path(REPO)).open().await);
    }
    let refused = berth.get(TAG).await;
    assert_eq!(later(&refused), 5);
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(clients_limited(&berth, "connections").await, 1.0);
    assert_eq!(
        open.pop().unwrap().read().await.digest(),
        blob.digest,
        "who was there before is not disturbed"
    );
    eventually("there is room again", async || berth.get(TAG).await.status == 200).await;
    assert_eq!(open.pop().unwrap().read().await.digest(), blob.digest);
}

#[tokio::test]
async fn bytes_go_to_a_client_no_faster_than_allowed() {
    let (berth, image, _folder) = for_clients("bytes_per_second = \"2MiB\"", 3 << 20).await;
    let (blob, start) = (image.layer().clone(), Instant::now());
    let ask = berth.get(&blob.path(REPO));
    for reply in together(2, move |_| ask.clone().into_future()).await {
        reply.expect(200);
        assert_eq!(reply.digest(), blob.digest);
    }
    // Six mebibytes: a second's worth at once, the last step before its time is over.
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    assert!(clients_limited(&berth, "bytes").await >= 2.0);
    let part = berth.get(&blob.path(REPO)).header("range", "bytes=1000000-2999999").await;
    assert_eq!(part.expect(206), &blob.content.slice(1_000_000..3_000_000));
}
