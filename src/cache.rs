//! The heart: hit, join, fill, revalidate, serve stale.
//!
//! [`Cache`] answers for content of a repository. What is stored and granted comes from disk. Else whoever is
//! already bringing it is joined (`flight`), else it is brought (`fill`). Tags follow [`freshness`].
//!
//! Who may be served a digest: content that came without a credential may be had by any repository. **What a registry
//! merely claims changes nothing for anybody but its own repositories, until the digest is proven by bytes that this
//! registry sent.** So other content may be had by a repository for which its registry has sent it, or for which the
//! registry, once it has, answers a HEAD with the right size. That is kept as a grant. A manifest that merely names a
//! digest grants nothing.
//!
//! Every transfer and every check is a task of its own: requests wait for them, and may leave.
//!
//! A [`Cache`] is of one configuration: its upstreams, and its rules. [`Cache::with`] gives one of another, over the same
//! content and the same work under way, and whoever has the old one goes on with it.

mod attestations;
mod chunk;
mod claims;
mod config;
mod direct;
mod doubts;
mod error;
mod fairness;
mod fetch;
mod fill;
mod flight;
pub mod freshness;
mod listing;
mod manifests;
mod mismatches;
mod missing;
mod oversized;
mod places;
mod pump;
mod reader;
mod refresh;
mod schedule;
mod size;
mod speed;
mod tags;
mod taken;
mod upstreams;
mod writer;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::bounded;
use crate::clock::unix_seconds as now;
use crate::context::RequestContext;
use crate::oci::ranges::{Part, Selection};
use crate::oci::{Digest, Ranges, Reference, Registry, Repo, Tag};
use crate::shares::Shares;
use crate::singleflight::SingleFlight;
use crate::store::{PartialKey, Store};
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Kind, Source};
use crate::upstream::{self, Claim, ReferrerList, State, Upstream};

pub use chunk::Room;
pub use config::{Complete, Config};
pub use error::Error;
pub use freshness::{OnRemoved, Rule, Rules};
pub use listing::{Page, Referrers, Tags};
pub use manifests::Manifest;
pub use missing::Missing;
pub use reader::{Blob, Reading, Way};
pub use refresh::{Outcome, Refreshed};
pub use size::Size;

use direct::Detour;
use doubts::Doubts;
use fill::Filler;
use flight::{Asker, Entry, Flights};
use mismatches::Mismatches;
use oversized::Oversized;

/// How long upstream's "there is no such thing", or "not for you", is believed without asking again.
const ABSENCE_MEMORY: Duration = Duration::from_secs(10);
/// Remembered absences and failed checks; the oldest are forgotten first.
const MEMORIES_MAX: usize = 16_384;
/// How long a failed transfer speaks against an image that is not complete.
const TROUBLE_MEMORY: Duration = Duration::from_secs(10);
/// Times a request looks again, because what it waited for was not for it.
const LOOKS_MAX: usize = 4;
/// How long the end of the process waits for transfers to put down what they have.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks at them.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// Content by repository, from disk or from upstream.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

/// What a configuration says, over what is the same whatever it says.
struct Inner {
    upstreams: HashMap<Registry, Arc<Upstream>>,
    /// For every registry that is not among these, if any may be meant.
    unlisted: Option<Arc<Upstream>>,
    /// The names under which each registry is configured: see [`Upstream::is_one_with`].
    one_with: HashMap<Registry, Vec<Registry>>,
    rules: Rules,
    filler: Arc<Filler>,
    shared: Arc<Shared>,
}

