//! A crowd in an outage: what is known is served, what is not fails at once, nobody else notices, and it passes.

use std::time::{Duration, Instant};

use crate::support::{Auth, Berth, Fault, Gate, Image, Setup, Upstream, eventually, file_of, together};

const REPO: &str = "library/app";
const CLIENTS: usize = 32;
/// Every request for a tag asks upstream.
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
const TIMEOUTS: &str = "timeouts = { connect_seconds = 1, header_seconds = 1 }";
/// The promise for what is not here, once upstream is known to be down.
const FAILS_WITHIN: Duration = Duration::from_secs(3);

/// One upstream that will go down, one that will not, and a berth that knows an image of each.
struct Scene {
    upstream: Upstream,
    _other: Upstream,
    berth: Berth,
    image: Image,
}

impl Scene {
    async fn of(upstream: Upstream) -> Self {
        let other = Upstream::start().await;
        let image = Image::of(1, &[100_000]);
        for tag in 0..CLIENTS {
            upstream.image(REPO, &tag.to_string(), &image);
            other.image("team/app", &tag.to_string(), &Image::of(100 + tag as u64, &[5000]));
        }
        let setup = Berth::with("docker.io", &upstream).keys(TIMEOUTS).and("quay.io", &other);
        let berth = setup.sections(ALWAYS_CHECK).start().await;
        for tag in 0..CLIENTS {
            berth.pull(REPO, &tag.to_string(), &image).await;
        }
        berth.until_idle().await;
        Self { upstream, _other: other, berth, image }
    }

    /// Clients that all come at once: for what is known here, and for what only the other upstream knows.
    async fn assert_serves_a_crowd(&self, what: &str) {
        let Self { berth, image, .. } = self;
        let tags = together(CLIENTS, |tag| berth.get(&format!("/v2/{REPO}/manifests/{tag}")).into_future());
        let blobs = together(CLIENTS, |_| berth.get(&image.layer().path(REPO)).into_future());
        let others = together(CLIENTS, |tag| {
            berth.get(&format!("/v2/quay.io/team/app/manifests/{tag}")).into_future()
        });
        let (tags, blobs, others) = tokio::join!(tags, blobs, others);
        for reply in tags {
            assert_eq!(reply.expect(200), &image.manifest, "{what}");
            reply.expect_stale();
        }
        for reply in blobs {
            assert_eq!(reply.expect(200), &image.layer().content, "{what}");
        }
        for reply in others {
            reply.expect(200);
            assert_eq!(reply.header("warning"), None, "{what}: the other upstream is well");
        }
    }

    /// What is not here is a clean error, for a crowd, and says when to come again.
    async fn assert_refuses_the_unknown(&self, what: &str) {
        let unknown = |at: usize| match at % 3 {
            0 => format!("/v2/{REPO}/manifests/unknown-{at}"),
            1 => format!("/v2/{REPO}/blobs/sha256:{at:064}"),
            _ => format!("/v2/library/unknown-{at}/tags/list"),
        };
        for (at, reply) in
            together(CLIENTS, |at| self.berth.get(&unknown(at)).into_future()).await.into_iter().enumerate()
        {
            assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{what}: {}", unknown(at));
            assert_eq!(reply.header("retry-after"), Some("5"), "{what}: {}", unknown(at));
        }
    }

    /// Once it counts as down, upstream sees nothing but probes, and nobody waits.
    async fn assert_is_left_alone(&self, what: &str) {
        let Self { upstream, berth, .. } = self;
        let is_up = async || berth.metric("berth_upstream_up{registry=\"docker.io\"").await == 1.0;
        eventually("it counts as down", async || {
            berth.get(&format!("/v2/{REPO}/manifests/{}", fastrand::u32(..))).await.expect(503);
            !is_up().await
        })
        .await;
        upstream.forget();
        let begun = Instant::now();
        self.assert_refuses_the_unknown(what).await;
        assert!(begun.elapsed() < FAILS_WITHIN, "{what}: {:?}", begun.elapsed());
        self.assert_serves_a_crowd(what).await;
        let requests = upstream.requests();
        assert!(requests.iter().all(|request| request.target == "/v2/"), "{what}: {requests:?}");
        assert_eq!(berth.metric("berth_upstream_up{registry=\"quay.io\"").await, 1.0, "{what}");
    }

    /// Upstream is well again, and everything as if nothing had been.
    async fn assert_recovers(&self, what: &str) {
        let new = Image::of(9, &[5000]);
        self.upstream.image(REPO, "new", &new);
        eventually(&format!("{what}: its new image is had"), async || {
            self.berth.get(&format!("/v2/{REPO}/manifests/new")).await.status == 200
        })
        .await;
        self.berth.pull(REPO, "new", &new).await;
        assert_eq!(self.berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 1.0, "{what}");
    }

