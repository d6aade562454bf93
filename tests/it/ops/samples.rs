//! The files in `config/`, taken as they are shipped: what an operator copies must work.

use std::path::Path;

use crate::support::clients::{Client, Mirror, containerd_pulls_with};
use crate::support::process::{tool, try_run, write};
use crate::support::real_images::{By, Images};
use crate::support::registry::{Auth, Registry};
use crate::support::{Berth, Certificate, Setup, docker_config};

const HOSTS: &str = include_str!("../../../config/hosts.toml");
const GOOGLE: &str = r#"{
    "type": "external_account", "audience": "a", "subject_token_type": "t",
    "token_url": "https://sts.googleapis.com/v1/token", "credential_source": { "file": "/f" }
}"#;
const MINIMAL: &str = include_str!("../../../config/minimal.toml");

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
    for name in ["berth.toml", "minimal.toml", "node.toml", "site.toml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_berth"));
        let said = try_run(command.env_clear().arg("check-config").arg("--config").arg(file)).await;
        let said = said.unwrap_or_else(|complaint| panic!("{name}: {complaint}"));
        assert_eq!(said.lines().next(), Some("the configuration is right"), "{name}");
        assert!(said.lines().any(|line| line == "data_dir /var/lib/berth"), "{name}: {said}");
    }
}

/// What a registry's example says, with its files in this folder.
fn example(name: &str, folder: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/registries").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("/etc/berth", folder.to_str().unwrap())
}

#[tokio::test]
async fn every_example_of_a_registry_is_right_once_its_files_are_there_and_its_login_can_be_tried() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let certificate = Certificate::new();
    for name in
        ["docker-hub-token", "github-token", "gitlab-token", "nexus-password", "quay-token", "azure-secret"]
    {
        write(&at(name), "hunter2");
    }
    write(&at("registry-password"), "hunter2");
    write(&at("harbor.json"), docker_config(&[("harbor.example.com/team-a", "robot", "hunter2")]));
    write(&at("google-key.json"), GOOGLE);
    write(&at("aws-credentials"), "[images]\naws_access_key_id = A\naws_secret_access_key = S\n");
    for (from, name) in [
        (certificate.ca(), "site-ca.pem"),
        (certificate.cert(), "client.crt"),
        (certificate.key(), "client.key"),
    ] {
        std::fs::copy(from, at(name)).unwrap();
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/registries");
    for example_of in std::fs::read_dir(examples).unwrap() {
        let name = example_of.unwrap().file_name().into_string().unwrap();
        let text = example(&name, folder.path());
        let file = at("berth.toml");
        write(&file, &text);
        let berth = |arguments: &[&str]| {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_berth"));
            // Nothing of this leaves the machine.
            command
                .env_clear()
                .env("HTTPS_PROXY", "http://127.0.0.1:1")
                .args(arguments)
                .arg("--config")
                .arg(&file);
            command
        };
        let said = try_run(&mut berth(&["check-config"])).await;
        let said = said.unwrap_or_else(|complaint| panic!("{name}: {complaint}"));
        assert_eq!(said.lines().next(), Some("the configuration is right"), "{name}");
        // The others ask what the machine is.
        if ["ecr = ", "ecr_public = ", "google = ", "azure", "vault"].iter().any(|cloud| text.contains(cloud))
        {
            continue;
        }
        let registries = text.lines().filter_map(|line| line.strip_prefix("registry = \""));
        let registries: Vec<_> = registries.map(|rest| rest.trim_end_matches('"').to_owned()).collect();
        let names: Vec<_> = registries.iter().map(String::as_str).collect();
        let said = try_run(&mut berth(&[&["login-check"], &names[..]].concat())).await.unwrap_err();
        for registry in names {
            assert!(
                said.lines().any(|line| line.contains(registry) && line.contains("reached")),
                "{registry}: {said}"
            );
        }
        assert!(!said.contains("hunter2"), "{said}");
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

/// README's first lines, with the login that the sample for Docker Hub asks for: the list of tags may be private, and is
/// denied in a way that skopeo goes on from.
#[tokio::test]
async fn skopeo_inspects_an_image_with_the_sample_of_docker_hub() {
    let image = Images::ready().await.image("single");
    let registry = Registry::start(Auth::Basic { user: "example", password: "hunter2" }).await;
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("docker-hub-token"), "hunter2");
    let file =
        example("docker-hub.toml", folder.path()).replace("https://registry-1.docker.io", &registry.url());
    let berth = async |file: &str, data_dir: &str| {
        let data_dir = folder.path().join(data_dir);
        let setup = Setup::new("docker.io").file(file).data_dir(&data_dir);
        let setup = setup.arg(&format!("--data-dir={}", data_dir.display()));
        setup.arg("--listen=127.0.0.1:0").arg("--admin-listen=127.0.0.1:0").start().await
    };
    let readme = include_str!("../../../README.md");
    let line = "skopeo inspect --tls-verify=false docker://127.0.0.1:5000/library/alpine:3";
    assert!(readme.lines().any(|it| it == line), "README says it otherwise");
    let inspect = |berth: &Berth| {
        let mut command = tool("skopeo");
        let of = format!("docker://{}/{}:{}", berth.address(), image.repository, image.tag);
        command.args(["inspect", "--tls-verify=false", &of]);
        command
    };
    let said = try_run(&mut inspect(&berth(&file, "open").await)).await;
    let said = said.unwrap_or_else(|complaint| panic!("{complaint}"));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["RepoTags"], &said["Os"]), (&serde_json::Value::Null, &"linux".into()), "{said}");
    let guarded = format!("{file}\n[http]\nallow = [\"127.0.0.0/8\"]\n");
    let said = try_run(&mut inspect(&berth(&guarded, "guarded").await)).await;
    let said = said.unwrap_or_else(|complaint| panic!("{complaint}"));
    assert!(said.contains(&format!("\"{}\"", image.tag)), "{said}");
}
