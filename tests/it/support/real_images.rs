//! The images that real clients pull from real registries, with the bytes that each digest stands for.
//!
//! One of every kind that berth must carry, and no two of them share a blob, so that each is pulled from
//! scratch also when a client pulls several in a row. Contents come from seeded random numbers: equal on every
//! run, incompressible, and never what another image has. Manifests are written in an unusual style
//! (indented, with a line end), so that a mirror that re-writes them is caught.
//!
//! Making and pushing them takes some seconds, so it is done once and kept in Cargo's folder for test files:
//!
//! ```text
//! real-images-<hash of this source>/
//!   images.json         what there is: a list of [`Image`]
//!   content/<hex>       every manifest and blob, and every layer's tar under its diff id, by SHA-256
//!   storage/            docker-registry's own folder, with everything pushed by skopeo
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use berth::oci::{Algorithm, Digest, Verifier};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use self::build::Builder;
use super::process::write;
use super::registry::Registry;

mod build;
mod tar;

/// The registry that clients know the images by, unless a test says otherwise.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// How the names of the images' folders begin.
const FOLDER: &str = "real-images-";

/// Everything there is to pull.
pub(crate) struct Images {
    folder: PathBuf,
    images: Vec<Image>,
}

/// One tag, and all that is behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    /// What tests call it.
    pub(crate) key: String,
    /// As references name it: `docker.io`.
    pub(crate) registry: String,
    /// `library/single`.
    pub(crate) repository: String,
    pub(crate) tag: String,
    /// What the tag means.
    pub(crate) digest: String,
    /// The manifest with that digest or, of an index, the manifests it names.
    pub(crate) manifests: Vec<Manifest>,
}

/// One manifest that is not an index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) config: String,
    pub(crate) layers: Vec<Layer>,
    /// What it is made for; `None` for what is not a container image.
    pub(crate) architecture: Option<String>,
    /// What its descriptor in an index says besides.
    pub(crate) descriptor: serde_json::Map<String, serde_json::Value>,
}

/// One layer, packed and unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    /// The digest of the tar within; that of the blob itself when it is no tar.
    pub(crate) diff_id: String,
}

impl Images {
    /// The images, made and pushed by the first test of the process that asks, if no earlier run did so.
    pub(crate) async fn ready() -> &'static Self {
        static IMAGES: OnceCell<Images> = OnceCell::const_new();
        IMAGES.get_or_init(Self::load_or_make).await
    }

    /// All of them, the quick ones first.
    pub(crate) fn all(&self) -> &[Image] {
        &self.images
    }

    /// The image that tests call so.
    pub(crate) fn image(&self, key: &str) -> &Image {
        self.images
            .iter()
            .find(|image| image.key == key)
            .unwrap_or_else(|| panic!("no image is called {key}"))
    }

    /// The file with the bytes of a manifest or blob, or with the tar of a diff id.
    pub(crate) fn file(&self, digest: &str) -> PathBuf {
        content_file(&self.folder, digest)
    }

    /// The bytes of a manifest or blob.
    pub(crate) fn bytes(&self, digest: &str) -> Vec<u8> {
        fs::read(self.file(digest)).unwrap_or_else(|error| panic!("{digest} is not of the images: {error}"))
    }

    /// Writes an image as skopeo's `dir:` layout into an empty folder.
    pub(crate) fn lay_out(&self, image: &Image, folder: &Path) {
        write(&folder.join("version"), "Directory Transport Version: 1.1\n");
        let children = image.manifests.iter().map(|manifest| &manifest.digest);
        for digest in image.everything() {
            let hex = digest.replace("sha256:", "");
            let name = match () {
                () if digest == image.digest => "manifest.json".to_owned(),
                () if children.clone().any(|child| *child == digest) => format!("{hex}.manifest.json"),
                () => hex,
            };
            fs::hard_link(self.file(&digest), folder.join(name))
                .expect("both are in Cargo's folder for test files");
        }
    }

    /// docker-registry's folder with all of them; copy it, do not serve it.
    pub(crate) fn storage(&self) -> PathBuf {
        self.folder.join("storage")
    }

    async fn load_or_make() -> Self {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = parent.join(format!("{FOLDER}{}", &source_hash()[..16]));
        if !folder.exists() {
            remove_outdated(parent);
            let unfinished = tempfile::tempdir_in(parent).expect("Cargo's folder for test files is writable");
            make(unfinished.path()).await;
            // Another process may have been quicker; its folder has the same content.
            if fs::rename(unfinished.path(), &folder).is_ok() {
                let _renamed = unfinished.keep();
            }
        }
        let list = fs::read(folder.join("images.json")).expect("the folder was complete when it was renamed");
        let images = serde_json::from_slice(&list).expect("the list was written by this source");
        Self { folder, images }
    }
}

