//! Write-behind, in a process that dies: the real driver, component and journal over a disk, a shared tier and a source that
//! are slow and fail before or after they have done what they were asked. Between operations the process is killed and
//! started again with what the disk has; rules are reloaded, between write-behind and the patterns that save at once; the
//! module is swapped for one that traps at every step, and back; the shared tier is cut off. In every third run a neighbour
//! without the journal reads meanwhile, and puts into the shared tier what the source has still. tokio's clock is paused and
//! everything random comes from the seed, so a seed is a run.
//!
//! Writes are numbered as they become durable: those that are logged by the disk, others by the source. Held against that:
//!
//! - a read that begins after a write was acknowledged brings that one or a later one, whatever died in between;
//! - the source gets the writes of a key in their order, and of a write that it gets twice it is told the same name;
//! - in the end the source has, for every key, the last write that was acknowledged or a later one, and the journal is empty.
//!
//! `LARDER_SEEDS=100000 cargo test -p larder --test tiers journal` runs more; `LARDER_SEED=17` one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::network::{Alive, Luck, Network, Random};
use larder::tiered::{
    BoxFuture, Change, Codec, Contents, Journal, Loaded, MemoryTier, Record, Save, Source, SourceError, Store,
    StoreError, Tiered, TieredBuilder, WriteId,
};
use larder::{Patterns, PatternsModule, Policy, Value};
use tokio::time::sleep;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Numbers are given so far apart, so that others fit in between.
const STEP: u64 = 1_000;

/// What is durable, at the source and on the disk: what outlives a process.
#[derive(Default)]
struct Durable {
    last_number: u64,
    /// Of each value, its number.
    numbers: HashMap<u64, u64>,
    /// Of each key, the numbers of all that was ever logged.
    logged: HashMap<u64, BTreeSet<u64>>,
    /// The journal's.
    records: BTreeMap<u64, Arc<Record>>,
    last_record: u64,
    /// The source's.
    values: HashMap<u64, u64>,
    /// The names of the journal's writes that the source has carried out, with what they were: the newest of each key.
    names: HashMap<u64, WriteId>,
    told_apart: u64,
    commits: u64,
    owed: u64,
    wrong: Vec<String>,
    /// What happened, for whoever looks into a failure.
    history: Vec<String>,
}

const JOURNAL: u64 = 7;

impl Durable {
    fn next_number(&mut self) -> u64 {
        self.last_number += STEP;
        self.last_number
    }

    fn number(&self, value: Option<u64>) -> u64 {
        value.map_or(0, |value| self.numbers.get(&value).copied().unwrap_or(0))
    }

    fn carry_out(&mut self, changes: &[Change]) {
        self.commits += 1;
        for change in changes {
            match change {
                Change::Put(number, record) if record.saved => {
                    self.records.insert(*number, record.clone());
                    self.owed += 1;
                    self.history.push(format!("key {}: {number} is saved, a tier is owed", record.key));
                }
                Change::Put(number, record) => {
                    assert!(!self.records.contains_key(number), "a number is given once");
                    let value = value_of(record);
                    let order = self.next_number();
                    self.numbers.insert(value, order);
                    self.logged.entry(record.key.parse().unwrap()).or_default().insert(order);
                    self.last_record = self.last_record.max(*number);
                    self.records.insert(*number, record.clone());
                    self.history.push(format!("key {}: {value} is logged as {number}, is {order}", record.key));
                }
                Change::Remove(number) => {
                    if let Some(record) = self.records.remove(number) {
                        self.history.push(format!("key {}: {number} leaves the journal", record.key));
                    }
                }
            }
        }
    }

    fn contents(&self) -> Contents {
        let records = self.records.iter().map(|(number, record)| (*number, record.clone())).collect();
        Contents { id: JOURNAL, last: self.last_record, records }
    }

