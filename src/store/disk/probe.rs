//! Probes the disk: at the start, and then as long as it is known to fail, until it has recovered.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::range::Span;
use crate::store::blocking::blocking;
use crate::store::disk::Disk;
use crate::store::disk::files::allocate;
use crate::store::error::Error;

/// Time between two probes of a failing disk.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The content that a probe writes.
const PROBE_BYTES: [u8; 4096] = [0; 4096];
/// Bytes for which a full disk must have room again to count as recovered, at most: those of an ordinary layer.
const ROOM_BYTES_MAX: u64 = 64 << 20;
/// The same as a part of the disk (one in `ROOM_PART`): a small disk may never have more.
const ROOM_PART: u64 = 16;

/// Probes the disk at once, and then for as long as it is known to fail. Never returns.
pub(in crate::store) async fn run(disk: Arc<Disk>) {
    loop {
        let probed = Arc::clone(&disk);
        blocking(move || once(&probed)).await;
        disk.condition().until_degraded().await;
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

/// Writes, syncs and removes a small file, and sees whether there is room.
fn once(disk: &Disk) {
    let condition = disk.condition();
    let part = rustix::fs::statvfs(disk.root()).map_or(0, |it| it.f_blocks * it.f_frsize / ROOM_PART);
    let wanted = condition.wanted_bytes();
    match probe(disk, wanted.min(ROOM_BYTES_MAX).min(part)) {
        Ok(()) => condition.succeeded(wanted),
        Err(error) => condition.degrade(0, &error),
    }
}

fn probe(disk: &Disk, room_bytes: u64) -> Result<(), Error> {
    let path = disk.stage()?;
    let write = |mut file: File| {
        allocate(&file, Span { start: 0, end: room_bytes })?;
        file.write_all(&PROBE_BYTES)?;
        file.sync_all()
    };
    let written = disk.retry_without_folder(|| {
        let created = OpenOptions::new().write(true).create_new(true).open(&path);
        created.and_then(write).map_err(|source| Error::io("write", &path, source))
    });
    let removed = std::fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source));
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::disk::health::Health;

    #[test]
    fn a_probe_leaves_nothing_and_finds_out() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), Arc::default()).unwrap();
        let full = Error::io("write", Path::new("x"), rustix::io::Errno::NOSPC.into());
        disk.condition().failed(1 << 40, &full);
        once(&disk);
        assert_eq!(disk.condition().health(), Health::Healthy);
        assert_eq!(std::fs::read_dir(disk.partials()).unwrap().count(), 0);
        std::fs::remove_dir(disk.partials()).unwrap();
        File::create(disk.partials()).unwrap();
        once(&disk);
        assert_eq!(disk.condition().health(), Health::Healthy, "what was in the way is put aside");
        std::fs::remove_dir_all(disk.root()).unwrap();
        once(&disk);
        assert!(matches!(disk.condition().health(), Health::Degraded { .. }));
    }
}
