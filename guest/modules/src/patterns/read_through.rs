//! Read-through: the cache loads what is missing.
//!
//! ```text
//!  start                    stale within stale-while-revalidate: serve(stale), then refresh
//!    |                      fresh: serve, and keep in the nearer tiers
//!    v                        ^
//!  look(0) --absent--> look(1) --absent, down--> ... --no tier left--> join
//!    ^                                                                  |
//!    +--- the host has done this one              leading: lead --------+---- landed: serve
//!                                                   v                   |
//!          +------------------------------------- load                  +---- leader-lost: join again, twice
//!          |                 |              |       ^                   |
//!       loaded         still-loading   load-failed  |                   +---- waited, load-failed:
//!       unchanged            |              |       |                           serve(rescued) if there is an old copy,
//!          |                 v              +-> pause (retries)                 else load alone, or fail
//!          v          serve(rescued)        |
//!   serve, and keep   and go on: loaded,    +-> serve(rescued), else fail
//!   in all tiers      keep in all tiers
//! ```
//!
//! What a look is to lead to, where it finds a fresh copy, is told with it: the host need not ask (`promote` in
//! `wit/patterns.wit`).
//!
//! A read that leads serves before it keeps in shared tiers: nobody waits for them. What it loaded is not kept if the key
//! was invalidated meanwhile (the host fences it), but the read itself began before that, and gets it.

use larder_guest::patterns::{
    Action, Answer, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking, Mark, Marks, Promotion,
    Serving, Then, Traits, What,
};

use super::cookie::{Memory, Stage};
use super::{Step, freshness};

/// After so many leaders were lost, a read loads for itself.
const MOST_REJOINS: u8 = 2;

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) | (Look, Event::Found | Event::Absent | Event::TierDown) => {
            answer_of_held(step).unwrap_or_else(|| next_look(step))
        }

        (Join, Event::Leading) => load(step),
        (Join, Event::Landed) => serve_loaded(None).end(),
        (Join, Event::Found) => answer_of_held(step).unwrap_or_else(|| load(step)),
        (Join, Event::LeaderLost) if step.memory.rejoined < MOST_REJOINS => {
            let memory = Memory { rejoined: step.memory.rejoined + 1, ..step.memory };
            join(&Step { memory, ..*step })
        }
        (Join, Event::LeaderLost | Event::Waited) => rescue(step, Then::End).unwrap_or_else(|| load(step)),
        (Join, Event::LoadFailed(failure)) => rescue(step, Then::End).unwrap_or(Action::Fail(failure).end()),

        (Load, Event::Loaded(incoming)) => serve_loaded(keep_loaded(step, &incoming)).end(),
        (Load, Event::Unchanged(incoming)) if step.turn.operation.held.is_some() => {
            serve_renewed(step, &incoming).end()
        }
        (Load, Event::StillLoading) => rescue(step, Then::GoOn).unwrap_or_else(|| load(step)),
        (Load, Event::LoadFailed(failure)) => {
            rescue(step, Then::End).or_else(|| pause(step, failure)).unwrap_or(Action::Fail(failure).end())
        }
        (Backoff, Event::Resumed) => load(step),

        // The caller has been served.
        (LateLoad, Event::Loaded(incoming)) => keep_and_finish(step, keep_loaded(step, &incoming)),
        (LateLoad, Event::Unchanged(incoming)) => keep_and_finish(step, renew(step, &incoming)),
        (LateLoad | Keep, _) => Action::Finish(None).end(),

        _ => load(step),
    }
}

/// What is held, if it may be served as things are.
pub(super) fn answer_of_held(step: &Step<'_>) -> Option<Answer> {
    let held = step.turn.operation.held?;
    if held.is_fresh() {
        return Some(Action::Serve(serve_held(step, &held, Mark::Fresh)).end());
    }
    let serving =
        Serving { quiet_ms: step.rules.throttle_ms, then: Then::Refresh, ..serve_held(step, &held, Mark::Stale) };
    let may_load = step.rules.loads && !step.turn.operation.traits.contains(Traits::CACHED_ONLY);
    let then = if may_load { Then::Refresh } else { Then::End };
    held.may_be_stale().then(|| Action::Serve(Serving { then, ..serving }).end())
}

/// Serves the copy that is held, and keeps it in the tiers that are nearer.
pub(super) fn serve_held(step: &Step<'_>, held: &Facts, mark: Mark) -> Serving {
    Serving { what: What::Held, mark, quiet_ms: 0, keep: promote(step, held), then: Then::End }
}

/// Keeps a copy from a farther tier in the nearer ones.
pub(super) fn promote(step: &Step<'_>, held: &Facts) -> Option<Keeping> {
    let tiers = step.rules.nearer_than(held.tier);
    let terms = freshness::of_copy(step.rules, held);
    (tiers != 0).then_some(Keeping { what: What::Held, tiers, terms, announce: false })
}

/// Looks into the next tier, or loads if there is none.
fn next_look(step: &Step<'_>) -> Answer {
    look_on(step).unwrap_or_else(|| {
        if step.turn.operation.traits.contains(Traits::CACHED_ONLY) {
            return Action::Miss.end();
        }
        join(step)
    })
}

