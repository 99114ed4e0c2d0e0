//! What a replay found, as a table for people, and as JSON or CSV for tools.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// One trace through one cache with one policy. The names are those of the JSON objects and the CSV columns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The trace, as the user named it.
    pub trace: String,
    /// The policy, as the user named it.
    pub policy: String,
    /// What the cache may hold: entries, or bytes with `--capacity-bytes`.
    pub capacity: u64,
    /// The number of shards.
    pub shards: u64,
    /// The number of threads that asked.
    pub threads: u64,
    /// How often they asked.
    pub requests: u64,
    /// How often the cache had it.
    pub hits: u64,
    /// `hits / requests`.
    pub hit_ratio: f64,
    /// The bytes of the hits over the bytes of the requests.
    pub byte_hit_ratio: f64,
    /// Entries that left because the cache was full; those that the policy would not keep when they came included.
    pub evictions: u64,
    /// Nanoseconds by the clock on the wall, times threads, over requests.
    pub ns_per_request: f64,
    /// Calls into the policy.
    pub policy_calls: u64,
    /// Nanoseconds within the policy.
    pub policy_ns: u64,
    /// How often the policy was swapped.
    pub swaps: u64,
    /// What the policy did wrong: traps, time-outs, victims that are not resident, too few victims.
    pub faults: u64,
    /// Belady's bound, with `--opt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_hit_ratio: Option<f64>,
}

/// How to print runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people, the best of each trace and capacity marked.
    Table,
    /// One array of objects, a run each.
    Json,
    /// A header, and a line a run.
    Csv,
}

/// Prints runs.
///
/// # Errors
/// Where `out` cannot be written.
pub fn write(runs: &[Run], format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Table => table(runs, out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, runs)?;
            writeln!(out)
        }
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(out);
            runs.iter().try_for_each(|run| csv.serialize(run).map_err(io::Error::from))?;
            csv.flush()
        }
    }
}

/// Tries, before a long run, whether its result can be written here. What is there stays as it is.
///
/// # Errors
/// It cannot be.
pub fn can_be_written(path: &Path) -> io::Result<()> {
    let was_there = path.exists();
    File::options().append(true).create(true).open(path)?;
    if was_there { Ok(()) } else { fs::remove_file(path) }
}

/// The error and what caused it, each once: some messages quote their cause in the middle, before the next step.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => told + ": " + &cause,
    })
}

/// A number with its thousands apart.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What a column of the table shows of a run.
type Cell = Box<dyn Fn(&Run) -> String>;

