//! A tag of which nothing is known is asked for as often as anything else; a connection that is lost is not the server's
//! failure (A4).

use crate::support::{Berth, Fault, Image, Upstream, eventually};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
const NEW: &str = "/v2/library/app/manifests/new";
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";

/// A berth that has pulled an image, and so keeps connections.
async fn pulled() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image).image(REPO, "new", &Image::of(2, &[3000]));
    let berth = Berth::with("docker.io", &upstream).sections(ALWAYS_CHECK).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    upstream.forget();
    (upstream, berth, image)
}

#[tokio::test]
async fn a_tag_never_seen_is_asked_for_again() {
    let faults = [
        ("hangup", Fault::Hangup, 2),
        ("cut in the head", Fault::Garbage(b"HTTP/1.1 200 O"), 2),
        ("502", Fault::Status(502), 2),
        ("500", Fault::Status(500), 2),
        ("503", Fault::Status(503), 2),
        ("429", Fault::Status(429), 2),
        ("429 with a time", Fault::Limited(1), 1),
    ];
    for (what, fault, times) in faults {
        let (upstream, berth, _) = pulled().await;
        upstream.on("HEAD", NEW).first(times).fault(fault);
        let reply = berth.get(NEW).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert_eq!(upstream.count("HEAD", NEW), times + 1, "{what}");
    }
}

/// Some gateways fail at every HEAD.
#[tokio::test]
async fn a_tag_never_seen_is_asked_for_by_get_where_head_fails_for_ever() {
    for status in [500, 502, 503, 504] {
        let (upstream, berth, _) = pulled().await;
        upstream.on("HEAD", NEW).fault(Fault::Status(status));
        let reply = berth.get(NEW).await;
        assert_eq!(reply.status, 200, "{status}: {}", reply.text());
        assert_eq!((upstream.count("HEAD", NEW), upstream.count("GET", NEW)), (3, 1), "{status}");
        // An outage is no longer than it was.
        let (upstream, berth, _) = pulled().await;
        upstream.on("*", NEW).fault(Fault::Status(status));
        assert_eq!(berth.get(NEW).await.status, 503, "{status}");
        assert_eq!((upstream.count("HEAD", NEW), upstream.count("GET", NEW)), (3, 1), "{status}");
    }
}

#[tokio::test]
async fn a_tag_that_can_be_served_is_asked_for_once() {
    let (upstream, berth, image) = pulled().await;
    upstream.on("HEAD", TAG).fault(Fault::Status(502));
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    assert_eq!(upstream.count("*", TAG), 1);
}

/// Where its rule does not let it be served, there is nothing to answer with.
#[tokio::test]
async fn a_tag_that_may_not_be_served_is_asked_for_again() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image).image(REPO, "2", &image);
    let rule = format!("{ALWAYS_CHECK}\nserve_stale = \"0s\"");
    let berth = Berth::with("docker.io", &upstream).sections(&rule).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.pull(REPO, "2", &image).await;
    upstream.on("HEAD", "/manifests/2").fault(Fault::Status(502));
    let other = format!("/v2/{REPO}/manifests/2");
    eventually("they are older than they may be", async || berth.get(&other).await.status == 503).await;
    upstream.on("HEAD", TAG).first(2).fault(Fault::Status(502));
    upstream.forget();
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    assert_eq!(upstream.count("HEAD", TAG), 3);
}

#[tokio::test]
async fn a_kept_connection_that_breaks_is_replaced_at_once() {
    for fault in [Fault::Hangup, Fault::Garbage(b"")] {
        let (upstream, berth, image) = pulled().await;
        let before = upstream.connections();
        upstream.on("HEAD", TAG).first(1).fault(fault);
        let reply = berth.get(TAG).await;
        assert_eq!(reply.expect(200), &image.manifest);
        // A known tag is asked for once: this is no second try.
        assert_eq!(reply.header("warning"), None);
        assert_eq!((upstream.count("HEAD", TAG), upstream.connections()), (2, before + 1));
    }
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_the_servers_doing() {
    let (upstream, berth, image) = pulled().await;
    upstream.on("HEAD", TAG).first(2).fault(Fault::Hangup);
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    assert_eq!(upstream.count("HEAD", TAG), 2);
}

/// Something on the way has forgotten it: nothing comes, and `/v2/` is answered on another.
#[tokio::test]
async fn a_kept_connection_that_is_silent_is_replaced_once_the_server_is_known_to_be_well() {
    let (upstream, berth, image) = pulled().await;
    upstream.on("HEAD", TAG).first(1).fault(Fault::StallHead);
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    assert_eq!(reply.header("warning"), None);
    assert_eq!(upstream.count("HEAD", TAG), 2);
}
