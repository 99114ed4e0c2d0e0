//! The journal: writes that are acknowledged at once and saved to the source later (write-behind).
//!
//! A write is acknowledged when it would survive a power cut. Writers who come while a commit is under way share the next
//! one (*group commit*), so the disk's speed is a bound on their wait and not on how many there are. What waits to be saved
//! is in memory, too, which is what loads of its key are answered from: the bounds of a journal are bounds of both.
//!
//! One journal serves several keyspaces. Within a key there is an order and there is one *newest* write: one that is logged
//! takes the place of the one before it (*coalescing*; a source that is told of a hundred changes of a counter every
//! second is told of one). A keyspace takes what is due from its part of the journal (`flusher.rs`), in batches: what has
//! waited for long enough, all as soon as there is a batch of them, and everything where room is short. A key is in one
//! flush at a time, and one save of it runs at a time, so that what a source does in the order in which it is asked is in
//! the order in which it was written.
//!
//! Every write has a name ([`WriteId`]) that stays its own over retries and restarts. Of two names that one journal has
//! given, the later is greater: a source that compares them can tell what a dead process had still under way.
//!
//! **What far tiers are owed outlives the process.** Where a flush has saved a write and a far tier could not be told, what
//! is left of the write is its key, which is not saved again: after a restart the tier drops what it has of the key. It
//! goes when the tier has done so, or when the key is written again.
//!
//! **What is lost, and when.** Nothing that was acknowledged: a write leaves the journal when the source has it, or when a
//! newer write of the key is there, or when an operator says so. A write that the source will never take becomes a *dead
//! letter*: it stays, is listed, and can be retried or discarded. A write that failed for want of disk may be there after a
//! restart or not, as with any database whose commit breaks off; in this process it counts as not written, and it is taken
//! out again as soon as the disk works.
//!
//! Road not taken: a log of our own. An append-only file with checksums is soon written; one that gives back its space,
//! survives a torn page, and says what is damaged is a storage engine, and there are good ones.

#[cfg(feature = "journal")]
mod file;
mod index;
mod store;

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "journal")]
use std::path::Path;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

pub use store::{Change, Contents, Record, Store, StoreError};

use index::{Bounds, Index};

use super::gate::later;
use super::{Failure, WriteId};

/// Why a journal could not be opened, or not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// It is open elsewhere.
    #[error("the journal {0} is open already, here or in another process: give each process a journal of its own")]
    InUse(PathBuf),
    /// It cannot be trusted.
    #[error(
        "the journal {path} is damaged: {what}. It is left as it is; put a copy of it back, or move it away, with which \
         the writes in it that are not saved yet are given up"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A later version of Larder wrote it.
    #[error(
        "the journal {path} has format {found}, and this version of Larder reads none after {known}: run the version that \
         wrote it until it is empty, or this program with that version"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest that is known.
        known: u64,
    },
    /// The file is something else.
    #[error("{0} is a database, but no journal of Larder's: name another file")]
    NotAJournal(PathBuf),
    /// Who only looks makes none.
    #[error(
        "there is no journal {0} yet: a service makes it when it starts; if one has run, look whether the path is right"
    )]
    NotThere(PathBuf),
    /// Nobody can tell what it was.
    #[error(
        "the journal {0} is an empty file, or one that was only begun: a crash or a full disk may leave one where a journal is made, \
         and a service that starts makes it a new one. If it has had writes, they are gone: put a copy of it back before a \
         service starts"
    )]
    Empty(PathBuf),
    /// The disk, or the file's permissions.
    #[error("the journal {path} cannot be opened: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: StoreError,
    },
    /// Two caches would flush the same keyspace.
    #[error("the keyspace `{0}` has this journal already: clone its `Tiered`, or give this one another name")]
    Attached(Arc<str>),
    /// No dead letter has this name.
    #[error("there is no dead letter {0}: list them to see what there is")]
    NoSuchLetter(WriteId),
    /// What would be retried is older than what waits.
    #[error("the key of the dead letter {0} has a newer write that waits to be saved: discard the letter")]
    Superseded(WriteId),
    /// It takes no more.
    #[error("the journal is closed")]
    Closed,
    /// The store failed.
    #[error("{summary} failed: {cause}; it is not known whether it was done")]
    Store {
        /// Which one.
        summary: String,
        /// What is wrong.
        cause: StoreError,
    },
}

