//! Setting a [`Tiered`] up.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::board::Board;
use super::codec::Codec;
use super::driver::About;
use super::flusher;
use super::gate::{Gate, GateLimits, Gated};
use super::host::{Far, Inner, Limits, shared_of};
use super::journal::{Journal, JournalError};
use super::near::{Key, Near, Seat};
use super::stats::Counters;
use super::{Bus, Group, Listener, Source, Tier, Tiered};
use crate::cache::Weigher;
use crate::engine::steps::{self, Abilities, Keyspace, Rulebook};
use crate::patterns::{Patterns, PatternsModule};
use crate::{BuildError, Builder, Clock, Policy, PolicyError, Value, control, policy};

/// Why rules were not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The module does not take them so: the error names the parameter and the remedy.
    #[error("the rule of keyspace `{keyspace}`: {source}")]
    Refused {
        /// The keyspace.
        keyspace: String,
        /// What is wrong.
        source: Box<PolicyError>,
    },
    /// The module could not be loaded.
    #[error(transparent)]
    Module(Box<PolicyError>),
}

/// Why a cache of tiers could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TieredBuildError {
    /// Tier 0 could not be built.
    #[error(transparent)]
    Near(Box<BuildError>),
    /// The module or its rules are at fault.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// There is a far tier or a journal, and nobody knows how values become bytes.
    #[error("a far tier or a journal keeps bytes: call `codec`, with `Codec::json()` for instance")]
    NoCodec,
    /// The journal cannot be had.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What a journal has is flushed by tasks, and so is dropped what a disk tier may have missed.
    #[error("a journal and a disk tier beside a bus need tasks: call `build` within a tokio runtime")]
    NoRuntime,
    /// More tiers than have a number.
    #[error("{0} far tiers: there are at most 7")]
    TooManyTiers(usize),
    /// Something that was set up for a cache of one tier, and that a rule says otherwise.
    #[error("`{0}` is not for keyspaces: their rule says how long copies live (`ttl-ms`, `near-ttl-ms`); leave it out")]
    NotForKeyspaces(&'static str),
    /// The name would be mistaken for another's in shared tiers.
    #[error("the keyspace's name `{0}` holds a colon, which ends names in shared tiers: leave it out")]
    BadName(String),
}

/// Sets a [`Tiered`] up. From [`Tiered::builder`].
#[must_use]
pub struct TieredBuilder<K, V> {
    name: String,
    near: Builder<K, V>,
    #[allow(clippy::type_complexity)]
    weigher: Option<Box<dyn Fn(&K, Option<&V>) -> u32 + Send + Sync>>,
    patterns: Patterns,
    rules: Vec<(String, Value)>,
    far: Vec<Arc<dyn Tier>>,
    source: Option<Arc<dyn Source<K, V>>>,
    bus: Option<Arc<dyn Bus>>,
    journal: Option<Journal>,
    codec: Option<Codec<V>>,
    limits: Limits,
    seed: Option<u64>,
    kinds: PhantomData<fn() -> K>,
}