    /// A save lands.
    fn land(&mut self, key: u64, value: u64, name: WriteId, alive: bool) {
        if name.0 >> 64 == u128::from(JOURNAL) {
            let newest = self.names.get(&key).copied();
            if newest.is_some_and(|newest| name < newest) {
                self.told_apart += 1;
                if alive {
                    self.wrong.push(format!("key {key}: {name} after {newest:?}, from a process that lives"));
                }
                return;
            }
            if newest == Some(name) && self.values.get(&key) != Some(&value) {
                // Carried out before, and another write has come since.
                self.told_apart += 1;
                return;
            }
            self.names.insert(key, name);
            let (number, before) = (self.number(Some(value)), self.number(self.values.get(&key).copied()));
            if number == 0 {
                self.wrong.push(format!("key {key}: saved what was never durable"));
            }
            if number < before {
                self.wrong.push(format!("key {key}: {number} in place of {before}"));
            }
        } else {
            // What has been logged and has not reached the source comes after it: it was not there when this save began.
            let before = self.number(self.values.get(&key).copied());
            let logged = self.logged.entry(key).or_default();
            let waiting = logged.range(before + 1..).next().copied();
            let number = waiting.map_or_else(|| self.next_number(), |first| first - 1);
            self.numbers.insert(value, number);
        }
        self.values.insert(key, value);
        let number = self.number(Some(value));
        self.history.push(format!("key {key}: {value} ({name}) is saved, is {number}; it lives: {alive}"));
    }
}

fn value_of(record: &Record) -> u64 {
    let bytes = record.value.as_ref().expect("nothing is removed here");
    u64::from_le_bytes(bytes[..].try_into().expect("eight bytes"))
}

/// The disk of one process.
struct Disk {
    durable: Arc<Mutex<Durable>>,
    random: Arc<Random>,
    alive: Alive,
    /// Whether it has carried out what it says it has; not so in the test of the test.
    is_honest: bool,
}

impl Store for Disk {
    fn summary(&self) -> String {
        "a disk".into()
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let failed = || -> StoreError { Arc::new(io::Error::other("no space left on device")) };
            self.alive.or_never().await;
            self.random.while_passes(4).await;
            let luck = self.random.luck();
            if matches!(luck, Luck::Lost) {
                return Err(failed());
            }
            if matches!(luck, Luck::Late) {
                sleep(ms(60)).await;
            }
            // The power may go before it or after it.
            self.alive.or_never().await;
            if self.is_honest || self.random.below(4) > 0 {
                self.durable.lock().unwrap().carry_out(&changes);
            }
            self.random.while_passes(4).await;
            self.alive.or_never().await;
            if matches!(luck, Luck::Unheard) { Err(failed()) } else { Ok(()) }
        })
    }
}

/// The source, as one process reaches it.
struct Database {
    durable: Arc<Mutex<Durable>>,
    random: Arc<Random>,
    alive: Alive,
    saves_many: bool,
}

impl Database {
    async fn save_one(&self, key: u64, value: Option<u64>, name: WriteId) -> Result<(), SourceError> {
        let down = |what: &str| -> Result<(), SourceError> { Err(io::Error::other(what.to_string()).into()) };
        self.alive.or_never().await;
        self.random.while_passes(5).await;
        match self.random.luck() {
            Luck::Lost => return down("down"),
            Luck::Late => sleep(ms(60)).await,
            Luck::Fine | Luck::Unheard => {}
        }
        // It was sent, so it lands, whether the process lives or not.
        self.durable.lock().unwrap().land(key, value.unwrap_or(0), name, self.alive.is());
        self.random.while_passes(5).await;
        self.alive.or_never().await;
        if matches!(self.random.luck(), Luck::Unheard) { down("broken off") } else { Ok(()) }
    }
}

impl Source<u64, u64> for Database {
    fn saves(&self) -> bool {
        true
    }

    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async move {
            self.alive.or_never().await;
            self.random.while_passes(10).await;
            let value = self.durable.lock().unwrap().values.get(key).copied();
            self.random.while_passes(10).await;
            self.alive.or_never().await;
            if self.random.below(20) == 0 {
                return Err(io::Error::other("down").into());
            }
            Ok(Loaded::from(value))
        })
    }

    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.save_one(*save.key, save.value.copied(), save.id))
    }

    fn saves_many(&self) -> bool {
        self.saves_many
    }

    fn save_many<'a>(&'a self, saves: &'a [Save<'a, u64, u64>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>> {
        Box::pin(async move {
            let mut results = Vec::new();
            for save in saves {
                results.push(self.save_one(*save.key, save.value.copied(), save.id).await);
            }
            results
        })
    }
}

