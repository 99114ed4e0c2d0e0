//! A bus through Redis.
//!
//! **What is wanted** is that an invalidation which is acknowledged has been heard by all, or that who has not heard it does
//! not serve from its memory. Pub/sub alone promises neither: it tells whoever listens at that moment, at most once, and
//! says nothing of the others. So the news are a log, and to hear is a lease.
//!
//! - *Log.* To announce is to append to a hash of numbered records (the last thousand) and to ring a bell, which is pub/sub. The
//!   bell carries nothing. Who hears it, and everyone four times in each lease, reads what is new in the log, does it, and
//!   says how far it has come.
//! - *Lease.* A process trusts its tier 0 for one lease from the moment at which it *began* to read the log, once it has done
//!   all that it read. One that is cut off, suspended or starved stops by itself, by its own monotonic clock: what it has in tier
//!   0 counts as absent until it has caught up, and its reads go to the far tiers and the source.
//! - *Acknowledgement.* [`announce`](crate::tiered::Bus::announce) returns when all members that are alive have said that they
//!   have come so far, which takes a few round trips; or when one lease has passed, by the announcer's clock: who had not read
//!   the record by then has no lease any more. So one dead process makes announcements slower by a lease, until it is
//!   forgotten, and none weaker. What this trusts: that clocks *run* alike (not that they agree), and that the server's
//!   clock is not set forward by more than a lease within one, by which it tells dead members.
//! - *Gaps.* One who finds that records are missing which it has not read (it was away for more than a thousand, the log was evicted or
//!   flushed, the server came back with an older state or is another one: the run of the server is compared at each call, as
//!   in the tier) drops all that it has, and begins where the log ends. After such a loss the first announcements wait for
//!   a whole lease, because nobody knows who the members were.
//!
//! **Where this ends.** While a process is cut off, its readers join loads in their own process, as ever; one may get a value
//! whose load began before an invalidation that could not be heard, but no older one. [`RedisBusBuilder::serve_deaf_for`]
//! trades more of it for fewer loads.
//!
//! Roads not taken: streams with consumer groups keep what each member has not read, for ever if it died, and still would not
//! say when all have; client-side caching (`CLIENT TRACKING`) tells of Redis keys, and tier 0 has what was never there.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ProtocolVersion, PushKind, RedisResult, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Link, RedisServer, RedisSetupError, Script, Way, array, bytes, failed, number, summary_of, unique};
use crate::tiered::{BoxFuture, Bus, Group, Listener, News, Scope, TierError};

/// So many records are kept for those who were away.
const RECORDS: u64 = 1_000;

/// A bus through a Redis server or Cluster, for all processes that name the same prefix.
///
/// ```no_run
/// use std::sync::Arc;
/// use larder::tiered::{Codec, RedisBus, RedisServer, RedisTier, Tiered};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = RedisServer::at("redis://localhost")?;
/// let cache = Tiered::<u64, String>::builder()
///     .max_capacity(10_000)
///     .far(RedisTier::connect(&server).await?)
///     .bus(Arc::new(RedisBus::builder(&server).build()?))
///     .codec(Codec::raw())
///     .build()?;
/// # Ok(()) }
/// ```
pub struct RedisBus {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    link: Link,
    way: Way,
    /// Epoch, number of the last record, and the members.
    state: String,
    log: String,
    bell: String,
    node: String,
    lease: Duration,
    deaf_for: Duration,
    announce: Script,
    hear: Script,
    waiting: Script,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    /// Until when listeners may trust what they have.
    trusted: Mutex<Option<Instant>>,
    rung: Notify,
    summary: Arc<str>,
}

/// Sets a [`RedisBus`] up. From [`RedisBus::builder`].
#[derive(Debug)]
#[must_use]
pub struct RedisBusBuilder {
    server: RedisServer,
    prefix: String,
    lease: Duration,
    deaf_for: Duration,
}

