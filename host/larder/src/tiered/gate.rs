//! What stands before a tier or the source: a breaker, so that what is down is left alone and answers at once, and a
//! bulkhead, so that what is slow does not take all the memory and connections of the process with it (Nygard, *Release
//! It!*).
//!
//! The breaker opens after a number of failures in a row. While it is open nothing goes through; after a rest one call goes
//! to see, and the others wait for what comes of it. Only that something cannot be reached, or does not answer in time, is a
//! failure, and that a tier refuses all that it is asked ([`Refusal::is_outage`](super::Refusal)): a source that says no is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{BoxFuture, Failure, Loaded, LoadedMany, Save, Source, SourceError};

/// How much a tier or the source is trusted. See [`TieredBuilder::tier_limits`](super::TieredBuilder::tier_limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateLimits {
    /// So many calls at once; the others wait for one to end.
    pub concurrency: usize,
    /// So many wait; what is more is turned away.
    pub queue: usize,
    /// After so many failures in a row it is left alone; 0: never.
    pub failures: u32,
    /// For so long.
    pub rest: Duration,
}

impl Default for GateLimits {
    /// 256 calls at once, 10,000 that wait; left alone for a second after five failures in a row.
    fn default() -> Self {
        GateLimits { concurrency: 256, queue: 10_000, failures: 5, rest: Duration::from_secs(1) }
    }
}

/// What went through a gate. Of [`TieredStats`](super::TieredStats).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GateStats {
    /// Before what: `tier 1: Redis at …`, or `source`.
    pub before: String,
    /// Calls that went through.
    pub calls: u64,
    /// Of these, those that failed.
    pub failures: u64,
    /// Calls that were turned away because the breaker was open.
    pub broken: u64,
    /// Calls that were turned away because too many waited.
    pub crowded: u64,
    /// Calls under way.
    pub running: u64,
    /// Whether the breaker is open.
    pub open: bool,
    /// How often it has opened.
    pub opened: u64,
}

/// Why a call did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shut {
    #[error("it has failed and is left alone for a while")]
    Open,
    #[error("too many calls wait for it already")]
    Crowded,
}

/// What it is to have gone through.
pub(crate) enum Ended {
    Well,
    Badly,
}

pub(crate) struct Gate {
    /// Before what.
    before: String,
    limits: GateLimits,
    permits: Semaphore,
    waiting: AtomicU32,
    /// Failures in a row.
    failures_in_a_row: AtomicU32,
    /// Until when the breaker is open.
    rests_until: Mutex<Option<Instant>>,
    calls: AtomicU64,
    failures: AtomicU64,
    broken: AtomicU64,
    crowded: AtomicU64,
    opened: AtomicU64,
}

/// A call under way. One that is dropped without having ended was given up, which counts as a failure; unless its caller left before
/// its time was up, which says nothing.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    _permit: SemaphorePermit<'a>,
    /// When its time is up, where callers may leave before.
    deadline: Option<Instant>,
    has_ended: bool,
}

impl Pass<'_> {
    pub(crate) fn end(mut self, ended: Ended) {
        self.has_ended = true;
        self.gate.ended(ended);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.deadline.is_none_or(|deadline| deadline <= Instant::now()) {
            self.gate.ended(Ended::Badly);
        }
    }
}

impl Gate {
    pub(crate) fn new(before: String, limits: GateLimits) -> Self {
        Gate {
            before,
            limits,
            permits: Semaphore::new(limits.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            waiting: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            rests_until: Mutex::new(None),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            crowded: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// As [`Self::enter`], for a call whose caller may leave before it is given up, which is at this moment.
    pub(crate) async fn enter_until(&self, deadline: Instant) -> Result<Pass<'_>, Shut> {
        let mut pass = self.enter().await?;
        pass.deadline = Some(deadline);
        Ok(pass)
    }

    /// Waits for a place, unless the breaker is open or too many wait.
    pub(crate) async fn enter(&self) -> Result<Pass<'_>, Shut> {
        if self.rests() {
            self.broken.fetch_add(1, Relaxed);
            return Err(Shut::Open);
        }
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        self.calls.fetch_add(1, Relaxed);
        Ok(Pass { gate: self, _permit: permit, deadline: None, has_ended: false })
    }

    async fn wait(&self) -> Result<SemaphorePermit<'_>, Shut> {
        struct Waits<'a>(&'a AtomicU32);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waits = Waits(&self.waiting);
        if before as usize >= self.limits.queue {
            self.crowded.fetch_add(1, Relaxed);
            return Err(Shut::Crowded);
        }
        // Never closed.
        self.permits.acquire().await.map_err(|_| Shut::Crowded)
    }

    fn is_worn(&self) -> bool {
        self.limits.failures > 0 && self.failures_in_a_row.load(Relaxed) >= self.limits.failures
    }

    fn rests(&self) -> bool {
        if !self.is_worn() {
            return false;
        }
        let mut rests_until = self.rests_until.lock();
        let now = Instant::now();
        let rests = rests_until.is_some_and(|until| now < until);
        if !rests {
            // One goes to see; the others wait until it is back.
            *rests_until = Some(now + self.limits.rest);
        }
        rests
    }

    fn ended(&self, ended: Ended) {
        match ended {
            Ended::Well => self.failures_in_a_row.store(0, Relaxed),
            Ended::Badly => {
                self.failures.fetch_add(1, Relaxed);
                if self.failures_in_a_row.fetch_add(1, Relaxed) + 1 == self.limits.failures {
                    *self.rests_until.lock() = Some(Instant::now() + self.limits.rest);
                    self.opened.fetch_add(1, Relaxed);
                    tracing::warn!(
                        before = self.before,
                        "a breaker opens: it has failed {} times in a row",
                        self.limits.failures
                    );
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> GateStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        GateStats {
            before: self.before.clone(),
            calls: of(&self.calls),
            failures: of(&self.failures),
            broken: of(&self.broken),
            crowded: of(&self.crowded),
            running: self.limits.concurrency.saturating_sub(self.permits.available_permits()) as u64,
            open: self.is_worn(),
            opened: of(&self.opened),
        }
    }
}

/// A moment so much later; or one that nobody lives to see, where there is none.
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30))
}

