//! Latency of one operation in the mix.

use crate::contenders::Kind;
use crate::parts::throughput::Mix;
use crate::report::{Cell, Section, median};
use anyhow::Result;
use hdrhistogram::Histogram;
use quanta::Clock;

const QUANTILES: [f64; 4] = [0.5, 0.99, 0.999, 0.9999];

pub fn latency(kinds: &[Box<dyn Kind>], options: &Mix) -> Result<Section> {
    let clock = Clock::new();
    let (caches, mut supply) = options.warm(kinds)?;
    let effort = &options.effort;
    let notes = format!(
        "{} Nanoseconds an operation, medians of the percentiles of {} rounds; the maximum is over all rounds, and \
         mostly tells how long the machine took the thread away. Reading the clock is part of every figure and takes \
         {} ns itself.",
        options.note(),
        effort.rounds,
        clock_overhead(&clock)?
    );
    let columns = ["contender", "threads", "p50", "p99", "p99.9", "p99.99", "max"];
    let mut section = Section::new("latency", "Latency of one operation in the mix", notes, &columns);
    for &threads in &effort.threads {
        let mut histograms: Vec<Vec<Histogram<u64>>> = caches.iter().map(|_| Vec::new()).collect();
        for round in 0..=effort.rounds {
            for turn in 0..caches.len() {
                let index = (round + turn) % caches.len();
                let histogram = caches[index].mix_timed(&supply.take(threads), &clock)?;
                if round > 0 {
                    histograms[index].push(histogram);
                }
            }
        }
        for (cache, histograms) in caches.iter().zip(&histograms) {
            let mut row = vec![cache.name().into(), threads.into()];
            row.extend(QUANTILES.iter().map(|quantile| {
                let of_rounds = histograms.iter().map(|histogram| histogram.value_at_quantile(*quantile) as f64);
                Cell::Number(median(of_rounds.collect()), 0)
            }));
            row.push(Cell::Number(histograms.iter().map(Histogram::max).max().unwrap_or(0) as f64, 0));
            section.rows.push(row);
        }
    }
    Ok(section)
}

/// What it takes to do nothing between two readings of the clock: the median of many.
fn clock_overhead(clock: &Clock) -> Result<u64> {
    let mut histogram = crate::bench::new_histogram()?;
    for _ in 0..1_000_000 {
        let start = clock.raw();
        let end = clock.raw();
        histogram.saturating_record(clock.delta_as_nanos(start, end));
    }
    Ok(histogram.value_at_quantile(0.5))
}
