//! The doors of berth: who may give it commands, under which name it is asked, and that a crowd at one of them keeps
//! nobody out (findings F19 and F25).

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::crash::Disk;
use crate::support::process::write;
use crate::support::{
    BERTH, Berth, Image, Reply, Setup, Upstream, ask, command, eventually, file_of, get, raw, within_deadline,
};

const REPO: &str = "library/alpine";
const PIN: &str = r#"{"ref":"alpine:3"}"#;
const README: &str = include_str!("../../../README.md");
/// A token of an operator's own.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Hosts that no web page can have.
const OURS: [&str; 8] = [
    "127.0.0.1",
    "127.0.0.1:5000",
    "10.244.1.7:5001",
    "[::1]:5000",
    "[fe80::1%25eth0]:5000",
    "localhost",
    "LOCALHOST:5000",
    "localhost.:5000",
];
/// Hosts that mean nothing here, or may be a stranger's.
const OF_STRANGERS: [&str; 7] = [
    "evil.example",
    "evil.example:5000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "a.mirror.example",
    "ops.example",
    "",
];
/// What is no host at all.
const NO_HOSTS: [&str; 3] = ["user@127.0.0.1", "]:::[%00/../..", "\u{e4}\u{f6}"];

async fn alpine() -> (Upstream, Setup) {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "3", &Image::of(1, &[3000]));
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup)
}

fn admin_url(berth: &Berth, path: &str) -> String {
    format!("http://{}{path}", berth.listener("admin"))
}

/// A command with this as its `Authorization`.
async fn pin_with(berth: &Berth, authorization: &str) -> Reply {
    let command = ask("POST", admin_url(berth, "/api/v1/pins")).header("content-type", "application/json");
    command.header("authorization", authorization).body(PIN).await
}

/// A refusal that says which file to read.
#[track_caller]
fn expect_closed(reply: &Reply, data_dir: &Path) {
    assert_eq!(reply.status, 401, "{}", reply.text());
    assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"berth\""));
    let error = reply.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(data_dir.join("admin-token").to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn whatever_changes_something_or_names_images_needs_the_token_on_loopback_too() {
    let (_upstream, setup) = alpine().await;
    let berth = setup.admin("metrics_listen = \"127.0.0.1:0\"").start().await;
    let token = berth.token();
    for (method, path) in [
        ("GET", "/api/v1/verify"),
        ("POST", "/api/v1/verify"),
        ("GET", "/api/v1/pins"),
        ("HEAD", "/api/v1/pins"),
        ("POST", "/api/v1/pins"),
        ("POST", "/api/v1/unpin"),
        ("POST", "/api/v1/refresh"),
        ("POST", "/api/v1/reload"),
        ("DELETE", "/api/v1/pins"),
        ("GET", "/api/v1/nothing"),
        ("GET", "/api/"),
        ("GET", &format!("/api/v1/pins?token={token}")),
        ("GET", &format!("/api/v1/pins?access_token={token}&authorization=Bearer%20{token}")),
    ] {
        let reply =
            ask(method, admin_url(&berth, path)).header("content-type", "application/json").body(PIN).await;
        assert_eq!(reply.status, 401, "{method} {path}");
        if method != "HEAD" {
            expect_closed(&reply, berth.data_dir());
            assert!(!reply.text().contains(&token));
        }
    }
    for wrong in [
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer {}", "0".repeat(token.len())),
        format!("Bearer {}", &token[1..]),
        format!("Bearer {token}0"),
        format!("Bearer {token} {token}"),
        format!("Basic {token}"),
        token.clone(),
    ] {
        expect_closed(&pin_with(&berth, &wrong).await, berth.data_dir());
    }
    // Of two it is not known which counts.
    let twice = berth.admin("/api/v1/pins").header("authorization", "Bearer x").await;
    expect_closed(&twice, berth.data_dir());
    assert_eq!(berth.admin("/api/v1/pins").await.json(), serde_json::json!([]), "nothing was done");
    assert_eq!(pin_with(&berth, &format!("bearer  {token}")).await.status, 200);

    for path in ["/healthz", "/readyz", "/metrics"] {
        get(admin_url(&berth, path)).await.expect(200);
    }
    let of_metrics = format!("http://{}/api/v1/pins", berth.listener("metrics"));
    let reply = get(of_metrics).header("authorization", &format!("Bearer {token}")).await;
    assert_eq!(reply.status, 404, "the metrics listener has no API, whatever one shows");
    assert!(!berth.logs_contain(&token));
}

#[tokio::test]
async fn a_token_is_read_when_it_is_needed_and_one_that_others_may_know_opens_nothing() {
    let (_upstream, setup) = alpine().await;
    let berth = setup.start().await;
    let path = berth.data_dir().join("admin-token");
    let pins = async || berth.admin("/api/v1/pins").await;
    let mode = || fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(), berth.token().len()), (0o600, 64));
    pins().await.expect(200);

    // By another, as an operator would.
    let next = berth.data_dir().join("next");
    write(&next, TOKEN);
    fs::set_permissions(&next, Permissions::from_mode(0o600)).unwrap();
    let old = format!("Bearer {}", berth.token());
    fs::rename(&next, &path).unwrap();
    expect_closed(&pin_with(&berth, &old).await, berth.data_dir());
    pins().await.expect(200);

    let expect_unusable = async |why: &str| {
        let reply = pin_with(&berth, &format!("Bearer {TOKEN}")).await;
        expect_closed(&reply, berth.data_dir());
        assert!(reply.text().contains(why), "{why}: {}", reply.text());
    };
    for open in [0o604, 0o640, 0o666] {
        fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        expect_unusable("others can read it").await;
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    pins().await.expect(200);
    fs::rename(&path, &next).unwrap();
    symlink(&next, &path).unwrap();
    expect_unusable("regular file").await;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    expect_unusable("regular file").await;
    fs::remove_dir(&path).unwrap();
    fs::rename(&next, &path).unwrap();
    write(&path, "");
    expect_unusable("32 characters").await;
    // One that is gone is made again, and nobody can know that yet.
    fs::remove_file(&path).unwrap();
    expect_closed(&pin_with(&berth, &format!("Bearer {TOKEN}")).await, berth.data_dir());
    assert_eq!(mode(), 0o600);
    pins().await.expect(200);
}

