//! Real container clients, each pulling from scratch so that only the mirror under test can be the source.
//!
//! Every pull has new state in a temporary folder and a mount namespace of its own, where whatever the machine
//! keeps for the client (a cache, a configuration) is hidden, and the registry behind the name is unreachable:
//! a client that falls back fails. Afterwards what the client holds is compared with what was pushed:
//!
//! | client | asked for | compared |
//! |---|---|---|
//! | skopeo | `copy` to a folder | that folder, file by file |
//! | skopeo `--all` | the same with every platform | the same |
//! | podman, buildah | `pull`, through a mirror of `registries.conf` | kept manifests and config; layers, exported as tars |
//! | containerd | `ctr images pull`, through `hosts.toml` | its content store, file by file |
//! | Docker Engine | `docker pull`, through `--registry-mirror` | digest of the reference; config and tars of `docker save` |
//!
//! Files are told apart and proven by their SHA-256, so equal digests are equal bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use berth::oci::{Algorithm, Verifier};
use tokio::process::Command;

use super::process::{heavy, tool};
use super::real_images::{By, DOCKER_HUB, Image};

mod containerd;
mod containers;
mod docker;
mod skopeo;

/// Where nothing listens: the stand-in for a registry that must not be asked.
const UNREACHABLE: &str = "127.0.0.1:1";

/// How much of a file is hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What clients are told to pull through.
pub(crate) struct Mirror {
    /// Host and port.
    pub(crate) address: String,
    /// For a mirror that speaks TLS: the authority to trust, in PEM.
    pub(crate) ca: Option<PathBuf>,
}

/// A client to pull with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Skopeo,
    SkopeoAll,
    Podman,
    Buildah,
    Containerd,
    Docker,
}

/// What a client holds after its pulls.
struct Haul {
    /// Every file below is looked at.
    folder: PathBuf,
    /// What must be there, by digest.
    required: BTreeSet<String>,
    /// Whether anything else is a fault.
    exact: bool,
    /// For each image, the digest that the client says the reference stands for, if it says so.
    digests: Vec<Option<String>>,
}

impl Mirror {
    /// A mirror without TLS.
    pub(crate) fn plain(address: String) -> Self {
        Self { address, ca: None }
    }

    fn scheme(&self) -> &'static str {
        if self.ca.is_some() { "https" } else { "http" }
    }

    /// Where a client that does not say which registry it means finds a registry's images: Docker Hub's at the
    /// root, others below a path segment.
    fn location(&self, registry: &str) -> String {
        match registry {
            DOCKER_HUB => self.address.clone(),
            other => format!("{}/{other}", self.address),
        }
    }

    /// A folder with the authority's certificate, in the form that skopeo, podman and buildah read.
    fn ca_folder(&self, state: &Path) -> Option<PathBuf> {
        let folder = state.join("certificates");
        let ca = self.ca.as_ref()?;
        fs::create_dir_all(&folder).expect("the state is writable");
        fs::copy(ca, folder.join("ca.crt")).expect("the authority has a certificate");
        Some(folder)
    }
}

impl Client {
    /// All there are.
    pub(crate) const ALL: [Self; 6] =
        [Self::Skopeo, Self::SkopeoAll, Self::Podman, Self::Buildah, Self::Containerd, Self::Docker];

    /// Whether this version of the client can read such an image at all.
    pub(crate) fn can_pull(self, image: &Image) -> bool {
        match self {
            Self::Containerd => true,
            Self::Skopeo | Self::SkopeoAll => !image.is_bare_index(),
            Self::Podman | Self::Buildah => image.native().is_some(),
            Self::Docker => image.registry == DOCKER_HUB && image.native().is_some() && !image.has_zstd(),
        }
    }

    /// Pulls the images that it can read, one after the other, and compares them with what was pushed.
    pub(crate) async fn pull<'a>(self, mirror: &Mirror, images: impl IntoIterator<Item = &'a Image>, by: By) {
        if let Err(failure) = self.try_pull(mirror, images, by).await {
            panic!("{self:?} cannot pull by {by:?}: {failure}");
        }
    }

    /// As [`Client::pull`], for pulls that may fail: gives the client's own words then, or what differs.
    pub(crate) async fn try_pull<'a>(
        self,
        mirror: &Mirror,
        images: impl IntoIterator<Item = &'a Image>,
        by: By,
    ) -> Result<(), String> {
        let images: Vec<&Image> = images.into_iter().filter(|image| self.can_pull(image)).collect();
        assert!(!images.is_empty(), "a pull of nothing proves nothing: {self:?} can read none of the images");
        let _turn = heavy().await;
        let state = tempfile::tempdir().expect("a temporary folder can be made");
        let haul = match self {
            Self::Skopeo => skopeo::pull(state.path(), mirror, &images, by, false).await,
            Self::SkopeoAll => skopeo::pull(state.path(), mirror, &images, by, true).await,
            Self::Podman => containers::pull("podman", state.path(), mirror, &images, by).await,
            Self::Buildah => containers::pull("buildah", state.path(), mirror, &images, by).await,
            Self::Containerd => containerd::pull(state.path(), mirror, &images, by).await,
            Self::Docker => docker::pull(state.path(), mirror, &images, by).await,
        }?;
        haul.compare(&images)
    }
}

