//! Berths that ask one another in a circle (F23: as plain endpoints they did not notice), and what of a request's headers
//! counts from whom.

use crate::support::{Auth, Berth, Fault, Gate, Image, Relay, Setup, Upstream, eventually, file_of};

const REPO: &str = "library/app";
const PEERS: &str = "peers = [\"127.0.0.0/8\"]";
const STRANGER: &str = "1.1 berth-0000000000000001";

/// Requests to upstreams that a berth has sent, all in all.
async fn asked(berth: &Berth) -> f64 {
    berth.metric("berth_upstream_requests_total").await + berth.metric("berth_parent_requests_total").await
}

/// Its own name in `Via`.
async fn id(berth: &Berth) -> String {
    let hello = berth.get("/v2/").header("via", STRANGER).await;
    hello.header("via").unwrap().to_owned()
}

/// Every kind of request for what nobody has.
fn unknown() -> Vec<(&'static str, String)> {
    let digest = Image::of(99, &[10]).layer().digest;
    vec![
        ("GET", format!("/v2/{REPO}/manifests/none")),
        ("HEAD", format!("/v2/{REPO}/manifests/none-either")),
        ("GET", format!("/v2/{REPO}/manifests/{digest}")),
        ("GET", format!("/v2/{REPO}/blobs/{digest}")),
        ("HEAD", format!("/v2/library/other/blobs/{digest}")),
        ("GET", "/v2/library/none/tags/list".to_owned()),
    ]
}

/// Two berths that are set up by `setup`, each of which knows the URL of the other.
async fn pair(setup: impl Fn(usize, &str) -> Setup) -> [Berth; 2] {
    let (to_a, to_b) = (Relay::start().await, Relay::start().await);
    let a = setup(0, &to_b.url()).start().await;
    let b = setup(1, &to_a.url()).start().await;
    to_a.to(a.address());
    to_b.to(b.address());
    // They last as long as the process; the test's own end is theirs.
    std::mem::forget((to_a, to_b));
    [a, b]
}

#[tokio::test]
async fn two_plain_endpoints_of_each_other_say_at_once_that_there_is_nothing() {
    let pair = pair(|_, other| Setup::new("docker.io").endpoint_url(other)).await;
    let requests = unknown();
    for berth in &pair {
        for (method, path) in &requests {
            let reply = berth.ask(method, path).await;
            assert_eq!(reply.status, 503, "{method} {path}");
        }
    }
    for berth in &pair {
        // One for each request of a client, and one for each that the other has passed on; looks at its door besides.
        let asked = asked(berth).await;
        assert!(asked <= 2.0 * requests.len() as f64 + 4.0, "{asked}");
        assert_eq!(berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 1.0);
    }
}

