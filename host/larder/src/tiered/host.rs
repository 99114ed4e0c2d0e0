//! What the operations of one cache share: its tiers with their breakers, its source, its rules, and what is still owed to
//! tiers and processes that could not be reached.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use super::board::Board;
use super::codec::{BoxError, Codec};
use super::driver::{self, About, Landing, Op, Reply};
use super::gate::{Ended, Gate, GateLimits, later};
use super::journal::{Part, Record};
use super::near::{Copy, Near, Token};
use super::source::Answer;
use super::stats::Counters;
use super::{
    BoxFuture, Bus, Failure, FarCopy, Group, Key, Listener, Loaded, Looked, News, Scope, Source, Tier, TierError,
    TieredError, Untold, WriteId,
};
use crate::Value;
use crate::engine::steps::{self, Incoming, Kind, Outcome, Rulebook, Terms, Traits};
use crate::eviction::NEVER;
use crate::patterns::PatternsModule;

/// The limits that the host sets by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(super) tier: Duration,
    pub(super) load: Duration,
    pub(super) save: Duration,
    pub(super) refreshes: usize,
    pub(super) tier_gate: GateLimits,
    pub(super) source_gate: GateLimits,
}

/// What a far tier is to drop as soon as it can be reached, and what other processes are to be told then.
#[derive(Clone)]
pub(super) struct Owed {
    /// Another one each time that it is owed: what is owed anew while it is being paid is not paid by that.
    number: u64,
    scope: Scope,
    news: News,
    /// Whether others are told: not of what only this process's own copies may have missed.
    announce: bool,
}

impl Owed {
    fn is_same(&self, other: &Owed) -> bool {
        self.scope == other.scope && self.news == other.news && self.announce == other.announce
    }
}

/// A far tier with its gate, and what is owed there.
pub(crate) struct Far {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) gate: Gate,
    /// In the order in which it is paid.
    pub(super) owed: Mutex<Vec<Owed>>,
    pub(super) owing: AtomicUsize,
    /// How often something was owed.
    owings: AtomicU64,
}

/// What came of telling tiers and other processes of something, with who could not be told.
pub(super) struct Telling {
    pub(super) outcome: Outcome,
    pub(super) untold: Vec<Untold>,
}

impl Telling {
    pub(super) fn new() -> Self {
        Telling { outcome: Outcome { fenced: 0, down: 0, declined: 0, unannounced: false }, untold: Vec::new() }
    }

    /// The far tier of this index could not be told.
    pub(super) fn missed(&mut self, at: usize, far: &Far, error: TierError) {
        self.outcome.down |= 2 << at;
        self.untold.push(Untold { what: format!("tier {}, {}", at + 1, far.tier.summary()), error });
    }

    /// The bus was told, or not.
    pub(super) fn announced(&mut self, told: Result<(), Untold>) {
        self.outcome.unannounced = told.is_err();
        self.untold.extend(told.err());
    }

    /// What an operation that needs all to know ends with.
    pub(super) fn result(self) -> Result<(), TieredError> {
        let all_know = self.outcome.down == 0 && !self.outcome.unannounced;
        if all_know { Ok(()) } else { Err(TieredError::unreached(self.untold)) }
    }
}

/// So many invalidations are owed to a tier, or to the bus, one by one.
const MOST_OWED: usize = 1_000;

/// So many keys are owed as one: a longer list might never be done within the time that a tier has to answer.
const OWED_KEYS: usize = 500;

/// A scope in parts that are owed one by one.
fn parts(scope: Scope) -> Vec<Scope> {
    match scope {
        Scope::Keys(keys) if keys.len() > OWED_KEYS => {
            keys.chunks(OWED_KEYS).map(|keys| Scope::Keys(keys.to_vec())).collect()
        }
        scope => vec![scope],
    }
}

/// Whether it was refused alone: others may be taken.
fn is_refused_alone(error: &TierError) -> bool {
    match error {
        TierError::Refused(refusal) => !refusal.is_outage,
        TierError::Unsupported(_) => true,
        TierError::Unavailable(_) | TierError::TimedOut => false,
    }
}

