//! The admin plane, and what the metrics say after things that happened.

use crate::support::{Berth, Fault, Gate, Image, Upstream, ask, eventually, get, together};

const REPO: &str = "library/alpine";

async fn alpine() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[200_000]);
    upstream.image(REPO, "3", &image);
    let setup = Berth::with("docker.io", &upstream).admin("metrics_listen = \"127.0.0.1:0\"");
    (upstream, setup.start().await, image)
}

async fn expect_metrics(berth: &Berth, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        eventually(&format!("{name} is {value}"), async || berth.metric(name).await == *value).await;
    }
}

#[tokio::test]
async fn health_and_metrics_are_on_the_admin_plane_and_the_metrics_listener_alone() {
    let (upstream, berth, _) = alpine().await;
    upstream.stop().await;
    for plane in ["admin", "metrics"] {
        let origin = format!("http://{}", berth.listener(plane));
        let ask = |method: &str, path: &str| ask(method, format!("{origin}{path}"));
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(ask("GET", path).await.status, 200, "{plane} {path}");
            assert_eq!(ask("HEAD", path).await.expect(200).len(), 0, "{plane} {path}");
            assert_eq!(ask("POST", path).body("x").await.status, 405, "{plane} {path}");
        }
        for path in ["/", "/v2/", "/metrics/x", "/v2/library/alpine/manifests/3"] {
            assert_eq!(ask("GET", path).await.status, 404, "{plane} {path}");
        }
        let metrics = ask("GET", "/metrics").await;
        assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(berth.get(path).await.status, 404, "the data plane knows no {path}");
    }
}

#[tokio::test]
async fn misses_and_hits_are_counted_as_distribution_does() {
    let (upstream, berth, image) = alpine().await;
    let (blob, manifest) = (image.layer(), image.manifest.len() as f64);
    berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
    berth.get(&blob.path(REPO)).await.expect(200);
    expect_metrics(
        &berth,
        &[
            ("berth_misses_total{type=\"manifest\"}", 1.0),
            ("berth_misses_total{type=\"blob\"}", 1.0),
            ("berth_hits_total", 0.0),
            ("registry_proxy_misses_total{type=\"blob\"}", 1.0),
            ("registry_proxy_pulled_bytes_total{type=\"blob\"}", 200_000.0),
            ("registry_proxy_pulled_bytes_total{type=\"manifest\"}", manifest),
            ("registry_proxy_pushed_bytes_total{type=\"blob\"}", 200_000.0),
        ],
    )
    .await;
    berth.until_stored(&blob.path(REPO)).await;
    berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
    berth.get(&blob.path(REPO)).range("0-99").await.expect(206);
    expect_metrics(
        &berth,
        &[
            ("berth_hits_total{type=\"manifest\"}", 1.0),
            ("berth_hits_total{type=\"blob\"}", 1.0),
            ("berth_misses_total", 2.0),
            ("registry_proxy_hits_total", 2.0),
            ("registry_proxy_requests_total{type=\"blob\"}", 2.0),
            ("registry_proxy_pushed_bytes_total{type=\"blob\"}", 200_100.0),
            ("berth_received_bytes_total{registry=\"docker.io\"}", 200_000.0 + manifest),
            ("berth_sent_bytes_total", 200_100.0 + 2.0 * manifest),
            ("registry_http_requests_total{code=\"200\",handler=\"manifest\",method=\"get\"}", 2.0),
            ("registry_http_requests_total{code=\"206\",handler=\"blob\",method=\"get\"}", 1.0),
            ("registry_http_request_duration_seconds_count{handler=\"blob\",method=\"get\"}", 2.0),
            ("berth_first_byte_seconds_count{handler=\"manifest\"}", 2.0),
            ("registry_http_in_flight_requests", 0.0),
            ("berth_flights", 0.0),
        ],
    )
    .await;
    eventually("every request to upstream is counted", async || {
        berth.metric("berth_upstream_requests_total").await == upstream.requests().len() as f64
    })
    .await;
    assert!(berth.metric("registry_storage_used_bytes").await >= 200_000.0);
    assert!(berth.metric("registry_storage_total_bytes").await > 200_000.0);
}

