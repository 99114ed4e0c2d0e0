//! A tier on this machine's disk: bounded, there again after a restart, and safe from crashes.
//!
//! What is said of a copy (its number, its size, when it ends) is in memory; bytes are in one file of redb's (`file.rs`). Who stays
//! where room is short is decided as in tier 0, by a policy of the engine, over the bytes that copies take.
//!
//! **One order.** All that changes something takes its place in a queue under one lock, and one task carries the queue out, a
//! transaction for all that wait. So the file goes through the states that memory went through, and a crash leaves one of them.
//!
//! **What waits for the disk, and what does not.** A fill that a crash loses is a miss, so fills are committed without a sync,
//! which one commit a second has. An invalidation must not come undone: it returns when it would survive a power cut, if the
//! file may have what it takes away. So does a write that replaces a copy; and an invalidation of a group always.
//!
//! **It is this process's own.** The file is locked. Where there is a bus, what was announced while the process was not
//! there is not known when it starts again, so all that the file has is dropped then; and as with tier 0, nothing is read there
//! while the bus is out of reach for too long.
//!
//! **Moments** are the machine's clock when the tier is opened, never less than the last moment in the file, and from then on the
//! monotonic clock: setting the clock back makes nothing fresh again.

mod file;
mod overlay;
mod watched;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::file::{Change, Described, File, Known, Place};
use super::envelope::Envelope;
use super::far::GroupVersion;
use super::groups::{Groups, Reached, Version};
use super::near::after;
use super::{BoxFuture, FarCopy, Group, KeyPage, Looked, Put, Scope, Tier, TierError, Token};
use crate::eviction::NEVER;
use crate::{BuildError, Cache, Clock, Policy, RemovalCause};

/// Why a tier on disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskSetupError {
    /// A process has it.
    #[error("the disk tier {0} is in use: another process has it, or this one twice; give each its own file")]
    InUse(PathBuf),
    /// There is none. Only a look at it says so: to open it makes it.
    #[error("there is no disk tier {0} yet: whoever opens it first makes it")]
    NotThere(PathBuf),
    /// Whoever made it did not come to an end. Only a look at it says so.
    #[error("the disk tier {0} was begun and not finished: whoever opens it next begins it anew")]
    Unfinished(PathBuf),
    /// It is damaged. Only a look at it says so.
    #[error(
        "the disk tier {path} is damaged ({what}): whoever opens it next sets it aside, as {}, and begins anew; its copies are \
         loaded again",
        path.with_added_extension("damaged").display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Something else lies there.
    #[error("{0} is no disk tier of Larder's: name another file, or remove this one if nobody needs it")]
    NotADiskTier(PathBuf),
    /// Written by a later version of Larder.
    #[error(
        "the disk tier {path} has format {found}, and this reads format {known}: update this process, or remove the file"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The latest that this version reads.
        known: u64,
    },
    /// The disk, or the file's permissions.
    #[error("the disk tier {path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The policy cannot be had.
    #[error(transparent)]
    Policy(#[from] Box<BuildError>),
}

/// A disk that a test makes up.
#[cfg(feature = "testkit")]
#[doc(hidden)]
pub trait Medium: Send + Sync + 'static {
    /// What is there, for one at a time.
    #[allow(clippy::missing_errors_doc)] // As the test has it.
    fn bytes(&self) -> Result<Box<dyn redb::StorageBackend>, redb::DatabaseError>;

    /// Puts what is there out of the way, for good.
    #[allow(clippy::missing_errors_doc)] // As above.
    fn remove(&self) -> std::io::Result<()>;
}

/// Sets a [`DiskTier`] up. From [`DiskTier::builder`].
#[derive(Debug)]
#[must_use]
pub struct DiskTierBuilder {
    path: PathBuf,
    max_bytes: u64,
    max_value_bytes: Option<usize>,
    policy: Policy,
}

