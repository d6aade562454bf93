//! How an upstream is reached: proxies, addresses, certificates, headers, other names; and what may be pulled of it.

use crate::support::{
    Auth, Berth, Certificate, EgressProxy, Fault, Image, Setup, Upstream, basic, eventually, file_of,
};

const REPO: &str = "team/app";
const SECRET: &str = "hunter2-is-secret";

async fn with_image() -> (Upstream, Image) {
    let (upstream, image) = (Upstream::start().await, Image::of(1, &[30_000]));
    upstream.image(REPO, "1", &image);
    (upstream, image)
}

/// A mirror of an upstream by a name that only a proxy, or the configuration, knows.
fn by_name(upstream: &Upstream) -> Setup {
    Setup::new("r.example")
        .endpoint_url(&format!("http://registry.example.test:{}", upstream.address().port()))
}

#[tokio::test]
async fn an_upstream_is_reached_through_its_proxy() {
    let (upstream, image) = with_image().await;
    let proxy = EgressProxy::start().await;
    let berth = by_name(&upstream).keys(&format!("proxy = {:?}", proxy.url())).start().await;
    berth.pull(REPO, "1", &image).await;
    let seen = proxy.seen();
    assert_eq!(seen.len(), upstream.requests().len(), "nothing went another way");
    assert!(seen.iter().all(|line| line.contains("http://registry.example.test:")), "{seen:?}");
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let (upstream, image) = (Upstream::start_tls().await, Image::of(1, &[30_000]));
    upstream.image(REPO, "1", &image);
    let proxy = EgressProxy::start().await;
    let setup = Berth::with("r.example", &upstream);
    let berth = setup.keys(&format!("proxy = {:?}", proxy.url())).start().await;
    berth.pull(REPO, "1", &image).await;
    let tunnel = format!("CONNECT {}", upstream.address());
    assert!(
        proxy.seen().iter().all(|line| *line == tunnel) && !proxy.seen().is_empty(),
        "{:?}",
        proxy.seen()
    );
}

#[tokio::test]
async fn the_environment_names_the_proxy_and_its_login() {
    let (upstream, image) = with_image().await;
    let proxy = EgressProxy::with_login(&basic("robot", SECRET)).await;
    let with_proxy = |setup: Setup, login: &str| {
        setup
            .env("HTTP_PROXY", &format!("http://{login}{}", proxy.address()))
            .env("NO_PROXY", "other.example.test")
    };
    let mut berth = with_proxy(by_name(&upstream), &format!("robot:{SECRET}@")).start().await;
    berth.pull(REPO, "1", &image).await;
    assert!(!proxy.seen().is_empty());
    berth.stop().await;
    assert!(!berth.logs_contain(SECRET));

    let mut berth = with_proxy(by_name(&upstream), "").start().await;
    let reply = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!(reply.status, 503, "the proxy wants a login");
    berth.stop().await;

    // This machine, and what is said not to want a proxy, are asked directly.
    let before = proxy.seen().len();
    let berth = with_proxy(Berth::with("r.example", &upstream), "").start().await;
    berth.pull(REPO, "1", &image).await;
    let berth = with_proxy(by_name(&upstream).keys("proxy = \"none\""), "");
    let berth = berth.keys("addresses = { \"registry.example.test\" = [\"127.0.0.1\"] }").start().await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(proxy.seen().len(), before);
}

#[tokio::test]
async fn what_an_upstream_points_to_is_judged_before_a_proxy_is_asked_for_it() {
    let (upstream, image) = with_image().await;
    let proxy = EgressProxy::start().await;
    let berth = by_name(&upstream).keys(&format!("proxy = {:?}", proxy.url())).start().await;
    for inside in ["http://169.254.169.254/", "http://metadata/", "http://localhost:1/"] {
        upstream.behave();
        upstream.on("GET", "/blobs/").fault(Fault::RedirectTo(inside.to_owned()));
        assert_eq!(berth.get(&image.layer().path(REPO)).await.status, 503, "{inside}");
    }
    let outside = |line: &String| !line.contains("registry.example.test");
    assert!(!proxy.seen().iter().any(outside), "{:?}", proxy.seen());
}

