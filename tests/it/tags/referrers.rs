//! Referrers: what is about an image, asked in either way, and while nobody can be asked.

use berth::oci::{Algorithm, Digest};
use serde_json::Value;

use crate::support::{Berth, Fault, Gate, Image, Reply, Upstream, eventually, together};

const REPO: &str = "library/signed";
const SBOM: &str = "application/vnd.example.sbom";
const SIGNATURE: &str = "application/vnd.example.signature";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image with two SBOMs and a signature.
async fn signed() -> (Upstream, Berth, Image, Vec<Image>) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let about = |seed, kind| Image::draft(seed, &[100]).artifact(kind).about(&image).build();
    let artifacts = vec![about(2, SBOM), about(3, SBOM), about(4, SIGNATURE)];
    for artifact in &artifacts {
        upstream.untagged(REPO, artifact);
    }
    let berth = Berth::with("docker.io", &upstream).start().await;
    (upstream, berth, image, artifacts)
}

fn path(image: &Image) -> String {
    format!("/v2/{REPO}/referrers/{}", image.digest())
}

/// The tag under which old registries keep the list.
fn fallback(image: &Image) -> String {
    image.digest().to_string().replace(':', "-")
}

/// The digests of a list, in its order.
fn listed(reply: &Reply) -> Vec<String> {
    reply.expect(200);
    assert_eq!(reply.header("content-type"), Some(INDEX));
    assert_eq!(reply.header("oci-namespace"), Some("docker.io"));
    let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
    reply.json()["manifests"].as_array().unwrap().iter().map(digest).collect()
}

fn sorted(images: &[Image]) -> Vec<String> {
    let mut digests: Vec<_> = images.iter().map(|image| image.digest().to_string()).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn a_list_comes_from_upstream_once_and_then_from_disk() {
    let (upstream, mut berth, image, artifacts) = signed().await;
    berth.pull(REPO, "1", &image).await;
    let gate = Gate::new();
    upstream.on("GET", "/referrers/").fault(Fault::Hold(gate.clone()));
    let clients = tokio::spawn(together(20, {
        let ask = berth.get(&path(&image));
        move |_| ask.clone().into_future()
    }));
    eventually("upstream is asked", async || upstream.count("GET", "/referrers/") > 0).await;
    gate.open();
    for reply in clients.await.unwrap() {
        assert_eq!(listed(&reply), sorted(&artifacts));
    }
    assert_eq!(listed(&berth.get(&path(&image)).await), sorted(&artifacts));
    assert_eq!(berth.head(&path(&image)).await.status, 200);
    assert_eq!(upstream.count("GET", "/referrers/"), 1);
    upstream.stop().await;
    berth.restart().await;
    assert_eq!(listed(&berth.get(&path(&image)).await), sorted(&artifacts));
}

#[tokio::test]
async fn a_filter_is_applied_and_says_so() {
    let (_upstream, berth, image, artifacts) = signed().await;
    let check = async |kind: &str, expected: &[Image]| {
        let kind = kind.replace('+', "%2B");
        let reply = berth.get(&format!("{}?artifactType={kind}", path(&image))).await;
        assert_eq!(listed(&reply), sorted(expected), "{kind}");
        assert_eq!(reply.header("oci-filters-applied"), Some("artifactType"));
    };
    check(SBOM, &artifacts[..2]).await;
    check(SIGNATURE, &artifacts[2..]).await;
    check("application/vnd.example.other+json", &[]).await;
    assert_eq!(berth.get(&path(&image)).await.header("oci-filters-applied"), None);
}

#[tokio::test]
async fn pages_are_put_together() {
    let (upstream, berth, image, artifacts) = signed().await;
    upstream.page_size(1);
    assert_eq!(listed(&berth.get(&path(&image)).await), sorted(&artifacts));
    assert_eq!(upstream.count("GET", "/referrers/"), 3);
}

#[tokio::test]
async fn an_old_registry_keeps_the_list_under_a_tag() {
    let (upstream, berth, image, artifacts) = signed().await;
    let list = Image::index(&artifacts.iter().collect::<Vec<_>>());
    upstream.without_referrers_api().image(REPO, &fallback(&image), &list);
    let expected: Vec<_> = artifacts.iter().map(|image| image.digest().to_string()).collect();
    // A list is kept for what is here.
    berth.pull(REPO, "1", &image).await;
    assert_eq!(listed(&berth.get(&path(&image)).await), expected);
    berth.pull(REPO, &fallback(&image), &list).await;
    upstream.stop().await;
    assert_eq!(listed(&berth.get(&path(&image)).await), expected);
    berth.pull(REPO, &fallback(&image), &list).await;
}

#[tokio::test]
async fn nothing_refers_to_it_is_an_empty_list() {
    for has_api in [true, false] {
        let (upstream, berth, _, _) = signed().await;
        if !has_api {
            upstream.without_referrers_api();
        }
        let lonely = Image::of(9, &[3000]);
        upstream.image(REPO, "2", &lonely);
        berth.pull(REPO, "2", &lonely).await;
        for _ in 0..2 {
            let reply = berth.get(&path(&lonely)).await;
            assert!(listed(&reply).is_empty());
            assert_eq!(reply.json()["schemaVersion"], 2);
            assert_eq!(reply.json()["mediaType"], INDEX);
        }
        assert_eq!(upstream.count("GET", "/referrers/"), 1);
        // This is how oras finds out whether there is such an API.
        let probe = berth.get(&format!("/v2/{REPO}/referrers/sha256:{}", "0".repeat(64))).await;
        assert!(listed(&probe).is_empty());
        upstream.stop().await;
        assert!(listed(&berth.get(&path(&lonely)).await).is_empty());
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_asked_is_never_a_failed_pull() {
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Limited(30),
        Fault::Html,
        Fault::Hangup,
        Fault::StallHead,
        Fault::Status(403),
    ] {
        let upstream = Upstream::start().await;
        let (image, berth) = (
            Image::of(1, &[3000]),
            Berth::with("docker.io", &upstream).keys("timeouts = { header_seconds = 0.5 }").start().await,
        );
        upstream.on("*", "").fault(fault);
        let reply = berth.get(&path(&image)).await;
        assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"));
        let reply = berth.get(&format!("/v2/{REPO}/manifests/{}", fallback(&image))).await;
        assert_eq!(reply.status, 404, "dockerd fails a pull when both are 503: {}", reply.text());
        let reply = berth.get(&format!("/v2/{REPO}/manifests/{}.sig", fallback(&image))).await;
        assert!(reply.status == 503 || reply.error_code() == "DENIED", "{}", reply.text());
    }
}

#[tokio::test]
async fn a_patient_client_of_a_stalled_upstream_gets_its_404_in_time() {
    let (upstream, berth, image) = patient().await;
    let gate = Gate::new();
    upstream.on("GET", "").fault(Fault::Hold(gate.clone()));
    let unknown = Image::of(9, &[10]);
    assert_eq!(berth.get(&path(&unknown)).await.status, 404);
    assert!(listed(&berth.get(&path(&image)).await).is_empty());
    gate.open();
}

/// A berth that waits for upstream longer than any client, with an image.
async fn patient() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream)
        .keys("timeouts = { header_seconds = 600, budget_seconds = 600 }")
        .start()
        .await;
    berth.pull(REPO, "1", &image).await;
    assert!(listed(&berth.get(&path(&image)).await).is_empty());
    (upstream, berth, image)
}