impl DiskTierBuilder {
    /// How many bytes all copies may have together, with their keys and terms; 1 GiB if nothing is said. The file is larger:
    /// see [`DiskTier`].
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Declines values of more bytes than this; an eighth of `max_bytes` if nothing is said.
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = Some(bytes);
        self
    }

    /// Who decides what leaves, `adaptive` if nothing is said.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Opens the file, or makes it. One that is damaged is set aside, beside it with `.damaged` behind its name, and a new one
    /// begun: what it had was copies. So is one whose sync has failed, now or later, which is removed: nobody knows what the disk
    /// has then.
    ///
    /// # Errors
    /// [`DiskSetupError`], which says what to do.
    pub async fn open(self) -> Result<DiskTier, DiskSetupError> {
        let place = Place::Path(self.path.clone());
        self.open_at(place).await
    }

    /// As [`Self::open`], on a disk that a test makes up; the path is a name for it.
    #[cfg(feature = "testkit")]
    #[doc(hidden)]
    pub async fn open_on(self, medium: Arc<dyn Medium>) -> Result<DiskTier, DiskSetupError> {
        self.open_at(Place::Medium(medium)).await
    }

    async fn open_at(self, place: Place) -> Result<DiskTier, DiskSetupError> {
        let path = self.path.clone();
        let opened = tokio::task::spawn_blocking(move || File::open(place, &path)).await;
        let (file, contents) = opened
            .unwrap_or_else(|panic| Err(DiskSetupError::Io { path: self.path.clone(), reason: panic.to_string() }))?;
        let victims = Arc::new(Victims::default());
        let (clock, listener) = (Clock::tokio(), victims.clone());
        let index = Cache::builder()
            .max_capacity(self.max_bytes.max(1))
            .expected_entries(u32::try_from(self.max_bytes / 4096).unwrap_or(u32::MAX).clamp(100, 1 << 24))
            .weigher(|_: &Arc<str>, seat: &Seat| seat.weight)
            .eviction_listener(move |key, seat: Seat, cause| listener.hear(key, &seat, cause))
            .policy(self.policy)
            // All changes are made under one lock as it is.
            .shards(1)
            .clock(clock.clone())
            .build()
            .map_err(Box::new)?;
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let begins = u64::try_from(machine.as_millis()).unwrap_or(0).max(contents.moment);
        let most = usize::try_from(self.max_bytes / 8).unwrap_or(usize::MAX);
        let shared = Shared {
            path: self.path,
            file,
            index,
            victims,
            clock,
            begins,
            max_bytes: self.max_bytes,
            max_value_bytes: self.max_value_bytes.unwrap_or(most).min(u32::MAX as usize / 2),
            hasher: RandomState::default(),
            state: Mutex::new(State {
                rows: HashMap::default(),
                fences: vec![0; FENCES].into(),
                groups: Groups::default(),
                pending: HashMap::default(),
                limbo: HashSet::default(),
                ending_limbo: HashSet::default(),
                all_in_limbo: false,
                last: contents.rows.iter().map(|(number, _)| *number).max().unwrap_or(0),
                queue: Vec::new(),
                removals: Vec::new(),
                committing: false,
                unsynced: 0,
                synced_at: Instant::now(),
                waking: false,
            }),
        };
        shared.recover(contents.rows, contents.groups, contents.counter);
        Ok(DiskTier(Arc::new(shared)))
    }
}

