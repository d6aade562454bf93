//! The answers of one connection: whether one is under way, and for how long it has rested.
//!
//! hyper can limit the time for a request's head by itself, with a timer that is set and taken back for every
//! request; that was a tenth of a hit. Here each request leaves a mark instead, and one timer per connection looks
//! at it when a connection could have rested for too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long a connection may take to send a whole head; also how long it may rest between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection is doing.
pub(crate) struct Answers {
    under_way: AtomicUsize,
    began: Instant,
    /// When something was last done, in milliseconds since it began.
    active_at: AtomicU64,
    ended: Notify,
}

/// An answer that has begun and not ended, as long as this lives.
pub(crate) struct UnderWay(Arc<Answers>);

impl Answers {
    /// Of a connection that begins now.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            began: Instant::now(),
            active_at: AtomicU64::new(0),
            ended: Notify::new(),
        })
    }

    /// One more has begun.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        UnderWay(Arc::clone(self))
    }

    /// Bytes were sent. An answer counts as ended when its last bytes are handed over, and a slow client may take
    /// long for these.
    pub(super) fn wrote(&self) {
        if self.are_none() {
            self.mark();
        }
    }

    /// Waits until none is under way.
    pub(super) async fn none_left(&self) {
        while !self.are_none() {
            self.ended.notified().await;
        }
    }

    /// Waits until the connection has rested, or sent half a head, for too long.
    pub(super) async fn rested_too_long(&self) {
        loop {
            let now = Instant::now();
            let active_at = self.began + Duration::from_millis(self.active_at.load(Ordering::Acquire));
            let until = if self.are_none() { active_at + HEAD_TIMEOUT } else { now + HEAD_TIMEOUT };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn are_none(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    fn mark(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_at.store(since, Ordering::Release);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Before the count: who sees none under way must see when the last one ended.
        self.0.mark();
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_rests_is_told_from_one_that_answers() {
        let answers = Answers::new();
        let is_over = async || timeout(Duration::from_millis(1), answers.rested_too_long()).await.is_ok();
        let answer = answers.begin();
        advance(HEAD_TIMEOUT * 3).await;
        assert!(!is_over().await, "an answer is under way");
        drop(answer);
        advance(HEAD_TIMEOUT / 2).await;
        assert!(!is_over().await, "it rests, and not for long");
        answers.wrote();
        advance(HEAD_TIMEOUT / 2).await;
        assert!(!is_over().await, "the end of the answer is still being taken");
        advance(HEAD_TIMEOUT / 2).await;
        assert!(is_over().await);
    }

    #[tokio::test]
    async fn the_last_answer_to_end_is_waited_for() {
        let answers = Answers::new();
        answers.none_left().await;
        let (first, second) = (answers.begin(), answers.begin());
        drop(first);
        assert!(timeout(Duration::ZERO, answers.none_left()).await.is_err());
        drop(second);
        timeout(Duration::from_secs(5), answers.none_left()).await.expect("none is left");
    }
}
