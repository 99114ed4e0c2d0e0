//! Memory an entry. Each figure comes from a process of its own, because memory that one cache gave back is memory that
//! the next one seems not to need.
//!
//! Two measures. The *allocator's* counts the bytes that are asked of Rust's global allocator. The *resident set*'s is what
//! the system gave, and the figure that counts: it has the allocator's overhead, and it alone sees the linear memory of
//! WebAssembly modules, which the engine maps itself.

use crate::allocator;
use crate::contenders::{self, Kind};
use crate::load::splitmix64;
use crate::report::{Cell, Section};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::process::Command;

/// Bytes of a key and a value, which every cache must keep.
const PAYLOAD: f64 = 16.0;

#[derive(Args, Clone)]
pub struct Memory {
    /// Numbers of entries
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000")]
    pub entries: Vec<usize>,
}

/// What a child process measures: one cache, filled once, then once more with other keys.
#[derive(Args, Clone)]
pub struct Child {
    #[arg(long)]
    contender: String,
    #[arg(long)]
    entries: usize,
}

pub fn memory(kinds: &[Box<dyn Kind>], options: &Memory) -> Result<Section> {
    let notes = "Bytes an entry over the 16 of key and value, each contender in a fresh process: growth of the resident \
                 set (and, beside it, of what the global allocator handed out) divided by the entries that are resident. \
                 *Filled*: as many insertions as the capacity. *Churned*: as many again, of other keys, so that \
                 ghosts and logs are full too. What a contender needs however small it is is in the figures, and by \
                 itself in the last column: the growth for a cache of 100 entries, in KiB.";
    let columns = [
        "contender",
        "capacity",
        "resident",
        "filled, resident set",
        "filled, allocator",
        "churned, resident set",
        "churned, allocator",
        "fixed KiB",
    ];
    let mut section = Section::new("memory", "Memory an entry", notes, &columns);
    for kind in kinds {
        let fixed = measure(kind.name(), 100)?;
        let fixed = number(&fixed, "filled", "resident_set")? / 1024.0;
        for &entries in &options.entries {
            eprintln!("memory: {} with {entries} entries", kind.name());
            let measured = measure(kind.name(), entries)?;
            let each = |stage: &str, measure: &str| -> Result<Cell> {
                let bytes = number(&measured, stage, measure)?;
                Ok(Cell::Number(bytes / number(&measured, stage, "residents")? - PAYLOAD, 1))
            };
            section.rows.push(vec![
                kind.name().into(),
                entries.into(),
                Cell::Number(number(&measured, "churned", "residents")?, 0),
                each("filled", "resident_set")?,
                each("filled", "allocator")?,
                each("churned", "resident_set")?,
                each("churned", "allocator")?,
                Cell::Number(fixed, 0),
            ]);
        }
    }
    Ok(section)
}

fn number(measured: &Value, stage: &str, measure: &str) -> Result<f64> {
    measured[stage][measure].as_f64().with_context(|| format!("the child said nothing of {stage} {measure}"))
}

fn measure(contender: &str, entries: usize) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .args(["memory-child", "--contender", contender, "--entries", &entries.to_string()])
        .output()
        .context("starting a child process")?;
    if !output.status.success() {
        bail!("measuring {contender} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The child's part: prints what it measured as JSON.
pub fn child(options: &Child) -> Result<()> {
    allocator::start();
    let kind = contenders::named(&options.contender)?;
    let entries = options.entries as u64;
    let (resident_set, allocated) = (resident_set()?, allocator::allocated());
    let growth = || -> Result<(u64, i64)> {
        Ok((self::resident_set()?.saturating_sub(resident_set), allocator::allocated() - allocated))
    };

    let cache = kind.build(options.entries)?;
    cache.insert_all(&mut (0..entries).map(splitmix64));
    let filled = growth()?;
    let filled_residents = cache.count_resident(&mut (0..entries).map(splitmix64));
    cache.insert_all(&mut (entries..2 * entries).map(splitmix64));
    let churned = growth()?;
    let churned_residents = cache.count_resident(&mut (0..2 * entries).map(splitmix64));

    let stage = |(resident_set, allocator): (u64, i64), residents: usize| json!({ "resident_set": resident_set, "allocator": allocator, "residents": residents });
    println!("{}", json!({ "filled": stage(filled, filled_residents), "churned": stage(churned, churned_residents) }));
    Ok(())
}

/// Bytes of this process that are in memory.
fn resident_set() -> Result<u64> {
    const STATUS: &str = "/proc/self/status";
    let status =
        std::fs::read_to_string(STATUS).with_context(|| format!("reading {STATUS} (the memory part needs Linux)"))?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kibibytes.with_context(|| format!("no VmRSS in {STATUS}"))?.parse::<u64>()? * 1024)
}
