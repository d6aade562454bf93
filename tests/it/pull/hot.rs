//! What is asked again and again: served from memory and from where the kernel has it, and never wrong for that.

use std::fs;

use rustix::fs::{Advice, fadvise};

use crate::support::{Berth, Certificate, Image, Setup, Upstream, eventually, folder};

const REPO: &str = "library/hot";
const LAYER_BYTES: usize = 48 << 20;

async fn with_image(layer: usize) -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(41, &[layer]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

/// A reader is half-way through a stored blob when somebody cuts the file short: its connection ends, nobody
/// else's does. A mapped page that is gone would end the whole process if berth itself touched it.
async fn a_file_is_cut_under_a_reader(setup: Setup, image: &Image) {
    let (berth, blob) = (setup.start().await, image.layer());
    berth.pull(REPO, "1", image).await;
    berth.until_stored(&image.layer().path(REPO)).await;
    let file = folder::blob(berth.data_dir(), &blob.digest);
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();

    let mut reader = berth.get(&blob.path(REPO)).open().await;
    assert_eq!(reader.status, 200);
    assert_eq!(reader.bytes(1 << 20).await, blob.content.slice(..1 << 20));
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
    let reply = reader.read().await;
    assert!(!reply.complete, "{} bytes of a file that was cut at 2 MiB", reply.body.len());

    assert_eq!(berth.admin("/healthz").await.status, 200);
    berth.get("/v2/").await.expect(200);
    eventually("the blob is fetched again and right", async || {
        let reply = berth.get(&blob.path(REPO)).await;
        reply.complete && reply.body == blob.content
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_cut_under_a_plain_reader_costs_one_connection() {
    let (_upstream, setup, image) = with_image(LAYER_BYTES).await;
    a_file_is_cut_under_a_reader(setup, &image).await;
}

#[tokio::test]
async fn a_file_that_is_cut_under_a_tls_reader_costs_one_connection() {
    let (_upstream, setup, image) = with_image(LAYER_BYTES).await;
    let certificate = Certificate::new();
    a_file_is_cut_under_a_reader(setup.tls(&certificate), &image).await;
}

#[tokio::test]
async fn bytes_that_are_not_in_memory_come_from_the_disk() {
    let (upstream, setup, image) = with_image(5 << 20).await;
    let (berth, blob) = (setup.start().await, image.layer());
    berth.pull(REPO, "1", &image).await;
    berth.until_stored(&image.layer().path(REPO)).await;
    upstream.forget();
    let file = fs::File::open(folder::blob(berth.data_dir(), &blob.digest)).unwrap();
    for range in [None, Some("4999999-5000001"), Some("-10")] {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let ask = berth.get(&blob.path(REPO));
        match range {
            None => assert_eq!(ask.await.expect(200), &blob.content),
            Some("-10") => {
                assert_eq!(ask.range("-10").await.expect(206), &blob.content.slice((5 << 20) - 10..))
            }
            Some(range) => {
                assert_eq!(ask.range(range).await.expect(206), &blob.content.slice(4_999_999..5_000_002));
            }
        }
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_manifest_from_memory_is_answered_as_one_from_disk() {
    let (upstream, setup, image) = with_image(3000).await;
    let mut berth = setup.start().await;
    berth.pull(REPO, "1", &image).await;
    berth.restart().await;
    upstream.forget();
    let of_interest = |headers: &hyper::HeaderMap| {
        let mut headers = headers.clone();
        headers.remove("date");
        headers
    };
    for path in [image.path(REPO), format!("/v2/{REPO}/manifests/1")] {
        let (first, head) = (berth.get(&path).await, berth.head(&path).await);
        let second = berth.get(&path).await;
        for reply in [&first, &second] {
            assert_eq!(reply.expect(200), &image.manifest);
        }
        assert_eq!(of_interest(&first.headers), of_interest(&second.headers), "{path}");
        assert_eq!(of_interest(&first.headers), of_interest(&head.headers), "{path}");
        let tag = first.header("etag").unwrap().to_owned();
        let known = berth.get(&path).header("if-none-match", &tag).await;
        assert_eq!((known.status, known.header("etag")), (304, Some(&*tag)));
    }
    assert_eq!(upstream.requests().len(), 0);
}
