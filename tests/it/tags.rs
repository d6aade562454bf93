//! Tags: when upstream is asked, how often, and whose word is believed.

mod clock;
mod listing;
mod pages;
mod referrers;
mod refresh;

use crate::support::{Berth, Fault, Gate, Image, Reply, Upstream, eventually, together};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";

/// A tag rule for every tag.
fn rule(keys: &str) -> String {
    format!("[[tags]]\nmatch = \"*/*:*\"\n{keys}")
}

/// An image that was pulled whole, and a berth with this rule for it.
async fn pulled(keys: &str) -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).sections(&rule(keys)).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    upstream.forget();
    (upstream, berth, image)
}

fn assert_confirmed(reply: &Reply, image: &Image) {
    assert_eq!(reply.expect(200), &image.manifest);
    assert_eq!(reply.header("warning"), None);
}

#[tokio::test]
async fn a_check_is_one_head_and_a_move_is_one_manifest() {
    let (upstream, berth, _) = pulled("check_after = \"0s\"").await;
    berth.get(TAG).await.expect(200);
    assert_eq!((upstream.count("HEAD", TAG), upstream.requests().len()), (1, 1));
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "1", &new);
    for _ in 0..2 {
        assert_confirmed(&berth.get(TAG).await, &new);
    }
    assert_eq!(upstream.count("HEAD", TAG), 3);
    assert_eq!(upstream.count("GET", &new.path(REPO)), 1);
    assert_eq!(upstream.requests().len(), 4);
}

#[tokio::test]
async fn a_fresh_tag_asks_nothing_even_of_an_upstream_that_is_gone() {
    let (upstream, berth, image) = pulled("check_after = \"1h\"").await;
    upstream.stop().await;
    for _ in 0..3 {
        let reply = berth.get(TAG).await;
        assert_confirmed(&reply, &image);
        assert_eq!(reply.header("cache-status"), Some("berth; hit"));
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn an_upstream_whose_heads_say_nothing_is_asked_by_get() {
    for fault in [Fault::WithoutHeader("Docker-Content-Digest"), Fault::Status(405), Fault::Status(501)] {
        let upstream = Upstream::start().await;
        let (old, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
        upstream.image(REPO, "1", &old).on("HEAD", TAG).fault(fault);
        let berth = Berth::with("docker.io", &upstream).sections(&rule("check_after = \"0s\"")).start().await;
        berth.pull(REPO, "1", &old).await;
        berth.until_idle().await;
        upstream.image(REPO, "1", &new);
        assert_confirmed(&berth.get(TAG).await, &new);
        assert_eq!(upstream.count("GET", TAG), 2);
        upstream.stop().await;
        let reply = berth.get(TAG).await;
        assert_eq!(reply.expect(200), &old.manifest, "the new one never became complete");
        reply.expect_stale();
    }
}

#[tokio::test]
async fn a_hundred_clients_are_one_check() {
    let (upstream, berth, _) = pulled("check_after = \"1h\"").await;
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "2", &new);
    let gate = Gate::new();
    upstream.on("HEAD", "/manifests/2").fault(Fault::Hold(gate.clone()));
    let path = format!("/v2/{REPO}/manifests/2");
    let clients = tokio::spawn(together(100, {
        let ask = berth.get(&path);
        move |_| ask.clone().into_future()
    }));
    eventually("the check is under way", async || upstream.count("HEAD", &path) > 0).await;
    gate.open();
    for reply in clients.await.unwrap() {
        assert_confirmed(&reply, &new);
    }
    assert_eq!(upstream.count("HEAD", &path), 1);
    assert_eq!(upstream.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn a_missing_tag_is_believed_for_a_while_and_only_about_the_tag() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"").await;
    upstream.untag(REPO, "1");
    for path in [TAG, "/v2/library/app/manifests/none", "/v2/library/none/manifests/1"] {
        for reply in together(20, |_| berth.get(path).into_future()).await {
            assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"), "{path}");
        }
        assert_eq!((upstream.count("HEAD", path), upstream.count("GET", path)), (1, 1), "{path}");
    }
    berth.pull(REPO, &image.digest().to_string(), &image).await;
    upstream.image(REPO, "1", &image);
    eventually("the tag is back", async || berth.get(TAG).await.status == 200).await;
    assert_eq!((upstream.count("HEAD", TAG), upstream.count("GET", TAG)), (2, 1));
}

#[tokio::test]
async fn a_denied_tag_is_believed_too() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"").await;
    upstream.on("*", TAG).fault(Fault::Status(403));
    for reply in together(20, |_| berth.get(TAG).into_future()).await {
        assert_eq!((reply.status, &*reply.error_code()), (404, "DENIED"));
    }
    assert_eq!(berth.get(TAG).await.error_code(), "DENIED");
    assert_eq!((upstream.count("HEAD", TAG), upstream.count("GET", TAG)), (1, 1));
    berth.pull(REPO, &image.digest().to_string(), &image).await;
}

