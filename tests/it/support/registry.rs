//! Debian's docker-registry (distribution 2.8), as the real upstream of the tests.
//!
//! Each has its own folder and its own port on loopback, which it keeps when it is stopped and started again.
//! It starts with copies of all the images of [`Images`], unless it serves a folder of somebody else's. What
//! was asked of it is read from its access log, so the counts are the registry's own word.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::json;
use tempfile::TempDir;

use self::log::Request;
use super::process::{Daemon, free_port, run, tool, write};
use super::real_images::{By, Image, Images};
use super::token_server::TokenServer;
use super::{Certificate, ask, eventually};

pub(crate) mod log;

/// How often another port is tried when somebody took the one that was free.
const PORT_ATTEMPTS: usize = 5;

/// bcrypt's lowest cost: the passwords of tests protect nothing.
const BCRYPT_COST: u32 = 4;

/// Whom the registry answers.
pub(crate) enum Auth {
    Anonymous,
    /// Who knows this user and password, over HTTP Basic.
    Basic {
        user: &'static str,
        password: &'static str,
    },
    /// Who brings a token of this server, which lives as long as the registry.
    Token(TokenServer),
}

/// A running, or stopped, registry.
pub(crate) struct Registry {
    /// Before the folder, so that it has ended when that goes.
    daemon: Option<Daemon>,
    folder: TempDir,
    port: u16,
    tls: Option<Certificate>,
    auth: Auth,
    /// Lines of the access log that [`Registry::forget`] was told to forget.
    forgotten: Mutex<usize>,
}

impl Registry {
    /// One with all images, over plain HTTP.
    pub(crate) async fn start(auth: Auth) -> Self {
        Self::with_all_images(auth, None).await
    }

    /// One with all images, anonymous, over TLS with a certificate for 127.0.0.1 and localhost.
    pub(crate) async fn start_tls() -> Self {
        Self::with_all_images(Auth::Anonymous, Some(Certificate::new())).await
    }

    async fn with_all_images(auth: Auth, tls: Option<Certificate>) -> Self {
        let folder = new_folder();
        let storage = copy_of_all(folder.path()).await;
        Self::serve(folder, &storage, auth, tls).await
    }

    /// One that serves, and writes to, a folder of the caller's, anonymously.
    pub(super) async fn serving(storage: &Path) -> Self {
        Self::serve(new_folder(), storage, Auth::Anonymous, None).await
    }

    async fn serve(folder: TempDir, storage: &Path, auth: Auth, tls: Option<Certificate>) -> Self {
        let mut registry = Self { daemon: None, folder, port: 0, tls, auth, forgotten: Mutex::new(0) };
        for _ in 0..PORT_ATTEMPTS {
            registry.port = free_port();
            write(&registry.configuration_file(), registry.configuration(storage).to_string());
            if registry.try_start().await {
                return registry;
            }
        }
        panic!("docker-registry does not start: {}", registry.log());
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What an upstream's `endpoints` says.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// The certificate authority that its certificate is from.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.tls.as_ref().map(Certificate::ca)
    }

    /// The server whose tokens it takes.
    pub(crate) fn token_server(&self) -> &TokenServer {
        match &self.auth {
            Auth::Token(server) => server,
            Auth::Anonymous | Auth::Basic { .. } => panic!("this registry takes no tokens"),
        }
    }

    /// Ends it; connections are refused until it is started again.
    pub(crate) fn stop(&mut self) {
        assert!(self.daemon.take().is_some(), "it runs");
    }

