//! A cache of tiers over a source, whose patterns (how it reads, writes, refreshes and invalidates) a module decides.
//!
//! ```
//! use std::time::Duration;
//! use larder::tiered::{FromFn, Tiered};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let products = Tiered::builder()
//!     .keyspace("products")
//!     .max_capacity(10_000)
//!     .source(FromFn::new(|id: u64| async move { Ok::<_, std::io::Error>(Some(format!("product {id}"))) }))
//!     .rule("ttl-ms", Duration::from_secs(60))
//!     .rule("stale-if-error-ms", Duration::from_secs(3600))
//!     .build()?;
//!
//! assert_eq!(products.get(&7).await?.as_deref(), Some("product 7"));
//! products.invalidate(&7).await?;
//! # Ok(()) }
//! ```
//!
//! [`Tiered`] is one keyspace: keys and values of one type under one rule. Its tier 0 is a [`Cache`](crate::Cache), with
//! any eviction policy; behind it come far tiers ([`Tier`]) that several processes may share, and a [`Source`]. What a rule
//! may set is what the module's card lists: see [`Patterns`](crate::Patterns).
//!
//! A hit in tier 0 costs what a hit of the engine costs and a look at the copy's terms. All else is an operation: it runs in a
//! task of its own, so the methods must be called within a tokio runtime, and to drop their futures stops nothing that
//! others wait for.

mod board;
mod builder;
mod bus;
mod driver;
mod fallback;
mod far;
mod groups;
mod near;
mod source;

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use builder::{RuleError, TieredBuildError, TieredBuilder};
pub use bus::{Bus, Listener, LocalBus, News};
pub use far::{BoxFuture, FarCopy, Group, Looked, MemoryTier, Put, Scope, Tier, TierError, Token};
pub use near::Key;
pub use source::{FromFn, Loaded, Source, SourceError};

use board::{Board, Lead};
use driver::{About, Landing, Op, Reply};
use near::{Copy, Near, Quick};
use source::Answer;

use crate::engine::steps::{self, Kind, Outcome, Rulebook, Terms, Traits};
use crate::eviction::NEVER;
use crate::patterns::PatternsModule;
use crate::{Stats, SwapError, SwapReport, Value};

/// How something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// No answer in time: it may have taken effect, or may yet.
    TimedOut,
    /// Could not be reached, or broke off: it may have taken effect.
    Unavailable,
    /// Turned away before it was tried.
    Overloaded,
    /// The other side understood and said no. Trying again does not help.
    Rejected,
    /// Some tier or process could not be told to forget what it has; that is caught up on.
    Unreached,
    /// The keyspace has nothing that could do it.
    Unsupported,
}

macro_rules! failures {
    ($($name:ident),*) => {
        impl From<steps::Failure> for Failure {
            fn from(failure: steps::Failure) -> Self {
                match failure { $(steps::Failure::$name => Failure::$name),* }
            }
        }
        impl From<Failure> for steps::Failure {
            fn from(failure: Failure) -> Self {
                match failure { $(Failure::$name => steps::Failure::$name),* }
            }
        }
    };
}
failures!(TimedOut, Unavailable, Overloaded, Rejected, Unreached, Unsupported);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::TimedOut => "there was no answer in time",
            Failure::Unavailable => "the source or tier cannot be reached",
            Failure::Overloaded => "too much is going on: it was not tried",
            Failure::Rejected => "the source refused",
            Failure::Unreached => {
                "a tier or another process could not be told to forget what it has; that will be caught up on"
            }
            Failure::Unsupported => "the keyspace has nothing that could do this",
        })
    }
}

/// Why an operation failed. Callers who waited for one load share its error.
#[derive(Clone, Debug)]
pub struct TieredError {
    failure: Failure,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl TieredError {
    pub(crate) fn new(failure: Failure) -> Self {
        TieredError { failure, cause: None }
    }

    /// What kind of failure it is.
    pub fn failure(&self) -> Failure {
        self.failure
    }
}

impl fmt::Display for TieredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

impl Error for TieredError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn Error + 'static))
    }
}

/// As what a value was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// As it should be.
    Fresh,
    /// Stale, while it is refreshed.
    Stale,
    /// Old, because the source fails or is slow.
    Rescued,
}

