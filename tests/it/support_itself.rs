//! The fake registry, the image builder and the client, proven against each other: a test of berth means
//! little if its witnesses lie.

use std::future::IntoFuture as _;
use std::time::{Duration, Instant};

use berth::oci::{Algorithm, Digest, Manifest};

use crate::support::{
    Auth, Berth, Blob, Certificate, Fault, Gate, Image, Reply, Upstream, ask, docker_config, eventually,
    file_of, get, head, raw, together,
};

const BASIC: &str = "Basic realm=\"fake\"";

/// A fake with one image of one layer, and the URL of that layer.
async fn one_layer(size: usize) -> (Upstream, Blob, String) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[size]);
    upstream.image("library/alpine", "3", &image);
    let url = upstream.url().to_owned() + &image.layer().path("library/alpine");
    (upstream, image.layer().clone(), url)
}

#[tokio::test]
async fn an_honest_registry_serves_what_was_put_in() {
    let upstream = Upstream::start().await;
    let image =
        Image::index(&[&Image::of(1, &[5000, 10]), &Image::draft(2, &[3000]).docker().sha512().build()]);
    upstream.image("library/alpine", "3", &image);
    for name in ["3".to_owned(), image.digest().to_string()] {
        let url = format!("{}/v2/library/alpine/manifests/{name}", upstream.url());
        let reply = get(&url).await;
        assert_eq!(reply.expect(200), &image.manifest);
        assert_eq!(reply.header("content-type"), Some(image.media_type));
        assert_eq!(reply.header("docker-content-digest"), Some(&*image.digest().to_string()));
        let head = head(&url).await;
        assert_eq!((head.status, head.headers, head.body.len()), (200, reply.headers, 0));
    }
    for child in image.closure() {
        get(upstream.url().to_owned() + &child.path("library/alpine")).await.expect(200);
        for blob in &child.blobs {
            let reply = get(upstream.url().to_owned() + &blob.path("library/alpine")).await;
            assert_eq!(Digest::of(blob.digest.algorithm(), reply.expect(200)), blob.digest);
            assert_eq!(upstream.bytes_sent(&blob.digest), blob.len());
        }
        let manifest = Manifest::parse(Some(child.media_type), &child.manifest).unwrap();
        assert_eq!(manifest.children().count(), child.children.len() + child.blobs.len());
    }
    let other = get(upstream.url().to_owned() + &image.path("library/other")).await;
    assert_eq!((other.status, other.error_code()), (404, "NAME_UNKNOWN".to_owned()));
    assert_eq!((upstream.count("HEAD", "/manifests/"), upstream.count("*", "library/other")), (2, 1));
    upstream.untag("library/alpine", "3");
    upstream.remove("library/alpine", &image.digest());
    for name in ["3".to_owned(), image.digest().to_string()] {
        let url = format!("{}/v2/library/alpine/manifests/{name}", upstream.url());
        assert_eq!(head(url).await.status, 404);
    }
}

#[tokio::test]
async fn ranges_are_served_or_ignored() {
    let (upstream, layer, url) = one_layer(10_000).await;
    let reply = get(&url).range("9000-").await;
    assert_eq!(reply.expect(206), &layer.content.slice(9000..));
    assert_eq!(reply.header("content-range"), Some("bytes 9000-9999/10000"));
    assert_eq!(get(&url).range("10000-").await.status, 416);
    upstream.on("GET", "/blobs/").first(1).fault(Fault::Header("Content-Range", "bytes 0-9/9".to_owned()));
    assert_eq!(get(&url).range("9999-").await.header("content-range"), Some("bytes 0-9/9"));
    upstream.on("GET", "/blobs/").fault(Fault::IgnoreRange);
    assert_eq!(get(&url).range("9000-").await.expect(200), &layer.content);
    assert_eq!(upstream.bytes_sent(&layer.digest), 11_001);
}

#[tokio::test]
async fn faults_befall_the_requests_they_are_for() {
    let (upstream, _, url) = one_layer(100).await;
    upstream.on("GET", "/blobs/").nth(2).fault(Fault::Status(503));
    upstream.on("GET", "/blobs/").after(3).fault(Fault::Limited(7));
    upstream.on("HEAD", "").first(1).fault(Fault::Status(405));
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(get(&url).await.status);
    }
    assert_eq!(said, [200, 503, 200, 429]);
    assert_eq!(get(&url).await.header("retry-after"), Some("7"));
    assert_eq!((head(&url).await.status, head(&url).await.status), (405, 200));
    upstream.behave();
    assert_eq!(get(&url).await.status, 200);
    upstream.forget();
    assert_eq!(upstream.count("*", ""), 0);
}

