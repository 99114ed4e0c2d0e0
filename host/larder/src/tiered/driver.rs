//! One operation, from its first step to its end: asks the module what is next, carries it out, and says what came of it.
//!
//! Mechanism only. What is decided here is what the contract (`wit/patterns.wit`) has the host decide: in which order tiers
//! are told, what fences what, and what is done where the module's answer cannot be (`fallback.rs`). Each operation runs in
//! a task of its own, so that a caller who leaves takes nothing along. How far callers take reads themselves is in
//! `driver/together.rs`.

mod together;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::board::{End, Joined, Lead};
use super::far::{self, FarCopy, Looked, Put, Scope as FarScope};
use super::gather::{LoadsWith, SavesWith, ToSave};
use super::groups::{Group, Reached};
use super::host::{Inner, Telling};
use super::journal::{Flushing, LogError, Record, SaveTurn};
use super::near::{Copy, Found, Key, Token};
use super::source::{Answer as SourceAnswer, Loaded, SourceError};
use super::{How, Served, Ticket, TierError, TieredError, Untold};
use crate::engine::steps::{
    Abilities, Action, Answer, Dropping, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking,
    Mark, Moment, Operation, Outcome, Promotion, Rulebook, Saving, Scope, Serving, Target, Terms, Then, Traits, Turn,
    What,
};
use crate::eviction::{Fault, NEVER};

pub(crate) use together::{Reading, read_together, start_together};

/// No operation takes more steps.
const MOST_STEPS: usize = 256;

/// A value without a place: what was loaded, or brought.
#[derive(Debug)]
pub(crate) struct Landing<V> {
    pub(crate) value: Option<V>,
    pub(crate) validator: Option<Arc<str>>,
    pub(crate) tags: Arc<[Arc<str>]>,
    pub(crate) incoming: Incoming,
}

/// A copy that an operation holds, and when that ends or ended as far as this operation knows.
pub(crate) struct Held<V> {
    pub(crate) tier: u8,
    pub(crate) value: Option<V>,
    pub(crate) copy: Arc<Copy>,
    pub(crate) until: u64,
}

impl<V> Held<V> {
    fn near(found: Found<V>) -> Self {
        let Found { value, copy, until } = found;
        Held { tier: 0, value, copy, until }
    }

    fn far(tier: u8, value: Option<V>, copy: Copy) -> Self {
        let until = copy.fresh_until();
        Held { tier, value, copy: Arc::new(copy), until }
    }

    pub(crate) fn facts(&self, now: u64) -> Facts {
        self.copy.facts(self.tier, self.until, now)
    }
}

/// A load under way.
struct Load<V> {
    task: JoinHandle<Result<Loaded<V>, SourceError>>,
    began: Instant,
    hard: Instant,
    soft_told: bool,
    conditional: bool,
}

/// A lease in a shared tier: renewed while it is held, given back when dropped.
pub(crate) struct Lease {
    tier: Arc<dyn far::Tier>,
    key: Arc<str>,
    holder: u64,
    renewing: JoinHandle<()>,
}

/// How long a lease lasts that is not renewed: so long others wait for a leader that died.
const LEASE: Duration = Duration::from_secs(3);

impl Lease {
    /// `since`: when it was asked for.
    fn new(tier: Arc<dyn far::Tier>, key: Arc<str>, holder: u64, since: Instant) -> Self {
        let (renewed, name) = (tier.clone(), key.clone());
        let renewing = tokio::spawn(async move {
            let (mut ends, mut pause) = (since + LEASE, LEASE / 3);
            loop {
                tokio::time::sleep(pause).await;
                let asked = Instant::now();
                match tokio::time::timeout(LEASE / 3, renewed.lease(&name, holder, LEASE)).await {
                    Ok(Ok(true)) => (ends, pause) = (asked + LEASE, LEASE / 3),
                    // Somebody else has it.
                    Ok(Ok(false)) => return,
                    // It is held still, for as long as it was renewed last.
                    Ok(Err(_)) | Err(_) => pause = LEASE / 10,
                }
                if Instant::now() + pause >= ends {
                    return;
                }
            }
        });
        Lease { tier, key, holder, renewing }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        let (tier, key, holder) = (self.tier.clone(), self.key.clone(), self.holder);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Where that fails, it ends by itself.
            runtime.spawn(async move { drop(tier.release(&key, holder).await) });
        }
    }
}

/// What an operation speaks of.
#[derive(Clone, Debug)]
pub(crate) enum About<K> {
    Key(K),
    Keys(Vec<K>),
    Group(Group),
}

/// What the caller gets.
pub(crate) enum Reply<K: Key, V> {
    Served(Served<V>),
    Missed(Ticket<K, V>),
    Done,
}

pub(crate) type Replying<K, V> = oneshot::Sender<Result<Reply<K, V>, TieredError>>;

/// When a scheduled refresh begins again.
pub(crate) enum Again {
    /// After so many milliseconds.
    After(u64),
    /// The module says that there is no schedule.
    Never,
    /// The host finished the operation without the module, so nobody has said.
    Unsaid,
}

