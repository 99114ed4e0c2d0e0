//! A journal in a file, over redb.
//!
//! One table of writes by their numbers, and one of what is said of the journal itself: its format, its name and the last
//! number it gave. A commit is one transaction of redb's, which a crash leaves done or undone, and each page has a
//! checksum; the file is checked when it is opened. (Why redb: ARCHITECTURE.md, "Choices of libraries".)
//!
//! A record is a byte for what it is and then [`OnDisk`] as postcard has it.
//!
//! **When it is opened, and after its disk has failed, the file is copied**, beside itself, and the copy takes its place. Where a
//! sync fails, Linux drops what it had not written, goes on showing it to whoever reads, and says so once, perhaps to a process
//! that is gone: a later commit could be built upon pages that the disk never got, and be acknowledged, and be unreadable
//! after a power cut. Of a copy each page is synced anew. (Rebello and others, *Can Applications Recover from fsync Failures?*,
//! ATC 2020.) Where the disk is only full nothing is dropped, and the file will do as it is. The copy has the owner, where that
//! is permitted, and the permissions of the file, so that the service can open it whoever opened it before.
//!
//! **Whose it is, is said by a lock** on a file beside it, `NAME.lock`, which is empty and stays: the file itself is replaced, and is not
//! open while its disk fails. It is held from the opening to the end of the last handle.
//!
//! An empty file is opened as a new journal: a crash leaves one where the file is there and its first copy is not yet. So is one that was
//! begun in its place, as is done on a full disk, and not finished.
//!
//! **Who only looks changes nothing** ([`look`]): the bytes are read into memory, and what a crash has left to be repaired is
//! repaired there.

use std::io::Read as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use parking_lot::Mutex;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition, TableError,
};
use serde::{Deserialize, Serialize};

use super::{Change, Contents, JournalError, Record, Store, StoreError};
use crate::tiered::BoxFuture;
use crate::tiered::files::{directory_of, explained, is_unfinished, sync_directory_of};
use crate::tiered::panics::caught;

const WRITES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("larder-journal-writes");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("larder-journal");

/// The newest format that is known. A journal has the first one until there is a [`DEBT`] in it, so that the version before can
/// open it until then.
const FORMAT: u64 = 2;
const FIRST_FORMAT: u64 = 1;

/// What a record is: a write or a dead letter; or what far tiers are owed for a write that the source has.
const WRITE: u8 = 1;
const DEBT: u8 = 2;

/// Numbers are given one by one, and do not come so far. Beyond it there would be no next.
const MOST: u64 = 1 << 62;

/// The pages that redb keeps in memory. All that is read again is in memory as records.
const PAGES: usize = 1 << 20;

/// A record as it is written.
#[derive(Serialize, Deserialize)]
struct OnDisk<'a> {
    keyspace: &'a str,
    key: &'a str,
    #[serde(borrow)]
    value: Option<&'a [u8]>,
    validator: Option<&'a str>,
    tags: Vec<&'a str>,
    fresh_ms: Option<u64>,
    stale_ms: Option<u64>,
    rescue_ms: Option<u64>,
    logged_at: u64,
    dead: Option<&'a str>,
}

fn encode(record: &Record) -> Result<Vec<u8>, postcard::Error> {
    let on_disk = OnDisk {
        keyspace: &record.keyspace,
        key: &record.key,
        value: record.value.as_deref(),
        validator: record.validator.as_deref(),
        tags: record.tags.iter().map(|tag| &**tag).collect(),
        fresh_ms: record.fresh_ms,
        stale_ms: record.stale_ms,
        rescue_ms: record.rescue_ms,
        logged_at: record.logged_at,
        dead: record.dead.as_deref(),
    };
    postcard::to_extend(&on_disk, vec![if record.saved { DEBT } else { WRITE }])
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let (format, on_disk): (u8, OnDisk<'_>) = match bytes {
        [format @ (WRITE | DEBT), rest @ ..] => {
            (*format, postcard::from_bytes(rest).map_err(|error| error.to_string())?)
        }
        [format, ..] => return Err(format!("it has format {format}, which this version does not know")),
        [] => return Err("it is empty".into()),
    };
    Ok(Record {
        keyspace: on_disk.keyspace.into(),
        key: on_disk.key.into(),
        value: on_disk.value.map(Arc::from),
        validator: on_disk.validator.map(Arc::from),
        tags: on_disk.tags.into_iter().map(Arc::from).collect(),
        fresh_ms: on_disk.fresh_ms,
        stale_ms: on_disk.stale_ms,
        rescue_ms: on_disk.rescue_ms,
        logged_at: on_disk.logged_at,
        dead: on_disk.dead.map(Arc::from),
        saved: format == DEBT,
    })
}

