//! The role `patterns`: instances that take steps.
//!
//! Steps are pure, so it does not matter which instance takes one. A [`Rulebook`] (the rules of a set of keyspaces, opened)
//! keeps one instance for each core, each in a store of its own and behind a lock that is held for the microsecond of a
//! step; a caller takes whichever is free. An instance that traps or does not answer in time is dropped with its store,
//! and the step is asked once more of a new one. If that fails too, the caller has to do without.
//!
//! Two answers are had without asking: how a read starts that holds nothing is asked once, and what follows a look that found
//! a fresh copy was told with it. The contract has both ("What the host need not ask").
//!
//! A module that fails every step must not cost every operation two deadlines: after some failures in a row it is *rested*,
//! a second at first and then for twice as long each time, and every step fails at once meanwhile.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use wasmtime::{Store, component::ResourceAny};

use super::{
    Bounds, generated,
    generated_patterns::{PatternsModule, PatternsModulePre, exports::larder::policy::types},
    instance::{ANSWER, begin, contained, fault},
    limits::State,
    module,
};
use crate::{
    eviction::Fault,
    policy::{Description, PolicyError, Role, Value},
};

pub(crate) use super::generated_patterns::exports::larder::policy::patterns::{
    Abilities, Action, Answer, Dropping, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking,
    Mark, Marks, Moment, Operation, Outcome, Promotion, Saving, Scope, Serving, Target, Terms, Then, Traits, Turn,
    What,
};

/// The interfaces of the world `patterns-module`, each at the version that this host speaks.
pub(super) const INTERFACES: [&str; 2] = ["larder:policy/about@0.1.0", "larder:policy/patterns@0.1.0"];

/// So many steps in a row may fail before the module is rested.
const PATIENCE: u32 = 3;
/// How long it is rested at first, and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// A component of the world `patterns-module`, ready to be started.
pub(crate) struct CompiledPatterns {
    pre: PatternsModulePre<State>,
    declared: usize,
    description: Description,
    imports: Vec<String>,
}

impl CompiledPatterns {
    /// The module's card.
    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// What it imports, by the names of the interfaces.
    pub(crate) fn imports(&self) -> &[String] {
        &self.imports
    }

    /// A store with an instance in it.
    fn start(&self, bounds: Bounds) -> Result<(Store<State>, wasmtime::component::Instance), Fault> {
        let mut store = contained(self.pre.engine(), State::new(bounds, self.declared, None));
        let deadline = bounds.start_deadline(0);
        begin(&mut store, deadline, ANSWER);
        match self.pre.instance_pre().instantiate(&mut store) {
            Ok(instance) => Ok((store, instance)),
            Err(error) => Err(fault(&mut store, "start", deadline, &error)),
        }
    }

    /// Asks for the card. (The interface `about` is the same in every world.)
    fn describe(&self, bounds: Bounds) -> Result<Description, Fault> {
        let (mut store, instance) = self.start(bounds)?;
        let deadline = bounds.start_deadline(0);
        begin(&mut store, deadline, ANSWER);
        let card = generated::exports::larder::policy::about::GuestIndices::new(self.pre.instance_pre())
            .and_then(|indices| indices.load(&mut store, &instance))
            .and_then(|about| about.call_describe(&mut store));
        card.map(module::description).map_err(|error| fault(&mut store, "describe", deadline, &error))
    }
}

/// Compiles a module of the role `patterns` and reads its card; or finds it compiled, in this process or on disk.
///
/// # Errors
/// What is wrong with the file, or with the module's card.
pub(crate) fn compile(
    place: &str,
    bytes: &[u8],
    sha256: &[u8; 32],
    bounds: Bounds,
) -> Result<Arc<CompiledPatterns>, PolicyError> {
    static COMPILED: OnceLock<Mutex<HashMap<[u8; 32], Weak<CompiledPatterns>>>> = OnceLock::new();
    let known = COMPILED.get_or_init(Mutex::default);
    if let Some(compiled) = known.lock().get(sha256).and_then(Weak::upgrade) {
        return Ok(compiled);
    }
    let checked = module::check(place, bytes, sha256, &INTERFACES)?;
    let pre = PatternsModulePre::new(checked.pre.clone()).map_err(|error| module::wrong_types(place, &error))?;
    let mut compiled = CompiledPatterns {
        pre,
        declared: checked.declared,
        description: Description::default(),
        imports: checked.imports.clone(),
    };
    compiled.description =
        compiled.describe(bounds).map_err(|fault| PolicyError::Stopped { policy: place.into(), fault })?;
    module::plays(place, &compiled.description, Role::Patterns)?;
    checked.keep(sha256);
    let compiled = Arc::new(compiled);
    let mut known = known.lock();
    known.retain(|_, compiled| compiled.strong_count() > 0);
    known.insert(*sha256, Arc::downgrade(&compiled));
    Ok(compiled)
}

