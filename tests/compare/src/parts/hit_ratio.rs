//! Hit ratios of all contenders over traces, at several capacities.

use crate::contenders::Kind;
use crate::load::{Trace, traces_in};
use crate::report::{Cell, Section};
use anyhow::{Context, Result};
use clap::Args;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args, Clone)]
pub struct HitRatio {
    /// Directory of traces (NAME.u64.zst, NAME.u64u32.zst); without one, a synthetic trace
    #[arg(long)]
    pub traces: Option<PathBuf>,
    /// Capacities, in percent of a trace's unique keys
    #[arg(long, value_delimiter = ',', default_value = "0.1,1,5,10")]
    pub percents: Vec<f64>,
    /// Also write the table to this file, as CSV
    #[arg(long)]
    pub csv: Option<PathBuf>,
    /// Seed of the synthetic trace
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub fn hit_ratio(kinds: &[Box<dyn Kind>], options: &HitRatio) -> Result<Section> {
    let notes = "Percent of the requests that were hits: get-or-insert over the whole trace into an empty cache, one \
                 thread, objects of size 1. Capacities are shares of the trace's unique keys. moka puts evictions off \
                 and so holds more than a small capacity allows; moka-drained does not.";
    let mut columns = vec!["trace", "capacity %", "entries"];
    columns.extend(kinds.iter().map(|kind| kind.name()));
    let mut section = Section::new("hit-ratio", "Hit ratio", notes, &columns);
    let csv =
        options.csv.as_ref().map(|path| File::create(path).with_context(|| format!("creating {}", path.display())));
    let mut csv = csv.transpose()?;
    if let Some(csv) = &mut csv {
        writeln!(csv, "trace,pct,capacity,peer,hit_ratio")?;
    }
    let mut sums = vec![0.0; kinds.len()];

    let mut replay = |trace: &Trace| -> Result<()> {
        for percent in &options.percents {
            let capacity = trace.capacity(*percent);
            eprintln!("hit-ratio: {} in {capacity} entries", trace.name);
            let mut row = vec![Cell::Text(trace.name.clone()), Cell::Number(*percent, 1), capacity.into()];
            for (kind, sum) in kinds.iter().zip(&mut sums) {
                let ratio = kind.build(capacity)?.get_or_insert(&[&trace.requests]).hit_ratio();
                *sum += ratio;
                row.push(Cell::Number(ratio * 100.0, 2));
                // Line by line, unbuffered: a long run can be read before it ends.
                if let Some(csv) = &mut csv {
                    writeln!(csv, "{},{percent},{capacity},{},{ratio:.6}", trace.name, kind.name())?;
                }
            }
            section.rows.push(row);
        }
        Ok(())
    };
    match &options.traces {
        Some(directory) => traces_in(directory)?.iter().try_for_each(|path| replay(&Trace::read(path)?))?,
        None => replay(&Trace::synthetic(options.seed)?)?,
    }

    let cells = section.rows.len() as f64;
    let mut mean = vec!["mean".into(), Cell::Missing, Cell::Missing];
    mean.extend(sums.iter().map(|sum| Cell::Number(sum / cells * 100.0, 2)));
    section.rows.push(mean);
    Ok(section)
}