#[tokio::test]
async fn a_start_makes_a_token_that_only_its_user_can_know() {
    let (_upstream, setup) = alpine().await;
    let mut berth = setup.start().await;
    let path = berth.data_dir().join("admin-token");
    let first = berth.token();
    berth.restart().await;
    assert_eq!(berth.token(), first, "one that is right stays");
    let elsewhere = berth.data_dir().join("elsewhere");
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap(),
        &|| write(&path, ""),
        &|| {
            fs::rename(&path, &elsewhere).unwrap();
            symlink(&elsewhere, &path).unwrap();
        },
        &|| fs::remove_file(&path).unwrap(),
    ];
    for spoil in spoil {
        berth.stop().await;
        spoil();
        berth.start_again().await;
        assert_ne!(berth.token(), first);
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        berth.admin("/api/v1/pins").await.expect(200);
    }
    assert_eq!(
        fs::read_to_string(&elsewhere).unwrap().trim().len(),
        64,
        "nothing was written through the link"
    );
    berth.stop().await;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    berth.start_again().await;
    berth.until_logged("there is no token for the admin API, which stays closed").await;
    get(admin_url(&berth, "/readyz")).await.expect(200);
    berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
}

#[tokio::test]
async fn commands_find_the_token_by_themselves() {
    let (_upstream, setup) = alpine().await;
    let (berth, other) = (setup.clone().start().await, setup.start().await);
    let path = berth.data_dir().join("admin-token");
    let run = async |args: &[&str]| command(berth.data_dir(), args).await;
    for args in
        [&["pin", "alpine:3"][..], &["pins"], &["refresh", "alpine:3"], &["verify"], &["unpin", "alpine:3"]]
    {
        if args == ["refresh", "alpine:3"] {
            berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
        }
        let said = run(args).await;
        assert_eq!(said.code, Some(0), "{args:?}: {}", said.text);
    }
    assert_ne!(berth.token(), other.token(), "each has its own");
    fs::remove_file(&path).unwrap();
    let said = run(&["pins"]).await;
    assert_eq!(said.code, Some(0), "made again: {}", said.text);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let said = run(&["pins"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains(path.to_str().unwrap()) && said.text.contains("mode 644"), "{}", said.text);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let said = run(&["pins"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains(path.to_str().unwrap()), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_folder_closes_the_admin_api_until_it_can_be_written_to() {
    let disk = Disk::tmpfs(64).await;
    let (_upstream, setup) = alpine().await;
    let folder = tempfile::tempdir().unwrap();
    symlink(disk.path().join("data"), folder.path().join("data")).unwrap();
    fs::create_dir(disk.path().join("data")).unwrap();
    let mut berth = setup.data_dir(&folder.path().join("data")).start().await;
    berth.stop().await;
    fs::remove_file(berth.data_dir().join("admin-token")).unwrap();
    disk.read_only(true).await;
    berth.start_again().await;
    berth.until_logged("there is no token for the admin API, which stays closed").await;
    berth.get(&format!("/v2/{REPO}/manifests/3")).await.expect(200);
    get(admin_url(&berth, "/readyz")).await.expect(200);
    let pins = async || get(admin_url(&berth, "/api/v1/pins")).header("authorization", "Bearer x").await;
    let closed = pins().await;
    expect_closed(&closed, berth.data_dir());
    assert!(closed.text().contains("read-only"), "{}", closed.text());
    // Its lock cannot say where it is.
    let said =
        command(berth.data_dir(), &["pins", "--admin-listen", &berth.listener("admin").to_string()]).await;
    assert_eq!((said.code, said.text.contains("opens nothing")), (Some(1), true), "{}", said.text);
    disk.read_only(false).await;
    expect_closed(&pins().await, berth.data_dir());
    berth.admin("/api/v1/pins").await.expect(200);
}

#[tokio::test]
async fn beyond_loopback_the_admin_plane_wants_networks_and_a_token_of_the_operators() {
    let (_upstream, setup) = alpine().await;
    let token = file_of(TOKEN);
    let (short, open, gone) = (file_of("hunter2"), file_of(TOKEN), "/nowhere/token");
    fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    let allow = "allow = [\"10.0.0.0/8\"]";
    let file = |path: &Path| format!("token_file = {path:?}");
    let keys = ["admin.listen", "admin.allow", "admin.token_file"];
    for (listen, rest, parts) in [
        ("0.0.0.0:0", String::new(), &keys[..]),
        ("[::]:0", String::new(), &keys),
        ("192.0.2.1:0", String::new(), &keys),
        ("0.0.0.0:0", allow.to_owned(), &keys),
        ("0.0.0.0:0", file(&token), &keys),
        ("0.0.0.0:0", format!("allow = []\n{}", file(&token)), &keys),
        ("0.0.0.0:0", format!("allow = [\"0.0.0.0/0\"]\n{}", file(&token)), &keys),
        ("[::]:0", format!("allow = [\"10.0.0.0/8\", \"::/0\"]\n{}", file(&token)), &keys),
        ("0.0.0.0:0", format!("{allow}\n{}", file(&short)), &["admin.token_file", "32 characters"]),
        ("0.0.0.0:0", format!("{allow}\n{}", file(&open)), &["admin.token_file", "others can read it"]),
        (
            "0.0.0.0:0",
            format!("{allow}\n{}", file(gone.as_ref())),
            &["admin.token_file", gone, "no such file"],
        ),
        ("127.0.0.1:0", file(&short), &["admin.token_file", "32 characters"]),
        ("127.0.0.1:0", "hosts = [\"a:5001\"]".to_owned(), &["hosts", "a:5001", "without scheme and port"]),
    ] {
        let exit = setup.clone().admin(&format!("listen = {listen:?}\n{rest}")).fail().await;
        assert_eq!(exit.code, Some(2), "{listen} {rest}: {}", exit.log());
        for part in parts {
            assert!(exit.log().contains(part), "{part}: {}", exit.log());
        }
        assert!(!exit.log().contains("hunter2") && !exit.log().contains(TOKEN));
    }
    let flag = setup.clone().without_file().arg("--admin-listen=0.0.0.0:0").arg("--listen=127.0.0.1:0");
    assert_eq!(flag.fail().await.code, Some(2));
    let mut check = tokio::process::Command::new(BERTH);
    let check = check.args(["check-config", "--admin-listen=0.0.0.0:0"]).env_clear().output();
    assert_eq!(within_deadline("check-config", check).await.unwrap().status.code(), Some(2));

    let berth = setup.admin(&format!("listen = \"0.0.0.0:0\"\n{allow}\n{}", file(&token))).start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], berth.listener("admin").port()));
    let pins = format!("http://{here}/api/v1/pins");
    let closed = get(&pins).await;
    expect_closed(&closed, berth.data_dir());
    assert!(closed.text().contains(token.to_str().unwrap()), "{}", closed.text());
    for token in [TOKEN.to_owned(), berth.token()] {
        get(&pins).header("authorization", &format!("Bearer {token}")).await.expect(200);
    }
    // From this machine it can be used by commands, which reach it here.
    assert_eq!(command(berth.data_dir(), &["pins"]).await.code, Some(0));
    write(&token, "fedcba9876543210fedcba9876543210");
    expect_closed(&get(&pins).header("authorization", &format!("Bearer {TOKEN}")).await, berth.data_dir());
}

#[tokio::test]
async fn who_may_use_the_admin_plane_is_reloaded() {
    let (_upstream, setup) = alpine().await;
    let berth = setup.clone().start().await;
    let ready = async || get(admin_url(&berth, "/readyz")).header("host", "ops.example").await.status;
    assert_eq!(ready().await, 421);
    let token = file_of(TOKEN);
    let keys = format!("hosts = [\"ops.example\"]\ntoken_file = {token:?}");
    assert_eq!(berth.reconfigure(&setup.clone().admin(&keys)).await, ["admin.token_file", "admin.hosts"]);
    assert_eq!(ready().await, 200);
    assert_eq!(pin_with(&berth, &format!("Bearer {TOKEN}")).await.status, 200);
    assert_eq!(berth.reconfigure(&setup).await, ["admin.token_file", "admin.hosts"]);
    assert_eq!(ready().await, 421);
    assert_eq!(pin_with(&berth, &format!("Bearer {TOKEN}")).await.status, 401);
}

/// The status of the answer to these lines behind the request line.
async fn status(address: SocketAddr, line: &str, headers: &str) -> String {
    let request = format!("{line}\r\n{headers}Connection: close\r\n\r\n");
    let answer = raw(address, request.as_bytes()).await;
    String::from_utf8_lossy(&answer).get(9..12).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_host_that_a_web_page_can_have_is_misdirected_at_listeners_on_loopback() {
    let (upstream, setup) = alpine().await;
    let berth = setup
        .keys("hosts = [\"hub.mirror.example\"]")
        .http("hosts = [\"mirror.example\"]")
        .admin("hosts = [\"ops.example\"]\nmetrics_listen = \"127.0.0.1:0\"")
        .start()
        .await;
    let (data, admin) = (berth.address(), berth.listener("admin"));
    let manifest = format!("/v2/{REPO}/manifests/3");
    let check = async |address, path: &str, headers: &str, expected: &str| {
        let seen = status(address, &format!("GET {path} HTTP/1.1"), headers).await;
        assert_eq!(seen, expected, "{address} {path} {headers:?}");
    };
    for host in OURS {
        check(data, &manifest, &format!("Host: {host}\r\n"), "200").await;
        check(admin, "/metrics", &format!("Host: {host}\r\n"), "200").await;
    }
    for host in
        ["mirror.example", "Mirror.Example.:5000", "hub.mirror.example", "HUB.mirror.example.", "docker.io"]
    {
        check(data, &manifest, &format!("Host: {host}\r\n"), "200").await;
        check(admin, "/metrics", &format!("Host: {host}\r\n"), "421").await;
    }
    check(admin, "/healthz", "Host: ops.example:5001\r\n", "200").await;
    upstream.forget();
    for host in OF_STRANGERS {
        let with = |more: &str| format!("Host: {host}\r\n{more}");
        check(data, &manifest, &with(""), "421").await;
        check(data, "/v2/_catalog?ns=docker.io", &with("X-Forwarded-Host: localhost\r\n"), "421").await;
        check(data, "/", &with("Origin: http://127.0.0.1\r\n"), "421").await;
    }
    for host in NO_HOSTS {
        check(data, &manifest, &format!("Host: {host}\r\n"), "400").await;
        check(admin, "/metrics", &format!("Host: {host}\r\n"), "400").await;
    }
    for host in ["evil.example", "mirror.example", "", "127.0.0.1.evil.example"] {
        for path in ["/metrics", "/healthz", "/readyz", "/api/v1/pins", "/"] {
            let token = format!("Authorization: Bearer {}\r\n", berth.token());
            check(admin, path, &format!("Host: {host}\r\n{token}Forwarded: host=localhost\r\n"), "421").await;
        }
        check(berth.listener("metrics"), "/metrics", &format!("Host: {host}\r\n"), "200").await;
    }
    // A URL in full counts, and what stands beside it.
    for (url, host, expected) in [
        ("http://127.0.0.1:5000", "127.0.0.1:5000", "200"),
        ("http://docker.io", "docker.io", "200"),
        ("http://evil.example", "127.0.0.1:5000", "421"),
        ("http://127.0.0.1:5000", "evil.example", "421"),
    ] {
        check(data, &format!("{url}{manifest}"), &format!("Host: {host}\r\n"), expected).await;
    }
    let old = format!("GET {manifest} HTTP/1.0");
    assert_eq!(status(data, &old, "").await, "200");
    assert_eq!(status(data, &old, "Host: evil.example\r\n").await, "421");
    assert_eq!(status(admin, "GET /healthz HTTP/1.0", "").await, "200");

    let reply = berth.get(&manifest).header("host", "evil.example").await;
    assert_eq!((reply.status, &*reply.error_code()), (421, "DENIED"));
    assert!(reply.text().contains("[http] hosts"), "{}", reply.text());
    let reply = get(admin_url(&berth, "/metrics")).header("host", "evil.example").await;
    assert!(reply.json()["error"].as_str().unwrap().contains("[admin] hosts"));
    assert_eq!(upstream.requests().iter().filter(|request| request.path() != "/v2/").count(), 0);
}

#[tokio::test]
async fn a_listener_for_the_network_takes_the_name_that_the_network_has_for_it() {
    let (_upstream, setup) = alpine().await;
    let berth = setup.http("listen = [\"0.0.0.0:0\"]").start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], berth.address().port()));
    for host in ["berth.mirrors.svc.cluster.local:5000", "berth", "10.244.1.7:5000", "mirror.example.", ""] {
        assert_eq!(status(here, "GET /v2/ HTTP/1.1", &format!("Host: {host}\r\n")).await, "200", "{host}");
    }
}

