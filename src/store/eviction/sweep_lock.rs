//! One eviction at a time: others that need room wait for the one that is running.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::sync::lock;

/// The lock that one thread at a time holds while it evicts.
#[derive(Default)]
pub(in crate::store) struct SweepLock {
    is_busy: Mutex<bool>,
    /// Notified when something was evicted, and when the lock is free.
    progress: Condvar,
}

/// The held lock; dropping it frees the lock.
pub(in crate::store) struct SweepGuard<'a>(&'a SweepLock);

impl Drop for SweepGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.is_busy) = false;
        self.0.progress.notify_all();
    }
}

impl SweepLock {
    /// Takes the lock; `None` while another thread has it.
    pub(in crate::store) fn try_take(&self) -> Option<SweepGuard<'_>> {
        let mut is_busy = lock(&self.is_busy);
        if *is_busy {
            return None;
        }
        *is_busy = true;
        Some(SweepGuard(self))
    }

    /// Waits while another thread evicts, until something was evicted, but no longer than `timeout`.
    pub(in crate::store) fn wait(&self, timeout: Duration) {
        let is_busy = lock(&self.is_busy);
        if *is_busy {
            drop(self.progress.wait_timeout(is_busy, timeout));
        }
    }
}

impl SweepGuard<'_> {
    /// Tells the waiting threads that something was evicted.
    pub(in crate::store) fn tell_progress(&self) {
        self.0.progress.notify_all();
    }
}
