//! The edges of the interface, and code of the user's that misbehaves.

use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Census, Counted, assert_clean, audited, eventually};
use larder::eviction::{Batch, Entries, Eviction, Fault, Ranking, Slot};
use larder::{BuildError, Cache, Clock, Policy, RemovalCause};

#[test]
fn what_cannot_be_built() {
    let builder = || Cache::<u64, u64>::builder();
    let one = || builder().max_capacity(10);
    assert!(matches!(builder().build(), Err(BuildError::NoCapacity)));
    assert!(matches!(one().batch(0).build(), Err(BuildError::NoBatch)));
    for shards in [0, 11, 9, 1025, usize::MAX / 2] {
        assert!(matches!(one().shards(shards).build(), Err(BuildError::Shards { .. })), "{shards}");
    }
    struct Never;
    impl larder::Expiry<u64, u64> for Never {
        fn expire_after_create(&self, _: &u64, _: &u64) -> Option<Duration> {
            None
        }
    }
    let two = one().expire_after(Never).time_to_live(Duration::from_secs(1)).build();
    assert!(matches!(two, Err(BuildError::TwoExpiries)));
}

/// Keys and values that take no memory have entries all the same.
#[test]
fn what_has_no_size_is_kept() {
    for expected in [10, 100_000] {
        let cache: Cache<(), ()> = Cache::builder().max_capacity(expected).build().unwrap();
        assert_eq!(cache.get(&()), None);
        cache.insert((), ());
        assert_eq!(cache.get(&()), Some(()));
        cache.invalidate(&());
        assert_eq!(cache.get(&()), None);
        cache.insert_for((), (), Duration::from_secs(100));
        assert_eq!((cache.get(&()), cache.entry_count()), (Some(()), 1));
    }
}

/// Sizes that are hints, or bytes, are not allocated.
#[test]
fn huge_bounds_cost_nothing() {
    for policy in Policy::builtins() {
        let policy = || Policy::builtin(policy).unwrap();
        let bytes = Cache::builder().max_capacity(u64::MAX).weigher(|_, _| u32::MAX).policy(policy()).build().unwrap();
        let many = Cache::builder()
            .max_capacity(u64::MAX)
            .weigher(|_: &u64, _: &u64| 1)
            .expected_entries(u32::MAX)
            .shards(1)
            .policy(policy())
            .build();
        let mut caches = vec![bytes];
        caches.extend(many);
        for cache in caches {
            for key in 0..1000 {
                cache.insert(key, key);
            }
            cache.run_pending_tasks();
            assert_eq!(cache.entry_count(), 1000);
            assert_eq!(cache.stats().faults, 0);
        }
    }
}

#[test]
fn as_many_shards_as_entries() {
    let cache = Cache::builder().max_capacity(8).shards(8).build().unwrap();
    for key in 0..1000u64 {
        cache.insert(key, key);
        assert!(cache.entry_count() <= 16);
    }
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 8);
}

#[test]
fn an_iterator_stays_at_its_end() {
    let cache = Cache::builder().max_capacity(100).build().unwrap();
    let mut empty = cache.iter();
    assert_eq!((empty.next(), empty.next(), empty.next()), (None, None, None));
    for key in 0..10u64 {
        cache.insert(key, key);
    }
    let mut all = cache.iter();
    assert_eq!(all.by_ref().count(), 10);
    assert_eq!((all.next(), all.next()), (None, None));
}

/// Entries that come and go do not hide one that stays.
#[test]
fn an_iterator_sees_what_stays_once() {
    let cache = Cache::builder().max_capacity(100_000).build().unwrap();
    for key in 0..500u64 {
        cache.insert(key, key);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for key in (1000..40_000).chain(1000..40_000) {
                cache.insert(key, key);
                cache.invalidate(&(key - 50));
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let mut stayed: Vec<_> = cache.iter().map(|(key, _)| key).filter(|&key| key < 500).collect();
            stayed.sort_unstable();
            assert!(stayed.iter().copied().eq(0..500), "{stayed:?}");
        }
    });
}

