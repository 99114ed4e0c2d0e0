//! Write, then invalidate: to the source; then the tiers forget, and the next read loads.
//!
//! ```text
//!  start --> save --saved--> drop in all tiers, announce --dropped--> finish
//!             |
//!             +--save-failed, surely not done--> fail
//!             +--save-failed, who knows--> drop --> fail
//! ```
//!
//! The order matters. To drop first and save then lets a read in between fill the old value in again, to stay; to save
//! first leaves only reads that began before the drop, and what those loaded is fenced by it.

use larder_guest::patterns::{Action, Answer, Event, Saving};

use super::Step;
use super::cookie::Stage;
use super::invalidation::forget;

/// The table; that of removals, too.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) => {
            step.go(InvalidateSave, Action::Save(Saving { fence: 0, hard_ms: step.rules.save_ms }))
        }
        (InvalidateSave, Event::Saved) => forget(step, None),
        (InvalidateSave, Event::SaveFailed(failure)) if failure.is_certain() => Action::Fail(failure).end(),
        (InvalidateSave, Event::SaveFailed(failure)) => forget(step, Some(failure)),
        _ => forget(step, None),
    }
}
