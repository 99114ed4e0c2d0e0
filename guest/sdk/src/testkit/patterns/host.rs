//! The contract as an oracle: a model of the host that carries out what a module answers, and holds each answer against
//! what the contract allows.

use core::fmt;

use super::history::{History, Rule};
use super::{Closed, Open, Subject};
use crate::patterns::{
    Abilities, Action, Answer, Event, FOREVER, Facts, Failure, Incoming, Keeping, Kind, Looking, MOST_STEPS, Mark,
    Marks, Moment, Operation, Outcome, Promotion, Scope, Then, Tier, Tiers, Traits, Turn, What,
};
use crate::testkit::fingerprint;

/// The clauses of the contract that the kit checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// Every call is answered.
    Answers,
    /// Two instances answer alike.
    Pure,
    /// An operation ends.
    Ends,
    /// An action suits the kind of operation, the event and the keyspace.
    Suits,
    /// What is served is there, and is what its mark says.
    ServesTruly,
    /// Terms do not contradict themselves.
    Terms,
    /// What is acknowledged is done.
    AcknowledgesTruly,
    /// What was fenced is not kept after all.
    RespectsFences,
    /// What is told beforehand is what is answered.
    Foretells,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Clause::Answers => "a module answers every call",
            Clause::Pure => "a step is pure: any instance gives the same answer",
            Clause::Ends => "an operation ends, within 256 steps",
            Clause::Suits => "an action suits the kind of operation, the event and the keyspace",
            Clause::ServesTruly => "what is served is there, and is what its mark says",
            Clause::Terms => "terms do not contradict themselves",
            Clause::AcknowledgesTruly => "what is acknowledged is done",
            Clause::RespectsFences => "what was fenced is not kept after all",
            Clause::Foretells => "what is told beforehand is what is answered",
        })
    }
}

/// A clause that was broken, before anybody knows how plain an operation shows it.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) clause: Clause,
    pub(super) message: String,
    pub(super) transcript: Vec<String>,
}

type Check = Result<(), (Clause, String)>;

fn ensure(holds: bool, clause: Clause, message: impl Into<String>) -> Check {
    if holds { Ok(()) } else { Err((clause, message.into())) }
}

/// Runs an operation; how many steps it took, `None` if its rule was refused.
pub(super) fn run(history: &History, open: &mut Open<'_>) -> Result<Option<usize>, Broken> {
    let mut transcript = Vec::new();
    run_to_end(history, open, &mut transcript).map_err(|(clause, message)| Broken { clause, message, transcript })
}

fn run_to_end(
    history: &History,
    open: &mut Open<'_>,
    transcript: &mut Vec<String>,
) -> Result<Option<usize>, (Clause, String)> {
    let mut rule = history.rule.clone();
    let mut host = Host::new(history);
    let mut event = Event::Start;
    for step in 0..MOST_STEPS {
        if let Some((at, parameters)) = &history.change
            && *at == step
        {
            let changed = Rule { parameters: parameters.clone(), ..rule.clone() };
            // New rules that are refused leave the old ones in force.
            if open_one(&changed, open)?.is_some() {
                rule = changed;
                // It was told of the old ones.
                host.promotion = None;
            }
        }
        let turn = host.turn(event);
        // Each step by new instances: whatever one might keep to itself is gone.
        let (Some(mut one), Some(mut other)) = (open_one(&rule, open)?, open_one(&rule, open)?) else {
            return if step == 0 {
                Ok(None)
            } else {
                Err((Clause::Pure, "it refuses a rule that it took before".into()))
            };
        };
        let answer = one.step(&turn).map_err(|why| (Clause::Answers, why))?;
        let again = other.step(&turn).map_err(|why| (Clause::Answers, why))?;
        transcript.push(format!("{event:?}, held {} -> {:?}", show(&turn.operation.held), answer.action));
        let pure = format!("it answered {answer:?}, and another instance {again:?}");
        ensure(answer == again, Clause::Pure, pure)?;
        if event == Event::Start && history.kind == Kind::Read && turn.operation.held.is_none() {
            let moment = Moment { now: turn.moment.now / 2 + 1, random: !turn.moment.random };
            let again = other.step(&Turn { moment, ..turn }).map_err(|why| (Clause::Answers, why))?;
            let differs =
                format!("a read that holds nothing started with {answer:?}, and at another moment with {again:?}");
            ensure(answer == again, Clause::Foretells, differs)?;
        }
        if let Some(told) = host.foretold(&event) {
            let differs = format!("it told beforehand {told:?}, and answered {:?}", answer.action);
            ensure(answer.action == told, Clause::Foretells, differs)?;
        }
        match host.carry_out(&answer, &event)? {
            Some(next) => event = next,
            None => return Ok(Some(step + 1)),
        }
    }
    Err((Clause::Ends, format!("it goes on after {MOST_STEPS} steps")))
}