impl Far {
    pub(super) fn new(number: usize, tier: Arc<dyn Tier>, limits: GateLimits) -> Self {
        Far {
            gate: Gate::new(format!("tier {number}: {}", tier.summary()), limits),
            tier,
            owed: Mutex::default(),
            owing: AtomicUsize::new(0),
            owings: AtomicU64::new(0),
        }
    }

    /// Whether a key must not be read before something has been dropped.
    pub(super) fn owes(&self, name: &str) -> bool {
        self.owing.load(Ordering::Acquire) > 0
            && self.owed.lock().iter().any(|owed| match &owed.scope {
                Scope::Keys(keys) => keys.iter().any(|key| **key == *name),
                Scope::Group(Group::Prefix(prefix)) => name.starts_with(&**prefix),
                // Which copies carry a tag is not known before they are read.
                Scope::Group(Group::Tag(_)) => true,
            })
    }

    /// Calls the tier, within a time limit, unless it is being left alone.
    pub(super) async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, TierError>>,
    ) -> Result<T, TierError> {
        let deadline = later(tokio::time::Instant::now(), limit);
        let called = tokio::time::timeout_at(deadline, async {
            let pass =
                self.gate.enter_until(deadline).await.map_err(|shut| TierError::Unavailable(shut.to_string()))?;
            let called = call.await;
            pass.end(match &called {
                Ok(_) => Ended::Well,
                // It may take other calls: a full memory does not hold up reads.
                Err(TierError::Refused(refusal)) if !refusal.is_outage => Ended::Well,
                Err(_) => Ended::Badly,
            });
            called
        });
        called.await.unwrap_or(Err(TierError::TimedOut))
    }
}

