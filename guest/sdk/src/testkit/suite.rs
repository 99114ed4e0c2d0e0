//! Many histories, one verdict.

use core::ops::Range;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use super::history::History;
use super::oracle::{Broken, Clause, Open, Subject, Violation, run};
use super::shrink::shrink;
use crate::{Batch, Entries, Eviction, Limits, Parameters, Shard, Slot, Value};

/// The environment variable that makes [`check`] run one history only: the number that a violation names.
const ONE: &str = "LARDER_HISTORY";

/// Random histories to run a policy through.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The seeds of the histories.
    pub seeds: Range<u64>,
    /// About how many events each has; every sixteenth has ten times as many.
    pub events: usize,
    /// How many runs finding a short counterexample may take.
    pub shrinking_runs: usize,
    /// And how much time, for a policy whose runs are slow; what was found by then stands.
    pub shrinking_time: Duration,
    /// Whether, wherever an instance adopts, others are tried out beside it that recall what was learned.
    pub hand_over: bool,
}

impl Default for Suite {
    fn default() -> Self {
        Suite {
            seeds: 0..200,
            events: 300,
            shrinking_runs: 5000,
            shrinking_time: Duration::from_secs(60),
            hand_over: true,
        }
    }
}

/// What a suite ran through without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Histories, each run twice.
    pub histories: u64,
    /// The events in them.
    pub events: u64,
    /// The victims that were named in them.
    pub victims: u64,
}

impl Suite {
    /// The suite with only the history of one seed, as a violation names it.
    pub fn only(seed: u64) -> Self {
        Suite { seeds: seed..seed + 1, ..Suite::default() }
    }

    /// Runs whatever `open` opens through every history.
    ///
    /// # Errors
    /// The first violation, with the shortest history found that shows it.
    pub fn run(
        &self,
        mut open: impl FnMut(&Limits) -> Result<Box<dyn Subject>, String>,
    ) -> Result<Report, Box<Violation>> {
        let mut report = Report::default();
        for seed in self.seeds.clone() {
            let history = History::random(seed, self.events);
            match run_twice(&history, false, self.hand_over, &mut open) {
                Ok(victims) => {
                    report.histories += 1;
                    report.events += history.len() as u64;
                    report.victims += victims;
                }
                Err(Broken { clause, .. }) => return Err(Box::new(self.explain(history, clause, seed, &mut open))),
            }
        }
        Ok(report)
    }

    fn explain(&self, history: History, clause: Clause, seed: u64, open: &mut Open<'_>) -> Violation {
        let same = &mut |history: &History| {
            run_twice(history, false, self.hand_over, open).is_err_and(|broken| broken.clause == clause)
        };
        let history = shrink(history, self.shrinking_runs, self.shrinking_time, same);
        match run_twice(&history, true, self.hand_over, open).err() {
            Some(Broken { clause, message, transcript }) => Violation { clause, message, history, transcript, seed },
            // It broke the clause before and does not now.
            None => Violation {
                clause: Clause::Deterministic,
                message: format!("it broke a clause ({clause}), and not when the same happened once more"),
                history,
                transcript: Vec::new(),
                seed,
            },
        }
    }
}

/// Runs a history, and once more for the same answers; counts the victims.
fn run_twice(history: &History, tell: bool, hand_over: bool, open: &mut Open<'_>) -> Result<u64, Broken> {
    let first = run(history, tell, hand_over, open)?;
    let second = run(history, tell, hand_over, open)?;
    if first != second {
        let at = first.iter().zip(&second).position(|(a, b)| a != b).unwrap_or(0);
        let message =
            format!("its answer number {at} was {:?}, and {:?} when the same happened again", first[at], second[at]);
        let transcript = history
            .steps
            .iter()
            .map(|step| format!("{:?}, {} ms later: {:?}", step.before, step.elapsed_ms, step.events))
            .collect();
        return Err(Broken { clause: Clause::Deterministic, message, transcript });
    }
    Ok(first.iter().map(|victims| victims.len() as u64).sum())
}

/// Runs a policy through the default suite, with its default parameters.
///
/// ```
/// # use larder_guest::testkit;
/// # fn example<MyPolicy: larder_guest::Eviction>() {
/// testkit::check::<MyPolicy>();
/// # }
/// ```
///
/// # Panics
/// With the first violation and the history that shows it. `LARDER_HISTORY=N cargo test` runs only history `N`.
pub fn check<P: Eviction>() -> Report {
    let suite = match std::env::var(ONE).map(|seed| seed.parse()) {
        Ok(Ok(seed)) => Suite::only(seed),
        Ok(Err(_)) => panic!("{ONE} must be the number of a history"),
        Err(_) => Suite::default(),
    };
    check_with::<P>(&suite, &[])
}

/// Runs a policy through a suite, with parameters.
///
/// # Panics
/// As [`check`], and if the parameters are not as the policy's card has them.
pub fn check_with<P: Eviction>(suite: &Suite, parameters: &[(&str, Value)]) -> Report {
    let name = P::ABOUT.name;
    let set = parameters.iter().map(|(name, value)| ((*name).to_string(), value.clone()));
    let parameters = match Parameters::of(&P::ABOUT, set) {
        Ok(parameters) => parameters,
        Err(refusal) => panic!("{name}: parameter {:?} {}", refusal.parameter, refusal.message),
    };
    match suite.run(|limits| Native::<P>::open(limits, &parameters)) {
        Ok(report) => report,
        Err(violation) => panic!("{name}: {violation}\n`{ONE}={} cargo test` runs it again", violation.seed),
    }
}

/// A policy linked into the test; a panic is an answer that does not come.
struct Native<P>(Shard<P>);

impl<P: Eviction> Native<P> {
    fn open(limits: &Limits, parameters: &Parameters) -> Result<Box<dyn Subject>, String> {
        match quietly(|| Shard::<P>::open(limits, parameters))? {
            Ok(shard) => Ok(Box::new(Native(shard))),
            Err(refusal) => Err(format!("{} {}", refusal.parameter, refusal.message)),
        }
    }
}

impl<P: Eviction> Subject for Native<P> {
    fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String> {
        quietly(|| self.0.advance(batch))
    }
    fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String> {
        quietly(|| self.0.residents())
    }
    fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String> {
        quietly(|| self.0.adopt(residents, uses))
    }
    fn learned(&mut self) -> Result<Vec<u8>, String> {
        quietly(|| self.0.learned())
    }
    fn recall(&mut self, learned: &[u8]) -> Result<bool, String> {
        quietly(|| self.0.recall(learned))
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call`; a panic becomes an error, and prints nothing: shrinking provokes hundreds.
pub(super) fn quietly<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let answer = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    answer.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it panicked: {}", text.unwrap_or("without a message"))
    })
}

#[cfg(test)]
mod tests;
