//! From the component model to the two functions of a patterns module.

use alloc::{string::String, string::ToString, vec::Vec};

use super::{Abilities, Action, Answer, Failure, Keyspace, Patterns, Tiers, Turn};
use crate::bindings::exports::larder::policy::{about, patterns, types};
use crate::{Parameters, Refusal, Value};

/// A keyspace's rule that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The keyspace's name.
    pub keyspace: String,
    /// Why.
    pub refusal: Refusal,
}

/// The rules of a set of keyspaces: takes steps as a host asks for them.
///
/// This is what a component runs, and what a native host (a test, a benchmark, a simulator) runs without one.
#[derive(Debug)]
pub struct Rulebook<P: Patterns>(Vec<P::Rules>);

impl<P: Patterns> Rulebook<P> {
    /// `open` in `wit/patterns.wit`.
    ///
    /// # Errors
    /// The first keyspace that [`Patterns::rules`] refuses.
    pub fn open(keyspaces: &[Keyspace]) -> Result<Self, Refused> {
        let rules = keyspaces
            .iter()
            .map(|keyspace| P::rules(keyspace).map_err(|refusal| Refused { keyspace: keyspace.name.clone(), refusal }));
        rules.collect::<Result<_, _>>().map(Rulebook)
    }

    /// `step` in `wit/patterns.wit`. An operation on a keyspace that there is not fails.
    pub fn step(&self, turn: &Turn) -> Answer {
        match self.0.get(turn.operation.keyspace as usize) {
            Some(rules) => P::step(rules, turn),
            None => Action::Fail(Failure::Unsupported).end(),
        }
    }
}

impl Keyspace {
    /// A keyspace, with what the user set.
    ///
    /// # Errors
    /// As [`Parameters::of`], and where the tiers cannot be.
    pub fn new<P: Patterns>(
        name: &str,
        tiers: Tiers,
        shared: Tiers,
        abilities: Abilities,
        set: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Self, Refusal> {
        if tiers == 0 {
            return Err(Refusal::of("tiers", "there is none: give the keyspace at least one, such as memory"));
        }
        if shared & !tiers != 0 {
            return Err(Refusal::of("tiers", "shares tiers that it does not use: name them, or do not share them"));
        }
        let parameters = Parameters::of(&P::ABOUT, set)?;
        Ok(Keyspace { name: name.to_string(), tiers, shared, abilities, parameters })
    }
}

/// The resource `rules` of a component.
#[doc(hidden)]
pub struct Component<P: Patterns>(Rulebook<P>);

impl<P: Patterns> patterns::GuestRules for Component<P> {
    fn open(keyspaces: Vec<patterns::Keyspace>) -> Result<patterns::Rules, patterns::Refusal> {
        let refused = |Refused { keyspace, refusal }: Refused| patterns::Refusal {
            keyspace,
            parameter: refusal.parameter,
            message: refusal.message,
        };
        let keyspaces = keyspaces.into_iter().map(|keyspace| {
            let patterns::Keyspace { name, tiers, shared, abilities, parameters } = keyspace;
            let set = parameters.into_iter().map(|p| {
                let value = match p.value {
                    types::Value::Flag(yes) => Value::Flag(yes),
                    types::Value::Integer(n) => Value::Integer(n),
                    types::Value::Number(x) => Value::Number(x),
                    types::Value::Text(text) => Value::Text(text),
                };
                (p.name, value)
            });
            let read = Keyspace::new::<P>(&name, tiers, shared, abilities, set);
            read.map_err(|refusal| Refused { keyspace: name, refusal })
        });
        let keyspaces: Vec<Keyspace> = keyspaces.collect::<Result<_, _>>().map_err(refused)?;
        let rulebook = Rulebook::<P>::open(&keyspaces).map_err(refused)?;
        Ok(patterns::Rules::new(Component(rulebook)))
    }

    fn step(&self, moment: patterns::Moment, operation: patterns::Operation, event: patterns::Event) -> Answer {
        self.0.step(&Turn { moment, operation, event })
    }

    fn step_many(&self, turns: Vec<Turn>) -> Vec<Answer> {
        turns.iter().map(|turn| self.0.step(turn)).collect()
    }
}

/// The card of a module, as `about` exports it.
#[doc(hidden)]
pub fn describe<P: Patterns>() -> about::Description {
    crate::glue::description(&P::ABOUT, types::Role::Patterns)
}
