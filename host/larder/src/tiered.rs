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
//! [`Tiered`] is one keyspace: keys and values of one type under one rule. Its tier 0 is a [`Cache`], with
//! any eviction policy; behind it come far tiers ([`Tier`]) that several processes may share, and a [`Source`]. What a rule
//! may set is what the module's card lists: see [`Patterns`](crate::Patterns).
//!
//! A hit in tier 0 costs what a hit of the engine costs and a look at the copy's terms. All else is an operation: it runs in a
//! task of its own, so the methods must be called within a tokio runtime, and to drop their futures stops nothing that
//! others wait for.

mod board;
mod builder;
mod bus;
mod codec;
mod copies;
#[cfg(feature = "disk")]
mod disk;
mod driver;
mod envelope;
mod fallback;
mod far;
#[cfg(any(feature = "journal", feature = "disk"))]
mod files;
mod flusher;
mod gate;
mod gather;
mod groups;
mod host;
#[cfg(feature = "http")]
pub mod http;
mod journal;
#[cfg(feature = "memcached")]
mod memcached;
#[cfg(feature = "mysql")]
pub mod mysql;
mod near;
#[cfg(any(feature = "journal", feature = "disk"))]
mod panics;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod source;
#[cfg(feature = "sql")]
pub mod sql;
mod stats;
#[cfg(feature = "testkit")]
pub mod testkit;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;

#[cfg(feature = "redis")]
pub use self::redis::{RedisBus, RedisBusBuilder, RedisServer, RedisSetupError, RedisTier, RedisTierBuilder};
/// What values are in far tiers: see [`FarCopy`].
pub use bytes::Bytes;

#[cfg(feature = "config")]
pub(crate) use builder::check_rule;
pub use builder::{RuleError, TieredBuildError, TieredBuilder};
pub use bus::{Bus, Listener, LocalBus, News};
pub use codec::{BoxError, Codec};
#[cfg(feature = "disk")]
pub use disk::{DiskContents, DiskSetupError, DiskTier, DiskTierBuilder};
pub use envelope::{Envelope, EnvelopeError};
pub use far::{
    BoxFuture, FarCopy, Group, GroupVersion, KeyPage, Looked, MemoryTier, Put, Refusal, Scope, Tier, TierError, Token,
};
pub use gate::{GateLimits, GateStats};
#[cfg(feature = "http")]
pub use http::HttpSource;
pub use journal::{
    Change, Contents, Journal, JournalBuilder, JournalContents, JournalError, JournalStats, Logged, Record, Store,
    StoreError,
};
#[cfg(feature = "memcached")]
pub use memcached::{MemcachedSetupError, MemcachedTier, MemcachedTierBuilder};
#[cfg(feature = "mysql")]
pub use mysql::MySqlSource;
pub use near::Key;
#[cfg(feature = "postgres")]
pub use postgres::PostgresSource;
pub use source::{FromFn, Loaded, LoadedMany, Save, Source, SourceError, WriteId};
pub use stats::TieredStats;

use board::Lead;
use driver::{About, Again, Landing, Lease, Op, Reading, Reply, read_together};
use host::{Inner, ended};
use near::Quick;

use crate::engine::steps::{self, Kind, Rulebook, Traits};
use crate::patterns::PatternsModule;
use crate::{Cache, Stats, SwapError, SwapReport, Value};

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
    /// Some tier or process could not be told to forget what it has; that is caught up on while this process lives. Who, and
    /// why, is the error's source, an [`Unreached`].
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
                "a tier or another process could not be told to forget what it has; that is caught up on while this process lives"
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

    pub(crate) fn unreached(untold: Vec<Untold>) -> Self {
        let cause = (!untold.is_empty()).then(|| Arc::new(Unreached { untold }) as Arc<_>);
        TieredError { failure: Failure::Unreached, cause }
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

/// Who could not be told to forget what they have: the source of an error of [`Failure::Unreached`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreached {
    /// Each of them. All others were told.
    pub untold: Vec<Untold>,
}

