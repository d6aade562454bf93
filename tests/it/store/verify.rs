//! `berth verify`, and the admin plane behind it: damaged files are found, put aside and fetched again.

use std::fs::{self, File};
use std::path::Path;

use berth::oci::Digest;
use tokio::process::Command;

use crate::support::folder::{damage, flip_a_byte};
use crate::support::process::write;
use crate::support::{BERTH, Berth, Image, Setup, Upstream, ask, eventually, folder, within_deadline};

const REPO: &str = "library/verified";
const VERIFY: &str = "/api/v1/verify";

/// What a command said and returned.
struct Said {
    code: Option<i32>,
    text: String,
}

/// Runs `berth` with these arguments, to its end.
async fn run(args: &[&str]) -> Said {
    let mut command = Command::new(BERTH);
    let output = command.args(args).env_clear().kill_on_drop(true).output();
    let output = within_deadline(&format!("berth {args:?}"), output).await.unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Said { code: output.status.code(), text }
}

async fn verify(data_dir: &Path) -> Said {
    run(&["verify", "--data-dir", data_dir.to_str().unwrap()]).await
}

async fn with_image() -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(51, &[3000, 1_000_000]);
    upstream.image(REPO, "1", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

async fn pulled(setup: Setup, image: &Image) -> Berth {
    let berth = setup.start().await;
    berth.pull(REPO, "1", image).await;
    berth.until_idle().await;
    berth
}

fn cut_short(file: &File) {
    file.set_len(1000).unwrap();
}

fn empty(file: &File) {
    file.set_len(0).unwrap();
}

fn quarantined(data_dir: &Path, digest: &Digest) -> bool {
    !folder::blob(data_dir, digest).exists() && data_dir.join("quarantine").join(digest.file_name()).exists()
}

#[tokio::test]
async fn damaged_files_are_found_put_aside_and_fetched_again() {
    let (upstream, setup, image) = with_image().await;
    let mut berth = pulled(setup, &image).await;
    let data_dir = berth.data_dir().to_owned();
    let blob = image.layer().clone();
    let path = folder::blob(&data_dir, &blob.digest);
    let sound = verify(&data_dir).await;
    assert_eq!((sound.code, sound.text.contains("4 files")), (Some(0), true), "{}", sound.text);
    for runs in [true, false] {
        for change in [flip_a_byte, cut_short, empty] {
            damage(&path, change);
            upstream.forget();
            if !runs {
                berth.stop().await;
            }
            let found = verify(&data_dir).await;
            assert_eq!(found.code, Some(1), "{}", found.text);
            assert!(found.text.contains(&format!("damaged {}", blob.digest)), "{}", found.text);
            assert!(found.text.contains("1 damaged"), "{}", found.text);
            assert!(quarantined(&data_dir, &blob.digest));
            let again = verify(&data_dir).await;
            assert_eq!(again.code, Some(0), "{}", again.text);
            if !runs {
                berth.start_again().await;
            }
            berth.pull(REPO, "1", &image).await;
            assert_eq!(upstream.count("GET", "/blobs/"), 1, "only what was damaged is fetched");
            eventually("it is stored", async || path.exists()).await;
        }
    }
    folder::verified(&data_dir);
}

#[tokio::test]
async fn files_of_others_are_no_damage() {
    let (_upstream, setup, image) = with_image().await;
    let berth = pulled(setup, &image).await;
    let blobs = berth.data_dir().join("blobs/sha256");
    // One that another tool is still writing, one that it has just written, a folder, and no digest at all.
    let growing = Image::of(52, &[1000]).layer().clone();
    write(&folder::blob(berth.data_dir(), &growing.digest), &growing.content[..10]);
    let brought = Image::of(53, &[1000]).layer().clone();
    write(&folder::blob(berth.data_dir(), &brought.digest), &brought.content);
    fs::create_dir(blobs.join("0".repeat(64))).unwrap();
    write(&blobs.join("notes"), "mine");
    let said = verify(berth.data_dir()).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.text.contains("7 files") && said.text.contains("2 not berth's"), "{}", said.text);
    assert!(!berth.data_dir().join("quarantine").exists());
}

