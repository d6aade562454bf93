//! The daemons and fake registries in which cases are played: one that stands alone, a node and its parent.

use berth::oci::range::Span;
use berth::store::RangeSet;
use tempfile::TempPath;

use super::case::{Case, Course, Entry, Place, Registry, Size, Source, Stance};
use crate::support::{Auth, Berth, Blob, Fault, Gate, Setup, Upstream, docker_config, file_of};

pub(crate) struct World {
    alone: Berth,
    node: Berth,
    parent: Berth,
    fakes: Vec<Upstream>,
    _logins: TempPath,
}

/// What opens all that a case holds back.
pub(crate) type Gates = Vec<(Source, Gate)>;

impl World {
    /// `complete`: whether the rest of a blob is fetched of which parts were asked.
    pub(crate) async fn start(complete: &str) -> Self {
        let mut fakes = Vec::new();
        for source in Source::ALL {
            let fake = Upstream::start().await;
            if source.has_login() {
                fake.auth(Auth::Basic);
                fake.user("robot-a", "secret-a", "team-a/").user("robot-b", "secret-b", "team-b/");
                fake.user("robot-x", "secret-x", "x/");
            }
            fakes.push(fake);
        }
        let logins: Vec<_> = [Registry::Private, Registry::Guarded]
            .into_iter()
            .flat_map(|it| [("team-a", it), ("team-b", it)])
            .chain([("x", Registry::EvilLogin)])
            .map(|(project, it)| {
                let name = project.trim_start_matches("team-");
                (format!("{}/{project}", it.name()), format!("robot-{name}"), format!("secret-{name}"))
            })
            .collect();
        let logins: Vec<_> =
            logins.iter().map(|(key, user, password)| (&**key, &**user, &**password)).collect();
        let logins = file_of(&docker_config(&logins));
        let cache = format!("[cache]\ncomplete = {complete:?}\n");
        let setup = setup(&fakes, &logins);
        let parent = setup.clone().sections(&cache).start().await;
        let parents = format!("[parents]\nendpoints = [\"http://{}\"]\n", parent.address());
        let node = setup.clone().sections(&cache).sections(&parents).start().await;
        let alone = setup.sections(&cache).start().await;
        Self { alone, node, parent, fakes, _logins: logins }
    }

    pub(crate) fn berth(&self, entry: Entry) -> &Berth {
        match entry {
            Entry::Alone => &self.alone,
            Entry::Node => &self.node,
            Entry::Parent => &self.parent,
        }
    }

    pub(crate) fn fake(&self, source: Source) -> &Upstream {
        &self.fakes[source as usize]
    }

    /// Waits until nothing is being transferred.
    pub(crate) async fn until_idle(&self) {
        for berth in [&self.alone, &self.node, &self.parent] {
            berth.until_idle().await;
        }
    }

    /// Restarts the daemon that stands alone. The parent would come back at another address.
    pub(crate) async fn restart(&mut self) {
        self.alone.restart().await;
    }

    /// Has each source take its stance.
    pub(crate) fn arm(&self, case: &Case) -> Gates {
        let mut gates = Vec::new();
        for registry in Registry::ALL {
            for source in registry.sources() {
                for repository in 0..registry.repositories().len() {
                    self.publish(case, *source, Place { registry, repository });
                }
                gates.extend(self.misbehave(case, *source).map(|gate| (*source, gate)));
            }
        }
        gates
    }

    /// What the source has in a repository.
    fn publish(&self, case: &Case, source: Source, place: Place) {
        let (fake, name) = (self.fake(source), place.repository(case));
        let held = match case.stance(source) {
            Stance::Absent => None,
            // There is something that nobody has a login for. Another project may simply lack it.
            Stance::Honest | Stance::Held(_) if place.repository == 1 && !case.may_read(place) => None,
            Stance::Honest | Stance::Held(_) => Some(case.content.clone()),
            Stance::Claims(_) => Some(case.wrong(source, Size::Right)),
            Stance::Lies(size, _) => Some(case.wrong(source, size)),
        };
        if let Some(held) = held {
            fake.blob(&name, &Blob { digest: case.digest, content: held.manifest.clone() });
            if case.is_manifest {
                fake.misnamed(&name, &case.digest, &held);
            }
        }
        if matches!(case.stance(source), Stance::Claims(_) | Stance::Lies(..)) {
            fake.image(&name, "trap", &case.trap(source));
        }
    }

