//! Throughput: hits, the mix, and get-or-insert over a trace.

use crate::bench::{Bench, Operation};
use crate::contenders::Kind;
use crate::load::{self, Supply, Trace};
use crate::report::Section;
use crate::rounds::{COLUMNS, Time, interleave, rows};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Live caches, one for each contender.
type Caches = Vec<Box<dyn Bench>>;

/// How long to measure.
#[derive(Args, Clone)]
pub struct Effort {
    /// Rounds in which every contender takes a turn
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
    /// Operations of one turn, on each thread
    #[arg(long, default_value_t = 400_000)]
    pub operations: usize,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub threads: Vec<usize>,
    /// Which time counts
    #[arg(long, value_enum, default_value_t = Time::Elapsed)]
    pub time: Time,
    /// Seed of the key sequences
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Effort {
    pub fn most_threads(&self) -> usize {
        self.threads.iter().copied().max().unwrap_or(1)
    }
}

#[derive(Args, Clone)]
pub struct Hits {
    /// Entries, all resident
    #[arg(long, default_value_t = 1_000_000)]
    pub entries: usize,
    #[command(flatten)]
    pub effort: Effort,
}

pub fn hits(kinds: &[Box<dyn Kind>], options: &Hits) -> Result<Section> {
    let Hits { entries, effort } = options;
    // A tenth more room, so that a cache in shards keeps every entry although they do not spread evenly.
    let caches = build(kinds, entries + entries / 10)?;
    for cache in &caches {
        cache.insert_all(&mut (0..*entries as u64).map(load::key_of_rank));
    }
    let mut supply = load::reads(*entries, effort.most_threads(), effort.operations, effort.seed)?;
    let notes = format!(
        "{entries} `u64` entries, all resident; Zipf {} reads. Throughput ratios are medians of {} rounds (quartiles), \
         more is better; a hit ratio under 1 would mean that entries were lost.",
        load::EXPONENT,
        effort.rounds
    );
    let mut section = Section::new("hits", "Hits", notes, &COLUMNS);
    for &threads in &effort.threads {
        let measured = interleave(&caches, effort.rounds, effort.time, |cache| Ok(cache.reads(&supply.take(threads))))?;
        rows(&mut section, &measured, threads);
    }
    Ok(section)
}

#[derive(Args, Clone)]
pub struct Mix {
    /// Keys that are asked for
    #[arg(long, default_value_t = 2_000_000)]
    pub keys: usize,
    /// Capacity, in entries
    #[arg(long, default_value_t = 100_000)]
    pub capacity: usize,
    #[command(flatten)]
    pub effort: Effort,
}

impl Mix {
    pub fn note(&self) -> String {
        format!(
            "{} `u64` keys, Zipf {}, in a cache of {}; each operation is a read (75 %) or an insertion (25 %), whatever \
             the cache holds; insertions of keys that are not there evict.",
            self.keys,
            load::EXPONENT,
            self.capacity
        )
    }

    /// Full caches, with their policies warm.
    pub fn warm(&self, kinds: &[Box<dyn Kind>]) -> Result<(Caches, Supply<Operation>)> {
        let Effort { operations, seed, .. } = self.effort;
        let caches = build(kinds, self.capacity)?;
        let mut supply = load::mix(self.keys, self.effort.most_threads(), operations, seed)?;
        for _ in 0..(20 * self.capacity).div_ceil(operations) {
            let slice = supply.take(1);
            caches.iter().for_each(|cache| _ = cache.mix(&slice));
        }
        Ok((caches, supply))
    }
}

pub fn mix(kinds: &[Box<dyn Kind>], options: &Mix) -> Result<Section> {
    let (caches, mut supply) = options.warm(kinds)?;
    let effort = &options.effort;
    let notes = format!(
        "{} Throughput ratios are medians of {} rounds (quartiles), more is better. The hit ratio is the share of all \
         operations that were reads of a key that was there.",
        options.note(),
        effort.rounds
    );
    let mut section = Section::new("mix", "Reads and insertions, 75/25, with evictions", notes, &COLUMNS);
    for &threads in &effort.threads {
        let measured = interleave(&caches, effort.rounds, effort.time, |cache| Ok(cache.mix(&supply.take(threads))))?;
        rows(&mut section, &measured, threads);
    }
    Ok(section)
}

#[derive(Args, Clone)]
pub struct Replay {
    /// Trace: NAME.u64.zst or NAME.u64u32.zst; without one, a synthetic trace
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// Capacity, in percent of the trace's unique keys
    #[arg(long, default_value_t = 5.0)]
    pub percent: f64,
    /// Rounds in which every contender replays the trace
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub threads: Vec<usize>,
    /// Which time counts
    #[arg(long, value_enum, default_value_t = Time::Elapsed)]
    pub time: Time,
    /// Seed of the synthetic trace
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub fn replay(kinds: &[Box<dyn Kind>], options: &Replay) -> Result<Section> {
    let trace = options.trace.as_deref().map_or_else(|| Trace::synthetic(options.seed), Trace::read)?;
    let capacity = trace.capacity(options.percent);
    let notes = format!(
        "{}: {} requests, {} unique keys, in a cache of {capacity} ({} %). Each turn replays the trace whole into an \
         empty cache; two threads take every other request. Throughput ratios are medians of {} rounds (quartiles), \
         more is better.",
        trace.name,
        trace.requests.len(),
        trace.unique,
        options.percent,
        options.rounds
    );
    let title = format!("Get-or-insert over a trace ({})", trace.name);
    let mut section = Section::new("trace", title, notes, &COLUMNS);
    let caches = build(kinds, capacity)?;
    for &threads in &options.threads {
        let shares: Vec<Vec<u64>> =
            (0..threads).map(|first| trace.requests.iter().skip(first).step_by(threads).copied().collect()).collect();
        let shares: Vec<&[u64]> = shares.iter().map(Vec::as_slice).collect();
        let measured = interleave(&caches, options.rounds, options.time, |cache| {
            // Built anew for each turn: only an empty cache has the trace's hit ratio.
            let kind = crate::contenders::named(cache.name())?;
            Ok(kind.build(capacity)?.get_or_insert(&shares))
        })?;
        rows(&mut section, &measured, threads);
    }
    Ok(section)
}

fn build(kinds: &[Box<dyn Kind>], capacity: usize) -> Result<Caches> {
    kinds.iter().map(|kind| kind.build(capacity)).collect()
}
