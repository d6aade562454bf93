//! A data folder of any size, as a berth that has run for years leaves it, made without hashing or syncing.
//!
//! Half of the tags are in one repository, the others in repositories of a hundred. Each tag names a manifest of
//! its own; what is left of the blobs is granted to the repositories in the same proportions. Blobs are holes of
//! a few bytes under digests drawn from their number: read-only, so they count as proven. They can be served,
//! but not be verified, and none of the manifests can be read.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth::oci::{Algorithm, Digest};
use serde_json::json;

/// The repository that has half of everything.
pub(crate) const LARGE: &str = "library/large";
/// Tags of each of the other repositories.
const TAGS_EACH: usize = 100;
/// The largest blob; sizes are drawn from the number, too.
const BYTES_MAX: u64 = 2000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MANIFEST_BYTES: u64 = 1000;

/// How much of it there is to be: the first blobs are the manifests, one for each tag.
#[derive(Clone, Copy)]
pub(crate) struct Many {
    pub(crate) blobs: usize,
    pub(crate) tags: usize,
}

impl Many {
    /// Makes it all, below a folder that need not be there.
    pub(crate) fn make(self, data_dir: &Path) {
        assert!(self.tags <= self.blobs, "each tag names a blob of its own");
        let blobs = data_dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(data_dir.join("blobs/sha512")).unwrap();
        for number in 0..self.blobs {
            let path = blobs.join(digest(number).hex());
            let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).unwrap();
            file.set_len(self.bytes(number)).unwrap();
        }
        let repositories: Vec<Refs> =
            (0..=self.small_repositories()).map(|at| Refs::make(data_dir, &name(at))).collect();
        let record =
            json!({ "media_type": MANIFEST, "size": MANIFEST_BYTES, "public": true, "fetched_at": 7 });
        let mut manifests = Copies::of(record.to_string());
        let mut grants = Copies::of(json!({ "public": true }).to_string());
        for number in 0..self.blobs {
            let refs = &repositories[self.repository(number)];
            let file_name = digest(number).file_name();
            if number < self.tags {
                manifests.put(refs.manifests.join(file_name));
                File::create_new(refs.tags.join(self.tag(number)))
                    .unwrap()
                    .write_all(&record_of(number))
                    .unwrap();
            } else {
                grants.put(refs.blobs.join(file_name));
            }
        }
    }

    /// Bytes of a blob.
    pub(crate) fn bytes(self, number: usize) -> u64 {
        if number < self.tags { MANIFEST_BYTES } else { number as u64 % BYTES_MAX + 1 }
    }

    /// Bytes of all blobs.
    pub(crate) fn all_bytes(self) -> u64 {
        (0..self.blobs).map(|number| self.bytes(number)).sum()
    }

    /// Where a blob is, in a repository that has it.
    pub(crate) fn path(self, number: usize) -> String {
        format!("/v2/{}/blobs/{}", name(self.repository(number)), digest(number))
    }

    /// A tag; those of [`LARGE`] come first.
    pub(crate) fn tag(self, number: usize) -> String {
        format!("v{number:07}")
    }

    /// How many tags [`LARGE`] has.
    pub(crate) fn large_tags(self) -> usize {
        self.tags / 2
    }

    /// How many repositories there are besides [`LARGE`].
    pub(crate) fn small_repositories(self) -> usize {
        (self.tags - self.large_tags()).div_ceil(TAGS_EACH).max(1)
    }

    /// Which repository has a blob: 0 is [`LARGE`].
    fn repository(self, number: usize) -> usize {
        match number.checked_sub(self.tags) {
            None if number < self.large_tags() => 0,
            None => 1 + (number - self.large_tags()) / TAGS_EACH,
            Some(rest) if rest.is_multiple_of(2) => 0,
            Some(rest) => 1 + rest / 2 % self.small_repositories(),
        }
    }
}

/// The digest of a blob.
pub(crate) fn digest(number: usize) -> Digest {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let hex: String = (0..4).map(|_| format!("{:016x}", random.u64(..))).collect();
    Digest::from_hex(Algorithm::Sha256, &hex).unwrap()
}

/// The name of a repository.
pub(crate) fn name(repository: usize) -> String {
    if repository == 0 { LARGE.to_owned() } else { format!("team-{}/app-{repository}", repository % 17) }
}

fn record_of(number: usize) -> Vec<u8> {
    let record = json!({
        "digest": digest(number), "media_type": MANIFEST, "size": MANIFEST_BYTES,
        "fetched_at": 7, "checked_at": 7, "public": true,
    });
    record.to_string().into_bytes()
}

/// The folders of a repository's facts.
struct Refs {
    tags: PathBuf,
    manifests: PathBuf,
    blobs: PathBuf,
}

impl Refs {
    fn make(data_dir: &Path, name: &str) -> Self {
        let refs = super::folder::layout(data_dir, &format!("docker.io/{name}")).join("refs");
        let folder = |kind: &str| {
            let folder = refs.join(kind);
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        Self { tags: folder("tags"), manifests: folder("manifests"), blobs: folder("blobs") }
    }
}

/// Files of the same content: one with many names, as many as the file system allows, then the next one.
struct Copies {
    content: String,
    last: Option<PathBuf>,
}

impl Copies {
    fn of(content: String) -> Self {
        Self { content, last: None }
    }

    fn put(&mut self, path: PathBuf) {
        if self.last.as_ref().is_some_and(|last| fs::hard_link(last, &path).is_ok()) {
            return;
        }
        File::create_new(&path).unwrap().write_all(self.content.as_bytes()).unwrap();
        self.last = Some(path);
    }
}
