//! What one registry says touches nobody else: rights come from bytes that the registry itself sent (F1), and transfers
//! are its own until the digest is proven (F2).

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempPath;

use crate::support::{
    Auth, Berth, Blob, Fault, Gate, Image, Setup, Upstream, docker_config, eventually, file_of, folder,
};

const A: &str = "team-a/app";
const B: &str = "team-b/app";
const EVIL: &str = "evil.example/x/y";

/// A registry with a login, and one whose owner is no friend.
struct Scene {
    private: Upstream,
    evil: Upstream,
    image: Image,
    setup: Setup,
    _logins: TempPath,
}

async fn scene() -> Scene {
    let (private, evil) = (Upstream::start().await, Upstream::start().await);
    private.auth(Auth::Basic).user("robot-a", "secret-a", "team-a/").user("robot-b", "secret-b", "team-b/");
    let image = Image::of(1, &[300_000]);
    private.image(A, "1", &image);
    let logins = file_of(&docker_config(&[
        ("private.example/team-a", "robot-a", "secret-a"),
        ("private.example/team-b", "robot-b", "secret-b"),
    ]));
    let setup = Berth::with("private.example", &private)
        .keys(&format!("credentials = {{ file = {logins:?} }}"))
        .and("evil.example", &evil);
    Scene { private, evil, image, setup, _logins: logins }
}

/// Makes a registry say that it has a blob of this size, and send not a byte of it.
fn claim(evil: &Upstream, blob: &Blob, size: u64) {
    evil.blob("x/y", blob);
    evil.on("HEAD", "/blobs/").fault(Fault::ClaimLength(size));
    evil.on("GET", "/blobs/").fault(Fault::Status(404));
}

fn grant_of(berth: &Berth, repository: &str, blob: &Blob) -> PathBuf {
    folder::layout(berth.data_dir(), repository).join("refs/blobs").join(blob.digest.file_name())
}

fn read_grant(berth: &Berth, repository: &str, blob: &Blob) -> Value {
    serde_json::from_slice(&fs::read(grant_of(berth, repository, blob)).unwrap()).unwrap()
}

#[tokio::test]
async fn a_claim_opens_no_transfer_of_another_registry() {
    let Scene { private, evil, image, setup, _logins } = scene().await;
    let berth = setup.start().await;
    let layer = image.layer();
    let gate = Gate::new();
    private.on("GET", "/blobs/").fault(Fault::HoldAfter(100_000, gate.clone()));
    let mut reader = berth.get(&layer.path(&format!("private.example/{A}"))).open().await;
    reader.bytes(1000).await;
    for size in [1, layer.len()] {
        claim(&evil, layer, size);
        assert_eq!(berth.get(&layer.path(EVIL)).await.status, 404);
        assert_eq!(berth.get(&layer.path(EVIL)).range("0-99").await.status, 404);
        evil.behave();
    }
    gate.open();
    assert!(reader.read().await.complete);
    assert!(!grant_of(&berth, EVIL, layer).exists());
}

#[tokio::test]
async fn a_claim_opens_nothing_that_is_stored_for_another_registry_nor_tells_its_size() {
    let Scene { private, evil, image, setup, _logins } = scene().await;
    let berth = setup.start().await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
    private.forget();
    let manifest = Blob::new(image.digest().algorithm(), image.manifest.clone());
    for blob in [image.layer(), image.config(), &manifest] {
        let mut answers = Vec::new();
        for size in [blob.len() - 1, blob.len(), blob.len() + 1] {
            claim(&evil, blob, size);
            let whole = berth.get(&blob.path(EVIL)).await;
            let part = berth.get(&blob.path(EVIL)).range("0-9").await;
            answers.push((whole.status, whole.body, part.status, part.body));
            evil.behave();
        }
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "the right size is answered as any other"
        );
        assert_eq!((answers[0].0, answers[0].2), (404, 404));
        assert!(!grant_of(&berth, EVIL, blob).exists());
        assert_eq!(berth.get(&blob.path("evil.example/z")).await.status, 404);
    }
    assert_eq!(private.requests().len(), 0, "nobody else is asked");
}

