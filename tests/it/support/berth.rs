//! The real daemon, in a process and a data folder of its own, on ports that the kernel picks.
//!
//! `Berth::with("docker.io", &upstream).start().await` is a mirror of that fake. It is killed when dropped,
//! and then, if the test failed, its log is printed.

mod process;
mod setup;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use berth::oci::Digest;
use rustix::process::Signal;
use tempfile::TempDir;

pub(crate) use process::{BERTH, Exit};
pub(crate) use setup::Setup;

use super::client::{self, Ask, Reply};
use super::{Image, Upstream, eventually, process as files};
use process::Process;

/// A running daemon, or one that was stopped and can run again.
pub(crate) struct Berth {
    /// Before the folder, so that it has ended when that goes.
    process: Process,
    /// The folder that it brought itself; with [`Setup::data_dir`] there is none.
    _own: Option<TempDir>,
    data_dir: PathBuf,
    setup: Setup,
}

impl Berth {
    /// A daemon yet to be started, with this registry first. It is the default one.
    pub(crate) fn with(registry: &str, upstream: &Upstream) -> Setup {
        Setup::new(registry).endpoint(upstream)
    }

    /// The URL of a path of the data plane.
    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.setup.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address())
    }

    /// Where the data plane listens: the first of its listeners.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener("data")
    }

    /// The authority that clients of the data plane must trust, if that speaks TLS.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.setup.ca.clone()
    }

    /// Where a plane listens: `data`, `admin` or `metrics`.
    pub(crate) fn listener(&self, plane: &str) -> SocketAddr {
        self.process.listener(plane).unwrap_or_else(|| panic!("no listener for {plane}"))
    }

    /// A request to the data plane.
    pub(crate) fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    pub(crate) fn head(&self, path: &str) -> Ask {
        self.ask("HEAD", path)
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        let ask = client::ask(method, self.url(path));
        match &self.setup.ca {
            Some(ca) => ask.trusting(ca),
            None => ask,
        }
    }

    /// Pulls an image as a client does, and compares every byte: the manifest by tag or digest, then what
    /// it names, by digest.
    pub(crate) async fn pull(&self, repository: &str, reference: &str, image: &Image) {
        let manifest = self.get(&format!("/v2/{repository}/manifests/{reference}")).await;
        assert_eq!(manifest.expect(200), &image.manifest);
        assert_eq!(manifest.header("content-type"), Some(image.media_type));
        for part in image.closure() {
            let manifest = self.get(&part.path(repository)).await;
            assert_eq!(manifest.expect(200), &part.manifest);
            for blob in &part.blobs {
                let reply = self.get(&blob.path(repository)).await;
                assert_eq!(Digest::of(blob.digest.algorithm(), reply.expect(200)), blob.digest);
                assert_eq!(reply.header("content-length"), Some(&*blob.len().to_string()));
            }
        }
    }

    /// A request to the admin plane.
    pub(crate) fn admin(&self, path: &str) -> Ask {
        self.ask_admin("GET", path)
    }

    /// The same with another method. What goes to the API shows the token.
    pub(crate) fn ask_admin(&self, method: &str, path: &str) -> Ask {
        let ask = client::ask(method, format!("http://{}{path}", self.listener("admin")));
        if path.starts_with("/api/") {
            ask.header("authorization", &format!("Bearer {}", self.token()))
        } else {
            ask
        }
    }

    /// A command to the admin plane, in JSON.
    pub(crate) fn order(&self, path: &str, json: &str) -> Ask {
        self.ask_admin("POST", path).header("content-type", "application/json").body(json.to_owned())
    }

    /// The token of its data folder.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.data_dir.join("admin-token")).unwrap().trim().to_owned()
    }

    /// All metrics, as Prometheus sees them.
    pub(crate) async fn metrics(&self) -> String {
        self.admin("/metrics").await.text()
    }

    /// The sum over all samples whose name and labels begin so: `berth_hits_total` or `x_total{code="200"`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        let sample = |line: &str| {
            let (key, value) = line.rsplit_once(' ')?;
            let matches = key == name
                || key.starts_with(&format!("{name}{{"))
                || (name.contains('{') && key.starts_with(name));
            matches.then(|| value.parse::<f64>().unwrap())
        };
        metrics.lines().filter_map(sample).sum()
    }

    /// Waits until no transfer is under way: what was fetched has its place on disk, and what failed has ended.
    pub(crate) async fn until_idle(&self) {
        eventually("no transfer is under way", async || self.metric("berth_flights").await == 0.0).await;
    }

    /// Waits until what is at this path is served from the disk. Asking does not fetch a blob: only its head is asked for.
    pub(crate) async fn until_stored(&self, path: &str) {
        let is_hit = async || self.head(path).await.header("cache-status") == Some("berth; hit");
        eventually(&format!("{path} is stored"), is_hit).await;
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The most memory that it has ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        files::peak_memory(self.pid())
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.data_dir.with_extension("toml")
    }

    /// Puts this into its configuration file, as editors do: by a new file in the place of the old.
    pub(crate) fn configure(&self, setup: &Setup) {
        let next = self.data_dir.with_extension("next");
        files::write(&next, setup.toml(&self.data_dir));
        std::fs::rename(next, self.config()).unwrap();
    }

    /// Has it read its configuration file again, now.
    pub(crate) async fn reload(&self) -> Reply {
        self.order("/api/v1/reload", "{}").await
    }

    /// Gives it this configuration, which it must find to be good. Returns the keys that have changed.
    pub(crate) async fn reconfigure(&self, setup: &Setup) -> Vec<String> {
        self.configure(setup);
        let reply = self.reload().await;
        reply.expect(200);
        serde_json::from_value(reply.json()["changed"].clone()).unwrap()
    }

    /// What it has logged since it was last started, one JSON object a line.
    pub(crate) fn logs(&self) -> Vec<String> {
        self.process.logs()
    }

    /// Whether a line that it has logged contains this.
    pub(crate) fn logs_contain(&self, text: &str) -> bool {
        self.logs().iter().any(|line| line.contains(text))
    }

    /// Waits until it has.
    pub(crate) async fn until_logged(&self, text: &str) {
        eventually(&format!("a log line with `{text}`"), async || self.logs_contain(text)).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops it as an operator does, and expects it to end well.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let exit = self.process.exit().await;
        assert_eq!(exit.code, Some(0), "after SIGTERM: {}", exit.log());
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.exit().await;
    }

    /// Waits until it ends of its own accord.
    pub(crate) async fn exit(&mut self) -> Exit {
        self.process.exit().await
    }

    /// Runs it again in the same data folder, on new ports; it must have ended.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.has_exited(), "it still runs");
        self.process = Process::start(&self.setup, &self.data_dir).await;
    }

    /// Stops it in good order, and runs it again.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }
}