/// A value, and where it was from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served<V> {
    /// The value; `None`: the source has no such key.
    pub value: Option<V>,
    /// As what.
    pub how: How,
    /// The tier that had it; `None`: it was loaded.
    pub tier: Option<u8>,
    /// How long ago it was loaded, where that is known at no cost: zero for hits that are served without a look.
    pub age: Duration,
}

/// What a read without a load of its own came to. From [`Tiered::lookup`].
#[derive(Debug)]
pub enum Lookup<K: Key, V> {
    /// There is a copy.
    Hit(Served<V>),
    /// There is none: load it, and [`Ticket::fill`] it in.
    Miss(Ticket<K, V>),
}

/// The right to fill in what a read missed. Who else asks for the key waits for it, and is told if it is dropped.
pub struct Ticket<K: Key, V> {
    inner: Arc<Inner<K, V>>,
    key: K,
    near_token: near::Token,
    far_tokens: Vec<Option<Token>>,
    lead: Option<Lead<K, Landing<V>>>,
}

impl<K: Key, V> fmt::Debug for Ticket<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key.text()).finish_non_exhaustive()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Ticket<K, V> {
    /// Keeps what the caller has loaded. If the key was invalidated since the read, it is not kept, and that is no error.
    ///
    /// # Errors
    /// As the keyspace's rule has it.
    pub async fn fill(self, loaded: impl Into<Loaded<V>>) -> Result<(), TieredError> {
        let landing = Arc::new(self.inner.landing(loaded.into(), 0));
        let mut op = Op::new(self.inner.clone(), Kind::Fill, About::Key(self.key));
        op.near_token = Some(self.near_token);
        op.far_tokens = self.far_tokens;
        op.lead = self.lead;
        op.loaded = Some(landing.clone());
        op.brought = Some(landing);
        self.inner.run(op).await.map(drop)
    }
}

/// The limits that the host sets by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    tier: Duration,
    load: Duration,
    save: Duration,
    refreshes: usize,
}

type Encode<V> = dyn Fn(&V) -> Vec<u8> + Send + Sync;
type Decode<V> = dyn Fn(&[u8]) -> Result<V, Box<dyn Error + Send + Sync>> + Send + Sync;

pub(crate) struct Codec<V> {
    encode: Box<Encode<V>>,
    decode: Box<Decode<V>>,
}

/// What a far tier is to drop as soon as it can be reached, and what other processes are to be told then.
#[derive(Clone, PartialEq)]
struct Owed {
    scope: Scope,
    news: News,
}

/// A far tier with its breaker, and what is owed there.
pub(crate) struct Far {
    tier: Arc<dyn Tier>,
    /// Failures in a row.
    failures: AtomicU32,
    closed_until: Mutex<Option<Instant>>,
    owed: Mutex<Vec<Owed>>,
    owing: AtomicUsize,
}

/// After so many failures in a row a tier is left alone for a while.
const PATIENCE: u32 = 5;
const REST: Duration = Duration::from_secs(1);
/// So many invalidations are owed to a tier one by one.
const MOST_OWED: usize = 1_000;

impl Far {
    fn new(tier: Arc<dyn Tier>) -> Self {
        Far {
            tier,
            failures: AtomicU32::new(0),
            closed_until: Mutex::new(None),
            owed: Mutex::default(),
            owing: AtomicUsize::new(0),
        }
    }

    /// Whether a key must not be read before something has been dropped.
    fn owes(&self, name: &str) -> bool {
        self.owing.load(Ordering::Acquire) > 0
            && self.owed.lock().iter().any(|owed| match &owed.scope {
                Scope::Keys(keys) => keys.iter().any(|key| **key == *name),
                Scope::Group(Group::Prefix(prefix)) => name.starts_with(&**prefix),
                // Which copies carry a tag is not known before they are read.
                Scope::Group(Group::Tag(_)) => true,
            })
    }

