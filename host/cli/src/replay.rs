//! `larder replay`: requests of a trace against the library itself, as its users call it: `get`, and on a miss `insert`.
//!
//! A replay has two halves. The *survey* reads each trace once from end to end: what is wrong with it is said before
//! anything runs, and its keys are counted where a capacity is a share of them. It keeps the requests in memory where
//! they fit (a spool for standard input, which cannot be read twice). Then each combination of trace, capacity and
//! policy is a *run* from a cold cache.
//!
//! Two runs of the same words agree to the request on any machine, on one thread: keys are hashed with a fixed seed and
//! policies draw from one. With several threads, each takes the next 256 requests as soon as it is free, so that
//! the order is the trace's but for what is under way at the same time; contiguous shares of the trace would replay its
//! morning beside its evening.
//!
//! `ns_per_request` is time in the threads that ask, and nothing else: reading, decompressing, loading policies and
//! swapping them are left out.

use std::collections::HashSet;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::quality::FixedState;
use indicatif::{ProgressBar, ProgressStyle};
use larder::{BuildError, Cache, FaultReport, Policy, PolicyError, ShadowError, ShadowReport, SwapError, SwapReport};

use crate::capacity::Capacity;
use crate::opt::{self, Future, Past, TooLong};
use crate::output::Run;
use crate::synthetic::Synthetic;
use crate::trace::{self, BLOCK, Reader, Request, TraceError};

/// How many requests a thread takes at a time.
const PORTION: usize = 256;

/// How many requests of a file are kept in memory, 16 bytes each; a longer trace is read anew for each run, this many
/// at a time at most.
const KEPT: usize = 1 << 25;

/// How many requests are read at a time where they are not kept.
const ROUND: usize = 1 << 20;

/// Entries that a shadow runs on: enough that a sample of the keys speaks for all.
const SHADOWED: f64 = 16_384.0;

/// The seed of the hash of keys: any would do, as long as it stays.
const HASH_SEED: u64 = 0x6c61_7264_6572;

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, or standard input where the path is `-`.
    File(PathBuf, trace::Options),
    /// Drawn from a distribution.
    Synthetic(Synthetic),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Source::File(path, _) => path.display().to_string(),
            Source::Synthetic(synthetic) => synthetic.to_string(),
        }
    }

    fn is_stdin(&self) -> bool {
        matches!(self, Source::File(path, _) if path.as_os_str() == "-")
    }

    /// Calls `each` with the requests, at most [`ROUND`] at a time.
    fn rounds<E: From<TraceError>>(&self, mut each: impl FnMut(&[Request]) -> Result<(), E>) -> Result<(), E> {
        let mut round = Vec::with_capacity(ROUND);
        match self {
            Source::File(path, options) => {
                let mut reader = Reader::open(path, options)?;
                let mut block = Vec::with_capacity(BLOCK);
                while reader.fill(&mut block)? {
                    round.extend_from_slice(&block);
                    if round.len() + BLOCK > ROUND {
                        each(&round)?;
                        round.clear();
                    }
                }
            }
            Source::Synthetic(synthetic) => {
                for request in synthetic.requests() {
                    round.push(request);
                    if round.len() == ROUND {
                        each(&round)?;
                        round.clear();
                    }
                }
            }
        }
        if round.is_empty() { Ok(()) } else { each(&round) }
    }
}

/// What a capacity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Entries: each weighs 1.
    Entries,
    /// Bytes: each weighs its size.
    Bytes,
}

/// Which requests of a trace: a number, or a share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// From 0.
    Request(u64),
    /// From 0 to 1.
    Share(f64),
}

impl Position {
    fn of(self, requests: u64) -> u64 {
        match self {
            Position::Request(at) => at,
            // A share is of what there is, however short: half of one request comes before it.
            Position::Share(share) => ((share * requests as f64).round() as u64).min(requests.saturating_sub(1)),
        }
    }
}

/// A policy, and what the user called it.
#[derive(Clone, Debug)]
pub struct Named {
    /// As the user wrote it.
    pub text: String,
    /// What was meant.
    pub policy: Policy,
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The traces.
    pub sources: Vec<Source>,
    /// The policies.
    pub policies: Vec<Named>,
    /// The capacities.
    pub capacities: Vec<Capacity>,
    /// What they count.
    pub unit: Unit,
    /// Threads that ask.
    pub threads: NonZeroUsize,
    /// Shards of the cache, or the library's choice.
    pub shards: Option<NonZeroUsize>,
    /// One shard, and batches of one.
    pub exact: bool,
    /// Swaps of the policy.
    pub swaps: Vec<(Position, Named)>,
    /// A policy that runs beside the other.
    pub shadow: Option<Named>,
    /// Belady's bound.
    pub opt: Option<opt::Rule>,
}

