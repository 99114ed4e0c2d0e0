//! Fill: the caller brings what a read missed (see `cache_aside.rs`).
//!
//! ```text
//!  start --> keep in all tiers --kept--> finish
//! ```
//!
//! A fill that was fenced is not kept, and that is no error: the next read misses again.

use larder_guest::patterns::{Action, Answer, Event, Keeping, What};

use super::cookie::Stage;
use super::{Step, freshness};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    match (step.memory.stage, step.turn.event, step.turn.operation.brought) {
        (Stage::Start, Event::Start, Some(incoming)) => {
            let terms = freshness::of_incoming(step.rules, &incoming, step.turn.moment.random);
            let keeping = Keeping { what: What::Brought, tiers: step.rules.tiers, terms, announce: false };
            step.go(Stage::Keep, Action::Keep(keeping))
        }
        _ => Action::Finish(None).end(),
    }
}
