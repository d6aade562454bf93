//! A configuration that changes while berth runs: what is applied, what is refused, and what nobody notices.

use std::fs::{self, File};
use std::future::IntoFuture as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::process::write;
use crate::support::{
    Auth, Berth, Certificate, Fault, Gate, Image, Setup, Upstream, docker_config, eventually, file_of,
    folder, get, within_deadline,
};

const REPO: &str = "library/app";
const TAG: &str = "/v2/library/app/manifests/1";
const OTHER: &str = "/v2/other.example/library/app/manifests/1";

async fn registry(seed: u64) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(seed, &[3000]);
    upstream.image(REPO, "1", &image);
    (upstream, image)
}

async fn reloads(berth: &Berth, result: &str) -> f64 {
    berth.metric(&format!("berth_config_reloads_total{{result=\"{result}\"}}")).await
}

/// Whether what it runs with is what its file says.
async fn is_current(berth: &Berth) -> bool {
    berth.metric("berth_config_current").await == 1.0
}

async fn until_known(berth: &Berth, path: &str) {
    eventually(path, async || berth.get(path).await.status == 200).await;
}

/// As Kubernetes does with what it mounts: all of a new version, and then one symlink.
fn mount(folder: &Path, version: &str, config: &str) {
    fs::create_dir(folder.join(version)).unwrap();
    write(&folder.join(version).join("berth.toml"), config);
    let next = folder.join("..next");
    symlink(version, &next).unwrap();
    fs::rename(next, folder.join("..data")).unwrap();
}

// === When it is read

#[tokio::test]
async fn sighup_applies_what_the_file_says_now() {
    let ((upstream, image), (other, more)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream);
    let mut berth = setup.clone().start().await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(berth.get(OTHER).await.status, 404);
    assert!(is_current(&berth).await);
    let at_start = berth.metric("berth_config_last_success_timestamp_seconds").await;
    assert!(at_start > 1e9);

    berth.configure(&setup.and("other.example", &other));
    berth.signal(Signal::HUP);
    until_known(&berth, OTHER).await;
    berth.pull("other.example/library/app", "1", &more).await;
    berth.until_logged("upstream other.example: new").await;
    assert!(is_current(&berth).await);
    assert_eq!(reloads(&berth, "applied").await, 1.0);
    assert!(berth.metric("berth_config_last_success_timestamp_seconds").await >= at_start);

    let unchanged = reloads(&berth, "unchanged").await;
    berth.signal(Signal::HUP);
    eventually("it finds nothing new", async || reloads(&berth, "unchanged").await > unchanged).await;
    assert!(berth.logs_contain("SIGHUP"));
    berth.stop().await;
}