    /// Calls the tier, within a time limit, unless it is being left alone.
    async fn call<T>(&self, limit: Duration, call: impl Future<Output = Result<T, TierError>>) -> Result<T, TierError> {
        let rests = self.failures.load(Relaxed) >= PATIENCE && {
            let mut closed_until = self.closed_until.lock();
            let now = Instant::now();
            let rests = closed_until.is_some_and(|until| now < until);
            if !rests {
                // One goes to see; the others wait until it is back.
                *closed_until = Some(now + REST);
            }
            rests
        };
        if rests {
            return Err(TierError::Unavailable("it has failed and is left alone for a while".into()));
        }
        let called = tokio::time::timeout(limit, call).await.unwrap_or(Err(TierError::TimedOut));
        match &called {
            Ok(_) => self.failures.store(0, Relaxed),
            Err(error) => {
                let failures = self.failures.fetch_add(1, Relaxed) + 1;
                if failures == PATIENCE {
                    *self.closed_until.lock() = Some(Instant::now() + REST);
                    tracing::warn!(tier = self.tier.summary(), %error, "a tier is left alone for a while");
                }
            }
        }
        called
    }
}

/// What a [`Tiered`] did since it was built. From [`Tiered::stats`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TieredStats {
    /// Reads that were served by a copy in tier 0 without asking the module.
    pub near_hits: u64,
    /// Copies that were found in far tiers.
    pub far_hits: u64,
    /// Reads that were served by an operation: all but `near_hits`.
    pub served: u64,
    /// Of these, with a stale copy.
    pub stale: u64,
    /// Of these, with an old copy because the source failed or was slow.
    pub rescued: u64,
    /// Of these, that the source has no such key.
    pub negative: u64,
    /// Reads that ended without a value, because nothing may be loaded for them.
    pub misses: u64,
    /// Reads that failed.
    pub failures: u64,
    /// Operations that waited for another's load.
    pub joined: u64,
    /// Loads that ended.
    pub loads: u64,
    /// Of these, those that failed.
    pub load_failures: u64,
    /// Saves that were begun.
    pub saves: u64,
    /// Refreshes that were begun.
    pub refreshes: u64,
    /// Copies that were not kept because something newer had happened.
    pub fenced: u64,
    /// Far copies that could not be read.
    pub damaged: u64,
    /// Invalidations that a tier or the bus is still owed.
    pub owed: u64,
    /// Loads under way.
    pub loading: u64,
    /// Steps that the module was asked for.
    pub steps: u64,
    /// Its instances that were stopped.
    pub instances_dropped: u64,
    /// Its answers that were wrong.
    pub wrong_answers: u64,
    /// Operations that the host finished by itself.
    pub fallbacks: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    far_hits: AtomicU64,
    served: AtomicU64,
    stale: AtomicU64,
    rescued: AtomicU64,
    negative: AtomicU64,
    misses: AtomicU64,
    failures: AtomicU64,
    joined: AtomicU64,
    loads: AtomicU64,
    load_failures: AtomicU64,
    saves: AtomicU64,
    refreshes: AtomicU64,
    fenced: AtomicU64,
    damaged: AtomicU64,
    wrong_answers: AtomicU64,
    fallbacks: AtomicU64,
}

impl Counters {
    fn count<V>(&self, served: &Served<V>) {
        self.served.fetch_add(1, Relaxed);
        match served.how {
            How::Fresh => {}
            How::Stale => drop(self.stale.fetch_add(1, Relaxed)),
            How::Rescued => drop(self.rescued.fetch_add(1, Relaxed)),
        }
        if served.value.is_none() {
            self.negative.fetch_add(1, Relaxed);
        }
    }
}