/// A tier in a file.
///
/// The file is larger than what it keeps: values lie in whole pages of 4 KiB, and pages are written anew and not over, so that a
/// crash finds the old ones. Expect four times `max_bytes` with values of a few KiB. In memory each copy takes its key and some
/// 150 bytes.
///
/// ```
/// use larder::tiered::{Codec, DiskTier, FromFn, Tiered};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let disk = DiskTier::builder(directory.join("products.cache")).max_bytes(64 << 20).open().await?;
/// let products = Tiered::builder()
///     .keyspace("products")
///     .max_capacity(1_000)
///     .far(disk)
///     .codec(Codec::raw())
///     .source(FromFn::new(|id: u64| async move { Ok::<_, std::io::Error>(Some(format!("product {id}"))) }))
///     .build()?;
/// assert_eq!(products.get(&7).await?.as_deref(), Some("product 7"));
/// # Ok(()) }
/// ```
pub struct DiskTier(Arc<Shared>);

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTier").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl DiskTier {
    /// A tier in this file, to be set up.
    pub fn builder(path: impl AsRef<Path>) -> DiskTierBuilder {
        DiskTierBuilder {
            path: path.as_ref().to_path_buf(),
            max_bytes: 1 << 30,
            max_value_bytes: None,
            policy: Policy::default(),
        }
    }

    /// What is in a disk tier's file, which is not opened for that: it stays as the service left it, also where whoever opens it
    /// next repairs it, or begins anew. Reads the descriptions of all copies, and after a crash more.
    ///
    /// # Errors
    /// There is none, a process has it open, or it is none, or damaged: [`DiskSetupError`] says what comes of that.
    pub async fn look(path: impl AsRef<Path>) -> Result<DiskContents, DiskSetupError> {
        let path = path.as_ref().to_path_buf();
        let at = path.clone();
        let looked = tokio::task::spawn_blocking(move || file::look(&at)).await;
        let contents = looked.unwrap_or_else(|panic| Err(DiskSetupError::Io { path, reason: panic.to_string() }))?;
        let bytes = contents.rows.iter().map(|(_, described)| u64::from(described.bytes)).sum();
        Ok(DiskContents { copies: contents.rows.len(), bytes })
    }

    /// How many copies there are.
    pub fn entry_count(&self) -> usize {
        self.0.state().rows.len()
    }

    /// Waits until all that was kept so far would survive a power cut. Dropping the last handle waits for that, too, if no
    /// call is under way.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn sync(&self) -> Result<(), TierError> {
        let told = self.0.queue(&mut self.0.state(), Vec::new(), true);
        heard(told).await
    }
}

/// What a disk tier's file has. From [`DiskTier::look`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskContents {
    /// How many copies, those included that have come to their end.
    pub copies: usize,
    /// The bytes that they count for, of the bound of the tier.
    pub bytes: u64,
}

/// What the index keeps of a copy.
#[derive(Clone, Copy, Debug)]
struct Seat {
    number: u64,
    weight: u32,
}

/// What the policy has put out, or time, and the rows have still.
#[derive(Default)]
struct Victims {
    some: AtomicBool,
    list: Mutex<Vec<(Arc<str>, u64)>>,
}

impl Victims {
    fn hear(&self, key: Arc<str>, seat: &Seat, cause: RemovalCause) {
        if cause.was_evicted() {
            self.list.lock().push((key, seat.number));
            self.some.store(true, Ordering::Release);
        }
    }

    fn take(&self) -> Vec<(Arc<str>, u64)> {
        if self.some.swap(false, Ordering::AcqRel) { std::mem::take(&mut *self.list.lock()) } else { Vec::new() }
    }
}

/// Keys share them, as in tier 0.
const FENCES: usize = 4096;
/// What a copy takes besides its key and its envelope: its descriptions in the file.
const OVERHEAD: usize = 64;
/// So long, and so many bytes, wait for a sync at most, and no more than a quarter of what may be kept: what was replaced
/// takes room in the file until then.
const SYNC_AFTER: Duration = Duration::from_secs(1);
const MOST_UNSYNCED: usize = 16 << 20;

struct Shared {
    path: PathBuf,
    file: File,
    /// Who stays.
    index: Cache<Arc<str>, Seat>,
    victims: Arc<Victims>,
    clock: Clock,
    /// The moment at which `clock` began.
    begins: u64,
    max_bytes: u64,
    max_value_bytes: usize,
    hasher: RandomState,
    state: Mutex<State>,
}

struct State {
    /// The one copy of each key.
    rows: HashMap<Arc<str>, Row, RandomState>,
    fences: Box<[u64]>,
    groups: Groups,
    /// The bytes of copies whose commit has not returned.
    pending: HashMap<u64, Arc<[u8]>, RandomState>,
    /// Keys, by their hashes, of which the file may have a copy after a crash though `rows` has none.
    limbo: HashSet<u64, RandomState>,
    /// Those of them that the commit under way, which syncs, sees to.
    ending_limbo: HashSet<u64, RandomState>,
    /// A commit failed: it may have one of any key.
    all_in_limbo: bool,
    /// The last number that a copy was given.
    last: u64,
    queue: Vec<Queued>,
    /// Copies that nobody waits to see gone.
    removals: Vec<u64>,
    committing: bool,
    /// Bytes that a crash would lose, and since when that can be.
    unsynced: usize,
    synced_at: Instant,
    /// Somebody will see to a sync.
    waking: bool,
}