/// A keyspace as `open` is told of it; its parameters have been checked against the card.
#[derive(Clone, Debug)]
pub(crate) struct Keyspace {
    pub(crate) name: String,
    pub(crate) tiers: u8,
    pub(crate) shared: u8,
    pub(crate) abilities: Abilities,
    pub(crate) parameters: Vec<(String, Value)>,
}

/// What became of steps.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Steps that were asked for.
    pub(crate) steps: AtomicU64,
    /// Instances that were dropped.
    pub(crate) dropped: AtomicU64,
    /// Steps that nobody answered.
    pub(crate) failed: AtomicU64,
}

/// Rules that a module has taken.
pub(crate) struct Rulebook {
    compiled: Arc<CompiledPatterns>,
    bounds: Bounds,
    pub(crate) keyspaces: Vec<Keyspace>,
    workers: Box<[Mutex<Option<Worker>>]>,
    rest: Mutex<Rest>,
    tally: Arc<Tally>,
    /// How reads start that hold nothing: those that may load, and those that want only what is there.
    starts: [OnceLock<Answer>; 2],
}

/// Whether the module is rested.
#[derive(Default)]
struct Rest {
    failures: u32,
    until: Option<Instant>,
    last: Option<Fault>,
}

/// An instance with the rules open.
struct Worker {
    store: Store<State>,
    world: PatternsModule,
    rules: ResourceAny,
}

