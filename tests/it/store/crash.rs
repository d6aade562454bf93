//! Killed, or without power, at any instant: berth starts again, nothing wrong is served, little is asked twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth::oci::Range;

use crate::support::crash::Disk;
use crate::support::process::heavy;
use crate::support::{Berth, Blob, Fault, Image, Reply, Upstream, eventually, folder, together};

const REPO: &str = "library/crash";
const MIB: u64 = 1 << 20;
/// How much a crash may cost, for each transfer that was under way.
const LOST_MAX: u64 = 64 * MIB;
/// What upstream has written to a socket and the dead process had not read: buffers of the kernel.
const IN_THE_AIR: u64 = 8 * MIB;

/// Any number of readers of each blob, whatever becomes of them.
fn read_all(berth: &Berth, blobs: &[Blob]) -> Vec<tokio::task::JoinHandle<Option<Reply>>> {
    let ask = |blob: &Blob| {
        let ask = berth.get(&blob.path(REPO));
        tokio::spawn(async move { ask.try_send().await.ok() })
    };
    blobs.iter().chain(blobs).map(ask).collect()
}

/// What readers got is right as far as it came, and whole if it seems so.
async fn assert_honest(readers: Vec<tokio::task::JoinHandle<Option<Reply>>>, blobs: &[Blob]) {
    for (reader, blob) in readers.into_iter().zip(blobs.iter().chain(blobs)) {
        let Some(reply) = reader.await.unwrap() else { continue };
        if reply.status == 200 {
            assert!(blob.content.starts_with(&reply.body), "other bytes than those of {}", blob.digest);
            assert!(!reply.complete || reply.body.len() == blob.content.len(), "half of it as a whole");
        }
    }
}

fn sent(upstream: &Upstream, blobs: &[Blob]) -> u64 {
    blobs.iter().map(|blob| upstream.bytes_sent(&blob.digest)).sum()
}