/// Why a write was not logged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(
        "the journal has been full for as long as the write could wait: the source takes writes too slowly, or the journal \
         is too small, or dead letters fill it"
    )]
    Full,
    #[error("a write of {bytes} bytes is more than the journal may have, {most}")]
    TooLarge { bytes: usize, most: usize },
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It may be logged yet: then the receiver hears of it.
    #[error("the journal did not answer in time")]
    Slow(Told),
}

impl LogError {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            LogError::Full | LogError::Journal(JournalError::Closed) => Failure::Overloaded,
            LogError::TooLarge { .. } => Failure::Rejected,
            LogError::Journal(_) => Failure::Unavailable,
            LogError::Slow(_) => Failure::TimedOut,
        }
    }
}

/// How a journal is set up. From [`Journal::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct JournalBuilder {
    max_entries: usize,
    max_bytes: usize,
    flush_after: Duration,
    flush_batch: usize,
}

impl JournalBuilder {
    /// How many writes it may have, dead letters among them; 100,000 if nothing is said. While its disk fails, as many again of
    /// which nobody knows whether the disk has them; then writes are refused until it works.
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries.max(1);
        self
    }

    /// How many bytes its writes may have, in memory and (with what the engine needs to keep them) on disk; 64 MiB if
    /// nothing is said.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// How long a write waits for others to be saved together with, or for a newer write of its key; a second if nothing is
    /// said.
    pub fn flush_after(mut self, time: Duration) -> Self {
        self.flush_after = time;
        self
    }

    /// So many writes of a keyspace are saved as soon as there are so many, whatever their age; 128 if nothing is said. Also
    /// the most that a source which [`saves_many`](super::Source::saves_many) gets in one call.
    pub fn flush_batch(mut self, writes: usize) -> Self {
        self.flush_batch = writes.max(1);
        self
    }

    /// Opens the journal in a file, or makes one. It is this process's alone while it is open, by a lock on an empty file beside it,
    /// `NAME.lock`, which stays there.
    ///
    /// # Errors
    /// [`JournalError`], with the file and what to do.
    #[cfg(feature = "journal")]
    pub async fn open(self, path: impl AsRef<Path>) -> Result<Journal, JournalError> {
        let path = path.as_ref().to_path_buf();
        let opened = tokio::task::spawn_blocking(move || file::FileStore::open(&path)).await;
        let (store, contents) =
            opened.map_err(|panic| JournalError::Store { summary: "the journal".into(), cause: Arc::new(panic) })??;
        Ok(self.open_on(store, contents))
    }

    /// Opens a journal on a store of one's own, with what that has.
    pub fn open_on(self, store: impl Store, contents: Contents) -> Journal {
        let bounds = Bounds { entries: self.max_entries, bytes: self.max_bytes, batch: self.flush_batch };
        let state = State {
            index: Index::recover(bounds, contents.last, contents.records, Instant::now()),
            queue: Vec::new(),
            committing: false,
            sweeping: false,
            stats: JournalStats::default(),
        };
        let changed = Notify::new();
        let store = Box::new(store);
        Journal(Arc::new(Shared { store, options: self, id: contents.id, state: Mutex::new(state), changed }))
    }
}

/// A journal. A clone is another handle to the same.
///
/// ```
/// use larder::tiered::{Codec, FromFn, Journal, Tiered};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.journal");
/// let journal = Journal::builder().open(&path).await?;
/// let source = FromFn::new(|_: u64| async { Ok::<_, std::io::Error>(None::<String>) })
///     .saving_once(|id, value, name| async move {
///         println!("{name}: {id} is now {value:?}");
///         Ok::<_, std::io::Error>(())
///     });
/// let orders = Tiered::<u64, String>::builder()
///     .keyspace("orders")
///     .max_capacity(1_000)
///     .source(source)
///     .codec(Codec::raw())
///     .journal(journal)
///     .rule("write", "write-behind")
///     .build()?;
/// orders.insert(7, "seven".to_string()).await?;           // it survives a crash from here on
/// assert_eq!(orders.get(&7).await?.as_deref(), Some("seven"));
/// let left = orders.shutdown(std::time::Duration::from_secs(10)).await;
/// assert_eq!(left, 0);                                    // the source has it
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("store", &self.0.store.summary()).finish_non_exhaustive()
    }
}

