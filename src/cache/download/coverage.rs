//! What clients have read of a content. It decides whether the rest of the content is worth fetching.

use std::sync::{Arc, Mutex};

use crate::oci::range::Span;
use crate::store::RangeSet;
use crate::sync::lock;

/// The most separate spans of one content that are kept. Further ones are not counted.
const SPANS_MAX: usize = 4096;

/// The spans of one content that clients have read, over all its flights. Clones share one account.
#[derive(Clone, Default)]
pub(in crate::cache) struct BytesRead(Arc<Mutex<RangeSet>>);

impl BytesRead {
    pub(in crate::cache) fn add(&self, span: Span) {
        let mut pieces = lock(&self.0);
        if pieces.spans().len() < SPANS_MAX {
            pieces.insert(span);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        lock(&self.0).bytes()
    }
}
