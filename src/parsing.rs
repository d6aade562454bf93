//! Bounds the memory that documents of strangers take, and parses large ones off the runtime.
//!
//! A manifest or a list may have four megabytes, takes some ten milliseconds to read and comes whenever a client asks
//! for one. So a large one takes a place among `BYTES_MAX` bytes before it is read from the network, and gives that up when
//! what it said is stored; and it is parsed on a thread that may block, never on the runtime's, where all other requests
//! would wait for it.
//!
//! Places are [shared](crate::shares) between the registries that send documents and the clients that these are for: one
//! owner alone may have all but an eighth, in which any other's document fits at once. A document waits for its place once
//! and has it whole, so that no two halves wait for each other, and work that has one place waits for no other meanwhile.
//!
//! Small documents, which nearly all are, take no place and are parsed where they are. [`SMALL_BYTES`] of an honest index
//! take 0.14 ms, hashed another 0.04 ms, and the worst that was found for the parser 0.4 ms: less than it matters to the
//! other requests of that thread. The largest take 6 ms, and to filter a list of that size 30 ms. What is read of a small
//! one before it is known to be small is no more than a connection's buffers.

use std::fmt;
use std::sync::LazyLock;

use crate::shares::{Busy, Limits, Owner, Permit, Shares};

/// The size in bytes up to which a document takes no place.
pub const SMALL_BYTES: usize = 64 * 1024;
/// The bytes of large documents in memory at once: eight of the largest.
const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The bytes that a document counts for at most, so that each fits into the eighth that is left to others. Manifests may
/// have a twentieth more.
const COUNTED_BYTES_MAX: u64 = BYTES_MAX / 8;
/// The number of documents that may wait for a place: more would wait for longer than their clients do.
const WAITING_MAX: usize = 4096;
/// The same of one owner.
const WAITING_OF_ONE_MAX: usize = 1024;

/// The places of this process, whose memory it is.
static PLACES: LazyLock<Shares> = LazyLock::new(|| {
    let (waiting, waiting_of_one) = (WAITING_MAX, WAITING_OF_ONE_MAX);
    Shares::new(Limits { total: BYTES_MAX, waiting, waiting_of_one })
});

/// The place of one document, until it is dropped.
#[derive(Default)]
pub struct Place {
    _permit: Option<Permit>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// Waits for a place for a document of `bytes`. A small one needs none.
///
/// # Errors
/// [`Busy`], if too many wait already.
pub async fn place(owner: Owner, bytes: usize) -> Result<Place, Busy> {
    take(&PLACES, owner, bytes).await
}

async fn take(places: &Shares, owner: Owner, bytes: usize) -> Result<Place, Busy> {
    if bytes <= SMALL_BYTES {
        return Ok(Place::default());
    }
    let counted = COUNTED_BYTES_MAX.min(bytes as u64);
    Ok(Place { _permit: Some(places.acquire(owner, counted).await?) })
}

/// Does work on a document of `bytes` that is in memory: a large one's on a thread that may block. A panic of the work is
/// resumed in the caller.
pub async fn parse<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= SMALL_BYTES {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Never "cancelled": that is only for work that a stopping runtime has not begun, and then nobody is here to
        // see it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::context::Client;

    const LARGE: usize = 5 * 1024 * 1024;

    /// The place, if it is there at once.
    async fn at_once(places: &Shares, registry: &str, bytes: usize) -> Option<Place> {
        let owner = Owner::new(&registry.parse().unwrap(), Client::Own);
        let mut wait = Box::pin(take(places, owner, bytes));
        let polled = std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await;
        match polled {
            Poll::Ready(place) => Some(place.unwrap()),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_owner_leaves_room_for_the_largest_document_of_another() {
        let places = PLACES.clone();
        let mut taken = Vec::new();
        while let Some(place) = at_once(&places, "evil.test", LARGE).await {
            taken.push(place);
        }
        assert_eq!(taken.len(), 7);
        let honest = at_once(&places, "honest.test", LARGE).await;
        assert!(honest.is_some(), "the reserve is not for the owner that has all the rest");
        assert!(at_once(&places, "third.test", LARGE).await.is_none(), "all is taken");
        assert!(at_once(&places, "third.test", SMALL_BYTES).await.is_some(), "a small one takes none");
        drop(honest);
        assert!(at_once(&places, "third.test", LARGE).await.is_some());
    }

    #[tokio::test]
    async fn large_work_leaves_the_thread_and_panics_come_back() {
        let here = std::thread::current().id();
        assert_eq!(parse(SMALL_BYTES, || std::thread::current().id()).await, here);
        assert_ne!(parse(SMALL_BYTES + 1, || std::thread::current().id()).await, here);
        let panicking = tokio::spawn(parse(LARGE, || panic!("in a test")));
        assert!(panicking.await.is_err_and(|error| error.is_panic()));
    }
}
