//! Rate limits: requests per second, and bytes per second. This is the home of the crate governor.
//!
//! [`RateLimit`] is for what is known before it happens, such as a request: it is taken or refused at once, and a refusal
//! says when to come back. [`ByteLimit`] is for bytes, whose number is known only after they were read: they are a
//! [`Debt`], which is paid before the next ones are read.
//!
//! governor (GCRA) says whether something may happen now, and has neither an order among those that wait nor fairness
//! between clients. The order of requests is kept by `upstream::turns`, which asks here only for the first in its line. Debts
//! are paid in the order in which they come: without that, of two transfers that try again and again one gets everything
//! and the other nothing. Limits of many clients are one [`RateLimit`] each in a bounded table of their owner's: governor's
//! own keyed tables grow with every key, and the number of keys would be a client's choice.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use crate::sync::lock;
use crate::units::{ByteRate, PerSecond};

/// The largest number of cells per second that a rate of bytes is counted in: governor counts whole nanoseconds, and an
/// interval of a microsecond is exact to 0.05 %.
const CELLS_PER_SECOND_MAX: u64 = 1_000_000;

type Limiter = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Tick>>;

/// A limiter of one cell in each `interval`, of which up to `burst` may be used at once.
fn limiter(interval: Duration, burst: NonZeroU32) -> Limiter {
    let quota = Quota::with_period(interval).expect("no rate has an interval below a nanosecond");
    Limiter::direct_with_clock(quota.allow_burst(burst), TokioClock)
}

/// A limit of requests per second. What was not used in the last second may be used at once, and one request in any case.
#[derive(Debug)]
pub struct RateLimit {
    limiter: Limiter,
    interval: Duration,
    /// When the next request is due, as of the last refusal.
    due_at: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// A limit that nothing of is used yet.
    pub fn new(per_second: PerSecond) -> Self {
        let per_second = per_second.get();
        let interval = Duration::from_secs_f64(1.0 / per_second);
        // A cast of a float saturates.
        let burst = NonZeroU32::new(per_second as u32).unwrap_or(NonZeroU32::MIN);
        Self { limiter: limiter(interval, burst), interval, due_at: Mutex::default() }
    }

    /// Takes one request out of the limit.
    ///
    /// # Errors
    /// The time until the next one is due, if there is none now. Then nothing is taken.
    pub fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| {
            let Tick(due_at) = not_until.earliest_possible();
            *lock(&self.due_at) = Some(due_at);
            due_at.saturating_duration_since(Instant::now())
        })
    }

    /// The least time until a request is due that has `ahead` others before it, since the last refusal.
    pub fn after(&self, ahead: usize) -> Duration {
        let now = Instant::now();
        let next = lock(&self.due_at).map_or(Duration::ZERO, |due_at| due_at.saturating_duration_since(now));
        next + self.interval.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX))
    }
}

/// A limit of bytes per second, shared by all that hold a [`Debt`] of it. What was not used in the last second may be used
/// at once.
#[derive(Debug)]
pub struct ByteLimit {
    limiter: Limiter,
    burst: NonZeroU32,
    cell_bytes: NonZeroU64,
    /// Held by the debt that is being paid. tokio gives it to those that wait in the order in which they came.
    paying: tokio::sync::Mutex<()>,
    /// Cells owed by debts that were dropped. One task pays for all of them while there are any.
    abandoned_cells: AtomicU64,
}

impl ByteLimit {
    /// A limit that nothing of is used yet.
    pub fn new(ByteRate(per_second): ByteRate) -> Arc<Self> {
        let per_second = per_second.get();
        let cell_bytes =
            NonZeroU64::new(per_second.div_ceil(CELLS_PER_SECOND_MAX)).unwrap_or(NonZeroU64::MIN);
        let interval = Duration::from_secs_f64(cell_bytes.get() as f64 / per_second as f64);
        let burst = u32::try_from(per_second / cell_bytes).ok().and_then(NonZeroU32::new);
        let burst = burst.unwrap_or(NonZeroU32::MIN);
        let limiter = limiter(interval, burst);
        let (paying, abandoned_cells) = (tokio::sync::Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { limiter, burst, cell_bytes, paying, abandoned_cells })
    }

    /// Takes as many of `cells` as there are now; says when to go on if some are left.
    fn take(&self, cells: &mut u64) -> Option<Instant> {
        while let Some(part) =
            NonZeroU32::new(u32::try_from(*cells).unwrap_or(u32::MAX).min(self.burst.get()))
        {
            match self.limiter.check_n(part).expect("no more than the burst") {
                Ok(()) => *cells -= u64::from(part.get()),
                Err(not_until) => return Some(not_until.earliest_possible().0),
            }
        }
        None
    }