/// What a journal has. From [`Journal::look`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct JournalContents {
    /// The writes that wait to be saved, in the order in which they were logged.
    pub pending: Vec<Logged>,
    /// The writes that a source will never take, in the order in which they were logged.
    pub dead_letters: Vec<Logged>,
}

/// A write that a journal has. From [`Journal::pending`] and [`Journal::dead_letters`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Logged {
    /// Its name, as the source gets it.
    #[serde(serialize_with = "as_text")]
    pub id: WriteId,
    /// The keyspace.
    pub keyspace: Arc<str>,
    /// The text of the key.
    pub key: Arc<str>,
    /// How many bytes the value has; `None`: the key is removed.
    pub value_bytes: Option<usize>,
    /// When it was logged, in milliseconds since 1970.
    pub logged_at: u64,
    /// How many flushes of the key have failed since it was first logged, or since the start.
    pub failures: u32,
    /// Why it is a dead letter.
    pub reason: Option<Arc<str>>,
}

fn as_text<S: serde::Serializer>(id: &WriteId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// How a journal stands. From [`Journal::stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct JournalStats {
    /// Writes that wait to be saved.
    pub pending: usize,
    /// Dead letters.
    pub dead: usize,
    /// Keys that the source has, and of which a far tier that could not be reached may have what is out of date; 1 may
    /// stand for all of a keyspace. They count against the bounds until that tier has dropped it.
    pub owed: usize,
    /// What all these have together, as it counts against the bound.
    pub bytes: usize,
    /// Writers who wait for room.
    pub waiting: usize,
    /// Writes that were logged.
    pub logged: u64,
    /// Of these, those that took the place of one that was not saved yet.
    pub coalesced: u64,
    /// Commits that the store has carried out.
    pub commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// The keyspaces that writes wait for, with how many.
    pub keyspaces: BTreeMap<Arc<str>, usize>,
    /// Those of them that nobody has open: their writes wait until somebody does.
    pub orphans: Vec<Arc<str>>,
}

impl Journal {
    /// How one is set up.
    pub fn builder() -> JournalBuilder {
        JournalBuilder {
            max_entries: 100_000,
            max_bytes: 64 << 20,
            flush_after: Duration::from_secs(1),
            flush_batch: 128,
        }
    }

    /// What the journal in a file has, for who must not change it: none is made, the file keeps its owner, and what a crash has
    /// left to be repaired stays so. For operators; [`JournalBuilder::open`] is for the service.
    ///
    /// # Errors
    /// There is none, it is empty, a process has it open, or it is damaged.
    #[cfg(feature = "journal")]
    pub async fn look(path: impl AsRef<Path>) -> Result<JournalContents, JournalError> {
        let path = path.as_ref().to_path_buf();
        let looking = file::Looking(path.clone());
        let contents = tokio::task::spawn_blocking(move || file::look(&path)).await;
        let contents =
            contents.map_err(|panic| JournalError::Store { summary: looking.summary(), cause: Arc::new(panic) })??;
        let journal = Journal::builder().open_on(looking, contents);
        Ok(JournalContents { pending: journal.pending(), dead_letters: journal.dead_letters() })
    }

    /// How it stands.
    pub fn stats(&self) -> JournalStats {
        let state = self.0.state.lock();
        let index = &state.index;
        let waits = |keyspace: &&Arc<str>| index.pending_of(keyspace) > 0;
        JournalStats {
            pending: index.keyspaces().map(|keyspace| index.pending_of(keyspace)).sum(),
            dead: index.letters().count(),
            owed: index.owed(),
            bytes: index.bytes(),
            waiting: index.waiting,
            keyspaces: index.keyspaces().filter(waits).map(|name| (name.clone(), index.pending_of(name))).collect(),
            orphans: index.keyspaces().filter(waits).filter(|name| !index.is_attached(name)).cloned().collect(),
            ..state.stats.clone()
        }
    }

    /// The writes that wait to be saved, in the order in which they were logged.
    pub fn pending(&self) -> Vec<Logged> {
        let state = self.0.state.lock();
        let mut pending: Vec<_> =
            state.index.pending().map(|(number, record, failures)| self.0.logged(number, record, failures)).collect();
        pending.sort_by_key(|logged| logged.id);
        pending
    }

    /// The writes that a source will never take, in the order in which they were logged.
    pub fn dead_letters(&self) -> Vec<Logged> {
        self.0.state.lock().index.letters().map(|(number, record)| self.0.logged(number, record, 0)).collect()
    }

