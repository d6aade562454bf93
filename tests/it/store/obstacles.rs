//! What stands in the place of berth's own files and folders (finding F25): berth goes on, says so, and frees the place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, mknodat};

use crate::support::{Berth, Image, Setup, Upstream, eventually, folder, process};

const REPO: &str = "library/obstructed";

/// Puts something in the place of a file.
type Obstacle = fn(&Path);

const OBSTACLES: [(&str, Obstacle); 7] = [
    ("an empty folder", |path| fs::create_dir(path).unwrap()),
    ("a folder", |path| fs::create_dir_all(path.join("mine")).unwrap()),
    ("a pipe", |path| mknodat(CWD, path, FileType::Fifo, 0o644.into(), 0).unwrap()),
    ("a socket", |path| mknodat(CWD, path, FileType::Socket, 0o644.into(), 0).unwrap()),
    ("a link to nowhere", |path| symlink("/nowhere/at/all", path).unwrap()),
    ("a link to itself", |path| symlink(path, path).unwrap()),
    ("a link to a device", |path| symlink("/dev/zero", path).unwrap()),
];

async fn with_image() -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(71, &[3000, 300_000]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

async fn pull(berth: &Berth, image: &Image) {
    berth.pull(REPO, "1", image).await;
    berth.until_idle().await;
}

/// Takes something out of the data folder at once, also while berth goes on working in it.
fn take_away(data_dir: &Path, path: &Path) {
    let away = data_dir.with_extension("away");
    fs::create_dir_all(&away).unwrap();
    let count = fs::read_dir(&away).unwrap().count();
    fs::rename(path, away.join(count.to_string())).unwrap();
}

/// Everything is in its place, and the disk was not blamed for what was not.
async fn assert_healed(berth: &Berth, upstream: &Upstream, image: &Image, what: &str) {
    pull(berth, image).await;
    upstream.forget();
    pull(berth, image).await;
    assert_eq!(upstream.count("GET", ""), 0, "{what}: all is stored again");
    assert_eq!(folder::verified(berth.data_dir()), 4, "{what}");
    assert_eq!(berth.admin("/readyz").await.text(), "ready\n", "{what}");
    assert_eq!(berth.metric("berth_storage_errors_total").await, 0.0, "{what}");
}

#[tokio::test]
async fn a_blob_that_became_something_else_is_fetched_once_and_stored() {
    let (upstream, setup, image) = with_image().await;
    let mut berth = setup.start().await;
    pull(&berth, &image).await;
    for (what, obstruct) in OBSTACLES {
        for runs in [true, false] {
            let all = image.blobs.iter().map(|blob| blob.digest).chain([image.digest()]);
            if !runs {
                berth.stop().await;
            }
            for digest in all.clone() {
                let path = folder::blob(berth.data_dir(), &digest);
                fs::remove_file(&path).unwrap();
                obstruct(&path);
            }
            upstream.forget();
            if !runs {
                berth.start_again().await;
            }
            let paths = image.blobs.iter().map(|blob| blob.path(REPO)).chain([image.path(REPO)]);
            for path in paths {
                // What was read a moment ago is believed to be there for a second.
                eventually("it is missed", async || {
                    berth.head(&path).await.header("cache-status") != Some("berth; hit")
                })
                .await;
            }
            pull(&berth, &image).await;
            let fetched = upstream.count("GET", "/blobs/");
            assert_eq!(fetched, image.blobs.len(), "{what}: each is fetched once");
            assert!(!what.contains("folder") || berth.logs_contain("in the place of a file"), "{what}");
            assert_healed(&berth, &upstream, &image, what).await;
        }
    }
    let kept = berth.data_dir().join("quarantine").join(image.layer().digest.hex());
    assert!(kept.join("mine").is_dir(), "what was in a folder is kept for a while");
}

#[tokio::test]
async fn a_blob_that_is_a_link_to_a_good_copy_is_fetched_and_the_copy_is_left_alone() {
    let (upstream, setup, image) = with_image().await;
    let mut berth = setup.start().await;
    pull(&berth, &image).await;
    berth.stop().await;
    let elsewhere = tempfile::tempdir().unwrap();
    for blob in &image.blobs {
        let (path, copy) =
            (folder::blob(berth.data_dir(), &blob.digest), elsewhere.path().join(blob.digest.hex()));
        fs::rename(&path, &copy).unwrap();
        symlink(&copy, &path).unwrap();
    }
    berth.start_again().await;
    assert_healed(&berth, &upstream, &image, "links").await;
    assert_eq!(folder::files(elsewhere.path()).len(), image.blobs.len());
    assert!(image.blobs.iter().all(|blob| !folder::blob(berth.data_dir(), &blob.digest).is_symlink()));
}

/// The files and folders besides blobs that an image needs.
fn own_files(data_dir: &Path, image: &Image) -> Vec<PathBuf> {
    let layout = folder::layout(data_dir, &format!("docker.io/{REPO}"));
    let blob = image.layer().digest;
    vec![
        folder::partial(data_dir, &blob),
        folder::partial(data_dir, &blob).with_extension("map"),
        layout.join("refs/tags/1"),
        layout.join("refs/manifests").join(image.digest().file_name()),
        layout.join("refs/blobs").join(blob.file_name()),
        layout.join("index.json"),
        layout.join("oci-layout"),
        layout.join("refs/tags"),
        layout.join("refs"),
        layout.clone(),
        data_dir.join("repos/docker.io"),
        data_dir.join("repos"),
        data_dir.join("partial"),
        data_dir.join("blobs/sha256"),
        data_dir.join("blobs"),
        data_dir.join("index"),
        data_dir.join("quarantine"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_in_the_place_of_a_file_or_folder_gives_way() {
    let (upstream, setup, image) = with_image().await;
    let mut berth = setup.start().await;
    pull(&berth, &image).await;
    let a_file: Obstacle = |path| process::write(path, "mine");
    let obstacles: Vec<_> = OBSTACLES.into_iter().chain([("a file", a_file)]).collect();
    for (number, path) in own_files(berth.data_dir(), &image).iter().enumerate() {
        // Each place with some of them, so that all meet one another.
        for (what, obstruct) in [0, 3].map(|step| obstacles[(number + step) % obstacles.len()]) {
            let is_folder = path.is_dir();
            if is_folder && what.contains("folder") {
                continue;
            }
            for runs in [false, true] {
                if !runs {
                    berth.stop().await;
                }
                if path.symlink_metadata().is_ok() {
                    take_away(berth.data_dir(), path);
                }
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                obstruct(path);
                // What was taken away is fetched again.
                let _ = fs::remove_file(folder::blob(berth.data_dir(), &image.layer().digest));
                if !runs {
                    berth.start_again().await;
                }
                let what = format!("{what} in the place of {}", path.display());
                eventually(&format!("{what}: it goes on"), async || {
                    let reply = berth.get(&image.layer().path(REPO)).await;
                    reply.complete
                        && reply.body == image.layer().content
                        && folder::blob(berth.data_dir(), &image.layer().digest).is_file()
                })
                .await;
                pull(&berth, &image).await;
                assert_eq!(berth.admin("/readyz").await.text(), "ready\n", "{what}");
            }
            assert_healed(&berth, &upstream, &image, what).await;
        }
    }
    berth.restart().await;
    assert_healed(&berth, &upstream, &image, "all of it").await;
}

#[tokio::test]
async fn a_tag_and_an_index_json_take_their_places_back() {
    let (upstream, setup, image) = with_image().await;
    let rule = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let mut berth = setup.sections(rule).start().await;
    pull(&berth, &image).await;
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    let index_json = layout.join("index.json");
    eventually("it is rendered", async || index_json.is_file()).await;
    berth.stop().await;
    for path in [&layout.join("refs/tags/1"), &index_json] {
        fs::remove_file(path).unwrap();
        fs::create_dir_all(path.join("mine")).unwrap();
    }
    berth.start_again().await;
    eventually("it is rendered again", async || index_json.is_file()).await;
    let moved = Image::of(72, &[100]);
    upstream.image(REPO, "1", &moved);
    berth.pull(REPO, "1", &moved).await;
    assert!(layout.join("refs/tags/1").is_file());
    let kept = berth.data_dir().join("quarantine");
    assert!(kept.join("1/mine").is_dir() && kept.join("index.json/mine").is_dir());
}

#[tokio::test]
async fn a_lock_that_is_no_file_locks_all_the_same() {
    for (what, obstruct) in OBSTACLES {
        let (_upstream, setup, image) = with_image().await;
        let mut berth = setup.start().await;
        berth.stop().await;
        let lock = berth.data_dir().join("lock");
        fs::remove_file(&lock).unwrap();
        obstruct(&lock);
        berth.start_again().await;
        pull(&berth, &image).await;
        assert!(berth.logs_contain("the data folder itself is locked"), "{what}");
        let (_other, other, _) = with_image().await;
        let second = other.data_dir(berth.data_dir()).fail().await;
        assert_eq!(second.code, Some(1), "{what}");
        assert!(second.log().contains("in use by another berth"), "{what}: {}", second.log());
    }
}
