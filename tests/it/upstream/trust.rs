//! Certificates of one's own, as people make them: named in `ca` themselves, in bundles, between berths. A3 and B6 of the
//! field's reports.

use std::path::Path;

use crate::support::{
    BERTH, Berth, Certificate, Image, Setup, Upstream, eventually, file_of, get, within_deadline,
};

const REPO: &str = "library/app";
/// What Red Hat's manual of its mirror registry says, and many others.
const RECIPE: [&str; 10] = [
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-days",
    "30",
    "-subj",
    "/CN=registry",
    "-addext",
    "subjectAltName=DNS:localhost,IP:127.0.0.1",
];

/// A registry with one image and this certificate.
async fn registry(certificate: Certificate) -> (Upstream, Image) {
    let upstream = Upstream::start_tls_with(certificate).await;
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image);
    (upstream, image)
}

/// What `check-config` says of this, and its exit code.
async fn check_config(toml: &str) -> (Option<i32>, String) {
    let file = file_of(toml);
    let mut command = tokio::process::Command::new(BERTH);
    command.args(["check-config", "--config"]).arg(&*file as &Path).env_clear();
    let output = within_deadline("check-config ends", command.output()).await.unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), text)
}

fn upstream_section(endpoint: &str, ca: &Path) -> String {
    format!("[[upstream]]\nregistry = \"r.example\"\nendpoints = [{endpoint:?}]\nca = [{ca:?}]\n")
}

#[tokio::test]
async fn a_certificate_of_openssl_named_in_ca_is_that_of_the_server() {
    let certificate = Certificate::of_openssl(&RECIPE).await;
    let (toml, advice) = (upstream_section("https://127.0.0.1:5000", &certificate.ca()), "warning");
    let (code, said) = check_config(&toml).await;
    assert!(code == Some(0) && !said.contains(advice), "{said}");
    let (upstream, image) = registry(certificate).await;
    let berth = Berth::with("docker.io", &upstream).start().await;
    berth.pull(REPO, "1", &image).await;
}

#[tokio::test]
async fn without_the_very_certificate_or_its_name_or_in_its_time_it_is_refused() {
    let path = format!("/v2/{REPO}/manifests/1");
    let refused = async |berth: &Berth, what: &str| {
        assert_eq!(berth.get(&path).await.status, 503, "{what}");
        berth.until_logged(what).await;
    };
    let (upstream, image) = registry(Certificate::self_signed(&["127.0.0.1"])).await;
    let berth = Berth::with("docker.io", &upstream).start().await;
    upstream.expire(true);
    refused(&berth, "expired").await;
    upstream.expire(false);
    let other = Certificate::self_signed(&["127.0.0.1"]);
    let setup = Setup::new("docker.io").endpoint_url(upstream.url());
    refused(&setup.keys(&format!("ca = [{:?}]", other.ca())).start().await, "that very certificate").await;
    eventually("it is asked again", async || berth.get(&path).await.status == 200).await;
    berth.pull(REPO, "1", &image).await;

    let (upstream, _) = registry(Certificate::self_signed(&["localhost"])).await;
    refused(&Berth::with("docker.io", &upstream).start().await, "not valid for name").await;
}

#[tokio::test]
async fn berths_trust_one_another_by_such_certificates() {
    let registry = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    registry.image(REPO, "1", &image);
    let (site, node) = (Certificate::self_signed(&["127.0.0.1"]), Certificate::self_signed(&["node"]));
    let tls = format!(
        "tls = {{ cert = {:?}, key = {:?}, client_ca = {:?} }}",
        site.cert(),
        site.key(),
        node.cert()
    );
    let parent = Berth::with("docker.io", &registry).http(&tls).start().await;
    let url = format!("https://{}", parent.address());
    let below = |keys: &str| {
        let parents =
            format!("[parents]\nendpoints = [{url:?}]\nonly = true\nca = [{:?}]\n{keys}", site.cert());
        Setup::new("docker.io").endpoint_url("http://127.0.0.1:1").sections(&parents)
    };
    let shown = format!("client_certificate = {{ cert = {:?}, key = {:?} }}", node.cert(), node.key());
    below(&shown).start().await.pull(REPO, "1", &image).await;
    let stranger = Certificate::self_signed(&["node"]);
    let shown =
        format!("client_certificate = {{ cert = {:?}, key = {:?} }}", stranger.cert(), stranger.key());
    let refused = below(&shown).start().await.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!(refused.status, 503);
    assert!(
        get(format!("{url}/v2/")).trusting(&site.cert()).try_send().await.is_err(),
        "without a certificate"
    );
}

#[tokio::test]
async fn a_certificate_that_cannot_work_is_told_with_how_to_make_one() {
    let check = async |names: Option<&str>, expected: &str| {
        let subject = ["-subj", "/CN=registry.example.com"];
        let names: Vec<_> = names.into_iter().flat_map(|names| ["-addext", names]).collect();
        let args = [&RECIPE[..6], &subject, &names].concat();
        let certificate = Certificate::of_openssl(&args).await;
        let (code, said) =
            check_config(&upstream_section("https://registry.example.com", &certificate.ca())).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("warning: the certificate in ") && said.contains(expected), "{said}");
        assert!(said.contains("-addext subjectAltName=DNS:registry.example.com"), "{said}");
    };
    check(None, "has no subjectAltName").await;
    check(Some("subjectAltName=DNS:mirror.example.com"), "is for other hosts than registry.example.com")
        .await;
}

#[tokio::test]
async fn all_of_a_bundle_counts_as_cat_makes_it() {
    let pem = |certificate: &Certificate| std::fs::read_to_string(certificate.ca()).unwrap();
    let upstream = Upstream::start_tls().await;
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image);
    let (other, own) = (pem(&Certificate::new()), std::fs::read_to_string(upstream.ca().unwrap()).unwrap());
    for bundle in [
        format!("{}{own}", other.trim_end()),
        format!("{}\u{feff}{own}", other.trim_end()),
        format!("\u{feff}{other}\u{feff}{own}"),
        format!("\u{feff}{other}{own}").replace('\n', "\r\n"),
    ] {
        let file = file_of(&bundle);
        let setup = Setup::new("docker.io").endpoint_url(upstream.url()).keys(&format!("ca = [{file:?}]"));
        setup.start().await.pull(REPO, "1", &image).await;
    }
    let cut = file_of(&format!("{own}{}", &other[..other.len() / 2]));
    let (code, said) = check_config(&upstream_section("https://127.0.0.1:5000", &cut)).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(cut.to_str().unwrap()) && said.contains("certificate 2 does not end"), "{said}");
}
