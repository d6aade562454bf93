//! The daemon as an operator starts it and reads it: defaults, precedence, listeners, the log.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::process::{tool, try_run};
use crate::support::{BERTH, Berth, Fault, Gate, Image, Setup, Upstream, eventually, get, within_deadline};

const REPO: &str = "library/alpine";

async fn alpine() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[100_000]);
    upstream.image(REPO, "3", &image);
    (upstream, image)
}

/// The lines of the access log.
fn access(berth: &Berth) -> Vec<Value> {
    let lines = berth.logs().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines.filter(|line| line["target"] == "berth::access").collect()
}

/// The access log when it has so many lines.
async fn access_lines(berth: &Berth, count: usize) -> Vec<Value> {
    eventually("the lines of the access log", async || access(berth).len() >= count).await;
    access(berth)
}

#[tokio::test]
async fn it_serves_without_any_configuration() {
    let (upstream, image) = alpine().await;
    let home = tempfile::tempdir().unwrap();
    let berth = Setup::new("docker.io")
        .without_file()
        .env("XDG_DATA_HOME", home.path().to_str().unwrap())
        .data_dir(&home.path().join("berth"))
        // The ports alone are not the defaults, and the registry is not the real one.
        .arg("--listen=127.0.0.1:0")
        .arg("--admin-listen=127.0.0.1:0")
        .arg(&format!("--upstream=docker.io={}", upstream.url()))
        .start()
        .await;
    berth.pull(REPO, "3", &image).await;
    berth.pull("alpine", "3", &image).await;
    assert!(home.path().join("berth/blobs/sha256").is_dir());
    let unknown = berth.get("/v2/registry.example/x/manifests/1").await;
    assert_eq!((unknown.status, &*unknown.error_code()), (404, "NAME_UNKNOWN"));
}

#[tokio::test]
async fn flags_win_over_the_environment_and_that_over_the_file() {
    let (flag, image) = alpine().await;
    let (variable, file) = (Upstream::start().await, Upstream::start().await);
    let folders = tempfile::tempdir().unwrap();
    let folder = |name: &str| folders.path().join(name).to_str().unwrap().to_owned();
    let given = Berth::with("docker.io", &file)
        .http("listen = [\"127.0.0.1:1\"]")
        .env("BERTH_LISTEN", "127.0.0.1:0,127.0.0.1:0")
        .env("BERTH_ADMIN_LISTEN", "127.0.0.1:1")
        .env("BERTH_DATA_DIR", &folder("variable"))
        .env("BERTH_UPSTREAM", &format!("docker.io={}", variable.url()));
    let berth = given
        .clone()
        .arg("--admin-listen=127.0.0.1:0")
        .arg(&format!("--data-dir={}", folder("flag")))
        .arg(&format!("--upstream=docker.io={}", flag.url()))
        .start()
        .await;
    berth.pull(REPO, "3", &image).await;
    assert_eq!((file.requests().len(), variable.requests().len()), (0, 0));
    let listening = berth.logs().iter().filter(|line| line.contains("\"plane\":\"data\"")).count();
    assert_eq!(listening, 2, "the variable names two listeners");
    assert!(folders.path().join("flag/blobs").is_dir() && !folders.path().join("variable").exists());
}