fn open_one(rule: &Rule, open: &mut Open<'_>) -> Result<Option<Box<dyn Subject>>, (Clause, String)> {
    match open(rule) {
        Ok(subject) => Ok(Some(subject)),
        Err(Closed::Refused(_)) => Ok(None),
        Err(Closed::Broken(why)) => Err((Clause::Answers, why)),
    }
}

fn show(held: &Option<Facts>) -> String {
    let Some(held) = held else { return "nothing".into() };
    let Facts { tier, age_ms, fresh_ms, stale_ms, rescue_ms, .. } = held;
    format!("tier {tier} age {age_ms} fresh {fresh_ms} stale {stale_ms} rescue {rescue_ms}")
}

/// What the model knows of the operation.
struct Host<'a> {
    history: &'a History,
    taken: usize,
    now: u64,
    started: u64,
    cookie: u64,
    held: Option<Facts>,
    brought: Option<Incoming>,
    /// A load or a leader has brought a value.
    loaded: bool,
    /// A load is under way; `still-loading` was told.
    loading: bool,
    /// `unchanged` was the last event.
    renewed: bool,
    /// Something was amiss that allows a rescue.
    trouble: bool,
    served: bool,
    saved: bool,
    logged: bool,
    buried: bool,
    save_failed: bool,
    /// Tiers that keep what was brought.
    kept: Tiers,
    /// Tiers that dropped what they had (or owe it), and that expired it.
    dropped: Tiers,
    expired: Tiers,
    announced: bool,
    /// Tiers where what was brought, loaded or held was fenced.
    fenced: Tiers,
    /// What the last look was told with, and where that was.
    promotion: Option<(Tier, Promotion)>,
}

impl<'a> Host<'a> {
    fn new(history: &'a History) -> Self {
        let mut host = Host {
            history,
            taken: 0,
            now: 1_000_000,
            started: 1_000_000,
            cookie: 0,
            held: None,
            brought: None,
            loaded: false,
            loading: false,
            renewed: false,
            trouble: false,
            served: false,
            saved: false,
            logged: false,
            buried: false,
            save_failed: false,
            kept: 0,
            dropped: 0,
            expired: 0,
            announced: false,
            fenced: 0,
            promotion: None,
        };
        let near = history.rule.tiers & 1 != 0 && history.kind != Kind::Invalidate;
        if near && host.choose(2) == 1 {
            host.held = Some(host.facts(0)).filter(Facts::may_rescue);
        }
        if matches!(history.kind, Kind::Write | Kind::Fill) || history.kind == Kind::Flush && host.choose(4) > 0 {
            host.brought = Some(host.incoming());
        }
        host
    }

    /// A number below `n`.
    fn choose(&mut self, n: usize) -> usize {
        let History { choices, repeats, .. } = self.history;
        let at = if *repeats { self.taken % choices.len().max(1) } else { self.taken };
        let choice = choices.get(at).copied().unwrap_or(0);
        self.taken += 1;
        usize::from(choice) % n
    }

    fn duration(&mut self) -> u64 {
        const EDGES: [u64; 7] = [0, 1, 100, 10_000, 100_000, u64::MAX - 1, FOREVER];
        match EDGES.get(self.choose(12)) {
            Some(&edge) => edge,
            // Any below a million; the smaller the choice, the smaller.
            None => {
                let most = 1 << self.choose(20);
                fingerprint(self.choose(1 << 16) as u64) % most + 1
            }
        }
    }

