//! What tiers and buses that could not be reached are owed: nothing of it is forgotten, and nothing of it is in the way
//! of the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};

use crate::world::{ms, numbers};
use larder::tiered::{
    BoxFuture, Bus, FarCopy, Group, Listener, Looked, MemoryTier, News, Put, Refusal, Scope, Tier, TierError, Tiered,
    TieredBuilder, Token,
};
use tokio::time::sleep;

/// A tier whose invalidations fail, are refused, or are done and answered late.
struct Stubborn {
    tier: MemoryTier,
    fails: AtomicBool,
    answers_after_ms: AtomicU64,
    refuses: &'static str,
    most_keys: AtomicUsize,
}

impl Stubborn {
    fn new() -> Arc<Self> {
        Arc::new(Stubborn {
            tier: MemoryTier::new(10_000).unwrap(),
            fails: AtomicBool::new(false),
            answers_after_ms: AtomicU64::new(0),
            refuses: "test:13",
            most_keys: AtomicUsize::new(0),
        })
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, SeqCst);
    }

    async fn has(&self, key: u64) -> bool {
        self.tier.get(&format!("test:{key}")).await.unwrap().copy.is_some()
    }

    /// As another process would.
    async fn keep(&self, key: u64) {
        let copy = FarCopy {
            value: Some(key.to_le_bytes().to_vec().into()),
            validator: None,
            tags: Arc::default(),
            age_ms: 0,
            fresh_ms: FarCopy::FOREVER,
            stale_ms: 0,
            rescue_ms: 0,
            early_us: 0,
            cost_us: 0,
        };
        let name = format!("test:{key}");
        let token = self.tier.token(&name).await.unwrap();
        assert_eq!(self.tier.put(&name, copy, token, false).await.unwrap(), Put::Kept);
    }
}

impl Tier for Stubborn {
    fn summary(&self) -> String {
        "a stubborn tier".into()
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
        Box::pin(async move {
            if self.fails.load(SeqCst) {
                return Err(TierError::Unavailable("cut off".into()));
            }
            if let Scope::Keys(keys) = scope {
                self.most_keys.fetch_max(keys.len(), SeqCst);
                if keys.iter().any(|key| &**key == self.refuses) {
                    return Err(TierError::Refused(Refusal { what: "a key of another kind".into(), is_outage: false }));
                }
            }
            self.tier.invalidate(scope, soft).await?;
            sleep(ms(self.answers_after_ms.load(SeqCst))).await;
            Ok(())
        })
    }
}

fn over(far: &Arc<Stubborn>) -> TieredBuilder<u64, u64> {
    Tiered::builder().keyspace("test").max_capacity(100).far(far.clone()).codec(numbers()).seed(1)
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_anew_while_it_is_paid_is_owed_still() {
    let far = Stubborn::new();
    let cache = over(&far).build().unwrap();
    far.fail(true);
    cache.invalidate(&7).await.unwrap_err();
    // The tier drops it, and answers late. Meanwhile it is kept there again, invalidated again, and that is not done.
    far.fail(false);
    far.answers_after_ms.store(500, SeqCst);
    sleep(ms(100)).await;
    far.keep(7).await;
    far.fail(true);
    cache.invalidate(&7).await.unwrap_err();
    sleep(ms(600)).await;
    assert_eq!(cache.stats().owed, 1);
    assert_eq!(cache.get(&7).await.unwrap(), None, "it is not read there");
    far.answers_after_ms.store(0, SeqCst);
    far.fail(false);
    sleep(ms(20_000)).await;
    assert_eq!((cache.stats().owed, far.has(7).await), (0, false));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_paid_is_not_in_the_way_of_the_rest() {
    let (first, second) = (Stubborn::new(), Stubborn::new());
    let bus = Arc::new(Deaf::default());
    let cache = over(&first).far(second.clone()).bus(bus.clone()).build().unwrap();
    // Never taken by either.
    cache.invalidate(&13).await.unwrap_err();
    for far in [&first, &second] {
        far.keep(7).await;
        far.fail(true);
    }
    bus.deaf.store(true, SeqCst);
    cache.invalidate(&7).await.unwrap_err();
    bus.told.lock().unwrap().clear();
    for far in [&first, &second] {
        far.fail(false);
    }
    bus.deaf.store(false, SeqCst);
    sleep(ms(20_000)).await;
    assert!(!first.has(7).await && !second.has(7).await);
    assert_eq!(bus.keys(), ["7"], "the others are told, and once");
    assert_eq!(cache.stats().owed, 2, "one thing to each of the two");
    // Nor is a tier that is down.
    second.keep(8).await;
    first.fail(true);
    second.fail(true);
    cache.invalidate(&8).await.unwrap_err();
    second.fail(false);
    sleep(ms(20_000)).await;
    assert!(!second.has(8).await);
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_owed_in_parts() {
    let far = Stubborn::new();
    let cache = over(&far).build().unwrap();
    far.fail(true);
    for key in [100, 1_700] {
        far.keep(key).await;
    }
    cache.invalidate_many((100..1_800).collect()).await.unwrap_err();
    assert_eq!(cache.get(&1_700).await.unwrap(), None, "it is not read there");
    far.fail(false);
    sleep(ms(20_000)).await;
    assert_eq!((cache.stats().owed, far.has(100).await, far.has(1_700).await), (0, false, false));
    assert_eq!(far.most_keys.load(SeqCst), 500);
}

/// A bus to nobody, that is deaf when told to be.
#[derive(Default)]
struct Deaf {
    deaf: AtomicBool,
    told: Mutex<Vec<News>>,
}

impl Deaf {
    fn keys(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let keys = told.iter().flat_map(|news| match &news.scope {
            Scope::Keys(keys) => keys.iter().map(ToString::to_string).collect(),
            Scope::Group(_) => Vec::new(),
        });
        keys.collect()
    }
}

impl Bus for Deaf {
    fn summary(&self) -> String {
        "a deaf bus".into()
    }
    fn join(&self, _: Weak<dyn Listener>) {}
    fn announce<'a>(&'a self, _: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            if self.deaf.load(SeqCst) {
                return Err(TierError::Unavailable("deaf".into()));
            }
            self.told.lock().unwrap().push(news);
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn news_that_nobody_hears_are_kept_once_and_not_without_end() {
    let bus = Arc::new(Deaf::default());
    let cache = Tiered::<u64, u64>::builder().keyspace("test").max_capacity(100).bus(bus.clone()).build().unwrap();
    bus.deaf.store(true, SeqCst);
    for _ in 0..10 {
        cache.invalidate(&7).await.unwrap_err();
    }
    assert_eq!(cache.stats().owed, 1);
    bus.deaf.store(false, SeqCst);
    sleep(ms(20_000)).await;
    assert_eq!((cache.stats().owed, bus.keys()), (0, vec!["7".to_string()]));
    // More than are remembered one by one: all of the keyspace.
    bus.deaf.store(true, SeqCst);
    for key in 0..1_500 {
        cache.invalidate(&key).await.unwrap_err();
        assert!(cache.stats().owed <= 1_000);
    }
    bus.told.lock().unwrap().clear();
    bus.deaf.store(false, SeqCst);
    sleep(ms(20_000)).await;
    assert_eq!(cache.stats().owed, 0);
    let everything = Scope::Group(Group::Prefix("".into()));
    let told = bus.told.lock().unwrap();
    assert!(told.iter().any(|news| news.scope == everything && !news.soft), "{told:?}");
}
