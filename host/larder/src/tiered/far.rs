//! Tiers that lie farther than this process's memory: what an adapter has to do, and one in memory.
//!
//! An adapter is one file that implements [`Tier`]. It decides nothing: whether a copy may be served is in its terms, and
//! whether one may be kept is in its token. Two promises are its own, and all that Larder says about stale values rests on
//! them: an invalidation that has returned is seen by every later [`Tier::get`], and [`Tier::put`] keeps nothing whose
//! token is older than the last invalidation or write of the key, or of a group of the copy's.

use std::collections::HashMap;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

pub use super::groups::Group;
use super::groups::{Groups, Reached};
use super::near::after;
use crate::eviction::NEVER;
use crate::{BuildError, Cache, Clock};

/// A future that a tier, source or bus answers with.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a tier did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TierError {
    /// It could not be reached, or broke off.
    #[error("it cannot be reached: {0}")]
    Unavailable(String),
    /// It answered, and said no.
    #[error("it refuses: {0}")]
    Refused(Refusal),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    TimedOut,
    /// It is not made for this: asking again does not help.
    #[error("it cannot do this: {0}")]
    Unsupported(&'static str),
}

/// What a tier said instead of doing what it was asked, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refusal {
    /// What it said, and the remedy.
    pub what: String,
    /// Whether it says so to all that it is asked, so that it is as good as down; or it may take other calls.
    pub is_outage: bool,
}

/// What must not have changed in a tier for something to be kept there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// How often the key was written or invalidated.
    pub fence: u64,
    /// How often groups were invalidated.
    pub stamp: u64,
}

/// A copy as tiers have it. Durations count from the moment at which it is read or written, so that machines need not
/// agree on the time; [`FOREVER`](FarCopy::FOREVER) is without end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarCopy {
    /// The value, encoded; `None`: the source has no such key.
    pub value: Option<Bytes>,
    /// By which the source can be asked whether the value is still right.
    pub validator: Option<Arc<str>>,
    /// The tags that it carries.
    pub tags: Arc<[Arc<str>]>,
    /// Milliseconds since it was loaded or renewed.
    pub age_ms: u64,
    /// For how many milliseconds it is still fresh.
    pub fresh_ms: u64,
    /// For how long it may be served stale from then on, or from now where that is past.
    pub stale_ms: u64,
    /// The same where the source fails or is slow.
    pub rescue_ms: u64,
    /// The scale of early refresh, in microseconds.
    pub early_us: u64,
    /// What its load took, in microseconds.
    pub cost_us: u64,
}

impl FarCopy {
    /// A duration without end.
    pub const FOREVER: u64 = u64::MAX;
}

/// What a tier has of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// To be handed to [`Tier::put`]. A tier may leave it out beside a copy that is fresh, which is hardly ever replaced; then
    /// [`Tier::token`] has it.
    pub token: Option<Token>,
    /// The copy, if there is one that may still be served in some way and that no hard invalidation has reached.
    pub copy: Option<FarCopy>,
    /// There was something that could not be read: damaged, of another kind, or, in a tier that does not tell that apart
    /// ([`Tier::newer`]), written by a later version. It counts as absent.
    pub damaged: bool,
}

/// What became of a copy that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there.
    Kept,
    /// Something newer has happened to the key, or a later version of Larder has a copy there: nothing was changed.
    Fenced,
    /// The tier does not take it, because it is too large, say; what it had of the key is gone.
    Declined,
}

/// What is invalidated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These keys.
    Keys(Vec<Arc<str>>),
    /// A group.
    Group(Group),
}

/// Some of the keys that a tier has, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// They are in no order; one may come again on another page.
    pub keys: Vec<Arc<str>>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
}

/// When a group was invalidated last, by the tier's counter of such invalidations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupVersion {
    /// The group.
    pub group: Group,
    /// The last invalidation after which copies were gone; 0: there was none.
    pub hard: u64,
    /// The last that left stale copies.
    pub soft: u64,
}

