//! The cache against a model: random operations from seeds, over the product of configurations, checked at every step.
//!
//! The model is a map from keys to what was last written, with its deadline. The cache may forget an entry only by saying
//! so: the listener hears of each that leaves, once, and why. So at every step the cache holds exactly what was put in
//! and was not said to have left; that is checked for the key at hand, and for all after each settling. In between
//! stands an auditor who checks that the policy is told the truth.
//!
//! A failure prints the configuration and the seed; `LARDER_SEED=n` runs that seed alone, `LARDER_SEEDS=n` so many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Ledger, Random, assert_clean, audited, eventually, residents};
use larder::{Cache, Clock, Expiry, Policy, RemovalCause};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    /// Each value is written once.
    id: u64,
    weight: u32,
    /// What `expire_after` says of it.
    life: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expires {
    Never,
    Ttl,
    Tti,
    Both,
    PerEntry,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    policy: &'static str,
    capacity: u64,
    weighted: bool,
    expires: Expires,
    shards: usize,
    batch: Option<u32>,
}

const TTL: u64 = 700;
const TTI: u64 = 300;

/// Lives as long as its value says; a read of one with an odd number gives it half of that.
struct PerEntry;

impl Expiry<u64, Value> for PerEntry {
    fn expire_after_create(&self, _: &u64, value: &Value) -> Option<Duration> {
        value.life.map(Duration::from_millis)
    }

    fn expire_after_read(&self, _: &u64, value: &Value, left: Option<Duration>) -> Option<Duration> {
        if value.id.is_multiple_of(2) { left } else { Some(Duration::from_millis(value.life.unwrap_or(1000) / 2)) }
    }
}

#[derive(Clone, Debug)]
struct Written {
    key: u64,
    value: Value,
    /// It is found before this.
    deadline: Option<u64>,
    live_until: Option<u64>,
    /// Its deadline is its own: of `insert_for`.
    fixed: bool,
}

type Heard = Arc<Mutex<Vec<(u64, Value, RemovalCause)>>>;

struct Run {
    config: Config,
    cache: Cache<u64, Value>,
    ledgers: Vec<Ledger>,
    clock: Clock,
    now: u64,
    heard: Heard,
    /// By value: what is in the cache, as far as we were told.
    present: HashMap<u64, Written>,
    /// By key, the value written last.
    last: HashMap<u64, u64>,
    next_id: u64,
    inserted: u64,
    left: HashMap<RemovalCause, u64>,
    /// Removed or replaced by this step, with the cause that is right then.
    expected: HashMap<u64, RemovalCause>,
    heaviest: u64,
}

impl Run {
    fn new(config: Config, seed: u64) -> Self {
        let clock = Clock::manual();
        let heard = Heard::default();
        let (policy, ledger) = audited(Policy::builtin(config.policy).unwrap());
        let mut builder = Cache::builder()
            .max_capacity(config.capacity)
            .policy(policy)
            .shards(config.shards)
            .seed(seed)
            .clock(clock.clone())
            .eviction_listener({
                let heard = heard.clone();
                move |key, value, cause| heard.lock().unwrap().push((key, value, cause))
            });
        if config.weighted {
            builder = builder.weigher(|_, value: &Value| value.weight);
        }
        if let Some(batch) = config.batch {
            builder = builder.batch(batch);
        }
        if matches!(config.expires, Expires::Ttl | Expires::Both) {
            builder = builder.time_to_live(Duration::from_millis(TTL));
        }
        if matches!(config.expires, Expires::Tti | Expires::Both) {
            builder = builder.time_to_idle(Duration::from_millis(TTI));
        }
        if config.expires == Expires::PerEntry {
            builder = builder.expire_after(PerEntry);
        }
        Run {
            config,
            cache: builder.build().unwrap(),
            ledgers: vec![ledger],
            clock,
            now: 0,
            heard,
            present: HashMap::new(),
            last: HashMap::new(),
            next_id: 0,
            inserted: 0,
            left: HashMap::new(),
            expected: HashMap::new(),
            heaviest: 1,
        }
    }

    fn expired(&self, written: &Written) -> bool {
        written.deadline.is_some_and(|deadline| deadline <= self.now)
    }

