//! One request that follows a flight: what it may read by now, and when there is more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::progress::{FlightEnd, FlightProgress};
use super::{Flight, Flights};
use crate::cache::download::coverage::BytesRead;
use crate::cache::download::cursors::Cursor;
use crate::cache::error::Error;
use crate::context::RequestContext;
use crate::oci::Repo;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::store::BlobFile;
use crate::telemetry::metrics::Source;

/// Time without progress after which a reader is cut off, so that its client can resume or go elsewhere.
pub(super) const STALL: Duration = Duration::from_secs(20);

/// One request that follows a flight.
pub(in crate::cache) struct FlightReader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    cursor: Arc<Cursor>,
    progress: watch::Receiver<FlightProgress>,
    /// Whether the flight was idle when this reader came.
    moved_nothing: bool,
}

impl FlightReader {
    /// A reader that follows `flight`, with its `cursor` there.
    pub(super) fn new(flights: &Arc<Flights>, flight: &Arc<Flight>, cursor: Arc<Cursor>) -> Self {
        let (flights, flight) = (Arc::clone(flights), Arc::clone(flight));
        let (progress, moved_nothing) = (flight.subscribe(), flight.is_idle());
        Self { flights, flight, cursor, progress, moved_nothing }
    }

    /// The repository whose upstream the flight asks.
    pub(in crate::cache) fn origin(&self) -> &Repo {
        self.flight.origin()
    }

    /// Whether the flight was begun for `repo`, or is public and so open to every repository.
    pub(in crate::cache) fn is_its_own(&self, repo: &Repo) -> bool {
        self.flight.is_public() || self.flight.origin() == repo
    }

    /// Whether a fallback has sent some of the content.
    pub(in crate::cache) fn has_fallback(&self) -> bool {
        self.flight.sharing().has_fallback()
    }

    /// The context with which the flight asks upstream: that of the request that began it.
    pub(in crate::cache) fn context(&self) -> &RequestContext {
        self.flight.context()
    }

    /// Waits for the answer of upstream. `None`: the content is stored already, so the caller looks again.
    ///
    /// A flight that was told to stop just before this reader came answers with its end only.
    pub(in crate::cache) async fn wait_for_file(&mut self) -> Result<Option<BlobFile>, Error> {
        let is_stopping = self.flight.is_stopping();
        let answered = |progress: &FlightProgress| {
            (progress.file().is_some() && !is_stopping) || progress.end().is_some()
        };
        let progress = self.progress.wait_for(answered).await.map_err(|_| Error::GivenUp)?;
        match (progress.file(), progress.end()) {
            (_, Some(FlightEnd::Failed(error))) => Err(error.clone()),
            (Some(file), _) => Ok(Some(file.clone())),
            (None, _) => Ok(None),
        }
    }

    /// The size of the content in bytes, if it is known by now.
    pub(in crate::cache) fn total(&self) -> Option<u64> {
        self.progress.borrow().total()
    }

    /// The size of the content with the file of that size, if both are known by now.
    pub(in crate::cache) fn known(&self) -> Option<(u64, BlobFile)> {
        self.progress.borrow().known()
    }

    /// Waits until the size of the content is known, and returns it with the file. `None` if the flight ends before.
    pub(in crate::cache) async fn wait_for_total(&mut self) -> Option<(u64, BlobFile)> {
        let is_known = |progress: &FlightProgress| progress.total().is_some() || progress.end().is_some();
        self.progress.wait_for(is_known).await.ok()?.known()
    }

    /// The source of `parts` for a reader that has just joined. Open parts are not a hit: their end is still to be
    /// verified.
    pub(in crate::cache) fn source(&self, parts: &[Part]) -> Source {
        let has = |part: &Part| !part.is_open && self.has(part.span);
        if !parts.is_empty() && parts.iter().all(has) {
            Source::Hit
        } else if self.moved_nothing {
            Source::Miss
        } else {
            Source::Collapsed
        }
    }

    /// Whether every byte of `span` can be read.
    pub(in crate::cache) fn has(&self, span: Span) -> bool {
        self.progress.borrow().have().contains(span)
    }

    /// The account of what clients have read of this content.
    pub(in crate::cache) fn bytes_read(&self) -> BytesRead {
        self.flight.bytes_read()
    }

    /// Chooses these parts of a content of `total` bytes, if the request was for several ranges; an empty list if they
    /// were refused.
    pub(in crate::cache) fn choose_parts(&self, parts: &[Part], total: u64) {
        if self.cursor.is_undecided() {
            self.flight.choose_parts(&self.cursor, parts, total);
        }
    }

    /// Begins with another part, which may be far from everything that is being fetched.
    pub(in crate::cache) fn start_part(&self, part: usize, position: u64) {
        self.cursor.start_part(part);
        self.cursor.go_to(position);
        self.flight.wake();
    }

    /// The position up to which bytes can be read from `position` on; `held` as in [`FlightReader::wait_beyond`].
    pub(in crate::cache) fn readable_to(&mut self, position: u64, held: bool) -> u64 {
        self.cursor.go_to(position);
        self.progress.borrow_and_update().visible(position, held)
    }

    /// Waits until bytes beyond `position` can be read, and returns the position up to which they can. Returns
    /// `position` itself if that turns out to be the end of a content of unknown size. With `held`, the end waits for
    /// the verification.
    pub(in crate::cache) async fn wait_beyond(&mut self, position: u64, held: bool) -> Result<u64, Error> {
        self.cursor.go_to(position);
        let (mut nearest, mut deadline) = (None, Instant::now() + STALL);
        loop {
            {
                let progress = self.progress.borrow_and_update();
                let visible = progress.visible(position, held);
                if visible > position {
                    return Ok(visible);
                }
                match progress.end() {
                    Some(FlightEnd::Failed(error)) => return Err(error.clone()),
                    Some(FlightEnd::Verified) if progress.total() == Some(position) => return Ok(position),
                    Some(FlightEnd::Verified | FlightEnd::AlreadyStored | FlightEnd::PartialKept) => {
                        return Err(Error::GivenUp);
                    }
                    None => {}
                }
                // Bytes that come for other readers are no progress for this one.
                let near = Some(progress.nearness(position, held));
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

impl Drop for FlightReader {
    fn drop(&mut self) {
        self.flights.reader_left(&self.flight, &self.cursor);
    }
}