#[tokio::test]
async fn contents_and_framings_are_wrong_as_ordered() {
    let (upstream, layer, url) = one_layer(50_000).await;
    // How many bytes came, whether that was the end, and whether they are the right ones.
    let check = async |fault: Fault, length: usize, complete: bool, right: bool| {
        upstream.behave();
        upstream.on("GET", "/blobs/").fault(fault);
        let reply = get(&url).await;
        let is_right = reply.body[..] == layer.content[..reply.body.len().min(50_000)];
        assert_eq!(
            (reply.status, reply.body.len(), reply.complete, is_right),
            (200, length, complete, right)
        );
    };
    check(Fault::WrongByte(49_999), 50_000, true, false).await;
    check(Fault::Short(1), 49_999, true, true).await;
    check(Fault::Long(1), 50_001, true, false).await;
    check(Fault::ClaimLength(50_001), 50_000, false, true).await;
    check(Fault::ClaimLength(100), 100, true, true).await;
    check(Fault::Chunked, 50_000, true, true).await;
    check(Fault::UntilClose, 50_000, true, true).await;
    check(Fault::Cut(20_001), 20_001, false, true).await;
    check(Fault::Cut(0), 0, false, true).await;
    check(Fault::Html, 36, true, false).await;
    upstream.on("GET", "/blobs/").fault(Fault::Chunked);
    assert_eq!(get(&url).await.header("content-length"), None);
    upstream.on("GET", "/blobs/").fault(Fault::Header("Content-Encoding", "gzip".to_owned()));
    upstream.on("GET", "/blobs/").fault(Fault::WithoutHeader("content-type"));
    let reply = get(&url).await;
    assert_eq!((reply.header("content-encoding"), reply.header("content-type")), (Some("gzip"), None));
}

#[tokio::test]
async fn some_faults_are_no_http_at_all() {
    let (upstream, _, url) = one_layer(100).await;
    upstream.on("GET", "").first(1).fault(Fault::Garbage(b"SSH-2.0-OpenSSH_9.2\r\n"));
    assert!(get(&url).try_send().await.is_err());
    upstream.on("GET", "").first(1).fault(Fault::Hangup);
    assert!(get(&url).try_send().await.is_err());
    assert_eq!(raw(upstream.address(), b"nonsense\r\n\r\n").await, b"");
    assert_eq!(get(&url).await.status, 200);
}

#[tokio::test]
async fn a_gate_holds_a_head_or_a_body_until_it_opens() {
    let (upstream, layer, url) = one_layer(50_000).await;
    let (head, body) = (Gate::new(), Gate::new());
    upstream.on("GET", "/blobs/").fault(Fault::Hold(head.clone()));
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(30_000, body.clone()));
    let reading = tokio::spawn(get(&url).open());
    eventually("the request is there", async || upstream.count("GET", "/blobs/") == 1).await;
    assert!(!reading.is_finished());
    head.open();
    let mut reading = reading.await.unwrap();
    assert_eq!(reading.bytes(30_000).await, layer.content.slice(..30_000));
    assert_eq!(upstream.bytes_sent(&layer.digest), 30_000);
    body.open();
    assert_eq!(reading.read().await.expect(200), &layer.content.slice(30_000..));
}

#[tokio::test]
async fn a_reader_may_be_slow_or_leave_and_so_may_upstream() {
    let (upstream, layer, url) = one_layer(50_000_000).await;
    let mut reading = get(&url).open().await;
    assert_eq!(reading.bytes(1000).await, layer.content.slice(..1000));
    drop(reading);
    upstream.stop().await;
    assert!(upstream.bytes_sent(&layer.digest) < layer.len());

    let (upstream, layer, url) = one_layer(50_000).await;
    let start = Instant::now();
    let reply = get(&url).open().await.read_at(500_000).await;
    assert_eq!((reply.expect(200), reply.digest()), (&layer.content, layer.digest));
    assert!(start.elapsed() >= Duration::from_millis(100));
    upstream.on("GET", "").fault(Fault::Drip(500_000));
    upstream.on("GET", "").fault(Fault::Delay(Duration::from_millis(50)));
    let start = Instant::now();
    get(&url).await.expect(200);
    assert!(start.elapsed() >= Duration::from_millis(150));
    upstream.on("GET", "").fault(Fault::Stall(49_000));
    let mut reading = get(&url).open().await;
    assert_eq!(reading.bytes(49_000).await.len(), 49_000);
}

