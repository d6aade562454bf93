//! Locks that survive a panic, and the progress of shared work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes a lock, even after a thread that held it has panicked. What berth's locks guard is changed by single calls, and so
/// is whole at every moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether some shared work has come so far that it is finished in any case. Clones are of the same work.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicBool>);

impl Progress {
    /// Notes that upstream has begun to answer: the rest is worth having even if nothing waits for it any more.
    pub fn answered(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it goes on when nothing waits for it.
    pub fn goes_on_alone(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
