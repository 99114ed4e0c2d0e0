//! A tier in Redis.
//!
//! **Names.** Keys fall into buckets (one on a single server, 16 in a Cluster). All that belongs to a bucket has a hash tag, so
//! that it lies in one slot and a script may use it together: `{larder:3}e:<key>` is an entry, an envelope as
//! `wit/envelope.md` has it; `{larder:3}l:<key>` a lease; and `{larder:3}c` the bucket's counters. The bucket of a key is its
//! CRC-32 modulo their number.
//!
//! **Counters.** All that must not be forgotten about a bucket is in one hash: its epoch, 65,536 divided by the buckets'
//! number of fences, the counter of group invalidations and the version of each group. Redis forgets a hash as a whole or
//! not at all. Where it is gone (evicted, flushed, a server that came back empty) the next reader begins another one, with an
//! epoch that nobody has had; copies of another epoch are absent, and tokens of another epoch are too old. So counters
//! never start again in a way that lets an old fill land or an old copy revive: what is lost is the copies, never what had
//! happened to them. To have a fence beside each entry was the other way: it would have to outlive the entry, be evicted
//! never, and cost each key twice.
//!
//! - The *fence* of a key is one of the bucket's, by its CRC-32 again: two keys may share one, which costs a fill that is not
//!   kept now and then. A fence begins as the epoch (its high half) and counts up in its low half, so none is ever used twice.
//! - The *stamp* is the counter of group invalidations, `n`. Each writes down its group's version and leaves a record, the last
//!   thousand of which are kept.
//!
//! **A read is one round trip** without a script: the fence and `n`, then the entry, and now and then the server's time, in one write.
//! It is not one transaction. The token is the older part of the answer: what happens in between is seen by the copy, and
//! makes the token too old, never too young. (Of many keys, none gets a token where the look before found all; should one
//! be missing then, it gets its token in a second round trip, before anything is fetched for it.) Scripts were measured
//! against it: they cost the server five times as much.
//!
//! **Groups take constant time, and a local lookup on a read.** A copy whose stamp is `n` was reached by nothing. For others
//! the process has the versions of all groups in memory, as of some `n`; where the answer says a greater one, it reads the
//! records in between first (or all versions, if they are not all there). So a read costs one more round trip after groups
//! were invalidated, once in each process, and nothing is served on what a bus may or may not have said.
//!
//! **A server that comes back** with an older state (a snapshot, a replica that had not heard all) would revive copies that
//! were invalidated. Redis gives each run of a server a random name; the counters have the name of the run that made them,
//! and a connection on which that has not been compared is not read from. The connection to one server has a number
//! (`single.rs`). In a Cluster the `redis` crate connects anew behind our back; there a connection carries a client name that
//! says that it has been compared, and each read asks for it (`CLIENT GETNAME`). So a restart and a failover begin a new epoch,
//! and cost the copies. What this cannot see is a proxy that changes the server behind an open connection, and a master that
//! was replaced and does not know it yet; Redis itself loses writes there.
//!
//! **Clocks.** Only the server's is used, for writing (in the script) and for reading, so the clocks of machines do not matter.
//! A reader asks for it when it has not heard it for a tenth of a second, and counts on from there by itself, from the moment at
//! which it asked then to the one at which it has its answer now: so it may be ahead of the server by two round trips, and behind
//! it only where that clock was set meanwhile.
//!
//! **Where the memory is full** and nothing is evicted, nothing more is kept, and invalidations go on: `invalidate.lua` says how.
//!
//! It needs Redis 5 or later, and the right to run `EVAL` and `INFO`; in a Cluster `CLIENT GETNAME` and `CLIENT SETNAME`, too.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};

use super::{Link, RedisServer, RedisSetupError, Script, Way, array, bytes, failed, number, says, summary_of, unique};
use crate::tiered::envelope::{Envelope, EnvelopeError};
use crate::tiered::far::{GroupVersion, KeyPage};
use crate::tiered::groups::{Groups, Reached, Version};
use crate::tiered::{BoxFuture, FarCopy, Group, Looked, Put, Refusal, Scope, Tier, TierError, Token};

/// Fences of all buckets.
const FENCES: u32 = 65_536;
/// So many records of group invalidations are kept.
const RECORDS: u64 = 1_024;
/// So many groups a bucket remembers before all is invalidated instead.
const GROUPS: u64 = 32_768;
/// What one script is given at once.
const CHUNK: usize = 500;
/// A value of more than this is not sent, if nothing is said.
const MAX_VALUE_BYTES: usize = 8 << 20;
/// For so long a reader counts on from what the server's clock said.
const CLOCK_LASTS: Duration = Duration::from_millis(100);
/// What Redis says where a key has a list, say, instead of a string.
const WRONG_KIND: &str = "WRONGTYPE";
/// Lives of more milliseconds than this are without end.
const NO_END: u64 = 1 << 50;

/// A tier in a Redis server or Cluster.
///
/// ```no_run
/// use larder::tiered::{Codec, RedisServer, RedisTier, Tiered};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = RedisServer::at("redis://localhost")?;
/// let cache = Tiered::<u64, String>::builder()
///     .max_capacity(10_000)
///     .far(RedisTier::connect(&server).await?)
///     .codec(Codec::raw())
///     .build()?;
/// # Ok(()) }
/// ```
///
/// All processes that share entries must use the same prefix and number of buckets.
pub struct RedisTier {
    link: Link,
    buckets: Box<[Bucket]>,
    /// Tells this tier's connections from those of others.
    id: u64,
    /// The number of the connection that has been looked at, on one server.
    trusted: AtomicU64,
    /// How many connections have been looked at, and the names of those that may still be there, in a Cluster.
    attached: AtomicU64,
    trusted_names: RwLock<Vec<String>>,
    attaching: tokio::sync::Mutex<()>,
    max_value_bytes: usize,
    /// Whether the last look at many keys missed some.
    misses: AtomicBool,
    /// How many envelopes of later versions were met.
    newer: AtomicU64,
    scripts: Scripts,
    summary: Arc<str>,
}