pub(crate) struct Inner<K: Key, V> {
    pub(super) name: Arc<str>,
    pub(super) near: Near<K, V>,
    pub(super) far: Vec<Far>,
    pub(super) source: Option<Arc<dyn Source<K, V>>>,
    /// What stands before the source.
    pub(super) source_gate: Arc<Gate>,
    pub(super) bus: Option<Arc<dyn Bus>>,
    pub(super) journal: Option<Part>,
    pub(super) codec: Option<Codec<V>>,
    pub(super) board: Arc<Board<K, Landing<V>>>,
    pub(super) refreshing: Mutex<HashSet<K>>,
    pub(super) book: RwLock<Arc<Rulebook>>,
    /// What the book was opened from; held while another one is.
    pub(super) rules: Mutex<(PatternsModule, Vec<(String, Value)>)>,
    pub(super) limits: Limits,
    pub(super) tally: Counters,
    pub(super) steps: Arc<steps::Tally>,
    pub(super) random: AtomicU64,
    /// The next holder of a lease: unlike those of any other process, whatever the seed.
    pub(super) holders: AtomicU64,
    /// Tells this process from others.
    pub(super) process: u64,
    pub(super) news_owed: Mutex<Vec<News>>,
    pub(super) catching_up: AtomicBool,
    pub(super) me: Weak<Inner<K, V>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Inner<K, V> {
    /// Its tiers as a set.
    pub(super) fn tiers(&self) -> u8 {
        ((1u16 << (self.far.len() + 1)) - 1) as u8
    }

    /// Those that other processes use, too.
    pub(super) fn shared(&self) -> u8 {
        shared_of(self.far.iter().map(|far| &far.tier))
    }

    /// Whether the journal has a write of a key, which far tiers may not have: another process may have put there what
    /// the source has still. To be asked before [`Self::may_look`], for a flush owes before its write leaves the
    /// journal.
    pub(super) fn is_logged(&self, key: &K) -> bool {
        self.journal.as_ref().is_some_and(|part| part.newest(&key.text()).is_some())
    }

    /// Whether a key may be read in a far tier: not before what is owed there has been dropped, and in one of this process's
    /// own not while it cannot hear what others invalidate.
    pub(super) fn may_look(&self, far: &Far, name: &str) -> bool {
        !far.owes(name) && (far.tier.is_shared() || self.near.is_trusted())
    }

    /// SplitMix64.
    pub(super) fn random(&self) -> u64 {
        let z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A name for a write, unlike that of any other, in whatever process.
    pub(super) fn write_id(&self) -> WriteId {
        WriteId(u128::from(self.process) << 64 | u128::from(self.holders.fetch_add(1, Relaxed)))
    }

    /// What a key is called in far tiers.
    pub(super) fn far_name(&self, key: &K) -> String {
        let mut name = String::new();
        self.write_far_name(key, &mut name);
        name
    }

    /// Appends [`Self::far_name`].
    pub(super) fn write_far_name(&self, key: &K, name: &mut String) {
        name.push_str(&self.name);
        name.push(':');
        key.write_text(name);
    }

    pub(super) fn far_scope(&self, about: &About<K>) -> Scope {
        match about {
            About::Key(key) => Scope::Keys(vec![self.far_name(key).into()]),
            About::Keys(keys) => Scope::Keys(keys.iter().map(|key| self.far_name(key).into()).collect()),
            About::Group(Group::Prefix(prefix)) => {
                Scope::Group(Group::Prefix(format!("{}:{prefix}", self.name).into()))
            }
            About::Group(Group::Tag(tag)) => Scope::Group(Group::Tag(format!("{}:{tag}", self.name).into())),
        }
    }

    /// The same as other processes are told it.
    pub(super) fn near_scope(&self, about: &About<K>) -> Scope {
        match about {
            About::Key(key) => Scope::Keys(vec![key.text().into()]),
            About::Keys(keys) => Scope::Keys(keys.iter().map(|key| key.text().into()).collect()),
            About::Group(group) => Scope::Group(group.clone()),
        }
    }

    /// What is told, as this process knows it.
    pub(super) fn about(&self, news: &News) -> About<K> {
        match &news.scope {
            Scope::Group(group) => About::Group(group.clone()),
            Scope::Keys(keys) => {
                let known: Option<Vec<K>> = keys.iter().map(|key| K::of_text(key)).collect();
                // A key that is none here: rather too much than too little.
                known.map_or(About::Group(Group::Prefix("".into())), |mut known| match known.len() {
                    1 => About::Key(known.remove(0)),
                    _ => About::Keys(known),
                })
            }
        }
    }

    pub(super) fn landing(&self, loaded: Loaded<V>, cost_us: u64) -> Landing<V> {
        let size = match (&loaded.value, &self.codec) {
            (Answer::Value(_), None) => size_of::<V>(),
            // One that cannot be encoded is told of where it is to be kept.
            (Answer::Value(value), Some(codec)) => codec.encode(value).map_or(0, |bytes| bytes.len()),
            _ => 0,
        };
        let incoming = driver::incoming(&loaded, cost_us, u32::try_from(size).unwrap_or(u32::MAX));
        let value = if let Answer::Value(value) = loaded.value { Some(value) } else { None };
        Landing { value, validator: loaded.validator, tags: loaded.tags.into(), incoming }
    }

    /// A write as a journal has it; none if its value cannot be encoded.
    pub(super) fn record(&self, part: &Part, key: &K, brought: Option<&Landing<V>>) -> Result<Record, BoxError> {
        let Some(brought) = brought else { return Ok(part.record(&key.text(), None)) };
        let value = match (&brought.value, &self.codec) {
            (Some(value), Some(codec)) => Some(codec.encode(value)?.into()),
            // The builder asks for a codec where there is a journal.
            (Some(_), None) => return Err("there is no codec".into()),
            (None, _) => None,
        };
        let Incoming { fresh_ms, stale_ms, rescue_ms, .. } = brought.incoming;
        Ok(Record {
            validator: brought.validator.clone(),
            tags: brought.tags.clone(),
            fresh_ms,
            stale_ms,
            rescue_ms,
            ..part.record(&key.text(), value)
        })
    }

    /// The same as it was brought.
    pub(super) fn landing_of(&self, record: &Record) -> Result<Landing<V>, BoxError> {
        let value = match (&record.value, &self.codec) {
            (Some(bytes), Some(codec)) => Some(codec.decode(bytes)?),
            _ => None,
        };
        let size = record.value.as_ref().map_or(0, |bytes| bytes.len());
        let incoming = Incoming {
            cost_us: 0,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            negative: value.is_none(),
            fresh_ms: record.fresh_ms,
            stale_ms: record.stale_ms,
            rescue_ms: record.rescue_ms,
        };
        Ok(Landing { value, validator: record.validator.clone(), tags: record.tags.clone(), incoming })
    }

    /// A copy for a far tier; none if its value cannot be encoded.
    pub(super) fn far_copy(
        &self,
        value: Option<&V>,
        validator: Option<Arc<str>>,
        tags: &[Arc<str>],
        age_ms: u64,
        cost_us: u64,
        terms: &Terms,
    ) -> Option<FarCopy> {
        let value = match (value, &self.codec) {
            (Some(value), Some(codec)) => match codec.encode(value) {
                Ok(bytes) => Some(bytes.into()),
                Err(error) => {
                    tracing::warn!(keyspace = &*self.name, %error, "a value cannot be encoded, and is kept in no far tier");
                    return None;
                }
            },
            (Some(_), None) => return None,
            (None, _) => None,
        };
        Some(FarCopy {
            value,
            validator,
            tags: tags.iter().map(|tag| format!("{}:{tag}", self.name).into()).collect(),
            age_ms,
            fresh_ms: terms.fresh_ms,
            stale_ms: terms.stale_ms,
            rescue_ms: terms.rescue_ms,
            early_us: terms.early_us,
            cost_us,
        })
    }

    /// The copy that a look in a far tier found, as of `now`; none if there is none, or it is damaged.
    pub(super) fn copy_of_far(
        &self,
        tier: u8,
        name: &str,
        looked: &mut Looked,
        stamp: u64,
        now: u64,
    ) -> Option<(Option<V>, Copy)> {
        if looked.damaged {
            self.tally.damaged.fetch_add(1, Relaxed);
            let tier = self.far[usize::from(tier) - 1].tier.summary();
            tracing::warn!(tier, key = name, "what lies in a far tier cannot be read");
        }
        // Its parts are taken out where it lies: it is large.
        let far = looked.copy.as_mut()?;
        let size = far.value.as_ref().map_or(0, |bytes| bytes.len());
        let value = match (far.value.take(), &self.codec) {
            (Some(bytes), Some(codec)) => match codec.decode_owned(bytes) {
                Ok(value) => Some(value),
                Err(error) => {
                    self.tally.damaged.fetch_add(1, Relaxed);
                    tracing::warn!(keyspace = &*self.name, %error, "a copy in a far tier cannot be read");
                    return None;
                }
            },
            _ => None,
        };
        let own = |tag: &Arc<str>| tag.get(self.name.len() + 1..).map(Arc::from);
        let terms = Terms {
            fresh_ms: far.fresh_ms,
            stale_ms: far.stale_ms,
            rescue_ms: far.rescue_ms,
            near_ms: NEVER,
            quiet_ms: 0,
            early_us: far.early_us,
        };
        let copy = Copy::new(
            value.is_none(),
            far.validator.take(),
            if far.tags.is_empty() { Arc::default() } else { far.tags.iter().filter_map(own).collect() },
            now.saturating_sub(far.age_ms),
            far.cost_us,
            u32::try_from(size).unwrap_or(u32::MAX),
            &terms,
            now,
            stamp,
        );
        Some((value, copy))
    }

    /// Keeps in tier 0, from `now` on, what a read holds.
    pub(super) fn keep_near(&self, key: &K, value: Option<V>, copy: Arc<Copy>, token: &Token, now: u64) {
        if !self.near.keep(key, value, copy, token, false, now) {
            self.tally.fenced.fetch_add(1, Relaxed);
        }
    }

    /// Begins an operation in a task of its own.
    pub(super) fn begin(&self, mut op: Op<K, V>) -> oneshot::Receiver<Result<Reply<K, V>, TieredError>> {
        let (reply, answer) = oneshot::channel();
        op.reply = Some(reply);
        tokio::spawn(op.run());
        answer
    }

    /// Runs an operation in a task of its own, and waits for what its caller gets.
    pub(super) async fn run(&self, op: Op<K, V>) -> Result<Reply<K, V>, TieredError> {
        ended(self.begin(op).await)
    }

    /// Loads a key anew in the background, unless that is under way.
    pub(super) fn refresh(&self, key: K) {
        let Some(me) = self.me.upgrade() else { return };
        {
            let mut refreshing = self.refreshing.lock();
            if refreshing.len() >= self.limits.refreshes || !refreshing.insert(key.clone()) {
                return;
            }
        }
        self.tally.refreshes.fetch_add(1, Relaxed);
        // Taken off also where the task is dropped.
        let off = Refreshing { inner: me.clone(), key: key.clone() };
        let op = Op::new(me, Kind::Refresh, About::Key(key));
        tokio::spawn(async move {
            op.run().await;
            drop(off);
        });
    }

    /// Takes copies away or ends their freshness: the farthest tier first, tier 0 last; then other processes are told. All are
    /// tried, whoever of them fails.
    pub(super) async fn forget(&self, about: &About<K>, tiers: u8, announce: bool, soft: bool) -> Telling {
        let mut telling = Telling::new();
        let scope = self.far_scope(about);
        for (at, far) in self.far.iter().enumerate().rev().filter(|(at, _)| tiers & 2 << at != 0) {
            if let Err(error) = far.call(self.limits.tier, far.tier.invalidate(&scope, soft)).await {
                telling.missed(at, far, error);
                self.owe(at, about, soft);
            }
        }
        if tiers & 1 != 0 {
            self.forget_near(about, soft);
        }
        if announce {
            let scope = self.near_scope(about);
            telling.announced(self.announce(scope, soft).await);
        }
        telling
    }

    pub(super) fn forget_near(&self, about: &About<K>, soft: bool) {
        let one = |key: &K| self.board.fence(key, || self.near.invalidate(key, soft));
        match about {
            About::Key(key) => one(key),
            About::Keys(keys) => keys.iter().for_each(one),
            About::Group(group) => {
                self.near.bump(group, soft);
                // What a load will be tagged with is not known before it ends.
                self.board.take_off(|key| match group {
                    Group::Prefix(prefix) => key.text().starts_with(&**prefix),
                    Group::Tag(_) => true,
                });
            }
        }
    }

    pub(super) async fn drop_everywhere(&self, about: &About<K>) {
        self.forget(about, self.tiers(), self.bus.is_some(), false).await;
    }

    /// Tells other processes; where some could not be told, that is owed.
    pub(super) async fn announce(&self, scope: Scope, soft: bool) -> Result<(), Untold> {
        let (Some(bus), Some(me)) = (&self.bus, self.me.upgrade()) else { return Ok(()) };
        let news = self.news(scope, soft);
        let me: Arc<dyn Listener> = me;
        let Err(error) = self.tell(&**bus, &me, news.clone()).await else { return Ok(()) };
        parts(news.scope).into_iter().for_each(|scope| self.owe_news(self.news(scope, soft)));
        self.catch_up();
        Err(Untold { what: format!("the bus, {}", bus.summary()), error })
    }

    async fn tell(&self, bus: &dyn Bus, me: &Arc<dyn Listener>, news: News) -> Result<(), TierError> {
        let told = tokio::time::timeout(self.limits.tier, bus.announce(me, news)).await;
        told.unwrap_or(Err(TierError::TimedOut))
    }

    fn news(&self, scope: Scope, soft: bool) -> News {
        News { keyspace: self.name.clone(), scope, soft }
    }

    /// Others are to be told as soon as the bus can be reached.
    fn owe_news(&self, news: News) {
        if self.bus.is_none() {
            return;
        }
        let all = self.news(Scope::Group(Group::Prefix("".into())), false);
        let mut owed = self.news_owed.lock();
        if owed.contains(&news) || owed.contains(&all) {
            return;
        }
        // Too much to remember: all of the keyspace.
        if owed.len() < MOST_OWED { owed.push(news) } else { *owed = vec![all] }
    }

    /// Something is to be dropped in a far tier as soon as that can be reached, and then announced.
    pub(super) fn owe(&self, at: usize, about: &About<K>, soft: bool) {
        self.owe_and(at, about, soft, true);
    }

    /// The far tiers of this process's own are to drop what others may have invalidated unheard.
    pub(super) fn distrust(&self, about: &About<K>) {
        for (at, _) in self.far.iter().enumerate().filter(|(_, far)| !far.tier.is_shared()) {
            self.owe_and(at, about, false, false);
        }
    }

    fn owe_and(&self, at: usize, about: &About<K>, soft: bool, announce: bool) {
        let far = &self.far[at];
        let owed_of = |scope, near, soft, announce| {
            let number = far.owings.fetch_add(1, Relaxed);
            Owed { number, scope, news: self.news(near, soft), announce }
        };
        let mut owed = far.owed.lock();
        for (scope, near) in parts(self.far_scope(about)).into_iter().zip(parts(self.near_scope(about))) {
            let new = owed_of(scope, near, soft, announce);
            match owed.iter_mut().find(|owed| owed.is_same(&new)) {
                Some(same) => same.number = new.number,
                None => owed.push(new),
            }
        }
        // Too much to remember: all of the keyspace.
        if owed.len() > MOST_OWED {
            let all = About::Group(Group::Prefix("".into()));
            let announce = owed.iter().any(|owed| owed.announce);
            *owed = vec![owed_of(self.far_scope(&all), self.near_scope(&all), false, announce)];
        }
        far.owing.store(owed.len(), Ordering::Release);
        drop(owed);
        self.catch_up();
    }

    /// Sees to it that what is owed is done.
    pub(super) fn catch_up(&self) {
        if self.catching_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let me = self.me.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(50);
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
                let Some(inner) = me.upgrade() else { return };
                if inner.pay().await {
                    inner.catching_up.store(false, Ordering::Release);
                    // Something may have come in between.
                    if inner.owed() > 0 && !inner.catching_up.swap(true, Ordering::AcqRel) {
                        continue;
                    }
                    return;
                }
            }
        });
    }

    /// Whether a far tier is still to drop what it has of a key; of an empty one: whether it is to drop anything.
    pub(super) fn is_owed(&self, key: &str) -> bool {
        let name = format!("{}:{key}", self.name);
        let owes = |far: &Far| if key.is_empty() { far.owing.load(Ordering::Acquire) > 0 } else { far.owes(&name) };
        self.far.iter().any(owes)
    }

    pub(super) fn owed(&self) -> usize {
        self.far.iter().map(|far| far.owing.load(Ordering::Acquire)).sum::<usize>() + self.news_owed.lock().len()
    }

    /// Drops what is owed, and tells what is to be told; whether all is done. What cannot be paid does not hold up the
    /// rest.
    pub(super) async fn pay(&self) -> bool {
        let mut done = true;
        for far in &self.far {
            done &= self.pay_tier(far).await;
        }
        done & self.pay_news().await
    }

    async fn pay_tier(&self, far: &Far) -> bool {
        let owed = far.owing.load(Ordering::Acquire);
        let done = self.pay_in_order(far).await;
        // What is owed anew meanwhile may hide that something was paid; then the next time is soon enough.
        if let Some(part) = self.journal.as_ref().filter(|_| far.owing.load(Ordering::Acquire) < owed) {
            part.settle(|key| self.is_owed(key));
        }
        done
    }

    async fn pay_in_order(&self, far: &Far) -> bool {
        let numbers: Vec<u64> = far.owed.lock().iter().map(|owed| owed.number).collect();
        for number in numbers {
            // It may have been put together with others meanwhile, or be owed anew.
            let Some(one) = far.owed.lock().iter().find(|owed| owed.number == number).cloned() else { continue };
            let paid = far.call(self.limits.tier, far.tier.invalidate(&one.scope, one.news.soft)).await;
            if let Err(error) = paid {
                if is_refused_alone(&error) {
                    continue;
                }
                // Should it be this one that takes too long, the next time others come first.
                let mut owed = far.owed.lock();
                if let Some(at) = owed.iter().position(|owed| owed.number == number) {
                    owed[at..].rotate_left(1);
                }
                return false;
            }
            // What was read there meanwhile, by whoever did not know, is dropped too.
            self.forget_near(&self.about(&one.news), one.news.soft);
            if one.announce {
                self.owe_news(one.news);
            }
            let mut owed = far.owed.lock();
            owed.retain(|owed| owed.number != number);
            far.owing.store(owed.len(), Ordering::Release);
        }
        far.owed.lock().is_empty()
    }

    async fn pay_news(&self) -> bool {
        let (Some(bus), Some(me)) = (&self.bus, self.me.upgrade()) else { return true };
        let me: Arc<dyn Listener> = me;
        let mut news = std::mem::take(&mut *self.news_owed.lock()).into_iter();
        let (mut refused, mut failed) = (Vec::new(), None);
        for one in news.by_ref() {
            match self.tell(&**bus, &me, one.clone()).await {
                Ok(()) => {}
                Err(error) if is_refused_alone(&error) => refused.push(one),
                Err(_) => {
                    failed = Some(one);
                    break;
                }
            }
        }
        // The next time others come first.
        news.chain(refused).chain(failed).for_each(|news| self.owe_news(news));
        self.news_owed.lock().is_empty()
    }
}

