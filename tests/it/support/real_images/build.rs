//! Writes the images' manifests, configs and layers, in the ways that builders in the field write them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::process::{tool, write};
use super::tar::Archive;
use super::{DOCKER_HUB, Image, Layer, Manifest, content_file, digest_of};

/// The architecture that clients on this machine pull, in the words of images.
pub(super) const NATIVE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
const FOREIGN: &str = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// How a layer's tar is packed, which its media type must say.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    DockerGzip,
    Zstd,
}

/// Writes contents into one folder and remembers nothing else but how far its random numbers are.
pub(super) struct Builder {
    folder: PathBuf,
    random: fastrand::Rng,
}

impl Builder {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), random: fastrand::Rng::with_seed(0xbe27) }
    }

    /// Every image, the quick ones first.
    pub(super) async fn everything(&mut self) -> Vec<Image> {
        let single = self.image(&[Packing::Gzip, Packing::Gzip], 64 * KIB, NATIVE).await;
        let signature =
            self.artifact("application/vnd.example.signature", b"{}", "signed: all is well\n", &single);
        let inventory =
            self.artifact("application/vnd.example.inventory", b"{ }", "one file of noise\n", &single);
        let fallback_tag = single.digest.replace(':', "-");
        let multi = [
            self.image(&[Packing::Gzip, Packing::Plain], 48 * KIB, NATIVE).await,
            self.image(&[Packing::Gzip, Packing::Plain], 48 * KIB, FOREIGN).await,
        ];
        let attestation = self.attestation(&multi[0]);
        let [native, foreign] = multi;
        let schema2 = self.image(&[Packing::DockerGzip, Packing::DockerGzip], 64 * KIB, NATIVE).await;
        let zstd = self.image(&[Packing::Zstd, Packing::Zstd], 64 * KIB, NATIVE).await;
        let deep = self.image(&[Packing::Gzip], 32 * KIB, NATIVE).await;
        let many = self.image(&[Packing::Gzip; 40], 4 * KIB, NATIVE).await;
        let big = self.image(&[Packing::Plain], 200 * MIB, NATIVE).await;
        vec![
            tag("single", "library/single", "1", single),
            tag("artifact", "library/single", "signature", signature),
            self.index("referrers", "library/single", &fallback_tag, vec![inventory]),
            self.index("multi", "library/multi", "1", vec![native, foreign, attestation]),
            tag("schema2", "library/schema2", "1", schema2),
            tag("zstd", "library/zstd", "1", zstd),
            tag("deep", "team/group/project/part/app", "1", deep),
            tag("many", "library/many", "1", many),
            tag("big", "library/big", "1", big),
        ]
    }

    /// A container image whose layers hold `size` random bytes each.
    async fn image(&mut self, layers: &[Packing], size: usize, architecture: &str) -> Manifest {
        let docker = matches!(layers[0], Packing::DockerGzip);
        let (media_type, config_type) =
            if docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
        let mut written = Vec::new();
        for (number, packing) in layers.iter().enumerate() {
            written.push(self.layer(number, size, *packing).await);
        }
        let history =
            |number| json!({"created": "2026-01-01T00:00:00Z", "created_by": format!("layer {number}")});
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": written.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
            "history": (0..layers.len()).map(history).collect::<Vec<_>>(),
        });
        let config = self.keep(&to_bytes(&config));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": self.descriptor(config_type, &config),
            "layers": self.layer_descriptors(&written),
        });
        let descriptor =
            Map::from_iter([("platform".to_owned(), json!({"architecture": architecture, "os": "linux"}))]);
        let architecture = Some(architecture.to_owned());
        let digest = self.keep(&to_bytes(&manifest));
        Manifest {
            digest,
            media_type: media_type.to_owned(),
            config,
            layers: written,
            architecture,
            descriptor,
        }
    }

    /// What signs or describes another manifest: an OCI 1.1 artifact with a subject.
    fn artifact(&self, artifact_type: &str, config: &[u8], text: &str, subject: &Manifest) -> Manifest {
        let layers = vec![self.document(&format!("{artifact_type}.text"), text.as_bytes())];
        let config = self.keep(config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
            "config": self.descriptor("application/vnd.oci.empty.v1+json", &config),
            "layers": self.layer_descriptors(&layers),
            "subject": self.descriptor(&subject.media_type, &subject.digest),
            "annotations": {"org.example.made-by": "nobody"},
        });
        let descriptor = Map::from_iter([("artifactType".to_owned(), json!(artifact_type))]);
        self.without_platform(&manifest, config, layers, descriptor)
    }

    /// Keeps a manifest of nothing that runs, with what an index says of it.
    fn without_platform(
        &self,
        manifest: &Value,
        config: String,
        layers: Vec<Layer>,
        descriptor: Map<String, Value>,
    ) -> Manifest {
        let digest = self.keep(&to_bytes(manifest));
        Manifest {
            digest,
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers,
            architecture: None,
            descriptor,
        }
    }

    /// What BuildKit adds to the index of an image: a manifest for no platform, with statements as its layers.
    fn attestation(&self, of: &Manifest) -> Manifest {
        let layers = vec![self.document(
            "application/vnd.in-toto+json",
            br#"{"predicateType":"https://slsa.dev/provenance/v0.2"}"#,
        )];
        let config = json!({
            "architecture": "unknown", "os": "unknown", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [&layers[0].diff_id]},
        });
        let config = self.keep(&to_bytes(&config));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": self.descriptor(OCI_CONFIG, &config),
            "layers": self.layer_descriptors(&layers),
        });
        let descriptor = Map::from_iter([
            ("platform".to_owned(), json!({"architecture": "unknown", "os": "unknown"})),
            (
                "annotations".to_owned(),
                json!({
                    "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.digest,
                }),
            ),
        ]);
        self.without_platform(&manifest, config, layers, descriptor)
    }

    fn index(&self, key: &str, repository: &str, name: &str, manifests: Vec<Manifest>) -> Image {
        let describe = |manifest: &Manifest| {
            let mut descriptor = self.descriptor(&manifest.media_type, &manifest.digest);
            descriptor.extend(manifest.descriptor.clone());
            Value::Object(descriptor)
        };
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": manifests.iter().map(describe).collect::<Vec<_>>(),
        });
        let digest = self.keep(&to_bytes(&index));
        image(key, repository, name, digest, manifests)
    }

    /// A tar with a folder, a link and a file of `size` random bytes, whose names depend on `number` only.
    async fn layer(&mut self, number: usize, size: usize, packing: Packing) -> Layer {
        let mut content = vec![0; size];
        self.random.fill(&mut content);
        let mut archive = Archive::default();
        archive.folder("data/");
        archive.file(&format!("data/{number}"), &content);
        archive.link(&format!("data/{number}.link"), &number.to_string());
        let diff_id = self.keep(&archive.finish());
        let tar = content_file(&self.folder, &diff_id);
        let (media_type, packer) = match packing {
            Packing::Plain => ("application/vnd.oci.image.layer.v1.tar", None),
            Packing::Gzip => {
                ("application/vnd.oci.image.layer.v1.tar+gzip", Some(("gzip", ["-n", "-k", "-c"])))
            }
            Packing::DockerGzip => {
                ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(("gzip", ["-n", "-k", "-c"])))
            }
            Packing::Zstd => {
                ("application/vnd.oci.image.layer.v1.tar+zstd", Some(("zstd", ["-q", "-k", "-c"])))
            }
        };
        let digest = match packer {
            None => diff_id.clone(),
            Some((program, flags)) => {
                let packed = tool(program).args(flags).arg(&tar).output().await;
                self.keep(&packed.expect("the packer runs").stdout)
            }
        };
        Layer { digest, media_type: media_type.to_owned(), diff_id }
    }

    /// A "layer" that is no tar.
    fn document(&self, media_type: &str, content: &[u8]) -> Layer {
        let digest = self.keep(content);
        Layer { diff_id: digest.clone(), digest, media_type: media_type.to_owned() }
    }

    fn layer_descriptors(&self, layers: &[Layer]) -> Vec<Map<String, Value>> {
        layers.iter().map(|layer| self.descriptor(&layer.media_type, &layer.digest)).collect()
    }

    fn descriptor(&self, media_type: &str, digest: &str) -> Map<String, Value> {
        let size = content_file(&self.folder, digest).metadata().expect("the content was kept").len();
        let fields = [("mediaType", json!(media_type)), ("digest", json!(digest)), ("size", json!(size))];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Writes content under its digest, which it gives.
    fn keep(&self, content: &[u8]) -> String {
        let digest = digest_of(content);
        write(&content_file(&self.folder, &digest), content);
        digest
    }
}

fn tag(key: &str, repository: &str, name: &str, manifest: Manifest) -> Image {
    image(key, repository, name, manifest.digest.clone(), vec![manifest])
}

fn image(key: &str, repository: &str, name: &str, digest: String, manifests: Vec<Manifest>) -> Image {
    Image {
        key: key.to_owned(),
        registry: DOCKER_HUB.to_owned(),
        repository: repository.to_owned(),
        tag: name.to_owned(),
        digest,
        manifests,
    }
}

/// JSON in a style that no registry or mirror would write by itself.
fn to_bytes(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("a value is always JSON");
    bytes.push(b'\n');
    bytes
}