#[tokio::test]
async fn many_readers_are_counted_one_by_one() {
    let (upstream, layer, url) = one_layer(5000).await;
    let replies = together(20, move |_| get(&url).into_future()).await;
    assert!(replies.iter().all(|reply| reply.digest() == layer.digest));
    assert_eq!((upstream.count("GET", "/blobs/"), upstream.bytes_sent(&layer.digest)), (20, 100_000));
    let file = file_of("secret\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret\n");
}

#[tokio::test]
async fn redirects_lead_to_another_fake() {
    let (upstream, layer, url) = one_layer(100).await;
    let cdn = Upstream::start().await;
    cdn.blob("library/alpine", &layer);
    upstream.on("GET", "/blobs/").fault(Fault::Redirect(cdn.url().to_owned()));
    let reply = get(&url).await;
    assert_eq!(reply.status, 307);
    assert_eq!(get(reply.header("location").unwrap()).await.expect(200), &layer.content);
    upstream.behave();
    upstream.on("GET", "/blobs/").fault(Fault::RedirectTo("http://169.254.169.254/".to_owned()));
    assert_eq!(get(&url).await.header("location"), Some("http://169.254.169.254/"));
}

#[tokio::test]
async fn basic_logins_open_what_the_user_may_read() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[10]);
    upstream.image("team/app", "1", &image).image("other/app", "1", &image).image("open/app", "1", &image);
    upstream.auth(Auth::Basic).user("robot", "secret", "team/").anonymous("open/");
    let status = async |repository: &str, user: &str, password: &str| {
        let url = upstream.url().to_owned() + &image.path(repository);
        get(url).basic(user, password).await.status
    };
    assert_eq!(status("team/app", "robot", "secret").await, 200);
    assert_eq!(status("team/app", "robot", "wrong").await, 401);
    assert_eq!(status("other/app", "robot", "secret").await, 401);
    assert_eq!(get(upstream.url().to_owned() + &image.path("open/app")).await.status, 200);
    let refused = get(format!("{}/v2/", upstream.url())).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(BASIC)));
    // Who has no login is refused before anything can go wrong.
    upstream.on("GET", "/manifests/").first(1).fault(Fault::Status(503));
    assert_eq!(status("team/app", "robot", "wrong").await, 401);
    assert_eq!(status("team/app", "robot", "secret").await, 503);
    upstream.forget_users();
    assert_eq!(status("team/app", "robot", "secret").await, 401);
}

#[tokio::test]
async fn tokens_open_the_scopes_they_were_issued_for() {
    let (upstream, elsewhere) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(1, &[10]);
    upstream.image("team/app", "1", &image).image("open/app", "1", &image);
    upstream.auth(Auth::Bearer).user("robot", "secret", "team/").anonymous("open/").tokens_live(Some(60));
    let with = async |repository: &str, token: &str| {
        let url = upstream.url().to_owned() + &image.path(repository);
        get(url).header("authorization", &format!("Bearer {token}")).await
    };
    let scope = |repository: &str| format!("{}/token?scope=repository:{repository}:pull", upstream.url());
    let token = |reply: &Reply| reply.json()["token"].as_str().unwrap().to_owned();

    let challenge = get(upstream.url().to_owned() + &image.path("open/app")).await;
    let expected = format!(
        "Bearer realm=\"{}/token\",service=\"fake\",scope=\"repository:open/app:pull\"",
        upstream.url()
    );
    assert_eq!((challenge.status, challenge.header("www-authenticate")), (401, Some(&*expected)));
    let anonymous = get(scope("open/app")).await;
    assert_eq!(anonymous.json()["expires_in"], 60);
    assert_eq!(with("open/app", &token(&anonymous)).await.status, 200);
    assert_eq!(with("team/app", &token(&anonymous)).await.status, 401);
    assert_eq!(with("team/app", &token(&get(scope("team/app")).await)).await.status, 401);
    let robot = token(&get(scope("team/app")).basic("robot", "secret").await);
    let config: serde_json::Value =
        serde_json::from_str(&docker_config(&[("host/x", "robot", "secret")])).unwrap();
    let basic = format!("Basic {}", config["auths"]["host/x"]["auth"].as_str().unwrap());
    assert_eq!(get(scope("team/app")).header("authorization", &basic).await.status, 200);
    assert_eq!(with("team/app", &robot).await.status, 200);
    assert_eq!(get(scope("team/app")).basic("robot", "wrong").await.status, 401);
    let form = "grant_type=refresh_token&refresh_token=secret&scope=repository:team/app:pull";
    let refreshed = ask("POST", format!("{}/token", upstream.url())).body(form).await;
    assert_eq!(with("team/app", &token(&refreshed)).await.status, 200);
    assert_eq!(upstream.tokens(), 5);

    upstream.revoke_tokens();
    assert_eq!(with("team/app", &robot).await.status, 401);
    elsewhere.anonymous("open/").tokens_live(None);
    upstream.realm(&format!("{}/token", elsewhere.url()));
    let foreign = get(format!("{}/token?scope=repository:open/app:pull", elsewhere.url())).await;
    assert_eq!(foreign.json().get("expires_in"), None);
    assert_eq!(with("open/app", &token(&foreign)).await.status, 200);
}

