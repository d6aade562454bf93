//! `berth refresh`: a tag is checked now, whatever a rule or a remembered answer says.

use crate::support::{Berth, Fault, Gate, Image, Said, Upstream, command, eventually};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
/// By its rule no tag is due while a test runs.
const CALM: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"1h\"";

async fn pulled() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).sections(CALM).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    upstream.forget();
    (upstream, berth, image)
}

async fn refresh(berth: &Berth, args: &[&str]) -> Said {
    command(berth.data_dir(), &[&["refresh"], args].concat()).await
}

#[track_caller]
fn assert_said(said: &Said, code: i32, text: &str) {
    assert_eq!((said.code, said.text.contains(text)), (Some(code), true), "`{text}` in: {}", said.text);
}

#[tokio::test]
async fn a_tag_that_has_moved_is_served_anew_at_once() {
    let (upstream, berth, old) = pulled().await;
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "1", &new);
    assert_eq!(berth.get(TAG).await.expect(200), &old.manifest, "by its rule it is not due");
    let said = refresh(&berth, &["app:1"]).await;
    let moved = format!("docker.io/library/app:1: moved from {} to {}\n", old.digest(), new.digest());
    assert_said(&said, 0, &moved);
    assert_eq!(berth.get(TAG).await.expect(200), &new.manifest);
    let said = refresh(&berth, &["docker.io/library/app:1"]).await;
    assert_said(&said, 0, &format!("unchanged, {}", new.digest()));
    assert_eq!((upstream.count("HEAD", TAG), upstream.count("GET", "/manifests/")), (2, 1));
}

#[tokio::test]
async fn a_tag_that_is_gone_is_refused_from_then_on() {
    let (upstream, berth, image) = pulled().await;
    upstream.untag(REPO, "1");
    berth.get(TAG).await.expect(200);
    assert_said(&refresh(&berth, &["app:1"]).await, 1, "docker.io/library/app:1: gone: ");
    assert_eq!(berth.get(TAG).await.error_code(), "MANIFEST_UNKNOWN", "fresh as it was");
    assert_eq!(upstream.count("HEAD", TAG), 1);
    // Its confirmation from before stays worthless also when the word is no longer remembered.
    eventually("it is asked again", async || {
        assert_eq!(berth.get(TAG).await.status, 404);
        upstream.count("HEAD", TAG) > 1
    })
    .await;
    upstream.image(REPO, "1", &image);
    assert_said(&refresh(&berth, &["app:1"]).await, 0, "unchanged");
    assert_eq!(berth.get(TAG).await.header("warning"), None);
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test]
async fn remembered_refusals_are_forgotten() {
    let (upstream, berth, _) = pulled().await;
    let new = Image::of(2, &[3000]);
    let paths = ["/v2/library/app/manifests/2".to_owned(), new.path(REPO), new.layer().path(REPO)];
    for path in &paths {
        assert_eq!(berth.get(path).await.status, 404, "{path}");
    }
    upstream.image(REPO, "2", &new);
    for path in &paths {
        assert_eq!(berth.get(path).await.status, 404, "{path} is remembered");
        // A tag by HEAD, and by GET before it is believed to be missing.
        let times = if *path == paths[0] { 2 } else { 1 };
        assert_eq!(upstream.count("*", path), times, "{path}");
    }
    assert_said(&refresh(&berth, &["app:2"]).await, 0, &format!("not known before, {}", new.digest()));
    for path in &paths {
        berth.get(path).await.expect(200);
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_asked_changes_nothing() {
    let (upstream, berth, image) = pulled().await;
    for fault in [Fault::Status(500), Fault::Limited(30), Fault::Hangup, Fault::Html] {
        upstream.behave();
        upstream.on("*", "").fault(fault);
        assert_said(&refresh(&berth, &["app:1"]).await, 1, "could not be checked: upstream");
        assert_eq!(berth.get(TAG).await.expect(200), &image.manifest);
    }
    upstream.stop().await;
    assert_said(&refresh(&berth, &["app:1"]).await, 1, "could not be checked: ");
    assert_eq!(berth.get(TAG).await.expect(200), &image.manifest);
}

#[tokio::test]
async fn a_check_that_was_under_way_is_not_enough() {
    let (upstream, berth, old) = pulled().await;
    let gate = Gate::new();
    upstream.image(REPO, "2", &old);
    let path = "/v2/library/app/manifests/2";
    upstream.on("HEAD", path).first(1).fault(Fault::Hold(gate.clone()));
    let client = tokio::spawn(berth.get(path).into_future());
    eventually("a check is under way", async || upstream.count("HEAD", path) == 1).await;
    // Its answer is already made.
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "2", &new);
    let command = berth.order("/api/v1/refresh", "{\"ref\":\"app:2\"}");
    let command = tokio::spawn(command.into_future());
    // Nobody can see from outside that it waits; what comes of it must be right in any case.
    for _ in 0..50 {
        berth.get(TAG).await.expect(200);
    }
    gate.open();
    let said = command.await.unwrap();
    assert!(said.text().contains(&new.digest().to_string()), "{}", said.text());
    client.await.unwrap().expect(200);
    assert_eq!(berth.get(path).await.expect(200), &new.manifest);
}

#[tokio::test]
async fn all_known_tags_of_a_repository_are_checked() {
    let (upstream, berth, image) = pulled().await;
    let tags: Vec<_> = (10..30).map(|tag| tag.to_string()).collect();
    for tag in &tags {
        upstream.image(REPO, tag, &image);
        berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await.expect(200);
    }
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "13", &new).image(REPO, "unknown", &new);
    upstream.forget();
    let said = refresh(&berth, &["app", "--all-tags"]).await;
    assert_said(&said, 0, &format!("app:13: moved from {} to {}", image.digest(), new.digest()));
    assert_eq!(said.text.lines().filter(|line| line.contains(": unchanged, ")).count(), 20, "{}", said.text);
    assert_eq!(upstream.count("HEAD", "/manifests/"), 21, "each once, and none that is not here");
    upstream.untag(REPO, "29");
    let said = refresh(&berth, &["app", "--all-tags"]).await;
    assert_said(&said, 1, "app:29: gone");
    assert_eq!(said.text.lines().count(), 21, "{}", said.text);
}

#[tokio::test]
async fn what_cannot_be_refreshed_is_said() {
    let (_upstream, mut berth, image) = pulled().await;
    let digest = format!("app@{}", image.digest());
    assert_said(&refresh(&berth, &[&digest]).await, 1, "expected a tag");
    assert_said(&refresh(&berth, &["nowhere.example/app:1"]).await, 1, "no upstream is configured");
    assert_eq!(refresh(&berth, &["UPPER"]).await.code, Some(2));
    let path = "/api/v1/refresh";
    for bad in ["{}", "{\"ref\":\"app:1\",\"x\":1}", "{\"ref\":\"app\",\"all_tags\":true,\"after\":\"/\"}"] {
        let reply = berth.order(path, bad).await;
        assert_eq!(reply.status, 400, "{bad}: {}", reply.text());
    }
    assert_eq!(berth.admin(path).await.status, 405);
    berth.stop().await;
    assert_said(&refresh(&berth, &["app:1"]).await, 1, "no daemon runs");
}
