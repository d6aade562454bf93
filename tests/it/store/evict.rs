//! A disk with a budget: what goes when there is no room, what stays, and what never comes to stay.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use berth::oci::Digest;
use rustix::fs::statvfs;

use crate::support::crash::Disk;
use crate::support::{Berth, Blob, Fault, Gate, Image, Setup, Upstream, eventually, folder, together};

const REPO: &str = "library/evicted";
const MIB: u64 = 1 << 20;
/// Of the tests that do not choose their own.
const BUDGET: u64 = 3 * MIB;

/// A berth with these settings of `[cache]`, and images by their tags.
async fn with_images(cache: &str, images: &[(&str, &Image)]) -> (Upstream, Setup) {
    let upstream = Upstream::start().await;
    for (tag, image) in images {
        upstream.image(REPO, tag, image);
    }
    let setup = Berth::with("docker.io", &upstream).sections(&format!("[cache]\n{cache}"));
    (upstream, setup)
}

fn is_here(berth: &Berth, digest: &Digest) -> bool {
    folder::blob(berth.data_dir(), digest).exists()
}

/// Whether all of an image is stored, or nothing but what `others` need.
fn is_whole(berth: &Berth, image: &Image) -> bool {
    is_here(berth, &image.digest()) && image.blobs.iter().all(|blob| is_here(berth, &blob.digest))
}

fn is_gone(berth: &Berth, image: &Image) -> bool {
    !is_here(berth, &image.digest()) && !image.blobs.iter().any(|blob| is_here(berth, &blob.digest))
}

/// Times of use are in whole seconds: what comes next is later than what was.
async fn next_second() {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    eventually("the clock moves on", async || now() > before).await;
}

/// Pulls in turn, each in a second of its own.
async fn pull_in_turn(berth: &Berth, images: &[(&str, &Image)]) {
    for (tag, image) in images {
        berth.pull(REPO, tag, image).await;
        berth.until_idle().await;
        next_second().await;
    }
}

fn bytes_below(folder: &Path) -> u64 {
    folder::files(folder).iter().map(|path| fs::metadata(path).map_or(0, |it| it.len())).sum()
}

async fn assert_passes_through(berth: &Berth, blob: &Blob) {
    let reply = berth.get(&blob.path(REPO)).await;
    assert_eq!(reply.expect(200), &blob.content);
    assert_eq!(reply.header("cache-status"), Some("berth; fwd=miss"));
    berth.until_idle().await;
    assert!(!is_here(berth, &blob.digest));
    assert!(!folder::partial(berth.data_dir(), &blob.digest).exists());
}

#[tokio::test]
async fn the_image_unused_for_longest_goes_whole_and_what_others_need_stays() {
    // The same seed makes the same first layer.
    let (old, new) = (Image::of(61, &[1_000_000, 500_000]), Image::of(61, &[1_000_000, 600_000]));
    let last = Image::of(62, &[1_200_000]);
    let images = [("old", &old), ("new", &new), ("last", &last)];
    let (upstream, setup) = with_images("max_bytes = \"3MiB\"\nlease_seconds = 0", &images).await;
    let berth = setup.start().await;
    assert_eq!(old.layer().digest, new.layer().digest);
    pull_in_turn(&berth, &images).await;
    eventually("the old one is gone", async || !is_here(&berth, &old.layers()[1].digest)).await;
    assert!(!is_here(&berth, &old.digest()) && !is_here(&berth, &old.config().digest));
    assert!(is_whole(&berth, &new) && is_whole(&berth, &last), "the base is needed by the new one");
    assert_eq!(berth.metric("berth_evicted_blobs_total").await, 3.0);
    assert!(berth.metric("berth_evicted_bytes_total").await >= 500_000.0);
    assert_eq!(berth.metric("berth_budget_bytes").await, BUDGET as f64);

    // Its refs go with it, and other tools do not see it any more.
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    eventually("its tag is gone", async || !layout.join("refs/tags/old").exists()).await;
    assert!(!layout.join("refs/manifests").join(old.digest().file_name()).exists());
    assert!(!layout.join("refs/blobs").join(old.layers()[1].digest.file_name()).exists());
    assert!(layout.join("refs/blobs").join(old.layer().digest.file_name()).exists());
    eventually("index.json names what is here", async || {
        let index = fs::read_to_string(layout.join("index.json")).unwrap_or_default();
        !index.contains(&old.digest().to_string()) && index.contains(&new.digest().to_string())
    })
    .await;

    // It is a miss like any other.
    upstream.forget();
    berth.pull(REPO, "old", &old).await;
    assert_eq!(upstream.count("GET", &old.layer().digest.to_string()), 0);
    assert_eq!(upstream.count("GET", &old.layers()[1].digest.to_string()), 1);
    assert_eq!(berth.metric("registry_http_requests_total{code=\"500\"").await, 0.0);
}

