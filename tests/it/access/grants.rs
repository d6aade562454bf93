//! Who may be served a digest: each repository by its own upstream's word, and by nobody else's.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::json;
use tempfile::TempPath;

use crate::support::{
    Auth, Berth, Blob, Fault, Gate, Image, Setup, Upstream, basic, docker_config, eventually, file_of,
    together,
};

const A: &str = "team-a/app";
const B: &str = "team-b/app";
/// A repository that no robot may read.
const C: &str = "team-c/app";

/// A Harbor with a robot for each of two projects.
async fn harbor(auth: Auth) -> Upstream {
    let harbor = Upstream::start().await;
    harbor.auth(auth).user("robot-a", "secret-a", "team-a/").user("robot-b", "secret-b", "team-b/");
    harbor
}

/// A mirror of it that has both robots' logins; the file lives as long as the second value.
fn mirror(harbor: &Upstream) -> (Setup, TempPath) {
    let logins = file_of(&docker_config(&[
        ("harbor.example/team-a", "robot-a", "secret-a"),
        ("harbor.example/team-b", "robot-b", "secret-b"),
    ]));
    let setup = Berth::with("harbor.example", harbor).keys(&format!("credentials = {{ file = {logins:?} }}"));
    (setup, logins)
}

async fn status(berth: &Berth, path: &str) -> u16 {
    berth.get(path).await.status
}

/// How often a registry began to send a blob; refusals do not count.
fn transfers(registry: &Upstream, blob: &Blob) -> usize {
    let asked = registry.seen("GET", &blob.digest.to_string());
    asked.iter().filter(|request| request.status() == 200).count()
}

/// A manifest of somebody who names content that is not his, of a size that it does not have.
fn hostile(stolen: &[&Blob], subject: &Image, own: &Blob) -> Image {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let describe = |blob: &Blob, size: u64| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob.digest.to_string(), "size": size,
        })
    };
    let layers: Vec<_> = stolen.iter().map(|blob| describe(blob, 7)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": describe(own, 1 << 40), "layers": layers,
        "subject": subject.descriptor(),
    });
    Image {
        media_type,
        manifest: manifest.to_string().into(),
        blobs: vec![own.clone()],
        children: Vec::new(),
        subject: Some(subject.digest()),
        artifact_type: Some("application/vnd.example.hostile".to_owned()),
    }
}

#[tokio::test]
async fn two_robots_share_one_transfer_each_by_its_own_right() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let harbor = harbor(auth).await;
        let image = Image::of(1, &[300_000]);
        harbor.image(A, "1", &image).image(B, "1", &image);
        let (setup, _logins) = mirror(&harbor);
        let berth = setup.start().await;
        let layer = image.layer();
        let gate = Gate::new();
        harbor.on("GET", "/blobs/").fault(Fault::HoldAfter(100_000, gate.clone()));

        let mut first = berth.get(&layer.path(A)).open().await;
        assert_eq!(first.bytes(1000).await.len(), 1000);
        let second = berth.get(&layer.path(B)).open().await;
        assert_eq!((first.status, second.status), (200, 200));
        assert_eq!(harbor.seen("HEAD", &layer.path(B)).last().map(|head| head.status()), Some(200));
        gate.open();
        assert_eq!(second.read().await.expect(200), &layer.content);
        assert_eq!(first.read().await.body, layer.content.slice(1000..));

        assert_eq!(transfers(&harbor, layer), 1, "one for both");
    }
}

#[tokio::test]
async fn many_of_both_teams_at_once_cost_one_transfer() {
    let harbor = harbor(Auth::Bearer).await;
    let image = Image::of(1, &[300_000]);
    harbor.image(A, "1", &image).image(B, "1", &image);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.start().await;
    let replies = together(32, |at| berth.get(&image.layer().path([A, B][at % 2])).into_future()).await;
    assert!(replies.iter().all(|reply| reply.expect(200) == &image.layer().content));
    assert_eq!(transfers(&harbor, image.layer()), 1);
    assert_eq!(harbor.tokens(), 2, "a token for each repository");
}

#[tokio::test]
async fn a_robots_login_is_used_for_its_own_project_only() {
    let harbor = harbor(Auth::Basic).await;
    let image = Image::of(1, &[3000]);
    harbor.image(A, "1", &image).image(B, "1", &image).image(C, "1", &image);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.start().await;
    berth.pull(A, "1", &image).await;
    berth.pull(B, "1", &image).await;
    assert_eq!(status(&berth, "/v2/team-c/app/manifests/1").await, 404);
    let robots = [(A, "robot-a", "secret-a"), (B, "robot-b", "secret-b")];
    for request in harbor.requests() {
        let Some(sent) = request.header("authorization") else { continue };
        let (_, user, password) = robots.iter().find(|(name, ..)| request.path().contains(name)).unwrap();
        assert_eq!(sent, basic(user, password), "{}", request.target);
    }
}