/// The tag is gone by upstream's word, and is served with a warning; upstream is asked once.
async fn assert_served_without_upstream(upstream: &Upstream, berth: &Berth, image: &Image) {
    for reply in together(20, |_| berth.get(TAG).into_future()).await {
        assert_eq!(reply.expect(200), &image.manifest);
        reply.expect_stale();
        assert!(reply.header("warning").unwrap().contains("no more"), "{:?}", reply.header("warning"));
    }
    berth.head(TAG).await.expect_stale();
    assert_eq!((upstream.count("HEAD", TAG), upstream.count("GET", TAG)), (1, 1), "its word is remembered");
    // What was never here is not made up.
    assert_eq!(berth.get("/v2/library/app/manifests/none").await.status, 404);
}

#[tokio::test]
async fn a_tag_that_was_taken_away_is_served_if_its_rule_says_so() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"\non_removed = \"serve\"").await;
    upstream.untag(REPO, "1");
    assert_served_without_upstream(&upstream, &berth, &image).await;
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "1", &new);
    eventually("the tag is back", async || berth.get(TAG).await.body == new.manifest).await;
    assert_confirmed(&berth.get(TAG).await, &new);
}

#[tokio::test]
async fn a_tag_that_is_denied_is_served_if_its_rule_says_so() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"\non_removed = \"serve\"").await;
    upstream.on("*", TAG).fault(Fault::Status(403));
    assert_served_without_upstream(&upstream, &berth, &image).await;
}

#[tokio::test]
async fn a_tag_that_was_taken_away_is_not_served_for_longer_than_any_other() {
    let keys = "check_after = \"0s\"\non_removed = \"serve\"\nserve_stale = \"0s\"";
    let (upstream, berth, _) = pulled(keys).await;
    upstream.untag(REPO, "1");
    eventually("it is too old", async || berth.get(TAG).await.status == 404).await;
    assert_eq!(berth.get(TAG).await.error_code(), "MANIFEST_UNKNOWN", "upstream's own word");
}

#[tokio::test]
async fn an_answer_by_tag_says_how_old_its_confirmation_is() {
    let (upstream, berth, image) = pulled("check_after = \"2s\"").await;
    let age = |reply: &Reply| reply.header("age").unwrap().parse::<u64>().unwrap();
    let fresh = berth.get(TAG).await;
    assert_confirmed(&fresh, &image);
    let by_digest = berth.get(&image.path(REPO)).await;
    assert_eq!(by_digest.header("age"), None, "a digest needs no confirmation");
    upstream.stop().await;
    eventually("it is stale, and ages", async || {
        let reply = berth.get(TAG).await;
        assert_eq!(reply.expect(200), &image.manifest);
        let is_stale = reply.header("warning").is_some();
        assert_eq!(is_stale, age(&reply) >= 2);
        is_stale && age(&reply) > age(&fresh)
    })
    .await;
    upstream.start_again().await;
    eventually("it is confirmed again", async || {
        let reply = berth.head(TAG).await;
        reply.header("warning").is_none() && age(&reply) < 2
    })
    .await;
}

#[tokio::test]
async fn a_digest_that_is_named_but_not_there_is_no_word_about_the_tag() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"").await;
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "1", &new);
    upstream.on("GET", &new.path(REPO)).fault(Fault::Status(404));
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
}

#[tokio::test]
async fn the_last_complete_image_is_served_until_the_new_one_is_complete() {
    let (upstream, berth, old) = pulled("check_after = \"0s\"").await;
    let new = Image::index(&[&Image::of(2, &[3000, 4000]), &Image::of(3, &[3000])]);
    upstream.image(REPO, "1", &new);
    assert_confirmed(&berth.get(TAG).await, &new);
    upstream.on("*", REPO).fault(Fault::Status(500));
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &old.manifest);
    reply.expect_stale();
    assert!(reply.header("warning").unwrap().contains("moved"));
    berth.pull(REPO, &old.digest().to_string(), &old).await;

    // One platform of the new one is enough for those who want that platform.
    upstream.behave();
    berth.pull(REPO, &new.children[0].digest().to_string(), &new.children[0]).await;
    berth.until_idle().await;
    upstream.stop().await;
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &new.manifest);
    reply.expect_stale();
}

