//! The answers of one connection: whether one is under way, and for how long it has rested.
//!
//! hyper can limit the time for a request's head by itself, with a timer that is set and taken back for every
//! request; that was a tenth of a hit. Here each request leaves a mark instead, and one timer per connection looks
//! at it when a connection could have rested for too long.
//!
//! A connection that rests may also have to [leave](Answers::leave), when another finds no room. Whether it rests is
//! decided together with whether an answer may begin, so that no answer is ever cut by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long a connection may take to send a whole head; also how long it may rest between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long ago an answer must have ended before its connection counts as resting: until then hyper may have its last
/// bytes.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// Stands beside the count of answers once the connection must close: none begins any more.
const LEAVING: usize = 1 << (usize::BITS - 1);

/// What a connection is doing.
pub(crate) struct Answers {
    /// How many answers are under way, and [`LEAVING`].
    under_way: AtomicUsize,
    /// Whether bytes wait for the client to take them.
    is_blocked: AtomicBool,
    began: Instant,
    /// When something was last done, in milliseconds since it began.
    active_at: AtomicU64,
    ended: Notify,
}

/// An answer that has begun and not ended, as long as this lives.
pub(crate) struct UnderWay(Arc<Answers>);

impl Answers {
    /// Of a connection that begins now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            is_blocked: AtomicBool::new(false),
            began: Instant::now(),
            active_at: AtomicU64::new(0),
            ended: Notify::new(),
        })
    }

    /// One more begins; none if the connection must close.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<UnderWay> {
        let before = self.under_way.fetch_add(1, Ordering::AcqRel);
        let answer = UnderWay(Arc::clone(self));
        (before & LEAVING == 0).then_some(answer)
    }

    /// Since when it has rested, or waited for its first request; none while it does anything else.
    pub(crate) fn resting_since(&self) -> Option<Instant> {
        let is_at_rest =
            self.under_way.load(Ordering::Acquire) == 0 && !self.is_blocked.load(Ordering::Acquire);
        let active_at = self.active_at.load(Ordering::Acquire);
        let since = self.began + Duration::from_millis(active_at);
        (is_at_rest && (active_at == 0 || since.elapsed() >= SETTLE_TIME)).then_some(since)
    }

    /// From now on no answer begins, if none is under way. Returns whether that is so: then the connection is to be closed.
    pub(crate) fn leave(&self) -> bool {
        self.under_way.compare_exchange(0, LEAVING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the client has bytes to take before more can be sent.
    pub(crate) fn blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Release);
    }

    /// Bytes were sent. An answer counts as ended when its last bytes are handed over, and a slow client may take
    /// long for these.
    pub(crate) fn wrote(&self) {
        if self.are_none() {
            self.mark();
        }
    }

    /// Waits until none is under way.
    pub(crate) async fn none_left(&self) {
        while !self.are_none() {
            self.ended.notified().await;
        }
    }

    /// Waits until the connection has rested, or sent half a head, for too long.
    pub(crate) async fn rested_too_long(&self) {
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

    /// Whether none has begun.
    pub(crate) fn are_yet_to_come(&self) -> bool {
        self.are_none() && self.active_at.load(Ordering::Acquire) == 0
    }

    /// Whether none is under way.
    pub(crate) fn are_none(&self) -> bool {
        self.under_way.load(Ordering::Acquire) & !LEAVING == 0
    }

    fn mark(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Zero is for a connection that has not answered anything.
        self.active_at.store(since.max(1), Ordering::Release);
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
        let answer = answers.begin().unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn a_connection_leaves_only_while_it_rests_and_then_begins_nothing() {
        let answers = Answers::new();
        assert!(answers.resting_since().is_some(), "it waits for its first request");
        let answer = answers.begin().unwrap();
        assert!(answers.resting_since().is_none() && !answers.leave());
        drop(answer);
        assert!(answers.resting_since().is_none(), "the end of the answer may still be with hyper");
        advance(SETTLE_TIME * 2).await;
        answers.blocked(true);
        assert!(answers.resting_since().is_none(), "the client has not taken the end of it");
        answers.blocked(false);
        assert!(answers.resting_since().is_some() && answers.leave());
        assert!(answers.begin().is_none() && !answers.leave());
        answers.none_left().await;
    }

    #[tokio::test]
    async fn the_last_answer_to_end_is_waited_for() {
        let answers = Answers::new();
        answers.none_left().await;
        let (first, second) = (answers.begin().unwrap(), answers.begin().unwrap());
        drop(first);
        assert!(timeout(Duration::ZERO, answers.none_left()).await.is_err());
        drop(second);
        timeout(Duration::from_secs(5), answers.none_left()).await.expect("none is left");
    }
}