/// Where the file is.
trait Place: Send + Sync + 'static {
    /// Opens a copy of what is there, which takes its place; or makes it.
    fn open(&self) -> Result<Database, DatabaseError>;

    /// Opens it without a copy.
    fn open_as_it_is(&self) -> Result<Database, DatabaseError>;
}

impl Place for PathBuf {
    fn open(&self) -> Result<Database, DatabaseError> {
        let old = fs::OpenOptions::new().read(true).write(true).open(self)?;
        let about = old.metadata()?;
        // Where a link leads.
        let path = fs::canonicalize(self)?;
        // As redb locks what it opens, for who knows nothing of the other lock.
        let held = locked(old, false)?;
        if is_unfinished(fs::File::open(&path)?)? {
            held.0.set_len(0)?;
        }
        let beside = beside(&path);
        let copied = || -> Result<Database, DatabaseError> {
            let copying = |error| in_directory("a copy of it, which takes its place, cannot be made in", &path, &error);
            fs::copy(&path, &beside).map_err(copying)?;
            keep_owner(&about, &beside);
            fs::OpenOptions::new().write(true).open(&beside)?.sync_all()?;
            // What has to be repaired is repaired there.
            let database = builder().create(&beside)?;
            fs::rename(&beside, &path).map_err(copying)?;
            sync_directory_of(&path)?;
            Ok(database)
        };
        let database = copied();
        if database.is_err() {
            // It may be what fills the disk; or it is there no more.
            let _ = fs::remove_file(&beside);
        }
        database
    }

    fn open_as_it_is(&self) -> Result<Database, DatabaseError> {
        builder().create(self)
    }
}

/// A file that is locked until this is dropped. To close it is not enough: a process that is just being started has what was open
/// here, until it runs its own program, and the locks of that.
struct Owned(fs::File);

impl Drop for Owned {
    fn drop(&mut self) {
        // It is closed then.
        let _ = self.0.unlock();
    }
}

/// As [`Owned`], by redb's locks.
struct Locked(FileBackend);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.close();
    }
}

/// Locked as redb locks what it opens; what is only read, as redb does that.
fn locked(file: fs::File, only_reads: bool) -> Result<Locked, DatabaseError> {
    let held = Locked(FileBackend::new(file)?);
    let locked = match only_reads {
        true => held.0.try_lock_shared_range(Bound::Unbounded, Bound::Unbounded),
        false => held.0.try_lock_range(Bound::Unbounded, Bound::Unbounded),
    };
    match locked {
        Ok(true) => Ok(held),
        Ok(false) => Err(DatabaseError::DatabaseAlreadyOpen),
        Err(error) => Err(io::Error::other(error.to_string()).into()),
    }
}

/// What failed, with the directory that it failed in.
fn in_directory(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} the directory {}: {error}", directory_of(path).display()))
}

/// Gives a copy the owner of its original, or at least its group, as far as this user may.
fn keep_owner(original: &fs::Metadata, copy: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let of = |about: &fs::Metadata| (about.uid(), about.gid());
        let (uid, gid) = of(original);
        if fs::metadata(copy).is_ok_and(|about| of(&about) == (uid, gid)) {
            return;
        }
        if let Err(error) = chown(copy, Some(uid), Some(gid)).or_else(|_| chown(copy, None, Some(gid))) {
            let path = copy.display();
            tracing::warn!(%path, %error, "the copy of a journal, which takes its place, cannot have its owner {uid}:{gid}");
        }
    }
    #[cfg(not(unix))]
    let _ = (original, copy);
}

/// What is in a file, which is left as it is, and may be opened by others as soon as this returns.
pub(super) fn look(path: &Path) -> Result<Contents, JournalError> {
    if is_owned(path) {
        return Err(JournalError::InUse(path.to_path_buf()));
    }
    let bytes = read_alone(path).map_err(|error| match error {
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            JournalError::NotThere(path.to_path_buf())
        }
        error => not_opened(path, error),
    })?;
    if is_unfinished(&*bytes).unwrap_or(false) {
        return Err(JournalError::Empty(path.to_path_buf()));
    }
    let looked = caught(|| {
        let opened = || -> Result<Database, DatabaseError> {
            let memory = InMemoryBackend::new();
            memory.set_len(bytes.len() as u64)?;
            memory.write(0, &bytes)?;
            builder().create_with_backend(memory)
        };
        contents(&opened().map_err(|error| not_opened(path, error))?, path)
    });
    looked.unwrap_or_else(|what| Err(JournalError::Damaged { path: path.to_path_buf(), what }))
}