#[tokio::test]
async fn addresses_of_the_configuration_come_before_dns() {
    let (upstream, image) = with_image().await;
    let berth =
        by_name(&upstream).keys("addresses = { \"Registry.example.test\" = [\"127.0.0.1\"] }").start().await;
    berth.pull(REPO, "1", &image).await;
    let host = format!("registry.example.test:{}", upstream.address().port());
    assert!(upstream.requests().iter().all(|request| request.header("host") == Some(&*host)));
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_endpoint_alone() {
    let (old, new) = (Certificate::new(), Certificate::new());
    let (upstream, image) = (Upstream::start_tls_for(&[&old, &new]).await, Image::of(1, &[30_000]));
    upstream.image(REPO, "1", &image);
    let (cert, key) = (file_of(&read(&old.cert())), file_of(&read(&old.key())));
    let keys = format!("client_certificate = {{ cert = {:?}, key = {:?} }}", &*cert, &*key);
    let setup = Berth::with("r.example", &upstream);
    let stranger = setup.clone().start().await;
    assert_eq!(stranger.get(&image.path(REPO)).await.status, 503);

    let other = Upstream::start().await;
    let berth = setup.keys(&keys).and("public.example", &other).start().await;
    berth.pull(REPO, "1", &image).await;
    let elsewhere = berth.get(&format!("{}?ns=public.example", image.layer().path(REPO))).await;
    assert_eq!(elsewhere.status, 404, "what came with it is private");

    // Another one is in use as soon as both files are there.
    upstream.trust_only(&new);
    for (old, new) in [(&cert, new.cert()), (&key, new.key())] {
        std::fs::copy(new, old).unwrap();
    }
    berth.until_logged("a client certificate has changed and is in use").await;
    let next = Image::of(2, &[3000]);
    upstream.image(REPO, "2", &next);
    // So that no connection is left over which the old one was shown.
    upstream.start_again().await;
    eventually("the new one is shown", async || {
        berth.get(&format!("/v2/{REPO}/manifests/2")).await.status == 200
    })
    .await;
}

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn headers_go_to_the_endpoint_alone() {
    let (upstream, image) = with_image().await;
    let (store, other) = (Upstream::start().await, Upstream::start().await);
    store.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(Fault::Redirect(store.url().to_owned()));
    let keys = format!("headers = {{ X-Api-Key = {SECRET:?} }}");
    let berth = Berth::with("r.example", &upstream).keys(&keys).and("public.example", &other).start().await;
    berth.pull(REPO, "1", &image).await;
    assert!(upstream.requests().iter().all(|request| request.header("x-api-key") == Some(SECRET)));
    assert!(!store.requests().is_empty());
    assert!(store.requests().iter().all(|request| request.header("x-api-key").is_none()));
    let elsewhere = berth.get(&format!("{}?ns=public.example", image.layer().path(REPO))).await;
    assert_eq!(elsewhere.status, 404, "what came with them is private");
    assert!(!berth.logs_contain(SECRET));
}

#[tokio::test]
async fn an_upstream_may_know_repositories_by_other_names() {
    let (upstream, image) = (Upstream::start().await, Image::of(1, &[30_000]));
    upstream.image("hub/library/alpine", "3", &image);
    upstream.auth(Auth::Bearer).user("robot", SECRET, "hub/library/");
    let password = file_of(SECRET);
    let login = format!("credentials = {{ username = \"robot\", password_file = {:?} }}", &*password);
    let rewrite = "rewrite = [{ from = \"library/\", to = \"hub/library/\" }]";
    let berth = Berth::with("docker.io", &upstream).keys(&login).keys(rewrite).start().await;
    berth.pull("library/alpine", "3", &image).await;
    let tags = berth.get("/v2/library/alpine/tags/list").await;
    assert_eq!(tags.status, 403, "private lists are not shown");
    assert!(upstream.seen("*", "/v2/").iter().all(|request| request.path().contains("/hub/library/alpine/")));
    // A name that no rule matches stays as it is.
    berth.pull("hub/library/alpine", "3", &image).await;
}

#[tokio::test]
async fn what_the_configuration_does_not_allow_is_refused_from_disk_too() {
    let (upstream, image) = with_image().await;
    upstream.image("team/secret", "1", &image).image("other/app", "1", &image);
    let mut berth = Berth::with("r.example", &upstream).start().await;
    berth.pull("team/secret", "1", &image).await;
    berth.stop().await;
    upstream.forget();
    let limits = "repositories = { allow = [\"team/*\"], deny = [\"*/secret\"] }";
    let setup = Berth::with("r.example", &upstream).keys(limits).data_dir(berth.data_dir());
    let limited = setup.start().await;
    for repo in ["team/secret", "other/app"] {
        for path in
            [format!("/v2/{repo}/manifests/1"), image.layer().path(repo), format!("/v2/{repo}/tags/list")]
        {
            let reply = limited.get(&path).await;
            assert_eq!((reply.status, &*reply.error_code()), (403, "DENIED"), "{path}");
            assert!(reply.text().contains("repositories"), "{}", reply.text());
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    limited.pull(REPO, "1", &image).await;
}
