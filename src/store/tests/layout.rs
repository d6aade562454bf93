//! Each repository is an OCI image layout, which other tools read and write.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image of one layer: the blobs by name of what they are.
struct Image {
    manifest: String,
    config: String,
    layer: String,
}

fn image(layer: &str) -> Image {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    });
    let (config, layer) = (config.to_string(), layer.to_owned());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    Image { manifest: manifest.to_string(), config, layer }
}

impl Image {
    fn blobs(&self) -> [&str; 3] {
        [&self.config, &self.layer, &self.manifest]
    }
}

fn descriptor(media_type: &str, content: &str) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
    descriptor
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(content.as_bytes()).unwrap();
}

/// A layout as another tool writes it, with a `blobs` folder of its own.
fn write_layout(folder: &Path, entries: &[Value], blobs: &[&str]) {
    for content in blobs {
        write(&folder.join("blobs/sha256").join(digest(content).hex()), content);
    }
    write(&folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    write_index_json(folder, entries);
}

fn write_index_json(folder: &Path, entries: &[Value]) {
    let index = json!({ "schemaVersion": 2, "manifests": entries, "annotations": { "by": "hand" } });
    write(&folder.join("index.json"), &index.to_string());
}

fn index_json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap()
}

fn layout_of(folder: &TempDir, repo: &str) -> PathBuf {
    folder.path().join("repos").join(repo).join("_oci")
}

/// Stores an image as the cache does, tagged.
async fn store_image(store: &Store, repo: &Repo, name: &str, image: &Image) {
    for content in image.blobs() {
        store.grant(repo, &digest(content), sent(true)).await.unwrap();
        store.put(&digest(content), content.to_owned().into()).await.unwrap();
    }
    store
        .set_manifest(repo, &digest(&image.manifest), &manifest_record(&image.manifest, true))
        .await
        .unwrap();
    store.set_tag(repo, &tag(name), &tag_record(&image.manifest, true)).await.unwrap();
}

fn skopeo(arguments: &[&str]) {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--preserve-digests"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_repository_is_a_layout() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("localhost:5000/team/app");
    store_image(&store, &repo, "b", &image("layer")).await;
    store_image(&store, &repo, "a", &image("layer")).await;
    let untagged = image("untagged");
    store.put(&digest(&untagged.manifest), untagged.manifest.clone().into()).await.unwrap();
    store
        .set_manifest(&repo, &digest(&untagged.manifest), &manifest_record(&untagged.manifest, true))
        .await
        .unwrap();
    // An index whose child is stored, too: the child has no entry of its own.
    let child = image("child");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &child.manifest)] });
    let index = index.to_string();
    store.put(&digest(&index), index.clone().into()).await.unwrap();
    let record = ManifestRecord { media_type: INDEX.to_owned(), ..manifest_record(&index, true) };
    store.set_manifest(&repo, &digest(&index), &record).await.unwrap();
    store
        .set_manifest(&repo, &digest(&child.manifest), &manifest_record(&child.manifest, true))
        .await
        .unwrap();
    catch_up(&store).await;

    let layout = layout_of(&folder, "localhost_5000_/team/app");
    assert_eq!(fs::read_to_string(layout.join("oci-layout")).unwrap(), r#"{"imageLayoutVersion":"1.0.0"}"#);
    assert_eq!(fs::read_link(layout.join("blobs")).unwrap(), Path::new("../../../../../blobs"));
    assert!(layout.join("blobs/sha256").join(digest("layer").hex()).is_file());
    let tagged = descriptor(MANIFEST, &image("layer").manifest);
    let mut rest = [descriptor(MANIFEST, &untagged.manifest), descriptor(INDEX, &index)];
    rest.sort_by_key(|entry| entry["digest"].to_string());
    let mut expected = vec![named(tagged.clone(), "a"), named(tagged, "b")];
    expected.extend(rest);
    let found = index_json(&layout);
    assert_eq!(found["manifests"], json!(expected));
    assert_eq!((&found["schemaVersion"], &found["mediaType"]), (&json!(2), &json!(INDEX)));
}