/// What a run found, beyond the figures.
#[derive(Debug)]
pub struct Outcome {
    /// The figures.
    pub run: Run,
    /// The swaps, in order, with the request before which each began.
    pub swaps: Vec<(u64, SwapReport)>,
    /// What the shadow would have won.
    pub shadow: Option<ShadowReport>,
    /// The first faults.
    pub faults: Vec<FaultReport>,
    /// How often an instance of a policy had to be stopped.
    pub traps: u64,
    /// Of the policies that ran, those that had a fault, each as the user named it; the shadow, too.
    pub faulty: Vec<String>,
}

impl Outcome {
    /// Whether a policy, or the shadow, had to be stopped.
    pub fn has_stopped(&self) -> bool {
        self.traps > 0 || self.shadow.as_ref().is_some_and(|shadow| shadow.fault.is_some())
    }
}

/// Why a replay ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A policy cannot be had.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The cache cannot be built like this.
    #[error("{0}; choose another --shards, or a larger --capacity")]
    Shape(BuildError),
    /// There is nothing before which to swap.
    #[error(
        "--swap at request {at}: {trace} has {requests} requests, from 0 on; choose a smaller number, or a share such as 50%"
    )]
    NeverReached {
        /// The request.
        at: u64,
        /// The trace.
        trace: String,
        /// How many requests it has.
        requests: u64,
    },
    /// A swap failed while the cache ran.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// The shadow did not start.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
    /// Belady's bound has its limits.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The system has no more threads.
    #[error("cannot start {threads} threads: {source}; choose fewer --threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The trace is not what it was.
    #[error("{0} changed while it was replayed; replay a copy of it")]
    Changed(String),
}

impl From<BuildError> for ReplayError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Policy(error) => ReplayError::Policy(error),
            error => ReplayError::Shape(error),
        }
    }
}

/// Replays every combination of the plan: trace by trace, capacity by capacity, policy by policy.
///
/// # Errors
/// Where a policy, a trace or the plan itself is at fault; runs that were done by then are lost. A policy that fails
/// *during* a run is no error: the cache goes on without it, and the outcome says so.
pub fn replay(plan: &Plan, progress: bool) -> Result<Vec<Outcome>, ReplayError> {
    // Reading a trace may take minutes: a policy that is not there is told first. The code is compiled now, too.
    let named = plan.policies.iter().chain(plan.swaps.iter().map(|(_, named)| named)).chain(&plan.shadow);
    for named in named {
        named.policy.load()?;
    }
    let mut outcomes = Vec::new();
    for source in &plan.sources {
        let trace = Trace::survey(source, plan, progress)?;
        if let Some(at) = plan.swaps.iter().map(|(at, _)| at.of(trace.requests)).find(|&at| at >= trace.requests) {
            return Err(ReplayError::NeverReached { at, trace: trace.name, requests: trace.requests });
        }
        for capacity in &plan.capacities {
            let capacity = capacity.of(trace.unique);
            let opt = trace.future.as_ref().zip(plan.opt).map(|(future, rule)| {
                let bar = spinner(progress, &format!("{}: OPT at {capacity}", trace.name));
                let hits = future.hits(capacity, rule);
                bar.finish_and_clear();
                hits as f64 / trace.requests.max(1) as f64
            });
            for named in &plan.policies {
                let mut outcome = run(plan, &trace, named, capacity, progress)?;
                outcome.run.opt_hit_ratio = opt;
                outcomes.push(outcome);
            }
        }
    }
    Ok(outcomes)
}

/// A trace that was read once.
struct Trace<'a> {
    source: &'a Source,
    name: String,
    requests: u64,
    /// Its unique keys, or their bytes; 0 where nothing depends on it.
    unique: u64,
    bytes: u128,
    /// All requests, if they fit.
    kept: Option<Vec<Request>>,
    future: Option<Future>,
}