/// A tier or a bus that could not be told something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {error}")]
#[non_exhaustive]
pub struct Untold {
    /// Which: `tier 1, Redis at localhost:6379`, or `the bus, …`.
    pub what: String,
    /// Why.
    pub error: TierError,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, untold) in self.untold.iter().enumerate() {
            write!(f, "{}{untold}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Error for Unreached {}

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
    /// How long ago it was loaded or renewed.
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
    /// So that other processes wait for it, too.
    lease: Option<Lease>,
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
        op.lease = self.lease;
        op.loaded = Some(landing.clone());
        op.brought = Some(landing);
        self.inner.run(op).await.map(drop)
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
    /// Sets one up; the same as [`Builder::keyspace`](crate::Builder::keyspace) of a new builder.
    pub fn builder() -> TieredBuilder<K, V> {
        Cache::builder().keyspace("default")
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
    pub fn get<'a>(&'a self, key: &'a K) -> impl Future<Output = Result<Option<V>, TieredError>> + Send + 'a {
        Get { cache: self, key, asking: None }
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

    /// The values of many keys, in their order; the operations run at once. A failure of one is its own. A far tier is asked for
    /// all of them in one round trip, and what no tier has is loaded in one call, if the source [`loads_many`](Source::loads_many).
    pub async fn get_many(&self, keys: &[K]) -> Vec<Result<Option<V>, TieredError>> {
        let inner = &self.inner;
        let mut values = Vec::with_capacity(keys.len());
        let mut missing = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let found = inner.near.quick(key);
            if !matches!(found, Quick::Quiet(..)) {
                missing.push((at, matches!(found, Quick::Absent)));
            }
            values.push(Ok(if let Quick::Quiet(value, _) = found { value } else { None }));
        }
        // In a loop of their own: the memory of one token is asked for while that of others is waited for.
        let reading = |&(at, is_absent): &(usize, bool)| match is_absent {
            true => Reading::glance(inner, &keys[at]),
            false => self.prepare(&keys[at], Traits::empty()),
        };
        let mut readings: Vec<_> = missing.iter().map(reading).collect();
        read_together(inner, Traits::empty(), &mut readings).await;
        let mut ops = Vec::new();
        for ((at, _), reading) in missing.into_iter().zip(readings) {
            match reading.end() {
                Ok(served) => values[at] = Ok(served.value),
                Err(op) => ops.push((at, op)),
            }
        }
        if let Some(source) = inner.source.clone().filter(|source| source.loads_many()) {
            let members = gather::Member::all(ops.len(), gather::load_many(source));
            ops.iter_mut().zip(members).for_each(|((_, op), member)| op.member = Some(member));
        }
        let begun: Vec<_> = ops.into_iter().map(|(at, op)| (at, inner.begin(*op))).collect();
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
        let is_absent = match self.inner.near.quick(key) {
            Quick::Quiet(value, _) => return Ok(value),
            Quick::Ask => false,
            Quick::Absent => true,
        };
        Ok(match self.ask(key, Traits::CACHED_ONLY, is_absent).await? {
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
        let is_absent = match self.inner.near.quick_dated(key) {
            Quick::Quiet(value, (born, until)) => {
                let now = self.inner.near.now();
                // Past its freshness it is quiet because a refresh is under way, or has just failed.
                let how = if until <= now { How::Stale } else { How::Fresh };
                let age = Duration::from_millis(now.saturating_sub(born));
                return Ok(Lookup::Hit(Served { value, how, tier: Some(0), age }));
            }
            Quick::Ask => false,
            Quick::Absent => true,
        };
        self.ask(key, Traits::empty(), is_absent).await
    }

    /// A read of which tier 0 has something that is not quiet: an operation, unless a draw says that its first step would serve
    /// the copy.
    fn prepare<'k>(&self, key: &'k K, traits: Traits) -> Reading<'k, K, V> {
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
                    let value = held.value.clone();
                    let served = Served { value, how: How::Fresh, tier: Some(0), age };
                    inner.tally.count(&served);
                    return Reading::Served(served);
                }
                op.random = Some(random);
            }
        }
        Reading::Op(Box::new(op))
    }

    async fn ask(&self, key: &K, traits: Traits, is_absent: bool) -> Result<Lookup<K, V>, TieredError> {
        let reading = if is_absent { Reading::glance(&self.inner, key) } else { self.prepare(key, traits) };
        let mut reading = [reading];
        read_together(&self.inner, traits, &mut reading).await;
        let [reading] = reading;
        let op = match reading.end() {
            Ok(served) => return Ok(Lookup::Hit(served)),
            Err(op) => op,
        };
        match self.inner.run(*op).await? {
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
            // Where nobody has said yet, as long as a module that fails is rested.
            let mut pause = Duration::from_secs(1);
            loop {
                let Some(inner) = me.upgrade() else { return };
                inner.tally.refreshes.fetch_add(1, Relaxed);
                let mut op = Op::new(inner, Kind::Refresh, About::Key(key.clone()));
                op.traits = Traits::SCHEDULED;
                // A panic of a codec, say, is one of this refresh alone.
                match tokio::spawn(op.run()).await.unwrap_or(Again::Unsaid) {
                    Again::After(ms) => pause = Duration::from_millis(ms),
                    Again::Never => return,
                    Again::Unsaid => {}
                }
                tokio::time::sleep(pause).await;
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

    /// Takes no more writes that are to be saved later, saves what the journal has, and waits for that, or for so long. How
    /// many writes are left then: they are in the journal, and are saved after the next start. Reads go on.
    pub async fn shutdown(&self, limit: Duration) -> usize {
        match &self.inner.journal {
            Some(part) => part.drain(limit).await,
            None => 0,
        }
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

/// A [`Tiered::get`]. By hand, not `async`: where a hit and what is none meet in one variable, a hit's value goes through
/// memory.
struct Get<'a, K: Key, V: Clone + Send + Sync + 'static> {
    cache: &'a Tiered<K, V>,
    key: &'a K,
    /// What is no hit: on the heap, so that a hit has none of its variables.
    asking: Option<BoxFuture<'a, Result<Option<V>, TieredError>>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Future for Get<'_, K, V> {
    type Output = Result<Option<V>, TieredError>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut is_absent = false;
        if self.asking.is_none() {
            match self.cache.inner.near.quick(self.key) {
                Quick::Quiet(value, ()) => return Poll::Ready(Ok(value)),
                Quick::Ask => {}
                Quick::Absent => is_absent = true,
            }
        }
        self.ask(context, is_absent)
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Get<'_, K, V> {
    #[cold]
    #[inline(never)]
    fn ask(&mut self, context: &mut Context<'_>, is_absent: bool) -> Poll<Result<Option<V>, TieredError>> {
        let (cache, key) = (self.cache, self.key);
        let asking = self.asking.get_or_insert_with(|| {
            Box::pin(async move {
                Ok(match cache.ask(key, Traits::empty(), is_absent).await? {
                    Lookup::Hit(served) => served.value,
                    Lookup::Miss(_) => None,
                })
            })
        });
        asking.as_mut().poll(context)
    }
}