#[tokio::test]
async fn parts_that_are_left_are_the_registrys_that_sent_them() {
    let Scene { private, evil, setup, _logins, .. } = scene().await;
    let berth = setup.sections("[cache]\ncomplete = \"never\"").start().await;
    let image = Image::of(2, &[3_000_000]);
    private.image(A, "2", &image);
    let layer = image.layer();
    let path = layer.path(&format!("private.example/{A}"));
    assert_eq!(berth.get(&path).range("0-99999").await.expect(206), &layer.content.slice(..100_000));
    berth.until_idle().await;
    assert!(folder::partial(berth.data_dir(), &layer.digest).exists());

    let asked = private.requests().len();
    // What the other registry has is its own to send, byte for byte.
    evil.blob("x/y", layer).blob("x/z", layer);
    evil.on("GET", "/blobs/").fault(Fault::WrongByte(5));
    for repository in [EVIL, "evil.example/x/z"] {
        let part = berth.get(&layer.path(repository)).range("0-9").await;
        assert_ne!(part.expect(206)[5], layer.content[5], "{repository}: not what the first sent");
    }
    // To the team that it came for it is there still.
    assert_eq!(berth.get(&path).range("10-19").await.expect(206), &layer.content.slice(10..20));
    assert_eq!(private.requests().len(), asked, "nobody asks it again");
}

#[tokio::test]
async fn what_a_registry_sends_itself_is_its_own() {
    let Scene { private, evil, image, setup, _logins } = scene().await;
    let mut berth = setup.start().await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
    evil.image("x/y", "1", &image);
    private.forget();
    berth.pull(EVIL, "1", &image).await;
    berth.until_idle().await;
    let sent = evil.seen("GET", &image.layer().digest.to_string());
    assert_eq!(sent.len(), 1, "it has to send it");
    assert_eq!(private.requests().len(), 0);
    assert_eq!(
        read_grant(&berth, EVIL, image.layer()),
        json!({ "public": true, "proof": "sent", "speaker": "registry", "registry": "evil.example" })
    );
    assert_eq!(
        read_grant(&berth, &format!("private.example/{A}"), image.layer()),
        json!({ "public": false, "proof": "sent", "speaker": "registry", "registry": "private.example" })
    );
    evil.stop().await;
    private.stop().await;
    berth.restart().await;
    berth.pull(EVIL, "1", &image).await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
}

#[tokio::test]
async fn within_a_registry_a_claim_counts_with_the_right_size_only() {
    let Scene { private, image, setup, _logins, .. } = scene().await;
    private.image(B, "1", &image);
    let berth = setup.start().await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
    let (layer, config) = (image.layer(), image.config());
    let (own, sent) = (format!("private.example/{B}"), |blob: &Blob| private.bytes_sent(&blob.digest));
    assert_eq!(berth.get(&layer.path(&own)).await.expect(200), &layer.content);
    assert_eq!(sent(layer), layer.len(), "it was said to be there, and is not sent twice");
    assert_eq!(read_grant(&berth, &own, layer)["proof"], "stated");

    private.on("HEAD", "/blobs/").fault(Fault::ClaimLength(config.len() + 1));
    let refuted = berth.metric("berth_refuted_claims_total").await;
    assert_eq!(berth.get(&config.path(&own)).await.expect(200), &config.content);
    assert_eq!(sent(config), 2 * config.len(), "after a wrong claim it has to be sent");
    assert_eq!(berth.metric("berth_refuted_claims_total").await, refuted + 1.0);
    assert!(berth.logs_contain("a claim that proves nothing"));
    berth.until_idle().await;
    assert_eq!(read_grant(&berth, &own, config)["proof"], "sent");
}

#[tokio::test]
async fn two_names_of_one_registry_are_one() {
    let Scene { private, image, .. } = scene().await;
    private.image(B, "1", &image);
    let logins = file_of(&docker_config(&[
        ("private.example/team-a", "robot-a", "secret-a"),
        ("other.example/team-b", "robot-b", "secret-b"),
    ]));
    let keys = format!("credentials = {{ file = {logins:?} }}");
    let setup = Berth::with("private.example", &private).keys(&keys).and("other.example", &private);
    let berth = setup.keys(&keys).start().await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
    let layer = image.layer();
    assert_eq!(berth.get(&layer.path(&format!("other.example/{B}"))).await.expect(200), &layer.content);
    assert_eq!(
        private.bytes_sent(&layer.digest),
        layer.len(),
        "it was said to be there, and is not sent twice"
    );
    // The registry knows nobody there who may read it.
    assert_eq!(berth.get(&layer.path(&format!("other.example/{A}"))).await.status, 404);
}

