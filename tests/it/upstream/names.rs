//! Names of upstreams, and name servers that say nothing (F10: a dead DNS took the threads that read the disk).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::support::{Berth, Image, Upstream, within_deadline};

const REPO: &str = "library/app";
/// Requests for what only an upstream has whose name cannot be found.
const COLD: usize = 300;
/// Threads that one registry can have for its names.
const THREADS_MAX: usize = 2;

/// A name server that says nothing, at an address of its own.
async fn mute_name_server() -> (UdpSocket, IpAddr) {
    loop {
        let address =
            IpAddr::from(Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255)));
        // Somebody may have that one.
        if let Ok(socket) = UdpSocket::bind((address, 53)).await {
            return (socket, address);
        }
    }
}

/// Threads that look names up. How many others there are says nothing: a burst of requests reads the disk on many.
fn threads_for_names(pid: u32) -> usize {
    let threads = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).unwrap();
    // One that ends meanwhile has no name any more.
    let names =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "names").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_that_says_nothing_delays_no_hit_and_takes_no_threads() {
    let (name_server, address) = mute_name_server().await;
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[100_000, 2000]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream).registry("dead.example");
    let berth = setup.endpoint_url("http://registry.dead.example:5000").name_server(address).start().await;
    berth.pull(REPO, "1", &image).await;
    berth.until_idle().await;

    let unknown = Image::of(2, &[10]).layer().digest;
    let mut cold = JoinSet::new();
    for number in 0..COLD {
        let path = match number % 3 {
            0 => format!("/v2/dead.example/app-{number}/manifests/1"),
            1 => format!("/v2/dead.example/app-{number}/blobs/{unknown}"),
            _ => format!("/v2/dead.example/app-{number}/tags/list"),
        };
        cold.spawn(berth.get(&path).into_future());
    }
    within_deadline("the name is looked up", name_server.recv_from(&mut [0; 512])).await.unwrap();
    // Nobody has an answer by now, nor will have.
    for _ in 0..20 {
        berth.pull(REPO, "1", &image).await;
    }
    let threads = threads_for_names(berth.pid());
    assert!((1..=THREADS_MAX).contains(&threads), "{threads} threads");
    while let Some(reply) = within_deadline("every request has an answer", cold.join_next()).await {
        reply.unwrap().expect(503);
    }
    // Each look-up asks for two kinds of address, and again when there is no answer.
    let mut queries = 0;
    while name_server.try_recv_from(&mut [0; 512]).is_ok() {
        queries += 1;
    }
    assert!(queries <= 40, "{queries} queries for one name");
}