    fn misbehave(&self, case: &Case, source: Source) -> Option<Gate> {
        let (fake, digest) = (self.fake(source), case.digest.to_string());
        let gate = Gate::new();
        let on = |method: &str, fault: Fault| {
            for part in ["blobs", "manifests"] {
                fake.on(method, &format!("/{part}/{digest}")).fault(fault.clone());
            }
        };
        match case.stance(source) {
            Stance::Absent | Stance::Honest => {}
            Stance::Held(after) => on("GET", Fault::HoldAfter(after, gate.clone())),
            Stance::Claims(size) => {
                on("GET", Fault::Status(404));
                match size {
                    Size::Right => {}
                    Size::Wrong => on("HEAD", Fault::ClaimLength(case.wrong_size(source))),
                    Size::Untold => on("HEAD", Fault::UntilClose),
                }
            }
            Stance::Lies(_, course) => match course {
                Course::Whole => {}
                Course::Held(after) => on("GET", Fault::HoldAfter(after, gate.clone())),
                Course::Cut(after) => on("GET", Fault::Cut(after)),
                Course::Drip => on("GET", Fault::Drip(2000)),
            },
        }
        let holds = matches!(case.stance(source), Stance::Held(_) | Stance::Lies(_, Course::Held(_)));
        holds.then_some(gate)
    }

    /// Whether a transfer of the content stands still, somewhere, for this registry.
    pub(crate) fn is_holding(&self, case: &Case, registry: Registry) -> bool {
        let digest = case.digest.to_string();
        case.holds(registry).into_iter().any(|(source, after)| {
            let asked = self.fake(source).seen("GET", &digest);
            asked.iter().any(|request| matches!(request.status(), 200 | 206) && request.bytes_sent() == after)
        })
    }

    /// The bytes of the content that a source has sent, if it sends the right ones.
    pub(crate) fn sent(&self, case: &Case, source: Source) -> RangeSet {
        let mut sent = RangeSet::default();
        if !matches!(case.stance(source), Stance::Honest | Stance::Held(_)) {
            return sent;
        }
        for request in self.fake(source).seen("GET", &case.digest.to_string()) {
            let start = match (request.status(), request.range().map(|range| range.resolve(case.size()))) {
                (206, Some(Ok(span))) => span.start,
                (200, _) => 0,
                _ => continue,
            };
            sent.insert(Span { start, end: start + request.bytes_sent() });
        }
        sent
    }
}

fn setup(fakes: &[Upstream], logins: &TempPath) -> Setup {
    let mut setup: Option<Setup> = None;
    for registry in Registry::ALL {
        let of = |source: &Source| &fakes[*source as usize];
        let sources = registry.sources();
        let mut next = match setup {
            None => Berth::with(registry.name(), of(&sources[0])),
            Some(setup) => setup.and(registry.name(), of(&sources[0])),
        };
        if sources[0].has_login() {
            next = next.keys(&format!("credentials = {{ file = {logins:?} }}"));
        }
        next = match registry {
            Registry::Mirrored => next.endpoint(of(&sources[1])),
            Registry::Guarded | Registry::Backed => {
                next.keys(&format!("[[upstream.fallback]]\nendpoints = [{:?}]", of(&sources[1]).url()))
            }
            Registry::Private | Registry::Open | Registry::Evil | Registry::EvilLogin => next,
        };
        setup = Some(next);
    }
    setup.expect("there are registries")
}
