//! `[[upstream.fallback]]`: asked when a registry's own endpoints have no answer, as who berth is there and nobody else.

use crate::support::{
    Auth, Berth, Blob, Fault, Gate, Image, Setup, Upstream, basic, docker_config, eventually, file_of, folder,
};

const REPO: &str = "library/app";
const BLOB: usize = 4 << 20;
const CUT: u64 = 1 << 20;
/// Every request for a tag asks upstream.
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";

/// A mirror of docker.io that falls back on `fallback`, of which these keys are said too.
fn with_fallback(registry: &Upstream, fallback: &Upstream, keys: &str) -> Setup {
    let section = format!("[[upstream.fallback]]\nendpoints = [{:?}]\n{keys}", fallback.url());
    Berth::with("docker.io", registry).keys(&section)
}

async fn two() -> (Upstream, Upstream) {
    (Upstream::start().await, Upstream::start().await)
}

async fn status(berth: &Berth, path: &str) -> u16 {
    berth.get(path).await.status
}

async fn is_up(berth: &Berth) -> bool {
    berth.metric("berth_upstream_up{registry=\"docker.io\"").await == 1.0
}

/// How often it was asked for content, whatever it said.
fn asked(upstream: &Upstream) -> usize {
    upstream.count("*", "/manifests/") + upstream.count("*", "/blobs/")
}

#[tokio::test]
async fn it_answers_when_the_registry_does_not() {
    for what in ["dead", "empty", "refuses", "broken", "limits"] {
        let (registry, fallback) = two().await;
        let image = Image::of(1, &[30_000]);
        fallback.image(REPO, "1", &image);
        match what {
            "dead" => registry.stop().await,
            "refuses" => drop(registry.auth(Auth::Basic)),
            "broken" => registry.on("*", "").fault(Fault::Status(500)),
            "limits" => registry.on("*", "").fault(Fault::Limited(60)),
            _ => {}
        }
        let berth = with_fallback(&registry, &fallback, "").start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(is_up(&berth).await, "{what}");
        assert!(what == "dead" || asked(&registry) > 0, "{what}: the registry comes first");
    }
}

#[tokio::test]
async fn it_is_left_alone_while_the_registry_answers() {
    let (registry, fallback) = two().await;
    let image = Image::of(1, &[30_000]);
    registry.image(REPO, "1", &image);
    fallback.image(REPO, "1", &Image::of(2, &[5]));
    let berth = with_fallback(&registry, &fallback, "").start().await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(asked(&fallback), 0);
}

#[tokio::test]
async fn it_comes_after_parents_and_not_at_all_where_they_are_all_there_is() {
    let (parent, fallback) = two().await;
    let registry = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    fallback.image(REPO, "1", &image);
    let section = format!("[[upstream.fallback]]\nendpoints = [{:?}]", fallback.url());
    let parents = format!("[parents]\nendpoints = [{:?}]\n", parent.url());
    let mirror = Berth::with("docker.io", &parent).keys("mirror = true").keys(&section);
    let with_parents = with_fallback(&registry, &fallback, "").sections(&parents);
    for setup in [mirror, with_parents] {
        parent.forget();
        let berth = setup.start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(asked(&parent) > 0);
    }
    assert!(asked(&registry) > 0);
    fallback.forget();
    let only = with_fallback(&registry, &fallback, "").sections(&(parents + "only = true"));
    assert_eq!(status(&only.start().await, &format!("/v2/{REPO}/manifests/1")).await, 404);
    assert!(fallback.requests().is_empty());
}

#[tokio::test]
async fn what_neither_has_is_absent_and_only_if_both_say_so() {
    let (registry, fallback) = two().await;
    let berth = with_fallback(&registry, &fallback, "").start().await;
    assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/no")).await, 404);
    fallback.stop().await;
    assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/unknown")).await, 503);
}

#[tokio::test]
async fn its_word_about_a_tag_is_the_registrys() {
    let (registry, fallback) = two().await;
    let (old, new) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    registry.image(REPO, "1", &old);
    fallback.image(REPO, "1", &new);
    let berth = with_fallback(&registry, &fallback, "").sections(ALWAYS_CHECK).start().await;
    berth.pull(REPO, "1", &old).await;
    registry.stop().await;
    berth.pull(REPO, "1", &new).await;
}

