//! What berth says when it refuses: to clients, in its log, in metrics (item 8, rows of C: one text for seven refusals, a
//! registry that is not configured, refusals without an access log, `Cache-Status` of errors, what does not answer and why).

use serde_json::Value;

use crate::support::{
    Auth, Berth, Certificate, Fault, Image, Reply, Setup, Upstream, eventually, file_of, raw,
};

const REPO: &str = "team/app";

async fn with_image() -> (Upstream, Image) {
    let (upstream, image) = (Upstream::start().await, Image::of(1, &[30_000]));
    upstream.image(REPO, "1", &image);
    (upstream, image)
}

/// The message of an OCI error.
fn message(reply: &Reply) -> String {
    reply.json()["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
}

/// The lines of the log with this target.
fn lines(berth: &Berth, target: &str) -> Vec<Value> {
    let lines = berth.logs().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["target"] == target).collect()
}

/// The line of the access log that has this reason, when it is there.
async fn refused_for(berth: &Berth, reason: &str) -> Value {
    let find = || lines(berth, "berth::access").into_iter().find(|line| line["reason"] == reason);
    eventually(&format!("a line about {reason}"), async || find().is_some()).await;
    find().unwrap()
}

#[tokio::test]
async fn each_refusal_of_a_redirect_or_a_realm_says_what_it_is() {
    let password = file_of("hunter2");
    let login = format!("credentials = {{ username = \"robot\", password_file = {:?} }}", &*password);
    type Misled = fn(&Upstream);
    let cases: [(Misled, &str, &str); 7] = [
        (
            |upstream| {
                let round = format!("{}/v2/round", upstream.url());
                upstream.on("*", "/v2/").fault(Fault::RedirectTo(round));
            },
            "redirects from one place to the next",
            "redirects too often",
        ),
        (
            |upstream| upstream.on("*", "/v2/").fault(Fault::RedirectTo("file:///etc/passwd".to_owned())),
            "no plain http or https URL",
            "not a plain HTTP URL",
        ),
        (
            |upstream| {
                upstream.on("*", "/v2/").fault(Fault::RedirectTo("http://169.254.169.254/x".to_owned()))
            },
            "redirect_hosts",
            "169.254.169.254",
        ),
        (
            |upstream| {
                upstream.auth(Auth::Bearer).realm("http://auth.elsewhere.test/token");
            },
            "realm_hosts",
            "auth.elsewhere.test",
        ),
        (
            |upstream| {
                upstream.auth(Auth::Bearer).realm("ftp://127.0.0.1/token");
            },
            "token server whose address",
            "not a plain HTTP URL",
        ),
        (
            |upstream| {
                upstream.auth(Auth::Bearer);
                upstream
                    .on("*", "/token")
                    .fault(Fault::RedirectTo("http://auth.elsewhere.test/token".to_owned()));
            },
            "token server redirects elsewhere",
            "redirects",
        ),
        (
            |upstream| upstream.on("*", "/v2/").fault(Fault::RedirectTo("http://u:p@127.0.0.1/".to_owned())),
            "no plain http or https URL",
            "not a plain HTTP URL",
        ),
    ];
    for (mislead, expected, cause) in cases {
        let (upstream, image) = with_image().await;
        mislead(&upstream);
        let berth = Berth::with("r.example", &upstream).keys(&login).start().await;
        let reply = berth.get(&image.layer().path(REPO)).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{expected}");
        assert!(message(&reply).contains(expected), "{expected} in {}", message(&reply));
        // A portal may redirect everything for a while; no password will go to another's token server.
        let is_final = expected == "realm_hosts" || expected.contains("token server");
        assert_eq!(reply.header("retry-after").is_none(), is_final, "{expected}");
        assert_eq!(reply.header("cache-status"), Some("berth; fwd=miss; detail=misled"), "{expected}");
        let line = refused_for(&berth, "misled").await;
        assert!(line["cause"].as_str().unwrap().contains(cause), "{cause} in {line}");
    }
}