/// A source behind a gate.
pub(super) struct Gated<K, V> {
    pub(super) source: Arc<dyn Source<K, V>>,
    pub(super) gate: Arc<Gate>,
}

impl<K, V> Gated<K, V> {
    async fn pass<T>(&self, call: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        let pass = self.gate.enter().await.map_err(SourceError::overloaded)?;
        let called = call.await;
        pass.end(ended(called.as_ref().err()));
        called
    }
}

/// A source that refuses is well, and one that is busy says so.
fn ended(error: Option<&SourceError>) -> Ended {
    match error.map(|error| error.failure) {
        Some(Failure::Unavailable | Failure::TimedOut) => Ended::Badly,
        _ => Ended::Well,
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Source<K, V> for Gated<K, V> {
    fn loads(&self) -> bool {
        self.source.loads()
    }

    fn saves(&self) -> bool {
        self.source.saves()
    }

    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        Box::pin(self.pass(self.source.load(key, validator)))
    }

    fn loads_many(&self) -> bool {
        self.source.loads_many()
    }

    fn load_many<'a>(&'a self, keys: &'a [K]) -> BoxFuture<'a, Result<LoadedMany<V>, SourceError>> {
        Box::pin(self.pass(self.source.load_many(keys)))
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.pass(self.source.save(save)))
    }

    fn saves_many(&self) -> bool {
        self.source.saves_many()
    }

    fn save_many<'a>(&'a self, saves: &'a [Save<'a, K, V>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>> {
        Box::pin(async move {
            let pass = match self.gate.enter().await {
                Ok(pass) => pass,
                Err(shut) => return saves.iter().map(|_| Err(SourceError::overloaded(shut))).collect(),
            };
            let saved = self.source.save_many(saves).await;
            // What one of them was refused for says nothing of the source; it is down if all failed.
            let well = saved.iter().map(|saved| ended(saved.as_ref().err())).any(|ended| matches!(ended, Ended::Well));
            pass.end(if well || saves.is_empty() { Ended::Well } else { Ended::Badly });
            saved
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(concurrency: usize, queue: usize) -> Gate {
        Gate::new("a test".into(), GateLimits { concurrency, queue, failures: 3, rest: Duration::from_secs(1) })
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_lets_one_see() {
        let gate = gate(10, 10);
        for ended in [Ended::Badly, Ended::Badly, Ended::Well, Ended::Badly, Ended::Badly] {
            gate.enter().await.unwrap().end(ended);
        }
        assert!(!gate.stats().open, "what ended well between them counts");
        drop(gate.enter().await.unwrap());
        assert_eq!(gate.enter().await.err(), Some(Shut::Open), "to be given up is to fail");
        tokio::time::advance(Duration::from_millis(1_001)).await;
        let scout = gate.enter().await.unwrap();
        assert_eq!(gate.enter().await.err(), Some(Shut::Open), "one goes to see");
        scout.end(Ended::Badly);
        assert_eq!(gate.enter().await.err(), Some(Shut::Open));
        tokio::time::advance(Duration::from_millis(1_001)).await;
        gate.enter().await.unwrap().end(Ended::Well);
        gate.enter().await.unwrap().end(Ended::Well);
        let stats = gate.stats();
        assert_eq!((stats.open, stats.opened, stats.broken, stats.failures), (false, 1, 3, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn it_lets_so_many_through_and_so_many_wait() {
        let gate = gate(1, 1);
        let first = gate.enter().await.unwrap();
        let (second, third) = tokio::join!(
            async {
                let pass = gate.enter().await;
                pass.map(|pass| pass.end(Ended::Well))
            },
            async {
                tokio::task::yield_now().await;
                let turned_away = gate.enter().await.err();
                first.end(Ended::Well);
                turned_away
            }
        );
        assert_eq!((second, third), (Ok(()), Some(Shut::Crowded)));
        assert_eq!(gate.stats().crowded, 1);
        // Who waits and leaves makes room.
        let held = gate.enter().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(1), gate.enter()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_millis(1), gate.enter()).await.is_err());
        held.end(Ended::Well);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_who_leave_say_nothing_of_what_they_called() {
        let gate = gate(10, 10);
        let limit = Duration::from_secs(1);
        let call = || gate.enter_until(later(Instant::now(), limit));
        for _ in 0..10 {
            let pass = call().await.unwrap();
            tokio::time::advance(limit / 2).await;
            drop(pass);
        }
        assert_eq!((gate.stats().open, gate.stats().failures, gate.stats().running), (false, 0, 0));
        for _ in 0..3 {
            let pass = call().await.unwrap();
            tokio::time::advance(limit).await;
            drop(pass);
        }
        assert!(gate.stats().open);
        assert!(later(Instant::now(), Duration::MAX) > later(Instant::now(), limit));
    }
}
