//! The servers that are compared, each as its own documentation would set it up for this work, without access
//! logs, in a new folder, on loopback, on the servers' core.

mod distribution;
mod nginx;
mod trafficserver;
mod varnish;

use std::any::Any;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Bench;
use crate::scene::Scene;
use crate::support::process::{Daemon, free_port};
use crate::support::{Berth, Setup};
use crate::yardstick;

/// The repository that everything is in.
pub(crate) const REPOSITORY: &str = "library/bench";
/// Until a server listens.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Berth,
    /// An earlier berth.
    Before,
    /// The same once more: how far two runs of one program are apart.
    BeforeAgain,
    /// What hyper does with content that is in memory and a table to find it in: the least that a server in
    /// berth's language can cost.
    BareHyper,
    /// nginx with files that are there already, sent by `sendfile`.
    NginxStatic,
    /// nginx as a cache: `proxy_cache`, one request at a time to upstream for each key.
    NginxCache,
    /// Varnish, with its content in memory.
    Varnish,
    /// Apache Traffic Server, with its content in memory and on disk.
    TrafficServer,
    /// Debian's docker-registry as a pull-through cache.
    Distribution,
}

/// A running server. It ends, and its folder goes, when this is dropped.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
    /// Where it keeps content, if that is counted.
    pub(crate) folder: Option<PathBuf>,
    _running: Box<dyn Any + Send + Sync>,
}

impl Kind {
    /// Those that can be compared on content that is there.
    pub(crate) const OF_HOT: &[Self] = &[
        Self::Berth,
        Self::BareHyper,
        Self::NginxStatic,
        Self::NginxCache,
        Self::Varnish,
        Self::TrafficServer,
        Self::Distribution,
    ];

    /// One berth and another.
    pub(crate) const OF_BERTH: &[Self] = &[Self::Berth, Self::Before, Self::BeforeAgain];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::Before => "before",
            Self::BeforeAgain => "before, once more",
            Self::BareHyper => "bare hyper, from memory",
            Self::NginxStatic => "nginx, static files",
            Self::NginxCache => "nginx, proxy_cache",
            Self::Varnish => "Varnish",
            Self::TrafficServer => "Traffic Server",
            Self::Distribution => "distribution 2.8, proxy",
        }
    }

    /// Starts one that knows nothing yet, but for pages. With a certificate in the scene it speaks TLS, if it
    /// can.
    pub(crate) fn start(self, bench: &Bench, scene: &Scene) -> Server {
        match self {
            Self::Berth | Self::Before | Self::BeforeAgain => {
                berth(bench, self, with_certificate(Berth::with("docker.io", &scene.upstream), scene))
            }
            Self::BareHyper => bench.cores.as_server(|| yardstick::start(&scene.pages)),
            Self::NginxStatic => bench.cores.as_server(|| nginx::of_files(scene)),
            Self::NginxCache => bench.cores.as_server(|| nginx::cache(scene)),
            Self::Varnish => bench.cores.as_server(|| varnish::start(scene)),
            Self::TrafficServer => bench.cores.as_server(|| trafficserver::start(scene)),
            Self::Distribution => bench.cores.as_server(|| distribution::start(scene)),
        }
    }
}

fn with_certificate(setup: Setup, scene: &Scene) -> Setup {
    scene.certificate.iter().fold(setup, Setup::tls)
}

/// berth, or the earlier one, set up in this way.
pub(crate) fn berth(bench: &Bench, kind: Kind, setup: Setup) -> Server {
    let berth = bench.cores.as_server(|| bench.runtime.block_on(bench.of(kind, setup).start()));
    Server {
        kind,
        address: berth.address(),
        pid: berth.pid(),
        folder: Some(berth.data_dir().to_owned()),
        _running: Box::new(berth),
    }
}

/// A port that is free now.
fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Runs a program until it listens; the folder lives as long as it does.
pub(crate) fn run(kind: Kind, command: Command, address: SocketAddr, folder: TempDir) -> Server {
    let mut daemon = Daemon::spawn(command.into(), &folder.path().join("log"));
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        let in_time = began.elapsed() < START_DEADLINE && !daemon.has_ended();
        assert!(in_time, "{} does not start: {}", kind.name(), daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    // In this order: the server ends before its folder goes.
    Server { kind, address, pid: daemon.pid(), folder: None, _running: Box::new((daemon, folder)) }
}
