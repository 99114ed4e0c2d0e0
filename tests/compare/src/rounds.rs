//! Ratios that survive a machine whose speed swings.
//!
//! On a shared machine the same loop may take twice as long a second later, so absolute times of two contenders measured
//! one after the other say little. Here the contenders take turns in short slices of a tenth of a second or so, and the
//! baseline runs before and after each of them: `b A b B b C b`. A contender's ratio is taken to the mean of the two
//! baseline slices around it. What is reported is the median of these ratios over many rounds, with quartiles.

use crate::bench::{Bench, Stretch};
use crate::contenders::BASELINE;
use crate::report::{Cell, Section, median, quartiles};
use anyhow::Result;
use clap::ValueEnum;

/// Which time counts.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Time {
    /// Elapsed time: what a user waits for
    Elapsed,
    /// Time on a processor: steadier where other programs compete for the machine, but blind to threads that sleep
    /// while they wait for a lock
    Processor,
}

/// What one contender did in all rounds.
pub struct Measured {
    pub name: &'static str,
    stretches: Vec<Stretch>,
    /// Throughput as a multiple of the baseline's around it, one for each round; empty without a baseline.
    ratios: Vec<f64>,
}

/// Runs `rounds` rounds over `caches`, and one more to warm up that is not counted.
pub fn interleave(
    caches: &[Box<dyn Bench>],
    rounds: usize,
    time: Time,
    mut run: impl FnMut(&dyn Bench) -> Result<Stretch>,
) -> Result<Vec<Measured>> {
    let mut run = |cache: &dyn Bench| {
        let stretch = run(cache)?;
        let elapsed = if time == Time::Processor { stretch.processor } else { stretch.elapsed };
        Ok::<_, anyhow::Error>(Stretch { elapsed, ..stretch })
    };
    let baseline = caches.iter().position(|cache| cache.name() == BASELINE);
    let mut measured: Vec<_> =
        caches.iter().map(|cache| Measured { name: cache.name(), stretches: Vec::new(), ratios: Vec::new() }).collect();
    for round in 0..=rounds {
        let mut before = baseline.map(|index| run(caches[index].as_ref())).transpose()?;
        // Each round starts with another contender: what follows whom must not matter.
        for turn in 0..caches.len() {
            let index = (round + turn) % caches.len();
            let stretch = run(caches[index].as_ref())?;
            let after = match baseline {
                // The baseline's own turn is its own "after": its ratio to itself shows the noise.
                Some(baseline) if baseline == index => Some(stretch),
                Some(baseline) => Some(run(caches[baseline].as_ref())?),
                None => None,
            };
            if round > 0 {
                measured[index].stretches.push(stretch);
                if let Some((before, after)) = before.zip(after) {
                    let base = if baseline == Some(index) {
                        before.nanos_each()
                    } else {
                        (before.nanos_each() + after.nanos_each()) / 2.0
                    };
                    measured[index].ratios.push(base / stretch.nanos_each());
                }
            }
            before = after;
        }
    }
    Ok(measured)
}

/// The columns that [`rows`] fills.
pub const COLUMNS: [&str; 6] = ["contender", "threads", "ns an operation", "× quick_cache", "× moka", "hit ratio"];

/// A row for each contender: time an operation (on `threads` threads together), throughput against the baseline and
/// against moka round by round, and the share of operations that were hits.
pub fn rows(section: &mut Section, measured: &[Measured], threads: usize) {
    let moka = measured.iter().find(|other| other.name == "moka").map(|moka| &moka.ratios);
    let spread = |ratios: Vec<f64>| {
        let (low, median, high) = quartiles(ratios);
        if median.is_nan() { Cell::Missing } else { Cell::Spread(low, median, high) }
    };
    for one in measured {
        let against_moka =
            moka.map_or(Vec::new(), |moka| one.ratios.iter().zip(moka).map(|(ratio, moka)| ratio / moka).collect());
        section.rows.push(vec![
            one.name.into(),
            threads.into(),
            Cell::Number(median(one.stretches.iter().map(Stretch::nanos_each).collect()), 0),
            spread(one.ratios.clone()),
            spread(against_moka),
            Cell::Number(median(one.stretches.iter().map(Stretch::hit_ratio).collect()), 4),
        ]);
    }
}