impl<K, V> std::fmt::Debug for TieredBuilder<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TieredBuilder").field("keyspace", &self.name).finish_non_exhaustive()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> TieredBuilder<K, V> {
    pub(crate) fn of(name: String, near: Builder<K, V>) -> Self {
        let rules = near.live_for().map(|time| ("ttl-ms".into(), time.into())).into_iter().collect();
        TieredBuilder {
            name,
            near,
            weigher: None,
            patterns: Patterns::default(),
            rules,
            far: Vec::new(),
            source: None,
            bus: None,
            journal: None,
            codec: None,
            limits: Limits {
                tier: Duration::from_secs(1),
                load: Duration::from_secs(30),
                save: Duration::from_secs(30),
                refreshes: 1_000,
                tier_gate: GateLimits::default(),
                source_gate: GateLimits::default(),
            },
            seed: None,
            kinds: PhantomData,
        }
    }

    /// The keyspace's name: in messages, before keys in shared tiers, and on the bus.
    pub fn keyspace(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The weight that the copies in tier 0 may have together: see [`Builder::max_capacity`](crate::Builder::max_capacity).
    pub fn max_capacity(mut self, capacity: u64) -> Self {
        self.near = self.near.max_capacity(capacity);
        self
    }

    /// What a copy weighs in tier 0; there is no value where it says that the source has no such key.
    pub fn weigher(mut self, weigher: impl Fn(&K, Option<&V>) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// Who decides what leaves tier 0.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.near = self.near.policy(policy);
        self
    }

    /// Who decides what an operation does next; the built-in module if nothing is said.
    pub fn patterns(mut self, patterns: Patterns) -> Self {
        self.patterns = patterns;
        self
    }

    /// Sets a parameter of the rule. The module's card lists them: [`PatternsModule::description`]. A [`Duration`] is
    /// milliseconds.
    pub fn rule(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let (name, value) = (name.into(), value.into());
        match self.rules.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.rules.push((name, value)),
        }
        self
    }

    /// A tier behind those that there are, shared with other processes or this one's own: see [`Tier::is_shared`].
    pub fn far(mut self, tier: impl Tier) -> Self {
        self.far.push(Arc::new(tier));
        self
    }

    /// Where values come from.
    pub fn source(mut self, source: impl Source<K, V>) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// By which other processes hear of invalidations.
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Where writes are kept that are saved later, for the rule `write = write-behind`. The writes of this keyspace that it
    /// has from before are flushed at once.
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// How values become bytes for far tiers and the journal, and become values again.
    pub fn codec(mut self, codec: Codec<V>) -> Self {
        self.codec = Some(codec);
        self
    }

    /// How long a far tier or the bus may take to answer, 1 s if nothing is said.
    pub fn tier_timeout(mut self, limit: Duration) -> Self {
        self.limits.tier = limit;
        self
    }

    /// How long a load may take at most, whatever the rule says; 30 s if nothing is said.
    pub fn load_timeout(mut self, limit: Duration) -> Self {
        self.limits.load = limit;
        self
    }

    /// The same for saving.
    pub fn save_timeout(mut self, limit: Duration) -> Self {
        self.limits.save = limit;
        self
    }

    /// How many refreshes may run in the background at once, 1,000 if nothing is said. What is over is left to a later
    /// read.
    pub fn max_refreshes(mut self, refreshes: usize) -> Self {
        self.limits.refreshes = refreshes;
        self
    }

    /// How much goes to each far tier at once, and when it is left alone: [`GateLimits`].
    pub fn tier_limits(mut self, limits: GateLimits) -> Self {
        self.limits.tier_gate = limits;
        self
    }

    /// The same for the source.
    pub fn source_limits(mut self, limits: GateLimits) -> Self {
        self.limits.source_gate = limits;
        self
    }

    /// The seed of what is drawn, for a test that repeats itself.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Loads the modules, has the rules checked, and builds the cache.
    ///
    /// # Errors
    /// [`TieredBuildError`], which says what to change.
    pub fn build(self) -> Result<Tiered<K, V>, TieredBuildError> {
        if self.name.contains(':') {
            return Err(TieredBuildError::BadName(self.name));
        }
        if (!self.far.is_empty() || self.journal.is_some()) && self.codec.is_none() {
            return Err(TieredBuildError::NoCodec);
        }
        // What was announced while this process was not there is not known.
        let distrusts = self.bus.is_some() && self.far.iter().any(|tier| !tier.is_shared());
        if (self.journal.is_some() || distrusts) && tokio::runtime::Handle::try_current().is_err() {
            return Err(TieredBuildError::NoRuntime);
        }
        if self.far.len() > 7 {
            return Err(TieredBuildError::TooManyTiers(self.far.len()));
        }
        let tiers = tiers_of(self.far.len());
        let source = self.source.as_ref();
        let given = [
            (Abilities::LOADS, source.is_some_and(|source| source.loads())),
            (Abilities::SAVES, source.is_some_and(|source| source.saves())),
            (Abilities::LOGS, self.journal.is_some()),
            (Abilities::ANNOUNCES, self.bus.is_some()),
            (Abilities::LEASES, self.far.iter().any(|tier| tier.leases())),
        ];
        let keyspace = Keyspace {
            name: self.name.clone(),
            tiers,
            shared: shared_of(self.far.iter()),
            abilities: all_of(&given),
            parameters: Vec::new(),
        };
        let module = self.patterns.load().map_err(|error| RuleError::Module(Box::new(error)))?;
        let tally = Arc::new(steps::Tally::default());
        let book = open(&module, keyspace, &self.rules, tally.clone())?;

        let clock = Clock::tokio();
        let mut near = self.near.name(self.name.clone());
        if let Some(seed) = self.seed {
            near = near.seed(seed);
        }
        let weigher: Option<Weigher<K, Seat<V>>> = match (self.weigher, near.take_weigher()) {
            (Some(weigher), _) => Some(Arc::new(move |key, seat| weigher(key, seat.value()))),
            (None, Some(weigher)) => {
                Some(Arc::new(move |key, seat| seat.value().map_or(1, |value| weigher(key, value))))
            }
            (None, None) => None,
        };
        let near = near.near(weigher, Seat::into_value, clock.clone()).map_err(TieredBuildError::NotForKeyspaces)?;
        let near = Near::new(near.build().map_err(|error| TieredBuildError::Near(Box::new(error)))?, clock);
        let chance = || RandomState::new().hash_one(&self.name);
        let (seed, holders, process) = (self.seed.unwrap_or_else(chance), chance(), chance());
        let source_gate = Arc::new(Gate::new("source".into(), self.limits.source_gate));
        let name: Arc<str> = self.name.into();
        let (part, recovered) = match self.journal.map(|journal| journal.attach(&name)).transpose()? {
            Some((part, recovered)) => (Some(part), recovered),
            None => (None, BTreeSet::new()),
        };
        let inner = Arc::new_cyclic(|me: &Weak<Inner<K, V>>| Inner {
            name,
            near,
            far: self.far.into_iter().zip(1..).map(|(tier, at)| Far::new(at, tier, self.limits.tier_gate)).collect(),
            source: self.source.map(|source| Arc::new(Gated { source, gate: source_gate.clone() }) as Arc<_>),
            source_gate,
            bus: self.bus,
            journal: part,
            codec: self.codec,
            board: Arc::new(Board::new()),
            refreshing: Mutex::new(HashSet::new()),
            book: RwLock::new(Arc::new(book)),
            rules: Mutex::new((module, self.rules)),
            limits: self.limits,
            tally: Counters::default(),
            steps: tally,
            random: AtomicU64::new(seed),
            holders: AtomicU64::new(holders),
            process,
            news_owed: Mutex::default(),
            catching_up: AtomicBool::new(false),
            me: me.clone(),
        });
        if let Some(bus) = &inner.bus {
            let listener: Arc<dyn Listener> = inner.clone();
            bus.join(Arc::downgrade(&listener));
        }
        control::watch(Arc::downgrade(&inner) as Weak<_>);
        flusher::start(&inner, &recovered);
        if distrusts {
            inner.distrust(&About::Group(Group::Prefix("".into())));
        }
        Ok(Tiered { inner })
    }
}

