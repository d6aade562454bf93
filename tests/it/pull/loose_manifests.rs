//! Manifests as clients take them are served byte for byte; what no client takes is refused for good (A9).

use bytes::Bytes;

use crate::support::{Berth, Fault, Image, Upstream};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image whose manifest was changed as text.
fn changed(change: impl Fn(&str) -> String) -> Image {
    let image = Image::of(1, &[3000]);
    let manifest = change(std::str::from_utf8(&image.manifest).unwrap());
    assert_ne!(manifest.as_bytes(), &image.manifest[..]);
    Image { manifest: manifest.into(), ..image }
}

#[tokio::test]
async fn what_clients_take_is_served_byte_for_byte() {
    let put = |members: &'static str| move |text: &str| text.replacen('{', &format!("{{{members},"), 1);
    let images = [
        changed(put(r#""annotations":{"a":null}"#)),
        changed(put(r#""annotations":{"a":"1","a":"2"},"annotations":[]"#)),
        changed(put(r#""annotations":{"a":"\ud800","\udfff":1}"#)),
        changed(put(r#""schemaVersion":2"#)),
        changed(put(r#""schemaVersion":"2","SchemaVersion":null"#)),
        changed(put(r#""Layers":null,"x":[[[{"layers":1}]]]"#)),
        changed(put(r#""subject":"none","artifactType":5"#)),
        changed(|text| text.replacen("\"size\":", "\"size\": -1, \"Size\":", 2)),
        changed(|text| text.replacen("\"size\": 3000", "\"size\": \"3000\", \"urls\": 1", 1)),
        changed(|text| text.replace("\"mediaType\"", "\"MEDIATYPE\"")),
    ];
    for (number, image) in images.iter().enumerate() {
        let upstream = Upstream::start().await;
        upstream.image(REPO, "1", image);
        let berth = Berth::with("docker.io", &upstream).start().await;
        berth.pull(REPO, "1", image).await;
        assert_eq!(upstream.count("GET", "/manifests/"), 1, "{number}");
    }
}

/// The digest decides: no label takes a manifest away.
#[tokio::test]
async fn a_label_of_another_kind_is_not_believed_before_the_content() {
    for label in ["text/html", "application/x-gzip", "application/json", "binary/octet-stream", "x"] {
        let upstream = Upstream::start().await;
        let image = Image::of(1, &[3000]);
        upstream
            .image(REPO, "1", &image)
            .on("*", "/manifests/")
            .fault(Fault::Header("Content-Type", label.to_owned()));
        let berth = Berth::with("docker.io", &upstream).start().await;
        berth.pull(REPO, "1", &image).await;
    }
}

/// Whether `body` under this type is refused for good, by tag and by digest.
async fn assert_final(what: &str, media_type: &'static str, body: &str) {
    let image = Image { media_type, manifest: Bytes::from(body.to_owned()), ..Image::of(1, &[3000]) };
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    for path in [image.path(REPO), TAG.to_owned()] {
        upstream.forget();
        for _ in 0..3 {
            let reply = berth.get(&path).await;
            assert_eq!((reply.status, &*reply.error_code()), (404, "MANIFEST_UNKNOWN"), "{what} {path}");
            assert_eq!(reply.header("retry-after"), None, "{what}");
            assert!(reply.text().contains("upstream has "), "{what}: {}", reply.text());
        }
        let gets = upstream.count("GET", "/manifests/");
        assert!(gets <= 1 && upstream.requests().len() <= 2, "{what}: {:?}", upstream.requests());
    }
}

#[tokio::test]
async fn what_no_client_takes_is_refused_for_good() {
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    assert_final("schema 1", SCHEMA_1, r#"{"schemaVersion":1,"name":"a","fsLayers":[]}"#).await;
    assert_final("schema 1 by its content", "application/json", r#"{"schemaVersion":1,"fsLayers":[]}"#).await;
    assert_final("a vendor's", "application/vnd.example.thing.v1+json", r#"{"schemaVersion":2,"x":1}"#).await;
    assert_final("an unknown one", "application/json", r#"{"mediaType":"application/vnd.x","layers":[]}"#)
        .await;
    for both in [
        r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
        r#"{"schemaVersion":2,"manifests":[],"manifests":[],"LAYERS":[]}"#,
        r#"{"schemaVersion":2,"layers":[],"layers":null,"man\u0069fests":[]}"#,
    ] {
        assert_final(both, INDEX, both).await;
        assert_final(both, IMAGE, both).await;
    }
    let many = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec!["{}"; 10_001].join(","));
    assert_final("too many parts", INDEX, &many).await;
    assert_final("a blob", IMAGE, r#"{"hello":"world"}"#).await;
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_refused_for_good() {
    let large = format!(r#"{{"schemaVersion":2,"manifests":[]{}}}"#, " ".repeat(5 << 20));
    assert_final("too large", INDEX, &large).await;
}

#[tokio::test]
async fn a_page_in_the_place_of_a_manifest_stays_an_outage() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &Image::of(1, &[3000]));
    for (media_type, body) in [
        ("text/html", "<html>Log in</html>"),
        ("application/json", r#"{"message":"log in"}"#),
        (INDEX, "<html>Log in</html>"),
        ("application/vnd.api+json", r#"{"errors":[{"status":"401"}]}"#),
    ] {
        upstream.behave();
        upstream
            .on("*", "/manifests/")
            .fault(Fault::Content(media_type, Bytes::from_static(body.as_bytes())));
        let berth = Berth::with("docker.io", &upstream).start().await;
        let reply = berth.get(TAG).await;
        assert_eq!(reply.status, 503, "{body}: {}", reply.text());
        assert!(reply.header("retry-after").is_some());
    }
}