    fn value(&mut self, random: &mut Random) -> Value {
        self.next_id += 1;
        let weight = match random.below(20) {
            0 => 0,
            1 => self.config.capacity.min(1000) as u32 + 1,
            2..=5 => (self.config.capacity / 8).min(200) as u32,
            _ => random.below(4) as u32 + 1,
        };
        let life = (random.below(3) != 0).then(|| random.below(1500));
        Value { id: self.next_id, weight, life }
    }

    fn weight(&self, value: &Value) -> u64 {
        if self.config.weighted { u64::from(value.weight.max(1)) } else { 1 }
    }

    /// What the model knows of a key.
    fn known(&self, key: u64) -> Option<&Written> {
        self.last.get(&key).and_then(|id| self.present.get(id))
    }

    fn wrote(&mut self, key: u64, value: Value, own: Option<u64>) {
        if let Some(old) = self.known(key) {
            let cause = if self.expired(old) { RemovalCause::Expired } else { RemovalCause::Replaced };
            self.expected.insert(old.value.id, cause);
        }
        let after = |span: u64| Some(self.now + span);
        let live_until = (self.config.expires == Expires::Both).then_some(self.now + TTL);
        let deadline = match (own, self.config.expires) {
            (Some(own), _) => after(own),
            (None, Expires::Never) => None,
            (None, Expires::Ttl) => after(TTL),
            (None, Expires::Tti) => after(TTI),
            (None, Expires::Both) => after(TTL.min(TTI)),
            (None, Expires::PerEntry) => value.life.map(|life| self.now + life),
        };
        self.heaviest = self.heaviest.max(self.weight(&value));
        self.inserted += 1;
        self.last.insert(key, value.id);
        self.present.insert(value.id, Written { key, value, deadline, live_until, fixed: own.is_some() });
    }

    fn was_read(&mut self, key: u64) {
        let (now, expires) = (self.now, self.config.expires);
        let Some(written) = self.last.get(&key).and_then(|id| self.present.get_mut(id)) else { return };
        if written.fixed {
            return;
        }
        match expires {
            Expires::Tti | Expires::Both => {
                let idle = now + TTI;
                written.deadline = Some(written.live_until.map_or(idle, |live| live.min(idle)));
            }
            Expires::PerEntry if written.value.id % 2 != 0 => {
                written.deadline = Some(now + written.value.life.unwrap_or(1000) / 2);
            }
            _ => {}
        }
    }

    /// Takes in what the listener heard.
    fn listen(&mut self) {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        for (key, value, cause) in heard {
            let written =
                self.present.remove(&value.id).unwrap_or_else(|| panic!("{value:?} left twice, or never came"));
            assert_eq!((written.key, &written.value), (key, &value));
            match self.expected.remove(&value.id) {
                Some(right) => assert!(
                    // The cache may have thrown it out before it was replaced or removed.
                    cause == right || matches!(cause, RemovalCause::Size) || self.expired(&written),
                    "{written:?} left as {cause:?}, not as {right:?}"
                ),
                None => match cause {
                    RemovalCause::Expired => {
                        assert!(self.expired(&written), "{written:?} had not expired at {}", self.now)
                    }
                    RemovalCause::Size => {}
                    cause => panic!("{written:?} left as {cause:?}; nobody asked for it"),
                },
            }
            *self.left.entry(cause).or_default() += 1;
        }
    }

    /// What was read must be what is there by the model; the thread for chores may take an entry out at any moment, and
    /// says so a little later.
    fn check_read(&mut self, key: u64, found: Option<&Value>) {
        match found {
            Some(value) => {
                // Heard or not: what was found was not expired, and the last that was written.
                assert_eq!(self.last.get(&key), Some(&value.id), "an old value of {key}");
                let written = self.known(key).unwrap_or_else(|| panic!("{value:?} was found, and had left"));
                assert!(!self.expired(written), "{written:?} was found at {}", self.now);
            }
            None => {
                let settled = |run: &mut Run| {
                    run.listen();
                    run.known(key).is_none_or(|written| run.expired(written))
                };
                eventually("an entry that is not found was said to have left", || settled(self));
            }
        }
    }

