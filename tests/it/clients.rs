//! Real clients pull real images through berth from a real registry, in Debian's versions of all of them.
//!
//! Every pull starts from scratch, and every byte is compared with what was pushed ([`crate::support::clients`]
//! says how). Each client pulls each image that it can read. What these versions cannot do is left out:
//!
//! - podman, buildah and the Docker Engine take container images only; artifacts go through skopeo and containerd.
//! - Of an index without platforms, such as the fallback tag for referrers, skopeo makes another one and so
//!   refuses to copy it with its digest; it goes through containerd.
//! - The Docker Engine 20.10 cannot unpack zstd, and has mirrors for Docker Hub alone.
//! - None of them asks for referrers by itself: what refers to an image is pulled by its tag or digest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::clients::{Client, Mirror};
use crate::support::process::write;
use crate::support::real_images::{By, Image, Images};
use crate::support::registry::{Auth, Registry};
use crate::support::token_server::TokenServer;
use crate::support::{Berth, Certificate, Setup, eventually, file_of, together};

const LOGIN: (&str, &str) = ("robot$pull", "open sesame");

/// Images that cost a client seconds to store, whoever serves them: not every step of a story pulls them.
const HEAVY: [&str; 2] = ["many", "big"];

/// A berth in front of the registry, as Docker Hub. A tag stays fresh for longer than any test takes.
fn mirror_of(registry: &Registry) -> Setup {
    let fresh = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"1h\"";
    Setup::new("docker.io").endpoint_url(&registry.url()).sections(fresh)
}

/// All clients pull what they can read of the images, at the same time as far as the machine bears it.
async fn everybody_pulls(berth: &Berth, images: &[Image], by: By) {
    let mirror = &Mirror { address: berth.address().to_string(), ca: berth.ca() };
    let pulls = Client::ALL.map(|client| async move {
        if images.iter().any(|image| client.can_pull(image)) {
            client.pull(mirror, images, by).await;
        }
    });
    let [a, b, c, d, e, f] = pulls;
    tokio::join!(a, b, c, d, e, f);
}

async fn everybody_pulls_by_tag_and_digest(berth: &Berth, images: &[Image]) {
    for by in [By::Tag, By::Digest] {
        everybody_pulls(berth, images, by).await;
    }
}

fn without_heavy(images: &Images) -> Vec<Image> {
    images.all().iter().filter(|image| !HEAVY.contains(&&*image.key)).cloned().collect()
}

/// Every manifest and blob was transferred once, and nothing was asked twice, but for one refusal without login. What comes
/// behind comes in ranges.
fn assert_asked_once(registry: &Registry, images: &[Image]) {
    let mut asked = BTreeMap::new();
    for request in registry.requests() {
        assert!(request.user_agent.starts_with("berth/"), "{request:?}");
        *asked.entry((request.method, request.path, request.status)).or_insert(0) += 1;
    }
    assert!(asked.values().all(|times| *times == 1), "{asked:#?}");
    assert!(asked.keys().filter(|(_, _, status)| ![200, 206].contains(status)).count() <= 1, "{asked:#?}");
    for digest in images.iter().flat_map(Image::everything) {
        assert_eq!(registry.count("GET", &digest), 1, "{digest} in {asked:#?}");
    }
}