fn table(runs: &[Run], out: &mut impl Write) -> io::Result<()> {
    let opt = runs.iter().any(|run| run.opt_hit_ratio.is_some());
    let swaps = runs.iter().any(|run| run.swaps > 0);
    let faults = runs.iter().any(|run| run.faults > 0);
    let columns: Vec<(&str, Cell)> = [
        (true, "policy", Box::new(|run: &Run| run.policy.clone()) as Cell),
        (true, "capacity", Box::new(|run: &Run| grouped(run.capacity))),
        (true, "hit ratio", Box::new(|run: &Run| format!("{:.2} %", 100.0 * run.hit_ratio))),
        (opt, "OPT", Box::new(|run: &Run| run.opt_hit_ratio.map_or(String::new(), |o| format!("{:.2} %", 100.0 * o)))),
        (true, "byte hit ratio", Box::new(|run: &Run| format!("{:.2} %", 100.0 * run.byte_hit_ratio))),
        (true, "hits", Box::new(|run: &Run| grouped(run.hits))),
        (true, "evictions", Box::new(|run: &Run| grouped(run.evictions))),
        (true, "ns/request", Box::new(|run: &Run| format!("{:.0}", run.ns_per_request))),
        (true, "policy calls", Box::new(|run: &Run| grouped(run.policy_calls))),
        (
            true,
            "policy ns/request",
            Box::new(|run: &Run| format!("{:.0}", run.policy_ns as f64 / run.requests.max(1) as f64)),
        ),
        (swaps, "swaps", Box::new(|run: &Run| grouped(run.swaps))),
        (faults, "faults", Box::new(|run: &Run| grouped(run.faults))),
    ]
    .into_iter()
    .filter_map(|(shown, name, cell)| shown.then_some((name, cell)))
    .collect();
    for (i, group) in runs.chunk_by(|a, b| a.trace == b.trace).enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        let Some(first) = group.first() else { continue };
        let plural = |n: u64, what: &str| format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" });
        let (requests, shards, threads) = (first.requests, first.shards, first.threads);
        let (requests, threads) = (plural(requests, "request"), plural(threads, "thread"));
        let shards = match group.iter().all(|run| run.shards == shards) {
            true => format!(", {}", plural(shards, "shard")),
            false => String::new(),
        };
        writeln!(out, "{}: {requests}{shards}, {threads}", first.trace)?;
        let mut rows = vec![columns.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()];
        rows.extend(group.iter().map(|run| columns.iter().map(|(_, cell)| cell(run)).collect()));
        // The best of each capacity, where there is something to compare.
        let best = |run: &Run| {
            let rivals = || group.iter().filter(|rival| rival.capacity == run.capacity);
            rivals().count() > 1 && rivals().all(|rival| rival.hits <= run.hits)
        };
        let widths: Vec<_> =
            (0..columns.len()).map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
        for (r, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match c {
                    0 => line += &format!("  {cell:<width$}"),
                    _ => line += &format!("  {cell:>width$}"),
                }
            }
            let star = if r > 0 && best(&group[r - 1]) { " *" } else { "" };
            writeln!(out, "{}{star}", line.trim_end())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(policy: &str, hits: u64) -> Run {
        Run {
            trace: "a, b.u64".into(),
            policy: policy.into(),
            capacity: 1000,
            shards: 1,
            threads: 2,
            requests: 10_000,
            hits,
            hit_ratio: hits as f64 / 10_000.0,
            byte_hit_ratio: 0.25,
            evictions: 4000,
            ns_per_request: 99.5,
            policy_calls: 157,
            policy_ns: 120_000,
            swaps: 0,
            faults: 0,
            opt_hit_ratio: None,
        }
    }

    fn print(runs: &[Run], format: Format) -> String {
        let mut out = Vec::new();
        write(runs, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table() {
        let expected = "\
a, b.u64: 10,000 requests, 1 shard, 2 threads
  policy   capacity  hit ratio  byte hit ratio   hits  evictions  ns/request  policy calls  policy ns/request
  lru         1,000    50.00 %         25.00 %  5,000      4,000         100           157                 12
  s3-fifo     1,000    60.00 %         25.00 %  6,000      4,000         100           157                 12 *
";
        assert_eq!(print(&[run("lru", 5000), run("s3-fifo", 6000)], Format::Table), expected);
    }

    #[test]
    fn json_has_exactly_the_promised_names() {
        let json: serde_json::Value = serde_json::from_str(&print(&[run("lru", 5000)], Format::Json)).unwrap();
        let mut names: Vec<_> = json[0].as_object().unwrap().keys().cloned().collect();
        let mut promised: Vec<_> =
            "trace, policy, capacity, shards, threads, requests, hits, hit_ratio, byte_hit_ratio, \
             evictions, ns_per_request, policy_calls, policy_ns, swaps, faults"
                .split(", ")
                .map(String::from)
                .collect();
        names.sort();
        promised.sort();
        assert_eq!(names, promised);
        let with_opt = Run { opt_hit_ratio: Some(0.7), ..run("lru", 5000) };
        let json: serde_json::Value = serde_json::from_str(&print(&[with_opt], Format::Json)).unwrap();
        assert_eq!(json[0]["opt_hit_ratio"], 0.7);
        assert_eq!(print(&[], Format::Json), "[]\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let csv = print(&[run("lru", 5000)], Format::Csv);
        let lines: Vec<_> = csv.lines().collect();
        assert!(lines[0].starts_with("trace,policy,capacity,shards") && lines[0].ends_with("swaps,faults"));
        assert_eq!(lines[1], "\"a, b.u64\",lru,1000,1,2,10000,5000,0.5,0.25,4000,99.5,157,120000,0,0");
    }
}
