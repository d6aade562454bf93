//! Images that stay: `berth pin`, `unpin` and `pins`, with and without a daemon, and `[[pin]]`.

use std::time::SystemTime;

use crate::support::{Berth, Image, Setup, Upstream, command, eventually, folder};

const REPO: &str = "library/pinned";
const CACHE: &str = "[cache]\nmax_bytes = \"3MiB\"\nlease_seconds = 0\n";

/// Two images of which one fits, and a third as large.
async fn with_images() -> (Upstream, Setup, [Image; 3]) {
    let upstream = Upstream::start().await;
    let images = [1, 2, 3].map(|seed| Image::of(500 + seed, &[1_300_000]));
    for (number, image) in images.iter().enumerate() {
        upstream.image(REPO, &(number + 1).to_string(), image);
    }
    let setup = Berth::with("docker.io", &upstream).sections(CACHE);
    (upstream, setup, images)
}

async fn pull(berth: &Berth, tag: &str, image: &Image) {
    berth.pull(REPO, tag, image).await;
    berth.until_idle().await;
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    eventually("the clock moves on", async || now() > before).await;
}

fn is_whole(berth: &Berth, image: &Image) -> bool {
    let blobs = image.blobs.iter().map(|blob| blob.digest);
    blobs.chain([image.digest()]).all(|digest| folder::blob(berth.data_dir(), &digest).exists())
}

#[tokio::test]
async fn a_pinned_image_stays_until_it_is_unpinned() {
    let (_upstream, setup, [one, two, three]) = with_images().await;
    let mut berth = setup.start().await;
    let data_dir = berth.data_dir().to_owned();
    let said = command(&data_dir, &["pin", "pinned:1"]).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.text.contains("docker.io/library/pinned:1: nothing is here yet"), "{}", said.text);
    pull(&berth, "1", &one).await;
    let said = command(&data_dir, &["pins"]).await;
    let expected = format!("docker.io/library/pinned:1: {}, 3 manifests and blobs here", one.digest());
    assert!(said.text.contains(&expected), "{}", said.text);
    // The older one is pinned, so the younger goes; also after a restart.
    pull(&berth, "2", &two).await;
    berth.restart().await;
    pull(&berth, "3", &three).await;
    assert!(is_whole(&berth, &one) && !is_whole(&berth, &two) && is_whole(&berth, &three));

    assert_eq!(command(&data_dir, &["unpin", "docker.io/library/pinned:1"]).await.code, Some(0));
    let said = command(&data_dir, &["unpin", "pinned:1"]).await;
    assert_eq!((said.code, said.text.contains("is not pinned")), (Some(1), true), "{}", said.text);
    pull(&berth, "2", &two).await;
    assert!(!is_whole(&berth, &one) && is_whole(&berth, &two) && is_whole(&berth, &three));
}

#[tokio::test]
async fn pins_are_made_without_a_daemon_and_by_digest() {
    let (_upstream, setup, [one, two, three]) = with_images().await;
    let mut berth = setup.start().await;
    pull(&berth, "1", &one).await;
    berth.stop().await;
    let image = format!("docker.io/{REPO}@{}", one.digest());
    let said = command(berth.data_dir(), &["pin", &image]).await;
    assert_eq!(
        (said.code, said.text.contains(" 3 manifests and blobs here")),
        (Some(0), true),
        "{}",
        said.text
    );
    berth.start_again().await;
    pull(&berth, "2", &two).await;
    pull(&berth, "3", &three).await;
    assert!(is_whole(&berth, &one) && !is_whole(&berth, &two) && is_whole(&berth, &three));
    for bad in ["UPPER", "a@sha256:1"] {
        let said = command(berth.data_dir(), &["pin", bad]).await;
        assert_eq!(said.code, Some(2), "{}", said.text);
    }
}

#[tokio::test]
async fn a_registry_by_another_of_its_names_is_the_same_registry() {
    let (_upstream, setup, [one, ..]) = with_images().await;
    let mut berth = setup.sections("[[pin]]\nref = \"index.docker.io/library/pinned:3\"\n").start().await;
    let data_dir = berth.data_dir().to_owned();
    pull(&berth, "1", &one).await;
    let here = "docker.io/library/pinned:1: sha256:";
    for other in ["docker.io:443", "registry-1.docker.io", "registry-1.docker.io:443"] {
        let name = format!("{other}/{REPO}:1");
        let said = command(&data_dir, &["refresh", &name]).await;
        assert!(said.text.contains("docker.io/library/pinned:1: unchanged"), "{}", said.text);
        for has_daemon in [true, false] {
            let said = command(&data_dir, &["pin", &name]).await;
            assert_eq!((said.code, said.text.contains(here)), (Some(0), true), "{name}: {}", said.text);
            if has_daemon {
                let said = command(&data_dir, &["pins"]).await;
                assert!(said.text.contains("docker.io/library/pinned:3 (configured)"), "{}", said.text);
                assert_eq!(said.text.lines().count(), 2, "{}", said.text);
            }
            let said = command(&data_dir, &["unpin", &name]).await;
            assert_eq!(said.code, Some(0), "{name}: {}", said.text);
            if has_daemon {
                berth.stop().await;
            }
        }
        berth.start_again().await;
    }
}

#[tokio::test]
async fn of_a_pinned_index_only_chosen_platforms_stay() {
    let (upstream, setup, [amd64, arm64, other]) = with_images().await;
    let index = Image::index(&[&amd64, &arm64]);
    upstream.image(REPO, "index", &index);
    let pin = format!("[[pin]]\nref = \"{REPO}:index\"\nplatforms = [\"linux/amd64\"]\n");
    let berth = setup.sections(&pin).start().await;
    pull(&berth, "index", &index).await;
    let pins = berth.admin("/api/v1/pins").await.json();
    assert_eq!(pins[0]["pin"]["ref"], format!("docker.io/{REPO}:index"));
    assert_eq!((&pins[0]["configured"], &pins[0]["here"]), (&serde_json::json!(true), &serde_json::json!(4)));
    pull(&berth, "3", &other).await;
    assert!(is_whole(&berth, &amd64) && is_whole(&berth, &index), "the index names what was chosen");
    assert!(!is_whole(&berth, &arm64) && is_whole(&berth, &other));
    let data_dir = berth.data_dir().to_owned();
    let said = command(&data_dir, &["unpin", "pinned:index"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains("[[pin]] of the configuration"), "{}", said.text);
}

#[tokio::test]
async fn without_knowing_the_pins_nothing_goes() {
    let (_upstream, setup, [one, two, three]) = with_images().await;
    let mut berth = setup.start().await;
    pull(&berth, "1", &one).await;
    pull(&berth, "2", &two).await;
    berth.stop().await;
    crate::support::process::write(&berth.data_dir().join("pins.json"), "[{");
    berth.start_again().await;
    assert!(berth.logs_contain("the pins cannot be read"));
    pull(&berth, "3", &three).await;
    let whole = [&one, &two, &three].map(|image| is_whole(&berth, image));
    assert_eq!(whole, [true, true, false], "{}", berth.metrics().await);
}

#[tokio::test]
async fn a_pin_is_refused_with_the_reason() {
    let (_upstream, setup, _images) = with_images().await;
    let berth = setup.start().await;
    let reply = berth.order("/api/v1/pins", r#"{"ref":"a:1","platform":[]}"#).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("unknown field `platform`"), "{}", reply.text());
}
