//! containerd with a `hosts.toml`, asked by `ctr`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::super::eventually;
use super::super::process::{Daemon, run, tool, try_run, write};
use super::super::real_images::{By, Image};
use super::{Haul, Mirror, UNREACHABLE, apart};

/// Pulls through the mirror, with the registries themselves out of reach.
pub(super) async fn pull(state: &Path, mirror: &Mirror, images: &[&Image], by: By) -> Result<Haul, String> {
    let ca = mirror.ca.as_ref().map_or_else(String::new, |ca| format!("ca = {ca:?}\n"));
    let table = format!(
        "server = \"http://{UNREACHABLE}\"\n[host.\"{}://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{ca}",
        mirror.scheme(),
        mirror.address
    );
    let registries: BTreeSet<_> = images.iter().map(|image| &*image.registry).collect();
    pull_from(state, &hosts(state, registries, &table), images, by).await
}

/// Pulls with this `hosts.toml` for every registry.
pub(super) async fn pull_with(
    state: &Path,
    hosts_toml: &str,
    images: &[&Image],
    by: By,
) -> Result<Haul, String> {
    pull_from(state, &hosts(state, ["_default"], hosts_toml), images, by).await
}

/// Runs a script with a containerd beside it.
pub(super) async fn beside(state: &Path, script: &str) -> Result<String, String> {
    let _daemon = start(state).await;
    let mut command = apart(script, &["/etc/containerd"]);
    command.env("CONTAINERD_ADDRESS", state.join("socket")).env("CONTAINERD_SNAPSHOTTER", "native");
    try_run(&mut command).await
}

/// Pulls and unpacks container images, and fetches what is something else.
async fn pull_from(state: &Path, hosts: &Path, images: &[&Image], by: By) -> Result<Haul, String> {
    let _daemon = start(state).await;
    let mut required = BTreeSet::new();
    for image in images {
        let mut command = ctr(state);
        match image.native() {
            Some(native) => {
                command.args(["images", "pull", "--snapshotter", "native"]);
                required.extend(native.packed());
                required.insert(image.digest.clone());
            }
            None => {
                command.args(["content", "fetch", "--all-platforms"]);
                required.extend(image.everything());
            }
        }
        try_run(command.arg("--hosts-dir").arg(hosts).arg(image.reference(by))).await?;
    }
    let listed = run(ctr(state).args(["images", "list"])).await;
    let digest = |image: &&Image| {
        let reference = image.reference(by);
        let line = listed.lines().find(|line| line.starts_with(&format!("{reference} ")))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    };
    let digests = images.iter().map(|image| Some(digest(image).expect("a pulled image is listed"))).collect();
    Ok(Haul {
        folder: state.join("root/io.containerd.content.v1.content/blobs"),
        required,
        exact: true,
        digests,
    })
}

/// Writes a folder for `--hosts-dir` in which each of these names has this `hosts.toml`.
fn hosts<'a>(state: &Path, names: impl IntoIterator<Item = &'a str>, table: &str) -> PathBuf {
    let hosts = state.join("hosts");
    for name in names {
        let folder = hosts.join(name);
        fs::create_dir_all(&folder).expect("the state is writable");
        write(&folder.join("hosts.toml"), table);
    }
    hosts
}

async fn start(state: &Path) -> Daemon {
    let configuration = format!(
        "version = 2\nroot = {root:?}\nstate = {run:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n",
        root = state.join("root"),
        run = state.join("run"),
        socket = state.join("socket"),
        ttrpc = state.join("ttrpc"),
    );
    write(&state.join("config.toml"), configuration);
    let mut command = tool("containerd");
    command.arg("--config").arg(state.join("config.toml"));
    let mut daemon = Daemon::spawn(command, &state.join("log"));
    eventually("containerd to answer", async || {
        assert!(!daemon.has_ended(), "containerd does not start: {}", daemon.log());
        try_run(ctr(state).arg("version")).await.is_ok()
    })
    .await;
    daemon
}

fn ctr(state: &Path) -> Command {
    let mut command = tool("ctr");
    command.arg("--address").arg(state.join("socket"));
    command
}
