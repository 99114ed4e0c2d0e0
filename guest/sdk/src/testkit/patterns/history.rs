//! Random operations.
//!
//! A history is a rule, an operation, and a row of numbers: each time the model of the host has to choose what happens, it
//! takes the next one. 0 always chooses what is plainest, and what is missing is 0; so any row is a history, and the
//! shorter and the smaller its numbers, the plainer what happens. (The idea is Hypothesis's.)

use core::fmt;

use super::super::history::Random;
use crate::patterns::{Abilities, Kind, Target, Tiers, Traits};
use crate::testkit::fingerprint;
use crate::{About, Value};

/// A text parameter, and what it may be.
pub type Text<'a> = (&'a str, &'a [&'a str]);

/// The rule of a keyspace, as a host hands it over.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its tiers.
    pub tiers: Tiers,
    /// Those that are shared.
    pub shared: Tiers,
    /// What the host has for it.
    pub abilities: Abilities,
    /// What is set.
    pub parameters: Vec<(String, Value)>,
}

/// An operation, and what happens to it.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The rule that it begins under.
    pub rule: Rule,
    /// After so many steps, the parameters are others.
    pub change: Option<(usize, Vec<(String, Value)>)>,
    /// What it is for.
    pub kind: Kind,
    /// What it speaks of.
    pub target: Target,
    /// More about it.
    pub traits: Traits,
    /// What happens, choice by choice.
    pub choices: Vec<u16>,
    /// When all is used up, the same happens again: luck that stays bad shows what never ends.
    pub repeats: bool,
}

impl History {
    /// The history of a seed, under a rule drawn from a card.
    pub fn random(seed: u64, about: &About, texts: &[Text<'_>]) -> Self {
        let mut random = Random(fingerprint(seed ^ 0x7061_7474_6572_6e73));
        let tiers = random.one_of(&[0b1, 0b11, 0b11, 0b10, 0b111, 0b101, 0b1000_0001]);
        let shared = tiers & random.one_of(&[0b1111_1110, 0b100, 0]);
        let abilities = match random.below(3) {
            0 => Abilities::from_bits_truncate(random.next() as u8),
            _ => Abilities::all(),
        };
        let kind = random.one_of(&[
            Kind::Read,
            Kind::Read,
            Kind::Read,
            Kind::Write,
            Kind::Write,
            Kind::Remove,
            Kind::Fill,
            Kind::Refresh,
            Kind::Invalidate,
            Kind::Flush,
        ]);
        let (mut target, mut traits) = (Target::Key, Traits::empty());
        match kind {
            Kind::Invalidate => {
                target = random.one_of(&[Target::Key, Target::Keys, Target::Prefix, Target::Tag, Target::All]);
                traits.set(Traits::SOFT, random.one_in(2));
                traits.set(Traits::HEARD, random.one_in(3));
            }
            Kind::Refresh => traits.set(Traits::SCHEDULED, random.one_in(2)),
            Kind::Read => traits.set(Traits::CACHED_ONLY, random.one_in(8)),
            _ => {}
        }
        let first = parameters(&mut random, about, texts);
        let change = random.one_in(8).then(|| (random.below(4) as usize + 1, parameters(&mut random, about, texts)));
        let length = random.magnitude(60);
        let choices = (0..length).map(|_| if random.one_in(3) { 0 } else { random.next() as u16 }).collect();
        History {
            rule: Rule { tiers, shared, abilities, parameters: first },
            change,
            kind,
            target,
            traits,
            choices,
            repeats: random.one_in(3),
        }
    }
}

/// Some of a card's parameters, each with a value within its bounds; often at a bound.
fn parameters(random: &mut Random, about: &About, texts: &[Text<'_>]) -> Vec<(String, Value)> {
    let mut set = Vec::new();
    // Few at a time: many at once contradict each other.
    let one_in = random.one_of(&[4, 8, 32]);
    for spec in about.parameters {
        let text = texts.iter().find(|(name, _)| *name == spec.name).map(|(_, choices)| *choices);
        if text.is_none() && !random.one_in(one_in) {
            continue;
        }
        let (least, most) = (spec.minimum.unwrap_or(-1e6), spec.maximum.unwrap_or(1e6));
        let value = match (&spec.default, text) {
            (Value::Text(_), Some(_)) if random.one_in(2) => continue,
            (Value::Text(_), Some(choices)) => Value::Text(random.one_of(choices).into()),
            (Value::Text(_), None) => continue,
            (Value::Flag(_), _) => Value::Flag(random.one_in(2)),
            (Value::Integer(_), _) => {
                let ordinary = (least as i64).saturating_add(random.magnitude(100_000) as i64 - 1);
                let bound = if random.one_in(2) { least } else { most };
                Value::Integer(if random.one_in(8) { bound as i64 } else { ordinary.min(most as i64) })
            }
            (Value::Number(_), _) => {
                let within = least + (most - least).min(2.0) * random.unit();
                Value::Number(random.one_of(&[within, within, within, least, most]))
            }
        };
        set.push((spec.name.to_string(), value));
    }
    set
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { tiers, shared, abilities, parameters } = &self.rule;
        write!(f, "{:?} of {:?}", self.kind, self.target)?;
        if !self.traits.is_empty() {
            write!(f, " {:?}", self.traits)?;
        }
        write!(f, " (tiers {tiers:#b}, shared {shared:#b}, {abilities:?}")?;
        parameters.iter().try_for_each(|(name, value)| write!(f, ", {name} = {value:?}"))?;
        if let Some((step, parameters)) = &self.change {
            write!(f, "; after {step} steps")?;
            parameters.iter().try_for_each(|(name, value)| write!(f, ", {name} = {value:?}"))?;
        }
        f.write_str(")")
    }
}