#[tokio::test]
async fn two_fallbacks_of_each_other_say_404_and_find_what_either_registry_has() {
    let registries = [Upstream::start().await, Upstream::start().await];
    let images = [Image::of(1, &[3000]), Image::of(2, &[3000])];
    for (number, (registry, image)) in registries.iter().zip(&images).enumerate() {
        registry.image(REPO, &format!("of-{number}"), image);
    }
    let pair = pair(|number, other| {
        Berth::with("docker.io", &registries[number])
            .keys(&format!("[[upstream.fallback]]\nendpoints = [{other:?}]"))
    })
    .await;
    let requests = unknown();
    for berth in &pair {
        for (method, path) in &requests {
            let reply = berth.ask(method, path).await;
            assert_eq!(reply.status, 404, "{method} {path}: {}", reply.text());
        }
    }
    for registry in &registries {
        // Each asks its own, once for its client and once for the other's; manifests by digest and blobs by GET as well.
        let asked = registry.requests().len();
        assert!(asked <= 4 * requests.len(), "{asked}");
    }
    for berth in &pair {
        for (number, image) in images.iter().enumerate() {
            berth.pull(REPO, &format!("of-{number}"), image).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_has_been_here_or_come_too_far_is_a_loop_whoever_sends_it() {
    let upstream = Upstream::start().await;
    let image = Image::of(3, &[100]);
    upstream.image(REPO, "1", &image);
    for peers in ["", PEERS] {
        let berth = Berth::with("docker.io", &upstream).http(peers).start().await;
        berth.pull(REPO, "1", &image).await;
        upstream.forget();
        let own = id(&berth).await;
        let far: Vec<_> = (1..=5).map(|hop| format!("1.1 berth-{hop:016x}")).collect();
        let circles = [
            own.clone(),
            format!("{own}, {STRANGER}"),
            format!("{STRANGER}, {own}, {STRANGER}"),
            far.join(", "),
        ];
        for via in &circles {
            for (method, path) in unknown().into_iter().chain([("GET", image.path(REPO))]) {
                let reply = berth.ask(method, &path).header("via", via).await;
                assert_eq!(reply.status, 508, "{method} {path}: {via}");
                assert_eq!(reply.header("via"), Some(&*own), "it says who it is");
            }
        }
        assert_eq!(upstream.requests().len(), 0);
        let four = far[..4].join(", ");
        assert_eq!(berth.get(&image.path(REPO)).header("via", &four).await.status, 200);
    }
}

#[tokio::test]
async fn every_endpoint_is_told_who_asks_and_nobody_whom_it_points_to() {
    let (upstream, elsewhere, tokens) =
        (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let image = Image::of(4, &[100]);
    upstream
        .image(REPO, "1", &image)
        .auth(Auth::Bearer)
        .anonymous("")
        .realm(&format!("{}/token", tokens.url()));
    tokens.anonymous("");
    elsewhere.image(REPO, "1", &image);
    upstream.on("GET", "/blobs/").fault(Fault::Redirect(elsewhere.url().to_owned()));
    let keys = "realm_hosts = [\"127.0.0.1\"]\nredirect_hosts = [\"127.0.0.1\"]";
    let berth = Berth::with("docker.io", &upstream).keys(keys).start().await;
    berth.pull(REPO, "1", &image).await;
    let own = id(&berth).await;
    for request in upstream.requests() {
        assert_eq!(request.header("via"), Some(&*own));
        // What a parent is told besides is not for others.
        assert_eq!((request.header("berth-deadline"), request.header("berth-client")), (None, None));
    }
    assert!(elsewhere.count("GET", "/blobs/") > 0 && tokens.count("*", "/token") > 0);
    for request in elsewhere.requests().iter().chain(&tokens.requests()) {
        assert_eq!(request.header("via"), None);
    }
    // By way of another berth it is told both.
    let node = Setup::new("docker.io").endpoint_url(&format!("http://{}", berth.address())).start().await;
    upstream.forget();
    node.get("/v2/library/none/tags/list").await.expect(404);
    let via = upstream.requests().last().unwrap().header("via").unwrap().to_owned();
    assert_eq!(via, format!("{}, {own}", id(&node).await));
}

#[tokio::test]
async fn the_deadline_of_a_stranger_is_none() {
    let upstream = Upstream::start().await;
    let image = Image::of(5, &[100]);
    let gate = Gate::new();
    upstream.image(REPO, "1", &image).on("GET", "/blobs/").fault(Fault::Hold(gate.clone()));
    let setup = Berth::with("docker.io", &upstream).keys("timeouts = { header_seconds = 17 }");
    let strict = setup.clone().start().await;
    let trusting = setup.http(PEERS).start().await;
    let ask = |berth: &Berth| {
        let ask = berth.get(&image.layer().path(REPO)).header("via", STRANGER);
        tokio::spawn(ask.header("berth-deadline", "1000").into_future())
    };
    let stranger = ask(&strict);
    // Both have been told the same at the same time: when the peer has its answer the stranger still waits.
    eventually("it is asked", async || upstream.count("GET", "/blobs/") == 1).await;
    assert_eq!(ask(&trusting).await.unwrap().status, 503);
    assert!(!stranger.is_finished());
    gate.open();
    assert_eq!(stranger.await.unwrap().expect(200), &image.layer().content);
}

#[tokio::test]
async fn a_peer_goes_round_a_parent_and_a_stranger_does_not() {
    let (registry, of_parent) = (Upstream::start().await, Upstream::start().await);
    let (here, there) = (Image::of(6, &[100]), Image::of(7, &[100]));
    registry.image(REPO, "1", &here);
    of_parent.image(REPO, "1", &there);
    let parent = Berth::with("docker.io", &of_parent).start().await;
    let parent_id = id(&parent).await;
    let users = file_of(&format!("site:{}\n", bcrypt::hash("hunter2", 4).unwrap()));
    let by_login = format!("htpasswd = {users:?}\npeers = [\"site\", \"192.0.2.0/24\"]");
    for (http, is_peer, login) in
        [("", false, None), (PEERS, true, None), (&*by_login, true, Some("hunter2"))]
    {
        let parents = format!("[parents]\nendpoints = [\"http://{}\"]", parent.address());
        let node = Berth::with("docker.io", &registry).http(http).sections(&parents).start().await;
        eventually("it knows its parent", async || node.metric("berth_parent_requests_total").await >= 1.0)
            .await;
        registry.forget();
        let ask = |path: &str| match login {
            Some(password) => node.get(path).basic("site", password),
            None => node.get(path),
        };
        let reply = ask(&here.layer().path(REPO)).header("via", &parent_id).await;
        assert_eq!(reply.status, if is_peer { 200 } else { 508 }, "{http}: {}", reply.text());
        assert_eq!(registry.requests().len(), usize::from(is_peer), "{http}");
        // That a stranger claims to come from there is nothing to anybody else.
        let tag = format!("/v2/{REPO}/manifests/1");
        let far = format!("{parent_id}, {STRANGER}");
        assert_ne!(ask(&tag).header("via", &far).await.status, 404, "{http}");
        if !is_peer {
            let reply = ask(&tag).await;
            assert_eq!(reply.expect(200), &there.manifest);
            assert_eq!(reply.header("warning"), None);
        }
    }
}

#[tokio::test]
async fn whoever_may_be_a_peer_is_written_so_that_it_can_be_understood() {
    let upstream = Upstream::start().await;
    for (peers, complaint) in [
        ("\"10.0.0.0/33\"", "expected a network such as"),
        ("\"site\"", "expected a network, or http.htpasswd"),
    ] {
        let exit = Berth::with("docker.io", &upstream).http(&format!("peers = [{peers}]")).fail().await;
        assert_eq!(exit.code, Some(2), "{}", exit.log());
        assert!(exit.log().contains(complaint), "{}", exit.log());
    }
}
