//! Space on disk, with a hostile registry beside an honest one: what is merely claimed takes none (F3, F4, F17), no
//! flood takes all of it, and everything counts (F6).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::json;

use crate::support::{Berth, Blob, Fault, Gate, Image, Setup, Upstream, eventually, folder};

const REPO: &str = "library/app";
const EVIL: &str = "evil.test/x/y";
const MIB: u64 = 1 << 20;
const BUDGET: u64 = 20 * MIB;
const CACHE: &str = "[cache]\nmax_bytes = \"20MiB\"\nlease_seconds = 0";

/// An honest registry and a hostile one, and a berth for both with this budget.
async fn neighbours(cache: &str) -> (Upstream, Upstream, Setup) {
    let (good, evil) = (Upstream::start().await, Upstream::start().await);
    let setup = Berth::with("docker.io", &good).and("evil.test", &evil).sections(cache);
    (good, evil, setup)
}

/// Random content, by numbers.
fn blobs(seed: u64, count: u64, bytes: u64) -> Vec<Blob> {
    let bytes = usize::try_from(bytes).unwrap();
    (0..count).map(|number| Image::of(seed + number, &[bytes]).layer().clone()).collect()
}

/// Has these stored for a repository of the default registry.
async fn store(upstream: &Upstream, berth: &Berth, blobs: &[Blob]) {
    for blob in blobs {
        upstream.blob(REPO, blob);
        assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
    }
    berth.until_idle().await;
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn is_here(berth: &Berth, digest: &Digest) -> bool {
    folder::blob(berth.data_dir(), digest).exists()
}

fn bytes_here(berth: &Berth, blobs: &[Blob]) -> u64 {
    blobs.iter().filter(|blob| is_here(berth, &blob.digest)).map(Blob::len).sum()
}

/// What a folder and all in it take on disk.
fn taken(folder: &Path) -> u64 {
    let Ok(own) = fs::symlink_metadata(folder) else { return 0 };
    // A layout has a link to the blobs.
    let entries = fs::read_dir(folder).ok().filter(|_| own.is_dir()).into_iter().flatten().flatten();
    let own = own.blocks() * 512;
    own + entries.map(|entry| entry.path()).map(|path| taken(&path)).sum::<u64>()
}

fn partials(berth: &Berth) -> usize {
    folder::files(&berth.data_dir().join("partial")).len()
}

/// Memory that a daemon has, without files that it has mapped.
fn resident_bytes(berth: &Berth) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A manifest that names blobs with sizes of its own invention.
fn claiming(layers: &[(&Blob, u64)]) -> Image {
    let layers: Vec<_> = layers
        .iter()
        .map(|(blob, size)| {
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob.digest.to_string(), "size": size })
        })
        .collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": layers[0], "layers": layers });
    Image { manifest: Bytes::from(manifest.to_string()), blobs: Vec::new(), ..Image::of(1, &[1]) }
}

// === F4: a length that is merely claimed

/// With 80 % of the budget stored, a hostile registry claims to have so much, and sends next to nothing.
async fn assert_a_claim_moves_nothing(claim: u64, is_range: bool) {
    let (good, evil, setup) = neighbours(CACHE).await;
    let berth = setup.start().await;
    let stored = blobs(1000, 10, 8 * BUDGET / 100);
    store(&good, &berth, &stored).await;
    let used = berth.metric("berth_budget_used_bytes").await;
    let blob = &blobs(2000, 1, MIB)[0];
    evil.blob("x/y", blob);
    let on = || evil.on("GET", &blob.digest.to_string());
    on().fault(Fault::HoldAfter(100_000, Gate::new()));
    let ask = berth.get(&blob.path(EVIL));
    let mut reader = if is_range {
        on().fault(Fault::Header("Content-Range", format!("bytes 0-{}/{claim}", MIB - 1)));
        ask.range("0-1048575").open().await
    } else {
        on().fault(Fault::ClaimLength(claim));
        ask.open().await
    };
    reader.bytes(30_000).await;
    assert_eq!(bytes_here(&berth, &stored), stored.iter().map(Blob::len).sum::<u64>());
    // A step is at most a tenth.
    let now = berth.metric("berth_budget_used_bytes").await;
    assert!(now <= used + (BUDGET / 10 + MIB) as f64, "{used} {now}");
    assert_eq!(berth.metric("berth_evicted_blobs_total").await, 0.0);
    assert_eq!(good.count("GET", "/blobs/"), stored.len());
    assert!(!berth.logs_contain("the disk"));
}