    /// Gives up what was not used and could be used at once.
    fn forfeit(&self) {
        let halves =
            std::iter::successors(NonZeroU32::new(self.burst.get()), |part| NonZeroU32::new(part.get() / 2));
        for part in halves {
            while let Ok(Ok(())) = self.limiter.check_n(part) {}
        }
    }

    /// Pays for dropped debts until there are none, in turn with all others.
    async fn pay_abandoned(&self) {
        loop {
            let paying = self.paying.lock().await;
            let part = self.abandoned_cells.load(Ordering::Relaxed).min(self.burst.get().into());
            let mut cells = part;
            while let Some(at) = self.take(&mut cells) {
                sleep_until(at).await;
            }
            drop(paying);
            if self.abandoned_cells.fetch_sub(part, Ordering::Relaxed) == part {
                return;
            }
        }
    }
}

/// Bytes that were used and are not yet paid for. If it is dropped they are still paid for, at the expense of those that
/// come later.
#[derive(Debug)]
pub struct Debt {
    limit: Arc<ByteLimit>,
    bytes: u64,
}

impl Debt {
    /// Nothing is owed to `limit` yet.
    pub fn new(limit: Arc<ByteLimit>) -> Self {
        Self { limit, bytes: 0 }
    }

    /// Notes that `bytes` were used. Returns whether they could be paid for at once.
    pub fn add(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let Ok(_paying) = self.limit.paying.try_lock() else { return self.cells() == 0 };
        let mut cells = self.cells();
        let is_paid = self.limit.take(&mut cells).is_none();
        self.bytes = self.left(cells);
        is_paid
    }

    /// Waits until everything is paid for. A caller that stops waiting loses its place among those that pay.
    pub async fn pay(&mut self) {
        if self.cells() == 0 {
            return;
        }
        let _paying = self.limit.paying.lock().await;
        loop {
            let mut cells = self.cells();
            let next = self.limit.take(&mut cells);
            self.bytes = self.left(cells);
            match next {
                Some(at) => sleep_until(at).await,
                None => return,
            }
        }
    }

    /// Waits for as long as `bytes` take at this rate, however little was used before.
    pub async fn pay_without_burst(&mut self, bytes: u64) {
        self.limit.forfeit();
        self.bytes += bytes;
        self.pay().await;
    }

    /// The whole cells that are owed. What is owed beyond them is paid for with the next bytes.
    fn cells(&self) -> u64 {
        self.bytes / self.limit.cell_bytes
    }

    /// The bytes that are owed while `cells` are.
    fn left(&self, cells: u64) -> u64 {
        self.bytes % self.limit.cell_bytes + cells * self.limit.cell_bytes.get()
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let cells = self.cells();
        if cells == 0 {
            return;
        }
        // Outside of a runtime nobody waits for anything any more.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.limit.abandoned_cells.fetch_add(cells, Ordering::Relaxed) == 0 {
            let limit = Arc::clone(&self.limit);
            runtime.spawn(async move { limit.pay_abandoned().await });
        }
    }
}

/// The clock of tokio, which tests can pause.
#[derive(Clone, Copy, Debug)]
struct TokioClock;

impl Clock for TokioClock {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(Instant::now())
    }
}

/// A time of [`TokioClock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(Instant);

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, nanos: Nanos) -> Self {
        Self(self.0 + Duration::from(nanos))
    }
}

impl Reference for Tick {
    fn duration_since(&self, Self(earlier): Self) -> Nanos {
        self.0.saturating_duration_since(earlier).into()
    }

