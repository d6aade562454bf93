//! Stored files that have changed by one bit and look the same (finding F13): the first client is sent wrong bytes, and
//! when it asks once more, as all do, it is not.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::support::{Berth, Certificate, Image, Setup, Upstream, eventually, folder, together};

const REPO: &str = "library/rotten";
/// Verifications that were begun because a client has asked again.
const REREAD: &str = "berth_verifications_total{cause=\"reread\"";
/// And because nobody had read a file for long.
const UNREAD: &str = "berth_verifications_total{cause=\"unread\"";

async fn with_image(layers: &[usize]) -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(61, layers);
    upstream.image(REPO, "1", &image);
    // The scrub would find it, too, some time.
    let setup = Berth::with("docker.io", &upstream).sections("[cache]\nscrub = \"off\"");
    (upstream, setup, image)
}

async fn pulled(setup: Setup, image: &Image) -> Berth {
    let berth = setup.start().await;
    berth.pull(REPO, "1", image).await;
    berth.until_idle().await;
    berth
}

#[tokio::test]
async fn a_client_that_asks_again_is_not_sent_wrong_bytes_again() {
    let certificate = Certificate::new();
    // Around what is kept back, and more than is sent at once.
    for (number, tls) in [(0, false), (1, true), (2, false)] {
        let (upstream, setup, image) = with_image(&[600, 65_535, 65_536, 65_537, 5_000_000]).await;
        let setup = if tls { setup.tls(&certificate) } else { setup };
        let mut berth = pulled(setup, &image).await;
        upstream.forget();
        for blob in &image.blobs[1..] {
            folder::rot(&folder::blob(berth.data_dir(), &blob.digest));
        }
        if number == 2 {
            berth.restart().await;
        }
        for blob in &image.blobs[1..] {
            let ask = || berth.get(&blob.path(REPO));
            let first = ask().await;
            assert!(first.complete && first.digest() != blob.digest, "nobody could know");
            assert_eq!(first.header("cache-status"), Some("berth; hit"));
            // Where all of it is kept back, there may not even be a head.
            if let Ok(again) = ask().try_send().await {
                assert!(!again.complete, "{} bytes", blob.len());
                assert!(
                    again.body.len() as u64 <= blob.len().saturating_sub(65_536),
                    "its end was kept back"
                );
            }
            let third = ask().await;
            assert_eq!(third.expect(200), &blob.content);
            berth.until_idle().await;
            assert_eq!(ask().await.expect(200), &blob.content);
        }
        let count = image.blobs.len() - 1;
        assert_eq!(upstream.count("GET", "/blobs/"), count, "each is fetched once more");
        assert_eq!(berth.metric("berth_quarantined_total").await, count as f64);
        assert_eq!(berth.admin("/readyz").await.text(), "ready\n");
        folder::verified(berth.data_dir());
    }
}

#[tokio::test]
async fn everybody_who_still_reads_a_damaged_file_is_cut() {
    let (_upstream, setup, image) = with_image(&[60 << 20]).await;
    let berth = pulled(setup, &image).await;
    let blob = image.layer();
    folder::rot(&folder::blob(berth.data_dir(), &blob.digest));
    let ask = || berth.get(&blob.path(REPO));
    let mut slow = ask().coming_from("127.0.0.7").open().await;
    slow.bytes(1000).await;
    let mut range = ask().range("0-50000000").open().await;
    range.bytes(1000).await;
    for _ in 0..2 {
        ask().await;
    }
    assert!(!slow.read().await.complete && !range.read().await.complete);
    assert_eq!(ask().await.expect(200), &blob.content);
}

#[tokio::test]
async fn thousands_of_reads_behind_one_address_are_one_verification() {
    let (upstream, setup, image) = with_image(&[100_000]).await;
    let berth = pulled(setup, &image).await;
    upstream.forget();
    let blob = image.layer();
    for _ in 0..40 {
        let replies = together(50, {
            let ask = berth.get(&blob.path(REPO));
            move |_| ask.clone().into_future()
        });
        for reply in replies.await {
            assert_eq!(reply.expect(200), &blob.content);
        }
    }
    assert_eq!(berth.metric(REREAD).await, 1.0);
    assert_eq!((upstream.requests().len(), berth.metric("berth_quarantined_total").await), (0, 0.0));
    // Looked at, it is another file from now on, and may be damaged: there is one look more.
    let path = folder::blob(berth.data_dir(), &blob.digest);
    folder::damage(&path, |file| file.set_modified(SystemTime::now() - Duration::from_secs(9)).unwrap());
    eventually("it is verified once more", async || {
        assert_eq!(berth.get(&blob.path(REPO)).await.expect(200), &blob.content);
        berth.metric("berth_verifications_total").await == 2.0
    })
    .await;
}

#[tokio::test]
async fn only_the_second_whole_read_of_one_client_counts() {
    let (_upstream, setup, image) = with_image(&[300_000, 200_000]).await;
    let berth = pulled(setup, &image).await;
    let ask = |number: usize| berth.get(&image.blobs[number].path(REPO));
    for number in [1, 2] {
        for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
            ask(number).coming_from(address).await.expect(200);
        }
    }
    for _ in 0..3 {
        berth.head(&image.blobs[1].path(REPO)).await.expect(200);
        for range in ["0-1000", "-1000", "1000-", "0-299999"] {
            ask(1).range(range).await.expect(206);
        }
        let etag = format!("\"{}\"", image.blobs[1].digest);
        ask(1).header("if-none-match", &etag).await.expect(304);
    }
    assert_eq!(berth.metric("berth_verifications_total").await, 0.0);
    ask(1).range("0-").await.expect(206);
    assert_eq!(berth.metric(REREAD).await, 1.0, "a range of everything is a whole read");
    ask(2).await.expect(200);
    assert_eq!(berth.metric(REREAD).await, 2.0);
}

#[tokio::test]
async fn what_nobody_has_read_for_long_is_verified_behind_its_first_reader() {
    let (upstream, setup, image) = with_image(&[300_000, 200_000]).await;
    let mut berth = pulled(setup, &image).await;
    berth.stop().await;
    // As the files of an old cache whose index was lost.
    let [old, young] = [1, 2].map(|number| &image.blobs[number]);
    let path = folder::blob(berth.data_dir(), &old.digest);
    folder::damage(&path, |file| {
        file.set_modified(SystemTime::now() - Duration::from_secs(30 * 24 * 3600)).unwrap();
    });
    folder::rot(&path);
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    berth.start_again().await;
    upstream.forget();
    assert_eq!(berth.get(&young.path(REPO)).await.expect(200), &young.content);
    assert_eq!(berth.metric(UNREAD).await, 0.0);
    // A range will do.
    berth.get(&old.path(REPO)).range("0-99").await;
    eventually("it is found", async || berth.metric("berth_quarantined_total").await == 1.0).await;
    assert_eq!((berth.metric(UNREAD).await, berth.metric(REREAD).await), (1.0, 0.0));
    assert_eq!(berth.get(&old.path(REPO)).await.expect(200), &old.content);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}
