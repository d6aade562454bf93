//! Which core is whose: the servers get one, the clients and upstream another.
//!
//! A thread's children inherit the cores that it may use, so a server is put on its core by moving the thread
//! that starts it; it then finds a machine with one core, and sizes itself for that.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of this run.
pub(crate) struct Cores {
    servers: CpuSet,
    clients: CpuSet,
}

impl Cores {
    /// Takes the first core for servers, the second for everything else, and moves this thread there. With one
    /// core alone everything shares it, and the figures say little.
    pub(crate) fn divide() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let first = cores.next().unwrap();
        let second = cores.next().unwrap_or(first);
        if first == second {
            eprintln!("there is one core for servers and clients: do not believe the figures");
        }
        let cores = Self { servers: only(first), clients: only(second) };
        sched_setaffinity(None, &cores.clients).unwrap();
        cores
    }

    /// Does what starts a server.
    pub(crate) fn as_server<T>(&self, start: impl FnOnce() -> T) -> T {
        sched_setaffinity(None, &self.servers).unwrap();
        let started = start();
        sched_setaffinity(None, &self.clients).unwrap();
        started
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}
