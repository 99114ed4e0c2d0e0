//! Swapping the policy of a full cache under load: whether anything is lost, how long operations take meanwhile, and
//! what becomes of the hit ratio.
//!
//! # How loss is found
//!
//! The harness keeps a balance for each key: one up for each insertion, one down for each time that the eviction
//! listener hears that an entry left. When all threads are done, the balance of a resident key is 1 and of any other 0.
//! An entry that vanishes without notice leaves its key a balance that is too high for good, however often it is
//! loaded again; an entry that is reported twice, or comes back, one that is too low. A miss alone could not tell,
//! because an entry is taken out a moment before the listener hears of it.

use crate::bench::new_histogram;
use crate::load;
use crate::report::{Cell, Section};
use anyhow::{Result, anyhow, bail};
use clap::Args;
use hdrhistogram::Histogram;
use larder::{Cache, Policy, SwapError, SwapReport};
use quanta::Clock;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Args, Clone)]
pub struct Swap {
    /// Entries of the cache, which is full
    #[arg(long, default_value_t = 1_000_000)]
    pub entries: usize,
    /// Keys that are asked for
    #[arg(long, default_value_t = 2_000_000)]
    pub keys: usize,
    /// Swaps: to every built-in in turn, and again to the same
    #[arg(long, default_value_t = 24)]
    pub swaps: usize,
    /// Threads that read and fill
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Milliseconds of load between two swaps
    #[arg(long, default_value_t = 500)]
    pub between: u64,
    /// Seed of the key sequences
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The load runs through *windows*: a quiet one, one in which another thread is merely busy, and from then on in turn a
/// swap and the time after it.
const QUIET: usize = 0;
const BUSY: usize = 1;
const FIRST_GAP: usize = 2;

fn window_of_swap(swap: usize) -> usize {
    FIRST_GAP + 1 + 2 * swap
}

/// What one thread saw in one window.
struct Seen {
    latency: Histogram<u64>,
    operations: usize,
    hits: usize,
    /// Reads that brought the value of another key.
    wrong: usize,
}

struct Stage {
    cache: Cache<u64, u64>,
    /// Insertions of a key less removals.
    balances: Arc<[AtomicI32]>,
    window: AtomicUsize,
    stop: AtomicBool,
}

fn value_of(rank: u64) -> u64 {
    load::splitmix64(rank)
}

impl Stage {
    fn new(options: &Swap) -> Result<Self> {
        let balances: Arc<[AtomicI32]> = (0..options.keys).map(|_| AtomicI32::new(0)).collect();
        let heard = balances.clone();
        let cache = Cache::builder()
            .max_capacity(u64::try_from(options.entries)?)
            .policy(Policy::builtin("lru")?)
            .eviction_listener(move |rank: u64, _, _| _ = heard[rank as usize].fetch_sub(1, Ordering::Relaxed))
            .build()?;
        Ok(Self { cache, balances, window: AtomicUsize::new(QUIET), stop: AtomicBool::new(false) })
    }

    fn insert(&self, rank: u64) {
        self.balances[rank as usize].fetch_add(1, Ordering::Relaxed);
        self.cache.insert(rank, value_of(rank));
    }

