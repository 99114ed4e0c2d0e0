//! `larder policy list`, `inspect` and `check`: modules, by whomever.
//!
//! `check` is the conformance suite of the guest SDK, the one that an author runs natively with `cargo test`, over the
//! built component in the engine that a cache would run it in. What it cannot see natively shows here: a trap instead
//! of a panic, a deadline, memory that runs out, an answer that does not fit the contract's types.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use indicatif::ProgressBar;
use larder::eviction::{self as host, Fault};
use larder::{Description, Module, ParameterSpec, Patterns, PatternsModule, Policy, PolicyError};
use larder_guest::testkit::{Report, Subject, Suite, Violation};
use larder_guest::{Batch, Entries, Limits, Slot};
use serde::Serialize;

/// The package that this host speaks, and its worlds.
const WORLD: &str = "larder:policy/eviction-module@0.1.0";
const PATTERNS_WORLD: &str = "larder:policy/patterns-module@0.1.0";

/// Runs for finding a short counterexample: as many as the suite takes, or few where each waits for a deadline.
const SHRINKING_RUNS: usize = 5000;
const SHRINKING_RUNS_OF_A_LOOP: usize = 40;

/// What there is to know of a module. The names are those of the JSON objects.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// What it says of itself.
    #[serde(flatten)]
    pub description: Description,
    /// The world that it was checked against.
    pub world: &'static str,
    /// What it imports.
    pub imports: Vec<String>,
    /// The size of its file in bytes.
    pub size: Option<usize>,
    /// The SHA-256 of its file.
    pub sha256: Option<String>,
}

impl Card {
    /// Of a module that was loaded.
    pub fn of(module: &Module) -> Self {
        Card {
            description: module.description().clone(),
            world: WORLD,
            imports: module.imports(),
            size: module.size(),
            sha256: module.sha256().map(Into::into),
        }
    }

    /// Of a module of patterns that was loaded.
    pub fn of_patterns(module: &PatternsModule) -> Self {
        Card {
            description: module.description().clone(),
            world: PATTERNS_WORLD,
            imports: module.imports().to_vec(),
            size: None,
            sha256: Some(module.sha256().into()),
        }
    }

    /// Of a module of any role, by its file or its name.
    ///
    /// # Errors
    /// Neither a policy nor a module of patterns can be loaded so: what is said of a policy.
    pub fn find(text: &str) -> Result<Self, PolicyError> {
        if text == "patterns" {
            return Ok(Card::of_patterns(&Patterns::builtin().load()?));
        }
        match text.parse::<Policy>().and_then(|policy| policy.load()) {
            Ok(module) => Ok(Card::of(&module)),
            // A file may have the other role.
            Err(error) => match Patterns::file(text).load() {
                Ok(module) => {
                    let size = std::fs::metadata(text).ok().and_then(|file| usize::try_from(file.len()).ok());
                    Ok(Card { size, ..Card::of_patterns(&module) })
                }
                Err(_) => Err(error),
            },
        }
    }

    /// Prints it for people.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Description { name, version, summary, roles, .. } = &self.description;
        writeln!(out, "{name} {version}: {summary}")?;
        // As JSON spells them.
        let roles: Vec<_> = roles.iter().filter_map(|role| serde_json::to_value(role).ok()).collect();
        let roles: Vec<_> = roles.iter().filter_map(|role| role.as_str()).collect();
        writeln!(out, "  roles    {}", roles.join(", "))?;
        writeln!(out, "  world    {}", self.world)?;
        let imports = if self.imports.is_empty() { "nothing".into() } else { self.imports.join(", ") };
        writeln!(out, "  imports  {imports}")?;
        if let Some(size) = self.size {
            writeln!(out, "  size     {} bytes", crate::output::grouped(size as u64))?;
        }
        if let Some(sha256) = &self.sha256 {
            writeln!(out, "  sha256   {sha256}")?;
        }
        // Those of a policy are written after its name, those of patterns into a rule.
        parameters(&self.description.parameters, if self.world == PATTERNS_WORLD { "" } else { ":" }, out)
    }
}

fn parameters(specs: &[ParameterSpec], before: &str, out: &mut impl Write) -> io::Result<()> {
    specs.iter().try_for_each(|spec| {
        let bounds = match (spec.minimum, spec.maximum) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            (Some(least), None) => format!(", at least {least}"),
            (None, Some(most)) => format!(", at most {most}"),
            (None, None) => String::new(),
        };
        writeln!(out, "  {before}{}={}{bounds}\n      {}", spec.name, spec.default, spec.doc)
    })
}

