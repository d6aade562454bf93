//! A data folder as its operator finds it: blobs, partial files, the index, layouts.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use berth::oci::{Algorithm, Digest, Verifier};

/// How much of a file is hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Where a blob is, or would be.
pub(crate) fn blob(data_dir: &Path, digest: &Digest) -> PathBuf {
    data_dir.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

/// Where a blob's partial file is, or would be.
pub(crate) fn partial(data_dir: &Path, digest: &Digest) -> PathBuf {
    let of = |registry: PathBuf| registry.join(digest.file_name());
    let registries = fs::read_dir(data_dir.join("partial")).into_iter().flatten().flatten();
    let found = registries.map(|registry| of(registry.path())).find(|path| path.exists());
    found.unwrap_or_else(|| of(data_dir.join("partial/docker.io")))
}

/// The layout of a repository, by the names of its folders.
pub(crate) fn layout(data_dir: &Path, repository: &str) -> PathBuf {
    data_dir.join("repos").join(repository).join("_oci")
}

/// How many blobs there are, after hashing each: a file in `blobs/` has the content its name says.
pub(crate) fn verified(data_dir: &Path) -> usize {
    let mut count = 0;
    for algorithm in Algorithm::ALL {
        for path in files(&data_dir.join("blobs").join(algorithm.as_str())) {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(hash(algorithm, &path).hex(), name, "not what its name says");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o222, 0, "{name} can be written to");
            count += 1;
        }
    }
    count
}

/// All regular files below a folder that itself need not be there.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

fn hash(algorithm: Algorithm, path: &Path) -> Digest {
    let mut file = File::open(path).unwrap();
    let mut verifier = Verifier::new(algorithm);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk).unwrap() {
            0 => return verifier.finish(),
            length => verifier.update(&chunk[..length]),
        }
    }
}

/// Changes a stored file behind berth's back.
pub(crate) fn damage(path: &Path, change: impl FnOnce(&File)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    change(&File::options().read(true).write(true).open(path).unwrap());
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

/// Changes one bit, as an ageing disk does: the file looks the same in every other way.
pub(crate) fn rot(path: &Path) {
    damage(path, |file| {
        let modified = file.metadata().unwrap().modified().unwrap();
        flip_a_byte(file);
        file.set_modified(modified).unwrap();
    });
}

/// Changes one byte of a file.
pub(crate) fn flip_a_byte(file: &File) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 500).unwrap();
}
