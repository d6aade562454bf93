//! A clock that was ahead and is corrected (finding F12): a time of the future is no time, and costs one check.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Berth, Image, Upstream, folder, process};

const REPO: &str = "library/ahead";
const TAG: &str = "/v2/library/ahead/manifests/1";
/// How far the clock was ahead, in seconds.
const AHEAD: u64 = 400 * 24 * 3600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Moves the times in a ref file.
fn set_times(path: &Path, at: u64) {
    let mut record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let fields = record.as_object_mut().unwrap();
    for name in ["fetched_at", "checked_at"] {
        if let Some(time) = fields.get_mut(name) {
            *time = json!(at);
        }
    }
    process::write(path, record.to_string());
}

/// Moves the times of all that is known by refs, and has the index read them.
fn as_fetched_at(berth: &Berth, at: u64) {
    let refs = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}")).join("refs");
    for kind in ["tags", "manifests", "referrers"] {
        folder::files(&refs.join(kind)).iter().for_each(|path| set_times(path, at));
    }
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
}

#[tokio::test]
async fn what_was_fetched_at_a_time_of_the_future_is_checked_once() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    upstream.untagged(REPO, &Image::draft(2, &[100]).artifact("a/b").about(&image).build());
    let rule = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"1h\"";
    let mut berth = Berth::with("docker.io", &upstream).sections(rule).start().await;
    let referrers = format!("/v2/{REPO}/referrers/{}", image.digest());
    berth.pull(REPO, "1", &image).await;
    berth.get(&referrers).await.expect(200);
    berth.until_idle().await;
    // A moment ahead is now: clocks are slewed, and differ.
    for (ahead, checks) in [(AHEAD, 1), (20, 0)] {
        berth.stop().await;
        as_fetched_at(&berth, now() + ahead);
        upstream.forget();
        berth.start_again().await;
        for round in 0..3 {
            for _ in 0..10 {
                let reply = berth.get(TAG).await;
                assert_eq!(reply.expect(200), &image.manifest);
                assert_eq!(reply.header("warning"), None);
                berth.get(&referrers).await.expect(200);
            }
            let asked = (upstream.count("HEAD", TAG), upstream.count("GET", &referrers));
            assert_eq!(asked, (checks, checks), "{ahead} seconds ahead, round {round}");
            assert_eq!(upstream.count("GET", "/manifests/"), 0);
            berth.restart().await;
        }
    }
}

#[tokio::test]
async fn a_time_of_the_future_refuses_nothing_while_upstream_is_down() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let rule = "[[tags]]\nmatch = \"*/*:*\"\nserve_stale = \"1h\"";
    let mut berth = Berth::with("docker.io", &upstream).sections(rule).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    as_fetched_at(&berth, now() + AHEAD);
    upstream.stop().await;
    berth.start_again().await;
    for _ in 0..3 {
        let reply = berth.get(TAG).await;
        reply.expect_stale();
        assert_eq!(reply.header("age"), None, "nobody knows how old it is");
    }
}