#[tokio::test]
async fn a_length_that_is_merely_claimed_makes_nothing_go() {
    for is_range in [false, true] {
        // Nearly all there is, then what could be had.
        assert_a_claim_moves_nothing(BUDGET / 100 * 95, is_range).await;
        assert_a_claim_moves_nothing(9 * MIB, is_range).await;
    }
}

#[tokio::test]
async fn a_blob_of_half_the_budget_and_one_of_nearly_all_are_stored_in_a_full_cache() {
    let (good, _evil, setup) = neighbours(CACHE).await;
    let berth = setup.start().await;
    store(&good, &berth, &blobs(1000, 11, 8 * BUDGET / 100)).await;
    for (seed, part) in [(2000, 50), (3000, 95)] {
        let large = &blobs(seed, 1, BUDGET / 100 * part)[0];
        store(&good, &berth, std::slice::from_ref(large)).await;
        eventually("it is stored", async || is_here(&berth, &large.digest)).await;
        assert!(berth.metric("berth_budget_used_bytes").await <= BUDGET as f64);
        assert_eq!(berth.get(&large.path(REPO)).await.header("cache-status"), Some("berth; hit"));
        assert_eq!(good.count("GET", &large.digest.to_string()), 1);
    }
    assert_eq!(berth.metric("berth_passed_through_for_size_total").await, 0.0);
}

// === Shares of the disk

#[tokio::test]
async fn a_flood_of_real_bytes_leaves_another_registry_its_share() {
    let (good, evil, setup) = neighbours(CACHE).await;
    let mut berth = setup.start().await;
    let stored = blobs(1000, 10, 8 * BUDGET / 100);
    store(&good, &berth, &stored).await;
    let junk = blobs(5000, 30, 8 * BUDGET / 100);
    for (number, blob) in junk.iter().enumerate() {
        evil.blob("x/y", blob);
        assert_eq!(berth.get(&blob.path(EVIL)).await.expect(200), &blob.content);
        assert!(bytes_here(&berth, &stored) >= BUDGET * 3 / 8, "after {number} of them");
        if number == 15 {
            berth.kill().await;
            berth.start_again().await;
        }
    }
    berth.until_idle().await;
    assert!(bytes_here(&berth, &junk) >= BUDGET / 4, "and the flood has its own");
    assert!(taken(&berth.data_dir().join("blobs")) <= BUDGET);
    // What has gone comes back, at the expense of the flood.
    store(&good, &berth, &stored).await;
    assert!(bytes_here(&berth, &stored) >= BUDGET * 3 / 8);
}

#[tokio::test]
async fn a_registry_alone_may_use_it_all_and_its_oldest_goes_first() {
    let (good, _evil, setup) = neighbours(CACHE).await;
    let berth = setup.start().await;
    let stored = blobs(1000, 30, 8 * BUDGET / 100);
    let (first, last) = stored.split_at(22);
    store(&good, &berth, first).await;
    // Uses are known to the second, and those of one second are alike.
    let second = unix_seconds();
    eventually("another second has begun", async || unix_seconds() > second).await;
    store(&good, &berth, last).await;
    let here = bytes_here(&berth, &stored);
    assert!(here >= BUDGET / 100 * 80, "{here}");
    assert!(last.iter().all(|blob| is_here(&berth, &blob.digest)));
}

// === F3: sizes in a manifest