const KEYS: u64 = 3;

/// The modules that take turns.
struct Modules {
    good: PatternsModule,
    trapping: PatternsModule,
    policy: Policy,
}

impl Modules {
    fn new() -> Self {
        Modules {
            good: Patterns::builtin().load().unwrap(),
            trapping: Patterns::bytes(crate::hostile::Guest::stepping(crate::hostile::TRAP).build()).load().unwrap(),
            policy: Policy::builtin("fifo").unwrap(),
        }
    }
}

fn rules(write: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("write", write.into()),
        ("ttl-ms", 60.into()),
        ("stale-while-revalidate-ms", 40.into()),
        ("stale-if-error-ms", 100.into()),
        ("retries", 1.into()),
        ("backoff-ms", 5.into()),
        ("throttle-ms", 10.into()),
        ("log-wait-ms", 50.into()),
    ]
}

/// A process: what is in memory.
struct Process {
    cache: Tiered<u64, u64>,
    journal: Journal,
    alive: Alive,
}

struct World {
    seed: u64,
    random: Arc<Random>,
    durable: Arc<Mutex<Durable>>,
    far: Arc<MemoryTier>,
    /// The shared tier is cut off from the process that has the journal.
    is_cut: Arc<AtomicBool>,
    is_honest: bool,
}

impl World {
    /// Starts a process with what the disk has.
    fn start(&self, modules: &Modules) -> Process {
        let alive = Alive::new();
        let (durable, random) = (self.durable.clone(), self.random.clone());
        let contents = durable.lock().unwrap().contents();
        let disk =
            Disk { durable: durable.clone(), random: random.clone(), alive: alive.clone(), is_honest: self.is_honest };
        let journal = Journal::builder().max_entries(8).flush_after(ms(20)).flush_batch(2).open_on(disk, contents);
        let is_cut = self.is_cut.clone();
        let cache = self.cache(modules, &alive, is_cut, "write-behind", |builder| builder.journal(journal.clone()));
        Process { cache, journal, alive }
    }

    /// A process that has no journal, and never dies.
    fn neighbour(&self, modules: &Modules) -> Tiered<u64, u64> {
        self.cache(modules, &Alive::new(), Arc::default(), "write-invalidate", |builder| builder)
    }

    fn cache(
        &self,
        modules: &Modules,
        alive: &Alive,
        is_cut: Arc<AtomicBool>,
        write: &str,
        with: impl FnOnce(TieredBuilder<u64, u64>) -> TieredBuilder<u64, u64>,
    ) -> Tiered<u64, u64> {
        let (durable, random) = (self.durable.clone(), self.random.clone());
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes);
        let saves_many = self.seed.is_multiple_of(2);
        let mut builder = with(Tiered::builder())
            .keyspace("k")
            .max_capacity(32)
            .policy(modules.policy.clone())
            .far(Network { tier: self.far.clone(), random: random.clone(), alive: alive.clone(), is_cut, fences: true })
            .codec(Codec::new(|value: &u64| value.to_le_bytes().to_vec(), number))
            .source(Database { durable, random, alive: alive.clone(), saves_many })
            .seed(self.seed)
            .tier_timeout(ms(30))
            .save_timeout(ms(40));
        for (name, value) in rules(write) {
            builder = builder.rule(name, value);
        }
        builder.build().unwrap_or_else(|error| panic!("{error}"))
    }
}

#[derive(Debug, Default)]
struct Tally {
    reads: u64,
    failed_reads: u64,
    acknowledged: u64,
    unacknowledged: u64,
    deaths: u64,
    journal_loads: u64,
    told_apart: u64,
    fallbacks: u64,
    failed_commits: u64,
    coalesced: u64,
    owed: u64,
    wrong: Vec<String>,
    history: Vec<String>,
}

