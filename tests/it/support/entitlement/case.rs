//! One case: what there is, who says what about it, and what clients do. Drawn from a seed, and nothing else.

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::json;

use crate::support::{Blob, Image};

/// A tar of less than this is proven before anybody hears of it; one of more than `LARGE` is left in parts when only
/// some of it is asked.
const MEDIUM: usize = 200 << 10;
const LARGE: usize = 2 << 20;

/// Whom clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registry {
    /// Wants a login, and berth has one for each of two projects.
    Private,
    /// The same, and where it has no answer an open registry is asked.
    Guarded,
    /// Open to all.
    Open,
    /// Open to all, and run by somebody else.
    Evil,
    /// Wants a login, and is run by somebody else.
    EvilLogin,
    /// Open to all, and where it has no answer another is asked.
    Backed,
    /// Open to all, and asked by way of a plain mirror first.
    Mirrored,
}

/// Who answers: a fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Private,
    Guarded,
    GuardedFallback,
    Open,
    Evil,
    EvilLogin,
    Backed,
    BackedFallback,
    Mirror,
    Mirrored,
}

/// What a source says about the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Never heard of it.
    Absent,
    /// Has it.
    Honest,
    /// Has it; a transfer stands still after so many bytes, until the end of the case.
    Held(u64),
    /// Says that it has it, of this size, and does not give it.
    Claims(Size),
    /// Sends other bytes, as many as these.
    Lies(Size, Course),
}

/// The size that is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Right,
    Wrong,
    Untold,
}

/// How the wrong bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    Whole,
    Held(u64),
    Cut(u64),
    Drip,
}

/// A repository of a registry, in the order of [`Registry::repositories`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) registry: Registry,
    pub(crate) repository: usize,
}

/// The daemon that a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// One that asks the registries.
    Alone,
    /// One that asks a parent, which asks the registries.
    Node,
    /// That parent.
    Parent,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Get,
    Head,
    /// `bytes=` these two.
    Closed(u64, u64),
    From(u64),
    Suffix(u64),
    /// Leaves after so many bytes.
    Abort(u64),
    Manifest,
    /// The document of a liar that names the content.
    Trap,
    Referrers,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) entry: Entry,
    pub(crate) place: Place,
    pub(crate) what: What,
}

/// All of it.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    /// Whether the content is a manifest, which can be asked for as one.
    pub(crate) is_manifest: bool,
    pub(crate) content: Image,
    pub(crate) digest: Digest,
    stances: [Stance; Source::ALL.len()],
    /// Whether the second project of [`Registry::Private`] has it too.
    pub(crate) is_in_both: bool,
    /// What the first reader asks for before all else, so that parts of it are left.
    pub(crate) prelude: Option<Step>,
    pub(crate) steps: Vec<Step>,
}

impl Registry {
    pub(crate) const ALL: [Self; 7] =
        [Self::Private, Self::Guarded, Self::Open, Self::Evil, Self::EvilLogin, Self::Backed, Self::Mirrored];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Private => "private.example",
            Self::Guarded => "guarded.example",
            Self::Open => "open.example",
            Self::Evil => "evil.example",
            Self::EvilLogin => "evil-login.example",
            Self::Backed => "backed.example",
            Self::Mirrored => "mirrored.example",
        }
    }

    /// The beginnings of its repositories' names.
    pub(crate) fn repositories(self) -> &'static [&'static str] {
        match self {
            // There is no login for the third.
            Self::Private | Self::Guarded => &["team-a", "team-b", "team-c"],
            Self::Evil => &["x", "y"],
            Self::Open | Self::EvilLogin | Self::Backed | Self::Mirrored => &["x"],
        }
    }

    /// Who answers for it, in the order in which they are asked.
    pub(crate) fn sources(self) -> &'static [Source] {
        match self {
            Self::Private => &[Source::Private],
            Self::Guarded => &[Source::Guarded, Source::GuardedFallback],
            Self::Open => &[Source::Open],
            Self::Evil => &[Source::Evil],
            Self::EvilLogin => &[Source::EvilLogin],
            Self::Backed => &[Source::Backed, Source::BackedFallback],
            Self::Mirrored => &[Source::Mirror, Source::Mirrored],
        }
    }
}

impl Source {
    pub(crate) const ALL: [Self; 10] = [
        Self::Private,
        Self::Guarded,
        Self::GuardedFallback,
        Self::Open,
        Self::Evil,
        Self::EvilLogin,
        Self::Backed,
        Self::BackedFallback,
        Self::Mirror,
        Self::Mirrored,
    ];

    /// Whether berth sends it a login, so that what it sends is not for everybody.
    pub(crate) fn has_login(self) -> bool {
        matches!(self, Self::Private | Self::Guarded | Self::EvilLogin)
    }

    /// Whether somebody else may run it.
    fn may_lie(self) -> bool {
        !matches!(self, Self::Private | Self::Guarded | Self::Open | Self::Backed | Self::Mirrored)
    }
}

impl Place {
    /// The name of the repository in a case: one of its own for each.
    pub(crate) fn repository(self, case: &Case) -> String {
        format!("{}/c{:016x}", self.registry.repositories()[self.repository], case.seed)
    }
}