/// What comes of an action.
enum Flow {
    Next(Event),
    End,
    /// The answer was wrong, and why.
    Wrong(&'static str),
}

/// An operation.
pub(crate) struct Op<K: Key, V: Clone + Send + Sync + 'static> {
    pub(crate) inner: Arc<Inner<K, V>>,
    book: Arc<Rulebook>,
    pub(crate) kind: Kind,
    pub(crate) about: About<K>,
    pub(crate) traits: Traits,
    cookie: u64,
    started: u64,
    /// The moment of the last step: by the facts as they were then its answer is judged, and from then on its terms count.
    asked_at: u64,
    /// The bits for the first step, where they were drawn already.
    pub(crate) random: Option<u64>,
    /// What the last look was told with, and where that was.
    promotion: Option<(u8, Promotion)>,
    /// How far it was taken together with others, or by its caller: what has happened, and the answer to that if it was asked
    /// for already.
    begun: Option<(Event, Option<Answer>)>,
    pub(crate) near_token: Option<Token>,
    /// By tier, from the first far one on; those that are not there were not taken.
    pub(crate) far_tokens: Vec<Option<far::Token>>,
    /// Far tiers that gave a copy and no token.
    without_tokens: u8,
    pub(crate) held: Option<Held<V>>,
    pub(crate) brought: Option<Arc<Landing<V>>>,
    pub(crate) loaded: Option<Arc<Landing<V>>>,
    renewed: Option<Incoming>,
    load: Option<Load<V>>,
    /// The batch that it is one of, while it may still load together with others.
    pub(crate) member: Option<LoadsWith<K, V>>,
    /// The same for saving, of a flush.
    pub(crate) saves_with: Option<SavesWith<K, V>>,
    /// What a flush has in hand; none once that is a dead letter.
    pub(crate) flushing: Option<Flushing>,
    /// Something was amiss that allows a rescue.
    pub(crate) trouble: bool,
    pub(crate) served: bool,
    pub(crate) saved: bool,
    pub(crate) logged: bool,
    pub(crate) lead: Option<Lead<K, Landing<V>>>,
    pub(crate) lease: Option<Lease>,
    pub(crate) reply: Option<Replying<K, V>>,
    pub(crate) error: Option<TieredError>,
    /// Who could not be told what this operation did last.
    untold: Vec<Untold>,
    /// When a scheduled refresh begins again, as the module says.
    again: Option<u64>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Op<K, V> {
    pub(crate) fn new(inner: Arc<Inner<K, V>>, kind: Kind, about: About<K>) -> Self {
        let (book, now) = (inner.book.read().clone(), inner.near.now());
        let mut op = Op::at(inner, book, now, kind, about);
        op.look_near();
        op
    }

    /// One that has not looked anywhere.
    fn at(inner: Arc<Inner<K, V>>, book: Arc<Rulebook>, now: u64, kind: Kind, about: About<K>) -> Self {
        Op {
            book,
            kind,
            about,
            traits: Traits::empty(),
            cookie: 0,
            started: now,
            asked_at: now,
            random: None,
            promotion: None,
            begun: None,
            near_token: None,
            far_tokens: Vec::new(),
            without_tokens: 0,
            held: None,
            brought: None,
            loaded: None,
            renewed: None,
            load: None,
            member: None,
            saves_with: None,
            flushing: None,
            trouble: false,
            served: false,
            saved: false,
            logged: false,
            lead: None,
            lease: None,
            reply: None,
            error: None,
            untold: Vec::new(),
            again: None,
            inner,
        }
    }

    /// Takes the token of tier 0, and then looks there.
    fn look_near(&mut self) {
        if let About::Key(key) = &self.about {
            self.near_token = Some(self.inner.near.token(key));
            self.held = self.inner.near.look(key).map(Held::near);
        }
    }

    /// The answer to an event, where the module need not be asked: see "What the host need not ask" in `wit/patterns.wit`.
    fn known_answer(&mut self, event: Event) -> Option<Result<Answer, Fault>> {
        match event {
            Event::Start if self.kind == Kind::Read && self.held.is_none() => {
                Some(self.book.start_of_read(self.traits.contains(Traits::CACHED_ONLY)))
            }
            Event::Found => {
                let (tier, promotion) = self.promotion.take()?;
                self.asked_at = self.inner.near.now();
                self.check_held_at(self.asked_at);
                let held = self.held.as_ref().filter(|held| held.tier == tier)?;
                promotion.answer(&held.facts(self.asked_at)).map(Ok)
            }
            _ => {
                // It spoke of what its own look finds.
                self.promotion = None;
                None
            }
        }
    }

    /// The next turn: facts as they are now.
    fn turn(&mut self, event: Event) -> Turn {
        self.asked_at = self.inner.near.now();
        self.check_held_at(self.asked_at);
        let random = self.random.take().unwrap_or_else(|| self.inner.random());
        Turn { moment: Moment { now: self.asked_at, random }, operation: self.operation(), event }
    }

    /// Keeps in tier 0 what is held.
    fn keep_held_near(&mut self, terms: &Terms) {
        let (About::Key(key), Some(held), Some(token)) = (&self.about, &mut self.held, &self.near_token) else {
            return;
        };
        let now = self.asked_at;
        // What was brought from a far tier nobody else has: it need not be made anew.
        match Arc::get_mut(&mut held.copy) {
            Some(copy) => copy.set_terms(terms, now, token.stamp),
            None => held.copy = Arc::new(held.copy.on_other_terms(terms, now, token.stamp)),
        }
        self.inner.keep_near(key, held.value.clone(), held.copy.clone(), token, now);
    }

    /// Runs to the end.
    pub(crate) async fn run(mut self) -> Again {
        let (mut event, mut begun) = self.begun.take().unwrap_or((Event::Start, None));
        for _ in 0..MOST_STEPS {
            let answer = match begun.take() {
                Some(answer) => Ok(answer),
                None => self.known_answer(event).unwrap_or_else(|| {
                    let Turn { moment, operation, event } = self.turn(event);
                    self.book.step(moment, operation, event)
                }),
            };
            let Ok(answer) = answer else { return self.fall_back().await };
            self.cookie = answer.cookie;
            match self.carry_out(answer.action, event).await {
                Flow::Next(next) => event = next,
                Flow::End => return self.again.map_or(Again::Never, Again::After),
                Flow::Wrong(why) => {
                    self.inner.tally.wrong_answers.fetch_add(1, Relaxed);
                    let module = &self.book.description().name;
                    tracing::warn!(module, action = ?answer.action, ?event, why, "a wrong answer of a patterns module");
                    return self.fall_back().await;
                }
            }
        }
        self.inner.tally.wrong_answers.fetch_add(1, Relaxed);
        tracing::warn!(module = self.book.description().name, "a patterns module brings an operation to no end");
        self.fall_back().await
    }

    async fn fall_back(mut self) -> Again {
        self.inner.tally.fallbacks.fetch_add(1, Relaxed);
        super::fallback::finish(&mut self).await;
        Again::Unsaid
    }

    /// Forgets the copy that is held, or ends its freshness, if something has reached it.
    pub(crate) fn check_held(&mut self) {
        self.check_held_at(self.inner.near.now());
    }

    fn check_held_at(&mut self, now: u64) {
        let (About::Key(key), Some(token), Some(held)) = (&self.about, &self.near_token, &mut self.held) else {
            return;
        };
        match self.inner.near.reached(key, token, &held.copy.tags, held.copy.stamp) {
            Reached::Untouched => {}
            Reached::Ended(at) => held.until = held.until.min(at),
            Reached::Superseded => {
                self.held = None;
                return;
            }
        }
        let facts = held.facts(now);
        if facts.fresh_ms == 0 && facts.stale_ms == 0 && facts.rescue_ms == 0 {
            self.held = None;
        }
    }

    fn operation(&self) -> Operation {
        let now = self.asked_at;
        let target = match &self.about {
            About::Key(_) => Target::Key,
            About::Keys(_) => Target::Keys,
            About::Group(Group::Tag(_)) => Target::Tag,
            About::Group(Group::Prefix(prefix)) if prefix.is_empty() => Target::All,
            About::Group(Group::Prefix(_)) => Target::Prefix,
        };
        Operation {
            keyspace: 0,
            kind: self.kind,
            target,
            traits: self.traits,
            cookie: self.cookie,
            elapsed_ms: now.saturating_sub(self.started),
            held: self.held.as_ref().map(|held| held.facts(now)),
            brought: self.brought.as_ref().map(|brought| brought.incoming),
        }
    }

    fn can(&self, ability: Abilities) -> bool {
        self.book.keyspaces[0].abilities.contains(ability)
    }

    fn has_tiers(&self, tiers: u8) -> bool {
        tiers != 0 && tiers & !self.inner.tiers() == 0
    }

    async fn carry_out(&mut self, action: Action, after: Event) -> Flow {
        use Kind::{Fill, Flush, Invalidate, Read, Refresh, Remove, Write};
        let kind = self.kind;
        if !matches!(after, Event::Unchanged(_)) {
            self.renewed = None;
        }
        if self.load.is_some() && !matches!(action, Action::Load(_) | Action::Serve(_)) {
            return Flow::Wrong("a load is under way: wait on, or serve");
        }
        match action {
            Action::Look(Looking { tier, promote }) => {
                if !matches!(kind, Read | Refresh)
                    || promote.is_some() && kind != Read
                    || !self.has_tiers(1u8.checked_shl(tier.into()).unwrap_or(0))
                {
                    return Flow::Wrong("there is nothing to look at");
                }
                let event = self.look(tier).await;
                self.promotion = promote.map(|promotion| (tier, promotion));
                Flow::Next(event)
            }
            Action::Join(joining) => {
                let fleet = joining.scope == Scope::Fleet;
                if !matches!(kind, Read | Refresh)
                    || self.traits.contains(Traits::CACHED_ONLY)
                    || self.lead.is_some()
                    || fleet && !self.can(Abilities::LEASES)
                {
                    return Flow::Wrong("there is nothing to join");
                }
                Flow::Next(self.join(joining).await)
            }
            Action::Load(loading) => {
                let conditional = self.held.as_ref().is_some_and(|held| held.copy.validator.is_some());
                if !matches!(kind, Read | Refresh)
                    || !self.can(Abilities::LOADS)
                    || self.traits.contains(Traits::CACHED_ONLY)
                    || self.load.is_none() && loading.conditional && !conditional
                {
                    return Flow::Wrong("there is nothing to load, or not so");
                }
                Flow::Next(self.load(loading).await)
            }
            Action::Keep(keeping) => {
                if !matches!(kind, Read | Write | Fill | Refresh | Flush) || kind == Read && !self.served {
                    return Flow::Wrong("a caller waits: serve, and keep besides");
                }
                match self.check_keeping(&keeping) {
                    Ok(()) => {
                        let telling = self.keep(&keeping, 0xff, true).await;
                        self.untold = telling.untold;
                        Flow::Next(Event::Kept(telling.outcome))
                    }
                    Err(why) => Flow::Wrong(why),
                }
            }
            Action::Save(saving) => {
                let in_hand = kind != Flush || self.flushing.is_some();
                let done = self.saved || self.logged;
                if !matches!(kind, Write | Remove | Flush) || !self.can(Abilities::SAVES) || done || !in_hand {
                    return Flow::Wrong("there is nothing to save, or nowhere");
                }
                if saving.fence & !self.inner.tiers() != 0 {
                    return Flow::Wrong("it fences tiers that the keyspace does not have");
                }
                Flow::Next(self.save(&saving).await)
            }
            Action::Log(saving) => {
                if !matches!(kind, Write | Remove) || !self.can(Abilities::LOGS) || self.saved || self.logged {
                    return Flow::Wrong("there is nothing to log, or no journal");
                }
                if saving.fence & !self.inner.tiers() != 0 {
                    return Flow::Wrong("it fences tiers that the keyspace does not have");
                }
                Flow::Next(self.log(&saving).await)
            }
            Action::Bury => {
                if kind != Flush || !matches!(after, Event::SaveFailed(_)) {
                    return Flow::Wrong("only what the source did not take is buried");
                }
                // Where that fails, the write is in the journal still, and is flushed again.
                if self.bury().await { Flow::Next(Event::Buried) } else { Flow::End }
            }
            Action::Drop(dropping) | Action::Expire(dropping) => {
                let soft = matches!(action, Action::Expire(_));
                if !matches!(kind, Write | Remove | Invalidate | Flush) || !self.has_tiers(dropping.tiers) {
                    return Flow::Wrong("there is nothing to drop");
                }
                if soft && (kind != Invalidate || !self.traits.contains(Traits::SOFT)) {
                    return Flow::Wrong("only a soft invalidation may leave stale copies");
                }
                if dropping.announce && (!self.can(Abilities::ANNOUNCES) || self.traits.contains(Traits::HEARD)) {
                    return Flow::Wrong("there is no bus, or it was heard there");
                }
                Flow::Next(Event::Dropped(self.forget(&dropping, soft).await))
            }
            Action::Pause(ms) => {
                if ms >= 1 << 40 {
                    return Flow::Wrong("it would never resume");
                }
                (self.member, self.saves_with) = (None, None);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Flow::Next(Event::Resumed)
            }
            Action::Serve(serving) => self.serve(serving, after).await,
            Action::Miss => {
                if kind != Read || self.served {
                    return Flow::Wrong("nobody waits for a value");
                }
                self.miss();
                Flow::End
            }
            Action::Finish(again) => {
                let scheduled = self.traits.contains(Traits::SCHEDULED);
                if kind == Read && !self.served || again == Some(0) || again.is_some() && !scheduled {
                    return Flow::Wrong("an operation does not end so");
                }
                if kind == Flush && self.flushing.is_some() && !self.saved {
                    return Flow::Wrong("what is neither saved nor buried stays in the journal");
                }
                self.again = again;
                self.flushed().await;
                self.land_own();
                self.answer(Ok(Reply::Done));
                Flow::End
            }
            Action::Fail(failure) => {
                if kind == Refresh || self.served {
                    return Flow::Wrong("nobody waits for an error");
                }
                self.fail(failure);
                Flow::End
            }
        }
    }

    /// Ends the flight that this operation leads with what it has.
    pub(crate) fn land_own(&mut self) {
        let Some(lead) = self.lead.take() else { return };
        lead.land(match (&self.loaded, &self.error) {
            (Some(loaded), _) => End::Landed(loaded.clone()),
            (None, Some(error)) => End::Failed(error.failure.into(), Some(error.clone())),
            (None, None) => End::Lost,
        });
    }

    pub(crate) fn answer(&mut self, reply: Result<Reply<K, V>, TieredError>) {
        if let Some(waiting) = self.reply.take() {
            // Who asked may have left.
            drop(waiting.send(reply));
        }
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        let same = self.error.take().filter(|error| Failure::from(error.failure) == failure);
        let error = same.unwrap_or_else(|| match failure {
            Failure::Unreached => TieredError::unreached(std::mem::take(&mut self.untold)),
            _ => TieredError::new(failure.into()),
        });
        if let Some(lead) = self.lead.take() {
            lead.land(End::Failed(failure, Some(error.clone())));
        }
        if self.kind == Kind::Flush {
            tracing::warn!(keyspace = &*self.inner.name, %error, "a flush failed; the write stays in the journal");
            return;
        }
        self.inner.tally.failures.fetch_add(1, Relaxed);
        self.answer(Err(error));
    }

    pub(crate) fn miss(&mut self) {
        self.inner.tally.misses.fetch_add(1, Relaxed);
        if let (About::Key(key), Some(near_token)) = (&self.about, self.near_token) {
            let ticket = Ticket {
                inner: self.inner.clone(),
                key: key.clone(),
                near_token,
                far_tokens: std::mem::take(&mut self.far_tokens),
                lead: self.lead.take(),
                lease: self.lease.take(),
            };
            self.answer(Ok(Reply::Missed(ticket)));
        }
    }

    // ---- look

    /// Whether what was found is better than what is held, as `held` in `wit/patterns.wit` has it.
    fn take_if_better(&mut self, found: Held<V>) {
        if self.held.is_none() {
            self.held = Some(found);
            return;
        }
        let now = self.inner.near.now();
        let rank = |held: &Held<V>| {
            let facts = held.facts(now);
            (facts.fresh_ms, facts.stale_ms, facts.rescue_ms, std::cmp::Reverse(facts.tier))
        };
        if self.held.as_ref().is_none_or(|held| rank(&found) > rank(held)) {
            self.held = Some(found);
        }
    }

    async fn look(&mut self, tier: u8) -> Event {
        if tier == 0 {
            let before = self.held.take();
            self.look_near();
            let found = self.held.is_some();
            if let Some(before) = before {
                self.take_if_better(before);
                self.check_held();
            }
            return if found { Event::Found } else { Event::Absent };
        }
        match self.look_far(tier).await {
            Ok(Some(found)) => {
                self.take_if_better(found);
                Event::Found
            }
            Ok(None) => Event::Absent,
            Err(()) => Event::TierDown,
        }
    }

    /// Looks into a far tier, and takes its token.
    pub(crate) async fn look_far(&mut self, tier: u8) -> Result<Option<Held<V>>, ()> {
        let About::Key(key) = &self.about else { return Err(()) };
        if self.inner.is_logged(key) {
            return Ok(None);
        }
        let far = &self.inner.far[usize::from(tier) - 1];
        let name = self.inner.far_name(key);
        if !self.inner.may_look(far, &name) {
            return Err(());
        }
        let mut looked = far.call(self.inner.limits.tier, far.tier.get(&name)).await.map_err(drop)?;
        self.inner.tally.far_hits.fetch_add(u64::from(looked.copy.is_some()), Relaxed);
        Ok(self.take_looked(tier, &name, &mut looked))
    }

    fn set_far_token(&mut self, tier: u8, token: Option<far::Token>) {
        let at = usize::from(tier) - 1;
        match self.far_tokens.get_mut(at) {
            Some(there) => *there = token,
            None if token.is_some() => {
                self.far_tokens.resize(at, None);
                self.far_tokens.push(token);
            }
            None => {}
        }
    }

    /// Takes over the token that a look in a far tier came with, or that it came without one.
    fn take_far_token(&mut self, tier: u8, token: Option<far::Token>) {
        self.set_far_token(tier, token);
        if token.is_none() {
            self.without_tokens |= 1 << tier;
        }
    }

    /// Takes over what a far tier has of the key: the token, and the copy.
    fn take_looked(&mut self, tier: u8, name: &str, looked: &mut Looked) -> Option<Held<V>> {
        self.take_far_token(tier, looked.token);
        let stamp = self.near_token.map_or(0, |token| token.stamp);
        let (value, copy) = self.inner.copy_of_far(tier, name, looked, stamp, self.inner.near.now())?;
        Some(Held::far(tier, value, copy))
    }

    // ---- join

    async fn join(&mut self, joining: Joining) -> Event {
        let About::Key(key) = &self.about else { return Event::LeaderLost };
        let deadline = Instant::now() + Duration::from_millis(joining.wait_ms.min(1 << 40));
        let near = &self.inner.near;
        let is_read = self.kind == Kind::Read;
        let joined = self.inner.board.join(key, || {
            let token = near.token(key);
            let found = near.look(key).filter(|found| is_read && found.until > near.now())?;
            Some((token, Held::near(found)))
        });
        match joined {
            Joined::Found((token, held)) => {
                self.near_token = Some(token);
                self.held = Some(held);
                Event::Found
            }
            Joined::Waits(ends) => {
                self.member = None;
                self.inner.tally.joined.fetch_add(1, Relaxed);
                self.wait(ends, joining.wait_ms, deadline).await
            }
            Joined::Leads(lead) => {
                self.lead = Some(lead);
                match joining.scope {
                    Scope::Process => Event::Leading,
                    Scope::Fleet => self.join_fleet(joining.wait_ms, deadline).await,
                }
            }
        }
    }

    async fn wait(
        &mut self,
        mut ends: watch::Receiver<Option<End<Landing<V>>>>,
        wait_ms: u64,
        deadline: Instant,
    ) -> Event {
        let end = if wait_ms == 0 {
            ends.borrow().clone()
        } else {
            match tokio::time::timeout_at(deadline, ends.wait_for(Option::is_some)).await {
                Ok(Ok(end)) => end.clone(),
                Ok(Err(_)) => Some(End::Lost),
                Err(_) => None,
            }
        };
        self.trouble |= !matches!(end, Some(End::Landed(_)));
        match end {
            Some(End::Landed(landing)) => {
                self.loaded = Some(landing);
                Event::Landed
            }
            Some(End::Failed(failure, error)) => {
                self.error = error;
                Event::LoadFailed(failure)
            }
            Some(End::Lost) => Event::LeaderLost,
            None => Event::Waited,
        }
    }

    /// Asks for the lease, and looks for what another process may have brought, until the deadline.
    async fn join_fleet(&mut self, wait_ms: u64, deadline: Instant) -> Event {
        let About::Key(key) = &self.about else { return Event::LeaderLost };
        // What the journal has is loaded from there: no other process can bring it.
        if self.inner.is_logged(key) {
            return Event::Leading;
        }
        let Some(at) = self.inner.far.iter().position(|far| far.tier.leases()) else { return Event::Leading };
        let (tier, number) = (self.inner.far[at].tier.clone(), at as u8 + 1);
        let name: Arc<str> = self.inner.far_name(key).into();
        let holder = self.inner.holders.fetch_add(1, Relaxed);
        let mut pause = Duration::from_millis(5);
        loop {
            let far = &self.inner.far[at];
            let since = Instant::now();
            let Ok(leased) = far.call(self.inner.limits.tier, tier.lease(&name, holder, LEASE)).await else {
                // Leases are out of reach: the leader of this process leads.
                return Event::Leading;
            };
            let lease = leased.then(|| Lease::new(tier.clone(), name.clone(), holder, since));
            // Somebody may have brought it since this operation looked.
            if self.kind == Kind::Read || lease.is_none() {
                let found = self.look_far(number).await.ok().flatten();
                let now = self.inner.near.now();
                if let Some(found) = found
                    && found.until > now
                {
                    self.take_if_better(found);
                    return Event::Found;
                }
            }
            if let Some(lease) = lease {
                self.lease = Some(lease);
                return Event::Leading;
            }
            if wait_ms == 0 || Instant::now() >= deadline {
                self.trouble = true;
                return Event::Waited;
            }
            // The others of the batch need not wait.
            self.member = None;
            self.inner.tally.joined.fetch_add(1, Relaxed);
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    // ---- load

    pub(crate) async fn load(&mut self, loading: Loading) -> Event {
        if self.without_tokens != 0
            && let About::Key(key) = &self.about
        {
            let (key, tiers) = (key.clone(), std::mem::take(&mut self.without_tokens));
            self.fence(&key, tiers).await;
        }
        let (Some(source), About::Key(key)) = (self.inner.source.clone(), &self.about) else {
            return self.amiss(Failure::Unsupported, None);
        };
        if self.load.is_none()
            && let Some(record) = self.inner.journal.as_ref().and_then(|part| part.newest(&key.text()))
        {
            return self.load_logged(&record);
        }
        let load = self.load.get_or_insert_with(|| {
            let held = self.held.as_ref().filter(|_| loading.conditional);
            let validator = held.and_then(|held| held.copy.validator.clone());
            let conditional = validator.is_some();
            let key = key.clone();
            let together = self.member.take().filter(|_| !conditional).map(|member| member.ask(key.clone()));
            let task = tokio::spawn(async move {
                match together {
                    Some(answer) => answer.await.unwrap_or_else(|_| Err(SourceError::unavailable("the load panicked"))),
                    None => source.load(&key, validator.as_deref()).await,
                }
            });
            let began = Instant::now();
            let hard_ms = if loading.hard_ms == 0 { NEVER } else { loading.hard_ms };
            let hard = began + self.inner.limits.load.min(Duration::from_millis(hard_ms));
            Load { task, began, hard, soft_told: false, conditional }
        });
        let soft = load.began + Duration::from_millis(loading.soft_ms.min(1 << 40));
        let is_soft = loading.soft_ms > 0 && !load.soft_told && soft < load.hard;
        let ended = tokio::time::timeout_at(if is_soft { soft } else { load.hard }, &mut load.task).await;
        if ended.is_err() && is_soft {
            load.soft_told = true;
            self.trouble = true;
            return Event::StillLoading;
        }
        let (took, conditional) = (load.began.elapsed(), load.conditional);
        if let Some(load) = self.load.take() {
            load.task.abort();
        }
        self.inner.tally.loads.fetch_add(1, Relaxed);
        let cost_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        match ended {
            Ok(Ok(Ok(loaded))) if matches!(loaded.value, SourceAnswer::Unchanged) => {
                if !conditional {
                    let why = "the source says `unchanged` and was not asked about a validator";
                    return self.amiss(Failure::Rejected, Some(SourceError::rejected(why)));
                }
                let size = self.held.as_ref().map_or(0, |held| held.copy.size);
                let incoming = incoming(&loaded, cost_us, size);
                self.renewed = Some(incoming);
                Event::Unchanged(incoming)
            }
            Ok(Ok(Ok(loaded))) => {
                let landing = self.inner.landing(loaded, cost_us);
                let incoming = landing.incoming;
                self.loaded = Some(Arc::new(landing));
                Event::Loaded(incoming)
            }
            Ok(Ok(Err(error))) => self.amiss(error.failure.into(), Some(error)),
            Ok(Err(panic)) => self.amiss(Failure::Unavailable, Some(SourceError::unavailable(panic.to_string()))),
            Err(_) => self.amiss(Failure::TimedOut, None),
        }
    }

    /// What is in the journal is what the source will have.
    fn load_logged(&mut self, record: &Record) -> Event {
        self.member = None;
        self.inner.tally.journal_loads.fetch_add(1, Relaxed);
        match self.inner.landing_of(record) {
            Ok(landing) => {
                let incoming = landing.incoming;
                self.loaded = Some(Arc::new(landing));
                Event::Loaded(incoming)
            }
            Err(error) => self.amiss(Failure::Rejected, Some(SourceError::rejected(error))),
        }
    }

    fn amiss(&mut self, failure: Failure, error: Option<SourceError>) -> Event {
        self.inner.tally.load_failures.fetch_add(1, Relaxed);
        self.trouble = true;
        self.error = Some(TieredError { failure: failure.into(), cause: error.map(|error| error.cause) });
        Event::LoadFailed(failure)
    }

    // ---- keep

    fn check_keeping(&self, keeping: &Keeping) -> Result<(), &'static str> {
        if !self.has_tiers(keeping.tiers) {
            return Err("it keeps in tiers that the keyspace does not have, or in none");
        }
        if keeping.announce && !self.can(Abilities::ANNOUNCES) {
            return Err("there is no bus");
        }
        let is_there = match keeping.what {
            What::Held => self.held.is_some(),
            What::Loaded => self.loaded.is_some(),
            What::Brought => self.brought.is_some(),
        };
        if !is_there {
            return Err("there is nothing to keep");
        }
        let Terms { quiet_ms, fresh_ms, .. } = keeping.terms;
        if quiet_ms > fresh_ms { Err("it is quiet for longer than it is fresh") } else { Ok(()) }
    }

    /// Keeps in those of the tiers that `only` names; the farthest first.
    async fn keep(&mut self, keeping: &Keeping, only: u8, announce: bool) -> Telling {
        let mut telling = Telling::new();
        let About::Key(key) = self.about.clone() else { return telling };
        let now = self.inner.near.now();
        let (value, validator, tags, born, cost_us, size) = match keeping.what {
            What::Held => match &self.held {
                Some(Held { value, copy, .. }) => {
                    let (born, cost) = self.renewed.map_or((copy.born, copy.cost_us), |new| (now, new.cost_us));
                    (value.clone(), copy.validator.clone(), copy.tags.clone(), born, cost, copy.size)
                }
                None => return telling,
            },
            What::Loaded | What::Brought => {
                let landing = if keeping.what == What::Loaded { &self.loaded } else { &self.brought };
                let Some(landing) = landing else { return telling };
                let Incoming { cost_us, size, .. } = landing.incoming;
                (landing.value.clone(), landing.validator.clone(), landing.tags.clone(), now, cost_us, size)
            }
        };
        let tiers = keeping.tiers & only;
        let writes = matches!(self.kind, Kind::Write | Kind::Remove | Kind::Flush);
        // What is there and right is given other terms, where the tier can do that.
        let renews = keeping.what == What::Held && self.renewed.is_some() && value.is_some() && validator.is_some();
        for tier in (1..8u8).rev().filter(|tier| tiers & 1 << tier != 0) {
            let far_copy = |value: Option<&V>| {
                let age_ms = now.saturating_sub(born);
                self.inner.far_copy(value, validator.clone(), &tags, age_ms, cost_us, &keeping.terms)
            };
            if renews
                && let Some(copy) = far_copy(None)
                && self.renew_far(&key, tier, copy, &mut telling.outcome).await
            {
                continue;
            }
            match far_copy(value.as_ref()) {
                Some(copy) => self.keep_far(&key, tier, copy, writes, &mut telling).await,
                None => self.decline_far(&key, tier, &mut telling).await,
            }
        }
        if tiers & 1 != 0
            && let Some(token) = self.near_token
        {
            let near = &self.inner.near;
            let (negative, now, terms) = (value.is_none(), self.asked_at, &keeping.terms);
            let copy = Copy::new(negative, validator, tags, born, cost_us, size, terms, now, token.stamp);
            let kept = match writes {
                true => {
                    self.inner.board.fence(&key, || near.keep(&key, value, Arc::new(copy), &token, true, near.now()))
                }
                false => near.keep(&key, value, Arc::new(copy), &token, false, near.now()),
            };
            if !kept {
                telling.outcome.fenced |= 1;
            }
        }
        self.inner.tally.fenced.fetch_add(u64::from(telling.outcome.fenced.count_ones()), Relaxed);
        self.inner.tally.declined.fetch_add(u64::from(telling.outcome.declined.count_ones()), Relaxed);
        if announce && keeping.announce {
            let scope = FarScope::Keys(vec![key.text().into()]);
            telling.announced(self.inner.announce(scope, false).await);
        }
        telling
    }

    /// A tier cannot have the value: it is to forget what it has.
    async fn decline_far(&self, key: &K, tier: u8, telling: &mut Telling) {
        let at = usize::from(tier) - 1;
        let far = &self.inner.far[at];
        let scope = FarScope::Keys(vec![self.inner.far_name(key).into()]);
        match far.call(self.inner.limits.tier, far.tier.invalidate(&scope, false)).await {
            Ok(()) => telling.outcome.declined |= 1 << tier,
            Err(error) => {
                telling.missed(at, far, error);
                self.inner.owe(at, &About::Key(key.clone()), false);
            }
        }
    }

    /// Gives the copy that a far tier has other terms; whether it had it.
    async fn renew_far(&self, key: &K, tier: u8, copy: FarCopy, outcome: &mut Outcome) -> bool {
        let at = usize::from(tier) - 1;
        let (far, name) = (&self.inner.far[at], self.inner.far_name(key));
        let Some(token) = self.far_tokens.get(at).copied().flatten().filter(|_| !far.owes(&name)) else { return false };
        match far.call(self.inner.limits.tier, far.tier.renew(&name, copy, token)).await {
            Ok(Some(Put::Kept)) => {}
            Ok(Some(Put::Fenced)) => outcome.fenced |= 1 << tier,
            Ok(Some(Put::Declined)) => outcome.declined |= 1 << tier,
            Ok(None) | Err(_) => return false,
        }
        true
    }

    async fn keep_far(&self, key: &K, tier: u8, copy: FarCopy, writes: bool, telling: &mut Telling) {
        let (bit, at) = (1 << tier, usize::from(tier) - 1);
        let far = &self.inner.far[at];
        let name = self.inner.far_name(key);
        let limit = self.inner.limits.tier;
        let mut token = self.far_tokens.get(at).copied().flatten();
        if token.is_none() && !writes {
            telling.outcome.fenced |= bit;
            return;
        }
        // Before what is owed there has been dropped, nothing is read there; so nothing is kept there.
        let is_down = far.owes(&name);
        if token.is_none() && !is_down && !self.saved && !self.logged {
            // Nothing was to be fenced: what is there now is what is replaced. Without a token, a call that lands late
            // could replace what is newer.
            token = far.call(limit, far.tier.token(&name)).await.ok();
        }
        let put = match token {
            _ if is_down => Err(TierError::Unavailable("what it is owed from before is not dropped there yet".into())),
            Some(token) => far.call(limit, far.tier.put(&name, copy, token, writes)).await,
            // It was saved or logged, and nobody knows whether before or after what is there.
            None => {
                let scope = FarScope::Keys(vec![name.as_str().into()]);
                let dropped = far.call(limit, far.tier.invalidate(&scope, false)).await;
                dropped.map(|()| Put::Declined)
            }
        };
        match put {
            Ok(Put::Kept) => {}
            Ok(Put::Fenced) => telling.outcome.fenced |= bit,
            Ok(Put::Declined) => telling.outcome.declined |= bit,
            Err(error) => {
                telling.missed(at, far, error);
                if writes {
                    self.inner.owe(at, &About::Key(key.clone()), false);
                }
            }
        }
    }

    // ---- save

    /// Takes tokens in far tiers.
    async fn fence(&mut self, key: &K, tiers: u8) {
        for tier in (1..8u8).filter(|tier| tiers & 1 << tier != 0) {
            let far = &self.inner.far[usize::from(tier) - 1];
            let name = self.inner.far_name(key);
            let token = far.call(self.inner.limits.tier, far.tier.token(&name)).await;
            self.set_far_token(tier, token.ok());
        }
    }

    pub(crate) async fn save(&mut self, saving: &Saving) -> Event {
        let (Some(source), About::Key(key)) = (self.inner.source.clone(), self.about.clone()) else {
            return Event::SaveFailed(Failure::Unsupported);
        };
        let hard_ms = if saving.hard_ms == 0 { NEVER } else { saving.hard_ms };
        let limit = self.inner.limits.save.min(Duration::from_millis(hard_ms));
        let deadline = Instant::now() + limit;
        let turn = match self.in_turn(&key, deadline).await {
            Ok(turn) => turn,
            Err(event) => return event,
        };
        self.fence(&key, saving.fence).await;
        let id = match &mut self.flushing {
            None => self.inner.write_id(),
            Some(flushing) => {
                // Only now, under the tokens: what is logged from here on fences what this flush keeps.
                self.near_token = Some(self.inner.near.token(&key));
                let Some((id, record)) = flushing.newest() else { return Event::SaveFailed(Failure::Unsupported) };
                match self.inner.landing_of(&record) {
                    Ok(landing) => self.brought = landing.value.is_some().then(|| Arc::new(landing)),
                    Err(error) => return self.not_saved(SourceError::rejected(error)),
                }
                id
            }
        };
        let save = ToSave { key: key.clone(), value: self.brought.clone(), id, _turn: turn };
        let together = self.saves_with.take();
        let mut task = tokio::spawn(async move {
            match together {
                Some(member) => member.ask(save).await.unwrap_or_else(|_| Err(SourceError::unavailable("it panicked"))),
                None => source.save(save.as_save()).await,
            }
        });
        self.inner.tally.saves.fetch_add(1, Relaxed);
        match tokio::time::timeout_at(deadline, &mut task).await {
            Ok(Ok(Ok(()))) => {
                (self.saved, self.error) = (true, None);
                Event::Saved
            }
            Ok(Ok(Err(error))) => self.not_saved(error),
            Ok(Err(panic)) => self.not_saved(SourceError::unavailable(panic.to_string())),
            Err(_) => {
                // It may still land, after the operation has dropped the old copy and somebody has loaded it again. What is
                // flushed is loaded from the journal until a later save of it, which waits for this one, has landed.
                if self.flushing.is_none() {
                    let inner = self.inner.clone();
                    tokio::spawn(async move {
                        drop(task.await);
                        inner.drop_everywhere(&About::Key(key)).await;
                    });
                }
                self.error = Some(TieredError::new(super::Failure::TimedOut));
                Event::SaveFailed(Failure::TimedOut)
            }
        }
    }

    /// Waits until it is a save's turn, where there is a journal: until no other save of the key runs, and, unless it is a
    /// flush, until the key has no write there.
    async fn in_turn(&mut self, key: &K, deadline: Instant) -> Result<Option<SaveTurn>, Event> {
        let turn = match (&self.flushing, &self.inner.journal) {
            (Some(flushing), _) => match flushing.try_turn() {
                Some(turn) => Ok(turn),
                None => {
                    // The others of the batch need not wait.
                    self.saves_with = None;
                    tokio::time::timeout_at(deadline, flushing.turn()).await
                }
            },
            (None, Some(part)) => tokio::time::timeout_at(deadline, part.turn(&key.text())).await,
            (None, None) => return Ok(None),
        };
        turn.map(Some).map_err(|_| {
            let why = "an earlier write of the key is not saved yet";
            self.not_saved(SourceError::overloaded(why))
        })
    }

    fn not_saved(&mut self, error: SourceError) -> Event {
        let failure = error.failure;
        self.error = Some(TieredError { failure, cause: Some(error.cause) });
        Event::SaveFailed(failure.into())
    }

    // ---- log, and what becomes of it

    async fn log(&mut self, saving: &Saving) -> Event {
        let inner = self.inner.clone();
        let (Some(part), About::Key(key)) = (&inner.journal, self.about.clone()) else {
            return Event::LogFailed(Failure::Unsupported);
        };
        self.fence(&key, saving.fence).await;
        let record = match inner.record(part, &key, self.brought.as_deref()) {
            Ok(record) => record,
            Err(error) => {
                inner.tally.log_failures.fetch_add(1, Relaxed);
                self.error = Some(TieredError { failure: super::Failure::Rejected, cause: Some(error.into()) });
                return Event::LogFailed(Failure::Rejected);
            }
        };
        let wait = match saving.hard_ms {
            0 => inner.limits.save,
            ms => Duration::from_millis(ms.min(1 << 40)),
        };
        let error = match part.log(record, wait, inner.limits.save).await {
            Ok(()) => {
                self.logged = true;
                inner.tally.logged.fetch_add(1, Relaxed);
                return Event::Logged;
            }
            Err(error) => error,
        };
        inner.tally.log_failures.fetch_add(1, Relaxed);
        let (failure, text) = (error.failure(), error.to_string());
        if let LogError::Slow(told) = error {
            // As with a save that lands late.
            let inner = inner.clone();
            tokio::spawn(async move {
                if matches!(told.await, Ok(Ok(()))) {
                    inner.drop_everywhere(&About::Key(key)).await;
                }
            });
        }
        self.error = Some(TieredError { failure, cause: Some(SourceError::unavailable(text).cause) });
        Event::LogFailed(failure.into())
    }

    /// What a flush saved is taken off the journal.
    pub(crate) async fn flushed(&mut self) {
        let Some(mut flushing) = self.flushing.take() else { return };
        // What this process owes dies with it.
        let is_owed = self.inner.is_owed(flushing.key());
        let done = flushing.done(is_owed).await;
        if let Some(part) = self.inner.journal.as_ref().filter(|_| is_owed) {
            // It may have been paid before the journal had it.
            let key = flushing.key();
            part.settle(|other| !other.is_empty() && other != key || self.inner.is_owed(other));
        }
        match done {
            Ok(()) => drop(self.inner.tally.flushed.fetch_add(1, Relaxed)),
            Err(error) => {
                let keyspace = &*self.inner.name;
                tracing::warn!(keyspace, %error, "a write that was saved is in the journal still, and is saved again");
            }
        }
    }

    /// What a flush has in hand becomes a dead letter; whether it did.
    async fn bury(&mut self) -> bool {
        let Some(mut flushing) = self.flushing.take() else { return false };
        let reason = self.error.as_ref().map_or_else(|| "the source refused".to_string(), ToString::to_string);
        let (keyspace, key) = (&*self.inner.name, flushing.key().to_string());
        match flushing.bury(&reason).await {
            Ok(()) => {
                self.inner.tally.buried.fetch_add(1, Relaxed);
                tracing::warn!(keyspace, key, reason, "a write is a dead letter: the source does not take it");
                true
            }
            Err(error) => {
                tracing::warn!(keyspace, key, %error, "a write that the source does not take is tried again");
                false
            }
        }
    }

    // ---- drop and expire

    async fn forget(&mut self, dropping: &Dropping, soft: bool) -> Outcome {
        let telling = self.inner.forget(&self.about, dropping.tiers, dropping.announce, soft).await;
        self.untold = telling.untold;
        telling.outcome
    }

    // ---- serve

    async fn serve(&mut self, serving: Serving, after: Event) -> Flow {
        if self.kind != Kind::Read || self.served {
            return Flow::Wrong("nobody waits for a value");
        }
        if let Err(why) = self.check_serving(&serving) {
            return Flow::Wrong(why);
        }
        if let Some(keeping) = &serving.keep
            && let Err(why) = self.check_keeping(keeping)
        {
            return Flow::Wrong(why);
        }
        match serving.then {
            Then::Refresh if !self.can(Abilities::LOADS) => return Flow::Wrong("there is no source to refresh from"),
            Then::GoOn if after != Event::StillLoading || self.load.is_none() => {
                return Flow::Wrong("nothing is under way that could go on");
            }
            Then::End | Then::Refresh if self.load.is_some() => self.abandon_load(),
            _ => {}
        }
        self.member = None;
        // Tier 0 before the answer, so that what was served is found there.
        if let Some(keeping) = &serving.keep {
            self.keep(keeping, 1, false).await;
        }
        self.hush(&serving);
        let served = self.served_value(&serving);
        self.inner.tally.count(&served);
        self.answer(Ok(Reply::Served(served)));
        self.served = true;
        if serving.then != Then::GoOn {
            self.land_served(&serving);
        }
        if let Some(keeping) = &serving.keep {
            self.keep(keeping, !1, true).await;
        }
        match (serving.then, &self.about) {
            (Then::GoOn, _) => {
                let rest = Loading { soft_ms: 0, hard_ms: 0, conditional: false };
                Flow::Next(self.load(rest).await)
            }
            (Then::Refresh, About::Key(key)) => {
                self.lease = None;
                self.inner.refresh(key.clone());
                Flow::End
            }
            _ => {
                self.lease = None;
                Flow::End
            }
        }
    }

    /// Nobody waits for the load any more.
    fn abandon_load(&mut self) {
        if let Some(load) = self.load.take() {
            load.task.abort();
        }
    }

    fn check_serving(&self, serving: &Serving) -> Result<(), &'static str> {
        match serving.what {
            What::Brought => Err("a read has nothing that was brought"),
            What::Loaded if self.loaded.is_none() => Err("nothing was loaded"),
            What::Loaded if serving.mark != Mark::Fresh => Err("what was just loaded is fresh"),
            What::Loaded => Ok(()),
            What::Held => {
                let Some(held) = &self.held else { return Err("no copy is held") };
                let facts = held.facts(self.asked_at);
                let fresh = facts.fresh_ms > 0;
                match serving.mark {
                    Mark::Fresh if fresh || self.renewed.is_some() => Ok(()),
                    Mark::Fresh => Err("the copy is not fresh"),
                    Mark::Stale if fresh || facts.stale_ms > 0 => Ok(()),
                    Mark::Stale => Err("the copy may not be served stale"),
                    Mark::Rescued if !self.trouble => Err("nothing has failed or was slow that would need a rescue"),
                    Mark::Rescued if fresh || facts.stale_ms > 0 || facts.rescue_ms > 0 => Ok(()),
                    Mark::Rescued => Err("the copy may not be served any more"),
                }
            }
        }
    }

    /// Sets the quiet time that comes with a serve.
    fn hush(&self, serving: &Serving) {
        if serving.quiet_ms == 0 || serving.what != What::Held {
            return;
        }
        let (About::Key(key), Some(held)) = (&self.about, &self.held) else { return };
        if held.tier != 0 {
            return;
        }
        let now = self.inner.near.now();
        let windows = match serving.mark {
            Mark::Fresh => 0,
            Mark::Stale => held.copy.stale_ms,
            Mark::Rescued => held.copy.stale_ms.max(held.copy.rescue_ms),
        };
        let most = held.until.saturating_add(windows);
        let until = now.saturating_add(serving.quiet_ms).min(most);
        self.inner.near.hush(key, &held.copy, held.until, until);
    }

    fn served_value(&self, serving: &Serving) -> Served<V> {
        let how = how_of(serving.mark);
        match (&serving.what, &self.loaded, &self.held) {
            (What::Held, _, Some(held)) => {
                let age = Duration::from_millis(self.asked_at.saturating_sub(held.copy.born));
                Served { value: held.value.clone(), how, tier: Some(held.tier), age }
            }
            (_, Some(loaded), _) => Served { value: loaded.value.clone(), how, tier: None, age: Duration::ZERO },
            // `check_serving` has seen one of the two.
            _ => Served { value: None, how, tier: None, age: Duration::ZERO },
        }
    }

    /// Those who wait get what this operation's caller got.
    fn land_served(&mut self, serving: &Serving) {
        let Some(lead) = self.lead.take() else { return };
        let landing = match (serving.what, &self.loaded, &self.held) {
            (What::Loaded, Some(loaded), _) => loaded.clone(),
            (_, _, Some(Held { value, copy, .. })) if serving.mark == Mark::Fresh => {
                let Copy { validator, tags, cost_us, size, .. } = &**copy;
                Arc::new(Landing {
                    value: value.clone(),
                    validator: validator.clone(),
                    tags: tags.clone(),
                    incoming: Incoming {
                        cost_us: *cost_us,
                        size: *size,
                        negative: value.is_none(),
                        fresh_ms: None,
                        stale_ms: None,
                        rescue_ms: None,
                    },
                })
            }
            // A copy that is not fresh is each reader's own affair: they hear of the failure, and have the copy.
            _ => {
                let error = self.error.clone().unwrap_or_else(|| TieredError::new(super::Failure::Unavailable));
                lead.land(End::Failed(error.failure.into(), Some(error)));
                return;
            }
        };
        lead.land(End::Landed(landing));
    }
}

fn how_of(mark: Mark) -> How {
    match mark {
        Mark::Fresh => How::Fresh,
        Mark::Stale => How::Stale,
        Mark::Rescued => How::Rescued,
    }
}

/// What a module is told of what a source said.
pub(crate) fn incoming<V>(loaded: &Loaded<V>, cost_us: u64, size: u32) -> Incoming {
    let ms = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(NEVER));
    Incoming {
        cost_us,
        size,
        negative: matches!(loaded.value, SourceAnswer::Absent),
        fresh_ms: ms(loaded.fresh_for),
        stale_ms: ms(loaded.stale_for),
        rescue_ms: ms(loaded.rescue_for),
    }
}