#[tokio::test]
async fn a_fallbacks_word_opens_nothing_that_the_registry_sent() {
    let Scene { private, evil, image, _logins, .. } = scene().await;
    let keys = format!(
        "credentials = {{ file = {_logins:?} }}\n[[upstream.fallback]]\nendpoints = [\"{}\"]",
        evil.url()
    );
    let berth = Berth::with("private.example", &private).keys(&keys).start().await;
    berth.pull(&format!("private.example/{A}"), "1", &image).await;
    berth.until_idle().await;
    for blob in [image.layer(), image.config()] {
        evil.blob(B, blob);
    }
    evil.on("GET", "/blobs/").fault(Fault::Status(404));
    for blob in [image.layer(), image.config()] {
        assert_eq!(berth.get(&blob.path(&format!("private.example/{B}"))).await.status, 404);
    }
}

#[tokio::test]
async fn a_fallbacks_word_opens_nothing_either_when_a_parent_passes_it_on() {
    let Scene { private, evil, image, _logins, .. } = scene().await;
    let keys = format!(
        "credentials = {{ file = {_logins:?} }}\n[[upstream.fallback]]\nendpoints = [\"{}\"]",
        evil.url()
    );
    let parent = Berth::with("private.example", &private).keys(&keys).start().await;
    let parents = format!("[parents]\nendpoints = [\"http://{}\"]", parent.address());
    let node = Berth::with("private.example", &private).sections(&parents).start().await;
    let layer = image.layer();
    let gate = Gate::new();
    private.on("GET", "/blobs/").first(1).fault(Fault::HoldAfter(200_000, gate.clone()));
    for blob in [layer, image.config()] {
        evil.blob(B, blob);
    }
    evil.on("GET", "/blobs/").fault(Fault::Status(404));
    let stolen = layer.path(&format!("private.example/{B}"));
    let mut reader = node.get(&layer.path(&format!("private.example/{A}"))).open().await;
    reader.bytes(1000).await;
    assert_eq!(node.get(&stolen).range("0-99").await.status, 404, "under way");
    gate.open();
    assert!(reader.read().await.complete);
    node.pull(&format!("private.example/{A}"), "1", &image).await;
    node.until_idle().await;
    for blob in [layer, image.config()] {
        assert_eq!(node.get(&blob.path(&format!("private.example/{B}"))).await.status, 404);
    }
}

/// The evil registry's flight goes first, and an honest registry has the same content.
async fn two_registries(fault: Fault, evil_asks: Option<&str>) -> (Upstream, Upstream, Blob, Berth) {
    let (evil, good) = (Upstream::start().await, Upstream::start().await);
    let blob = Image::of(3, &[3_000_000]).layer().clone();
    evil.blob("x/y", &blob).on("GET", "/blobs/").fault(fault);
    good.blob("library/base", &blob);
    let berth = Berth::with("good.example", &good).and("evil.example", &evil).start().await;
    let ask = berth.get(&blob.path(EVIL));
    let ask = match evil_asks {
        Some(range) => ask.range(range),
        None => ask,
    };
    tokio::spawn(async move { ask.await });
    eventually("the evil one is asked", async || evil.count("GET", "/blobs/") > 0).await;
    (evil, good, blob, berth)
}

#[tokio::test]
async fn a_registry_that_is_held_shut_holds_up_no_other() {
    let gate = Gate::new();
    for fault in
        [Fault::HoldAfter(100_000, gate.clone()), Fault::Hold(gate.clone()), Fault::HoldAfter(0, gate)]
    {
        let (_evil, good, blob, berth) = two_registries(fault, None).await;
        let path = blob.path("good.example/library/base");
        let head = berth.head(&path).await;
        assert_eq!(head.header("content-length"), Some(&*blob.len().to_string()));
        assert_eq!(berth.get(&path).range("5-999999").await.expect(206), &blob.content.slice(5..1_000_000));
        assert_eq!(berth.get(&path).await.expect(200), &blob.content);
        assert_eq!(good.seen("HEAD", "/blobs/").len(), 1, "the size is the registry's own word");
    }
}