/// Looks into the next tier, if there is one. The host has looked into tier 0 already.
pub(super) fn look_on(step: &Step<'_>) -> Option<Answer> {
    let before = if step.memory.stage == Stage::Start { 0 } else { step.memory.tier };
    let tier = step.rules.tier_after(Some(before))?;
    let memory = Memory { tier, ..step.memory };
    let looking = Looking { tier, promote: promotion(step, tier) };
    Some(Step { memory, ..*step }.go(Stage::Look, Action::Look(looking)))
}

/// What a read does with a fresh copy that it finds there, if that does not depend on when: then it need not ask again.
fn promotion(step: &Step<'_>, tier: u8) -> Option<Promotion> {
    let is_plain = step.turn.operation.kind == Kind::Read && step.rules.eager == 0.0;
    is_plain.then(|| Promotion { tiers: step.rules.nearer_than(tier), near_ms: step.rules.near_ms })
}

/// Leads or waits; loads at once where each loads for itself.
fn join(step: &Step<'_>) -> Answer {
    let Some(scope) = step.rules.flight else { return load(step) };
    // Who has an old copy waits no longer than for a load of its own. All waits together are no longer than the limit.
    let most = if step.rules.soft_ms > 0 && can_rescue(step) { step.rules.soft_ms } else { step.rules.wait_ms };
    let wait_ms = most.saturating_sub(step.turn.operation.elapsed_ms);
    step.go(Stage::Join, Action::Join(Joining { scope, wait_ms }))
}

/// Asks the source: whether the old copy is still right, where that can be asked.
pub(super) fn load(step: &Step<'_>) -> Answer {
    if !step.rules.loads {
        return if step.turn.operation.kind == Kind::Read { Action::Miss.end() } else { Action::Finish(None).end() };
    }
    let conditional = step.turn.operation.held.is_some_and(|held| held.marks.contains(Marks::VALIDATOR));
    // After the soft time-out, the same load is waited for; there is no second one.
    let is_over = step.turn.event == Event::StillLoading;
    let soft_ms = if can_rescue(step) && !is_over { step.rules.soft_ms } else { 0 };
    let loading = Loading { soft_ms, hard_ms: step.rules.hard_ms, conditional: conditional && !is_over };
    step.go(Stage::Load, Action::Load(loading))
}

/// Waits, and then loads again, if that may help and has not been done too often.
pub(super) fn pause(step: &Step<'_>, failure: Failure) -> Option<Answer> {
    let may_help = matches!(failure, Failure::TimedOut | Failure::Unavailable);
    if !may_help || step.memory.attempts >= step.rules.retries {
        return None;
    }
    let wait = freshness::backoff(step.rules, step.memory.attempts, step.turn.moment.random);
    let memory = Memory { attempts: step.memory.attempts + 1, ..step.memory };
    Some(Step { memory, ..*step }.go(Stage::Backoff, Action::Pause(wait)))
}

fn can_rescue(step: &Step<'_>) -> bool {
    step.turn.operation.held.is_some_and(|held| held.may_rescue())
}

/// An old copy rather than an error, or than a long wait. It is quiet for a while, so that not everyone tries at once
/// what has just failed.
fn rescue(step: &Step<'_>, then: Then) -> Option<Answer> {
    let held = step.turn.operation.held.filter(Facts::may_rescue)?;
    // What landed in a tier in the meantime may be better than old.
    let mark = if held.is_fresh() { Mark::Fresh } else { Mark::Rescued };
    let serving = Serving { quiet_ms: step.rules.throttle_ms, then, ..serve_held(step, &held, mark) };
    let stage = if then == Then::GoOn { Stage::LateLoad } else { Stage::Start };
    Some(step.go(stage, Action::Serve(serving)))
}

fn serve_loaded(keep: Option<Keeping>) -> Action {
    Action::Serve(Serving { what: What::Loaded, mark: Mark::Fresh, quiet_ms: 0, keep, then: Then::End })
}

/// Keeps what was loaded in all tiers. What is not to be kept makes them forget the copy that it takes the place of.
pub(super) fn keep_loaded(step: &Step<'_>, incoming: &Incoming) -> Option<Keeping> {
    let terms = freshness::of_incoming(step.rules, incoming, step.turn.moment.random);
    let is_needed = !terms.allow_nothing() || step.turn.operation.held.is_some();
    is_needed.then_some(Keeping { what: What::Loaded, tiers: step.rules.tiers, terms, announce: false })
}

/// Gives the copy that is held new terms.
pub(super) fn renew(step: &Step<'_>, incoming: &Incoming) -> Option<Keeping> {
    let held = step.turn.operation.held?;
    let negative = held.marks.contains(Marks::NEGATIVE);
    let incoming = Incoming { negative, ..*incoming };
    let terms = freshness::of_incoming(step.rules, &incoming, step.turn.moment.random);
    Some(Keeping { what: What::Held, tiers: step.rules.tiers, terms, announce: false })
}

/// The copy that is held is right: the source has just said so.
fn serve_renewed(step: &Step<'_>, incoming: &Incoming) -> Action {
    let keep = renew(step, incoming);
    Action::Serve(Serving { what: What::Held, mark: Mark::Fresh, quiet_ms: 0, keep, then: Then::End })
}

/// For operations that nobody waits for.
pub(super) fn keep_and_finish(step: &Step<'_>, keep: Option<Keeping>) -> Answer {
    match keep {
        Some(keeping) => step.go(Stage::Keep, Action::Keep(keeping)),
        None => Action::Finish(None).end(),
    }
}