#[tokio::test]
async fn tags_and_referrers_come_in_pages() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[10]);
    upstream.page_size(2);
    for tag in ["b", "a", "c"] {
        upstream.image("team/app", tag, &image);
    }
    let url = format!("{}/v2/team/app/tags/list", upstream.url());
    let page = get(&url).await;
    assert_eq!(page.json()["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(page.header("link"), Some("</v2/team/app/tags/list?n=2&last=b>; rel=\"next\""));
    let page = get(format!("{url}?n=2&last=b")).await;
    assert_eq!((page.json()["tags"].clone(), page.header("link")), (serde_json::json!(["c"]), None));

    for seed in 2..5 {
        let artifact = Image::draft(seed, &[10]).artifact("application/x").about(&image).annotation("a", "b");
        upstream.untagged("team/app", &artifact.build());
    }
    let mut target = format!("/v2/team/app/referrers/{}", image.digest());
    let mut sizes = Vec::new();
    loop {
        let page = get(upstream.url().to_owned() + &target).await;
        let entries = page.json()["manifests"].as_array().unwrap().clone();
        assert_eq!(
            (&entries[0]["artifactType"], &entries[0]["annotations"]["a"]),
            (&"application/x".into(), &"b".into())
        );
        sizes.push(entries.len());
        let Some(link) = page.header("link") else { break };
        target = link[1..].split('>').next().unwrap().to_owned();
    }
    assert_eq!(sizes, [2, 1]);
    let none = Digest::of(Algorithm::Sha256, b"");
    let url = format!("{}/v2/team/app/referrers/{none}", upstream.url());
    assert_eq!(get(&url).await.json()["manifests"], serde_json::json!([]));
    upstream.without_referrers_api();
    assert_eq!(get(&url).await.status, 404);
}

#[tokio::test]
async fn an_upstream_goes_down_and_comes_back_at_its_address() {
    let (upstream, _, url) = one_layer(100).await;
    upstream.on("GET", "").first(1).fault(Fault::Stall(50));
    let mut open = get(&url).open().await;
    assert_eq!(open.bytes(50).await.len(), 50);
    upstream.stop().await;
    assert!(!open.read().await.complete);
    assert!(get(&url).try_send().await.is_err());
    upstream.start_again().await;
    assert_eq!(get(&url).await.status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn an_upstream_may_speak_tls_under_its_own_authority() {
    let upstream = Upstream::start_tls().await;
    let url = format!("{}/v2/", upstream.url());
    assert_eq!(get(&url).trusting(&upstream.ca().unwrap()).await.status, 200);
    let stranger = Certificate::new();
    assert!(get(&url).trusting(&stranger.ca()).try_send().await.is_err());
}

#[tokio::test]
async fn a_setup_is_a_configuration_file() {
    let (upstream, tls) = (Upstream::start().await, Upstream::start_tls().await);
    let setup = Berth::with("docker.io", &upstream)
        .endpoint(&tls)
        .keys("aliases = [\"hub\"]")
        .and("ghcr.io", &upstream)
        .http("allow = [\"127.0.0.0/8\"]")
        .admin("metrics_listen = \"127.0.0.1:0\"")
        .tls(&Certificate::new())
        .sections("[[tags]]\nmatch = \"*\"\ncheck_after = \"0s\"");
    let toml: toml::Table = setup.toml("/data".as_ref()).parse().unwrap();
    assert_eq!(toml["default_upstream"].as_str(), Some("docker.io"));
    assert_eq!(toml["upstream"][0]["endpoints"][1].as_str(), Some(tls.url()));
    assert_eq!(toml["upstream"][0]["aliases"][0].as_str(), Some("hub"));
    assert_eq!(toml["upstream"][1]["registry"].as_str(), Some("ghcr.io"));
    assert_eq!(toml["http"]["listen"][0].as_str(), Some("127.0.0.1:0"));
    assert!(toml["http"]["tls"]["cert"].is_str() && toml["admin"].get("metrics_listen").is_some());
    assert_eq!(toml["tags"][0]["check_after"].as_str(), Some("0s"));
}