pub(crate) struct Inner<K: Key, V> {
    name: Arc<str>,
    near: Near<K, V>,
    far: Vec<Far>,
    source: Option<Arc<dyn Source<K, V>>>,
    bus: Option<Arc<dyn Bus>>,
    codec: Option<Codec<V>>,
    board: Arc<Board<K, Landing<V>>>,
    refreshing: Mutex<HashSet<K>>,
    book: RwLock<Arc<Rulebook>>,
    /// What the book was opened from; held while another one is.
    rules: Mutex<(PatternsModule, Vec<(String, Value)>)>,
    limits: Limits,
    tally: Counters,
    steps: Arc<steps::Tally>,
    random: AtomicU64,
    /// The next holder of a lease: unlike those of any other process, whatever the seed.
    holders: AtomicU64,
    news_owed: Mutex<Vec<News>>,
    catching_up: AtomicBool,
    me: Weak<Inner<K, V>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Inner<K, V> {
    /// Its tiers as a set.
    fn tiers(&self) -> u8 {
        ((1u16 << (self.far.len() + 1)) - 1) as u8
    }

    /// Those that other processes use, too.
    fn shared(&self) -> u8 {
        self.tiers() & !1
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        let z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// What a key is called in far tiers.
    fn far_name(&self, key: &K) -> String {
        format!("{}:{}", self.name, key.text())
    }

    fn far_scope(&self, about: &About<K>) -> Scope {
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
    fn near_scope(&self, about: &About<K>) -> Scope {
        match about {
            About::Key(key) => Scope::Keys(vec![key.text().into()]),
            About::Keys(keys) => Scope::Keys(keys.iter().map(|key| key.text().into()).collect()),
            About::Group(group) => Scope::Group(group.clone()),
        }
    }

    /// What is told, as this process knows it.
    fn about(&self, news: &News) -> About<K> {
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

    fn landing(&self, loaded: Loaded<V>, cost_us: u64) -> Landing<V> {
        let size = match (&loaded.value, &self.codec) {
            (Answer::Value(_), None) => size_of::<V>(),
            (Answer::Value(value), Some(codec)) => (codec.encode)(value).len(),
            _ => 0,
        };
        let incoming = driver::incoming(&loaded, cost_us, u32::try_from(size).unwrap_or(u32::MAX));
        let value = if let Answer::Value(value) = loaded.value { Some(value) } else { None };
        Landing { value, validator: loaded.validator, tags: loaded.tags.into(), incoming }
    }

    fn far_copy(
        &self,
        value: Option<&V>,
        validator: Option<Arc<str>>,
        tags: &[Arc<str>],
        age_ms: u64,
        cost_us: u64,
        terms: &Terms,
    ) -> FarCopy {
        let encode = |value| self.codec.as_ref().map(|codec| (codec.encode)(value).into());
        FarCopy {
            value: value.and_then(encode),
            validator,
            tags: tags.iter().map(|tag| format!("{}:{tag}", self.name).into()).collect(),
            age_ms,
            fresh_ms: terms.fresh_ms,
            stale_ms: terms.stale_ms,
            rescue_ms: terms.rescue_ms,
            early_us: terms.early_us,
            cost_us,
        }
    }

    /// A copy from a far tier; none if it is damaged.
    fn copy_of_far(&self, far: FarCopy, stamp: u64) -> Option<Copy<V>> {
        let size = far.value.as_ref().map_or(0, |bytes| bytes.len());
        let value = match (&far.value, &self.codec) {
            (Some(bytes), Some(codec)) => match (codec.decode)(bytes) {
                Ok(value) => Some(value),
                Err(error) => {
                    self.tally.damaged.fetch_add(1, Relaxed);
                    tracing::warn!(keyspace = &*self.name, %error, "a copy in a far tier cannot be read");
                    return None;
                }
            },
            _ => None,
        };
        let now = self.near.now();
        let own = |tag: &Arc<str>| tag.get(self.name.len() + 1..).map(Arc::from);
        let terms = Terms {
            fresh_ms: far.fresh_ms,
            stale_ms: far.stale_ms,
            rescue_ms: far.rescue_ms,
            near_ms: NEVER,
            quiet_ms: 0,
            early_us: far.early_us,
        };
        Some(Copy::new(
            value,
            far.validator,
            far.tags.iter().filter_map(own).collect(),
            now.saturating_sub(far.age_ms),
            far.cost_us,
            u32::try_from(size).unwrap_or(u32::MAX),
            &terms,
            now,
            stamp,
        ))
    }

    /// Begins an operation in a task of its own.
    fn begin(&self, mut op: Op<K, V>) -> oneshot::Receiver<Result<Reply<K, V>, TieredError>> {
        let (reply, answer) = oneshot::channel();
        op.reply = Some(reply);
        tokio::spawn(op.run());
        answer
    }

    /// Runs an operation in a task of its own, and waits for what its caller gets.
    async fn run(&self, op: Op<K, V>) -> Result<Reply<K, V>, TieredError> {
        ended(self.begin(op).await)
    }

    /// Loads a key anew in the background, unless that is under way.
    fn refresh(&self, key: K) {
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

    /// Takes copies away or ends their freshness: the farthest tier first, tier 0 last; then other processes are told.
    async fn forget(&self, about: &About<K>, tiers: u8, announce: bool, soft: bool) -> Outcome {
        let mut outcome = Outcome { fenced: 0, down: 0, declined: 0, unannounced: false };
        let scope = self.far_scope(about);
        for (at, far) in self.far.iter().enumerate().rev().filter(|(at, _)| tiers & 2 << at != 0) {
            if far.call(self.limits.tier, far.tier.invalidate(&scope, soft)).await.is_err() {
                outcome.down |= 2 << at;
                self.owe(at, about, soft);
            }
        }
        if tiers & 1 != 0 {
            self.forget_near(about, soft);
        }
        if announce {
            let scope = self.near_scope(about);
            outcome.unannounced = !self.announce(scope, soft).await;
        }
        outcome
    }

    fn forget_near(&self, about: &About<K>, soft: bool) {
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

    async fn drop_everywhere(&self, about: &About<K>) {
        self.forget(about, self.tiers(), self.bus.is_some(), false).await;
    }

    /// Tells other processes; `false`: some could not be told, and that is owed.
    async fn announce(&self, scope: Scope, soft: bool) -> bool {
        let (Some(bus), Some(me)) = (&self.bus, self.me.upgrade()) else { return true };
        let news = News { keyspace: self.name.clone(), scope, soft };
        let me: Arc<dyn Listener> = me;
        let told = tokio::time::timeout(self.limits.tier, bus.announce(&me, news.clone())).await;
        if matches!(told, Ok(Ok(()))) {
            return true;
        }
        self.news_owed.lock().push(news);
        self.catch_up();
        false
    }

    /// Something is to be dropped in a far tier as soon as that can be reached.
    fn owe(&self, at: usize, about: &About<K>, soft: bool) {
        let owed_of = |about: &About<K>, soft| Owed {
            scope: self.far_scope(about),
            news: News { keyspace: self.name.clone(), scope: self.near_scope(about), soft },
        };
        let far = &self.far[at];
        let mut owed = far.owed.lock();
        let new = owed_of(about, soft);
        if !owed.contains(&new) {
            owed.push(new);
        }
        // Too much to remember: all of the keyspace.
        if owed.len() > MOST_OWED {
            *owed = vec![owed_of(&About::Group(Group::Prefix("".into())), false)];
        }
        far.owing.store(owed.len(), Ordering::Release);
        drop(owed);
        self.catch_up();
    }

    /// Sees to it that what is owed is done.
    fn catch_up(&self) {
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

    fn owed(&self) -> usize {
        self.far.iter().map(|far| far.owing.load(Ordering::Acquire)).sum::<usize>() + self.news_owed.lock().len()
    }

    /// Drops what is owed, and tells what is to be told; whether all is done.
    async fn pay(&self) -> bool {
        for far in &self.far {
            loop {
                let Some(first) = far.owed.lock().first().cloned() else { break };
                if far.call(self.limits.tier, far.tier.invalidate(&first.scope, first.news.soft)).await.is_err() {
                    return false;
                }
                // What was read there meanwhile, by whoever did not know, is dropped too.
                self.forget_near(&self.about(&first.news), first.news.soft);
                self.news_owed.lock().push(first.news.clone());
                let mut owed = far.owed.lock();
                // It may have been put together with others meanwhile.
                owed.retain(|other| *other != first);
                far.owing.store(owed.len(), Ordering::Release);
            }
        }
        let news = std::mem::take(&mut *self.news_owed.lock());
        let (Some(bus), Some(me)) = (&self.bus, self.me.upgrade()) else { return true };
        let me: Arc<dyn Listener> = me;
        let mut done = true;
        for news in news {
            if !matches!(tokio::time::timeout(self.limits.tier, bus.announce(&me, news.clone())).await, Ok(Ok(()))) {
                self.news_owed.lock().push(news);
                done = false;
            }
        }
        done
    }
}

/// What an operation's caller gets.
fn ended<T>(answer: Result<Result<T, TieredError>, oneshot::error::RecvError>) -> Result<T, TieredError> {
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
            }
        })
    }
}

/// A cache of tiers over a source. See the [module](self).
///
/// A clone is another handle to the same cache.
pub struct Tiered<K: Key, V> {
    inner: Arc<Inner<K, V>>,
}

impl<K: Key, V> Clone for Tiered<K, V> {
    fn clone(&self) -> Self {
        Tiered { inner: self.inner.clone() }
    }
}

impl<K: Key, V> fmt::Debug for Tiered<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let far: Vec<_> = self.inner.far.iter().map(|far| far.tier.summary()).collect();
        f.debug_struct("Tiered").field("keyspace", &self.inner.name).field("far", &far).finish_non_exhaustive()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Tiered<K, V> {
    /// Sets one up.
    pub fn builder() -> TieredBuilder<K, V> {
        TieredBuilder::new()
    }

    /// The keyspace's name.
    pub fn keyspace(&self) -> &str {
        &self.inner.name
    }

    /// The value of a key: from a tier, or from the source. `None`: the source has no such key; or, where nothing may be
    /// loaded, there is no copy.
    ///
    /// # Errors
    /// The source fails, and there is no old copy that may be served instead.
    #[inline]
    pub async fn get(&self, key: &K) -> Result<Option<V>, TieredError> {
        match self.inner.near.quick(key) {
            Quick::Quiet(value, _) => Ok(value),
            Quick::Ask => Ok(match self.ask(key, Traits::empty()).await? {
                Lookup::Hit(served) => served.value,
                Lookup::Miss(_) => None,
            }),
        }
    }

    /// As [`Self::get`], with where the value was from. Where nothing may be loaded and there is no copy, the value is none
    /// and so is the tier.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn read(&self, key: &K) -> Result<Served<V>, TieredError> {
        Ok(match self.lookup(key).await? {
            Lookup::Hit(served) => served,
            Lookup::Miss(_) => Served { value: None, how: How::Fresh, tier: None, age: Duration::ZERO },
        })
    }

    /// The values of many keys, in their order; the operations run at once. A failure of one is its own.
    pub async fn get_many(&self, keys: &[K]) -> Vec<Result<Option<V>, TieredError>> {
        let mut values = Vec::with_capacity(keys.len());
        let mut ops = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            values.push(match self.inner.near.quick(key) {
                Quick::Quiet(value, _) => Ok(value),
                Quick::Ask => match self.prepare(key, Traits::empty()) {
                    Ok(served) => Ok(served.value),
                    Err(op) => {
                        ops.push((at, op));
                        Ok(None)
                    }
                },
            });
        }
        let mut first: Vec<_> = ops.iter_mut().map(|(_, op)| &mut **op).collect();
        Op::begin_many(&mut first);
        let begun: Vec<_> = ops.into_iter().map(|(at, op)| (at, self.inner.begin(*op))).collect();
        for (at, answer) in begun {
            values[at] = ended(answer.await).map(|reply| match reply {
                Reply::Served(served) => served.value,
                Reply::Missed(_) | Reply::Done => None,
            });
        }
        values
    }

    /// The value of a key if some tier has a copy; never loads.
    ///
    /// # Errors
    /// As the keyspace's rule has it.
    pub async fn get_cached(&self, key: &K) -> Result<Option<V>, TieredError> {
        if let Quick::Quiet(value, _) = self.inner.near.quick(key) {
            return Ok(value);
        }
        Ok(match self.ask(key, Traits::CACHED_ONLY).await? {
            Lookup::Hit(served) => served.value,
            Lookup::Miss(_) => None,
        })
    }

    /// Cache-aside: the copy of a key, or a ticket to fill in what the caller loads.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use larder::tiered::{Lookup, Tiered};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache = Tiered::<String, u32>::builder().max_capacity(100).rule("ttl-ms", Duration::from_secs(60)).build()?;
    /// match cache.lookup(&"answer".into()).await? {
    ///     Lookup::Hit(served) => println!("{:?}", served.value),
    ///     Lookup::Miss(ticket) => ticket.fill(Some(42)).await?,
    /// }
    /// assert_eq!(cache.get(&"answer".into()).await?, Some(42));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn lookup(&self, key: &K) -> Result<Lookup<K, V>, TieredError> {
        if let Quick::Quiet(value, ended) = self.inner.near.quick(key) {
            let how = if ended { How::Stale } else { How::Fresh };
            return Ok(Lookup::Hit(Served { value, how, tier: Some(0), age: Duration::ZERO }));
        }
        self.ask(key, Traits::empty()).await
    }

