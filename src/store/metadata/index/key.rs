//! Keys of the index: repositories as text, digests raw, joined by a NUL, which no name contains.

use crate::oci::{Algorithm, Digest, Registry, Repo, RepoName, Tag};

const SHA256_BYTES: usize = 32;
const SHA512_BYTES: usize = 64;

/// A fact that the index has and that a file should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Fact {
    Blob(Digest),
    Repo(Repo),
    Tag(Repo, Tag),
    Manifest(Repo, Digest),
    Grant(Repo, Digest),
    Referrers(Repo, Digest),
}

pub(in crate::store) fn digest(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    let mut key = Vec::with_capacity(1 + digest.raw().len());
    key.push(algorithm);
    key.extend_from_slice(digest.raw());
    key
}

pub(in crate::store) fn repo(repo: &Repo) -> Vec<u8> {
    repo.to_string().into_bytes()
}

/// Returns the prefix of the keys of a repository's records.
pub(in crate::store) fn prefix(of: &Repo) -> Vec<u8> {
    let mut key = repo(of);
    key.push(0);
    key
}

pub(in crate::store) fn tag(of: &Repo, tag: &str) -> Vec<u8> {
    let mut key = prefix(of);
    key.extend_from_slice(tag.as_bytes());
    key
}

pub(in crate::store) fn repo_digest(of: &Repo, about: &Digest) -> Vec<u8> {
    let mut key = prefix(of);
    key.extend(digest(about));
    key
}

/// Returns the key of what one registry holds of a digest.
pub(in crate::store) fn holding(of: &Digest, registry: &Registry) -> Vec<u8> {
    let mut key = digest(of);
    key.extend_from_slice(registry.as_str().as_bytes());
    key
}

/// Reads the registry from the key of a holding.
pub(in crate::store) fn holder(holding: &[u8]) -> Option<&str> {
    let bytes = match holding.first()? {
        1 => SHA256_BYTES,
        2 => SHA512_BYTES,
        _ => return None,
    };
    std::str::from_utf8(holding.get(1 + bytes..)?).ok()
}

pub(in crate::store) fn to_digest(key: &[u8]) -> Option<Digest> {
    let (algorithm, raw) = key.split_first()?;
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    Digest::from_hex(algorithm, &hex)
}

pub(in crate::store) fn to_repo(key: &[u8]) -> Option<Repo> {
    let (registry, name) = std::str::from_utf8(key).ok()?.split_once('/')?;
    Some(Repo { registry: Registry::parse(registry).ok()?, name: RepoName::parse(name).ok()? })
}

/// Reads the registry from the key of a repository.
pub(in crate::store) fn registry(repo: &[u8]) -> Option<&str> {
    std::str::from_utf8(repo).ok()?.split_once('/').map(|(registry, _)| registry)
}

pub(in crate::store) fn to_tag_name(key: &[u8]) -> Option<Tag> {
    Tag::parse(std::str::from_utf8(split(key)?.1).ok()?).ok()
}

pub(in crate::store) fn to_blob(key: &[u8]) -> Option<Fact> {
    to_digest(key).map(Fact::Blob)
}

pub(in crate::store) fn to_repository(key: &[u8]) -> Option<Fact> {
    to_repo(key).map(Fact::Repo)
}

pub(in crate::store) fn to_tag(key: &[u8]) -> Option<Fact> {
    Some(Fact::Tag(to_repo(split(key)?.0)?, to_tag_name(key)?))
}

pub(in crate::store) fn to_manifest(key: &[u8]) -> Option<Fact> {
    let (repo, digest) = split(key)?;
    Some(Fact::Manifest(to_repo(repo)?, to_digest(digest)?))
}

pub(in crate::store) fn to_grant(key: &[u8]) -> Option<Fact> {
    let (repo, digest) = split(key)?;
    Some(Fact::Grant(to_repo(repo)?, to_digest(digest)?))
}

pub(in crate::store) fn to_referrers(key: &[u8]) -> Option<Fact> {
    let (repo, digest) = split(key)?;
    Some(Fact::Referrers(to_repo(repo)?, to_digest(digest)?))
}

pub(in crate::store) fn split(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().position(|byte| *byte == 0)?;
    Some((&key[..at], &key[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_sort_by_repository() {
        let check = |registry: &str, name: &str| {
            let of =
                Repo { registry: Registry::parse(registry).unwrap(), name: RepoName::parse(name).unwrap() };
            let about = Digest::of(Algorithm::Sha512, name.as_bytes());
            let text = Tag::parse("1.0").unwrap();
            assert_eq!(to_repo(&repo(&of)), Some(of.clone()));
            assert_eq!(to_tag(&tag(&of, "1.0")), Some(Fact::Tag(of.clone(), text)));
            let both = repo_digest(&of, &about);
            assert_eq!(to_manifest(&both), Some(Fact::Manifest(of.clone(), about)));
            assert_eq!(to_grant(&both), Some(Fact::Grant(of, about)));
            assert_eq!(to_blob(&digest(&about)), Some(Fact::Blob(about)));
        };
        check("docker.io", "library/alpine");
        check("[::1]:5000", "a");
        assert_eq!(to_digest(b"\x01short"), None);
        assert_eq!(to_digest(b""), None);
        assert_eq!(to_repo(b"no slash"), None);
        assert_eq!(to_tag(b"docker.io/a"), None);
    }

    #[test]
    fn fuzzed_keys_are_read_back_as_they_are_written() {
        let target = crate::fuzz::Target {
            name: "index-key",
            words: &[
                "\0",
                "\u{1}",
                "\u{2}",
                "/",
                "docker.io",
                "library/alpine",
                "latest",
                "..",
                "_oci",
                ":5000",
                "[::1]",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ],
        };
        let write = |entry: &Fact| match entry {
            Fact::Blob(of) => digest(of),
            Fact::Repo(of) => repo(of),
            Fact::Tag(of, name) => tag(of, name.as_str()),
            Fact::Manifest(of, about) | Fact::Grant(of, about) | Fact::Referrers(of, about) => {
                repo_digest(of, about)
            }
        };
        target.holds(|input| {
            for read in [to_blob, to_repository, to_tag, to_manifest, to_grant, to_referrers] {
                let Some(entry) = read(input) else { continue };
                // Nothing but the case of a registry may differ.
                assert!(write(&entry).eq_ignore_ascii_case(input));
                assert_eq!(read(&write(&entry)), Some(entry));
            }
        });
    }
}