#[tokio::test]
async fn the_quarantine_keeps_the_newest_files_only() {
    let (upstream, setup, image) = with_image().await;
    let berth = pulled(setup, &image).await;
    let many = Image::of(54, &[2000; 20]);
    upstream.image(REPO, "many", &many);
    berth.pull(REPO, "many", &many).await;
    berth.until_idle().await;
    for blob in &many.blobs {
        damage(&folder::blob(berth.data_dir(), &blob.digest), flip_a_byte);
    }
    let said = verify(berth.data_dir()).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains(&format!("{} damaged", many.blobs.len())), "{}", said.text);
    assert_eq!(fs::read_dir(berth.data_dir().join("quarantine")).unwrap().count(), 16);
    damage(&folder::blob(berth.data_dir(), &image.layer().digest), flip_a_byte);
    verify(berth.data_dir()).await;
    assert!(quarantined(berth.data_dir(), &image.layer().digest));
    assert_eq!(fs::read_dir(berth.data_dir().join("quarantine")).unwrap().count(), 16);
}

#[tokio::test]
async fn a_command_finds_the_daemon_or_says_why_not() {
    let (_upstream, setup, image) = with_image().await;
    let berth = pulled(setup, &image).await;
    let data_dir = berth.data_dir().to_str().unwrap();
    let admin = berth.listener("admin").to_string();
    let lock = fs::read_to_string(berth.data_dir().join("lock")).unwrap();
    assert_eq!(lock, format!("{}\n{admin}\n", berth.pid()));
    // As on a disk that was read-only when the daemon started.
    write(&berth.data_dir().join("lock"), "");
    let lost = run(&["verify", "--data-dir", data_dir, "--admin-listen", "127.0.0.1:1"]).await;
    assert_eq!(lost.code, Some(1));
    assert!(lost.text.contains("has the data folder") && lost.text.contains("127.0.0.1:1"), "{}", lost.text);
    let told = run(&["verify", "--data-dir", data_dir, "--admin-listen", &admin]).await;
    assert_eq!(told.code, Some(0), "{}", told.text);
    let data_plane = berth.address().to_string();
    let wrong = run(&["verify", "--data-dir", data_dir, "--admin-listen", &data_plane]).await;
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.text.contains("404"), "{}", wrong.text);
    let nowhere = run(&["verify", "--data-dir", "/nowhere/at/all"]).await;
    assert_eq!((nowhere.code, nowhere.text.contains("no data folder")), (Some(1), true), "{}", nowhere.text);
    assert_eq!(run(&["verify", "--config", "/nowhere.toml"]).await.code, Some(2));
    assert_eq!(run(&["verify", "--no-such-flag"]).await.code, Some(2));
}

#[tokio::test]
async fn commands_are_for_the_admin_plane_and_not_for_browsers() {
    let (_upstream, setup, _) = with_image().await;
    let berth = setup.admin("metrics_listen = \"127.0.0.1:0\"").start().await;
    let on_metrics = |method: &str| ask(method, format!("http://{}{VERIFY}", berth.listener("metrics")));
    let post = || berth.order(VERIFY, "{}");
    assert_eq!(berth.admin(VERIFY).await.json()["running"], false);

    let check = |reply: crate::support::Reply, status: u16| {
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(!reply.json()["error"].as_str().unwrap().is_empty());
    };
    check(post().header("origin", "http://127.0.0.1:5001").await, 403);
    check(post().header("origin", "null").await, 403);
    check(berth.ask_admin("POST", VERIFY).body("{}").await, 415);
    check(berth.ask_admin("POST", VERIFY).header("content-type", "text/plain").body("{}").await, 415);
    let json = || berth.ask_admin("POST", VERIFY).header("content-type", "application/json; charset=utf-8");
    check(json().body("{").await, 400);
    check(json().body("").await, 400);
    check(json().body("{\"fast\": true}").await, 400);
    check(json().body(" ".repeat(70_000)).await, 413);
    check(berth.ask_admin("DELETE", VERIFY).await, 405);
    check(berth.admin("/api/v1/other").await, 404);
    let state = berth.admin(VERIFY).await.json();
    assert!(state["complete"] == false && state["running"] == false, "nothing was begun: {state}");

    for method in ["GET", "POST"] {
        let ask = on_metrics(method).header("content-type", "application/json").body("{}");
        assert!([404, 405].contains(&ask.await.status));
        let ask = berth.ask(method, VERIFY).header("content-type", "application/json").body("{}");
        assert!([404, 405].contains(&ask.await.status));
    }
    assert_eq!(json().body("{}").await.status, 202);
    eventually("it is done", async || berth.admin(VERIFY).await.json()["complete"] == true).await;
}
