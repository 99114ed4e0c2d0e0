//! No stale read after an acknowledged write or invalidation: the real driver and the real component, in three processes
//! over one shared tier, one bus and one source, each of which is slow, fails before or after it has done what it was
//! asked, or does it when nobody waits any more. tokio's clock is paused and everything random comes from the seed, so a
//! seed is a run.
//!
//! The source numbers what lands in it. A write is acknowledged with its number, an invalidation with the newest that there
//! was when it began; a read that begins later must bring that number or a later one.
//!
//! `LARDER_SEEDS=100000 cargo test -p larder --test tiers coherence` runs more; `LARDER_SEED=17` one.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};

use crate::network::{Alive, Luck, Network, Random};
use crate::world::ms;
use larder::tiered::{
    BoxFuture, Bus, Codec, Listener, Loaded, LocalBus, MemoryTier, News, Save, Source, SourceError, TierError, Tiered,
    Written,
};
use larder::{Patterns, Policy};
use tokio::time::sleep;

/// A bus that is slow, and loses what it then says it has lost.
struct BadBus {
    bus: LocalBus,
    random: Arc<Random>,
    tells: bool,
}

impl Bus for BadBus {
    fn summary(&self) -> String {
        "a bad bus".into()
    }
    fn join(&self, listener: Weak<dyn Listener>) {
        self.bus.join(listener);
    }
    fn announce<'a>(&'a self, from: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            self.random.while_passes(4).await;
            if !self.tells {
                return Ok(());
            }
            match self.random.luck() {
                Luck::Lost | Luck::Late => Err(TierError::TimedOut),
                Luck::Unheard => self.bus.announce(from, news).await.and(Err(TierError::TimedOut)),
                Luck::Fine => self.bus.announce(from, news).await,
            }
        })
    }
}

/// What landed in the source: for each key the newest value, and each value's number.
#[derive(Default)]
struct Landed {
    values: HashMap<u64, u64>,
    numbers: HashMap<u64, u64>,
    last: u64,
}

struct Database {
    landed: Mutex<Landed>,
    random: Arc<Random>,
}

impl Database {
    fn land(&self, key: u64, value: u64) -> u64 {
        let mut landed = self.landed.lock().unwrap();
        landed.last += 1;
        let number = landed.last;
        landed.values.insert(key, value);
        landed.numbers.insert(value, number);
        number
    }

    fn number(&self, value: Option<u64>) -> u64 {
        let landed = self.landed.lock().unwrap();
        value.map_or(0, |value| landed.numbers.get(&value).copied().unwrap_or(0))
    }
}

fn tag(key: u64) -> &'static str {
    if key.is_multiple_of(2) { "even" } else { "odd" }
}

impl Source<u64, u64> for Database {
    fn saves(&self) -> bool {
        true
    }

    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async move {
            self.random.while_passes(10).await;
            let value = self.landed.lock().unwrap().values.get(key).copied();
            self.random.while_passes(10).await;
            if self.random.below(20) == 0 {
                return Err(io::Error::other("down").into());
            }
            Ok(Loaded::from(value).tag(tag(*key)))
        })
    }

    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.random.while_passes(5).await;
            match self.random.luck() {
                Luck::Lost => return Err(io::Error::other("down").into()),
                Luck::Late => sleep(ms(60)).await,
                Luck::Fine | Luck::Unheard => {}
            }
            self.land(*save.key, save.value.copied().unwrap_or(0));
            self.random.while_passes(5).await;
            match self.random.luck() {
                Luck::Unheard => Err(io::Error::other("broken off").into()),
                _ => Ok(()),
            }
        })
    }
}

const KEYS: u64 = 3;

#[derive(Debug, Default)]
struct Tally {
    reads: u64,
    failed_reads: u64,
    acknowledged: u64,
    unacknowledged: u64,
    stale: Vec<String>,
    fenced: u64,
}

/// What the world does right; all of it, but in the test of the test.
#[derive(Clone, Copy)]
struct Duties {
    fences: bool,
    tells: bool,
}