    fn facts(&mut self, tier: u8) -> Facts {
        // Half of them have ended, and half of those are for need only: that is where modules go wrong.
        let ended = self.choose(4);
        let mut unless = |is_over| if is_over { 0 } else { self.duration() };
        let (fresh_ms, stale_ms) = (unless(ended >= 2), unless(ended == 3));
        Facts {
            tier,
            fresh_ms,
            age_ms: self.duration(),
            stale_ms,
            rescue_ms: self.duration(),
            early_us: self.duration(),
            cost_us: self.duration(),
            size: 100,
            marks: Marks::from_bits_truncate(self.choose(4) as u8),
        }
    }

    fn incoming(&mut self) -> Incoming {
        let said = |host: &mut Self| (host.choose(3) == 1).then(|| host.duration());
        Incoming {
            cost_us: self.duration(),
            size: 100,
            negative: self.choose(4) == 1,
            fresh_ms: said(self),
            stale_ms: said(self),
            rescue_ms: said(self),
        }
    }

    fn failure(&mut self) -> Failure {
        [Failure::TimedOut, Failure::Unavailable, Failure::Overloaded, Failure::Rejected][self.choose(4)]
    }

    /// The next turn. Time passes; now and then the key is invalidated meanwhile.
    fn turn(&mut self, event: Event) -> Turn {
        let elapsed = [0, 1, 1_000, 100_000][self.choose(4)];
        self.now += elapsed;
        if self.choose(16) == 1 {
            self.held = None;
        }
        self.held = self.held.map(|held| aged(held, elapsed)).filter(Facts::may_rescue);
        let random = match self.choose(4) {
            0 => 0,
            1 => u64::MAX,
            _ => fingerprint(self.choose(1 << 16) as u64),
        };
        Turn {
            moment: Moment { now: self.now, random },
            operation: Operation {
                keyspace: 0,
                kind: self.history.kind,
                target: self.history.target,
                traits: self.history.traits,
                cookie: self.cookie,
                elapsed_ms: self.now - self.started,
                held: self.held,
                brought: self.brought,
            },
            event,
        }
    }

    /// What was to be answered to this event, if that was told.
    fn foretold(&self, event: &Event) -> Option<Action> {
        let (tier, promotion) = self.promotion?;
        let held = self.held.filter(|held| *event == Event::Found && held.tier == tier)?;
        promotion.answer(&held).map(|answer| answer.action)
    }

