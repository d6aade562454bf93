//! Disks that fill up, fail and recover while berth runs, what it says meanwhile, and stored files that are
//! found damaged without anybody asking.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};

use crate::support::crash::{Disk, ReadOnly};
use crate::support::{Berth, Image, Setup, Upstream, eventually, folder, get};

const REPO: &str = "library/health";
const MIB: u64 = 1 << 20;

async fn with_image(layers: &[usize]) -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(61, layers);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream).sections("[cache]\nscrub = \"off\"");
    (upstream, setup, image)
}

/// Waits until it says that it is degraded, and why.
async fn until_degraded(berth: &Berth, why: &str) {
    let mut said = String::new();
    eventually(&format!("degraded: {why}"), async || {
        let reply = berth.admin("/readyz").await;
        assert_eq!(reply.status, 200, "a failing disk is no reason to be sent no requests");
        said = reply.text();
        said.starts_with("degraded: ") && said.contains(why)
    })
    .await;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains('/') && !said.contains("sha256"), "it is for everybody: {said}");
    assert_eq!(berth.metric("berth_degraded").await, 1.0);
}

/// Waits until it has recovered, of its own accord.
async fn until_ready(berth: &Berth) {
    eventually("it has recovered", async || berth.admin("/readyz").await.text() == "ready\n").await;
    assert_eq!(berth.metric("berth_degraded").await, 0.0);
}

/// Takes all the room that there is.
fn fill(disk: &Disk) -> File {
    let rest = File::create(disk.path().join("rest")).unwrap();
    let mut end = 0;
    while rest.write_all_at(&[0; 4096], end).is_ok() {
        end += 4096;
    }
    rest
}

/// Changes a byte of a stored file behind berth's back.
fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 500).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