#[tokio::test]
async fn sizes_in_a_manifest_switch_caching_off_for_nobody() {
    let (good, evil, setup) = neighbours(CACHE).await;
    let image = Image::of(7, &[300_000, 200_000]);
    good.image(REPO, "1", &image);
    let [one, two] = [&image.layers()[0], &image.layers()[1]];
    let lie = claiming(&[(one, 1 << 62), (two, 1 << 62)]);
    // In another repository of the same registry, in one of another, and where the layers are theirs.
    good.image("mallory/x", "1", &lie);
    evil.image("x/y", "1", &lie);
    good.blob("mallory/y", one).image("mallory/y", "1", &lie);
    let mut berth = setup.start().await;
    for repo in ["mallory/x", EVIL, "mallory/y"] {
        berth.get(&format!("/v2/{repo}/manifests/1")).await.expect(200);
    }
    for round in 0..2 {
        berth.pull(REPO, "1", &image).await;
        berth.until_idle().await;
        assert_eq!(good.count("GET", "/library/app/blobs/"), 3, "each once");
        if round == 0 {
            berth.restart().await;
        }
    }
    // Upstream's own sizes are what counts in the repository of the lie itself.
    let blob = &blobs(8, 1, 400_000)[0];
    let other = claiming(&[(blob, 1 << 62)]);
    good.blob("mallory/z", blob).image("mallory/z", "1", &other);
    berth.get("/v2/mallory/z/manifests/1").await.expect(200);
    berth.get(&blob.path("mallory/z")).await.expect(200);
    berth.until_idle().await;
    assert!(is_here(&berth, &blob.digest));
    assert_eq!(berth.metric("berth_passed_through_for_size_total").await, 0.0);
}

#[tokio::test]
async fn what_passes_through_with_a_large_image_is_kept_for_another() {
    let (good, _evil, setup) = neighbours(CACHE).await;
    let image = Image::of(9, &[12_000_000, 12_000_000]);
    let small = Image::of(9, &[12_000_000]);
    assert_eq!(image.layer().digest, small.layer().digest);
    good.image(REPO, "1", &image).image("library/other", "1", &small);
    let mut berth = setup.start().await;
    for round in 1..=2 {
        berth.pull(REPO, "1", &image).await;
        berth.until_idle().await;
        assert!(image.blobs.iter().all(|blob| !is_here(&berth, &blob.digest)), "round {round}");
        assert_eq!(good.count("GET", &image.layer().digest.to_string()), round);
        if round == 1 {
            // It is found out again by what is on disk.
            berth.restart().await;
        }
    }
    assert!(berth.metric("berth_passed_through_for_size_total").await >= 3.0);
    assert!(berth.logs_contain("larger than max_bytes") && !berth.logs_contain("the disk cannot"));
    berth.pull("library/other", "1", &small).await;
    eventually("it is kept there", async || is_here(&berth, &small.layer().digest)).await;
    // And so for the large one.
    let reply = berth.get(&image.layer().path(REPO)).await;
    assert_eq!(reply.header("cache-status"), Some("berth; hit"));
}

// === F6: everything counts

