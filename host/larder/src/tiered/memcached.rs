//! A tier in Memcached, by its meta commands (1.6 or later).
//!
//! Memcached has no scripts; it has one thing on which all can be built, an item's CAS number, which says whether the item
//! has changed since it was read. What can be lost is an item, at any time; so whatever is absent is taken for *lost*.
//!
//! - **Entries** are envelopes (`wit/envelope.md`) that have the key's *fence* in them: a random number that each write and each
//!   soft invalidation draws anew. Where there is no item, [`get`](Tier::get) leaves one that has a fence and allows nothing, so
//!   a token always belongs to an item that was there. To put is to read the item, to compare its fence, and to replace it if
//!   its CAS number is still the same. A hard invalidation deletes the item: what is absent has no fence, so nothing lands. And
//!   so what Memcached evicts costs a fill that is not kept, and never lets an old one land.
//! - **Groups.** One item has the version of each group (the *table*), another only the counter of their invalidations, with
//!   the table's epoch. A read asks for the counter with the entry, in one round trip, and for the table only where a copy is older
//!   than the counter and the table that this process knows is, too. Where the table is lost, or full, the next one has
//!   another epoch, and copies of the old one are absent. To invalidate a group is to replace the table by its CAS number, and
//!   then to advance the counter: constant time, and one after the other.
//! - **Leases** are items that are added, which one of many can. They last whole seconds, and up to one more.
//!
//! **Clocks.** Memcached tells no time but in seconds, so moments are the writers' clocks: where those of two machines
//! differ by a second, so does what they think of a copy's age. What a soft invalidation of a group ended, too.
//!
//! `async-memcached` is the client: it has the meta commands with CAS, many keys at once, and a connection that a cancelled
//! call has left half read is closed and never read on. It has neither TLS nor SASL, nor more than one server: put a proxy
//! before those (memcached's own, or mcrouter), as one does. A few connections are shared by all calls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_memcached::{Client, Error, MetaProtocol, MetaValue, Status};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::envelope::Envelope;
use super::far::GroupVersion;
use super::groups::{Groups, Reached, Version};
use super::{BoxFuture, FarCopy, Group, Looked, Put, Scope, Tier, TierError, Token};

/// The greatest item of a server that was not told otherwise, without what is around a value.
const MAX_VALUE_BYTES: usize = 1_000_000;
/// So long a fence without a value is there: longer than any load.
const FENCE_SECONDS: u64 = 3_600;
/// What Memcached takes for a duration; more is a date.
const MOST_SECONDS: u64 = 30 * 24 * 3_600;
/// A table of more bytes than this begins anew.
const MAX_TABLE_BYTES: usize = 500_000;
/// So often a call tries again where others are at work on the same item.
const ATTEMPTS: usize = 200;

/// Why a Memcached cannot be used as it was set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemcachedSetupError {
    /// Its address cannot be understood.
    // It is not repeated: who takes this for a URL has written a password there.
    #[error(
        "the address of a Memcached server: write `host:port` or `unix:///path`; there is no user and no password, \
         and what asks for them is reached by a proxy"
    )]
    Address,
    /// A name that cannot be part of an item's name.
    #[error("the prefix `{0}` of keys in Memcached: at most 40 letters, digits and punctuation without spaces")]
    Prefix(String),
    /// It cannot be reached, or refuses.
    #[error("Memcached at {at}: {reason}; write `host:port`, or `unix:///path`")]
    Unreachable {
        /// Where.
        at: String,
        /// What it or the network said.
        reason: String,
    },
}

/// A tier in a Memcached server.
///
/// ```no_run
/// use larder::tiered::{Codec, MemcachedTier, Tiered};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = Tiered::<u64, String>::builder()
///     .max_capacity(10_000)
///     .far(MemcachedTier::connect("localhost:11211").await?)
///     .codec(Codec::raw())
///     .build()?;
/// # Ok(()) }
/// ```
pub struct MemcachedTier {
    at: String,
    prefix: String,
    max_value_bytes: usize,
    idle: Mutex<Vec<Client>>,
    connections: Semaphore,
    known: Mutex<Known>,
}

