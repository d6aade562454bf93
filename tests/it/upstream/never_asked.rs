//! `offline = true`: what is here is served, nothing is dialled, and what is missing is named.

use crate::support::{Auth, Berth, Image, Setup, Upstream, file_of, together};

const REPO: &str = "library/alpine";
const TAG: &str = "/v2/library/alpine/manifests/3";
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";

/// An upstream with an image of two platforms, and a data folder with all of the first and the index; then the
/// upstream is as if nobody had ever asked it anything.
async fn carried() -> (Upstream, tempfile::TempDir, Image) {
    let upstream = Upstream::start().await;
    let image = Image::index(&[&Image::of(1, &[100_000, 300]), &Image::of(2, &[5000])]);
    upstream.image(REPO, "3", &image).image(REPO, "elsewhere", &Image::of(3, &[3000]));
    let folder = tempfile::tempdir().unwrap();
    let mut berth = Berth::with("docker.io", &upstream).data_dir(&folder.path().join("data")).start().await;
    berth.get(TAG).await.expect(200);
    berth.pull(REPO, &image.children[0].digest().to_string(), &image.children[0]).await;
    // Of the second platform the manifest alone.
    berth.get(&image.children[1].path(REPO)).await.expect(200);
    berth.until_idle().await;
    berth.stop().await;
    upstream.forget();
    (upstream, folder, image)
}

fn offline(upstream: &Upstream, folder: &tempfile::TempDir) -> Setup {
    Berth::with("docker.io", upstream)
        .keys("offline = true")
        .sections(ALWAYS_CHECK)
        .data_dir(&folder.path().join("data"))
}

#[tokio::test]
async fn what_is_here_is_served_and_nothing_is_dialled() {
    let (upstream, folder, image) = carried().await;
    let before = upstream.connections();
    // With a login, so that tokens and logins would be tempting.
    upstream.auth(Auth::Bearer).user("robot", "secret", "");
    let login = "credentials = { username = \"robot\", password_env = \"ROBOT\" }";
    let berth = offline(&upstream, &folder).keys(login).env("ROBOT", "secret").start().await;
    for reply in [berth.get(TAG).await, berth.head(TAG).await] {
        reply.expect_stale();
    }
    berth.pull(REPO, &image.children[0].digest().to_string(), &image.children[0]).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    let paths = [
        format!("/v2/{REPO}/manifests/4"),
        format!("/v2/{REPO}/manifests/{absent}"),
        format!("/v2/{REPO}/blobs/{absent}"),
        image.children[1].layer().path(REPO),
        format!("/v2/{REPO}/referrers/{}", image.digest()),
        "/v2/library/never/manifests/1".to_owned(),
    ];
    for path in &paths {
        for reply in together(8, |_| berth.get(path).into_future()).await {
            let expected = if path.contains("referrers") { 404 } else { 503 };
            assert_eq!(reply.status, expected, "{path}: {}", reply.text());
            assert!(!reply.error_code().is_empty(), "{path}");
        }
        assert_eq!(berth.head(path).await.status, berth.get(path).await.status, "{path}");
    }
    let tags = berth.get(&format!("/v2/{REPO}/tags/list")).await;
    assert_eq!(tags.status, 403, "what needs a login is not listed");
    assert_eq!((upstream.connections(), upstream.requests().len()), (before, 0));
}

#[tokio::test]
async fn an_error_names_the_image_and_what_it_is_missing() {
    let (upstream, folder, image) = carried().await;
    let berth = offline(&upstream, &folder).start().await;
    let layer = image.children[1].layer();
    let check = async |path: &str, expected: &str| {
        let reply = berth.get(path).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{path}");
        let message = reply.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        assert_eq!(message, format!("docker.io is offline by this mirror's configuration, and {expected}"));
        assert_eq!(reply.header("retry-after"), None, "later it is no better");
    };
    let repo = format!("docker.io/{REPO}");
    check(&layer.path(REPO), &format!("{repo}:3 is missing {}", layer.digest)).await;
    check(&format!("/v2/{REPO}/manifests/4"), &format!("{repo}:4 is not here")).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    for kind in ["blobs", "manifests"] {
        check(&format!("/v2/{REPO}/{kind}/{absent}"), &format!("{repo} is missing {absent}")).await;
    }
    let tags = berth.get(&format!("/v2/{REPO}/tags/list")).await;
    assert_eq!(tags.json()["tags"], serde_json::json!(["3"]));
    assert_eq!(berth.get("/v2/library/never/tags/list").await.status, 503);
    // A manifest that went away is missing from its tag.
    let lost = crate::support::folder::blob(berth.data_dir(), &image.digest());
    std::fs::remove_file(&lost).unwrap();
    let mut berth = berth;
    berth.restart().await;
    let reply = berth.get(TAG).await;
    let expected = format!("{repo}:3 is missing {}", image.digest());
    assert!(reply.text().contains(&expected), "{}", reply.text());
}

#[tokio::test]
async fn one_registry_is_offline_and_the_other_is_not() {
    let (upstream, folder, _) = carried().await;
    let other = Upstream::start().await;
    let image = Image::of(7, &[3000]);
    other.image("team/app", "1", &image);
    let before = upstream.connections();
    let berth = offline(&upstream, &folder).and("quay.io", &other).start().await;
    let reply = berth.get("/v2/quay.io/team/app/manifests/1").await;
    assert_eq!(reply.expect(200), &image.manifest);
    berth.get(TAG).await.expect_stale();
    assert_eq!(upstream.connections(), before);
    let ready = berth.admin("/readyz").await;
    assert!(ready.text().starts_with("ready\noffline: docker.io"), "{}", ready.text());
    assert!(!ready.text().contains("quay.io"), "{}", ready.text());
    for (registry, up, offline) in [("docker.io", 0.0, 1.0), ("quay.io", 1.0, 0.0)] {
        let metric = async |name: &str| berth.metric(&format!("{name}{{registry=\"{registry}\"")).await;
        assert_eq!(metric("berth_upstream_up").await, up, "{registry}");
        assert_eq!(metric("berth_upstream_offline").await, offline, "{registry}");
    }
}

#[tokio::test]
async fn all_of_it_offline_is_one_word_at_the_top() {
    let (upstream, folder, image) = carried().await;
    let before = upstream.connections();
    let toml = format!(
        "offline = true\n{ALWAYS_CHECK}\n[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [[upstream]]\nregistry = \"docker.io\"\nendpoints = [{:?}]",
        upstream.url()
    );
    let setup = Berth::with("docker.io", &upstream).file(&toml).data_dir(&folder.path().join("data"));
    let berth = setup.arg("--data-dir").arg(folder.path().join("data").to_str().unwrap()).start().await;
    assert_eq!(berth.get(TAG).await.expect(200), &image.manifest);
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/4")).await.status, 503);
    let ready = berth.admin("/readyz").await.text();
    assert!(ready.contains("docker.io, gcr.io, ghcr.io"), "{ready}");
    assert_eq!(upstream.connections(), before);

    let file = file_of(&toml);
    let command = ["check-config", "--config", file.to_str().unwrap()];
    let output = tokio::process::Command::new(crate::support::BERTH).args(command).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let upstreams: Vec<_> = said.lines().filter(|line| line.starts_with("upstream ")).collect();
    assert_eq!(upstreams.len(), 10, "{said}");
    assert!(upstreams.iter().all(|line| line.ends_with(" offline")), "{said}");
}
