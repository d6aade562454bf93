//! Shares of a limit: a semaphore that no owner can take the whole of.
//!
//! Every piece of work has an [`Owner`] (registry, client), and no owner can take the whole of a limit from others. Shares
//! are work-conserving: a lone owner may use all that nothing else asks for, minus a small reserve, and the reserve is what
//! the next owner finds at once. A limit is shared out between registries, and the part of a registry between its clients.
//! `table` decides, and knows no time and no task.
//!
//! Requests that wait for more than there is are served in turn: what is released goes to the registry that has least, there
//! to the client that has least, and to the oldest of its requests. The queue is bounded, and so are the places in it that
//! one owner may take. A future that is dropped has left the queue; a [`Permit`] that is dropped is released.
//!
//! A holder that keeps a permit for long asks it now and then whether it should [`give_way`](Permit::give_way).
//!
//! There is one lock, held for a pass over those that wait and hold, and never across an await.

mod table;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::context::Client;
use crate::oci::Registry;
use crate::sync::lock;
use table::Table;

/// The owner of a piece of work: a client, at a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The registry that is asked.
    pub registry: Registry,
    /// The client that it is done for.
    pub client: Client,
}

impl Owner {
    /// The owner of what is done at `registry` for `client`.
    pub fn new(registry: &Registry, client: Client) -> Self {
        Self { registry: registry.owner(), client }
    }
}

/// The size of a limit, and of its queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The units to share out, such as seats or bytes.
    pub total: u64,
    /// The number of requests in the queue, of all owners. Beyond it the owner that has most of them loses its youngest.
    pub waiting: usize,
    /// The number of requests in the queue, of one owner.
    pub waiting_of_one: usize,
}

/// The owners for which a permit may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Owners that have less, and still do afterwards: other registries, or other clients of the same.
    Less,
    /// These, and those that will then have what this one had: an owner that has nothing, from one that has one.
    Next,
    /// These, and the same owner.
    Same,
}

/// The error of a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait for the same already")]
pub struct Busy;

/// A limit, with those that hold some of it or wait for some. Clones share it.
#[derive(Clone)]
pub struct Shares(Arc<Mutex<State>>);

struct State {
    table: Table,
    /// Where those that wait hear that they are served, by the numbers of their tickets.
    answers: HashMap<u64, oneshot::Sender<Result<(), Busy>>>,
}

impl State {
    /// Serves all that can be served now.
    fn settle(&mut self) {
        while let Some(number) = self.table.grant() {
            self.answer(number, Ok(()));
        }
    }

    /// Tells the holder of a ticket. One that does not listen any more is just letting go of its ticket.
    fn answer(&mut self, number: u64, answer: Result<(), Busy>) {
        let listens = self.answers.remove(&number).map(|sender| sender.send(answer));
        debug_assert!(listens.is_some(), "every ticket in the queue has somebody who waits for it");
    }
}

impl Shares {
    /// A limit of which nothing is taken.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(State { table: Table::new(limits), answers: HashMap::new() })))
    }

    /// Waits for `amount` of it for `owner`. An amount that is more than one owner may have is cut to that.
    ///
    /// # Errors
    /// [`Busy`], at once or when others have displaced it in the queue.
    pub async fn acquire(&self, owner: Owner, amount: u64) -> Result<Permit, Busy> {
        self.join(owner, amount)?.await
    }

    fn join(&self, owner: Owner, amount: u64) -> Result<Waiting, Busy> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state();
        let amount = state.table.cut(amount);
        let (number, displaced) = state.table.join(&owner, amount)?;
        state.answers.insert(number, sender);
        if let Some(displaced) = displaced {
            state.answer(displaced, Err(Busy));
        }
        state.settle();
        Ok(Waiting { shares: self.clone(), owner, amount, number, answer, is_over: false })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// A place in the queue, until it is dropped.
struct Waiting {
    shares: Shares,
    owner: Owner,
    amount: u64,
    number: u64,
    answer: oneshot::Receiver<Result<(), Busy>>,
    is_over: bool,
}

impl Waiting {
    fn permit(&mut self) -> Permit {
        self.is_over = true;
        let (shares, owner) = (self.shares.clone(), self.owner.clone());
        Permit { shares, owner, amount: self.amount, is_giving: false }
    }
}

impl Future for Waiting {
    type Output = Result<Permit, Busy>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            // Its sender is never dropped without an answer.
            answer.unwrap_or(Err(Busy))?;
            Ok(self.permit())
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.shares.state();
        if state.answers.remove(&self.number).is_some() {
            state.table.leave(&self.owner, self.number);
        } else if let Ok(Ok(())) = self.answer.try_recv() {
            // It was served, and has not heard of it.
            state.table.release(&self.owner, self.amount, false);
        }
        state.settle();
    }
}