/// Sets a [`MemcachedTier`] up. From [`MemcachedTier::builder`].
#[derive(Debug)]
#[must_use]
pub struct MemcachedTierBuilder {
    at: String,
    prefix: String,
    max_value_bytes: usize,
    connections: usize,
}

impl MemcachedTierBuilder {
    /// What begins the names of all that it keeps, `larder` if nothing is said.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Declines values of more bytes than this, 1,000,000 if nothing is said: a server takes 1 MiB (`-I`) for all of an item.
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// How many connections it has at most, 16 if nothing is said. A connection carries one call at a time.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// The tier. It connects when it is first used.
    ///
    /// # Errors
    /// What was set cannot be.
    pub fn build(self) -> Result<MemcachedTier, MemcachedSetupError> {
        if self.prefix.len() > 40 || !self.prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(MemcachedSetupError::Prefix(self.prefix));
        }
        if !is_address(&self.at) {
            return Err(MemcachedSetupError::Address);
        }
        Ok(MemcachedTier {
            at: self.at,
            prefix: self.prefix,
            max_value_bytes: self.max_value_bytes,
            idle: Mutex::default(),
            connections: Semaphore::new(self.connections),
            known: Mutex::default(),
        })
    }

    /// The tier, once the server has answered.
    ///
    /// # Errors
    /// What was set cannot be; the server cannot be reached.
    pub async fn connect(self) -> Result<MemcachedTier, MemcachedSetupError> {
        let tier = self.build()?;
        let reached = async {
            let mut lent = tier.lend().await?;
            let answer = lent.client.version().await;
            tier.back(lent, answer)
        };
        let unreachable =
            |error: TierError| MemcachedSetupError::Unreachable { at: tier.at.clone(), reason: error.to_string() };
        reached.await.map_err(unreachable)?;
        Ok(tier)
    }
}

/// Whether this is `host:port`, with `tcp://` before it or not, or the path of a socket.
fn is_address(at: &str) -> bool {
    if let Some(path) = at.strip_prefix("unix://") {
        return path.starts_with('/') && path.len() > 1;
    }
    let Some((host, port)) = at.strip_prefix("tcp://").unwrap_or(at).rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// The groups' counter: their invalidations so far, in the high half the epoch of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counter(u64);

impl Counter {
    fn new() -> Self {
        Counter((random() >> 33 | 1) << 32)
    }

    fn epoch(self) -> u64 {
        self.0 >> 32
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok().map(Counter)
    }
}

/// What this process knows of groups.
#[derive(Default)]
struct Known {
    counter: Counter,
    groups: Groups,
}

impl Known {
    fn has(&self, counter: Counter) -> bool {
        self.counter.epoch() == counter.epoch() && self.counter.0 >= counter.0
    }
}

/// The versions of all groups, as an item: the counter, and a line for each group.
struct Table {
    counter: Counter,
    lines: Vec<(String, Version)>,
}

impl Table {
    fn of(bytes: &[u8]) -> Option<Self> {
        // Names of groups may have line breaks, so they are as JSON has texts.
        let (counter, lines): (u64, Vec<(String, u64, u64, u64)>) = serde_json::from_slice(bytes).ok()?;
        let version = |(name, hard, soft, soft_at)| (name, Version { hard, soft, soft_at });
        Some(Table { counter: Counter(counter), lines: lines.into_iter().map(version).collect() })
    }

    fn bytes(&self) -> Vec<u8> {
        let line = |(name, version): &(String, Version)| (name.clone(), version.hard, version.soft, version.soft_at);
        let lines: Vec<_> = self.lines.iter().map(line).collect();
        serde_json::to_vec(&(self.counter.0, lines)).unwrap_or_default()
    }

    fn known(self) -> Known {
        let mut groups = Groups::default();
        for (name, version) in &self.lines {
            let (kind, name) = name.split_at_checked(1).unwrap_or_default();
            let group = if kind == "p" { Group::Prefix(name.into()) } else { Group::Tag(name.into()) };
            groups.learn(&group, *version);
        }
        groups.learned_until(self.counter.0);
        Known { counter: self.counter, groups }
    }
}

/// What lies under a key.
enum Found {
    Nothing,
    Unreadable(u64),
    Envelope(Envelope, u64),
}

/// A connection that is in use.
struct Lent<'a> {
    client: Client,
    _permit: SemaphorePermit<'a>,
}