    /// Known tags are confirmed again, once the failed checks of them are forgotten.
    async fn assert_confirms(&self) {
        eventually("it is asked again about a known tag", async || {
            self.berth.get(&format!("/v2/{REPO}/manifests/0")).await.header("warning").is_none()
        })
        .await;
    }
}

/// An endpoint that is of no use for anything.
async fn assert_survives(what: &str, fault: Fault) {
    let scene = Scene::of(Upstream::start().await).await;
    scene.upstream.on("*", "").fault(fault);
    scene.assert_serves_a_crowd(what).await;
    scene.assert_is_left_alone(what).await;
    scene.upstream.behave();
    scene.assert_recovers(what).await;
}

#[tokio::test]
async fn an_upstream_that_accepts_and_never_answers() {
    assert_survives("silent", Fault::StallHead).await;
}

#[tokio::test]
async fn an_upstream_that_hangs_up() {
    assert_survives("hung up", Fault::Hangup).await;
}

#[tokio::test]
async fn an_upstream_whose_heads_drip() {
    assert_survives("dripping", Fault::DripHead(5)).await;
}

#[tokio::test]
async fn an_upstream_behind_a_broken_gateway() {
    assert_survives("bad gateway", Fault::Status(502)).await;
}

#[tokio::test]
async fn an_upstream_that_fails_at_everything() {
    assert_survives("500", Fault::Status(500)).await;
}

#[tokio::test]
async fn a_captive_portal() {
    assert_survives("portal", Fault::Html).await;
}

#[tokio::test]
async fn a_captive_portal_elsewhere() {
    let portal = Upstream::start().await;
    portal.on("*", "").fault(Fault::Html);
    assert_survives("redirected", Fault::RedirectTo(format!("{}/login", portal.url()))).await;
}

/// It goes on being asked, a little.
#[tokio::test]
async fn an_upstream_that_fails_at_images_only() {
    let scene = Scene::of(Upstream::start().await).await;
    scene.upstream.on("*", "/v2/library/").fault(Fault::Status(500));
    scene.upstream.forget();
    scene.assert_serves_a_crowd("500 for images").await;
    let is_look = |target: &str| target == "/v2/";
    let requests = scene.upstream.requests();
    assert!(
        requests.iter().filter(|request| !is_look(&request.target)).count() <= CLIENTS,
        "one check a tag"
    );
    scene.assert_refuses_the_unknown("500 for images").await;
    eventually("it is looked at", async || {
        scene.upstream.requests().iter().any(|request| is_look(&request.target) && request.status() == 200)
    })
    .await;
    assert_eq!(scene.berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 1.0);
    scene.upstream.behave();
    scene.assert_recovers("500 for images").await;
}

/// A berth that knows how long its upstream usually takes, and would wait long for an answer.
async fn patient() -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &upstream).keys("timeouts = { header_seconds = 15 }").start().await;
    berth.pull(REPO, "1", &image).await;
    (upstream, berth, image)
}

#[tokio::test]
async fn silence_is_told_from_a_slow_answer_long_before_that_would_be_late() {
    let (upstream, mut berth, _) = patient().await;
    upstream.on("*", "").fault(Fault::StallHead);
    assert_fails_soon(&berth).await;
    // One that it has never heard of.
    berth.restart().await;
    assert_fails_soon(&berth).await;
}

/// What is not here fails long before an answer would be late, and upstream then counts as down.
async fn assert_fails_soon(berth: &Berth) {
    let begun = Instant::now();
    for reply in
        together(CLIENTS, |at| berth.get(&format!("/v2/{REPO}/manifests/unknown-{at}")).into_future()).await
    {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    }
    // Three seconds are promised; the machine may be slow.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 0.0);
}

#[tokio::test]
async fn a_slow_answer_of_an_upstream_that_is_there_is_waited_for() {
    let (upstream, berth, image) = patient().await;
    let gate = Gate::new();
    upstream.image(REPO, "slow", &Image::of(2, &[3000]));
    upstream.on("*", "/manifests/").fault(Fault::Hold(gate.clone()));
    upstream.forget();
    let (reply, ()) = tokio::join!(berth.get(&format!("/v2/{REPO}/manifests/slow")), async {
        eventually("it is looked at", async || {
            upstream.requests().iter().any(|request| request.target == "/v2/")
        })
        .await;
        gate.open();
    });
    assert_ne!(reply.expect(200), &image.manifest);
    assert_eq!(berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 1.0);
}

#[tokio::test]
async fn an_upstream_that_refuses_connections() {
    let scene = Scene::of(Upstream::start().await).await;
    scene.upstream.stop().await;
    scene.assert_serves_a_crowd("refused").await;
    scene.assert_is_left_alone("refused").await;
    scene.upstream.start_again().await;
    scene.assert_recovers("refused").await;
    scene.assert_confirms().await;
}