    fn check_bound(&self) {
        let shards = self.cache_shards();
        let count = self.cache.entry_count();
        if self.config.weighted {
            let slack = shards * ((self.config.capacity / shards).div_ceil(16) + self.heaviest);
            assert!(self.cache.weighted_size() <= self.config.capacity + slack, "{}", self.cache.weighted_size());
        } else {
            let each = self.config.capacity / shards;
            let slack = if each < 1024 { 1 } else { (each / 32).min(256) };
            assert!(count <= self.config.capacity + slack * shards, "{count} entries");
        }
    }

    fn cache_shards(&self) -> u64 {
        self.config.shards as u64
    }

    /// Everything at once, after settling.
    fn check_all(&mut self) {
        self.cache.run_pending_tasks();
        let cache = self.cache.clone();
        // The thread for chores may be about to tell.
        eventually("the cache has as many entries as it did not let go of", || {
            self.listen();
            self.present.len() as u64 == cache.entry_count()
        });
        assert!(self.expected.is_empty(), "removed, and never heard of: {:?}", self.expected);
        let weight: u64 = self.present.values().map(|written| self.weight(&written.value)).sum();
        assert_eq!(cache.weighted_size(), weight);
        assert!(weight <= self.config.capacity, "{weight} is over the capacity");
        let mut found: Vec<_> = cache.iter().map(|(key, value)| (key, value.id)).collect();
        let mut right: Vec<_> =
            self.present.values().filter(|written| !self.expired(written)).map(|w| (w.key, w.value.id)).collect();
        found.sort_unstable();
        right.sort_unstable();
        assert_eq!(found, right);
        let stats = cache.stats();
        assert_eq!(stats.faults, 0, "{:?}", cache.faults());
        let left = |cause| self.left.get(&cause).copied().unwrap_or(0);
        assert_eq!(stats.evictions, left(RemovalCause::Size));
        assert_eq!(stats.expirations, left(RemovalCause::Expired));
        assert_eq!(stats.invalidations, left(RemovalCause::Explicit));
        assert_eq!(stats.replacements, left(RemovalCause::Replaced));
        assert_eq!(self.inserted, self.present.len() as u64 + self.left.values().sum::<u64>());
        self.ledgers.iter().for_each(assert_clean);
        let ledger = self.ledgers.last().unwrap();
        assert_eq!(residents(ledger, self.config.shards), (cache.entry_count(), weight), "the policy knows all");
    }

    fn step(&mut self, random: &mut Random) {
        let keys = (self.config.capacity * 2).min(9_000) + 3;
        let key = if random.below(4) == 0 { random.below(keys) } else { random.skewed(keys) };
        match random.below(100) {
            0..=44 => {
                let found = self.cache.get(&key);
                self.check_read(key, found.as_ref());
                if found.is_some() {
                    self.was_read(key);
                }
            }
            45..=79 => {
                let value = self.value(random);
                self.wrote(key, value.clone(), None);
                self.cache.insert(key, value);
            }
            80..=81 => {
                let value = self.value(random);
                let own = random.below(2000);
                self.wrote(key, value.clone(), Some(own));
                self.cache.insert_for(key, value, Duration::from_millis(own));
            }
            82..=87 => {
                if let Some(written) = self.known(key) {
                    let expired = self.expired(written);
                    let cause = if expired { RemovalCause::Expired } else { RemovalCause::Explicit };
                    self.expected.insert(written.value.id, cause);
                }
                let removed = self.cache.remove(&key);
                if let Some(value) = &removed {
                    let written = self.known(key).expect("it had not left");
                    assert_eq!((&written.value, self.expired(written)), (value, false));
                    self.listen();
                }
                self.check_read(key, None);
            }
            88..=89 => {
                let found = self.cache.peek(&key);
                self.check_read(key, found.as_ref());
                assert!(!self.cache.contains_key(&(keys + key)));
            }
            90..=91 => {
                let value = self.value(random);
                let known = self.known(key).filter(|written| !self.expired(written)).cloned();
                let mut loaded = false;
                let found = self.cache.get_with(key, || {
                    loaded = true;
                    value.clone()
                });
                if loaded {
                    // It may have come and gone by now, so it is written down before it is listened for.
                    self.wrote(key, found, None);
                    self.listen();
                    assert!(known.is_none_or(|known| !self.present.contains_key(&known.value.id)), "it was there");
                } else {
                    assert_eq!(Some(found), known.map(|known| known.value));
                    self.was_read(key);
                }
            }
            92..=96 => {
                let by = random.skewed(400);
                self.now += by;
                self.clock.advance(Duration::from_millis(by));
            }
            97 => self.check_all(),
            98 if random.below(40) == 0 => {
                let of = random.below(3) + 1;
                for written in self.present.values() {
                    if written.key % of == 0 {
                        self.expected.insert(written.value.id, RemovalCause::Explicit);
                    }
                }
                if of == 1 {
                    self.cache.invalidate_all();
                } else {
                    self.cache.invalidate_entries_if(move |key, _| key % of == 0);
                }
                self.listen();
            }
            99 if random.below(10) == 0 => {
                let names: Vec<_> = Policy::builtins().collect();
                let name = names[random.below(names.len() as u64) as usize];
                let (policy, ledger) = audited(Policy::builtin(name).unwrap());
                self.ledgers.push(ledger);
                self.cache.run_pending_tasks();
                let before = self.cache.entry_count();
                let report = self.cache.swap_policy(policy).unwrap();
                assert_eq!(report.evicted, 0, "{name} lost some of {before}");
                assert!(report.adopted <= before, "{} of {before}", report.adopted);
                self.check_all();
            }
            _ => {}
        }
        self.listen();
        self.check_bound();
    }
}