fn is_refused(status: &Status) -> bool {
    matches!(status, Status::NotStored | Status::Exists | Status::NotFound)
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn failed(error: Error) -> TierError {
    TierError::Unavailable(error.to_string())
}

/// Terms that allow nothing, with a fence.
fn only_a_fence(counter: Counter) -> Envelope {
    let nothing = FarCopy {
        value: None,
        validator: None,
        tags: [].into(),
        age_ms: 0,
        fresh_ms: 0,
        stale_ms: 0,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    };
    Envelope { fence: random(), stamp: counter.0, ..Envelope::new(nothing, now_ms()) }
}

/// How long an item is there: no shorter than its terms, whose seconds it counts by its own.
fn seconds_of(envelope: &Envelope, now: u64) -> u64 {
    let until = envelope.written_at.saturating_add(envelope.copy.fresh_ms).min(envelope.ended_at);
    let ends = until.saturating_add(envelope.copy.stale_ms.max(envelope.copy.rescue_ms));
    (ends.saturating_sub(now) / 1_000).saturating_add(2).clamp(FENCE_SECONDS, MOST_SECONDS)
}

impl MemcachedTier {
    /// A tier with what is usual, once the server (`host:port`) has answered.
    ///
    /// # Errors
    /// As [`MemcachedTierBuilder::connect`].
    pub async fn connect(at: &str) -> Result<Self, MemcachedSetupError> {
        Self::builder(at).connect().await
    }

    /// Sets one up.
    pub fn builder(at: &str) -> MemcachedTierBuilder {
        MemcachedTierBuilder {
            at: at.into(),
            prefix: "larder".into(),
            max_value_bytes: MAX_VALUE_BYTES,
            connections: 16,
        }
    }

    /// A connection for one call, to be given back with its answer. One that is not, because the caller has left, is closed.
    async fn lend(&self) -> Result<Lent<'_>, TierError> {
        let closed = |_| TierError::Unavailable("it is shut down".into());
        let permit = self.connections.acquire().await.map_err(closed)?;
        let idle = self.idle.lock().pop();
        let client = match idle {
            Some(client) => client,
            None => Client::new(if self.at.contains("://") { self.at.clone() } else { format!("tcp://{}", self.at) })
                .await
                .map_err(failed)?,
        };
        Ok(Lent { client, _permit: permit })
    }

    fn back<T>(&self, lent: Lent<'_>, answer: Result<T, Error>) -> Result<T, TierError> {
        match &answer {
            Ok(_) | Err(Error::Protocol(Status::NotFound | Status::Exists | Status::NotStored)) => {
                if !lent.client.is_closed() {
                    self.idle.lock().push(lent.client);
                }
            }
            // Of this one nobody knows what is left to be read; and where one is broken, the others may be.
            Err(_) => self.idle.lock().clear(),
        }
        answer.map_err(failed)
    }

    /// An item's name: the key itself where Memcached takes it, else its hash.
    fn name(&self, kind: char, key: &str) -> String {
        let is_plain = key.len() <= 190 && !key.starts_with('#') && key.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain {
            return format!("{}:{kind}:{key}", self.prefix);
        }
        let hash = Sha256::digest(key.as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{kind}:#{hex}", self.prefix)
    }

    async fn read(&self, names: &[String]) -> Result<Vec<Option<MetaValue>>, TierError> {
        let mut lent = self.lend().await?;
        let answer = lent.client.meta_get_multi(names, Some(&["v", "c"])).await;
        let values = self.back(lent, answer)?;
        let mut found = vec![None; names.len()];
        for value in values {
            // A name that is asked for twice is answered twice.
            let at =
                (0..names.len()).find(|at| found[*at].is_none() && value.key.as_deref() == Some(names[*at].as_bytes()));
            if let Some(at) = at {
                found[at] = Some(value);
            }
        }
        Ok(found)
    }

    async fn read_one(&self, name: &str) -> Result<Option<MetaValue>, TierError> {
        let names = [name.to_string()];
        Ok(self.read(&names).await?.pop().flatten())
    }

    /// Stores an item; `false`: it is not what it was. With the number of the item that it replaces, or only where there is none.
    async fn store(&self, name: &str, bytes: &[u8], seconds: u64, replaces: Option<u64>) -> Result<bool, TierError> {
        let (time, mode) = (format!("T{seconds}"), replaces.map_or_else(|| "ME".into(), |number| format!("C{number}")));
        let flags = [time.as_str(), mode.as_str()];
        let mut lent = self.lend().await?;
        let answer = match lent.client.meta_set(name, bytes, false, None, Some(&flags)).await {
            Ok(value) => Ok(!value.and_then(|value| value.status).as_ref().is_some_and(is_refused)),
            Err(Error::Protocol(status)) if is_refused(&status) => Ok(false),
            Err(error) => Err(error),
        };
        self.back(lent, answer)
    }

    /// Stores fences where there is nothing, in one round trip; whether there was nothing.
    async fn add(&self, fences: &[(&str, Vec<u8>)]) -> Result<bool, TierError> {
        if fences.is_empty() {
            return Ok(true);
        }
        let items: Vec<_> = fences.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let time = format!("T{FENCE_SECONDS}");
        let mut lent = self.lend().await?;
        let answer = lent.client.meta_set_multi(&items, Some(&[&time, "ME"])).await;
        // Those that were refused are told.
        Ok(self.back(lent, answer)?.is_empty())
    }

    /// Takes an item away; `number`: only if it is still that one.
    async fn delete(&self, name: &str, number: Option<u64>) -> Result<(), TierError> {
        let mode = number.map(|number| format!("C{number}"));
        let flags: Vec<_> = mode.as_deref().into_iter().collect();
        let mut lent = self.lend().await?;
        let answer = match lent.client.meta_delete(name, false, None, Some(&flags)).await {
            Err(Error::Protocol(status)) if is_refused(&status) => Ok(()),
            answer => answer.map(drop),
        };
        self.back(lent, answer)
    }

    fn counter_name(&self) -> String {
        format!("{}:c", self.prefix)
    }

    fn table_name(&self) -> String {
        format!("{}:t", self.prefix)
    }

    /// Sees to it that the counter is the table's, and that there are both. The counter is read before the table, and replaced
    /// only if it is what it was: so it never goes back to that of a table which was lost meanwhile.
    async fn agree(&self) -> Result<(), TierError> {
        let names = [self.counter_name(), self.table_name()];
        for _ in 0..ATTEMPTS {
            let Ok([counter, table]) = <[Option<MetaValue>; 2]>::try_from(self.read(&names).await?) else {
                return Err(crowded());
            };
            let Some(whole) = table.as_ref().and_then(|item| Table::of(item.data.as_deref()?)) else {
                let new = Table { counter: Counter::new(), lines: Vec::new() };
                self.store(&names[1], &new.bytes(), 0, table.and_then(|item| item.cas)).await?;
                continue;
            };
            let now = counter.as_ref().and_then(|item| Counter::of(item.data.as_deref()?));
            if now.is_some_and(|now| now.epoch() == whole.counter.epoch() && now.0 >= whole.counter.0) {
                return Ok(());
            }
            let text = whole.counter.0.to_string();
            if self.store(&names[0], text.as_bytes(), 0, counter.and_then(|item| item.cas)).await? {
                return Ok(());
            }
        }
        Err(crowded())
    }

    /// Counter and entries of keys, in one round trip.
    async fn look_at(&self, names: &[String]) -> Result<(Counter, Vec<Found>), TierError> {
        let asked: Vec<_> = [self.counter_name()].into_iter().chain(names.iter().cloned()).collect();
        for _ in 0..ATTEMPTS {
            let mut items = self.read(&asked).await?.into_iter();
            let counter = items.next().flatten().and_then(|item| Counter::of(item.data.as_deref()?));
            let Some(counter) = counter else {
                self.agree().await?;
                continue;
            };
            let found = items.map(|item| {
                let Some(item) = item else { return Found::Nothing };
                let number = item.cas.unwrap_or_default();
                match Envelope::decode(item.data.unwrap_or_default()) {
                    Ok(envelope) => Found::Envelope(envelope, number),
                    Err(error) => {
                        tracing::debug!(tier = self.at, %error, "an entry cannot be read");
                        Found::Unreadable(number)
                    }
                }
            });
            return Ok((counter, found.collect()));
        }
        Err(crowded())
    }

    /// Learns what happened to groups until the counter was so; `false`: the table is another one by now.
    async fn learn(&self, counter: Counter) -> Result<bool, TierError> {
        if self.known.lock().has(counter) {
            return Ok(true);
        }
        let item = self.read_one(&self.table_name()).await?;
        let table = item.and_then(|item| Table::of(item.data.as_deref()?));
        match table.map(Table::known).filter(|known| known.counter.epoch() == counter.epoch()) {
            Some(known) => {
                let mut now = self.known.lock();
                if !now.has(known.counter) {
                    *now = known;
                }
                Ok(true)
            }
            // The counter is that of a table which is lost.
            None => self.agree().await.map(|()| false),
        }
    }

    async fn look(&self, keys: &[&str]) -> Result<Vec<Looked>, TierError> {
        let names: Vec<_> = keys.iter().map(|key| self.name('e', key)).collect();
        let mut damaged = vec![false; keys.len()];
        for _ in 0..ATTEMPTS {
            let (counter, mut found) = self.look_at(&names).await?;
            let is_of_now = |envelope: &Envelope| Counter(envelope.stamp).epoch() == counter.epoch();
            let is_behind = |found: &Found| matches!(found, Found::Envelope(envelope, _) if is_of_now(envelope) && envelope.stamp < counter.0);
            let any_is_behind = found.iter().any(is_behind);
            if any_is_behind && !self.learn(counter).await? {
                continue;
            }
            // A token is of an item that is there.
            let mut fences = Vec::new();
            let mut is_whole = true;
            for (at, found) in found.iter_mut().enumerate() {
                let fence = only_a_fence(counter);
                match found {
                    Found::Envelope(..) => continue,
                    Found::Nothing => fences.push((names[at].as_str(), fence.encode())),
                    Found::Unreadable(number) => {
                        damaged[at] = true;
                        is_whole &= self.store(&names[at], &fence.encode(), FENCE_SECONDS, Some(*number)).await?;
                    }
                }
                *found = Found::Envelope(fence, 0);
            }
            // Somebody else may have been first.
            if !self.add(&fences).await? || !is_whole {
                continue;
            }
            let known = self.known.lock();
            if any_is_behind && !known.has(counter) {
                continue;
            }
            let now = now_ms();
            let looked = keys.iter().zip(found).zip(damaged).filter_map(|((key, found), damaged)| {
                let Found::Envelope(envelope, _) = found else { return None };
                let reached = match (is_of_now(&envelope), envelope.stamp < counter.0) {
                    (false, _) => Reached::Superseded,
                    (true, true) => known.groups.reached(key, &envelope.copy.tags, envelope.stamp),
                    (true, false) => Reached::Untouched,
                };
                let token = Token { fence: envelope.fence, stamp: counter.0 };
                let copy = match reached {
                    Reached::Superseded => None,
                    Reached::Ended(ended_at) => envelope.copy_at(now, ended_at),
                    Reached::Untouched => envelope.copy_at(now, Envelope::NOT_ENDED),
                };
                Some(Looked { token: Some(token), copy, damaged })
            });
            return Ok(looked.collect());
        }
        Err(crowded())
    }

    async fn keep(&self, key: &str, copy: FarCopy, token: Token, write: bool) -> Result<Put, TierError> {
        let names = [self.name('e', key)];
        let is_too_large = copy.value.as_ref().is_some_and(|value| value.len() > self.max_value_bytes);
        for _ in 0..ATTEMPTS {
            let (counter, found) = self.look_at(&names).await?;
            let Some(Found::Envelope(there, number)) = found.into_iter().next() else { return Ok(Put::Fenced) };
            if there.fence != token.fence || Counter(token.stamp).epoch() != counter.epoch() {
                return Ok(Put::Fenced);
            }
            if token.stamp < counter.0 {
                if !self.learn(counter).await? {
                    continue;
                }
                let known = self.known.lock();
                if !known.has(counter) {
                    continue;
                }
                if known.groups.reached(key, &copy.tags, token.stamp) != Reached::Untouched {
                    return Ok(Put::Fenced);
                }
            }
            let fence = if write { random() } else { token.fence };
            let is_nothing = copy.fresh_ms == 0 && copy.stale_ms == 0 && copy.rescue_ms == 0;
            let envelope = match is_too_large || is_nothing {
                true => Envelope { fence, ..only_a_fence(counter) },
                false => Envelope { fence, stamp: token.stamp, ..Envelope::new(copy.clone(), now_ms()) },
            };
            let seconds = seconds_of(&envelope, envelope.written_at);
            match self.store(&names[0], &envelope.encode(), seconds, Some(number)).await {
                Ok(true) => return Ok(if is_too_large { Put::Declined } else { Put::Kept }),
                // It has changed since: perhaps by another fill, which is no reason not to keep this one.
                Ok(false) => {}
                Err(TierError::Unavailable(reason)) if reason.contains("too large") => {
                    self.delete(&names[0], None).await?;
                    return Ok(Put::Declined);
                }
                Err(error) => return Err(error),
            }
        }
        Err(crowded())
    }

    async fn forget_key(&self, key: &str, soft: bool) -> Result<(), TierError> {
        let names = [self.name('e', key)];
        if !soft {
            return self.delete(&names[0], None).await;
        }
        for _ in 0..ATTEMPTS {
            let (counter, found) = self.look_at(&names).await?;
            let (mut there, number) = match found.into_iter().next() {
                Some(Found::Envelope(there, number)) => (there, number),
                Some(Found::Unreadable(number)) => return self.delete(&names[0], Some(number)).await,
                _ => return Ok(()),
            };
            let now = now_ms();
            there.ended_at = there.ended_at.min(now);
            there.fence = random();
            if there.clone().copy_at(now, Envelope::NOT_ENDED).is_none() {
                there = only_a_fence(counter);
            }
            if self.store(&names[0], &there.encode(), seconds_of(&there, now), Some(number)).await? {
                return Ok(());
            }
        }
        Err(crowded())
    }

    async fn forget_group(&self, group: &Group, soft: bool) -> Result<(), TierError> {
        let line = match group {
            Group::Prefix(prefix) => format!("p{prefix}"),
            Group::Tag(tag) => format!("t{tag}"),
        };
        let name = self.table_name();
        for _ in 0..ATTEMPTS {
            let item = self.read_one(&name).await?;
            let number = item.as_ref().and_then(|item| item.cas);
            let table = item.and_then(|item| Table::of(item.data.as_deref()?));
            // Without a table no copy counts: a new one is as good as any invalidation.
            let mut table = table.unwrap_or_else(|| Table { counter: Counter::new(), lines: Vec::new() });
            table.counter.0 += 1;
            let counter = table.counter;
            let at = table.lines.iter().position(|(name, _)| *name == line).unwrap_or_else(|| {
                table.lines.push((line.clone(), Version::default()));
                table.lines.len() - 1
            });
            let version = &mut table.lines[at].1;
            if soft {
                (version.soft, version.soft_at) = (counter.0, now_ms());
            } else {
                version.hard = counter.0;
            }
            let mut bytes = table.bytes();
            if bytes.len() > MAX_TABLE_BYTES {
                // Too many to remember: all is invalidated instead, which says more than is true and never less.
                bytes = Table { counter: Counter::new(), lines: Vec::new() }.bytes();
            }
            if self.store(&name, &bytes, 0, number).await? {
                return self.agree().await;
            }
        }
        Err(crowded())
    }
}

fn crowded() -> TierError {
    TierError::Unavailable("others change the same item again and again, or the server loses what it is given".into())
}

impl std::fmt::Debug for MemcachedTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemcachedTier").field("at", &self.at).field("prefix", &self.prefix).finish()
    }
}