/// Has a module look at a rule.
#[cfg(feature = "config")]
pub(crate) fn check_rule(
    module: &PatternsModule,
    keyspace: &str,
    (far, shared): (usize, u8),
    given: &[(Abilities, bool)],
    rules: &[(String, Value)],
) -> Result<(), RuleError> {
    let tiers = tiers_of(far);
    let keyspace = Keyspace { name: keyspace.into(), tiers, shared, abilities: all_of(given), parameters: Vec::new() };
    open(module, keyspace, rules, Arc::default()).map(drop)
}

/// Tier 0, and so many behind it, as a set.
fn tiers_of(far: usize) -> u8 {
    ((1u16 << (far + 1)) - 1) as u8
}

fn all_of(given: &[(Abilities, bool)]) -> Abilities {
    given.iter().filter(|(_, is_given)| *is_given).fold(Abilities::empty(), |all, (one, _)| all | *one)
}

/// Has a module take a rule.
pub(super) fn open(
    module: &PatternsModule,
    mut keyspace: Keyspace,
    rules: &[(String, Value)],
    tally: Arc<steps::Tally>,
) -> Result<Rulebook, RuleError> {
    let name = keyspace.name.clone();
    let refused = |source| RuleError::Refused { keyspace: name.clone(), source: Box::new(source) };
    keyspace.parameters = policy::checked(module.description(), rules).map_err(refused)?;
    Rulebook::open(module.compiled.clone(), module.bounds, vec![keyspace], tally).map_err(refused)
}
