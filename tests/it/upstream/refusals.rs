//! Who has refused: the registry, or something in its place (A2); the tag, or HEAD alone (A6); a token's rights, or the
//! token (B8).

use crate::support::{Auth, Berth, Fault, Image, Upstream, together};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
/// Refusals that are no registry's, as ingresses and gateways send them.
const NO_REGISTRYS: [Fault; 7] = [
    Fault::Says(404, "text/plain; charset=utf-8", "404 page not found\n"),
    Fault::Says(404, "text/html", "<html><head><title>404 Not Found</title></head></html>"),
    Fault::Says(404, "application/json", r#"{"message":"no Route matched with those values"}"#),
    Fault::Says(404, "application/json", r#"{"errors":[{"status":404,"message":"no such site"}]}"#),
    Fault::Says(404, "application/octet-stream", ""),
    Fault::Says(403, "text/html", "<html>Request blocked</html>"),
    Fault::Says(403, "application/json", r#"{"message":"Forbidden"}"#),
];

/// An image that was pulled whole, and a berth that checks its tag at every request.
async fn pulled(upstream: &Upstream) -> (Berth, Image) {
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", upstream).sections(ALWAYS_CHECK).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    upstream.forget();
    (berth, image)
}

/// Requests for `/v2/` alone.
fn looks(upstream: &Upstream) -> usize {
    upstream.requests().iter().filter(|request| request.target == "/v2/").count()
}

#[tokio::test]
async fn what_answers_in_the_registrys_place_unmakes_no_image() {
    for fault in NO_REGISTRYS {
        let upstream = Upstream::start().await;
        let (berth, image) = pulled(&upstream).await;
        upstream.on("*", "").fault(fault);
        for reply in together(8, |_| berth.get(TAG).into_future()).await {
            assert_eq!(reply.expect(200), &image.manifest);
            reply.expect_stale();
        }
        berth.pull(REPO, &image.digest().to_string(), &image).await;
        berth.pull(REPO, "1", &image).await;
    }
}

/// Tags, manifests, blobs, referrers and lists that are not here.
#[tokio::test]
async fn what_answers_in_the_registrys_place_says_nothing_about_anything() {
    let upstream = Upstream::start().await;
    let (berth, image) = pulled(&upstream).await;
    let other = Image::of(2, &[3000]);
    upstream.image(REPO, "2", &other);
    upstream.on("*", "").fault(Fault::Says(404, "text/plain", "404 page not found\n"));
    let unknown = [
        format!("/v2/{REPO}/manifests/2"),
        other.path(REPO),
        other.layer().path(REPO),
        "/v2/library/other/tags/list".to_owned(),
    ];
    for reply in together(unknown.len(), |at| berth.get(&unknown[at]).into_future()).await {
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{}", reply.text());
        assert!(reply.header("retry-after").is_some());
    }
    let head = berth.head(&other.layer().path(REPO)).await;
    assert_eq!(head.status, 503);
    upstream.behave();
    // None of it is remembered as a word of the registry's.
    berth.pull(REPO, "2", &other).await;
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test]
async fn a_registry_that_refuses_with_pages_is_believed_by_its_base() {
    for auth in [Auth::Open, Auth::Bearer] {
        for fault in NO_REGISTRYS {
            let upstream = Upstream::start().await;
            upstream.auth(auth).anonymous("library/");
            let (berth, _) = pulled(&upstream).await;
            upstream.on("*", "/v2/library/").fault(fault);
            let paths = [TAG.to_owned(), format!("/v2/{REPO}/blobs/sha256:{}", "0".repeat(64))];
            for path in &paths {
                for reply in together(8, |_| berth.get(path).into_future()).await {
                    assert_eq!(reply.status, 404, "{path}: {}", reply.text());
                }
            }
            assert!((1..=3).contains(&looks(&upstream)), "{} for two refusals", looks(&upstream));
        }
    }
}

#[tokio::test]
async fn an_error_of_the_registrys_own_needs_no_other_evidence() {
    let upstream = Upstream::start().await;
    let (berth, _) = pulled(&upstream).await;
    upstream.untag(REPO, "1");
    upstream.on("*", "/manifests/denied").fault(Fault::Status(403));
    for (path, code) in [(TAG, "MANIFEST_UNKNOWN"), ("/v2/library/app/manifests/denied", "DENIED")] {
        let reply = berth.get(path).await;
        assert_eq!((reply.status, &*reply.error_code()), (404, code));
    }
    assert_eq!(looks(&upstream), 0);
}

#[tokio::test]
async fn a_portal_at_the_base_is_no_registry() {
    let upstream = Upstream::start().await;
    let (berth, image) = pulled(&upstream).await;
    upstream.on("*", "").fault(Fault::Html);
    upstream.on("*", "/v2/library/").fault(Fault::Says(404, "text/plain", "404 page not found\n"));
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
}

#[tokio::test]
async fn one_look_counts_for_many_refusals() {
    let upstream = Upstream::start().await;
    let (berth, _) = pulled(&upstream).await;
    upstream.on("*", "").fault(Fault::Says(404, "text/plain", "404 page not found\n"));
    let ask = |at: usize| berth.get(&format!("/v2/{REPO}/blobs/sha256:{at:064}")).into_future();
    for reply in together(30, ask).await {
        assert_eq!(reply.status, 503);
    }
    assert!(upstream.count("GET", "/blobs/") >= 30);
    assert!(looks(&upstream) <= 4, "{} looks", looks(&upstream));
}

#[tokio::test]
async fn a_head_that_is_refused_is_followed_by_a_get() {
    for status in [400, 401, 403, 404, 405, 406, 410, 501] {
        let upstream = Upstream::start().await;
        let (old, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
        upstream.image(REPO, "1", &old).on("HEAD", TAG).fault(Fault::Status(status));
        let berth = Berth::with("docker.io", &upstream).sections(ALWAYS_CHECK).start().await;
        berth.pull(REPO, "1", &old).await;
        upstream.image(REPO, "1", &new);
        let reply = berth.get(TAG).await;
        assert_eq!(reply.expect(200), &new.manifest, "{status}");
        assert_eq!(reply.header("warning"), None, "{status}");
        assert_eq!(upstream.count("HEAD", TAG), 2, "{status}");
    }
}

#[tokio::test]
async fn a_refusal_is_confirmed_by_one_get_in_the_time_that_it_is_remembered() {
    let upstream = Upstream::start().await;
    let (berth, _) = pulled(&upstream).await;
    upstream.untag(REPO, "1");
    for path in [TAG, "/v2/library/app/manifests/none"] {
        for reply in together(20, |_| berth.get(path).into_future()).await {
            assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"), "{path}");
        }
        berth.head(path).await.expect(404);
        assert_eq!((upstream.count("HEAD", path), upstream.count("GET", path)), (1, 1), "{path}");
    }
}

#[tokio::test]
async fn a_new_token_that_is_refused_is_an_outage() {
    let upstream = Upstream::start().await;
    upstream.auth(Auth::Bearer).anonymous("library/");
    let (berth, image) = pulled(&upstream).await;
    upstream.distrust_tokens();
    let reply = berth.get(TAG).await;
    assert_eq!(reply.expect(200), &image.manifest);
    reply.expect_stale();
    let other = Image::of(2, &[3000]);
    upstream.image(REPO, "2", &other);
    for path in [format!("/v2/{REPO}/manifests/2"), other.path(REPO), other.layer().path(REPO)] {
        let reply = berth.get(&path).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{path}");
        assert!(reply.text().contains("token"), "{}", reply.text());
    }
}