const ALL: Duties = Duties { fences: true, tells: true };

/// One run: what was checked, and what was stale. `own`: each process has a far tier of its own, too, such as a disk.
fn run(seed: u64, write: &str, flight: &str, own: bool, duties: Duties) -> Tally {
    let operations = 120;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let random = Arc::new(Random::new(seed));
        let database = Arc::new(Database { landed: Mutex::default(), random: random.clone() });
        let far = Arc::new(MemoryTier::new(64).unwrap());
        let bus = Arc::new(BadBus { bus: LocalBus::new(), random: random.clone(), tells: duties.tells });
        let processes: Vec<Tiered<u64, u64>> = (0..3)
            .map(|i| {
                let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes);
                let reach = |tier: Arc<MemoryTier>| Network {
                    tier,
                    random: random.clone(),
                    alive: Alive::new(),
                    is_cut: Arc::default(),
                    fences: duties.fences,
                };
                let mut builder =
                    Tiered::builder().keyspace("k").max_capacity(32).policy(Policy::builtin("fifo").unwrap());
                if own {
                    builder = builder.far(reach(Arc::new(MemoryTier::new(64).unwrap().unshared())));
                }
                builder
                    .far(reach(far.clone()))
                    .codec(Codec::new(|value: &u64| value.to_le_bytes().to_vec(), number))
                    .source(database.clone())
                    .bus(bus.clone())
                    .seed(seed + i)
                    .tier_timeout(ms(30))
                    .save_timeout(ms(40))
                    .rule("write", write)
                    .rule("flight", flight)
                    .rule("ttl-ms", 60)
                    .rule("stale-while-revalidate-ms", 40)
                    .rule("stale-if-error-ms", 100)
                    .rule("retries", 1)
                    .rule("backoff-ms", 5)
                    .rule("throttle-ms", 10)
                    .build()
                    .unwrap_or_else(|error| panic!("{error}"))
            })
            .collect();
        let acknowledged: Arc<[AtomicU64; KEYS as usize]> = Arc::default();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut tasks = Vec::new();
        for i in 0..operations {
            let process = processes[random.below(3) as usize].clone();
            let (at, kind, key) = (random.below(400), random.below(20), random.below(KEYS));
            let (database, acknowledged, tally) = (database.clone(), acknowledged.clone(), tally.clone());
            tasks.push(tokio::spawn(async move {
                sleep(ms(at)).await;
                let value = 1_000 + i;
                // An application that changes the source by itself, and then says so.
                let change = |keys: &[u64]| {
                    keys.iter().map(|&key| (key, database.land(key, value + 10_000 * (key + 1)))).collect::<Vec<_>>()
                };
                let even: Vec<u64> = (0..KEYS).filter(|key| key.is_multiple_of(2)).collect();
                let all: Vec<u64> = (0..KEYS).collect();
                let (done, numbers) = match kind {
                    0 | 1 => {
                        let loaded = Loaded::value(value).tag(tag(key));
                        let done = process.insert(key, Written::with(loaded)).await;
                        (done, vec![(key, database.number(Some(value)))])
                    }
                    2 => {
                        let numbers = change(&[key]);
                        (process.invalidate(&key).await, numbers)
                    }
                    3 => {
                        let numbers = change(&even);
                        (process.invalidate_tag("even").await, numbers)
                    }
                    4 if i % 2 == 0 => {
                        let numbers = change(&all);
                        (process.invalidate_all().await, numbers)
                    }
                    4 => {
                        let numbers = change(&all);
                        (process.invalidate_many(all).await, numbers)
                    }
                    5 => {
                        let numbers = change(&[key]);
                        (process.invalidate_prefix(&key.to_string()).await, numbers)
                    }
                    6 => {
                        // Soft: nothing is promised, and nothing may be lost by it.
                        process.expire(&key).await.ok();
                        return;
                    }
                    _ => {
                        // One, or several at once.
                        let keys = if i % 3 == 0 { all } else { vec![key] };
                        let at_least: Vec<_> =
                            keys.iter().map(|key| acknowledged[*key as usize].load(SeqCst)).collect();
                        let read = match keys[..] {
                            [key] => vec![process.get(&key).await],
                            _ => process.get_many(&keys).await,
                        };
                        let mut tally = tally.lock().unwrap();
                        for ((key, at_least), read) in keys.into_iter().zip(at_least).zip(read) {
                            match read {
                                Ok(value) => {
                                    tally.reads += 1;
                                    let number = database.number(value);
                                    if number < at_least {
                                        tally.stale.push(format!("key {key}: {number} after {at_least}"));
                                    }
                                }
                                Err(_) => tally.failed_reads += 1,
                            }
                        }
                        return;
                    }
                };
                let mut tally = tally.lock().unwrap();
                if done.is_ok() {
                    tally.acknowledged += 1;
                    for (key, number) in numbers {
                        acknowledged[key as usize].fetch_max(number, SeqCst);
                    }
                } else {
                    tally.unacknowledged += 1;
                }
            }));
        }
        // None hangs: all are done long before this.
        let all = async {
            for task in tasks {
                task.await.unwrap();
            }
        };
        tokio::time::timeout(ms(600_000), all).await.unwrap_or_else(|_| panic!("seed {seed}: an operation hangs"));
        sleep(ms(60_000)).await;
        let mut tally = std::mem::take(&mut *tally.lock().unwrap());
        for process in &processes {
            let stats = process.stats();
            assert_eq!((stats.owed, stats.loading), (0, 0), "seed {seed}: all is caught up on, all flights have ended");
            assert_eq!((stats.wrong_answers, stats.fallbacks), (0, 0), "seed {seed}");
            tally.fenced += stats.fenced;
        }
        tally
    })
}

