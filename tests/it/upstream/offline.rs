//! Upstreams that are of no use: what is known is served, and nobody waits long to learn it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::support::{Auth, Berth, Fault, Gate, Image, Setup, Upstream, eventually, together};

const REPO: &str = "library/alpine";
const TAG: &str = "/v2/library/alpine/manifests/3";
/// Every request for a tag asks upstream.
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
const LOGIN: &str = "credentials = { username = \"robot\", password_env = \"ROBOT\" }";

async fn with_image() -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::index(&[&Image::of(1, &[100_000, 300]), &Image::of(2, &[5000])]);
    upstream.image(REPO, "3", &image);
    let setup = Berth::with("docker.io", &upstream).sections(ALWAYS_CHECK);
    (upstream, setup, image)
}

/// Everything of the image is served, by tag with a warning, and by digest.
async fn assert_serves(berth: &Berth, image: &Image) {
    for reply in [berth.get(TAG).await, berth.get(TAG).await] {
        assert_eq!(reply.expect(200), &image.manifest);
        reply.expect_stale();
    }
    berth.head(TAG).await.expect_stale();
    berth.pull(REPO, &image.digest().to_string(), image).await;
    let by_digest = berth.get(&image.path(REPO)).await;
    assert_eq!(by_digest.header("cache-status"), Some("berth; hit"), "a digest cannot be stale");
    assert_eq!(by_digest.header("warning"), None);
}

/// What is known is served through an outage, and what is not is an error that clients act on.
async fn assert_survives(what: &str, outage: impl AsyncFnOnce(&Upstream)) {
    let (upstream, setup, image) = with_image().await;
    let berth = setup.keys("timeouts = { header_seconds = 0.5 }").start().await;
    berth.pull(REPO, "3", &image).await;
    outage(&upstream).await;
    assert_serves(&berth, &image).await;
    let unknown = format!("sha256:{}", "0".repeat(64));
    for path in
        [format!("/v2/{REPO}/manifests/4"), format!("/v2/{REPO}/blobs/{unknown}"), "/v2/x/tags/list".into()]
    {
        let reply = berth.get(&path).await;
        let code = if what == "limited" { "TOOMANYREQUESTS" } else { "UNAVAILABLE" };
        assert_eq!((reply.status, &*reply.error_code()), (503, code), "{what}: {path}");
        let after = if what == "limited" { "30" } else { "5" };
        assert_eq!(reply.header("retry-after"), Some(after), "{what}: {path}");
    }
}

#[tokio::test]
async fn refused_connections() {
    assert_survives("refused", async |upstream| upstream.stop().await).await;
}