    /// Carries an answer out: what comes of it, or `None` where the operation is at its end.
    fn carry_out(&mut self, answer: &Answer, after: &Event) -> Result<Option<Event>, (Clause, String)> {
        use Kind::{Fill, Flush, Invalidate, Read, Refresh, Remove, Write};
        self.cookie = answer.cookie;
        self.promotion = None;
        self.renewed = matches!(after, Event::Unchanged(_));
        let kind = self.history.kind;
        let Rule { tiers, abilities, .. } = self.history.rule;
        let can = |ability| abilities.contains(ability);
        let suits = |holds, what: &str| ensure(holds, Clause::Suits, what);
        let is_one_of = |kinds: &[Kind]| {
            let holds = kinds.contains(&kind);
            ensure(holds, Clause::Suits, format!("that is not for an operation of the kind {kind:?}"))
        };
        let inside = |wanted: Tiers| {
            suits(wanted != 0 && wanted & !tiers == 0, "it names tiers that the keyspace does not have, or none")
        };
        if self.loading && !matches!(answer.action, Action::Load(_) | Action::Serve(_)) {
            suits(*after != Event::StillLoading, "a load is under way: wait on, or serve")?;
        }
        match answer.action {
            Action::Look(Looking { tier, promote }) => {
                is_one_of(&[Read, Refresh])?;
                inside(1u8.checked_shl(tier.into()).unwrap_or(0))?;
                suits(promote.is_none() || kind == Read, "only what a read finds is served")?;
                self.promotion = promote.map(|promotion| (tier, promotion));
                Ok(Some(match self.choose(3) {
                    0 => Event::Absent,
                    1 => Event::TierDown,
                    _ => match Some(self.facts(tier)).filter(Facts::may_rescue) {
                        Some(found) => {
                            self.held = Some(self.held.map_or(found, |held| better(held, found)));
                            Event::Found
                        }
                        None => Event::Absent,
                    },
                }))
            }
            Action::Join(joining) => {
                is_one_of(&[Read, Refresh])?;
                suits(
                    !self.history.traits.contains(Traits::CACHED_ONLY),
                    "the caller wants no load, and none to wait for",
                )?;
                let fleet = joining.scope == Scope::Fleet;
                suits(!fleet || can(Abilities::LEASES), "there are no leases")?;
                Ok(Some(match self.choose(6) {
                    0 => Event::Leading,
                    1 => {
                        self.loaded = true;
                        Event::Landed
                    }
                    // Before it led, the host looked once more: into tier 0, or where the lease is.
                    2 if !fleet || tiers & !1 != 0 => {
                        let near = if fleet { 1 } else { 0 };
                        let found = Facts { fresh_ms: 10_000, ..self.facts((tiers & !near).trailing_zeros() as u8) };
                        self.held = Some(self.held.map_or(found, |held| better(held, found)));
                        Event::Found
                    }
                    3 => self.amiss(Event::Waited),
                    4 => self.amiss(Event::LeaderLost),
                    _ => {
                        let failure = self.failure();
                        self.amiss(Event::LoadFailed(failure))
                    }
                }))
            }
            Action::Load(loading) => {
                is_one_of(&[Read, Refresh])?;
                suits(can(Abilities::LOADS), "there is no source")?;
                suits(!self.history.traits.contains(Traits::CACHED_ONLY), "the caller wants no load")?;
                if !self.loading {
                    let validator = self.held.is_some_and(|held| held.marks.contains(Marks::VALIDATOR));
                    suits(!loading.conditional || validator, "there is no copy with a validator to ask about")?;
                }
                Ok(Some(self.load_goes_on(loading.soft_ms > 0, loading.conditional)))
            }
            Action::Keep(keeping) => {
                is_one_of(&[Read, Write, Fill, Refresh, Flush])?;
                suits(kind != Read || self.served, "a caller waits: serve, and keep besides")?;
                self.check_keeping(&keeping)?;
                let outcome = self.outcome(keeping.tiers, keeping.announce);
                if keeping.what == What::Brought {
                    self.kept |= keeping.tiers & !outcome.fenced;
                    self.dropped &= !keeping.tiers;
                }
                self.fenced |= outcome.fenced;
                self.announced |= keeping.announce;
                Ok(Some(Event::Kept(outcome)))
            }
            Action::Save(saving) => {
                is_one_of(&[Write, Remove, Flush])?;
                suits(can(Abilities::SAVES), "there is no source to save to")?;
                suits(saving.fence & !tiers == 0, "it fences tiers that the keyspace does not have")?;
                suits(!self.saved, "it has been saved")?;
                if self.choose(3) == 1 {
                    self.save_failed = true;
                    return Ok(Some(Event::SaveFailed(self.failure())));
                }
                self.saved = true;
                Ok(Some(Event::Saved))
            }
            Action::Log(saving) => {
                is_one_of(&[Write, Remove])?;
                suits(can(Abilities::LOGS), "there is no journal")?;
                suits(saving.fence & !tiers == 0, "it fences tiers that the keyspace does not have")?;
                suits(!self.logged && !self.saved, "it has been logged or saved")?;
                if self.choose(3) == 1 {
                    return Ok(Some(Event::LogFailed(self.failure())));
                }
                self.logged = true;
                Ok(Some(Event::Logged))
            }
            Action::Drop(dropping) | Action::Expire(dropping) => {
                is_one_of(&[Write, Remove, Invalidate, Flush])?;
                inside(dropping.tiers)?;
                suits(!dropping.announce || can(Abilities::ANNOUNCES), "there is no bus")?;
                let heard = self.history.traits.contains(Traits::HEARD);
                suits(!dropping.announce || !heard, "what was heard is not announced again")?;
                if matches!(answer.action, Action::Drop(_)) {
                    self.dropped |= dropping.tiers;
                    self.kept &= !dropping.tiers;
                    self.fenced &= !dropping.tiers;
                    self.held = None;
                } else {
                    self.expired |= dropping.tiers;
                }
                self.announced |= dropping.announce;
                let outcome = Outcome { fenced: 0, declined: 0, ..self.outcome(dropping.tiers, dropping.announce) };
                Ok(Some(Event::Dropped(outcome)))
            }
            Action::Pause(ms) => {
                suits(ms < FOREVER, "it would never resume")?;
                self.now = self.now.saturating_add(ms.min(1 << 40));
                Ok(Some(Event::Resumed))
            }
            Action::Bury => {
                is_one_of(&[Flush])?;
                suits(self.save_failed && !self.saved, "nothing has failed that it could bury")?;
                self.buried = true;
                Ok(Some(Event::Buried))
            }
            Action::Serve(serving) => {
                is_one_of(&[Read])?;
                suits(!self.served, "the caller has been served")?;
                self.check_serving(serving.what, serving.mark)?;
                if let Some(keeping) = &serving.keep {
                    self.check_keeping(keeping)?;
                }
                match serving.then {
                    Then::End => Ok(None),
                    Then::Refresh => suits(can(Abilities::LOADS), "there is no source to refresh from").map(|()| None),
                    Then::GoOn => {
                        suits(*after == Event::StillLoading, "nothing is under way that could go on")?;
                        self.served = true;
                        Ok(Some(self.load_goes_on(false, true)))
                    }
                }
            }
            Action::Miss => {
                is_one_of(&[Read])?;
                suits(!self.served, "the caller has been served").map(|()| None)
            }
            Action::Finish(again) => {
                suits(kind != Read || self.served, "a read ends with what its caller gets")?;
                let scheduled = self.history.traits.contains(Traits::SCHEDULED);
                suits(again.is_none() || scheduled, "only a scheduled refresh begins again")?;
                suits(again != Some(0), "it would begin again at once")?;
                self.check_acknowledgement().map(|()| None)
            }
            Action::Fail(_) => {
                suits(kind != Refresh, "nobody waits for a refresh: it ends with `finish`")?;
                suits(!self.served, "the caller has been served").map(|()| None)
            }
        }
    }