/// A listener may call the cache: it is called under no lock.
#[test]
fn a_listener_may_call_the_cache() {
    let handle: Arc<Mutex<Option<Cache<u64, u64>>>> = Arc::default();
    let heard = Arc::new(AtomicUsize::new(0));
    let cache = Cache::builder()
        .max_capacity(20)
        .eviction_listener({
            let (handle, heard) = (handle.clone(), heard.clone());
            move |key, value, cause| {
                heard.fetch_add(1, Ordering::SeqCst);
                let cache = handle.lock().unwrap().clone();
                // What it does itself is heard here as well.
                let Some(cache) = cache.filter(|_| key < 1000) else { return };
                cache.get(&key);
                cache.stats();
                if cause == RemovalCause::Size && value > 0 {
                    cache.insert(key, value - 1);
                    cache.run_pending_tasks();
                }
                cache.get_with(key + 1_000_000, || 0);
                cache.invalidate(&(key + 1_000_000));
            }
        })
        .build()
        .unwrap();
    *handle.lock().unwrap() = Some(cache.clone());
    for key in 0..200 {
        cache.insert(key % 40, 2);
        cache.remove(&(key % 7));
    }
    cache.entry(5).and_upsert_with(|_| 2);
    cache.invalidate_all();
    *handle.lock().unwrap() = None;
    assert!(heard.load(Ordering::SeqCst) > 200);
    assert_eq!(cache.entry_count(), 0);
}

/// A key whose comparison, and a value whose copying, panics when armed.
static ARMED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Debug)]
struct Touchy(u64);

fn explode() {
    if ARMED.load(Ordering::SeqCst) {
        panic!("armed");
    }
}

impl PartialEq for Touchy {
    fn eq(&self, other: &Self) -> bool {
        explode();
        self.0 == other.0
    }
}

impl Eq for Touchy {}

impl Hash for Touchy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

struct TouchyValue(Counted);

impl Clone for TouchyValue {
    fn clone(&self) -> Self {
        explode();
        TouchyValue(self.0.clone())
    }
}

/// Whatever of the user's code panics: the cache goes on, and counts as before.
#[test]
fn panics_of_the_users_code_break_nothing() {
    let census = Arc::new(Census::default());
    let cache = Cache::builder()
        .max_capacity(50)
        .weigher(|_: &Touchy, _: &TouchyValue| {
            explode();
            1
        })
        .build()
        .unwrap();
    for key in 0..30 {
        cache.insert(Touchy(key), TouchyValue(Counted::new(key, &census)));
    }
    for round in 0..3 {
        ARMED.store(true, Ordering::SeqCst);
        let key = Touchy(round);
        let value = || TouchyValue(Counted::new(0, &census));
        let panicked = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
        assert!(panicked(&|| drop(cache.get(&key))));
        assert!(panicked(&|| cache.insert(key.clone(), value())));
        assert!(panicked(&|| drop(cache.remove(&key))));
        assert!(panicked(&|| drop(cache.peek(&key))));
        assert!(panicked(&|| drop(cache.get_with(key.clone(), value))));
        assert!(panicked(&|| drop(cache.get_with(Touchy(1000), value))));
        assert!(panicked(&|| assert!(cache.iter().count() < usize::MAX)));
        assert!(panicked(&|| drop(cache.entry(key.clone()).and_upsert_with(|_| value()))));
        assert!(panicked(&|| cache.invalidate_entries_if(|_, _| panic!("the condition's own"))));
        ARMED.store(false, Ordering::SeqCst);
        assert_eq!((cache.entry_count(), cache.weighted_size()), (30, 30));
        assert_eq!(cache.get(&key).map(|value| value.0.value), Some(round));
        assert_eq!(cache.get_with(Touchy(40 + round), value).0.value, 0);
        cache.invalidate(&Touchy(40 + round));
        cache.run_pending_tasks();
    }
    assert_eq!(cache.iter().count(), 30);
    drop(cache);
    eventually("all are dropped", || census.living() == 0);
}

