//! Flights: one for each digest and registry. A flight is a download and the requests that read along with it.
//!
//! What one registry sends is its own until the digest is verified: a registry that drips, stalls or lies delays and
//! misleads no other's clients, and what registries share is what is stored. Within a registry a private flight is open
//! to the repository that it is for, to those that have a grant, and to those for which the registry has just made the
//! same [`Claim`]. These are granted the content when it is stored with the size that was claimed.
//!
//! A [`Flight`] is a task of its own (see [`super::downloader`]), which announces which pieces are there. A
//! [`FlightReader`] follows at its own pace from the file and holds nothing up. The flight knows where each reader is,
//! and fetches that first (see [`super::schedule`]). Nothing here moves bytes.
//!
//! What a reader may see is everything that is written, but for one thing: a reader that asked for the content to its
//! end never gets the last [`HOLD_BACK`] bytes before the digest is verified. So no client ever holds a complete body
//! that is wrong. While the size is unknown, these are the last bytes that have come. Of a response that calls itself a
//! page no reader gets a byte before.
//!
//! A flight of which only parts were asked for ends when they are there and nobody has asked for more for a while. Then
//! they are read from the partial file, without a flight, by the repository that they came for (see
//! [`store::Resumable`](crate::store::Resumable)). For another repository the registry must first say that it may have them. What
//! clients have read of a content is remembered longer than a flight: it decides whether all of it is worth fetching.
//!
//! The table has one lock, which is taken for a look-up or a count and never across an await.

mod progress;
mod reader;
mod sharing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use lru::LruCache;
use tokio::sync::{Notify, watch};

pub(super) use self::progress::FlightEnd;
use self::progress::FlightProgress;
pub(in crate::cache) use self::progress::HOLD_BACK;
pub(in crate::cache) use self::reader::FlightReader;
use self::sharing::Sharing;
use super::coverage::BytesRead;
use super::cursors::{Cursor, Cursors};
use super::schedule::Need;
use crate::bounded;
use crate::cache::error::Error;
use crate::cache::fairness::{self, UNATTENDED_MAX};
use crate::context::RequestContext;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Digest, Range, Ranges, Repo};
use crate::shares::{Owner, Permit, Shares};
use crate::store::{BlobFile, PartialKey, RangeSet};
use crate::sync::lock;
use crate::upstream::Claim;

/// Contents for which it is remembered what clients have read of them.
const BYTES_READ_MAX: usize = 1024;

/// One download of one digest from one registry.
pub(in crate::cache) struct Flight {
    key: PartialKey,
    /// The repository for which upstream is asked.
    origin: Repo,
    /// Whether upstream is asked without a credential: then every repository of the registry may read along.
    is_public: bool,
    /// Who sends the content, and which other repositories read along by a claim.
    sharing: Sharing,
    /// The context with which upstream is asked: that of the request that began the flight.
    context: RequestContext,
    progress: watch::Sender<FlightProgress>,
    readers: AtomicUsize,
    cursors: Mutex<Cursors>,
    bytes_read: BytesRead,
    /// Tells the task that readers came, left or moved.
    wake: Notify,
    /// Everything was asked for, so the verification is worth its hashing.
    is_whole: AtomicBool,
    /// It has a slot, and goes on when its readers leave.
    has_slot: AtomicBool,
    /// It has no connection: it waits a while for more to do.
    is_idle: AtomicBool,
    /// It was told to stop. Set under the lock of the table, so that later readers know.
    is_stopping: AtomicBool,
    abandoned: Notify,
}

