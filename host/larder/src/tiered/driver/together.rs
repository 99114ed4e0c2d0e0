//! How far callers take their reads themselves, before a task does: the first steps, each in one call for all, and the looks in
//! far tiers that these ask for, each in one round trip for all. Nothing is led or loaded yet, so a caller who leaves takes
//! nothing along.
//!
//! A read of which tier 0 has nothing is a [`Glance`] at first: a key and its token. How it starts is known, and what follows
//! if a far tier has a fresh copy was told with that start ("What the host need not ask" in `wit/patterns.wit`); so such a
//! read, which is what most are that tier 0 does not serve, comes to its end without an operation, which is large, and asks
//! for the time once for all. Whatever else a glance finds, an operation goes on with.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::Served;
use super::super::far::Looked;
use super::super::groups::Reached;
use super::super::host::Inner;
use super::super::near::{Copy, Key, Token};
use super::super::stats::ServedTally;
use super::{About, Held, Op, how_of};
use crate::engine::steps::{
    Action, Answer, Event, Keeping, Kind, Looking, Promotion, Rulebook, Serving, Then, Traits, Turn, What,
};

/// A read that its caller takes on.
pub(crate) enum Reading<'k, K: Key, V: Clone + Send + Sync + 'static> {
    Glance(Glance<'k, K>),
    Op(Box<Op<K, V>>),
    Served(Served<V>),
}

/// A read of which tier 0 has nothing.
pub(crate) struct Glance<'k, K> {
    key: &'k K,
    token: Token,
}

impl<'k, K: Key, V: Clone + Send + Sync + 'static> Reading<'k, K, V> {
    /// One of a key that tier 0 does not have. A copy that comes there meanwhile is found by who leads, or in the far tier.
    pub(crate) fn glance(inner: &Inner<K, V>, key: &'k K) -> Self {
        Reading::Glance(Glance { key, token: inner.near.token(key) })
    }

    fn op(&mut self) -> Option<&mut Op<K, V>> {
        if let Reading::Op(op) = self { Some(op) } else { None }
    }

    /// What its caller gets; or the operation that a task is to go on with.
    pub(crate) fn end(self) -> Result<Served<V>, Box<Op<K, V>>> {
        match self {
            Reading::Served(served) => Ok(served),
            Reading::Op(mut op) => op.serve_at_once().ok_or(op),
            Reading::Glance(_) => unreachable!("none is left where reads were taken together"),
        }
    }
}

/// How a glance starts: with a look in this tier, which says what a fresh copy leads to.
struct Start {
    cookie: u64,
    tier: u8,
    promotion: Promotion,
}

/// What all reads that are taken together have in common.
struct Together<'a, K: Key, V> {
    inner: &'a Arc<Inner<K, V>>,
    book: Arc<Rulebook>,
    traits: Traits,
    /// When they started.
    started: u64,
    /// `None`: no read has a start that would do for a glance.
    start: Option<Start>,
}

/// What a look in a far tier came to.
enum Sight<'a> {
    Looked(&'a str, &'a mut Looked),
    /// It is not to be looked at, for the journal has a write of the key.
    Absent,
    Down,
}

/// Takes reads as far as their callers may.
pub(crate) async fn read_together<K: Key, V: Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<K, V>>,
    traits: Traits,
    readings: &mut [Reading<'_, K, V>],
) {
    let book = inner.book.read().clone();
    let start = Start::of(inner, &book, traits);
    let together = Together { inner, book, traits, started: inner.near.now(), start };
    if together.start.is_none() {
        for reading in readings.iter_mut() {
            if let Reading::Glance(glance) = reading {
                *reading = Reading::Op(Box::new(together.op(glance)));
            }
        }
    }
    start_together(&mut readings.iter_mut().filter_map(Reading::op).collect::<Vec<_>>());
    // Each look leads to another tier, or to none.
    for _ in 1..8 {
        // Glances first: each is something else after its look.
        let glance = readings.iter().find(|reading| matches!(reading, Reading::Glance(_)));
        let next = glance.map_or_else(
            || readings.iter().find_map(|one| together.wants_to_look(one)),
            |one| together.wants_to_look(one),
        );
        let Some(tier) = next else { return };
        let looking = readings.iter_mut().filter(|reading| together.wants_to_look(reading) == Some(tier));
        let mut looking: Vec<_> = looking.collect();
        together.look(tier, &mut looking).await;
        step_together(&mut looking.into_iter().filter_map(Reading::op).collect::<Vec<_>>());
    }
}

/// Takes the first steps of operations.
pub(crate) fn start_together<K: Key, V: Clone + Send + Sync + 'static>(ops: &mut [&mut Op<K, V>]) {
    ops.iter_mut().for_each(|op| op.begun = Some((Event::Start, None)));
    step_together(ops);
}