#[tokio::test]
async fn a_file_that_changes_is_read_without_being_told() {
    let ((upstream, _), (other, _)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    berth.configure(&setup.clone().and("other.example", &other));
    until_known(&berth, OTHER).await;
    // In place, by a tool that is slow about it: the half that was there meanwhile counts for nothing in the end.
    let text = setup.and("other.example", &other).keys("aliases = [\"other\"]").toml(berth.data_dir());
    for end in [text.len() / 3, text.len() / 2, text.len() - 3, text.len()] {
        write(&berth.config(), &text[..end]);
        tokio::task::yield_now().await;
    }
    until_known(&berth, "/v2/other/library/app/manifests/1").await;
    assert!(is_current(&berth).await);
}

#[tokio::test]
async fn a_mounted_file_changes_by_a_symlink_and_one_that_is_wrong_is_reported_once() {
    let ((upstream, _), (other, _)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream);
    let (data, mounted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = |setup: &Setup| setup.toml(data.path());
    mount(mounted.path(), "..1", &text(&setup));
    let config = mounted.path().join("berth.toml");
    symlink("..data/berth.toml", &config).unwrap();
    let started = setup.clone().without_file().data_dir(data.path());
    let berth = started.arg("--config").arg(config.to_str().unwrap()).start().await;

    mount(mounted.path(), "..2", &format!("{}\nnonsense = true", text(&setup)));
    eventually("it is refused", async || reloads(&berth, "refused").await > 0.0).await;
    assert!(!is_current(&berth).await);
    mount(mounted.path(), "..3", &text(&setup.and("other.example", &other)));
    until_known(&berth, OTHER).await;
    assert!(is_current(&berth).await);
    assert_eq!(reloads(&berth, "refused").await, 1.0, "not once a second");
}

#[tokio::test]
async fn without_a_file_sighup_says_that_there_is_none() {
    let (upstream, image) = registry(1).await;
    let data = tempfile::tempdir().unwrap();
    let mut setup = Berth::with("docker.io", &upstream).without_file().data_dir(data.path());
    for arg in ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"] {
        setup = setup.arg(arg);
    }
    let setup = setup.arg(data.path().to_str().unwrap());
    let mut berth = setup.arg("--upstream").arg(&format!("docker.io={}", upstream.url())).start().await;
    berth.signal(Signal::HUP);
    berth.until_logged("there is no configuration file").await;
    let reply = berth.reload().await;
    assert_eq!(reply.status, 409, "{}", reply.text());
    berth.pull(REPO, "1", &image).await;
    assert!(is_current(&berth).await);
    berth.stop().await;
}

#[tokio::test]
async fn flags_and_environment_still_win_over_the_file() {
    let ((upstream, image), (other, _)) = (registry(1).await, registry(2).await);
    let berth = Berth::with("docker.io", &other)
        .arg("--upstream")
        .arg(&format!("docker.io={}", upstream.url()))
        .env("BERTH_LISTEN", "127.0.0.1:0")
        .start()
        .await;
    let file =
        Berth::with("docker.io", &other).keys("aliases = [\"hub\"]").http("listen = [\"127.0.0.1:1\"]");
    assert_eq!(berth.reconfigure(&file).await, [""; 0]);
    berth.pull(REPO, "1", &image).await;
    assert_eq!(other.requests().len(), 0);
}

// === What is refused

#[tokio::test]
async fn what_is_wrong_is_refused_whole_with_the_reason() {
    let ((upstream, image), (other, _)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream);
    let mut berth = setup.clone().start().await;
    let password = file_of("secret");
    let mut refused = 0.0;
    // What comes with it would be good.
    let base = || setup.clone().and("other.example", &other);
    let certificate = Certificate::new();
    let on = format!("tls = {{ cert = {:?}, key = {:?} }}", certificate.cert(), certificate.key());
    let login = format!("credentials = {{ username = \"u\", password_file = {password:?} }}");
    let listen = "listen = [\"0.0.0.0:0\"]";
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
    for (next, reasons) in [
        (base().sections("[[tags]\n"), &["line "][..]),
        (base().http("allow = [\"10.0.0.0/99\"]"), &["line ", "allow", "10.0.0.0/99"]),
        (base().keys("aliases = [\"docker.io\"]"), &["docker.io", "other.example", "[[upstream]]"]),
        (base().keys("ca = [\"/nowhere\"]"), &["other.example", "/nowhere"]),
        (base().http("htpasswd = \"/nowhere\""), &["htpasswd", "/nowhere"]),
        (base().keys(&login).http(listen), &["0.0.0.0:0", "other.example", "http.allow"]),
        (base().http("listen = [\"127.0.0.1:1\"]"), &["http.listen", "127.0.0.1:1", "restart"]),
        (base().admin("listen = \"127.0.0.1:1\""), &["admin.listen", "127.0.0.1:1", "restart"]),
        (base().admin("metrics_listen = \"127.0.0.1:1\""), &["admin.metrics_listen", "nothing", "restart"]),
        (base().http(&on), &["http.tls", "off", "restart"]),
        (base().file("data_dir = \"/elsewhere\""), &["data_dir", "/elsewhere", "restart"]),
        (base().keys(&format!("ca = [{pipe:?}]")), &["other.example", "regular file"]),
        (base().http(&format!("htpasswd = {pipe:?}")), &["htpasswd", "regular file"]),
    ] {
        berth.configure(&next);
        let reply = berth.reload().await;
        reply.expect(422);
        refused += 1.0;
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        let file = berth.config();
        for reason in reasons.iter().chain(&[file.to_str().unwrap()]) {
            assert!(error.contains(reason), "{reason} in {error}");
        }
        assert!(!is_current(&berth).await, "{error}");
        assert_eq!(berth.get(OTHER).await.status, 404, "nothing of it is applied: {error}");
        berth.pull(REPO, "1", &image).await;
    }
    fs::rename(&pipe, berth.config()).unwrap();
    within_deadline("an answer", berth.reload()).await.expect(422);
    refused += 1.0;
    assert!(reloads(&berth, "refused").await >= refused);
    let errors = berth.logs().into_iter().filter(|line| line.contains("\"ERROR\"")).collect::<Vec<_>>();
    assert!(
        errors.iter().any(|line| line.contains("http.listen") && line.contains("127.0.0.1:1")),
        "{errors:?}"
    );
    assert_eq!(berth.reconfigure(&setup).await, [""; 0]);
    assert!(is_current(&berth).await);
    berth.stop().await;
}

#[tokio::test]
async fn what_is_refused_for_a_file_that_is_not_there_yet_is_applied_when_it_comes() {
    let (upstream, _) = registry(1).await;
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    berth.configure(&setup.http(&format!("htpasswd = {users:?}")));
    berth.reload().await.expect(422);
    berth.get(TAG).await.expect(200);
    write(&users, "");
    eventually("nobody gets in", async || berth.get(TAG).await.status == 401).await;
    assert!(is_current(&berth).await);
    assert_eq!(reloads(&berth, "refused").await, 1.0, "not each time that it is tried");
}

#[tokio::test]
async fn the_door_is_not_opened_while_berth_has_a_login() {
    let (upstream, image) = registry(1).await;
    upstream.auth(Auth::Basic).user("u", "secret", "");
    let password = file_of("secret");
    let setup = Berth::with("docker.io", &upstream)
        .keys(&format!("credentials = {{ username = \"u\", password_file = {password:?} }}"))
        .http("listen = [\"0.0.0.0:0\"]");
    let berth = setup.clone().http("allow = [\"127.0.0.0/8\"]").start().await;
    berth.configure(&setup);
    let reply = berth.reload().await;
    reply.expect(422);
    assert!(reply.text().contains("http.allow"), "{}", reply.text());
    berth.pull(REPO, "1", &image).await;
}

// === What goes on meanwhile

#[tokio::test]
async fn a_blob_under_way_is_finished_while_its_upstream_is_replaced_and_taken_away() {
    let ((upstream, image), (next, _), (main, _)) = (registry(1).await, registry(1).await, registry(2).await);
    let large = Image::of(3, &[4 << 20]);
    let repo = "other.example/library/large";
    for upstream in [&upstream, &next] {
        upstream.image("library/large", "1", &large);
    }
    let gate = Gate::new();
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, gate.clone()));
    let setup = Berth::with("docker.io", &main);
    let mut berth = setup.clone().and("other.example", &upstream).start().await;
    let blob = large.layer();
    let mut open = berth.get(&blob.path(repo)).open().await;
    assert_eq!(open.bytes(1000).await, blob.content.slice(..1000));

    assert_eq!(
        berth.reconfigure(&setup.clone().and("other.example", &next)).await,
        ["upstream other.example"]
    );
    berth.pull("other.example/library/app", "1", &image).await;
    assert_eq!((upstream.count("GET", "/manifests/"), next.count("GET", "/manifests/")), (0, 1));
    let mut late = berth.get(&blob.path(repo)).open().await;
    assert_eq!(late.bytes(1000).await, blob.content.slice(..1000));

    let changed = berth.reconfigure(&setup.http("drain_seconds = 600")).await;
    assert_eq!(changed, ["http.drain_seconds", "upstream other.example: gone"]);
    assert_eq!(berth.get(&blob.path(repo)).await.status, 404);
    assert!(!berth.metrics().await.contains("berth_upstream_up{registry=\"other.example\"}"));
    let is_let_go = |berth: &Berth| {
        berth
            .logs()
            .iter()
            .filter(|line| line.contains("is let go") && line.contains("other.example"))
            .count()
    };
    assert_eq!(is_let_go(&berth), 0);
    gate.open();
    for open in [open, late] {
        assert_eq!(open.read().await.expect(200), &blob.content.slice(1000..));
    }
    eventually("both are let go", async || is_let_go(&berth) == 2).await;
    assert_eq!((upstream.bytes_sent(&blob.digest), next.bytes_sent(&blob.digest)), (blob.len(), 0));
    berth.stop().await;
}