#[tokio::test]
async fn without_right_to_it_what_is_stored_is_not_there() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let harbor = harbor(auth).await;
        let image = Image::of(1, &[300_000]);
        harbor.image(A, "1", &image).image(B, "other", &Image::of(2, &[3000]));
        let (setup, _logins) = mirror(&harbor);
        let berth = setup.start().await;
        berth.pull(A, "1", &image).await;
        for repository in [B, C] {
            harbor.forget();
            let blob = image.layer().path(repository);
            for _ in 0..3 {
                assert_eq!(status(&berth, &blob).await, 404, "{repository}");
                assert_eq!(berth.head(&blob).await.status, 404);
                assert_eq!(berth.get(&blob).range("0-99").await.status, 404);
                assert_eq!(status(&berth, &image.path(repository)).await, 404, "{repository}");
                assert_eq!(status(&berth, &image.path(repository).replace("manifests", "blobs")).await, 404);
            }
            // By HEAD, and by GET of one byte: there are registries without HEAD.
            assert_eq!((harbor.count("*", &blob), harbor.count("HEAD", &blob)), (2, 1), "{repository}");
            assert_eq!(harbor.count("*", "/manifests/"), 1, "{repository}");
            assert!(harbor.bytes_sent(&image.layer().digest) < 100, "no more than its refusal");
        }
    }
}

#[tokio::test]
async fn a_transfer_under_way_is_closed_to_those_without_right() {
    let harbor = harbor(Auth::Bearer).await;
    let image = Image::of(1, &[300_000]);
    harbor.image(A, "1", &image).image(B, "other", &Image::of(2, &[3000]));
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.start().await;
    let gate = Gate::new();
    harbor.on("GET", "/blobs/").fault(Fault::HoldAfter(100_000, gate.clone()));
    let mut reader = berth.get(&image.layer().path(A)).open().await;
    reader.bytes(1000).await;
    assert_eq!(status(&berth, &image.layer().path(B)).await, 404);
    gate.open();
    assert!(reader.read().await.complete);
}

#[tokio::test]
async fn a_hostile_manifest_gets_nothing_and_harms_nobody() {
    for victim_is_first in [true, false] {
        let harbor = harbor(Auth::Bearer).await;
        let private = Image::of(1, &[300_000]);
        let own = Blob::new(Algorithm::Sha256, Bytes::from_static(b"the publisher's own"));
        let trap = hostile(&[private.layer(), private.config()], &private, &own);
        harbor.image(A, "1", &private).image(B, "trap", &trap);
        let (setup, _logins) = mirror(&harbor);
        let berth = setup.start().await;
        if victim_is_first {
            berth.pull(A, "1", &private).await;
        }
        berth.pull(B, "trap", &trap).await;
        for blob in [private.layer(), private.config()] {
            assert_eq!(status(&berth, &blob.path(B)).await, 404);
            assert_eq!(berth.head(&blob.path(B)).await.status, 404);
        }
        assert_eq!(status(&berth, &private.path(B)).await, 404, "the subject");
        berth.pull(A, "1", &private).await;

        // Sizes are what upstream answers, and only its own repository is told of a referrer.
        for (blob, repository) in [(&own, B), (private.layer(), A)] {
            let length = blob.len().to_string();
            let head = berth.head(&blob.path(repository)).await;
            assert_eq!(head.header("content-length"), Some(&*length));
        }
        let referrers = berth.get(&format!("/v2/{A}/referrers/{}", private.digest())).await;
        assert_eq!(referrers.json()["manifests"], json!([]));
    }
}

#[tokio::test]
async fn what_came_without_a_login_is_shared_without_asking() {
    let harbor = harbor(Auth::Bearer).await;
    let hub = Upstream::start().await;
    let public = Image::of(1, &[30_000]);
    let index = Image::index(&[&public]);
    hub.image("library/base", "1", &index);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.and("docker.io", &hub).start().await;
    berth.pull("docker.io/library/base", "1", &index).await;
    berth.until_idle().await;
    for (repository, name) in
        [(format!("harbor.example/{A}"), A), ("docker.io/else/where".to_owned(), "else/where")]
    {
        for part in [&index, &public] {
            assert_eq!(berth.get(&part.path(&repository)).await.expect(200), &part.manifest);
        }
        let layer = public.layer();
        assert_eq!(berth.get(&layer.path(&repository)).await.expect(200), &layer.content);
        assert_eq!(harbor.count("*", name) + hub.count("*", name), 0, "nobody was asked about {name}");
    }
}

