//! Put: to the tiers only. The application saves for itself, or there is nothing to save to.
//!
//! ```text
//!  write:  start --> keep in all tiers, announce --kept--> finish
//!                                            |
//!                                            +--fenced--> drop --> finish
//!
//!  remove: start --> drop in all tiers, announce --> finish
//! ```

use larder_guest::patterns::{Answer, Event, Kind};

use super::Step;
use super::cookie::Stage;
use super::invalidation::forget;
use super::write_through::{after_keeping, keep_brought};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) if step.turn.operation.kind == Kind::Remove => forget(step, None),
        (Start, Event::Start) => keep_brought(step, PutKeep, step.rules.tiers),
        (PutKeep, Event::Kept(outcome)) => after_keeping(step, &outcome),
        _ => forget(step, None),
    }
}