/// The cards of all built-ins.
///
/// # Errors
/// Where no module can run on this machine.
pub fn builtins() -> Result<Vec<Card>, PolicyError> {
    Policy::builtins().map(|name| Ok(Card::of(&Policy::builtin(name)?.load()?))).collect()
}

/// Prints the list of the built-ins for people.
///
/// # Errors
/// Where `out` cannot be written.
pub fn list(cards: &[Card], out: &mut impl Write) -> io::Result<()> {
    let width = cards.iter().map(|card| card.description.name.len()).max().unwrap_or(0);
    for card in cards {
        let Description { name, summary, parameters: specs, .. } = &card.description;
        let default = if name == Policy::DEFAULT { " (the default)" } else { "" };
        writeln!(out, "{name:<width$}  {summary}{default}")?;
        parameters(specs, ":", out)?;
    }
    Ok(())
}

/// Runs a module through the histories of a suite; `tell` is called with words for who waits.
///
/// # Errors
/// The first violation, with the shortest history found that shows it within the suite's time.
pub fn check(
    module: &Module,
    suite: &Suite,
    progress: &ProgressBar,
    tell: impl Fn(&str),
) -> Result<Report, Box<Violation>> {
    let mut total = Report::default();
    let slow = Rc::new(Cell::new(false));
    for seed in suite.seeds.clone() {
        let suite = Suite { seeds: seed..seed + 1, shrinking_runs: 0, ..suite.clone() };
        let report = match suite.run(|limits| Running::open(module, limits, &slow)) {
            Ok(report) => report,
            Err(found) => {
                tell(&format!(
                    "history {seed} breaks the contract; looking for a shorter one, for {} seconds at most",
                    suite.shrinking_time.as_secs()
                ));
                progress.set_message(format!("{}: shortening history {seed}", module.name()));
                // One run may take seconds, and no history is done meanwhile.
                progress.enable_steady_tick(Duration::from_millis(100));
                let shrinking_runs = if slow.get() { SHRINKING_RUNS_OF_A_LOOP } else { SHRINKING_RUNS };
                let suite = Suite { shrinking_runs, ..suite };
                // It failed just now; where it does not again, what was found stands.
                return Err(suite.run(|limits| Running::open(module, limits, &slow)).err().unwrap_or(found));
            }
        };
        total.histories += report.histories;
        total.events += report.events;
        total.victims += report.victims;
        progress.inc(1);
    }
    Ok(total)
}

/// A module at work, as the suite sees it.
struct Running {
    policy: Box<dyn host::Eviction>,
    /// Set where a call ran into its deadline.
    slow: Rc<Cell<bool>>,
}

impl Running {
    fn open(module: &Module, limits: &Limits, slow: &Rc<Cell<bool>>) -> Result<Box<dyn Subject>, String> {
        let Limits { capacity, expected, seed } = *limits;
        match module.open(&host::Limits { capacity, expected, seed }) {
            Ok(policy) => Ok(Box::new(Running { policy, slow: slow.clone() })),
            Err(error) => {
                slow.set(slow.get() || matches!(error, PolicyError::Stopped { fault: Fault::Deadline { .. }, .. }));
                Err(error.to_string())
            }
        }
    }

    fn told<T>(&self, answer: Result<T, Fault>) -> Result<T, String> {
        answer.map_err(|fault| {
            self.slow.set(self.slow.get() || matches!(fault, Fault::Deadline { .. }));
            fault.to_string()
        })
    }
}

fn entries(entries: &Entries<'_>) -> host::Entries {
    host::Entries {
        slots: entries.slots.into(),
        fingerprints: entries.fingerprints.into(),
        weights: entries.weights.into(),
        costs: entries.costs.into(),
        expiries: entries.expiries.into(),
    }
}

impl Subject for Running {
    fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String> {
        let batch = host::Batch {
            now: batch.now,
            departed: batch.departed.into(),
            changed: entries(&batch.changed),
            touched: batch.touched.into(),
            touches: batch.touches.into(),
            arrived: entries(&batch.arrived),
        };
        let mut victims = Vec::new();
        let answer = self.policy.advance(&batch, &mut victims);
        self.told(answer).map(|()| victims)
    }

    fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String> {
        let answer = self.policy.residents();
        self.told(answer).map(|ranking| (ranking.slots, ranking.uses))
    }

    fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String> {
        let mut victims = Vec::new();
        let answer = self.policy.adopt(&entries(residents), uses, &mut victims);
        self.told(answer).map(|()| victims)
    }

    fn learned(&mut self) -> Result<Vec<u8>, String> {
        let answer = self.policy.learned();
        self.told(answer)
    }

    fn recall(&mut self, learned: &[u8]) -> Result<bool, String> {
        let answer = self.policy.recall(learned);
        self.told(answer)
    }
}
