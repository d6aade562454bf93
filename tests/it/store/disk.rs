//! Disks that are full, read-only, failing or tidied up by hand, and data folders with anything in them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use berth::oci::{Algorithm, Digest};

use crate::support::crash::Disk;
use crate::support::process::write;
use crate::support::{Berth, Fault, Gate, Image, Setup, Upstream, eventually, folder};

const REPO: &str = "library/disk";
const MIB: u64 = 1 << 20;

async fn with_image(layers: &[usize]) -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(31, layers);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

/// Waits until berth has noticed which files somebody has removed: it looks at those in use every second or so.
async fn until_noticed(berth: &Berth, image: &Image) {
    let blobs = image.blobs.iter().map(|blob| (blob.digest, blob.path(REPO)));
    for (digest, path) in blobs.chain([(image.digest(), image.path(REPO))]) {
        if !folder::blob(berth.data_dir(), &digest).exists() {
            eventually("it is a miss", async || {
                berth.head(&path).await.header("cache-status") != Some("berth; hit")
            })
            .await;
        }
    }
}

// === One process

#[tokio::test]
async fn a_second_process_is_told_who_has_the_folder() {
    let (_upstream, setup, image) = with_image(&[3000]).await;
    let berth = setup.clone().start().await;
    let second = setup.data_dir(berth.data_dir()).fail().await;
    assert_eq!(second.code, Some(1));
    let says_so = |line: &String| line.contains("in use by another berth") && line.contains("lock");
    assert!(second.lines.iter().any(says_so), "{}", second.log());
    assert!(second.log().contains(&format!("process {}", berth.pid())), "{}", second.log());
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_fill_costs_few_bytes() {
    let (upstream, setup, image) = with_image(&[40 << 20]).await;
    let blob = image.layer();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(21 * MIB, Gate::new()));
    let mut berth = setup.http("drain_seconds = 0").start().await;
    let mut reader = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(reader.bytes(21 << 20).await, blob.content.slice(..21 << 20));
    berth.stop().await;
    assert!(folder::partial(berth.data_dir(), &blob.digest).exists());
    upstream.behave();
    berth.start_again().await;
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(upstream.bytes_sent(&blob.digest), blob.len(), "not a byte is asked twice");
    berth.until_idle().await;
    folder::verified(berth.data_dir());
}

// === Stored files that change by hand

#[tokio::test]
async fn a_stored_blob_that_is_removed_is_a_miss() {
    let (upstream, setup, image) = with_image(&[3000, 200_000]).await;
    let mut berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    for restarts in [false, true] {
        berth.until_idle().await;
        for digest in image.blobs.iter().map(|blob| blob.digest).chain([image.digest()]) {
            fs::remove_file(folder::blob(berth.data_dir(), &digest)).unwrap();
        }
        upstream.forget();
        if restarts {
            berth.restart().await;
        }
        until_noticed(&berth, &image).await;
        berth.pull(REPO, "1", &image).await;
        assert_eq!(upstream.count("GET", "/blobs/"), 3);
        assert_eq!(upstream.count("GET", "/manifests/"), 1);
    }
}

#[tokio::test]
async fn a_stored_file_that_is_cut_short_breaks_its_reader_and_no_other() {
    let (_upstream, setup, image) = with_image(&[50 << 20]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let blob = image.layer();
    let mut reader = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(reader.header("cache-status"), Some("berth; hit"));
    reader.bytes(1000).await;
    let path = folder::blob(berth.data_dir(), &blob.digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(20 * MIB).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let rest = reader.read().await;
    assert!(!rest.complete && rest.body.len() < 20 << 20);
    let reply = berth.get(&blob.path(REPO)).await;
    reply.expect(200);
    assert_eq!(reply.digest(), blob.digest, "the whole is fetched again");
    berth.until_idle().await;
    folder::verified(berth.data_dir());
}

#[tokio::test]
async fn a_stored_manifest_that_was_changed_is_fetched_again() {
    let (_upstream, setup, image) = with_image(&[3000]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let path = folder::blob(berth.data_dir(), &image.digest());
    for length in [image.manifest.len() as u64, 100, 0] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b" ", 0).unwrap();
        file.set_len(length).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        berth.pull(REPO, "1", &image).await;
        eventually("it is noticed, and fetched again", async || {
            berth.pull(REPO, "1", &image).await;
            fs::read(&path).is_ok_and(|content| content == image.manifest)
        })
        .await;
        folder::verified(berth.data_dir());
    }
}

#[tokio::test]
async fn folders_removed_under_a_running_berth_come_back() {
    let (upstream, setup, image) = with_image(&[3000, 200_000]).await;
    let berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    for gone in ["partial", "blobs", "repos", "index"] {
        berth.until_idle().await;
        fs::remove_dir_all(berth.data_dir().join(gone)).unwrap();
        // First what needs a partial file and no new ref, then all.
        let blob = Image::of(37, &[300_000]).layer().clone();
        upstream.blob(REPO, &blob);
        for _ in 0..2 {
            fs::remove_file(folder::blob(berth.data_dir(), &blob.digest)).ok();
            until_noticed(&berth, &Image { blobs: vec![blob.clone()], ..image.clone() }).await;
            assert_eq!(berth.get(&blob.path(REPO)).await.digest(), blob.digest);
            berth.until_idle().await;
            let reply = berth.get(&blob.path(REPO)).await;
            assert_eq!(reply.header("cache-status"), Some("berth; hit"), "{gone}");
        }
        until_noticed(&berth, &image).await;
        berth.pull(REPO, "1", &image).await;
    }
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 5);
}

