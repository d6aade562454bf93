//! The disks of the tests, proven without berth: that they keep what was synced, and lose what was not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::support::crash::Disk;
use crate::support::eventually;
use crate::support::process::{Daemon, tool};

static CONTENT: [u8; 300_000] = [7; 300_000];

fn put(path: &Path) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(&CONTENT).unwrap();
    file
}

#[tokio::test]
async fn power_loss_keeps_what_was_synced_and_nothing_else() {
    let disk = Disk::ext4(64).await;
    put(&disk.path().join("synced")).sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    put(&disk.path().join("never synced"));
    let found = disk.after_power_loss(&[]).await;
    assert_eq!(fs::read(found.path().join("synced")).unwrap(), CONTENT);
    assert!(!found.path().join("never synced").exists());
    assert_eq!(fs::read(disk.path().join("never synced")).unwrap(), CONTENT, "the disk itself lives on");
}

#[tokio::test]
async fn power_loss_keeps_a_name_without_its_content_when_only_the_folder_was_synced() {
    let disk = Disk::ext4(64).await;
    put(&disk.path().join("staged"));
    fs::rename(disk.path().join("staged"), disk.path().join("final")).unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let found = disk.after_power_loss(&[]).await;
    let length = found.path().join("final").metadata().map(|metadata| metadata.len());
    assert_eq!(length.unwrap(), 0);
}

#[tokio::test]
async fn power_loss_in_the_midst_of_writes_leaves_whole_files_that_were_synced_in_order() {
    let disk = Disk::ext4(64).await;
    let script = "n=0; while true; do
        head -c 200000 /dev/zero > staged; sync staged; mv staged file.$n; sync .; n=$((n + 1)); done";
    let mut writer = tool("unshare");
    writer.args(["--mount", "sh", "-ec", script]).current_dir(disk.path());
    let writer = Daemon::spawn(writer, &disk.path().join("log"));
    eventually("some files", async || disk.path().join("file.20").exists()).await;
    let found = disk.after_power_loss(&[writer.pid()]).await;
    let mut files = 0;
    for entry in fs::read_dir(found.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("file.") {
            assert_eq!(entry.metadata().unwrap().len(), 200_000, "{entry:?}");
            files += 1;
        }
    }
    assert!(files >= 20, "{files}");
    let last = disk.path().join(format!("file.{}", files + 5));
    eventually("the writer to go on", async || last.exists()).await;
}

#[tokio::test]
async fn a_small_disk_fills_up_and_a_read_only_one_refuses() {
    for disk in [Disk::tmpfs(1).await, Disk::ext4(8).await] {
        let error = File::create(disk.path().join("large")).unwrap().write_all(&[0; 9 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        fs::remove_file(disk.path().join("large")).unwrap();
        disk.read_only(true).await;
        let error = File::create(disk.path().join("small")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        disk.read_only(false).await;
        File::create(disk.path().join("small")).unwrap();
    }
}