#[derive(Clone, Copy)]
struct Row {
    number: u64,
    /// When a soft invalidation ended its freshness.
    ended_at: u64,
}

impl State {
    /// Whether the file may have a copy, after a crash, of the key with this hash.
    fn is_in_limbo(&self, hash: u64) -> bool {
        self.all_in_limbo || self.limbo.contains(&hash) || self.ending_limbo.contains(&hash)
    }

    /// What a file has to have that was opened again.
    fn known(&self) -> Known {
        Known {
            live: self.rows.values().map(|row| row.number).collect(),
            groups: self.groups.versions().collect(),
            counter: self.groups.stamp(),
        }
    }
}

/// Waits for its commit.
struct Queued {
    changes: Vec<Change>,
    sync: bool,
    told: oneshot::Sender<Result<(), TierError>>,
}

type Told = oneshot::Receiver<Result<(), TierError>>;

async fn heard(told: Told) -> Result<(), TierError> {
    told.await.unwrap_or_else(|_| Err(TierError::Unavailable("the runtime is shutting down".into())))
}

/// What a read needs to know of a row, and where its bytes are.
enum Found {
    Absent,
    Here(Arc<[u8]>, Row),
    OnDisk(Row),
}

impl Shared {
    /// The state, without those that the policy has put out.
    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        for (key, number) in self.victims.take() {
            if state.rows.get(&key).is_some_and(|row| row.number == number) {
                state.rows.remove(&key);
                state.limbo.insert(self.hasher.hash_one(&*key));
                state.pending.remove(&number);
                state.removals.push(number);
            }
        }
        state
    }

    fn most_unsynced(&self) -> usize {
        usize::try_from(self.max_bytes / 4).unwrap_or(usize::MAX).min(MOST_UNSYNCED)
    }

    fn now(&self) -> u64 {
        self.begins + self.clock.now_ms()
    }

    /// A moment as the index has it.
    fn local(&self, moment: u64) -> u64 {
        if moment == NEVER { NEVER } else { moment.saturating_sub(self.begins) }
    }

    fn fence(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % FENCES
    }

    fn token(&self, state: &State, key: &str) -> Token {
        Token { fence: state.fences[self.fence(key)], stamp: state.groups.stamp() }
    }

    /// Takes over what a file has.
    fn recover(&self, mut rows: Vec<(u64, Described)>, groups: Vec<(Group, Version)>, counter: u64) {
        let mut state = self.state.lock();
        groups.iter().for_each(|(group, version)| state.groups.learn(group, *version));
        state.groups.learned_until(counter);
        rows.sort_unstable_by_key(|(number, _)| *number);
        let now = self.now();
        for (number, Described { key, ends_at, ended_at, bytes }) in rows {
            if ends_at <= now {
                state.limbo.insert(self.hasher.hash_one(&*key));
                state.removals.push(number);
                continue;
            }
            // A crash leaves one of each key, as memory had.
            if let Some(old) = state.rows.insert(key.clone(), Row { number, ended_at }) {
                state.removals.push(old.number);
            }
            self.index.insert_until(key, Seat { number, weight: bytes }, 0, self.local(ends_at));
        }
    }

    // ---- changing

    /// Queues changes for the next commit.
    fn queue(self: &Arc<Self>, state: &mut State, changes: Vec<Change>, sync: bool) -> Told {
        let (told, hears) = oneshot::channel();
        state.queue.push(Queued { changes, sync, told });
        if !state.committing {
            state.committing = true;
            let committing = Committing { shared: self.clone(), under_way: None };
            tokio::spawn(committing.run());
        }
        hears
    }

    /// Takes copies away; what to wait for if the file may have any of them.
    fn remove(self: &Arc<Self>, state: &mut State, keys: &[Arc<str>]) -> Option<Told> {
        let (mut changes, mut sync) = (Vec::new(), false);
        for key in keys {
            if let Some(row) = state.rows.remove(key) {
                state.pending.remove(&row.number);
                self.index.invalidate(&**key);
                changes.push(Change::Remove(row.number));
                state.limbo.insert(self.hasher.hash_one(&**key));
            }
            sync |= state.is_in_limbo(self.hasher.hash_one(&**key));
        }
        sync.then(|| self.queue(state, changes, true))
    }

    fn put(self: &Arc<Self>, key: &str, copy: FarCopy, token: Token, write: bool) -> (Put, Option<Told>) {
        let mut state = self.state();
        let fence = self.fence(key);
        let reached = state.groups.reached(key, &copy.tags, token.stamp);
        if token.fence != state.fences[fence] || reached != Reached::Untouched {
            return (Put::Fenced, None);
        }
        if write {
            state.fences[fence] += 1;
        }
        let key: Arc<str> = key.into();
        let is_large = copy.value.as_ref().is_some_and(|value| value.len() > self.max_value_bytes);
        let (now, cost) = (self.now(), copy.cost_us);
        let envelope = Envelope { stamp: token.stamp, fence: token.fence, ..Envelope::new(copy, now) };
        if is_large || envelope.lifetime_ms() == 0 {
            let told = self.remove(&mut state, &[key]);
            return (if is_large { Put::Declined } else { Put::Kept }, told);
        }
        let ends_at = after(now, envelope.lifetime_ms());
        state.last += 1;
        let number = state.last;
        let bytes: Arc<[u8]> = file::encode(&key, &envelope).into();
        let weight = u32::try_from(bytes.len() + key.len() + OVERHEAD).unwrap_or(u32::MAX);
        let old = state.rows.insert(key.clone(), Row { number, ended_at: NEVER });
        let mut changes = Vec::with_capacity(2);
        if let Some(old) = old {
            state.pending.remove(&old.number);
            changes.push(Change::Remove(old.number));
        }
        let is_there = old.is_some() || state.is_in_limbo(self.hasher.hash_one(&*key));
        state.pending.insert(number, bytes.clone());
        let described = Described { key: key.clone(), ends_at, ended_at: NEVER, bytes: weight };
        changes.push(Change::Put(number, described, bytes));
        let told = self.queue(&mut state, changes, write && is_there);
        self.index.insert_until(key, Seat { number, weight }, cost, self.local(ends_at));
        (Put::Kept, Some(told))
    }

    fn invalidate(self: &Arc<Self>, scope: &Scope, soft: bool) -> Option<Told> {
        let mut state = self.state();
        match scope {
            Scope::Group(group) => {
                let now = self.now();
                let before = state.groups.len();
                let counter = state.groups.bump(group, soft, now);
                // Too many became all.
                let instead = state.groups.len() < before;
                let said = match instead {
                    true => state.groups.versions().collect(),
                    false => vec![(group.clone(), state.groups.version_of(group))],
                };
                Some(self.queue(&mut state, vec![Change::Groups { said, counter, instead }], true))
            }
            Scope::Keys(keys) => {
                keys.iter().for_each(|key| state.fences[self.fence(key)] += 1);
                if !soft {
                    return self.remove(&mut state, keys);
                }
                let now = self.now();
                let mut changes = Vec::new();
                for key in keys {
                    if let Some(row) = state.rows.get_mut(key) {
                        row.ended_at = row.ended_at.min(now);
                        changes.push(Change::End(row.number, row.ended_at));
                    }
                }
                // What the file may have and memory does not is to be gone, not stale: that is what it is in memory.
                let in_limbo = |key: &Arc<str>| state.is_in_limbo(self.hasher.hash_one(&**key));
                let sync = !changes.is_empty() || keys.iter().any(in_limbo);
                sync.then(|| self.queue(&mut state, changes, true))
            }
        }
    }

    // ---- reading

    fn find(&self, state: &State, key: &str) -> Found {
        let Some(row) = state.rows.get(key) else { return Found::Absent };
        // The policy hears of it.
        if self.index.get(key).is_none() {
            return Found::Absent;
        }
        match state.pending.get(&row.number) {
            Some(bytes) => Found::Here(bytes.clone(), *row),
            None => Found::OnDisk(*row),
        }
    }

    /// What bytes say of a key; `None`: they are damaged.
    fn read(&self, key: &str, bytes: &[u8], row: &Row) -> Option<Option<FarCopy>> {
        let envelope = match file::decode(key, bytes) {
            Ok(envelope) => envelope,
            Err(what) => {
                tracing::warn!(path = %self.path.display(), key, what, "a copy on disk cannot be read");
                return None;
            }
        };
        let reached = self.state.lock().groups.reached(key, &envelope.copy.tags, envelope.stamp);
        let ended_at = match reached {
            Reached::Superseded => return Some(None),
            Reached::Ended(at) => at.min(row.ended_at),
            Reached::Untouched => row.ended_at,
        };
        Some(envelope.copy_at(self.now(), ended_at))
    }

    /// A copy is no good: it goes, if it is still the key's.
    fn discard(&self, key: &str, number: u64) {
        let mut state = self.state();
        if state.rows.get(key).is_some_and(|row| row.number == number) {
            state.rows.remove(key);
            self.index.invalidate(key);
            state.limbo.insert(self.hasher.hash_one(key));
            state.removals.push(number);
        }
    }

    async fn look(self: &Arc<Self>, keys: &[Arc<str>]) -> Result<Vec<Looked>, TierError> {
        let mut looked = Vec::with_capacity(keys.len());
        let mut found = Vec::with_capacity(keys.len());
        {
            let state = self.state();
            for key in keys {
                looked.push(Looked { token: Some(self.token(&state, key)), copy: None, damaged: false });
                found.push(self.find(&state, key));
            }
        }
        let number_of = |found: &Found| if let Found::OnDisk(row) = found { Some(row.number) } else { None };
        let numbers: Vec<_> = found.iter().filter_map(number_of).collect();
        let mut read = Vec::new();
        if !numbers.is_empty() {
            let shared = self.clone();
            let reading = tokio::task::spawn_blocking(move || shared.file.read(&numbers)).await;
            let failed = |panic: tokio::task::JoinError| Err(TierError::Unavailable(panic.to_string()));
            read = reading.unwrap_or_else(failed)?;
        }
        let mut read = read.into_iter();
        for ((key, found), looked) in keys.iter().zip(found).zip(&mut looked) {
            let (bytes, row) = match found {
                Found::Absent => continue,
                Found::Here(bytes, row) => (Some(bytes), row),
                Found::OnDisk(row) => (read.next().flatten().map(Arc::from), row),
            };
            // Without bytes it was removed meanwhile, or a crash of the file's engine has lost it.
            let copy = bytes.map(|bytes| self.read(key, &bytes, &row));
            looked.damaged = matches!(copy, Some(None));
            looked.copy = copy.flatten().flatten();
            if looked.copy.is_none() {
                self.discard(key, row.number);
            }
        }
        Ok(looked)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What was kept is there after a restart: nobody else can see to it any more.
        let moment = self.now();
        let state = self.state.get_mut();
        let changes: Vec<_> = state.removals.drain(..).map(Change::Remove).collect();
        if (state.unsynced > 0 || !changes.is_empty())
            && let Err(error) = self.file.commit(&changes, moment, true, &|| state.known())
        {
            tracing::warn!(path = %self.path.display(), error, "what a disk tier kept last may be lost");
        }
    }
}

