//! Verification for readers: stored files are hashed again because somebody reads them.
//!
//! A client that was sent a whole blob with a wrong digest asks for it once more, at once. So the second whole GET of
//! a blob from one client within [`REREAD_MINUTES`] starts a verification of that file, unless one has found it sound
//! less than [`SOUND_FOR_SECONDS`] ago. Until it has ended, this GET and all others that would have started it keep
//! back the end of the body; if the file is damaged, all its readers are cut off, it goes to the
//! [quarantine](crate::store::integrity), and the next request fetches it anew. A file that nobody has read for a
//! week is verified while its first reader reads it; that reader waits for nothing.
//!
//! A verification is about the file that was opened, not about its name: what has been put in its place meanwhile is
//! another file. A disk that fails says nothing about the content: there is no verdict then, and whoever reads the
//! file finds out.
//!
//! # What it costs
//! A hit of a file that was found sound costs a comparison, any other whole GET a look into a table of fixed size
//! without a lock. Beyond that there are a table of the files that were verified, and at most [`WORKERS_MAX`] threads
//! of low priority that exist while there is something to hash. Many clients may look like one: behind one address,
//! or with one login. All of them together cause one verification an hour of an unchanged file.

use std::fs::File;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::bounded;
use crate::oci::{Digest, Verifier};
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::soundness::modified_at;
use crate::store::integrity::Integrity;
use crate::store::integrity::damaged::Damage;
use crate::store::integrity::verify::read_gently;
use crate::sync::lock;
use crate::telemetry::metrics::Verified;

/// Minutes within which a second GET counts as a repetition. The first one is noted when it begins, and a large layer
/// may take a quarter of an hour over a slow line.
const REREAD_MINUTES: u64 = 30;
/// Seconds for which a file counts as sound after a verification.
const SOUND_FOR_SECONDS: u64 = 60 * 60;
/// Seconds for which a file is not verified again after a verification without a verdict.
const UNKNOWN_FOR_SECONDS: u64 = 60;
/// How long a reader waits for a verdict before it gets the end of its body. Container runtimes give up after thirty
/// seconds without a byte.
const VERDICT_WAIT_MAX: Duration = Duration::from_secs(15);
/// Number of whole GETs that are remembered, in 256 KiB. Each has one place; if another GET takes that, a repetition
/// is missed.
const SEEN: usize = 32 * 1024;
/// Number of files that are remembered as verified, in some two megabytes: more than many clients read within an
/// hour.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
/// Number of files that are hashed at once, so that a very large one does not keep all others waiting.
const WORKERS_MAX: usize = 2;
/// Number of files that wait to be hashed; each is open. Others are not verified now.
const WAITING_MAX: usize = 64;
/// Niceness of a worker. It yields to the threads that serve at three to one, so that there is still a verdict in
/// time.
const NICENESS: i32 = 5;
/// Bytes hashed between two checks whether to stop.
const STEP_BYTES: usize = 256 * 1024;

/// A verification that is running.
pub struct PendingVerification(watch::Receiver<bool>);

impl PendingVerification {
    /// Waits until it has ended, but not longer than a client can be kept waiting.
    pub async fn ended(&mut self) {
        // Its worker may also have been stopped: then there is no verdict.
        let _ = timeout(VERDICT_WAIT_MAX, self.0.wait_for(|is_over| *is_over)).await;
    }
}

/// The identity and state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looks {
    inode: u64,
    device: u64,
    size: u64,
    modified: i64,
}

impl Looks {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (inode, device, size) = (metadata.ino(), metadata.dev(), metadata.len());
        Ok(Self { inode, device, size, modified: modified_at(&metadata) })
    }
}

/// The result of verifying a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sound,
    Damaged,
    /// There is no verdict, because the disk failed or berth is stopped.
    Unknown,
}

/// What is known of a file.
enum State {
    Running(watch::Receiver<bool>),
    /// It ended with this verdict at this time, in seconds on the clock of [`Rechecks`].
    Ended(Verdict, u64),
}

/// What to do with a file that should be verified.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Begin,
    /// It counts as sound until this time.
    Sound(u64),
    /// It was tried in vain a moment ago.
    LeaveAlone,
}

/// Decides by the last verification of an unchanged file, at the time `now`.
fn next(verdict: Verdict, ended_at: u64, now: u64) -> Next {
    let age = now.saturating_sub(ended_at);
    match verdict {
        Verdict::Sound if age < SOUND_FOR_SECONDS => Next::Sound(ended_at + SOUND_FOR_SECONDS),
        Verdict::Unknown if age < UNKNOWN_FOR_SECONDS => Next::LeaveAlone,
        Verdict::Sound | Verdict::Damaged | Verdict::Unknown => Next::Begin,
    }
}

