//! Where an upstream may send berth, and what is never sent along.

use serde_json::json;

use crate::support::{
    Auth, Berth, Fault, Image, Setup, Upstream, basic, eventually, file_of, within_deadline,
};

const REPO: &str = "team/app";
const PASSWORD: &str = "hunter2-is-secret";

/// A registry with one image, and another place that has it too.
async fn two_places() -> (Upstream, Upstream, Image) {
    let (registry, elsewhere) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(1, &[30_000]);
    registry.image(REPO, "1", &image);
    elsewhere.image(REPO, "1", &image);
    (registry, elsewhere, image)
}

/// A URL of that place by an address that no registry may point to, though it leads there.
fn forbidden(place: &Upstream) -> String {
    format!("http://0.0.0.0:{}", place.address().port())
}

#[tokio::test]
async fn what_is_inside_is_not_dialled_on_an_upstreams_word() {
    let (registry, _, image) = two_places().await;
    let berth = Berth::with("r.example", &registry).start().await;
    for target in [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1:8080/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "http://0xa9fea9fe/",
        "http://2852039166/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://user:pw@127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
    ] {
        registry.behave();
        registry.forget();
        registry.on("*", "/v2/").fault(Fault::RedirectTo(target.to_owned()));
        for path in [format!("/v2/{REPO}/manifests/1"), image.path(REPO), image.layer().path(REPO)] {
            let reply = within_deadline(target, berth.get(&path)).await;
            assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{target} {path}");
            assert!(!reply.text().contains("169.254"), "{}", reply.text());
        }
        assert!(registry.requests().len() <= 4, "{target}: a refusal is not asked again and again");
    }
    registry.behave();
    eventually("nothing was stored of that", async || {
        berth.get(&image.layer().path(REPO)).await.body == image.layer().content
    })
    .await;
}

#[tokio::test]
async fn redirect_hosts_open_the_way() {
    let (registry, elsewhere, image) = two_places().await;
    registry.on("*", "/v2/").fault(Fault::Redirect(forbidden(&elsewhere)));
    let berth = Berth::with("r.example", &registry).start().await;
    assert_eq!(berth.get(&image.layer().path(REPO)).await.status, 503);
    assert_eq!(elsewhere.connections(), 0);
    let berth = Berth::with("r.example", &registry).keys("redirect_hosts = [\"0.0.0.0\"]").start().await;
    berth.pull(REPO, "1", &image).await;
    assert!(elsewhere.connections() > 0);
}

#[tokio::test]
async fn manifests_are_redirected_too() {
    let (registry, elsewhere, image) = two_places().await;
    registry.on("*", "/v2/").fault(Fault::Redirect(elsewhere.url().to_owned()));
    let berth = Berth::with("registry.k8s.io", &registry).start().await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!((elsewhere.count("HEAD", "/manifests/1"), elsewhere.count("GET", "/manifests/")), (1, 1));
    for request in elsewhere.seen("*", "/manifests/") {
        assert!(request.header("accept").unwrap().contains("application/vnd.oci.image.index.v1+json"));
    }
}

#[tokio::test]
async fn going_round_in_circles_ends() {
    let (registry, elsewhere, image) = two_places().await;
    registry.on("*", "/v2/").fault(Fault::Redirect(elsewhere.url().to_owned()));
    elsewhere.on("*", "/v2/").fault(Fault::Redirect(registry.url().to_owned()));
    let berth = Berth::with("r.example", &registry).start().await;
    let reply = within_deadline("an end", berth.get(&image.layer().path(REPO))).await;
    assert_eq!(reply.status, 503);
    assert!(registry.requests().len() + elsewhere.requests().len() <= 6);
}

/// A mirror that has a login for that registry.
fn with_login(registry: &Upstream, password: &std::path::Path) -> Setup {
    let keys = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    Berth::with("r.example", registry).keys(&keys)
}

#[tokio::test]
async fn a_login_stays_where_it_was_asked_for() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let (registry, elsewhere, image) = two_places().await;
        registry.auth(auth).user("robot", PASSWORD, "team/");
        registry.on("*", "/v2/").fault(Fault::Redirect(elsewhere.url().to_owned()));
        let password = file_of(PASSWORD);
        let berth = with_login(&registry, &password).start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(registry.requests().iter().any(|request| request.header("authorization").is_some()));
        let is_bare =
            |place: &Upstream| place.requests().iter().all(|it| it.header("authorization").is_none());
        assert!(!elsewhere.requests().is_empty() && is_bare(&elsewhere), "another port is another place");

        // Nor does asking for it help.
        let other = Image::of(2, &[3000]);
        registry.image(REPO, "2", &other);
        elsewhere.image(REPO, "2", &other).auth(auth).user("robot", PASSWORD, "team/");
        assert_eq!(berth.get(&other.layer().path(REPO)).await.status, 503);
        let sent = |place: &Upstream| -> Vec<String> {
            let requests = place.requests();
            requests.iter().filter_map(|it| it.header("authorization").map(str::to_owned)).collect()
        };
        let (here, there) = (sent(&registry), sent(&elsewhere));
        assert!(there.iter().all(|header| header.starts_with("Bearer ") && !here.contains(header)));
        // A token is asked for as anybody would.
        assert!(elsewhere.seen("*", "/token").iter().all(|it| it.header("authorization").is_none()));
        assert_eq!(there.is_empty(), auth == Auth::Basic);
    }
}

