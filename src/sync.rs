//! Locks that survive a panic, and how far shared work has come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes a lock, also after a panic of a thread that held it: what berth's locks guard is changed by single calls, and
/// so is whole at every moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far some work has come. Clones are of the same work.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicBool>);

impl Progress {
    /// Upstream has begun to answer: the rest is worth having, whoever still waits for it.
    pub fn answered(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it goes on when nobody waits for it.
    pub fn goes_on_alone(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
