//! Whether an operation costs the same in a small cache and in a large one. Some growth is the machine's: a table that
//! fits the processor's caches answers faster than one that does not, so the baseline's growth is shown beside it.

use crate::contenders::Kind;
use crate::load;
use crate::report::{Cell, Section, median};
use anyhow::Result;
use clap::Args;
use std::time::Instant;

#[derive(Args, Clone)]
pub struct Growth {
    /// Numbers of entries
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000")]
    pub entries: Vec<usize>,
    /// Contenders
    #[arg(long, value_delimiter = ',', default_value = "quick_cache,larder")]
    pub contenders: Vec<String>,
    /// Operations of one turn
    #[arg(long, default_value_t = 1_000_000)]
    pub operations: usize,
    /// Rounds in which every contender takes a turn
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seed of the key sequences
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub fn growth(kinds: &[Box<dyn Kind>], options: &Growth) -> Result<Section> {
    let notes = format!(
        "Nanoseconds an operation, one thread, by the number of entries. *Fill*: insertions into an empty cache, up to \
         its capacity. *Hit*: Zipf {} reads of what is there. *Churn*: insertions of new keys into the full cache, an \
         eviction each. Hits and churn are medians of {} rounds of {} operations.",
        load::EXPONENT,
        options.rounds,
        options.operations
    );
    let columns = ["contender", "entries", "fill", "hit", "churn"];
    let mut section = Section::new("growth", "Growth", notes, &columns);
    for &entries in &options.entries {
        eprintln!("growth: {entries} entries");
        let mut supply = load::reads(entries, 1, options.operations, options.seed)?;
        let keys = |first: usize, count: usize| (first as u64..(first + count) as u64).map(load::key_of_rank);
        let mut caches = Vec::new();
        for kind in kinds {
            let start = Instant::now();
            let cache = kind.build(entries)?;
            cache.insert_all(&mut keys(0, entries));
            let fill = start.elapsed().as_nanos() as f64 / entries as f64;
            caches.push((cache, fill, Vec::new(), Vec::new()));
        }
        for _ in 0..options.rounds {
            for (cache, _, hits, _) in &mut caches {
                hits.push(cache.reads(&supply.take(1)).nanos_each());
            }
        }
        // Afterwards, because churn drives out what the hits look for.
        for round in 0..options.rounds {
            for (cache, _, _, churn) in &mut caches {
                let start = Instant::now();
                cache.insert_all(&mut keys(entries + round * options.operations, options.operations));
                churn.push(start.elapsed().as_nanos() as f64 / options.operations as f64);
            }
        }
        for (cache, fill, hits, churn) in caches {
            let timed = [fill, median(hits), median(churn)].map(|nanos| Cell::Number(nanos, 0));
            section.rows.push([cache.name().into(), entries.into()].into_iter().chain(timed).collect());
        }
    }
    section
        .rows
        .sort_by_key(|row| kinds.iter().position(|kind| matches!(&row[0], Cell::Text(name) if name == kind.name())));
    Ok(section)
}