    fn amiss(&mut self, event: Event) -> Event {
        self.trouble = true;
        event
    }

    /// What a load comes to.
    fn load_goes_on(&mut self, soft: bool, conditional: bool) -> Event {
        match self.choose(4) {
            1 if soft => {
                self.loading = true;
                self.amiss(Event::StillLoading)
            }
            2 if conditional && self.held.is_some() => {
                self.loading = false;
                Event::Unchanged(Incoming { negative: false, ..self.incoming() })
            }
            3 => {
                self.loading = false;
                let failure = self.failure();
                self.amiss(Event::LoadFailed(failure))
            }
            _ => {
                (self.loading, self.loaded) = (false, true);
                Event::Loaded(self.incoming())
            }
        }
    }

    fn outcome(&mut self, tiers: Tiers, announces: bool) -> Outcome {
        if self.choose(2) == 0 {
            return Outcome::COMPLETE;
        }
        let some = |host: &mut Self| tiers & [0, 1, 2, 3, 0xff][host.choose(5)];
        let fenced = some(self);
        let down = some(self) & !fenced;
        let declined = some(self) & !fenced & !down;
        Outcome { fenced, down, declined, unannounced: announces && self.choose(2) == 1 }
    }

    fn check_serving(&self, what: What, mark: Mark) -> Check {
        let true_of = |holds, message: &str| ensure(holds, Clause::ServesTruly, message);
        match what {
            What::Brought => true_of(false, "a read has nothing that was brought"),
            What::Loaded => {
                true_of(self.loaded, "nothing was loaded")?;
                true_of(mark == Mark::Fresh, "what was just loaded is fresh")
            }
            What::Held => {
                let Some(held) = self.held else { return true_of(false, "no copy is held") };
                match mark {
                    Mark::Fresh => true_of(held.is_fresh() || self.renewed, "the copy is not fresh"),
                    Mark::Stale => true_of(held.is_fresh() || held.may_be_stale(), "the copy may not be served stale"),
                    Mark::Rescued => {
                        true_of(self.trouble, "nothing has failed or was slow that would need a rescue")?;
                        true_of(held.may_rescue(), "the copy may not be served any more")
                    }
                }
            }
        }
    }

