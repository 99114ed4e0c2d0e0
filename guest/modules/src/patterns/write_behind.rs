//! Write-behind: to the journal and the tiers at once, to the source later.
//!
//! ```text
//!  write:  start --> log --logged--> keep in all tiers, announce --kept--> finish
//!                     |                                     |
//!                     |                                     +--fenced--> drop --> finish
//!                     +--log-failed, surely not done--> fail
//!                     +--log-failed, who knows--> drop --> fail
//!
//!  remove: start --> log --logged--> drop, announce --> finish
//!
//!  flush:  start --> save --saved--> keep in the shared tiers, announce --> finish
//!                    | ^         |                         |
//!                    | |         +--a removal: drop        +--fenced: drop --> finish
//!          save-failed |
//!                    v |
//!                   pause; after five attempts: fail (it stays in the journal)
//!                    |
//!                    +--rejected--> bury --> drop, announce --> finish
//! ```
//!
//! What is in the journal is what a load of the key brings (the host sees to that), so this process reads what it wrote.
//! Another process may have loaded the old value from the source meanwhile, and put it into a shared tier: a flush
//! therefore keeps the value there again, and has the others drop theirs. Where that is fenced, an invalidation may
//! have come before the save, and what another process loaded in between may be on its way to the tier: it is fenced,
//! too, by a drop. A write that the source will never take is buried, and copies of it go.

use larder_guest::patterns::{Action, Answer, Event, Failure, Kind, Saving};

use super::cookie::{Memory, Stage};
use super::invalidation::forget;
use super::write_through::{after_keeping, keep_brought};
use super::{Step, freshness, invalidation};

/// How often one flush tries.
const MOST_ATTEMPTS: u8 = 5;

/// The table of writes and removals.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    let removes = step.turn.operation.kind == Kind::Remove;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) => {
            let fence = if removes { 0 } else { step.rules.tiers };
            step.go(BehindLog, Action::Log(Saving { fence, hard_ms: step.rules.log_ms }))
        }
        (BehindLog, Event::Logged) if removes => forget(step, None),
        (BehindLog, Event::Logged) => keep_brought(step, BehindKeep, step.rules.tiers),
        (BehindLog, Event::LogFailed(failure)) if failure.is_certain() => Action::Fail(failure).end(),
        (BehindLog, Event::LogFailed(failure)) => forget(step, Some(failure)),
        (BehindKeep, Event::Kept(outcome)) => after_keeping(step, &outcome),
        _ => forget(step, None),
    }
}

/// The table of flushes.
pub fn flush(step: &Step<'_>) -> Answer {
    use Stage::*;
    let removes = step.turn.operation.brought.is_none();
    let shared = step.rules.shared;
    let save =
        |step: &Step<'_>| step.go(FlushSave, Action::Save(Saving { fence: shared, hard_ms: step.rules.save_ms }));
    match (step.memory.stage, step.turn.event) {
        (Start | FlushBackoff, _) if !step.rules.saves => Action::Fail(Failure::Unsupported).end(),
        (Start, Event::Start) | (FlushBackoff, Event::Resumed) => save(step),
        (FlushSave, Event::Saved) if shared == 0 => Action::Finish(None).end(),
        (FlushSave, Event::Saved) if removes => forget(step, None),
        (FlushSave, Event::Saved) => keep_brought(step, FlushKeep, shared),
        (FlushSave, Event::SaveFailed(Failure::Rejected)) => step.go(FlushBury, Action::Bury),
        (FlushSave, Event::SaveFailed(failure)) if step.memory.attempts + 1 >= MOST_ATTEMPTS => {
            Action::Fail(failure).end()
        }
        (FlushSave, Event::SaveFailed(_)) => {
            let wait = freshness::backoff(step.rules, step.memory.attempts, step.turn.moment.random);
            let memory = Memory { attempts: step.memory.attempts + 1, ..step.memory };
            Step { memory, ..*step }.go(FlushBackoff, Action::Pause(wait))
        }
        (FlushKeep, Event::Kept(outcome)) => after_keeping(step, &outcome),
        (FlushBury, Event::Buried) => forget(step, None),
        (Forget, _) => invalidation::step(step),
        _ => Action::Fail(Failure::Unsupported).end(),
    }
}
