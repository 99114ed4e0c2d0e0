//! What a process waits for before its first cached answer: a built-in is compiled on its first use on a machine, and
//! later found compiled on disk. Every start is a process of its own.

use crate::report::{Cell, Section, median};
use anyhow::{Context, Result, bail};
use clap::Args;
use larder::eviction::Limits;
use larder::{Cache, Policy};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[derive(Args, Clone)]
pub struct ColdStart {
    /// Policies; without names, all built-ins
    #[arg(long, value_delimiter = ',')]
    pub policies: Vec<String>,
    /// Processes that find the policy compiled, for each policy
    #[arg(long, default_value_t = 9)]
    pub starts: usize,
    /// Processes that have to compile it, for each policy
    #[arg(long, default_value_t = 3)]
    pub first_starts: usize,
}

/// What a child process measures: one start.
#[derive(Args, Clone)]
pub struct Child {
    #[arg(long)]
    policy: String,
}

pub fn cold_start(options: &ColdStart) -> Result<Section> {
    let notes = format!(
        "Milliseconds in a fresh process, medians of {} starts ({} where compiled). *First*: the machine has not seen \
         the module; it is compiled, and kept on disk. *Load*: it is found on disk, checked and mapped, the engine \
         started. *Open*: the first instance. *Cache*: a cache of 10,000 entries is built with it, and \
         answers its first get-or-insert. *Process*: from starting the process to its end, all of this included.",
        options.starts, options.first_starts
    );
    let columns = ["policy", "first: load", "load", "open", "cache", "process"];
    let mut section = Section::new("cold-start", "Cold start", notes, &columns);
    let names: Vec<&str> = match options.policies.as_slice() {
        [] => Policy::builtins().collect(),
        names => names.iter().map(String::as_str).collect(),
    };
    let directory = std::env::temp_dir().join(format!("larder-compare-cold-{}", std::process::id()));
    for name in names {
        let start = |_| {
            let begun = Instant::now();
            let output = Command::new(std::env::current_exe()?)
                .args(["cold-start-child", "--policy", name])
                .env("LARDER_CACHE_DIR", &directory)
                .output()
                .context("starting a child process")?;
            let process = begun.elapsed().as_secs_f64() * 1000.0;
            if !output.status.success() {
                bail!("starting {name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
            }
            let mut measured: Value = serde_json::from_slice(&output.stdout)?;
            measured["process"] = json!(process);
            Ok(measured)
        };
        let mut first = Vec::new();
        for at in 0..options.first_starts {
            empty(&directory)?;
            first.push(start(at)?);
        }
        let later: Vec<Value> = (0..options.starts).map(start).collect::<Result<_>>()?;
        let of = |starts: &[Value], stage: &str| {
            Cell::Number(median(starts.iter().filter_map(|start| start[stage].as_f64()).collect()), 1)
        };
        let stages = ["load", "open", "cache", "process"].map(|stage| of(&later, stage));
        section.rows.push([name.into(), of(&first, "load")].into_iter().chain(stages).collect());
    }
    empty(&directory)?;
    Ok(section)
}

fn empty(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("emptying {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The child's part: prints what it measured as JSON.
pub fn child(options: &Child) -> Result<()> {
    let limits = Limits { capacity: 10_000, expected: Some(10_000), seed: 0 };
    let policy = Policy::builtin(&options.policy)?;
    let begun = Instant::now();
    let module = policy.load()?;
    let loaded = Instant::now();
    drop(module.open(&limits)?);
    let opened = Instant::now();
    let cache = Cache::<u64, u64>::builder().max_capacity(limits.capacity).policy(policy).build()?;
    let answer = cache.get_with(1, || 2);
    let answered = Instant::now();
    if answer != 2 {
        bail!("the cache answered {answer}");
    }
    let millis = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
    println!(
        "{}",
        json!({ "load": millis(begun, loaded), "open": millis(loaded, opened), "cache": millis(opened, answered) })
    );
    Ok(())
}
