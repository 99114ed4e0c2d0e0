//! Larder beside its peers, in one run on one machine. README.md says how to run each part and how to read it.

mod allocator;
mod bench;
mod contenders;
mod load;
mod native;
mod parts;
mod report;
mod rounds;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use contenders::Kind;
use parts::cold_start::ColdStart;
use parts::growth::Growth;
use parts::hit_ratio::HitRatio;
use parts::memory::Memory;
use parts::swap::Swap;
use parts::tax::Tax;
use parts::throughput::{Hits, Mix, Replay};
use parts::{cold_start, growth, hit_ratio, latency, memory, swap, tax, throughput};
use report::Section;
use serde_json::json;
use std::path::PathBuf;

/// Compares caches: throughput, latency, memory, hit ratio. Prints Markdown
#[derive(Parser)]
#[command(version)]
struct Command {
    /// Only these contenders; ratios need quick_cache among them
    #[arg(long, global = true, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write everything to this file, as JSON
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Throughput of hits
    Hits(Hits),
    /// Throughput of a 75/25 mix of reads and insertions, with evictions
    Mix(Mix),
    /// Throughput of get-or-insert over a trace
    Trace(Replay),
    /// Latency percentiles of one operation in the mix
    Latency(Mix),
    /// Bytes an entry
    Memory(Memory),
    /// Hit ratios over traces and capacities
    HitRatio(HitRatio),
    /// Time of an operation by the number of entries
    Growth(Growth),
    /// What being a component costs a policy
    Tax(Tax),
    /// Swapping the policy under load: loss, latency, hit ratio
    Swap(Swap),
    /// Time to load and open a policy in a fresh process
    ColdStart(ColdStart),
    /// Every part, at its defaults
    All(All),
    /// Measures one cache in this process, for `memory`
    #[command(hide = true)]
    MemoryChild(memory::Child),
    /// Starts one policy in this process, for `cold-start`
    #[command(hide = true)]
    ColdStartChild(cold_start::Child),
}

#[derive(Args)]
struct All {
    /// Trace for `trace`; without one, a synthetic trace
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Directory of traces for `hit-ratio`; without one, a synthetic trace
    #[arg(long)]
    traces: Option<PathBuf>,
}

fn main() -> Result<()> {
    let command = Command::parse();
    match &command.part {
        Part::MemoryChild(child) => return memory::child(child),
        Part::ColdStartChild(child) => return cold_start::child(child),
        _ => {}
    }
    println!("{}", setup(&contenders::select(&command.only, true)?)?);
    let mut sections = Vec::new();
    for part in command.part.expand()? {
        let section = part.run(&command.only)?;
        println!("{}", section.markdown());
        sections.push(section.json());
    }
    if let Some(path) = &command.json {
        let text = serde_json::to_string_pretty(&json!({ "versions": versions()?, "parts": sections }))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

impl Part {
    /// `all` as the parts that it stands for; any other part is itself.
    fn expand(self) -> Result<Vec<Self>> {
        let Self::All(All { trace, traces }) = self else { return Ok(vec![self]) };
        let optional = |flag: &str, path: Option<PathBuf>| path.map(|path| [flag.into(), path.into_os_string()]);
        let parts = [
            ("hits", None),
            ("mix", None),
            ("trace", optional("--trace", trace)),
            ("latency", None),
            ("memory", None),
            ("hit-ratio", optional("--traces", traces)),
            ("growth", None),
            ("tax", None),
            ("swap", None),
            ("cold-start", None),
        ];
        // By way of the command line, so that every part has the defaults that it has there.
        let parse = |(name, option): (&str, Option<[_; 2]>)| {
            let words = ["compare".into(), name.into()].into_iter().chain(option.into_iter().flatten());
            Ok(Command::try_parse_from(words)?.part)
        };
        parts.into_iter().map(parse).collect()
    }

    fn run(&self, only: &[String]) -> Result<Section> {
        let kinds = |variants| contenders::select(only, variants);
        match self {
            Self::Hits(options) => throughput::hits(&kinds(false)?, options),
            Self::Mix(options) => throughput::mix(&kinds(false)?, options),
            Self::Trace(options) => throughput::replay(&kinds(false)?, options),
            Self::Latency(options) => latency::latency(&kinds(false)?, options),
            Self::Memory(options) => memory::memory(&kinds(false)?, options),
            Self::HitRatio(options) => hit_ratio::hit_ratio(&kinds(true)?, options),
            Self::Growth(options) => {
                let named = if only.is_empty() { &options.contenders } else { only };
                growth::growth(&contenders::select(named, true)?, options)
            }
            Self::Tax(options) => tax::tax(&options),
            Self::Swap(options) => swap::swap(&options),
            Self::ColdStart(options) => cold_start::cold_start(&options),
            Self::All(_) | Self::MemoryChild(_) | Self::ColdStartChild(_) => unreachable!("expanded, or run before"),
        }
    }
}

/// Who takes part, in what version and configuration, on what machine.
fn setup(kinds: &[Box<dyn Kind>]) -> Result<String> {
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    let columns = ["contender", "version", "configuration"];
    let notes = format!(
        "{} {}, {threads} hardware threads{}; release build.",
        std::env::consts::OS,
        std::env::consts::ARCH,
        processor().map(|name| format!(" ({name})")).unwrap_or_default()
    );
    let mut section = Section::new("setup", "Contenders", notes, &columns);
    for kind in kinds {
        let version = kind.version()?;
        section.rows.push(vec![kind.name().into(), version.as_str().into(), kind.configuration().into()]);
    }
    Ok(section.markdown())
}

/// The processor's name, where the system tells it.
fn processor() -> Option<String> {
    let information = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = information.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn versions() -> Result<serde_json::Value> {
    contenders::all().iter().map(|kind| Ok((kind.name().to_owned(), json!(kind.version()?)))).collect()
}
