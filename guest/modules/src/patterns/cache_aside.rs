//! Cache-aside: the application asks the cache, loads for itself what is missing, and fills it in.
//!
//! ```text
//!  start                  fresh: serve, and keep in the nearer tiers
//!    |                      ^
//!    v                      |
//!  look(0) --absent--> look(1) --absent, down--> ... --no tier left--> join
//!                                                                       |
//!                                   leading: miss: the caller loads, <--+--> landed: serve
//!                                   and fills; see fill.rs              +--> waited, leader-lost: miss
//! ```
//!
//! The flight is what keeps a thousand readers of a missing key from loading it a thousand times: one is told of the
//! miss, and the others wait for its fill. Where the copy is stale and may be served so (`stale-while-revalidate-ms`),
//! nobody waits: one reader is told of a miss, the others get the stale copy. (So do memcached's `W` and `Z`.)

use larder_guest::patterns::{Action, Answer, Event, Facts, Joining, Mark, Serving, Traits};

use super::cookie::Stage;
use super::read_through::{look_on, serve_held};
use super::{Step, read_through};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) | (Look, Event::Found | Event::Absent | Event::TierDown) => {
            match step.turn.operation.held {
                Some(held) if held.is_fresh() => Action::Serve(serve_held(step, &held, Mark::Fresh)).end(),
                _ => look_on(step).unwrap_or_else(|| join(step)),
            }
        }
        (Join, Event::Landed) => read_through::step(step),
        (Join, Event::Found | Event::Waited | Event::LeaderLost | Event::LoadFailed(_)) => servable(step),
        (Join, _) => Action::Miss.end(),
        // Begun under another rule.
        _ => read_through::step(step),
    }
}

/// One reader is to load. Who has a stale copy does not wait to see who.
fn join(step: &Step<'_>) -> Answer {
    let cached_only = step.turn.operation.traits.contains(Traits::CACHED_ONLY);
    match step.rules.flight {
        Some(scope) if !cached_only => {
            let stale = step.turn.operation.held.is_some_and(|held| held.may_be_stale());
            let wait_ms = if stale { 0 } else { step.rules.wait_ms.saturating_sub(step.turn.operation.elapsed_ms) };
            step.go(Stage::Join, Action::Join(Joining { scope, wait_ms }))
        }
        _ => servable(step),
    }
}

/// What is held, if it may be served; else a miss.
fn servable(step: &Step<'_>) -> Answer {
    let serve = |held: &Facts, mark| {
        let quiet_ms = if mark == Mark::Stale { step.rules.throttle_ms } else { 0 };
        Action::Serve(Serving { quiet_ms, ..serve_held(step, held, mark) }).end()
    };
    match step.turn.operation.held {
        Some(held) if held.is_fresh() => serve(&held, Mark::Fresh),
        Some(held) if held.may_be_stale() => serve(&held, Mark::Stale),
        _ => Action::Miss.end(),
    }
}