impl Rulebook {
    /// Opens rules.
    ///
    /// # Errors
    /// What the module refuses, or what stopped it.
    pub(crate) fn open(
        compiled: Arc<CompiledPatterns>,
        bounds: Bounds,
        keyspaces: Vec<Keyspace>,
        tally: Arc<Tally>,
    ) -> Result<Self, PolicyError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..cores).map(|_| Mutex::new(None)).collect();
        let starts = Default::default();
        let book = Rulebook { compiled, bounds, keyspaces, workers, rest: Mutex::default(), tally, starts };
        let first = book.hire()?;
        *book.workers[0].lock() = Some(first);
        Ok(book)
    }

    /// The module's card.
    pub(crate) fn description(&self) -> &Description {
        self.compiled.description()
    }

    /// A new instance that has taken the rules.
    fn hire(&self) -> Result<Worker, PolicyError> {
        let policy = &self.compiled.description.name;
        let stopped = |fault| PolicyError::Stopped { policy: policy.clone(), fault };
        let (mut store, instance) = self.compiled.start(self.bounds).map_err(stopped)?;
        let deadline = self.bounds.start_deadline(0);
        begin(&mut store, deadline, ANSWER);
        let keyspaces: Vec<_> = self.keyspaces.iter().map(lowered).collect();
        let opened = PatternsModule::new(&mut store, &instance)
            .and_then(|world| Ok((world.larder_policy_patterns().rules().call_open(&mut store, &keyspaces)?, world)));
        let (opened, world) = opened.map_err(|error| stopped(fault(&mut store, "open", deadline, &error)))?;
        match opened {
            Ok(rules) => Ok(Worker { store, world, rules }),
            Err(refusal) => Err(PolicyError::Refused {
                policy: policy.clone(),
                parameter: (!refusal.parameter.is_empty()).then_some(refusal.parameter),
                message: match refusal.keyspace.is_empty() {
                    true => refusal.message,
                    false => format!("{} (keyspace `{}`)", refusal.message, refusal.keyspace),
                },
            }),
        }
    }

    /// How a read starts that holds nothing, in the first keyspace.
    ///
    /// # Errors
    /// As [`Self::step`]; the next one asks again.
    pub(crate) fn start_of_read(&self, cached_only: bool) -> Result<Answer, Fault> {
        let known = &self.starts[usize::from(cached_only)];
        if let Some(answer) = known.get() {
            return Ok(*answer);
        }
        let traits = if cached_only { Traits::CACHED_ONLY } else { Traits::empty() };
        let operation = Operation {
            keyspace: 0,
            kind: Kind::Read,
            target: Target::Key,
            traits,
            cookie: 0,
            elapsed_ms: 0,
            held: None,
            brought: None,
        };
        let answer = self.step(Moment { now: 0, random: 0 }, operation, Event::Start)?;
        Ok(*known.get_or_init(|| answer))
    }

    /// What is next?
    ///
    /// # Errors
    /// Two instances were stopped, or the module is rested.
    pub(crate) fn step(&self, moment: Moment, operation: Operation, event: Event) -> Result<Answer, Fault> {
        self.ask("step", 1, |worker| {
            let patterns = worker.world.larder_policy_patterns();
            patterns.rules().call_step(&mut worker.store, worker.rules, moment, operation, event)
        })
    }

    /// What is next for each of many?
    ///
    /// # Errors
    /// As [`Self::step`], and where there are not as many answers as turns.
    pub(crate) fn step_many(&self, turns: &[Turn]) -> Result<Vec<Answer>, Fault> {
        let answers = self.ask("step-many", turns.len(), |worker| {
            let patterns = worker.world.larder_policy_patterns();
            patterns.rules().call_step_many(&mut worker.store, worker.rules, turns)
        })?;
        if answers.len() != turns.len() {
            let message = format!("{} answers for {} turns", answers.len(), turns.len());
            return Err(Fault::Trap { call: "step-many", message });
        }
        Ok(answers)
    }

    fn ask<T>(
        &self,
        call: &'static str,
        turns: usize,
        ask: impl Fn(&mut Worker) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        self.tally.steps.fetch_add(turns as u64, Ordering::Relaxed);
        self.check_rested().inspect_err(|_| {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        let mut seat = self.any_worker();
        let mut attempt = 0;
        loop {
            let outcome = match &mut *seat {
                Some(worker) => {
                    let deadline = self.bounds.deadline(turns, 0);
                    begin(&mut worker.store, deadline, ANSWER.max(turns.saturating_mul(512)));
                    ask(worker).map_err(|error| fault(&mut worker.store, call, deadline, &error))
                }
                None => match self.hire() {
                    Ok(worker) => {
                        *seat = Some(worker);
                        continue;
                    }
                    Err(PolicyError::Stopped { fault, .. }) => Err(fault),
                    Err(error) => Err(Fault::Trap { call: "open", message: error.to_string() }),
                },
            };
            match outcome {
                Ok(answer) => {
                    if attempt > 0 || self.rest_failures() > 0 {
                        *self.rest.lock() = Rest::default();
                    }
                    return Ok(answer);
                }
                Err(fault) => {
                    // Its store is freed with it.
                    *seat = None;
                    self.tally.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(module = self.description().name, %fault, "a patterns module was stopped");
                    attempt += 1;
                    if attempt == 2 {
                        drop(seat);
                        self.tally.failed.fetch_add(1, Ordering::Relaxed);
                        self.failed(fault.clone());
                        return Err(fault);
                    }
                }
            }
        }
    }

    /// An instance that nobody uses; or, if all are used, the one of this thread as soon as it is free.
    fn any_worker(&self) -> MutexGuard<'_, Option<Worker>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
        }
        let count = self.workers.len();
        let own = OWN.get() % count;
        let free = (0..count).find_map(|i| self.workers[(own + i) % count].try_lock());
        free.unwrap_or_else(|| self.workers[own].lock())
    }

    fn rest_failures(&self) -> u32 {
        self.rest.try_lock().map_or(0, |rest| rest.failures)
    }

    fn check_rested(&self) -> Result<(), Fault> {
        let rest = self.rest.lock();
        match (rest.until, &rest.last) {
            (Some(until), Some(last)) if Instant::now() < until => Err(last.clone()),
            _ => Ok(()),
        }
    }

    fn failed(&self, fault: Fault) {
        let mut rest = self.rest.lock();
        rest.failures += 1;
        if rest.failures >= PATIENCE {
            let span = REST.saturating_mul(1 << (rest.failures - PATIENCE).min(10)).min(LONGEST_REST);
            rest.until = Some(Instant::now() + span);
            tracing::error!(module = self.description().name, %fault, ?span, "a patterns module is rested");
        }
        rest.last = Some(fault);
    }
}

