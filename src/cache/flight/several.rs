//! A reader that reads several parts, one after the other.

use super::Reader;
use crate::oci::ranges::Part;
use crate::sync::lock;

impl Reader {
    /// Asks for these parts of a content of `total` bytes, if it came for several ranges; for none if they are refused.
    pub(in crate::cache) fn decide(&self, parts: &[Part], total: u64) {
        if self.place.is_undecided() {
            lock(&self.flight.places).decide(&self.place, parts, total);
            self.flight.wake.notify_one();
        }
    }

    /// Begins with another of them. What it stands before may be far from all that is under way.
    pub(in crate::cache) fn turn_to(&self, part: usize, position: u64) {
        self.place.turn_to(part);
        self.place.go_to(position);
        self.flight.wake.notify_one();
    }
}