/// Recent whole GETs, by client and digest.
struct Seen(Box<[AtomicU64]>);

impl Seen {
    /// The bits of an entry that are its minute; the others are those of its key.
    const MINUTE: u64 = (1 << 24) - 1;

    fn new() -> Self {
        Self((0..SEEN).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes a GET. Returns whether there was one of the same key within [`REREAD_MINUTES`].
    fn note(&self, key: u64, minute: u64) -> bool {
        let place = usize::try_from(key & (SEEN as u64 - 1)).unwrap_or_default();
        let (entry, old) = ((key & !Self::MINUTE) | (minute & Self::MINUTE), &self.0[place]);
        let before = old.load(Ordering::Relaxed);
        if before != entry {
            old.store(entry, Ordering::Relaxed);
        }
        let age = minute.wrapping_sub(before) & Self::MINUTE;
        before & !Self::MINUTE == key & !Self::MINUTE && age <= REREAD_MINUTES
    }
}

/// The verifications of one store.
pub(in crate::store) struct Rechecks {
    integrity: Arc<Integrity>,
    stop: Arc<AtomicBool>,
    began: Instant,
    keys: RandomState,
    seen: Seen,
    known: Mutex<LruCache<Digest, (Looks, State)>>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Job>,
    workers: usize,
}

/// A file to be hashed.
struct Job {
    digest: Digest,
    file: BlobFile,
    looks: Looks,
    integrity: Arc<Integrity>,
    stop: Arc<AtomicBool>,
    over: watch::Sender<bool>,
}

impl Rechecks {
    /// `stop` ends a verification without a verdict.
    pub(in crate::store) fn new(integrity: Arc<Integrity>, stop: Arc<AtomicBool>) -> Self {
        let (seen, known, queue) = (Seen::new(), Mutex::new(bounded::lru(KNOWN_MAX)), Mutex::default());
        Self { integrity, stop, began: Instant::now(), keys: RandomState::new(), seen, known, queue }
    }

    /// Returns the time in seconds since some time before the process began, so that it is never close to zero.
    fn now(&self) -> u64 {
        self.began.elapsed().as_secs() + 2 * SOUND_FOR_SECONDS
    }

    /// Notes that a client begins to read a stored blob. `whole` is the client if it reads all of it. Returns the
    /// verification that must end before the client gets the end of the body.
    pub(in crate::store) fn begin_reading(
        self: &Arc<Self>,
        digest: &Digest,
        file: &BlobFile,
        whole: Option<impl Hash>,
    ) -> Option<PendingVerification> {
        let soundness = file.soundness();
        let is_unread = soundness.take_unread();
        let now = self.now();
        let is_reread = match whole {
            Some(client) if !soundness.is_sound(now) => {
                self.seen.note(self.keys.hash_one((client, digest)), now / 60)
            }
            Some(_) | None => false,
        };
        if !is_reread && !is_unread {
            return None;
        }
        let why = if is_reread { Verified::Reread } else { Verified::Unread };
        self.recheck(digest, file, why).filter(|_| is_reread)
    }

    /// Verifies a file in the background, unless that is running or was done a moment ago.
    fn recheck(
        self: &Arc<Self>,
        digest: &Digest,
        file: &BlobFile,
        why: Verified,
    ) -> Option<PendingVerification> {
        let (looks, now) = (Looks::of(file.file()).ok()?, self.now());
        let mut known = lock(&self.known);
        match known.get(digest).filter(|(of, _)| *of == looks) {
            Some((_, State::Running(over))) => return Some(PendingVerification(over.clone())),
            Some((_, State::Ended(verdict, at))) => match next(*verdict, *at, now) {
                Next::Begin => {}
                Next::LeaveAlone => return None,
                Next::Sound(until) => {
                    file.soundness().note_sound(until, looks.modified);
                    return None;
                }
            },
            None => {}
        }
        let (over, is_over) = watch::channel(false);
        let (integrity, stop) = (Arc::clone(&self.integrity), Arc::clone(&self.stop));
        let job = Job { digest: *digest, file: file.clone(), looks, integrity, stop, over };
        if !self.queue_up(job) {
            return None;
        }
        known.put(*digest, (looks, State::Running(is_over.clone())));
        drop(known);
        self.integrity.disk().metrics().verified(why);
        Some(PendingVerification(is_over))
    }

    /// Queues a job, unless too many wait. Returns whether it did.
    fn queue_up(self: &Arc<Self>, job: Job) -> bool {
        let mut queue = lock(&self.queue);
        if queue.waiting.len() >= WAITING_MAX {
            return false;
        }
        queue.waiting.push(job);
        if queue.workers < WORKERS_MAX {
            let rechecks = Arc::clone(self);
            let worker = thread::Builder::new().name("berth-verify".to_owned());
            match worker.spawn(move || rechecks.work()) {
                Ok(_) => queue.workers += 1,
                // Without a thread for it nobody waits for a verdict.
                Err(_) if queue.workers == 0 => return queue.waiting.pop().is_none(),
                Err(_) => {}
            }
        }
        true
    }

    /// Hashes the files that wait, the smallest first, because its readers get to the end first.
    fn work(&self) {
        // Best effort: a sandbox may forbid it.
        let _ = rustix::process::nice(NICENESS);
        while let Some(job) = self.take() {
            let verdict = job.run();
            self.conclude(&job, verdict);
        }
    }

    fn take(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        let smallest = (0..queue.waiting.len()).min_by_key(|at| queue.waiting[*at].looks.size);
        match smallest {
            Some(at) => Some(queue.waiting.remove(at)),
            None => {
                queue.workers -= 1;
                None
            }
        }
    }

    /// Acts on a verdict, and then tells the readers that wait for it.
    fn conclude(&self, job: &Job, verdict: Verdict) {
        match verdict {
            Verdict::Sound => {
                job.file.soundness().note_sound(self.now() + SOUND_FOR_SECONDS, job.looks.modified);
            }
            // A client that is cut asks again at once, and must not be given this file again.
            Verdict::Damaged => {
                job.discard();
                job.file.soundness().note_damaged();
            }
            Verdict::Unknown => {}
        }
        let state = State::Ended(verdict, self.now());
        lock(&self.known).put(job.digest, (job.looks, state));
        job.over.send_replace(true);
    }
}

impl Job {
    fn run(&self) -> Verdict {
        match self.hash() {
            Ok(Some(actual)) if actual == self.digest => Verdict::Sound,
            Ok(Some(_)) => Verdict::Damaged,
            Ok(None) => Verdict::Unknown,
            Err(error) => {
                tracing::warn!(digest = %self.digest, %error, "a stored file cannot be verified");
                Verdict::Unknown
            }
        }
    }

    fn hash(&self) -> io::Result<Option<Digest>> {
        let (mut verifier, mut at) = (Verifier::new(self.digest.algorithm()), 0);
        let mut chunk = vec![0; STEP_BYTES];
        while !self.stop.load(Ordering::Relaxed) {
            match read_gently(self.file.file(), &mut chunk, at)? {
                0 => return Ok(Some(verifier.finish())),
                count => {
                    verifier.update(&chunk[..count]);
                    at += count as u64;
                }
            }
        }
        Ok(None)
    }

    /// Takes the file out of service, if it is still the one under its name.
    fn discard(&self) {
        let named = self.integrity.blobs().path(&self.digest).symlink_metadata();
        if named.is_ok_and(|named| (named.ino(), named.dev()) == (self.looks.inode, self.looks.device)) {
            self.integrity.quarantine(&self.digest, Damage::Changed);
        } else {
            self.integrity.open_files().forget(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;
    use crate::oci::Algorithm;
    use crate::store::contents::Contents;

    const CONTENT: &[u8] = b"content";

    /// A verification of a stored blob, whose file is changed before it runs.
    struct Scene {
        _folder: tempfile::TempDir,
        contents: Contents,
        job: Job,
        path: std::path::PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (contents, integrity) = Contents::in_folder(folder.path());
            let digest = Digest::of(Algorithm::Sha256, CONTENT);
            contents.put(&digest, CONTENT).unwrap();
            let file = contents.blob(&digest).unwrap().unwrap();
            let (path, looks) = (integrity.blobs().path(&digest), Looks::of(file.file()).unwrap());
            let (over, stop) = (watch::channel(false).0, Arc::default());
            Self { _folder: folder, contents, job: Job { digest, file, looks, integrity, stop, over }, path }
        }

        fn open(&self) -> File {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o644)).unwrap();
            let file = File::options().write(true).open(&self.path).unwrap();
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o444)).unwrap();
            file
        }

        /// Runs it. Returns the verdict, whether its readers are cut, how many files were put aside, and whether the
        /// blob can be had afterwards.
        fn run(&self) -> (Verdict, bool, u64, bool) {
            let verdict = self.job.run();
            let integrity = &self.job.integrity;
            Rechecks::new(Arc::clone(integrity), Arc::default()).conclude(&self.job, verdict);
            let quarantined = integrity.disk().metrics().quarantined.get();
            assert!(*self.job.over.borrow(), "whoever waits is told");
            (
                verdict,
                self.job.file.is_damaged(),
                quarantined,
                self.contents.blob(&self.job.digest).unwrap().is_some(),
            )
        }
    }