/// What stands behind each `prefix` in a text, up to something that no host contains.
fn hosts_behind<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let is_of_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    text.split(prefix).skip(1).map(|rest| rest.split(|c| !is_of_host(c)).next().unwrap()).collect()
}

#[tokio::test]
async fn every_recipe_leads_to_a_host_that_is_known() {
    let recipes = README.split("## Point your clients at it").nth(1).unwrap();
    let recipes = recipes.split("\n## ").next().unwrap();
    let mut hosts = Vec::new();
    // containerd, Docker; podman and the like; BuildKit; skopeo; commands of curl.
    for (text, prefix) in [
        (include_str!("../../../config/hosts.toml"), "http://"),
        (recipes, "http://"),
        (recipes, "location = \"127"),
        (recipes, "mirrors = [\""),
        (README, "docker://"),
        (README, "curl http://"),
    ] {
        let found = hosts_behind(text, prefix);
        let found = found
            .into_iter()
            .map(|host| if prefix.ends_with("127") { format!("127{host}") } else { host.to_owned() });
        hosts.extend(found);
    }
    assert!(hosts.len() >= 6, "{hosts:?}");
    let (_upstream, setup) = alpine().await;
    let berth = setup.start().await;
    for host in hosts {
        let headers = format!("Host: {host}\r\n");
        assert_eq!(status(berth.address(), "GET /v2/ HTTP/1.1", &headers).await, "200", "{host}");
        assert_eq!(status(berth.listener("admin"), "GET /healthz HTTP/1.1", &headers).await, "200", "{host}");
    }
}