impl Deref for Inner {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

struct Shared {
    store: Store,
    metrics: Arc<Metrics>,
    flights: Arc<Flights>,
    completions: Shares,
    // What is shared is shared by requests of one level only: see `RequestContext`.
    manifests: SingleFlight<(Repo, Digest, usize), Result<Manifest, Error>>,
    checks: SingleFlight<(Repo, Tag, usize), Result<tags::Known, Error>>,
    claims: SingleFlight<(Repo, Digest, usize), Result<Claim, Error>>,
    referrers: SingleFlight<(Repo, Digest, usize), Result<ReferrerList, Error>>,
    /// When upstream last said that something is not there, and how, by repository and path in it: a digest
    /// that is no blob may be a manifest.
    absent: Mutex<LruCache<(Repo, String), (Instant, Error)>>,
    doubts: Doubts,
    mismatches: Arc<Mismatches>,
    /// When content of a repository could last not be had.
    troubled: Mutex<LruCache<Repo, Instant>>,
    oversized: Oversized,
    /// Room for transfers that the disk cannot take.
    direct: Shares,
    /// Room for questions behind an answer.
    behind: Shares,
}

impl Cache {
    /// Content of `upstreams`, kept in `store`.
    pub fn new(
        store: Store,
        upstreams: Vec<Arc<Upstream>>,
        rules: Rules,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let memories = NonZeroUsize::new(MEMORIES_MAX).expect("not zero");
        let shared = Shared {
            store,
            metrics,
            flights: Flights::new(),
            completions: Shares::new(fairness::COMPLETIONS),
            manifests: SingleFlight::default(),
            checks: SingleFlight::default(),
            claims: SingleFlight::default(),
            referrers: SingleFlight::default(),
            absent: Mutex::new(bounded::lru(memories)),
            doubts: Doubts::new(memories),
            mismatches: Arc::new(Mismatches::new(memories)),
            troubled: Mutex::new(bounded::lru(memories)),
            oversized: Oversized::default(),
            direct: Shares::new(fairness::DIRECT),
            behind: Shares::new(fairness::PROOFS),
        };
        Self::of(Arc::new(shared), upstreams, rules, config)
    }

    /// The same content by another configuration. Whoever has this one goes on with it.
    pub fn with(&self, upstreams: Vec<Arc<Upstream>>, rules: Rules, config: &Config) -> Self {
        Self::of(Arc::clone(&self.0.shared), upstreams, rules, config)
    }

    fn of(shared: Arc<Shared>, upstreams: Vec<Arc<Upstream>>, rules: Rules, config: &Config) -> Self {
        let filler = Filler {
            store: shared.store.clone(),
            flights: Arc::clone(&shared.flights),
            metrics: Arc::clone(&shared.metrics),
            complete: config.complete,
            completions: shared.completions.clone(),
            mismatches: Arc::clone(&shared.mismatches),
        };
        let (mut unlisted, upstreams): (Vec<_>, Vec<_>) =
            upstreams.into_iter().partition(|upstream| upstream.registry().is_unlisted());
        let one_with = upstreams.iter().map(|upstream| {
            let same = upstreams
                .iter()
                .filter(|other| other.registry() == upstream.registry() || other.is_one_with(upstream));
            let mut names: Vec<_> = same.map(|other| other.registry().clone()).collect();
            names.sort_unstable();
            (upstream.registry().clone(), names)
        });
        let one_with = one_with.collect();
        let upstreams =
            upstreams.into_iter().map(|upstream| (upstream.registry().clone(), upstream)).collect();
        let unlisted = unlisted.pop();
        Self(Arc::new(Inner { upstreams, unlisted, one_with, rules, filler: Arc::new(filler), shared }))
    }

    /// Forgets what the upstream of a registry has refused or failed to say, and has nobody join what it is being asked:
    /// another has taken its place.
    pub fn forget(&self, registry: &Registry) {
        let is_all = *registry == Registry::all_unlisted();
        let is_of_registry = |of: &Registry| of == registry || is_all && of.is_unlisted();
        let is_of = |repo: &Repo| is_of_registry(&repo.registry);
        self.forget_absences(is_of);
        self.0.doubts.forget_all(is_of);
        self.0.mismatches.forget_all(|of| self.one_with(registry).first() == Some(of) || is_of_registry(of));
        let mut troubled = lock(&self.0.troubled);
        let of_registry: Vec<_> =
            troubled.iter().map(|(repo, _)| repo).filter(|it| is_of(it)).cloned().collect();
        for repo in &of_registry {
            troubled.pop(repo);
        }
        drop(troubled);
        self.0.checks.detach(|(repo, ..)| is_of(repo));
        self.0.manifests.detach(|(repo, ..)| is_of(repo));
        self.0.claims.detach(|(repo, ..)| is_of(repo));
        self.0.referrers.detach(|(repo, ..)| is_of(repo));
    }

    /// A blob of `repo`, if it is stored and that is known without a wait for anything.
    pub fn blob_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<Blob> {
        self.is_served(repo).then_some(())?;
        let stored = self.0.store.blob_at_hand(repo, digest)?;
        self.0.metrics.served(Kind::Blob, Source::Hit);
        Some(Blob::stored(stored, digest, &self.0.store))
    }

