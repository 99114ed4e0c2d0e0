//! The textbook's caching patterns, as transition tables: one file a pattern, with its picture.
//!
//! | | |
//! |---|---|
//! | reads | [`cache_aside`], [`read_through`], [`refresh_ahead`] |
//! | writes | [`write_through`], [`write_behind`], [`write_around`], [`write_invalidate`], [`put`] |
//! | besides | [`fill`], [`refresh`], [`invalidation`] |
//!
//! [`rules`] reads a keyspace's rule, [`freshness`] says how long a copy is good for, [`cookie`] is what an operation
//! remembers. A table is a `match` over the stage that an operation is in and what has just happened; what a row
//! answers is the action and the next stage. Where no row fits (the rules changed while the operation was under way, or
//! the host is mistaken) a table falls back to what is safe: a read loads for itself, a write drops what may be old.
//!
//! Stages belong to tables and not to rules, so that an operation which began under one rule is finished by the table
//! that it began in.

pub mod cache_aside;
pub mod cookie;
pub mod fill;
pub mod freshness;
pub mod invalidation;
pub mod put;
pub mod read_through;
pub mod refresh;
pub mod refresh_ahead;
pub mod rules;
pub mod write_around;
pub mod write_behind;
pub mod write_invalidate;
pub mod write_through;

use larder_guest::patterns::{Action, Answer, Failure, Keyspace, Kind, Patterns, Turn};
use larder_guest::{About, Refusal};

use cookie::{Memory, Stage};
use rules::{Reading, Rules, Writing};

/// The built-in module `patterns`.
#[derive(Debug)]
pub struct Textbook;

impl Patterns for Textbook {
    const ABOUT: About = About::new(
        "patterns",
        env!("CARGO_PKG_VERSION"),
        "Cache-aside, read-through, refresh-ahead; write-through, -behind, -around, -invalidate; exact XFetch (PVLDB 15)",
    )
    .with_parameters(rules::PARAMETERS);

    type Rules = Rules;

    fn rules(keyspace: &Keyspace) -> Result<Rules, Refusal> {
        Rules::read(keyspace)
    }

    fn step(rules: &Rules, turn: &Turn) -> Answer {
        let Some(memory) = Memory::of(turn.operation.cookie) else {
            // Not a cookie of ours.
            return Action::Fail(Failure::Unsupported).end();
        };
        let step = Step { rules, turn, memory };
        match turn.operation.kind {
            Kind::Read => match rules.read {
                Reading::CacheAside => cache_aside::step(&step),
                Reading::ReadThrough => read_through::step(&step),
                Reading::RefreshAhead => refresh_ahead::step(&step),
            },
            Kind::Write | Kind::Remove => write(&step),
            Kind::Fill => fill::step(&step),
            Kind::Refresh => refresh::step(&step),
            Kind::Invalidate => invalidation::step(&step),
            Kind::Flush => write_behind::flush(&step),
        }
    }
}

/// Writes and removals: the stage says which table; at the start the rule does.
fn write(step: &Step<'_>) -> Answer {
    let removes = step.turn.operation.kind == Kind::Remove;
    match (step.memory.stage, step.rules.write) {
        (Stage::ThroughSave | Stage::ThroughKeep, _) => write_through::step(step),
        (Stage::BehindLog | Stage::BehindKeep, _) => write_behind::step(step),
        (Stage::AroundSave, _) => write_around::step(step),
        (Stage::InvalidateSave, _) => write_invalidate::step(step),
        (Stage::PutKeep, _) => put::step(step),
        (Stage::Start, Writing::Behind) => write_behind::step(step),
        (Stage::Start, Writing::Put) => put::step(step),
        // What is deleted leaves the tiers at once, whatever becomes of what is written.
        (Stage::Start, _) if removes => write_invalidate::step(step),
        (Stage::Start, Writing::Through) => write_through::step(step),
        (Stage::Start, Writing::Around) => write_around::step(step),
        (Stage::Start, Writing::Invalidate) => write_invalidate::step(step),
        _ => invalidation::step(step),
    }
}

/// What a table has before it.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The keyspace's rule.
    pub rules: &'a Rules,
    /// The operation, the event and the moment.
    pub turn: &'a Turn,
    /// What the operation remembers.
    pub memory: Memory,
}

impl Step<'_> {
    /// This action, and then that stage; the rest of the memory stays.
    fn go(&self, stage: Stage, action: Action) -> Answer {
        action.with(Memory { stage, ..self.memory }.cookie())
    }
}

#[cfg(test)]
mod tests;
