//! The sockets that berth listens on. All are bound before the first request is served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tracing::info;

use super::systemd::PassedSockets;
use super::tasks::Tasks;
use crate::config::Config;
use crate::http::admin::Admin;
use crate::http::{self, ConnectionLimit, DataPlane, Plane, Reach, Tls};
use crate::telemetry::Metrics;

/// The listeners of a configuration.
pub(super) struct Listeners {
    data: Vec<TcpListener>,
    admin: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// Binds every listener of `config`, at the socket that was passed for it if there is one.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub(super) async fn bind(config: &Config, mut passed: PassedSockets) -> anyhow::Result<Self> {
        let mut data = Vec::new();
        for address in &config.http.listen {
            data.push(listen(*address, "data", &mut passed).await?);
        }
        let admin = listen(config.admin.listen, "admin", &mut passed).await?;
        let metrics = match config.admin.metrics_listen {
            Some(address) => Some(listen(address, "metrics", &mut passed).await?),
            None => None,
        };
        Ok(Self { data, admin, metrics })
    }

    /// The address of the admin plane.
    ///
    /// # Errors
    /// When the system does not tell it.
    pub(super) fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Starts to serve: `data` with `tls` if there is one, and `admin`, whose metrics may have a listener of their own.
    /// `files` may be open at once.
    ///
    /// # Errors
    /// When the system does not tell an address.
    pub(super) fn serve(
        self,
        tasks: &mut Tasks,
        data: &Arc<DataPlane>,
        tls: Option<&Tls>,
        admin: &Arc<Admin>,
        files: Option<u64>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<()> {
        let seats = ConnectionLimit::of_data_plane(files, Arc::clone(metrics));
        for listener in self.data {
            let plane = Plane::DataPlane(Arc::clone(data), Reach::of(listener.local_addr()?));
            let (tls, seats) = (tls.cloned(), Arc::clone(&seats));
            tasks.spawn_data(|stop| http::serve(listener, plane, tls, seats, stop));
        }
        let metrics_plane = self.metrics.map(|listener| (listener, Plane::Metrics(Arc::clone(admin))));
        let admin_plane = (self.admin, Plane::Admin(Arc::clone(admin)));
        for (listener, plane) in std::iter::once(admin_plane).chain(metrics_plane) {
            // Each its own: a crowd at the metrics listener must not keep the administrator out.
            let seats = ConnectionLimit::of_admin_plane(files, Arc::clone(metrics));
            tasks.spawn(|stop| http::serve(listener, plane, None, seats, stop));
        }
        Ok(())
    }
}

async fn listen(address: SocketAddr, plane: &str, passed: &mut PassedSockets) -> anyhow::Result<TcpListener> {
    let listener = match passed.remove(address) {
        Some(socket) => TcpListener::from_std(socket),
        None => TcpListener::bind(address).await,
    };
    let listener = listener.with_context(|| format!("the {plane} plane cannot listen on {address}"))?;
    info!(plane, address = %listener.local_addr()?, "listening");
    Ok(listener)
}