/// The commits, one at a time, for as long as something is queued.
struct Committing {
    shared: Arc<Shared>,
    under_way: Option<Batch>,
}

struct Batch {
    waiting: Vec<oneshot::Sender<Result<(), TierError>>>,
    /// Of each copy that is put: number and key.
    puts: Vec<(u64, Arc<str>)>,
    bytes: usize,
    sync: bool,
    all_in_limbo: bool,
}

impl Committing {
    async fn run(mut self) {
        while let Some(changes) = self.next() {
            let shared = self.shared.clone();
            let sync = self.under_way.as_ref().is_some_and(|batch| batch.sync);
            let committing = tokio::task::spawn_blocking(move || {
                shared.file.commit(&changes, shared.now(), sync, &|| shared.state.lock().known())
            });
            let result = committing.await.unwrap_or_else(|panic| Err(panic.to_string()));
            self.end(result);
        }
    }

    fn next(&mut self) -> Option<Vec<Change>> {
        let mut state = self.shared.state();
        if state.queue.is_empty() {
            state.committing = false;
            if state.unsynced > 0 && !std::mem::replace(&mut state.waking, true) {
                sync_later(&self.shared);
            }
            return None;
        }
        let queued = std::mem::take(&mut state.queue);
        let mut changes: Vec<_> = std::mem::take(&mut state.removals).into_iter().map(Change::Remove).collect();
        let is_late = state.synced_at.elapsed() > SYNC_AFTER || state.unsynced > self.shared.most_unsynced();
        let sync = is_late || queued.iter().any(|queued| queued.sync);
        if sync {
            state.ending_limbo = std::mem::take(&mut state.limbo);
        }
        let mut batch = Batch {
            waiting: Vec::with_capacity(queued.len()),
            puts: Vec::new(),
            bytes: 0,
            sync,
            all_in_limbo: state.all_in_limbo,
        };
        for queued in queued {
            for change in &queued.changes {
                if let Change::Put(number, described, bytes) = change {
                    batch.puts.push((*number, described.key.clone()));
                    batch.bytes += bytes.len();
                }
            }
            changes.extend(queued.changes);
            batch.waiting.push(queued.told);
        }
        drop(state);
        self.under_way = Some(batch);
        Some(changes)
    }

