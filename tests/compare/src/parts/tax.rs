//! What it costs a policy to be a component: the same algorithm in the same engine, once as the built-in component and
//! once linked natively (see `native.rs`).

use crate::load::Trace;
use crate::native;
use crate::report::{Cell, Section, median, quartiles};
use anyhow::{Result, bail};
use clap::Args;
use cpu_time::ThreadTime;
use larder::{Cache, Clock, Policy, Stats};
use std::hash::BuildHasherDefault;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args, Clone)]
pub struct Tax {
    /// Trace: NAME.u64.zst or NAME.u64u32.zst; without one, a synthetic trace
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// Capacity, in percent of the trace's unique keys
    #[arg(long, default_value_t = 5.0)]
    pub percent: f64,
    /// Policies; without names, all built-ins
    #[arg(long, value_delimiter = ',')]
    pub policies: Vec<String>,
    /// Rounds in which every policy replays the trace, natively and as a component
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Seed of the synthetic trace
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The same fingerprints for both twins, or they would not take the same decisions. (Keys are hashed already; the seeds
/// of the default hasher differ from cache to cache.)
type Hasher = BuildHasherDefault<Passed>;

#[derive(Default)]
pub struct Passed(u64);

impl std::hash::Hasher for Passed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// One replay of a trace into an empty cache.
struct Replayed {
    hits: usize,
    elapsed: f64,
    processor: f64,
    stats: Stats,
}

fn replay(policy: Policy, capacity: usize, requests: &[u64]) -> Result<Replayed> {
    let cache: Cache<u64, u64, Hasher> = Cache::builder()
        .max_capacity(u64::try_from(capacity)?)
        .hasher(Hasher::default())
        .clock(Clock::manual())
        .policy(policy)
        .build()?;
    let mut hits = requests.len();
    let (start, processor) = (Instant::now(), ThreadTime::now());
    for &key in requests {
        cache.get_with(key, || {
            hits -= 1;
            key
        });
    }
    let (processor, elapsed) = (processor.elapsed(), start.elapsed());
    Ok(Replayed { hits, elapsed: elapsed.as_secs_f64(), processor: processor.as_secs_f64(), stats: cache.stats() })
}

pub fn tax(options: &Tax) -> Result<Section> {
    let trace = options.trace.as_deref().map_or_else(|| Trace::synthetic(options.seed), Trace::read)?;
    let capacity = trace.capacity(options.percent);
    let names: Vec<&str> = match options.policies.as_slice() {
        [] => Policy::builtins().collect(),
        names => names.iter().map(String::as_str).collect(),
    };
    let notes = format!(
        "{}: {} requests, {} unique keys, get-or-insert into an empty cache of {capacity} ({} %), one thread. The same \
         algorithm as a component and linked natively take turns; ratios of component to native, medians of {} rounds \
         (quartiles), 1 is no tax. *Whole*: the replay. *Policy*: only the calls of the policy, as the cache's own \
         statistics have them. *Processor*: the replay, by the thread's time on a processor. Decisions are the same: \
         hit counts were compared.",
        trace.name,
        trace.requests.len(),
        trace.unique,
        options.percent,
        options.rounds
    );
    let columns = [
        "policy",
        "hit ratio",
        "native, ns a request",
        "component, ns a request",
        "whole",
        "processor",
        "native policy, ns a request",
        "component policy, ns a request",
        "policy",
    ];
    let mut section = Section::new("tax", "What being a component costs", notes, &columns);
    for name in &names {
        same_decisions(name, capacity, &trace.requests)?;
    }
    let mut measured: Vec<Vec<[Replayed; 2]>> = names.iter().map(|_| Vec::new()).collect();
    for round in 0..=options.rounds {
        eprintln!("tax: round {round}");
        for (name, rounds) in names.iter().zip(&mut measured) {
            let native = || replay(native::twin(name)?, capacity, &trace.requests);
            let component = || replay(Policy::builtin(name)?, capacity, &trace.requests);
            // Whoever is second finds warmer caches: take turns.
            let pair = if round % 2 == 0 {
                let native = native()?;
                [native, component()?]
            } else {
                let component = component()?;
                [native()?, component]
            };
            if round > 0 {
                rounds.push(pair);
            }
        }
    }
    for (name, rounds) in names.iter().zip(&measured) {
        let each = |seconds: f64| seconds * 1e9 / trace.requests.len() as f64;
        let cost = |who: usize, of: fn(&Replayed) -> f64| {
            Cell::Number(median(rounds.iter().map(|pair| each(of(&pair[who]))).collect()), 0)
        };
        let ratio = |of: fn(&Replayed) -> f64| {
            let (low, median, high) =
                quartiles(rounds.iter().map(|[native, component]| of(component) / of(native)).collect());
            Cell::Spread(low, median, high)
        };
        let policy = |replayed: &Replayed| replayed.stats.policy_time.as_secs_f64();
        let hits = rounds.first().map_or(0, |pair| pair[1].hits);
        section.rows.push(vec![
            (*name).into(),
            Cell::Number(hits as f64 / trace.requests.len() as f64, 4),
            cost(0, |replayed| replayed.elapsed),
            cost(1, |replayed| replayed.elapsed),
            ratio(|replayed| replayed.elapsed),
            ratio(|replayed| replayed.processor),
            cost(0, policy),
            cost(1, policy),
            ratio(policy),
        ]);
    }
    Ok(section)
}

/// Checks that both twins hit equally often. The cache's own thread settles what is pending four times a second, which
/// moves the end of a batch; so the replays are short and are repeated until a pair was not disturbed. Twins that
/// decide differently never agree.
fn same_decisions(name: &str, capacity: usize, requests: &[u64]) -> Result<()> {
    const REQUESTS: usize = 150_000;
    const ATTEMPTS: usize = 20;
    let requests = &requests[..requests.len().min(REQUESTS)];
    let mut counts = (0, 0);
    for _ in 0..ATTEMPTS {
        let (native, component) =
            (replay(native::twin(name)?, capacity, requests)?, replay(Policy::builtin(name)?, capacity, requests)?);
        if component.stats.faults > 0 {
            bail!("`{name}` was at fault {} times", component.stats.faults);
        }
        counts = (native.hits, component.hits);
        if native.hits == component.hits {
            return Ok(());
        }
    }
    bail!("`{name}` does not decide as its native twin does: {} and {} hits", counts.1, counts.0)
}
