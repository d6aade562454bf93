//! What clients have read of a content: it decides whether the rest of it is worth fetching.

use std::sync::{Arc, Mutex};

use crate::oci::range::Span;
use crate::store::Pieces;
use crate::sync::lock;

/// Separate parts of one content that are remembered as taken; further ones count for nothing.
const SPANS_MAX: usize = 4096;

/// What readers have taken of one content, over all its flights.
#[derive(Clone, Default)]
pub(in crate::cache) struct Taken(Arc<Mutex<Pieces>>);

impl Taken {
    pub(in crate::cache) fn add(&self, span: Span) {
        let mut pieces = lock(&self.0);
        if pieces.spans().len() < SPANS_MAX {
            pieces.insert(span);
        }
    }

    pub(in crate::cache) fn bytes(&self) -> u64 {
        lock(&self.0).bytes()
    }
}
