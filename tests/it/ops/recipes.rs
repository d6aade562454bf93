//! README's recipes for clients (issue 11, item 9; D1), taken as they are printed: with the clients that are here they are
//! run, and only berth's port is another. What is for other clients is held to what these are known to read.

use std::fs;
use std::path::Path;

use toml::Table;

use crate::support::clients::{apart, beside_containerd, beside_docker, with_containers_drop_in};
use crate::support::process::{run, tool, write};
use crate::support::real_images::{Image, Images};
use crate::support::registry::{Auth, Registry};
use crate::support::{Berth, Setup, Upstream, eventually};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../../../README.md");
const HOSTS: &str = include_str!("../../../config/hosts.toml");
const HOSTS_WITH_REFERRERS: &str = include_str!("../../../config/hosts-referrers.toml");
/// Where README has berth.
const PRINTED: &str = "127.0.0.1:5000";
/// Where it has berth for a node of kind, whose own address the above is.
const PRINTED_FOR_KIND: &str = "172.18.0.1";

/// The text of a section of README.
fn section(name: &str) -> &'static str {
    let heading = format!("\n### {name}\n");
    let (_, rest) = README.split_once(&heading).unwrap_or_else(|| panic!("README has no section {name}"));
    let end = ["\n## ", "\n### "].iter().filter_map(|heading| rest.find(heading)).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// What a section prints in this language, block by block.
fn blocks(name: &str, language: &str) -> Vec<&'static str> {
    let blocks = section(name).split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n')).filter(|(of, _)| *of == language);
    blocks.map(|(_, text)| text).collect()
}

/// The same where there is one.
fn block(name: &str, language: &str) -> &'static str {
    let blocks = blocks(name, language);
    assert_eq!(blocks.len(), 1, "{name}: {blocks:?}");
    blocks[0]
}

/// The line of a block that begins so.
fn line(block: &'static str, beginning: &str) -> &'static str {
    block.lines().find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("{beginning} in {block}"))
}