#[tokio::test]
async fn a_black_hole() {
    let mut hole = None;
    assert_survives("hole", async |upstream| {
        upstream.stop().await;
        // The kernel completes the connections; nobody ever accepts one.
        hole = Some(TcpListener::bind(upstream.address()).unwrap());
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_accepts_and_says_nothing() {
    assert_survives("stalled", async |upstream| upstream.on("*", "").fault(Fault::StallHead)).await;
}

#[tokio::test]
async fn errors_of_servers_and_gateways() {
    for status in [500, 502, 503, 504, 418] {
        assert_survives("error", async |upstream| upstream.on("*", "").fault(Fault::Status(status))).await;
    }
}

#[tokio::test]
async fn too_many_requests() {
    assert_survives("limited", async |upstream| upstream.on("*", "").fault(Fault::Limited(30))).await;
}

#[tokio::test]
async fn web_pages_and_garbage() {
    for fault in [Fault::Html, Fault::Garbage(b"220 mail.example ESMTP\r\n"), Fault::Hangup] {
        assert_survives("nonsense", async |upstream| upstream.on("*", "").fault(fault)).await;
    }
}

#[tokio::test]
async fn redirects_in_a_circle_and_into_forbidden_networks() {
    assert_survives("circle", async |upstream| {
        upstream.on("*", "").fault(Fault::Redirect(upstream.url().to_owned()));
    })
    .await;
    assert_survives("link-local", async |upstream| {
        upstream.on("*", "").fault(Fault::Redirect("http://169.254.169.254".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_refusal_of_our_own_login() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let (upstream, setup, image) = with_image().await;
        upstream.auth(auth).user("robot", "secret", "");
        let berth = setup.keys(LOGIN).env("ROBOT", "secret").start().await;
        berth.pull(REPO, "3", &image).await;
        upstream.forget_users();
        upstream.revoke_tokens();
        assert_serves(&berth, &image).await;
        let unknown = berth.get(&format!("/v2/{REPO}/manifests/4")).await;
        assert_eq!((unknown.status, &*unknown.error_code()), (503, "UNAVAILABLE"));
    }
}

#[tokio::test]
async fn a_token_server_that_is_down() {
    let (upstream, setup, image) = with_image().await;
    upstream.auth(Auth::Bearer).anonymous("");
    let berth = setup.start().await;
    berth.pull(REPO, "3", &image).await;
    upstream.revoke_tokens();
    upstream.on("*", "/token").fault(Fault::Status(500));
    assert_serves(&berth, &image).await;
}

#[tokio::test]
async fn a_check_has_a_deadline_of_its_own() {
    let (upstream, setup, image) = with_image().await;
    // So patient that without the deadline the client would be told that there was no answer in time.
    let berth = setup.keys("timeouts = { header_seconds = 600, budget_seconds = 600 }").start().await;
    berth.pull(REPO, "3", &image).await;
    let gate = Gate::new();
    upstream.on("HEAD", "/manifests/3").fault(Fault::Hold(gate.clone()));
    let before = upstream.count("HEAD", "/manifests/3");
    for reply in together(20, |_| berth.get(TAG).into_future()).await {
        assert_eq!(reply.expect(200), &image.manifest);
        reply.expect_stale();
    }
    assert_serves(&berth, &image).await;
    assert_eq!(
        upstream.count("HEAD", "/manifests/3"),
        before + 2,
        "one check, which tries a fresh connection too, and nobody waits for it twice"
    );
    gate.open();
    eventually("the check ends, and is believed at once", async || {
        berth.get(TAG).await.header("warning").is_none()
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_is_known_to_be_down_is_only_probed() {
    let (upstream, setup, image) = with_image().await;
    let berth = setup.start().await;
    berth.pull(REPO, "3", &image).await;
    upstream.on("*", "").fault(Fault::Status(503));
    eventually("it counts as down", async || {
        berth.get(&format!("/v2/{REPO}/manifests/4")).await.expect(503);
        berth.logs_contain("only probes ask it now")
    })
    .await;
    upstream.forget();
    assert_serves(&berth, &image).await;
    for path in ["/v2/library/alpine/manifests/5", "/v2/other/manifests/5", "/v2/other/tags/list"] {
        assert_eq!(berth.get(path).await.status, 503, "{path}");
    }
    eventually("a probe", async || upstream.count("GET", "/v2/") > 0).await;
    assert!(upstream.requests().iter().all(|request| request.target == "/v2/"), "{:?}", upstream.requests());

    let new = Image::of(9, &[5000]);
    upstream.image(REPO, "4", &new);
    upstream.behave();
    eventually("it is asked again", async || berth.get(TAG).await.header("warning").is_none()).await;
    berth.pull(REPO, "4", &new).await;
}

#[tokio::test]
async fn while_one_endpoint_is_down_the_other_cannot_say_that_there_is_no_such_thing() {
    let (upstream, setup, image) = with_image().await;
    let mirror = Upstream::start().await;
    let berth = setup.endpoint(&mirror).start().await;
    berth.pull(REPO, "3", &image).await;
    upstream.on("*", "").fault(Fault::Status(503));
    assert_serves(&berth, &image).await;
    eventually("it counts as down", async || {
        let reply = berth.get(&format!("/v2/{REPO}/manifests/{}", fastrand::u32(..))).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"));
        berth.logs_contain("only probes ask it now")
    })
    .await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/4")).await.status, 503);
    assert_serves(&berth, &image).await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "nothing that does harm is durable")]
async fn restarts_and_a_lost_index_change_nothing() {
    let (upstream, setup, image) = with_image().await;
    let artifact = Image::draft(4, &[100]).artifact("application/vnd.example.sbom").about(&image).build();
    upstream.untagged(REPO, &artifact);
    let mut berth = setup.start().await;
    let referrers = format!("/v2/{REPO}/referrers/{}", image.digest());
    berth.pull(REPO, "3", &image).await;
    let listed = berth.get(&referrers).await.expect(200).clone();
    upstream.stop().await;

    let harms: [fn(&Path); 5] = [
        |_| {},
        |index| fs::remove_dir_all(index).unwrap(),
        |index| overwrite(index, |content| content.fill(0xA5)),
        |index| overwrite(index, |content| content.truncate(content.len() / 2)),
        |index| {
            fs::remove_dir_all(index).unwrap();
            fs::write(index, "not a folder").unwrap();
        },
    ];
    for harm in harms {
        berth.stop().await;
        harm(&berth.data_dir().join("index"));
        berth.start_again().await;
        assert_serves(&berth, &image).await;
        assert_eq!(berth.get(&referrers).await.expect(200), &listed);
        let tags = berth.get(&format!("/v2/{REPO}/tags/list")).await;
        assert_eq!(tags.json()["tags"], serde_json::json!(["3"]));
    }
}

/// Changes the content of every file below a folder.
#[allow(clippy::disallowed_methods, reason = "nothing that does harm is durable")]
fn overwrite(folder: &Path, change: fn(&mut Vec<u8>)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overwrite(&path, change);
            continue;
        }
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(&path, content).unwrap();
    }
}