/// Overwrites all files below a folder.
fn fill_with_garbage(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            fill_with_garbage(&entry.path());
        } else {
            write(&entry.path(), [0xa5; 10_000]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_once_is_served_whatever_happens_to_registry_and_index() {
    let images = Images::ready().await;
    let mut registry = Registry::start(Auth::Anonymous).await;
    let mut berth = mirror_of(&registry).start().await;
    everybody_pulls(&berth, images.all(), By::Tag).await;
    assert_asked_once(&registry, images.all());

    let light = without_heavy(images);
    registry.forget();
    everybody_pulls_by_tag_and_digest(&berth, &light).await;
    assert_eq!(registry.requests(), [], "a fresh hit asks nothing of upstream");

    registry.stop();
    everybody_pulls_by_tag_and_digest(&berth, images.all()).await;

    berth.restart().await;
    everybody_pulls_by_tag_and_digest(&berth, &light).await;

    let index = berth.data_dir().join("index");
    berth.stop().await;
    fs::remove_dir_all(&index).unwrap();
    berth.start_again().await;
    berth.until_logged("the index was rebuilt").await;
    everybody_pulls_by_tag_and_digest(&berth, &light).await;

    berth.stop().await;
    fill_with_garbage(&index);
    berth.start_again().await;
    berth.until_logged("the index was rebuilt").await;
    everybody_pulls_by_tag_and_digest(&berth, &light).await;
}

/// Pulls everything as clients without a login, with berth's own for the registry; then without the registry.
async fn berth_logs_in_for_everybody(registry: &mut Registry) {
    let images = Images::ready().await;
    let password = file_of(LOGIN.1);
    let credentials = format!("credentials = {{ username = {:?}, password_file = {password:?} }}", LOGIN.0);
    let mut berth = mirror_of(registry).keys(&credentials).start().await;
    // The refusal from which berth learns how to log in; at the same time several could learn it.
    let single = images.image("single");
    berth.head(&format!("/v2/{}/manifests/{}", single.repository, single.tag)).await.expect(200);
    assert_eq!(registry.requests()[0].status, 401);
    everybody_pulls(&berth, images.all(), By::Tag).await;
    assert_asked_once(registry, images.all());

    registry.stop();
    berth.restart().await;
    everybody_pulls(&berth, &without_heavy(images), By::Tag).await;
    let basic = BASE64_STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let token = "eyJ"; // how every JWT begins
    for secret in [LOGIN.1, &*basic, token] {
        assert!(!berth.logs_contain(secret), "`{secret}` is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_basic_authentication_is_asked_with_berths_login() {
    let (user, password) = LOGIN;
    berth_logs_in_for_everybody(&mut Registry::start(Auth::Basic { user, password }).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_token_authentication_gives_one_token_for_each_repository() {
    let mut registry = Registry::start(Auth::Token(TokenServer::start(Some(LOGIN)).await)).await;
    berth_logs_in_for_everybody(&mut registry).await;
    let scope = |image: &Image| (format!("repository:{}:pull", image.repository), 1);
    let expected: BTreeMap<_, _> = Images::ready().await.all().iter().map(scope).collect();
    assert_eq!(registry.token_server().issued(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn berth_and_its_upstream_speak_tls_with_certificates_of_private_authorities() {
    let images = without_heavy(Images::ready().await);
    let registry = Registry::start_tls().await;
    let trusted = format!("ca = [{:?}]", registry.ca().unwrap());
    let own = Certificate::new();
    let berth = mirror_of(&registry).keys(&trusted).tls(&own).start().await;
    everybody_pulls(&berth, &images, By::Tag).await;
    assert_asked_once(&registry, &images);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_that_pull_a_cold_image_at_once_share_one_transfer() {
    let image = Images::ready().await.image("big");
    let registry = Registry::start(Auth::Anonymous).await;
    let berth = mirror_of(&registry).start().await;
    // Not more than two engines run at a time, so others read along.
    let layer = &image.manifests[0].layers[0].digest;
    let readers = together(2, |_| {
        let ask = berth.get(&format!("/v2/{}/blobs/{layer}", image.repository));
        async { ask.await.digest().to_string() }
    });
    let (read, ()) = tokio::join!(readers, everybody_pulls(&berth, std::slice::from_ref(image), By::Tag));
    assert!(read.iter().all(|digest| digest == layer));
    assert_asked_once(&registry, std::slice::from_ref(image));
}

/// podman, buildah and skopeo name the other registry in the path, containerd in `ns=`; the Docker Engine 20.10
/// has no way to.
#[tokio::test(flavor = "multi_thread")]
async fn one_berth_serves_several_registries_without_mixing_them_up() {
    let images = Images::ready().await;
    let mut hub = Registry::start(Auth::Anonymous).await;
    let mut other = Registry::start(Auth::Anonymous).await;
    let ours = [images.image("single").clone(), images.image("deep").clone()];
    // The same names with other content.
    let [single, deep] = &ours;
    let theirs = [
        images.image("schema2").named(&single.repository, &single.tag).of_registry("ghcr.test"),
        images.image("multi").named(&deep.repository, &deep.tag).of_registry("ghcr.test"),
    ];
    for image in &theirs {
        other.push(images, image).await;
    }
    other.forget();
    let berth = mirror_of(&hub).registry("ghcr.test").endpoint_url(&other.url()).start().await;
    everybody_pulls(&berth, &[&ours[..], &theirs].concat(), By::Tag).await;
    assert_asked_once(&hub, &ours);
    assert_asked_once(&other, &theirs);
    hub.stop();
    other.stop();
    everybody_pulls_by_tag_and_digest(&berth, &[&ours[..], &theirs].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_upstream_is_seen_after_check_after_and_not_before() {
    let images = Images::ready().await;
    let registry = Registry::start(Auth::Anonymous).await;
    let (old, new) = (images.image("single"), images.image("schema2"));
    let [eager, lazy] = ["eager", "lazy"];
    for tag in [eager, lazy] {
        registry.push(images, &old.named("library/moving", tag)).await;
    }
    let rules = "[[tags]]\nmatch = \"docker.io/library/moving:eager\"\ncheck_after = \"1s\"\n\
                 [[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"1h\"";
    let berth = Setup::new("docker.io").endpoint_url(&registry.url()).sections(rules).start().await;
    let before = [old.named("library/moving", eager), old.named("library/moving", lazy)];
    everybody_pulls(&berth, &before, By::Tag).await;

    for tag in [eager, lazy] {
        registry.push(images, &new.named("library/moving", tag)).await;
    }
    eventually("berth sees that the tag has moved", async || {
        let reply = berth.head("/v2/library/moving/manifests/eager").await;
        reply.header("docker-content-digest") == Some(&new.digest)
    })
    .await;
    let after = [new.named("library/moving", eager), old.named("library/moving", lazy)];
    everybody_pulls(&berth, &after, By::Tag).await;
    everybody_pulls(&berth, &[&before[..1], &after[..1]].concat(), By::Digest).await;
}