/// The bytes of a file that nobody has open.
fn read_alone(path: &Path) -> Result<Vec<u8>, DatabaseError> {
    let file = fs::File::open(path)?;
    let mut reading = file.try_clone()?;
    let _held = locked(file, true)?;
    let mut bytes = Vec::new();
    reading.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The store of who only looks.
pub(super) struct Looking(pub(super) PathBuf);

impl Store for Looking {
    fn summary(&self) -> String {
        format!("a look at the journal {}", self.0.display())
    }

    fn commit(&self, _: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(told(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))) })
    }
}

fn lock_of(path: &Path) -> PathBuf {
    path.with_added_extension("lock")
}

/// Takes the journal of this name for this process, until what is returned is dropped; or for as long as one looks.
fn owned(path: &Path) -> Result<Owned, JournalError> {
    let failed =
        |error: io::Error| JournalError::Io { path: path.to_path_buf(), cause: Arc::new(explained(path, error)) };
    let in_directory = |error| in_directory("it cannot be made in", path, &error);
    let file = || -> io::Result<fs::File> {
        let journal = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let about = journal
            .map_err(|error| if fs::symlink_metadata(path).is_ok() { error } else { in_directory(error) })?
            .metadata()?;
        // Where a link leads.
        let lock = lock_of(&fs::canonicalize(path)?);
        // To read it is enough to lock it, for whoever may open the journal.
        match fs::File::open(&lock) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock);
                let made = made
                    .map_err(|error| io::Error::new(error.kind(), format!("its lock, {}: {error}", lock.display())))?;
                keep_owner(&about, &lock);
                made.set_permissions(about.permissions())?;
                Ok(made)
            }
            opened => opened,
        }
    };
    let file = file().map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Owned(file)),
        Err(fs::TryLockError::WouldBlock) => Err(JournalError::InUse(path.to_path_buf())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Whether a process has it open, also while its disk fails.
fn is_owned(path: &Path) -> bool {
    let lock = fs::canonicalize(path).and_then(|path| fs::File::open(lock_of(&path)));
    lock.is_ok_and(|lock| matches!(Owned(lock).0.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    // Every page is checked: damage is an error here, and not a surprise later.
    builder.set_cache_size(PAGES).set_check_integrity_on_open(true);
    builder
}

/// The file.
pub(super) struct FileStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    place: Box<dyn Place>,
    database: Mutex<State>,
    /// Dropped after the database.
    _owned: Option<Owned>,
}

/// redb takes no more commits after an error, until it is opened again.
enum State {
    Open(Database),
    /// The disk was full.
    Full,
    /// Nobody knows what the disk has.
    InDoubt,
}

impl FileStore {
    /// Opens the file, or makes it; with what is in it.
    pub(super) fn open(path: &Path) -> Result<(FileStore, Contents), JournalError> {
        let owned = owned(path)?;
        FileStore::open_at(path, path.to_path_buf(), Some(owned))
    }

    fn open_at(path: &Path, place: impl Place, owned: Option<Owned>) -> Result<(FileStore, Contents), JournalError> {
        let opened = caught(|| {
            let opened = match place.open() {
                Err(DatabaseError::Storage(StorageError::Io(error))) if error.kind() == io::ErrorKind::StorageFull => {
                    place.open_as_it_is()
                }
                other => other,
            };
            let database = opened.map_err(|error| not_opened(path, error))?;
            let contents = contents(&database, path)?;
            Ok((database, contents))
        });
        let (database, contents) =
            opened.unwrap_or_else(|what| Err(JournalError::Damaged { path: path.to_path_buf(), what }))?;
        let database = Mutex::new(State::Open(database));
        let (path, place) = (path.to_path_buf(), Box::new(place));
        Ok((FileStore(Arc::new(Inner { path, place, database, _owned: owned })), contents))
    }
}

impl Inner {
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut state = self.database.lock();
        let before = std::mem::replace(&mut *state, State::InDoubt);
        // What was in doubt is in doubt still where the disk has no room for a copy.
        let was_in_doubt = matches!(before, State::InDoubt);
        let opened = match before {
            State::Open(database) => Ok(database),
            State::Full => self.place.open_as_it_is().map_err(redb::Error::from),
            State::InDoubt => {
                let path = self.path.display();
                tracing::warn!(%path, "a journal is copied, because its disk has failed");
                self.place.open().map_err(redb::Error::from)
            }
        };
        let written = opened.map_err(WriteError::Engine).and_then(|database| {
            let written = write(&database, changes);
            if !matches!(written, Err(WriteError::Engine(_))) {
                *state = State::Open(database);
            }
            written
        });
        written.map_err(|error| match error {
            WriteError::Record(error) => told(error),
            WriteError::Engine(error) => {
                if is_full(&error) && !was_in_doubt {
                    *state = State::Full;
                }
                told(error)
            }
        })
    }
}

fn is_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull)
}

