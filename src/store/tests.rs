//! The store through its front door: what it keeps, what it finds again, and what it refuses.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::time::Instant;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::oci::range::Span;
use crate::oci::{Digest, Document, Registry, Repo, RepoName, Speaker, Tag};

mod layout;
mod rebuild;
mod scale;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn open(folder: &TempDir) -> Store {
    Store::open(folder.path(), Arc::default()).await.unwrap()
}

fn repo(text: &str) -> Repo {
    let (registry, name) = text.split_once('/').unwrap();
    Repo { registry: Registry::parse(registry).unwrap(), name: RepoName::parse(name).unwrap() }
}

fn tag(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}

fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn tag_record(content: &str, public: bool) -> TagRecord {
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    TagRecord {
        digest: digest(content),
        media_type,
        size: content.len() as u64,
        fetched_at: 7,
        checked_at: 7,
        public,
        previous: None,
    }
}

fn manifest_record(content: &str, public: bool) -> ManifestRecord {
    let TagRecord { media_type, size, fetched_at, .. } = tag_record(content, public);
    ManifestRecord { media_type, size, public, speaker: Speaker::Registry, fetched_at }
}

fn document(content: &str) -> Arc<Document> {
    let TagRecord { digest, media_type, .. } = tag_record(content, true);
    Arc::new(Document::new(digest, media_type, content.to_owned().into()))
}

/// Does all that is behind, as `run` would in time.
async fn catch_up(store: &Store) {
    let inner = Arc::clone(&store.0);
    blocking(move || {
        inner.maintenance.compare();
        inner.maintenance.once(Instant::now());
    })
    .await;
}

/// Does all that is behind, and closes in order.
async fn settle(store: &Store) {
    catch_up(store).await;
    store.run(async {}).await;
}

fn from() -> Repo {
    repo("docker.io/library/a")
}

/// What one registry sends.
fn key(content: &str) -> PartialKey {
    PartialKey::new(&from().registry, &digest(content))
}

/// A transfer for a repository that the registry itself speaks for.
fn next(repo: &Repo) -> Next<'_> {
    Next { repo, is_granted: false, is_public: false, is_by_parents: false, speaker: Speaker::Registry }
}

/// That it has been sent.
fn sent(public: bool) -> Grant {
    Grant { public, proof: Some(Proof::Sent), speaker: Speaker::Registry }
}

/// What is left of it: its total and the synced bytes.
async fn left(store: &Store, content: &str) -> Option<(u64, u64)> {
    store.left(&key(content)).await.map(|left| (left.total, left.pieces.bytes()))
}

/// Writes all of a partial file, syncs half, and gives it back.
async fn half_written(store: &Store, content: &str) -> Partial {
    let mut partial =
        store.partial(&key(content), Some(content.len() as u64), next(&from()), true).await.unwrap();
    partial.write_at(0, content.as_bytes()).unwrap();
    partial.sync(RangeSet::prefix(content.len() as u64 / 2)).unwrap();
    partial
}

#[tokio::test]
async fn the_second_process_is_refused_until_the_first_is_gone() {
    let folder = folder();
    let store = open(&folder).await;
    assert!(matches!(
        Store::open(folder.path(), Arc::default()).await,
        Err(Error::Locked { pid: Some(_), .. })
    ));
    drop(store);
    open(&folder).await;
}

#[tokio::test]
async fn a_blob_is_put_once_and_only_under_its_digest() {
    let folder = folder();
    let store = open(&folder).await;
    assert!(store.blob(&digest("content")).await.unwrap().is_none());
    for _ in 0..2 {
        store.put(&digest("content"), Bytes::from_static(b"content")).await.unwrap();
    }
    assert_eq!(store.blob(&digest("content")).await.unwrap().unwrap().size, 7);
    assert_eq!(store.usage().await.used_bytes, 7);
    assert!(store.usage().await.total_bytes > 7);
    let refused = store.put(&digest("content"), Bytes::from_static(b"other")).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })));
}