struct Scripts {
    begin: Script,
    put: Script,
    invalidate: Script,
    invalidate_group: Script,
    lease: Script,
    release: Script,
}

/// Keys that lie in one slot, with their counters.
struct Bucket {
    counters: String,
    entries: String,
    leases: String,
    way: Way,
    known: Mutex<Known>,
    learning: tokio::sync::Mutex<()>,
    clock: Mutex<Option<Told>>,
}

/// What the server's clock said, in microseconds, to who asked then.
#[derive(Clone, Copy)]
struct Told {
    micros: u64,
    asked: Instant,
}

impl Bucket {
    /// Notes what the server's clock said; that, in milliseconds.
    fn tell(&self, micros: u64, asked: Instant) -> u64 {
        *self.clock.lock() = Some(Told { micros, asked });
        micros / 1_000
    }

    /// What is wrong where the counters were asked for, or changed: they may be somebody else's, or have been written to.
    fn failed(&self, error: RedisError) -> TierError {
        let is_no_counter = error.kind() == ErrorKind::UnexpectedReturnType || says(&error, "integer");
        if !is_no_counter && !says(&error, WRONG_KIND) {
            return failed(error);
        }
        let name = &self.counters;
        TierError::Refused(Refusal {
            what: format!(
                "the key `{name}` is not the counters that Larder keeps there ({error}): delete it (`DEL '{name}'`), with which \
                 the copies beside it are loaded anew, or set another prefix"
            ),
            is_outage: true,
        })
    }
}

impl Told {
    /// Whether one who begins to ask now may count on from it.
    fn lasts(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) < CLOCK_LASTS
    }

    /// What the clock says by now at the latest, in milliseconds.
    fn at(&self, now: Instant) -> u64 {
        self.micros.saturating_add(now.saturating_duration_since(self.asked).as_micros() as u64) / 1_000
    }
}

/// What this process knows of a bucket's groups.
#[derive(Default)]
struct Known {
    epoch: u64,
    groups: Groups,
}

impl Known {
    /// Whether it is all that had happened when the counters were so.
    fn has(&self, counters: Counters) -> bool {
        self.epoch == counters.epoch && self.groups.stamp() >= counters.n
    }
}

/// The field of a fence: `f` and its number. One for each key that is looked at, so on the stack.
#[derive(Clone, Copy)]
struct FenceName {
    bytes: [u8; 11],
    begin: usize,
}

