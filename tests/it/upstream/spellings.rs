//! What others write in another way than expected, and mean (rows of C: paths, names, redirects, `NO_PROXY`, token servers,
//! offers of a login, what berth is called).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::{Auth, Berth, EgressProxy, Fault, Image, Setup, Upstream, file_of};

const REPO: &str = "team/app";
const PASSWORD: &str = "hunter2-is-secret";

async fn with_image() -> (Upstream, Image) {
    let (upstream, image) = (Upstream::start().await, Image::of(1, &[30_000]));
    upstream.image(REPO, "1", &image);
    (upstream, image)
}

/// A login for it.
fn login(password: &std::path::Path) -> String {
    format!("credentials = {{ username = \"robot\", password_file = {password:?} }}")
}

#[tokio::test]
async fn one_image_is_one_however_its_path_is_spelt() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    upstream.image("library/app", "1", &image).image("team/secret", "1", &image);
    let setup = Berth::with("docker.io", &upstream).keys("repositories = { deny = [\"team/secret\"] }");
    let berth = setup.start().await;
    let digest = image.layer().digest;
    for path in [
        "/v2/library%2Fapp/manifests/1".to_owned(),
        "/v2/library%2fapp/manifests/1/".to_owned(),
        "/v2//library//app/manifests/1".to_owned(),
        "/v2/library/app/manifests/1?ns=docker.io:443".to_owned(),
        "/v2/docker.io:443/library/app/manifests/1".to_owned(),
    ] {
        let reply = berth.get(&path).await;
        assert_eq!(reply.expect(200), &image.manifest, "{path}");
        assert_eq!(reply.header("oci-namespace"), Some("docker.io"), "{path}");
    }
    for path in [format!("/v2/library%2Fapp/blobs/{digest}"), format!("/v2/library/app/blobs/{digest}/")] {
        assert_eq!(berth.get(&path).await.expect(200), &image.layer().content, "{path}");
    }
    let tags = berth.get("/v2/library%2Fapp/tags/list/").await;
    assert_eq!(tags.json()["name"], "library/app", "{}", tags.text());
    assert_eq!((upstream.count("GET", "/manifests/"), upstream.count("GET", "/blobs/")), (1, 1));
    assert!(upstream.requests().iter().all(|it| !it.path().contains('%') && !it.path().contains("//")));
    // No spelling gets round a rule, out of a name, or to another's folder.
    for path in
        ["/v2/team%2Fsecret/manifests/1", "/v2//team/secret/manifests/1", "/v2/team/%73ecret/manifests/1/"]
    {
        assert_eq!(berth.get(path).await.status, 403, "{path}");
    }
    for path in [
        "/v2/library%2F..%2Fteam%2Fsecret/manifests/1",
        "/v2/library%252Fapp/manifests/1",
        "/v2/library%5Capp/manifests/1",
        "/v2/library%00/manifests/1",
    ] {
        assert_eq!(berth.get(path).await.status, 400, "{path}");
    }
    assert!(!berth.data_dir().join("repos/docker.io/team").exists());
}

#[tokio::test]
async fn a_redirect_may_have_letters_beyond_ascii() {
    let (upstream, image) = with_image().await;
    let store = Upstream::start().await;
    let content = image.layer().content.clone();
    store.on("GET", "/gr").fault(Fault::Content("application/octet-stream", content));
    let target = format!("{}/größe/{}?name=ümlaut", store.url(), image.layer().digest);
    upstream.on("*", "/blobs/").fault(Fault::RedirectTo(target));
    let berth = Berth::with("r.example", &upstream).start().await;
    assert_eq!(berth.get(&image.layer().path(REPO)).await.expect(200), &image.layer().content);
    assert!(store.requests()[0].target.starts_with("/gr%C3%B6%C3%9Fe/"), "{}", store.requests()[0].target);
}

#[tokio::test]
async fn no_proxy_may_name_a_port_or_what_is_below_a_domain() {
    for (form, is_direct) in [
        ("HOST:PORT", true),
        ("*.example.test", true),
        ("a.test,*.example.test:PORT", true),
        ("HOST:1", false),
    ] {
        let (upstream, image) = with_image().await;
        let proxy = EgressProxy::start().await;
        let port = upstream.address().port();
        let list = form.replace("HOST", "registry.example.test").replace("PORT", &port.to_string());
        let setup = Setup::new("r.example")
            .endpoint_url(&format!("http://registry.example.test:{port}"))
            .keys("addresses = { \"registry.example.test\" = [\"127.0.0.1\"] }");
        let berth = setup.env("HTTP_PROXY", &proxy.url()).env("NO_PROXY", &list).start().await;
        berth.pull(REPO, "1", &image).await;
        assert_eq!(proxy.seen().is_empty(), is_direct, "{list}: {:?}", proxy.seen());
    }
}

