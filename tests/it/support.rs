//! The language of the tests. Its three actors are a fake registry that misbehaves on command ([`Upstream`]),
//! the real daemon ([`Berth`]) and a client ([`get`]); what they pass around is an [`Image`].
//!
//! Everything speaks HTTP over 127.0.0.1 on ports that the kernel picks. A test waits for a condition with
//! [`eventually`], or steers the other side with a [`Gate`]; it never sleeps. Time passes on purpose only in
//! [`Pace`], for a slow reader or a slow upstream.
//!
//! Beside the fakes there are the real ones: a [`registry`] of Debian's, its [`token_server`], the container
//! [`clients`], and the [`real_images`] that they push and pull; and disks that lose power, in [`crash`].
//! What a daemon left in its data [`folder`] is looked at there.

mod berth;
mod certificate;
mod client;
mod cloud;
mod command;
mod egress;
mod image;
mod relay;
mod upstream;
mod vault;

pub(crate) mod clients;
pub(crate) mod crash;
pub(crate) mod entitlement;
pub(crate) mod folder;
pub(crate) mod many;
pub(crate) mod process;
pub(crate) mod real_images;
pub(crate) mod registry;
pub(crate) mod token_server;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tempfile::{NamedTempFile, TempPath};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use berth::{BERTH, Berth, Setup};
pub(crate) use certificate::Certificate;
pub(crate) use client::{Open, Reply, ask, get, head, raw};
pub(crate) use cloud::{Asked, Cloud, said};
pub(crate) use command::{Said, command};
pub(crate) use egress::EgressProxy;
pub(crate) use image::{Blob, Image};
pub(crate) use relay::Relay;
pub(crate) use upstream::{Auth, Fault, Paging, Upstream, basic};
pub(crate) use vault::{JWT, ROLE_ID, SECRET_ID, Vault};

/// How long a condition may take. Far more than it should, for machines that do much else meanwhile.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until the condition holds; `what` says in the failure what was waited for.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for the work to end, and fails after the usual deadline rather than hang.
pub(crate) async fn within_deadline<T>(what: &str, work: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work.into_future()).await {
        Ok(done) => done,
        Err(_) => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}

/// Does some work many times at once, and returns what came of it, in order.
pub(crate) async fn together<T: Send + 'static, F>(count: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|at| tokio::spawn(work(at))).collect();
    let mut done = Vec::with_capacity(count);
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

/// A file with this text, as long as the value lives. In `{:?}` it is its path, quoted.
pub(crate) fn file_of(text: &str) -> TempPath {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path()
}

/// The text of a Docker `config.json` with these keys, users and passwords.
pub(crate) fn docker_config(logins: &[(&str, &str, &str)]) -> String {
    let login = |(key, user, password): &(&str, &str, &str)| {
        let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
        ((*key).to_owned(), serde_json::json!({ "auth": auth }))
    };
    let auths: serde_json::Map<_, _> = logins.iter().map(login).collect();
    serde_json::json!({ "auths": auths }).to_string()
}

/// Holds the other side until the test opens it; then it stays open.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn opened(&self) {
        let mut open = self.0.subscribe();
        open.wait_for(|open| *open).await.expect("the sender is in self");
    }
}

/// A speed limit on bytes that go by.
pub(crate) struct Pace {
    bytes_per_second: u64,
    start: Instant,
    passed: u64,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, start: Instant::now(), passed: 0 }
    }

    /// Lets some bytes go by, as late as they must.
    pub(crate) async fn pass(&mut self, bytes: usize) {
        self.passed += bytes as u64;
        let due = Duration::from_secs_f64(self.passed as f64 / self.bytes_per_second as f64);
        tokio::time::sleep_until(self.start + due).await;
    }
}
