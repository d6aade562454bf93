//! Documents of strangers: how many bytes of them are in memory at once, and where they are parsed.
//!
//! A manifest or a list may have four megabytes, takes some ten milliseconds to read and comes whenever a client asks
//! for one. So a large one takes its place among [`BYTES_MAX`] bytes before it is read from the network, and gives
//! that up when what it said is stored; and it is parsed on a thread that may block, never on the runtime's, where all
//! other requests would wait for it.
//!
//! Each place has an owner, the registry that sent the document. One owner alone may have all but a reserve, in which
//! any other's document fits at once; those who wait come in their order. A document waits for its place once and has
//! it whole, so that no two halves wait for each other, and whoever has one waits for no other meanwhile.
//!
//! Small documents, which nearly all are, take no place and are parsed where they are: [`SMALL_BYTES`] take a tenth of
//! a millisecond, about what it costs to hand work to another thread and back, and what is read of them meanwhile is
//! no more than a connection's buffers.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// A document of up to this takes no place.
pub const SMALL_BYTES: usize = 64 * 1024;
/// Bytes of large documents in memory at once: eight of the largest.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// What one owner alone never takes of these: an eighth, which is one of the largest documents.
const RESERVE_BYTES: usize = BYTES_MAX / 8;
/// No document counts for more, so that each fits into the reserve: manifests may have a twentieth more.
const COUNTED_BYTES_MAX: usize = RESERVE_BYTES;

/// The places of this process.
static PLACES: LazyLock<Places> = LazyLock::new(Places::new);

struct Places {
    all: Arc<Semaphore>,
    /// What each owner may have of them, while it has or wants any.
    owners: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The place of one document, until it is dropped.
#[derive(Debug, Default)]
pub struct Place {
    _of_owner: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// Waits for a place for a document of so many bytes, which `owner` sends; a small one has it at once.
pub async fn place(owner: &str, bytes: usize) -> Place {
    PLACES.take(owner, bytes).await
}

/// Does work on a document of so many bytes that is in memory, on a thread that may take its time if it is a large one.
/// A panic of the work is one of the caller.
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

impl Places {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(BYTES_MAX)), owners: Mutex::default() }
    }

    async fn take(&self, owner: &str, bytes: usize) -> Place {
        if bytes <= SMALL_BYTES {
            return Place::default();
        }
        let bytes = u32::try_from(bytes.min(COUNTED_BYTES_MAX)).expect("it is at most the largest counted");
        // The owner's first: of what one owner waits for, no more stands in the line of all than it may have.
        let of_owner = self.of(owner).acquire_many_owned(bytes).await.ok();
        let of_all = Arc::clone(&self.all).acquire_many_owned(bytes).await.ok();
        Place { _of_owner: of_owner, _of_all: of_all }
    }

    fn of(&self, owner: &str) -> Arc<Semaphore> {
        let mut owners = lock(&self.owners);
        // An owner without places nor wishes has all of its share left, and needs no entry to say so.
        owners.retain(|_, share| Arc::strong_count(share) > 1);
        let whole = || Arc::new(Semaphore::new(BYTES_MAX - RESERVE_BYTES));
        Arc::clone(owners.entry(owner.to_owned()).or_insert_with(whole))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const LARGE: usize = 5 * 1024 * 1024;

    /// The place, if it is there at once.
    async fn at_once(places: &Places, owner: &str, bytes: usize) -> Option<Place> {
        let mut wait = Box::pin(places.take(owner, bytes));
        let polled = std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await;
        match polled {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_owner_leaves_room_for_one_document_of_another() {
        let places = Places::new();
        let mut taken = Vec::new();
        while let Some(place) = at_once(&places, "evil", LARGE).await {
            taken.push(place);
        }
        assert_eq!(taken.len(), 7);
        let honest = at_once(&places, "honest", LARGE).await;
        assert!(honest.is_some(), "the reserve is not for the owner that has all the rest");
        assert!(at_once(&places, "third", LARGE).await.is_none(), "all is taken");
        assert!(at_once(&places, "third", SMALL_BYTES).await.is_some(), "a small one takes none");
        taken.pop();
        assert!(at_once(&places, "third", LARGE).await.is_some());
        drop((taken, honest));
        drop(at_once(&places, "last", LARGE).await);
        assert_eq!(lock(&places.owners).len(), 1, "who has gone is forgotten");
        assert_eq!(places.all.available_permits(), BYTES_MAX);
    }

    #[tokio::test]
    async fn a_wish_given_up_leaves_nothing_behind() {
        let places = Places::new();
        let mut taken = Vec::new();
        for owner in ["a", "b"] {
            while let Some(place) = at_once(&places, owner, LARGE).await {
                taken.push(place);
            }
        }
        assert!(at_once(&places, "c", LARGE).await.is_none());
        taken.clear();
        assert_eq!(places.all.available_permits(), BYTES_MAX);
        assert!(at_once(&places, "c", LARGE).await.is_some());
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