impl RedisBusBuilder {
    /// What begins the names of all that it keeps, `larder` if nothing is said. Buses of different prefixes do not hear each
    /// other.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// For how long a process trusts its tier 0 without having heard anything; 800 ms if nothing is said. So long an
    /// announcement takes where a member has died, and it must be less than the cache's
    /// [`tier_timeout`](crate::tiered::TieredBuilder::tier_timeout), which bounds it. All processes must have the same.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// For how long beyond the lease a process that is cut off goes on to serve from tier 0; not at all if nothing is said.
    /// So much later than an acknowledged invalidation it may serve what was invalidated, and so much longer it spares the
    /// source while Redis is down.
    pub fn serve_deaf_for(mut self, time: Duration) -> Self {
        self.deaf_for = time;
        self
    }

    /// The bus. It connects by itself; until then tier 0 is not trusted. To be called within a tokio runtime.
    ///
    /// # Errors
    /// What was set cannot be.
    pub fn build(self) -> Result<RedisBus, RedisSetupError> {
        if self.prefix.contains(['{', '}']) {
            return Err(RedisSetupError::Prefix(self.prefix));
        }
        if self.lease < Duration::from_millis(50) || self.lease > Duration::from_secs(60) {
            let remedy = "from 50 ms to a minute";
            return Err(RedisSetupError::Time { name: "lease", given: self.lease, remedy });
        }
        let tag = format!("{}:bus", self.prefix);
        let shared = Arc::new(Shared {
            link: self.server.link()?,
            way: Way::to(&tag),
            state: format!("{{{tag}}}state"),
            log: format!("{{{tag}}}log"),
            bell: format!("{{{tag}}}bell"),
            node: format!("{:016x}", unique()),
            lease: self.lease,
            deaf_for: self.deaf_for,
            announce: Script::new(include_str!("announce.lua")),
            hear: Script::new(include_str!("hear.lua")),
            waiting: Script::new(include_str!("waiting.lua")),
            listeners: Mutex::default(),
            trusted: Mutex::new(None),
            rung: Notify::new(),
            summary: summary_of(&self.server),
        });
        let tasks = [tokio::spawn(listen(shared.clone())), tokio::spawn(mind_the_bell(shared.clone(), self.server))];
        Ok(RedisBus { shared, tasks })
    }
}

impl RedisBus {
    /// Sets one up.
    pub fn builder(server: &RedisServer) -> RedisBusBuilder {
        RedisBusBuilder {
            server: server.clone(),
            prefix: "larder".into(),
            lease: Duration::from_millis(800),
            deaf_for: Duration::ZERO,
        }
    }

    /// Whether this process hears what others announce, now: whether it trusts its tier 0.
    pub fn hears(&self) -> bool {
        self.shared.trusted.lock().is_some_and(|until| Instant::now() < until)
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // Announcers need not wait for this member; where that fails, they do for a lease.
        let shared = self.shared.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut leave = redis::Pipeline::new();
                leave.cmd("HDEL").arg(&shared.state).arg(format!("m{}", shared.node));
                drop(shared.link.send(&leave, &shared.way).await);
            });
        }
    }
}

impl std::fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBus").field("at", &self.shared.summary).field("lease", &self.shared.lease).finish()
    }
}

/// A record of the log.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Who announced it, and has done it before.
    node: String,
    keyspace: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Arc<str>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<Arc<str>>,
    #[serde(default)]
    soft: bool,
}

impl Record {
    fn of(news: &News, node: &str) -> Self {
        let mut record = Record {
            node: node.into(),
            keyspace: news.keyspace.clone(),
            keys: None,
            prefix: None,
            tag: None,
            soft: news.soft,
        };
        match &news.scope {
            Scope::Keys(keys) => record.keys = Some(keys.clone()),
            Scope::Group(Group::Prefix(prefix)) => record.prefix = Some(prefix.clone()),
            Scope::Group(Group::Tag(tag)) => record.tag = Some(tag.clone()),
        }
        record
    }