fn told(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    Arc::new(error)
}

fn not_opened(path: &Path, error: DatabaseError) -> JournalError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => JournalError::InUse(path),
        DatabaseError::UpgradeRequired(version) => {
            JournalError::Damaged { path, what: format!("its engine's format is {version}, which is no longer read") }
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            JournalError::Damaged { path, what: error.to_string() }
        }
        DatabaseError::Storage(StorageError::Io(error)) => {
            JournalError::Io { cause: Arc::new(explained(&path, error)), path }
        }
        other => JournalError::Damaged { path, what: other.to_string() },
    }
}

/// What is in a database; a new one becomes a journal.
fn contents(database: &Database, path: &Path) -> Result<Contents, JournalError> {
    let damaged = |what: String| JournalError::Damaged { path: path.to_path_buf(), what };
    let failed = |error: redb::Error| match error {
        redb::Error::Io(error) => JournalError::Io { path: path.to_path_buf(), cause: Arc::new(error) },
        other => damaged(other.to_string()),
    };
    let reading = database.begin_read().map_err(|error| failed(error.into()))?;
    let about = match reading.open_table(ABOUT) {
        Ok(about) => about,
        Err(TableError::TableDoesNotExist(_)) => {
            let tables = reading.list_tables().map_err(|error| failed(error.into()))?.count();
            return if tables == 0 {
                make(database).map_err(failed)
            } else {
                Err(JournalError::NotAJournal(path.into()))
            };
        }
        Err(error) => return Err(failed(error.into())),
    };
    let say = |what: &str| -> Result<u64, JournalError> {
        let found = about.get(what).map_err(|error| failed(error.into()))?;
        found.map(|value| value.value()).ok_or_else(|| damaged(format!("it does not say its {what}")))
    };
    let found = say("format")?;
    if found > FORMAT {
        return Err(JournalError::Newer { path: path.to_path_buf(), found, known: FORMAT });
    }
    let mut contents = Contents { id: say("id")?, last: say("last")?, records: Vec::new() };
    let writes = reading.open_table(WRITES).map_err(|error| failed(error.into()))?;
    for write in writes.iter().map_err(|error| failed(error.into()))? {
        let (number, bytes) = write.map_err(|error| failed(error.into()))?;
        let number = number.value();
        let record = decode(bytes.value()).map_err(|what| damaged(format!("write {number} cannot be read: {what}")))?;
        contents.records.push((number, Arc::new(record)));
    }
    let highest = contents.records.iter().map(|(number, _)| *number).fold(contents.last, u64::max);
    if highest > MOST {
        return Err(damaged(format!("it has given the number {highest}, to which none can come")));
    }
    Ok(contents)
}

fn make(database: &Database) -> Result<Contents, redb::Error> {
    use std::hash::{BuildHasher, RandomState};
    // Random: the names of its writes are those of no other journal.
    let id = RandomState::new().hash_one(std::time::SystemTime::now());
    let writing = database.begin_write()?;
    {
        let mut about = writing.open_table(ABOUT)?;
        about.insert("format", FIRST_FORMAT)?;
        about.insert("id", id)?;
        about.insert("last", 0)?;
        writing.open_table(WRITES)?;
    }
    writing.commit()?;
    Ok(Contents { id, last: 0, records: Vec::new() })
}

/// Why a commit did not take place.
enum WriteError {
    Record(postcard::Error),
    Engine(redb::Error),
}

fn write(database: &Database, changes: &[Change]) -> Result<(), WriteError> {
    let mut last = 0;
    let mut records = Vec::with_capacity(changes.len());
    for change in changes {
        if let Change::Put(number, record) = change {
            last = last.max(*number);
            records.push(encode(record).map_err(WriteError::Record)?);
        }
    }
    let commit = || -> Result<(), redb::Error> {
        let writing = database.begin_write()?;
        {
            let mut writes = writing.open_table(WRITES)?;
            let mut records = records.iter();
            for change in changes {
                match change {
                    Change::Put(number, _) => {
                        if let Some(record) = records.next() {
                            writes.insert(number, record.as_slice())?;
                        }
                    }
                    Change::Remove(number) => drop(writes.remove(number)?),
                }
            }
            let mut about = writing.open_table(ABOUT)?;
            // A number is not given twice, though its write may be gone.
            if about.get("last")?.is_none_or(|before| before.value() < last) {
                about.insert("last", last)?;
            }
            if changes.iter().any(|change| matches!(change, Change::Put(_, record) if record.saved)) {
                about.insert("format", FORMAT)?;
            }
        }
        writing.commit()?;
        Ok(())
    };
    commit().map_err(WriteError::Engine)
}