#[tokio::test]
async fn questions_about_what_is_not_here_leave_nothing_behind() {
    let (upstream, berth, _, _) = signed().await;
    for seed in 0..20_u8 {
        let digest = Digest::of(Algorithm::Sha256, &[seed]);
        let reply = berth.get(&format!("/v2/library/never-{seed}/referrers/{digest}")).await;
        assert_eq!(reply.status, 200);
    }
    assert!(!berth.data_dir().join("repos/docker.io/library/never-1").exists());
    upstream.stop().await;
    assert_eq!(berth.get("/v2/library/never-1/tags/list").await.status, 503);
}

/// Requests for lists, and for the tags that stand for them.
fn asked(upstream: &Upstream) -> (usize, usize) {
    (upstream.count("GET", "/referrers/"), upstream.count("GET", "/manifests/sha256-"))
}

#[tokio::test]
async fn what_has_no_such_api_is_asked_by_tag_and_that_is_remembered() {
    let elsewhere = Upstream::start().await;
    // B3: GitHub's leads to its web page, which limits.
    elsewhere.on("*", "/login").fault(Fault::Limited(30));
    elsewhere.on("*", "/gone").fault(Fault::Status(404));
    elsewhere.on("*", "/denied").fault(Fault::Status(403));
    elsewhere.on("*", "/page").fault(Fault::Html);
    let to = |path: &str| Fault::RedirectTo(format!("{}{path}", elsewhere.url()));
    for fault in [
        to("/login"),
        to("/gone"),
        to("/denied"),
        to("/page"),
        Fault::Status(404),
        Fault::Status(405),
        Fault::Status(406),
        Fault::Status(410),
        Fault::Status(501),
        Fault::Html,
        Fault::Content("text/plain", "404 page not found".into()),
        Fault::Content("application/json", "{}".into()),
    ] {
        let (upstream, berth, image, artifacts) = signed().await;
        let list = Image::index(&artifacts.iter().collect::<Vec<_>>());
        upstream.image(REPO, &fallback(&image), &list);
        upstream.on("GET", "/referrers/").fault(fault);
        let expected: Vec<_> = artifacts.iter().map(|image| image.digest().to_string()).collect();
        assert_eq!(listed(&berth.get(&path(&image)).await), expected);
        assert_eq!(asked(&upstream), (1, 1));
        // Of the others in that repository it is known too.
        for artifact in &artifacts {
            assert!(listed(&berth.get(&path(artifact)).await).is_empty());
        }
        assert_eq!(asked(&upstream), (1, 4));
    }
}