    /// A blob of `repo`: from disk, else from whoever is bringing it, else by bringing it. Of one that is not here
    /// only the ranges that are `asked` need come, if they have ends of their own; they are what must be read, in this
    /// order. `context`: where the request has come from.
    ///
    /// # Errors
    /// [`Error`]: what upstream said, or why it could not be asked.
    pub async fn blob(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: Option<&Ranges>,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let blob = match self.find_blob(repo, digest, asked, context).await {
            // A disk that is full, read-only or broken is no reason to have nothing; nor is a budget.
            Err(Error::Store(cause)) => {
                self.note_unstored(repo, digest, &cause);
                self.pass_through(repo, digest, context).await
            }
            other => other,
        };
        match blob {
            Ok(blob) => {
                self.0.metrics.served(Kind::Blob, blob.source);
                Ok(blob)
            }
            Err(error) => Err(self.explain(repo, &Reference::Digest(*digest), error).await),
        }
    }

    /// A blob that is not kept.
    async fn pass_through(
        &self,
        repo: &Repo,
        digest: &Digest,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let detour = self.detour(repo, digest, context)?;
        let context = detour.context.clone();
        let whole = detour.whole().await;
        whole.map(Blob::direct).map_err(|error| self.remember(repo, &blob_path(digest), &context, error))
    }

    async fn find_blob(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: Option<&Ranges>,
        context: &RequestContext,
    ) -> Result<Blob, Error> {
        let upstream = self.upstream(repo)?;
        let key = self.key(repo, digest);
        let mut claim = None;
        for _ in 0..LOOKS_MAX {
            let (granted, stored) = self.0.store.find(repo, digest).await?;
            match stored {
                Some(stored) if granted => return Ok(Blob::stored(stored, digest, &self.0.store)),
                Some(stored) if self.prove(repo, digest, stored.size, context).await? => continue,
                _ if !granted => self.not_absent(repo, &blob_path(digest))?,
                _ => {}
            }
            if let Some(left) = self.left(&key, repo, granted, asked).await {
                return Ok(left);
            }
            if upstream.state() == State::Offline {
                return Err(upstream::Error::Offline.into());
            }
            if let Some(retry_after) = self.0.mismatches.wait(&key, &repo.name) {
                let error = Error::Distrusted { retry_after };
                return Err(self.remember(repo, &blob_path(digest), context, error));
            }
            if self.is_oversized(repo, digest, context).await {
                self.note_oversized(repo, digest);
                return self.pass_through(repo, digest, context).await;
            }
            let public = upstream.is_public(&repo.name).await;
            let context = &upstream.settle(context, digest)?;
            let asker = Asker { repo, granted, claim, asked, context };
            let (mut reader, source) = match self.0.flights.enter(&key, public, &asker) {
                Entry::Join(reader) => (reader, Source::Join),
                Entry::Lead(flight, reader) => {
                    tokio::spawn(Arc::clone(&self.0.filler).run(flight, Arc::clone(&upstream)));
                    (reader, Source::Miss)
                }
                Entry::Apart => return Box::pin(self.pass_through(repo, digest, context)).await,
                Entry::Foreign => {
                    claim = self.measured_claim(repo, digest, context).await?;
                    if claim.is_none() {
                        return Box::pin(self.pass_through(repo, digest, context)).await;
                    }
                    continue;
                }
            };
            let Some(file) = self.file_of(&mut reader, claim, repo, digest).await else {
                return Box::pin(self.pass_through(repo, digest, context)).await;
            };
            match file {
                Ok(Some(file)) => {
                    let total = reader.total();
                    let selection = asked.zip(total).and_then(|(asked, total)| asked.select(total).ok());
                    let parts = selection.as_ref().map_or(&[][..], Selection::parts);
                    let source = match source {
                        Source::Join => reader.source(parts),
                        other => other,
                    };
                    return Ok(Blob::flying(reader, file, source, self.detour(repo, digest, context)?));
                }
                // Stored meanwhile, or stopped for want of readers just when this one came.
                Ok(None) | Err(Error::GivenUp) => {}
                // What the registry says or fails at for another repository says nothing about this one. The disk is
                // everybody's.
                Err(error) if reader.origin() != repo && !matches!(error, Error::Store(_)) => {}
                // Nor what is heard on a way round the parents.
                Err(_) if reader.context().is_bypass() && !context.is_bypass() => {}
                // Nor is a claim to have come round in a circle anybody else's.
                Err(error) if error.is_loop() && !reader.context().may_bypass() && context.may_bypass() => {}
                Err(error) => return Err(self.remember(repo, &blob_path(digest), context, error)),
            }
        }
        Err(Error::Busy)
    }