#[tokio::test]
async fn each_is_sent_its_own_login_and_headers_only() {
    let (registry, fallback) = two().await;
    registry.auth(Auth::Basic).user("own", "own-secret", "");
    fallback.auth(Auth::Bearer).user("theirs", "their-secret", "hub/");
    let (here, there) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    registry.image(REPO, "here", &here);
    fallback.image(&format!("hub/{REPO}"), "there", &there);
    // One file with both: which is meant is decided by the host.
    let logins = file_of(&docker_config(&[
        ("docker.io", "own", "own-secret"),
        (&fallback.address().to_string(), "theirs", "their-secret"),
    ]));
    let credentials = format!("credentials = {{ file = {logins:?} }}\n");
    let of_fallback = format!(
        "{credentials}headers = {{ X-Tenant = \"theirs\" }}\nrewrite = [{{ from = \"\", to = \"hub/\" }}]"
    );
    let section = format!("[[upstream.fallback]]\nendpoints = [{:?}]\n{of_fallback}", fallback.url());
    let setup = Berth::with("docker.io", &registry).keys(&credentials);
    let berth = setup.keys("headers = { X-Tenant = \"own\" }").keys(&section).start().await;
    berth.pull(REPO, "here", &here).await;
    berth.pull(REPO, "there", &there).await;

    let check = |upstream: &Upstream, login: &str, other: &str, tenant: &str| {
        let requests = upstream.requests();
        assert!(requests.iter().any(|request| request.header("authorization") == Some(login)));
        for request in requests {
            let text = format!("{request:?}");
            assert!(!text.contains(other), "{text}");
            // Token servers are sent none.
            assert!(request.header("x-tenant").is_none_or(|sent| sent == tenant), "{text}");
        }
        assert!(upstream.seen("*", "/manifests/").iter().all(|it| it.header("x-tenant") == Some(tenant)));
    };
    let (own, theirs) = (basic("own", "own-secret"), basic("theirs", "their-secret"));
    check(&registry, &own, &theirs, "own");
    check(&fallback, &theirs, &own, "theirs");
}

#[tokio::test]
async fn what_it_has_with_a_login_is_private_to_the_repository() {
    for is_private in [true, false] {
        let (registry, fallback) = two().await;
        let other = Upstream::start().await;
        let (own, theirs) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
        registry.image(REPO, "own", &own);
        fallback.image(REPO, "theirs", &theirs);
        let mut keys = "";
        if is_private {
            fallback.auth(Auth::Basic).user("robot", "hunter2", "");
            keys = "credentials = { username = \"robot\", password_env = \"PASSWORD\" }";
        }
        let setup = with_fallback(&registry, &fallback, keys).and("quay.io", &other);
        let berth = setup.env("PASSWORD", "hunter2").start().await;
        berth.pull(REPO, "own", &own).await;
        berth.pull(REPO, "theirs", &theirs).await;
        berth.until_idle().await;
        let elsewhere = |blob: &Blob| format!("/v2/quay.io{}", &blob.path("team/app")["/v2".len()..]);
        assert_eq!(status(&berth, &elsewhere(own.layer())).await, 200, "the registry has no secrets");
        let expected = if is_private { 404 } else { 200 };
        assert_eq!(status(&berth, &elsewhere(theirs.layer())).await, expected);
        assert_eq!(status(&berth, &theirs.layer().path(REPO)).await, 200);
        let tags = berth.get(&format!("/v2/{REPO}/tags/list")).await;
        assert_eq!(tags.status == 200, !is_private, "{}", tags.text());
    }
}

#[tokio::test]
async fn it_brings_the_rest_of_a_blob_and_the_truth_in_the_place_of_a_lie() {
    let lie = |registry: &Upstream| registry.on("GET", "/blobs/").fault(Fault::WrongByte(17));
    let cut = |registry: &Upstream| {
        registry.on("GET", "/blobs/").nth(1).fault(Fault::Cut(CUT));
        registry.on("GET", "/blobs/").after(1).fault(Fault::Status(500));
    };
    for (fault, brought) in [(&cut as &dyn Fn(&Upstream), BLOB as u64 - CUT), (&lie, BLOB as u64)] {
        let (registry, fallback) = two().await;
        let image = Image::of(7, &[BLOB]);
        registry.image(REPO, "1", &image);
        fallback.image(&format!("hub/{REPO}"), "1", &image);
        fault(&registry);
        let rewrite = "rewrite = [{ from = \"\", to = \"hub/\" }]";
        let berth = with_fallback(&registry, &fallback, rewrite).start().await;
        eventually("all of it", async || {
            let reply = berth.get(&image.layer().path(REPO)).try_send().await;
            reply.is_ok_and(|reply| reply.complete && reply.body == image.layer().content)
        })
        .await;
        assert_eq!(fallback.bytes_sent(&image.layer().digest), brought);
    }
}

