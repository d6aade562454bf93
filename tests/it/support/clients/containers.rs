//! podman and buildah, told of the mirror by `registries.conf`; their command lines are alike where needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tokio::process::Command;

use super::super::process::{run, try_run, write};
use super::super::real_images::{By, Image};
use super::{Haul, Mirror, UNREACHABLE, apart, isolated};

/// What these tools share among all their users on a machine: the blob-info cache, locks, run-time state.
const SHARED: [&str; 5] = ["/var/lib/containers", "/run/containers", "/run/libpod", "/run/crun", "/dev/shm"];

/// Pulls the images into new storage; their layers are exported again as they were before they were packed.
pub(super) async fn pull(
    program: &str,
    state: &Path,
    mirror: &Mirror,
    images: &[&Image],
    by: By,
) -> Result<Haul, String> {
    configure(state, mirror, images);
    let folder = state.join("haul");
    fs::create_dir(&folder).expect("the state is writable");
    let mut required = BTreeSet::new();
    for (number, image) in images.iter().enumerate() {
        let reference = image.reference(by);
        let mut command = invoke(program, state);
        command.args(["pull", "--quiet", "--signature-policy"]).arg(state.join("policy.json"));
        if let Some(folder) = mirror.ca_folder(state) {
            command.arg(format!("--cert-dir={}", folder.display()));
        }
        try_run(command.arg(&reference)).await?;
        let mut export = invoke(program, state);
        export.args(["push", "--quiet", "--signature-policy"]).arg(state.join("policy.json"));
        if program == "buildah" {
            export.arg("--disable-compression"); // podman's default
        }
        run(export.arg(&reference).arg(format!("dir:{}", folder.join(number.to_string()).display()))).await;
        let native = image.native().expect("only container images are pulled");
        required.extend(native.unpacked());
        required.extend([image.digest.clone(), native.digest.clone()]);
    }
    // Here are the manifests and configs as they came over the wire.
    fs::rename(state.join("root/vfs-images"), folder.join("images")).expect("the storage has this layout");
    Ok(Haul { folder, required, exact: false, digests: vec![None; images.len()] })
}

/// Runs a script with this drop-in of `registries.conf`; `$STORAGE` has what podman needs for storage of its own.
pub(super) async fn with_drop_in(state: &Path, drop_in: &str, script: &str) -> Result<String, String> {
    write(&state.join("berth.conf"), drop_in);
    let prepare = "cp -a /etc/containers etc\nmount --bind etc /etc/containers\n\
                   cp berth.conf /etc/containers/registries.conf.d/berth.conf\n";
    let mut command = apart(&format!("{prepare}{script}"), &SHARED);
    command.current_dir(state).env("HOME", state).env("TMPDIR", state);
    command
        .env("STORAGE", format!("--root={0}/root --runroot={0}/run --storage-driver=vfs", state.display()));
    try_run(&mut command).await
}

fn configure(state: &Path, mirror: &Mirror, images: &[&Image]) {
    let names: BTreeSet<_> = images.iter().map(|image| &image.registry).collect();
    let table = |name: &&String| {
        format!(
            "[[registry]]\nprefix = {name:?}\nlocation = {UNREACHABLE:?}\ninsecure = true\n\
             [[registry.mirror]]\nlocation = {:?}\ninsecure = {}\n",
            mirror.location(name),
            mirror.ca.is_none()
        )
    };
    write(&state.join("registries.conf"), names.iter().map(table).collect::<String>());
    write(&state.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#);
    write(&state.join("empty.conf"), "");
}

fn invoke(program: &str, state: &Path) -> Command {
    let mut command = isolated(program, &SHARED);
    command.arg("--root").arg(state.join("root")).arg("--runroot").arg(state.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command.env("CONTAINERS_REGISTRIES_CONF", state.join("registries.conf"));
    command.env("CONTAINERS_CONF", state.join("empty.conf")).env("HOME", state).env("TMPDIR", state);
    command
}
