//! The data plane: whatever configuration it serves by just now.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::limits::Visit;
use super::registry::Serving;
use crate::cache::Cache;

/// The data plane.
pub struct Data(ArcSwap<Serving>);

impl Data {
    /// Serves this.
    pub fn new(serving: Serving) -> Self {
        Self(ArcSwap::from_pointee(serving))
    }

    /// Serves this from the next request on.
    pub fn replace(&self, serving: Serving) {
        self.0.store(Arc::new(serving));
    }

    /// What it serves now.
    pub fn serving(&self) -> Arc<Serving> {
        self.0.load_full()
    }

    /// Where its content comes from.
    pub fn cache(&self) -> Cache {
        self.0.load().cache().clone()
    }

    /// A connection of `client` begins.
    pub(super) fn greet(&self, client: IpAddr) -> Visit {
        Visit::begin(client, self.0.load().limits())
    }

    /// What it serves now, for one request: without a count of who has it, which would be one memory cell for all cores
    /// to write to.
    pub(super) fn now(&self) -> Guard<Arc<Serving>> {
        self.0.load()
    }
}
