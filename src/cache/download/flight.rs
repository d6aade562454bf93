//! One flight per digest and registry: who is moving bytes from upstream to disk, and who is reading along.
//!
//! What one registry sends is its own until the digest is proven: a registry that drips, stalls or lies delays and misleads
//! no other's clients, and what is shared among registries is what is stored. Within a registry a private flight is open to
//! the repository that it is for, to those that have a grant, and to those for which the registry has just claimed the
//! same, by [`Claim`]: these are granted it when it has landed with the size that was claimed.
//!
//! A [`Flight`] is a task of its own (see [`super::downloader`]) that announces which pieces there are. A [`Reader`]
//! follows at its own pace from the file and holds nothing up; where it stands is known to the flight, which
//! fetches that first (see [`super::schedule`]). Nothing here moves bytes.
//!
//! What a reader may see: everything that is written, but a reader that asked for the content to its end
//! never gets the last [`HOLD_BACK`] bytes before the digest is proven. So no client ever holds a complete
//! body that is wrong. Where nobody knows how long it is, these are the last bytes that have come. Of what calls itself a
//! page nobody gets a byte before.
//!
//! A flight of which only parts were asked ends when they are there and nobody has asked for more for a while.
//! Then they are read from what is left of it, without a flight, by the repository that they came for (see
//! [`store::Left`](crate::store::Left)); of another repository the registry must first say that it may have them.
//! What readers have taken of a content is remembered longer than a flight: it decides whether all of it is
//! worth fetching.
//!
//! The table has one lock, taken for a look-up or a count and never across an await.

mod progress;
mod reader;
#[cfg(test)]
mod tests;
mod word;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use lru::LruCache;
use tokio::sync::{Notify, watch};

use self::progress::Progress;
pub(in crate::cache) use self::progress::{End, HOLD_BACK};
pub(in crate::cache) use self::reader::Reader;
use self::word::Word;
use super::coverage::Taken;
use super::positions::{Place, Places};
use super::schedule::Need;
use crate::bounded;
use crate::cache::error::Error;
use crate::cache::fairness::{self, UNATTENDED_MAX};
use crate::context::RequestContext;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Digest, Range, Ranges, Repo};
use crate::shares::{Owner, Permit, Shares};
use crate::store::{BlobFile, PartialKey, Pieces};
use crate::sync::lock;
use crate::upstream::Claim;

/// Contents of which it is remembered what readers took.
const TAKEN_MAX: usize = 1024;

/// One transfer of one digest from one registry.
pub(in crate::cache) struct Flight {
    key: PartialKey,
    /// The repository whose upstream is asked.
    origin: Repo,
    /// Whether it is asked without a credential: then the whole registry may read along.
    is_public: bool,
    /// Who sends it, and for whom else that was claimed.
    word: Word,
    /// Where the request that began it has come from.
    context: RequestContext,
    progress: watch::Sender<Progress>,
    readers: AtomicUsize,
    places: Mutex<Places>,
    taken: Taken,
    /// Tells the task that readers came, or left.
    wake: Notify,
    /// Everything was asked for, so that the proof is worth its hashing.
    is_whole: AtomicBool,
    /// It has a seat, and goes on when its readers leave.
    is_seated: AtomicBool,
    /// Nothing is under way: it merely waits a while for more to do.
    is_idle: AtomicBool,
    /// Asked to stop. Set under the table's lock, so who joins later knows.
    is_stopping: AtomicBool,
    abandoned: Notify,
}

