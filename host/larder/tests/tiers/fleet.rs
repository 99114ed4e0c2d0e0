//! One load for each key in a fleet: leases in a shared tier that is slow, fails, and comes back.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::world::{Database, Process, ms, numbers};
use larder::tiered::{
    BoxFuture, FarCopy, Loaded, LoadedMany, LocalBus, Looked, Lookup, MemoryTier, Put, Scope, SourceError, Tier,
    TierError, Tiered, Token,
};
use tokio::time::sleep;

/// A shared tier whose next leases fail, and that takes its time for the lease of 3.
struct Leases {
    tier: MemoryTier,
    fails: AtomicU64,
    slow_ms: AtomicU64,
}

impl Leases {
    fn new() -> Arc<Self> {
        let tier = MemoryTier::new(1_000).unwrap();
        Arc::new(Leases { tier, fails: AtomicU64::new(0), slow_ms: AtomicU64::new(0) })
    }
}

impl Tier for Leases {
    fn summary(&self) -> String {
        "a tier with leases".into()
    }
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        self.tier.get(key)
    }
    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        self.tier.token(key)
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        self.tier.put(key, copy, token, write)
    }
    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        self.tier.invalidate(scope, soft)
    }
    fn leases(&self) -> bool {
        true
    }
    fn lease<'a>(
        &'a self,
        key: &'a str,
        holder: u64,
        time: std::time::Duration,
    ) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let is_one_less = |fails: u64| fails.checked_sub(1);
            if self.fails.fetch_update(SeqCst, SeqCst, is_one_less).is_ok() {
                return Err(TierError::Unavailable("cut off".into()));
            }
            if key == "test:3" {
                sleep(ms(self.slow_ms.load(SeqCst))).await;
            }
            self.tier.lease(key, holder, time).await
        })
    }
    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        self.tier.release(key, holder)
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_loads_for_itself_holds_the_lease() {
    let (far, bus) = (Leases::new(), Arc::new(LocalBus::new()));
    let build = || {
        let cache = Tiered::<u64, u64>::builder().keyspace("test").max_capacity(10).far(far.clone()).bus(bus.clone());
        cache.codec(numbers()).rule("read", "cache-aside").rule("flight", "fleet").build().unwrap()
    };
    let (one, other) = (build(), build());
    let asks = || {
        let other = other.clone();
        tokio::spawn(async move { other.lookup(&7).await.unwrap() })
    };
    let Lookup::Miss(ticket) = one.lookup(&7).await.unwrap() else { panic!("it is not there") };
    let waits = asks();
    sleep(ms(5_000)).await;
    assert!(!waits.is_finished(), "longer than a lease lasts that nobody renews");
    ticket.fill(Some(1)).await.unwrap();
    assert!(matches!(waits.await.unwrap(), Lookup::Hit(served) if served.value == Some(1)));
    // Who gives up gives the lease back.
    one.invalidate(&7).await.unwrap();
    let Lookup::Miss(ticket) = one.lookup(&7).await.unwrap() else { panic!("it is not there") };
    let waits = asks();
    sleep(ms(50)).await;
    assert!(!waits.is_finished());
    drop(ticket);
    let Lookup::Miss(ticket) = waits.await.unwrap() else { panic!("it is not there") };
    ticket.fill(Some(2)).await.unwrap();
    assert_eq!(one.get(&7).await.unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_though_the_tier_fails_for_a_moment() {
    let (far, bus) = (Leases::new(), Arc::new(LocalBus::new()));
    let database = Database::new(ms(8_000));
    let build = || Process::over(&database, far.clone(), &bus).rule("flight", "fleet").build().unwrap();
    let [one, other] = [build(), build()].map(|process| async move {
        process.get(&7).await.unwrap();
    });
    let first = tokio::spawn(one);
    sleep(ms(500)).await;
    // The first renewal; then the other asks, again and again.
    far.fails.store(1, SeqCst);
    sleep(ms(1_000)).await;
    assert_eq!(far.fails.load(SeqCst), 0);
    other.await;
    first.await.unwrap();
    assert_eq!(database.loads(), 1);
}

/// Loads many at once.
struct Batches(Arc<Mutex<Vec<Vec<u64>>>>);

impl larder::tiered::Source<u64, u64> for Batches {
    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        self.0.lock().unwrap().push(vec![*key]);
        Box::pin(async { Ok(Loaded::value(*key)) })
    }
    fn loads_many(&self) -> bool {
        true
    }
    fn load_many<'a>(&'a self, keys: &'a [u64]) -> BoxFuture<'a, Result<LoadedMany<u64>, SourceError>> {
        self.0.lock().unwrap().push(keys.to_vec());
        Box::pin(async { Ok(keys.iter().map(|key| Ok(Loaded::value(*key))).collect()) })
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_misses_is_loaded_at_once_by_one_process() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let far = Leases::new();
    let cache = Tiered::builder().keyspace("test").max_capacity(100).source(Batches(asked.clone())).far(far.clone());
    let cache = cache.codec(numbers()).rule("flight", "fleet").rule("ttl-ms", ms(60_000)).build().unwrap();
    let read = async || {
        cache.invalidate_all().await.unwrap();
        let values = cache.get_many(&[1, 2, 3, 4]).await;
        assert_eq!(values.into_iter().map(|value| value.unwrap().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let mut batches = std::mem::take(&mut *asked.lock().unwrap());
        batches.iter_mut().for_each(|batch| batch.sort_unstable());
        batches
    };
    assert_eq!(read().await, [[1, 2, 3, 4]]);
    // Another process loads 3, and dies: the rest does not wait for it.
    assert!(far.lease("test:3", 99, ms(3_000)).await.unwrap());
    assert_eq!(read().await, [vec![1, 2, 4], vec![3]]);
    // Nor for a lease that takes its time.
    far.slow_ms.store(900, SeqCst);
    assert_eq!(read().await, [vec![1, 2, 4], vec![3]]);
}
