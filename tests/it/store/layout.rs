//! The cache as OCI layouts: other tools read it while berth runs, and what they write there is served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::process::{run, tool, write};
use crate::support::{Berth, Blob, Fault, Gate, Image, Upstream, eventually, folder};

const REPO: &str = "library/layout";

/// What a skopeo command prints.
async fn skopeo(args: &[&str]) -> String {
    run(tool("skopeo").arg("--insecure-policy").args(args)).await
}

fn oci(layout: &Path, tag: &str) -> String {
    format!("oci:{}:{tag}", layout.display())
}

/// What the layout's `index.json` calls so, once it does.
fn named(layout: &Path, tag: &str) -> Option<String> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
    let is_it = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == *tag;
    Some(index["manifests"].as_array()?.iter().find(is_it)?["digest"].as_str()?.to_owned())
}

async fn until_named(layout: &Path, tag: &str, image: &Image) {
    let digest = image.digest().to_string();
    eventually(&format!("{tag} in index.json"), async || named(layout, tag).as_ref() == Some(&digest)).await;
}

/// Waits until the layout has the blobs, which a client may have before they are stored.
async fn until_stored(layout: &Path, image: &Image) {
    let path = |blob: &Blob| layout.join("blobs/sha256").join(blob.digest.hex());
    eventually("its blobs", async || image.blobs.iter().all(|blob| path(blob).exists())).await;
}

/// Reads an image out of a layout, and compares every file.
async fn assert_copies(layout: &Path, tag: &str, image: &Image) {
    until_stored(layout, image).await;
    let source = oci(layout, tag);
    let target = tempfile::tempdir().unwrap();
    skopeo(&["copy", "--quiet", &source, &format!("dir:{}", target.path().display())]).await;
    assert_eq!(fs::read(target.path().join("manifest.json")).unwrap(), image.manifest);
    for blob in &image.blobs {
        assert_eq!(fs::read(target.path().join(blob.digest.hex())).unwrap(), blob.content);
    }
}

/// Writes an image as a layout elsewhere, as another tool has it. Returns the folder to keep.
fn layout_of(image: &Image, tag: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    write(&layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    write(&blobs.join(image.digest().hex()), &image.manifest);
    for blob in &image.blobs {
        write(&blobs.join(blob.digest.hex()), &blob.content);
    }
    let mut entry = image.descriptor();
    entry["annotations"]["org.opencontainers.image.ref.name"] = tag.into();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    write(&layout.join("index.json"), index.to_string());
    (folder, layout)
}

#[tokio::test]
async fn skopeo_reads_what_is_cached_while_berth_fills() {
    let upstream = Upstream::start().await;
    let (image, large) = (Image::of(61, &[3000, 200_000]), Image::of(62, &[10 << 20]));
    upstream.image(REPO, "1", &image).image(REPO, "large", &large);
    let berth = Berth::with("docker.io", &upstream).start().await;
    berth.pull(REPO, "1", &image).await;
    let gate = Gate::new();
    upstream.on("GET", &large.layer().digest.to_string()).fault(Fault::HoldAfter(5 << 20, gate.clone()));
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/large")).await.status, 200);
    let mut reader = berth.get(&large.layer().path(REPO)).open().await;
    reader.bytes(1 << 20).await;
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    until_named(&layout, "large", &large).await;
    until_named(&layout, "1", &image).await;
    assert_copies(&layout, "1", &image).await;
    let seen: Value = serde_json::from_str(&skopeo(&["inspect", &oci(&layout, "1")]).await).unwrap();
    assert_eq!(seen["Digest"], image.digest().to_string());
    // And with the blobs named apart, as a layout without the link would need it.
    let shared = berth.data_dir().join("blobs");
    let target = tempfile::tempdir().unwrap();
    let (source, target) = (oci(&layout, "1"), format!("dir:{}", target.path().display()));
    skopeo(&["copy", "--quiet", "--src-shared-blob-dir", shared.to_str().unwrap(), &source, &target]).await;
    gate.open();
    assert_eq!(reader.read().await.body, large.layer().content.slice(1 << 20..));
    berth.pull(REPO, "large", &large).await;
    assert_copies(&layout, "large", &large).await;
}

#[tokio::test]
async fn index_json_follows_a_tag() {
    let upstream = Upstream::start().await;
    let fresh = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let berth = Berth::with("docker.io", &upstream).sections(fresh).start().await;
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    for seed in 63..66 {
        let image = Image::of(seed, &[3000]);
        upstream.image(REPO, "moving", &image);
        berth.pull(REPO, "moving", &image).await;
        until_named(&layout, "moving", &image).await;
        assert_copies(&layout, "moving", &image).await;
    }
}

#[tokio::test]
async fn names_of_any_depth_and_ports_have_layouts() {
    let upstream = Upstream::start().await;
    let image = Image::of(66, &[3000]);
    let names = ["a", "a/b", "a/b/c/d/e", "a/b/blobs/refs"];
    for name in names {
        upstream.image(name, "v1.0_x", &image);
    }
    let berth = Berth::with("localhost:5000", &upstream).start().await;
    for name in names {
        berth.pull(name, "v1.0_x", &image).await;
    }
    for name in names {
        let layout = folder::layout(berth.data_dir(), &format!("localhost_5000_/{name}"));
        until_named(&layout, "v1.0_x", &image).await;
        assert_copies(&layout, "v1.0_x", &image).await;
    }
    for name in ["_oci", "a/_oci", "a/_oci/refs/tags", "a/b/_x"] {
        let reply = berth.get(&format!("/v2/{name}/manifests/1")).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "NAME_INVALID"), "{name}");
    }
}

