//! Mixed fleets (D4): containerd fetches the manifest of an attestation and none of its layers, Docker 29 wants them, too,
//! and may come while the registry is unreachable.

use crate::support::{Berth, Blob, Image, Upstream, eventually};

const REPO: &str = "library/app";
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Stored and whole, without upstream being asked.
async fn is_here(berth: &Berth, blob: &Blob) -> bool {
    berth.head(&blob.path(REPO)).await.header("cache-status") == Some("berth; hit")
}

#[tokio::test]
async fn the_small_layers_of_an_attestation_come_behind_its_manifest() {
    let upstream = Upstream::start().await;
    let app = Image::of(1, &[50_000]);
    let attestation = Image::draft(2, &[3000, 200_000]).layer_type(IN_TOTO).build();
    let large = Image::draft(3, &[5 << 20]).layer_type(IN_TOTO).build();
    let index = Image::index(&[&app, &attestation, &large]);
    upstream.image(REPO, "1", &index);
    let berth = Berth::with("docker.io", &upstream).start().await;
    // What containerd asks for.
    for path in [format!("/v2/{REPO}/manifests/1"), app.path(REPO), attestation.path(REPO), large.path(REPO)]
    {
        berth.get(&path).await.expect(200);
    }
    for layer in attestation.layers() {
        eventually("it comes by itself", async || upstream.count("GET", &layer.digest.to_string()) == 1)
            .await;
        eventually("it is kept", async || is_here(&berth, layer).await).await;
    }
    for blob in [app.layer(), large.layer()] {
        assert_eq!(upstream.count("GET", &blob.digest.to_string()), 0, "nobody has asked for it");
    }
    upstream.stop().await;
    for layer in attestation.layers() {
        assert_eq!(berth.get(&layer.path(REPO)).await.expect(200), &layer.content);
    }
}

/// What a manifest says of sizes is a claim.
#[tokio::test]
async fn no_more_comes_than_the_manifest_says_it_is() {
    let upstream = Upstream::start().await;
    let honest = Image::draft(4, &[16 << 20]).layer_type(IN_TOTO).build();
    let text = String::from_utf8(honest.manifest.to_vec()).unwrap();
    let claim = |size: u64| format!("\"size\": {size}");
    let lying = text.replace(&claim(honest.layer().len()), &claim(1000));
    assert_ne!(lying, text);
    let lying = Image { manifest: lying.into(), ..honest.clone() };
    upstream.image(REPO, "1", &lying);
    let berth = Berth::with("docker.io", &upstream).start().await;
    berth.get(&format!("/v2/{REPO}/manifests/1")).await.expect(200);
    let layer = honest.layer();
    eventually("it is asked for", async || upstream.count("GET", &layer.digest.to_string()) == 1).await;
    berth.until_idle().await;
    assert!(upstream.bytes_sent(&layer.digest) <= 2 << 20, "{}", upstream.bytes_sent(&layer.digest));
}
