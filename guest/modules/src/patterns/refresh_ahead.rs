//! Refresh-ahead: read-through, but a copy that is read is loaded anew before it ends, so that readers of busy keys never
//! wait.
//!
//! ```text
//!            fresh, not due
//!          +---------------> serve
//!  start   |
//!  found --+---------------> serve, then refresh         (see refresh.rs)
//!          | fresh, due
//!          +---------------> as read-through
//!            anything else
//! ```
//!
//! Due is a copy of which a share of its time has passed (`eager`), or by chance, the more likely the nearer its end is
//! and the longer its load took (`beta`: XFetch). See [`freshness`]. Hot keys that are named are refreshed on a schedule,
//! read or not.

use larder_guest::patterns::{Action, Answer, Event, Mark, Serving, Then, Traits};

use super::cookie::Stage;
use super::{Step, freshness, read_through};

/// The table: one row before those of read-through.
pub fn step(step: &Step<'_>) -> Answer {
    let may_load = !step.turn.operation.traits.contains(Traits::CACHED_ONLY);
    match (step.memory.stage, step.turn.event, step.turn.operation.held) {
        (Stage::Start, Event::Start, Some(held)) | (Stage::Look, Event::Found, Some(held))
            if may_load && held.is_fresh() && freshness::is_due(step.rules, &held, step.turn.moment.random) =>
        {
            let serving = read_through::serve_held(step, &held, Mark::Fresh);
            Action::Serve(Serving { quiet_ms: step.rules.throttle_ms, then: Then::Refresh, ..serving }).end()
        }
        _ => read_through::step(step),
    }
}