    #[test]
    fn a_verdict_is_about_the_file_that_was_opened() {
        let check = |what: &str, change: &dyn Fn(&Scene), expected: (Verdict, bool, u64, bool)| {
            let scene = Scene::new();
            change(&scene);
            assert_eq!(scene.run(), expected, "{what}");
        };
        let rot = |scene: &Scene| scene.open().write_all_at(b"C", 0).unwrap();
        let remove = |scene: &Scene| fs::remove_file(&scene.path).unwrap();
        let replace = |scene: &Scene| {
            remove(scene);
            scene.contents.put(&scene.job.digest, CONTENT).unwrap();
        };
        check("sound", &|_| (), (Verdict::Sound, false, 0, true));
        check("rotten", &rot, (Verdict::Damaged, true, 1, false));
        check("cut short", &|scene| scene.open().set_len(3).unwrap(), (Verdict::Damaged, true, 1, false));
        check("grown", &|scene| scene.open().set_len(9).unwrap(), (Verdict::Damaged, true, 1, false));
        check("removed", &remove, (Verdict::Sound, false, 0, false));
        check("replaced", &replace, (Verdict::Sound, false, 0, true));
        let rot_and_replace = |scene: &Scene| {
            rot(scene);
            replace(scene);
        };
        check("rotten and replaced", &rot_and_replace, (Verdict::Damaged, true, 0, true));
        let stop = |scene: &Scene| scene.job.stop.store(true, Ordering::Relaxed);
        check("stopped", &stop, (Verdict::Unknown, false, 0, true));
    }

