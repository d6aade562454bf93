//! Berths behind berths: what passes through, what each tier asks the next, and that no request waits for itself.

use std::future::IntoFuture as _;

use berth::oci::Digest;
use tokio::task::JoinSet;

use crate::support::{
    Auth, Berth, Blob, Fault, Gate, Image, Relay, Setup, Upstream, docker_config, eventually, file_of,
    together, within_deadline,
};

const REPO: &str = "library/app";
/// Every berth of a test may speak for its clients.
const PEERS: &str = "peers = [\"127.0.0.0/8\"]";

/// A berth whose registry is `docker.io`, with parents.
fn below(parents: &[String], registry: &Upstream) -> Setup {
    Berth::with("docker.io", registry).sections(&format!("[parents]\nendpoints = {parents:?}"))
}

fn url(berth: &Berth) -> String {
    format!("http://{}", berth.address())
}

/// Requests to parents for images of Docker Hub that ended so.
async fn parent_requests(berth: &Berth, outcome: &str) -> f64 {
    let outcome = format!("outcome=\"{outcome}");
    sum(berth, "berth_parent_requests_total", &[&outcome, "registry=\"docker.io\""]).await
}

/// Requests for blobs.
async fn blob_requests(berth: &Berth) -> f64 {
    sum(berth, "registry_http_requests_total", &["handler=\"blob\""]).await
}

/// The samples of a metric that have all these labels, together.
async fn sum(berth: &Berth, name: &str, labels: &[&str]) -> f64 {
    let metrics = berth.metrics().await;
    let has = |line: &str| labels.iter().all(|label| line.contains(label));
    let is_wanted = |line: &&str| line.starts_with(name) && has(line);
    let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    metrics.lines().filter(is_wanted).map(value).sum()
}

/// Everything of an image, asked for at once by so many clients, each of one of the berths in turn.
async fn storm(berths: &[&Berth], clients: usize, image: &Image) {
    let mut asking = JoinSet::new();
    for client in 0..clients {
        let berth = berths[client % berths.len()];
        let manifest = berth.get(&format!("/v2/{REPO}/manifests/1"));
        let blobs: Vec<_> =
            image.blobs.iter().map(|blob| (berth.get(&blob.path(REPO)), blob.digest)).collect();
        let expected = image.digest();
        asking.spawn(async move {
            let reply = manifest.await;
            reply.expect(200);
            assert_eq!(reply.digest(), expected);
            let mut parts = JoinSet::new();
            for (ask, digest) in blobs {
                parts.spawn(async move {
                    let reply = ask.await;
                    reply.expect(200);
                    assert_eq!(reply.digest(), digest);
                });
            }
            while let Some(part) = parts.join_next().await {
                part.unwrap();
            }
        });
    }
    while let Some(client) = within_deadline("every client has the image", asking.join_next()).await {
        client.unwrap();
    }
}