#[tokio::test]
async fn a_tag_among_two_thousand_is_one_small_file() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    for content in ["m", "moved"] {
        store.put(&digest(content), Bytes::from_static(content.as_bytes())).await.unwrap();
    }
    for number in 0..2000 {
        let path = layout_of(&folder, "docker.io/library/x").join(format!("refs/tags/{number}"));
        write(&path, &serde_json::to_string(&tag_record("m", true)).unwrap());
    }
    catch_up(&store).await;
    assert_eq!(store.tags(&repo, None, 5000).await.unwrap().len(), 2000);
    let path = layout_of(&folder, "docker.io/library/x").join("index.json");
    let before = fs::read(&path).unwrap();
    store.set_tag(&repo, &tag("7"), &tag_record("moved", true)).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), before, "rendered behind");
    catch_up(&store).await;
    assert_ne!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn run_renders_what_has_changed() {
    let folder = folder();
    let store = open(&folder).await;
    store_image(&store, &repo("docker.io/library/x"), "1", &image("layer")).await;
    let path = layout_of(&folder, "docker.io/library/x").join("index.json");
    store.run(async {}).await;
    assert_eq!(index_json(path.parent().unwrap())["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_layout_written_by_hand_is_adopted() {
    let folder = folder();
    let (one, two, sparse) = (image("one"), image("two"), image("sparse"));
    let layout = layout_of(&folder, "docker.io/library/x");
    let entries = [
        named(descriptor(MANIFEST, &one.manifest), "1"),
        descriptor(MANIFEST, &two.manifest),
        named(descriptor(MANIFEST, &sparse.manifest), "sparse"),
        named(descriptor(MANIFEST, &one.manifest), "not/a/tag"),
        json!({ "mediaType": MANIFEST, "digest": "blake3:00", "size": 1 }),
    ];
    write_layout(&layout, &entries, &[one.blobs(), two.blobs()].concat());
    // Somebody's mistake: not what its name says.
    write(&layout.join("blobs/sha256").join(digest("wrong").hex()), "something else");

    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    let record = store.tag(&repo, &tag("1")).await.unwrap().unwrap();
    assert_eq!((record.digest, record.checked_at, record.public), (digest(&one.manifest), 0, false));
    for content in [one.blobs(), two.blobs()].concat() {
        assert!(store.granted(&repo, &digest(content)).await.unwrap(), "{content}");
        assert!(store.blob(&digest(content)).await.unwrap().is_some());
        assert!(!store.granted(&super::repo("quay.io/x"), &digest(content)).await.unwrap());
    }
    assert_eq!(store.tag(&repo, &tag("sparse")).await.unwrap(), None);
    assert!(store.blob(&digest("wrong")).await.unwrap().is_none());
    assert_eq!(store.repositories(None, 9, false).await.unwrap(), []);
    assert_eq!(store.repositories(None, 9, true).await.unwrap(), [repo]);
}

#[tokio::test]
async fn what_another_tool_wrote_stays_in_the_layout() {
    let folder = folder();
    let one = image("one");
    let layout = layout_of(&folder, "docker.io/library/x");
    let mut noted = named(descriptor(MANIFEST, &one.manifest), "1");
    noted["annotations"]["colour"] = json!("red");
    let foreign = [
        named(descriptor(MANIFEST, &one.manifest), "not/a/tag"),
        json!({ "mediaType": MANIFEST, "digest": "blake3:00", "size": 1 }),
    ];
    let entries = [&[noted.clone()], &foreign[..]].concat();
    write_layout(&layout, &entries, &one.blobs());

    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    catch_up(&store).await;
    store_image(&store, &repo, "2", &image("two")).await;
    catch_up(&store).await;
    let added = named(descriptor(MANIFEST, &image("two").manifest), "2");
    let found = index_json(&layout);
    assert_eq!(found["manifests"], json!([&[noted, added], &foreign[..]].concat()));
    assert_eq!(found["annotations"], json!({ "by": "hand" }));
    assert!(fs::symlink_metadata(layout.join("blobs")).unwrap().is_symlink());
}

#[tokio::test]
async fn the_newer_of_a_ref_and_a_foreign_entry_wins() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    let (old, new) = (image("old"), image("new"));
    store_image(&store, &repo, "1", &old).await;
    catch_up(&store).await;
    let layout = layout_of(&folder, "docker.io/library/x");
    for content in new.blobs() {
        write(&layout.join("blobs/sha256").join(digest(content).hex()), content);
    }
    let path = layout.join("index.json");
    write_index_json(&layout, &[named(descriptor(MANIFEST, &new.manifest), "1")]);
    File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    catch_up(&store).await;
    assert_eq!(store.tag(&repo, &tag("1")).await.unwrap().unwrap().digest, digest(&old.manifest));
    assert_eq!(index_json(&layout)["manifests"][0]["digest"], json!(digest(&old.manifest)));

    write_index_json(&layout, &[named(descriptor(MANIFEST, &new.manifest), "1")]);
    File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    catch_up(&store).await;
    let record = store.tag(&repo, &tag("1")).await.unwrap().unwrap();
    assert_eq!(record.digest, digest(&new.manifest));
    assert_eq!(record.previous.unwrap().digest, digest(&old.manifest));
}

/// Killed after a tag was moved and before `index.json` followed, with the index lost as well.
#[tokio::test]
async fn an_index_json_that_is_behind_brings_nothing_back() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    store_image(&store, &repo, "moved", &image("old")).await;
    catch_up(&store).await;
    store_image(&store, &repo, "moved", &image("new")).await;
    drop(store);
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = open(&folder).await;
    catch_up(&store).await;
    assert_eq!(store.tags(&repo, None, 9).await.unwrap(), [tag("moved")]);
    let record = store.tag(&repo, &tag("moved")).await.unwrap().unwrap();
    assert_eq!(record.digest, digest(&image("new").manifest));
    let found = index_json(&layout_of(&folder, "docker.io/library/x"));
    assert_eq!(found["manifests"][0]["digest"], json!(digest(&image("new").manifest)));
}