    #[test]
    fn a_client_that_is_cut_does_not_find_the_file_again() {
        let scene = Scene::new();
        scene.open().write_all_at(b"C", 0).unwrap();
        let (scene, job) = (&scene, &scene.job);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !job.file.is_damaged() {
                    std::hint::spin_loop();
                }
                scene.contents.blob(&job.digest).unwrap().is_some()
            });
            scene.run();
            assert!(!reader.join().unwrap());
        });
    }

    #[test]
    fn a_disk_that_fails_is_no_damage() {
        let mut scene = Scene::new();
        // Of a folder nothing can be read.
        scene.job.file = BlobFile::new(File::open(scene.path.parent().unwrap()).unwrap(), 7);
        assert_eq!(scene.run(), (Verdict::Unknown, false, 0, true));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_verdict() {
        let (over, is_over) = watch::channel(false);
        let began = tokio::time::Instant::now();
        PendingVerification(is_over.clone()).ended().await;
        assert_eq!(began.elapsed(), VERDICT_WAIT_MAX);
        let mut pending = PendingVerification(is_over);
        drop(over);
        pending.ended().await;
        assert_eq!(began.elapsed(), VERDICT_WAIT_MAX, "a worker that was stopped has no verdict");
    }

    #[test]
    fn the_second_get_of_one_key_within_a_while_is_a_repetition() {
        let seen = Seen::new();
        let (one, other) = (0x1234_5678_9abc_def0, 0x1234_5678_9bbc_def0);
        let start = 7200 / 60;
        assert!(!seen.note(one, start));
        assert!(seen.note(one, start) && seen.note(one, start + REREAD_MINUTES));
        assert!(!seen.note(one, start + 2 * REREAD_MINUTES + 1), "too long ago");
        assert!(seen.note(one, start + 2 * REREAD_MINUTES + 2));
        assert!(!seen.note(other, start), "of another client, at the same place");
        assert!(!seen.note(one, start), "which has lost its own");
        assert!(!seen.note(0, start), "an empty place is nobody's");
    }

    #[test]
    fn only_some_gets_are_remembered() {
        let seen = Seen::new();
        let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 1..1_000_000 {
            seen.note(key(number), 200);
        }
        assert_eq!(seen.0.len(), SEEN);
        assert!(seen.note(key(999_999), 200));
    }

    #[test]
    fn a_file_is_verified_once_an_hour_and_soon_again_if_there_was_no_verdict() {
        use Verdict::{Damaged, Sound, Unknown};
        let check = |verdict: Verdict, age: u64, expected: Next| {
            assert_eq!(next(verdict, 10_000, 10_000 + age), expected, "{verdict:?} {age} seconds ago");
        };
        check(Sound, 0, Next::Sound(13_600));
        check(Sound, 3599, Next::Sound(13_600));
        check(Sound, 3600, Next::Begin);
        check(Unknown, 59, Next::LeaveAlone);
        check(Unknown, 60, Next::Begin);
        check(Damaged, 0, Next::Begin);
    }
}