impl<'a> Trace<'a> {
    fn survey(source: &'a Source, plan: &Plan, progress: bool) -> Result<Self, ReplayError> {
        let bar = spinner(progress, &format!("reading {}", source.name()));
        let mut trace = Trace {
            source,
            name: source.name(),
            requests: 0,
            unique: 0,
            bytes: 0,
            kept: Some(Vec::new()),
            future: None,
        };
        let mut past = plan.opt.map(|_| Past::default());
        let counted = plan.capacities.iter().any(Capacity::is_share);
        let mut seen: HashSet<u64, foldhash::fast::FixedState> = HashSet::default();
        source.rounds::<ReplayError>(|round| {
            trace.requests += round.len() as u64;
            for request in round {
                // An object weighs 1 at least in the cache, and so it does here.
                let weight = if plan.unit == Unit::Bytes { u64::from(request.size.max(1)) } else { 1 };
                trace.bytes += u128::from(request.size);
                if let Some(past) = &mut past {
                    past.push(request.key)?;
                }
                if counted && seen.insert(request.key) {
                    trace.unique += weight;
                }
            }
            // Standard input is kept however long it is.
            if trace.requests as usize > KEPT && !source.is_stdin() {
                trace.kept = None;
            }
            if let Some(kept) = &mut trace.kept {
                kept.extend_from_slice(round);
            }
            bar.set_position(trace.requests);
            Ok(())
        })?;
        trace.future = past.map(Past::end);
        bar.finish_and_clear();
        Ok(trace)
    }

    fn rounds(&self, mut each: impl FnMut(&[Request]) -> Result<(), ReplayError>) -> Result<(), ReplayError> {
        match &self.kept {
            Some(kept) => each(kept),
            None => self.source.rounds(each),
        }
    }
}

/// The cache that is replayed against: the value of a key is its object's size, and stands for the object.
type Replayed = Cache<u64, u32, FixedState>;

fn build(plan: &Plan, named: &Named, capacity: u64) -> Result<Replayed, ReplayError> {
    let hasher = FixedState::with_seed(HASH_SEED);
    let mut builder = Cache::builder().hasher(hasher).max_capacity(capacity).policy(named.policy.clone());
    if plan.unit == Unit::Bytes {
        builder = builder.weigher(|_, size: &u32| (*size).max(1));
    }
    if let Some(shards) = plan.shards {
        builder = builder.shards(shards.get());
    }
    if plan.exact {
        builder = builder.shards(1).batch(1);
    }
    Ok(builder.build()?)
}

/// What a thread counted.
#[derive(Clone, Copy, Default)]
struct Tally {
    requests: u64,
    hits: u64,
    hit_bytes: u128,
    busy: Duration,
}

