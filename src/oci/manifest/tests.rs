//! What is a manifest, of which type, and what it refers to.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// `type kind children` of a good manifest, else the start of the error's text.
fn summary(content_type: Option<&str>, body: &str) -> String {
    match Manifest::parse(content_type, body.as_bytes()) {
        Ok(manifest) => {
            format!("{} {:?} {}", manifest.media_type, manifest.kind, manifest.children().count())
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_header_decides_then_the_body_then_the_fields() {
    let check = |content_type: Option<&str>, body: &str, expected: &str| {
        assert_eq!(summary(content_type, body), expected, "{content_type:?} {body}");
    };
    let index = r#"{"schemaVersion":2,"manifests":[{"digest":"x"},{"digest":"y"}]}"#;
    let image = r#"{"schemaVersion":2,"config":{"digest":"x"},"layers":[{"digest":"y"}]}"#;
    let typed = format!(r#"{{"mediaType":"{DOCKER_LIST}","manifests":null}}"#);
    check(Some(OCI_INDEX), index, &format!("{OCI_INDEX} Index 2"));
    check(Some(DOCKER_LIST), index, &format!("{DOCKER_LIST} Index 2"));
    check(
        Some("Application/vnd.OCI.image.index.v1+json; charset=utf-8"),
        index,
        &format!("{OCI_INDEX} Index 2"),
    );
    check(None, index, &format!("{OCI_INDEX} Index 2"));
    check(Some(""), image, &format!("{OCI_MANIFEST} Image 2"));
    check(Some("application/json"), image, &format!("{OCI_MANIFEST} Image 2"));
    check(Some("text/plain; charset=utf-8"), image, &format!("{OCI_MANIFEST} Image 2"));
    check(Some(DOCKER_MANIFEST), image, &format!("{DOCKER_MANIFEST} Image 2"));
    check(Some("application/octet-stream"), &typed, &format!("{DOCKER_LIST} Index 0"));
    check(Some(OCI_INDEX), &typed, &format!("{OCI_INDEX} Index 0"));
    check(Some(OCI_ARTIFACT), r#"{"blobs":[{"digest":"x"}]}"#, &format!("{OCI_ARTIFACT} Artifact 1"));
}

#[test]
fn a_type_is_confirmed_by_the_content_alone() {
    let check = |content_type: Option<&str>, body: &str, expected: bool| {
        let manifest = Manifest::parse(content_type, body.as_bytes()).unwrap();
        assert_eq!(manifest.is_type_confirmed, expected, "{content_type:?} {body}");
    };
    let typed = format!(r#"{{"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
    check(None, &typed, true);
    check(Some(DOCKER_LIST), &typed, true);
    check(Some(OCI_INDEX), &typed, false);
    check(Some(OCI_INDEX), r#"{"manifests":[]}"#, true);
    check(Some(DOCKER_LIST), r#"{"manifests":[]}"#, false);
    check(Some(OCI_ARTIFACT), r#"{"blobs":[]}"#, false);
}

#[test]
fn what_is_no_manifest_is_refused() {
    let check = |content_type: Option<&str>, body: &str, expected: &str| {
        let said = summary(content_type, body);
        assert!(said.starts_with(expected), "{content_type:?} {body}: {said}");
    };
    let image = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    check(Some("application/vnd.example+json"), image, "not a manifest's media type");
    check(Some("Application/VND.example+json"), "{}", "neither a media type");
    check(None, r#"{"mediaType":"image/png","layers":[]}"#, "not a manifest's media type: `image/png`");
    check(None, "<!doctype html>", "not the JSON");
    check(None, "", "not the JSON");
    check(None, "[]", "not the JSON");
    check(None, "{}", "neither a media type");
    check(None, r#"{"token":"x"}"#, "neither a media type");
    check(Some(OCI_INDEX), image, "the fields do not fit");
    check(Some(OCI_MANIFEST), r#"{"manifests":[]}"#, "the fields do not fit");
    check(Some(OCI_MANIFEST), r#"{"manifests":[],"config":{},"layers":[]}"#, "the fields do not fit");
    check(Some(OCI_INDEX), r#"{"manifests":[],"layers":[]}"#, "the fields do not fit");
    check(Some(OCI_MANIFEST), r#"{"config":{},"layers":{}}"#, "not the JSON");
    check(Some(OCI_MANIFEST), r#"{"config":{},"layers":["x"]}"#, "not the JSON");
    check(Some(OCI_MANIFEST), "{}", "neither a media type");
    check(Some(OCI_INDEX), "{}", "neither a media type");
    check(None, r#"{"schemaVersion":1,"fsLayers":[]}"#, "manifest of schema 1");
    check(Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "{}", "manifest of schema 1");
    check(None, &" ".repeat(MANIFEST_BYTES_MAX + 1), "manifest larger");
}

#[test]
fn children_are_config_and_layers_but_never_the_subject() {
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.example",
        "digest":"{DIGEST}","size":2}},"layers":[{{"mediaType":"foreign/type","digest":"blake3:00","size":1,
        "urls":["http://169.254.169.254/"],"annotations":null}}],"subject":{{"digest":"{DIGEST}"}},
        "annotations":{{"a":"b"}},"unheard-of":[1,2]}}"#
    );
    let manifest = Manifest::parse(None, body.as_bytes()).unwrap();
    let children: Vec<_> = manifest.children().map(|child| child.digest().map(|it| it.to_string())).collect();
    assert_eq!(children, [Some(DIGEST.to_owned()), None]);
    assert!(manifest.children().all(|child| child.manifest_type().is_none()));
}

#[test]
fn an_index_says_what_its_manifests_are() {
    let body = format!(
        r#"{{"manifests":[{{"mediaType":"{OCI_MANIFEST}","size":3,"platform":{{"os":"linux","architecture":"arm",
        "variant":"v7","os.features":["x"]}}}},{{"platform":"nonsense","mediaType":"{SCHEMA_1}"}},{{"platform":{{
        "os":{{}}}}}},{{"platform":null}}]}}"#
    );
    let manifest = Manifest::parse(None, body.as_bytes()).unwrap();
    let [first, others @ ..] = &manifest.manifests[..] else { panic!("{manifest:?}") };
    assert_eq!((first.manifest_type(), first.size), (Some(OCI_MANIFEST), 3));
    let platform = first.platform.as_ref().unwrap();
    assert_eq!((&*platform.os, &*platform.architecture, &*platform.variant), ("linux", "arm", "v7"));
    assert_eq!(others, vec![Descriptor::default(); 3]);
}

/// CVE-2021-41190, as clients see it that take names in any letter case.
#[test]
fn a_document_is_of_one_kind_in_every_letter_case() {
    for body in [
        r#"{"config":{},"Layers":[],"manifests":[]}"#,
        r#"{"config":{},"layers":[],"MANIFESTS":null}"#,
        r#"{"config":{},"layers":[],"manifeſts":[]}"#,
        r#"{"config":{},"layers":[],"man\u0069fests":[]}"#,
        r#"{"manifests":[],"manifests":[],"layers":null}"#,
        r#"{"layers":[],"LAYERS":null,"manifests":null}"#,
        r#"{"config":["application/x","sha256:0",1],"layers":[]}"#,
    ] {
        for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
            assert!(Manifest::parse(Some(media_type), body.as_bytes()).is_err(), "{media_type} {body}");
        }
        assert!(Manifest::parse(None, body.as_bytes()).is_err(), "{body}");
    }
    let image = format!(r#"{{"Config":{{"Digest":"{DIGEST}"}},"LAYERS":[{{}}]}}"#);
    let image = Manifest::parse(Some(OCI_MANIFEST), image.as_bytes()).unwrap();
    assert_eq!((image.kind, image.blobs.len()), (Kind::Image, 2));
    assert_eq!(image.blobs[0].digest(), Digest::parse(DIGEST).ok());
}

/// Members of a manifest that the view has no need of, or of a type that it passes over.
const LOOSE_MEMBERS: [&str; 26] = [
    r#","annotations":{"a":null}"#,
    r#","annotations":null"#,
    r#","annotations":{"a":"1","a":"2"}"#,
    r#","annotations":[1,2]"#,
    r#","annotations":"text","annotations":{}"#,
    r#","annotations":{"a":"\ud800"}"#,
    r#","annotations":{"\udc00\ud800":"b"}"#,
    r#","\ud800":1"#,
    r#","annotations":{"a":1e999999}"#,
    r#","annotations":{"a":-0.0E+1}"#,
    r#","artifactType":7"#,
    r#","artifactType":null,"artifactType":"x""#,
    r#","subject":null"#,
    r#","subject":"text""#,
    r#","subject":{"digest":5}"#,
    r#","schemaVersion":2"#,
    r#","schemaVersion":"2""#,
    r#","schemaVersion":null"#,
    r#","schemaVersion":2.0"#,
    r#","SchemaVersion":[]"#,
    r#","mediaType":null"#,
    r#","mediaType":"""#,
    r#","mediaType":7"#,
    r#","blobs":null"#,
    r#","history":[{"v1Compatibility":"{}"}]"#,
    r#","":1,"":2"#,
];

/// The same of a descriptor.
const LOOSE_DESCRIPTORS: [&str; 17] = [
    r#","size":-1"#,
    r#","size":1.5"#,
    r#","size":"3""#,
    r#","size":null"#,
    r#","size":99999999999999999999"#,
    r#","size":1,"Size":2"#,
    r#","mediaType":[]"#,
    r#","mediaType":"\ud800""#,
    r#","mediaType":"a","mediatype":"b""#,
    r#","digest":null"#,
    r#","DIGEST":"$2""#,
    r#","urls":null"#,
    r#","urls":"http://x""#,
    r#","data":7"#,
    r#","platform":"amd64""#,
    r#","platform":{"os":"a","os":1}"#,
    r#","annotations":{"a":null,"a":null}"#,
];

/// What Go's reader takes, and a little more: what is read of it is its kind, and every digest that any client may see.
#[test]
fn manifests_are_read_as_loosely_as_clients_read_them() {
    let other = DIGEST.replace('e', "0");
    let check = |body: &str, digests: usize| {
        let body = body.replace("$1", DIGEST).replace("$2", &other);
        let manifest = Manifest::parse(Some(OCI_MANIFEST), body.as_bytes());
        let manifest = manifest.unwrap_or_else(|error| panic!("{body}: {error:?}"));
        assert_eq!((manifest.kind, &*manifest.media_type), (Kind::Image, OCI_MANIFEST), "{body}");
        assert_eq!(manifest.children().filter_map(Descriptor::digest).count(), digests, "{body}");
    };
    let image = |members: &str, descriptor: &str| {
        format!(
            r#"{{"schemaVersion":2{members},"config":{{"digest":"$1"{descriptor}}},"layers":[{{"digest":"$2"}}]}}"#
        )
    };
    for members in LOOSE_MEMBERS {
        check(&image(members, ""), 2);
    }
    for descriptor in LOOSE_DESCRIPTORS {
        check(&image("", descriptor), 2);
    }
    check(r#"{"config":{"digest":"$1"},"layers":null}"#, 1);
    check(r#"{"config":{"digest":"$1"}}"#, 1);
    check(r#"{"config":null,"layers":[null,{"digest":"$1"}]}"#, 1);
    check(r#"{"config":{"digest":"$1"},"config":{"digest":"$2"},"layers":[]}"#, 2);
    check(r#"{"config":{"digest":"$1"},"layers":[],"layers":[{"digest":"$2"}]}"#, 2);
    check(r#"{"config":{},"layers":[{"digest":"$1"}],"Layers":[{"digest":"$2"}]}"#, 2);
    check(r#"{"config":{"digest":"md5:x"},"layers":[{"digest":"$1"}]}"#, 1);
    check("\t{\"config\":{\"digest\":\"$1\"},\"layers\":[]}\r\n ", 1);
    let latin =
        [br#"{"config":{},"layers":[],"annotations":{"a":"caf"#.as_slice(), b"\xe9\xff", br#""}}"#].concat();
    assert!(Manifest::parse(Some(OCI_MANIFEST), &latin).is_ok());
    let cut = [br#"{"config":{},"layers":[]}"#.as_slice(), b"\xe2\x82"].concat();
    assert!(Manifest::parse(Some(OCI_MANIFEST), &cut).is_err());
}

#[test]
fn a_label_of_another_kind_leaves_it_to_the_content() {
    let image = r#"{"config":{},"layers":[]}"#;
    let typed = format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{{}},"layers":[]}}"#);
    for label in ["text/html", "application/x-gzip", "image/png", "x"] {
        assert_eq!(summary(Some(label), image), format!("{OCI_MANIFEST} Image 1"), "{label}");
        assert_eq!(summary(Some(label), &typed), format!("{DOCKER_MANIFEST} Image 1"), "{label}");
    }
    assert_eq!(summary(Some("application/vnd.example+json"), &typed), format!("{DOCKER_MANIFEST} Image 1"));
}

#[test]
fn what_is_a_manifest_that_no_client_takes_is_told_from_what_is_none() {
    let check = |content_type: Option<&str>, body: &str, expected: bool| {
        let error = Manifest::parse(content_type, body.as_bytes()).unwrap_err();
        assert_eq!(error.is_manifest(), expected, "{content_type:?} {body}");
    };
    let schema_1 = "application/vnd.docker.distribution.manifest.v1+json";
    check(Some(schema_1), r#"{"schemaVersion":1}"#, true);
    check(None, r#"{"schemaVersion":1.0}"#, true);
    check(None, r#"{"schemaVersion":2,"SCHEMAVERSION":1}"#, true);
    check(Some("application/vnd.x+json"), r#"{"schemaVersion":2}"#, true);
    check(None, r#"{"mediaType":"application/vnd.x","layers":[]}"#, true);
    check(Some(OCI_INDEX), r#"{"layers":[],"manifests":[]}"#, true);
    check(Some("application/vnd.api+json"), r#"{"errors":[]}"#, false);
    check(Some(OCI_INDEX), r#"{"message":"log in"}"#, false);
    check(Some(OCI_INDEX), "<html>", false);
    check(None, r#"{"token":"x"}"#, false);
}

#[test]
fn only_so_many_descriptors_are_read() {
    let many = |count: usize| vec!["{}"; count].join(",");
    let index = |count: usize| format!(r#"{{"manifests":[{}]}}"#, many(count));
    assert_eq!(summary(None, &index(DESCRIPTORS_MAX)), format!("{OCI_INDEX} Index {DESCRIPTORS_MAX}"));
    let refused = format!("manifest with more than {DESCRIPTORS_MAX} descriptors");
    assert_eq!(summary(None, &index(DESCRIPTORS_MAX + 1)), refused);
    // All of a document together.
    let image = |layers: usize| format!(r#"{{"subject":{{}},"config":{{}},"layers":[{}]}}"#, many(layers));
    let read = summary(None, &image(DESCRIPTORS_MAX - 2));
    assert_eq!(read, format!("{OCI_MANIFEST} Image {}", DESCRIPTORS_MAX - 1));
    assert_eq!(summary(None, &image(DESCRIPTORS_MAX - 1)), refused);
}

#[test]
fn every_type_asked_for_is_known() {
    assert_eq!(ACCEPT.split(", ").filter(|accepted| is_manifest_type(accepted)).count(), 5);
    assert!(!is_manifest_type("*/*") && !is_manifest_type("text/html"));
}

proptest! {
    #[test]
    fn no_body_panics(header in proptest::option::of(".{0,40}"), body: Vec<u8>) {
        let _ = Manifest::parse(header.as_deref(), &body);
    }

    #[test]
    fn no_json_panics(fields in "(\"(manifests|layers|config|size|digest|mediaType)\":[\\[\\]{}0-9\",null]{0,12},?){0,6}") {
        let _ = Manifest::parse(None, format!("{{{fields}}}").as_bytes());
    }
}

#[test]
fn fuzzed_manifests_are_bounded_in_what_they_become() {
    let target = crate::fuzz::Target {
        name: "manifest",
        words: &[
            "\"manifests\":",
            "\"layers\":",
            "\"config\":",
            "\"blobs\":",
            "\"subject\":",
            "\"digest\":",
            "\"size\":",
            "\"mediaType\":",
            "\"annotations\":",
            "\"schemaVersion\":2",
            "\"artifactType\":",
            "\"urls\":",
            "\"platform\":",
            OCI_INDEX,
            DOCKER_LIST,
            OCI_MANIFEST,
            DOCKER_MANIFEST,
            OCI_ARTIFACT,
            DIGEST,
            "\n",
            "application/json",
        ],
    };
    target.holds_for_json(|input| {
        let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let header = std::str::from_utf8(&input[..line]).ok();
        let body = &input[(line + 1).min(input.len())..];
        let (peak, parsed) = crate::fuzz::peak(|| Manifest::parse(header, body));
        assert!(peak <= crate::fuzz::FIXED_BYTES_MAX + 4 * body.len(), "{peak} bytes of {}", body.len());
        let Ok(manifest) = parsed else { return };
        assert!(is_manifest_type(&manifest.media_type));
        assert!(manifest.children().count() <= body.len() / 2);
        for child in manifest.children() {
            assert!(child.digest().is_none_or(|digest| Digest::parse(&digest.to_string()) == Ok(digest)));
        }
    });
}
