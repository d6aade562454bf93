//! Images from a seed: random but repeatable, and real enough for every client to unpack.
//!
//! A layer of 2 KiB or more is a tar archive with one file of random bytes; a smaller one is only random.

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::{Value, json};

/// A tar header, one block of content, and the two empty blocks at the end.
const SMALLEST_TAR: usize = 4 * TAR_BLOCK;
const TAR_BLOCK: usize = 512;
/// The platforms of the images in an index, in turn.
const ARCHITECTURES: [&str; 4] = ["amd64", "arm64", "ppc64le", "s390x"];

/// Some content and the digest by which the image names it.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) content: Bytes,
}

/// A manifest with all that belongs to it.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) media_type: &'static str,
    pub(crate) manifest: Bytes,
    /// The config, then the layers.
    pub(crate) blobs: Vec<Blob>,
    /// The images of an index.
    pub(crate) children: Vec<Self>,
    pub(crate) subject: Option<Digest>,
    /// What a referrers list says of it.
    pub(crate) artifact_type: Option<String>,
}

/// An image yet to be made.
pub(crate) struct Draft {
    seed: u64,
    layers: Vec<usize>,
    docker: bool,
    algorithm: Algorithm,
    layer_type: Option<&'static str>,
    artifact_type: Option<&'static str>,
    subject: Option<Value>,
    annotations: Vec<(String, String)>,
}

impl Image {
    /// An OCI image with one random layer for each size.
    pub(crate) fn of(seed: u64, layers: &[usize]) -> Self {
        Self::draft(seed, layers).build()
    }

    /// The same, before it is made into something less plain.
    pub(crate) fn draft(seed: u64, layers: &[usize]) -> Draft {
        Draft {
            seed,
            layers: layers.to_vec(),
            docker: false,
            algorithm: Algorithm::Sha256,
            layer_type: None,
            artifact_type: None,
            subject: None,
            annotations: Vec::new(),
        }
    }

    /// An OCI index of images, each for a platform of its own.
    pub(crate) fn index(children: &[&Self]) -> Self {
        Self::list("application/vnd.oci.image.index.v1+json", children)
    }

    /// A Docker manifest list of images.
    pub(crate) fn docker_list(children: &[&Self]) -> Self {
        Self::list("application/vnd.docker.distribution.manifest.list.v2+json", children)
    }

    fn list(media_type: &'static str, children: &[&Self]) -> Self {
        let entry = |(at, child): (usize, &&Self)| {
            let mut entry = child.descriptor();
            let architecture = ARCHITECTURES[at % ARCHITECTURES.len()];
            entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
            entry
        };
        let manifests: Vec<_> = children.iter().enumerate().map(entry).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        Self {
            media_type,
            manifest: pretty(&manifest),
            blobs: Vec::new(),
            children: children.iter().map(|child| (*child).clone()).collect(),
            subject: None,
            artifact_type: None,
        }
    }

    /// The sha256 digest of the manifest.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.manifest)
    }

    pub(crate) fn config(&self) -> &Blob {
        &self.blobs[0]
    }

    pub(crate) fn layers(&self) -> &[Blob] {
        &self.blobs[1..]
    }

    /// The only layer, or the first.
    pub(crate) fn layer(&self) -> &Blob {
        &self.blobs[1]
    }

    /// This image and, if it is an index, those within.
    pub(crate) fn closure(&self) -> Vec<&Self> {
        self.children.iter().flat_map(Self::closure).chain([self]).collect()
    }

    pub(crate) fn descriptor(&self) -> Value {
        descriptor(self.media_type, self.digest(), self.manifest.len())
    }

    /// Where its manifest is in a repository, by digest.
    pub(crate) fn path(&self, repository: &str) -> String {
        format!("/v2/{repository}/manifests/{}", self.digest())
    }
}

impl Blob {
    pub(crate) fn new(algorithm: Algorithm, content: Bytes) -> Self {
        Self { digest: Digest::of(algorithm, &content), content }
    }

    /// Where it is in a repository.
    pub(crate) fn path(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", self.digest)
    }