fn check(write: &str, flight: &str, own: bool) {
    // Compiled once, not for each seed.
    let _modules = (Patterns::builtin().load().unwrap(), Policy::builtin("fifo").unwrap().load().unwrap());
    let seeds = crate::network::seeds();
    let mut all = Tally::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let tally = run(seed, write, flight, own, ALL);
        assert!(
            tally.stale.is_empty(),
            "{write}, {flight}: {:?}; again with LARDER_SEED={seed} cargo test -p larder --test tiers coherence",
            tally.stale
        );
        all.reads += tally.reads;
        all.failed_reads += tally.failed_reads;
        all.acknowledged += tally.acknowledged;
        all.unacknowledged += tally.unacknowledged;
        all.fenced += tally.fenced;
    }
    println!("{write}, {flight}: {all:?}");
    assert!(all.reads > 40 * count && all.acknowledged > 5 * count, "too little was checked: {all:?}");
    assert!(count == 1 || all.fenced > 0, "nothing was ever in the way: the runs are too tame");
}

#[test]
fn write_and_invalidate() {
    check("write-invalidate", "process", false);
}

#[test]
fn write_through() {
    check("write-through", "process", false);
}

#[test]
fn write_and_invalidate_with_one_load_in_the_fleet() {
    check("write-invalidate", "fleet", false);
}

#[test]
fn write_and_invalidate_with_each_its_own_load() {
    check("write-invalidate", "none", false);
}

#[test]
fn write_and_invalidate_with_a_tier_of_its_own() {
    check("write-invalidate", "process", true);
}

/// Takes one thing away each, and stale reads appear.
#[test]
fn the_runs_find_what_is_broken() {
    let _modules = (Patterns::builtin().load().unwrap(), Policy::builtin("fifo").unwrap().load().unwrap());
    let finds = |duties| (0..200).any(|seed| !run(seed, "write-through", "process", false, duties).stale.is_empty());
    assert!(finds(Duties { fences: false, ..ALL }), "a tier that does not fence");
    assert!(finds(Duties { tells: false, ..ALL }), "a bus that says that all have heard when none has");
}
