//! The activity of one connection: whether a response is in progress, and since when it has been idle.
//!
//! hyper can limit the time for a request's head by itself, with a timer that is set and taken back for every
//! request; that was a tenth of a hit. Here each response leaves a mark instead, and one timer per connection looks
//! at it when the connection could have been idle for too long.
//!
//! An idle connection may also be [closed](Activity::close_if_idle) when another needs its place. Whether it is idle is
//! decided together with whether a response may begin, so that no response is ever cut by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Time that a connection may take to send a whole head; also the time that it may be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Time after the end of a response before its connection counts as idle: until then hyper may have its last bytes.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// Bit beside the count of responses that says that the connection closes: none begins any more.
const CLOSING: usize = 1 << (usize::BITS - 1);

/// What a connection is doing.
pub(crate) struct Activity {
    /// The number of responses in progress, and [`CLOSING`].
    in_progress: AtomicUsize,
    /// Whether bytes wait for the client to take them.
    is_blocked: AtomicBool,
    began: Instant,
    /// When a response last ended or was last written, in milliseconds since `began`; 0 before the first one.
    active_at: AtomicU64,
    ended: Notify,
}

/// A response in progress; it ends when this is dropped.
pub(crate) struct InProgress(Arc<Activity>);

impl Activity {
    /// The activity of a connection that begins now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            in_progress: AtomicUsize::new(0),
            is_blocked: AtomicBool::new(false),
            began: Instant::now(),
            active_at: AtomicU64::new(0),
            ended: Notify::new(),
        })
    }

    /// Begins a response. `None` if the connection is being closed.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<InProgress> {
        let before = self.in_progress.fetch_add(1, Ordering::AcqRel);
        let response = InProgress(Arc::clone(self));
        (before & CLOSING == 0).then_some(response)
    }

    /// Since when the connection has been idle or has waited for its first request; `None` while it does anything else.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let is_idle =
            self.in_progress.load(Ordering::Acquire) == 0 && !self.is_blocked.load(Ordering::Acquire);
        let active_at = self.active_at.load(Ordering::Acquire);
        let since = self.began + Duration::from_millis(active_at);
        (is_idle && (active_at == 0 || since.elapsed() >= SETTLE_TIME)).then_some(since)
    }

    /// Lets no response begin any more, if none is in progress. Returns whether that is so: the caller then closes the
    /// connection.
    pub(crate) fn close_if_idle(&self) -> bool {
        self.in_progress.compare_exchange(0, CLOSING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Notes whether bytes wait for the client to take them.
    pub(crate) fn set_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Release);
    }

    /// Notes that bytes were sent. A response counts as ended when its last bytes are handed over, and a slow client may
    /// take long for these.
    pub(crate) fn note_written(&self) {
        if self.is_idle() {
            self.mark();
        }
    }

    /// Waits until no response is in progress.
    pub(crate) async fn until_idle(&self) {
        while !self.is_idle() {
            self.ended.notified().await;
        }
    }

    /// Waits until the connection has been idle, or has sent half a head, for too long.
    pub(crate) async fn idle_for_too_long(&self) {
        loop {
            let now = Instant::now();
            let active_at = self.began + Duration::from_millis(self.active_at.load(Ordering::Acquire));
            let until = if self.is_idle() { active_at + HEAD_TIMEOUT } else { now + HEAD_TIMEOUT };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Whether no response has begun yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.is_idle() && self.active_at.load(Ordering::Acquire) == 0
    }

    /// Whether no response is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_progress.load(Ordering::Acquire) & !CLOSING == 0
    }

    fn mark(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Zero is for a connection without a response so far.
        self.active_at.store(since.max(1), Ordering::Release);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        // Before the count: a reader that sees none in progress must see when the last one ended.
        self.0.mark();
        self.0.in_progress.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_rests_is_told_from_one_that_answers() {
        let activity = Activity::new();
        let is_over = async || timeout(Duration::from_millis(1), activity.idle_for_too_long()).await.is_ok();
        let response = activity.begin().unwrap();
        advance(HEAD_TIMEOUT * 3).await;
        assert!(!is_over().await, "a response is in progress");
        drop(response);
        advance(HEAD_TIMEOUT / 2).await;
        assert!(!is_over().await, "it is idle, and not for long");
        activity.note_written();
        advance(HEAD_TIMEOUT / 2).await;
        assert!(!is_over().await, "the end of the answer is still being taken");
        advance(HEAD_TIMEOUT / 2).await;
        assert!(is_over().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_leaves_only_while_it_rests_and_then_begins_nothing() {
        let activity = Activity::new();
        assert!(activity.idle_since().is_some(), "it waits for its first request");
        let response = activity.begin().unwrap();
        assert!(activity.idle_since().is_none() && !activity.close_if_idle());
        drop(response);
        assert!(activity.idle_since().is_none(), "the end of the answer may still be with hyper");
        advance(SETTLE_TIME * 2).await;
        activity.set_blocked(true);
        assert!(activity.idle_since().is_none(), "the client has not taken the end of it");
        activity.set_blocked(false);
        assert!(activity.idle_since().is_some() && activity.close_if_idle());
        assert!(activity.begin().is_none() && !activity.close_if_idle());
        activity.until_idle().await;
    }

    #[tokio::test]
    async fn the_last_answer_to_end_is_waited_for() {
        let activity = Activity::new();
        activity.until_idle().await;
        let (first, second) = (activity.begin().unwrap(), activity.begin().unwrap());
        drop(first);
        assert!(timeout(Duration::ZERO, activity.until_idle()).await.is_err());
        drop(second);
        timeout(Duration::from_secs(5), activity.until_idle()).await.expect("none is left");
    }
}
