//! Names looked up: each once at a time, for all who want it, on threads that do nothing else.
//!
//! The system's resolver blocks a thread until it has an answer or gives up, which takes it ten seconds and more when no
//! name server answers. So these threads are few, and not those that read the disk: a dead name server delays no hit. A
//! registry that points to many names holds up no other: each registry has its part of the threads and of the queue. What
//! cannot be found is not asked for again for [`FAILURE_MEMORY`]; what is found is not kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error;
use crate::bounded;
use crate::oci::Registry;
use crate::sync::lock;

/// Names looked up at once. A name server answers within milliseconds, or not at all.
const THREADS_MAX: usize = 8;
/// The part of the threads that one registry can have: its names may all be dead.
const OWN_THREADS_MAX: usize = 2;
/// Names of one registry that wait for a thread. It has some endpoints, a token server and a few object stores.
const OWN_WAITING_MAX: usize = 64;
/// Names that wait for a thread, of all registries.
const WAITING_MAX: usize = 1024;
/// For how long it is believed that a name cannot be found: a storm asks once, a name server that is back is noticed.
const FAILURE_MEMORY: Duration = Duration::from_secs(3);
/// Failures that are remembered; of the names alone they take a quarter of a megabyte at most.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Finds the addresses of a name, or waits until the system gives up.
type Find = Box<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;
type Answer = Result<Vec<IpAddr>, Failure>;

/// Why a name has no addresses, for all who asked.
#[derive(Clone, Debug)]
struct Failure {
    /// Of the kernel, if it is from there.
    code: Option<i32>,
    text: Arc<str>,
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        Self { code: error.raw_os_error(), text: error.to_string().into() }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure.code {
            Some(code) => Self::from_raw_os_error(code),
            None => Self::other(&*failure.text),
        }
    }
}

/// So many names wait to be looked up that this one cannot.
#[derive(Debug, thiserror::Error)]
#[error("too many names wait to be looked up")]
pub(crate) struct Crowded;

/// All look-ups of the process.
pub(crate) fn lookups() -> &'static Lookups {
    static ALL: LazyLock<Lookups> = LazyLock::new(|| Lookups::new(Box::new(by_system)));
    &ALL
}

fn by_system(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
    found.map_err(|error| {
        // Without a file descriptor the system's resolver says no more than that it has failed.
        let lack = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).err();
        lack.filter(|lack| error::local(lack).is_some()).unwrap_or(error)
    })
}

/// Looks names up.
pub(crate) struct Lookups(Arc<Inner>);

struct Inner {
    find: Find,
    state: Mutex<State>,
    /// There is a name to look up, or a thread for one.
    changed: Condvar,
}

struct State {
    /// What is waited for, by name.
    under_way: HashMap<Arc<str>, UnderWay>,
    /// Names that wait for a thread, each with the registry that wants it.
    waiting: VecDeque<(Registry, Arc<str>)>,
    /// Threads at work for each registry.
    busy: HashMap<Registry, usize>,
    failures: LruCache<Arc<str>, (Instant, Failure)>,
    threads: usize,
    /// Those without a name to look up, also if they were only just made.
    threads_idle: usize,
}

struct UnderWay {
    answer: watch::Sender<Option<Answer>>,
    /// Whether a thread is at work on it.
    is_begun: bool,
}