#[tokio::test]
async fn a_layout_that_skopeo_writes_is_served() {
    let upstream = Upstream::start().await;
    let mut berth = Berth::with("docker.io", &upstream).start().await;
    upstream.stop().await;
    let (running, stopped) = (Image::of(67, &[3000, 200_000]), Image::of(68, &[3000]));
    let (_kept, source) = layout_of(&running, "x");
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    fs::create_dir_all(layout.parent().unwrap()).unwrap();
    // While it runs: on the first request for the tag.
    skopeo(&["copy", "--quiet", "--preserve-digests", &oci(&source, "x"), &oci(&layout, "new")]).await;
    berth.pull(REPO, "new", &running).await;
    // The blobs have become the shared ones.
    eventually("the link", async || fs::read_link(layout.join("blobs")).is_ok()).await;
    assert!(folder::blob(berth.data_dir(), &running.digest()).exists());
    // While it does not: at the start, also of a repository that it does not know.
    berth.stop().await;
    let (_kept, source) = layout_of(&stopped, "x");
    let other = folder::layout(berth.data_dir(), "docker.io/library/other");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    skopeo(&["copy", "--quiet", "--preserve-digests", &oci(&source, "x"), &oci(&other, "brought")]).await;
    skopeo(&["copy", "--quiet", "--preserve-digests", &oci(&source, "x"), &oci(&layout, "brought")]).await;
    berth.start_again().await;
    berth.until_logged("adopted what another tool has put into a layout").await;
    berth.pull("library/other", "brought", &stopped).await;
    berth.pull(REPO, "brought", &stopped).await;
    berth.pull(REPO, "new", &running).await;
    for tag in ["new", "brought"] {
        let image = if tag == "new" { &running } else { &stopped };
        until_named(&layout, tag, image).await;
    }
    berth.restart().await;
    berth.pull(REPO, "brought", &stopped).await;
    berth.pull("library/other", "brought", &stopped).await;
    folder::verified(berth.data_dir());
}

#[tokio::test]
async fn a_layout_with_wrong_bytes_is_not_served() {
    let upstream = Upstream::start().await;
    let mut berth = Berth::with("docker.io", &upstream).start().await;
    upstream.stop().await;
    berth.stop().await;
    let image = Image::of(69, &[3000]);
    let (_kept, source) = layout_of(&image, "x");
    write(&source.join("blobs/sha256").join(image.layer().digest.hex()), "garbage");
    let layout = folder::layout(berth.data_dir(), &format!("docker.io/{REPO}"));
    fs::create_dir_all(layout.parent().unwrap()).unwrap();
    fs::rename(&source, &layout).unwrap();
    berth.start_again().await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/x")).await.expect(200), &image.manifest);
    let reply = berth.get(&image.layer().path(REPO)).await;
    assert!([404, 503].contains(&reply.status), "{}", reply.status);
    upstream.image(REPO, "x", &image);
    upstream.start_again().await;
    eventually("the right content", async || berth.get(&image.layer().path(REPO)).await.status == 200).await;
    berth.pull(REPO, "x", &image).await;
}