    fn news(self) -> News {
        let scope = match (self.keys, self.prefix, self.tag) {
            (Some(keys), _, _) => Scope::Keys(keys),
            (_, Some(prefix), _) => Scope::Group(Group::Prefix(prefix)),
            (_, _, Some(tag)) => Scope::Group(Group::Tag(tag)),
            // Something that a later version says: rather too much than too little.
            (None, None, None) => Scope::Group(Group::Prefix("".into())),
        };
        News { keyspace: self.keyspace, scope, soft: self.soft }
    }
}

/// How far a process has come in the log.
#[derive(Clone, Copy, Default)]
struct Place {
    epoch: u64,
    done: u64,
}

/// What reading the log came to.
enum Heard {
    /// What is new; so far it was said that all is done.
    Records(Vec<Vec<u8>>),
    /// Some of it is not known any more, and the log is here now.
    Lost(Place),
}

impl Shared {
    /// An epoch that nobody has had.
    fn epoch(&self) -> String {
        (unique() >> 12).max(1).to_string()
    }

    /// Says how far it has come, and reads what is new.
    async fn read(&self, place: Place) -> RedisResult<Heard> {
        let (epoch, lease) = (self.epoch(), self.lease.as_millis().to_string());
        let (known, done) = (place.epoch.to_string(), place.done.to_string());
        let arguments = [&epoch, &self.node, &known, &done, &lease].map(String::as_bytes);
        let answer = self.link.run(&self.hear, &self.way, &[&self.state, &self.log], &arguments).await?;
        let mut parts = array(answer)?.into_iter();
        let mut part = || number(parts.next().unwrap_or_default());
        let (is_lost, epoch, last) = (part()?, part()?.unwrap_or_default(), part()?.unwrap_or_default());
        if is_lost == Some(1) {
            return Ok(Heard::Lost(Place { epoch, done: last }));
        }
        let records: Vec<_> = parts.map(bytes).collect::<RedisResult<_>>()?;
        Ok(Heard::Records(records.into_iter().flatten().collect()))
    }

    fn listeners(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Does what a record says.
    async fn do_what_it_says(&self, record: &[u8]) {
        match serde_json::from_slice::<Record>(record) {
            Ok(record) if record.node == self.node => {}
            Ok(record) => {
                let news = record.news();
                for listener in self.listeners() {
                    listener.hear(&news).await;
                }
            }
            Err(error) => {
                tracing::warn!(bus = &*self.summary, %error, "news that cannot be read: all is dropped");
                self.listeners().iter().for_each(|listener| listener.lose_track());
            }
        }
    }

    fn trust_until(&self, until: Instant) {
        // Listeners are told under the lock, so that one that joins meanwhile is told, too.
        let mut trusted = self.trusted.lock();
        *trusted = Some(until);
        self.listeners().iter().for_each(|listener| listener.trust_until(until));
    }
}

/// Keeps up with the log.
async fn listen(shared: Arc<Shared>) {
    let mut place = Place::default();
    loop {
        let began = Instant::now();
        match timeout(shared.lease, shared.read(place)).await {
            Ok(Ok(Heard::Records(records))) => {
                let is_all = records.is_empty();
                for record in records {
                    shared.do_what_it_says(&record).await;
                    place.done += 1;
                }
                shared.trust_until(began + shared.lease + shared.deaf_for);
                if !is_all {
                    // Announcers wait to hear that it is done.
                    continue;
                }
                // Whether the bell has rung or not: it is only a bell.
                drop(timeout(shared.lease / 4, shared.rung.notified()).await);
            }
            Ok(Ok(Heard::Lost(now))) => {
                if place.epoch != 0 {
                    tracing::warn!(bus = &*shared.summary, "news were missed: tier 0 is dropped");
                }
                shared.listeners().iter().for_each(|listener| listener.lose_track());
                place = now;
            }
            Ok(Err(error)) => {
                tracing::debug!(bus = &*shared.summary, %error, "the bus cannot be heard");
                sleep(shared.lease / 8).await;
            }
            Err(_) => tracing::debug!(bus = &*shared.summary, "the bus does not answer in time"),
        }
    }
}

/// Listens to the bell, on a connection of its own. Where that breaks, or the server knows no RESP3, news are read at the
/// usual times.
async fn mind_the_bell(shared: Arc<Shared>, server: RedisServer) {
    for attempt in 0usize.. {
        drop(hear_the_bell(&shared, &server, attempt).await);
        sleep(shared.lease / 2).await;
    }
}

async fn hear_the_bell(shared: &Shared, server: &RedisServer, attempt: usize) -> RedisResult<()> {
    let (sender, mut pushes) = mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new()
        .set_push_sender(sender)
        .set_connection_timeout(Some(server.timeout))
        .set_response_timeout(Some(server.timeout));
    let client = server.client(attempt, ProtocolVersion::RESP3)?;
    let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection_with_config(&config).await?;
    connection.subscribe(&shared.bell).await?;
    loop {
        match timeout(server.timeout, pushes.recv()).await {
            Ok(None) => return Ok(()),
            Ok(Some(push)) => match push.kind {
                PushKind::Disconnection => return Ok(()),
                PushKind::Message => shared.rung.notify_one(),
                _ => {}
            },
            // That there are no news, and that nobody is there, sounds alike.
            Err(_) => match connection.req_packed_command(&redis::cmd("PING")).await {
                Err(error) if error.is_timeout() || error.is_unrecoverable_error() => return Err(error),
                _ => {}
            },
        }
    }
}

impl Shared {
    async fn append(&self, record: &[u8]) -> Result<(Place, bool), TierError> {
        let (epoch, lease, records) = (self.epoch(), self.lease.as_millis().to_string(), RECORDS.to_string());
        let arguments = [epoch.as_bytes(), lease.as_bytes(), records.as_bytes(), self.bell.as_bytes(), record];
        let answer = self.link.run(&self.announce, &self.way, &[&self.state, &self.log], &arguments).await;
        let read = || -> RedisResult<_> {
            let mut parts = array(answer?)?.into_iter().map(number);
            let mut part = || parts.next().transpose().map(|part| part.flatten().unwrap_or_default());
            Ok((Place { epoch: part()?, done: part()? }, part()? == 1))
        };
        read().map_err(failed)
    }

