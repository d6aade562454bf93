//! One eviction at a time; those who need room wait for the one that is under way.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::sync::lock;

/// Whether somebody is evicting.
#[derive(Default)]
pub(in crate::store) struct SweepLock {
    is_busy: Mutex<bool>,
    /// Told when something has gone, and when nobody is evicting any more.
    progress: Condvar,
}

/// That somebody is evicting, until this is dropped.
pub(in crate::store) struct SweepGuard<'a>(&'a SweepLock);

impl Drop for SweepGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.is_busy) = false;
        self.0.progress.notify_all();
    }
}

impl SweepLock {
    /// None while somebody else is evicting.
    pub(in crate::store) fn try_take(&self) -> Option<SweepGuard<'_>> {
        let mut is_busy = lock(&self.is_busy);
        if *is_busy {
            return None;
        }
        *is_busy = true;
        Some(SweepGuard(self))
    }

    /// Waits while somebody evicts, until something has gone, but no longer than `timeout`.
    pub(in crate::store) fn wait(&self, timeout: Duration) {
        let is_busy = lock(&self.is_busy);
        if *is_busy {
            drop(self.progress.wait_timeout(is_busy, timeout));
        }
    }
}

impl SweepGuard<'_> {
    /// Tells those who wait that something has gone.
    pub(in crate::store) fn tell_progress(&self) {
        self.0.progress.notify_all();
    }
}
