//! Secrets that are rotated under load: the registry takes the old one until the new one is in its place, and then no
//! more. No client may notice, whatever it is pulling at that moment.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Auth, Berth, Cloud, Image, Upstream, Vault, basic, eventually, said};

const CLIENTS: usize = 4;
/// What each client pulls at least under each secret.
const PULLS: usize = 3;
const ROTATIONS: usize = 5;
/// Clients that pull are refused long before, and a test that has failed must end.
const REFUSED_WITHIN: Duration = Duration::from_secs(4);

/// Clients that pull one image after another which nobody has pulled before, all of it private, and compare every byte.
struct Load {
    is_over: Arc<AtomicBool>,
    pulled: Arc<[AtomicUsize]>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(berth: &Arc<Berth>, upstream: &Arc<Upstream>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let pulled: Arc<[AtomicUsize]> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (berth, upstream) = (Arc::clone(berth), Arc::clone(upstream));
            let (is_over, pulled) = (Arc::clone(&is_over), Arc::clone(&pulled));
            clients.spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let number = pulled[client].load(Ordering::SeqCst);
                    let image = Image::of((number * CLIENTS + client) as u64, &[3000, 300]);
                    // With a name of its own it needs a token of its own, where tokens are wanted.
                    let name = format!("team/app-{client}-{number}");
                    upstream.image(&name, "1", &image);
                    berth.pull(&name, "1", &image).await;
                    pulled[client].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { is_over, pulled, clients }
    }

    /// Waits until every client has pulled some more; one that has met an error has ended and pulls none.
    async fn goes_on(&self) {
        let so_far: Vec<_> = self.pulled.iter().map(|it| it.load(Ordering::SeqCst)).collect();
        let has_more =
            || self.pulled.iter().zip(&so_far).all(|(now, then)| now.load(Ordering::SeqCst) >= then + PULLS);
        eventually("every client goes on pulling", async || has_more()).await;
    }

    async fn end(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.expect("no client has met an error");
        }
    }
}

/// Runs the load while `put` puts one password after another in place.
async fn rotate(berth: Berth, upstream: &Arc<Upstream>, put: impl Fn(&str)) {
    let berth = Arc::new(berth);
    let load = Load::start(&berth, upstream);
    load.goes_on().await;
    for number in 1..=ROTATIONS {
        let password = password(number);
        upstream.user("robot", &password, "team/");
        put(&password);
        upstream.only_user("robot", &password, "team/");
        load.goes_on().await;
    }
    load.end().await;
    let last = basic("robot", &password(ROTATIONS));
    assert!(upstream.requests().iter().any(|it| it.header("authorization") == Some(&*last)));
}

fn password(number: usize) -> String {
    format!("secret-{number}")
}

async fn private(auth: Auth) -> Arc<Upstream> {
    let upstream = Upstream::start().await;
    upstream.auth(auth).user("robot", &password(0), "team/");
    Arc::new(upstream)
}

/// A secret as Kubernetes mounts it: `password` is a link into `..data`, which is itself a link, and is replaced.
fn mount(folder: &Path, password: &str) {
    let version = format!("..version-{password}");
    fs::create_dir(folder.join(&version)).unwrap();
    fs::copy(write(password).path(), folder.join(&version).join("password")).unwrap();
    symlink(&version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

fn write(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_secret_is_swapped() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let upstream = private(auth).await;
        let folder = tempfile::tempdir().unwrap();
        mount(folder.path(), &password(0));
        let file = folder.path().join("password");
        symlink("..data/password", &file).unwrap();
        let keys = format!("credentials = {{ username = \"robot\", password_file = {file:?} }}");
        let berth = Berth::with("r.example", &upstream).keys(&keys).start().await;
        rotate(berth, &upstream, |password| mount(folder.path(), password)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_vault_is_replaced() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let upstream = private(auth).await;
        let vault = Vault::start().await;
        vault.token("of-vault", "").put("robot", "robot", &password(0));
        let keys = format!(
            "credentials.vault = {{ address = {:?}, path = \"robot\", token_env = \"SITE_TOKEN\" }}",
            vault.url()
        );
        let berth =
            Berth::with("r.example", &upstream).keys(&keys).env("SITE_TOKEN", "of-vault").start().await;
        let put = |password: &str| {
            vault.put("robot", "robot", password);
        };
        rotate(berth, &upstream, put).await;
    }
}

/// Google's metadata server, whose every answer ends the one before, and comes only when that was refused to somebody.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_issues_another_login() {
    let upstream = Arc::new(Upstream::start().await);
    upstream.auth(Auth::Bearer);
    let (registry, issued) = (Arc::clone(&upstream), AtomicUsize::new(0));
    let cloud = Cloud::start(move |_| {
        let number = issued.fetch_add(1, Ordering::SeqCst);
        let token = password(number);
        registry.only_user("oauth2accesstoken", &token, "team/");
        let is_refused = || registry.seen("GET", "/token").iter().any(|it| it.status() == 401);
        let start = Instant::now();
        while number > 0 && !is_refused() && start.elapsed() < REFUSED_WITHIN {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(1)));
        }
        // It is renewed after three quarters of it.
        said(200, &json!({ "access_token": token, "expires_in": 10 }))
    })
    .await;
    let berth = Berth::with("gcr.io", &upstream).keys("credentials.google = {}");
    let berth = Arc::new(berth.env("GCE_METADATA_HOST", &cloud.address().to_string()).start().await);
    let load = Load::start(&berth, &upstream);
    eventually("it is renewed", async || cloud.asked().len() >= 2).await;
    load.goes_on().await;
    load.end().await;
    let renewed = basic("oauth2accesstoken", &password(1));
    assert!(upstream.seen("GET", "/token").iter().any(|it| it.header("authorization") == Some(&*renewed)));
}
