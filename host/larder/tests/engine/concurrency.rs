//! Real threads, all operations at once: whatever was put in is in the cache or was let go of, once; nothing leaks, nothing
//! is dropped twice, no read sees another key's value; and the policy is told the truth all the while.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Census, Counted, Ledger, Random, assert_clean, audited, eventually};
use larder::{Cache, Policy, RemovalCause};

/// Values are `key << 32 | serial`.
fn value(key: u64, serial: &AtomicU64) -> u64 {
    key << 32 | serial.fetch_add(1, Ordering::Relaxed)
}

#[derive(Clone, Copy)]
struct Load {
    capacity: u64,
    keys: u64,
    shards: usize,
    batch: Option<u32>,
    weighted: bool,
    expiring: bool,
    swaps: &'static [&'static str],
    steps: u64,
}

fn stress(load: Load) {
    let census = Arc::new(Census::default());
    let left: Arc<Mutex<Vec<u64>>> = Arc::default();
    let mut ledgers: Vec<Ledger> = Vec::new();
    let (policy, ledger) = audited(Policy::builtin("s3-fifo").unwrap());
    ledgers.push(ledger);
    let mut builder =
        Cache::builder().max_capacity(load.capacity).policy(policy).shards(load.shards).eviction_listener({
            let left = left.clone();
            move |key: u64, counted: Counted, _: RemovalCause| {
                assert_eq!(key, counted.value >> 32);
                left.lock().unwrap().push(counted.value);
            }
        });
    if let Some(batch) = load.batch {
        builder = builder.batch(batch);
    }
    if load.weighted {
        builder = builder.weigher(|_, counted: &Counted| counted.value as u32 % 5);
    }
    if load.expiring {
        builder = builder.time_to_live(Duration::from_millis(20)).time_to_idle(Duration::from_millis(5));
    }
    let cache = builder.build().unwrap();
    let serial = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let inserted: Vec<u64> = std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let mut ledgers = Vec::new();
            for name in load.swaps.iter().cycle() {
                if load.swaps.is_empty() || done.load(Ordering::SeqCst) {
                    break;
                }
                let (policy, ledger) = audited(Policy::builtin(name).unwrap());
                ledgers.push(ledger);
                cache.swap_policy(policy).unwrap();
            }
            ledgers
        });
        let threads: Vec<_> = (0..4u64)
            .map(|seed| {
                let (cache, serial, census) = (&cache, &serial, &census);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    let mut inserted = Vec::new();
                    for _ in 0..load.steps {
                        let key = random.skewed(load.keys);
                        match random.below(100) {
                            0..=49 => {
                                if let Some(found) = cache.get(&key) {
                                    assert_eq!(found.value >> 32, key, "another key's value");
                                }
                            }
                            50..=79 => {
                                let value = value(key, serial);
                                inserted.push(value);
                                cache.insert(key, Counted::new(value, census));
                            }
                            80..=87 => {
                                if let Some(found) = cache.remove(&key) {
                                    assert_eq!(found.value >> 32, key);
                                }
                            }
                            88..=95 => {
                                let mut loaded = None;
                                let found = cache.get_with(key, || {
                                    let value = value(key, serial);
                                    loaded = Some(value);
                                    Counted::new(value, census)
                                });
                                assert_eq!(found.value >> 32, key);
                                // What is fenced is never put in, so these are counted where they leave.
                                let _ = loaded;
                            }
                            96 => cache.run_pending_tasks(),
                            97 if random.below(100) == 0 => {
                                let all: Vec<_> = cache.iter().collect();
                                let keys: HashSet<u64> = all.iter().map(|(key, _)| *key).collect();
                                assert!(all.iter().all(|(key, found)| found.value >> 32 == *key));
                                assert!(keys.len() <= all.len());
                            }
                            98 if random.below(200) == 0 => cache.invalidate_all(),
                            _ => {
                                cache.peek(&key);
                            }
                        }
                    }
                    inserted
                })
            })
            .collect();
        let inserted = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        ledgers.extend(swapping.join().unwrap());
        inserted
    });
    cache.run_pending_tasks();
    assert!(cache.entry_count() <= load.capacity);
    assert!(cache.weighted_size() <= load.capacity);
    ledgers.iter().for_each(assert_clean);
    // Counts of notes that cross (a victim that is replaced by a lighter value at that moment) may look like a fault.
    assert_eq!(cache.stats().traps, 0);
    cache.invalidate_all();
    cache.run_pending_tasks();
    assert_eq!((cache.entry_count(), cache.weighted_size()), (0, 0));
    // The thread for chores may still be telling.
    eventually("all that was inserted has left", || {
        let left: HashSet<u64> = left.lock().unwrap().iter().copied().collect();
        inserted.iter().all(|value| left.contains(value))
    });
    let mut all = std::mem::take(&mut *left.lock().unwrap());
    let heard = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), heard, "each left once");
    drop(cache);
    eventually("all copies are dropped", || census.living() == 0);
}

const SMALL: Load = Load {
    capacity: 50,
    keys: 100,
    shards: 1,
    batch: None,
    weighted: false,
    expiring: false,
    swaps: &[],
    steps: 15_000,
};

#[test]
fn a_small_exact_cache() {
    stress(SMALL);
}

#[test]
fn a_large_cache() {
    stress(Load { capacity: 3_000, keys: 10_000, steps: 40_000, shards: 2, ..SMALL });
}

#[test]
fn weights_that_change() {
    stress(Load { capacity: 2_000, keys: 3_000, weighted: true, ..SMALL });
}

#[test]
fn capacity_of_one() {
    stress(Load { capacity: 1, keys: 3, steps: 5_000, ..SMALL });
}

#[test]
fn expiring_under_load() {
    stress(Load { capacity: 1_000, keys: 2_000, expiring: true, batch: Some(1), ..SMALL });
}

#[test]
fn swaps_under_load() {
    stress(Load { capacity: 1_500, keys: 3_000, swaps: &["lru", "adaptive", "w-tinylfu", "sieve", "arc"], ..SMALL });
}

#[test]
fn swaps_of_weighted_expiring_entries_under_load() {
    stress(Load {
        capacity: 1_500,
        keys: 3_000,
        weighted: true,
        expiring: true,
        shards: 2,
        swaps: &["lru", "ttl", "s3-fifo"],
        ..SMALL
    });
}

/// `cargo test --release -p larder --test engine concurrency -- --ignored`
#[test]
#[ignore = "minutes"]
fn all_of_it_for_longer() {
    for shards in [1, 4] {
        for capacity in [4, 300, 20_000] {
            for (weighted, expiring) in [(false, false), (true, false), (false, true), (true, true)] {
                let swaps = &["lru", "adaptive", "w-tinylfu", "sieve", "arc", "lirs", "2q", "lfu", "random"];
                let keys = capacity * 3;
                stress(Load { capacity, keys, shards, batch: None, weighted, expiring, swaps, steps: 300_000 });
            }
        }
    }
}