    /// Makes a dead letter a write again, which is due at once and has the name that it had.
    ///
    /// If the key was written since, and that write has been saved already, the letter's value takes its place.
    ///
    /// # Errors
    /// [`JournalError::NoSuchLetter`]; [`JournalError::Superseded`] where a newer write of the key waits; or the store fails.
    pub async fn retry(&self, id: WriteId) -> Result<(), JournalError> {
        let told = {
            let mut state = self.0.state.lock();
            let (number, letter) = self.0.letter(&state, id)?;
            if state.index.newest(&letter.keyspace, &letter.key).is_some() {
                return Err(JournalError::Superseded(id));
            }
            let record = Arc::new(Record { dead: None, ..(*letter).clone() });
            self.0.queue(&mut state, Deed::Revive(number, record))
        };
        heard(told.await)
    }

    /// Gives a dead letter up.
    ///
    /// # Errors
    /// [`JournalError::NoSuchLetter`], or the store fails.
    pub async fn discard(&self, id: WriteId) -> Result<(), JournalError> {
        let told = {
            let mut state = self.0.state.lock();
            let (number, _) = self.0.letter(&state, id)?;
            self.0.queue(&mut state, Deed::Discard(number))
        };
        heard(told.await)
    }

    /// A keyspace's part of it, and the keys that far tiers are to drop, because of what it has from before. The empty one stands
    /// for all.
    pub(crate) fn attach(&self, keyspace: &Arc<str>) -> Result<(Part, BTreeSet<Arc<str>>), JournalError> {
        let mut state = self.0.state.lock();
        let due = Arc::new(Notify::new());
        if !state.index.attach(keyspace, due.clone()) {
            return Err(JournalError::Attached(keyspace.clone()));
        }
        let recovered = state.index.keys_of(keyspace);
        drop(state);
        Ok((Part { shared: self.0.clone(), keyspace: keyspace.clone(), due }, recovered))
    }
}

struct Shared {
    store: Box<dyn Store>,
    options: JournalBuilder,
    id: u64,
    state: Mutex<State>,
    /// Told of every commit, and of whatever else may end a wait.
    changed: Notify,
}

struct State {
    index: Index,
    /// What waits for the next commit, in order.
    queue: Vec<Queued>,
    committing: bool,
    /// What a failed commit may have left is to be swept out soon.
    sweeping: bool,
    stats: JournalStats,
}

/// Waits for its commit.
struct Queued {
    deed: Deed,
    told: oneshot::Sender<Result<(), JournalError>>,
}

pub(crate) type Told = oneshot::Receiver<Result<(), JournalError>>;

fn heard(told: Result<Result<(), JournalError>, oneshot::error::RecvError>) -> Result<(), JournalError> {
    told.unwrap_or(Err(JournalError::Closed))
}

/// One thing that a commit does.
enum Deed {
    Log(u64, Arc<Record>),
    /// The source has it; with what is put in its place, where a far tier is owed.
    Done(u64, Arc<Record>, Option<Arc<Record>>),
    /// It becomes a dead letter.
    Bury(u64, Arc<Record>),
    /// A dead letter becomes a write again.
    Revive(u64, Arc<Record>),
    Discard(u64),
    /// Nothing but what is garbage.
    Sweep,
}

impl Shared {
    fn write_id(&self, number: u64) -> WriteId {
        WriteId(u128::from(self.id) << 64 | u128::from(number))
    }

    fn logged(&self, number: u64, record: &Record, failures: u32) -> Logged {
        Logged {
            id: self.write_id(number),
            keyspace: record.keyspace.clone(),
            key: record.key.clone(),
            value_bytes: record.value.as_ref().map(|value| value.len()),
            logged_at: record.logged_at,
            failures,
            reason: record.dead.clone(),
        }
    }

    fn letter(&self, state: &State, id: WriteId) -> Result<(u64, Arc<Record>), JournalError> {
        let found = state.index.letters().find(|(number, _)| self.write_id(*number) == id);
        found.map(|(number, record)| (number, record.clone())).ok_or(JournalError::NoSuchLetter(id))
    }

    /// Queues a deed for the next commit.
    fn queue(self: &Arc<Self>, state: &mut State, deed: Deed) -> Told {
        let (told, hears) = oneshot::channel();
        state.queue.push(Queued { deed, told });
        if !state.committing {
            state.committing = true;
            let committing = Committing { shared: self.clone(), batch: None };
            tokio::spawn(committing.run());
        }
        hears
    }
}

