//! Refresh: load a key anew while nobody waits.
//!
//! ```text
//!  start --> look(1), look(2), ... --newer copy there--> keep it in the nearer tiers --> finish
//!                |
//!                v none
//!              join, without waiting --somebody leads--> finish
//!                |
//!             leading
//!                v
//!              load --loaded, unchanged--> keep in all tiers --> finish
//!               | ^
//!     load-failed |
//!               v |
//!              pause (retries); then finish: the old copy is what there is
//! ```
//!
//! Another process may have refreshed the key already: what it put into a shared tier is taken instead of a load. For a
//! copy that has ended, any fresh one will do. For one that is still fresh, the other must be less than half as old: the
//! very copy that is to be refreshed lies there, too.
//!
//! A refresh of a hot key on a schedule says when it wants to begin again.

use larder_guest::patterns::{Action, Answer, Event, Facts, Joining, Traits};

use super::cookie::{Memory, Stage};
use super::read_through::{keep_loaded, load, look_on, pause, promote, renew};
use super::{Step, freshness};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) => {
            let fresh = step.turn.operation.held.filter(Facts::is_fresh);
            let age_ms = fresh.map_or(0, |held| u32::try_from(held.age_ms).unwrap_or(u32::MAX).max(1));
            let step = Step { memory: Memory { age_ms, ..step.memory }, ..*step };
            look_on(&step).unwrap_or_else(|| join(&step))
        }
        (Look, Event::Found | Event::Absent | Event::TierDown) => {
            take_newer(step).or_else(|| look_on(step)).unwrap_or_else(|| join(step))
        }

        (Join, Event::Leading) => load(step),
        (Join, Event::Found) => take_newer(step).unwrap_or_else(|| finish(step)),

        (Load, Event::Loaded(incoming)) => match keep_loaded(step, &incoming) {
            Some(keeping) => step.go(Keep, Action::Keep(keeping)),
            None => finish(step),
        },
        (Load, Event::Unchanged(incoming)) => match renew(step, &incoming) {
            Some(keeping) => step.go(Keep, Action::Keep(keeping)),
            // Invalidated while the source was asked: there is nothing to renew.
            None => finish(step),
        },
        (Load, Event::LoadFailed(failure)) => pause(step, failure).unwrap_or_else(|| finish(step)),
        (Load, Event::StillLoading) | (Backoff, Event::Resumed) => load(step),

        _ => finish(step),
    }
}

/// Keeps a copy from a farther tier, if that is newer than what was to be refreshed.
fn take_newer(step: &Step<'_>) -> Option<Answer> {
    let held = step.turn.operation.held.filter(|held| held.is_fresh() && held.tier > 0)?;
    let was = step.memory.age_ms;
    let is_newer = was == 0 || held.age_ms < u64::from(was).saturating_add(step.turn.operation.elapsed_ms) / 2;
    let keeping = promote(step, &held).filter(|_| is_newer)?;
    Some(step.go(Stage::Keep, Action::Keep(keeping)))
}

fn join(step: &Step<'_>) -> Answer {
    match step.rules.flight {
        Some(scope) => step.go(Stage::Join, Action::Join(Joining { scope, wait_ms: 0 })),
        None => load(step),
    }
}

fn finish(step: &Step<'_>) -> Answer {
    let is_scheduled = step.turn.operation.traits.contains(Traits::SCHEDULED);
    let again = freshness::again(step.rules, step.turn.moment.random).filter(|_| is_scheduled);
    Action::Finish(again).end()
}