    pub(crate) fn len(&self) -> u64 {
        self.content.len() as u64
    }
}

impl Draft {
    /// In Docker's form, schema 2.
    pub(crate) fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Naming its blobs by sha512.
    pub(crate) fn sha512(mut self) -> Self {
        self.algorithm = Algorithm::Sha512;
        self
    }

    /// With layers that call themselves so.
    pub(crate) fn layer_type(mut self, media_type: &'static str) -> Self {
        self.layer_type = Some(media_type);
        self
    }

    /// Not an image to run but an artifact, with the empty config.
    pub(crate) fn artifact(mut self, artifact_type: &'static str) -> Self {
        self.artifact_type = Some(artifact_type);
        self
    }

    /// About another image.
    pub(crate) fn about(mut self, subject: &Image) -> Self {
        self.subject = Some(subject.descriptor());
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn build(self) -> Image {
        let (media_type, config_type, layer_type) = self.media_types();
        let mut random = fastrand::Rng::with_seed(self.seed);
        let contents: Vec<Bytes> = self.layers.iter().map(|size| layer(&mut random, *size)).collect();
        let layers = contents.iter().map(|content| Blob::new(self.algorithm, content.clone()));
        let config = Blob::new(self.algorithm, self.config(&contents));
        let blobs: Vec<Blob> = [config].into_iter().chain(layers).collect();
        let describe =
            |blob: &Blob, media_type: &str| descriptor(media_type, blob.digest, blob.content.len());
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": describe(&blobs[0], config_type),
            "layers": blobs[1..].iter().map(|blob| describe(blob, layer_type)).collect::<Vec<_>>(),
        });
        if let Some(artifact_type) = self.artifact_type {
            manifest["artifactType"] = json!(artifact_type);
        }
        if let Some(subject) = &self.subject {
            manifest["subject"] = subject.clone();
        }
        for (key, value) in &self.annotations {
            manifest["annotations"][key] = json!(value);
        }
        let subject = self.subject.map(|it| Digest::parse(it["digest"].as_str().unwrap()).unwrap());
        Image {
            media_type,
            manifest: pretty(&manifest),
            blobs,
            children: Vec::new(),
            subject,
            artifact_type: Some(self.artifact_type.unwrap_or(config_type).to_owned()),
        }
    }

    /// Of the manifest, the config and the layers.
    fn media_types(&self) -> (&'static str, &'static str, &'static str) {
        let (manifest, config, layer) = if self.docker {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar",
            )
        } else {
            (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            )
        };
        let config = if self.artifact_type.is_some() { "application/vnd.oci.empty.v1+json" } else { config };
        (manifest, config, self.layer_type.unwrap_or(layer))
    }

    fn config(&self, layers: &[Bytes]) -> Bytes {
        if self.artifact_type.is_some() {
            return Bytes::from_static(b"{}");
        }
        let diff_ids: Vec<_> =
            layers.iter().map(|layer| Digest::of(Algorithm::Sha256, layer).to_string()).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Labels": { "seed": self.seed.to_string() } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        config.to_string().into()
    }
}

fn descriptor(media_type: &str, digest: Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// With line breaks, so that a cache that writes JSON anew is found out.
fn pretty(manifest: &Value) -> Bytes {
    format!("{manifest:#}\n").into()
}

/// Exactly `size` bytes: what is left over behind the end of an archive is zero, which tar allows.
fn layer(random: &mut fastrand::Rng, size: usize) -> Bytes {
    let mut content = vec![0; size];
    if size < SMALLEST_TAR {
        random.fill(&mut content);
        return content.into();
    }
    let file = (size - 3 * TAR_BLOCK) / TAR_BLOCK * TAR_BLOCK;
    random.fill(&mut content[TAR_BLOCK..TAR_BLOCK + file]);
    let name = format!("random-{:016x}", random.u64(..));
    tar_header(&mut content[..TAR_BLOCK], &name, file);
    content.into()
}

/// POSIX ustar: a regular file of this name and size.
fn tar_header(block: &mut [u8], name: &str, size: usize) {
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    // Mode, owner, group, size, time; the checksum counts as spaces; type; magic; version.
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