/// A tier that several processes may share, or one process's own. Keys and tags have the name of their keyspace before them.
///
/// Every method may be called at any time from any task. The driver puts a time limit on each.
pub trait Tier: Send + Sync + 'static {
    /// What it is, for messages: `Redis at localhost:6379`.
    fn summary(&self) -> String;

    /// Whether other processes have the same tier. One that is this process's own hears what they invalidate from the bus, as
    /// tier 0 does.
    fn is_shared(&self) -> bool {
        true
    }

    /// The copy of a key, and a token that is taken meanwhile, before the copy is looked at or after it: what is kept by it is
    /// fetched once this has returned.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>>;

    /// The same of many keys, in their order, in one round trip where the store can do that. Each answer is as of one moment;
    /// they need not be of the same.
    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        Box::pin(async move {
            let mut looked = Vec::with_capacity(keys.len());
            for key in keys {
                looked.push(self.get(key).await?);
            }
            Ok(looked)
        })
    }

    /// How many copies it has met that a later version of Larder wrote. They count as absent, and are not damaged.
    fn newer(&self) -> u64 {
        0
    }

    /// The token alone.
    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>>;

    /// Keeps a copy if the token is the newest. A `write` moves the fence, a fill does not.
    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>>;

    /// Gives a copy that is there other terms, as [`Self::put`] of a fill would with its value, and moves no bytes of that. Which
    /// one it is, the validator says: that of `copy`, whose value is none here. `None`: there is no such copy, or the tier cannot
    /// do this; then it is put.
    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        let _ = (key, copy, token);
        Box::pin(async { Ok(None) })
    }

    /// Moves the fence, and takes copies away; `soft`: ends their freshness, and leaves the rest of their terms. Groups take
    /// constant time.
    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>>;

    /// Whether it has leases, by which one of all processes leads a load.
    fn leases(&self) -> bool {
        false
    }

    /// Takes or renews the lease of a key for a holder; `false`: somebody else has it. It ends by itself after `time`.
    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        let _ = (key, holder, time);
        Box::pin(async { Ok(true) })
    }

    /// Gives a lease back.
    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        let _ = (key, holder);
        Box::pin(async { Ok(()) })
    }

    /// Some of the keys that begin so, about as many as `most`, from where the page before ended. For operators, not for
    /// the driver: it may take long, and what is written meanwhile may be missed.
    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<KeyPage, TierError>> {
        let _ = (prefix, cursor, most);
        Box::pin(async { Err(TierError::Unsupported("it does not list its keys")) })
    }

    /// All groups that were invalidated, with when. For operators.
    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(async { Err(TierError::Unsupported("it does not list its groups")) })
    }
}

impl<T: Tier + ?Sized> Tier for Arc<T> {
    fn summary(&self) -> String {
        (**self).summary()
    }

    fn is_shared(&self) -> bool {
        (**self).is_shared()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        (**self).get(key)
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        (**self).get_many(keys)
    }

    fn newer(&self) -> u64 {
        (**self).newer()
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        (**self).token(key)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        (**self).put(key, copy, token, write)
    }

    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        (**self).renew(key, copy, token)
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        (**self).invalidate(scope, soft)
    }

    fn leases(&self) -> bool {
        (**self).leases()
    }

    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        (**self).lease(key, holder, time)
    }

    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        (**self).release(key, holder)
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<KeyPage, TierError>> {
        (**self).keys(prefix, cursor, most)
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        (**self).groups()
    }
}

/// A tier in memory, for tests and for several caches of one process: what a shared tier promises, without the network.
///
/// Its clock is tokio's, so a test that pauses it pauses this.
#[derive(Debug)]
pub struct MemoryTier {
    cache: Cache<Arc<str>, Arc<Stored>>,
    clock: Clock,
    most_bytes: usize,
    shared: bool,
    state: Mutex<State>,
    hasher: foldhash::fast::RandomState,
}

#[derive(Debug)]
struct State {
    fences: Box<[u64]>,
    groups: Groups,
    leases: HashMap<Arc<str>, (u64, u64)>,
}

#[derive(Debug)]
struct Stored {
    copy: FarCopy,
    at: u64,
    /// When its freshness was ended before its time.
    ended_at: u64,
    stamp: u64,
}

const FENCES: usize = 4096;

impl MemoryTier {
    /// A tier for so many entries.
    ///
    /// # Errors
    /// As [`crate::Builder::build`].
    pub fn new(entries: u64) -> Result<Self, BuildError> {
        let clock = Clock::tokio();
        let policy = crate::Policy::builtin("s3-fifo")?;
        Ok(MemoryTier {
            cache: Cache::builder().max_capacity(entries).policy(policy).clock(clock.clone()).build()?,
            clock,
            most_bytes: usize::MAX,
            shared: true,
            state: Mutex::new(State {
                fences: vec![0; FENCES].into(),
                groups: Groups::default(),
                leases: HashMap::new(),
            }),
            hasher: foldhash::fast::RandomState::default(),
        })
    }