/// The registry has nothing for the first, so its fallback is asked; for the second it has it itself, which is not known
/// before, or is known from a time when it was stored.
#[tokio::test]
async fn what_it_does_for_one_repository_keeps_no_other_of_its_registry() {
    let faults =
        [|| Fault::WrongByte(17), || Fault::HoldAfter(CUT, Gate::new()), || Fault::Hold(Gate::new())];
    for (fault, was_stored) in faults.iter().flat_map(|fault| [(fault, false), (fault, true)]) {
        keeps_no_other(fault(), was_stored).await;
    }
}

async fn keeps_no_other(fault: Fault, was_stored: bool) {
    const OTHER: &str = "other/app";
    let is_lie = matches!(fault, Fault::WrongByte(_));
    let (registry, fallback) = two().await;
    let image = Image::of(7, &[BLOB]);
    let (own, other) = (image.layer().path(REPO), image.layer().path(OTHER));
    registry.auth(Auth::Basic).user("robot", "hunter2", "").image(REPO, "1", &image);
    fallback.image(OTHER, "1", &image).on("GET", "/blobs/").fault(fault);
    let login = file_of(&docker_config(&[("docker.io", "robot", "hunter2")]));
    let setup = Berth::with("docker.io", &registry).keys(&format!("credentials = {{ file = {login:?} }}"));
    let section = format!("[[upstream.fallback]]\nendpoints = [{:?}]", fallback.url());
    let mut berth = setup.keys(&section).start().await;
    if was_stored {
        berth.pull(REPO, "1", &image).await;
        berth.stop().await;
        std::fs::remove_file(folder::blob(berth.data_dir(), &image.layer().digest)).unwrap();
        berth.start_again().await;
    }
    let mut asked = tokio::spawn(berth.get(&other).into_future());
    if is_lie {
        assert!(!(&mut asked).await.unwrap().complete);
        eventually("it is not asked for a while", async || status(&berth, &other).await == 503).await;
    } else {
        eventually("the fallback is asked", async || fallback.count("GET", "/blobs/") > 0).await;
    }
    assert_eq!(berth.get(&own).await.expect(200), &image.layer().content, "was it stored: {was_stored}");
    assert!(is_lie || !asked.is_finished(), "was it stored: {was_stored}: it waited for the fallback");
}

#[tokio::test]
async fn an_upstream_is_down_when_all_are_and_up_when_one_is() {
    let (registry, fallback) = two().await;
    fallback.image(REPO, "1", &Image::of(1, &[3000]));
    let berth = with_fallback(&registry, &fallback, "").start().await;
    registry.stop().await;
    eventually("the registry counts as down", async || {
        status(&berth, &format!("/v2/{REPO}/manifests/{}", fastrand::u32(..))).await;
        berth.logs_contain("does not answer")
    })
    .await;
    assert!(is_up(&berth).await);
    fallback.stop().await;
    eventually("both count as down", async || {
        assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/{}", fastrand::u32(..))).await, 503);
        !is_up(&berth).await
    })
    .await;
    fallback.start_again().await;
    eventually("a probe finds it", async || is_up(&berth).await).await;
    assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/1")).await, 200);
}

#[tokio::test]
async fn offline_means_fallbacks_too_and_a_reload_brings_one() {
    let (registry, fallback) = two().await;
    let image = Image::of(1, &[3000]);
    fallback.image(REPO, "1", &image);
    let berth = Berth::with("docker.io", &registry).start().await;
    assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/missing")).await, 404);

    let offline = Berth::with("docker.io", &registry).keys("offline = true");
    let section = format!("[[upstream.fallback]]\nendpoints = [{:?}]", fallback.url());
    assert_eq!(berth.reconfigure(&offline.keys(&section)).await, ["upstream docker.io"]);
    assert_eq!(status(&berth, &format!("/v2/{REPO}/manifests/1")).await, 503);
    assert!(fallback.requests().is_empty());

    assert_eq!(berth.reconfigure(&with_fallback(&registry, &fallback, "")).await, ["upstream docker.io"]);
    berth.pull(REPO, "1", &image).await;
}
