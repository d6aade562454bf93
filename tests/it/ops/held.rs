//! Sockets that systemd holds (D2): who connects while berth is started again waits for it.

use std::net::{SocketAddr, TcpListener};

use crate::support::{Berth, Image, Upstream, get};

const REPO: &str = "library/app";

fn socket() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn nobody_is_refused_while_it_is_started_again() {
    let ((listener, address), upstream) = (socket(), Upstream::start().await);
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image);
    let listen = format!("listen = [\"{address}\"]\n");
    let mut berth = Berth::with("docker.io", &upstream).http(&listen).holding(&listener).start().await;
    assert_eq!(berth.address(), address);
    let url = |path: &str| format!("http://{address}{path}");
    berth.pull(REPO, "1", &image).await;
    berth.stop().await;
    let waiting = tokio::spawn(get(url(&image.layer().path(REPO))).into_future());
    berth.start_again().await;
    assert_eq!(waiting.await.unwrap().expect(200), &image.layer().content);
    // A kill does not close it either.
    berth.kill().await;
    let waiting = tokio::spawn(get(url(&image.path(REPO))).into_future());
    berth.start_again().await;
    assert_eq!(waiting.await.unwrap().expect(200), &image.manifest);
}

#[tokio::test]
async fn a_socket_where_it_does_not_listen_is_a_mistake() {
    let ((listener, address), upstream) = (socket(), Upstream::start().await);
    let exit = Berth::with("docker.io", &upstream).holding(&listener).fail().await;
    assert_eq!(exit.code, Some(2), "{}", exit.log());
    for part in [&*address.to_string(), "ListenStream=", "[http]"] {
        assert!(exit.log().contains(part), "{part} in {}", exit.log());
    }
}