    fn end(&mut self, result: Result<(), String>) {
        let Some(batch) = self.under_way.take() else { return };
        let mut state = self.shared.state();
        for (number, _) in &batch.puts {
            state.pending.remove(number);
        }
        match &result {
            Ok(()) if batch.sync => {
                (state.unsynced, state.synced_at) = (0, Instant::now());
                state.ending_limbo.clear();
                // Of what failed meanwhile nothing is known; but nothing fails meanwhile.
                state.all_in_limbo &= !batch.all_in_limbo;
            }
            // A transaction without bytes is something to sync, too.
            Ok(()) => state.unsynced += batch.bytes + 1,
            Err(error) => {
                tracing::warn!(path = %self.shared.path.display(), error, "a disk tier failed");
                let ending = std::mem::take(&mut state.ending_limbo);
                state.limbo.extend(ending);
                state.all_in_limbo = true;
                for (number, key) in &batch.puts {
                    if state.rows.get(key).is_some_and(|row| row.number == *number) {
                        state.rows.remove(key);
                        self.shared.index.invalidate(&**key);
                    }
                }
            }
        }
        drop(state);
        for told in batch.waiting {
            // Who asked may have left.
            drop(told.send(result.clone().map_err(TierError::Unavailable)));
        }
    }
}

impl Drop for Committing {
    /// Where the runtime goes down in the middle of a commit, nobody knows what became of it.
    fn drop(&mut self) {
        if self.under_way.is_some() {
            self.end(Err("the runtime is shutting down".into()));
            self.shared.state.lock().committing = false;
        }
    }
}

