//! A configuration in the making, as the TOML text that an operator would write.

use std::fmt::Write as _;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};
use tempfile::TempDir;

use super::Berth;
use super::process::{BERTH, Exit, Process};
use crate::support::{Certificate, Upstream};

/// A daemon yet to be started.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The one that was built, unless that is compared with another.
    pub(crate) program: PathBuf,
    registries: Vec<Registry>,
    http: String,
    admin: String,
    tables: String,
    /// What stands for all of the above.
    file: Option<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) args: Vec<String>,
    data_dir: Option<PathBuf>,
    /// Whether it reads a configuration file.
    pub(super) has_file: bool,
    /// How many files it may have open.
    pub(super) files: Option<u32>,
    /// The name server that it asks, on port 53.
    pub(super) name_server: Option<IpAddr>,
    /// The socket that is passed on to it.
    pub(super) held: Option<RawFd>,
    /// Whom clients of its data plane trust, if that speaks TLS.
    pub(super) ca: Option<PathBuf>,
}

#[derive(Clone)]
struct Registry {
    name: String,
    endpoints: Vec<String>,
    ca: Vec<PathBuf>,
    keys: String,
}

impl Setup {
    /// The first registry, without an endpoint yet.
    pub(crate) fn new(registry: &str) -> Self {
        let setup = Self {
            program: BERTH.into(),
            registries: Vec::new(),
            http: String::new(),
            admin: String::new(),
            tables: String::new(),
            file: None,
            env: Vec::new(),
            args: Vec::new(),
            data_dir: None,
            has_file: true,
            files: None,
            name_server: None,
            held: None,
            ca: None,
        };
        setup.registry(registry)
    }

    /// One more registry; what follows is about this one.
    pub(crate) fn registry(mut self, name: &str) -> Self {
        let name = name.to_owned();
        self.registries.push(Registry { name, endpoints: Vec::new(), ca: Vec::new(), keys: String::new() });
        self
    }

    /// One more registry with its endpoint.
    pub(crate) fn and(self, registry: &str, upstream: &Upstream) -> Self {
        self.registry(registry).endpoint(upstream)
    }

    /// One more endpoint of the last registry.
    pub(crate) fn endpoint(mut self, upstream: &Upstream) -> Self {
        let last = self.last();
        last.endpoints.push(upstream.url().to_owned());
        last.ca.extend(upstream.ca());
        self
    }

    /// One more endpoint of the last registry, by URL.
    pub(crate) fn endpoint_url(mut self, url: &str) -> Self {
        self.last().endpoints.push(url.to_owned());
        self
    }

    /// More settings of the last registry, such as `aliases = ["hub"]`.
    pub(crate) fn keys(mut self, toml: &str) -> Self {
        let _ = writeln!(self.last().keys, "{toml}");
        self
    }

    /// Settings of `[http]`.
    pub(crate) fn http(mut self, toml: &str) -> Self {
        let _ = writeln!(self.http, "{toml}");
        self
    }

    /// Settings of `[admin]`.
    pub(crate) fn admin(mut self, toml: &str) -> Self {
        let _ = writeln!(self.admin, "{toml}");
        self
    }

    /// This text is the configuration file, whole; what a test must change in it goes into flags.
    pub(crate) fn file(mut self, toml: &str) -> Self {
        self.file = Some(toml.to_owned());
        self
    }

    /// Whole sections, such as `[[tags]]` and what is in it.
    pub(crate) fn sections(mut self, toml: &str) -> Self {
        let _ = writeln!(self.tables, "{toml}");
        self
    }

    /// Serves the data plane over TLS.
    pub(crate) fn tls(mut self, certificate: &Certificate) -> Self {
        self.ca = Some(certificate.ca());
        self.http(&format!("tls = {{ cert = {:?}, key = {:?} }}", certificate.cert(), certificate.key()))
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more argument of `berth serve`.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Without a configuration file: what it knows comes from [`Setup::arg`] and [`Setup::env`] alone.
    pub(crate) fn without_file(mut self) -> Self {
        self.has_file = false;
        self
    }

    /// May have so many files open, sockets included.
    pub(crate) fn files(mut self, files: u32) -> Self {
        self.files = Some(files);
        self
    }

    /// Asks this name server alone, on port 53.
    pub(crate) fn name_server(mut self, address: IpAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Uses this data folder rather than a new one.
    pub(crate) fn data_dir(mut self, folder: &Path) -> Self {
        self.data_dir = Some(folder.to_owned());
        self
    }

    /// Passes this socket on, as systemd does with one that it holds.
    pub(crate) fn holding(mut self, listener: &TcpListener) -> Self {
        fcntl_setfd(listener, FdFlags::empty()).unwrap();
        self.held = Some(listener.as_raw_fd());
        self
    }

    /// Runs it, and waits until it listens.
    pub(crate) async fn start(self) -> Berth {
        let own = self.data_dir.is_none().then(|| tempfile::tempdir().unwrap());
        let data_dir = self.folder(own.as_ref());
        let process = Process::start(&self, &data_dir).await;
        Berth { setup: self, _own: own, data_dir, process }
    }

    /// Runs it, expecting it to end by itself.
    pub(crate) async fn fail(self) -> Exit {
        let own = self.data_dir.is_none().then(|| tempfile::tempdir().unwrap());
        let data_dir = self.folder(own.as_ref());
        Process::spawn(&self, &data_dir).await.exit().await
    }

    fn folder(&self, own: Option<&TempDir>) -> PathBuf {
        self.data_dir.clone().or_else(|| own.map(|own| own.path().join("data"))).unwrap()
    }

    /// What it will say that it listens for.
    pub(super) fn planes(&self) -> &'static [&'static str] {
        if self.admin.contains("metrics_listen") { &["data", "admin", "metrics"] } else { &["data", "admin"] }
    }

    fn last(&mut self) -> &mut Registry {
        self.registries.last_mut().unwrap()
    }

    /// The configuration file.
    pub(crate) fn toml(&self, data_dir: &Path) -> String {
        if let Some(file) = &self.file {
            return file.clone();
        }
        let mut toml = format!("data_dir = {data_dir:?}\n");
        let _ = writeln!(toml, "default_upstream = {:?}", self.registries[0].name);
        for (section, keys, listen) in
            [("http", &self.http, "[\"127.0.0.1:0\"]"), ("admin", &self.admin, "\"127.0.0.1:0\"")]
        {
            let own = keys.lines().any(|line| line.starts_with("listen "));
            let listen = if own { String::new() } else { format!("listen = {listen}\n") };
            let _ = write!(toml, "\n[{section}]\n{listen}{keys}");
        }
        for Registry { name, endpoints, ca, keys } in &self.registries {
            let _ = write!(toml, "\n[[upstream]]\nregistry = {name:?}\nendpoints = {endpoints:?}\n");
            if !ca.is_empty() {
                let _ = writeln!(toml, "ca = {ca:?}");
            }
            toml += keys;
        }
        toml + "\n" + &self.tables
    }
}