impl Promotion {
    /// The answer that it tells, to whoever found a copy of which these are the facts; `None`: it does not speak of such a copy.
    /// The guests' SDK has the same, by which its test kit holds modules to it.
    #[cfg_attr(not(feature = "testkit"), expect(unreachable_pub, reason = "public in `testkit::steps`"))]
    pub fn answer(&self, found: &Facts) -> Option<Answer> {
        if found.fresh_ms == 0 || found.early_us != 0 {
            return None;
        }
        let Facts { fresh_ms, stale_ms, rescue_ms, .. } = *found;
        let quiet_ms = fresh_ms.min(self.near_ms);
        let terms = Terms { fresh_ms, stale_ms, rescue_ms, near_ms: self.near_ms, quiet_ms, early_us: 0 };
        let keeping = Keeping { what: What::Held, tiers: self.tiers, terms, announce: false };
        let keep = (self.tiers != 0).then_some(keeping);
        let serving = Serving { what: What::Held, mark: Mark::Fresh, quiet_ms: 0, keep, then: Then::End };
        Some(Answer { cookie: 0, action: Action::Serve(serving) })
    }
}

impl std::fmt::Debug for Rulebook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rulebook").field("module", &self.description().name).finish_non_exhaustive()
    }
}

fn lowered(keyspace: &Keyspace) -> super::generated_patterns::exports::larder::policy::patterns::Keyspace {
    let parameters = keyspace.parameters.iter().map(|(name, value)| types::Parameter {
        name: name.clone(),
        value: match value {
            Value::Flag(yes) => types::Value::Flag(*yes),
            Value::Integer(n) => types::Value::Integer(*n),
            Value::Number(x) => types::Value::Number(*x),
            Value::Text(text) => types::Value::Text(text.clone()),
        },
    });
    super::generated_patterns::exports::larder::policy::patterns::Keyspace {
        name: keyspace.name.clone(),
        tiers: keyspace.tiers,
        shared: keyspace.shared,
        abilities: keyspace.abilities,
        parameters: parameters.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Patterns;

    fn book(parameters: &[(&str, Value)]) -> Result<Rulebook, PolicyError> {
        let module = Patterns::builtin().load()?;
        let parameters = parameters.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let abilities = Abilities::LOADS;
        let keyspace = Keyspace { name: "test".into(), tiers: 1, shared: 0, abilities, parameters };
        Rulebook::open(module.compiled.clone(), module.bounds, vec![keyspace], Arc::default())
    }

    fn start(kind: Kind) -> Turn {
        let operation = Operation {
            keyspace: 0,
            kind,
            target: Target::Key,
            traits: Traits::empty(),
            cookie: 0,
            elapsed_ms: 0,
            held: None,
            brought: None,
        };
        Turn { moment: Moment { now: 1, random: 7 }, operation, event: Event::Start }
    }

    #[test]
    fn the_built_in_component_takes_steps() {
        let book = book(&[("ttl-ms", 1_000.into())]).unwrap();
        let Turn { moment, operation, event } = start(Kind::Read);
        let one = book.step(moment, operation, event).unwrap();
        assert!(matches!(one.action, Action::Join(_)), "{one:?}");
        let turns = [start(Kind::Read), start(Kind::Invalidate), start(Kind::Read)];
        let many = book.step_many(&turns).unwrap();
        assert_eq!((&many[0], &many[2]), (&one, &one));
        assert!(matches!(many[1].action, Action::Drop(_)), "{many:?}");
        assert_eq!(book.tally.steps.load(Ordering::Relaxed), 4);
        assert_eq!(book.tally.dropped.load(Ordering::Relaxed), 0);

        // What it costs, for whoever looks (`--release -- --nocapture`).
        let began = Instant::now();
        for _ in 0..100_000 {
            book.step(moment, operation, event).unwrap();
        }
        let one = began.elapsed() / 100_000;
        let turns = vec![start(Kind::Read); 100];
        let began = Instant::now();
        for _ in 0..1_000 {
            book.step_many(&turns).unwrap();
        }
        println!("a step: {one:?}; one of a hundred: {:?}", began.elapsed() / 100_000);
    }

    #[test]
    fn a_refusal_names_the_parameter_and_the_keyspace() {
        let refused = book(&[("write", "write-behind".into())]).unwrap_err();
        let PolicyError::Refused { parameter, message, .. } = &refused else { panic!("{refused}") };
        assert_eq!(parameter.as_deref(), Some("write"));
        assert!(message.contains("keyspace `test`"), "{message}");
    }
}