    fn saturating_sub(&self, nanos: Nanos) -> Self {
        Self(self.0.checked_sub(nanos.into()).unwrap_or(self.0))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    fn requests(per_second: &str) -> RateLimit {
        let table: std::collections::HashMap<String, PerSecond> =
            toml::from_str(&format!("n = {per_second}")).unwrap();
        RateLimit::new(table["n"])
    }

    fn limit(rate: &str) -> Arc<ByteLimit> {
        ByteLimit::new(rate.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_taken_in_time_and_a_refusal_takes_nothing() {
        let limit = requests("10");
        for _ in 0..10 {
            assert_eq!(limit.take(), Ok(()), "what was not used may be used at once");
        }
        for _ in 0..2 {
            assert_eq!(limit.take(), Err(Duration::from_millis(100)), "a refusal takes nothing");
        }
        for (ahead, milliseconds) in [(0, 100), (1, 200), (9, 1000)] {
            assert_eq!(limit.after(ahead), Duration::from_millis(milliseconds), "{ahead} ahead");
        }
        advance(Duration::from_millis(100)).await;
        assert_eq!((limit.after(0), limit.take()), (Duration::ZERO, Ok(())));
        assert_eq!(limit.take(), Err(Duration::from_millis(100)));
        advance(Duration::from_secs(60)).await;
        for _ in 0..10 {
            assert_eq!(limit.take(), Ok(()));
        }
        assert!(limit.take().is_err(), "a long rest is worth no more than a second");
    }

    #[tokio::test(start_paused = true)]
    async fn one_goes_at_once_however_low_the_rate() {
        let slow = requests("0.5");
        assert_eq!((slow.take(), slow.take()), (Ok(()), Err(Duration::from_secs(2))));
        for extreme in ["0.0002778", "1e9"] {
            assert_eq!(requests(extreme).take(), Ok(()), "{extreme}");
        }
        let start = Instant::now();
        let mut debt = Debt::new(limit("1KiB"));
        assert!(debt.add(1 << 10), "a second's worth is there from the start");
        assert!(!debt.add(10 << 10), "more than a second's worth");
        debt.pay().await;
        assert_eq!(start.elapsed().as_millis(), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn every_rate_of_bytes_is_kept_to_within_a_thousandth() {
        for rate in ["1B", "1000B", "999999B", "1000001B", "1500001B", "8MiB", "10GiB", "15EiB"] {
            let limit = limit(rate);
            let per_second = rate.parse::<ByteRate>().unwrap().0.get();
            let (mut debt, start) = (Debt::new(limit), Instant::now());
            for _ in 0..11 {
                debt.add(per_second);
                debt.pay().await;
            }
            let took = start.elapsed().as_secs_f64();
            assert!((9.98..=10.02).contains(&took), "{rate}: the first second is free, ten took {took} s");
        }
    }

    /// Bytes that each of several transfers gets in a minute at 8 MiB/s, each in chunks of its own size.
    async fn transferred(chunks: &[u64]) -> Vec<u64> {
        let (limit, start) = (limit("8MiB"), Instant::now());
        let transfers = chunks.iter().copied().map(|chunk| {
            let mut debt = Debt::new(Arc::clone(&limit));
            tokio::spawn(async move {
                let mut bytes = 0;
                while start.elapsed() < Duration::from_secs(60) {
                    debt.add(chunk);
                    bytes += chunk;
                    tokio::task::yield_now().await;
                    debt.pay().await;
                }
                bytes
            })
        });
        let mut bytes = Vec::new();
        for transfer in transfers.collect::<Vec<_>>() {
            bytes.push(transfer.await.unwrap());
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn transfers_share_a_rate_by_the_size_of_their_chunks_and_none_starves() {
        const SMALL: u64 = 64 << 10;
        const CHUNK: u64 = 256 << 10;
        const LARGE: u64 = 1 << 20;
        /// A minute and the second that is free, at 8 MiB/s.
        const ALL: u64 = 61 * (8 << 20);
        let check = async |chunks: &[u64]| {
            let bytes = transferred(chunks).await;
            let (of_all, in_chunks) = (bytes.iter().sum::<u64>(), chunks.iter().sum::<u64>());
            let most = ALL + in_chunks;
            assert!((ALL - in_chunks..=most).contains(&of_all), "{of_all} bytes of {ALL}: {bytes:?}");
            for (bytes, chunk) in bytes.iter().zip(chunks) {
                // At the beginning and at the end one may be some chunks ahead.
                let share = of_all * chunk / in_chunks;
                assert!(bytes.abs_diff(share) <= 33 * chunk, "{bytes} rather than {share} of {chunks:?}");
            }
        };
        check(&[CHUNK; 2]).await;
        check(&[CHUNK; 8]).await;
        check(&[SMALL, LARGE]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_debt_is_paid_for_all_the_same_and_forgotten_after_its_time() {
        let limit = limit("1000B");
        let owe = |bytes| Debt::new(Arc::clone(&limit)).add(bytes);
        assert!(owe(1000));
        for _ in 0..10 {
            assert!(!owe(200), "each leaves before it has paid");
        }
        tokio::task::yield_now().await;
        let (start, mut debt) = (Instant::now(), Debt::new(Arc::clone(&limit)));
        assert!(!debt.add(100));
        debt.pay().await;
        let waited = start.elapsed();
        assert!((1000..=2200).contains(&waited.as_millis()), "{waited:?}");
        sleep(Duration::from_secs(10)).await;
        assert!(debt.add(1000) && !debt.add(1), "a second's worth is there again, and no more");
        assert_eq!(limit.abandoned_cells.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_without_burst_is_kept_and_time_is_not_made_up_for() {
        let mut debt = Debt::new(limit("1000B"));
        let start = Instant::now();
        for _ in 0..10 {
            debt.pay_without_burst(500).await;
        }
        assert_eq!(start.elapsed().as_millis(), 5000);
        sleep(Duration::from_secs(100)).await;
        let start = Instant::now();
        debt.pay_without_burst(500).await;
        assert_eq!(start.elapsed().as_millis(), 500);
    }
}