    /// A read that is not quiet: an operation, unless a draw says that its first step would serve the copy.
    fn prepare(&self, key: &K, traits: Traits) -> Result<Served<V>, Box<Op<K, V>>> {
        let inner = &self.inner;
        let mut op = Op::new(inner.clone(), Kind::Read, About::Key(key.clone()));
        op.traits = traits;
        if let Some(held) = &op.held {
            // XFetch's draw, by the module's own formula and from the bits that it would get.
            let facts = held.facts(inner.near.now());
            if facts.early_us > 0 && facts.fresh_ms > 0 {
                let random = inner.random();
                let unit = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
                if facts.early_us as f64 * -unit.ln() < facts.fresh_ms as f64 * 1000.0 {
                    let age = Duration::from_millis(facts.age_ms);
                    let value = held.copy.value.clone();
                    let served = Served { value, how: How::Fresh, tier: Some(0), age };
                    inner.tally.count(&served);
                    return Ok(served);
                }
                op.random = Some(random);
            }
        }
        Err(Box::new(op))
    }

    async fn ask(&self, key: &K, traits: Traits) -> Result<Lookup<K, V>, TieredError> {
        let op = match self.prepare(key, traits) {
            Ok(served) => return Ok(Lookup::Hit(served)),
            Err(op) => *op,
        };
        match self.inner.run(op).await? {
            Reply::Served(served) => Ok(Lookup::Hit(served)),
            Reply::Missed(ticket) => Ok(Lookup::Miss(ticket)),
            Reply::Done => Err(TieredError::new(Failure::Unsupported)),
        }
    }