impl Image {
    /// `docker.io/library/single:1`, or with the digest in place of the tag.
    pub(crate) fn reference(&self, by: By) -> String {
        format!("{}/{}", self.registry, self.path(by))
    }

    /// `library/single:1`, or with the digest in place of the tag.
    pub(crate) fn path(&self, by: By) -> String {
        match by {
            By::Tag => format!("{}:{}", self.repository, self.tag),
            By::Digest => format!("{}@{}", self.repository, self.digest),
        }
    }

    /// The same content under another name, to push it there.
    pub(crate) fn named(&self, repository: &str, tag: &str) -> Self {
        Self { repository: repository.to_owned(), tag: tag.to_owned(), ..self.clone() }
    }

    /// The same content, to be pulled as an image of another registry.
    pub(crate) fn of_registry(&self, registry: &str) -> Self {
        Self { registry: registry.to_owned(), ..self.clone() }
    }

    /// The manifest that a client on this machine unpacks; none for what is not a container image.
    pub(crate) fn native(&self) -> Option<&Manifest> {
        self.manifests.iter().find(|manifest| manifest.architecture.as_deref() == Some(build::NATIVE))
    }

    /// Whether it is an index that names no platforms, such as a fallback tag for referrers.
    pub(crate) fn is_bare_index(&self) -> bool {
        self.manifests
            .iter()
            .all(|manifest| manifest.digest != self.digest && manifest.architecture.is_none())
    }

    /// Whether any layer is packed with zstd, which Docker 20.10 cannot read.
    pub(crate) fn has_zstd(&self) -> bool {
        self.layers().any(|layer| layer.media_type.ends_with("zstd"))
    }

    /// The digests of every manifest and blob behind the tag.
    pub(crate) fn everything(&self) -> BTreeSet<String> {
        let manifests = self.manifests.iter().flat_map(|manifest| [&manifest.digest, &manifest.config]);
        let layers = self.layers().map(|layer| &layer.digest);
        manifests.chain(layers).chain([&self.digest]).cloned().collect()
    }

    /// What an index names, as images of their own.
    pub(crate) fn children(&self) -> impl Iterator<Item = Self> {
        let child = |manifest: &Manifest| {
            let (digest, manifests) = (manifest.digest.clone(), vec![manifest.clone()]);
            Self { digest, manifests, ..self.clone() }
        };
        self.manifests.iter().map(child)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.manifests.iter().flat_map(|manifest| &manifest.layers)
    }
}

impl Manifest {
    /// The digests of what a client fetches for this manifest.
    pub(crate) fn packed(&self) -> BTreeSet<String> {
        let layers = self.layers.iter().map(|layer| &layer.digest);
        layers.chain([&self.digest, &self.config]).cloned().collect()
    }

    /// The digests of the config and the layers' tars: what is left of it in an engine's storage.
    pub(crate) fn unpacked(&self) -> BTreeSet<String> {
        self.layers.iter().map(|layer| &layer.diff_id).chain([&self.config]).cloned().collect()
    }
}

/// How a client names what it pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Tag,
    Digest,
}

/// The SHA-256 digest of some bytes, as text.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let mut verifier = Verifier::new(Algorithm::Sha256);
    verifier.update(bytes);
    verifier.finish().to_string()
}

fn content_file(folder: &Path, digest: &str) -> PathBuf {
    let digest = Digest::parse(digest).expect("the harness writes well-formed digests");
    folder.join("content").join(digest.hex())
}

/// Removes what older versions of this source made; it is large.
fn remove_outdated(parent: &Path) {
    for entry in fs::read_dir(parent).expect("Cargo made the folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with(FOLDER) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Whatever changes the images changes their folder's name.
fn source_hash() -> String {
    let sources = [
        include_str!("real_images.rs"),
        include_str!("real_images/build.rs"),
        include_str!("real_images/tar.rs"),
    ];
    digest_of(sources.concat().as_bytes()).replace("sha256:", "")
}

async fn make(folder: &Path) {
    for part in ["content", "storage"] {
        fs::create_dir(folder.join(part)).expect("the folder is new");
    }
    let images = Builder::new(folder).everything().await;
    write(&folder.join("images.json"), serde_json::to_vec_pretty(&images).expect("plain data"));
    let images = Images { folder: folder.to_owned(), images };
    let registry = Registry::serving(&images.storage()).await;
    for image in images.all() {
        registry.push(&images, image).await;
    }
}