impl Tier for MemcachedTier {
    fn summary(&self) -> String {
        format!("Memcached at {}", self.at)
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(async move {
            let mut looked = self.look(&[key]).await?;
            looked.pop().ok_or_else(crowded)
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            // Each once: a fence that is left for a key is there when it comes again.
            let mut asked = keys.to_vec();
            asked.sort_unstable();
            asked.dedup();
            let looked = self.look(&asked).await?;
            let of = |key: &&str| asked.binary_search(key).ok().and_then(|at| looked.get(at)).cloned();
            keys.iter().map(|key| of(key).ok_or_else(crowded)).collect()
        })
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(async move { self.get(key).await?.token.ok_or_else(crowded) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        Box::pin(self.keep(key, copy, token, write))
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            match scope {
                Scope::Group(group) => self.forget_group(group, soft).await,
                Scope::Keys(keys) => {
                    for key in keys {
                        self.forget_key(key, soft).await?;
                    }
                    Ok(())
                }
            }
        })
    }

    fn leases(&self) -> bool {
        true
    }

    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let (name, holder) = (self.name('l', key), holder.to_string());
            // An item of one second may be gone in the next moment.
            let seconds = (time.as_secs() + 1 + u64::from(time.subsec_nanos() > 0)).min(MOST_SECONDS);
            for _ in 0..ATTEMPTS {
                if self.store(&name, holder.as_bytes(), seconds, None).await? {
                    return Ok(true);
                }
                match self.read_one(&name).await? {
                    Some(item) if item.data.as_deref() != Some(holder.as_bytes()) => return Ok(false),
                    Some(item) if self.store(&name, holder.as_bytes(), seconds, item.cas).await? => return Ok(true),
                    _ => {}
                }
            }
            Err(crowded())
        })
    }

    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            let name = self.name('l', key);
            match self.read_one(&name).await? {
                Some(item) if item.data.as_deref() == Some(holder.to_string().as_bytes()) => {
                    self.delete(&name, item.cas).await
                }
                _ => Ok(()),
            }
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(async move {
            let item = self.read_one(&self.table_name()).await?;
            let table = item.and_then(|item| Table::of(item.data.as_deref()?));
            let known = table.map(Table::known).unwrap_or_default();
            let low = |counter: u64| counter & u64::from(u32::MAX);
            let of = |(group, version): (Group, Version)| GroupVersion {
                group,
                hard: low(version.hard),
                soft: low(version.soft),
            };
            Ok(known.groups.versions().map(of).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for at in
            ["localhost:11211", "tcp://cache-1.example.com:1", "127.0.0.1:65535", "[::1]:11211", "unix:///run/m.sock"]
        {
            assert!(MemcachedTier::builder(at).build().is_ok(), "{at}");
        }
        for at in [
            "memcache://u:hunter2@h:11211",
            "u:hunter2@h:11211",
            "tcp://u:hunter2@h:11211",
            "hunter2",
            "h:0",
            "h:port",
            ":11211",
            "::1:11211",
            "unix://hunter2",
            "",
        ] {
            let said = MemcachedTier::builder(at).build().unwrap_err().to_string();
            assert!(said.contains("write `host:port`") && !said.contains("hunter2"), "{said}");
        }
    }
}