#[tokio::test]
async fn a_token_server_may_redirect_on_its_own_host_answer_201_and_say_much() {
    let password = file_of(PASSWORD);
    let token = BASE64_STANDARD.encode(format!("{} {REPO}", u32::MAX));
    let long = format!("{{\"token\":\"{token}\",\"grants\":\"{}\"}}", "x".repeat(200 << 10));
    for case in ["redirect", "created", "long"] {
        let (upstream, image) = with_image().await;
        upstream.auth(Auth::Bearer).user("robot", PASSWORD, "team/");
        match case {
            "redirect" => {
                let to = format!("/token?moved=1&service=fake&scope=repository:{REPO}:pull");
                upstream.on("GET", "/token?service").fault(Fault::RedirectTo(to));
            }
            "created" => upstream.on("GET", "/token").fault(Fault::As(201)),
            _ => upstream.on("GET", "/token").fault(Fault::Content("application/json", long.clone().into())),
        }
        let berth = Berth::with("r.example", &upstream).keys(&login(&password)).start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(
            upstream.seen("GET", "/token").iter().all(|it| it.header("authorization").is_some()),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_login_never_follows_a_token_server_to_another_place() {
    let password = file_of(PASSWORD);
    let ((upstream, image), elsewhere) = (with_image().await, Upstream::start().await);
    upstream.auth(Auth::Bearer).user("robot", PASSWORD, "team/");
    upstream.on("*", "/token").fault(Fault::Redirect(elsewhere.url().to_owned()));
    let berth = Berth::with("r.example", &upstream).keys(&login(&password)).start().await;
    assert_eq!(berth.get(&image.layer().path(REPO)).await.status, 503);
    assert_eq!(elsewhere.connections(), 0, "another port is another place");
    // Nor round and round.
    let round = format!("/token?service=fake&scope=repository:{REPO}:pull");
    upstream.behave();
    upstream.forget();
    upstream.on("*", "/token").fault(Fault::RedirectTo(round));
    assert_eq!(berth.get(&Image::of(2, &[10]).layer().path(REPO)).await.status, 503);
    assert!(upstream.count("GET", "/token") <= 8, "{}", upstream.count("GET", "/token"));
}

#[tokio::test]
async fn an_offer_of_tokens_that_is_of_no_use_does_not_hide_one_of_basic() {
    let password = file_of(PASSWORD);
    for offer in [
        "Bearer realm=\"https://auth.elsewhere.test/token\",service=\"x\"",
        "Bearer realm=\"ftp://127.0.0.1/token\"",
        "Bearer realm=\"/token\"",
        "Bearer",
        "Negotiate",
    ] {
        let (upstream, image) = with_image().await;
        upstream.auth(Auth::Basic).user("robot", PASSWORD, "team/").offers(offer);
        let berth = Berth::with("r.example", &upstream).keys(&login(&password)).start().await;
        berth.pull(REPO, "1", &image).await;
        // Without a login the offer that nobody may take is what is told of.
        let stranger = Berth::with("r.example", &upstream).start().await;
        assert_ne!(stranger.get(&image.layer().path(REPO)).await.status, 200, "{offer}");
    }
}

#[tokio::test]
async fn what_berth_is_called_makes_nothing_private() {
    let (upstream, image) = with_image().await;
    let (store, other) = (Upstream::start().await, Upstream::start().await);
    store.image(REPO, "1", &image);
    upstream.auth(Auth::Bearer).anonymous("team/");
    upstream.on("GET", "/blobs/").fault(Fault::Redirect(store.url().to_owned()));
    let agent = "site-mirror (ops@example.com)";
    let keys = format!("user_agent = {agent:?}");
    let berth = Berth::with("r.example", &upstream).keys(&keys).and("public.example", &other).start().await;
    berth.pull(REPO, "1", &image).await;
    for place in [&upstream, &store] {
        assert!(!place.requests().is_empty());
        assert!(place.requests().iter().all(|request| request.header("user-agent") == Some(agent)));
    }
    berth.until_stored(&image.layer().path(REPO)).await;
    let shared = berth.get(&format!("{}?ns=public.example", image.layer().path(REPO))).await;
    assert_eq!(shared.expect(200), &image.layer().content, "what comes with it is for everybody");
    assert!(other.requests().iter().all(|request| request.header("user-agent") != Some(agent)));
    assert_eq!(berth.get(&format!("/v2/{REPO}/tags/list")).await.status, 200);
}