#[tokio::test]
async fn what_is_not_there_says_nothing_of_the_rest() {
    let (upstream, berth, image, artifacts) = signed().await;
    // Anybody may ask about what nobody has.
    for seed in 0..3_u8 {
        let digest = Digest::of(Algorithm::Sha256, &[seed]);
        upstream.on("GET", &digest.to_string()).fault(Fault::Status(400));
        assert!(listed(&berth.get(&format!("/v2/{REPO}/referrers/{digest}")).await).is_empty());
        assert!(
            listed(&berth.get(&format!("/v2/library/none/referrers/{}", image.digest())).await).is_empty()
        );
        assert_eq!(asked(&upstream).0, 2 + usize::from(seed), "the same is not asked again");
    }
    assert_eq!(listed(&berth.get(&path(&image)).await), sorted(&artifacts));
}

#[tokio::test]
async fn an_outage_of_the_api_is_no_lack_of_it() {
    for fault in
        [Fault::Status(500), Fault::Status(503), Fault::Limited(1), Fault::Hangup, Fault::Status(403)]
    {
        let (upstream, berth, image, artifacts) = signed().await;
        upstream.on("GET", "/referrers/").fault(fault.clone());
        let reply = berth.get(&path(&image)).await;
        assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"), "nobody knows");
        if matches!(fault, Fault::Status(500)) {
            upstream.behave();
            assert_eq!(listed(&berth.get(&path(&image)).await), sorted(&artifacts));
        }
    }
}

#[tokio::test]
async fn a_next_page_that_is_not_there_is_no_end() {
    for fault in [
        Fault::Status(404),
        Fault::Status(403),
        Fault::Status(405),
        Fault::Html,
        Fault::Header("Link", "<?>; rel=next".to_owned()),
    ] {
        let (upstream, berth, image, _) = signed().await;
        upstream.page_size(1);
        upstream.on("GET", "/referrers/").after(1).fault(fault);
        let reply = berth.get(&path(&image)).await;
        assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"));
    }
}

/// B2: GitLab answers the tag with the subject itself.
#[tokio::test]
async fn what_stands_under_the_tag_and_is_no_list_of_referrers_is_none() {
    let parts = [Image::of(11, &[3000]), Image::of(12, &[3000])];
    let index = Image::index(&parts.iter().collect::<Vec<_>>());
    let other = Image::index(&[&Image::draft(13, &[10]).artifact(SBOM).build()]);
    for has_api in [false, true] {
        let upstream = Upstream::start().await;
        upstream.image(REPO, "1", &index);
        if !has_api {
            upstream.without_referrers_api();
        }
        upstream.image(REPO, &fallback(&index), &index);
        upstream.image(REPO, &fallback(&parts[0]), &parts[0]).image(REPO, "2", &parts[0]);
        let berth = Berth::with("docker.io", &upstream).start().await;
        if has_api {
            // It answers whatever is asked about a digest with what has it.
            let body = Fault::Content(INDEX, index.manifest.clone());
            upstream.on("GET", &format!("/referrers/{}", index.digest())).fault(body);
        }
        assert!(listed(&berth.get(&path(&index)).await).is_empty(), "the subject itself");
        assert!(listed(&berth.get(&path(&parts[0])).await).is_empty(), "an image");
    }
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    let body = String::from_utf8(other.manifest.to_vec()).unwrap().replace(INDEX, docker);
    let upstream = Upstream::start().await;
    upstream.without_referrers_api().image(REPO, "1", &index).image(REPO, &fallback(&index), &other);
    let berth = Berth::with("docker.io", &upstream).start().await;
    upstream.on("GET", "/manifests/sha256-").first(1).fault(Fault::Content(docker, body.into()));
    assert!(listed(&berth.get(&path(&index)).await).is_empty(), "of images");
    assert_eq!(listed(&berth.get(&path(&index)).await).len(), 1, "what is a list is one");
}