#[tokio::test]
async fn an_upstream_that_has_not_changed_keeps_what_it_knows() {
    let ((upstream, image), (other, _)) = (registry(1).await, registry(2).await);
    upstream.auth(Auth::Bearer).user("u", "secret", "");
    let logins = file_of(&docker_config(&[("docker.io", "u", "secret")]));
    let second = Image::of(4, &[3000]);
    upstream.image(REPO, "2", &second);
    let setup = |keys: &str| {
        let setup =
            Berth::with("docker.io", &upstream).keys(&format!("credentials = {{ file = {logins:?} }}"));
        setup.keys(keys).and("other.example", &other)
    };
    let mut berth = setup("").start().await;
    berth.pull(REPO, "1", &image).await;
    let tokens = upstream.tokens();
    other.stop().await;
    let up = "berth_upstream_up{registry=\"other.example\"}";
    eventually("the other counts as down", async || {
        berth.get(OTHER).await;
        berth.metric(up).await == 0.0
    })
    .await;

    let changed = berth.reconfigure(&setup("aliases = [\"hub\"]").sections("[[pin]]\nref = \"x:1\"")).await;
    assert_eq!(changed, ["upstream docker.io", "pin"]);
    assert_eq!(berth.metric(up).await, 0.0, "its circuit is as it was");
    berth.pull("hub/library/app", "2", &second).await;
    assert_eq!(upstream.tokens(), tokens, "its token is as it was");

    assert_eq!(
        berth.reconfigure(&setup("timeouts = { idle_seconds = 9 }")).await,
        ["upstream docker.io", "pin"]
    );
    upstream.image(REPO, "3", &Image::of(5, &[3000]));
    berth.get("/v2/library/app/manifests/3").await.expect(200);
    assert!(upstream.tokens() > tokens, "another one, with a token of its own");
    berth.stop().await;
}

