//! Watches files that are replaced or rewritten under a running daemon, and says when to read them again.
//!
//! Kubernetes replaces secrets and configurations by swapping a symlink; other tools rename a file over the old one, or write
//! in place, and sometimes one file after the other. So a path is polled: every second, off the runtime, the [`Stamp`] of what
//! it leads to is compared. It counts as changed once it has come to rest, so that half of a rewrite is not read. If it is
//! read all the same, a further change is seen after that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

/// Interval at which files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a change must stay as it is: a tool that writes in place, or several files, is through by then.
const REST: Duration = Duration::from_millis(400);
/// Files that never come to rest are taken as they are after this time.
const RESTLESS_MAX: Duration = Duration::from_secs(5);

/// What changes when a file is replaced, rewritten, or made readable: its inode number, and the seconds and nanoseconds of
/// its last status change. (The time of modification can be set at will, and some tools do.)
pub type Stamp = (u64, i64, i64);

/// The stamp of a file as it is now. Symlinks are followed.
///
/// # Errors
/// When it cannot be looked at.
pub fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Waits until a file has had the same stamp twice in a row, and returns it. `None` if the file did not come to rest within
/// some seconds, or is not there.
pub async fn at_rest(path: &Path) -> Option<Stamp> {
    let since = Instant::now();
    let mut before = None;
    while since.elapsed() < RESTLESS_MAX {
        let path = path.to_owned();
        let now = spawn_blocking(move || stamp(&path).ok()).await.ok()?;
        if before == Some(now) {
            return now;
        }
        before = Some(now);
        sleep(REST).await;
    }
    None
}

/// A watch over some files: their stamps when they were last read.
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

impl Watch {
    /// Watches `paths` from now on. It must be called before they are read.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Watches these besides the first path that it was made for, and no others. Each comes with its stamp when it was read,
    /// since it may have changed meanwhile.
    pub fn follow(&mut self, read: impl IntoIterator<Item = (PathBuf, Option<Stamp>)>) {
        self.paths.truncate(1);
        self.seen.truncate(1);
        for (path, stamp) in read {
            self.paths.push(path);
            self.seen.push(stamp);
        }
    }

    /// Takes all files as they are now, as [`Watch::new`] does. It must be called before they are read again.
    pub fn look(&mut self) {
        self.seen = stamps(&self.paths);
    }

    /// Waits until a file has changed since it was last read, and all have come to rest. A file that cannot be looked at is a
    /// change, too. May be dropped, and called again, at any time.
    pub async fn changed(&mut self) {
        loop {
            sleep(POLL_INTERVAL).await;
            let mut now = self.stamps().await;
            if now == self.seen {
                continue;
            }
            let since = Instant::now();
            while since.elapsed() < RESTLESS_MAX {
                sleep(REST).await;
                let before = std::mem::replace(&mut now, self.stamps().await);
                if now == before {
                    break;
                }
            }
            // It may be as it was, by now.
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    async fn stamps(&self) -> Vec<Option<Stamp>> {
        let paths = self.paths.clone();
        spawn_blocking(move || stamps(&paths)).await.unwrap_or_else(|_| self.seen.clone())
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Whether a change is seen, in time that is told rather than passes.
    async fn is_seen(watch: &mut Watch) -> bool {
        timeout(Duration::from_secs(60), watch.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_once_however_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let swap = |to: &str| {
            symlink(to, at("..next")).unwrap();
            fs::rename(at("..next"), at("..data")).unwrap();
        };
        for version in ["1", "2"] {
            fs::create_dir(at(version)).unwrap();
            write(&at(version).join("file"), "same");
        }
        swap("1");
        symlink("..data/file", at("mounted")).unwrap();
        write(&at("plain"), "one");
        let mut watch = Watch::new(vec![at("plain"), at("mounted")]);
        assert!(!is_seen(&mut watch).await);
        swap("2");
        assert!(is_seen(&mut watch).await, "a symlink is swapped");
        assert!(!is_seen(&mut watch).await);
        write(&at("plain"), "two");
        assert!(is_seen(&mut watch).await, "written in place");
        write(&at("next"), "two");
        fs::rename(at("next"), at("plain")).unwrap();
        assert!(is_seen(&mut watch).await, "replaced");
        fs::remove_file(at("plain")).unwrap();
        assert!(is_seen(&mut watch).await, "gone");
        assert!(!is_seen(&mut watch).await);
        write(&at("plain"), "three");
        watch.look();
        assert!(!is_seen(&mut watch).await, "read meanwhile");
        let read = stamp(&at("mounted")).ok();
        swap("1");
        watch.follow([(at("mounted"), read)]);
        assert!(is_seen(&mut watch).await, "between when it was read and now");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_being_written_is_left_alone_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "0");
        let mut watch = Watch::new(vec![path.clone()]);
        let began = Instant::now();
        let writes = async {
            loop {
                // Another file each time, as the clock of the file system may stand still here.
                let next = folder.path().join("next");
                write(&next, "1");
                fs::rename(&next, &path).unwrap();
                sleep(REST / 2).await;
            }
        };
        tokio::select! {
            () = writes => unreachable!("it never ends"),
            () = watch.changed() => {}
        }
        assert!(began.elapsed() >= RESTLESS_MAX, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_at_rest_when_it_has_looked_the_same_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(at_rest(&path).await, None, "there is none");
        write(&path, "0");
        assert_eq!(at_rest(&path).await, stamp(&path).ok());
        let writes = async {
            loop {
                let next = folder.path().join("next");
                write(&next, "1");
                fs::rename(&next, &path).unwrap();
                sleep(REST / 2).await;
            }
        };
        tokio::select! {
            () = writes => unreachable!("it never ends"),
            rest = at_rest(&path) => assert_eq!(rest, None, "it is written all the time"),
        }
    }
}