    async fn operate(
        &self,
        kind: Kind,
        about: About<K>,
        traits: Traits,
        brought: Option<Landing<V>>,
    ) -> Result<(), TieredError> {
        let mut op = Op::new(self.inner.clone(), kind, about);
        op.traits = traits;
        op.brought = brought.map(Arc::new);
        self.inner.run(op).await.map(drop)
    }

    /// Writes a value, by the keyspace's pattern: to the source, to the tiers, or both. When this returns `Ok`, no read
    /// that begins later gets an older one.
    ///
    /// # Errors
    /// [`TieredError::failure`] tells whether it may have taken effect all the same.
    pub async fn insert(&self, key: K, value: impl Into<Written<V>>) -> Result<(), TieredError> {
        let landing = self.inner.landing(value.into().0, 0);
        self.operate(Kind::Write, About::Key(key), Traits::empty(), Some(landing)).await
    }

    /// Deletes a key, at the source and in the tiers.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub async fn remove(&self, key: &K) -> Result<(), TieredError> {
        self.operate(Kind::Remove, About::Key(key.clone()), Traits::empty(), None).await
    }

    /// The value of a key has changed at the source. When this returns `Ok`, no read that begins later gets an older one,
    /// from any tier, in any process that is on the bus.
    ///
    /// # Errors
    /// Some tier or process could not be told. It is done as far as it could be, and the rest is caught up on.
    pub async fn invalidate(&self, key: &K) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Key(key.clone()), Traits::empty(), None).await
    }

    /// As [`Self::invalidate`], for many keys.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn invalidate_many(&self, keys: Vec<K>) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Keys(keys), Traits::empty(), None).await
    }

    /// As [`Self::invalidate`], for all keys whose text begins so; takes constant time, and all keys if it is empty.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn invalidate_prefix(&self, prefix: &str) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Group(Group::Prefix(prefix.into())), Traits::empty(), None).await
    }

    /// As [`Self::invalidate`], for all copies that carry a tag; takes constant time.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn invalidate_tag(&self, tag: &str) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Group(Group::Tag(tag.into())), Traits::empty(), None).await
    }

    /// As [`Self::invalidate`], for the whole keyspace; takes constant time.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn invalidate_all(&self) -> Result<(), TieredError> {
        self.invalidate_prefix("").await
    }

    /// A soft invalidation: ends the freshness of the key's copies, which may still be served stale as the rule allows.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn expire(&self, key: &K) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Key(key.clone()), Traits::SOFT, None).await
    }

    /// As [`Self::expire`], for all keys whose text begins so.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn expire_prefix(&self, prefix: &str) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Group(Group::Prefix(prefix.into())), Traits::SOFT, None).await
    }

    /// As [`Self::expire`], for all copies that carry a tag.
    ///
    /// # Errors
    /// As [`Self::invalidate`].
    pub async fn expire_tag(&self, tag: &str) -> Result<(), TieredError> {
        self.operate(Kind::Invalidate, About::Group(Group::Tag(tag.into())), Traits::SOFT, None).await
    }

    /// Refreshes a key on the schedule that the rule sets (`refresh-every-ms` of the built-in module), read or not, from now
    /// on until the cache or the runtime is dropped. Without a schedule it is refreshed once.
    pub fn keep_hot(&self, key: K) {
        let me = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                let Some(inner) = me.upgrade() else { return };
                inner.tally.refreshes.fetch_add(1, Relaxed);
                let mut op = Op::new(inner, Kind::Refresh, About::Key(key.clone()));
                op.traits = Traits::SCHEDULED;
                let Some(again) = op.run().await else { return };
                tokio::time::sleep(Duration::from_millis(again)).await;
            }
        });
    }

    /// Takes new rules, if the module takes them; else the old ones stay in force. Operations under way finish by the rules
    /// that they began with.
    ///
    /// # Errors
    /// [`RuleError`], with the parameter and the remedy.
    pub fn set_rules<N: Into<String>, R: Into<Value>>(
        &self,
        rules: impl IntoIterator<Item = (N, R)>,
    ) -> Result<(), RuleError> {
        let rules: Vec<_> = rules.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let mut current = self.inner.rules.lock();
        let book = self.open(&current.0, &rules)?;
        *self.inner.book.write() = Arc::new(book);
        current.1 = rules;
        Ok(())
    }

    /// Takes another module, with the rules that are in force. Operations under way finish with the old one.
    ///
    /// # Errors
    /// As [`Self::set_rules`]; the old module stays.
    pub fn swap_patterns(&self, module: PatternsModule) -> Result<(), RuleError> {
        let mut current = self.inner.rules.lock();
        let book = self.open(&module, &current.1)?;
        *self.inner.book.write() = Arc::new(book);
        current.0 = module;
        Ok(())
    }

    fn open(&self, module: &PatternsModule, rules: &[(String, Value)]) -> Result<Rulebook, RuleError> {
        let keyspace = self.inner.book.read().keyspaces[0].clone();
        builder::open(module, keyspace, rules, self.inner.steps.clone())
    }

    /// Swaps the eviction policy of tier 0: see [`Cache::swap_policy`](crate::Cache::swap_policy).
    ///
    /// # Errors
    /// As there.
    pub fn swap_policy(&self, policy: crate::Policy) -> Result<SwapReport, SwapError> {
        self.inner.near.cache.swap_policy(policy)
    }

    /// What tier 0 did, as a cache.
    pub fn near_stats(&self) -> Stats {
        self.inner.near.cache.stats()
    }

    /// What it did so far.
    pub fn stats(&self) -> TieredStats {
        let Inner { tally, steps, .. } = &*self.inner;
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TieredStats {
            near_hits: self.inner.near.cache.stats().hits.saturating_sub(self.inner.near.asked()),
            far_hits: of(&tally.far_hits),
            served: of(&tally.served),
            stale: of(&tally.stale),
            rescued: of(&tally.rescued),
            negative: of(&tally.negative),
            misses: of(&tally.misses),
            failures: of(&tally.failures),
            joined: of(&tally.joined),
            loads: of(&tally.loads),
            load_failures: of(&tally.load_failures),
            saves: of(&tally.saves),
            refreshes: of(&tally.refreshes),
            fenced: of(&tally.fenced),
            damaged: of(&tally.damaged),
            owed: self.inner.owed() as u64,
            loading: self.inner.board.len() as u64,
            steps: of(&steps.steps),
            instances_dropped: of(&steps.dropped),
            wrong_answers: of(&tally.wrong_answers),
            fallbacks: of(&tally.fallbacks),
        }
    }
}

/// A value to be written, with what the caller says of it. Made of a value; or, with tags and terms, of [`Loaded`]. What is
/// written without the tag that a load would give it is not reached by an invalidation of that tag.
#[derive(Debug)]
pub struct Written<V>(Loaded<V>);

impl<V> From<V> for Written<V> {
    fn from(value: V) -> Self {
        Written(Loaded::value(value))
    }
}

impl<V> Written<V> {
    /// With tags, or terms of its own.
    pub fn with(loaded: Loaded<V>) -> Self {
        Written(loaded)
    }
}