/// Where each later transfer of a blob began is not far before where the one before it was.
fn assert_little_is_asked_again(upstream: &Upstream, blob: &Blob) {
    let mut reached = 0;
    for request in upstream.seen("GET", &blob.digest.to_string()) {
        let start = match request.range() {
            Some(Range::Closed { first, .. } | Range::From(first)) => first,
            Some(Range::Suffix(_)) | None => 0,
        };
        assert!(start + LOST_MAX + IN_THE_AIR >= reached, "from {start} again, after {reached}");
        reached = reached.max(start + request.bytes_sent());
    }
    assert_eq!(reached, blob.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_in_the_middle_of_fills() {
    let _turn = heavy().await;
    let upstream = Upstream::start().await;
    let image = Image::of(20, &[60 << 20, 100 << 20, 150 << 20]);
    upstream.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(Fault::Drip(40 * MIB));
    let mut berth = Berth::with("docker.io", &upstream).start().await;
    let mut random = fastrand::Rng::with_seed(20);
    for _ in 0..20 {
        let until = sent(&upstream, image.layers()) + random.u64(MIB..48 * MIB);
        let readers = read_all(&berth, image.layers());
        eventually("some of it has come", async || {
            sent(&upstream, image.layers()) >= until || readers.iter().all(|reader| reader.is_finished())
        })
        .await;
        berth.kill().await;
        assert_honest(readers, image.layers()).await;
        folder::verified(berth.data_dir());
        berth.start_again().await;
    }
    upstream.behave();
    berth.pull(REPO, "1", &image).await;
    assert!(upstream.count("GET", "/blobs/") > 30, "hardly a fill was interrupted");
    for blob in image.layers() {
        assert_little_is_asked_again(&upstream, blob);
    }
    eventually("all is stored", async || folder::files(&berth.data_dir().join("partial")).is_empty()).await;
    assert_eq!(folder::verified(berth.data_dir()), 5);
}

/// An image for each move of the tag.
fn versions() -> Arc<Vec<Image>> {
    Arc::new((0..400).map(|seed| Image::of(1000 + seed, &[3000])).collect())
}

/// Moves the tag from one version to the next and pulls each, until nobody answers. Counts the tag moves that a
/// client has seen.
fn move_tag(
    upstream: &Arc<Upstream>,
    berth: &Berth,
    versions: &Arc<Vec<Image>>,
) -> (Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let (upstream, versions, counter) = (Arc::clone(upstream), Arc::clone(versions), Arc::clone(&seen));
    let base = berth.url("");
    let moving = tokio::spawn(async move {
        for version in versions.iter() {
            upstream.image(REPO, "moving", version);
            let asks = [format!("/v2/{REPO}/manifests/moving")].into_iter();
            for path in asks.chain(version.blobs.iter().map(|blob| blob.path(REPO))) {
                let Ok(reply) = crate::support::get(format!("{base}{path}")).try_send().await else { return };
                assert_eq!(reply.status, 200, "{path}");
                if path.ends_with("moving") {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    (seen, moving)
}

#[tokio::test(flavor = "multi_thread")]
async fn power_fails_during_fills_tag_moves_and_grants() {
    let _turn = heavy().await;
    let disk = Disk::ext4(400).await;
    let upstream = Arc::new(Upstream::start().await);
    let (large, versions) = (Image::of(21, &[70 << 20, 90 << 20]), versions());
    upstream.image(REPO, "large", &large);
    for layer in large.layers() {
        upstream.on("GET", &layer.digest.to_string()).fault(Fault::Drip(16 * MIB));
    }
    let fresh = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let setup = Berth::with("docker.io", &upstream).sections(fresh).data_dir(&disk.path().join("data"));
    let berth = setup.clone().start().await;
    let readers = read_all(&berth, large.layers());
    let (seen, moving) = move_tag(&upstream, &berth, &versions);
    for mebibytes in [10, 45, 90] {
        eventually("some of it has come", async || {
            sent(&upstream, large.layers()) >= mebibytes * MIB && seen.load(Ordering::SeqCst) > 2
        })
        .await;
        let acknowledged = seen.load(Ordering::SeqCst);
        let reached = large.layers().iter().map(|layer| upstream.bytes_sent(&layer.digest));
        let reached: Vec<u64> = reached.collect();
        let found = disk.after_power_loss(&[berth.pid()]).await;
        check_what_is_found(&found, &versions, acknowledged).await;
        check_what_is_resumed(&found, &large, &reached).await;
    }
    moving.abort();
    drop(berth);
    assert_honest(readers, large.layers()).await;
}

/// Offline: what was acknowledged is there.
async fn check_what_is_found(found: &Disk, versions: &[Image], acknowledged: usize) {
    let data_dir = found.path().join("data");
    let berth = Berth::with("docker.io", &Upstream::start().await).data_dir(&data_dir).start().await;
    folder::verified(&data_dir);
    let tag = berth.get(&format!("/v2/{REPO}/manifests/moving")).await;
    let version = versions.iter().position(|version| version.manifest == tag.expect(200));
    assert!(version.unwrap() + 1 >= acknowledged, "{version:?} of {acknowledged}");
    for version in &versions[..acknowledged] {
        assert_eq!(berth.get(&version.path(REPO)).await.expect(200), &version.manifest);
    }
}

/// With an upstream: what was under way is completed.
async fn check_what_is_resumed(found: &Disk, large: &Image, reached: &[u64]) {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "large", large);
    let data_dir = found.path().join("data");
    let berth = Berth::with("docker.io", &upstream).data_dir(&data_dir).start().await;
    let asks: Vec<_> = large.layers().iter().map(|layer| berth.get(&layer.path(REPO))).collect();
    let replies = together(asks.len(), |at| asks[at].clone().into_future()).await;
    for ((reply, layer), reached) in replies.iter().zip(large.layers()).zip(reached) {
        assert_eq!(reply.expect(200), &layer.content);
        let again = upstream.bytes_sent(&layer.digest) + reached - layer.len();
        assert!(again <= LOST_MAX + IN_THE_AIR, "{again} bytes were asked again");
    }
    berth.until_idle().await;
    folder::verified(&data_dir);
}
