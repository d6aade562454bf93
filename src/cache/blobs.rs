//! Blobs: from disk, else from whoever is already bringing it, else by bringing it.
//!
//! A request for a blob goes through three steps, and through them again when what it waited for was not for it: what is
//! *stored* and granted is served; else the flight that brings it is *joined*; else the request *leads* one of its own. Where
//! the disk or a limit is in the way of all three, the blob passes through unstored.

pub(super) mod blob;
pub(super) mod chunk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use self::blob::Blob;
use super::claims::Claims;
use super::config::Complete;
use super::download::downloader::Filler;
use super::download::flight::{Asker, Entry, Flight, Flights, Reader};
use super::error::Error;
use super::negative_cache::{Lookup, NegativeCache};
use super::oversized::OversizedImages;
use super::passthrough::{Detour, Passthroughs};
use super::upstreams::Upstreams;
use crate::context::RequestContext;
use crate::oci::ranges::{Part, Selection};
use crate::oci::{Digest, Ranges, Repo, Speaker};
use crate::store::{BlobFile, PartialKey, Store};
use crate::telemetry::metrics::Source;
use crate::upstream::{self, Claim, State, Upstream};

/// Times a request looks again, because what it waited for was not for it.
const LOOKS_MAX: usize = 4;
/// For how long a reader waits for another repository's transfer to begin: that may be kept waiting by a fallback, which
/// this reader does not need.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the process waits for transfers to put down what they have.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks at them.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// How large a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its bytes; none where upstream has it and does not say how many they are.
    pub bytes: Option<u64>,
    /// Whose word it is.
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
    filler: Arc<Filler>,
    passthroughs: Arc<Passthroughs>,
}

/// What the store has of a blob that is asked for.
enum Stored {
    /// All of it, for this repository.
    Granted(Blob),
    /// All of it, and it has just become this repository's: look again.
    Proven,
    /// Nothing that this repository may have as it is.
    No {
        /// Whether the repository may have this content whoever brings it.
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
        filler: Filler,
        passthroughs: Passthroughs,
    ) -> Self {
        Self {
            store: store.clone(),
            upstreams: Arc::clone(upstreams),
            negative: Arc::clone(negative),
            claims: Arc::clone(claims),
            oversized: Arc::clone(oversized),
            flights: Arc::clone(filler.flights()),
            filler: Arc::new(filler),
            passthroughs: Arc::new(passthroughs),
        }
    }

