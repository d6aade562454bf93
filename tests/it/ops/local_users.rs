//! What other users of the machine can see of a berth (F20 of the attacks, and core dumps): nothing of what it keeps,
//! unless its group is let in, and nothing of what it has in memory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use crate::support::process::{tool, try_run};
use crate::support::{Berth, Image, Setup, Upstream, folder};

const REPO: &str = "library/alpine";
/// Users and a group that need not be known to the machine.
const STRANGER: u32 = 54_321;
const BACKUP: u32 = 54_322;

async fn alpine() -> (Upstream, Setup, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[3000, 40_000]);
    upstream.image(REPO, "3", &image);
    let setup = Berth::with("docker.io", &upstream);
    (upstream, setup, image)
}

/// A folder that everybody can reach.
fn reachable() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs a program as another user, in one group.
async fn run_as(user: u32, group: u32, program: &[&str]) -> Result<String, String> {
    let mut command = tool("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
    try_run(command.args(program)).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Everything below a folder that others may do something with. A berth at work renames and removes files meanwhile.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let unless_gone = |error: &io::Error| assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let entries = fs::read_dir(folder).inspect_err(unless_gone).into_iter().flatten();
    for entry in entries {
        let entry = entry.unwrap();
        let path = entry.path();
        let Ok(metadata) = entry.metadata().inspect_err(unless_gone) else { continue };
        if !metadata.is_symlink() && metadata.mode() & 0o007 != 0 {
            found.push(format!("{} {:o}", path.display(), metadata.mode()));
        }
        if metadata.is_dir() {
            found.extend(open_to_others(&path));
        }
    }
    found
}

#[tokio::test]
async fn nobody_else_reads_what_is_kept() {
    let (_upstream, setup, image) = alpine().await;
    let parent = reachable();
    let data = parent.path().join("data");
    let mut berth = setup.data_dir(&data).start().await;
    berth.pull(REPO, "3", &image).await;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(open_to_others(&data), [""; 0]);
    let umask = fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    assert!(umask.contains("Umask:\t0077"), "{umask}");
    let blob = folder::blob(&data, &image.layer().digest);
    let blob = blob.to_str().unwrap();
    let error = run_as(STRANGER, STRANGER, &["cat", blob]).await.unwrap_err();
    assert!(error.contains("Permission denied"), "{error}");

    // A folder of an earlier version, or of somebody's own making, is closed at the next start.
    berth.stop().await;
    for path in
        [&*data, &data.join("blobs"), &data.join("blobs/sha256"), &data.join("repos"), &data.join("index")]
    {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(blob, Permissions::from_mode(0o444)).unwrap();
    assert!(run_as(STRANGER, STRANGER, &["cat", blob]).await.is_ok());
    berth.start_again().await;
    assert!(run_as(STRANGER, STRANGER, &["cat", blob]).await.is_err());
    assert_eq!((mode(&data), mode(&data.join("blobs"))), (0o700, 0o750));
    berth.pull(REPO, "3", &image).await;
}

#[tokio::test]
async fn a_group_that_is_let_in_makes_backups_and_reads_images() {
    let (_upstream, setup, image) = alpine().await;
    let parent = reachable();
    let data = parent.path().join("data");
    fs::create_dir(&data).unwrap();
    chown(&data, None, Some(BACKUP)).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o2755)).unwrap();
    // Filled before anybody was let in.
    let mut berth = setup.clone().data_dir(&data).start().await;
    berth.pull(REPO, "3", &image).await;
    berth.stop().await;
    assert_eq!(mode(&data), 0o2700);
    let text = fs::read_to_string(berth.config()).unwrap();
    let berth = setup.file(&format!("data_mode = \"0750\"\n{text}")).data_dir(&data).start().await;
    berth.pull(REPO, "3", &image).await;
    assert_eq!(mode(&data), 0o2750);
    assert_eq!(open_to_others(&data), [""; 0]);

    let target = reachable();
    chown(target.path(), Some(STRANGER), Some(BACKUP)).unwrap();
    let at = |name: &str| target.path().join(name).to_str().unwrap().to_owned();
    let layout = folder::layout(&data, &format!("docker.io/{REPO}"));
    let (from, to) = (format!("oci:{}:3", layout.display()), format!("dir:{}", at("copy")));
    let copy =
        ["skopeo", "--tmpdir", target.path().to_str().unwrap(), "--insecure-policy", "copy", &from, &to];
    crate::support::eventually("the layout is rendered", async || {
        run_as(STRANGER, BACKUP, &copy).await.is_ok()
    })
    .await;
    assert!(run_as(STRANGER, STRANGER, &copy).await.is_err(), "without the group");
    for part in ["blobs", "repos"] {
        let from = data.join(part);
        let (from, to) = (from.to_str().unwrap().to_owned(), at("backup") + "/");
        run_as(STRANGER, BACKUP, &["rsync", "-a", &from, &to]).await.unwrap();
        assert!(run_as(STRANGER, STRANGER, &["rsync", "-a", &from, &to]).await.is_err());
    }
    assert_eq!(folder::verified(Path::new(&at("backup"))), folder::verified(&data));
}

#[tokio::test]
async fn what_is_in_memory_is_in_no_core_dump_and_no_other_process_reads_it() {
    let (_upstream, setup, image) = alpine().await;
    let berth = setup.start().await;
    berth.pull(REPO, "3", &image).await;
    // What is not dumpable belongs to root in /proc, whoever runs it; here both may be root. So somebody else runs it.
    let own = reachable();
    chown(own.path(), Some(STRANGER), Some(STRANGER)).unwrap();
    let program = crate::support::BERTH;
    let data = own.path().join("data");
    let copied = own.path().join("berth");
    fs::copy(program, &copied).unwrap();
    fs::set_permissions(&copied, Permissions::from_mode(0o755)).unwrap();
    let mut command = tool("setpriv");
    command.arg(format!("--reuid={STRANGER}")).arg(format!("--regid={STRANGER}")).arg("--clear-groups");
    command.arg(&copied).args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
    ]);
    command.arg(&data);
    let log = own.path().join("log");
    let daemon = crate::support::process::Daemon::spawn(command, &log);
    crate::support::eventually("it listens", async || daemon.log().contains("listening")).await;
    let proc = Path::new("/proc").join(daemon.pid().to_string());
    assert_eq!(fs::metadata(proc.join("environ")).unwrap().uid(), 0);
    let environ = proc.join("environ");
    assert!(run_as(STRANGER, STRANGER, &["cat", environ.to_str().unwrap()]).await.is_err());
    assert_eq!(fs::metadata(&data).unwrap().uid(), STRANGER);
}