#[tokio::test]
async fn an_outage_says_when_to_come_back_and_what_it_is() {
    let (upstream, image) = with_image().await;
    let berth = Berth::with("r.example", &upstream).start().await;
    upstream.on("GET", "/blobs/").fault(Fault::Status(500));
    let reply = berth.get(&image.layer().path(REPO)).await;
    let expected = Some("berth; fwd=miss; fwd-status=500; detail=unavailable");
    assert_eq!((reply.status, reply.header("cache-status")), (503, expected));
    assert!(reply.header("retry-after").is_some());
    upstream.stop().await;
    let other = Image::of(2, &[10]);
    let reply = berth.get(&other.layer().path(REPO)).await;
    assert_eq!(
        (reply.status, reply.header("cache-status")),
        (503, Some("berth; fwd=miss; detail=unreachable"))
    );
    assert!(reply.header("retry-after").is_some());
    let line = refused_for(&berth, "unreachable").await;
    assert!(line["cause"].as_str().unwrap().contains("refused"), "{line}");
    assert_eq!((&line["registry"], &line["repository"]), (&"r.example".into(), &REPO.into()));
}

#[tokio::test]
async fn what_is_refused_without_a_route_names_registry_and_reason_too() {
    let (upstream, _) = with_image().await;
    let limits = "repositories = { deny = [\"*/secret\"] }";
    let berth = Berth::with("docker.io", &upstream).keys(limits).start().await;
    for (path, status, reason, registry, cause) in [
        ("/v2/org/app/manifests/1?ns=quay.oi", 404, "unknown_registry", "quay.oi", "not configured"),
        ("/v2/team/secret/manifests/1", 403, "forbidden", "docker.io", "may not be pulled"),
        ("/v2/team/App/manifests/1", 400, "bad_request", "docker.io", "not a repository name"),
        ("/etc/passwd", 404, "no_such_path", "", "no such path"),
    ] {
        let reply = berth.get(path).await;
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.header("cache-status"), Some(&*format!("berth; detail={reason}")), "{path}");
        assert_eq!(reply.header("retry-after"), None, "{path}");
        let line = refused_for(&berth, reason).await;
        assert_eq!(line["registry"], registry, "{line}");
        assert!(line["cause"].as_str().unwrap().contains(cause), "{line}");
        assert_eq!(line["path"], path.split('?').next().unwrap(), "{line}");
        assert_eq!(
            berth.metric(&format!("berth_refusals_total{{reason=\"{reason}\"}}")).await,
            1.0,
            "{reason}"
        );
    }
    assert_eq!(berth.ask("DELETE", "/v2/team/app/manifests/1").await.status, 405);
    assert_eq!(refused_for(&berth, "method").await["registry"], "docker.io");
    // Nor need a head be one that berth takes.
    let two_hosts = b"GET /v2/ghcr.io/a/b/manifests/1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let answer = raw(berth.address(), two_hosts).await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    let is_it = |line: &Value| line["registry"] == "ghcr.io" && line["reason"] == "bad_request";
    eventually("a line about it", async || lines(&berth, "berth::access").iter().any(is_it)).await;
    assert!(berth.metrics().await.contains("berth_refusals_total{reason=\"too_old\"} 0"), "all are there");
}

#[tokio::test]
async fn without_an_access_log_each_kind_of_refusal_is_still_told_of_once() {
    let (upstream, image) = with_image().await;
    let mut berth = Berth::with("docker.io", &upstream).http("access_log = false").start().await;
    berth.pull(REPO, "1", &image).await;
    for number in 0..10 {
        assert_eq!(berth.get(&format!("/v2/org/app/manifests/{number}?ns=quay.oi")).await.status, 404);
        assert_eq!(berth.get(&format!("/nothing/{number}")).await.status, 404);
        let absent = Image::of(100 + number, &[10]);
        assert_eq!(berth.get(&absent.layer().path(REPO)).await.status, 404);
    }
    berth.stop().await;
    assert!(lines(&berth, "berth::access").is_empty());
    let mut told: Vec<_> = lines(&berth, "berth::refused");
    told.sort_by_key(|line| line["reason"].as_str().unwrap().to_owned());
    let reasons: Vec<_> = told.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["no_such_path", "not_found", "unknown_registry"]);
    let registries: Vec<_> = told.iter().map(|line| line["registry"].as_str().unwrap()).collect();
    assert_eq!(registries, ["", "docker.io", "quay.oi"]);
    assert!(told.iter().all(|line| line["cause"].as_str().is_some_and(|cause| !cause.is_empty())));
}