#[tokio::test]
async fn no_unproven_byte_of_one_registry_reaches_anothers_client() {
    for range in [None, Some("0-1048575")] {
        let (evil, good, blob, berth) = two_registries(Fault::WrongByte(7), range).await;
        let path = blob.path("good.example/library/base");
        for _ in 0..2 {
            let part = berth.get(&path).range("0-1048575").await;
            assert_eq!(part.expect(206), &blob.content.slice(..1 << 20));
        }
        assert_eq!(berth.get(&path).await.expect(200), &blob.content);
        assert_eq!(good.bytes_sent(&blob.digest), blob.len(), "its own transfer, once");
        assert_ne!(evil.count("GET", "/blobs/"), 0);
    }
}

#[tokio::test]
async fn a_size_that_one_registry_claims_is_told_to_nobody_elses_client() {
    let gate = Gate::new();
    let (evil, good) = (Upstream::start().await, Upstream::start().await);
    let blob = Image::of(3, &[300_000]).layer().clone();
    evil.blob("x/y", &blob).on("GET", "/blobs/").fault(Fault::ClaimLength(7_777_777));
    evil.on("GET", "/blobs/").fault(Fault::HoldAfter(10, gate.clone()));
    good.blob("library/base", &blob);
    let berth = Berth::with("good.example", &good).and("evil.example", &evil).start().await;
    let reader = berth.get(&blob.path(EVIL)).open().await;
    assert_eq!(reader.header("content-length"), Some("7777777"), "its own client hears what it says");
    let head = berth.head(&blob.path("good.example/library/base")).await;
    assert_eq!(head.header("content-length"), Some("300000"));
    gate.open();
}

#[tokio::test]
async fn what_has_landed_is_shared_by_all_registries_if_it_is_public() {
    let (one, two) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(4, &[300_000]);
    one.image("library/base", "1", &image);
    let berth = Berth::with("one.example", &one).and("two.example", &two).start().await;
    berth.pull("one.example/library/base", "1", &image).await;
    berth.until_idle().await;
    let layer = image.layer();
    assert_eq!(berth.get(&layer.path("two.example/any/where")).await.expect(200), &layer.content);
    assert_eq!(two.requests().len(), 0);
}

/// Writes grants as the berth before this one did.
fn write_earlier_grants(berth: &Berth, repositories: &[&str], blob: &Blob) {
    for repository in repositories {
        let path = grant_of(berth, repository, blob);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::File::create(path).unwrap().write_all(br#"{"public":false}"#).unwrap();
    }
}

#[tokio::test]
async fn grants_of_an_earlier_berth_are_proven_again_where_several_registries_hold_the_content() {
    let Scene { private, evil, image, setup, _logins } = scene().await;
    let mut berth = setup.start().await;
    let own = format!("private.example/{A}");
    berth.pull(&own, "1", &image).await;
    berth.until_idle().await;
    berth.stop().await;
    let (stolen, kept) = (image.layer(), image.config());
    write_earlier_grants(&berth, &[&own, EVIL], stolen);
    write_earlier_grants(&berth, &[&own], kept);
    // Of another version, as it would be.
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    private.stop().await;
    evil.stop().await;
    berth.start_again().await;
    assert_eq!(
        berth.get(&kept.path(&own)).await.expect(200),
        &kept.content,
        "nobody else can have claimed it"
    );
    for repository in [&*own, EVIL] {
        assert_eq!(berth.get(&stolen.path(repository)).await.status, 503, "{repository}: nobody can say");
    }
    private.start_again().await;
    evil.start_again().await;
    eventually("both are back", async || berth.get(&stolen.path(EVIL)).await.status == 404).await;
    let again = async || berth.get(&stolen.path(&own)).await.body == stolen.content;
    eventually("its own registry sends it once more", again).await;
    berth.until_idle().await;
    assert_eq!(read_grant(&berth, &own, stolen)["proof"], "sent");
    assert_eq!(berth.get(&stolen.path(EVIL)).await.status, 404);
    assert_eq!(read_grant(&berth, &own, kept)["proof"], "kept");
}
