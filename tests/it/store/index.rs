//! The index is disposable: without it, or with a broken one, everything is served offline all the same.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::support::{Berth, Image, Upstream, eventually, folder};

const REPO: &str = "library/index";

/// A berth that has an image, has ended in order, and has no upstream any more.
async fn stopped_with_image() -> (Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::index(&[&Image::of(41, &[3000, 200_000]), &Image::of(42, &[3000])]);
    upstream.image(REPO, "1", &image);
    let mut berth = Berth::with("docker.io", &upstream).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    upstream.stop().await;
    (berth, image)
}

async fn assert_serves_all_offline(berth: &Berth, image: &Image) {
    berth.pull(REPO, "1", image).await;
    berth.pull(REPO, &image.digest().to_string(), image).await;
    let tags = berth.get(&format!("/v2/{REPO}/tags/list")).await;
    assert_eq!(tags.json()["tags"], serde_json::json!(["1"]));
    let catalog = berth.get("/v2/_catalog").await;
    assert_eq!(catalog.json()["repositories"], serde_json::json!([format!("docker.io/{REPO}")]));
}

fn overwrite(index: &Path, change: impl Fn(&File)) {
    for path in folder::files(index) {
        change(&File::options().write(true).open(path).unwrap());
    }
}

#[tokio::test]
async fn an_index_that_is_gone_or_broken_is_rebuilt() {
    let (mut berth, image) = stopped_with_image().await;
    let mut random = fastrand::Rng::with_seed(43);
    let garbage: Vec<u8> = (0..1 << 20).map(|_| random.u8(..)).collect();
    let index = berth.data_dir().join("index");
    let breaks: [(&str, &dyn Fn()); 7] = [
        ("removed", &|| fs::remove_dir_all(&index).unwrap()),
        ("garbage", &|| overwrite(&index, |file| file.write_all_at(&garbage, 0).unwrap())),
        ("zeros", &|| overwrite(&index, |file| file.write_all_at(&[0; 1 << 20], 0).unwrap())),
        ("garbage behind the head", &|| {
            overwrite(&index, |file| file.write_all_at(&garbage[..100_000], 64).unwrap());
        }),
        ("emptied", &|| overwrite(&index, |file| file.set_len(0).unwrap())),
        ("a file in its place", &|| {
            fs::remove_dir_all(&index).unwrap();
            File::create(&index).unwrap().write_all_at(&garbage, 0).unwrap();
        }),
        ("of another version", &|| {
            let db = sled::open(&index).unwrap();
            db.open_tree("meta").unwrap().insert("version", "berth 0").unwrap();
        }),
    ];
    for (how, damage) in breaks {
        damage();
        berth.start_again().await;
        assert_serves_all_offline(&berth, &image).await;
        // At once, or where the damage shows only when everything is read, behind.
        eventually(&format!("{how}: rebuilt"), async || {
            berth.logs_contain("the index was rebuilt from the files")
        })
        .await;
        assert_serves_all_offline(&berth, &image).await;
        berth.stop().await;
    }
}

#[tokio::test]
async fn an_index_cut_short_anywhere_loses_nothing() {
    let (mut berth, image) = stopped_with_image().await;
    let index = berth.data_dir().join("index");
    let mut random = fastrand::Rng::with_seed(44);
    for _ in 0..8 {
        let keep = random.u64(1..20_000);
        overwrite(&index, |file| file.set_len(file.metadata().unwrap().len().min(keep)).unwrap());
        berth.start_again().await;
        assert_serves_all_offline(&berth, &image).await;
        berth.kill().await;
    }
}

#[tokio::test]
async fn an_index_with_flipped_bits_loses_nothing() {
    let (mut berth, image) = stopped_with_image().await;
    let index = berth.data_dir().join("index");
    let mut random = fastrand::Rng::with_seed(45);
    for _ in 0..8 {
        let (at, byte) = (random.u64(0..20_000), random.u8(..));
        overwrite(&index, |file| file.write_all_at(&[byte; 3], at).unwrap());
        berth.start_again().await;
        assert_serves_all_offline(&berth, &image).await;
        berth.stop().await;
    }
}

#[tokio::test]
async fn an_index_removed_under_a_running_berth_is_no_loss() {
    let (mut berth, image) = stopped_with_image().await;
    berth.start_again().await;
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    assert_serves_all_offline(&berth, &image).await;
    berth.restart().await;
    assert!(berth.logs_contain("the index was rebuilt from the files"));
    assert_serves_all_offline(&berth, &image).await;
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    berth.kill().await;
    berth.start_again().await;
    assert_serves_all_offline(&berth, &image).await;
}