#[tokio::test]
async fn a_new_manifest_is_made_ready_for_offline_pulls_behind_the_answer() {
    let harbor = harbor(Auth::Bearer).await;
    let (one, two) = (Image::of(1, &[30_000]), Image::of(2, &[30_000]));
    let index = Image::index(&[&one, &two]);
    harbor.image(A, "1", &index).image(B, "1", &index);
    let (setup, _logins) = mirror(&harbor);
    let mut berth = setup.start().await;
    berth.pull(A, "1", &index).await;
    assert_eq!(berth.get(&format!("/v2/{B}/manifests/1")).await.status, 200);
    let is_proven = |digest: &Digest| {
        let asked = harbor.seen("*", &format!("/v2/{B}/"));
        asked.iter().any(|it| it.target.ends_with(&digest.to_string()) && it.status() == 200)
    };
    eventually("every part is proven", async || {
        [&one, &two]
            .iter()
            .all(|image| is_proven(&image.digest()) && image.blobs.iter().all(|blob| is_proven(&blob.digest)))
    })
    .await;
    assert_eq!(harbor.seen("GET", &format!("/v2/{B}/blobs/")).len(), 0, "no content is fetched for that");
    berth.stop().await;
    harbor.stop().await;
    berth.start_again().await;
    berth.pull(B, "1", &index).await;
    berth.pull(B, &index.digest().to_string(), &index).await;
}

#[tokio::test]
async fn a_digest_that_is_no_blob_may_be_a_manifest() {
    let hub = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    hub.image("library/base", "1", &image);
    let berth = Berth::with("docker.io", &hub).start().await;
    let path = image.path("library/base");
    assert_eq!(status(&berth, &path.replace("manifests", "blobs")).await, 404);
    assert_eq!(status(&berth, &path).await, 200);
    let layer = image.layer().path("library/base");
    assert_eq!(status(&berth, &layer.replace("blobs", "manifests")).await, 404);
    assert_eq!(status(&berth, &layer).await, 200);
}

#[tokio::test]
async fn rights_outlive_a_restart_and_the_index() {
    let harbor = harbor(Auth::Bearer).await;
    let image = Image::of(1, &[300_000]);
    harbor.image(A, "1", &image).image(B, "1", &image);
    let (setup, _logins) = mirror(&harbor);
    let mut berth = setup.start().await;
    for repository in [A, B] {
        berth.pull(repository, "1", &image).await;
    }
    harbor.stop().await;
    let check = async |berth: &Berth, what: &str| {
        berth.pull(A, "1", &image).await;
        berth.pull(B, "1", &image).await;
        for path in [image.layer().path(C), image.path(C)] {
            assert_eq!(status(berth, &path).await, 503, "nobody can say, {what}");
        }
    };
    check(&berth, "upstream is down").await;
    berth.restart().await;
    check(&berth, "after a restart").await;
    berth.kill().await;
    fs::remove_dir_all(berth.data_dir().join("index")).unwrap();
    berth.start_again().await;
    check(&berth, "without the index").await;
    berth.stop().await;
    overwrite_files(&berth.data_dir().join("index"));
    berth.start_again().await;
    check(&berth, "with garbage as the index").await;
}

fn overwrite_files(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overwrite_files(&path);
        } else {
            File::create(path).unwrap().write_all(b"garbage").unwrap();
        }
    }
}

#[tokio::test]
async fn a_lie_about_a_digest_is_no_right_to_it_later() {
    let (harbor, liar) = (harbor(Auth::Bearer).await, Upstream::start().await);
    let image = Image::of(1, &[300_000]);
    harbor.image(A, "1", &image).image(B, "other", &Image::of(2, &[3000]));
    liar.image("x/y", "1", &image).on("GET", "/blobs/").fault(Fault::WrongByte(5));
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.and("liar.example", &liar).start().await;
    let stolen = image.layer().path("liar.example/x/y");
    assert!(!berth.get(&stolen).await.complete);
    berth.until_idle().await;
    liar.behave();
    liar.remove("x/y", &image.layer().digest);

    berth.pull(A, "1", &image).await;
    assert_eq!(status(&berth, &stolen).await, 503, "what came wrong is left alone for a while");
    eventually("the liar's repository has it no more", async || status(&berth, &stolen).await == 404).await;
    assert_eq!(status(&berth, &image.layer().path(B)).await, 404, "everybody else's");
}