/// Connections to an address that ask nothing, or half of something.
async fn crowd(address: SocketAddr, size: usize) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for number in 0..size {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            // It may be closed by then.
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
        }
        crowd.push(stream);
    }
    crowd
}

#[tokio::test]
async fn idle_connections_starve_no_health_check_whoever_has_them() {
    let (_upstream, setup) = alpine().await;
    let berth = setup.admin("metrics_listen = \"127.0.0.1:0\"").files(512).start().await;
    let mut all = Vec::new();
    for size in [32, 64, 300] {
        for plane in ["admin", "metrics", "data"] {
            all.extend(crowd(berth.listener(plane), size).await);
            for path in ["/healthz", "/readyz", "/metrics"] {
                for plane in ["admin", "metrics"] {
                    let check = get(format!("http://{}{path}", berth.listener(plane)));
                    let from_elsewhere = check.clone().coming_from("127.0.0.9");
                    check.await.expect(200);
                    from_elsewhere.await.expect(200);
                }
            }
            berth.get("/v2/").await.expect(200);
            berth.get("/v2/").coming_from("127.0.0.9").await.expect(200);
            assert_eq!(command(berth.data_dir(), &["pins"]).await.code, Some(0));
        }
    }
    assert!(!berth.logs_contain("Too many open files"));
    drop(all);
    eventually("it answers again", async || berth.get("/v2/").try_send().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_its_time_keeps_its_connection_in_a_crowd() {
    let upstream = Upstream::start().await;
    let image = Image::of(2, &[16 << 20]);
    upstream.image(REPO, "3", &image);
    let berth = Berth::with("docker.io", &upstream).files(256).start().await;
    berth.pull(REPO, "3", &image).await;
    let mut slow = berth.get(&image.layer().path(REPO)).open().await;
    let first = slow.bytes(1000).await;
    let crowd = crowd(berth.address(), 200).await;
    berth.get("/v2/").await.expect(200);
    let rest = slow.read().await;
    assert!(rest.complete, "no answer is cut for a connection that asks nothing");
    assert_eq!([first, rest.body].concat(), image.layer().content);
    drop(crowd);
}

#[tokio::test]
async fn the_catalog_follows_what_may_be_pulled_and_what_has_become_private() {
    let (open, other) = (Upstream::start().await, Upstream::start().await);
    let image = Image::of(1, &[3000]);
    open.image("library/a", "1", &image).image("library/secret", "1", &image).image("team/b", "1", &image);
    other.image("project/c", "1", &image);
    let setup = || Berth::with("docker.io", &open);
    let of_other = |setup: Setup, keys: &str| setup.and("harbor.example", &other).keys(keys);
    let berth = of_other(setup(), "").start().await;
    for path in ["library/a", "library/secret", "team/b", "harbor.example/project/c"] {
        berth.get(&format!("/v2/{path}/manifests/1")).await.expect(200);
    }
    let [a, secret, b, c] =
        ["docker.io/library/a", "docker.io/library/secret", "docker.io/team/b", "harbor.example/project/c"];
    let check = async |setup: Setup, expected: &[&str]| {
        berth.reconfigure(&setup).await;
        let catalog = berth.get("/v2/_catalog").await;
        assert_eq!(catalog.json(), serde_json::json!({ "repositories": expected }));
        let mut paged = Vec::new();
        let mut path = Some("/v2/_catalog?n=1".to_owned());
        while let Some(at) = path {
            let page = berth.get(&at).await;
            page.expect(200);
            paged.extend(page.json()["repositories"].as_array().unwrap().clone());
            let link = page.header("link").map(|link| link[1..link.find('>').unwrap()].to_owned());
            assert!(
                link.as_ref().is_none_or(|link| !link.contains("secret") || expected.contains(&secret)),
                "{link:?}"
            );
            path = link;
        }
        assert_eq!(serde_json::json!(paged), serde_json::json!(expected));
    };
    let deny = || setup().keys("repositories = { deny = [\"*/secret\"] }");
    check(of_other(setup(), "offline = true"), &[a, secret, b, c]).await;
    check(of_other(deny(), ""), &[a, b, c]).await;
    check(of_other(setup().keys("repositories = { allow = [\"team/*\"] }"), ""), &[b, c]).await;
    check(deny(), &[a, b]).await;
    let password = file_of("hunter2");
    let login = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    check(of_other(deny(), &login), &[a, b]).await;
    check(of_other(setup(), &login).http("list_private = true"), &[a, secret, b, c]).await;
    check(of_other(deny(), &login).http("list_private = true"), &[a, b, c]).await;
    check(of_other(setup(), "headers = { X-Tenant = \"a\" }"), &[a, secret, b]).await;
}