#[tokio::test]
async fn a_repository_of_which_nothing_is_left_goes_too() {
    let (old, new) = (Image::of(63, &[2_000_000]), Image::of(64, &[2_000_000]));
    let (upstream, setup) = with_images("max_bytes = \"3MiB\"\nlease_seconds = 0", &[("new", &new)]).await;
    upstream.image("team/app", "old", &old);
    let berth = setup.start().await;
    berth.pull("team/app", "old", &old).await;
    let layout = folder::layout(berth.data_dir(), "docker.io/team/app");
    eventually("it is rendered", async || layout.join("index.json").exists()).await;
    next_second().await;
    berth.pull(REPO, "new", &new).await;
    eventually("its folder is gone", async || !layout.parent().unwrap().exists()).await;
    let left = serde_json::json!([format!("docker.io/{REPO}")]);
    eventually("it is listed no longer", async || {
        berth.get("/v2/_catalog").await.json()["repositories"] == left
    })
    .await;
    berth.pull("team/app", "old", &old).await;
}

#[tokio::test]
async fn a_served_manifest_leases_what_is_here_of_its_image() {
    let (old, new) = (Image::of(65, &[2_000_000]), Image::of(66, &[2_000_000]));
    let (_upstream, setup) = with_images("max_bytes = \"3MiB\"", &[("old", &old), ("new", &new)]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "old", &old).await;
    berth.until_idle().await;
    berth.get(&format!("/v2/{REPO}/manifests/new")).await.expect(200);
    assert_passes_through(&berth, new.layer()).await;
    assert!(is_whole(&berth, &old));
    assert_eq!(berth.metric("berth_evicted_blobs_total").await, 0.0);
}

#[tokio::test]
async fn what_is_larger_than_the_budget_passes_through_and_nothing_goes_for_it() {
    let (small, large) = (Image::of(67, &[1_000_000]), Image::of(68, &[2_000_000, 2_000_000]));
    let images = [("small", &small), ("large", &large)];
    let (upstream, setup) = with_images("max_bytes = \"3MiB\"\nlease_seconds = 0", &images).await;
    let huge = Image::of(69, &[4_000_000]).layer().clone();
    upstream.blob(REPO, &huge);
    let mut berth = setup.start().await;
    pull_in_turn(&berth, &[("small", &small)]).await;
    berth.get(&format!("/v2/{REPO}/manifests/large")).await.expect(200);
    // Each would fit, but not all.
    for blob in &large.blobs {
        upstream.forget();
        assert_passes_through(&berth, blob).await;
        assert_eq!(upstream.count("GET", &blob.digest.to_string()), 1, "known before upstream is asked");
    }
    assert_passes_through(&berth, &huge).await;
    assert!(is_whole(&berth, &small));
    assert!(berth.metric("berth_passed_through_for_size_total").await >= 4.0);
    berth.restart().await;
    assert_passes_through(&berth, &huge).await;
    assert!(is_whole(&berth, &small));
}

#[tokio::test]
async fn partial_files_count_and_an_abandoned_one_gives_way() {
    let (half, image) = (Image::of(71, &[2_000_000]), Image::of(72, &[1_500_000]));
    let (upstream, setup) = with_images("max_bytes = \"3MiB\"\nlease_seconds = 0", &[("1", &image)]).await;
    let blob = half.layer();
    upstream.blob(REPO, blob);
    upstream.on("GET", &blob.digest.to_string()).fault(Fault::HoldAfter(1_600_000, Gate::new()));
    let mut berth = setup.http("drain_seconds = 0").start().await;
    let mut reader = berth.get(&blob.path(REPO)).open().await;
    reader.bytes(1_500_000).await;
    let used = berth.metric("berth_budget_used_bytes").await;
    assert!((1_500_000.0..1_950_000.0).contains(&used), "what has come, and a step: {used}");
    berth.stop().await;
    upstream.behave();
    berth.start_again().await;
    assert!(folder::partial(berth.data_dir(), &blob.digest).exists());
    assert!(berth.metric("berth_budget_used_bytes").await >= 1_500_000.0);
    next_second().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    assert!(is_whole(&berth, &image));
    assert!(!folder::partial(berth.data_dir(), &blob.digest).exists());
    assert!(berth.metric("berth_budget_used_bytes").await <= BUDGET as f64);
}