/// Some of a limit, until it is dropped.
pub struct Permit {
    shares: Shares,
    owner: Owner,
    amount: u64,
    is_giving: bool,
}

impl Permit {
    /// Whether its holder should let go of it now: that much is waited for, and not enough other holders have been told the
    /// same. Once it is true, it stays so.
    pub fn give_way(&mut self, to: To) -> bool {
        if !self.is_giving {
            self.is_giving = self.shares.state().table.give_way(&self.owner, self.amount, to);
        }
        self.is_giving
    }

    /// Whether [`Permit::give_way`] would say so.
    pub fn is_wanted(&self, to: To) -> bool {
        self.is_giving || self.shares.state().table.is_wanted(&self.owner, self.amount, to)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shares.state();
        state.table.release(&self.owner, self.amount, self.is_giving);
        state.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::yield_now;

    use super::*;

    const LIMITS: Limits = Limits { total: 16, waiting: 8, waiting_of_one: 4 };

    fn owner(registry: &str, client: u8) -> Owner {
        let client = Client::At(Ipv4Addr::new(10, 0, 0, client).into());
        Owner::new(&registry.parse().unwrap(), client)
    }

    /// One of it, if it is there without a wait.
    fn take(shares: &Shares, owner: &Owner) -> Option<Permit> {
        let mut waiting = shares.join(owner.clone(), 1).ok()?;
        waiting.answer.try_recv().ok()?.ok()?;
        Some(waiting.permit())
    }

    /// All that one owner may have.
    fn take_all(shares: &Shares, owner: &Owner) -> Vec<Permit> {
        std::iter::from_fn(|| take(shares, owner)).collect()
    }

    fn is_contended(shares: &Shares) -> bool {
        shares.state().table.is_contended()
    }

    #[tokio::test]
    async fn one_alone_has_all_but_the_reserve_and_others_start_at_once() {
        let shares = Shares::new(LIMITS);
        let greedy = take_all(&shares, &owner("a.test", 1));
        assert_eq!(greedy.len(), 14);
        assert!(!is_contended(&shares));
        let _neighbour = take(&shares, &owner("a.test", 2)).expect("another client of the registry");
        let _other = take(&shares, &owner("b.test", 1)).expect("another registry");
        assert!(take(&shares, &owner("b.test", 1)).is_none(), "nothing is left");
        drop(greedy);
        assert_eq!(take_all(&shares, &owner("c.test", 1)).len(), 12);
    }

    #[tokio::test]
    async fn what_is_released_goes_to_who_has_least() {
        let shares = Shares::new(LIMITS);
        let mut greedy = take_all(&shares, &owner("a.test", 1));
        let ask = |owner| {
            let shares = shares.clone();
            tokio::spawn(async move { shares.acquire(owner, 1).await.unwrap() })
        };
        let more = ask(owner("a.test", 1));
        yield_now().await;
        assert!(is_contended(&shares));
        let first = [ask(owner("b.test", 1)), ask(owner("c.test", 1))];
        for asked in first {
            greedy.push(asked.await.unwrap());
        }
        let next = ask(owner("b.test", 1));
        yield_now().await;
        assert!(greedy[0].give_way(To::Less), "b.test has one, and asks");
        greedy.drain(..3);
        greedy.push(next.await.unwrap());
        assert!(!more.is_finished());
        greedy.clear();
        more.await.unwrap();
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing_behind() {
        let shares = Shares::new(LIMITS);
        let held = take_all(&shares, &owner("a.test", 1));
        let mut waiting = Box::pin(shares.acquire(owner("a.test", 1), 1));
        assert!(is_pending(&mut waiting).await);
        assert!(is_contended(&shares));
        drop(waiting);
        assert!(!is_contended(&shares));
        let mut waiting = Box::pin(shares.acquire(owner("a.test", 1), 1));
        assert!(is_pending(&mut waiting).await);
        drop(held);
        assert!(!is_contended(&shares), "its turn came, and it has not heard of it");
        drop(waiting);
        assert_eq!(take_all(&shares, &owner("a.test", 1)).len(), 14, "all is free again");
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, future).await.is_err()
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_shared_too() {
        let shares = Shares::new(LIMITS);
        let _held = [take_all(&shares, &owner("a.test", 1)), take_all(&shares, &owner("b.test", 1))];
        let ask = |owner| {
            let shares = shares.clone();
            tokio::spawn(async move { shares.acquire(owner, 1).await.is_ok() })
        };
        let crowd: Vec<_> = (0..10).map(|number| ask(owner("a.test", 1 + number % 2))).collect();
        yield_now().await;
        let other = ask(owner("b.test", 1));
        yield_now().await;
        let refused = crowd.iter().filter(|asked| asked.is_finished()).count();
        assert_eq!(refused, 3, "two beyond what an owner may have in the queue, one displaced");
        assert!(!other.is_finished(), "it has a place in the queue");
    }
}