    /// Starts it again on the same address, with the same content.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.daemon.is_none(), "it was stopped");
        assert!(self.try_start().await, "docker-registry does not start again: {}", self.log());
    }

    /// Pushes an image under its repository and tag, not a byte of any manifest changed.
    pub(crate) async fn push(&self, images: &Images, image: &Image) {
        if image.is_bare_index() {
            return self.push_bare_index(images, image).await;
        }
        self.push_with_skopeo(images, image, By::Tag).await;
    }

    async fn push_with_skopeo(&self, images: &Images, image: &Image, by: By) {
        let source = tempfile::tempdir_in(self.folder.path()).expect("the folder is writable");
        images.lay_out(image, source.path());
        let mut command = tool("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        let login = match &self.auth {
            Auth::Anonymous => None,
            Auth::Basic { user, password } => Some((*user, *password)),
            Auth::Token(server) => server.login(),
        };
        if let Some((user, password)) = login {
            command.arg(format!("--dest-creds={user}:{password}"));
        }
        let target = format!("docker://{}/{}", self.address(), image.path(by));
        run(command.arg(format!("dir:{}", source.path().display())).arg(target)).await;
    }

    /// skopeo adds an empty platform to descriptors that have none, so the index itself takes another way.
    async fn push_bare_index(&self, images: &Images, image: &Image) {
        for child in image.children() {
            self.push_with_skopeo(images, &child, By::Digest).await;
        }
        let url = format!("{}/v2/{}/manifests/{}", self.url(), image.repository, image.tag);
        let put = ask("PUT", url).header("content-type", "application/vnd.oci.image.index.v1+json");
        put.body(images.bytes(&image.digest)).await.expect(201);
    }

    /// Every request since the start or since [`Registry::forget`], those of pushes too.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let forgotten = *self.forgotten.lock().expect("no test panics within");
        log::requests(&self.log()).skip(forgotten).collect()
    }

    /// How many of them had this method and this in their path: `GET` and `/blobs/sha256:…`.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let is_wanted = |request: &Request| request.method == method && request.path.contains(part);
        self.requests().into_iter().filter(is_wanted).count()
    }

    /// Starts to count anew.
    pub(crate) fn forget(&self) {
        let seen = log::requests(&self.log()).count();
        *self.forgotten.lock().expect("no test panics within") = seen;
    }

    /// Starts the server and waits until it listens; false when it ends instead, as on a port that is taken.
    async fn try_start(&mut self) -> bool {
        let before = self.log().len();
        let mut command = tool("docker-registry");
        command.arg("serve").arg(self.configuration_file());
        let mut daemon = Daemon::spawn(command, &self.folder.path().join("log"));
        let mut ended = false;
        eventually("docker-registry to listen", async || {
            ended = daemon.has_ended();
            ended || daemon.log()[before..].contains("listening on ")
        })
        .await;
        self.daemon = (!ended).then_some(daemon);
        !ended
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn configuration_file(&self) -> PathBuf {
        self.folder.path().join("registry.yml")
    }

    /// JSON is YAML.
    fn configuration(&self, storage: &Path) -> serde_json::Value {
        let mut http = json!({"addr": self.address(), "secret": "the same after a restart"});
        if let Some(certificate) = &self.tls {
            http["tls"] = json!({"certificate": certificate.cert(), "key": certificate.key()});
        }
        let mut configuration = json!({
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": true}},
            "http": http,
        });
        match &self.auth {
            Auth::Anonymous => {}
            Auth::Basic { user, password } => {
                let path = self.folder.path().join("htpasswd");
                let hash = bcrypt::hash(password, BCRYPT_COST).expect("a short password can be hashed");
                write(&path, format!("{user}:{hash}\n"));
                configuration["auth"] = json!({"htpasswd": {"realm": "the test's registry", "path": path}});
            }
            Auth::Token(server) => configuration["auth"] = json!({"token": server.registry_settings()}),
        }
        configuration
    }
}

fn new_folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("Cargo's folder for test files is writable")
}

/// Copies the registry folder of [`Images`]. Blob files are never written in place, so that links do for them.
async fn copy_of_all(folder: &Path) -> PathBuf {
    let source = Images::ready().await.storage().join("docker/registry/v2");
    let copy = folder.join("storage");
    let target = copy.join("docker/registry/v2");
    fs::create_dir_all(&target).expect("the folder is new");
    run(tool("cp").arg("-a").arg(source.join("repositories")).arg(&target)).await;
    run(tool("cp").args(["-a", "--link"]).arg(source.join("blobs")).arg(&target)).await;
    copy
}