impl Store for FileStore {
    fn summary(&self) -> String {
        format!("the journal {}", self.0.path.display())
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        let inner = self.0.clone();
        Box::pin(async move {
            // The disk is waited for on a thread that may.
            let committed = tokio::task::spawn_blocking(move || inner.commit(&changes)).await;
            committed.unwrap_or_else(|panic| Err(told(panic)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;
    #[cfg(feature = "testkit")]
    use crate::tiered::testkit::platter::Platter;

    fn record(key: &str, value: Option<&[u8]>) -> Arc<Record> {
        Arc::new(Record {
            keyspace: "orders".into(),
            key: key.into(),
            value: value.map(Arc::from),
            validator: Some("v7".into()),
            tags: ["red".into(), "blue".into()].into(),
            fresh_ms: Some(1),
            stale_ms: None,
            rescue_ms: Some(u64::MAX),
            logged_at: 1_700_000_000_000,
            dead: None,
            saved: false,
        })
    }

    fn commit(store: &FileStore, changes: Vec<Change>) -> Result<(), StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.commit(changes))
    }

    /// The file as an earlier version of this crate would have written it.
    #[test]
    fn a_record_is_read_back_and_its_format_does_not_change() {
        let dead = Record { dead: Some("no".into()), value: None, ..(*record("7", None)).clone() };
        let debt = record("7", Some(b"value")).debt("7".into());
        assert_eq!(encode(&debt).unwrap()[..10], *[&[2, 6][..], b"orders", &[1], b"7"].concat());
        for record in [(*record("7", Some(b"value"))).clone(), (*record("", None)).clone(), dead, debt] {
            assert_eq!(decode(&encode(&record).unwrap()).unwrap(), record);
        }
        let bytes = encode(&record("7", Some(b"ab"))).unwrap();
        let expected = [
            &[1, 6][..],
            b"orders",
            &[1],
            b"7",
            &[1, 2],
            b"ab",
            &[1, 2],
            b"v7",
            &[2, 3],
            b"red",
            &[4],
            b"blue",
            &[1, 1, 0, 1],
            &[0xff; 9],
            &[1],
            &[0x80, 0xd0, 0x95, 0xff, 0xbc, 0x31, 0],
        ];
        assert_eq!(bytes, expected.concat());
        assert!(decode(&[3, 0]).unwrap_err().contains("format 3"));
        assert!(decode(&[]).is_err());
        assert!(decode(&bytes[..10]).is_err());
    }

    #[test]
    fn what_was_committed_is_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let (store, contents) = FileStore::open(&path).unwrap();
        let id = contents.id;
        assert_eq!((contents.last, contents.records.len()), (0, 0));
        commit(&store, vec![Change::Put(1, record("a", Some(b"1"))), Change::Put(2, record("b", None))]).unwrap();
        commit(&store, vec![Change::Remove(1), Change::Remove(9), Change::Put(3, record("a", Some(b"3")))]).unwrap();
        commit(&store, vec![Change::Remove(3)]).unwrap();
        drop(store);
        let (_, contents) = FileStore::open(&path).unwrap();
        assert_eq!((contents.id, contents.last), (id, 3), "a number is not given twice");
        assert_eq!(contents.records, [(2, record("b", None))]);
        let (_, other) = FileStore::open(&directory.path().join("other")).unwrap();
        assert_ne!(other.id, id);
    }

    #[test]
    fn the_version_before_can_open_it_until_something_is_owed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let format = || {
            let database = Database::open(&path).unwrap();
            let reading = database.begin_read().unwrap();
            reading.open_table(ABOUT).unwrap().get("format").unwrap().unwrap().value()
        };
        let (store, _) = FileStore::open(&path).unwrap();
        commit(&store, vec![Change::Put(1, record("a", Some(b"1")))]).unwrap();
        drop(store);
        assert_eq!(format(), 1);
        let (store, _) = FileStore::open(&path).unwrap();
        let debt = Arc::new(record("a", Some(b"1")).debt("a".into()));
        commit(&store, vec![Change::Put(1, debt.clone())]).unwrap();
        drop(store);
        assert_eq!(format(), 2);
        assert_eq!(FileStore::open(&path).unwrap().1.records, [(1, debt)]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        let open = || FileStore::open(&path).map(|(_, contents)| contents);
        let text = |error: &JournalError| error.to_string();

        let (store, _) = FileStore::open(&path).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, JournalError::InUse(_)) && text(&error).contains("orders.journal"), "{error}");
        for number in 1..200 {
            commit(&store, vec![Change::Put(number, record(&number.to_string(), Some(&[7; 500])))]).unwrap();
        }
        drop(store);

        // Damage: a run of bytes in each place in turn. Whatever of it matters is noticed; what is read is right.
        let good = fs::read(&path).unwrap();
        let (mut noticed, mut harmless) = (0, 0);
        for at in (0..good.len() - 64).step_by(1_999) {
            let mut bad = good.clone();
            bad[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(&path, &bad).unwrap();
            match open() {
                Err(error @ (JournalError::Damaged { .. } | JournalError::Io { .. })) => {
                    noticed += 1;
                    assert!(text(&error).contains("orders.journal"), "{error}");
                }
                Err(error) => panic!("{error}"),
                Ok(contents) => {
                    harmless += 1;
                    let whole: Vec<_> = (1..200).map(|n| (n, record(&n.to_string(), Some(&[7; 500])))).collect();
                    assert_eq!(contents.records, whole, "at {at}");
                }
            }
        }
        assert!(noticed > harmless && harmless > 0, "{noticed} noticed, {harmless} harmless");
        for bad in [b"not a journal, but a text of some length".repeat(100), good[..good.len() / 2].to_vec()] {
            fs::write(&path, &bad).unwrap();
            let error = open().unwrap_err();
            assert!(matches!(error, JournalError::Damaged { .. } | JournalError::Io { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bad, "it is left as it is");
        }

        // Of a later version; or of somebody else.
        fs::remove_file(&path).unwrap();
        drop(FileStore::open(&path).unwrap());
        let database = Database::open(&path).unwrap();
        let writing = database.begin_write().unwrap();
        writing.open_table(ABOUT).unwrap().insert("format", 9).unwrap();
        writing.commit().unwrap();
        drop(database);
        let error = open().unwrap_err();
        assert!(matches!(error, JournalError::Newer { found: 9, known: 2, .. }), "{error}");
        // Of numbers after which there is none.
        for in_about in [true, false] {
            fs::remove_file(&path).unwrap();
            drop(FileStore::open(&path).unwrap());
            let database = Database::open(&path).unwrap();
            let writing = database.begin_write().unwrap();
            if in_about {
                writing.open_table(ABOUT).unwrap().insert("last", u64::MAX).unwrap();
            } else {
                let record = encode(&record("7", None)).unwrap();
                writing.open_table(WRITES).unwrap().insert(u64::MAX, &*record).unwrap();
            }
            writing.commit().unwrap();
            drop(database);
            let error = open().unwrap_err();
            assert!(
                matches!(&error, JournalError::Damaged { what, .. } if what.contains(&u64::MAX.to_string())),
                "{error}"
            );
        }
        fs::remove_file(&path).unwrap();
        let database = Database::create(&path).unwrap();
        let writing = database.begin_write().unwrap();
        writing.open_table(TableDefinition::<u64, u64>::new("accounts")).unwrap();
        writing.commit().unwrap();
        drop(database);
        assert!(matches!(open().unwrap_err(), JournalError::NotAJournal(_)));
        let nowhere = FileStore::open(&directory.path().join("no/such/directory")).map(drop).unwrap_err();
        assert!(matches!(nowhere, JournalError::Io { .. }) && text(&nowhere).contains("no/such"), "{nowhere}");
    }

    #[test]
    fn who_looks_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let error = look(&path).unwrap_err();
        assert!(matches!(error, JournalError::NotThere(_)) && names().is_empty(), "{error} {:?}", names());
        fs::write(&path, "").unwrap();
        let error = look(&path).unwrap_err();
        assert!(matches!(error, JournalError::Empty(_)) && fs::read(&path).unwrap().is_empty(), "{error}");

        // What a crash has left at its creation becomes a journal; so does what a full disk has.
        drop(FileStore::open(&path).unwrap());
        let mut unfinished = fs::read(&path).unwrap();
        unfinished[..9].fill(0);
        unfinished[512..].fill(0);
        fs::write(&path, &unfinished).unwrap();
        assert!(matches!(look(&path).unwrap_err(), JournalError::Empty(_)) && fs::read(&path).unwrap() == unfinished);
        let (store, _) = FileStore::open(&path).unwrap();
        commit(&store, vec![Change::Put(1, record("a", Some(b"1")))]).unwrap();
        assert!(matches!(look(&path).unwrap_err(), JournalError::InUse(_)));
        // As a process leaves it that is killed: it has to be repaired.
        let killed = fs::read(&path).unwrap();
        drop(store);
        let (whole, before) = (fs::read(&path).unwrap(), names());
        assert_ne!(killed, whole);
        for bytes in [whole, killed] {
            fs::write(&path, &bytes).unwrap();
            let contents = look(&path).unwrap();
            assert_eq!(contents.records, [(1, record("a", Some(b"1")))]);
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(names(), before);
        }
    }

    /// Its file is another one after that, and meanwhile it is not open.
    #[test]
    fn it_is_this_process_s_own_while_its_disk_fails_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        let (store, _) = FileStore::open(&path).unwrap();
        for _ in 0..2 {
            *store.0.database.lock() = State::InDoubt;
            assert!(matches!(FileStore::open(&path).map(drop).unwrap_err(), JournalError::InUse(_)));
            assert!(matches!(look(&path).unwrap_err(), JournalError::InUse(_)));
            commit(&store, vec![Change::Put(1, record("a", Some(b"1")))]).unwrap();
            assert!(matches!(FileStore::open(&path).map(drop).unwrap_err(), JournalError::InUse(_)));
        }
        // By another name, too.
        #[cfg(unix)]
        {
            let link = directory.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            *store.0.database.lock() = State::InDoubt;
            assert!(matches!(FileStore::open(&link).map(drop).unwrap_err(), JournalError::InUse(_)));
        }
        drop(store);
        assert_eq!(FileStore::open(&path).unwrap().1.records.len(), 1);
    }

    /// As where another thread is starting a process: that has the descriptors until it runs its program.
    #[test]
    fn its_locks_end_though_a_descriptor_of_them_is_open_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        let (store, _) = FileStore::open(&path).unwrap();
        let elsewhere = store.0._owned.as_ref().unwrap().0.try_clone().unwrap();
        drop(store);
        drop(FileStore::open(&path).unwrap());
        drop(elsewhere);

        let file = || fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (once, again) = (file(), file());
        let elsewhere = once.try_clone().unwrap();
        drop(locked(once, false).map_err(|error| error.to_string()).unwrap());
        drop(locked(again, false).map_err(|error| error.to_string()).unwrap());
        drop(elsewhere);
    }

