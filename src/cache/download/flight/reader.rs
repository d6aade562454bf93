//! One request that follows a flight: what it may read by now, and when there is more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::progress::{End, Progress};
use super::{Flight, Flights};
use crate::cache::download::coverage::Taken;
use crate::cache::download::positions::Place;
use crate::cache::error::Error;
use crate::context::RequestContext;
use crate::oci::Repo;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::store::BlobFile;
use crate::telemetry::metrics::Source;

/// A reader that sees no progress for so long is cut, so that its client can resume or fall back.
pub(super) const STALL: Duration = Duration::from_secs(20);

/// One request that follows a flight.
pub(in crate::cache) struct Reader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    place: Arc<Place>,
    progress: watch::Receiver<Progress>,
    /// Whether the flight had nothing to do before this reader came.
    moved_nothing: bool,
}

impl Reader {
    /// Follows `flight` from `place` on.
    pub(super) fn new(flights: &Arc<Flights>, flight: &Arc<Flight>, place: Arc<Place>) -> Self {
        let (flights, flight) = (Arc::clone(flights), Arc::clone(flight));
        let (progress, moved_nothing) = (flight.subscribe(), flight.is_idle());
        Self { flights, flight, place, progress, moved_nothing }
    }

    /// The repository whose upstream the flight asks.
    pub(in crate::cache) fn origin(&self) -> &Repo {
        self.flight.origin()
    }

    /// Whether the flight is as much `repo`'s as anybody's: begun for it, or for everybody.
    pub(in crate::cache) fn is_its_own(&self, repo: &Repo) -> bool {
        self.flight.is_public() || self.flight.origin() == repo
    }

    /// Whether a fallback has sent some of it.
    pub(in crate::cache) fn is_by_fallback(&self) -> bool {
        self.flight.word().is_by_fallback()
    }

    /// Where the request that began the flight went on to.
    pub(in crate::cache) fn context(&self) -> &RequestContext {
        self.flight.context()
    }

    /// Waits for upstream's answer. None: the content is already stored, look again.
    ///
    /// A flight that was stopped just before this reader came has nothing to say but its end.
    pub(in crate::cache) async fn file(&mut self) -> Result<Option<BlobFile>, Error> {
        let is_stopping = self.flight.is_stopping();
        let answered =
            |progress: &Progress| (progress.file().is_some() && !is_stopping) || progress.end().is_some();
        let progress = self.progress.wait_for(answered).await.map_err(|_| Error::GivenUp)?;
        match (progress.file(), progress.end()) {
            (_, Some(End::Failed(error))) => Err(error.clone()),
            (Some(file), _) => Ok(Some(file.clone())),
            (None, _) => Ok(None),
        }
    }

    /// How large the content is, if that is known by now.
    pub(in crate::cache) fn total(&self) -> Option<u64> {
        self.progress.borrow().total()
    }

    /// How large the content is, with the file of that size, if that is known by now.
    pub(in crate::cache) fn known(&self) -> Option<(u64, BlobFile)> {
        self.progress.borrow().known()
    }

    /// Waits until it is known how large the content is, and says it with the file; nothing if the flight ends before.
    pub(in crate::cache) async fn measured(&mut self) -> Option<(u64, BlobFile)> {
        let is_known = |progress: &Progress| progress.total().is_some() || progress.end().is_some();
        self.progress.wait_for(is_known).await.ok()?.known()
    }

    /// How `parts` are come by, by a reader that has just joined; what is open in them is still to be proven.
    pub(in crate::cache) fn source(&self, parts: &[Part]) -> Source {
        let has = |part: &Part| !part.is_open && self.has(part.span);
        if !parts.is_empty() && parts.iter().all(has) {
            Source::Hit
        } else if self.moved_nothing {
            Source::Miss
        } else {
            Source::Join
        }
    }

    /// Whether every byte of `span` can be read.
    pub(in crate::cache) fn has(&self, span: Span) -> bool {
        self.progress.borrow().have().contains(span)
    }

    /// Keeps account of what readers have taken of this content.
    pub(in crate::cache) fn taken(&self) -> Taken {
        self.flight.taken()
    }

    /// Asks for these parts of a content of `total` bytes, if it came for several ranges; for none if they are refused.
    pub(in crate::cache) fn decide(&self, parts: &[Part], total: u64) {
        if self.place.is_undecided() {
            self.flight.decide(&self.place, parts, total);
        }
    }

    /// Begins with another of them. What it stands before may be far from all that is under way.
    pub(in crate::cache) fn turn_to(&self, part: usize, position: u64) {
        self.place.turn_to(part);
        self.place.go_to(position);
        self.flight.wake();
    }

    /// Up to where there is something to read from `position` on; `held` as for [`Reader::beyond`].
    pub(in crate::cache) fn there(&mut self, position: u64, held: bool) -> u64 {
        self.place.go_to(position);
        self.progress.borrow_and_update().visible(position, held)
    }

    /// Waits until there is something to read beyond `position`, and says up to where; `position` itself if that turns
    /// out to be the end of a content whose size was not known. `held`: the end must wait for the proof.
    pub(in crate::cache) async fn beyond(&mut self, position: u64, held: bool) -> Result<u64, Error> {
        self.place.go_to(position);
        let (mut nearest, mut deadline) = (None, Instant::now() + STALL);
        loop {
            {
                let progress = self.progress.borrow_and_update();
                let visible = progress.visible(position, held);
                if visible > position {
                    return Ok(visible);
                }
                match progress.end() {
                    Some(End::Failed(error)) => return Err(error.clone()),
                    Some(End::Proven) if progress.total() == Some(position) => return Ok(position),
                    Some(End::Proven | End::Landed | End::Left) => return Err(Error::GivenUp),
                    None => {}
                }
                // What comes for others is no progress here.
                let near = Some(progress.toward(position, held));
                if near != nearest {
                    (nearest, deadline) = (near, Instant::now() + STALL);
                }
            }
            match timeout_at(deadline, self.progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::GivenUp),
                Err(_) => return Err(Error::Stalled(STALL)),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.flights.reader_left(&self.flight, &self.place);
    }
}