#[tokio::test]
async fn every_listener_says_in_one_line_where_it_is() {
    let (upstream, _) = alpine().await;
    let berth = Berth::with("docker.io", &upstream)
        .http("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]")
        .admin("metrics_listen = \"127.0.0.1:0\"")
        .start()
        .await;
    let line = |line: String| serde_json::from_str::<Value>(&line).unwrap();
    let listening: Vec<_> =
        berth.logs().into_iter().map(line).filter(|line| line["message"] == "listening").collect();
    let planes: Vec<_> = listening.iter().map(|line| line["plane"].as_str().unwrap()).collect();
    assert_eq!(planes, ["data", "data", "admin", "metrics"]);
    for line in listening.iter().filter(|line| line["plane"] == "data") {
        get(format!("http://{}/v2/", line["address"].as_str().unwrap())).await.expect(200);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_and_ends_it_with_1() {
    let (upstream, _) = alpine().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let exit = Berth::with("docker.io", &upstream).arg(&format!("--listen={address}")).fail().await;
    assert_eq!(exit.code, Some(1));
    assert!(exit.log().contains(&address.to_string()), "{}", exit.log());
}

#[tokio::test]
async fn a_second_process_on_one_data_folder_is_told_of_the_first() {
    let (upstream, _) = alpine().await;
    let berth = Berth::with("docker.io", &upstream).start().await;
    let folder = berth.data_dir();
    let exit = Setup::new("docker.io")
        .without_file()
        .data_dir(folder)
        .arg(&format!("--data-dir={}", folder.display()))
        .arg("--listen=127.0.0.1:0")
        .arg("--admin-listen=127.0.0.1:0")
        .fail()
        .await;
    assert_eq!(exit.code, Some(1));
    for part in [folder.to_str().unwrap(), &berth.pid().to_string()] {
        assert!(exit.log().contains(part), "{part} in {}", exit.log());
    }
    berth.get("/v2/").await.expect(200);
}

#[tokio::test]
async fn people_get_lines_and_machines_get_json() {
    let (upstream, _) = alpine().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // It says that it listens, then fails at the second address: its end needs no signal.
    let folder = tempfile::tempdir().unwrap();
    let command = format!(
        "{BERTH} serve --data-dir {} --listen 127.0.0.1:0 --listen {} --upstream docker.io={}",
        folder.path().display(),
        taken.local_addr().unwrap(),
        upstream.url()
    );
    let on_a_terminal = try_run(tool("script").args(["-qec", &command, "/dev/null"])).await.unwrap_err();
    let line = on_a_terminal.lines().find(|line| line.contains("listening")).expect("a line about it");
    assert!(line.contains("INFO") && !line.contains('{'), "{line}");
    let mut arguments = command.split(' ');
    let mut plain = Command::new(arguments.next().unwrap());
    let elsewhere = try_run(plain.args(arguments).env_clear()).await.unwrap_err();
    let line = elsewhere.lines().find(|line| line.contains("listening")).expect("a line about it");
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((line["level"].as_str(), line["plane"].as_str()), (Some("INFO"), Some("data")));
}

#[tokio::test]
async fn the_level_of_the_log_is_set_by_flag_or_variable() {
    let (upstream, image) = alpine().await;
    let with = |setup: Setup| setup.env("BERTH_LOG", "info,berth::cache=debug");
    let berth = with(Berth::with("docker.io", &upstream)).start().await;
    berth.pull(REPO, "3", &image).await;
    let missing = format!("/v2/{REPO}/blobs/sha256:{}", "0".repeat(64));
    assert_eq!(berth.get(&missing).await.status, 404);
    berth.until_logged("a transfer failed").await;

    let exit =
        Berth::with("docker.io", &upstream).env("BERTH_LOG", "debug").arg("--log-level=loud").fail().await;
    assert_eq!(exit.code, Some(2));
    assert!(exit.log().contains("loud") && exit.log().contains("expected"), "{}", exit.log());
}

#[tokio::test]
async fn every_request_is_one_line_with_what_became_of_it() {
    let (upstream, image) = alpine().await;
    let berth = Berth::with("docker.io", &upstream).start().await;
    let blob = image.layer();
    berth.get(&format!("/v2/{REPO}/manifests/3")).basic("robot", "hush-hush").await.expect(200);
    berth.get(&blob.path(REPO)).range("0-99").await.expect(206);
    let lines = access_lines(&berth, 2).await;
    let expect = |line: &Value, expected: Value| {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&line[key], value, "{key} in {line}");
        }
        for key in ["first_byte_seconds", "duration_seconds"] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    };
    let about = serde_json::json!({
        "method": "GET", "handler": "manifest", "registry": "docker.io", "repository": REPO, "reference": "3",
        "status": 200, "bytes": image.manifest.len(), "cache": "berth; fwd=miss; stored", "end": "whole",
        "client": "127.0.0.1",
    });
    expect(&lines[0], about);
    let about = serde_json::json!({
        "handler": "blob", "reference": blob.digest.to_string(), "status": 206, "bytes": 100,
        "cache": "berth; fwd=miss; stored; detail=unproven",
    });
    expect(&lines[1], about);
    assert_eq!(access(&berth).len(), 2);

    berth.get("/etc/passwd?token=hush-hush").await;
    let lines = access_lines(&berth, 3).await;
    expect(&lines[2], serde_json::json!({ "status": 404, "handler": "none", "path": "/etc/passwd" }));
    assert!(!berth.logs_contain("hush-hush"), "a secret is in the log");
}

#[tokio::test]
async fn an_answer_that_did_not_come_to_its_end_is_a_line_that_says_so() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    let image = Image::of(1, &[4 << 20]);
    upstream.image(REPO, "3", &image);
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(1 << 20, gate.clone()));
    let berth = Berth::with("docker.io", &upstream).start().await;
    let mut open = berth.get(&image.layer().path(REPO)).open().await;
    open.bytes(1000).await;
    drop(open);
    gate.open();
    let lines = access_lines(&berth, 1).await;
    assert_eq!((lines[0]["end"].as_str(), lines[0]["status"].as_u64()), (Some("client_left"), Some(200)));
}

#[tokio::test]
async fn the_access_log_can_be_switched_off() {
    let (upstream, image) = alpine().await;
    let mut berth = Berth::with("docker.io", &upstream).http("access_log = false").start().await;
    berth.pull(REPO, "3", &image).await;
    berth.stop().await;
    assert!(!berth.logs_contain("berth::access"));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let (upstream, _) = alpine().await;
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Command::new(BERTH)
        .args(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
        .arg(format!("--upstream=docker.io={}", upstream.url()))
        .env_clear()
        .env("BERTH_DATA_DIR", folder.path())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    within_deadline("the first line of the log", log.read_line(&mut line)).await.unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}/v2/", line["address"].as_str().unwrap());
    // Far more lines than a pipe holds.
    for _ in 0..1000 {
        get(&url).await.expect(200);
    }
    daemon.kill().await.unwrap();
}