#[tokio::test]
async fn clients_notice_nothing_however_often_it_changes() {
    let ((upstream, image), (other, _)) = (registry(1).await, registry(2).await);
    let images: Vec<_> = (0..200).map(|seed| Image::of(1000 + seed, &[20_000])).collect();
    for (at, image) in images.iter().enumerate() {
        upstream.image(REPO, &format!("n{at}"), image);
    }
    let setup = Berth::with("docker.io", &upstream);
    let rules = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";
    let configurations = [
        setup.clone().and("other.example", &other).sections(rules),
        setup.clone().keys("timeouts = { idle_seconds = 9 }").http("limits = { connections = 100 }"),
        setup.clone().keys("limits = { concurrent_transfers = 4 }").sections("[cache]\nscrub = \"1GiB\""),
    ];
    let berth = Arc::new(setup.start().await);
    let (ended, pulled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let images = Arc::new(images);
    let client = |first: usize| {
        let (berth, ended, pulled) = (Arc::clone(&berth), Arc::clone(&ended), Arc::clone(&pulled));
        let (images, image) = (Arc::clone(&images), image.clone());
        async move {
            // Cold ones as long as there are some.
            for at in (first..).step_by(4) {
                let next = at % images.len();
                berth.pull(REPO, &format!("n{next}"), &images[next]).await;
                berth.pull(REPO, "1", &image).await;
                pulled.fetch_add(1, Ordering::Relaxed);
                if ended.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    };
    let clients: Vec<_> = (0..4).map(|first| tokio::spawn(client(first))).collect();
    for round in 0..30 {
        let before = pulled.load(Ordering::Relaxed);
        assert!(!berth.reconfigure(&configurations[round % configurations.len()]).await.is_empty());
        let goes_on = || {
            clients.iter().any(tokio::task::JoinHandle::is_finished)
                || pulled.load(Ordering::Relaxed) > before + 2
        };
        eventually("clients go on", async || goes_on()).await;
    }
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(reloads(&berth, "applied").await >= 30.0);
}

// === What is applied

#[tokio::test]
async fn rules_for_tags_count_at_once() {
    let (upstream, image) = registry(1).await;
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    berth.pull(REPO, "1", &image).await;
    berth.get(TAG).await.expect(200);
    assert_eq!(upstream.count("HEAD", "/manifests/"), 1);
    let rule = "[[tags]]\nmatch = \"docker.io/library/*:*\"\ncheck_after = \"0s\"";
    assert_eq!(berth.reconfigure(&setup.clone().sections(rule)).await, ["tags"]);
    berth.get(TAG).await.expect(200);
    assert_eq!(upstream.count("HEAD", "/manifests/"), 2);

    assert_eq!(
        berth.reconfigure(&setup.sections("").keys("repositories = { deny = [\"*\"] }")).await,
        ["upstream docker.io", "tags",]
    );
    assert_eq!(berth.get(TAG).await.status, 403);
}

/// Asks on a connection that stays open, and reads until the answer has this text. Returns its status.
async fn base(connection: &mut TcpStream, text: &str) -> String {
    connection.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(text) {
        let count = within_deadline("an answer", connection.read_buf(&mut answer)).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8_lossy(&answer[9..12]).into_owned()
}

#[tokio::test]
async fn who_may_connect_and_how_much_counts_at_once() {
    let (upstream, _) = registry(1).await;
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    let users = file_of(&format!("anna:{}\n", bcrypt::hash("right", 4).unwrap()));
    berth.get(TAG).await.expect(200);
    let mut open = TcpStream::connect(berth.address()).await.unwrap();
    assert_eq!(base(&mut open, "{}").await, "200");
    berth.reconfigure(&setup.clone().http("allow = [\"10.0.0.0/8\"]")).await;
    assert_eq!(berth.get(TAG).await.status, 403);
    assert_eq!(base(&mut open, "DENIED").await, "403", "also on a connection from before");
    berth.reconfigure(&setup.clone().http(&format!("htpasswd = {users:?}"))).await;
    assert_eq!(berth.get(TAG).await.status, 401);
    berth.get(TAG).basic("anna", "right").await.expect(200);
    berth.reconfigure(&setup.clone().http("limits = { requests_per_second = 0.01 }")).await;
    berth.get(TAG).await.expect(200);
    assert_eq!(berth.get(TAG).await.status, 503);
    // What a client has taken is remembered as long as its limits stay.
    berth
        .reconfigure(&setup.clone().http("limits = { requests_per_second = 0.01 }\nlist_private = true"))
        .await;
    assert_eq!(berth.get(TAG).await.status, 503);
    berth.reconfigure(&setup).await;
    berth.get(TAG).await.expect(200);
}

#[tokio::test]
async fn an_outage_that_the_new_configuration_ends_is_over_at_once() {
    let ((upstream, image), (dead, _)) = (registry(1).await, registry(2).await);
    dead.stop().await;
    let berth = Berth::with("docker.io", &dead).start().await;
    assert_eq!(berth.get(TAG).await.status, 503);
    berth.reconfigure(&Berth::with("docker.io", &upstream)).await;
    berth.pull(REPO, "1", &image).await;
    // And what the old one did not have, another may.
    assert_eq!(berth.get("/v2/library/app/manifests/9").await.status, 404);
    let (next, image) = registry(9).await;
    next.image(REPO, "9", &image);
    berth.reconfigure(&Berth::with("docker.io", &next)).await;
    berth.pull(REPO, "9", &image).await;
    // Nothing is asked any more.
    berth.reconfigure(&Berth::with("docker.io", &next).keys("offline = true")).await;
    assert_eq!(berth.get("/v2/library/app/manifests/10").await.status, 503);
    assert!(berth.admin("/readyz").await.text().contains("offline: docker.io"));
    berth.pull(REPO, "9", &image).await;
}

#[tokio::test]
async fn what_an_upstream_says_after_it_was_replaced_counts_for_nobody_else() {
    let (before, (after, image)) = (Upstream::start().await, registry(1).await);
    let gate = Gate::new();
    before.on("*", "/v2/library/").fault(Fault::Hold(gate.clone()));
    let berth = Berth::with("docker.io", &before).start().await;
    let (blob, tag) = (image.layer().path(REPO), TAG);
    let asked = [&*blob, tag].map(|path| tokio::spawn(berth.get(path).into_future()));
    eventually("both are asked", async || before.count("*", "/v2/library/") >= 2).await;
    berth.reconfigure(&Berth::with("docker.io", &after)).await;
    gate.open();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 404);
    }
    for path in [&*blob, tag] {
        berth.get(path).await.expect(200);
    }
}

#[tokio::test]
async fn pins_and_the_budget_count_at_once() {
    let upstream = Upstream::start().await;
    let [first, second] = [1, 2].map(|seed| Image::of(seed, &[700_000]));
    upstream.image(REPO, "1", &first).image(REPO, "2", &second);
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    berth.pull(REPO, "1", &first).await;
    berth.pull(REPO, "2", &second).await;
    let small = "[[pin]]\nref = \"library/app:1\"\n[cache]\nmax_bytes = \"1MiB\"\nlease_seconds = 0";
    let changed = berth.reconfigure(&setup.clone().sections(small)).await;
    assert_eq!(changed, ["cache.max_bytes", "cache.lease_seconds", "pin"]);
    let is_here = |image: &Image| folder::blob(berth.data_dir(), &image.layer().digest).exists();
    eventually("what is too much has gone", async || !is_here(&second)).await;
    assert!(is_here(&first), "the older one, but pinned");
    assert_eq!(berth.metric("berth_budget_bytes").await, f64::from(1 << 20));
    let pins = berth.admin("/api/v1/pins").await.json();
    assert_eq!(
        (&pins[0]["pin"]["ref"], &pins[0]["configured"]),
        (&"docker.io/library/app:1".into(), &true.into())
    );
    berth.reconfigure(&setup).await;
    assert_eq!(berth.admin("/api/v1/pins").await.json(), serde_json::json!([]));
}

#[tokio::test]
async fn what_is_kept_and_looked_after_follows_the_new_configuration() {
    let upstream = Upstream::start().await;
    let [first, second] = [1, 2].map(|seed| Image::of(seed, &[4 << 20]));
    upstream.image(REPO, "1", &first).image(REPO, "2", &second);
    let setup = Berth::with("docker.io", &upstream);
    let with = |complete: &str, scrub: &str| {
        setup.clone().sections(&format!("[cache]\ncomplete = {complete:?}\nscrub = {scrub:?}"))
    };
    let berth = with("never", "off").start().await;
    let is_here = |image: &Image| folder::blob(berth.data_dir(), &image.layer().digest).exists();
    berth.get(&first.layer().path(REPO)).range("0-99").await.expect(206);
    let changed = berth.reconfigure(&with("always", "1GiB")).await;
    assert_eq!(changed, ["cache.complete", "cache.scrub"]);
    berth.get(&second.layer().path(REPO)).range("0-99").await.expect(206);
    eventually("the rest has followed", async || is_here(&second)).await;
    assert!(!is_here(&first));
    eventually("it is looked at", async || berth.metric("berth_scrubbed_bytes_total").await > 0.0).await;
}

#[tokio::test]
async fn other_files_for_tls_and_the_time_for_a_drain_count_from_then_on() {
    let (upstream, _) = registry(1).await;
    let large = Image::of(3, &[4 << 20]);
    upstream.image(REPO, "1", &large);
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, Gate::new()));
    let (first, second) = (Certificate::new(), Certificate::new());
    let setup = Berth::with("docker.io", &upstream);
    let mut berth = setup.clone().tls(&first).http("drain_seconds = 600").start().await;
    let changed = berth.reconfigure(&setup.tls(&second).http("drain_seconds = 0")).await;
    assert_eq!(changed, ["http.tls", "http.drain_seconds"]);
    assert!(berth.get("/v2/").try_send().await.is_err(), "it trusts the first");
    let trusting = |path: &str| get(berth.url(path)).trusting(&second.ca());
    trusting("/v2/").await.expect(200);
    let mut open = trusting(&large.layer().path(REPO)).open().await;
    open.bytes(1000).await;
    berth.stop().await;
    assert!(!open.read().await.complete);
}