    fn check_keeping(&self, keeping: &Keeping) -> Check {
        let Keeping { what, tiers, terms, announce } = keeping;
        let suits = |holds, message: &str| ensure(holds, Clause::Suits, message);
        let own = self.history.rule.tiers;
        suits(*tiers != 0 && tiers & !own == 0, "it keeps in tiers that the keyspace does not have, or in none")?;
        suits(!announce || self.history.rule.abilities.contains(Abilities::ANNOUNCES), "there is no bus")?;
        match what {
            What::Held => suits(self.held.is_some(), "no copy is held")?,
            What::Loaded => suits(self.loaded, "nothing was loaded")?,
            What::Brought => suits(self.brought.is_some(), "nothing was brought")?,
        }
        let fenced = tiers & self.fenced;
        ensure(fenced == 0, Clause::RespectsFences, format!("tiers {fenced:#b} fenced this value"))?;
        let sane = |holds, message: &str| ensure(holds, Clause::Terms, message);
        sane(terms.quiet_ms <= terms.fresh_ms, "it is quiet for longer than it is fresh")?;
        sane(terms.early_us == 0 || terms.fresh_ms < FOREVER, "an early end of what does not end")
    }

    /// Whether what `finish` acknowledges is done.
    fn check_acknowledgement(&self) -> Check {
        let true_that = |holds, message: &str| ensure(holds, Clause::AcknowledgesTruly, message);
        let Rule { tiers, shared, abilities, .. } = self.history.rule;
        let traits = self.history.traits;
        let must_announce = abilities.contains(Abilities::ANNOUNCES) && !traits.contains(Traits::HEARD);
        let done = self.saved || self.logged;
        match self.history.kind {
            Kind::Read | Kind::Refresh | Kind::Fill => Ok(()),
            Kind::Write => {
                true_that(
                    done || self.kept | self.dropped == tiers,
                    "the write was neither saved nor logged nor kept",
                )?;
                true_that(self.fenced == 0, "some tiers fenced the value, and were not told to drop what they have")
            }
            Kind::Remove => {
                true_that(
                    done || !abilities.contains(Abilities::SAVES) || self.dropped == tiers,
                    "the removal was neither saved nor logged",
                )?;
                true_that(self.dropped == tiers, "not all tiers dropped what was removed")?;
                true_that(self.announced || !must_announce, "the removal was not announced")
            }
            Kind::Invalidate => {
                let needed = if traits.contains(Traits::HEARD) { tiers & !shared } else { tiers };
                let enough = if traits.contains(Traits::SOFT) { self.dropped | self.expired } else { self.dropped };
                let left = needed & !enough;
                true_that(left == 0, &format!("tiers {left:#b} were not told"))?;
                true_that(self.announced || !must_announce, "it was not announced")
            }
            Kind::Flush => true_that(self.saved || self.buried, "the write was neither saved nor buried"),
        }
    }
}

/// The better of two copies, as `held` in `wit/patterns.wit` has it.
fn better(held: Facts, found: Facts) -> Facts {
    let rank = |facts: &Facts| (facts.fresh_ms, facts.stale_ms, facts.rescue_ms, core::cmp::Reverse(facts.tier));
    if rank(&found) > rank(&held) { found } else { held }
}

/// A copy, so much later.
fn aged(facts: Facts, ms: u64) -> Facts {
    let less = |duration: u64, ms: u64| if duration == FOREVER { FOREVER } else { duration.saturating_sub(ms) };
    let beyond = if facts.fresh_ms == FOREVER { 0 } else { ms.saturating_sub(facts.fresh_ms) };
    Facts {
        age_ms: facts.age_ms.saturating_add(ms),
        fresh_ms: less(facts.fresh_ms, ms),
        stale_ms: less(facts.stale_ms, beyond),
        rescue_ms: less(facts.rescue_ms, beyond),
        ..facts
    }
}
