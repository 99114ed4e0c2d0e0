//! Runs a patterns module natively, against the contract of [`Patterns`].
//!
//! [`check`] draws rules from the module's card, and operations under them; a model of the host carries the actions out
//! with whatever luck an operation may have (tiers that are down, leaders that die, loads that fail, keys that are
//! invalidated half-way, rules that change), and holds each answer against the contract. The operation that breaks it is
//! shrunk. [`Suite`] is the same for whatever answers as a module does ([`Subject`]): a component in a host, say.

mod history;
mod host;
mod shrink;

use core::fmt;
use core::ops::Range;

pub use history::{History, Rule, Text};
pub use host::Clause;

use super::suite::quietly;
use crate::About;
use crate::patterns::{Answer, Keyspace, Patterns, Rulebook, Turn};
use host::Broken;

/// The environment variable that makes [`check`] run one history only: the number that a violation names.
const ONE: &str = "LARDER_HISTORY";

/// What answers as a module with rules does; an error says that there was no answer.
pub trait Subject {
    /// `step` in `wit/patterns.wit`.
    ///
    /// # Errors
    /// A trap, a panic, a deadline.
    fn step(&mut self, turn: &Turn) -> Result<Answer, String>;
}

/// Why a subject could not be opened.
#[derive(Clone, Debug)]
pub enum Closed {
    /// The rule contradicts itself: another one is drawn.
    Refused(String),
    /// There was no answer.
    Broken(String),
}

/// Opens a subject with one keyspace.
type Open<'a> = dyn FnMut(&Rule) -> Result<Box<dyn Subject>, Closed> + 'a;

/// Random operations to run a module through.
#[derive(Clone, Debug)]
pub struct Suite<'a> {
    /// The seeds of the histories, of one operation each.
    pub seeds: Range<u64>,
    /// What the module's text parameters may be; those that are not here keep their defaults.
    pub texts: &'a [Text<'a>],
    /// How many runs finding a short counterexample may take.
    pub shrinking_runs: usize,
}

impl Default for Suite<'_> {
    fn default() -> Self {
        Suite { seeds: 0..20_000, texts: &[], shrinking_runs: 5000 }
    }
}

/// What a suite ran through without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations that were run, each step by two instances.
    pub operations: u64,
    /// Their steps.
    pub steps: u64,
    /// Operations whose rule was refused.
    pub refused: u64,
}

/// A clause of the contract that was broken, and the operation that shows it.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What was broken.
    pub clause: Clause,
    /// How.
    pub message: String,
    /// The shortest history found that breaks this clause.
    pub history: History,
    /// What happened in it: a line for each step.
    pub transcript: Vec<String>,
    /// The seed of the history that it was found by.
    pub seed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broken: {}", self.clause)?;
        writeln!(f, "{}", self.message)?;
        writeln!(f, "the shortest operation found, {}:", self.history)?;
        self.transcript.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "found by history {}", self.seed)
    }
}

impl std::error::Error for Violation {}

impl Suite<'_> {
    /// Runs whatever `open` opens through every history.
    ///
    /// # Errors
    /// The first violation, with the shortest operation found that shows it.
    pub fn run(
        &self,
        about: &About,
        mut open: impl FnMut(&Rule) -> Result<Box<dyn Subject>, Closed>,
    ) -> Result<Report, Box<Violation>> {
        let mut report = Report::default();
        for seed in self.seeds.clone() {
            let history = History::random(seed, about, self.texts);
            match host::run(&history, &mut open) {
                Ok(Some(steps)) => {
                    report.operations += 1;
                    report.steps += steps as u64;
                }
                Ok(None) => report.refused += 1,
                Err(Broken { clause, .. }) => return Err(Box::new(self.explain(history, clause, seed, &mut open))),
            }
        }
        Ok(report)
    }

    /// Runs whatever `open` opens through one history; how many steps it took, `None` if its rule was refused.
    ///
    /// # Errors
    /// The violation, with the shortest operation found that shows it; its seed is 0.
    pub fn run_one(
        &self,
        history: &History,
        mut open: impl FnMut(&Rule) -> Result<Box<dyn Subject>, Closed>,
    ) -> Result<Option<usize>, Box<Violation>> {
        host::run(history, &mut open)
            .map_err(|broken| Box::new(self.explain(history.clone(), broken.clause, 0, &mut open)))
    }

    fn explain(&self, history: History, clause: Clause, seed: u64, open: &mut Open<'_>) -> Violation {
        let same = &mut |history: &History| host::run(history, &mut *open).is_err_and(|broken| broken.clause == clause);
        let history = shrink::shrink(history, self.shrinking_runs, same);
        match host::run(&history, open).err() {
            Some(Broken { clause, message, transcript }) => Violation { clause, message, history, transcript, seed },
            // It broke the clause before and does not now.
            None => Violation {
                clause: Clause::Pure,
                message: format!("it broke a clause ({clause}), and not when the same happened once more"),
                history,
                transcript: Vec::new(),
                seed,
            },
        }
    }
}

/// Runs a module through the default suite.
///
/// ```
/// # use larder_guest::testkit;
/// # fn example<MyPatterns: larder_guest::patterns::Patterns>() {
/// testkit::patterns::check::<MyPatterns>(&[("read", &["", "read-through"])]);
/// # }
/// ```
///
/// # Panics
/// With the first violation and the operation that shows it. `LARDER_HISTORY=N cargo test` runs only history `N`.
pub fn check<P: Patterns>(texts: &[Text<'_>]) -> Report {
    let suite = Suite { texts, ..Suite::default() };
    let suite = match std::env::var(ONE).map(|seed| seed.parse::<u64>()) {
        Ok(Ok(seed)) => Suite { seeds: seed..seed + 1, ..suite },
        Ok(Err(_)) => panic!("{ONE} must be the number of a history"),
        Err(_) => suite,
    };
    match suite.run(&P::ABOUT, open::<P>) {
        Ok(report) => report,
        Err(violation) => panic!("{}: {violation}\n`{ONE}={} cargo test` runs it again", P::ABOUT.name, violation.seed),
    }
}

/// A module linked into the test; a panic is an answer that does not come.
struct Native<P: Patterns>(Rulebook<P>);

impl<P: Patterns> Subject for Native<P> {
    fn step(&mut self, turn: &Turn) -> Result<Answer, String> {
        quietly(|| self.0.step(turn))
    }
}

/// Opens a module that is linked into the test.
fn open<P: Patterns>(rule: &Rule) -> Result<Box<dyn Subject>, Closed> {
    let set = rule.parameters.iter().cloned();
    let keyspace = Keyspace::new::<P>("products", rule.tiers, rule.shared, rule.abilities, set)
        .map_err(|refusal| Closed::Refused(format!("{} {}", refusal.parameter, refusal.message)))?;
    match quietly(|| Rulebook::<P>::open(&[keyspace])).map_err(Closed::Broken)? {
        Ok(rulebook) => Ok(Box::new(Native(rulebook))),
        Err(refused) => Err(Closed::Refused(format!("{} {}", refused.refusal.parameter, refused.refusal.message))),
    }
}

#[cfg(test)]
mod tests;