    /// Reads, and fills on a miss, until told to stop.
    fn work(&self, ranks: impl Iterator<Item = u64>, windows: usize, clock: &Clock) -> Result<Vec<Seen>> {
        let fresh = || Ok(Seen { latency: new_histogram()?, operations: 0, hits: 0, wrong: 0 });
        let mut seen = (0..windows).map(|_| fresh()).collect::<Result<Vec<_>>>()?;
        // Drawing the next key is not timed.
        for rank in ranks {
            let window = self.window.load(Ordering::Relaxed);
            let start = clock.raw();
            let read = black_box(self.cache.get(&rank));
            if read.is_none() {
                self.insert(rank);
            }
            let end = clock.raw();
            // An operation that began before a swap and ended in it had to do with the swap.
            let seen = &mut seen[window.max(self.window.load(Ordering::Relaxed))];
            seen.latency.saturating_record(clock.delta_as_nanos(start, end));
            seen.operations += 1;
            seen.hits += usize::from(read.is_some());
            seen.wrong += usize::from(read.is_some_and(|value| value != value_of(rank)));
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(seen)
    }

    /// Walks through the windows.
    fn direct(&self, options: &Swap) -> Result<Vec<Result<SwapReport, SwapError>>> {
        let between = Duration::from_millis(options.between);
        // Until the hit ratio stands.
        std::thread::sleep(4 * between);
        self.window.store(BUSY, Ordering::Relaxed);
        let start = std::time::Instant::now();
        while start.elapsed() < between {
            black_box((0..10_000_u64).map(load::splitmix64).fold(0, u64::wrapping_add));
        }
        self.window.store(FIRST_GAP, Ordering::Relaxed);
        std::thread::sleep(between);
        let builtins: Vec<_> = Policy::builtins().collect();
        let mut reports = Vec::new();
        for swap in 0..options.swaps {
            let policy = Policy::builtin(builtins[swap / 2 % builtins.len()])?;
            // Compiled beforehand: what a swap waits for is not the compiler.
            policy.load()?;
            self.window.store(window_of_swap(swap), Ordering::Relaxed);
            let swapped = self.cache.swap_policy(policy);
            self.window.store(window_of_swap(swap) + 1, Ordering::Relaxed);
            reports.push(swapped);
            std::thread::sleep(between);
        }
        Ok(reports)
    }

    /// Entries that vanished, and entries that were reported too often.
    fn unbalanced(&self) -> (i64, i64) {
        self.cache.run_pending_tasks();
        let mut unbalanced = (0, 0);
        for (rank, balance) in self.balances.iter().enumerate() {
            let resident = self.cache.peek(&(rank as u64)).is_some();
            let over = i64::from(balance.load(Ordering::Relaxed)) - i64::from(resident);
            unbalanced.0 += over.max(0);
            unbalanced.1 += (-over).max(0);
        }
        unbalanced
    }
}

pub fn swap(options: &Swap) -> Result<Section> {
    if options.swaps == 0 || options.keys < options.entries {
        bail!("at least one swap, and at least as many keys as entries");
    }
    let stage = Stage::new(options)?;
    // The hottest last.
    (0..options.entries as u64).rev().for_each(|rank| stage.insert(rank));
    let sequences = (0..options.threads)
        .map(|thread| load::ranks(options.keys, thread, options.seed))
        .collect::<Result<Vec<_>>>()?;
    let clock = Clock::new();
    let windows = window_of_swap(options.swaps);
    let (directed, worked) = std::thread::scope(|scope| {
        let workers: Vec<_> =
            sequences.into_iter().map(|ranks| scope.spawn(|| stage.work(ranks, windows, &clock))).collect();
        let directed = stage.direct(options);
        stage.stop.store(true, Ordering::Relaxed);
        let worked: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        (directed, worked)
    });
    let reports = directed?;
    let panicked = worked.iter().filter(|worked| worked.is_err()).count();
    let worked = worked
        .into_iter()
        .map(|worked| worked.map_err(|_| anyhow!("{panicked} threads panicked in an operation"))?)
        .collect::<Result<Vec<Vec<Seen>>>>()?;
    let mut seen: Vec<Seen> = Vec::new();
    for thread in worked {
        for (window, thread) in thread.into_iter().enumerate() {
            match seen.get_mut(window) {
                None => seen.push(thread),
                Some(all) => {
                    all.latency.add(&thread.latency)?;
                    all.operations += thread.operations;
                    all.hits += thread.hits;
                    all.wrong += thread.wrong;
                }
            }
        }
    }

    let (vanished, reported_twice) = stage.unbalanced();
    let stats = stage.cache.stats();
    let mut during = new_histogram()?;
    for swap in 0..options.swaps {
        during.add(&seen[window_of_swap(swap)].latency)?;
    }
    let notes = format!(
        "{} entries, {} keys, Zipf {}, {} threads that read and fill on a miss while the policy is swapped; \
         {} ms between swaps. **{vanished} entries vanished, {reported_twice} were reported too often, {} \
         reads brought a wrong value, {} threads panicked, {} swaps failed, {} faults** in {} operations ({} \
         of them during a swap): insertions and notices of removal were counted for each key and compared \
         with what is resident. The first two rows are the same load without a swap, and while another thread \
         is merely busy, which takes as much from the processors as a swap does. *Pause*: the longest time \
         for which any lock of the cache was held, as the swap's report has it. *Latency*: of an operation, \
         in microseconds. *Hit ratio*: in the time before and after the swap.",
        options.entries,
        options.keys,
        load::EXPONENT,
        options.threads,
        options.between,
        seen.iter().map(|seen| seen.wrong).sum::<usize>(),
        panicked,
        reports.iter().filter(|report| report.is_err()).count(),
        stats.faults,
        seen.iter().map(|seen| seen.operations).sum::<usize>(),
        during.len(),
    );
    let columns = [
        "swap",
        "adopted",
        "refused",
        "took, ms",
        "pause, µs",
        "operations",
        "p50",
        "p99",
        "p99.9",
        "max",
        "hit ratio before",
        "after",
    ];
    let mut section = Section::new("swap", "Swapping the policy under load", notes, &columns);
    let latency = |histogram: &Histogram<u64>| {
        let micros = |nanos: u64| Cell::Number(nanos as f64 / 1000.0, 1);
        let quantiles = [0.5, 0.99, 0.999].map(|quantile| micros(histogram.value_at_quantile(quantile)));
        let count = Cell::Number(histogram.len() as f64, 0);
        [count].into_iter().chain(quantiles).chain([micros(histogram.max())]).collect::<Vec<_>>()
    };
    let hit_ratio = |window: usize| Cell::Number(seen[window].hits as f64 / seen[window].operations as f64, 4);
    let mut row = |name: String, report: [Cell; 4], histogram: &Histogram<u64>, hit_ratios: [Cell; 2]| {
        section
            .rows
            .push([Cell::Text(name)].into_iter().chain(report).chain(latency(histogram)).chain(hit_ratios).collect());
    };
    const NONE: [Cell; 4] = [const { Cell::Missing }; 4];
    row("no swap".into(), NONE, &seen[QUIET].latency, [hit_ratio(QUIET), Cell::Missing]);
    row("no swap, another thread busy".into(), NONE, &seen[BUSY].latency, [hit_ratio(BUSY), Cell::Missing]);
    for (swap, report) in reports.iter().enumerate() {
        let number = |of: fn(&SwapReport) -> f64| match report {
            Ok(report) => Cell::Number(of(report), 0),
            Err(_) => Cell::Missing,
        };
        let told = [
            number(|report| report.adopted as f64),
            number(|report| report.evicted as f64),
            number(|report| report.took.as_secs_f64() * 1000.0),
            number(|report| report.pause.as_secs_f64() * 1e6),
        ];
        let window = window_of_swap(swap);
        // The old policy goes on after a swap that failed, and so does the run.
        let name = match report {
            Ok(report) => format!("{} → {}", report.from, report.to),
            Err(error) => error.to_string(),
        };
        row(name, told, &seen[window].latency, [hit_ratio(window - 1), hit_ratio(window + 1)]);
    }
    row("all swaps".into(), NONE, &during, [Cell::Missing, Cell::Missing]);
    Ok(section)
}