#[tokio::test]
async fn a_fresh_tag_whose_new_image_cannot_be_completed_falls_back_too() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let (old, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    let berth = async |check_after: &str| {
        let setup = Berth::with("docker.io", &upstream).data_dir(&folder.path().join("data"));
        setup.sections(&rule(&format!("check_after = {check_after:?}"))).start().await
    };
    let mut hasty = berth("0s").await;
    upstream.image(REPO, "1", &old);
    hasty.pull(REPO, "1", &old).await;
    hasty.until_idle().await;
    upstream.image(REPO, "1", &new);
    assert_confirmed(&hasty.get(TAG).await, &new);
    hasty.stop().await;

    let calm = berth("1h").await;
    assert_confirmed(&calm.get(TAG).await, &new);
    upstream.on("*", REPO).fault(Fault::Status(500));
    assert_eq!(calm.get(&new.layer().path(REPO)).await.status, 503);
    let reply = calm.get(TAG).await;
    assert_eq!(reply.expect(200), &old.manifest);
    reply.expect_stale();
    upstream.behave();
    calm.pull(REPO, &new.digest().to_string(), &new).await;
    calm.until_idle().await;
    upstream.stop().await;
    let reply = calm.get(TAG).await;
    assert_confirmed(&reply, &new);
    assert_eq!(
        reply.header("cache-status"),
        Some("berth; hit"),
        "complete, and as fresh as its rule demands"
    );
}

#[tokio::test]
async fn an_immutable_tag_is_asked_for_once() {
    let (upstream, berth, image) = pulled("immutable = true\ncheck_after = \"0s\"").await;
    upstream.image(REPO, "1", &Image::of(2, &[3000]));
    assert_confirmed(&berth.get(TAG).await, &image);
    upstream.stop().await;
    assert_confirmed(&berth.get(TAG).await, &image);
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_check_behind_delays_nobody() {
    let (upstream, berth, old) = pulled("check_behind = true\ncheck_after = \"0s\"").await;
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "1", &new);
    let gate = Gate::new();
    upstream.on("HEAD", TAG).fault(Fault::Hold(gate.clone()));
    for _ in 0..3 {
        let reply = berth.get(TAG).await;
        assert_confirmed(&reply, &old);
        assert_eq!(reply.header("cache-status"), Some("berth; hit"));
    }
    eventually("it is checked behind", async || upstream.count("HEAD", TAG) == 1).await;
    gate.open();
    eventually("the new one is served", async || berth.get(TAG).await.body == new.manifest).await;
}

#[tokio::test]
async fn a_limit_on_staleness_refuses_rather_than_serve() {
    let (upstream, berth, image) = pulled("check_after = \"0s\"\nserve_stale = \"0s\"").await;
    assert_confirmed(&berth.get(TAG).await, &image);
    upstream.on("*", REPO).fault(Fault::Status(500));
    eventually("it is too old", async || berth.get(TAG).await.status == 503).await;
    assert_eq!(berth.get(TAG).await.error_code(), "UNAVAILABLE");
    berth.pull(REPO, &image.digest().to_string(), &image).await;
}

#[tokio::test]
async fn the_first_rule_that_matches_decides() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image).image(REPO, "edge", &image);
    let rules = "[[tags]]\nmatch = \"docker.io/library/*:edge\"\ncheck_after = \"0s\"\n\
                 [[tags]]\nmatch = \"docker.io/*:*\"\nimmutable = true";
    let berth = Berth::with("docker.io", &upstream).sections(rules).start().await;
    for tag in ["1", "1", "1", "edge", "edge", "edge"] {
        berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await.expect(200);
    }
    assert_eq!(upstream.count("HEAD", "/manifests/1"), 1);
    assert_eq!(upstream.count("HEAD", "/manifests/edge"), 3);
}

#[tokio::test]
async fn a_slow_endpoint_does_not_hide_the_next() {
    let (slow, quick) = (Upstream::start().await, Upstream::start().await);
    let (old, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    slow.image(REPO, "1", &old);
    quick.image(REPO, "1", &new);
    let berth = Berth::with("docker.io", &slow)
        .keys("timeouts = { header_seconds = 0.5 }")
        .endpoint(&quick)
        .sections(&rule("check_after = \"0s\""))
        .start()
        .await;
    berth.pull(REPO, "1", &old).await;
    slow.on("*", "").fault(Fault::StallHead);
    assert_confirmed(&berth.get(TAG).await, &new);
}
