//! Blobs: from disk, else along with a flight that is under way, else by a new one.
//!
//! A request for a blob goes through three steps, and goes through them again if what it waited for turns out not to be
//! for it. What is *stored* and granted is served. Else the request *joins* the flight that is under way. Else it
//! *leads* a new one. Where the disk or a limit is in the way of all three, the blob passes through unstored.
//!
//! This room holds the bytes on their way to a client ([`blob`]) and their memory ([`chunk`]). It uses downloads,
//! passthroughs, claims and the store; manifests use it for attestations, and the face for everything else.

pub(super) mod blob;
pub(super) mod chunk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use self::blob::Blob;
use super::claims::Claims;
use super::config::Complete;
use super::download::downloader::Downloader;
use super::download::flight::{Flight, FlightEntry, FlightReader, FlightRequest, Flights};
use super::error::Error;
use super::negative_cache::{Lookup, NegativeCache};
use super::oversized::OversizedImages;
use super::passthrough::{Passthrough, Passthroughs};
use super::upstreams::Upstreams;
use crate::context::RequestContext;
use crate::oci::ranges::{Part, Selection};
use crate::oci::{Digest, Ranges, Repo, Speaker};
use crate::store::{BlobFile, PartialKey, Store};
use crate::telemetry::metrics::Source;
use crate::upstream::{self, Claim, State, Upstream};

/// Times a request goes through the steps.
const LOOKS_MAX: usize = 4;
/// How long a reader waits for a flight of another repository to begin: a fallback may hold that up, which this reader
/// does not need.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the process waits for flights to store what they have.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Pause between two checks whether all flights have ended.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// The size of a blob, for a HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobSize {
    /// The size in bytes; `None` where upstream has the blob and does not say how large it is.
    pub bytes: Option<u64>,
    /// Who says so.
    pub speaker: Speaker,
}

/// Finds blobs under one configuration.
pub(super) struct BlobFinder {
    store: Store,
    upstreams: Arc<Upstreams>,
    negative: Arc<NegativeCache>,
    claims: Arc<Claims>,
    oversized: Arc<OversizedImages>,
    flights: Arc<Flights>,
    downloader: Arc<Downloader>,
    passthroughs: Arc<Passthroughs>,
}

/// What the first step found.
enum Stored {
    /// The blob is stored, and this repository may have it.
    Granted(Blob),
    /// The blob is stored, and has just been granted to this repository: look again.
    NowGranted,
    /// Nothing is stored that this repository may have as it is.
    No {
        /// Whether the repository has a grant for the content, whoever brings it.
        is_granted: bool,
    },
}

/// One request for a blob.
#[derive(Clone, Copy)]
struct BlobRequest<'a> {
    repo: &'a Repo,
    digest: &'a Digest,
    key: &'a PartialKey,
    asked: Option<&'a Ranges>,
}