#[tokio::test]
async fn an_upstream_whose_certificate_has_expired() {
    let scene = Scene::of(Upstream::start_tls().await).await;
    scene.upstream.expire(true);
    scene.upstream.start_again().await;
    scene.assert_serves_a_crowd("expired").await;
    scene.assert_is_left_alone("expired").await;
    assert_eq!(scene.upstream.requests().len(), 0);
    scene.upstream.expire(false);
    scene.upstream.start_again().await;
    scene.assert_recovers("expired").await;
}

// === Our own login

fn with_login(upstream: &Upstream, password_file: &std::path::Path) -> Setup {
    let login = format!("credentials = {{ username = \"robot\", password_file = {password_file:?} }}");
    Berth::with("docker.io", upstream).keys(&login).sections(ALWAYS_CHECK)
}

/// A berth that has pulled some tags of one image with a login that was then taken from it.
async fn locked_out(auth: Auth, password_file: &std::path::Path) -> (Upstream, Berth, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    for tag in 0..CLIENTS {
        upstream.image(REPO, &tag.to_string(), &image);
    }
    upstream.auth(auth).user("robot", "old", "");
    let berth = with_login(&upstream, password_file).start().await;
    for tag in 0..CLIENTS {
        berth.pull(REPO, &tag.to_string(), &image).await;
    }
    berth.until_idle().await;
    upstream.forget_users();
    upstream.revoke_tokens();
    eventually("the login counts as refused", async || {
        let unknown = format!("/v2/{REPO}/manifests/{}", fastrand::u32(..));
        assert_eq!(berth.get(&unknown).await.status, 503);
        berth.metric("berth_upstream_login_refused{registry=\"docker.io\"").await == 1.0
    })
    .await;
    upstream.forget();
    (upstream, berth, image)
}

/// Clients cost upstream nothing, and are answered.
async fn assert_only_probes(upstream: &Upstream, berth: &Berth, image: &Image) {
    for reply in
        together(CLIENTS, |tag| berth.get(&format!("/v2/{REPO}/manifests/{tag}")).into_future()).await
    {
        assert_eq!(reply.expect(200), &image.manifest);
        reply.expect_stale();
    }
    for reply in
        together(CLIENTS, |at| berth.get(&format!("/v2/{REPO}/manifests/unknown-{at}")).into_future()).await
    {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    }
    let is_probe = |target: &str| target == "/v2/" || target.starts_with("/token");
    let requests = upstream.requests();
    assert!(requests.iter().all(|request| is_probe(&request.target)), "{requests:?}");
    assert!(requests.iter().all(|request| request.query("scope").is_none()), "nothing but the login");
    assert_eq!(berth.metric("berth_upstream_up{registry=\"docker.io\"").await, 1.0, "it answers");
}

#[tokio::test]
async fn a_login_that_is_refused_is_tried_by_probes_only_until_it_is_taken_again() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let password = file_of("old");
        let (upstream, berth, image) = locked_out(auth, &password).await;
        assert_only_probes(&upstream, &berth, &image).await;
        eventually("it is probed", async || !upstream.requests().is_empty()).await;
        upstream.user("robot", "old", "");
        eventually("it is taken again", async || {
            berth.get(&format!("/v2/{REPO}/manifests/0")).await.header("warning").is_none()
        })
        .await;
        assert_eq!(berth.metric("berth_upstream_login_refused{registry=\"docker.io\"").await, 0.0);
    }
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "a password that is no longer needed")]
async fn a_login_that_was_changed_is_trusted_at_once() {
    let password = file_of("old");
    let (upstream, berth, _) = locked_out(Auth::Basic, &password).await;
    upstream.user("robot", "new", "");
    std::fs::write(&password, "new").unwrap();
    let new = Image::of(2, &[3000]);
    upstream.image(REPO, "new", &new);
    eventually("the new one is in use", async || {
        berth.get(&format!("/v2/{REPO}/manifests/new")).await.status == 200
    })
    .await;
    eventually("nothing is refused", async || {
        berth.metric("berth_upstream_login_refused{registry=\"docker.io\"").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_login_that_may_not_see_one_repository_goes_on_being_used_for_others() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    // Of others it says 401, as if the password were wrong.
    upstream.auth(Auth::Basic).user("robot", "old", "library/");
    let password = file_of("old");
    let berth = with_login(&upstream, &password).start().await;
    berth.pull(REPO, "1", &image).await;
    for at in 0..CLIENTS {
        assert_eq!(berth.get(&format!("/v2/secret/app/manifests/{at}")).await.status, 503);
    }
    eventually("the login is probed", async || {
        upstream.requests().iter().any(|request| request.target == "/v2/" && request.status() == 200)
    })
    .await;
    upstream.image(REPO, "2", &image);
    for tag in ["1", "2"] {
        let reply = berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await;
        assert_eq!(reply.expect(200), &image.manifest);
        assert_eq!(reply.header("warning"), None);
    }
    assert_eq!(berth.metric("berth_upstream_login_refused{registry=\"docker.io\"").await, 0.0);
}