#[tokio::test]
async fn authorities_of_an_upstream_are_read_again_when_they_change() {
    let upstream = Upstream::start_tls().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "1", &image);
    let stranger = Certificate::new();
    let ca = file_of(&fs::read_to_string(stranger.ca()).unwrap());
    let setup = Setup::new("docker.io").endpoint_url(upstream.url()).keys(&format!("ca = [{ca:?}]"));
    let berth = setup.start().await;
    assert_eq!(berth.get(TAG).await.status, 503);
    fs::copy(upstream.ca().unwrap(), &ca).unwrap();
    berth.until_logged("upstream docker.io: ca").await;
    berth.pull(REPO, "1", &image).await;
}

// === What is only half of it (F22 of the attacks)

#[tokio::test]
async fn a_configuration_without_any_key_is_refused_and_the_old_one_goes_on() {
    let ((upstream, image), (other, _)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream).and("other.example", &other);
    let berth = setup.clone().start().await;
    for text in ["", "\n\n", "# data_dir = \"/x\"\n", "[http]\n", "[http]\n[http.limits]\n[cache]\n"] {
        write(&berth.config(), text);
        let reply = berth.reload().await;
        assert_eq!(reply.status, 422, "{text:?}: {}", reply.text());
        assert!(reply.text().contains("at least one key"), "{}", reply.text());
        assert!(!is_current(&berth).await);
        berth.get(OTHER).await.expect(200);
    }
    berth.until_logged("at least one key").await;
    berth.pull(REPO, "1", &image).await;
    assert_eq!(berth.reconfigure(&setup).await, [""; 0]);
}

