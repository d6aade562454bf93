//! A store with very many files: it starts without reading them, and what it does then does not grow with them.
//!
//! As many as a test can afford; `benches/pull/scale.rs` has a million.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::many::{LARGE, Many, name};
use crate::support::{Berth, Image, Upstream, eventually, folder};

const MANY: Many = Many { blobs: 20_000, tags: 4_000 };
/// The `index.json` of these takes some seconds of its turns.
const TAGS: Many = Many { blobs: 14_000, tags: 14_000 };

/// The content of such a store is not what its names say, and a look at it would put all of it aside.
const UNREAD: &str = "[cache]\nscrub = \"off\"\n";

async fn assert_serves(berth: &Berth) {
    for number in (0..MANY.blobs).step_by(MANY.blobs / 20) {
        let reply = berth.get(&MANY.path(number)).await;
        assert_eq!(reply.expect(200).len() as u64, MANY.bytes(number));
        assert_eq!(reply.header("cache-status"), Some("berth; hit"));
    }
    let last = MANY.tag(MANY.large_tags() - 2);
    let page = berth.get(&format!("/v2/{LARGE}/tags/list?n=9&last={last}")).await;
    assert_eq!(page.json()["tags"], json!([MANY.tag(MANY.large_tags() - 1)]));
}

/// Waits until nothing is left to be read, and expects everything to be known.
async fn assert_comes_to_know_all(berth: &Berth) {
    let bytes = MANY.all_bytes() as f64;
    let is_all = async || berth.metric("registry_storage_used_bytes").await == bytes;
    eventually("all bytes are counted", is_all).await;
    eventually("all is read", async || berth.metric("berth_index_rebuild_ratio").await == 1.0).await;
    let catalog = berth.get("/v2/_catalog?n=1000").await.json();
    assert_eq!(catalog["repositories"].as_array().unwrap().len(), 1 + MANY.small_repositories());
    let small = berth.get(&format!("/v2/{}/tags/list?n=1000", name(1))).await.json();
    assert_eq!(small["tags"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn a_store_with_many_blobs_serves_at_once_and_comes_to_know_all() {
    let upstream = Upstream::start().await;
    let data = tempfile::tempdir().unwrap();
    let data_dir = data.path().join("data");
    MANY.make(&data_dir);
    let setup = Berth::with("docker.io", &upstream).data_dir(&data_dir).sections(UNREAD);
    upstream.stop().await;
    // Without an index.
    let mut berth = setup.start().await;
    assert_serves(&berth).await;
    berth.until_logged("the index was rebuilt from the files").await;
    assert_comes_to_know_all(&berth).await;
    // With one that was closed in order, and one that was not.
    berth.restart().await;
    assert_serves(&berth).await;
    assert_comes_to_know_all(&berth).await;
    berth.kill().await;
    berth.start_again().await;
    assert_serves(&berth).await;
    assert_comes_to_know_all(&berth).await;
    for complaint in ["the index was rebuilt", "the index has lost records", "unreadable"] {
        assert!(!berth.logs_contain(complaint), "{complaint}");
    }
}

/// What the process has written to files and sockets.
fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

fn digest_of(index_json: &Path, tag: &str) -> Option<String> {
    let index: Value = serde_json::from_slice(&fs::read(index_json).ok()?).ok()?;
    let entries = index["manifests"].as_array()?;
    let is_it = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == *tag;
    Some(entries.iter().find(is_it)?["digest"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_tag_among_very_many_moves_for_the_price_of_one() {
    let upstream = Upstream::start().await;
    let data = tempfile::tempdir().unwrap();
    let data_dir = data.path().join("data");
    TAGS.make(&data_dir);
    let always = format!("{UNREAD}[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"");
    let berth = Berth::with("docker.io", &upstream).data_dir(&data_dir).sections(&always).start().await;
    berth.until_logged("the index was rebuilt from the files").await;
    let index_json = folder::layout(&data_dir, &format!("docker.io/{LARGE}")).join("index.json");
    let last = TAGS.tag(TAGS.large_tags() - 1);
    eventually("its index.json", async || digest_of(&index_json, &last).is_some()).await;
    let size = fs::metadata(&index_json).unwrap().len();
    let (inode, before) = (fs::metadata(&index_json).unwrap().ino(), written_bytes(berth.pid()));
    let mut image = Image::of(90, &[3000]);
    for seed in 91..94 {
        image = Image::of(seed, &[3000]);
        upstream.image(LARGE, "moving", &image);
        berth.pull(LARGE, "moving", &image).await;
    }
    let written = written_bytes(berth.pid()) - before;
    assert_eq!(fs::metadata(&index_json).unwrap().ino(), inode, "written anew for each move");
    // The index may write a segment of half a mebibyte meanwhile; an index.json anew is more than that even once.
    assert!(written < size, "{written} bytes for three moves, with an index.json of {size}");
    // In its turn, and once for all.
    let expected = image.digest().to_string();
    eventually("it follows", async || digest_of(&index_json, "moving").as_ref() == Some(&expected)).await;
}