impl Flight {
    fn new(
        key: PartialKey,
        origin: Repo,
        is_public: bool,
        context: RequestContext,
        taken: Taken,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            origin,
            is_public,
            word: Word::default(),
            context,
            progress: watch::Sender::new(Progress::default()),
            readers: AtomicUsize::new(0),
            places: Mutex::default(),
            taken,
            wake: Notify::new(),
            is_whole: AtomicBool::new(false),
            is_seated: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            abandoned: Notify::new(),
        })
    }

    /// What it brings, by the word of whoever sends it.
    pub(in crate::cache) fn digest(&self) -> &Digest {
        &self.key.digest
    }

    /// What it is as a transfer of its registry.
    pub(in crate::cache) fn key(&self) -> &PartialKey {
        &self.key
    }

    /// The repository whose upstream is asked.
    pub(in crate::cache) fn origin(&self) -> &Repo {
        &self.origin
    }

    /// Whether it is asked without a credential: then the whole registry may read along.
    pub(in crate::cache) fn is_public(&self) -> bool {
        self.is_public
    }

    /// Who sends it, and for whom else that was claimed.
    pub(in crate::cache) fn word(&self) -> &Word {
        &self.word
    }

    /// Where the request that began it has come from.
    pub(in crate::cache) fn context(&self) -> &RequestContext {
        &self.context
    }

    fn may_be_read_by(&self, repo: &Repo, granted: bool) -> bool {
        granted || self.is_public || self.origin == *repo
    }

    /// A reader has come.
    fn enter(&self, asked: Option<&Ranges>) -> Arc<Place> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        let place = lock(&self.places).enter(asked);
        self.wake();
        place
    }

    /// A reader of several ranges says which parts of `total` bytes it reads.
    fn decide(&self, place: &Place, parts: &[Part], total: u64) {
        lock(&self.places).decide(place, parts, total);
        self.wake();
    }

    /// Tells the task that something has changed for a reader.
    fn wake(&self) {
        self.wake.notify_one();
    }

    fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    /// Upstream has answered; what there is can be read at once. `total`: how large it will be, if that is known.
    pub(in crate::cache) fn announce(&self, file: BlobFile, total: Option<u64>, have: Pieces) {
        self.progress.send_modify(|progress| progress.announce(file, total, have));
    }

    /// What upstream sends calls itself a page: nobody is to see any of it before it is proven.
    pub(in crate::cache) fn be_page(&self) {
        self.progress.send_modify(Progress::be_page);
    }

    /// Whether it calls itself a page.
    pub(in crate::cache) fn is_page(&self) -> bool {
        self.progress.borrow().is_page()
    }

    /// These bytes can be read, too.
    pub(in crate::cache) fn advance(&self, span: Span) {
        self.progress.send_modify(|progress| progress.advance(span));
    }

    /// The proof is on its way.
    pub(in crate::cache) fn hashed(&self, hashed: u64) {
        self.progress.send_modify(|progress| progress.set_hashed(hashed));
    }

    /// Nothing changes any more.
    pub(in crate::cache) fn end(&self, end: End) {
        self.progress.send_modify(|progress| progress.set_end(end));
    }

    /// Whether readers have been told that there is an answer.
    pub(in crate::cache) fn is_announced(&self) -> bool {
        self.progress.borrow().file().is_some()
    }

    /// What was asked since the last call.
    pub(in crate::cache) fn asked(&self) -> Vec<Option<Range>> {
        lock(&self.places).take_asked()
    }

    /// What its readers still want of `total` bytes, the most urgent first.
    pub(in crate::cache) fn needs(&self, total: u64) -> Vec<Need> {
        let progress = self.progress.borrow();
        lock(&self.places).needs(total, progress.have())
    }

    /// Resolves when readers have come or left.
    pub(in crate::cache) async fn stirred(&self) {
        self.wake.notified().await;
    }

    /// Keeps account of what readers have taken of this content.
    fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Bytes that readers have taken of this content.
    pub(in crate::cache) fn taken_bytes(&self) -> u64 {
        self.taken.bytes()
    }

    /// Everything is wanted now.
    pub(in crate::cache) fn want_whole(&self) {
        self.is_whole.store(true, Ordering::Release);
    }

    /// Whether everything is wanted.
    pub(in crate::cache) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    /// Whether it is moving nothing at the moment.
    pub(in crate::cache) fn set_idle(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }

    /// For whom it is, at which registry.
    pub(in crate::cache) fn owner(&self) -> Owner {
        Owner::new(&self.origin.registry, self.context.client())
    }

    /// Bytes that are here.
    pub(in crate::cache) fn bytes(&self) -> u64 {
        self.progress.borrow().have().bytes()
    }

    /// It has a seat from here on.
    pub(in crate::cache) fn be_seated(&self) {
        self.is_seated.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub(in crate::cache) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Resolves when the flight should stop for want of readers.
    pub(in crate::cache) async fn abandoned(&self) {
        while !self.is_stopping() {
            self.abandoned.notified().await;
        }
    }

    fn abandon(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.abandoned.notify_one();
    }

    /// Whether it goes on although nobody reads it.
    fn is_unattended(&self) -> bool {
        let is_idle = self.is_idle() || self.is_stopping.load(Ordering::Relaxed);
        self.readers.load(Ordering::Relaxed) == 0 && !is_idle
    }
}

/// The flights under way.
pub(in crate::cache) struct Flights {
    table: Mutex<HashMap<PartialKey, Arc<Flight>>>,
    taken: Mutex<LruCache<PartialKey, Taken>>,
    /// Seats, one for each flight that moves bytes; the rest wait in their requests' own time.
    seats: Shares,
}

/// Who asks for a digest's flight.
pub(in crate::cache) struct Asker<'a> {
    pub repo: &'a Repo,
    /// Whether the repository may have this content whoever brings it.
    pub granted: bool,
    /// What its upstream has just said of it there.
    pub claim: Option<Claim>,
    /// The ranges that are asked for.
    pub asked: Option<&'a Ranges>,
    /// Where the request goes on to, which has come this way.
    pub context: &'a RequestContext,
}

/// What came of asking for a digest's flight.
pub(in crate::cache) enum Entry {
    /// There was none: the caller must begin to fill this one.
    Lead(Arc<Flight>, Reader),
    /// One is under way and may be read.
    Join(Reader),
    /// One is under way with a credential that says nothing about the caller's repository.
    Foreign,
    /// One is under way that may itself be waiting for whoever has passed this request on (see [`RequestContext`]).
    Apart,
}

impl Flights {
    pub(in crate::cache) fn new() -> Arc<Self> {
        let taken = bounded::lru(NonZeroUsize::new(TAKEN_MAX).expect("not zero"));
        Arc::new(Self {
            table: Mutex::default(),
            taken: Mutex::new(taken),
            seats: Shares::new(fairness::FLIGHTS),
        })
    }

