//! Varnish: content in memory, the shared memory log where its documentation wants it, and nobody who reads it.

use std::process::Command;

use super::{Kind, Server, free_address, run};
use crate::scene::Scene;

/// A memory file system, so that the log is never written to a disk.
const MEMORY: &str = "/dev/shm";

pub(super) fn start(scene: &Scene) -> Server {
    let folder = tempfile::tempdir_in(MEMORY).unwrap();
    let address = free_address();
    let mut command = Command::new("varnishd");
    command
        // Without a second user: the folder is its own anyway.
        .args(["-F", "-j", "none", "-s", "malloc,2g"])
        .args(["-a", &address.to_string(), "-b", &scene.upstream.address().to_string()])
        // Upstream says nothing of how long content is fresh, and a run is longer than the default.
        .args(["-p", "default_ttl=86400", "-n"])
        .arg(folder.path().join("varnish"));
    run(Kind::Varnish, command, address, folder)
}