#[tokio::test]
async fn a_lie_about_a_type_is_believed_of_the_liar_only() {
    let (hub, liar) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(1, &[3000]);
    hub.image("library/base", "1", &image);
    let wrong = "application/vnd.docker.distribution.manifest.v2+json".to_owned();
    liar.image("x/y", "1", &image).on("*", "/manifests/").fault(Fault::Header("Content-Type", wrong));
    let berth = Berth::with("docker.io", &hub).and("liar.example", &liar).start().await;
    assert_eq!(status(&berth, &image.path("liar.example/x/y")).await, 200);
    berth.pull("library/base", &image.digest().to_string(), &image).await;
    berth.pull("library/base", "1", &image).await;
}

#[tokio::test]
async fn a_claim_to_private_content_opens_it_to_nobody_else() {
    let (harbor, other) = (harbor(Auth::Bearer).await, Upstream::start().await);
    let image = Image::of(1, &[30_000]);
    harbor.image(A, "1", &image).image(B, "other", &Image::of(2, &[3000]));
    other.image("x/y", "1", &image);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.and("other.example", &other).start().await;
    berth.pull(A, "1", &image).await;
    assert_eq!(
        status(&berth, &image.layer().path("other.example/x/y")).await,
        200,
        "it has it, and sends it"
    );
    assert_eq!(transfers(&other, image.layer()), 1);
    // It came without a login from there, so that it is everybody's by now; the rest is not.
    for repository in [B, "other.example/z"] {
        assert_eq!(status(&berth, &image.config().path(repository)).await, 404, "{repository}");
    }
}

#[tokio::test]
async fn anothers_upstream_that_fails_is_not_ones_own() {
    for status in [400, 403, 404, 500] {
        let (hub, slow) = (Upstream::start().await, Upstream::start().await);
        let image = Image::of(1, &[30_000]);
        hub.image("library/base", "1", &image);
        slow.image("x/y", "1", &image);
        let gate = Gate::new();
        slow.on("GET", "/blobs/").fault(Fault::Status(status));
        slow.on("GET", "/blobs/").fault(Fault::Hold(gate.clone()));
        let timeouts = "timeouts = { budget_seconds = 3 }";
        let berth = Berth::with("docker.io", &hub).and("slow.example", &slow).keys(timeouts).start().await;
        let layer = image.layer();
        let first = tokio::spawn(berth.get(&layer.path("slow.example/x/y")).into_future());
        eventually("the slow one is asked", async || slow.count("GET", "/blobs/") == 1).await;
        let second = berth.get(&layer.path("library/base")).await;
        assert_eq!(second.expect(200), &layer.content, "{status}");
        gate.open();
        assert_ne!(first.await.unwrap().status, 0);
    }
}

#[tokio::test]
async fn an_image_without_right_to_its_layers_is_not_whole() {
    let harbor = harbor(Auth::Bearer).await;
    let (old, new) = (Image::of(1, &[30_000]), Image::of(2, &[30_000]));
    harbor.image(A, "1", &new).image(B, "1", &old);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.sections("[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"").start().await;
    berth.pull(A, "1", &new).await;
    berth.pull(B, "1", &old).await;

    // B's tag moves to an image of which all is here, but upstream is gone before it can say so.
    harbor.image(B, "1", &new).on("*", "/blobs/").fault(Fault::Status(404));
    let path = format!("/v2/{B}/manifests/1");
    assert_eq!(berth.get(&path).await.expect(200), &new.manifest);
    eventually("both blobs were asked for", async || harbor.count("HEAD", &format!("/v2/{B}/blobs/")) >= 2)
        .await;
    harbor.stop().await;
    eventually("the last whole image is served", async || berth.get(&path).await.body == old.manifest).await;
    berth.pull(B, "1", &old).await;
}

#[tokio::test]
async fn what_is_at_hand_for_one_repository_is_not_so_for_another() {
    let harbor = harbor(Auth::Basic).await;
    let image = Image::of(77, &[5000]);
    harbor.image(A, "1", &image);
    let (setup, _logins) = mirror(&harbor);
    let berth = setup.start().await;
    let (manifest, blob) = (image.path(A), image.layer().path(A));
    berth.pull(A, "1", &image).await;
    eventually("both are at hand", async || {
        let statuses = [berth.get(&manifest).await, berth.get(&blob).await];
        statuses.iter().all(|reply| reply.header("cache-status") == Some("berth; hit"))
    })
    .await;
    for path in [image.path(B), image.layer().path(B)] {
        assert_eq!((status(&berth, &path).await, berth.head(&path).await.status), (404, 404), "{path}");
    }
    // The first is served still, after the second was refused.
    for path in [&manifest, &blob] {
        assert_eq!(status(&berth, path).await, 200, "{path}");
    }
}
