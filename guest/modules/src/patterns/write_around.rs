//! Write-around: to the source, past the tiers. For what is written often and read seldom.
//!
//! ```text
//!  start --> save --saved--> finish
//!             |
//!             +--save-failed--> fail
//! ```
//!
//! Old copies are served until their time is over: that is the pattern. Where they must not be, it is write-invalidate
//! that is wanted. A removal is carried out as there, whatever the rule: what was deleted should not live on.

use larder_guest::patterns::{Action, Answer, Event, Saving};

use super::Step;
use super::cookie::Stage;
use super::invalidation::forget;

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) => step.go(AroundSave, Action::Save(Saving { fence: 0, hard_ms: step.rules.save_ms })),
        (AroundSave, Event::Saved) => Action::Finish(None).end(),
        (AroundSave, Event::SaveFailed(failure)) => Action::Fail(failure).end(),
        _ => forget(step, None),
    }
}