#[tokio::test]
async fn an_error_is_an_answer_but_no_content() {
    let (_upstream, berth, _) = alpine().await;
    assert_eq!(berth.get(&format!("/v2/{REPO}/manifests/none")).await.status, 404);
    assert_eq!(berth.get(&format!("/v2/{REPO}/blobs/sha256:{}", "0".repeat(64))).await.status, 404);
    expect_metrics(
        &berth,
        &[
            ("registry_http_requests_total{code=\"404\"", 2.0),
            ("berth_upstream_requests_total{outcome=\"not_found\",registry=\"docker.io\"}", 3.0),
            ("registry_proxy_pushed_bytes_total", 0.0),
            ("registry_proxy_requests_total", 0.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn joins_and_flights_are_counted() {
    let (upstream, berth, image) = alpine().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1000, gate.clone()));
    let asks: Vec<_> = (0..5).map(|_| berth.get(&image.layer().path(REPO))).collect();
    let readers = tokio::spawn(together(5, move |at| asks[at].clone().into_future()));
    expect_metrics(
        &berth,
        &[
            ("berth_joins_total{type=\"blob\"}", 4.0),
            ("berth_misses_total{type=\"blob\"}", 1.0),
            ("berth_flights", 1.0),
            ("registry_http_in_flight_requests{handler=\"blob\"}", 5.0),
        ],
    )
    .await;
    gate.open();
    for reply in readers.await.unwrap() {
        assert_eq!(reply.expect(200), &image.layer().content);
    }
    expect_metrics(&berth, &[("berth_flights", 0.0), ("registry_http_in_flight_requests", 0.0)]).await;
}

#[tokio::test]
async fn what_is_served_stale_is_counted_as_such() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "3", &Image::of(1, &[1000]));
    let rule = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let berth = Berth::with("docker.io", &upstream).sections(rule).start().await;
    let path = format!("/v2/{REPO}/manifests/3");
    berth.get(&path).await.expect(200);
    upstream.stop().await;
    let stale = berth.get(&path).await;
    stale.expect(200);
    assert_eq!(stale.header("cache-status"), Some("berth; hit; detail=stale"));
    expect_metrics(
        &berth,
        &[
            ("berth_stale_total{type=\"manifest\"}", 1.0),
            ("registry_proxy_hits_total{type=\"manifest\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_counted_and_not_forgotten() {
    let (upstream, berth, image) = alpine().await;
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::Hold(gate.clone()));
    let ask = tokio::spawn(berth.get(&image.layer().path(REPO)).try_open());
    expect_metrics(&berth, &[("registry_http_in_flight_requests{handler=\"blob\"}", 1.0)]).await;
    ask.abort();
    expect_metrics(
        &berth,
        &[
            ("registry_http_requests_total{code=\"499\",handler=\"blob\",method=\"get\"}", 1.0),
            ("registry_http_in_flight_requests", 0.0),
        ],
    )
    .await;
    gate.open();
}

#[tokio::test]
async fn labels_are_bounded_and_say_nothing_of_what_was_asked() {
    let (_upstream, berth, image) = alpine().await;
    berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
    berth.get(&image.layer().path(REPO)).await.expect(200);
    let warm = berth.metrics().await.lines().count();
    for number in 0..50 {
        berth.ask(&format!("METHOD{number}"), "/v2/").await;
        berth.get(&format!("/v2/library/name{number}/manifests/tag{number}")).await;
        berth.get(&format!("/v2/registry{number}.example/x/manifests/1")).await;
        berth.get(&format!("/path/{number}")).await;
    }
    let metrics = berth.metrics().await;
    assert!(metrics.lines().count() < warm + 150, "{metrics}");
    for word in ["alpine", "library", "METHOD", "method1", "tag1", ".example", "sha256", "127.0.0.1"] {
        assert!(!metrics.contains(word), "{word} in {metrics}");
    }
    assert_eq!(berth.metric("registry_http_in_flight_requests").await, 0.0);
}

#[tokio::test]
async fn the_admin_plane_answers_while_strangers_crowd_the_metrics_listener() {
    let (_upstream, berth, _) = alpine().await;
    let metrics = berth.listener("metrics");
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(tokio::net::TcpStream::connect(metrics).await.unwrap());
    }
    assert_eq!(berth.admin("/readyz").await.status, 200);
    drop(crowd);
    eventually("the metrics listener answers again", async || {
        get(format!("http://{metrics}/healthz")).try_send().await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
}