#[tokio::test]
async fn what_is_remembered_to_be_absent_is_told_from_what_was_just_asked() {
    let (upstream, _) = with_image().await;
    let berth = Berth::with("r.example", &upstream).start().await;
    let absent = Image::of(2, &[10]);
    for path in [absent.layer().path(REPO), absent.path(REPO), format!("/v2/{REPO}/manifests/none")] {
        let (first, again) = (berth.get(&path).await, berth.get(&path).await);
        assert_eq!((first.status, again.status), (404, 404), "{path}");
        let fresh = Some("berth; fwd=miss; fwd-status=404; detail=not_found");
        assert_eq!(first.header("cache-status"), fresh, "{path}");
        assert_eq!(again.header("cache-status"), Some("berth; hit; detail=not_found"), "{path}");
    }
    let asked = upstream.requests().len();
    berth.head(&absent.layer().path(REPO)).await;
    assert_eq!(upstream.requests().len(), asked);
}

/// What the warning says that an endpoint does not answer, after requests for what is not here.
async fn why_silent(setup: Setup) -> String {
    let berth = setup.start().await;
    let warning = || {
        let lines = berth.logs().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let mut warnings = lines.filter(|line| line["level"] == "WARN" && line["endpoint"].is_string());
        warnings.next()
    };
    let mut number = 0;
    eventually("a warning", async || {
        number += 1;
        let path = Image::of(number, &[10]).layer().path(REPO);
        assert_eq!(berth.get(&format!("{path}?ns=r.example")).await.status, 503);
        warning().is_some()
    })
    .await;
    warning().unwrap()["cause"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_warning_about_a_silent_upstream_says_why_it_is_silent() {
    let (gone, _) = with_image().await;
    gone.stop().await;
    let why = why_silent(Berth::with("r.example", &gone)).await;
    assert!(why.contains("Connection refused") && !why.contains("proxy"), "{why}");

    let strange = Upstream::start_tls().await;
    let why = why_silent(Setup::new("r.example").endpoint_url(strange.url())).await;
    assert!(why.contains("TLS: ") && why.contains("certificate"), "{why}");

    let other = Certificate::new();
    let keys = format!("ca = [{:?}]", other.ca());
    let why = why_silent(Setup::new("r.example").endpoint_url(strange.url()).keys(&keys)).await;
    assert!(why.contains("TLS: "), "{why}");

    let proxied = Setup::new("r.example").endpoint_url("http://registry.example.test");
    let why = why_silent(proxied.keys(&format!("proxy = \"http://{}\"", gone.address()))).await;
    assert!(
        why.contains(&format!("the egress proxy {}", gone.address())) && why.contains("refused"),
        "{why}"
    );
    let proxied = Setup::new("r.example").endpoint_url("https://registry.example.test");
    let why = why_silent(proxied.keys(&format!("proxy = \"http://{}\"", gone.address()))).await;
    assert!(why.contains("the egress proxy"), "{why}");

    let nowhere = Setup::new("r.example").endpoint_url("http://registry.invalid:1");
    let why = why_silent(nowhere).await;
    assert!(why.contains("DNS: "), "{why}");

    let broken = Upstream::start().await;
    broken.on("*", "/v2/").fault(Fault::Status(502));
    let why = why_silent(Berth::with("r.example", &broken)).await;
    assert!(why.contains("502"), "{why}");
}
