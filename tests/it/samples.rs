//! The files in `config/`, taken as they are shipped: what an operator copies must work.

use std::path::Path;

use crate::support::clients::{Client, Mirror, containerd_pulls_with};
use crate::support::process::try_run;
use crate::support::real_images::{By, Images};
use crate::support::registry::{Auth, Registry};
use crate::support::{Berth, Setup};

const HOSTS: &str = include_str!("../../config/hosts.toml");
const MINIMAL: &str = include_str!("../../config/minimal.toml");

/// A berth with this configuration file, but in a folder and on ports of the test's own.
async fn configured_by(file: &str, data_dir: &Path, upstream: &Registry) -> Berth {
    Setup::new("docker.io")
        .file(file)
        .data_dir(data_dir)
        .arg(&format!("--data-dir={}", data_dir.display()))
        .arg("--listen=127.0.0.1:0")
        .arg("--admin-listen=127.0.0.1:0")
        .arg(&format!("--upstream=docker.io={}", upstream.url()))
        .start()
        .await
}

#[tokio::test]
async fn every_configuration_file_is_right() {
    for name in ["berth.toml", "minimal.toml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_berth"));
        let said = try_run(command.env_clear().arg("check-config").arg("--config").arg(file)).await;
        let said = said.unwrap_or_else(|complaint| panic!("{name}: {complaint}"));
        assert_eq!(said.lines().next(), Some("the configuration is right"), "{name}");
        assert!(said.lines().any(|line| line == "data_dir /var/lib/berth"), "{name}: {said}");
    }
}

#[tokio::test]
async fn the_minimal_file_serves_the_networks_that_it_names() {
    let image = Images::ready().await.image("single");
    let registry = Registry::start(Auth::Anonymous).await;
    let folder = tempfile::tempdir().unwrap();
    let mut berth = configured_by(MINIMAL, &folder.path().join("as-it-is"), &registry).await;
    let refused = berth.get("/v2/").await;
    assert_eq!((refused.status, &*refused.error_code()), (403, "DENIED"), "loopback is not in 10.0.0.0/8");
    berth.stop().await;

    let here = MINIMAL.replace("10.0.0.0/8", "127.0.0.0/8");
    let berth = configured_by(&here, &folder.path().join("for-loopback"), &registry).await;
    Client::Skopeo.pull(&Mirror::plain(berth.address().to_string()), [image], By::Tag).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_asks_berth_for_every_registry_with_the_hosts_file() {
    let images = Images::ready().await;
    let registry = Registry::start(Auth::Anonymous).await;
    let berth = Setup::new("docker.io").endpoint_url(&registry.url());
    let berth = berth.registry("ghcr.test").endpoint_url(&registry.url()).start().await;
    let hosts = HOSTS.replace("127.0.0.1:5000", &berth.address().to_string());
    assert_ne!(hosts, HOSTS);
    let multi = images.image("multi");
    for by in [By::Tag, By::Digest] {
        containerd_pulls_with(&hosts, &[images.image("single"), &multi.of_registry("ghcr.test")], by).await;
    }
}
