//! Debian's docker-registry as a pull-through cache.

use serde_json::json;

use super::{Kind, Server, free_address, run};
use crate::scene::Scene;
use crate::support::process::{tool, write};

pub(super) fn start(scene: &Scene) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let configuration = json!({
        "version": 0.1,
        "log": { "level": "error", "accesslog": { "disabled": true } },
        "storage": {
            "filesystem": { "rootdirectory": folder.path().join("content") },
            "cache": { "blobdescriptor": "inmemory" },
        },
        "http": { "addr": address.to_string(), "secret": "of no use here" },
        "proxy": { "remoteurl": scene.upstream.url() },
    });
    let file = folder.path().join("registry.yml");
    write(&file, configuration.to_string());
    let mut command = tool("docker-registry").into_std();
    command.arg("serve").arg(file);
    run(Kind::Distribution, command, address, folder)
}
