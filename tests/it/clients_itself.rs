//! The harness of real registries and clients, proven without berth: a registry itself stands for the mirror.
//!
//! What berth's own tests rely on is shown here: every client pulls every image it can read, notices an
//! unreachable mirror, and is caught when it brings home something else than what was pushed.

use crate::support::clients::{Client, Mirror};
use crate::support::get;
use crate::support::process::{tool, try_run};
use crate::support::real_images::{By, Images};
use crate::support::registry::{Auth, Registry};
use crate::support::token_server::TokenServer;

const LOGIN: (&str, &str) = ("robot$pull", "open sesame");

async fn pulls_everything(client: Client) {
    let images = Images::ready().await;
    let registry = Registry::start(Auth::Anonymous).await;
    let mirror = Mirror::plain(registry.address());
    for by in [By::Tag, By::Digest] {
        client.pull(&mirror, images.all(), by).await;
    }
}

#[tokio::test]
async fn skopeo_pulls_everything() {
    pulls_everything(Client::Skopeo).await;
    pulls_everything(Client::SkopeoAll).await;
}

#[tokio::test]
async fn podman_pulls_everything() {
    pulls_everything(Client::Podman).await;
}

#[tokio::test]
async fn buildah_pulls_everything() {
    pulls_everything(Client::Buildah).await;
}

#[tokio::test]
async fn containerd_pulls_everything() {
    pulls_everything(Client::Containerd).await;
}

#[tokio::test]
async fn docker_pulls_everything() {
    pulls_everything(Client::Docker).await;
}

#[tokio::test]
async fn every_client_pulls_over_tls() {
    let images = Images::ready().await;
    let registry = Registry::start_tls().await;
    let mirror = Mirror { address: registry.address(), ca: registry.ca() };
    for client in Client::ALL {
        client.pull(&mirror, [images.image("multi")], By::Tag).await;
    }
}

#[tokio::test]
async fn images_of_another_registry_are_asked_for_below_its_name_or_with_ns() {
    let images = Images::ready().await;
    let image = images.image("deep").named("team/app", "1").of_registry("ghcr.test");
    let registry = Registry::start(Auth::Anonymous).await;
    registry.push(images, &image).await;
    registry.push(images, &image.named("ghcr.test/team/app", "1")).await;
    registry.forget();
    for client in Client::ALL.into_iter().filter(|client| client.can_pull(&image)) {
        client.pull(&Mirror::plain(registry.address()), [&image], By::Tag).await;
    }
    let requests = registry.requests();
    let manifests: Vec<_> = requests.iter().filter(|request| request.path.contains("/manifests/")).collect();
    assert!(!manifests.is_empty());
    for request in manifests {
        let below = request.path.starts_with("/v2/ghcr.test/team/app/");
        assert!(below != (request.query.as_deref() == Some("ns=ghcr.test")), "{request:?}");
    }
}

#[tokio::test]
async fn no_client_finds_another_way_around_a_dead_mirror() {
    let image = Images::ready().await.image("single");
    let mut registry = Registry::start(Auth::Anonymous).await;
    registry.stop();
    for client in Client::ALL {
        let outcome = client.try_pull(&Mirror::plain(registry.address()), [image], By::Tag).await;
        assert!(outcome.is_err_and(|failure| failure.contains("refused")), "{client:?}");
    }
}

#[tokio::test]
async fn a_mirror_with_another_image_under_the_name_is_found_out() {
    let images = Images::ready().await;
    let expected = images.image("single");
    let registry = Registry::start(Auth::Anonymous).await;
    registry.push(images, &images.image("deep").named(&expected.repository, &expected.tag)).await;
    for client in Client::ALL {
        let outcome = client.try_pull(&Mirror::plain(registry.address()), [expected], By::Tag).await;
        assert!(outcome.is_err_and(|failure| failure.starts_with("it ")), "{client:?}");
    }
}

#[tokio::test]
async fn a_registry_counts_and_keeps_address_and_content_over_a_restart() {
    let image = Images::ready().await.image("single");
    let mut registry = Registry::start(Auth::Anonymous).await;
    let mirror = Mirror::plain(registry.address());
    registry.stop();
    registry.start_again().await;
    Client::Containerd.pull(&mirror, [image], By::Tag).await;
    for digest in image.everything() {
        assert_eq!(registry.count("GET", &digest), 1, "{:?}", registry.requests());
    }
    assert!(registry.requests().iter().all(|request| request.query.as_deref() == Some("ns=docker.io")));
    registry.forget();
    assert_eq!(registry.requests(), []);
    Client::Skopeo.pull(&mirror, [image], By::Tag).await;
    assert_eq!(registry.count("GET", "/manifests/1"), 1);
    assert!(registry.requests().iter().all(|request| request.user_agent.starts_with("skopeo")));
    assert!(registry.requests().iter().any(|request| request.status == 200 && request.bytes > 60_000));
}

#[tokio::test]
async fn a_registry_with_basic_authentication_refuses_strangers() {
    let images = Images::ready().await;
    let (user, password) = LOGIN;
    let registry = Registry::start(Auth::Basic { user, password }).await;
    registry.push(images, &images.image("single").named("private/single", "1")).await;
    inspect(&registry, "private/single:1", None).await.unwrap_err();
    inspect(&registry, "private/single:1", Some((user, "guess"))).await.unwrap_err();
    inspect(&registry, "private/single:1", Some(LOGIN)).await.unwrap();
}

#[tokio::test]
async fn a_registry_with_token_authentication_asks_for_tokens_that_are_counted() {
    let registry = Registry::start(Auth::Token(TokenServer::start(None).await)).await;
    inspect(&registry, "library/single:1", None).await.unwrap();
    assert_eq!(registry.token_server().issued(), [("repository:library/single:pull".to_owned(), 1)].into());
}

#[tokio::test]
async fn a_token_server_with_a_login_grants_strangers_nothing() {
    let images = Images::ready().await;
    let registry = Registry::start(Auth::Token(TokenServer::start(Some(LOGIN)).await)).await;
    registry.push(images, &images.image("single").named("private/single", "1")).await;
    inspect(&registry, "private/single:1", None).await.unwrap_err();
    assert_eq!(registry.token_server().refused(), 0);
    inspect(&registry, "private/single:1", Some((LOGIN.0, "guess"))).await.unwrap_err();
    assert_eq!(registry.token_server().refused(), 1);
    inspect(&registry, "private/single:1", Some(LOGIN)).await.unwrap();
}

#[tokio::test]
async fn referrers_are_listed_under_the_fallback_tag() {
    let images = Images::ready().await;
    let (image, referrers) = (images.image("single"), images.image("referrers"));
    let registry = Registry::start(Auth::Anonymous).await;
    let tag = image.digest.replace(':', "-");
    let url = format!("{}/v2/{}/manifests/{tag}", registry.url(), image.repository);
    let reply = get(url).header("accept", "application/vnd.oci.image.index.v1+json").await;
    assert_eq!(*reply.expect(200), images.bytes(&referrers.digest));
}

async fn inspect(registry: &Registry, path: &str, login: Option<(&str, &str)>) -> Result<String, String> {
    let mut command = tool("skopeo");
    command.args(["inspect", "--raw", "--tls-verify=false"]);
    if let Some((user, password)) = login {
        command.arg(format!("--creds={user}:{password}"));
    }
    try_run(command.arg(format!("docker://{}/{path}", registry.address()))).await
}
