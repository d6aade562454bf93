//! One flight per digest: who is moving bytes from upstream to disk, and who is reading along.
//!
//! A [`Flight`] is a task of its own (see [`super::fill`]) that announces how far it is. A [`Reader`] follows
//! at its own pace from the growing file and holds nothing up. Nothing here moves bytes.
//!
//! What a reader may see: everything that is written, but a reader that asked for the content to its end
//! never gets the last [`HOLD_BACK`] bytes before the digest is proven. So no client ever holds a complete
//! body that is wrong.
//!
//! The table has one lock, taken for a look-up or a count and never across an await.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

use super::error::Error;
use super::lock;
use crate::oci::{Digest, Repo};

/// Bytes at the end of a body that wait for the proof of the whole.
pub(super) const HOLD_BACK: u64 = 64 * 1024;
/// A reader that sees no progress for so long is cut, so that its client can resume or fall back.
pub(super) const STALL: Duration = Duration::from_secs(20);
/// Transfers at once; each has a thread of the blocking pool that writes and hashes.
const FLIGHTS_MAX: usize = 256;
/// Flights that go on although nobody reads them any more.
const UNATTENDED_MAX: usize = 32;

/// How far a flight is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// What is known once upstream has answered.
    pub(super) head: Option<Head>,
    /// Bytes of the file, from its start, that may be read.
    pub(super) have: u64,
    /// How it ended, if it has.
    pub(super) end: Option<End>,
}

/// What upstream's own answer said, and where its bytes are.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// Bytes of the whole content.
    pub(super) total: u64,
    /// The growing file.
    pub(super) file: Arc<File>,
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// Every byte is there and the digest is right.
    Proven,
    /// The content had been stored before this flight began: look again.
    Landed,
    /// There is no more to come; readers that lack bytes are cut.
    Failed(Error),
}

/// One transfer of one digest.
pub(super) struct Flight {
    pub(super) digest: Digest,
    /// The repository whose upstream is asked.
    pub(super) origin: Repo,
    /// Whether it is asked without a credential: then anybody may read along.
    pub(super) public: bool,
    progress: watch::Sender<Progress>,
    readers: AtomicUsize,
    /// Asked to stop. Set under the table's lock, so who joins later knows.
    is_stopping: AtomicBool,
    abandoned: Notify,
}

impl Flight {
    fn new(digest: Digest, origin: Repo, public: bool) -> Arc<Self> {
        Arc::new(Self {
            digest,
            origin,
            public,
            progress: watch::Sender::new(Progress::default()),
            readers: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            abandoned: Notify::new(),
        })
    }

    fn may_be_read_by(&self, repo: &Repo, granted: bool) -> bool {
        granted || self.public || self.origin == *repo
    }

    /// Upstream has answered; `have` bytes can be read at once.
    pub(super) fn announce(&self, head: Head, have: u64) {
        self.progress.send_modify(|progress| {
            progress.head = Some(head);
            progress.have = have;
        });
    }

    /// The first `have` bytes can be read.
    pub(super) fn advance(&self, have: u64) {
        self.progress.send_modify(|progress| progress.have = have);
    }

