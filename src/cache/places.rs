//! Where the readers of a flight are in what they asked for, and what of it the flight has not yet heard of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::schedule::Need;
use crate::oci::Range;
use crate::oci::range::Span;

/// Where the readers are.
#[derive(Default)]
pub(super) struct Places {
    all: Vec<Arc<Place>>,
    /// What was asked by readers that the flight has not yet heard of.
    asked: Vec<Option<Range>>,
}

/// Where a reader is in what it asked for.
pub(super) struct Place {
    asked: Option<Range>,
    position: AtomicU64,
}

impl Place {
    /// Its reader has all that lies before `position`.
    pub(super) fn go_to(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    fn need(&self, total: u64) -> Option<Need> {
        let span = self.asked.map_or_else(|| Ok(Span::whole(total)), |range| range.resolve(total)).ok()?;
        let start = span.start.max(self.position.load(Ordering::Relaxed));
        let is_open = matches!(self.asked, None | Some(Range::From(_)));
        (start < span.end).then_some(Need { span: Span { start, ..span }, is_open })
    }
}

impl Places {
    /// A reader has come.
    pub(super) fn enter(&mut self, asked: Option<Range>) -> Arc<Place> {
        let place = Arc::new(Place { asked, position: AtomicU64::new(0) });
        self.all.push(Arc::clone(&place));
        if !self.asked.contains(&asked) {
            self.asked.push(asked);
        }
        place
    }

    /// A reader has left.
    pub(super) fn leave(&mut self, place: &Arc<Place>) {
        self.all.retain(|other| !Arc::ptr_eq(other, place));
    }

    /// What was asked since the last call.
    pub(super) fn take_asked(&mut self) -> Vec<Option<Range>> {
        std::mem::take(&mut self.asked)
    }

    /// Whether the flight has heard of everything.
    pub(super) fn are_heard_of(&self) -> bool {
        self.asked.is_empty()
    }

    /// What the readers still want of `total` bytes, in the order in which they came.
    pub(super) fn needs(&self, total: u64) -> Vec<Need> {
        self.all.iter().filter_map(|place| place.need(total)).collect()
    }
}