// === What it says

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_of_until_there_is_room_again() {
    let disk = Disk::tmpfs(32).await;
    let (upstream, setup, image) = with_image(&[12 << 20]).await;
    let setup = setup.admin("metrics_listen = \"127.0.0.1:0\"");
    let mut berth = setup.data_dir(&disk.path().join("data")).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    assert_eq!(berth.admin("/readyz").await.text(), "ready\n");
    let rest = fill(&disk);
    let other = Image::of(62, &[10 << 20]);
    upstream.image(REPO, "2", &other);
    assert_eq!(berth.get(&other.layer().path(REPO)).await.expect(200), &other.layer().content);
    until_degraded(&berth, "the disk is full").await;
    let stranger = get(format!("http://{}/readyz", berth.listener("metrics"))).await;
    assert!(stranger.text().starts_with("degraded: the disk is full"));
    assert!(berth.metric("berth_storage_errors_total{kind=\"full\"}").await >= 1.0);
    // A new process finds out by itself.
    berth.stop().await;
    berth.start_again().await;
    until_degraded(&berth, "the disk is full").await;
    berth.pull(REPO, "1", &image).await;
    drop(rest);
    fs::remove_file(disk.path().join("rest")).unwrap();
    until_ready(&berth).await;
    berth.pull(REPO, "2", &other).await;
    berth.until_idle().await;
    assert_eq!(berth.get(&other.layer().path(REPO)).await.header("cache-status"), Some("berth; hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_room_is_told_of_although_tags_still_find_some() {
    let disk = Disk::tmpfs(64).await;
    let (upstream, setup, image) = with_image(&[50 << 20]).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    File::create(disk.path().join("rest")).unwrap().write_all_at(&vec![1; 62 << 20], 0).unwrap();
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
    until_degraded(&berth, "the disk is full").await;
    let small = Image::of(63, &[1000]);
    upstream.image(REPO, "small", &small);
    berth.pull(REPO, "small", &small).await;
    berth.until_idle().await;
    until_degraded(&berth, "the disk is full").await;
    fs::remove_file(disk.path().join("rest")).unwrap();
    until_ready(&berth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_and_back_is_told_of() {
    let (upstream, setup, image) = with_image(&[3000, 2 << 20]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let read_only = ReadOnly::folder(&berth.data_dir().join("partial")).await;
    let other = Image::of(64, &[4 << 20]);
    upstream.image(REPO, "2", &other);
    berth.pull(REPO, "2", &other).await;
    until_degraded(&berth, "the disk is read-only").await;
    assert!(berth.metric("berth_storage_errors_total{kind=\"read_only\"}").await >= 1.0);
    berth.pull(REPO, "1", &image).await;
    drop(read_only);
    until_ready(&berth).await;
    berth.pull(REPO, "2", &other).await;
    berth.until_idle().await;
    assert_eq!(berth.get(&other.layer().path(REPO)).await.header("cache-status"), Some("berth; hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_is_told_of() {
    let disk = Disk::ext4(64).await;
    let (upstream, setup, image) = with_image(&[3000]).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    disk.fail().await;
    let other = Image::of(65, &[4 << 20]);
    upstream.image(REPO, "2", &other);
    berth.pull(REPO, "2", &other).await;
    until_degraded(&berth, "the disk").await;
    berth.pull(REPO, "1", &image).await;
}

// === Starting with what there is

#[tokio::test]
async fn files_in_the_place_of_folders_are_put_aside() {
    let (upstream, setup, image) = with_image(&[3000, 2 << 20]).await;
    let own = tempfile::tempdir().unwrap();
    let data_dir = own.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    for name in ["blobs", "repos", "partial", "quarantine", "index"] {
        File::create(data_dir.join(name)).unwrap();
    }
    let berth = setup.data_dir(&data_dir).start().await;
    berth.pull(REPO, "1", &image).await;
    until_ready(&berth).await;
    berth.until_idle().await;
    upstream.stop().await;
    berth.pull(REPO, "1", &image).await;
    assert!(data_dir.join("blobs").is_dir() && data_dir.join("quarantine").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_cannot_be_made_is_a_clear_failure() {
    let disk = Disk::tmpfs(8).await;
    let (_upstream, setup, _) = with_image(&[3000]).await;
    disk.read_only(true).await;
    // The configuration, which the tests put beside the data folder, is not on that disk.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(disk.path(), folder.path().join("disk")).unwrap();
    let data_dir = folder.path().join("disk/data");
    let data_dir = data_dir.to_str().unwrap();
    let exit = setup.data_dir(&folder.path().join("unused")).arg("--data-dir").arg(data_dir).fail().await;
    assert_eq!(exit.code, Some(1));
    assert!(exit.log().contains(data_dir) && exit.log().contains("Read-only"), "{}", exit.log());
}

// === Files that are damaged

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_disk_does_not_give_back_is_fetched_again() {
    let disk = Disk::ext4(64).await;
    let (upstream, setup, image) = with_image(&[36 << 20]).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let blob = image.layer();
    let path = folder::blob(berth.data_dir(), &blob.digest);
    fadvise(File::open(&path).unwrap(), 0, None, Advice::DontNeed).unwrap();
    // More than half of the disk is that file: whatever lies where, some of it is behind the middle.
    disk.lose_behind(32);
    let reply = berth.get(&blob.path(REPO)).await;
    assert!(!reply.complete, "the disk gave it back");
    eventually("it is put aside", async || !path.exists()).await;
    assert_eq!(berth.metric("berth_quarantined_total").await, 1.0);
    assert!(berth.metric("berth_storage_errors_total{kind=\"io\"}").await >= 1.0);
    upstream.forget();
    assert_eq!(berth.get(&blob.path(REPO)).await.digest(), blob.digest);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    berth.until_idle().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.header("cache-status"), Some("berth; hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_that_cannot_be_moved_is_not_served() {
    let (_upstream, setup, image) = with_image(&[3000, 2 << 20]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let blob = image.layer();
    let path = folder::blob(berth.data_dir(), &blob.digest);
    damage(&path);
    let read_only = ReadOnly::folder(&berth.data_dir().join("blobs")).await;
    let verify = || berth.order("/api/v1/verify", "{}");
    assert_eq!(verify().await.status, 202);
    eventually("it is found", async || {
        berth.admin("/api/v1/verify").await.json()["findings"][0]["digest"] == blob.digest.to_string()
    })
    .await;
    for _ in 0..2 {
        assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    }
    assert!(path.exists(), "the disk is read-only");
    drop(read_only);
    until_ready(&berth).await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.header("cache-status"), Some("berth; hit"));
    folder::verified(berth.data_dir());
}

// === The scrub

/// An image that is stored, in a folder that no scrub has seen.
async fn stored(layers: &[usize]) -> (Upstream, Setup, Image, tempfile::TempDir) {
    let (upstream, setup, image) = with_image(layers).await;
    let own = tempfile::tempdir().unwrap();
    let data_dir = own.path().join("data");
    let mut berth = setup.clone().data_dir(&data_dir).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    let setup = Berth::with("docker.io", &upstream).data_dir(&data_dir);
    (upstream, setup, image, own)
}

#[tokio::test]
async fn the_scrub_finds_damage_by_itself() {
    let (upstream, setup, image, own) = stored(&[3000, 1_000_000]).await;
    let path = folder::blob(&own.path().join("data"), &image.layer().digest);
    damage(&path);
    let setup = setup.sections("[cache]\nscrub = \"1GiB\"");
    let mut berth = setup.start().await;
    berth.until_logged("a stored file is damaged").await;
    eventually("it is put aside", async || !path.exists()).await;
    assert_eq!(berth.metric("berth_quarantined_total").await, 1.0);
    upstream.forget();
    berth.pull(REPO, "1", &image).await;
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    berth.until_idle().await;
    // The round is over, and noted: the next one is tomorrow's, whatever becomes of the process.
    berth.restart().await;
    eventually("the index can be asked", async || berth.metric("registry_storage_used_bytes").await > 0.0)
        .await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(berth.metric("berth_scrubbed_bytes_total").await, 0.0);
    folder::verified(berth.data_dir());
}

#[tokio::test]
async fn the_scrub_keeps_to_its_rate_and_stops_at_once() {
    let (_upstream, setup, _image, _own) = stored(&[20 << 20]).await;
    let start = Instant::now();
    let mut berth = setup.sections("[cache]\nscrub = \"512KiB\"").start().await;
    let mut scrubbed = 0;
    eventually("two mebibytes are scrubbed", async || {
        scrubbed = berth.metric("berth_scrubbed_bytes_total").await as u64;
        // What is being read now may be over already.
        let allowed = (start.elapsed().as_secs_f64() * 512.0 * 1024.0) as u64 + (256 << 10);
        assert!(scrubbed <= allowed, "{scrubbed} bytes of {allowed}");
        scrubbed >= 2 * MIB
    })
    .await;
    berth.stop().await;
}
