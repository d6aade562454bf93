//! The index may be lost at any time, in any way, and everything is found again.

use super::*;

/// Something of every kind.
async fn fill(store: &Store) {
    let (a, b) = (repo("docker.io/library/a"), repo("localhost:5000/team/app"));
    for (repo, public) in [(&a, true), (&b, false)] {
        for name in ["1", "2"] {
            let content = format!("{repo}{name}");
            store.set_manifest(repo, &digest(&content), &manifest_record(&content, public)).await.unwrap();
            store.put(&digest(&content), content.clone().into()).await.unwrap();
            store.set_tag(repo, &tag(name), &tag_record(&content, public)).await.unwrap();
        }
        store.grant(repo, &digest(&format!("layer of {repo}")), sent(public)).await.unwrap();
    }
}

async fn assert_filled(store: &Store) {
    let (a, b) = (repo("docker.io/library/a"), repo("localhost:5000/team/app"));
    for (repo, other, public) in [(&a, &b, true), (&b, &a, false)] {
        for name in ["1", "2"] {
            let content = format!("{repo}{name}");
            let about = digest(&content);
            let expected = tag_record(&content, public);
            assert_eq!(store.tag(repo, &tag(name)).await.unwrap(), Some(expected));
            let expected = document(&content);
            assert_eq!(store.manifest(repo, &about).await.unwrap().as_ref(), Some(&expected));
            assert_eq!(store.manifest(other, &about).await.unwrap(), public.then_some(expected));
            assert!(store.granted(repo, &about).await.unwrap());
            assert!(store.blob(&about).await.unwrap().is_some());
        }
        let layer = digest(&format!("layer of {repo}"));
        assert!(store.granted(repo, &layer).await.unwrap());
        assert_eq!(store.granted(other, &layer).await.unwrap(), public);
        assert_eq!(store.tags(repo, None, 10).await.unwrap(), [tag("1"), tag("2")]);
    }
    assert_eq!(store.repositories(None, 10, true).await.unwrap(), [a.clone(), b]);
    assert_eq!(store.repositories(None, 10, false).await.unwrap(), [a]);
    let bytes = 2 * ("docker.io/library/a1".len() + "localhost:5000/team/app1".len());
    assert_eq!(store.usage().await.used_bytes, bytes as u64);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = folder();
    let store = open(&folder).await;
    fill(&store).await;
    assert_filled(&store).await;
    settle(&store).await;
    drop(store);
    let store = open(&folder).await;
    assert!(matches!(store.0.maintenance.found(), IndexState::Clean(_)));
    assert_filled(&store).await;
    drop(store);
    let store = open(&folder).await;
    assert_eq!(*store.0.maintenance.found(), IndexState::Unclean);
    assert_filled(&store).await;
}

#[tokio::test]
async fn a_spoilt_index_is_rebuilt_from_the_files() {
    let check = async |name: &str, spoil: &dyn Fn(&Path)| {
        let folder = folder();
        let store = open(&folder).await;
        fill(&store).await;
        settle(&store).await;
        drop(store);
        spoil(&folder.path().join("index"));
        let store = open(&folder).await;
        assert!(
            matches!(store.0.maintenance.found(), IndexState::Fresh(_)),
            "{name}: {:?}",
            store.0.maintenance.found()
        );
        assert_filled(&store).await;
        settle(&store).await;
        drop(store);
        let store = open(&folder).await;
        assert!(matches!(store.0.maintenance.found(), IndexState::Clean(_)), "{name}");
        assert_filled(&store).await;
    };
    check("deleted", &|index| fs::remove_dir_all(index).unwrap()).await;
    check("a file", &|index| {
        fs::remove_dir_all(index).unwrap();
        File::create(index).unwrap().write_all(b"garbage").unwrap();
    })
    .await;
    check("garbage", &|index| overwrite(index, |_| 0xa5)).await;
    check("zeros", &|index| overwrite(index, |_| 0)).await;
}