    #[cfg(unix)]
    #[test]
    fn a_copy_has_the_owner_and_the_permissions_of_its_original() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        drop(FileStore::open(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Only root may give files away.
        let is_root = chown(&path, Some(12_345), Some(54_321)).is_ok();
        let of = |about: fs::Metadata| (about.uid(), about.gid(), about.mode() & 0o777);
        let before = fs::metadata(&path).unwrap();
        drop(FileStore::open(&path).unwrap());
        let after = fs::metadata(&path).unwrap();
        assert_ne!(before.ino(), after.ino(), "it is a copy");
        assert!(!is_root || before.uid() == 12_345);
        let before = of(before);
        assert_eq!(of(after), before);
        // So has the lock, for the same service to take.
        fs::remove_file(lock_of(&path)).unwrap();
        drop(FileStore::open(&path).unwrap());
        assert_eq!(of(fs::metadata(lock_of(&path)).unwrap()), before);
    }

    #[test]
    fn where_a_copy_cannot_be_made_the_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.journal");
        drop(FileStore::open(&path).unwrap());
        fs::create_dir(beside(&path)).unwrap();
        let error = FileStore::open(&path).map(drop).unwrap_err();
        let named = format!("the directory {}:", directory.path().display());
        assert!(matches!(error, JournalError::Io { .. }) && error.to_string().contains(&named), "{error}");
        let error = FileStore::open(&directory.path().join("no/journal")).map(drop).unwrap_err();
        let named = format!("the directory {}:", directory.path().join("no").display());
        assert!(matches!(error, JournalError::Io { .. }) && error.to_string().contains(&named), "{error}");
    }