#[tokio::test]
async fn what_is_being_read_stays_until_it_is_read() {
    let (old, new) = (Image::of(73, &[20_000_000]), Image::of(74, &[20_000_000]));
    let images = [("old", &old), ("new", &new)];
    let (_upstream, setup) = with_images("max_bytes = \"30MB\"\nlease_seconds = 0", &images).await;
    let berth = setup.start().await;
    pull_in_turn(&berth, &[("old", &old)]).await;
    let mut reader = berth.get(&old.layer().path(REPO)).open().await;
    assert_eq!(reader.header("cache-status"), Some("berth; hit"));
    assert_eq!(reader.bytes(1000).await, old.layer().content.slice(..1000));
    next_second().await;
    assert_passes_through(&berth, new.layer()).await;
    assert!(is_whole(&berth, &old));
    let rest = reader.read().await;
    assert!(rest.complete && rest.body == old.layer().content.slice(1000..));
    eventually("the other is stored", async || {
        let reply = berth.get(&new.layer().path(REPO)).await;
        assert_eq!(reply.digest(), new.layer().digest);
        is_here(&berth, &new.layer().digest)
    })
    .await;
    assert!(is_gone(&berth, &old));
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_keeps_up_with_many_fills_at_once() {
    let images: Vec<Image> = (0..24).map(|seed| Image::of(100 + seed, &[300_000, 200_000])).collect();
    let (upstream, setup) = with_images("max_bytes = \"3MiB\"\nlease_seconds = 0", &[]).await;
    for (number, image) in images.iter().enumerate() {
        upstream.image(REPO, &number.to_string(), image);
    }
    let berth = std::sync::Arc::new(setup.start().await);
    let shared = (std::sync::Arc::clone(&berth), images.clone());
    together(images.len(), move |number| {
        let (berth, image) = (std::sync::Arc::clone(&shared.0), shared.1[number].clone());
        async move {
            berth.pull(REPO, &number.to_string(), &image).await;
            // Manifests are stored without a look at the budget, and are small.
            let stored = bytes_below(&berth.data_dir().join("blobs"));
            assert!(stored <= BUDGET + 100_000, "{stored}");
        }
    })
    .await;
    berth.until_idle().await;
    eventually("below the upper mark", async || {
        berth.metric("berth_budget_used_bytes").await <= (BUDGET - BUDGET / 20) as f64
    })
    .await;
    assert!(bytes_below(&berth.data_dir().join("blobs")) > BUDGET / 2, "and not everything is gone");
    folder::verified(berth.data_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_file_system_is_not_exceeded() {
    let disk = Disk::tmpfs(40).await;
    let images: Vec<Image> = (0..6).map(|seed| Image::of(80 + seed, &[4_000_000])).collect();
    let (upstream, setup) = with_images("max_bytes = \"40%\"\nlease_seconds = 0", &[]).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    for (number, image) in images.iter().enumerate() {
        upstream.image(REPO, &number.to_string(), image);
        pull_in_turn(&berth, &[(&number.to_string(), image)]).await;
        assert!(bytes_below(&berth.data_dir().join("blobs")) <= 16 * MIB);
    }
    assert!(is_whole(&berth, &images[5]) && is_whole(&berth, &images[4]));
    assert!(is_gone(&berth, &images[0]) && is_gone(&berth, &images[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_need_of_the_disk_is_left_to_them() {
    let disk = Disk::tmpfs(40).await;
    let (old, new) = (Image::of(91, &[6_000_000]), Image::of(92, &[6_000_000]));
    let images = [("old", &old), ("new", &new)];
    let cache = "max_bytes = \"100%\"\nmin_free = \"10MiB\"\nlease_seconds = 0";
    let (_upstream, setup) = with_images(cache, &images).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    pull_in_turn(&berth, &images).await;
    let free = || {
        let space = statvfs(disk.path()).unwrap();
        space.f_bavail * space.f_frsize
    };
    assert!(is_whole(&berth, &old) && is_whole(&berth, &new) && free() > 10 * MIB);
    // Somebody else takes so much that one of the two must go.
    let other = File::create(disk.path().join("other")).unwrap();
    let bytes = usize::try_from(free() - 7 * MIB).unwrap();
    other.write_all_at(&vec![1; bytes], 0).unwrap();
    eventually("enough is free again", async || free() >= 10 * MIB).await;
    assert!(is_gone(&berth, &old) && is_whole(&berth, &new));
    assert!(berth.metric("berth_free_space_floor_hits_total").await >= 1.0);
}