    /// The same content and the same flights under another configuration.
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
            filler: Arc::new(self.filler.with(complete)),
            passthroughs: Arc::clone(&self.passthroughs),
        }
    }

    /// A blob of `repo`, stored or not: a disk that is full, read-only or broken is no reason to have nothing; nor is a
    /// budget.
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
                Stored::Proven => continue,
                Stored::No { is_granted } => is_granted,
            };
            if let Some(blob) = self.from_partial(request, granted).await {
                return Ok(blob);
            }
            self.check_upstream(&upstream, request, context)?;
            if self.oversized.is_oversized(repo, digest, context).await {
                self.oversized.note_oversized(repo, digest);
                return self.pass_through(repo, digest, context).await;
            }
            let public = upstream.is_public(&repo.name).await;
            let context = &upstream.settle(context, digest)?;
            let asker = Asker { repo, granted, claim, asked, context };
            let found = match self.flights.enter(key, public, &asker) {
                Entry::Join(reader) => self.join(request, reader, claim, context).await?,
                Entry::Lead(flight, reader) => {
                    self.lead(&upstream, request, (flight, reader), context).await?
                }
                Entry::Apart => return Box::pin(self.pass_through(repo, digest, context)).await,
                Entry::Foreign => {
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

    /// The first step: what is stored and granted, or can be proven to be this repository's, too.
    async fn stored(&self, request: BlobRequest<'_>, context: &RequestContext) -> Result<Stored, Error> {
        let BlobRequest { repo, digest, .. } = request;
        let (is_granted, stored) = self.store.find(repo, digest).await?;
        match stored {
            Some(stored) if is_granted => {
                return Ok(Stored::Granted(Blob::stored(stored, digest, &self.store)));
            }
            Some(stored) if self.claims.prove(repo, digest, stored.size, context).await? => {
                return Ok(Stored::Proven);
            }
            _ if !is_granted => self.negative.check(repo, Lookup::Blob(*digest))?,
            _ => {}
        }
        Ok(Stored::No { is_granted })
    }

    /// Parts of a blob that earlier flights have left, if they hold all that is asked and are for this repository.
    async fn from_partial(&self, request: BlobRequest<'_>, granted: bool) -> Option<Blob> {
        let BlobRequest { repo, key, asked, .. } = request;
        let asked = asked.filter(|asked| !asked.are_open())?;
        let left = self.store.left(key).await.filter(|left| granted || left.is_for(repo))?;
        let selection = asked.select(left.total).ok()?;
        // What goes to the end is still to be proven.
        let has = |part: &Part| !part.is_open && left.pieces.contains(part.span);
        selection.parts().iter().all(has).then(|| Blob::left(left, self.flights.taken(key)))
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
        match self.filler.distrusts(key, &repo.name) {
            Some(retry_after) => {
                let error = Error::Distrusted { retry_after };
                Err(self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), context, error))
            }
            None => Ok(()),
        }
    }

    /// The second step: reads along with the flight that is under way. None if that was not for this request.
    async fn join(
        &self,
        request: BlobRequest<'_>,
        reader: Reader,
        claim: Option<Claim>,
        context: &RequestContext,
    ) -> Result<Option<Blob>, Error> {
        let source = |reader: &Reader| {
            let selection = request.asked.zip(reader.total());
            let selection = selection.and_then(|(asked, total)| asked.select(total).ok());
            reader.source(selection.as_ref().map_or(&[][..], Selection::parts))
        };
        self.follow(request, reader, claim, context, source).await
    }

    /// The third step: begins a flight, and reads along with that.
    async fn lead(
        &self,
        upstream: &Arc<Upstream>,
        request: BlobRequest<'_>,
        (flight, reader): (Arc<Flight>, Reader),
        context: &RequestContext,
    ) -> Result<Option<Blob>, Error> {
        tokio::spawn(Arc::clone(&self.filler).run(flight, Arc::clone(upstream)));
        self.follow(request, reader, None, context, |_| Source::Miss).await
    }

    /// Waits for what a flight has for a request. None: look again.
    async fn follow(
        &self,
        request: BlobRequest<'_>,
        mut reader: Reader,
        claim: Option<Claim>,
        context: &RequestContext,
        source: impl FnOnce(&Reader) -> Source,
    ) -> Result<Option<Blob>, Error> {
        let BlobRequest { repo, digest, .. } = request;
        let Some(file) = self.file_of(&mut reader, claim, repo, digest).await else {
            return Box::pin(self.pass_through(repo, digest, context)).await.map(Some);
        };
        match file {
            Ok(Some(file)) => {
                let source = source(&reader);
                Ok(Some(Blob::flying(reader, file, source, self.detour(repo, digest, context)?)))
            }
            // Stored meanwhile, or stopped for want of readers just when this one came.
            Ok(None) | Err(Error::GivenUp) => Ok(None),
            // What the registry says or fails at for another repository says nothing about this one. The disk is
            // everybody's.
            Err(error) if reader.origin() != repo && !matches!(error, Error::Store(_)) => Ok(None),
            // Nor what is heard on a way round the parents.
            Err(_) if reader.context().is_bypass() && !context.is_bypass() => Ok(None),
            // Nor is a claim to have come round in a circle anybody else's.
            Err(error) if error.is_loop() && !reader.context().may_bypass() && context.may_bypass() => {
                Ok(None)
            }
            Err(error) => {
                Err(self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), context, error))
            }
        }
    }

    /// What a transfer brings for a reader; none if that does better to ask by itself: it reads along by a claim that is not
    /// about what comes, or what its own registry has comes from a fallback, which may lie or stand still.
    async fn file_of(
        &self,
        reader: &mut Reader,
        claim: Option<Claim>,
        repo: &Repo,
        digest: &Digest,
    ) -> Option<Result<Option<BlobFile>, Error>> {
        let has_fallbacks = || self.upstreams.of(repo).is_ok_and(|upstream| upstream.has_fallbacks());
        if reader.is_its_own(repo) || (claim.is_none() && !has_fallbacks()) {
            return Some(reader.file().await);
        }
        let file = timeout(OTHERS_PATIENCE, reader.file()).await.ok()?;
        if !matches!(file, Ok(Some(_))) {
            return Some(file);
        }
        let needs_fallback = claim.is_some_and(|claim| claim.speaker == Speaker::Fallback);
        if reader.is_by_fallback() && !needs_fallback {
            return None;
        }
        if let Some(claim) = claim {
            // As long as the size is not known, no claim can have the right one.
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

    /// A blob that is not kept.
    async fn pass_through(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let detour = self.detour(repo, digest, context)?;
        let context = detour.context().clone();
        detour.whole().await.map(Blob::direct).map_err(|error| {
            self.negative.note(&self.upstreams, repo, Lookup::Blob(*digest), &context, error)
        })
    }

    /// How a blob comes to a client without the disk.
    fn detour(&self, repo: &Repo, digest: &Digest, context: &RequestContext) -> Result<Detour, Error> {
        let (upstream, key) = (self.upstreams.of(repo)?.into_owned(), self.upstreams.key(repo, digest));
        self.passthroughs.of(upstream, &repo.name, key, context)
    }

    /// The size of a blob, for a HEAD: by what is stored, by the flight that brings it, or by upstream's word.
    pub(super) async fn size(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<(Size, Source), Error> {
        let upstream = self.upstreams.of(repo)?;
        let known = |size| Size { bytes: Some(size), speaker: Speaker::Registry };
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
            // A transfer may be a fallback's.
            let may_be_others = !granted && upstream.has_fallbacks();
            let speaker = if may_be_others { Speaker::Fallback } else { Speaker::Registry };
            return Ok((Size { bytes: total, speaker }, Source::Join));
        }
        match self.claims.ask(repo, digest, context).await {
            Ok((Claim { size, speaker }, joined)) => {
                let source = if joined { Source::Join } else { Source::Miss };
                Ok((Size { bytes: Some(size), speaker }, source))
            }
            // It is there. Whoever says so may be a fallback, or a parent that passes on what that says.
            Err(error) if error.is_unmeasured() => {
                Ok((Size { bytes: None, speaker: Speaker::Fallback }, Source::Miss))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is being brought or read, or was read a moment ago: who reads it in parts has yet to ask for the next.
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
