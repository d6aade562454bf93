//! Very many facts: what is not looked at, and what is not lost for that.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::clock::unix_seconds;
use crate::store::metadata::rebuild::{Summary, Trust};

/// Tags enough for an `index.json` that has to wait for its turn.
const MANY: usize = 6000;

fn layout_of(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("repos/docker.io/library/x/_oci")
}

fn write_tags(folder: &TempDir) {
    let tags = layout_of(folder).join("refs/tags");
    fs::create_dir_all(&tags).unwrap();
    let record = serde_json::to_vec(&tag_record("m", true)).unwrap();
    for number in 0..MANY {
        File::create(tags.join(format!("{number}"))).unwrap().write_all(&record).unwrap();
    }
}

#[tokio::test]
async fn what_nobody_can_have_changed_is_not_read() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    for name in ["1", "2"] {
        store.put(&digest(name), name.into()).await.unwrap();
        store.set_manifest(&repo, &digest(name), &manifest_record(name, true)).await.unwrap();
        store.set_tag(&repo, &tag(name), &tag_record(name, true)).await.unwrap();
    }
    // In place, so that no folder shows it.
    let spoilt = layout_of(&folder).join("refs/tags/1");
    File::options().write(true).truncate(true).open(&spoilt).unwrap().write_all(b"garbage").unwrap();
    let reconciler = Arc::clone(store.0.maintenance.reconciler());
    let pass = async |trust| {
        let reconciler = Arc::clone(&reconciler);
        blocking(move || reconciler.reconcile(trust, &AtomicBool::new(false)).unwrap()).await
    };
    let now = unix_seconds();
    assert_eq!(pass(Trust::Since(now + 60)).await, Summary::default());
    assert_eq!(store.tags(&repo, None, 9).await.unwrap(), [tag("1"), tag("2")]);
    // A folder that is younger than that is read again, and so is everything if nothing is believed.
    fs::rename(&spoilt, spoilt.with_file_name("3")).unwrap();
    assert_eq!(pass(Trust::Since(now)).await, Summary { added: 0, removed: 1 });
    assert_eq!(pass(Trust::Nothing).await, Summary::default());
    assert_eq!(store.tags(&repo, None, 9).await.unwrap(), [tag("2")]);
}

#[tokio::test]
async fn a_large_index_json_waits_and_the_next_start_knows() {
    let folder = folder();
    write_tags(&folder);
    let store = open(&folder).await;
    let repo = repo("docker.io/library/x");
    for content in ["m", "moved"] {
        store.put(&digest(content), content.into()).await.unwrap();
    }
    catch_up(&store).await;
    let path = layout_of(&folder).join("index.json");
    let shows = |content: &str| fs::read_to_string(&path).unwrap().contains(&digest(content).to_string());
    assert!(shows("m") && !shows("moved"));
    store.set_tag(&repo, &tag("7"), &tag_record("moved", true)).await.unwrap();
    let due = store.0.metadata.stale().next_due().unwrap();
    assert!(due > Instant::now(), "not at once");
    assert_eq!(store.0.metadata.stale().take_due(), None);
    store.set_tag(&repo, &tag("8"), &tag_record("moved", true)).await.unwrap();
    assert_eq!(store.0.metadata.stale().next_due(), Some(due), "and once for both");
    store.run(async {}).await;
    drop(store);
    assert!(!shows("moved"));
    let store = open(&folder).await;
    assert!(matches!(store.0.maintenance.found(), IndexState::Clean(_)));
    catch_up(&store).await;
    assert_eq!(store.0.metadata.stale().take_all(), std::slice::from_ref(&repo));
    let (layouts, of) = (Arc::clone(&store.0.layouts), repo.clone());
    blocking(move || layouts.render(&of)).await.unwrap();
    assert!(shows("moved"));
    let text = fs::read(&path).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), MANY);
    // The same again is not written again.
    let (layouts, inode) =
        (Arc::clone(&store.0.layouts), std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()));
    blocking(move || layouts.render(&repo)).await.unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()), inode);
}
