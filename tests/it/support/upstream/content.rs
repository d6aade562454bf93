//! What an honest registry holds and answers: manifests, blobs, tags, referrers.

use std::collections::{BTreeMap, HashMap};

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::json;

use super::paging::Paging;
use super::wire::{Answer, Request};
use crate::support::{Blob, Image};

/// The content of a fake.
pub(super) struct Content {
    repositories: HashMap<String, Repository>,
    pub(super) has_referrers_api: bool,
    pub(super) page_size: usize,
    pub(super) paging: Paging,
}

#[derive(Default)]
struct Repository {
    tags: BTreeMap<String, String>,
    /// By digest, in every algorithm.
    manifests: HashMap<String, Image>,
    blobs: HashMap<String, Bytes>,
}

impl Default for Content {
    fn default() -> Self {
        let (has_referrers_api, page_size, paging) = (true, usize::MAX, Paging::Last);
        Self { repositories: HashMap::new(), has_referrers_api, page_size, paging }
    }
}

impl Content {
    pub(super) fn put(&mut self, repository: &str, tag: Option<&str>, image: &Image) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        for part in image.closure() {
            for algorithm in Algorithm::ALL {
                let digest = Digest::of(algorithm, &part.manifest).to_string();
                repository.manifests.insert(digest, part.clone());
            }
            for blob in &part.blobs {
                repository.blobs.insert(blob.digest.to_string(), blob.content.clone());
            }
        }
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), image.digest().to_string());
        }
    }

    pub(super) fn tag(&mut self, repository: &str, tags: impl Iterator<Item = String>, image: &Image) {
        let digest = image.digest().to_string();
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.tags.extend(tags.map(|tag| (tag, digest.clone())));
    }

    pub(super) fn put_blob(&mut self, repository: &str, blob: &Blob) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.blobs.insert(blob.digest.to_string(), blob.content.clone());
    }

    pub(super) fn put_misnamed(&mut self, repository: &str, digest: &Digest, image: &Image) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(digest.to_string(), image.clone());
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        self.repositories.get_mut(repository).unwrap().tags.remove(tag).unwrap();
    }

    pub(super) fn remove(&mut self, repository: &str, digest: &Digest) {
        let repository = self.repositories.get_mut(repository).unwrap();
        let manifest = repository.manifests.remove(&digest.to_string()).is_some();
        assert!(repository.blobs.remove(&digest.to_string()).is_some() || manifest, "no {digest} to remove");
    }

    pub(super) fn answer(&self, request: &Request) -> Answer {
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Answer::error(405, "UNSUPPORTED");
        }
        if request.path() == "/v2/" {
            return Answer::new(200, "application/json", "{}");
        }
        let Some((name, kind, reference)) = split(request.path()) else {
            return Answer::error(404, "NOT_FOUND");
        };
        let Some(repository) = self.repositories.get(name) else {
            return Answer::error(404, "NAME_UNKNOWN");
        };
        match kind {
            "manifests" => repository.manifest(reference),
            "blobs" => repository.blob(reference),
            "tags" => self.tags(name, repository, request),
            "referrers" if self.has_referrers_api => self.referrers(repository, reference, request),
            _ => Answer::error(404, "NOT_FOUND"),
        }
    }

    fn tags(&self, name: &str, repository: &Repository, request: &Request) -> Answer {
        let Some(from) = self.paging.begin(request, &repository.tags) else {
            return Answer::error(400, "PAGINATION_CURSOR_INVALID");
        };
        let asked = request.query("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let size = asked.min(self.page_size);
        let tags: Vec<&str> = repository.tags.keys().skip(from).take(size).map(String::as_str).collect();
        let body = json!({ "name": name, "tags": tags });
        let answer = Answer::new(200, "application/json", body.to_string());
        let end = from + tags.len();
        match tags.last().filter(|_| end < repository.tags.len()) {
            Some(last) => {
                let query = self.paging.next(size, end, last);
                answer.header("Link", &self.paging.link(&format!("/v2/{name}/tags/list"), &query))
            }
            None => answer,
        }
    }

    /// In the order of their digests. The page begins behind `after`, a parameter of this registry's own.
    fn referrers(&self, repository: &Repository, subject: &str, request: &Request) -> Answer {
        let after = request.query("after").unwrap_or_default();
        let about = |(digest, image): &(&String, &Image)| {
            image.subject.is_some_and(|it| it.to_string() == subject)
                && digest.starts_with("sha256:")
                && **digest > after
        };
        let mut found: Vec<_> = repository.manifests.iter().filter(about).collect();
        found.sort_by_key(|(digest, _)| *digest);
        let more = found.len() > self.page_size;
        found.truncate(self.page_size);
        let entries: Vec<_> = found.iter().map(|(_, image)| referrer(image)).collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let body = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        let answer = Answer::new(200, media_type, body.to_string());
        match found.last().filter(|_| more) {
            Some((last, _)) => answer.header("Link", &next(&format!("{}?after={last}", request.path()))),
            None => answer,
        }
    }
}

impl Repository {
    fn manifest(&self, reference: &str) -> Answer {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        match self.manifests.get(digest) {
            Some(image) => Answer::new(200, image.media_type, image.manifest.clone())
                .header("Docker-Content-Digest", digest)
                .header("Docker-Distribution-Api-Version", "registry/2.0"),
            None => Answer::error(404, "MANIFEST_UNKNOWN"),
        }
    }

    fn blob(&self, digest: &str) -> Answer {
        let Some(content) = self.blobs.get(digest) else {
            return Answer::error(404, "BLOB_UNKNOWN");
        };
        let mut answer = Answer::new(200, "application/octet-stream", content.clone())
            .header("Docker-Content-Digest", digest)
            .header("Accept-Ranges", "bytes");
        answer.ranges = true;
        answer
    }
}

/// Repository, keyword and reference.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    let (rest, reference) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (name, kind) = rest.rsplit_once('/')?;
    Some((name, kind, reference))
}

fn next(target: &str) -> String {
    format!("<{target}>; rel=\"next\"")
}

fn referrer(image: &Image) -> serde_json::Value {
    let mut entry = image.descriptor();
    if let Some(artifact_type) = &image.artifact_type {
        entry["artifactType"] = json!(artifact_type);
    }
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    if let Some(annotations) = manifest.get("annotations") {
        entry["annotations"] = annotations.clone();
    }
    entry
}