impl BlobFinder {
    pub(super) fn new(
        store: &Store,
        upstreams: &Arc<Upstreams>,
        negative: &Arc<NegativeCache>,
        claims: &Arc<Claims>,
        oversized: &Arc<OversizedImages>,
        downloader: Downloader,
        passthroughs: Passthroughs,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            flights: Arc::clone(downloader.flights()),
            downloader: Arc::new(downloader),
            passthroughs: Arc::new(passthroughs),
        }
    }

    /// The same state under another configuration.
    pub(super) fn with(
        &self,
        upstreams: &Arc<Upstreams>,
        claims: &Arc<Claims>,
        oversized: &Arc<OversizedImages>,
        complete: Complete,
    ) -> Self {
        Self {
            store: self.store.clone(),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(&self.negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            flights: Arc::clone(&self.flights),
            downloader: Arc::new(self.downloader.with(complete)),
            passthroughs: Arc::clone(&self.passthroughs),
        }
    }

    /// A blob of `repo`, stored or not: a disk that is full, read-only or broken is no reason to answer with nothing,
    /// and neither is a budget.
    pub(super) async fn blob(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: Option<&Ranges>,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        match self.find(repo, digest, asked, context).await {
            Err(Error::Store(cause)) => {
                self.oversized.note_unstored(repo, digest, &cause);
                self.pass_through(repo, digest, context).await
            }
            other => other,
        }
    }

    /// A blob of `repo` by the three steps, as far as the store takes it.
    pub(super) async fn find(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: Option<&Ranges>,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let upstream = self.upstreams.of(repo)?;
        let key = &self.upstreams.key(repo, digest);
        let request = BlobRequest { repo, digest, key, asked };
        let mut claim = None;
        for _ in 0..LOOKS_MAX {
            let granted = match self.stored(request, context).await? {
                Stored::Granted(blob) => return Ok(blob),
                Stored::NowGranted => continue,
                Stored::No { is_granted } => is_granted,
            };
            if let Some(blob) = self.partial(request, granted).await {
                return Ok(blob);
            }
            self.check_upstream(&upstream, request, context)?;
            if self.oversized.is_oversized(repo, digest, context).await {
                self.oversized.note_oversized(repo, digest);
                return self.pass_through(repo, digest, context).await;
            }
            let public = upstream.is_public(&repo.name).await;
            let context = &upstream.settle(context, digest)?;
            let flight = FlightRequest { repo, granted, claim, asked, context };
            let found = match self.flights.enter(key, public, &flight) {
                FlightEntry::Follow(reader) => self.join(request, reader, claim, context).await?,
                FlightEntry::Lead(flight, reader) => {
                    self.lead(&upstream, request, (flight, reader), context).await?
                }
                FlightEntry::Separate => {
                    return Box::pin(self.pass_through(repo, digest, context)).await;
                }
                FlightEntry::NeedsGrant => {
                    claim = self.claims.measured(repo, digest, context).await?;
                    if claim.is_none() {
                        return Box::pin(self.pass_through(repo, digest, context)).await;
                    }
                    continue;
                }
            };
            if let Some(blob) = found {
                return Ok(blob);
            }
        }
        Err(Error::Busy)
    }

    /// The first step: the blob is stored and granted, or can be granted by a claim.
    async fn stored(&self, request: BlobRequest<'_>, context: &RequestContext) -> Result<Stored, Error> {
        let BlobRequest { repo, digest, .. } = request;
        let (is_granted, stored) = self.store.find(repo, digest).await?;
        match stored {
            Some(stored) if is_granted => {
                return Ok(Stored::Granted(Blob::stored(stored, digest, &self.store)));
            }
            Some(stored) if self.claims.authorize_by_head(repo, digest, stored.size, context).await? => {
                return Ok(Stored::NowGranted);
            }
            _ if !is_granted => self.negative.check(repo, Lookup::Blob(*digest))?,
            _ => {}
        }
        Ok(Stored::No { is_granted })
    }

    /// A blob of which earlier flights have left parts, if these hold all that is asked for and are for this
    /// repository.
    async fn partial(&self, request: BlobRequest<'_>, granted: bool) -> Option<Blob> {
        let BlobRequest { repo, key, asked, .. } = request;
        let asked = asked.filter(|asked| !asked.are_open())?;
        let left = self.store.left(key).await.filter(|left| granted || left.is_for(repo))?;
        let selection = asked.select(left.total).ok()?;
        // The end of an open part is still to be verified.
        let has = |part: &Part| !part.is_open && left.pieces.contains(part.span);
        selection.parts().iter().all(has).then(|| Blob::partial(left, self.flights.bytes_read(key)))
    }

    /// Fails if upstream is not to be asked for a blob: by configuration, or because it has just sent it wrong.
    fn check_upstream(
        &self,
        upstream: &Upstream,
        request: BlobRequest<'_>,
        context: &RequestContext,
    ) -> Result<(), Error> {
        let BlobRequest { repo, digest, key, .. } = request;
        if upstream.state() == State::Offline {
            return Err(upstream::Error::Offline.into());
        }
        match self.downloader.mismatch_wait(key, &repo.name) {
            Some(retry_after) => {
                let error = Error::Distrusted { retry_after };
                Err(self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), context, error))
            }
            None => Ok(()),
        }
    }

    /// The second step: reads along with the flight that is under way. `None` if that was not for this request.
    async fn join(
        &self,
        request: BlobRequest<'_>,
        reader: FlightReader,
        claim: Option<Claim>,
        context: &RequestContext,
    ) -> Result<Option<Blob>, Error> {
        let source = |reader: &FlightReader| {
            let selection = request.asked.zip(reader.total());
            let selection = selection.and_then(|(asked, total)| asked.select(total).ok());
            reader.source(selection.as_ref().map_or(&[][..], Selection::parts))
        };
        self.follow(request, reader, claim, context, source).await
    }

    /// The third step: begins a flight, and reads along with it.
    async fn lead(
        &self,
        upstream: &Arc<Upstream>,
        request: BlobRequest<'_>,
        (flight, reader): (Arc<Flight>, FlightReader),
        context: &RequestContext,
    ) -> Result<Option<Blob>, Error> {
        tokio::spawn(Arc::clone(&self.downloader).run(flight, Arc::clone(upstream)));
        self.follow(request, reader, None, context, |_| Source::Miss).await
    }

    /// Waits for what a flight has for a request. `None`: look again.
    async fn follow(
        &self,
        request: BlobRequest<'_>,
        mut reader: FlightReader,
        claim: Option<Claim>,
        context: &RequestContext,
        source: impl FnOnce(&FlightReader) -> Source,
    ) -> Result<Option<Blob>, Error> {
        let BlobRequest { repo, digest, .. } = request;
        let Some(file) = self.wait_for_file(&mut reader, claim, repo, digest).await else {
            return Box::pin(self.pass_through(repo, digest, context)).await.map(Some);
        };
        match file {
            Ok(Some(file)) => {
                let source = source(&reader);
                Ok(Some(Blob::from_flight(reader, file, source, self.passthrough(repo, digest, context)?)))
            }
            // The content was stored meanwhile, or the flight was stopped for want of readers just when this one came.
            Ok(None) | Err(Error::GivenUp) => Ok(None),
            // An error of another repository's upstream says nothing about ours: try our own. A disk error is final.
            Err(error) if reader.origin() != repo && !matches!(error, Error::Store(_)) => Ok(None),
            // The same for a flight that bypassed the parents.
            Err(_) if reader.context().is_bypass() && !context.is_bypass() => Ok(None),
            // The same for a flight whose request was said to have come round in a circle.
            Err(error) if error.is_loop() && !reader.context().may_bypass() && context.may_bypass() => {
                Ok(None)
            }
            Err(error) => {
                Err(self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), context, error))
            }
        }
    }

    /// Waits for the file of a flight. `None` if the reader does better to ask by itself: its claim is not about what
    /// comes, or a fallback sends what its own registry has, and may lie or stand still.
    async fn wait_for_file(
        &self,
        reader: &mut FlightReader,
        claim: Option<Claim>,
        repo: &Repo,
        digest: &Digest,
    ) -> Option<Result<Option<BlobFile>, Error>> {
        let has_fallbacks = || self.upstreams.of(repo).is_ok_and(|upstream| upstream.has_fallbacks());
        if reader.is_its_own(repo) || (claim.is_none() && !has_fallbacks()) {
            return Some(reader.wait_for_file().await);
        }
        let file = timeout(OTHERS_PATIENCE, reader.wait_for_file()).await.ok()?;
        if !matches!(file, Ok(Some(_))) {
            return Some(file);
        }
        let needs_fallback = claim.is_some_and(|claim| claim.speaker == Speaker::Fallback);
        if reader.has_fallback() && !needs_fallback {
            return None;
        }
        if let Some(claim) = claim {
            // While the size is unknown, no claim can have the right one.
            let total = reader.total();
            if total != Some(claim.size) {
                if total.is_some() {
                    self.claims.refute(repo, digest);
                }
                return None;
            }
        }
        Some(file)
    }

    /// A blob that is not stored.
    async fn pass_through(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let passthrough = self.passthrough(repo, digest, context)?;
        let context = passthrough.context().clone();
        passthrough.whole().await.map(Blob::passthrough).map_err(|error| {
            self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), &context, error)
        })
    }

    /// The way of a blob to a client without the disk.
    fn passthrough(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Passthrough, Error> {
        let (upstream, key) = (self.upstreams.of(repo)?.into_owned(), self.upstreams.key(repo, digest));
        self.passthroughs.of(upstream, &repo.name, key, context)
    }

    /// The size of a blob, for a HEAD: of what is stored, of the flight that brings it, or as upstream states it.
    pub(super) async fn size(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(BlobSize, Source), Error> {
        let upstream = self.upstreams.of(repo)?;
        let known = |size| BlobSize { bytes: Some(size), speaker: Speaker::Registry };
        if let Some(stored) = self.store.blob_at_hand(repo, digest) {
            return Ok((known(stored.size), Source::Hit));
        }
        let (granted, stored) = self.store.find(repo, digest).await?;
        match stored {
            Some(stored) if granted => return Ok((known(stored.size), Source::Hit)),
            _ if granted => {}
            _ => self.negative.check(repo, Lookup::Blob(*digest))?,
        }
        if let Some(total) = self.flights.total(&self.upstreams.key(repo, digest), repo, granted) {
            // A fallback may be sending the content of the flight.
            let may_be_others = !granted && upstream.has_fallbacks();
            let speaker = if may_be_others { Speaker::Fallback } else { Speaker::Registry };
            return Ok((BlobSize { bytes: total, speaker }, Source::Collapsed));
        }
        match self.claims.ask(repo, digest, context).await {
            Ok((Claim { size, speaker }, joined)) => {
                let source = if joined { Source::Collapsed } else { Source::Miss };
                Ok((BlobSize { bytes: Some(size), speaker }, source))
            }
            // The blob is there. A fallback may say so, or a parent that passes on what a fallback says.
            Err(error) if error.is_unmeasured() => {
                Ok((BlobSize { bytes: None, speaker: Speaker::Fallback }, Source::Miss))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is being brought or read, or was read a moment ago: a client that reads it in parts has yet to
    /// ask for the next.
    pub(super) fn is_going_on(&self, repo: &Repo, digest: &Digest) -> bool {
        self.flights.is_under_way(&self.upstreams.key(repo, digest)) || self.store.was_read_lately(digest)
    }

    /// Whether a flight brings this blob for one repository alone.
    pub(super) fn is_private(&self, repo: &Repo, digest: &Digest) -> bool {
        self.flights.is_private(&self.upstreams.key(repo, digest))
    }

    /// Stops the flights under way; what they have is kept for the next start.
    pub(super) async fn close(&self) {
        let deadline = Instant::now() + CLOSE_MAX;
        while self.flights.abandon_all() > 0 && Instant::now() < deadline {
            tokio::time::sleep(CLOSE_PAUSE).await;
        }
    }
}