/// How many transfers each has under way.
async fn flights(berths: impl IntoIterator<Item = &Berth>) -> Vec<f64> {
    let mut flights = Vec::new();
    for berth in berths {
        flights.push(berth.metric("berth_flights").await);
    }
    flights
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_dies_in_a_storm_and_no_client_notices() {
    let registry = Upstream::start().await;
    let image = Image::of(7, &[2 << 20; 9]);
    registry.image(REPO, "1", &image);
    let gate = Gate::new();
    // So that transfers of every parent are under way when one of them goes.
    for layer in image.layers() {
        registry.on("GET", &layer.digest.to_string()).fault(Fault::HoldAfter(512 << 10, gate.clone()));
    }
    let mut sites = Vec::new();
    for _ in 0..3 {
        sites.push(Berth::with("docker.io", &registry).start().await);
    }
    let parents: Vec<_> = sites.iter().map(url).collect();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(below(&parents, &registry).start().await);
    }
    let nodes: Vec<_> = nodes.iter().collect();
    let storm = storm(&nodes, 64, &image);
    let kill = async {
        eventually("all layers are under way, everywhere", async || {
            flights(&sites).await.iter().sum::<f64>() == 9.0
                && flights(nodes.iter().copied()).await == [9.0; 4]
        })
        .await;
        // What a node has yet to ask for the dead parent may have had.
        eventually("the rest is at every node", async || {
            let mut at_all = true;
            for node in &nodes {
                at_all &= node.metric("berth_misses_total{type=\"blob\"").await >= 10.0;
            }
            at_all
        })
        .await;
        let mut dead = 0;
        for (at, flights) in flights(&sites).await.into_iter().enumerate() {
            if flights > 0.0 {
                dead = at;
            }
        }
        let under_way = sites[dead].metric("berth_flights").await as usize;
        sites[dead].kill().await;
        gate.open();
        under_way
    };
    let ((), under_way) = tokio::join!(storm, kill);

    let twice = |blob: &&Blob| registry.bytes_sent(&blob.digest) > blob.len();
    assert!(image.blobs.iter().filter(twice).count() <= under_way, "more than what was on the dead parent");
    for blob in &image.blobs {
        assert!(registry.bytes_sent(&blob.digest) <= 2 * blob.len());
    }
    // Only parents have asked: the nodes had another to go to.
    for node in nodes {
        assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
    }
    assert!(registry.count("HEAD", "/manifests/1") <= 2, "one, and one more if it was on the dead parent");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_point_at_each_other_wait_for_the_registry_and_not_for_each_other() {
    let registry = Upstream::start().await;
    let image = Image::of(8, &[1 << 20, 300_000]);
    registry.image(REPO, "1", &image);
    let (to_a, to_b) = (Relay::start().await, Relay::start().await);
    let a = below(&[to_b.url()], &registry).start().await;
    let b = below(&[to_a.url()], &registry).start().await;
    let waiting = async {
        let is_waiting = async |berth: &Berth| {
            let requests = berth.metric("registry_http_in_flight_requests").await;
            berth.metric("berth_flights").await >= 3.0 && requests >= 4.0
        };
        eventually("each has begun to ask the other for what it is itself asked for", async || {
            is_waiting(&a).await && is_waiting(&b).await
        })
        .await;
        to_a.to(a.address());
        to_b.to(b.address());
    };
    let asking = together(2, {
        let tag = format!("/v2/{REPO}/manifests/1");
        let whole = |berth: &Berth| {
            let blobs = image.blobs.iter().map(|blob| (berth.get(&blob.path(REPO)), blob.digest));
            blobs.chain([(berth.get(&tag), image.digest())]).collect::<Vec<_>>()
        };
        let asks = [whole(&a), whole(&b)];
        move |at| {
            let asks = asks[at].clone();
            async move {
                let parts = together(asks.len(), move |part| {
                    let (ask, digest) = asks[part].clone();
                    async move { (ask.await, digest) }
                });
                for (reply, digest) in parts.await {
                    reply.expect(200);
                    assert_eq!(reply.digest(), digest);
                }
            }
        }
    });
    tokio::join!(asking, waiting);
    // Then with what they have learned of each other.
    let (other, many) = (Image::of(81, &[1 << 20, 300_000]), "2");
    registry.image(REPO, many, &other);
    let tags = [&a, &b].map(|berth| berth.get(&format!("/v2/{REPO}/manifests/{many}")));
    for reply in together(2, move |at| tags[at].clone().into_future()).await {
        assert_eq!(reply.expect(200), &other.manifest);
    }
    storm(&[&a, &b], 16, &image).await;
    for berth in [&a, &b] {
        for outcome in ["timeout", "error"] {
            let count = parent_requests(berth, outcome).await;
            assert_eq!(count, 0.0, "{outcome}: somebody waited for what could not come");
        }
    }
    for blob in &image.blobs {
        assert!(registry.count("GET", &blob.digest.to_string()) <= 2, "{}", blob.digest);
    }
    assert!(registry.count("*", "/manifests/") <= 16);
}

#[tokio::test]
async fn two_mirrors_of_each_other_have_nothing_and_say_so() {
    let image = Image::of(21, &[1000]);
    let (to_a, to_b) = (Relay::start().await, Relay::start().await);
    let mirror = |of: &Relay| Setup::new("docker.io").endpoint_url(&of.url()).keys("mirror = true").start();
    let (a, b) = (mirror(&to_b).await, mirror(&to_a).await);
    to_a.to(a.address());
    to_b.to(b.address());
    for path in [image.layer().path(REPO), format!("/v2/{REPO}/manifests/1")] {
        for berth in [&a, &b] {
            let reply = berth.get(&path).await;
            assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{}", reply.text());
        }
    }
    for berth in [&a, &b] {
        // Who the other is, and for each of four requests one on behalf of a client or of the other.
        let asked = parent_requests(berth, "").await;
        assert!(asked <= 6.0, "{asked}");
    }
}

#[tokio::test]
async fn a_parent_that_is_oneself_costs_a_question_and_is_passed_over() {
    let registry = Upstream::start().await;
    let image = Image::of(9, &[200_000, 100, 200, 300, 400, 500]);
    registry.image(REPO, "1", &image);
    let (own, gone) = (Relay::start().await, Relay::start().await);
    let berth = below(&[own.url()], &registry).start().await;
    own.to(berth.address());
    let knows = |line: &String| line.contains("this very process") && line.contains("\"docker.io\"");
    eventually("it knows", async || berth.logs().iter().any(knows)).await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(parent_requests(&berth, "").await, 1.0, "it asked itself again");
    assert_eq!(registry.count("GET", "/blobs/"), image.blobs.len());

    // Beside another, each has its part.
    let other = Berth::with("docker.io", &registry).start().await;
    let both = below(&[gone.url(), url(&other)], &registry).start().await;
    gone.to(both.address());
    eventually("it has asked both", async || parent_requests(&both, "").await >= 2.0).await;
    registry.forget();
    both.pull(REPO, "1", &image).await;
    for blob in &image.blobs {
        assert_eq!(registry.count("GET", &blob.digest.to_string()), 1);
    }
}

#[tokio::test]
async fn a_request_goes_on_to_a_parent_unless_it_has_come_too_far_or_in_a_circle() {
    let (registry, parent) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(10, &[100, 200, 300]);
    registry.image(REPO, "1", &image);
    parent.image(REPO, "1", &image);
    let berth = below(&[parent.url().to_owned()], &registry).start().await;
    let hello = berth.get("/v2/").header("via", "1.1 berth-0000000000000001").await;
    let own = hello.header("via").unwrap().to_owned();
    assert_eq!(berth.get("/v2/").await.header("via"), None, "clients need not know");

    let via = |hops: u32| -> String {
        (1..=hops).map(|hop| format!("1.1 berth-{hop:016x}")).collect::<Vec<_>>().join(", ")
    };
    let circle = format!("{own}, {}", via(1));
    for (blob, via, is_loop) in
        [(&image.blobs[1], via(4), false), (&image.blobs[2], via(5), true), (&image.blobs[3], circle, true)]
    {
        let reply = berth.get(&blob.path(REPO)).header("via", &via).await;
        assert_eq!(reply.status, if is_loop { 508 } else { 200 }, "{via}");
        let asked = |upstream: &Upstream| upstream.count("GET", &blob.digest.to_string());
        assert_eq!((asked(&parent), asked(&registry)), ((!is_loop).into(), 0), "{via}");
    }
    let echo = berth.get(&image.config().path(REPO)).header("via", &own).await;
    assert_eq!((echo.status, echo.header("via")), (508, Some(&*own)));
}

#[tokio::test]
async fn a_mirror_hears_which_registry_is_meant_and_never_its_login() {
    let (registry, mirror) = (Upstream::start().await, Upstream::start().await);
    let (here, there) = (Image::of(11, &[1000]), Image::of(12, &[1000]));
    mirror.image(REPO, "1", &here);
    registry.image(REPO, "2", &there).auth(Auth::Basic).user("u", "hunter2", "");
    let logins = file_of(&docker_config(&[("harbor.example", "u", "hunter2")]));
    let berth = Berth::with("harbor.example", &registry)
        .keys(&format!("credentials = {{ file = {logins:?} }}"))
        .sections(&format!("[parents]\nendpoints = [{:?}]", mirror.url()))
        .sections("[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"")
        .start()
        .await;
    berth.pull(REPO, "1", &here).await;
    berth.pull(REPO, "1", &here).await;
    // What the mirror has not, the registry may have.
    berth.pull(REPO, "2", &there).await;
    assert!(registry.requests().iter().all(|request| request.query("ns").is_none()));
    let asked = mirror.requests();
    assert!(asked.iter().any(|request| request.is("GET", "/blobs/")));
    for request in asked.iter().filter(|request| request.path() != "/v2/") {
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.query("ns").as_deref(), Some("harbor.example"));
        assert!(request.header("via").unwrap().starts_with("1.1 berth-"));
    }
    // Known, it has something to fall back on, and waits less.
    let wait = |at: usize| -> u64 {
        mirror.seen("HEAD", "/manifests/1")[at].header("berth-deadline").unwrap().parse().unwrap()
    };
    assert!((4001..=8000).contains(&wait(0)) && wait(1) <= 4000, "{} {}", wait(0), wait(1));
}

#[tokio::test]
async fn a_head_stays_a_head_and_a_range_a_range() {
    let registry = Upstream::start().await;
    let image = Image::of(13, &[16 << 20]);
    registry.image(REPO, "1", &image);
    let site = Berth::with("docker.io", &registry).start().await;
    // By name, which is looked up.
    let by_name = format!("http://localhost:{}", site.address().port());
    let node = below(&[by_name], &registry).start().await;
    let blob = image.layer();
    let head = node.head(&blob.path(REPO)).await;
    assert_eq!((head.status, head.header("content-length")), (200, Some(&*blob.len().to_string())));
    assert_eq!((registry.count("HEAD", "/blobs/"), registry.count("GET", "/blobs/")), (1, 0));
    let tail = node.get(&blob.path(REPO)).range("-51").await;
    assert_eq!(tail.expect(206), &blob.content.slice(blob.content.len() - 51..));
    assert!(registry.bytes_sent(&blob.digest) <= 2 << 20, "{}", registry.bytes_sent(&blob.digest));
    assert_eq!(node.get(&blob.path(REPO)).await.expect(200), &blob.content);
    assert_eq!(registry.bytes_sent(&blob.digest), blob.len(), "each byte once");
    assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
}

#[tokio::test]
async fn what_a_parent_serves_as_stale_is_stale_at_the_child() {
    let registry = Upstream::start().await;
    let image = Image::of(14, &[1000]);
    registry.image(REPO, "1", &image);
    let always = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let site = Berth::with("docker.io", &registry).sections(always).start().await;
    let mirror = |setup: Setup| setup.keys("mirror = true").sections(always);
    let node = mirror(Setup::new("docker.io").endpoint_url(&url(&site))).start().await;
    node.pull(REPO, "1", &image).await;
    let tag = format!("/v2/{REPO}/manifests/1");
    assert_eq!(node.head(&tag).await.header("warning"), None);

    let referrers = format!("/v2/{REPO}/referrers/{}", image.digest());
    site.get(&referrers).await.expect(200);
    registry.stop().await;
    let age = |reply: &crate::support::Reply| reply.header("age").unwrap().parse::<u64>().unwrap();
    // A check that fails is remembered at both; that it is as old as it is must not be forgotten.
    eventually("it grows old", async || {
        let reply = node.get(&tag).await;
        reply.expect_stale();
        age(&reply) >= 2
    })
    .await;
    // One that has never had it takes it as the site has it.
    let late = mirror(Setup::new("docker.io").endpoint_url(&url(&site))).start().await;
    let reply = late.get(&tag).await;
    reply.expect_stale();
    assert!(age(&reply) >= 2);
    let listed = late.get(&referrers).await;
    listed.expect(200);
    assert_eq!(listed.header("cache-status"), Some("berth; hit; detail=stale"));
    // Also what it has from disk by now.
    let reply = late.get(&tag).await;
    reply.expect_stale();
    assert!(age(&reply) >= 2);
}

#[tokio::test]
async fn who_is_told_a_deadline_answers_within_it() {
    let registry = Upstream::start().await;
    let image = Image::of(15, &[1000]);
    registry.image(REPO, "1", &image).on("*", "/blobs/").fault(Fault::StallHead);
    let site = Berth::with("docker.io", &registry).http(PEERS).keys("timeouts = { header_seconds = 17 }");
    let site = site.start().await;
    let begun = std::time::Instant::now();
    let ask = site.get(&image.layer().path(REPO));
    let reply = ask.header("via", "1.1 berth-0000000000000001").header("berth-deadline", "1000").await;
    assert_eq!(reply.status, 503);
    assert!(begun.elapsed().as_secs() < 12, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn whoever_claims_to_have_come_far_spoils_nothing_for_others() {
    let (registry, parent) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(23, &[3000, 4000]);
    parent.image(REPO, "1", &image);
    let tag = format!("/v2/{REPO}/manifests/1");
    let always = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let far: Vec<_> = (1..=5).map(|hop| format!("1.1 berth-{hop:016x}")).collect();
    // The registry itself knows of nothing without the parent's login, or does not answer, or must not be asked.
    for only in ["", "\nonly = true"] {
        let parents = format!("[parents]\nendpoints = [{:?}]{only}", parent.url());
        let node = Berth::with("docker.io", &registry).sections(&parents).sections(always).start().await;
        node.get(&tag).await.expect(200);
        for path in [&tag, &image.layer().path(REPO)] {
            let from_far = node.get(path).header("via", &far.join(", ")).await;
            assert_ne!((from_far.status, from_far.header("warning")), (200, None), "{path}{only}");
            let reply = node.get(path).await;
            reply.expect(200);
            assert_eq!(reply.header("warning"), None, "{path}{only}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_for_a_moment_only_does_not_make_a_tag_stale_for_others() {
    let registry = Upstream::start().await;
    let (old, new) = (Image::of(24, &[10]), Image::of(25, &[10]));
    registry.image(REPO, "1", &old);
    let always = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let berth = Berth::with("docker.io", &registry).http(PEERS).sections(always).start().await;
    let tag = format!("/v2/{REPO}/manifests/1");
    berth.get(&tag).await.expect(200);
    registry.image(REPO, "1", &new);
    let gate = Gate::new();
    registry.on("HEAD", "/manifests/1").fault(Fault::Hold(gate.clone()));
    let hasty = berth.get(&tag).header("via", "1.1 berth-0000000000000001").header("berth-deadline", "1000");
    hasty.await.expect_stale();
    let asking = tokio::spawn(berth.get(&tag).into_future());
    eventually("it waits, or has its answer", async || {
        asking.is_finished() || berth.metric("registry_http_in_flight_requests").await == 1.0
    })
    .await;
    gate.open();
    let reply = asking.await.unwrap();
    assert_eq!((reply.expect(200), reply.header("warning")), (&new.manifest, None));
}

#[tokio::test]
async fn private_images_stay_private_below_a_parent_and_public_ones_are_shared() {
    let registry = Upstream::start().await;
    registry.auth(Auth::Basic).user("u", "hunter2", "team-a/").user("u2", "hunter3", "team-b/");
    let (secret, other) = (Image::of(16, &[5000]), Image::of(17, &[10]));
    registry.image("team-a/app", "1", &secret).image("team-b/app", "1", &other);
    let open = Upstream::start().await;
    let shared = Image::of(18, &[6000]);
    open.image("library/one", "1", &shared).image("library/two", "1", &shared);
    let logins = file_of(&docker_config(&[
        ("harbor.example/team-a", "u", "hunter2"),
        ("harbor.example/team-b", "u2", "hunter3"),
    ]));
    let site = Berth::with("harbor.example", &registry)
        .keys(&format!("credentials = {{ file = {logins:?} }}"))
        .and("docker.io", &open)
        .start()
        .await;
    // It has no login itself, and knows nothing of the site's.
    let node = Setup::new("harbor.example")
        .endpoint_url(&url(&site))
        .keys("mirror = true")
        .registry("docker.io")
        .endpoint_url(&url(&site))
        .keys("mirror = true\ntrusted = true")
        .start()
        .await;
    let at = |repo: &str, digest: &Digest| format!("/v2/{repo}/blobs/{digest}");
    let ns = "?ns=harbor.example";
    let layer = secret.layer();
    let own = node.get(&format!("{}{ns}", at("team-a/app", &layer.digest))).await;
    assert_eq!(own.expect(200), &layer.content);
    let foreign = node.get(&format!("{}{ns}", at("team-b/app", &layer.digest))).await;
    assert_eq!(foreign.status, 404, "another repository of the same registry");
    let foreign = node.get(&format!("{}?ns=docker.io", at("library/one", &layer.digest))).await;
    assert_eq!(foreign.status, 404, "another registry");

    for (name, registry, status) in [("library/one", "docker.io", 200), ("team-a/app", "harbor.example", 403)]
    {
        let list = node.get(&format!("/v2/{name}/tags/list?ns={registry}")).await;
        assert_eq!(list.status, status, "the tags of {name}");
    }

    let layer = shared.layer();
    let first = node.get(&format!("{}?ns=docker.io", at("library/one", &layer.digest))).await;
    assert_eq!(first.expect(200), &layer.content);
    node.until_idle().await;
    let asked = blob_requests(&site).await;
    let second = node.get(&format!("{}?ns=docker.io", at("library/two", &layer.digest))).await;
    assert_eq!(second.expect(200), &layer.content);
    assert_eq!(blob_requests(&site).await, asked, "it is for everybody");
}

#[tokio::test]
async fn what_a_parent_once_had_with_a_login_stays_private_when_it_has_none_any_more() {
    let registry = Upstream::start().await;
    registry.auth(Auth::Basic).user("u", "hunter2", "team-a/");
    let secret = Image::of(22, &[5000]);
    registry.image("team-a/app", "1", &secret);
    let open = Upstream::start().await;
    let logins = file_of(&docker_config(&[("harbor.example", "u", "hunter2")]));
    let setup = Berth::with("harbor.example", &registry);
    let with_login = setup.clone().keys(&format!("credentials = {{ file = {logins:?} }}"));
    let site = with_login.start().await;
    site.pull("team-a/app", "1", &secret).await;
    site.reconfigure(&setup).await;

    let node = Setup::new("harbor.example").endpoint_url(&url(&site)).keys("mirror = true");
    let node = node.and("docker.io", &open).start().await;
    node.pull("team-a/app", "1", &secret).await;
    node.until_idle().await;
    for path in [secret.layer().path("library/one"), secret.path("library/one")] {
        assert_eq!(node.get(&format!("{path}?ns=docker.io")).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn every_address_of_a_name_is_a_parent_with_its_part() {
    let registry = Upstream::start().await;
    let image = Image::of(19, &(100..140).collect::<Vec<_>>());
    registry.image(REPO, "1", &image);
    let relays = Relay::start_on_one_port(3).await;
    let mut sites = Vec::new();
    for relay in &relays {
        let site = Berth::with("docker.io", &registry).http("hosts = [\"site.example\"]").start().await;
        relay.to(site.address());
        sites.push(site);
    }
    let addresses: Vec<_> = relays.iter().map(|relay| relay.address().ip().to_string()).collect();
    let name = format!("http://site.example:{}", relays[0].address().port());
    let parents =
        format!("[parents]\nendpoints = [{name:?}]\naddresses = {{ \"site.example\" = {addresses:?} }}");
    let node = Berth::with("docker.io", &registry).sections(&parents).start().await;
    node.pull(REPO, "1", &image).await;
    for site in &sites {
        assert!(site.metric("berth_misses_total{type=\"blob\"").await > 0.0);
    }
    assert_eq!(registry.count("GET", "/blobs/"), image.blobs.len());
    assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
}

#[tokio::test]
async fn a_parent_that_wants_a_login_gets_its_own_and_what_it_brings_is_private() {
    let registry = Upstream::start().await;
    let image = Image::of(20, &[1000]);
    registry.image(REPO, "1", &image).image("library/other", "1", &image);
    let password = bcrypt::hash("hunter2", 4).unwrap();
    let (users, secret) = (file_of(&format!("node:{password}\n")), file_of("hunter2\n"));
    let site = Berth::with("docker.io", &registry).http(&format!("htpasswd = {users:?}")).start().await;
    let parents = format!(
        "[parents]\nendpoints = [{:?}]\nonly = true\ncredentials = {{ username = \"node\", password_file = {secret:?} }}",
        url(&site)
    );
    let node = Berth::with("docker.io", &registry).sections(&parents).start().await;
    node.pull(REPO, "1", &image).await;
    assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
    let asked = blob_requests(&site).await;
    node.get(&image.layer().path("library/other")).await.expect(200);
    assert_eq!(blob_requests(&site).await, asked + 1.0, "the other repository is to be vouched for");
    // Nobody else is there to be asked.
    drop(site);
    let reply = node.get(&format!("/v2/{REPO}/manifests/2")).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_tiers_ask_the_registry_once_whoever_asks_them() {
    let registry = Upstream::start().await;
    let image = Image::of(22, &[3 << 20, 2 << 20, 400_000]);
    registry.image(REPO, "1", &image);
    let region = Berth::with("docker.io", &registry).start().await;
    let site = below(&[url(&region)], &registry).start().await;
    let node = below(&[url(&site)], &registry).start().await;
    let gate = Gate::new();
    registry.on("GET", "/blobs/").fault(Fault::HoldAfter(200_000, gate.clone()));
    let hold = async {
        // Both tiers have transfers of their clients' and of one another's under way.
        eventually("all blobs are under way", async || region.metric("berth_flights").await >= 3.0).await;
        gate.open();
    };
    let tiers = [&node, &site, &region];
    tokio::join!(storm(&tiers, 24, &image), hold);
    for blob in &image.blobs {
        assert_eq!(registry.bytes_sent(&blob.digest), blob.len());
    }
    for berth in [&node, &site] {
        assert_eq!(berth.metric("berth_upstream_requests_total").await, 0.0);
        assert_eq!(parent_requests(berth, "error").await, 0.0);
    }
}

#[tokio::test]
async fn parents_change_while_it_runs() {
    let registry = Upstream::start().await;
    let image = Image::of(23, &[1000]);
    registry.image(REPO, "1", &image);
    let site = Berth::with("docker.io", &registry).start().await;
    let parents = |url: &str| {
        let parents = format!("[parents]\nendpoints = [{url:?}]\nonly = true");
        Berth::with("docker.io", &registry).sections(&parents)
    };
    let gone = Relay::start().await.url();
    let node = parents(&gone).start().await;
    assert_eq!(node.get(&image.layer().path(REPO)).await.status, 503);
    let changed = node.reconfigure(&parents(&url(&site))).await;
    assert!(changed.contains(&"parents".to_owned()), "{changed:?}");
    node.pull(REPO, "1", &image).await;
    assert_eq!(node.metric("berth_upstream_requests_total").await, 0.0);
}
