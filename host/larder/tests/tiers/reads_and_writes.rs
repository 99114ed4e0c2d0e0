//! The patterns as their users see them: the real driver and the built-in component, on a clock that stands still between
//! two events, over a source and far tiers that are slow, fail and come back as a test says.

use std::error::Error as _;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::hostile::Guest;
use crate::world::{Database, FlakyTier, Process, ms, numbers};
use larder::tiered::{
    BoxFuture, Bus, Codec, Failure, FarCopy, FromFn, GateLimits, How, Listener, Loaded, LoadedMany, LocalBus, Lookup,
    MemoryTier, News, Put, SourceError, Tier, TierError, Tiered, TieredBuildError, TieredBuilder, TieredError,
    Unreached,
};
use larder::{Cache, Patterns, Policy};
use tokio::time::{advance, sleep};

const TTL: Duration = ms(1_000);
/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(1_000_000);

/// A cache over a database, without far tiers.
fn over(database: &Arc<Database>) -> TieredBuilder<u64, u64> {
    Tiered::builder().keyspace("test").max_capacity(1_000).source(database.clone()).seed(1).rule("ttl-ms", TTL)
}

#[tokio::test(start_paused = true)]
async fn a_value_is_loaded_once_and_then_a_hit() {
    let database = Database::new(ms(10));
    let cache = over(&database).build().unwrap();
    for _ in 0..10 {
        assert_eq!(cache.get(&7).await.unwrap(), Some(1));
    }
    let stats = cache.stats();
    assert_eq!((database.loads(), stats.loads, stats.near_hits, stats.served), (1, 1, 9, 1));
    let steps = stats.steps;
    assert_eq!(cache.read(&7).await.unwrap().tier, Some(0));
    assert_eq!(cache.stats().steps, steps, "a hit asks nobody");
    advance(TTL + ms(1)).await;
    database.write(7, 2);
    assert_eq!(cache.get(&7).await.unwrap(), Some(2));
    assert_eq!(database.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_readers_of_an_expired_key_are_one_load() {
    let database = Database::new(ms(100));
    let cache = over(&database).build().unwrap();
    cache.get(&7).await.unwrap();
    advance(TTL + ms(1)).await;
    let readers: Vec<_> = (0..10_000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(&7).await })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), Some(1));
    }
    assert_eq!(database.loads(), 2, "the first, and one for all who came after its end");
    assert_eq!(cache.stats().joined, 9_999);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cancelled_holds_up_nobody() {
    let database = Database::new(ms(100));
    let cache = over(&database).build().unwrap();
    let leader = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&7).await }
    });
    sleep(ms(10)).await;
    let waiter = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&7).await }
    });
    sleep(ms(10)).await;
    leader.abort();
    assert_eq!(waiter.await.unwrap().unwrap(), Some(1));
    assert_eq!(database.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_panics_is_an_error_for_all_and_the_next_one_loads() {
    let cache = Tiered::<u64, u64>::builder()
        .max_capacity(10)
        .source(FromFn::new(|key| async move {
            sleep(ms(10)).await;
            assert_ne!(key, 13, "a bug in the source");
            Ok::<_, std::io::Error>(Some(key))
        }))
        .build()
        .unwrap();
    let answers = cache.get_many(&[13, 1, 13]).await;
    assert_eq!(answers[0].as_ref().unwrap_err().failure(), Failure::Unavailable);
    assert_eq!(answers[2].as_ref().unwrap_err().failure(), Failure::Unavailable);
    assert_eq!(answers[1].as_ref().unwrap(), &Some(1));
    assert!(cache.get(&13).await.is_err());
    assert_eq!(cache.stats().loading, 0);
}

/// Loads many at once: has nothing to say of 13, refuses 14, and never comes back from 15.
struct Batches(Arc<std::sync::Mutex<Vec<Vec<u64>>>>);

impl larder::tiered::Source<u64, u64> for Batches {
    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        self.0.lock().unwrap().push(vec![*key]);
        Box::pin(async {
            sleep(ms(10)).await;
            Ok(Loaded::value(*key))
        })
    }
    fn loads_many(&self) -> bool {
        true
    }
    fn load_many<'a>(&'a self, keys: &'a [u64]) -> BoxFuture<'a, Result<LoadedMany<u64>, SourceError>> {
        self.0.lock().unwrap().push(keys.to_vec());
        Box::pin(async {
            sleep(if keys.contains(&15) { FOREVER } else { ms(10) }).await;
            let load = |key: &u64| match key {
                14 => Err(SourceError::rejected("its row is no number")),
                key => Ok(Loaded::value(*key)),
            };
            Ok(keys.iter().filter(|key| **key != 13).map(load).collect())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_misses_is_loaded_at_once() {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let source = Batches(asked.clone());
    let cache = Tiered::builder().max_capacity(100).source(source).rule("retries", 1).build().unwrap();
    cache.get(&2).await.unwrap();
    // One that is loading already, and one that is asked for twice.
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&4).await }
    });
    sleep(ms(5)).await;
    let answers = cache.get_many(&[1, 2, 3, 4, 3, 5]).await;
    let values: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    assert_eq!(values, [1, 2, 3, 4, 3, 5]);
    assert_eq!(early.await.unwrap().unwrap(), Some(4));
    let mut batches = std::mem::take(&mut *asked.lock().unwrap());
    batches.iter_mut().for_each(|batch| batch.sort_unstable());
    assert_eq!(batches, [vec![2], vec![4], vec![1, 3, 5]]);
    // Fewer rows than keys: nobody knows whose is missing.
    for answer in cache.get_many(&[12, 13, 14]).await {
        let error = answer.unwrap_err();
        assert_eq!(error.failure(), Failure::Rejected);
        assert!(error.to_string().contains("2 values for 3 keys"), "{error}");
    }
    assert_eq!(cache.get(&12).await.unwrap(), Some(12));
    // What is wrong with one is an error of that one alone.
    let [good, bad, other] = <[_; 3]>::try_from(cache.get_many(&[21, 14, 22]).await).unwrap();
    assert_eq!((good.unwrap(), other.unwrap()), (Some(21), Some(22)));
    let error = bad.unwrap_err();
    assert!(error.failure() == Failure::Rejected && error.to_string().contains("no number"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_waits_for_any_more_ends() {
    let source = Batches(Arc::default());
    let cache = Tiered::builder().max_capacity(100).source(source).rule("hard-timeout-ms", 500).build().unwrap();
    for answer in cache.get_many(&[1, 15, 16]).await {
        assert_eq!(answer.unwrap_err().failure(), Failure::TimedOut);
    }
    sleep(ms(1)).await;
    assert_eq!(cache.stats().gates[0].running, 0, "as with the load of one key");
}

#[tokio::test(start_paused = true)]
async fn a_stale_copy_is_served_while_it_is_refreshed() {
    let database = Database::new(ms(100));
    let cache = over(&database).rule("stale-while-revalidate-ms", ms(5_000)).build().unwrap();
    cache.get(&7).await.unwrap();
    database.write(7, 2);
    advance(TTL + ms(1)).await;
    let began = tokio::time::Instant::now();
    let served = cache.read(&7).await.unwrap();
    assert_eq!((served.value, served.how), (Some(1), How::Stale));
    assert_eq!(began.elapsed(), ms(0), "nobody waits");
    // Quiet while it is refreshed: one refresh, however many ask.
    for _ in 0..100 {
        assert_eq!(cache.read(&7).await.unwrap().how, How::Stale);
    }
    sleep(ms(101)).await;
    assert_eq!(cache.read(&7).await.unwrap().value, Some(2));
    assert_eq!((database.loads(), cache.stats().refreshes), (2, 1));
    // Past its window it is not served.
    advance(TTL + ms(5_001)).await;
    database.write(7, 3);
    assert_eq!(cache.get(&7).await.unwrap(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_rather_than_an_error() {
    let database = Database::new(ms(10));
    let cache = over(&database).rule("stale-if-error-ms", ms(60_000)).build().unwrap();
    cache.get(&7).await.unwrap();
    database.fail(true);
    advance(TTL + ms(1)).await;
    let served = cache.read(&7).await.unwrap();
    assert_eq!((served.value, served.how), (Some(1), How::Rescued));
    assert_eq!(cache.get(&8).await.unwrap_err().failure(), Failure::Unavailable);
    assert!(cache.get(&8).await.unwrap_err().to_string().contains("the database is down"));
    assert_eq!(cache.stats().rescued, 1);
    database.fail(false);
    database.write(7, 2);
    advance(ms(1_001)).await;
    assert_eq!(cache.get(&7).await.unwrap(), Some(2));
    database.fail(true);
    advance(TTL + ms(60_001)).await;
    assert!(cache.get(&7).await.is_err(), "the window has an end");
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_such_key_is_remembered_for_its_own_time() {
    let database = Database::new(ms(10));
    let cache = over(&database).rule("negative-ttl-ms", ms(100)).build().unwrap();
    for _ in 0..10 {
        assert_eq!(cache.get(&1_000_007).await.unwrap(), None);
    }
    assert_eq!(database.loads(), 1);
    advance(ms(101)).await;
    assert_eq!(cache.get(&1_000_007).await.unwrap(), None);
    assert_eq!(database.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_hot_key_never_wait() {
    let database = Database::new(ms(20));
    let cache = over(&database).rule("read", "refresh-ahead").rule("beta", 8.0).build().unwrap();
    cache.get(&7).await.unwrap();
    // A refresh that begins later than 20 ms before the end comes too late. With reads 10 ms apart that is likely for a
    // beta of 1, and happens once in a million times to live for one of 8. 100 a second, for 100 times to live.
    for _ in 0..10_000 {
        let began = tokio::time::Instant::now();
        assert_eq!(cache.read(&7).await.unwrap().how, How::Fresh);
        assert_eq!(began.elapsed(), ms(0));
        sleep(ms(10)).await;
    }
    let loads = database.loads();
    assert!((100..250).contains(&loads), "{loads} loads in 100 times to live: each somewhat early");
    // Few of the reads in the window ask the module: those whose draw says that they refresh, and loads.
    let stats = cache.stats();
    assert!(stats.steps < 6 * loads, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn hot_keys_are_refreshed_though_nobody_reads_them() {
    let database = Database::new(ms(20));
    let rule = over(&database).rule("read", "refresh-ahead").rule("refresh-every-ms", ms(500));
    let cache = rule.build().unwrap();
    cache.keep_hot(7);
    sleep(ms(10_000)).await;
    assert!((19..=24).contains(&database.loads()), "{}", database.loads());
    database.write(7, 9);
    sleep(ms(600)).await;
    let loads = database.loads();
    assert_eq!(cache.get(&7).await.unwrap(), Some(9));
    assert_eq!(database.loads(), loads);
}

#[tokio::test(start_paused = true)]
async fn after_the_soft_time_out_an_old_copy_and_after_the_hard_one_an_error() {
    let database = Database::new(ms(10));
    let rule = over(&database).rule("stale-if-error-ms", ms(60_000));
    let cache = rule.rule("soft-timeout-ms", ms(50)).rule("hard-timeout-ms", ms(500)).build().unwrap();
    cache.get(&7).await.unwrap();
    database.write(7, 2);
    database.slow(ms(300));
    advance(TTL + ms(1)).await;
    let began = tokio::time::Instant::now();
    let served = cache.read(&7).await.unwrap();
    assert_eq!((served.value, served.how, began.elapsed()), (Some(1), How::Rescued, ms(50)));
    sleep(ms(251)).await;
    assert_eq!(cache.get(&7).await.unwrap(), Some(2), "the load went on, and was kept");
    assert_eq!(database.loads(), 2);

    database.slow(ms(100_000));
    let began = tokio::time::Instant::now();
    assert_eq!(cache.get(&8).await.unwrap_err().failure(), Failure::TimedOut);
    assert_eq!(began.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_has_not_changed_is_not_sent_again() {
    let loads = Arc::new(std::sync::Mutex::new(Vec::new()));
    struct Validating(Arc<std::sync::Mutex<Vec<Option<String>>>>);
    impl larder::tiered::Source<u64, u64> for Validating {
        fn load<'a>(
            &'a self,
            key: &'a u64,
            validator: Option<&'a str>,
        ) -> larder::tiered::BoxFuture<'a, Result<Loaded<u64>, larder::tiered::SourceError>> {
            self.0.lock().unwrap().push(validator.map(Into::into));
            Box::pin(async move {
                Ok(if validator == Some("v1") { Loaded::unchanged() } else { Loaded::value(*key).validator("v1") })
            })
        }
    }
    let source = Validating(loads.clone());
    let far = Arc::new(FlakyTier::new(100));
    let cache = Tiered::builder().max_capacity(10).source(source).rule("ttl-ms", TTL).rule("stale-if-error-ms", TTL);
    let cache = cache.keyspace("test").far(far.clone()).codec(numbers()).build().unwrap();
    for _ in 0..3 {
        assert_eq!(cache.get(&7).await.unwrap(), Some(7));
        sleep(ms(1)).await;
        let copy = far.get("test:7").await.unwrap().copy.unwrap();
        assert_eq!((copy.value.as_deref(), copy.fresh_ms), (Some(&7u64.to_le_bytes()[..]), 999));
        assert_eq!(far.puts(), 1, "nor to a far tier");
        advance(TTL).await;
    }
    let validator = Some("v1".to_string());
    assert_eq!(*loads.lock().unwrap(), [None, validator.clone(), validator]);
}

#[tokio::test(start_paused = true)]
async fn what_the_source_says_of_a_value_counts() {
    let source = FromFn::new(|key: u64| async move {
        let loaded = Loaded::value(key).fresh_for(ms(10 * key));
        Ok::<_, std::io::Error>(if key == 1 { loaded.tag("one") } else { loaded })
    });
    let cache = Tiered::builder().max_capacity(10).source(source).rule("ttl-ms", TTL).build().unwrap();
    for key in [0, 1, 5] {
        cache.get(&key).await.unwrap();
    }
    advance(ms(20)).await;
    assert_eq!(cache.get_cached(&0).await.unwrap(), None, "not to be kept");
    assert_eq!(cache.get_cached(&1).await.unwrap(), None);
    assert_eq!(cache.get_cached(&5).await.unwrap(), Some(5));
}

#[tokio::test(start_paused = true)]
async fn invalidations_reach_what_they_name_and_nothing_else() {
    let database = Database::new(ms(1));
    let tagged = database.clone();
    let source = FromFn::new(move |key: String| {
        let database = tagged.clone();
        async move {
            let value = database.read(key.len() as u64).await?;
            Ok::<_, std::io::Error>(Loaded::value(value).tag(if key.ends_with('1') { "odd" } else { "even" }))
        }
    });
    let cache = Tiered::builder()
        .keyspace("groups")
        .max_capacity(100)
        .source(source)
        .rule("ttl-ms", ms(100_000))
        .rule("stale-while-revalidate-ms", ms(100_000))
        .build()
        .unwrap();
    let keys: Vec<String> = ["user/1", "user/2", "item/1", "item/2"].map(String::from).into();
    let all = |cache: Tiered<String, u64>| {
        let keys = keys.clone();
        async move {
            let mut cached = Vec::new();
            for key in &keys {
                cached.push(cache.get_cached(key).await.unwrap().is_some());
            }
            // And all are there again.
            for value in cache.get_many(&keys).await {
                value.unwrap();
            }
            cached
        }
    };
    all(cache.clone()).await;
    cache.invalidate(&keys[0]).await.unwrap();
    assert_eq!(all(cache.clone()).await, [false, true, true, true]);
    cache.invalidate_many(keys[1..3].to_vec()).await.unwrap();
    assert_eq!(all(cache.clone()).await, [true, false, false, true]);
    cache.invalidate_prefix("user/").await.unwrap();
    assert_eq!(all(cache.clone()).await, [false, false, true, true]);
    cache.invalidate_tag("odd").await.unwrap();
    assert_eq!(all(cache.clone()).await, [false, true, false, true]);
    cache.invalidate_all().await.unwrap();
    assert_eq!(all(cache.clone()).await, [false; 4]);

    let how = async |key: &String| cache.read(key).await.unwrap().how;
    assert_eq!(how(&keys[0]).await, How::Fresh);
    cache.expire_tag("odd").await.unwrap();
    assert_eq!((how(&keys[0]).await, how(&keys[1]).await), (How::Stale, How::Fresh));
    sleep(ms(10)).await;
    assert_eq!(how(&keys[0]).await, How::Fresh, "it was refreshed");
    cache.expire(&keys[0]).await.unwrap();
    assert_eq!((how(&keys[0]).await, how(&keys[1]).await), (How::Stale, How::Fresh));
    cache.expire_prefix("item").await.unwrap();
    assert_eq!((how(&keys[2]).await, how(&keys[1]).await), (How::Stale, How::Fresh));
}

#[tokio::test(start_paused = true)]
async fn a_load_that_an_invalidation_overtakes_is_not_kept() {
    type Invalidate = for<'a> fn(&'a Tiered<u64, u64>) -> larder::tiered::BoxFuture<'a, Result<(), TieredError>>;
    let invalidations: [Invalidate; 4] = [
        |cache| Box::pin(cache.invalidate(&7)),
        |cache| Box::pin(cache.invalidate_prefix("7")),
        |cache| Box::pin(cache.invalidate_all()),
        |cache| Box::pin(cache.insert(7, 2)),
    ];
    for invalidate in invalidations {
        let database = Database::new(ms(100));
        let cache = over(&database).build().unwrap();
        let early = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(&7).await }
        });
        sleep(ms(50)).await;
        database.slow(ms(10));
        database.write(7, 2);
        invalidate(&cache).await.unwrap();
        // Joins no load that began before.
        assert_eq!(cache.get(&7).await.unwrap(), Some(2));
        assert_eq!(early.await.unwrap().unwrap(), Some(1), "it began before");
        assert_eq!(cache.get(&7).await.unwrap(), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn writes_by_each_pattern() {
    for (pattern, saves, loads) in
        [("write-through", 1, 0), ("write-around", 1, 1), ("write-invalidate", 1, 1), ("put", 0, 0)]
    {
        let database = Database::new(ms(10));
        let cache = over(&database).rule("write", pattern).build().unwrap();
        cache.insert(7, 5).await.unwrap();
        let expected = if pattern == "put" { 5 } else { database.value(7) };
        assert_eq!(cache.get(&7).await.unwrap(), Some(expected), "{pattern}");
        assert_eq!(expected, 5);
        assert_eq!((database.saves(), database.loads()), (saves, loads), "{pattern}");
        if pattern != "put" {
            cache.remove(&7).await.unwrap();
            assert_eq!(database.value(7), 0, "removed at the source");
            database.fail(true);
            assert_eq!(cache.insert(7, 6).await.unwrap_err().failure(), Failure::Unavailable);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_loads_for_itself_and_the_others_wait_for_it() {
    let cache = Tiered::<u64, u64>::builder().max_capacity(10).rule("ttl-ms", TTL).build().unwrap();
    let Lookup::Miss(ticket) = cache.lookup(&7).await.unwrap() else { panic!("it is not there") };
    let other = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&7).await }
    });
    sleep(ms(50)).await;
    assert!(!other.is_finished());
    ticket.fill(Some(1)).await.unwrap();
    assert_eq!(other.await.unwrap().unwrap(), Some(1));
    assert_eq!(cache.get(&7).await.unwrap(), Some(1));
    // A fill that an invalidation has overtaken.
    cache.invalidate(&7).await.unwrap();
    let Lookup::Miss(ticket) = cache.lookup(&7).await.unwrap() else { panic!("it is not there") };
    cache.invalidate(&7).await.unwrap();
    ticket.fill(Some(2)).await.unwrap();
    assert_eq!(cache.get_cached(&7).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn processes_share_a_tier_and_hear_of_each_other() {
    let database = Database::new(ms(100));
    let far = Arc::new(MemoryTier::new(1_000).unwrap());
    let bus = Arc::new(LocalBus::new());
    let processes: Vec<_> = (0..4).map(|_| Process::over(&database, far.clone(), &bus).build().unwrap()).collect();
    assert_eq!(processes[0].get(&7).await.unwrap(), Some(1));
    for process in &processes[1..] {
        let served = process.read(&7).await.unwrap();
        assert_eq!((served.value, served.tier), (Some(1), Some(1)));
        assert_eq!(process.read(&7).await.unwrap().tier, Some(0), "it was kept nearer");
    }
    assert_eq!(database.loads(), 1);
    database.write(7, 2);
    processes[3].invalidate(&7).await.unwrap();
    for process in &processes {
        assert_eq!(process.get(&7).await.unwrap(), Some(2));
    }
    assert_eq!(database.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_far_tier_has_is_served_without_a_step() {
    let database = Database::new(ms(10));
    let far = Arc::new(FlakyTier::new(100));
    let build = || over(&database).far(far.clone()).codec(numbers()).build().unwrap();
    let (one, other) = (build(), build());
    let keys: Vec<u64> = (0..20).collect();
    one.get_many(&keys).await;
    advance(ms(400)).await;
    assert_eq!(other.get(&0).await.unwrap(), Some(1));
    let steps = other.stats().steps;
    assert_eq!(steps, 1, "how a read starts is asked once, and the look told the rest");
    assert!(other.get_many(&keys).await.into_iter().all(|read| read.unwrap() == Some(1)));
    let stats = other.stats();
    assert_eq!((stats.steps, stats.far_hits, stats.near_hits, stats.loads), (steps, 20, 1, 0));
    // Kept on the terms that are left of it, and quiet.
    advance(ms(500)).await;
    assert_eq!(other.read(&7).await.unwrap().tier, Some(0));
    assert_eq!(other.stats().steps, steps);
    advance(ms(101)).await;
    database.write(7, 2);
    assert_eq!(other.get(&7).await.unwrap(), Some(2), "its freshness ended when that of the copy did that it is of");
    assert!(other.stats().steps > steps);
}

/// A number that takes its time to be copied.
#[derive(Debug)]
struct Slow(u64);

impl Clone for Slow {
    fn clone(&self) -> Self {
        // The clock has moved once it has been polled.
        let _ = pin!(advance(ms(10))).poll(&mut Context::from_waker(Waker::noop()));
        Slow(self.0)
    }
}

/// What a module was told is what its answer is judged by: a copy that ends while the host is at it is no wrong answer.
#[tokio::test(start_paused = true)]
async fn copies_that_end_while_they_are_served() {
    let far = Arc::new(MemoryTier::new(100).unwrap());
    let codec = Codec::new(
        |value: &Slow| value.0.to_le_bytes().to_vec(),
        |bytes| bytes.try_into().map(|bytes| Slow(u64::from_le_bytes(bytes))),
    );
    let builder = Tiered::builder().keyspace("test").max_capacity(100);
    let cache = builder.far(far.clone()).codec(codec).rule("ttl-ms", ms(3_600_000)).build().unwrap();
    let keys: Vec<u64> = (0..10).collect();
    for key in &keys {
        cache.insert(*key, Slow(*key)).await.unwrap();
    }
    for early in [false, true] {
        // They end in tier 0, and in the other in 5 ms.
        advance(ms(3_600_000)).await;
        for key in &keys {
            let name = format!("test:{key}");
            let copy = FarCopy {
                value: Some(key.to_le_bytes().to_vec().into()),
                validator: None,
                tags: Arc::default(),
                age_ms: 0,
                fresh_ms: 5,
                stale_ms: 0,
                rescue_ms: 0,
                early_us: u64::from(early),
                cost_us: 0,
            };
            let token = far.token(&name).await.unwrap();
            assert_eq!(far.put(&name, copy, token, false).await.unwrap(), Put::Kept);
        }
        let (far_hits, read) = (cache.stats().far_hits, cache.get_many(&keys).await);
        let stats = cache.stats();
        let read: Vec<_> = read.into_iter().map(|value| value.unwrap().map(|value| value.0)).collect();
        assert_eq!(read, keys.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!((stats.far_hits - far_hits, stats.wrong_answers, stats.fallbacks), (10, 0, 0), "{stats:?}");
    }
}

/// A module may load though it has come upon a fresh copy, of which a tier may give no token.
#[tokio::test(start_paused = true)]
async fn what_is_loaded_in_place_of_a_fresh_copy_is_kept_in_its_tier() {
    // Look; then load; then serve what was loaded, and keep it in tier 1 for a minute.
    let lines = "
        (i64.store (i32.const 2048) (i64.add (global.get $cookie) (i64.const 1)))
        (if (i64.eqz (global.get $cookie)) (then
            (i32.store8 (i32.const 2056) (i32.const 0)) (i32.store8 (i32.const 2064) (i32.const 1))))
        (if (i64.eq (global.get $cookie) (i64.const 1)) (then
            (i32.store8 (i32.const 2056) (i32.const 2)) (i32.store8 (i32.const 2064) (i32.const 0))
            (i32.store8 (i32.const 2080) (i32.const 0))))
        (if (i64.eq (global.get $cookie) (i64.const 2)) (then
            (i32.store8 (i32.const 2056) (i32.const 10))
            (i32.store8 (i32.const 2064) (i32.const 1)) (i32.store8 (i32.const 2080) (i32.const 1))
            (i32.store8 (i32.const 2088) (i32.const 1)) (i32.store8 (i32.const 2089) (i32.const 2))
            (i64.store (i32.const 2096) (i64.const 60000)) (i64.store (i32.const 2120) (i64.const 60000))))
        (i32.const 2048)";
    let module = Patterns::bytes(Guest::stepping(lines).build());
    let database = Database::new(ms(10));
    let far = Arc::new(FlakyTier::new(100));
    let builder = Tiered::builder().keyspace("test").max_capacity(100).source(database.clone());
    let cache = builder.far(far.clone()).codec(numbers()).patterns(module).build().unwrap();
    for value in 1..4 {
        database.write(7, value);
        assert_eq!(cache.get(&7).await.unwrap(), Some(value));
        let stats = cache.stats();
        assert_eq!((stats.fallbacks, stats.fenced), (0, 0), "{stats:?}");
        let kept = far.get("test:7").await.unwrap().copy.unwrap();
        assert_eq!((kept.value.as_deref(), kept.fresh_ms), (Some(&value.to_le_bytes()[..]), 60_000));
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_readers_in_four_processes_are_one_load() {
    let database = Database::new(ms(100));
    let far = Arc::new(MemoryTier::new(1_000).unwrap());
    let bus = Arc::new(LocalBus::new());
    let build = || Process::over(&database, far.clone(), &bus).rule("flight", "fleet").build().unwrap();
    let processes: Vec<_> = (0..4).map(|_| build()).collect();
    let read = || {
        let readers: Vec<_> = (0..10_000)
            .map(|i| {
                let process = processes[i % 4].clone();
                tokio::spawn(async move { process.get(&7).await })
            })
            .collect();
        async {
            for reader in readers {
                assert_eq!(reader.await.unwrap().unwrap(), Some(1));
            }
        }
    };
    read().await;
    assert_eq!(database.loads(), 1);
    advance(TTL + ms(1)).await;
    read().await;
    assert_eq!(database.loads(), 2);
    // A process that died with the lease: it ends by itself, and one of the others loads.
    advance(TTL + ms(1)).await;
    assert!(far.lease("test:7", 99, ms(3_000)).await.unwrap());
    let began = tokio::time::Instant::now();
    read().await;
    assert_eq!(database.loads(), 3);
    assert!(began.elapsed() >= ms(3_000) && began.elapsed() < ms(4_000), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_far_tier_that_is_down_makes_reads_slower_and_not_wrong() {
    let database = Database::new(ms(10));
    let tier = Arc::new(FlakyTier::new(1_000));
    let bus = Arc::new(LocalBus::new());
    let cache = Process::over(&database, tier.clone(), &bus).build().unwrap();
    cache.get(&7).await.unwrap();
    tier.fail(true);
    for key in 0..20 {
        assert_eq!(cache.get(&key).await.unwrap(), Some(1));
    }
    let asked = tier.calls();
    assert_eq!(cache.get(&30).await.unwrap(), Some(1));
    assert_eq!(tier.calls(), asked, "it is left alone for a while");

    // What could not be dropped there is not read there before it is.
    database.write(7, 2);
    assert_eq!(cache.invalidate(&7).await.unwrap_err().failure(), Failure::Unreached);
    assert_eq!(cache.stats().owed, 1);
    tier.fail(false);
    assert_eq!(cache.get(&7).await.unwrap(), Some(2));
    sleep(ms(10_000)).await;
    assert_eq!(cache.stats().owed, 0, "it was caught up on");
    cache.get(&7).await.unwrap();
    let other = Process::over(&database, tier.clone(), &bus).build().unwrap();
    assert_eq!(other.get(&7).await.unwrap(), Some(2));
}

/// A bus that tells nobody.
struct DeadBus;

impl Bus for DeadBus {
    fn summary(&self) -> String {
        "a dead bus".into()
    }
    fn join(&self, _: Weak<dyn Listener>) {}
    fn announce<'a>(&'a self, _: &'a Arc<dyn Listener>, _: News) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async { Err(TierError::TimedOut) })
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_told_is_named_and_all_others_are_told() {
    let database = Database::new(ms(10));
    let (near, far) = (Arc::new(FlakyTier::new(100)), Arc::new(FlakyTier::new(100)));
    let cache = over(&database)
        .far(near.clone())
        .far(far.clone())
        .codec(numbers())
        .bus(Arc::new(DeadBus))
        .rule("write", "write-through")
        .build()
        .unwrap();
    let keys: Vec<Arc<str>> = (0..8).map(|key| format!("test:{key}").into()).collect();
    for (dead, living) in [(&near, &far), (&far, &near)] {
        for key in 0..8 {
            cache.get(&key).await.unwrap();
        }
        dead.fail(true);
        let which = if Arc::ptr_eq(dead, &near) { 1 } else { 2 };
        let told = |error: TieredError| {
            let unreached = error.source().and_then(|source| source.downcast_ref::<Unreached>()).unwrap();
            let mut untold: Vec<_> = unreached.untold.iter().map(|untold| untold.what.as_str()).collect();
            untold.sort_unstable();
            assert_eq!(untold, ["the bus, a dead bus", &format!("tier {which}, a tier that fails")]);
            assert!(error.to_string().contains("it did not answer in time"), "{error}");
        };
        let there = async |key: usize| living.get(&keys[key]).await.unwrap().copy.is_some();
        assert!(there(0).await && there(1).await && there(2).await && there(3).await);
        told(cache.invalidate(&0).await.unwrap_err());
        assert!(!there(0).await);
        told(cache.invalidate_many(vec![1, 2]).await.unwrap_err());
        assert!(!there(1).await && !there(2).await);
        told(cache.insert(3, 4).await.unwrap_err());
        assert!(there(3).await, "it has what was written");
        told(cache.invalidate_prefix("4").await.unwrap_err());
        assert!(!there(4).await);
        assert!(there(5).await);
        told(cache.invalidate_tag("red").await.unwrap_err());
        told(cache.invalidate_all().await.unwrap_err());
        assert!(!there(5).await);
        dead.fail(false);
        sleep(ms(20_000)).await;
        assert!(cache.stats().owed > 0, "the bus is owed it still");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_tier_does_not_take_is_counted() {
    let far = MemoryTier::new(100).unwrap().max_value_bytes(7);
    let cache = over(&Database::new(ms(10))).far(far).codec(numbers()).rule("write", "write-through").build().unwrap();
    cache.get(&7).await.unwrap();
    sleep(ms(1)).await;
    assert_eq!(cache.stats().declined, 1);
    cache.insert(7, 2).await.unwrap();
    assert_eq!((cache.stats().declined, cache.get(&7).await.unwrap()), (2, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_is_a_miss() {
    let database = Database::new(ms(10));
    let far = Arc::new(MemoryTier::new(1_000).unwrap());
    let bus = Arc::new(LocalBus::new());
    Process::over(&database, far.clone(), &bus).build().unwrap().get(&7).await.unwrap();
    let other =
        Process::over(&database, far, &bus).codec(Codec::new(|_| vec![1], |_| Err::<u64, _>("not a number"))).build();
    let other = other.unwrap();
    assert_eq!(other.get(&7).await.unwrap(), Some(1));
    assert_eq!((other.stats().damaged, database.loads()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_contradicts_itself_is_refused_with_the_remedy() {
    let database = Database::new(ms(10));
    let refused = |name: &str, value: larder::Value| over(&database).rule(name, value).build().unwrap_err().to_string();
    let cases = [
        ("write", "write-behind".into(), ["`write`", "journal"]),
        ("read", "read-trough".into(), ["`read`", "read-through"]),
        ("ttl-ms", (-1).into(), ["`ttl-ms`", "-1"]),
        ("tll-ms", 1.into(), ["`tll-ms`", "did you mean `ttl-ms`"]),
        ("soft-timeout-ms", 10.into(), ["`soft-timeout-ms`", "stale-if-error-ms"]),
        ("flight", "fleet".into(), ["`flight`", "shared tier"]),
    ];
    for (name, value, expected) in cases {
        let message = refused(name, value);
        for part in expected.into_iter().chain(["keyspace `test`"]) {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    assert!(over(&database).far(MemoryTier::new(1).unwrap()).build().unwrap_err().to_string().contains("codec"));

    // New rules under load: refused ones leave the old ones in force.
    let cache = over(&database).build().unwrap();
    cache.get(&7).await.unwrap();
    assert!(cache.set_rules([("ttl-ms", -1)]).is_err());
    assert!(cache.set_rules([("ttl-ms", 10)]).is_ok());
    cache.get(&8).await.unwrap();
    advance(ms(11)).await;
    assert_eq!(cache.get_cached(&8).await.unwrap(), None);
    assert_eq!(cache.get_cached(&7).await.unwrap(), Some(1));
    cache.swap_patterns(larder::Patterns::builtin().load().unwrap()).unwrap();
    assert_eq!(cache.get(&8).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_down_is_left_alone_and_comes_back_by_itself() {
    let database = Database::new(ms(1));
    let limits = GateLimits { failures: 3, rest: ms(1_000), ..GateLimits::default() };
    let cache = over(&database).source_limits(limits).build().unwrap();
    database.fail(true);
    for key in 0..10 {
        let failure = cache.get(&key).await.unwrap_err().failure();
        assert_eq!(failure, if key < 3 { Failure::Unavailable } else { Failure::Overloaded });
    }
    assert_eq!(database.loads(), 3, "what comes after is not tried");
    let source = cache.stats().gates.pop().unwrap();
    assert_eq!((source.before.as_str(), source.open, source.broken), ("source", true, 7));
    database.fail(false);
    assert!(cache.get(&1).await.is_err(), "it rests");
    advance(ms(1_001)).await;
    assert_eq!(cache.get(&1).await.unwrap(), Some(1));
    assert_eq!(cache.get(&2).await.unwrap(), Some(1));
    assert!(!cache.stats().gates[0].open);
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_takes_no_more_calls_at_once_than_it_may() {
    let database = Database::new(ms(100));
    let limits = GateLimits { concurrency: 10, queue: 30, ..GateLimits::default() };
    let cache = over(&database).source_limits(limits).build().unwrap();
    let reads: Vec<_> = (0..100)
        .map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(&key).await })
        })
        .collect();
    sleep(ms(50)).await;
    assert_eq!((database.loads(), cache.stats().gates[0].running), (10, 10));
    let mut turned_away = 0;
    for read in reads {
        if let Err(error) = read.await.unwrap() {
            assert_eq!(error.failure(), Failure::Overloaded);
            turned_away += 1;
        }
    }
    assert_eq!((database.loads(), turned_away), (40, 60), "ten at once, thirty wait, the rest is told so");
}

#[tokio::test(start_paused = true)]
async fn a_cache_grows_to_a_keyspace() {
    let (gone, database) = (Arc::new(std::sync::Mutex::new(Vec::new())), Database::new(ms(1)));
    let listening = gone.clone();
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(100)
        .weigher(|_, value| u32::try_from(*value).unwrap())
        .policy(Policy::builtin("fifo").unwrap())
        .time_to_live(ms(1_000))
        .eviction_listener(move |key, value, cause| listening.lock().unwrap().push((key, value, cause)))
        .keyspace("grown")
        .source(database.clone())
        .build()
        .unwrap();
    for key in 0..3 {
        database.write(key, 40);
        assert_eq!(cache.get(&key).await.unwrap(), Some(40));
    }
    assert_eq!(*gone.lock().unwrap(), [(0, 40, larder::RemovalCause::Size)], "two of weight 40 fit into 100");
    assert_eq!((database.loads(), cache.get(&2).await.unwrap()), (3, Some(40)));
    advance(ms(1_001)).await;
    cache.get(&2).await.unwrap();
    assert_eq!(database.loads(), 4, "the time to live is the rule's");

    let refused = Cache::<u64, u64>::builder().max_capacity(1).time_to_idle(ms(1)).keyspace("x").build().unwrap_err();
    assert!(matches!(refused, TieredBuildError::NotForKeyspaces("time_to_idle")), "{refused}");
}