/// The commits, one at a time, for as long as something is queued.
struct Committing {
    shared: Arc<Shared>,
    batch: Option<Batch>,
}

/// What a commit under way carries out.
struct Batch {
    queued: Vec<Queued>,
    /// What is garbage as the commit begins.
    garbage: Vec<u64>,
}

impl Committing {
    async fn run(mut self) {
        while let Some(changes) = self.next() {
            let result = self.shared.store.commit(changes).await;
            self.end(result);
        }
    }

    /// What the next commit does.
    fn next(&mut self) -> Option<Vec<Change>> {
        let mut state = self.shared.state.lock();
        if state.queue.is_empty() {
            state.committing = false;
            return None;
        }
        let queued = std::mem::take(&mut state.queue);
        let garbage = state.index.garbage();
        drop(state);
        let mut changes: Vec<_> = garbage.iter().map(|number| Change::Remove(*number)).collect();
        changes.extend(queued.iter().filter_map(|Queued { deed, .. }| match deed {
            Deed::Log(number, record)
            | Deed::Bury(number, record)
            | Deed::Revive(number, record)
            | Deed::Done(number, _, Some(record)) => Some(Change::Put(*number, record.clone())),
            Deed::Done(number, _, None) | Deed::Discard(number) => Some(Change::Remove(*number)),
            Deed::Sweep => None,
        }));
        self.batch = Some(Batch { queued, garbage });
        Some(changes)
    }

    /// Does in memory what was done in the store, and tells those who wait.
    fn end(&mut self, result: Result<(), StoreError>) {
        let Some(Batch { queued, garbage }) = self.batch.take() else { return };
        let result = result.map_err(|cause| JournalError::Store { summary: self.shared.store.summary(), cause });
        let mut state = self.shared.state.lock();
        let State { index, stats, sweeping, .. } = &mut *state;
        let mut sweep = false;
        match &result {
            Ok(()) => {
                stats.commits += 1;
                index.swept(&garbage);
            }
            Err(error) => {
                stats.failed_commits += 1;
                tracing::warn!(%error, writes = queued.len(), "the journal failed");
                sweep = !std::mem::replace(sweeping, true);
            }
        }
        let now = Instant::now();
        for Queued { deed, .. } in &queued {
            match (deed, &result) {
                (Deed::Log(number, record), Ok(())) => {
                    stats.logged += 1;
                    let due = later(now, self.shared.options.flush_after);
                    stats.coalesced += u64::from(index.logged(*number, record.clone(), due));
                }
                (Deed::Log(number, record), Err(_)) => index.give_up(*number, record),
                (Deed::Done(number, record, debt), Ok(())) => {
                    index.saved(*number, record, debt.as_ref(), later(now, self.shared.options.flush_after));
                }
                (Deed::Bury(number, letter), Ok(())) => index.bury(*number, letter, now),
                (Deed::Revive(number, record), Ok(())) => index.revive(*number, record, now),
                (Deed::Discard(number), Ok(())) => index.discard(*number),
                (Deed::Done(..) | Deed::Bury(..) | Deed::Revive(..) | Deed::Discard(_), Err(_)) | (Deed::Sweep, _) => {}
            }
        }
        index.wake_all();
        drop(state);
        if sweep {
            sweep_later(&self.shared);
        }
        for Queued { told, .. } in queued {
            // Who asked may have left.
            drop(told.send(result.clone()));
        }
        self.shared.changed.notify_waiters();
    }
}

/// What a failed commit may have left is not to come back after a crash: it is taken out, as soon as that works.
fn sweep_later(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        tokio::time::sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut state = shared.state.lock();
        state.sweeping = false;
        if state.index.has_garbage() {
            drop(shared.queue(&mut state, Deed::Sweep));
        }
    });
}

const SWEEP: Duration = Duration::from_secs(1);

impl Drop for Committing {
    /// Where the runtime goes down in the middle of a commit, nobody knows what became of it.
    fn drop(&mut self) {
        if self.batch.is_some() {
            self.end(Err(Arc::new(JournalError::Closed)));
            self.shared.state.lock().committing = false;
        }
    }
}

