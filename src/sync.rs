//! Locks that survive a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock, also after a panic of a thread that held it: what berth's locks guard is changed by single calls, and
/// so is whole at every moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