    /// Nothing changes any more.
    pub(super) fn end(&self, end: End) {
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    /// Whether readers have been told how long the content is.
    pub(super) fn is_announced(&self) -> bool {
        self.progress.borrow().head.is_some()
    }

    /// Resolves when the flight should stop for want of readers.
    pub(super) async fn abandoned(&self) {
        while !self.is_stopping.load(Ordering::Acquire) {
            self.abandoned.notified().await;
        }
    }

    fn abandon(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.abandoned.notify_one();
    }

    /// Whether it goes on although nobody reads it.
    fn is_unattended(&self) -> bool {
        self.readers.load(Ordering::Relaxed) == 0 && !self.is_stopping.load(Ordering::Relaxed)
    }
}

/// The flights under way.
pub(super) struct Flights {
    table: Mutex<HashMap<Digest, Arc<Flight>>>,
    /// Room for [`FLIGHTS_MAX`] transfers; the rest wait in their requests' own time.
    pub(super) seats: Semaphore,
}

/// What came of asking for a digest's flight.
pub(super) enum Entry {
    /// There was none: the caller must begin to fill this one.
    Lead(Arc<Flight>, Reader),
    /// One is under way and may be read.
    Join(Reader),
    /// One is under way with a credential that says nothing about the caller's repository.
    Foreign,
}

impl Flights {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), seats: Semaphore::new(FLIGHTS_MAX) })
    }

    /// Joins the flight of `digest`, or makes one. `granted`: the repository may have this content whoever
    /// brings it.
    pub(super) fn enter(self: &Arc<Self>, digest: Digest, repo: &Repo, public: bool, granted: bool) -> Entry {
        let mut table = self.lock();
        if let Some(flight) = table.get(&digest) {
            return if flight.may_be_read_by(repo, granted) {
                Entry::Join(self.reader(flight))
            } else {
                Entry::Foreign
            };
        }
        let flight = Flight::new(digest, repo.clone(), public);
        table.insert(digest, Arc::clone(&flight));
        let reader = self.reader(&flight);
        Entry::Lead(flight, reader)
    }

    /// The size of `digest` by upstream's word to the flight that brings it, if `repo` may know.
    pub(super) fn total(&self, digest: &Digest, repo: &Repo, granted: bool) -> Option<u64> {
        let flight = self.lock().get(digest).cloned()?;
        let progress = flight.progress.borrow();
        let head = progress.head.as_ref().filter(|_| flight.may_be_read_by(repo, granted))?;
        Some(head.total)
    }

    /// Puts a new flight, for a second try, in the place of `flight`, whose readers are lost.
    pub(super) fn replace(&self, flight: &Arc<Flight>) -> Arc<Flight> {
        let next = Flight::new(flight.digest, flight.origin.clone(), flight.public);
        self.lock().insert(flight.digest, Arc::clone(&next));
        next
    }

    /// Takes an ended flight out of the table.
    pub(super) fn leave(&self, flight: &Arc<Flight>) {
        let mut table = self.lock();
        if table.get(&flight.digest).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            table.remove(&flight.digest);
        }
    }

    /// Stops every flight; their partial files stay. Returns how many there were.
    pub(super) fn abandon_all(&self) -> usize {
        let table = self.lock();
        table.values().for_each(|flight| flight.abandon());
        table.len()
    }

    fn reader(self: &Arc<Self>, flight: &Arc<Flight>) -> Reader {
        flight.readers.fetch_add(1, Ordering::Relaxed);
        let progress = flight.progress.subscribe();
        Reader { flights: Arc::clone(self), flight: Arc::clone(flight), progress }
    }

    /// A reader has left: a flight without readers goes on, unless too many do.
    fn reader_left(&self, flight: &Arc<Flight>) {
        let table = self.lock();
        if flight.readers.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if table.values().filter(|flight| flight.is_unattended()).count() > UNATTENDED_MAX {
            flight.abandon();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        lock(&self.table)
    }
}

/// One request that follows a flight.
pub(super) struct Reader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    progress: watch::Receiver<Progress>,
}

impl Reader {
    /// The repository whose upstream the flight asks.
    pub(super) fn origin(&self) -> &Repo {
        &self.flight.origin
    }

    /// Waits for upstream's answer. None: the content is already stored, look again.
    ///
    /// A flight that was stopped just before this reader came has nothing to say but its end.
    pub(super) async fn head(&mut self) -> Result<Option<Head>, Error> {
        let is_stopping = self.flight.is_stopping.load(Ordering::Acquire);
        let answered =
            |progress: &Progress| (progress.head.is_some() && !is_stopping) || progress.end.is_some();
        let progress = self.progress.wait_for(answered).await.map_err(|_| Error::GivenUp)?;
        match (&progress.head, &progress.end) {
            (_, Some(End::Failed(error))) => Err(error.clone()),
            (Some(head), _) => Ok(Some(head.clone())),
            (None, _) => Ok(None),
        }
    }

