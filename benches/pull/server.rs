//! The servers that are compared, each as its own documentation would set it up for this work, without access
//! logs, in a new folder, on loopback.

use std::any::Any;
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::runtime::Runtime;

use crate::support::process::{Daemon, free_port, tool, write};
use crate::support::{Berth, Image, Upstream};

/// The repository that everything is in.
pub(crate) const REPOSITORY: &str = "library/bench";

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Berth,
    /// nginx as a cache: `proxy_cache`, one request at a time to upstream for each key.
    NginxCache,
    /// nginx with files that are there already.
    NginxStatic,
    /// Debian's docker-registry as a pull-through cache.
    Distribution,
}

/// A running server. It ends, and its folder goes, when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
    _running: Box<dyn Any>,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::NginxCache => "nginx, proxy_cache_lock",
            Self::NginxStatic => "nginx, static files",
            Self::Distribution => "distribution 2.8, proxy",
        }
    }

    /// Starts one that knows nothing yet; static files are those of `image`.
    pub(crate) fn start(self, runtime: &Runtime, upstream: &Upstream, image: &Image) -> Server {
        let _within = runtime.enter();
        match self {
            Self::Berth => {
                let setup = Berth::with("docker.io", upstream).http("access_log = false");
                let berth = runtime.block_on(setup.start());
                Server { address: berth.address(), pid: berth.pid(), _running: Box::new(berth) }
            }
            Self::NginxCache => nginx(&cache_location(upstream), |_| {}),
            Self::NginxStatic => nginx("location / { root root; }", |folder| lay_out(folder, image)),
            Self::Distribution => distribution(upstream),
        }
    }
}

fn cache_location(upstream: &Upstream) -> String {
    format!(
        "location / {{ proxy_pass {}; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_cache blobs; \
         proxy_cache_lock on; proxy_cache_lock_timeout 1m; proxy_cache_lock_age 1m; proxy_cache_valid 200 1d; }}",
        upstream.url()
    )
}

fn nginx(location: &str, prepare: impl FnOnce(&Path)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let address = free_address();
    let mut configuration =
        "user root; worker_processes auto; daemon off; pid pid; events { worker_connections 1024; }\n\
         http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;\n\
         proxy_cache_path cache levels=1:2 keys_zone=blobs:10m inactive=1d use_temp_path=off;\n"
            .to_owned();
    for what in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(configuration, "{what}_temp_path {what};");
    }
    let _ = writeln!(configuration, "server {{ listen {address}; {location} }} }}");
    write(&folder.path().join("nginx.conf"), configuration);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path()).args(["-e", "errors", "-c", "nginx.conf"]);
    wait_for(command, address, folder)
}

/// As nginx looks for them: a file for each path.
fn lay_out(folder: &Path, image: &Image) {
    let blobs = image.blobs.iter().map(|blob| (blob.path(REPOSITORY), &blob.content));
    for (path, content) in blobs.chain([(image.path(REPOSITORY), &image.manifest)]) {
        let file = folder.join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        write(&file, content);
    }
}

fn distribution(upstream: &Upstream) -> Server {
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
        "proxy": { "remoteurl": upstream.url() },
    });
    let file = folder.path().join("registry.yml");
    write(&file, configuration.to_string());
    let mut command = tool("docker-registry");
    command.arg("serve").arg(file);
    wait_for(command, address, folder)
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn wait_for(command: Command, address: SocketAddr, folder: TempDir) -> Server {
    let mut daemon = Daemon::spawn(command, &folder.path().join("log"));
    while TcpStream::connect(address).is_err() {
        assert!(!daemon.has_ended(), "a server does not start: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    // In this order: the server ends before its folder goes.
    Server { address, pid: daemon.pid(), _running: Box::new((daemon, folder)) }
}
