//! The steps of a patterns module, one by one, as a keyspace's driver takes them: the same instances, limits and calls, and
//! nothing carried out. For who replays recorded decisions; a cache that runs by them is [`Tiered`](crate::Tiered).
//!
//! ```
//! use larder::Patterns;
//! use larder::tiered::testkit::steps::{
//!     Abilities, Action, Event, Keyspace, Kind, Moment, Operation, Rulebook, Target, Traits, Turn,
//! };
//!
//! let keyspace = Keyspace {
//!     name: "products".into(),
//!     tiers: 0b11,
//!     shared: 0b10,
//!     abilities: Abilities::LOADS,
//!     parameters: vec![("ttl-ms".into(), 60_000.into())],
//! };
//! let rules = Rulebook::open(&Patterns::builtin().load()?, vec![keyspace])?;
//! let operation = Operation {
//!     keyspace: 0,
//!     kind: Kind::Read,
//!     target: Target::Key,
//!     traits: Traits::empty(),
//!     cookie: 0,
//!     elapsed_ms: 0,
//!     held: None,
//!     brought: None,
//! };
//! let answer = rules.step(&Turn { moment: Moment { now: 0, random: 7 }, operation, event: Event::Start })?;
//! assert!(matches!(answer.action, Action::Look(looking) if looking.tier == 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

pub use crate::engine::generated_patterns::exports::larder::policy::patterns::{
    Abilities, Action, Answer, Dropping, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking,
    Mark, Marks, Moment, Operation, Outcome, Promotion, Saving, Scope, Serving, Target, Terms, Then, Traits, Turn,
    What,
};
use crate::{PatternsModule, PolicyError, Value, engine::steps, eviction::Fault, policy};

/// A keyspace and its rule, as a module is told of them.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// Its name, for messages.
    pub name: String,
    /// The tiers that it uses: bit `i` is tier `i`.
    pub tiers: u8,
    /// Those of them that other processes use, too.
    pub shared: u8,
    /// What the host has for it.
    pub abilities: Abilities,
    /// Its rule.
    pub parameters: Vec<(String, Value)>,
}

/// The rules of a set of keyspaces, which a module has taken.
#[derive(Debug)]
pub struct Rulebook(steps::Rulebook);

impl Rulebook {
    /// Opens rules.
    ///
    /// # Errors
    /// A parameter that the card does not list or whose value is out of bounds; what the module refuses; what stopped it.
    pub fn open(module: &PatternsModule, keyspaces: Vec<Keyspace>) -> Result<Self, PolicyError> {
        let keyspaces = keyspaces.into_iter().map(|Keyspace { name, tiers, shared, abilities, parameters }| {
            let parameters = policy::checked(module.description(), &parameters)?;
            Ok(steps::Keyspace { name, tiers, shared, abilities, parameters })
        });
        let keyspaces = keyspaces.collect::<Result<_, _>>()?;
        steps::Rulebook::open(module.compiled.clone(), module.bounds, keyspaces, Arc::default()).map(Rulebook)
    }

    /// What is next?
    ///
    /// # Errors
    /// Two instances were stopped, or the module is rested after failures in a row.
    pub fn step(&self, turn: &Turn) -> Result<Answer, Fault> {
        self.0.step(turn.moment, turn.operation, turn.event)
    }

    /// What is next for each of many?
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_many(&self, turns: &[Turn]) -> Result<Vec<Answer>, Fault> {
        self.0.step_many(turns)
    }
}