/// A listener that is told of what a swap put out may swap again.
#[test]
fn a_listener_may_swap_the_policy() {
    let handle: Arc<Mutex<Option<Cache<u64, u64>>>> = Arc::default();
    let swapped = Arc::new(AtomicUsize::new(0));
    let cache = Cache::builder()
        .max_capacity(10)
        .eviction_listener({
            let (handle, swapped) = (handle.clone(), swapped.clone());
            move |_: u64, _: u64, _| {
                // Taken, so that it does so once.
                let Some(cache) = handle.lock().unwrap().take() else { return };
                cache.swap_policy(Policy::builtin("lru").unwrap()).unwrap();
                swapped.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()
        .unwrap();
    for key in 0..10 {
        cache.insert(key, key);
    }
    *handle.lock().unwrap() = Some(cache.clone());
    // It refuses a resident, so there is something to tell.
    cache.swap_policy(liar(Lie::AdoptRefusesAll)).unwrap();
    assert_eq!((swapped.load(Ordering::SeqCst), cache.policy_name().as_str()), (1, "lru"));
}

/// A listener's panic is its own: who let the entry go goes on, the entries after it are heard of, and so is what the thread
/// for chores lets go.
#[test]
fn a_listener_that_panics_harms_nobody() {
    let clock = Clock::manual();
    let heard = Arc::new(AtomicUsize::new(0));
    let build = |panics: bool| {
        let heard = heard.clone();
        Cache::builder()
            .max_capacity(10)
            .time_to_live(Duration::from_secs(1))
            .clock(clock.clone())
            .eviction_listener(move |_: u64, _: u64, _| {
                heard.fetch_add(1, Ordering::SeqCst);
                assert!(!panics, "the listener's own");
            })
            .build()
            .unwrap()
    };
    let (bad, good) = (build(true), build(false));
    bad.insert(1, 1);
    good.insert(1, 1);
    clock.advance(Duration::from_secs(2));
    eventually("both are reclaimed", || heard.load(Ordering::SeqCst) == 2);
    good.insert(1, 1);
    clock.advance(Duration::from_secs(2));
    eventually("and the chores go on", || heard.load(Ordering::SeqCst) == 3);
    assert_eq!(bad.entry_count(), 0);
    for key in 0..5 {
        bad.insert(key, key);
    }
    bad.invalidate_all();
    assert_eq!((bad.entry_count(), heard.load(Ordering::SeqCst)), (0, 8));
    bad.insert(1, 1);
    bad.insert(1, 2);
    assert_eq!((bad.get(&1), heard.load(Ordering::SeqCst)), (Some(2), 9));
}

/// What a hostile policy answers, where.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Names a slot that never was, the same twice, all there are.
    AdvanceNonsense,
    /// Names nobody.
    AdvanceNothing,
    AdoptNonsense,
    AdoptRefusesAll,
    ResidentsNonsense,
    /// A fatal fault at the nth call of `advance`.
    Trap(usize),
    AdoptTraps,
}

struct Liar {
    lie: Lie,
    calls: usize,
}

impl Eviction for Liar {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.calls += 1;
        match self.lie {
            Lie::AdvanceNonsense => {
                victims.extend([u32::MAX, 0, 0, 1 << 31, 7]);
                victims.extend(&batch.arrived.slots);
                victims.extend(&batch.departed);
            }
            Lie::Trap(at) if self.calls >= at => return Err(Fault::Trap { call: "advance", message: "a lie".into() }),
            _ => {}
        }
        Ok(())
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        Ok(match self.lie {
            Lie::ResidentsNonsense => Ranking { slots: vec![3, 3, u32::MAX, 1 << 20], uses: vec![1; 9] },
            _ => Ranking::default(),
        })
    }

    fn adopt(&mut self, residents: &Entries, _: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        match self.lie {
            Lie::AdoptNonsense => victims.extend([u32::MAX, 1 << 30, 5000, 0, 0]),
            Lie::AdoptRefusesAll => victims.extend(&residents.slots),
            Lie::AdoptTraps => return Err(Fault::Trap { call: "adopt", message: "a lie".into() }),
            _ => {}
        }
        Ok(())
    }
}

fn liar(lie: Lie) -> Policy {
    Policy::native("liar", move |_| Ok(Box::new(Liar { lie, calls: 0 })))
}

/// Entries that were let go of plus those that are there are those that were put in, whatever the policy says.
#[test]
fn lies_are_contained() {
    use Lie::*;
    for lie in [
        AdvanceNonsense,
        AdvanceNothing,
        AdoptNonsense,
        AdoptRefusesAll,
        ResidentsNonsense,
        Trap(1),
        Trap(50),
        AdoptTraps,
    ] {
        for capacity in [10u64, 600] {
            let left = Arc::new(AtomicUsize::new(0));
            let cache = Cache::builder()
                .max_capacity(capacity)
                .policy(Policy::builtin("lru").unwrap())
                .eviction_listener({
                    let left = left.clone();
                    move |_: u64, _: u64, _| {
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                })
                .build()
                .unwrap();
            let mut inserted = 0;
            let mut use_it = |cache: &Cache<u64, u64>| {
                for key in 0..capacity * 3 {
                    cache.insert(key, inserted);
                    inserted += 1;
                    assert!(cache.entry_count() <= capacity + 256);
                    cache.get(&(key / 2));
                    if key % 5 == 0 {
                        cache.invalidate(&(key / 3));
                    }
                }
                cache.run_pending_tasks();
                assert!(cache.entry_count() <= capacity, "{} of {capacity}: {lie:?}", cache.entry_count());
                assert_eq!(cache.iter().count() as u64, cache.entry_count());
                eventually("the listener heard", || {
                    left.load(Ordering::SeqCst) as u64 + cache.entry_count() == inserted
                });
            };
            use_it(&cache);
            let before = cache.entry_count();
            let swapped = cache.swap_policy(liar(lie));
            match lie {
                AdoptTraps => assert!(swapped.is_err() && cache.policy_name() == "lru"),
                AdoptRefusesAll => assert_eq!(swapped.unwrap().evicted, before),
                AdoptNonsense => assert!(swapped.unwrap().evicted <= 2),
                _ => assert_eq!(swapped.unwrap().evicted, 0),
            }
            use_it(&cache);
            if !matches!(lie, AdoptRefusesAll | AdoptTraps) {
                assert!(cache.stats().faults > 0, "{lie:?}");
            }
            // An honest one takes over from a liar, and nothing is lost.
            let before = cache.entry_count();
            let (honest, ledger) = audited(Policy::builtin("s3-fifo").unwrap());
            let report = cache.swap_policy(honest).unwrap();
            assert_eq!((report.adopted, report.evicted), (before, 0), "{lie:?}");
            let faults = cache.stats().faults;
            use_it(&cache);
            assert_eq!(cache.stats().faults, faults, "{lie:?}: {:?}", cache.faults());
            assert_clean(&ledger);
        }
    }
}

/// Swapping between any two built-ins loses nothing.
#[test]
fn every_builtin_takes_over_from_every_other() {
    let cache = Cache::builder().max_capacity(300).policy(Policy::builtin("lru").unwrap()).build().unwrap();
    for key in 0..1000u64 {
        cache.insert(key, key);
        cache.get(&(key / 2));
    }
    cache.run_pending_tasks();
    let mut ledgers = Vec::new();
    for from in Policy::builtins() {
        for to in Policy::builtins() {
            for name in [from, to] {
                let before: std::collections::BTreeMap<u64, u64> = cache.iter().collect();
                let (policy, ledger) = audited(Policy::builtin(name).unwrap());
                ledgers.push(ledger);
                let report = cache.swap_policy(policy).unwrap();
                assert_eq!((report.adopted, report.evicted), (before.len() as u64, 0), "{from} to {to}");
                assert!(before.into_iter().eq(cache.iter().collect::<std::collections::BTreeMap<_, _>>()));
            }
            for key in 2000..2050u64 {
                cache.insert(key, key);
            }
        }
    }
    ledgers.iter().for_each(assert_clean);
    assert_eq!(cache.stats().faults, 0, "{:?}", cache.faults());
}

/// The same policy, which tells its successor nothing but the order of the residents.
struct Forgetful(Box<dyn Eviction>);

impl Eviction for Forgetful {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.0.advance(batch, victims)
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        self.0.residents()
    }

    fn adopt(&mut self, residents: &Entries, uses: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.0.adopt(residents, uses, victims)
    }
}

/// What a policy has learned survives a swap for itself, and it matters that it does.
#[test]
fn a_swap_for_itself_keeps_what_was_learned() {
    /// Popular keys, a loop that does not fit, and keys that never come again.
    fn requests() -> impl Iterator<Item = u64> {
        let mut state = 7u64;
        (0..60_000u64).map(move |at| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (dice, uniform) = (state >> 60, (state >> 20 & 0xff_ffff) as f64 / f64::from(1 << 24));
            match dice {
                0..6 => 2_000f64.powf(uniform) as u64,
                6..13 => 10_000 + at % 270,
                _ => 100_000 + at,
            }
        })
    }
    /// Hits, and whether each swap handed over what was learned.
    fn run(policy: &dyn Fn() -> Policy, swaps: bool) -> (u64, bool) {
        // The same fingerprints each time: batches are of one, and so the hits are the same too.
        let cache = Cache::<u64, u64>::builder().max_capacity(200).shards(1).policy(policy());
        let cache = cache.hasher(foldhash::quality::FixedState::default()).build().unwrap();
        let mut recalled = swaps;
        for (at, key) in requests().enumerate() {
            if swaps && at % 2_500 == 2_499 {
                let report = cache.swap_policy(policy()).unwrap();
                assert_eq!(report.evicted, 0);
                recalled &= report.recalled;
            }
            if cache.get(&key).is_none() {
                cache.insert(key, key);
            }
        }
        (cache.stats().hits, recalled)
    }
    let points = |hits: u64, than: u64| (hits as f64 - than as f64) * 100.0 / 60_000.0;
    let mut lost = 0;
    for name in ["2q", "adaptive", "arc", "lfu", "lirs", "s3-fifo", "sieve", "w-tinylfu"] {
        let builtin = || Policy::builtin(name).unwrap();
        let forgetful = || {
            let module = builtin().load().unwrap();
            Policy::native(name, move |limits| Ok(Box::new(Forgetful(module.open(limits)?)) as Box<dyn Eviction>))
        };
        let (unswapped, _) = run(&builtin, false);
        let (swapped, recalled) = run(&builtin, true);
        let (forgot, told) = run(&forgetful, true);
        assert!(recalled && !told, "{name}");
        let (won, without) = (points(swapped, unswapped), points(forgot, unswapped));
        assert!(won > -0.3, "{name}: {won:+.2} points after 23 swaps for itself ({without:+.2} without)");
        lost += u32::from(without < -0.3);
    }
    assert!(lost >= 3, "the requests tell nothing: only {lost} policies lose where nothing is handed over");
}

/// Tests keep compiled modules where cargo keeps what it builds (`.cargo/config.toml`), and not among the user's own.
#[test]
fn compiled_modules_stay_out_of_the_users_directory() {
    let directory = std::env::var_os("LARDER_CACHE_DIR").expect("cargo sets it for what it runs");
    let user = ["XDG_CACHE_HOME", "HOME"].map(|name| std::env::var_os(name).map(std::path::PathBuf::from));
    let user = user[0].clone().or_else(|| Some(user[1].as_ref()?.join(".cache"))).map(|user| user.join("larder"));
    assert_ne!(Some(std::path::PathBuf::from(&directory)), user);
    // Loaded, and so kept: by this test, or one before it.
    Policy::builtin("lru").unwrap().load().unwrap();
    assert!(std::fs::read_dir(directory).unwrap().next().is_some());
}
