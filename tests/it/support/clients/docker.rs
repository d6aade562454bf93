//! The Docker Engine with a registry mirror.
//!
//! It asks Docker Hub after any error of the mirror, so in its mount namespace `/etc/hosts` says that Docker
//! Hub is this machine, where nobody listens on port 443. The engine does not verify TLS on loopback, whatever
//! certificates it is given: over TLS it proves the bytes, not the certificate.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tokio::process::Command;

use super::super::eventually;
use super::super::process::{Daemon, run, tool, try_run, write};
use super::super::real_images::{By, Image};
use super::{Haul, Mirror, apart};

const HOSTS: &str = "127.0.0.1 localhost registry-1.docker.io auth.docker.io index.docker.io\n";

/// Pulls the images and saves them again as archives, which are unpacked for the comparison.
pub(super) async fn pull(state: &Path, mirror: &Mirror, images: &[&Image], by: By) -> Result<Haul, String> {
    let flag = format!("--registry-mirror={}://{}", mirror.scheme(), mirror.address);
    let _daemon = start(state, "{}", &[&flag]).await;
    let folder = state.join("saved");
    let mut required = BTreeSet::new();
    let mut digests = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let reference = image.path(by);
        try_run(docker(state).args(["pull", "--quiet", &reference])).await?;
        let described =
            run(docker(state).args(["image", "inspect", "--format={{json .RepoDigests}}", &reference])).await;
        let described: Vec<String> = serde_json::from_str(&described).expect("docker prints JSON");
        let [digest] = &described[..] else { panic!("one digest was expected: {described:?}") };
        digests.push(digest.rsplit('@').next().map(str::to_owned));
        let saved = folder.join(number.to_string());
        fs::create_dir_all(&saved).expect("the state is writable");
        let archive = state.join("archive.tar");
        run(docker(state).args(["save", &reference, "--output"]).arg(&archive)).await;
        run(tool("tar").arg("-xf").arg(&archive).arg("-C").arg(&saved)).await;
        required.extend(image.native().expect("only container images are pulled").unpacked());
    }
    Ok(Haul { folder, required, exact: false, digests })
}

/// Runs a script with an engine beside it.
pub(super) async fn beside(state: &Path, daemon_json: &str, script: &str) -> Result<String, String> {
    let daemon = start(state, daemon_json, &[]).await;
    let mut command = apart(script, &[]);
    command.env("DOCKER_HOST", socket(state)).env("HOME", state);
    command.env("DAEMON_JSON", state.join("daemon.json")).env("DOCKERD", daemon.pid().to_string());
    try_run(&mut command).await
}

async fn start(state: &Path, daemon_json: &str, flags: &[&str]) -> Daemon {
    write(&state.join("hosts"), HOSTS);
    write(&state.join("resolv.conf"), "");
    write(&state.join("daemon.json"), daemon_json);
    let mut command = tool("unshare");
    // Were there a containerd of the machine's own, dockerd would use it.
    let bind = "mount --bind hosts /etc/hosts; mount --bind resolv.conf /etc/resolv.conf; \
                mkdir -p /run/containerd; mount -t tmpfs none /run/containerd; exec \"$@\"";
    command.current_dir(state).args(["--mount", "sh", "-ec", bind, "sh"]);
    command.arg(tool("dockerd").as_std().get_program());
    for (flag, file) in [
        ("--config-file", "daemon.json"),
        ("--data-root", "data"),
        ("--exec-root", "exec"),
        ("--pidfile", "pid"),
    ] {
        command.arg(flag).arg(state.join(file));
    }
    command.arg(format!("--host={}", socket(state)));
    command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]);
    command.args(flags);
    let mut daemon = Daemon::spawn(command, &state.join("log"));
    eventually("the Docker Engine to answer", async || {
        assert!(!daemon.has_ended(), "dockerd does not start: {}", daemon.log());
        try_run(docker(state).arg("version")).await.is_ok()
    })
    .await;
    daemon
}

fn docker(state: &Path) -> Command {
    let mut command = tool("docker");
    command.arg(format!("--host={}", socket(state))).env("HOME", state);
    command
}

fn socket(state: &Path) -> String {
    format!("unix://{}", state.join("socket").display())
}