/// Pulls with containerd, which knows of a mirror what this `hosts.toml` for all registries says, and compares.
/// Nothing but the digests keeps it from the registries themselves.
pub(crate) async fn containerd_pulls_with(hosts_toml: &str, images: &[&Image], by: By) {
    let _turn = heavy().await;
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    let haul = containerd::pull_with(state.path(), hosts_toml, images, by).await;
    if let Err(failure) = haul.and_then(|haul| haul.compare(images)) {
        panic!("containerd cannot pull by {by:?} with\n{hosts_toml}\n{failure}");
    }
}

/// Runs a script of a user in the repository, beside a containerd that its `ctr` finds. `/etc/containerd` is empty before.
pub(crate) async fn beside_containerd(script: &str) -> Result<String, String> {
    let _turn = heavy().await;
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    containerd::beside(state.path(), script).await
}

/// Runs a script of a user beside a Docker Engine that its `docker` finds and that has this `daemon.json`, at `$DAEMON_JSON`.
/// The engine's process is `$DOCKERD`.
pub(crate) async fn beside_docker(daemon_json: &str, script: &str) -> Result<String, String> {
    let _turn = heavy().await;
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    docker::beside(state.path(), daemon_json, script).await
}

/// Runs a script of a user of podman and skopeo, for whom this is a drop-in of `registries.conf`, and else there is what
/// Debian has put into `/etc/containers`.
pub(crate) async fn with_containers_drop_in(drop_in: &str, script: &str) -> Result<String, String> {
    let _turn = heavy().await;
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    containers::with_drop_in(state.path(), drop_in, script).await
}

impl Haul {
    fn compare(&self, images: &[&Image]) -> Result<(), String> {
        let mut found = BTreeSet::new();
        hash_files(&self.folder, &mut found);
        let missing: Vec<_> = self.required.difference(&found).collect();
        if !missing.is_empty() {
            return Err(format!("it lacks {missing:?}"));
        }
        let foreign: Vec<_> = found.difference(&self.required).collect();
        if self.exact && !foreign.is_empty() {
            return Err(format!("it has {foreign:?}, which is not of the images"));
        }
        for (image, digest) in images.iter().zip(&self.digests) {
            if digest.as_ref().is_some_and(|digest| *digest != image.digest) {
                return Err(format!("it says that {} is {digest:?}, not {}", image.key, image.digest));
            }
        }
        Ok(())
    }
}

/// A program in a mount namespace of its own, where each of these folders is empty and in memory.
fn isolated(program: &str, hidden: &[&str]) -> Command {
    let mut command = apart("exec \"$@\"", hidden);
    command.arg(tool(program).as_std().get_program());
    command
}

/// A script for the shell in a mount namespace of its own, where each of these folders is empty and in memory.
pub(crate) fn apart(script: &str, hidden: &[&str]) -> Command {
    let hide = "for folder in $1; do mkdir -p $folder; mount -t tmpfs none $folder; done; shift";
    let mut command = tool("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{hide}\n{script}"), "sh", &hidden.join(" ")]);
    command
}

/// Adds the digests of all files below a folder.
fn hash_files(folder: &Path, digests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("the client made the folder") {
        let entry = entry.expect("the folder can be read");
        let kind = entry.file_type().expect("the folder can be read");
        if kind.is_dir() {
            hash_files(&entry.path(), digests);
        } else if kind.is_file() {
            digests.insert(hash_file(&entry.path()));
        }
    }
}

fn hash_file(path: &Path) -> String {
    let mut file = File::open(path).expect("the client wrote the file");
    let mut verifier = Verifier::new(Algorithm::Sha256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match io::Read::read(&mut file, &mut chunk).expect("the file can be read") {
            0 => return verifier.finish().to_string(),
            length => verifier.update(&chunk[..length]),
        }
    }
}