    /// How many members have not come so far; `None`: nobody knows.
    async fn waiting(&self, place: Place) -> Option<u64> {
        let (epoch, number_of) = (place.epoch.to_string(), place.done.to_string());
        let lease = self.lease.as_millis().to_string();
        let arguments = [&epoch, &number_of, &self.node, &lease].map(String::as_bytes);
        let answer = self.link.run(&self.waiting, &self.way, &[&self.state], &arguments).await.ok()?;
        match answer {
            Value::Int(-1) => None,
            answer => number(answer).ok().flatten(),
        }
    }
}

impl Bus for RedisBus {
    fn summary(&self) -> String {
        self.shared.summary.to_string()
    }

    fn join(&self, listener: Weak<dyn Listener>) {
        let trusted = self.shared.trusted.lock();
        if let Some(listener) = listener.upgrade() {
            listener.trust_until(trusted.unwrap_or_else(Instant::now));
        }
        let mut listeners = self.shared.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    fn announce<'a>(&'a self, from: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            let shared = &self.shared;
            for listener in shared.listeners().iter().filter(|listener| !Arc::ptr_eq(listener, from)) {
                listener.hear(&news).await;
            }
            let record = serde_json::to_vec(&Record::of(&news, &shared.node))
                .map_err(|error| TierError::Unavailable(error.to_string()))?;
            let (place, members_are_known) = shared.append(&record).await?;
            // From here on it is sure to be acknowledged: who has not heard of it when the lease is over has lost its own.
            let over = Instant::now() + shared.lease + shared.lease / 16;
            let mut pause = Duration::from_millis(1);
            while Instant::now() < over {
                if members_are_known && shared.waiting(place).await == Some(0) {
                    return Ok(());
                }
                sleep(pause.min(over - Instant::now())).await;
                pause = (pause * 2).min(shared.lease / 20);
            }
            Ok(())
        })
    }
}