/// The index may lose records of such a file without a word. The pass at the start finds them.
#[tokio::test]
async fn an_index_with_holes_is_filled_again() {
    for seed in 0..12 {
        let folder = folder();
        let store = open(&folder).await;
        fill(&store).await;
        settle(&store).await;
        drop(store);
        let mut random = fastrand::Rng::with_seed(seed);
        let db = folder.path().join("index/db");
        let mut bytes = fs::read(&db).unwrap();
        let start = random.usize(..bytes.len());
        let end = bytes.len().min(start + random.usize(1..20_000));
        bytes[start..end].fill_with(|| random.u8(..));
        File::create(&db).unwrap().write_all(&bytes).unwrap();
        let store = open(&folder).await;
        settle(&store).await;
        drop(store);
        let store = open(&folder).await;
        assert_filled(&store).await;
    }
}

#[tokio::test]
async fn an_index_that_fails_while_running_is_rebuilt_behind() {
    let folder = folder();
    let store = open(&folder).await;
    fill(&store).await;
    store.0.metadata.index().fail();
    // From the files alone, but for what is public elsewhere.
    let (a, b) = (repo("docker.io/library/a"), repo("localhost:5000/team/app"));
    assert_eq!(store.tags(&a, Some("1"), 10).await.unwrap(), [tag("2")]);
    assert!(store.tag(&a, &tag("1")).await.unwrap().is_some());
    assert!(store.granted(&a, &digest("layer of docker.io/library/a")).await.unwrap());
    assert_eq!(store.repositories(None, 10, false).await.unwrap(), std::slice::from_ref(&a));
    assert_eq!(store.repositories(Some(&a), 10, true).await.unwrap(), [b]);
    catch_up(&store).await;
    assert!(store.0.metadata.index().is_complete());
    assert_filled(&store).await;
}

#[tokio::test]
async fn files_that_came_and_went_while_nobody_looked_are_noticed() {
    let folder = folder();
    let store = open(&folder).await;
    fill(&store).await;
    settle(&store).await;
    drop(store);
    let tags = folder.path().join("repos/docker.io/library/a/_oci/refs/tags");
    fs::rename(tags.join("1"), tags.join("3")).unwrap();
    // As a backup without them is put back; else the layout itself would bring the tag back.
    fs::remove_file(folder.path().join("repos/docker.io/library/a/_oci/index.json")).unwrap();
    fs::remove_dir_all(folder.path().join("repos/localhost_5000_")).unwrap();
    let store = open(&folder).await;
    settle(&store).await;
    let a = repo("docker.io/library/a");
    assert_eq!(store.tags(&a, None, 10).await.unwrap(), [tag("2"), tag("3")]);
    assert_eq!(store.tag(&a, &tag("1")).await.unwrap(), None);
    assert_eq!(store.repositories(None, 10, true).await.unwrap(), [a]);
}

/// Killed just after a tag was moved: the index may have lost that, and must not serve what it was.
#[tokio::test]
async fn after_an_unclean_stop_files_decide_what_a_tag_is() {
    let check = async |close: bool| {
        let folder = folder();
        let store = open(&folder).await;
        let repo = repo("docker.io/library/a");
        store.set_tag(&repo, &tag("1"), &tag_record("old", true)).await.unwrap();
        store.checked(&repo, &tag("1"), 50).await;
        if close {
            settle(&store).await;
        }
        drop(store);
        let path = folder.path().join("repos/docker.io/library/a/_oci/refs/tags/1");
        fs::remove_file(&path).unwrap();
        let moved = serde_json::to_vec(&tag_record("new", true)).unwrap();
        File::create(&path).unwrap().write_all(&moved).unwrap();
        let store = open(&folder).await;
        if close {
            catch_up(&store).await;
        }
        let found = async || store.tag(&repo, &tag("1")).await.unwrap().unwrap().digest;
        assert_eq!(found().await, digest("new"));
        catch_up(&store).await;
        assert_eq!(found().await, digest("new"));
    };
    check(false).await;
    // As when a backup is put back under an index that was left where it was.
    check(true).await;
}

fn overwrite(index: &Path, byte: impl Fn(usize) -> u8) {
    for entry in fs::read_dir(index).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let length = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
            let bytes: Vec<u8> = (0..length.max(1000)).map(&byte).collect();
            File::create(&path).unwrap().write_all(&bytes).unwrap();
        }
    }
}