// === Full, read-only, failing

/// The whole and a range of it, while nothing can be stored.
async fn assert_passes_through(berth: &Berth, tag: &str, image: &Image) {
    let blob = image.layer();
    let whole = berth.get(&blob.path(REPO)).await;
    assert_eq!(whole.expect(200), &blob.content);
    assert_eq!(whole.header("cache-status"), Some("berth; fwd=miss"));
    let last = blob.content.len() - 1;
    for (range, start, end) in [("1000-1999", 1000, 1999), ("30000000-", 30_000_000, last)] {
        let part = berth.get(&blob.path(REPO)).range(range).await;
        assert_eq!(part.expect(206), &blob.content.slice(start..=end));
    }
    let manifest = berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await;
    assert_eq!(manifest.expect(200), &image.manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_disk_cannot_take_passes_through() {
    let disk = Disk::tmpfs(32).await;
    let (upstream, setup, image) = with_image(&[50 << 20]).await;
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    assert_passes_through(&berth, "1", &image).await;
    // What is small still has its place.
    let small = Image::of(32, &[100_000]);
    upstream.image(REPO, "small", &small);
    berth.pull(REPO, "small", &small).await;
    // Not a byte of room.
    let rest = File::create(disk.path().join("rest")).unwrap();
    let mut end = 0;
    while rest.write_all_at(&[0; 4096], end).is_ok() {
        end += 4096;
    }
    let other = Image::of(33, &[40 << 20]);
    upstream.image(REPO, "2", &other);
    upstream.on("GET", &other.layer().digest.to_string()).fault(Fault::WrongByte(7));
    let lie = berth.get(&other.layer().path(REPO)).try_send().await;
    assert!(lie.is_ok_and(|lie| !lie.complete || lie.status == 503), "what passes through is verified, too");
    upstream.behave();
    assert_passes_through(&berth, "2", &other).await;
    berth.pull(REPO, "small", &small).await;
    // Room again.
    drop(rest);
    fs::remove_file(disk.path().join("rest")).unwrap();
    let little = Image::of(34, &[5 << 20]);
    upstream.image(REPO, "little", &little);
    eventually("it is stored", async || {
        let reply = berth.get(&little.layer().path(REPO)).await;
        assert_eq!(reply.expect(200), &little.layer().content);
        reply.header("cache-status") == Some("berth; hit")
    })
    .await;
    folder::verified(berth.data_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_serves_what_it_has() {
    let disk = Disk::tmpfs(64).await;
    let (upstream, setup, image) = with_image(&[3000, 2 << 20]).await;
    // The configuration, which the tests put beside the data folder, is not on that disk.
    let folder = tempfile::tempdir().unwrap();
    symlink(disk.path().join("data"), folder.path().join("data")).unwrap();
    fs::create_dir(disk.path().join("data")).unwrap();
    let mut berth = setup.data_dir(&folder.path().join("data")).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    disk.read_only(true).await;
    upstream.forget();
    berth.start_again().await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(upstream.count("GET", ""), 0);
    let other = Image::of(35, &[40 << 20]);
    upstream.image(REPO, "1", &other);
    assert_eq!(berth.get(&other.path(REPO)).await.expect(200), &other.manifest);
    assert_eq!(berth.get(&other.layer().path(REPO)).await.expect(200), &other.layer().content);
    berth.stop().await;
    disk.read_only(false).await;
    berth.start_again().await;
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_in_the_middle_costs_no_reader() {
    let disk = Disk::ext4(128).await;
    let (upstream, setup, image) = with_image(&[40 << 20]).await;
    let blob = image.layer();
    let berth = setup.data_dir(&disk.path().join("data")).start().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(10 * MIB, gate.clone()));
    let mut whole = berth.get(&blob.path(REPO)).open().await;
    let mut range = berth.get(&blob.path(REPO)).range("5000000-29999999").open().await;
    assert_eq!(whole.bytes(10_000_000).await, blob.content.slice(..10_000_000));
    assert_eq!(range.bytes(1000).await, blob.content.slice(5_000_000..5_001_000));
    disk.fail().await;
    gate.open();
    let whole = whole.read().await;
    assert!(whole.complete && whole.body == blob.content.slice(10_000_000..), "{}", whole.body.len());
    let range = range.read().await;
    assert!(range.complete && range.body == blob.content.slice(5_001_000..30_000_000));
    assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
}

// === Partial files that are not what they were

/// Is done to a partial file and its map.
type Change<'a> = &'a dyn Fn(&File, &File);

#[tokio::test]
async fn a_partial_file_that_has_changed_is_no_part_of_the_blob() {
    let (upstream, setup, image) = with_image(&[40 << 20]).await;
    let blob = image.layer();
    let mut berth = setup.http("drain_seconds = 0").start().await;
    let changes: [Change<'_>; 5] = [
        &|data, _| data.write_all_at(b"garbage", 1000).unwrap(),
        &|data, _| data.set_len(1000).unwrap(),
        &|data, _| data.set_len(blob.len() + 1).unwrap(),
        &|_, map| map.write_all_at(&[0x55; 8192], 0).unwrap(),
        &|_, map| map.set_len(0).unwrap(),
    ];
    for change in changes {
        upstream.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(20 * MIB, Gate::new()));
        let mut reader = berth.get(&blob.path(REPO)).open().await;
        reader.bytes(20 << 20).await;
        berth.stop().await;
        let path = folder::partial(berth.data_dir(), &blob.digest);
        let open = |path| File::options().write(true).open(path).unwrap();
        change(&open(path.clone()), &open(path.with_extension("map")));
        berth.start_again().await;
        eventually("the right content", async || {
            let reply = berth.get(&blob.path(REPO)).await;
            assert!(!reply.complete || reply.status != 200 || reply.body == blob.content);
            reply.complete && reply.status == 200
        })
        .await;
        berth.until_idle().await;
        folder::verified(berth.data_dir());
        // While nobody has it open: what is open is served for a moment without a look at its name.
        berth.stop().await;
        fs::remove_file(folder::blob(berth.data_dir(), &blob.digest)).unwrap();
        berth.start_again().await;
    }
}

#[tokio::test]
async fn a_blob_whose_place_is_taken_is_served_and_stored() {
    let (_upstream, setup, image) = with_image(&[32 << 20]).await;
    let blob = image.layer();
    let berth = setup.start().await;
    let in_the_way = folder::blob(berth.data_dir(), &blob.digest);
    fs::create_dir(&in_the_way).unwrap();
    assert_eq!(berth.get(&blob.path(REPO)).await.digest(), blob.digest);
    berth.until_idle().await;
    assert_eq!(folder::verified(berth.data_dir()), 1);
}

// === Anything else in the folder

#[tokio::test]
async fn strange_things_in_the_folder_harm_nobody() {
    let (upstream, setup, image) = with_image(&[3000, 200_000]).await;
    let mut berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    let data_dir = berth.data_dir();
    let absent = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    let blobs = data_dir.join("blobs/sha256");
    let refs = folder::layout(data_dir, &format!("docker.io/{REPO}")).join("refs");
    for at in [
        blobs.join("not-a-digest"),
        data_dir.join("partial/sha256-short"),
        data_dir.join("partial/lonely.map"),
        data_dir.join("repos/UPPER/x/_oci/refs/tags/t"),
        data_dir.join("repos/docker.io/library/x/_oci/refs/tags/-bad"),
        data_dir.join("repos/docker.io/a file"),
        refs.join("tags/.hidden"),
        refs.join("manifests/sha256-0000"),
    ] {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        write(&at, "strange");
    }
    for at in [
        folder::blob(data_dir, &absent("a folder")),
        folder::partial(data_dir, &absent("a folder")).join("below"),
        data_dir.join("partial/.tmp-7/below"),
        refs.join("tags/folder"),
        refs.join("manifests").join(absent("a folder").file_name()),
        refs.join("blobs").join(absent("a folder").file_name()),
        data_dir.join("repos/docker.io/library/y/_oci/index.json"),
    ] {
        fs::create_dir_all(at).unwrap();
    }
    let cached = folder::blob(data_dir, &image.digest());
    symlink(&cached, folder::blob(data_dir, &absent("a link"))).unwrap();
    symlink("/nowhere", folder::blob(data_dir, &absent("a broken link"))).unwrap();
    symlink("round", refs.join("tags/round")).unwrap();
    symlink("..", data_dir.join("repos/docker.io/library/up")).unwrap();
    let fifo = refs.join("tags/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    upstream.stop().await;
    berth.start_again().await;
    assert!(berth.logs_contain("the index was rebuilt"));
    berth.pull(REPO, "1", &image).await;
    for name in ["a folder", "a link", "a broken link"] {
        let reply = berth.get(&format!("/v2/{REPO}/blobs/{}", absent(name))).await;
        assert!([404, 503].contains(&reply.status), "{name}: {}", reply.status);
    }
    for tag in ["folder", "round", "fifo"] {
        let reply = berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await;
        assert!([404, 503].contains(&reply.status), "{tag}: {}", reply.status);
    }
    upstream.start_again().await;
    let other = Image::of(36, &[100_000]);
    upstream.image(REPO, "folder", &other);
    eventually("the tag in a folder's place", async || {
        berth.get(&format!("/v2/{REPO}/manifests/folder")).await.status == 200
    })
    .await;
    berth.pull(REPO, "folder", &other).await;
}