/// Has a tag of each name in each repository, all of the same tiny image, asked for.
async fn flood_of_tags(evil: &Upstream, berth: &Berth, repos: u64, tags: u64) {
    let tiny = Image::of(11, &[]);
    for repo in 0..repos {
        for tag in 0..tags {
            evil.image(&format!("f/r{repo}"), &format!("t{tag}"), &tiny);
            berth.get(&format!("/v2/evil.test/f/r{repo}/manifests/t{tag}")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn refs_count_and_no_flood_of_them_makes_content_go() {
    let (good, evil, setup) = neighbours("[cache]\nmax_bytes = \"10MiB\"\nlease_seconds = 0").await;
    let image = Image::of(10, &[2_000_000, 1_000_000]);
    good.image(REPO, "1", &image);
    let mut berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;
    let before = berth.metric("berth_budget_used_bytes").await;
    flood_of_tags(&evil, &berth, 1, 20).await;
    let used = berth.metric("berth_budget_used_bytes").await;
    assert!(used >= before + 20.0 * 4096.0, "a tag takes a block: {before} {used}");
    flood_of_tags(&evil, &berth, 20, 15).await;
    let repos = berth.data_dir().join("repos");
    eventually("what is too much has gone", async || {
        taken(&repos) <= MIB + MIB / 2 && berth.metric("berth_evicted_refs_total").await > 50.0
    })
    .await;
    assert_eq!(berth.metric("berth_evicted_blobs_total").await, 0.0);
    let count = |berth: &Berth| {
        let used = taken(&berth.data_dir().join("repos")) + taken(&berth.data_dir().join("blobs"));
        used as f64
    };
    eventually("all that there is counts", async || {
        berth.metric("berth_budget_used_bytes").await >= count(&berth) * 0.9
    })
    .await;

    // Not more and not less after a crash, and without the index.
    let used = berth.metric("berth_budget_used_bytes").await;
    for without_index in [false, true] {
        berth.kill().await;
        if without_index {
            fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
        }
        berth.start_again().await;
        eventually("the sums are right", async || {
            let now = berth.metric("berth_budget_used_bytes").await;
            (now - used).abs() <= 0.02 * used
        })
        .await;
    }
    // The honest image is what serves an outage.
    good.stop().await;
    evil.stop().await;
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test]
async fn lists_of_referrers_are_kept_for_what_is_here_and_bounded() {
    let (_good, evil, setup) = neighbours("[cache]\nmax_bytes = \"10MiB\"\nlease_seconds = 0").await;
    let text = "x".repeat(200_000);
    let about = |seed| {
        let image = Image::of(seed, &[100]);
        let artifact = Image::draft(seed, &[10]).about(&image).annotation("note", &text).build();
        (image, artifact)
    };
    let images: Vec<_> = (20..36).map(about).collect();
    let berth = setup.start().await;
    for (number, (image, artifact)) in images.iter().enumerate() {
        evil.image(&format!("f/r{number}"), "1", image).untagged(&format!("f/r{number}"), artifact);
    }
    let path =
        |number: usize, image: &Image| format!("/v2/evil.test/f/r{number}/referrers/{}", image.digest());
    for (number, (image, _)) in images.iter().enumerate() {
        assert!(berth.get(&path(number, image)).await.expect(200).len() > 200_000);
    }
    let repos = berth.data_dir().join("repos");
    assert!(taken(&repos) < 200_000, "nothing is here that they are about");
    for (number, (image, _)) in images.iter().enumerate() {
        berth.get(&format!("/v2/evil.test/f/r{number}/manifests/1")).await.expect(200);
        berth.get(&path(number, image)).await.expect(200);
        if number == 0 {
            assert!(taken(&repos) > 200_000, "one is kept");
            assert!(berth.metric("berth_budget_used_bytes").await > 200_000.0, "and counts");
        }
    }
    eventually("what is too much has gone", async || taken(&repos) <= MIB + MIB / 2).await;
    assert!(berth.metric("berth_evicted_refs_total").await > 0.0);
}

// === F17: totals out of thin air

#[tokio::test]
async fn totals_out_of_thin_air_cost_no_memory() {
    const TOTAL: u64 = 1 << 40;
    const COUNT: u64 = 64;
    for (max_bytes, is_kept) in [("20MiB", false), ("2PiB", true)] {
        let cache = format!("[cache]\nmax_bytes = {max_bytes:?}\nmin_free = \"0B\"");
        let (_good, evil, setup) = neighbours(&cache).await;
        let range = format!("bytes 0-{}/{TOTAL}", MIB - 1);
        evil.on("GET", "/blobs/").fault(Fault::Header("Content-Range", range));
        let berth = setup.start().await;
        let content = blobs(40, 1, MIB)[0].content.clone();
        let before = resident_bytes(&berth);
        for number in 0..COUNT {
            let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
            let blob = Blob { digest, content: content.clone() };
            evil.blob("x/y", &blob);
            let _ = berth.get(&blob.path(EVIL)).range("0-0").try_send().await;
        }
        let grown = resident_bytes(&berth).saturating_sub(before);
        assert!(grown < 60 * MIB, "{grown} for {max_bytes}");
        berth.until_idle().await;
        assert_eq!(partials(&berth) > 0, is_kept, "{max_bytes}");
        let on_disk = taken(&berth.data_dir().join("partial"));
        assert!(on_disk < 2 * COUNT * MIB, "{on_disk}");
        if is_kept {
            let used = berth.metric("berth_budget_used_bytes").await;
            assert!(used >= on_disk as f64 * 0.9 && used < 2.0 * (COUNT * MIB) as f64, "{on_disk} {used}");
        }
    }
}