fn run(plan: &Plan, trace: &Trace<'_>, named: &Named, capacity: u64, progress: bool) -> Result<Outcome, ReplayError> {
    let cache = build(plan, named, capacity)?;
    if let Some(shadow) = &plan.shadow {
        let sample = match plan.unit {
            Unit::Entries => (SHADOWED / capacity as f64).min(1.0),
            Unit::Bytes => 1.0,
        };
        cache.shadow(shadow.policy.clone(), sample)?;
    }
    let mut swaps: Vec<_> = plan.swaps.iter().map(|(position, named)| (position.of(trace.requests), named)).collect();
    swaps.sort_by_key(|&(at, _)| at);
    let bar = bar(progress, trace.requests, format!("{} at {capacity}: {}", trace.name, named.text));

    let mut total = Tally::default();
    let mut swapped = Vec::new();
    trace.rounds(|round| {
        let round = Round {
            cache: &cache,
            first: total.requests,
            requests: round,
            next: AtomicUsize::new(0),
            swaps: &swaps,
            bar: &bar,
        };
        let tallies = std::thread::scope(|scope| {
            let start = |_| {
                let started = std::thread::Builder::new().spawn_scoped(scope, || round.work());
                // Those that run have nothing more to do then.
                started.inspect_err(|_| round.next.store(round.requests.len(), Ordering::Relaxed))
            };
            let threads: Vec<_> = (0..plan.threads.get()).map(start).collect::<Result<_, _>>()?;
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            Ok(joined.collect::<Vec<_>>())
        });
        let tallies = tallies.map_err(|source| ReplayError::Threads { threads: plan.threads.get(), source })?;
        for tally in tallies {
            let (tally, reports) = tally?;
            total.requests += tally.requests;
            total.hits += tally.hits;
            total.hit_bytes += tally.hit_bytes;
            total.busy += tally.busy;
            swapped.extend(reports);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    if total.requests != trace.requests {
        return Err(ReplayError::Changed(trace.name.clone()));
    }

    // What the policy has not been told of yet belongs to the figures.
    cache.run_pending_tasks();
    let stats = cache.stats();
    swapped.sort_by_key(|(at, _)| *at);
    // The same reports, with the hit ratio since; the cache keeps the last ones.
    for ((_, report), latest) in swapped.iter_mut().rev().zip(cache.swap_history().into_iter().rev()) {
        *report = latest;
    }
    let requests = total.requests.max(1) as f64;
    let (faults, shadow) = (cache.faults(), cache.end_shadow());
    let mut faulty = Vec::new();
    for named in [named].into_iter().chain(swaps.iter().map(|&(_, named)| named)) {
        let module = named.policy.load()?;
        if faults.iter().any(|fault| fault.module == module.name()) && !faulty.contains(&named.text) {
            faulty.push(named.text.clone());
        }
    }
    let has_shadow_fault = shadow.as_ref().is_some_and(|shadow| shadow.fault.is_some());
    if let Some(named) = plan.shadow.as_ref().filter(|named| has_shadow_fault && !faulty.contains(&named.text)) {
        faulty.push(named.text.clone());
    }
    Ok(Outcome {
        run: Run {
            trace: trace.name.clone(),
            policy: named.text.clone(),
            capacity,
            shards: cache.shard_count() as u64,
            threads: plan.threads.get() as u64,
            requests: total.requests,
            hits: total.hits,
            hit_ratio: total.hits as f64 / requests,
            byte_hit_ratio: total.hit_bytes as f64 / trace.bytes.max(1) as f64,
            evictions: stats.evictions,
            ns_per_request: total.busy.as_nanos() as f64 / requests,
            policy_calls: stats.policy_calls,
            policy_ns: stats.policy_time.as_nanos() as u64,
            swaps: stats.swaps,
            faults: stats.faults,
            opt_hit_ratio: None,
        },
        swaps: swapped,
        shadow,
        faults,
        traps: stats.traps,
        faulty,
    })
}

/// Requests that the threads share out among themselves.
struct Round<'a> {
    cache: &'a Replayed,
    /// The number of the first request in the trace.
    first: u64,
    requests: &'a [Request],
    /// The next portion that nobody has taken.
    next: AtomicUsize,
    /// By request.
    swaps: &'a [(u64, &'a Named)],
    bar: &'a ProgressBar,
}

impl Round<'_> {
    /// What one thread does.
    fn work(&self) -> Result<(Tally, Vec<(u64, SwapReport)>), ReplayError> {
        let mut tally = Tally::default();
        let mut swapped = Vec::new();
        let mut began = Instant::now();
        loop {
            let start = self.next.fetch_add(PORTION, Ordering::Relaxed);
            if start >= self.requests.len() {
                break;
            }
            let end = (start + PORTION).min(self.requests.len());
            let mut from = start;
            let (least, most) = (self.first + start as u64, self.first + end as u64);
            for &(at, named) in self.swaps.iter().filter(|(at, _)| (least..most).contains(at)) {
                let to = (at - self.first) as usize;
                self.ask(from..to, &mut tally);
                from = to;
                tally.busy += began.elapsed();
                swapped.push((at, self.cache.swap_policy(named.policy.clone())?));
                began = Instant::now();
            }
            self.ask(from..end, &mut tally);
            // Seldom, for it may draw.
            if start.is_multiple_of(PORTION * 256) {
                self.bar.set_position(least);
            }
        }
        tally.busy += began.elapsed();
        Ok((tally, swapped))
    }

    fn ask(&self, range: std::ops::Range<usize>, tally: &mut Tally) {
        tally.requests += range.len() as u64;
        for &Request { key, size } in &self.requests[range] {
            if self.cache.get(&key).is_some() {
                tally.hits += 1;
                tally.hit_bytes += u128::from(size);
            } else {
                self.cache.insert(key, size);
            }
        }
    }
}

/// How far something has come, on a terminal.
pub fn bar(progress: bool, length: u64, message: String) -> ProgressBar {
    if !progress {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec}, {eta} left");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(message)
}

/// A sign of life where nobody knows how long it takes.
fn spinner(progress: bool, message: &str) -> ProgressBar {
    if !progress {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