#[tokio::test]
async fn tls_is_not_left() {
    let (secure, plain) = (Upstream::start_tls().await, Upstream::start().await);
    let image = Image::of(1, &[3000]);
    secure.image(REPO, "1", &image).on("GET", "/blobs/").fault(Fault::Redirect(plain.url().to_owned()));
    plain.image(REPO, "1", &image);
    let berth = Berth::with("r.example", &secure).keys("redirect_hosts = [\"127.0.0.1\"]").start().await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/1")).await.status, 200);
    let refused = berth.get(&image.layer().path(REPO)).await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("plain_http_hosts"), "{}", refused.text());

    secure.auth(Auth::Bearer).user("robot", PASSWORD, "team/").realm(&format!("{}/token", plain.url()));
    let password = file_of(PASSWORD);
    let berth = with_login(&secure, &password).keys("realm_hosts = [\"127.0.0.1\"]").start().await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/1")).await.status, 503);
    assert_eq!(plain.connections(), 0);
}

#[tokio::test]
async fn blobs_alone_come_without_tls_from_stores_that_are_named() {
    let (secure, plain) = (Upstream::start_tls().await, Upstream::start().await);
    let (right, wrong) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    secure.auth(Auth::Basic).user("robot", PASSWORD, "team/");
    secure.image(REPO, "1", &right).image(REPO, "2", &wrong);
    secure.on("GET", "/blobs/").fault(Fault::Redirect(plain.url().to_owned()));
    plain.image(REPO, "1", &right).image(REPO, "2", &wrong);
    plain.on("GET", &wrong.layer().digest.to_string()).fault(Fault::WrongByte(7));
    let keys = "redirect_hosts = [\"127.0.0.1\"]\nplain_http_hosts = [\"127.0.0.1\"]";
    let password = file_of(PASSWORD);
    let berth = with_login(&secure, &password).keys(keys).start().await;
    berth.pull(REPO, "1", &right).await;
    assert!(plain.requests().iter().all(|it| it.header("authorization").is_none()));
    let lie = berth.get(&wrong.layer().path(REPO)).await;
    assert!(!lie.complete || lie.status != 200, "{}", lie.status);
    // Of a manifest by tag nothing is proven.
    secure.on("GET", "/manifests/3").fault(Fault::Redirect(plain.url().to_owned()));
    secure.on("HEAD", "/manifests/3").fault(Fault::Redirect(plain.url().to_owned()));
    plain.image(REPO, "3", &wrong);
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/3")).await.status, 503);
    assert!(plain.seen("*", "/manifests/").is_empty());
}

#[tokio::test]
async fn a_password_goes_to_no_token_server_that_the_registry_may_not_name() {
    let (registry, thief, _) = two_places().await;
    registry.auth(Auth::Bearer).user("robot", PASSWORD, "team/");
    thief.user("robot", PASSWORD, "team/");
    let password = file_of(PASSWORD);
    let path = format!("/v2/{REPO}/manifests/1");
    for realm in [
        forbidden(&thief),
        format!("http://localhost:{}", thief.address().port()),
        format!("http://127.0.0.1@localhost:{}", thief.address().port()),
        "http://169.254.169.254".to_owned(),
        "https://evil.example".to_owned(),
        "ftp://127.0.0.1".to_owned(),
    ] {
        registry.realm(&format!("{realm}/token"));
        for setup in [with_login(&registry, &password), Berth::with("r.example", &registry)] {
            let reply = setup.start().await.get(&path).await;
            assert_eq!(reply.status, 503, "{realm}: {}", reply.text());
        }
    }
    assert_eq!(thief.connections(), 0);

    for host in ["localhost", "0.0.0.0"] {
        registry.realm(&format!("http://{host}:{}/token", thief.address().port()));
        let setup = with_login(&registry, &password).keys(&format!("realm_hosts = [\"{host}\"]"));
        assert_eq!(setup.start().await.get(&path).await.status, 200, "{host}");
    }
    assert_eq!(thief.seen("GET", "/token")[0].header("authorization"), Some(&*basic("robot", PASSWORD)));
}

#[tokio::test]
async fn a_token_server_cannot_send_the_password_on() {
    let (registry, thief, _) = two_places().await;
    registry.auth(Auth::Bearer).user("robot", PASSWORD, "team/");
    registry.on("*", "/token").fault(Fault::Redirect(thief.url().to_owned()));
    let password = file_of(PASSWORD);
    let berth = with_login(&registry, &password).start().await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/1")).await.status, 503);
    assert_eq!(thief.connections(), 0);
}