    /// Waits until there is something to read beyond `position`, and says up to where. `held`: the end must
    /// wait for the proof.
    pub(super) async fn beyond(&mut self, position: u64, held: bool) -> Result<u64, Error> {
        loop {
            let visible = visible(&self.progress.borrow_and_update(), held);
            if visible > position {
                return Ok(visible);
            }
            if let Some(End::Failed(error)) = &self.progress.borrow().end {
                return Err(error.clone());
            }
            match timeout(STALL, self.progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::GivenUp),
                Err(_) => return Err(Error::Stalled(STALL)),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.flights.reader_left(&self.flight);
    }
}

/// How far a reader may see.
fn visible(progress: &Progress, held: bool) -> u64 {
    let Some(head) = &progress.head else { return 0 };
    let proven = matches!(progress.end, Some(End::Proven));
    if held && !proven { progress.have.min(head.total.saturating_sub(HOLD_BACK)) } else { progress.have }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn repo(name: &str) -> Repo {
        Repo::new("harbor.example.com".parse().unwrap(), name.parse().unwrap())
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn the_end_is_held_back_until_it_is_proven() {
        let check = |have: u64, end: Option<End>, held: bool, expected: u64| {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let head = Some(Head { total: 100_000, file });
            assert_eq!(visible(&Progress { head, have, end }, held), expected);
        };
        check(10_000, None, true, 10_000);
        check(100_000, None, true, 100_000 - HOLD_BACK);
        check(100_000, None, false, 100_000);
        check(100_000, Some(End::Proven), true, 100_000);
        check(100_000, Some(End::Failed(Error::Mismatch)), true, 100_000 - HOLD_BACK);
        assert_eq!(visible(&Progress::default(), true), 0);
    }

    #[test]
    fn only_who_is_granted_the_digest_may_join() {
        let check = |public: bool, origin: &str, asks: &str, granted: bool, joins: bool| {
            let flights = Flights::new();
            let lead = flights.enter(digest("x"), &repo(origin), public, false);
            assert!(matches!(lead, Entry::Lead(..)));
            let joined = matches!(flights.enter(digest("x"), &repo(asks), false, granted), Entry::Join(_));
            assert_eq!(joined, joins, "{public} {origin} {asks} {granted}");
        };
        check(false, "a/private", "a/private", false, true);
        check(false, "a/private", "b/other", false, false);
        check(false, "a/private", "b/other", true, true);
        check(true, "a/public", "b/other", false, true);
    }

    #[tokio::test]
    async fn flights_without_readers_are_bounded() {
        let flights = Flights::new();
        let mut under_way = Vec::new();
        for number in 0..=UNATTENDED_MAX {
            let Entry::Lead(flight, reader) =
                flights.enter(digest(&number.to_string()), &repo("a/b"), true, true)
            else {
                panic!("nobody else asked for it")
            };
            drop(reader);
            under_way.push(flight);
        }
        let last = under_way.pop().unwrap();
        timeout(Duration::from_secs(5), last.abandoned()).await.expect("one too many is stopped");
        assert!(timeout(Duration::ZERO, under_way[0].abandoned()).await.is_err());
    }

    #[tokio::test]
    async fn who_joins_a_flight_that_is_stopping_waits_for_its_end() {
        let flights = Flights::new();
        let enter = || flights.enter(digest("x"), &repo("a/b"), true, true);
        let Entry::Lead(flight, mut first) = enter() else { panic!("nobody else asked for it") };
        flight.announce(Head { total: 1 << 20, file: Arc::new(tempfile::tempfile().unwrap()) }, 10);
        assert!(first.head().await.unwrap().is_some());
        flights.abandon_all();
        let Entry::Join(mut late) = enter() else { panic!("it is still there") };
        assert!(timeout(Duration::ZERO, late.head()).await.is_err());
        flight.end(End::Failed(Error::GivenUp));
        assert!(matches!(late.head().await, Err(Error::GivenUp)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_without_progress_is_cut() {
        let flights = Flights::new();
        let Entry::Lead(flight, mut reader) = flights.enter(digest("x"), &repo("a/b"), true, true) else {
            panic!("nobody else asked for it")
        };
        flight.announce(Head { total: 1 << 20, file: Arc::new(tempfile::tempfile().unwrap()) }, 10);
        assert_eq!(reader.beyond(0, true).await.unwrap(), 10);
        assert!(matches!(reader.beyond(10, true).await, Err(Error::Stalled(_))));
    }
}