impl Flight {
    fn new(
        key: PartialKey,
        origin: Repo,
        is_public: bool,
        context: RequestContext,
        bytes_read: BytesRead,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            origin,
            is_public,
            sharing: Sharing::default(),
            context,
            progress: watch::Sender::new(FlightProgress::default()),
            readers: AtomicUsize::new(0),
            cursors: Mutex::default(),
            bytes_read,
            wake: Notify::new(),
            is_whole: AtomicBool::new(false),
            has_slot: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            abandoned: Notify::new(),
        })
    }

    /// The digest of the content.
    pub(super) fn digest(&self) -> &Digest {
        &self.key.digest
    }

    /// The key of the flight: the registry and the digest.
    pub(super) fn key(&self) -> &PartialKey {
        &self.key
    }

    /// The repository for which upstream is asked.
    pub(super) fn origin(&self) -> &Repo {
        &self.origin
    }

    /// Whether upstream is asked without a credential: then every repository of the registry may read along.
    pub(super) fn is_public(&self) -> bool {
        self.is_public
    }

    /// Who sends the content, and which other repositories read along by a claim.
    pub(super) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// The context with which upstream is asked: that of the request that began the flight.
    pub(super) fn context(&self) -> &RequestContext {
        &self.context
    }

    fn may_be_read_by(&self, repo: &Repo, granted: bool) -> bool {
        granted || self.is_public || self.origin == *repo
    }

    /// Adds a reader.
    fn enter(&self, asked: Option<&Ranges>) -> Arc<Cursor> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        let cursor = lock(&self.cursors).enter(asked);
        self.wake();
        cursor
    }

    /// A reader of several ranges chooses these parts of a content of `total` bytes.
    fn choose_parts(&self, cursor: &Cursor, parts: &[Part], total: u64) {
        lock(&self.cursors).choose_parts(cursor, parts, total);
        self.wake();
    }

    /// Tells the task that a reader came, left or moved.
    fn wake(&self) {
        self.wake.notify_one();
    }

    fn subscribe(&self) -> watch::Receiver<FlightProgress> {
        self.progress.subscribe()
    }

    fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    /// Upstream has answered: `have` can be read at once. `total` is the size of the content, if it is known.
    pub(super) fn announce(&self, file: BlobFile, total: Option<u64>, have: RangeSet) {
        self.progress.send_modify(|progress| progress.announce(file, total, have));
    }

    /// The response calls itself a page: no reader may see any of it before it is verified.
    pub(super) fn mark_page(&self) {
        self.progress.send_modify(FlightProgress::mark_page);
    }

    /// Whether the response calls itself a page.
    pub(super) fn is_page(&self) -> bool {
        self.progress.borrow().is_page()
    }

    /// The bytes of `span` can be read from now on, too.
    pub(super) fn advance(&self, span: Span) {
        self.progress.send_modify(|progress| progress.advance(span));
    }

    /// Bytes from the start that are hashed by now: the verification is on its way.
    pub(super) fn set_hashed(&self, hashed: u64) {
        self.progress.send_modify(|progress| progress.set_hashed(hashed));
    }

    /// Ends the flight: nothing changes any more.
    pub(super) fn end(&self, end: FlightEnd) {
        self.progress.send_modify(|progress| progress.set_end(end));
    }

    /// Whether readers have been told that there is a response.
    pub(super) fn is_announced(&self) -> bool {
        self.progress.borrow().file().is_some()
    }

    /// Takes the ranges that were asked for since the last call.
    pub(super) fn take_asked(&self) -> Vec<Option<Range>> {
        lock(&self.cursors).take_asked()
    }

    /// What the readers still want of a content of `total` bytes, the most urgent first.
    pub(super) fn needs(&self, total: u64) -> Vec<Need> {
        let progress = self.progress.borrow();
        lock(&self.cursors).needs(total, progress.have())
    }

    /// Resolves when readers have come, left or moved.
    pub(super) async fn readers_changed(&self) {
        self.wake.notified().await;
    }

    /// The account of what clients have read of this content.
    fn bytes_read(&self) -> BytesRead {
        self.bytes_read.clone()
    }

    /// Bytes that clients have read of this content.
    pub(super) fn count_read(&self) -> u64 {
        self.bytes_read.bytes()
    }

    /// Notes that all of the content is wanted.
    pub(super) fn want_whole(&self) {
        self.is_whole.store(true, Ordering::Release);
    }

    /// Whether all of the content is wanted.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    /// Sets whether the flight has no connection at the moment.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }

    /// The owner of the flight in shared limits: its registry and the client that began it.
    pub(super) fn owner(&self) -> Owner {
        Owner::new(&self.origin.registry, self.context.client())
    }

    /// Bytes that can be read by now.
    pub(super) fn bytes(&self) -> u64 {
        self.progress.borrow().have().bytes()
    }

    /// Notes that the flight has a slot.
    pub(super) fn mark_slot(&self) {
        self.has_slot.store(true, Ordering::Relaxed);
    }

    /// Whether the flight was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Resolves when the flight is told to stop.
    pub(super) async fn abandoned(&self) {
        while !self.is_stopping() {
            self.abandoned.notified().await;
        }
    }

    fn abandon(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.abandoned.notify_one();
    }

    /// Whether the flight has connections and no reader.
    fn is_unattended(&self) -> bool {
        let is_idle = self.is_idle() || self.is_stopping.load(Ordering::Relaxed);
        self.readers.load(Ordering::Relaxed) == 0 && !is_idle
    }
}

/// The flights under way.
pub(in crate::cache) struct Flights {
    table: Mutex<HashMap<PartialKey, Arc<Flight>>>,
    bytes_read: Mutex<LruCache<PartialKey, BytesRead>>,
    /// One slot for each flight that moves bytes. The others wait in their requests' own time.
    slots: Shares,
}

/// A request to read a content along with its flight.
pub(in crate::cache) struct FlightRequest<'a> {
    /// The repository that the content was asked for in.
    pub repo: &'a Repo,
    /// Whether the repository has a grant for the content.
    pub granted: bool,
    /// The claim that the registry has just made for this repository.
    pub claim: Option<Claim>,
    /// The ranges that are asked for.
    pub asked: Option<&'a Ranges>,
    /// The context with which upstream would be asked.
    pub context: &'a RequestContext,
}

/// The answer to a [`FlightRequest`].
pub(in crate::cache) enum FlightEntry {
    /// There was no flight: this is one, and the caller must run it.
    Lead(Arc<Flight>, FlightReader),
    /// A flight is under way, and this request may read along.
    Follow(FlightReader),
    /// A flight is under way with a credential that says nothing about this repository: it needs a grant or a claim.
    NeedsGrant,
    /// A flight is under way, and this request must not wait for it: the claim does not open it, or it may itself be
    /// waiting for the berth that has passed this request on (see [`RequestContext`]).
    Separate,
}

