//! Who may use the data plane: by address, and by name.

mod claims;
mod entitled;
mod grants;

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{Berth, Image, Setup, Upstream, eventually, file_of, get, together};

const REPO: &str = "library/alpine";
/// The least that bcrypt allows: these are tests.
const COST: u32 = 4;

async fn alpine() -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000]);
    upstream.image(REPO, "3", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

fn user(name: &str, password: &str) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, COST).unwrap())
}

/// Whether this user gets in, everywhere alike.
async fn gets_in(berth: &Berth, name: &str, password: &str) -> bool {
    let path = format!("/v2/{REPO}/manifests/3");
    let base = berth.get("/v2/").basic(name, password).await.status;
    let content = berth.get(&path).basic(name, password).await.status;
    assert_eq!(base, content);
    base == 200
}

#[tokio::test]
async fn only_listed_networks_are_served() {
    let (upstream, setup, image) = alpine().await;
    let berth = setup.clone().http("allow = [\"10.0.0.0/8\", \"::1/128\"]").start().await;
    for path in
        ["/v2/".to_owned(), format!("/v2/{REPO}/manifests/3"), image.layer().path(REPO), "/".to_owned()]
    {
        let reply = berth.get(&path).await;
        assert_eq!((reply.status, &*reply.error_code()), (403, "DENIED"), "{path}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("connection"), Some("close"), "strangers rest in nobody's seat");
        assert_eq!(berth.head(&path).await.status, 403, "{path}");
    }
    assert_eq!(upstream.requests().len(), 0);
    assert_eq!(berth.admin("/readyz").await.status, 200);

    let berth = setup.http("allow = [\"10.0.0.0/8\", \"127.0.0.0/8\"]").start().await;
    berth.pull(REPO, "3", &image).await;
}

#[tokio::test]
async fn an_ipv4_client_of_an_ipv6_listener_is_known_by_its_ipv4_address() {
    let (_upstream, setup, image) = alpine().await;
    let listen = "listen = [\"[::ffff:127.0.0.1]:0\"]";
    let ask = |berth: &Berth| {
        let address = SocketAddr::from(([127, 0, 0, 1], berth.address().port()));
        get(format!("http://{address}{}", image.layer().path(REPO)))
    };
    let berth = setup.clone().http(listen).http("allow = [\"127.0.0.0/8\"]").start().await;
    ask(&berth).await.expect(200);
    let berth = setup.http(listen).http("allow = [\"10.0.0.0/8\"]").start().await;
    assert_eq!(ask(&berth).await.status, 403);
}

#[tokio::test]
async fn whoever_is_not_logged_in_is_challenged() {
    let (upstream, setup, image) = alpine().await;
    let users = file_of(&format!("# people\n\n{}{}", user("anna", "right"), user("bert", "pass:word")));
    let berth = setup.http(&format!("htpasswd = {users:?}")).start().await;
    for path in ["/v2/".to_owned(), format!("/v2/{REPO}/manifests/3"), image.layer().path(REPO)] {
        for ask in [
            berth.get(&path),
            berth.get(&path).basic("anna", "wrong"),
            berth.get(&path).basic("nobody", "right"),
            berth.get(&path).basic("anna", ""),
            berth.get(&path).basic("", ""),
            berth.get(&path).basic("anna", &"x".repeat(9000)),
            berth.get(&path).basic("anna", "right\0more"),
            berth.get(&path).header("authorization", "Bearer abc"),
            berth.get(&path).header("authorization", "Basic %%%"),
            berth.get(&path).header("authorization", "Basic"),
        ] {
            let reply = ask.await;
            assert_eq!((reply.status, &*reply.error_code()), (401, "UNAUTHORIZED"), "{path}");
            assert_eq!(reply.header("www-authenticate"), Some("Basic realm=\"berth\""));
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    assert!(gets_in(&berth, "anna", "right").await);
    assert!(gets_in(&berth, "bert", "pass:word").await);
    assert!(!gets_in(&berth, "anna", "pass:word").await);
    assert!(upstream.requests().iter().all(|request| request.header("authorization").is_none()));
    for secret in ["right", "wrong", "pass:word"] {
        assert!(!berth.logs_contain(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_changed_htpasswd_counts_from_then_on() {
    let (_upstream, setup, _) = alpine().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    // As editors and secret mounts do: a new file in the place of the old.
    let replace = |text: &str| {
        let mut next = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        next.write_all(text.as_bytes()).unwrap();
        next.persist(&path).unwrap();
    };
    replace(&user("anna", "old"));
    let berth = setup.http(&format!("htpasswd = {path:?}")).start().await;
    assert!(gets_in(&berth, "anna", "old").await);
    replace(&format!("{}{}", user("anna", "new"), user("bert", "his")));
    let has_access = async |password| berth.get("/v2/").basic("anna", password).await.status == 200;
    eventually("the new password counts", async || has_access("new").await).await;
    assert!(!gets_in(&berth, "anna", "old").await, "it was remembered as right");
    assert!(gets_in(&berth, "bert", "his").await);
    replace("carl:plain\n");
    assert!(gets_in(&berth, "bert", "his").await);
    berth.until_logged("htpasswd has changed and cannot be read").await;
    assert!(gets_in(&berth, "bert", "his").await, "the users before stay");
    std::fs::remove_file(&path).unwrap();
    assert!(gets_in(&berth, "anna", "new").await, "without a file, too");
    File::create(&path).unwrap();
    eventually("nobody is left", async || !has_access("new").await).await;
}

#[tokio::test]
async fn wrong_passwords_do_not_lock_out_who_is_known() {
    let (_upstream, setup, _) = alpine().await;
    // At this cost a check takes a tenth of a second and more.
    let users = file_of(&format!("anna:{}\n", bcrypt::hash("right", 11).unwrap()));
    let berth = setup.http(&format!("htpasswd = {users:?}")).start().await;
    assert!(gets_in(&berth, "anna", "right").await);
    // Most of them are refused at once: only a few may wait for one user.
    let asks: Vec<_> = (0..64).map(|at| berth.get("/v2/").basic("anna", &format!("wrong{at}"))).collect();
    let guesses = tokio::spawn(together(64, move |at| asks[at].clone().into_future()));
    eventually("they are being checked", async || {
        berth.metric("registry_http_in_flight_requests").await >= 2.0
    })
    .await;
    assert!(gets_in(&berth, "anna", "right").await);
    assert!(!guesses.is_finished());
    for reply in guesses.await.unwrap() {
        assert!([401, 503].contains(&reply.status), "{}", reply.status);
    }
}

#[tokio::test]
async fn a_login_has_limits_of_its_own_from_wherever_it_comes() {
    let (_upstream, setup, image) = alpine().await;
    let users = file_of(&format!("{}{}", user("anna", "right"), user("bert", "right")));
    let limits = "login_limits = { requests_per_second = 0.01, bytes_per_second = \"1MiB\" }";
    let berth = setup.http(&format!("htpasswd = {users:?}")).http(limits).start().await;
    let path = format!("/v2/{REPO}/manifests/3");
    let ask = async |name: &str| berth.get(&path).basic(name, "right").await;
    assert_eq!(ask("anna").await.expect(200), &image.manifest);
    let refused = ask("anna").await;
    assert_eq!((refused.status, &*refused.error_code()), (503, "TOOMANYREQUESTS"));
    assert!(refused.text().contains("this login"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(ask("bert").await.expect(200), &image.manifest, "another from the same address");
    assert_eq!(berth.get(&path).basic("anna", "wrong").await.status, 401, "nobody spends what is anna's");
}

// === Guesses (F11 of the attacks)

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_one_user_delay_no_other_behind_the_same_address() {
    let (_upstream, setup, _) = alpine().await;
    let users = file_of(&format!("anna:{}\n{}", bcrypt::hash("right", 9).unwrap(), user("bert", "right")));
    let berth = setup.http(&format!("htpasswd = {users:?}")).start().await;
    let (stop, checked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let guessers: Vec<_> = (0..24)
        .map(|guesser| {
            let (stop, checked, ask) = (Arc::clone(&stop), Arc::clone(&checked), berth.get("/v2/"));
            tokio::spawn(async move {
                for guess in 0.. {
                    let reply = ask.clone().basic("anna", &format!("wrong {guesser} {guess}")).await;
                    checked.fetch_add(usize::from(reply.status == 401), Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return reply.status;
                    }
                    tokio::task::yield_now().await;
                }
                0
            })
        })
        .collect();
    eventually("they are being checked", async || checked.load(Ordering::SeqCst) >= 3).await;
    let before = checked.load(Ordering::SeqCst);
    assert_eq!(berth.get("/v2/").basic("bert", "right").await.status, 200);
    let meanwhile = checked.load(Ordering::SeqCst) - before;
    assert!(meanwhile <= 4, "{meanwhile} guesses were checked before a right login of another user");
    assert_eq!(berth.get("/v2/").basic("anna", "right").coming_from("127.0.0.2").await.status, 200);
    stop.store(true, Ordering::SeqCst);
    for guesser in guessers {
        assert!([401, 503].contains(&guesser.await.unwrap()));
    }
}

#[tokio::test]
async fn a_password_is_right_as_a_whole_or_not_at_all() {
    let (_upstream, setup, _) = alpine().await;
    let long = "b".repeat(72);
    let users = file_of(&format!("{}{}", user("anna", &long), user("bert", "b")));
    let berth = setup.http(&format!("htpasswd = {users:?}")).start().await;
    // bcrypt itself takes most of them for the right one.
    for wrong in [format!("{long}x"), format!("{long}\0"), format!("{long}{long}")] {
        assert!(!gets_in(&berth, "anna", &wrong).await, "{} bytes", wrong.len());
    }
    for wrong in ["b\0", "b\0b", "b\0b\0b"] {
        assert!(!gets_in(&berth, "bert", wrong).await, "{wrong:?}");
    }
    assert!(gets_in(&berth, "anna", &long).await && gets_in(&berth, "bert", "b").await);
    berth.until_logged("more than 72 bytes").await;
    assert!(!berth.logs_contain(&long), "a password is in the log");
}

#[tokio::test]
async fn a_client_is_known_before_its_path_is_read_and_may_have_a_repository_before_it_is_told_of_it() {
    let (upstream, _, _) = alpine().await;
    let users = file_of(&user("anna", "right"));
    let setup = Berth::with("docker.io", &upstream).keys("repositories = { deny = [\"team/*\"] }");
    let berth = setup.http(&format!("htpasswd = {users:?}")).start().await;
    for (method, path, status, code) in [
        ("GET", "/etc/passwd", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/org/app/manifests/1?ns=quay.oi", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/org/App/manifests/1", 400, "NAME_INVALID"),
        ("GET", "/v2/org/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("DELETE", "/v2/org/app/manifests/1", 405, "UNSUPPORTED"),
        ("GET", "/v2/team/app/manifests/1", 403, "DENIED"),
        ("GET", "/v2/team/app/manifests/:", 403, "DENIED"),
        ("GET", "/v2/team/app/blobs/sha256:0", 403, "DENIED"),
        ("GET", "/v2/team/app/tags/list?n=x", 403, "DENIED"),
        ("GET", "/v2/team/app/blobs/uploads/1", 403, "DENIED"),
    ] {
        let ask = berth.ask(method, path);
        let reply = ask.clone().await;
        assert_eq!((reply.status, &*reply.error_code()), (401, "UNAUTHORIZED"), "{method} {path}");
        let reply = ask.basic("anna", "right").await;
        assert_eq!((reply.status, &*reply.error_code()), (status, code), "{method} {path}");
    }
    assert_eq!(upstream.requests().len(), 0);
}