/// How many seeds, and how many steps for each.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("LARDER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LARDER_SEEDS").unwrap_or(default),
    }
}

fn run(config: Config, steps: u64, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let at = std::panic::catch_unwind(|| {
            let mut run = Run::new(config, seed);
            let mut random = Random(seed ^ config.capacity);
            for _ in 0..steps {
                run.step(&mut random);
            }
            run.check_all();
            run.now += 1 << 40;
            run.clock.advance(Duration::from_millis(1 << 40));
            run.check_all();
            // Whatever has a deadline is gone now.
            assert!(run.present.values().all(|written| written.deadline.is_none()));
        });
        if let Err(panic) = at {
            eprintln!("failed with LARDER_SEED={seed} and {config:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

const EXPIRIES: [Expires; 5] = [Expires::Never, Expires::Ttl, Expires::Tti, Expires::Both, Expires::PerEntry];

fn configurations(policy: &'static str, capacity: u64) -> impl Iterator<Item = Config> {
    let product = EXPIRIES.into_iter().flat_map(|expires| [false, true].map(|weighted| (expires, weighted)));
    let product = product.flat_map(|(expires, weighted)| [1, 2].map(|shards| (expires, weighted, shards)));
    product
        .flat_map(move |(expires, weighted, shards)| {
            [None, Some(1)].map(|batch| Config { policy, capacity, weighted, expires, shards, batch })
        })
        .filter(|config| config.shards as u64 <= config.capacity)
}

fn all(policy: &'static str) {
    for (capacity, steps) in [(1, 200), (2, 200), (10, 300), (300, 1500)] {
        for config in configurations(policy, capacity) {
            run(config, steps, seeds(1));
        }
    }
}

#[test]
fn lru() {
    all("lru");
}

#[test]
fn sieve() {
    all("sieve");
}

#[test]
fn adaptive() {
    all("adaptive");
}

#[test]
fn w_tinylfu() {
    all("w-tinylfu");
}

#[test]
fn ttl() {
    all("ttl");
}

/// One seed of each built-in in a cache that grows out of being exact, and back.
#[test]
fn every_builtin_in_a_large_cache() {
    for (at, policy) in Policy::builtins().enumerate() {
        let (expires, weighted) = (EXPIRIES[at % EXPIRIES.len()], at % 2 == 0);
        run(Config { policy, capacity: 5000, weighted, expires, shards: 1, batch: None }, 20_000, seeds(1));
    }
}

/// `cargo test --release -p larder --test engine model -- --ignored`
#[test]
#[ignore = "minutes"]
fn everything_for_longer() {
    for policy in Policy::builtins() {
        for (capacity, steps) in [(1, 1000), (2, 1000), (10, 3000), (300, 20_000), (5000, 100_000)] {
            for config in configurations(policy, capacity) {
                run(config, steps, seeds(3));
            }
        }
    }
}