impl Flights {
    pub(super) fn new() -> Arc<Self> {
        let bytes_read = bounded::lru(NonZeroUsize::new(BYTES_READ_MAX).expect("not zero"));
        Arc::new(Self {
            table: Mutex::default(),
            bytes_read: Mutex::new(bytes_read),
            slots: Shares::new(fairness::FLIGHTS),
        })
    }

    /// Waits for a slot: each flight that moves bytes has one.
    pub(super) async fn acquire_slot(&self, flight: &Flight) -> Result<Permit, Error> {
        self.slots.acquire(flight.owner(), 1).await.map_err(|_| Error::Busy)
    }

    /// Joins the flight of `key`, or makes one. A `public` one is asked for without a credential.
    pub(in crate::cache) fn enter(
        self: &Arc<Self>,
        key: &PartialKey,
        public: bool,
        request: &FlightRequest<'_>,
    ) -> FlightEntry {
        let FlightRequest { repo, granted, claim, asked, context } = *request;
        let mut table = self.lock();
        if let Some(flight) = table.get(key) {
            if flight.context.level() < context.hops() {
                return FlightEntry::Separate;
            }
            if flight.may_be_read_by(repo, granted) {
                return FlightEntry::Follow(self.reader(flight, asked));
            }
            return match claim {
                None => FlightEntry::NeedsGrant,
                Some(claim) if flight.sharing.admits(repo, claim) => {
                    FlightEntry::Follow(self.reader(flight, asked))
                }
                Some(_) => FlightEntry::Separate,
            };
        }
        let flight = Flight::new(key.clone(), repo.clone(), public, context.clone(), self.bytes_read(key));
        table.insert(key.clone(), Arc::clone(&flight));
        let reader = self.reader(&flight, asked);
        FlightEntry::Lead(flight, reader)
    }

    /// The account of what clients have read of a content.
    pub(in crate::cache) fn bytes_read(&self, key: &PartialKey) -> BytesRead {
        lock(&self.bytes_read).get_or_insert(key.clone(), BytesRead::default).clone()
    }

    /// The size of a content, if a flight brings it and `repo` may know. The inner `None`: upstream has not said it.
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

    /// Whether a flight is under way for `key`.
    pub(in crate::cache) fn is_under_way(&self, key: &PartialKey) -> bool {
        self.lock().contains_key(key)
    }

    /// Whether a flight is under way for `key` that takes a credential.
    pub(in crate::cache) fn is_private(&self, key: &PartialKey) -> bool {
        self.lock().get(key).is_some_and(|flight| !flight.is_public)
    }

    /// Puts a new flight for the second attempt in the place of `flight`, whose readers are lost.
    pub(super) fn replace(&self, flight: &Arc<Flight>) -> Arc<Flight> {
        let (origin, context) = (flight.origin.clone(), flight.context.clone());
        let next = Flight::new(flight.key.clone(), origin, flight.is_public, context, flight.bytes_read());
        self.lock().insert(flight.key.clone(), Arc::clone(&next));
        next
    }

    /// Removes a flight that has ended from the table.
    pub(super) fn remove(&self, flight: &Arc<Flight>) {
        let mut table = self.lock();
        if table.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            table.remove(&flight.key);
        }
    }

    /// Removes a flight from the table, unless a reader has asked for more just now.
    pub(super) fn remove_if_idle(&self, flight: &Arc<Flight>) -> bool {
        let mut table = self.lock();
        if !lock(&flight.cursors).are_all_taken() {
            return false;
        }
        if table.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            table.remove(&flight.key);
        }
        true
    }

    /// Puts a flight back among those that wait for a slot.
    pub(super) fn requeue(&self, flight: &Arc<Flight>) {
        let _table = self.lock();
        flight.has_slot.store(false, Ordering::Relaxed);
        if flight.readers.load(Ordering::Relaxed) == 0 {
            flight.abandon();
        }
    }

    /// Tells every flight to stop; the partial files stay. Returns how many there were.
    pub(in crate::cache) fn abandon_all(&self) -> usize {
        let table = self.lock();
        table.values().for_each(|flight| flight.abandon());
        table.len()
    }

    fn reader(self: &Arc<Self>, flight: &Arc<Flight>, asked: Option<&Ranges>) -> FlightReader {
        let cursor = flight.enter(asked);
        FlightReader::new(self, flight, cursor)
    }

    /// Removes a reader. A flight without readers goes on, unless there are too many of them.
    fn reader_left(&self, flight: &Arc<Flight>, cursor: &Arc<Cursor>) {
        lock(&flight.cursors).leave(cursor);
        flight.wake();
        let table = self.lock();
        if flight.readers.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if !flight.has_slot.load(Ordering::Relaxed) {
            // It has cost upstream nothing yet.
            return flight.abandon();
        }
        // This flight comes first: among equals it is the one to end.
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