impl Lookups {
    fn new(find: Find) -> Self {
        let state = State {
            under_way: HashMap::new(),
            waiting: VecDeque::new(),
            busy: HashMap::new(),
            failures: bounded::lru(FAILURES_MAX),
            threads: 0,
            threads_idle: 0,
        };
        Self(Arc::new(Inner { find, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// The addresses of `name`, which `owner` wants.
    ///
    /// # Errors
    /// What the system says; [`Crowded`] when too many names wait.
    pub(crate) async fn find(&self, owner: &Registry, name: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let mut answer = self.enter(owner, &name.to_ascii_lowercase())?;
        let answer = answer.wait_for(Option::is_some).await.map(|answer| answer.clone());
        let gone = || io::Error::other("the look-up was given up");
        answer.ok().flatten().ok_or_else(gone)?.map_err(Into::into)
    }

    /// Has the name looked up, unless it is already.
    fn enter(&self, owner: &Registry, name: &str) -> io::Result<watch::Receiver<Option<Answer>>> {
        let mut state = lock(&self.0.state);
        if let Some((at, failure)) = state.failures.get(name) {
            if at.elapsed() < FAILURE_MEMORY {
                return Err(failure.clone().into());
            }
            state.failures.pop(name);
        }
        let answer = state.join(owner, name).ok_or_else(|| io::Error::other(Crowded))?;
        if state.threads_idle < state.waiting.len() && state.threads < THREADS_MAX {
            let inner = Arc::clone(&self.0);
            let spawned = thread::Builder::new().name("names".to_owned()).spawn(move || inner.run());
            match spawned {
                Ok(_) => {
                    state.threads += 1;
                    state.threads_idle += 1;
                }
                // The others do it.
                Err(_) if state.threads > 0 => {}
                Err(error) => {
                    state.under_way.remove(name);
                    state.waiting.retain(|(_, waiting)| &**waiting != name);
                    return Err(error);
                }
            }
        }
        drop(state);
        self.0.changed.notify_one();
        Ok(answer)
    }
}

impl State {
    /// What `name` will be found to be; `None` if there is no room for it.
    fn join(&mut self, owner: &Registry, name: &str) -> Option<watch::Receiver<Option<Answer>>> {
        if !self.has_room(owner) {
            // Many may have been given up.
            self.waiting.retain(|(_, name)| is_wanted(&mut self.under_way, name));
        }
        let has_room = self.has_room(owner);
        let is_queued = self.waiting.iter().any(|(of, waiting)| of == owner && &**waiting == name);
        if let Some(under_way) = self.under_way.get(name) {
            let answer = under_way.answer.subscribe();
            // Whoever wanted it first may have all its threads at work.
            if !under_way.is_begun && !is_queued && has_room {
                self.waiting.push_back((owner.clone(), name.into()));
            }
            return Some(answer);
        }
        if !has_room {
            return None;
        }
        let (sender, answer) = watch::channel(None);
        let name: Arc<str> = name.into();
        self.under_way.insert(Arc::clone(&name), UnderWay { answer: sender, is_begun: false });
        self.waiting.push_back((owner.clone(), name));
        Some(answer)
    }

    fn has_room(&self, owner: &Registry) -> bool {
        let own = self.waiting.iter().filter(|(of, _)| of == owner).count();
        own < OWN_WAITING_MAX && self.waiting.len() < WAITING_MAX
    }

    /// The next name to look up: of the registry with the fewest threads at work, and that which has waited longest.
    fn next(&mut self) -> Option<(Registry, Arc<str>)> {
        let Self { under_way, waiting, busy, .. } = self;
        waiting.retain(|(_, name)| is_wanted(under_way, name));
        let threads = |owner: &Registry| busy.get(owner).copied().unwrap_or_default();
        let all = waiting.iter().enumerate().map(|(at, (owner, _))| (threads(owner), at));
        let (_, at) = all.filter(|(threads, _)| *threads < OWN_THREADS_MAX).min()?;
        let (owner, name) = waiting.remove(at)?;
        under_way.get_mut(&name)?.is_begun = true;
        *busy.entry(owner.clone()).or_default() += 1;
        Some((owner, name))
    }

    fn end(&mut self, owner: &Registry, name: &Arc<str>, answer: Answer) {
        if let Some(threads) = self.busy.get_mut(owner) {
            *threads -= 1;
            if *threads == 0 {
                self.busy.remove(owner);
            }
        }
        if let Err(failure) = &answer
            // What this machine lacks says nothing about the name.
            && error::local(&failure.clone().into()).is_none()
        {
            self.failures.put(Arc::clone(name), (Instant::now(), failure.clone()));
        }
        if let Some(under_way) = self.under_way.remove(name) {
            under_way.answer.send_replace(Some(answer));
        }
    }
}

/// Whether a name that waits is to be looked up: nobody may wait for it any more, or it is under way for another registry.
fn is_wanted(under_way: &mut HashMap<Arc<str>, UnderWay>, name: &Arc<str>) -> bool {
    match under_way.get(name) {
        Some(found) if found.is_begun => false,
        Some(found) if found.answer.receiver_count() > 0 => true,
        Some(_) => {
            under_way.remove(name);
            false
        }
        None => false,
    }
}

impl Inner {
    /// Looks one name up after the other, for ever.
    fn run(&self) {
        let mut state = lock(&self.state);
        loop {
            let Some((owner, name)) = state.next() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.threads_idle -= 1;
            drop(state);
            let answer = (self.find)(&name).map_err(|error| Failure::from(&error));
            state = lock(&self.state);
            state.threads_idle += 1;
            state.end(&owner, &name, answer);
            // A name of the same registry may have waited for this thread.
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn registry(name: &str) -> Registry {
        Registry::parse(name).unwrap()
    }

    /// Opens what is held.
    type Held = Arc<(Mutex<bool>, Condvar)>;

    /// Look-ups that begin with a word about the name and end when the test says so.
    fn held() -> (Arc<Lookups>, mpsc::Receiver<String>, Held) {
        let (begun, names) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (begun, held) = (Mutex::new(begun), Arc::clone(&gate));
        let find = move |name: &str| {
            lock(&begun).send(name.to_owned()).unwrap();
            let mut open = lock(&held.0);
            while !*open && !name.starts_with("fast") {
                open = held.1.wait(open).unwrap();
            }
            match name.contains("gone") {
                true => Err(io::Error::other("no such name")),
                false => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
            }
        };
        (Arc::new(Lookups::new(Box::new(find))), names, gate)
    }

    fn open(gate: &(Mutex<bool>, Condvar)) {
        *lock(&gate.0) = true;
        gate.1.notify_all();
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_want_it_and_a_failure_is_remembered() {
        let (lookups, names, gate) = held();
        let ask = |name: &'static str| {
            let lookups = Arc::clone(&lookups);
            tokio::spawn(async move { lookups.find(&registry("a.example"), name).await })
        };
        let asked: Vec<_> = (0..100).map(|_| ask("gone.example")).collect();
        tokio::task::yield_now().await;
        open(&gate);
        for answer in asked {
            assert!(answer.await.unwrap().unwrap_err().to_string().contains("no such name"));
        }
        assert!(ask("GONE.example").await.unwrap().is_err(), "remembered");
        assert_eq!(ask("good.example").await.unwrap().unwrap(), [Ipv4Addr::LOCALHOST]);
        assert_eq!(ask("good.example").await.unwrap().unwrap(), [Ipv4Addr::LOCALHOST], "not kept");
        assert_eq!(ask("127.0.0.9").await.unwrap().unwrap(), [Ipv4Addr::new(127, 0, 0, 9)]);
        let looked_up: Vec<_> = names.try_iter().collect();
        assert_eq!(looked_up, ["gone.example", "good.example", "good.example"]);
    }

    #[tokio::test]
    async fn the_dead_names_of_one_registry_hold_up_no_other() {
        let (lookups, names, gate) = held();
        let (evil, good) = (registry("evil.example"), registry("good.example"));
        let mut asked = Vec::new();
        for number in 0..OWN_WAITING_MAX + 40 {
            asked.extend(lookups.enter(&evil, &format!("dead-{number}.example")));
            if number < OWN_THREADS_MAX {
                names.recv().unwrap();
            }
        }
        assert_eq!(asked.len(), OWN_WAITING_MAX + OWN_THREADS_MAX, "the queue is bounded");
        assert_eq!(lookups.find(&good, "fast.example").await.unwrap(), [Ipv4Addr::LOCALHOST]);
        assert_eq!(
            names.try_iter().collect::<Vec<_>>(),
            ["fast.example"],
            "only two are at work for the other"
        );
        assert!(lock(&lookups.0.state).threads <= THREADS_MAX);
        // Nobody waits for them any more: no thread is spent on them, and there is room for others.
        drop(asked);
        let alive = tokio::spawn(async move { lookups.find(&evil, "alive.example").await });
        tokio::task::yield_now().await;
        open(&gate);
        assert!(alive.await.unwrap().is_ok());
        assert_eq!(names.try_iter().collect::<Vec<_>>(), ["alive.example"]);
    }
}