    /// Declines values of more bytes than this.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.most_bytes = bytes;
        self
    }

    /// Only one of the processes on a bus has it: it is to hear what the others invalidate.
    #[must_use]
    pub fn unshared(mut self) -> Self {
        self.shared = false;
        self
    }

    /// How many entries there are.
    pub fn entry_count(&self) -> u64 {
        self.cache.entry_count()
    }

    fn at(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % FENCES
    }

    fn look(&self, state: &State, key: &str) -> Option<FarCopy> {
        let stored = self.cache.get(key)?;
        let ended_at = match state.groups.reached(key, &stored.copy.tags, stored.stamp) {
            Reached::Superseded => return None,
            Reached::Ended(at) => at.min(stored.ended_at),
            Reached::Untouched => stored.ended_at,
        };
        let now = self.clock.now_ms();
        let until = after(stored.at, stored.copy.fresh_ms).min(ended_at);
        let beyond = now.saturating_sub(until);
        let left = |duration: u64| if duration == NEVER { NEVER } else { duration.saturating_sub(beyond) };
        let copy = FarCopy {
            age_ms: stored.copy.age_ms.saturating_add(now - stored.at),
            fresh_ms: if until == NEVER { NEVER } else { until.saturating_sub(now) },
            stale_ms: left(stored.copy.stale_ms),
            rescue_ms: left(stored.copy.rescue_ms),
            ..stored.copy.clone()
        };
        (copy.fresh_ms > 0 || copy.stale_ms > 0 || copy.rescue_ms > 0).then_some(copy)
    }

    fn put_now(&self, key: &str, copy: FarCopy, token: Token, write: bool) -> Put {
        let at = self.at(key);
        let mut state = self.state.lock();
        let reached = state.groups.reached(key, &copy.tags, token.stamp);
        if token.fence != state.fences[at] || reached != Reached::Untouched {
            return Put::Fenced;
        }
        if write {
            state.fences[at] += 1;
        }
        let nothing = copy.fresh_ms == 0 && copy.stale_ms == 0 && copy.rescue_ms == 0;
        if copy.value.as_ref().is_some_and(|value| value.len() > self.most_bytes) {
            self.cache.invalidate(key);
            return Put::Declined;
        }
        if nothing {
            self.cache.invalidate(key);
            return Put::Kept;
        }
        let now = self.clock.now_ms();
        let ends = after(after(now, copy.fresh_ms), copy.stale_ms.max(copy.rescue_ms));
        let stored = Stored { copy, at: now, ended_at: NEVER, stamp: token.stamp };
        self.cache.insert_until(key.into(), Arc::new(stored), 0, ends);
        Put::Kept
    }

    fn invalidate_now(&self, scope: &Scope, soft: bool) {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        match scope {
            Scope::Group(group) => {
                state.groups.bump(group, soft, now);
            }
            Scope::Keys(keys) => {
                for key in keys {
                    state.fences[self.at(key)] += 1;
                    match self.cache.peek(&**key).filter(|_| soft) {
                        None => self.cache.invalidate(&**key),
                        Some(old) => {
                            let copy = old.copy.clone();
                            let until = after(old.at, copy.fresh_ms).min(now);
                            let ends = after(until, copy.stale_ms.max(copy.rescue_ms));
                            let stored = Stored { copy, ended_at: old.ended_at.min(now), ..*old };
                            self.cache.insert_until(key.clone(), Arc::new(stored), 0, ends);
                        }
                    }
                }
            }
        }
    }
}

impl Tier for MemoryTier {
    fn summary(&self) -> String {
        format!("memory for {} entries", self.cache.max_capacity())
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(async move {
            let state = self.state.lock();
            let token = Token { fence: state.fences[self.at(key)], stamp: state.groups.stamp() };
            Ok(Looked { token: Some(token), copy: self.look(&state, key), damaged: false })
        })
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(async move {
            let state = self.state.lock();
            Ok(Token { fence: state.fences[self.at(key)], stamp: state.groups.stamp() })
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        Box::pin(async move { Ok(self.put_now(key, copy, token, write)) })
    }

    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        Box::pin(async move {
            let there = self.cache.peek(key).filter(|there| there.copy.validator == copy.validator);
            let value = there.and_then(|there| there.copy.value.clone());
            Ok(value.map(|value| self.put_now(key, FarCopy { value: Some(value), ..copy }, token, false)))
        })
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            self.invalidate_now(scope, soft);
            Ok(())
        })
    }

    fn leases(&self) -> bool {
        true
    }

    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let now = self.clock.now_ms();
            let until = after(now, u64::try_from(time.as_millis()).unwrap_or(NEVER));
            let mut state = self.state.lock();
            if state.leases.len() > FENCES {
                state.leases.retain(|_, (_, until)| *until > now);
            }
            let lease = state.leases.entry(key.into()).or_insert((holder, until));
            if lease.0 == holder || lease.1 <= now {
                *lease = (holder, until);
            }
            Ok(lease.0 == holder)
        })
    }

    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            if state.leases.get(key).is_some_and(|(holds, _)| *holds == holder) {
                state.leases.remove(key);
            }
            Ok(())
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(async move { Ok(self.state.lock().groups.listed()) })
    }
}