    /// Waits for a seat: each flight that moves bytes has one.
    pub(in crate::cache) async fn seat(&self, flight: &Flight) -> Result<Permit, Error> {
        self.seats.acquire(flight.owner(), 1).await.map_err(|_| Error::Busy)
    }

    /// Joins the flight of `key`, or makes one. `public`: without a credential.
    pub(in crate::cache) fn enter(
        self: &Arc<Self>,
        key: &PartialKey,
        public: bool,
        asker: &Asker<'_>,
    ) -> Entry {
        let Asker { repo, granted, claim, asked, context } = *asker;
        let mut table = self.lock();
        if let Some(flight) = table.get(key) {
            if flight.context.level() < context.hops() {
                return Entry::Apart;
            }
            if flight.may_be_read_by(repo, granted) {
                return Entry::Join(self.reader(flight, asked));
            }
            return match claim {
                None => Entry::Foreign,
                Some(claim) if flight.word.opens_to(repo, claim) => Entry::Join(self.reader(flight, asked)),
                Some(_) => Entry::Apart,
            };
        }
        let flight = Flight::new(key.clone(), repo.clone(), public, context.clone(), self.taken(key));
        table.insert(key.clone(), Arc::clone(&flight));
        let reader = self.reader(&flight, asked);
        Entry::Lead(flight, reader)
    }

    /// What readers have taken of a content.
    pub(in crate::cache) fn taken(&self, key: &PartialKey) -> Taken {
        lock(&self.taken).get_or_insert(key.clone(), Taken::default).clone()
    }

    /// Whether a flight brings this content and `repo` may know; then its size, if upstream has said that.
    pub(in crate::cache) fn total(
        &self,
        key: &PartialKey,
        repo: &Repo,
        granted: bool,
    ) -> Option<Option<u64>> {
        let flight = self.lock().get(key).cloned()?;
        let progress = flight.progress.borrow();
        let is_told = progress.file().is_some() && flight.may_be_read_by(repo, granted);
        is_told.then_some(progress.total())
    }

    /// Whether a flight brings this.
    pub(in crate::cache) fn is_under_way(&self, key: &PartialKey) -> bool {
        self.lock().contains_key(key)
    }

    /// Whether a flight brings this for one repository alone.
    pub(in crate::cache) fn is_private(&self, key: &PartialKey) -> bool {
        self.lock().get(key).is_some_and(|flight| !flight.is_public)
    }

    /// Puts a new flight, for a second try, in the place of `flight`, whose readers are lost.
    pub(in crate::cache) fn replace(&self, flight: &Arc<Flight>) -> Arc<Flight> {
        let (origin, context) = (flight.origin.clone(), flight.context.clone());
        let next = Flight::new(flight.key.clone(), origin, flight.is_public, context, flight.taken.clone());
        self.lock().insert(flight.key.clone(), Arc::clone(&next));
        next
    }

    /// Takes an ended flight out of the table.
    pub(in crate::cache) fn leave(&self, flight: &Arc<Flight>) {
        let mut table = self.lock();
        if table.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            table.remove(&flight.key);
        }
    }

    /// Takes a flight out of the table, unless somebody has asked for more just now.
    pub(in crate::cache) fn retire(&self, flight: &Arc<Flight>) -> bool {
        let mut table = self.lock();
        if !lock(&flight.places).are_heard_of() {
            return false;
        }
        if table.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            table.remove(&flight.key);
        }
        true
    }

    /// A flight goes back to those that wait for a seat.
    pub(in crate::cache) fn unseat(&self, flight: &Arc<Flight>) {
        let _table = self.lock();
        flight.is_seated.store(false, Ordering::Relaxed);
        if flight.readers.load(Ordering::Relaxed) == 0 {
            flight.abandon();
        }
    }

    /// Stops every flight; their partial files stay. Returns how many there were.
    pub(in crate::cache) fn abandon_all(&self) -> usize {
        let table = self.lock();
        table.values().for_each(|flight| flight.abandon());
        table.len()
    }

    fn reader(self: &Arc<Self>, flight: &Arc<Flight>, asked: Option<&Ranges>) -> Reader {
        let place = flight.enter(asked);
        Reader::new(self, flight, place)
    }

    /// A reader has left: a flight without readers goes on, unless too many do.
    fn reader_left(&self, flight: &Arc<Flight>, place: &Arc<Place>) {
        lock(&flight.places).leave(place);
        flight.wake();
        let table = self.lock();
        if flight.readers.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if !flight.is_seated.load(Ordering::Relaxed) {
            // It has cost nothing yet.
            return flight.abandon();
        }
        // The one that has been left first: among equals it is the one to end.
        let others = table.values().filter(|other| !Arc::ptr_eq(other, flight));
        let all = std::iter::once(flight).chain(others).filter(|flight| flight.is_unattended());
        if let Some(flight) = fairness::one_too_many(all, UNATTENDED_MAX, |flight| flight.owner()) {
            flight.abandon();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PartialKey, Arc<Flight>>> {
        lock(&self.table)
    }
}
