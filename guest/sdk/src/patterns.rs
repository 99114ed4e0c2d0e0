//! The role `patterns`: what one operation on a cache does next. The types are those of `wit/patterns.wit`, and so are
//! their docs.
//!
//! A module is two pure functions: one reads a rule, the other takes a step by it.
//!
//! ```
//! use larder_guest::patterns::{Action, Answer, Event, Facts, Failure, Keyspace, Mark, Patterns, Serving, Then, Turn, What};
//! use larder_guest::{About, Refusal};
//!
//! /// Reads what is in tier 0, and nothing else; takes every invalidation.
//! pub struct NearOnly;
//!
//! impl Patterns for NearOnly {
//!     const ABOUT: About = About::new("near-only", "0.1.0", "Reads what is in memory");
//!     type Rules = u8;
//!
//!     fn rules(keyspace: &Keyspace) -> Result<u8, Refusal> {
//!         if keyspace.tiers & 1 == 0 {
//!             return Err(Refusal::of("tiers", "has no tier 0: give the keyspace memory"));
//!         }
//!         Ok(keyspace.tiers)
//!     }
//!
//!     fn step(tiers: &u8, turn: &Turn) -> Answer {
//!         use larder_guest::patterns::{Dropping, Kind};
//!         let fresh = Serving { what: What::Held, mark: Mark::Fresh, quiet_ms: 0, keep: None, then: Then::End };
//!         match (turn.operation.kind, &turn.event, &turn.operation.held) {
//!             (Kind::Read, _, Some(Facts { fresh_ms: 1.., .. })) => Action::Serve(fresh).end(),
//!             (Kind::Read, ..) => Action::Miss.end(),
//!             (Kind::Invalidate, Event::Start, _) => {
//!                 Action::Drop(Dropping { tiers: *tiers, announce: true }).with(1)
//!             }
//!             (Kind::Invalidate | Kind::Refresh, ..) => Action::Finish(None).end(),
//!             _ => Action::Fail(Failure::Unsupported).end(),
//!         }
//!     }
//! }
//! larder_guest::export!(patterns NearOnly);
//! # fn main() {}
//! ```

mod glue;

pub use crate::bindings::exports::larder::policy::patterns::{
    Abilities, Action, Answer, Dropping, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking,
    Mark, Marks, Moment, Operation, Outcome, Promotion, Saving, Scope, Serving, Target, Terms, Then, Tier, Tiers,
    Traits, Turn, What,
};
#[doc(hidden)]
pub use glue::{Component, describe};
pub use glue::{Refused, Rulebook};

use alloc::string::String;

use crate::{About, Parameters, Refusal};

/// A duration without end.
pub const FOREVER: u64 = u64::MAX;

/// No operation takes more steps.
pub const MOST_STEPS: usize = 256;

/// A keyspace, with its parameters checked against the module's card.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// Its name, for messages.
    pub name: String,
    /// The tiers that it uses; never 0.
    pub tiers: Tiers,
    /// Those of them that other processes use, too.
    pub shared: Tiers,
    /// What the host has for it.
    pub abilities: Abilities,
    /// Its rule.
    pub parameters: Parameters,
}

/// The patterns by which operations run.
///
/// # The contract
///
/// 1. A step is pure: neither function keeps or reads anything but its arguments.
/// 2. Every operation ends, within [`MOST_STEPS`] steps, whatever the events are, and also where the rules change on the
///    way: a cookie is led to an end under any rules.
/// 3. An action suits the kind of operation, the event and the keyspace.
/// 4. What is served is there, and is what its mark says.
/// 5. A write or invalidation is acknowledged only when it is done: saved or logged, and old copies replaced, dropped
///    or owed.
/// 6. What was fenced is not kept after all.
/// 7. What is told beforehand is what is answered: how a read starts that holds nothing, at any moment; and what follows
///    a look with a [`Promotion`].
///
/// The [test kit](crate::testkit::patterns) checks all seven, and shrinks the operation that breaks one.
pub trait Patterns: Sized + 'static {
    /// The module's card.
    const ABOUT: About;

    /// The rule of a keyspace, ready for use.
    type Rules: 'static;

    /// Reads the rule of a keyspace.
    ///
    /// # Errors
    /// A [`Refusal`] that names the parameter and the remedy, where parameters contradict each other or the keyspace.
    /// Names, kinds and bounds have been checked against [`About`] already.
    fn rules(keyspace: &Keyspace) -> Result<Self::Rules, Refusal>;

    /// What is next?
    fn step(rules: &Self::Rules, turn: &Turn) -> Answer;
}

impl Action {
    /// The answer with this action, and the cookie for the step after it.
    pub fn with(self, cookie: u64) -> Answer {
        Answer { cookie, action: self }
    }

    /// The answer with this action, after which there is nothing to remember.
    pub fn end(self) -> Answer {
        self.with(0)
    }
}

impl Facts {
    /// Whether it is fresh.
    pub fn is_fresh(&self) -> bool {
        self.fresh_ms > 0
    }

    /// Whether it is not fresh and may be served all the same.
    pub fn may_be_stale(&self) -> bool {
        self.fresh_ms == 0 && self.stale_ms > 0
    }

    /// Whether it may be served where the source fails or is slow.
    pub fn may_rescue(&self) -> bool {
        self.fresh_ms > 0 || self.stale_ms > 0 || self.rescue_ms > 0
    }
}

impl Promotion {
    /// The answer that it tells, to whoever found a copy of which these are the facts; `None`: it does not speak of such a copy.
    pub fn answer(&self, found: &Facts) -> Option<Answer> {
        let speaks_of_it = found.fresh_ms > 0 && found.early_us == 0;
        let terms = Terms {
            fresh_ms: found.fresh_ms,
            stale_ms: found.stale_ms,
            rescue_ms: found.rescue_ms,
            near_ms: self.near_ms,
            quiet_ms: found.fresh_ms.min(self.near_ms),
            early_us: 0,
        };
        let keeping = Keeping { what: What::Held, tiers: self.tiers, terms, announce: false };
        let keep = (self.tiers != 0).then_some(keeping);
        let serving = Serving { what: What::Held, mark: Mark::Fresh, quiet_ms: 0, keep, then: Then::End };
        speaks_of_it.then(|| Action::Serve(serving).end())
    }
}

impl Terms {
    /// Terms that allow nothing: the tier forgets what it has.
    pub const NOTHING: Terms =
        Terms { fresh_ms: 0, stale_ms: 0, rescue_ms: 0, near_ms: FOREVER, quiet_ms: 0, early_us: 0 };

    /// Whether they allow nothing.
    pub fn allow_nothing(&self) -> bool {
        self.fresh_ms == 0 && self.stale_ms == 0 && self.rescue_ms == 0
    }
}

impl Outcome {
    /// All went well.
    pub const COMPLETE: Outcome = Outcome { fenced: 0, down: 0, declined: 0, unannounced: false };

    /// Whether something is owed: a tier or a process has not heard.
    pub fn is_owing(&self) -> bool {
        self.down != 0 || self.unannounced
    }
}

impl Failure {
    /// Whether what failed has surely not taken effect.
    pub fn is_certain(self) -> bool {
        matches!(self, Failure::Overloaded | Failure::Rejected | Failure::Unsupported)
    }
}