fn toml(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The same for this berth.
fn at(berth: &Berth, text: &str) -> String {
    assert!(text.contains(PRINTED), "{text}");
    text.replace(PRINTED, &berth.address().to_string())
}

/// The images of README's examples, in one registry, which a berth has for all registries that they name.
async fn examples() -> (Registry, Berth, [Image; 2]) {
    let images = Images::ready().await;
    let registry = Registry::start(Auth::Anonymous).await;
    let hub = images.image("single").named("library/alpine", "3");
    let quay = images.image("deep").named("prometheus/busybox", "latest").of_registry("quay.io");
    for image in [&hub, &quay] {
        registry.push(images, image).await;
    }
    registry.forget();
    let berth = Setup::new("docker.io").endpoint_url(&registry.url());
    let berth = berth.registry("quay.io").endpoint_url(&registry.url()).start().await;
    (registry, berth, [hub, quay])
}

/// Berth was asked for all of these, and nobody else.
fn assert_came_through(registry: &Registry, images: &[&Image]) {
    for image in images {
        let config = &image.native().unwrap().config;
        assert_eq!(registry.count("GET", config), 1, "{image:?}");
    }
    assert!(registry.requests().iter().all(|request| request.user_agent.starts_with("berth/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_through_berth_by_what_readme_says() {
    let (registry, berth, [hub, _]) = examples().await;
    let install = block("containerd", "sh");
    let pull = line(blocks("See that it works", "sh")[1], "ctr ");
    let edit =
        format!("sed -i 's/{PRINTED}/{}/' /etc/containerd/certs.d/_default/hosts.toml", berth.address());
    let said = beside_containerd(&format!("{install}{edit}\n{pull}\nctr images list")).await.unwrap();
    assert!(said.contains(&hub.digest), "{said}");
    assert_came_through(&registry, &[&hub]);
}

#[tokio::test]
async fn containerd_takes_the_configuration_of_readme_and_names_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = blocks("containerd", "toml")[..] else { panic!("for 1.x and for 2.x") };
    // 1.6, as it is here.
    let file = folder.path().join("config.toml");
    write(&file, first);
    let dump = run(tool("containerd").arg("--config").arg(&file).args(["config", "dump"])).await;
    let plugins = toml(&dump)["plugins"].clone();
    assert_eq!(
        plugins["io.containerd.grpc.v1.cri"]["registry"]["config_path"].as_str(),
        Some("/etc/containerd/certs.d"),
        "{dump}"
    );
    let second = toml(second);
    assert_eq!(second["version"].as_integer(), Some(3));
    let registry = second["plugins"]["io.containerd.cri.v1.images"]["registry"].as_table().unwrap();
    assert_eq!(registry["config_path"].as_str(), Some("/etc/containerd/certs.d"));
    for table in [registry, plugins["io.containerd.grpc.v1.cri"]["registry"].as_table().unwrap()] {
        let is_set =
            |key: &str| table.get(key).and_then(|value| value.as_table()).is_some_and(|it| !it.is_empty());
        assert!(!is_set("mirrors") && !is_set("configs"), "neither may stand beside config_path");
    }
}

/// D1: `referrers` is a capability since containerd 2.2; before, a file that has it counts for nothing.
#[test]
fn the_file_for_newer_engines_has_referrers_besides_and_the_other_has_not() {
    let (plain, newer) = (toml(HOSTS), toml(HOSTS_WITH_REFERRERS));
    let host = |file: &Table| file["host"][format!("http://{PRINTED}")].as_table().unwrap().clone();
    let capabilities = |file: &Table| {
        let all = host(file)["capabilities"].as_array().unwrap().clone();
        all.iter().map(|it| it.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(capabilities(&plain), ["pull", "resolve"]);
    assert_eq!(capabilities(&newer), ["pull", "resolve", "referrers"]);
    for file in [&plain, &newer] {
        let host = host(file);
        assert_eq!(host["dial_timeout"].as_str(), Some("200ms"));
        assert_eq!((file.len(), host.len()), (1, 2), "no server: the registry itself comes last");
    }
    let docker = section("Docker Engine");
    assert!(docker.contains("config/hosts-referrers.toml /etc/docker/certs.d/_default/hosts.toml"));
}

#[tokio::test]
async fn the_file_for_newer_docker_engines_goes_where_readme_puts_it() {
    let install = line(blocks("Docker Engine", "sh")[0], "install ");
    let script = format!("{install}\ncat /etc/docker/certs.d/_default/hosts.toml");
    let there = run(apart(&script, &["/etc/docker"]).current_dir(ROOT)).await;
    assert_eq!(there, HOSTS_WITH_REFERRERS);
}

/// Before its 28, and with its older store, Docker has mirrors for Docker Hub alone; what is of another registry goes by
/// berth's name.
#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_through_berth_by_what_readme_says_until_that_is_undone() {
    let (registry, berth, [hub, quay]) = examples().await;
    let daemon_json = at(&berth, block("Docker Engine", "json"));
    let pull = at(&berth, line(blocks("Docker Engine", "sh")[1], "docker pull"));
    let script = format!(
        "docker pull --quiet alpine:3\n{pull} --quiet\n\
         docker image inspect --format '{{{{.RepoDigests}}}}' alpine:3 {quay}\n\
         docker info --format 'mirrors {{{{.RegistryConfig.Mirrors}}}}'\n\
         echo '{{ \"registry-mirrors\": [] }}' >\"$DAEMON_JSON\"; kill -HUP $DOCKERD\n\
         until docker info --format 'mirrors {{{{.RegistryConfig.Mirrors}}}}' | grep -Fx 'mirrors []'; do :; done",
        quay = pull.trim_start_matches("docker pull "),
    );
    let said = beside_docker(&daemon_json, &script).await.unwrap();
    assert!(said.contains(&hub.digest) && said.contains(&quay.digest), "{said}");
    assert!(said.contains(&format!("mirrors [http://{}/]", berth.address())), "{said}");
    assert_came_through(&registry, &[&hub, &quay]);
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_buildah_and_skopeo_pull_through_berth_by_the_drop_in_of_readme() {
    let (registry, berth, [hub, quay]) = examples().await;
    let drop_in = at(&berth, block("Podman, Buildah, skopeo, CRI-O", "toml"));
    let (hub_name, quay_name) = ("docker.io/library/alpine:3", "quay.io/prometheus/busybox:latest");
    let script = format!(
        "for name in {hub_name} {quay_name}; do\n\
             podman $STORAGE pull --quiet $name\n\
             podman $STORAGE image inspect --format '{{{{.Digest}}}}' $name\n\
             skopeo inspect --no-tags --format '{{{{.Digest}}}}' docker://$name\n\
             buildah $STORAGE pull --quiet --policy always $name\n\
         done"
    );
    let said = with_containers_drop_in(&drop_in, &script).await.unwrap();
    for image in [&hub, &quay] {
        assert_eq!(said.lines().filter(|line| *line == image.digest).count(), 2, "{said}");
    }
    assert_came_through(&registry, &[&hub, &quay]);
    // A prefix that is longer would be asked of berth by another name.
    for table in toml(&drop_in)["registry"].as_array().unwrap() {
        let (prefix, location) = (&table["prefix"], &table["location"]);
        assert_eq!(prefix, location);
        assert_eq!(table.get("insecure"), None, "the registry itself speaks TLS");
        let mirror = table["mirror"][0].as_table().unwrap();
        assert_eq!(
            mirror["location"].as_str().unwrap(),
            at(&berth, &format!("{PRINTED}/{}", prefix.as_str().unwrap()))
        );
    }
}

#[test]
fn what_k3s_rke2_kind_and_buildkit_are_told_is_what_they_read() {
    assert_eq!(
        block("k3s and RKE2", "yaml"),
        "mirrors:\n  \"*\":\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n"
    );
    for name in
        ["/etc/rancher/k3s/registries.yaml", "/etc/rancher/rke2/registries.yaml", "systemctl restart k3s"]
    {
        assert!(section("k3s and RKE2").contains(name), "{name}");
    }
    let cluster = block("kind", "yaml");
    let (_, patch) = cluster.split_once("  - |-\n").unwrap();
    assert!(
        cluster.starts_with("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\ncontainerdConfigPatches:\n")
    );
    assert_eq!(
        toml(patch)["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"].as_str(),
        Some("/etc/containerd/certs.d")
    );
    let buildkit = toml(block("BuildKit", "toml"));
    let registries = buildkit["registry"].as_table().unwrap();
    assert_eq!(registries["docker.io"]["mirrors"].as_array().unwrap()[0].as_str(), Some(PRINTED));
    assert_eq!(
        registries[PRINTED]["http"].as_bool(),
        Some(true),
        "the scheme is said of the mirror, not of the registry"
    );
}

/// Its `docker` and `kind` are played: a node is a folder.
#[tokio::test]
async fn every_node_of_kind_is_told_an_address_that_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("kind"), "#!/bin/sh\n[ \"$*\" = 'get nodes' ] && echo kind-control-plane kind-worker\n");
    write(
        &at("docker"),
        "#!/bin/sh\nshift; [ \"$1\" = -i ] && shift\nnode=$1; shift\n\
         case $1 in mkdir) mkdir -p \"$NODES/$node$3\";; cp) cat >\"$NODES/$node$3\";; esac\n",
    );
    let mut command = apart(&format!("chmod +x $NODES/*\n{}", block("kind", "sh")), &[]);
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    run(command.current_dir(ROOT).env("NODES", folder.path()).env("PATH", path)).await;
    for node in ["kind-control-plane", "kind-worker"] {
        let there = fs::read_to_string(at(node).join("etc/containerd/certs.d/_default/hosts.toml")).unwrap();
        assert_eq!(there, HOSTS.replace("127.0.0.1", PRINTED_FOR_KIND), "{node}");
    }
    let listens = section("kind").contains("`[http] listen = [\"127.0.0.1:5000\", \"172.18.0.1:5000\"]`");
    assert!(listens, "where they are sent berth must listen");
}

/// README says how one sees it: `Cache-Status` and the log.
#[tokio::test]
async fn a_miss_and_then_a_hit_are_seen_as_readme_says() {
    let upstream = Upstream::start().await;
    upstream.image("library/alpine", "3", &crate::support::Image::of(1, &[1000]));
    let berth = Berth::with("docker.io", &upstream).start().await;
    let look = at(&berth, blocks("See that it works", "sh")[0]);
    for expected in ["berth; fwd=miss; stored", "berth; hit"] {
        let seen = run(&mut apart(&look, &[])).await;
        assert_eq!(seen.trim().to_ascii_lowercase(), format!("cache-status: {expected}"));
        assert!(section("See that it works").contains(&format!("`{expected}`")));
    }
    let is_said = |line: &String| {
        let has = |part: &str| line.contains(part);
        let of = has("\"registry\":\"docker.io\"") && has("\"repository\":\"library/alpine\"");
        has("\"message\":\"request\"")
            && of
            && has("\"client\":\"127.0.0.1\"")
            && has("\"cache\":\"berth; hit\"")
    };
    eventually("the log says so", async || berth.logs().iter().any(is_said)).await;
}

/// Helm, Flux, Argo CD, Trivy, Renovate, cosign, kaniko and others put berth in front of the name, Homebrew in the place of
/// the host.
#[tokio::test]
async fn images_are_had_by_berths_name_in_every_form_that_readme_prints() {
    let (hub, github) = (Upstream::start().await, Upstream::start().await);
    let berth = Berth::with("docker.io", &hub).and("ghcr.io", &github).start().await;
    let image = crate::support::Image::of(2, &[500]);
    let mut forms = 0;
    for row in
        section("By name").lines().filter(|line| line.starts_with("| ") && line.contains(":5000/ghcr.io"))
    {
        for (_, rest) in row.match_indices(":5000/").map(|(at, it)| row.split_at(at + it.len())) {
            let name = rest.split(['`', ' ', '"', ',', '@']).next().unwrap().trim_start_matches("ghcr.io");
            let name = name.split(':').next().unwrap().trim_matches('/');
            let (path, repository) = match name {
                "" => ("/ghcr.io/v2/homebrew/core/gettext".to_owned(), "homebrew/core/gettext"),
                name => (format!("/v2/ghcr.io/{name}"), name),
            };
            github.image(repository, "1", &image);
            let reply = berth.get(&format!("{path}/manifests/1")).await;
            assert_eq!(reply.expect(200), &image.manifest, "{row}");
            forms += 1;
        }
    }
    assert!(forms >= 9, "{forms}");
    assert_eq!(hub.requests().len(), 0);
}

/// `allow` is about every address, that of the machine itself included, and README's example lets it in.
#[tokio::test]
async fn the_example_for_a_site_lets_the_machine_itself_in() {
    let (_, example) = README.split_once("For a site:\n\n```toml\n").unwrap();
    let example = toml(example.split("```").next().unwrap());
    let allow = example["http"]["allow"].as_array().unwrap();
    assert!(allow.iter().any(|network| network.as_str() == Some("127.0.0.0/8")), "{allow:?}");
    let upstream = Upstream::start().await;
    let all: Vec<_> = allow.iter().map(|network| network.as_str().unwrap()).collect();
    for (allow, status) in [(&["10.0.0.0/8"][..], 403), (&all, 200)] {
        let berth = Berth::with("docker.io", &upstream).http(&format!("allow = {allow:?}")).start().await;
        assert_eq!(berth.get("/v2/").await.status, status, "{allow:?}");
    }
}

#[test]
fn every_file_that_readme_names_is_there() {
    let links = README.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
        assert!(Path::new(ROOT).join(link).exists(), "{link}");
    }
    // Headings, as their anchors are made.
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-'].contains(c));
        format!("#{}", kept.collect::<String>().trim().to_lowercase().replace(' ', "-"))
    };
    let headings: Vec<_> = README.lines().filter(|line| line.starts_with("##")).map(anchor).collect();
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(
            !link.starts_with('#') || headings.iter().any(|heading| heading == link),
            "{link} in {headings:?}"
        );
    }
}