/// A journal as one keyspace has it.
pub(crate) struct Part {
    shared: Arc<Shared>,
    keyspace: Arc<str>,
    due: Arc<Notify>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shared.state.lock().index.detach(&self.keyspace);
        // Whoever flushes is to see that.
        self.due.notify_one();
    }
}

/// What is to be flushed.
pub(crate) struct Due {
    pub(crate) flushes: Vec<Flushing>,
    /// Keys whose copies are out of date, because a dead letter has come back.
    pub(crate) revived: Vec<Arc<str>>,
    /// When to look again, if nothing happens before.
    pub(crate) next: Option<Instant>,
}

impl Part {
    /// Told when something may be due.
    pub(crate) fn wakes(&self) -> Arc<Notify> {
        self.due.clone()
    }

    /// The most that is saved in one call.
    pub(crate) fn batch(&self) -> usize {
        self.shared.options.flush_batch
    }

    /// A record of this keyspace, of now.
    pub(crate) fn record(&self, key: &str, value: Option<Arc<[u8]>>) -> Record {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Record {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            value,
            validator: None,
            tags: Arc::default(),
            fresh_ms: None,
            stale_ms: None,
            rescue_ms: None,
            logged_at: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            dead: None,
            saved: false,
        }
    }

    /// Logs a write: waits for room, and then until it is durable.
    pub(crate) async fn log(&self, record: Record, wait: Duration, limit: Duration) -> Result<(), LogError> {
        let (record, deadline) = (Arc::new(record), later(Instant::now(), wait));
        let most = self.shared.options.max_bytes;
        if record.bytes() > most {
            return Err(LogError::TooLarge { bytes: record.bytes(), most });
        }
        let mut waiting = None;
        let told = loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let swept = {
                let mut state = self.shared.state.lock();
                if state.index.is_draining(&self.keyspace) {
                    return Err(JournalError::Closed.into());
                }
                if state.index.is_littered() {
                    Some(self.shared.queue(&mut state, Deed::Sweep))
                } else if let Some(number) = state.index.reserve(&record) {
                    break self.shared.queue(&mut state, Deed::Log(number, record));
                } else {
                    waiting.get_or_insert_with(|| Waiting::new(&self.shared, &mut state));
                    None
                }
            };
            match swept {
                Some(swept) => heard(timeout_at(deadline, swept).await.map_err(|_| LogError::Full)?)?,
                None => timeout_at(deadline, changed).await.map_err(|_| LogError::Full)?,
            }
        };
        drop(waiting);
        let mut told = told;
        match timeout(limit, &mut told).await {
            Ok(told) => Ok(heard(told)?),
            Err(_) => Err(LogError::Slow(told)),
        }
    }

    /// The newest write of a key that waits to be saved.
    pub(crate) fn newest(&self, key: &str) -> Option<Arc<Record>> {
        self.shared.state.lock().index.newest(&self.keyspace, key).map(|(_, record)| record.clone())
    }

    /// Waits until nothing of a key is in the journal, and no save of it runs; what is logged from then on is not flushed
    /// before the turn ends.
    pub(crate) async fn turn(&self, key: &str) -> SaveTurn {
        loop {
            self.settled(key).await;
            let turn = self.shared.state.lock().index.turn(&self.keyspace, key);
            let turn = turn.lock_owned().await;
            if self.shared.state.lock().index.is_settled(&self.keyspace, key) {
                return turn;
            }
        }
    }

    /// Waits until nothing of a key is in the journal, and has it flushed at once.
    async fn settled(&self, key: &str) {
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if state.index.is_settled(&self.keyspace, key) {
                    return;
                }
                if !state.index.urge(&self.keyspace, key, Instant::now()) {
                    // A commit that failed may have left something.
                    drop(self.shared.queue(&mut state, Deed::Sweep));
                }
            }
            changed.await;
            // Where the store fails at once, it is not to be asked without end.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Takes what is due.
    pub(crate) fn take(&self, now: Instant) -> Due {
        let taken = self.shared.state.lock().index.take(&self.keyspace, now);
        let flushing = |key| Flushing {
            shared: self.shared.clone(),
            keyspace: self.keyspace.clone(),
            key,
            taken: None,
            ended: false,
        };
        Due { flushes: taken.keys.into_iter().map(flushing).collect(), revived: taken.revived, next: taken.next }
    }

    /// How many writes wait to be saved.
    pub(crate) fn pending(&self) -> usize {
        self.shared.state.lock().index.pending_of(&self.keyspace)
    }

    /// How many writes wait to be saved, or to be logged.
    fn unsaved(&self) -> usize {
        self.shared.state.lock().index.unsaved_of(&self.keyspace)
    }

    /// Forgets what far tiers are owed no longer. The empty key stands for whatever any of them is owed.
    pub(crate) fn settle(&self, is_owed: impl Fn(&str) -> bool) {
        // Asked under the lock: a flush that finds here that its debt is remembered has owed it before.
        let mut state = self.shared.state.lock();
        if state.index.settle(&self.keyspace, is_owed) {
            drop(self.shared.queue(&mut state, Deed::Sweep));
        }
    }

    async fn sweep(&self, deadline: Instant) {
        let swept = {
            let mut state = self.shared.state.lock();
            state.index.has_garbage().then(|| self.shared.queue(&mut state, Deed::Sweep))
        };
        if let Some(swept) = swept {
            // Where it fails, it is tried again.
            drop(timeout_at(deadline, swept).await);
        }
    }

    /// Takes no more writes, and waits until there are none left, or for so long; how many are left.
    pub(crate) async fn drain(&self, limit: Duration) -> usize {
        let deadline = later(Instant::now(), limit);
        self.shared.state.lock().index.drain(&self.keyspace, Instant::now());
        self.shared.changed.notify_waiters();
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let left = self.unsaved();
            if left == 0 || timeout_at(deadline, changed).await.is_err() {
                self.sweep(deadline).await;
                return left;
            }
        }
    }
}