#[tokio::test]
async fn skopeo_reads_and_writes_the_layout_while_berth_runs() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    store_image(&store, &repo, "1", &image("one")).await;
    catch_up(&store).await;
    let layout = layout_of(&folder, "docker.io/library/x");
    let outside = tempfile::tempdir().unwrap();
    let copy = outside.path().join("copy");
    skopeo(&[&format!("oci:{}:1", layout.display()), &format!("dir:{}", copy.display())]);
    assert_eq!(fs::read_to_string(copy.join("manifest.json")).unwrap(), image("one").manifest);
    assert_eq!(fs::read_to_string(copy.join(digest("one").hex())).unwrap(), "one");

    let two = image("two");
    let source = outside.path().join("source");
    write_layout(&source, &[named(descriptor(MANIFEST, &two.manifest), "it")], &two.blobs());
    let from = format!("oci:{}:it", source.display());
    skopeo(&[&from, &format!("oci:{}:2", layout.display())]);
    // A repository that berth has never seen, in a layout of skopeo's own.
    let unseen = layout_of(&folder, "quay.io/a/b/c");
    fs::create_dir_all(unseen.parent().unwrap()).unwrap();
    skopeo(&[&from, &format!("oci:{}:3", unseen.display())]);

    for (of, name) in [(repo, "2"), (super::repo("quay.io/a/b/c"), "3")] {
        let record = store.tag(&of, &tag(name)).await.unwrap().unwrap();
        assert_eq!((record.digest, record.media_type.as_str()), (digest(&two.manifest), MANIFEST));
        for content in two.blobs() {
            assert!(store.granted(&of, &digest(content)).await.unwrap());
            assert!(store.blob(&digest(content)).await.unwrap().is_some());
        }
    }
    catch_up(&store).await;
    assert!(fs::symlink_metadata(unseen.join("blobs")).unwrap().is_symlink());
    assert_eq!(index_json(&layout)["manifests"].as_array().unwrap().len(), 2);
    let copy = outside.path().join("copy of unseen");
    skopeo(&[&format!("oci:{}:3", unseen.display()), &format!("dir:{}", copy.display())]);
    assert_eq!(fs::read_to_string(copy.join("manifest.json")).unwrap(), two.manifest);
}
