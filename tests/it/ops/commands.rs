//! Commands as people give them: without a file, into a pipe that closes, and with names of other programs (rows of C).

use std::io::{PipeWriter, pipe};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::support::process::{tool, write};
use crate::support::{BERTH, Berth, Image, Upstream, command, within_deadline};

/// An `/etc` with this configuration of berth's in it.
fn etc(toml: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("berth")).unwrap();
    write(&folder.path().join("berth/berth.toml"), toml);
    folder
}

/// Runs `berth` where that is `/etc`; exit code and what it said.
async fn berth_in(etc: &TempDir, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = tool("unshare");
    let script = "mount --bind \"$1\" /etc; shift; exec \"$@\"";
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(etc.path()).arg(BERTH).args(arguments);
    command.envs(variables.iter().copied());
    let output = within_deadline("berth ends by itself", command.output()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn every_command_finds_the_usual_file_and_says_so() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("berth");
    let toml = format!(
        "data_dir = {folder:?}\npublic_registries = false\ndefault_upstream = \"none\"\n[http]\nlisten = [\"127.0.0.1:0\"]\n\
         [admin]\nlisten = \"127.0.0.1:0\""
    );
    let etc = etc(&toml);
    let (code, said) = berth_in(&etc, &["check-config"], &[]).await;
    assert_eq!(code, Some(0), "{said}");
    for line in ["config /etc/berth/berth.toml".to_owned(), format!("data_dir {}", folder.display())] {
        assert!(said.lines().any(|said| said == line), "{line} in {said}");
    }
    for arguments in [
        &["pins"][..],
        &["verify"],
        &["pin", "ghcr.io/a/b:1"],
        &["unpin", "ghcr.io/a/b:1"],
        &["refresh", "ghcr.io/a/b:1"],
    ] {
        let (code, said) = berth_in(&etc, arguments, &[]).await;
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains(folder.to_str().unwrap()), "{arguments:?}: {said}");
    }
    let (code, said) = berth_in(&etc, &["login-check", "docker.io"], &[]).await;
    assert!(code == Some(2) && said.contains("no [[upstream]] is configured for docker.io"), "{said}");
    // What is said is what counts.
    let other = data.path().join("other.toml");
    write(&other, "[cache]\nscrub = \"off\"");
    let other = other.to_str().unwrap();
    for (arguments, variables) in
        [(&["check-config", "--config", other][..], &[][..]), (&["check-config"], &[("BERTH_CONFIG", other)])]
    {
        let (code, said) = berth_in(&etc, arguments, variables).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("config {other}")) && said.contains("docker.io"), "{said}");
    }
    let wrong = self::etc("[http]\nlisten = []");
    for arguments in [["check-config"], ["serve"]] {
        let (code, said) = berth_in(&wrong, &arguments, &[]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("/etc/berth/berth.toml") && said.contains("http.listen"), "{said}");
    }
}

#[tokio::test]
async fn a_pipe_that_closes_is_no_fault() {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    upstream.image("library/app", "1", &image);
    let mut berth =
        Berth::with("docker.io", &upstream).sections("[[pin]]\nref = \"library/app:1\"").start().await;
    berth.pull("library/app", "1", &image).await;
    berth.stop().await;
    let config = berth.config();
    let config = ["--config", config.to_str().unwrap()];
    for arguments in
        [&["check-config"][..], &["pins"], &["verify"], &["login-check"], &["--help"], &["--version"]]
    {
        let mut command = Command::new(BERTH);
        command.args(arguments).stdout(closed());
        if !arguments[0].starts_with('-') {
            command.args(config);
        }
        assert_eq!(said(&mut command).await, (Some(0), String::new()), "{arguments:?}");
    }
    // Nor is one for what goes wrong.
    let mut command = Command::new(BERTH);
    command
        .args(["check-config", "--config", "/nowhere.toml"])
        .env_clear()
        .kill_on_drop(true)
        .stderr(closed());
    let status = within_deadline("berth ends by itself", command.status()).await.unwrap();
    assert_eq!(status.code(), Some(2));
    // What cannot be written is a failure all the same.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, said) = said(Command::new(BERTH).arg("check-config").args(config).stdout(full)).await;
    assert!(code == Some(1) && said.contains("standard output"), "{said}");
}

/// The end of a pipe that nobody reads from.
fn closed() -> PipeWriter {
    let (_reader, writer) = pipe().unwrap();
    writer
}

/// The exit code of a command whose standard output is given, and what it says on the other.
async fn said(command: &mut Command) -> (Option<i32>, String) {
    let child = command.env_clear().kill_on_drop(true).stderr(Stdio::piped()).spawn().unwrap();
    let output = within_deadline("berth ends by itself", child.wait_with_output()).await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_reload_needs_to_be_told_nothing() {
    let upstream = Upstream::start().await;
    let setup = Berth::with("docker.io", &upstream);
    let berth = setup.clone().start().await;
    berth.configure(&setup.keys("aliases = [\"hub\"]"));
    let bare = berth.ask_admin("POST", "/api/v1/reload").await;
    assert_eq!(bare.json()["changed"][0], "upstream docker.io", "{}", bare.text());
    // As `curl -d ''` sends it.
    let form =
        berth.ask_admin("POST", "/api/v1/reload").header("content-type", "application/x-www-form-urlencoded");
    form.await.expect(200);
    // What says something still says it in JSON, and no browser says anything.
    let form = berth.ask_admin("POST", "/api/v1/reload").header("content-type", "text/plain").body("{}");
    assert_eq!(form.await.status, 415);
    let page = berth.ask_admin("POST", "/api/v1/reload").header("origin", "http://evil.example");
    assert_eq!(page.await.status, 403);
    for path in ["/api/v1/pins", "/api/v1/verify"] {
        assert_eq!(berth.ask_admin("POST", path).await.status, 415, "{path} is told of something");
    }
}

#[tokio::test]
async fn names_of_other_programs_are_refused_with_what_they_look_like() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, part) in [
        (&["pin", "docker://alpine:3"][..], "://"),
        (&["pin", "oci://ghcr.io/org/chart:1"], "://"),
        (&["refresh", "docker://alpine:3"], "://"),
        (&["pin", "docker-archive:/tmp/x.tar"], "transport"),
        (&["pin", "--platform=windows(10.0.17763)/amd64", "alpine:3"], "containerd"),
        (&["pin", "--platform=linux/amd64,linux/arm64", "alpine:3"], "several"),
    ] {
        let said = command(folder.path(), arguments).await;
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.text);
        assert!(said.text.contains(part), "{arguments:?}: {}", said.text);
    }
    let toml = "[[pin]]\nref = \"docker://alpine:3\"";
    let file = crate::support::file_of(toml);
    let mut check = Command::new(BERTH);
    check.args(["check-config", "--config"]).arg(&file).env_clear().kill_on_drop(true);
    let output = within_deadline("berth ends by itself", check.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2), "{said}");
    for part in ["line 2", "ref", "docker://alpine:3", "leave out"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}