/// Somebody waits for room.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn new(shared: &Arc<Shared>, state: &mut State) -> Self {
        state.index.waiting += 1;
        state.index.wake_all();
        Waiting(shared.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state.lock().index.waiting -= 1;
    }
}

/// A key that a flush has in hand. Dropped before it is done, it is flushed again later.
pub(crate) struct Flushing {
    shared: Arc<Shared>,
    keyspace: Arc<str>,
    key: Arc<str>,
    /// The write that is being saved.
    taken: Option<(u64, Arc<Record>)>,
    ended: bool,
}

/// Held while a save of a key runs.
pub(crate) type SaveTurn = OwnedMutexGuard<()>;

impl Flushing {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Waits until no save of the key runs.
    pub(crate) async fn turn(&self) -> SaveTurn {
        let turn = self.shared.state.lock().index.turn(&self.keyspace, &self.key);
        turn.lock_owned().await
    }

    /// The same, if it is so now.
    pub(crate) fn try_turn(&self) -> Option<SaveTurn> {
        self.shared.state.lock().index.turn(&self.keyspace, &self.key).try_lock_owned().ok()
    }

    /// The newest write of the key, which is what is saved from now on.
    pub(crate) fn newest(&mut self) -> Option<(WriteId, Arc<Record>)> {
        let state = self.shared.state.lock();
        let (number, record) = state.index.newest(&self.keyspace, &self.key)?;
        self.taken = Some((number, record.clone()));
        Some((self.shared.write_id(number), record.clone()))
    }

    /// The source has what was saved: takes it off the journal, unless there is a newer one, which is flushed later. `is_owed`: a
    /// far tier is still to drop what it has of the key, and that is kept instead until [`Part::settle`].
    pub(crate) async fn done(&mut self, is_owed: bool) -> Result<(), JournalError> {
        let Some((number, record)) = self.taken.clone() else { return Ok(()) };
        let told = {
            let mut state = self.shared.state.lock();
            let debt = if is_owed { state.index.debt(number, &record).map(Arc::new) } else { None };
            self.shared.queue(&mut state, Deed::Done(number, record, debt))
        };
        heard(told.await)?;
        self.ended = true;
        Ok(())
    }

    /// The source will never take it.
    pub(crate) async fn bury(&mut self, reason: &str) -> Result<(), JournalError> {
        let Some((number, record)) = self.taken.clone() else { return Ok(()) };
        if self.shared.state.lock().index.newest(&self.keyspace, &self.key).is_none_or(|(newest, _)| newest != number) {
            // A newer write has taken its place, and is flushed as after a failure.
            return Ok(());
        }
        let letter = Arc::new(Record { dead: Some(reason.into()), ..(*record).clone() });
        let told = self.shared.queue(&mut self.shared.state.lock(), Deed::Bury(number, letter));
        heard(told.await)?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.state.lock().index.failed(&self.keyspace, &self.key, Instant::now());
        }
    }
}