impl What {
    /// Whether it is about the content itself.
    pub(crate) fn is_of_content(self) -> bool {
        !matches!(self, Self::Trap | Self::Referrers)
    }
}

impl Case {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_manifest = random.u8(..5) == 0;
        let prelude = !is_manifest && random.u8(..4) == 0;
        let size = match random.u8(..6) {
            _ if prelude => LARGE + random.usize(1..MEDIUM),
            0 => LARGE + random.usize(1..MEDIUM),
            1..4 => MEDIUM + random.usize(..MEDIUM),
            _ => random.usize(600..9000),
        };
        let content = if is_manifest { manifest(&mut random) } else { layer(&mut random, size) };
        let digest = Digest::of(Algorithm::Sha256, &content.manifest);
        let size = content.manifest.len() as u64;
        // Somebody has it for good; mostly with a login.
        let owner = [Source::Private, Source::Private, Source::Guarded, Source::Open][random.usize(..4)];
        let stances = Source::ALL.map(|source| match source {
            _ if source == owner && prelude => Stance::Honest,
            _ if source == owner => {
                *pick(&mut random, &[Stance::Honest, Stance::Honest, Stance::Held(size / 3)])
            }
            _ if source.may_lie() => lie(&mut random, size),
            _ if random.u8(..3) == 0 => Stance::Honest,
            _ => Stance::Absent,
        });
        let (tiers, is_in_both) = (random.u8(..3) == 0, random.bool());
        let more = random.usize(1..6);
        let owned =
            Registry::ALL.into_iter().find(|it| it.sources().contains(&owner)).unwrap_or(Registry::Open);
        let mut step = |owned: Option<Registry>| step(&mut random, tiers, owned, size, is_manifest);
        let prelude = prelude.then(|| Step {
            what: What::Closed(0, 9999),
            place: Place { registry: owned, repository: 0 },
            ..step(None)
        });
        let mut steps = Vec::new();
        // Who has it is mostly asked first: else there is nothing to steal.
        let first = step(Some(owned));
        steps.push(Step { place: Place { repository: 0, ..first.place }, ..first });
        steps.extend((0..more).map(|_| step(None)));
        Self { seed, is_manifest, content, digest, stances, is_in_both, prelude, steps }
    }

    pub(crate) fn size(&self) -> u64 {
        self.content.manifest.len() as u64
    }

    pub(crate) fn stance(&self, source: Source) -> Stance {
        let at = Source::ALL.iter().position(|it| *it == source);
        self.stances[at.unwrap_or_default()]
    }

    /// What the source sends for the digest, if it sends anything.
    pub(crate) fn sent_by(&self, source: Source) -> Option<Bytes> {
        match self.stance(source) {
            Stance::Absent | Stance::Claims(_) => None,
            Stance::Honest | Stance::Held(_) => Some(self.content.manifest.clone()),
            Stance::Lies(size, _) => Some(self.wrong(source, size).manifest),
        }
    }

    /// What the source has in the place of the content.
    pub(crate) fn wrong(&self, source: Source, size: Size) -> Image {
        let mut random = fastrand::Rng::with_seed(self.seed ^ (0x5eed << 32) ^ (source as u64) << 8);
        if self.is_manifest {
            return manifest(&mut random);
        }
        let longer = if size == Size::Right { 0 } else { 1000 + source as usize };
        layer(&mut random, self.content.manifest.len() + longer)
    }

    /// What a liar publishes: a document that names the content as its own.
    pub(crate) fn trap(&self, source: Source) -> Image {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let size = if self.seed.is_multiple_of(2) { self.size() } else { 7 };
        let named = |media_type: &str| json!({ "mediaType": media_type, "digest": self.digest.to_string(), "size": size });
        let config = Blob::new(Algorithm::Sha256, format!("config of {} {source:?}", self.seed).into());
        let own = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest.to_string(), "size": config.len() });
        let body = match self.seed % 3 {
            0 => {
                json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named(media_type)] })
            }
            1 => {
                json!({ "schemaVersion": 2, "mediaType": media_type, "config": own, "layers": [named("application/vnd.oci.image.layer.v1.tar")], "subject": named(media_type) })
            }
            _ => {
                json!({ "schemaVersion": 2, "mediaType": media_type, "config": named("application/vnd.oci.image.config.v1+json"), "layers": [] })
            }
        };
        let subject = (self.seed % 3 == 1).then_some(self.digest);
        let media_type =
            if self.seed.is_multiple_of(3) { "application/vnd.oci.image.index.v1+json" } else { media_type };
        Image {
            blobs: vec![config],
            subject,
            artifact_type: Some("application/vnd.example".to_owned()),
            ..document(media_type, body.to_string().into())
        }
    }

    /// The size that the source claims, if it has a word about it.
    pub(crate) fn claimed_by(&self, source: Source) -> Option<u64> {
        match self.stance(source) {
            Stance::Absent | Stance::Claims(Size::Untold) => None,
            Stance::Claims(Size::Wrong) => Some(self.wrong_size(source)),
            Stance::Claims(Size::Right) | Stance::Honest | Stance::Held(_) => Some(self.size()),
            Stance::Lies(..) => self.sent_by(source).map(|sent| sent.len() as u64),
        }
    }

    /// A size that nobody else says.
    pub(crate) fn wrong_size(&self, source: Source) -> u64 {
        self.size() + 7_000_000 + source as u64
    }

    /// What is held back of the content or of a lie, by one who answers for this registry.
    pub(crate) fn holds(&self, registry: Registry) -> Vec<(Source, u64)> {
        let held = |source: &Source| match self.stance(*source) {
            Stance::Held(after) | Stance::Lies(_, Course::Held(after)) => Some((*source, after)),
            _ => None,
        };
        registry.sources().iter().filter_map(held).collect()
    }

    /// Whether the first who is asked at this place is nobody's but the registry's own, has the content, gives it, and
    /// keeps nobody waiting.
    pub(crate) fn is_served_at(&self, place: Place) -> bool {
        let first = place.registry.sources()[0];
        !first.may_lie() && self.stance(first) == Stance::Honest && self.may_read(place)
    }

    /// Whether the registry itself lets berth read the content at this place, if it has it.
    pub(crate) fn may_read(&self, place: Place) -> bool {
        match (place.registry, place.repository) {
            (Registry::Private | Registry::Guarded, 1) => self.is_in_both,
            (Registry::Private | Registry::Guarded, 2) => false,
            _ => true,
        }
    }
}