/// Those of far tiers that other processes use, too, as a set.
pub(super) fn shared_of<'a>(far: impl Iterator<Item = &'a Arc<dyn Tier>>) -> u8 {
    far.zip(1..8).filter(|(tier, _)| tier.is_shared()).fold(0, |all, (_, at)| all | 1 << at)
}

/// What an operation's caller gets.
pub(super) fn ended<T>(answer: Result<Result<T, TieredError>, oneshot::error::RecvError>) -> Result<T, TieredError> {
    // The task is gone: its runtime is shutting down, or user code (a codec, say) panicked.
    let stopped = |_| TieredError { failure: Failure::Unavailable, cause: Some(Arc::new(Stopped) as Arc<_>) };
    answer.map_err(stopped).and_then(|answer| answer)
}

struct Refreshing<K: Key, V> {
    inner: Arc<Inner<K, V>>,
    key: K,
}

impl<K: Key, V> Drop for Refreshing<K, V> {
    fn drop(&mut self) {
        self.inner.refreshing.lock().remove(&self.key);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the operation's task was stopped")]
struct Stopped;

impl<K: Key, V: Clone + Send + Sync + 'static> Listener for Inner<K, V> {
    fn hear<'a>(&'a self, news: &'a News) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if news.keyspace != self.name {
                return;
            }
            let about = self.about(news);
            let Some(me) = self.me.upgrade() else { return };
            let mut op = Op::new(me, Kind::Invalidate, about.clone());
            op.traits = Traits::HEARD;
            if news.soft {
                op.traits |= Traits::SOFT;
            }
            if self.run(op).await.is_err() {
                // Whoever announced believes that it is done.
                self.forget_near(&about, false);
                self.distrust(&about);
            }
        })
    }

    fn lose_track(&self) {
        let all = About::Group(Group::Prefix("".into()));
        self.distrust(&all);
        self.forget_near(&all, false);
    }

    fn trust_until(&self, until: tokio::time::Instant) {
        self.near.trust_until(until);
    }
}