    /// A disk that is full for a while.
    #[derive(Debug)]
    struct FullDisk(FileBackend, Arc<AtomicBool>);

    impl FullDisk {
        fn check(&self) -> io::Result<()> {
            if self.1.load(SeqCst) { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
        }
    }

    impl StorageBackend for FullDisk {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.check()?;
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.0.write(offset, data)
        }
    }

    struct FullPlace(PathBuf, Arc<AtomicBool>);

    impl Place for FullPlace {
        fn open(&self) -> Result<Database, DatabaseError> {
            let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.0)?;
            builder().create_with_backend(FullDisk(FileBackend::new(file)?, self.1.clone()))
        }

        fn open_as_it_is(&self) -> Result<Database, DatabaseError> {
            self.open()
        }
    }

    #[test]
    fn after_a_full_disk_it_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let full = Arc::new(AtomicBool::new(false));
        let place = FullPlace(path.clone(), full.clone());
        let (store, _) = FileStore::open_at(&path, place, None).unwrap();
        commit(&store, vec![Change::Put(1, record("a", Some(b"1")))]).unwrap();
        full.store(true, SeqCst);
        for number in 2..5 {
            let error = commit(&store, vec![Change::Put(number, record("b", Some(&[1; 100_000])))]).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        full.store(false, SeqCst);
        commit(
            &store,
            vec![Change::Remove(2), Change::Remove(3), Change::Remove(4), Change::Put(5, record("c", None))],
        )
        .unwrap();
        drop(store);
        let (_, contents) = FileStore::open(&path).unwrap();
        let numbers: Vec<_> = contents.records.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 5], "nothing that was committed is lost");
    }

    /// Two places on disks that fail, of which one has the file: the file system keeps its own order.
    #[cfg(feature = "testkit")]
    #[derive(Clone)]
    struct Platters([Arc<Platter>; 2], Arc<AtomicBool>);

    #[cfg(feature = "testkit")]
    impl Place for Platters {
        fn open(&self) -> Result<Database, DatabaseError> {
            let at = usize::from(self.1.load(SeqCst));
            let (old, new) = (self.0[at].attach(), self.0[1 - at].attach());
            let mut bytes = vec![0; old.len()? as usize];
            old.read(0, &mut bytes)?;
            new.erase();
            new.write(0, &bytes)?;
            new.sync_data()?;
            let database = builder().create_with_backend(new)?;
            self.1.fetch_xor(true, SeqCst);
            Ok(database)
        }

        fn open_as_it_is(&self) -> Result<Database, DatabaseError> {
            unreachable!("these are never full")
        }
    }

    /// Over disks that fail and power that is cut: what was acknowledged is there, what was refused may be, and nothing else is.
    /// `LARDER_SEEDS=100000 cargo test --workspace --lib disks_that_fail` runs more.
    #[cfg(feature = "testkit")]
    #[test]
    fn what_was_acknowledged_is_there_after_disks_that_fail() {
        use std::collections::{BTreeMap, BTreeSet};

        let seeds = std::env::var("LARDER_SEEDS").map_or(100, |text| text.parse::<u64>().expect("a number"));
        let (mut failed, mut cuts, mut acknowledged) = (0, 0, 0);
        for seed in 0..seeds {
            let platters = Platters([Platter::new(2 * seed), Platter::new(2 * seed + 1)], Arc::default());
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut below = |n: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % n
            };
            let start = || {
                for attempt in 0.. {
                    // It has to be well for a while to be read at all.
                    if attempt == 3 {
                        platters.0.iter().for_each(|platter| platter.fail_one_in(0));
                    }
                    match FileStore::open_at(Path::new("a platter"), platters.clone(), None) {
                        Ok(opened) => return opened,
                        Err(JournalError::Io { .. }) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
                unreachable!("it is opened in the end")
            };
            let (mut store, contents) = start();
            let id = contents.id;
            // By number: what must be there. And what may be there or not, since the call failed that was to change it.
            let (mut sure, mut unsure) = (BTreeMap::<u64, u8>::new(), BTreeSet::<u64>::new());
            for number in 1..60u64 {
                match below(12) {
                    0 | 1 => {
                        let calls = [0, 0, 4, 30][below(4) as usize];
                        platters.0.iter().for_each(|platter| platter.fail_one_in(calls));
                    }
                    2 => {
                        platters.0.iter().for_each(|platter| platter.cut_power());
                        cuts += 1;
                        drop(store);
                        let (again, contents) = start();
                        store = again;
                        let there: BTreeMap<u64, u8> = contents
                            .records
                            .iter()
                            .map(|(n, record)| (*n, record.value.as_ref().unwrap()[0]))
                            .collect();
                        assert_eq!(contents.id, id, "seed {seed}");
                        for (number, value) in &sure {
                            assert_eq!(there.get(number), Some(value), "seed {seed}: write {number} is lost");
                        }
                        for number in there.keys() {
                            assert!(
                                sure.contains_key(number) || unsure.contains(number),
                                "seed {seed}: write {number} was taken off"
                            );
                        }
                        // What is read now is what the journal goes on from.
                        (sure, unsure) = (there, BTreeSet::new());
                    }
                    _ => {
                        let taken_off = sure.keys().copied().filter(|_| below(3) == 0).collect::<Vec<_>>();
                        let length = [1, 200, 9_000][below(3) as usize];
                        let mut changes: Vec<_> = taken_off.iter().map(|number| Change::Remove(*number)).collect();
                        changes.push(Change::Put(number, record("k", Some(&vec![number as u8; length]))));
                        if commit(&store, changes).is_ok() {
                            acknowledged += 1;
                            sure.retain(|number, _| !taken_off.contains(number));
                            sure.insert(number, number as u8);
                        } else {
                            failed += 1;
                            for number in taken_off {
                                sure.remove(&number);
                                unsure.insert(number);
                            }
                            unsure.insert(number);
                        }
                    }
                }
            }
        }
        assert!(seeds < 50 || failed > 100 && cuts > 100 && acknowledged > 1_000, "{failed} {cuts} {acknowledged}");
    }
}