impl FenceName {
    fn new(mut number: u32) -> Self {
        let (mut bytes, mut begin) = ([0; 11], 11);
        loop {
            begin -= 1;
            bytes[begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        begin -= 1;
        bytes[begin] = b'f';
        FenceName { bytes, begin }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}

/// What lies under a key.
enum Found {
    Nothing,
    Envelope(Envelope),
    /// Of a later version.
    Newer,
    Unreadable,
}

/// What a bucket's counters said.
#[derive(Clone, Copy)]
struct Counters {
    epoch: u64,
    n: u64,
}

/// Sets a [`RedisTier`] up. From [`RedisTier::builder`].
#[derive(Debug)]
#[must_use]
pub struct RedisTierBuilder {
    server: RedisServer,
    prefix: String,
    buckets: u16,
    max_value_bytes: usize,
}

impl RedisTierBuilder {
    /// What begins the names of all that it keeps, `larder` if nothing is said. Tiers of different prefixes know nothing of
    /// each other.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// In how many slots of a Cluster its keys lie, 16 if nothing is said: more spread them more evenly, and make the
    /// invalidation of a group more calls. All processes must have the same number.
    pub fn buckets(mut self, buckets: u16) -> Self {
        self.buckets = buckets;
        self
    }

    /// Declines values of more bytes than this, 8 MiB if nothing is said: one large value holds up all others.
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// The tier. It connects when it is first used, so that a Redis that is down now does not keep a service from starting.
    /// To be called within a tokio runtime.
    ///
    /// # Errors
    /// What was set cannot be.
    pub fn build(self) -> Result<RedisTier, RedisSetupError> {
        if self.prefix.contains(['{', '}']) {
            return Err(RedisSetupError::Prefix(self.prefix));
        }
        if !(1..=1024).contains(&self.buckets) {
            return Err(RedisSetupError::Buckets(self.buckets));
        }
        let bucket = |number: u16| {
            let tag = format!("{}:{number}", self.prefix);
            let way = Way::to(&tag);
            let tag = format!("{{{tag}}}");
            Bucket {
                way,
                counters: format!("{tag}c"),
                entries: format!("{tag}e:"),
                leases: format!("{tag}l:"),
                known: Mutex::default(),
                learning: tokio::sync::Mutex::default(),
                clock: Mutex::default(),
            }
        };
        Ok(RedisTier {
            link: self.server.link()?,
            buckets: (0..self.buckets).map(bucket).collect(),
            id: unique(),
            trusted: AtomicU64::new(0),
            attached: AtomicU64::new(0),
            trusted_names: RwLock::default(),
            attaching: tokio::sync::Mutex::default(),
            max_value_bytes: self.max_value_bytes,
            misses: AtomicBool::new(true),
            newer: AtomicU64::new(0),
            scripts: Scripts {
                begin: Script::new(include_str!("begin.lua")),
                put: Script::new(concat!(include_str!("moment.lua"), include_str!("put.lua"))),
                invalidate: Script::new(concat!(include_str!("moment.lua"), include_str!("invalidate.lua"))),
                invalidate_group: Script::new(include_str!("invalidate_group.lua")),
                lease: Script::new(include_str!("lease.lua")),
                release: Script::new(include_str!("release.lua")),
            },
            summary: summary_of(&self.server),
        })
    }

    /// The tier, once the server has answered.
    ///
    /// # Errors
    /// What was set cannot be; the server cannot be reached, or refuses.
    pub async fn connect(self) -> Result<RedisTier, RedisSetupError> {
        let at = self.server.place();
        let tier = self.build()?;
        let reached = tier.attach(&tier.buckets[0], 0).await;
        reached.map_err(|error| RedisSetupError::Unreachable { at, reason: error.to_string() })?;
        Ok(tier)
    }
}

/// Waits for all at once.
async fn all<T>(futures: impl IntoIterator<Item = BoxFuture<'_, Result<T, TierError>>>) -> Result<Vec<T>, TierError> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Some(future), None)).collect();
    poll_fn(|context| {
        for (future, answer) in &mut waiting {
            if let Some(pending) = future
                && let Poll::Ready(ready) = pending.as_mut().poll(context)
            {
                (*future, *answer) = (None, Some(ready));
            }
        }
        if waiting.iter().any(|(future, _)| future.is_some()) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, answer)| answer).collect()
}

/// The text of a group in scripts and counters.
fn text_of(group: &Group) -> String {
    match group {
        Group::Prefix(prefix) => format!("p{prefix}"),
        Group::Tag(tag) => format!("t{tag}"),
    }
}

fn group_of(text: &str) -> Option<Group> {
    let (kind, name) = text.split_at_checked(1)?;
    match kind {
        "p" => Some(Group::Prefix(name.into())),
        "t" => Some(Group::Tag(name.into())),
        _ => None,
    }
}

/// `hard soft soft-at`, and what is behind it.
fn version_of(text: &str) -> Option<(Version, &str)> {
    let mut parts = text.splitn(4, ' ');
    let mut number = || parts.next()?.parse().ok();
    let version = Version { hard: number()?, soft: number()?, soft_at: number()? };
    Some((version, parts.next().unwrap_or_default()))
}

fn checksum(key: &str) -> u32 {
    crc32fast::hash(key.as_bytes())
}

/// Far from all that a server says in its own words: its state changes faster than it can be looked at.
fn restless() -> TierError {
    TierError::Unavailable("the server restarts, or is flushed, again and again".into())
}

impl RedisTier {
    /// A tier with what is usual, once the server has answered.
    ///
    /// # Errors
    /// As [`RedisTierBuilder::connect`].
    pub async fn connect(server: &RedisServer) -> Result<Self, RedisSetupError> {
        Self::builder(server).connect().await
    }

    /// Sets one up.
    pub fn builder(server: &RedisServer) -> RedisTierBuilder {
        RedisTierBuilder {
            server: server.clone(),
            prefix: "larder".into(),
            buckets: if server.is_cluster { 16 } else { 1 },
            max_value_bytes: MAX_VALUE_BYTES,
        }
    }

    fn bucket_of(&self, key: &str) -> usize {
        checksum(key) as usize % self.buckets.len()
    }

    fn bucket(&self, key: &str) -> &Bucket {
        &self.buckets[self.bucket_of(key)]
    }

    /// The field of a key's fence.
    fn fence(&self, key: &str) -> FenceName {
        let buckets = self.buckets.len() as u32;
        FenceName::new(checksum(key) / buckets % (FENCES / buckets).max(1))
    }

    /// An epoch that nobody has had: the high half of a fence.
    fn epoch(&self) -> String {
        let random = self.id.wrapping_add(unique()) as u32 & 0x7fff_ffff;
        (u64::from(random.max(1)) << 32).to_string()
    }

    async fn send(&self, bucket: &Bucket, commands: &Pipeline) -> Result<Vec<Value>, TierError> {
        self.link.send(commands, &bucket.way).await.map_err(failed)
    }

    async fn run(
        &self,
        script: &Script,
        bucket: &Bucket,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<Value, TierError> {
        self.link.run(script, &bucket.way, keys, arguments).await.map_err(failed)
    }

    /// Runs a script that takes entries as they are, so that only the counters can be what is wrong.
    async fn change(
        &self,
        script: &Script,
        bucket: &Bucket,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<Value, TierError> {
        self.link.run(script, &bucket.way, keys, arguments).await.map_err(|error| bucket.failed(error))
    }

    /// Sees to it that a bucket has counters, and that they are of this run of its server; the number of the connection on
    /// which that was compared.
    async fn begin(&self, bucket: &Bucket) -> Result<u64, TierError> {
        let epoch = self.epoch();
        let (keys, arguments) = ([&*bucket.counters], [epoch.as_bytes()]);
        let begun = self.link.run_by(&self.scripts.begin, &bucket.way, &keys, &arguments).await;
        begun.map(|(_, connection)| connection).map_err(|error| bucket.failed(error))
    }

    fn is_trusted(&self, name: Option<&[u8]>) -> bool {
        name.is_some_and(|name| self.trusted_names.read().iter().any(|trusted| trusted.as_bytes() == name))
    }

    /// Looks at a connection that nobody has looked at. All buckets are looked at, for they may be of the same server.
    async fn attach(&self, bucket: &Bucket, connection: u64) -> Result<(), TierError> {
        let _one = self.attaching.lock().await;
        if connection != 0 && self.trusted.load(Relaxed) == connection {
            return Ok(());
        }
        // It may be another server, with another clock.
        self.buckets.iter().for_each(|bucket| *bucket.clock.lock() = None);
        match &self.link {
            Link::Single(_) => {
                let compared = self.begin_all().await?;
                // Of several connections, one has broken meanwhile: who looks next sees that.
                if let [first, others @ ..] = &compared[..]
                    && others.iter().all(|other| other == first)
                {
                    self.trusted.store(*first, Relaxed);
                }
                Ok(())
            }
            Link::Cluster(_) => self.attach_by_name(bucket).await,
        }
    }

    /// The connection is named before it is looked at, so that if it breaks meanwhile the name is gone with it.
    async fn attach_by_name(&self, bucket: &Bucket) -> Result<(), TierError> {
        let mut ask = Pipeline::new();
        ask.cmd("CLIENT").arg("GETNAME");
        let answers = self.send(bucket, &ask).await?;
        let name = answers.into_iter().next().map(bytes).transpose().map_err(failed)?.flatten();
        if self.is_trusted(name.as_deref()) {
            return Ok(());
        }
        let name = format!("larder-{:016x}-{}", self.id, self.attached.fetch_add(1, Relaxed));
        let mut tell = Pipeline::new();
        tell.cmd("CLIENT").arg("SETNAME").arg(&name);
        self.send(bucket, &tell).await?;
        self.begin_all().await?;
        let mut trusted = self.trusted_names.write();
        // Of connections that are gone; one that is not is looked at once more.
        if trusted.len() >= 256 {
            trusted.remove(0);
        }
        trusted.push(name);
        Ok(())
    }

    async fn begin_all(&self) -> Result<Vec<u64>, TierError> {
        all(self.buckets.iter().map(|bucket| Box::pin(self.begin(bucket)) as BoxFuture<'_, _>)).await
    }

    /// What is asked of keys of one bucket: the counters (with the fences, where tokens are asked for), the entries, the connection's
    /// name in a Cluster, and the time.
    fn question(
        &self,
        bucket: &Bucket,
        keys: &[&str],
        get: &'static str,
        asks_for_tokens: bool,
        asks_for_time: bool,
    ) -> Pipeline {
        let sized = |name: &str, arguments: usize, bytes: usize| {
            let mut command = Cmd::with_capacity(1 + arguments, name.len() + bytes);
            command.arg(name);
            command
        };
        let mut counters = sized("HMGET", 4, bucket.counters.len() + 12);
        counters.arg(&bucket.counters).arg("epoch").arg("n");
        if asks_for_tokens {
            for key in keys {
                counters.arg(self.fence(key).as_bytes());
            }
        }
        let bytes_of_keys: usize = keys.iter().map(|key| bucket.entries.len() + key.len()).sum();
        let mut entries = sized(get, keys.len(), bytes_of_keys);
        let mut entry = bucket.entries.clone();
        for key in keys {
            entry.truncate(bucket.entries.len());
            entry.push_str(key);
            entries.arg(&entry);
        }
        let mut ask = Pipeline::with_capacity(4);
        ask.add_command(counters).add_command(entries);
        if matches!(self.link, Link::Cluster(_)) {
            ask.cmd("CLIENT").arg("GETNAME");
        }
        if asks_for_time {
            ask.add_command(sized("TIME", 0, 0));
        }
        ask
    }

    /// Copies and tokens of keys of one bucket. Where the last look found all of its keys, the next one of many asks for no
    /// tokens, which would be a good part of the answer: what has no fresh copy then gets its token in a second round trip.
    async fn look(&self, bucket: &Bucket, keys: &[&str]) -> Result<Vec<Looked>, TierError> {
        let asks_for_tokens = keys.len() == 1 || self.misses.load(Relaxed);
        // A list, say, is an error to one of them, and nil to the other.
        let mut get = if keys.len() == 1 { "GET" } else { "MGET" };
        let is_of_another_kind = |get| keys.len() == 1 && get == "MGET";
        // Once to find that it is to be looked at, or begun, and once more; more often only if others undo that.
        'ask: for _ in 0..6 {
            let asked = Instant::now();
            let told = bucket.clock.lock().filter(|told| told.lasts(asked));
            let ask = self.question(bucket, keys, get, asks_for_tokens, told.is_none());
            let (answers, connection) = match self.link.send_by(&ask, &bucket.way).await {
                Err(error) if get == "GET" && says(&error, WRONG_KIND) => {
                    get = "MGET";
                    continue;
                }
                answers => answers.map_err(|error| bucket.failed(error))?,
            };
            let mut answers = answers.into_iter();
            let (Some(counters), Some(found)) = (answers.next(), answers.next()) else {
                return Err(failed(super::unexpected("an answer to each")));
            };
            let is_trusted = match &self.link {
                Link::Single(_) => self.trusted.load(Relaxed) == connection,
                Link::Cluster(_) => {
                    self.is_trusted(bytes(answers.next().unwrap_or_default()).map_err(failed)?.as_deref())
                }
            };
            if !is_trusted {
                self.attach(bucket, connection).await?;
                continue;
            }
            let read = || -> RedisResult<_> {
                let mut fields = array(counters)?.into_iter().map(number);
                let mut field = || fields.next().transpose().map(Option::flatten);
                let (epoch, n) = (field()?, field()?);
                let fences: Vec<_> = fields.collect::<RedisResult<_>>()?;
                let entries = if get == "GET" { vec![found] } else { array(found)? };
                let now = match told {
                    // Now that the answer is here: the server gave it before.
                    Some(told) => told.at(Instant::now()),
                    None => bucket.tell(microseconds(answers.next().unwrap_or_default())?, asked),
                };
                Ok((epoch.zip(n).map(|(epoch, n)| Counters { epoch, n }), fences, now, entries))
            };
            let (counters, fences, now, entries) = read().map_err(|error| bucket.failed(error))?;
            let Some(counters) = counters else {
                self.begin(bucket).await?;
                continue;
            };
            // Somebody invalidated groups since a copy was loaded: which?
            let is_behind = |entry: &Value| {
                let Value::BulkString(bytes) = entry else { return false };
                Envelope::peek(bytes)
                    .is_some_and(|(fence, stamp)| epoch_of(fence) == counters.epoch && stamp < counters.n)
            };
            let any_is_behind = counters.n > 0 && entries.iter().any(is_behind);
            if any_is_behind && !self.learn(bucket, counters).await? {
                continue;
            }
            let mut looked = Vec::with_capacity(keys.len());
            for (key, entry) in keys.iter().zip(entries) {
                let mut one = Looked { token: None, copy: None, damaged: false };
                match self.read(bytes(entry).map_err(failed)?, counters.epoch) {
                    Found::Envelope(envelope) => {
                        let mut reached = Reached::Untouched;
                        if envelope.stamp < counters.n {
                            // Not for longer: to read what was stored takes as long as it is large.
                            let known = bucket.known.lock();
                            if !known.has(counters) {
                                continue 'ask;
                            }
                            reached = known.groups.reached(key, &envelope.copy.tags, envelope.stamp);
                        }
                        one.copy = match reached {
                            Reached::Superseded => None,
                            Reached::Ended(at) => envelope.copy_at(now, at),
                            Reached::Untouched => envelope.copy_at(now, Envelope::NOT_ENDED),
                        };
                    }
                    Found::Unreadable => one.damaged = true,
                    Found::Nothing => one.damaged = is_of_another_kind(get),
                    Found::Newer => {}
                }
                looked.push(one);
            }
            let is_fresh = |looked: &Looked| looked.copy.as_ref().is_some_and(|copy| copy.fresh_ms > 0);
            if keys.len() > 1 {
                self.misses.store(!looked.iter().all(is_fresh), Relaxed);
            }
            if asks_for_tokens {
                looked.iter_mut().zip(fences).for_each(|(looked, fence)| {
                    looked.token = Some(Token { fence: fence.unwrap_or(counters.epoch), stamp: counters.n });
                });
                return Ok(looked);
            }
            let (keys, without): (Vec<_>, Vec<_>) =
                keys.iter().zip(&mut looked).filter(|(_, looked)| !is_fresh(looked)).unzip();
            let tokens = self.take_tokens(bucket, &keys).await?;
            without.into_iter().zip(tokens).for_each(|(looked, token)| looked.token = Some(token));
            return Ok(looked);
        }
        Err(restless())
    }

    /// What lies there.
    #[inline]
    fn read(&self, bytes: Option<Vec<u8>>, epoch: u64) -> Found {
        match bytes.map(Envelope::decode) {
            None => Found::Nothing,
            Some(Ok(envelope)) if epoch_of(envelope.fence) == epoch => Found::Envelope(envelope),
            // What had happened to it is forgotten.
            Some(Ok(_)) => Found::Nothing,
            Some(Err(error @ EnvelopeError::Newer(_))) => {
                self.newer.fetch_add(1, Relaxed);
                tracing::debug!(tier = &*self.summary, %error, "an entry was written by a newer version, and is left alone");
                Found::Newer
            }
            Some(Err(error)) => {
                tracing::debug!(tier = &*self.summary, %error, "an entry cannot be read");
                Found::Unreadable
            }
        }
    }

    /// Learns what happened to a bucket's groups until its counter was `n`; `false`: the epoch is another one by now.
    async fn learn(&self, bucket: &Bucket, now: Counters) -> Result<bool, TierError> {
        if bucket.known.lock().has(now) {
            return Ok(true);
        }
        let _one = bucket.learning.lock().await;
        let since = {
            let known = bucket.known.lock();
            if known.has(now) {
                return Ok(true);
            }
            (known.epoch == now.epoch).then(|| known.groups.stamp())
        };
        if let Some(since) = since.filter(|since| now.n - since <= RECORDS / 2) {
            let mut ask = Pipeline::new();
            let records: Vec<_> = (since + 1..=now.n).map(|n| format!("l{n}")).collect();
            ask.cmd("HMGET").arg(&bucket.counters).arg("epoch").arg(records);
            let answers = self.send(bucket, &ask).await?;
            let mut fields = array(answers.into_iter().next().unwrap_or_default()).map_err(failed)?.into_iter();
            if number(fields.next().unwrap_or_default()).map_err(|error| bucket.failed(error))? != Some(now.epoch) {
                return Ok(false);
            }
            let records: Option<Vec<_>> = fields
                .map(|field| {
                    let text = String::from_utf8(bytes(field).ok()??).ok()?;
                    let (version, group) = version_of(&text)?;
                    Some((group_of(group)?, version))
                })
                .collect();
            if let Some(records) = records {
                let mut known = bucket.known.lock();
                records.into_iter().for_each(|(group, version)| known.groups.learn(&group, version));
                known.groups.learned_until(now.n);
                return Ok(true);
            }
        }
        // All versions. They may be newer than the counter that is read before them, which does no harm.
        let Some(counters) = self.counters(bucket).await? else { return Ok(false) };
        let mut groups = Groups::default();
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = Pipeline::new();
            scan.cmd("HSCAN").arg(&bucket.counters).arg(&cursor).arg("MATCH").arg("g*").arg("COUNT").arg(1_000);
            let answers = self.send(bucket, &scan).await?;
            let page = array(answers.into_iter().next().unwrap_or_default()).map_err(failed)?;
            let Ok([next, fields]) = <[Value; 2]>::try_from(page) else {
                return Err(failed(super::unexpected("a cursor and a list")));
            };
            let fields: Vec<_> =
                array(fields).and_then(|fields| fields.into_iter().map(bytes).collect()).map_err(failed)?;
            for pair in fields.chunks_exact(2) {
                let [Some(field), Some(version)] = pair else { continue };
                let (Ok(field), Ok(version)) = (str::from_utf8(field), str::from_utf8(version)) else { continue };
                // `groups`, their number, begins alike.
                if let (Some(group), Some((version, _))) = (group_of(&field[1..]), version_of(version)) {
                    groups.learn(&group, version);
                }
            }
            cursor = bytes(next).map_err(failed)?.unwrap_or_default();
            if cursor == b"0" {
                break;
            }
        }
        if self.counters(bucket).await?.is_none_or(|after| after.epoch != counters.epoch) {
            return Ok(false);
        }
        groups.learned_until(counters.n);
        *bucket.known.lock() = Known { epoch: counters.epoch, groups };
        Ok(counters.epoch == now.epoch)
    }

    /// The counters as they are now; `None`: there are none.
    async fn counters(&self, bucket: &Bucket) -> Result<Option<Counters>, TierError> {
        let mut ask = Pipeline::new();
        ask.cmd("HMGET").arg(&bucket.counters).arg("epoch").arg("n");
        let answers = self.send(bucket, &ask).await?;
        let read = || -> RedisResult<_> {
            let mut fields = array(answers.into_iter().next().unwrap_or_default())?.into_iter();
            let epoch = number(fields.next().unwrap_or_default())?;
            Ok(epoch.zip(number(fields.next().unwrap_or_default())?))
        };
        Ok(read().map_err(|error| bucket.failed(error))?.map(|(epoch, n)| Counters { epoch, n }))
    }

    /// The tokens of keys of one bucket.
    async fn take_tokens(&self, bucket: &Bucket, keys: &[&&str]) -> Result<Vec<Token>, TierError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = Pipeline::with_capacity(1);
        let counters = ask.cmd("HMGET").arg(&bucket.counters).arg("epoch").arg("n");
        for key in keys {
            counters.arg(self.fence(key).as_bytes());
        }
        for _ in 0..3 {
            let read = |answers: Vec<Value>| array(answers.into_iter().next().unwrap_or_default());
            let fields = self.link.send(&ask, &bucket.way).await.and_then(read);
            let fields = fields.and_then(|fields| fields.into_iter().map(number).collect::<RedisResult<Vec<_>>>());
            let fields = fields.map_err(|error| bucket.failed(error))?;
            if let [Some(epoch), Some(n), fences @ ..] = &fields[..] {
                return Ok(fences.iter().map(|fence| Token { fence: fence.unwrap_or(*epoch), stamp: *n }).collect());
            }
            self.begin(bucket).await?;
        }
        Err(restless())
    }

    async fn take_token(&self, key: &str) -> Result<Token, TierError> {
        let tokens = self.take_tokens(self.bucket(key), &[&key]).await?;
        tokens.into_iter().next().ok_or_else(|| failed(super::unexpected("no answer")))
    }

    async fn keep(&self, key: &str, copy: FarCopy, token: Token, write: bool) -> Result<Put, TierError> {
        let is_too_large = copy.value.as_ref().is_some_and(|value| value.len() > self.max_value_bytes);
        let envelope = enveloped(copy, token);
        let lifetime = if is_too_large { "0".into() } else { lifetime(&envelope) };
        let body = if lifetime == "0" { Vec::new() } else { envelope.encode() };
        Ok(match self.put_there(key, &envelope, write, &lifetime, &body, b"").await? {
            Some(1) if is_too_large => Put::Declined,
            Some(1) => Put::Kept,
            _ => Put::Fenced,
        })
    }

    /// Two round trips, of the beginning of the envelope alone.
    async fn renew_there(&self, key: &str, copy: FarCopy, token: Token) -> Result<Option<Put>, TierError> {
        if copy.validator.is_none() {
            return Ok(None);
        }
        let envelope = enveloped(copy, token);
        let (bucket, most) = (self.bucket(key), envelope.most_before_value());
        let entry = format!("{}{key}", bucket.entries);
        let mut ask = Pipeline::with_capacity(2);
        ask.cmd("GETRANGE").arg(&entry).arg(0).arg(most - 1).cmd("STRLEN").arg(&entry);
        let answers = match self.link.send(&ask, &bucket.way).await {
            // Of another kind: it is replaced.
            Err(error) if says(&error, WRONG_KIND) => return Ok(None),
            answers => answers.map_err(failed)?,
        };
        let Ok([old, whole]) = <[Value; 2]>::try_from(answers) else {
            return Err(failed(super::unexpected("two answers")));
        };
        let read = || -> RedisResult<_> { Ok((bytes(old)?.unwrap_or_default(), number(whole)?.unwrap_or_default())) };
        let (old, whole) = read().map_err(failed)?;
        let Some((new, length)) = envelope.renewed(&old, whole as usize) else { return Ok(None) };
        Ok(match self.put_there(key, &envelope, false, &lifetime(&envelope), &new, &old[..length]).await? {
            Some(1) => Some(Put::Kept),
            Some(0) => Some(Put::Fenced),
            _ => None,
        })
    }

    async fn put_there(
        &self,
        key: &str,
        envelope: &Envelope,
        write: bool,
        lifetime: &str,
        body: &[u8],
        beginning: &[u8],
    ) -> Result<Option<u64>, TierError> {
        let bucket = self.bucket(key);
        let (fence, token) = (self.fence(key), [envelope.fence.to_string(), envelope.stamp.to_string()]);
        let entry = format!("{}{key}", bucket.entries);
        let mut arguments: Vec<&[u8]> = vec![fence.as_bytes(), token[0].as_bytes(), token[1].as_bytes()];
        arguments.extend([
            if write { b"1" as &[u8] } else { b"0" },
            lifetime.as_bytes(),
            body,
            key.as_bytes(),
            beginning,
        ]);
        arguments.extend(envelope.copy.tags.iter().map(|tag| tag.as_bytes()));
        let answer = self.change(&self.scripts.put, bucket, &[&bucket.counters, &entry], &arguments).await?;
        number(answer).map_err(failed)
    }

    async fn forget(&self, scope: &Scope, soft: bool) -> Result<(), TierError> {
        let soft: &[u8] = if soft { b"1" } else { b"0" };
        match scope {
            Scope::Group(group) => {
                let text = text_of(group);
                let (records, groups) = (RECORDS.to_string(), GROUPS.to_string());
                let arguments = [soft, text.as_bytes(), records.as_bytes(), groups.as_bytes()];
                let one = |bucket| -> BoxFuture<'_, Result<Value, TierError>> {
                    let bucket: &Bucket = bucket;
                    let arguments = &arguments;
                    Box::pin(async move {
                        self.change(&self.scripts.invalidate_group, bucket, &[&bucket.counters], arguments).await
                    })
                };
                all(self.buckets.iter().map(one)).await.map(drop)
            }
            Scope::Keys(keys) => {
                let mut of_buckets = vec![Vec::new(); self.buckets.len()];
                keys.iter().for_each(|key| of_buckets[self.bucket_of(key)].push(&**key));
                let mut calls: Vec<BoxFuture<'_, Result<Value, TierError>>> = Vec::new();
                for (keys, bucket) in of_buckets.iter().zip(&self.buckets) {
                    for keys in keys.chunks(CHUNK) {
                        calls.push(Box::pin(self.forget_keys(bucket, keys, soft)));
                    }
                }
                all(calls).await.map(drop)
            }
        }
    }

    async fn forget_keys(&self, bucket: &Bucket, keys: &[&str], soft: &[u8]) -> Result<Value, TierError> {
        let entries: Vec<_> = keys.iter().map(|key| format!("{}{key}", bucket.entries)).collect();
        let fences: Vec<_> = keys.iter().map(|key| self.fence(key)).collect();
        let names: Vec<_> = [&bucket.counters].into_iter().chain(&entries).map(String::as_str).collect();
        let arguments: Vec<_> = [soft].into_iter().chain(fences.iter().map(FenceName::as_bytes)).collect();
        self.change(&self.scripts.invalidate, bucket, &names, &arguments).await
    }

    async fn page(&self, prefix: &str, cursor: Option<&str>, most: usize) -> Result<KeyPage, TierError> {
        let begun = cursor.unwrap_or("0:0").split_once(':');
        let begun = begun.and_then(|(bucket, cursor)| Some((bucket.parse::<usize>().ok()?, cursor)));
        let Some((number, cursor)) = begun.filter(|(number, _)| *number < self.buckets.len()) else {
            return Err(TierError::Unavailable("a cursor that no page of keys ended with".into()));
        };
        let bucket = &self.buckets[number];
        let escaped =
            |text: &str| text.replace('\\', "\\\\").replace('*', "\\*").replace('?', "\\?").replace('[', "\\[");
        let pattern = format!("{}{}*", escaped(&bucket.entries), escaped(prefix));
        let mut scan = Pipeline::new();
        scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(most.max(1));
        let answers = self.send(bucket, &scan).await?;
        let read = || -> RedisResult<_> {
            let mut page = array(answers.into_iter().next().unwrap_or_default())?.into_iter();
            let next = bytes(page.next().unwrap_or_default())?.unwrap_or_default();
            let names: Vec<_> =
                array(page.next().unwrap_or_default())?.into_iter().map(bytes).collect::<RedisResult<_>>()?;
            Ok((String::from_utf8_lossy(&next).into_owned(), names))
        };
        let (next, names) = read().map_err(failed)?;
        let keys = names.into_iter().flatten().filter_map(|name| {
            let name = String::from_utf8(name).ok()?;
            name.strip_prefix(&bucket.entries).map(Arc::from)
        });
        let next = match next.as_str() {
            "0" if number + 1 == self.buckets.len() => None,
            "0" => Some(format!("{}:0", number + 1)),
            cursor => Some(format!("{number}:{cursor}")),
        };
        Ok(KeyPage { keys: keys.collect(), next })
    }

    async fn versions(&self) -> Result<Vec<GroupVersion>, TierError> {
        // A group is invalidated in all buckets; one that has failed half way is the greatest of them.
        let mut versions: Vec<GroupVersion> = Vec::new();
        for bucket in &self.buckets {
            for _ in 0..5 {
                let Some(counters) = self.counters(bucket).await? else { break };
                if self.learn(bucket, counters).await? {
                    break;
                }
            }
            for (group, version) in bucket.known.lock().groups.versions() {
                let version = GroupVersion { group, hard: version.hard, soft: version.soft };
                match versions.iter_mut().find(|known| known.group == version.group) {
                    None => versions.push(version),
                    Some(known) => {
                        known.hard = known.hard.max(version.hard);
                        known.soft = known.soft.max(version.soft);
                    }
                }
            }
        }
        Ok(versions)
    }
}

/// The epoch that a fence is of.
fn epoch_of(fence: u64) -> u64 {
    fence >> 32 << 32
}

/// A copy as it is kept by a token.
fn enveloped(copy: FarCopy, token: Token) -> Envelope {
    Envelope { stamp: token.stamp, fence: token.fence, ..Envelope::new(copy, 0) }
}

/// How long Redis has an envelope, as the script is told.
fn lifetime(envelope: &Envelope) -> String {
    match envelope.lifetime_ms() {
        NO_END.. => "-1".into(),
        milliseconds => milliseconds.to_string(),
    }
}

/// The answer to `TIME`.
fn microseconds(answer: Value) -> RedisResult<u64> {
    let mut parts = array(answer)?.into_iter().map(number);
    let mut part = || parts.next().transpose().map(|part| part.flatten().unwrap_or_default());
    Ok(part()?.saturating_mul(1_000_000).saturating_add(part()?))
}

impl std::fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisTier").field("at", &self.summary).field("buckets", &self.buckets.len()).finish()
    }
}

impl Tier for RedisTier {
    fn summary(&self) -> String {
        self.summary.to_string()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(async move {
            let mut looked = self.look(self.bucket(key), &[key]).await?;
            looked.pop().ok_or_else(|| failed(super::unexpected("no answer")))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        Box::pin(async move {
            if let [bucket] = &*self.buckets {
                return if keys.is_empty() { Ok(Vec::new()) } else { self.look(bucket, keys).await };
            }
            let mut of_buckets = vec![Vec::new(); self.buckets.len()];
            keys.iter().enumerate().for_each(|(at, key)| of_buckets[self.bucket_of(key)].push((at, *key)));
            let asked = of_buckets.into_iter().zip(&self.buckets).filter(|(keys, _)| !keys.is_empty());
            let answers = all(asked.map(|(keys, bucket)| -> BoxFuture<'_, _> {
                Box::pin(async move {
                    let names: Vec<_> = keys.iter().map(|(_, key)| *key).collect();
                    let looked = self.look(bucket, &names).await?;
                    Ok(keys.into_iter().map(|(at, _)| at).zip(looked).collect::<Vec<_>>())
                })
            }))
            .await?;
            let mut looked: Vec<_> = answers.into_iter().flatten().collect();
            looked.sort_unstable_by_key(|(at, _)| *at);
            Ok(looked.into_iter().map(|(_, looked)| looked).collect())
        })
    }

    fn newer(&self) -> u64 {
        self.newer.load(Relaxed)
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(self.take_token(key))
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

    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        Box::pin(self.renew_there(key, copy, token))
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(self.forget(scope, soft))
    }

    fn leases(&self) -> bool {
        true
    }

    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(async move {
            let bucket = self.bucket(key);
            let (holder, time) = (holder.to_string(), time.as_millis().clamp(1, u128::from(NO_END)).to_string());
            let name = format!("{}{key}", bucket.leases);
            let arguments = [holder.as_bytes(), time.as_bytes()];
            let answer = self.run(&self.scripts.lease, bucket, &[&name], &arguments).await?;
            Ok(number(answer).map_err(failed)? == Some(1))
        })
    }

    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            let (bucket, holder) = (self.bucket(key), holder.to_string());
            let name = format!("{}{key}", bucket.leases);
            self.run(&self.scripts.release, bucket, &[&name], &[holder.as_bytes()]).await.map(drop)
        })
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<KeyPage, TierError>> {
        Box::pin(self.page(prefix, cursor, most))
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(self.versions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_counted_on_to_the_answer_and_asked_anew_in_time() {
        let asked = Instant::now();
        let told = Told { micros: 1_700_000_000_000_900, asked };
        let after = |micros| asked + Duration::from_micros(micros);
        assert!(told.lasts(asked) && told.lasts(after(99_999)) && !told.lasts(after(100_000)));
        // Whole milliseconds are counted from what was told, and not from a part of it.
        assert_eq!([0, 99, 100, 5_000_000].map(|micros| told.at(after(micros)) % 100_000), [0, 0, 1, 5_000]);
    }

    #[test]
    fn the_name_of_a_fence_is_its_number() {
        for number in [0, 9, 10, 4_095, 65_535, u32::MAX] {
            assert_eq!(FenceName::new(number).as_bytes(), format!("f{number}").as_bytes());
        }
    }
}