/// For a person who looks at a failure.
impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "seed {} {} of {} bytes, {}",
            self.seed,
            if self.is_manifest { "manifest" } else { "blob" },
            self.size(),
            self.digest
        )?;
        for source in Source::ALL {
            writeln!(f, "  {source:?}: {:?}", self.stance(source))?;
        }
        writeln!(f, "  in both projects: {}", self.is_in_both)?;
        for step in self.prelude.iter().chain(&self.steps) {
            writeln!(f, "  {step:?}")?;
        }
        Ok(())
    }
}

fn pick<'a, T>(random: &mut fastrand::Rng, of: &'a [T]) -> &'a T {
    &of[random.usize(..of.len())]
}

fn lie(random: &mut fastrand::Rng, size: u64) -> Stance {
    let told = *pick(random, &[Size::Right, Size::Right, Size::Wrong]);
    let half = size / 2;
    match random.u8(..12) {
        0 => Stance::Absent,
        1 => Stance::Honest,
        2 => Stance::Held(half),
        3 => Stance::Claims(Size::Untold),
        4..8 => Stance::Claims(told),
        8 => Stance::Lies(told, Course::Held(half)),
        9 => Stance::Lies(told, Course::Cut(half)),
        10 => Stance::Lies(told, Course::Drip),
        _ => Stance::Lies(told, Course::Whole),
    }
}

fn step(
    random: &mut fastrand::Rng,
    tiers: bool,
    owned: Option<Registry>,
    size: u64,
    is_manifest: bool,
) -> Step {
    let entry = match tiers {
        true => *pick(random, &[Entry::Node, Entry::Node, Entry::Parent]),
        false => Entry::Alone,
    };
    // Half of what clients ask is of somebody who may lie.
    let liars = [
        Registry::Evil,
        Registry::Evil,
        Registry::EvilLogin,
        Registry::Backed,
        Registry::Mirrored,
        Registry::Guarded,
    ];
    let registry = match owned {
        Some(registry) => registry,
        None if random.bool() => *pick(random, &liars),
        None => *pick(random, &Registry::ALL),
    };
    let repository = random.usize(..registry.repositories().len());
    let mut at = || random.u64(..size);
    let (one, other) = (at(), at());
    let what = match random.u8(..16) {
        0..5 if is_manifest => What::Manifest,
        0..6 => What::Get,
        6 | 7 => What::Head,
        8..11 => What::Closed(one.min(other), one.max(other)),
        11 => What::From(one),
        12 => What::Suffix(1 + one),
        13 => What::Abort(one.min(300_000)),
        14 => What::Trap,
        _ => What::Referrers,
    };
    Step { entry, place: Place { registry, repository }, what }
}

/// The content in the place of a manifest: an image's `manifest` is whatever a source holds under a digest.
fn layer(random: &mut fastrand::Rng, size: usize) -> Image {
    let mut content = vec![0; size];
    random.fill(&mut content);
    document("application/octet-stream", content.into())
}

/// A manifest of always the same size.
fn manifest(random: &mut fastrand::Rng) -> Image {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut hex = |count: usize| (0..count).map(|_| format!("{:016x}", random.u64(..))).collect::<String>();
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": format!("sha256:{}", hex(4)), "size": 2 });
    let body = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [],
        "annotations": { "org.example.filler": hex(100) },
    });
    document(media_type, body.to_string().into())
}

fn document(media_type: &'static str, manifest: Bytes) -> Image {
    Image {
        media_type,
        manifest,
        blobs: Vec::new(),
        children: Vec::new(),
        subject: None,
        artifact_type: None,
    }
}