#[tokio::test]
async fn a_partial_file_becomes_a_blob() {
    let folder = folder();
    let store = open(&folder).await;
    let content = "x".repeat(100_000);
    let partial = half_written(&store, &content).await;
    let reader = partial.file();
    assert!(matches!(
        store.partial(&key(&content), Some(100_000), next(&from()), true).await,
        Err(Error::InUse { .. })
    ));
    assert!(partial.write_at(99_999, b"too long").is_err());
    partial.commit(&digest(&content)).unwrap();
    let blob = store.blob(&digest(&content)).await.unwrap().unwrap();
    assert_eq!((blob.size, reader.file().metadata().unwrap().len()), (100_000, 100_000));
    let path = folder.path().join("blobs/sha256").join(digest(&content).hex());
    assert_eq!(fs::read(&path).unwrap(), content.as_bytes());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);
    assert_eq!(fs::read_dir(folder.path().join("partial/docker.io")).unwrap().count(), 0);
    assert_eq!(store.usage().await.used_bytes, 100_000);
    assert_eq!(left(&store, &content).await, None);
}

#[tokio::test]
async fn an_unproven_or_incomplete_partial_file_never_becomes_a_blob() {
    let folder = folder();
    let store = open(&folder).await;
    let partial = half_written(&store, "content").await;
    assert!(matches!(partial.commit(&digest("other")), Err(Error::DigestMismatch { .. })));
    assert_eq!(left(&store, "content").await, None, "dropped");

    let partial = store.partial(&key("content"), Some(7), next(&from()), true).await.unwrap();
    partial.write_at(0, b"cont").unwrap();
    assert!(partial.commit(&digest("content")).is_err());
    assert!(store.blob(&digest("content")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_command_leaves_the_index_as_it_was_found() {
    let folder = folder();
    let store = open(&folder).await;
    store.put(&digest("x"), "x".into()).await.unwrap();
    assert!(matches!(store.0.maintenance.found(), IndexState::Fresh(_)));
    let at = store.0.maintenance.opened_at();
    store.close().await;
    for _ in 0..2 {
        let store = open(&folder).await;
        assert_eq!(*store.0.maintenance.found(), IndexState::Clean(at));
        store.put(&digest("y"), "y".into()).await.unwrap();
        store.close().await;
    }
    drop(open(&folder).await);
    let store = open(&folder).await;
    assert_eq!(*store.0.maintenance.found(), IndexState::Unclean);
    store.close().await;
    assert_eq!(*open(&folder).await.0.maintenance.found(), IndexState::Unclean);
}

#[tokio::test]
async fn a_partial_file_resumes_where_its_map_says() {
    let folder = folder();
    let store = open(&folder).await;
    drop(half_written(&store, "0123456789").await);
    assert_eq!(left(&store, "0123456789").await, Some((10, 5)));
    drop(store);

    let store = open(&folder).await;
    let partial = store.partial(&key("0123456789"), Some(10), next(&from()), true).await.unwrap();
    assert_eq!((partial.have().bytes(), partial.total()), (5, Some(10)));
    drop(partial);

    let old = store.partial(&key("0123456789"), Some(10), next(&from()), true).await.unwrap().file();
    let restarted = store.partial(&key("0123456789"), Some(20), next(&from()), true).await.unwrap();
    assert_eq!((restarted.have().bytes(), restarted.total()), (0, Some(20)), "another total");
    assert_eq!(old.file().metadata().unwrap().len(), 10, "a reader keeps what it reads");
    restarted.discard();
    assert_eq!(fs::read_dir(folder.path().join("partial/docker.io")).unwrap().count(), 0);
}

/// What a power loss leaves: the map, and of the data only what was synced.
#[tokio::test]
async fn a_map_and_its_file_are_believed_only_together() {
    let check = async |spoil: &dyn Fn(&Path, &Path), have: u64| {
        let folder = folder();
        let store = open(&folder).await;
        drop(half_written(&store, "0123456789").await);
        drop(store);
        let data = folder.path().join("partial/docker.io").join(digest("0123456789").file_name());
        spoil(&data, &data.with_extension("map"));
        let store = open(&folder).await;
        assert_eq!(
            store.partial(&key("0123456789"), Some(10), next(&from()), true).await.unwrap().have().bytes(),
            have
        );
    };
    let cut =
        |path: &Path, length: u64| File::options().write(true).open(path).unwrap().set_len(length).unwrap();
    check(&|_, _| {}, 5).await;
    check(&|data, _| cut(data, 5), 5).await;
    check(&|data, _| cut(data, 4), 0).await;
    check(&|_, map| cut(map, 0), 0).await;
    check(&|_, map| cut(map, 63), 0).await;
    check(&|data, _| fs::remove_file(data).unwrap(), 0).await;
    check(&|_, map| fs::remove_file(map).unwrap(), 0).await;
    check(&|data, _| fs::set_permissions(data, fs::Permissions::from_mode(0o444)).unwrap(), 5).await;
}

#[tokio::test]
async fn pieces_are_kept_and_read_where_all_of_them_came_from() {
    let folder = folder();
    let store = open(&folder).await;
    let (a, b) = (from(), repo("quay.io/b"));
    let mut partial = store.partial(&key("x"), Some(100), next(&a), false).await.unwrap();
    partial.write_at(40, b"0123456789").unwrap();
    let mut pieces = RangeSet::default();
    pieces.insert(Span { start: 40, end: 50 });
    partial.sync(pieces.clone()).unwrap();
    drop(partial);
    drop(store);

    let store = open(&folder).await;
    let left = store.left(&key("x")).await.unwrap();
    assert_eq!((left.total, &left.pieces, left.is_for(&a), left.is_for(&b)), (100, &pieces, true, false));
    drop(store.partial(&key("x"), Some(100), next(&b), false).await.unwrap());
    let mixed = store.left(&key("x")).await.unwrap();
    assert_eq!((&mixed.pieces, mixed.is_for(&a), mixed.is_for(&b)), (&pieces, false, false));
    assert!(store.left(&PartialKey::new(&b.registry, &digest("x"))).await.is_none(), "of another registry");
    store.partial(&key("x"), Some(100), next(&b), false).await.unwrap().discard();
    assert!(store.left(&key("x")).await.is_none());
    let mut bytes = [0; 10];
    left.file.read_exact_at(&mut bytes, 40).unwrap();
    assert_eq!(&bytes, b"0123456789", "a reader keeps what it reads");
}

#[tokio::test]
async fn a_private_grant_is_for_one_repository_and_a_public_one_for_all() {
    let folder = folder();
    let store = open(&folder).await;
    let (a, b) = (repo("docker.io/library/a"), repo("quay.io/b"));
    let granted = async |repo: &Repo| store.granted(repo, &digest("x")).await.unwrap();
    assert!(!granted(&a).await && !granted(&b).await);
    store.grant(&a, &digest("x"), sent(false)).await.unwrap();
    assert!(granted(&a).await && !granted(&b).await);
    store.grant(&a, &digest("x"), sent(true)).await.unwrap();
    assert!(granted(&a).await && granted(&b).await);
    store.grant(&a, &digest("x"), sent(false)).await.unwrap();
    assert!(granted(&b).await, "public once is public for ever");
    assert!(!store.granted(&a, &digest("y")).await.unwrap());
}

#[tokio::test]
async fn a_manifest_is_granted_where_it_is_known() {
    let folder = folder();
    let store = open(&folder).await;
    let (a, b) = (repo("docker.io/library/a"), repo("docker.io/library/b"));
    store.set_manifest(&a, &digest("m"), &manifest_record("m", false)).await.unwrap();
    assert_eq!(store.manifest(&a, &digest("m")).await.unwrap(), None, "it is known but not here");
    store.put(&digest("m"), "m".into()).await.unwrap();
    assert!(store.granted(&a, &digest("m")).await.unwrap());
    assert!(!store.granted(&b, &digest("m")).await.unwrap());
    assert_eq!(store.manifest(&b, &digest("m")).await.unwrap(), None);
    store.set_manifest(&a, &digest("m"), &manifest_record("m", true)).await.unwrap();
    store.set_manifest(&a, &digest("m"), &manifest_record("m", false)).await.unwrap();
    for repo in [&a, &b] {
        assert_eq!(store.manifest(repo, &digest("m")).await.unwrap().unwrap(), document("m"));
    }
    assert!(store.granted(&b, &digest("m")).await.unwrap());
}

#[tokio::test]
async fn a_tag_moves_is_checked_and_is_removed() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("localhost:5000/team/app");
    assert!(!store.knows(&repo).await.unwrap());
    assert_eq!(store.tag(&repo, &tag("1")).await.unwrap(), None);
    store.set_tag(&repo, &tag("1"), &tag_record("old", true)).await.unwrap();
    store.set_tag(&repo, &tag("1"), &tag_record("new", true)).await.unwrap();
    store.checked(&repo, &tag("1"), 99).await;
    let record = store.tag(&repo, &tag("1")).await.unwrap().unwrap();
    assert_eq!((record.digest, record.checked_at), (digest("new"), 99));
    assert!(store.knows(&repo).await.unwrap());
    assert!(folder.path().join("repos/localhost_5000_/team/app/_oci/refs/tags/1").is_file());
    store.checked(&repo, &tag("2"), 100).await;
    assert_eq!(store.tag(&repo, &tag("2")).await.unwrap(), None, "a check alone makes no tag");
}

#[tokio::test]
async fn tags_and_repositories_are_paged_in_byte_order() {
    let folder = folder();
    let store = open(&folder).await;
    let a = repo("docker.io/library/a");
    for name in ["b", "B", "10", "9", "1"] {
        store.set_tag(&a, &tag(name), &tag_record(name, true)).await.unwrap();
    }
    // Its name begins with the other's: its tags must not show there.
    let other = repo("docker.io/library/a-b");
    store.set_tag(&other, &tag("other"), &tag_record("other", false)).await.unwrap();
    let third = repo("docker.io/library/a/b");
    store.grant(&third, &digest("x"), sent(true)).await.unwrap();

    let check = async |after: Option<&str>, n: usize, expected: &[&str]| {
        let page = store.tags(&a, after, n).await.unwrap();
        assert_eq!(page.iter().map(Tag::as_str).collect::<Vec<_>>(), expected, "after {after:?}");
    };
    check(None, 2, &["1", "10"]).await;
    check(Some("10"), 2, &["9", "B"]).await;
    check(Some("A"), 10, &["B", "b"]).await;
    check(Some("b"), 10, &[]).await;
    check(None, 0, &[]).await;

    let page =
        async |after: Option<&Repo>, n, private_too| store.repositories(after, n, private_too).await.unwrap();
    assert_eq!(page(None, 10, false).await, [a.clone(), third.clone()]);
    assert_eq!(page(None, 10, true).await, [a.clone(), other.clone(), third.clone()]);
    assert_eq!(page(Some(&a), 1, true).await, [other]);
    assert_eq!(page(Some(&a), 1, false).await, [third]);
}

#[tokio::test]
async fn referrers_are_kept_byte_for_byte() {
    let folder = folder();
    let store = open(&folder).await;
    let repo = repo("docker.io/library/a");
    assert_eq!(store.referrers(&repo, &digest("m")).await.unwrap(), None);
    let body = Bytes::from_static(b"{ \"manifests\" : [\"\\u00e9\xc3\xa9\"] }\n");
    let record = ReferrersRecord { body, fetched_at: 5 };
    store.set_referrers(&repo, &digest("m"), &record).await.unwrap();
    assert_eq!(store.referrers(&repo, &digest("m")).await.unwrap(), None, "it is about nothing that is here");
    store.put(&digest("m"), "m".into()).await.unwrap();
    store.set_manifest(&repo, &digest("m"), &manifest_record("m", true)).await.unwrap();
    store.set_referrers(&repo, &digest("m"), &record).await.unwrap();
    assert_eq!(store.referrers(&repo, &digest("m")).await.unwrap(), Some(record));
    let nonsense = ReferrersRecord { body: Bytes::from_static(b"\xff"), fetched_at: 5 };
    assert!(store.set_referrers(&repo, &digest("m"), &nonsense).await.is_err());
}

#[tokio::test]
async fn what_a_killed_process_left_is_swept() {
    let folder = folder();
    drop(open(&folder).await);
    let partial = folder.path().join("partial");
    for name in [".tmp-17", &digest("lonely").file_name(), &format!("{}.map", digest("gone").file_name())] {
        File::create(partial.join(name)).unwrap().write_all(b"rest").unwrap();
    }
    open(&folder).await;
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0);
}

#[tokio::test]
async fn a_secret_is_readable_by_its_user_alone_and_follows_no_link() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Arc::default()).await.unwrap();
    let (path, elsewhere) = (folder.path().join("secret"), folder.path().join("elsewhere"));
    File::create(&elsewhere).unwrap().write_all(b"mine").unwrap();
    symlink(&elsewhere, &path).unwrap();
    store.put_secret("secret", "one".to_owned()).await.unwrap();
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600);
    assert_eq!((fs::read(&path).unwrap(), fs::read(&elsewhere).unwrap()), (b"one".into(), b"mine".into()));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    store.put_secret("secret", "two".to_owned()).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two", "a folder in its place gives way");
}