/// Has what a crash would lose synced, soon.
fn sync_later(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        tokio::time::sleep(SYNC_AFTER).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut state = shared.state();
        state.waking = false;
        if state.unsynced > 0 {
            drop(shared.queue(&mut state, Vec::new(), true));
        }
    });
}

impl Tier for DiskTier {
    fn summary(&self) -> String {
        format!("{} MiB on disk, {}", self.0.max_bytes >> 20, self.0.path.display())
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(async move {
            let mut looked = self.0.look(&[key.into()]).await?;
            looked.pop().ok_or(TierError::Unsupported("no answer"))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        Box::pin(async move {
            let keys: Vec<_> = keys.iter().map(|key| Arc::from(*key)).collect();
            self.0.look(&keys).await
        })
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(async move { Ok(self.0.token(&self.0.state(), key)) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        Box::pin(async move {
            let (put, told) = self.0.put(key, copy, token, write);
            if let Some(told) = told {
                heard(told).await?;
            }
            Ok(put)
        })
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            match self.0.invalidate(scope, soft) {
                Some(told) => heard(told).await,
                None => Ok(()),
            }
        })
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<KeyPage, TierError>> {
        Box::pin(async move {
            let mut keys: Vec<Arc<str>> = {
                let state = self.0.state();
                let is_asked = |key: &&Arc<str>| key.starts_with(prefix) && cursor.is_none_or(|last| &***key > last);
                state.rows.keys().filter(is_asked).cloned().collect()
            };
            keys.sort_unstable();
            let is_last = keys.len() <= most;
            keys.truncate(most);
            let next = keys.last().filter(|_| !is_last).map(ToString::to_string);
            Ok(KeyPage { keys, next })
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(async { Ok(self.0.state().groups.listed()) })
    }
}