/// Takes the next step of operations; of those that have to be asked for, in one call. Where that does not work out, each
/// takes its own.
fn step_together<K: Key, V: Clone + Send + Sync + 'static>(ops: &mut [&mut Op<K, V>]) {
    let Some(book) = ops.first().map(|op| op.book.clone()) else { return };
    if !ops.iter().all(|op| Arc::ptr_eq(&op.book, &book)) {
        return;
    }
    let (mut asking, mut turns) = (Vec::new(), Vec::new());
    for op in ops {
        let event = op.begun.map_or(Event::Start, |(event, _)| event);
        match op.known_answer(event) {
            Some(answer) => op.begun = Some((event, answer.ok())),
            None => {
                turns.push(op.turn(event));
                asking.push(op);
            }
        }
    }
    let answers = match turns[..] {
        [] => return,
        [Turn { moment, operation, event }] => book.step(moment, operation, event).map(|answer| vec![answer]),
        _ => book.step_many(&turns),
    };
    if let Ok(answers) = answers {
        asking.into_iter().zip(turns).zip(answers).for_each(|((op, turn), answer)| {
            op.begun = Some((turn.event, Some(answer)));
        });
    }
}

impl Start {
    fn of<K: Key, V: Clone + Send + Sync + 'static>(
        inner: &Inner<K, V>,
        book: &Rulebook,
        traits: Traits,
    ) -> Option<Self> {
        let Answer { cookie, action } = book.start_of_read(traits.contains(Traits::CACHED_ONLY)).ok()?;
        let Action::Look(Looking { tier: tier @ 1..8, promote: Some(promotion) }) = action else { return None };
        // To keep what was found in a far tier, too, others may wait for.
        let only_near = promotion.tiers & !1 == 0;
        (only_near && inner.tiers() & 1 << tier != 0).then_some(Start { cookie, tier, promotion })
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Together<'_, K, V> {
    /// The operation that a glance becomes.
    fn op(&self, glance: &Glance<'_, K>) -> Op<K, V> {
        let about = About::Key(glance.key.clone());
        let mut op = Op::at(self.inner.clone(), self.book.clone(), self.started, Kind::Read, about);
        op.traits = self.traits;
        op.near_token = Some(glance.token);
        op
    }

    /// The far tier in which a reading is to look next.
    fn wants_to_look(&self, reading: &Reading<'_, K, V>) -> Option<u8> {
        match reading {
            Reading::Glance(_) => self.start.as_ref().map(|start| start.tier),
            Reading::Op(op) => op.wants_to_look(),
            Reading::Served(_) => None,
        }
    }

    async fn look(&self, tier: u8, readings: &mut [&mut Reading<'_, K, V>]) {
        let (inner, far) = (self.inner, &self.inner.far[usize::from(tier) - 1]);
        // All names in one piece: of most, nothing is left when this is over.
        let (mut asked, mut names) = (Vec::with_capacity(readings.len()), String::new());
        let mut ends = Vec::with_capacity(readings.len());
        for reading in readings {
            let key = match reading {
                Reading::Glance(glance) => glance.key,
                Reading::Op(op) => match op.begins_to_look(tier) {
                    Some(key) => key,
                    None => continue,
                },
                Reading::Served(_) => continue,
            };
            if inner.is_logged(key) {
                self.saw(reading, tier, Sight::Absent, 0);
                continue;
            }
            let begin = names.len();
            inner.write_far_name(key, &mut names);
            if inner.may_look(far, &names[begin..]) {
                asked.push(reading);
                ends.push(names.len());
            } else {
                names.truncate(begin);
                self.saw(reading, tier, Sight::Down, 0);
            }
        }
        let mut begin = 0;
        let names: Vec<_> = ends.iter().map(|&end| &names[std::mem::replace(&mut begin, end)..end]).collect();
        let limit = inner.limits.tier;
        let looked = match &names[..] {
            [] => return,
            [name] => far.call(limit, far.tier.get(name)).await.map(|looked| vec![looked]),
            _ => far.call(limit, far.tier.get_many(&names)).await,
        };
        let mut looked = match looked {
            Ok(looked) if looked.len() == asked.len() => looked,
            failed => {
                if let Ok(looked) = failed {
                    tracing::warn!(tier = far.tier.summary(), "{} answers for {} keys", looked.len(), asked.len());
                }
                asked.into_iter().for_each(|reading| self.saw(reading, tier, Sight::Down, 0));
                return;
            }
        };
        let now = inner.near.now();
        inner.near.fetch(asked.iter().filter_map(|reading| match &**reading {
            Reading::Glance(glance) => Some(&glance.token),
            _ => None,
        }));
        // Counted here, and told once: a locked instruction for each of many takes longer than all of its counting.
        let (mut far_hits, mut served) = (0, ServedTally::default());
        for ((reading, name), looked) in asked.into_iter().zip(&names).zip(&mut looked) {
            far_hits += u64::from(looked.copy.is_some());
            self.saw(reading, tier, Sight::Looked(name, looked), now);
            if let Reading::Served(one) = &**reading {
                served.count(one);
            }
        }
        inner.tally.far_hits.fetch_add(far_hits, Relaxed);
        inner.tally.add(&served);
    }

    /// Takes in what the look of a reading came to, at this moment.
    fn saw(&self, reading: &mut Reading<'_, K, V>, tier: u8, sight: Sight<'_>, now: u64) {
        match reading {
            Reading::Glance(glance) => *reading = self.seen(glance, tier, sight, now),
            Reading::Op(op) => {
                let event = match sight {
                    Sight::Down => Event::TierDown,
                    Sight::Absent => Event::Absent,
                    Sight::Looked(name, looked) => match op.take_looked(tier, name, looked) {
                        Some(found) => {
                            op.take_if_better(found);
                            Event::Found
                        }
                        None => Event::Absent,
                    },
                };
                op.begun = Some((event, None));
            }
            Reading::Served(_) => {}
        }
    }

    /// What becomes of a glance: it is served, or an operation goes on from what it saw.
    fn seen<'k>(&self, glance: &Glance<'k, K>, tier: u8, sight: Sight<'_>, now: u64) -> Reading<'k, K, V> {
        let (event, held, token) = match sight {
            Sight::Down => (Event::TierDown, None, None),
            Sight::Absent => (Event::Absent, None, None),
            Sight::Looked(name, looked) => {
                let token = Some(looked.token);
                match self.inner.copy_of_far(tier, name, looked, glance.token.stamp, now) {
                    Some((value, copy)) => match self.serve(glance, tier, value, copy, now) {
                        Ok(served) => return Reading::Served(served),
                        Err(held) => (Event::Found, Some(held), token),
                    },
                    None => (Event::Absent, None, token),
                }
            }
        };
        let mut op = self.op(glance);
        if let Some(Start { cookie, promotion, .. }) = self.start {
            (op.cookie, op.promotion) = (cookie, Some((tier, promotion)));
        }
        if let Some(token) = token {
            op.take_far_token(tier, token);
        }
        op.held = held;
        op.begun = Some((event, None));
        Reading::Op(Box::new(op))
    }

    /// Serves what a glance found, if its start said so, and nothing has reached it meanwhile; else it is held.
    fn serve(
        &self,
        glance: &Glance<'_, K>,
        tier: u8,
        value: Option<V>,
        mut copy: Copy,
        now: u64,
    ) -> Result<Served<V>, Held<V>> {
        let key = glance.key;
        let is_untouched = self.inner.near.reached(key, &glance.token, &copy.tags, copy.stamp) == Reached::Untouched;
        let facts = copy.facts(tier, copy.fresh_until(), now);
        let told = self.start.as_ref().filter(|_| is_untouched).and_then(|start| start.promotion.answer(&facts));
        let Some(Answer { action: Action::Serve(Serving { mark, keep, .. }), .. }) = told else {
            return Err(Held::far(tier, value, copy));
        };
        let age = Duration::from_millis(now.saturating_sub(copy.born));
        if let Some(Keeping { terms, .. }) = &keep {
            copy.set_terms(terms, now, glance.token.stamp);
            self.inner.keep_near(key, value.clone(), Arc::new(copy), &glance.token, now);
        }
        Ok(Served { value, how: how_of(mark), tier: Some(tier), age })
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Op<K, V> {
    /// The far tier in which its next step is to look.
    fn wants_to_look(&self) -> Option<u8> {
        match self.begun {
            Some((_, Some(Answer { action: Action::Look(Looking { tier: tier @ 1..8, .. }), .. }))) => {
                (self.kind == Kind::Read && self.has_tiers(1 << tier)).then_some(tier)
            }
            _ => None,
        }
    }

    /// Takes its step to look in a far tier, and says what is looked for.
    fn begins_to_look(&mut self, tier: u8) -> Option<&K> {
        if let Some((_, Some(Answer { cookie, action: Action::Look(looking) }))) = self.begun {
            self.cookie = cookie;
            self.promotion = looking.promote.map(|promotion| (tier, promotion));
        }
        self.begun = Some((Event::TierDown, None));
        if let About::Key(key) = &self.about { Some(key) } else { None }
    }

    /// Serves a copy that it holds, where nothing else is left to do than to keep that in tier 0: nothing that others could wait
    /// for, so it needs no task. Whatever is wrong with the answer, [`Self::run`] says.
    fn serve_at_once(&mut self) -> Option<Served<V>> {
        let Some((_, Some(Answer { action: Action::Serve(serving), .. }))) = self.begun else { return None };
        let is_near = |keeping: &Keeping| keeping.what == What::Held && keeping.tiers == 1 && !keeping.announce;
        let only_serves = serving.then == Then::End && serving.what == What::Held && serving.keep.iter().all(is_near);
        if !only_serves || self.check_serving(&serving).is_err() {
            return None;
        }
        if let Some(keeping) = &serving.keep {
            self.check_keeping(keeping).ok()?;
            self.keep_held_near(&keeping.terms);
        }
        self.hush(&serving);
        let how = how_of(serving.mark);
        // The operation is at its end: its copy of the value is the caller's.
        let held = self.held.take()?;
        let age = Duration::from_millis(self.asked_at.saturating_sub(held.copy.born));
        let served = Served { value: held.value, how, tier: Some(held.tier), age };
        self.inner.tally.count(&served);
        Some(served)
    }
}
