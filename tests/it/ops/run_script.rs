//! `tests/run` on a machine that lacks packages (newcomer 1.2, 1.3): what it installs removes nothing, runs nothing, and
//! starts nothing at the next boot. apt-get, dpkg and cargo are played; the folders that count are empty ones of the test.

use std::fs;

use tempfile::TempDir;

use crate::support::clients::apart;
use crate::support::process::{try_run, write};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Folders of the machine that an installation changes.
const TOUCHED: [&str; 3] = ["/usr/sbin", "/etc/systemd", "/etc/rc2.d"];
/// What is there before.
const BEFORE: &str = "mkdir -p /etc/systemd/system/old.target.wants\nln -s /x /etc/systemd/system/old.target.wants/old.service\n";
/// Says what is there afterwards.
const AFTERWARDS: &str = "find /usr/sbin /etc/systemd /etc/rc2.d ! -type d\n";
/// What apt-get does: it says what it was told, and, as packages with services do, has them enabled.
const APT_GET: &str = "#!/bin/sh\n\
    echo \"apt-get $*\" >>\"$LOG\"\n\
    case \"$*\" in\n\
    *--simulate*) exit \"$PLAN\" ;;\n\
    *install*)\n\
        if [ -e /usr/sbin/policy-rc.d ]; then sh /usr/sbin/policy-rc.d; echo \"policy $?\" >>\"$LOG\"; fi\n\
        mkdir -p /etc/systemd/system/multi-user.target.wants /etc/systemd/user/sockets.target.wants\n\
        ln -s /x /etc/systemd/system/multi-user.target.wants/new.service\n\
        ln -s /x /etc/systemd/user/sockets.target.wants/new.socket\n\
        ln -s ../init.d/new /etc/rc2.d/S01new\n\
        exit \"$INSTALL\" ;;\n\
    esac\n";

/// What came of a run.
struct Ran {
    /// What the run said, and what is there afterwards.
    said: String,
    /// What was done, in order.
    done: Vec<String>,
    _folder: TempDir,
}

impl Ran {
    fn left(&self) -> Vec<&str> {
        let mut left: Vec<_> = self.said.lines().filter(|line| line.starts_with('/')).collect();
        left.sort_unstable();
        left
    }
}

/// Runs it where every package is missing. `before` is done first; the two are how apt-get ends.
async fn run_where_all_is_missing(before: &str, plan: u8, install: u8) -> Ran {
    run(before, plan, install, "fmt").await
}

/// The same; the first of cargo's commands that fails is this.
async fn run(before: &str, plan: u8, install: u8, fails: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, script) in [
        ("apt-get", APT_GET),
        ("dpkg-query", "#!/bin/sh\nexit 1\n"),
        ("cargo", "#!/bin/sh\necho \"cargo $*\" >>\"$LOG\"\n[ \"$1\" != \"$FAILS\" ]\n"),
    ] {
        write(&at(name), script);
    }
    let script = format!(
        "chmod +x \"$PLAYED\"/*\n{BEFORE}{before}tests/run 2>&1 || echo \"it ended with $?\"\n{AFTERWARDS}"
    );
    let mut command = apart(&script, &TOUCHED);
    command.current_dir(ROOT).env("PLAYED", folder.path()).env("LOG", at("log"));
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
    command.env("PLAN", plan.to_string()).env("INSTALL", install.to_string());
    command.env("FAILS", fails);
    let said = try_run(&mut command).await.unwrap();
    let done = fs::read_to_string(at("log")).unwrap().lines().map(str::to_owned).collect();
    Ran { said, done, _folder: folder }
}

const OLD: &str = "/etc/systemd/system/old.target.wants/old.service";
const POLICY: &str = "/usr/sbin/policy-rc.d";

#[tokio::test]
async fn nothing_is_removed_or_started_or_stays_enabled() {
    let ran = run_where_all_is_missing("", 0, 0).await;
    let [update, plan, install, policy, rest] = &ran.done[..] else { panic!("{:?}", ran.done) };
    assert!(update.starts_with("apt-get update") && plan.contains("--simulate"), "{:?}", ran.done);
    for command in [plan, install] {
        assert!(command.contains(" --no-remove ") && command.contains(" docker.io "), "{command}");
    }
    assert_eq!((&**policy, &**rest), ("policy 101", "cargo fmt --all --check"), "none may start meanwhile");
    assert_eq!(ran.left(), [OLD], "{}", ran.said);
    let (told, _) = ran.said.split_once("== cargo fmt").unwrap();
    for part in ["docker-registry", "removes nothing", "starts none of their services", "next boot"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[tokio::test]
async fn what_is_in_the_way_ends_it_before_anything_is_done() {
    let ran = run_where_all_is_missing("", 100, 0).await;
    assert_eq!(ran.done.len(), 2, "{:?}", ran.done);
    assert_eq!(ran.left(), [OLD]);
    assert!(
        ran.said.contains("has installed nothing") && ran.said.contains("it ended with 1"),
        "{}",
        ran.said
    );
}

#[tokio::test]
async fn an_installation_that_fails_leaves_nothing_enabled_either() {
    let ran = run_where_all_is_missing("", 0, 100).await;
    assert_eq!(ran.left(), [OLD], "{}", ran.said);
    assert!(ran.said.contains("it ended with 100"), "{}", ran.said);
}

#[tokio::test]
async fn a_tool_that_cannot_be_built_is_named() {
    let ran = run("", 0, 0, "install").await;
    let last = ran.done.last().unwrap();
    assert!(last.starts_with("cargo install") && last.contains("cargo-deny@"), "{:?}", ran.done);
    assert!(ran.said.contains("could not be built") && ran.said.contains("it ended with 1"), "{}", ran.said);
}

#[tokio::test]
async fn a_policy_of_the_machine_stays_and_one_that_a_killed_run_has_left_goes() {
    let own = "printf '#!/bin/sh\\nexit 7\\n' >/usr/sbin/policy-rc.d\n";
    let ran = run_where_all_is_missing(own, 0, 0).await;
    assert!(ran.done.iter().any(|line| line == "policy 7"), "{:?}", ran.done);
    assert_eq!(ran.left(), [OLD, POLICY]);
    assert!(ran.said.contains("leaves it to this machine"), "{}", ran.said);

    let script = include_str!("../../run");
    let (_, mark) = script.split_once("ours='").unwrap();
    let mark = mark.split('\'').next().unwrap();
    let left = format!("printf '#!/bin/sh\\n%s\\nexit 101\\n' '{mark}' >/usr/sbin/policy-rc.d\n");
    assert_eq!(run_where_all_is_missing(&left, 0, 0).await.left(), [OLD]);
}