impl Tally {
    /// What a process did, at its end.
    fn count(&mut self, process: &Process) {
        let (stats, journal) = (process.cache.stats(), process.journal.stats());
        self.journal_loads += stats.journal_loads;
        self.fallbacks += stats.fallbacks;
        self.failed_commits += journal.failed_commits;
        self.coalesced += journal.coalesced;
    }
}

/// One run: what was checked, and what was wrong.
fn run(seed: u64, modules: &Modules, is_honest: bool) -> Tally {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let random = Arc::new(Random::new(seed));
        let far = Arc::new(MemoryTier::new(64).unwrap());
        let world =
            World { seed, random: random.clone(), durable: Arc::default(), far, is_cut: Arc::default(), is_honest };
        let current = Arc::new(Mutex::new(Arc::new(world.start(modules))));
        let floors: Arc<[AtomicU64; KEYS as usize]> = Arc::default();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut tasks = Vec::new();
        for i in 0..120 {
            let (at, kind, key) = (random.below(500), random.below(20), random.below(KEYS));
            let (durable, floors, tally) = (world.durable.clone(), floors.clone(), tally.clone());
            let current = current.clone();
            tasks.push(tokio::spawn(async move {
                sleep(ms(at)).await;
                let process = current.lock().unwrap().clone();
                let value = 1_000 + i;
                let number = |value| durable.lock().unwrap().number(value);
                let floor = &floors[key as usize];
                let operation = async {
                    match kind {
                        0..7 => {
                            let done = process.cache.insert(key, value).await;
                            let mut tally = tally.lock().unwrap();
                            if done.is_ok() {
                                tally.acknowledged += 1;
                                floor.fetch_max(number(Some(value)), SeqCst);
                            } else {
                                tally.unacknowledged += 1;
                            }
                        }
                        7 => drop(process.cache.invalidate(&key).await),
                        8 => drop(process.cache.expire(&key).await),
                        _ => {
                            let at_least = floor.load(SeqCst);
                            let read = process.cache.get(&key).await;
                            let mut tally = tally.lock().unwrap();
                            match read {
                                Ok(value) => {
                                    tally.reads += 1;
                                    let number = number(value);
                                    if number < at_least {
                                        tally.wrong.push(format!("key {key}: read {number} after {at_least}"));
                                    }
                                }
                                Err(_) => tally.failed_reads += 1,
                            }
                        }
                    }
                };
                // Who asked a process that died hears nothing.
                tokio::select! { biased; () = process.alive.dies() => {} () = operation => {} }
            }));
        }
        // The neighbour makes room in the shared tier, and fills it with what the source has.
        let neighbour = seed.is_multiple_of(3).then(|| world.neighbour(modules));
        for neighbour in neighbour.iter().flat_map(|neighbour| std::iter::repeat_n(neighbour, 60)) {
            let (at, kind, key, cache) = (random.below(500), random.below(4), random.below(KEYS), neighbour.clone());
            tasks.push(tokio::spawn(async move {
                sleep(ms(at)).await;
                if kind > 0 {
                    drop(cache.invalidate(&key).await);
                }
                drop(cache.get(&key).await);
            }));
        }
        // What happens to the process meanwhile.
        for _ in 0..8 {
            sleep(ms(random.below(100))).await;
            let process = current.lock().unwrap().clone();
            match random.below(7) {
                kind @ (0 | 1 | 5 | 6) => {
                    if kind > 0 {
                        world.is_cut.store(true, SeqCst);
                        world.durable.lock().unwrap().history.push("the tier is cut off".into());
                        sleep(ms(random.below(60))).await;
                        world.is_cut.store(false, SeqCst);
                    }
                    if kind > 5 {
                        continue;
                    }
                    process.alive.kill();
                    world.durable.lock().unwrap().history.push("killed".into());
                    tally.lock().unwrap().deaths += 1;
                    tally.lock().unwrap().count(&process);
                    let next = Arc::new(world.start(modules));
                    *current.lock().unwrap() = next;
                }
                2 => {
                    world.durable.lock().unwrap().history.push("the module traps".into());
                    // Its rule is none: it takes no parameters.
                    process.cache.set_rules([] as [(&str, Value); 0]).unwrap();
                    process.cache.swap_patterns(modules.trapping.clone()).unwrap();
                    sleep(ms(random.below(40))).await;
                    process.cache.swap_patterns(modules.good.clone()).unwrap();
                    process.cache.set_rules(rules("write-behind")).unwrap();
                }
                other => {
                    let write = if other == 3 { "write-through" } else { "write-invalidate" };
                    process.cache.set_rules(rules(write)).unwrap();
                    world.durable.lock().unwrap().history.push(write.into());
                    sleep(ms(random.below(60))).await;
                    process.cache.set_rules(rules("write-behind")).unwrap();
                }
            }
        }
        // None hangs: all are done long before this.
        let all = async {
            for task in tasks {
                task.await.unwrap();
            }
        };
        tokio::time::timeout(ms(600_000), all).await.unwrap_or_else(|_| panic!("seed {seed}: an operation hangs"));
        let process = current.lock().unwrap().clone();
        let left = process.cache.shutdown(ms(600_000)).await;
        sleep(ms(60_000)).await;
        let mut tally = std::mem::take(&mut *tally.lock().unwrap());
        tally.count(&process);
        let stats = process.cache.stats();
        assert_eq!((stats.owed, stats.loading, stats.wrong_answers), (0, 0, 0), "seed {seed}: {stats:?}");
        let mut durable = world.durable.lock().unwrap();
        if left > 0 || !durable.records.is_empty() {
            tally.wrong.push(format!("{left} writes are left in the journal, and on the disk {:?}", durable.records));
        }
        for (key, floor) in (0..).zip(floors.iter()) {
            let (has, floor) = (durable.number(durable.values.get(&key).copied()), floor.load(SeqCst));
            if has < floor {
                tally.wrong.push(format!("key {key}: the source has {has} in the end, {floor} was acknowledged"));
            }
        }
        tally.wrong.append(&mut durable.wrong);
        tally.told_apart = durable.told_apart;
        tally.owed = durable.owed;
        tally.history = std::mem::take(&mut durable.history);
        tally
    })
}