#[tokio::test]
async fn a_client_cannot_make_berth_dial_anything() {
    let (registry, victim, image) = two_places().await;
    let berth = Berth::with("r.example", &registry).start().await;
    let (address, port) = (victim.address(), victim.address().port());
    for path in [
        format!("/v2/{REPO}/manifests/1?ns={address}"),
        format!("/v2/{REPO}/manifests/1?ns=localhost:{port}"),
        format!("/v2/{REPO}/manifests/1?ns=r.example&ns={address}"),
        format!("/v2/{REPO}/manifests/1?ns=r.example@{address}"),
        format!("/v2/{address}/{REPO}/manifests/1"),
        format!("/{address}/v2/{REPO}/manifests/1"),
        format!("/v2/{REPO}/blobs/{}?ns={address}", image.layer().digest),
        format!("/v2/?ns={address}"),
    ] {
        let reply = berth.get(&path).await;
        assert!(reply.status == 404 || path.contains("ns=r.example&"), "{path}: {}", reply.status);
    }
    let host = berth.get(&format!("/v2/{REPO}/manifests/1")).header("host", &address.to_string()).await;
    assert_eq!(host.status, 200, "a Host that is nobody's means the default");
    assert_eq!(victim.connections(), 0);
}

#[tokio::test]
async fn urls_in_manifests_and_links_in_lists_are_not_followed() {
    let (registry, victim, image) = two_places().await;
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let mut layer = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "size": 30_000,
        "digest": image.layer().digest.to_string(),
    });
    layer["urls"] = json!([format!("{}{}", victim.url(), image.layer().path(REPO))]);
    let config = json!({ "mediaType": "application/vnd.docker.container.image.v1+json", "size": 2,
        "digest": image.config().digest.to_string(), "urls": [victim.url()] });
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
    let foreign = Image {
        media_type,
        manifest: manifest.to_string().into(),
        blobs: Vec::new(),
        children: Vec::new(),
        subject: None,
        artifact_type: None,
    };
    registry.image("team/foreign", "1", &foreign);
    let link = format!("<{}/v2/team/app/tags/list?last=0>; rel=\"next\"", victim.url());
    registry.on("GET", "/tags/list").first(1).fault(Fault::Header("Link", link));
    let berth = Berth::with("r.example", &registry).start().await;
    berth.pull("team/foreign", "1", &foreign).await;
    assert_eq!(berth.get(&image.layer().path("team/foreign")).await.status, 404);
    assert_eq!(berth.get(&format!("/v2/{REPO}/tags/list")).await.status, 200);
    assert_eq!(victim.connections(), 0);
}

/// A store behind the registry's own ingress: it is outside of `/v2/`, and its signatures expire (B7).
#[tokio::test]
async fn what_a_store_on_the_registrys_own_host_refuses_is_asked_of_the_registry_again() {
    let expired = [
        Fault::Says(403, "application/xml", "<Error><Code>AccessDenied</Code></Error>"),
        Fault::Says(403, "application/json", r#"{"errors":[{"code":"DENIED","message":"expired"}]}"#),
        Fault::Says(404, "application/xml", "<Error><Code>NoSuchKey</Code></Error>"),
        Fault::Says(401, "text/plain", "expired"),
        Fault::Says(400, "application/xml", "<Error><Code>ExpiredToken</Code></Error>"),
    ];
    for fault in expired {
        let registry = Upstream::start().await;
        let image = Image::of(1, &[3_000_000]);
        registry.image(REPO, "1", &image).auth(Auth::Basic).user("robot", PASSWORD, "team/");
        let (layer, password) = (image.layer(), file_of(PASSWORD));
        let store = format!("/store/{}", layer.digest);
        let path = layer.path(REPO);
        registry.on("GET", &path).fault(Fault::RedirectTo(format!("{}{store}?signature=1", registry.url())));
        let content = Fault::Content("application/octet-stream", layer.content.clone());
        registry.on("GET", &store).fault(content);
        registry.on("GET", &store).first(1).fault(Fault::Cut(1_000_000));
        registry.on("GET", &store).nth(2).fault(fault);
        let berth = with_login(&registry, &password).start().await;
        let reply = within_deadline("the whole blob", berth.get(&path)).await;
        assert_eq!(reply.expect(200), &layer.content);
        let asked = registry.seen("GET", &store);
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|request| request.header("authorization").is_none()));
        assert!(registry.count("GET", &path) >= 3, "each signature is used once");
    }
}

/// Nor does it unmake what is not here yet.
#[tokio::test]
async fn what_a_store_refuses_is_no_word_of_the_registry() {
    for status in [401, 403, 404] {
        let registry = Upstream::start().await;
        let image = Image::of(1, &[3000]);
        registry.image(REPO, "1", &image);
        let path = image.layer().path(REPO);
        registry.on("*", &path).fault(Fault::RedirectTo(format!("{}/store/x", registry.url())));
        registry.on("*", "/store/").fault(Fault::Status(status));
        let berth = Berth::with("r.example", &registry).start().await;
        for reply in [berth.get(&path).await, berth.head(&path).await] {
            assert_eq!(reply.status, 503, "{status}");
        }
        registry.behave();
        assert_eq!(berth.get(&path).await.expect(200), &image.layer().content);
    }
}