#[tokio::test]
async fn a_configuration_that_opens_a_closed_listener_is_refused() {
    let (upstream, _) = registry(1).await;
    let users = file_of("");
    let (net, all) = ("allow = [\"127.0.0.0/8\"]", "allow = [\"0.0.0.0/0\"]");
    let login = format!("htpasswd = {users:?}");
    let open = || Berth::with("docker.io", &upstream).http("listen = [\"0.0.0.0:0\"]");
    let berth = open().http(net).start().await;
    for next in [open(), open().http(all), open().http("allow = []")] {
        berth.configure(&next);
        let reply = berth.reload().await;
        assert_eq!(reply.status, 422, "{}", reply.text());
        assert!(reply.text().contains("http.listen 0.0.0.0:0"), "{}", reply.text());
        assert!(reply.text().contains("http.allow"), "{}", reply.text());
    }
    berth.until_logged("open to everybody").await;
    // One of them is enough, and whichever it is may change.
    assert_eq!(berth.reconfigure(&open().http(net).http(&login)).await, ["http.htpasswd"]);
    assert_eq!(berth.reconfigure(&open().http(&login)).await, ["http.allow"]);
    berth.configure(&open());
    berth.reload().await.expect(422);
    // What was never closed, and what only this machine reaches, may be opened.
    let listener = Berth::with("docker.io", &upstream);
    let berth = listener.clone().http(net).start().await;
    assert_eq!(berth.reconfigure(&listener).await, ["http.allow"]);
    let berth = open().start().await;
    assert_eq!(berth.reconfigure(&open().http("access_log = false")).await, ["http.access_log"]);
}

#[tokio::test]
async fn a_configuration_that_is_being_written_is_not_read() {
    let ((upstream, _), (other, _)) = (registry(1).await, registry(2).await);
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().and("other.example", &other).start().await;
    // A valid one at every moment: it has lost its end.
    let half = setup.toml(berth.data_dir());
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = {
        let (is_over, config, half) = (Arc::clone(&is_over), berth.config(), half.clone());
        std::thread::spawn(move || {
            let file = File::options().write(true).open(&config).unwrap();
            for at in 0_u64.. {
                let text = format!("{half}\n# {at:020}\n");
                file.write_all_at(text.as_bytes(), 0).unwrap();
                file.set_len(text.len() as u64).unwrap();
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
            }
        })
    };
    let reply = berth.reload().await;
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert!(reply.text().contains("is being written"), "{}", reply.text());
    berth.get(OTHER).await.expect(200);
    is_over.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    eventually("it is read when it is at rest", async || berth.get(OTHER).await.status == 404).await;
}
