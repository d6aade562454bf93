//! A wire with two ends of which the far one is not known yet: it listens at once, and holds who connects until
//! [`Relay::to`] says where to. So two daemons can be told of each other before either runs.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Dropping it breaks its connections.
pub(crate) struct Relay {
    address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    running: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// So many that listen on one port of different addresses: 127.0.0.1, 127.0.0.2, and so on.
    pub(crate) async fn start_on_one_port(count: u8) -> Vec<Self> {
        'port: loop {
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            let mut listeners = vec![first];
            for last in 2..=count {
                match TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port))).await {
                    Ok(listener) => listeners.push(listener),
                    // Somebody has this port there.
                    Err(_) => continue 'port,
                }
            }
            return listeners.into_iter().map(Self::on).collect();
        }
    }

    fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let to = watch::Sender::new(None);
        let running = tokio::spawn(accept(listener, to.subscribe()));
        Self { address, to, running }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connects it, also those who are waiting.
    pub(crate) fn to(&self, address: SocketAddr) {
        self.to.send_replace(Some(address));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn accept(listener: TcpListener, to: watch::Receiver<Option<SocketAddr>>) {
    let mut running = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut to = to.clone();
        running.spawn(async move {
            let Some(address) = to.wait_for(Option::is_some).await.ok().and_then(|to| *to) else { return };
            if let Ok(mut far) = TcpStream::connect(address).await {
                // Either side may hang up as it likes.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
        while running.try_join_next().is_some() {}
    }
}