    /// Parts of a blob that earlier flights have left, if they hold all that is asked and are for this repository.
    async fn left(
        &self,
        key: &PartialKey,
        repo: &Repo,
        granted: bool,
        asked: Option<&Ranges>,
    ) -> Option<Blob> {
        let asked = asked.filter(|asked| !asked.are_open())?;
        let left = self.0.store.left(key).await.filter(|left| granted || left.is_for(repo))?;
        let selection = asked.select(left.total).ok()?;
        // What goes to the end is still to be proven.
        let has = |part: &Part| !part.is_open && left.pieces.contains(part.span);
        selection.parts().iter().all(has).then(|| Blob::left(left, self.0.flights.taken(key)))
    }

    /// Whether a blob is being brought or read, or was read a moment ago: who reads it in parts has yet to ask for the next.
    pub fn is_going_on(&self, repo: &Repo, digest: &Digest) -> bool {
        self.0.flights.is_under_way(&self.key(repo, digest)) || self.0.store.was_read_lately(digest)
    }

    /// Stops the transfers under way; what they have is kept for the next start.
    pub async fn close(&self) {
        let deadline = Instant::now() + CLOSE_MAX;
        while self.0.flights.abandon_all() > 0 && Instant::now() < deadline {
            tokio::time::sleep(CLOSE_PAUSE).await;
        }
    }

    /// Whether content is stored, for whomever it may be.
    async fn is_here(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.0.store.blob(digest).await?.is_some())
    }

    /// How a blob comes to a client without the disk.
    fn detour(&self, repo: &Repo, digest: &Digest, context: &RequestContext) -> Result<Detour, Error> {
        let upstream = self.upstream(repo)?.into_owned();
        Ok(Detour {
            context: upstream.settle(context, digest)?,
            upstream,
            name: repo.name.clone(),
            digest: *digest,
            metrics: Arc::clone(&self.0.metrics),
            permits: self.0.direct.clone(),
            key: self.key(repo, digest),
            mismatches: Arc::clone(&self.0.mismatches),
        })
    }

    /// Fails as upstream did, if it said a moment ago that this is not there.
    fn not_absent(&self, repo: &Repo, path: &str) -> Result<(), Error> {
        match lock(&self.0.absent).get(&(repo.clone(), path.to_owned())) {
            Some((said, error)) if said.elapsed() < ABSENCE_MEMORY => Err(error.clone().remembered()),
            _ => Ok(()),
        }
    }

    /// Remembers what upstream just said, on the way that others go, too. Not for what [`Cache::not_absent`] said: it would
    /// never be asked again.
    fn remember(&self, repo: &Repo, path: &str, context: &RequestContext, error: Error) -> Error {
        let is_claimed = error.is_loop() && !context.is_of_client();
        if is_claimed
            || context.is_bypass()
            || self.upstream(repo).is_ok_and(|upstream| upstream.is_retired())
        {
            return error;
        }
        if error.is_absence() {
            let key = (repo.clone(), path.to_owned());
            lock(&self.0.absent).put(key, (Instant::now(), error.clone()));
        } else if error.is_outage() {
            self.trouble(repo);
        }
        error
    }

    /// Content of `repo` could not be had just now.
    fn trouble(&self, repo: &Repo) {
        lock(&self.0.troubled).put(repo.clone(), Instant::now());
    }

    /// Whether content of `repo` could not be had a moment ago.
    fn is_troubled(&self, repo: &Repo) -> bool {
        lock(&self.0.troubled).get(repo).is_some_and(|since| since.elapsed() < TROUBLE_MEMORY)
    }
}

/// What a blob is remembered by when it is absent.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/{digest}")
}

/// What a manifest is remembered by when it is absent.
fn manifest_path(digest: &Digest) -> String {
    format!("manifests/{digest}")
}