#[test]
fn nothing_that_was_acknowledged_is_lost_or_out_of_order() {
    let modules = Modules::new();
    let seeds = crate::network::seeds();
    let mut all = Tally::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let tally = run(seed, &modules, true);
        assert!(
            tally.wrong.is_empty(),
            "{:#?}\n{:#?}; again with LARDER_SEED={seed} cargo test -p larder --test tiers journal",
            tally.history,
            tally.wrong
        );
        all.reads += tally.reads;
        all.failed_reads += tally.failed_reads;
        all.acknowledged += tally.acknowledged;
        all.unacknowledged += tally.unacknowledged;
        all.deaths += tally.deaths;
        all.journal_loads += tally.journal_loads;
        all.told_apart += tally.told_apart;
        all.fallbacks += tally.fallbacks;
        all.failed_commits += tally.failed_commits;
        all.coalesced += tally.coalesced;
        all.owed += tally.owed;
    }
    println!("{all:?}");
    if count > 1 {
        let Tally { deaths, journal_loads, fallbacks, failed_commits, coalesced, told_apart, owed, .. } = all;
        let tried = [deaths, journal_loads, fallbacks, failed_commits, coalesced, told_apart, owed];
        assert!(tried.iter().all(|tried| *tried > 0), "the runs are too tame: {all:?}");
        assert!(all.reads > 30 * count && all.acknowledged > 10 * count, "too little was checked: {all:?}");
    }
}

/// A disk that says `done` when it is not, now and then: writes are lost, and that shows.
#[test]
fn the_runs_find_a_disk_that_lies() {
    let modules = Modules::new();
    assert!((0..50).any(|seed| !run(seed, &modules, false).wrong.is_empty()));
}
