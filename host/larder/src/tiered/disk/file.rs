//! The file of a disk tier, over redb.
//!
//! Four tables: copies by their numbers, what is said of each (read whole when the file is opened, so that copies need not be), groups
//! with their versions, and the file's format, the last moment and the groups' counter. A commit is one transaction of
//! redb's. A copy has its key before its envelope, which has a checksum: what lies at a wrong number is seen.
//!
//! Who only looks opens what is there under an [`Overlay`]: whatever opening would do to the file is done in memory.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, StorageError, Table,
    TableDefinition, TableError, WriteTransaction,
};

use super::DiskSetupError;
use super::overlay::Overlay;
use super::watched::{Doubt, Watched};
use crate::tiered::envelope::Envelope;
use crate::tiered::files::{explained, is_unfinished, sync_directory_of};
use crate::tiered::groups::Version;
use crate::tiered::panics::caught;
use crate::tiered::{Group, TierError};

const COPIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("larder-disk-copies");
/// Of each copy: when it ends, when its freshness was ended, the bytes that it counts for, its key.
const DESCRIBED: TableDefinition<'_, u64, (u64, u64, u32, &str)> = TableDefinition::new("larder-disk-described");
/// Hard, soft, and when that was, by `p` and a prefix or `t` and a tag.
const GROUPS: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("larder-disk-groups");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("larder-disk");

const FORMAT: u64 = 1;

/// What is counted one by one, and moments in milliseconds, do not come so far. Beyond it there would be no next.
const MOST: u64 = 1 << 62;

/// The pages that redb keeps in memory.
const PAGES: usize = 16 << 20;

/// What is said of a copy.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) key: Arc<str>,
    pub(super) ends_at: u64,
    pub(super) ended_at: u64,
    pub(super) bytes: u32,
}

/// What a commit does.
pub(super) enum Change {
    Put(u64, Described, Arc<[u8]>),
    /// Its freshness was ended then.
    End(u64, u64),
    Remove(u64),
    /// What is said of groups; `instead` of all that was.
    Groups {
        said: Vec<(Group, Version)>,
        counter: u64,
        instead: bool,
    },
}

/// What memory knows, for a file that was opened again: it may have copies that memory does not, and not know of what was
/// invalidated last. Copies that are kept from then on have stamps that say they came after that.
pub(super) struct Known {
    pub(super) live: HashSet<u64>,
    pub(super) groups: Vec<(Group, Version)>,
    pub(super) counter: u64,
}

/// What a file has.
pub(super) struct Contents {
    pub(super) rows: Vec<(u64, Described)>,
    pub(super) groups: Vec<(Group, Version)>,
    pub(super) counter: u64,
    /// The last moment that it was told.
    pub(super) moment: u64,
}

fn name_of(group: &Group) -> String {
    match group {
        Group::Prefix(prefix) => format!("p{prefix}"),
        Group::Tag(tag) => format!("t{tag}"),
    }
}

fn group_named(name: &str) -> Option<Group> {
    match name.split_at_checked(1)? {
        ("p", prefix) => Some(Group::Prefix(prefix.into())),
        ("t", tag) => Some(Group::Tag(tag.into())),
        _ => None,
    }
}

/// A copy as it is written.
pub(super) fn encode(key: &str, envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + key.len());
    bytes.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(&envelope.encode());
    bytes
}

/// The envelope of this key.
pub(super) fn decode(key: &str, bytes: &[u8]) -> Result<Envelope, String> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("it is too short")?;
    let length = u32::from_be_bytes(*length) as usize;
    let (name, envelope) = rest.split_at_checked(length).ok_or("its key is longer than the whole")?;
    if name != key.as_bytes() {
        return Err("it is another key's".into());
    }
    Envelope::decode(envelope.to_vec()).map_err(|error| error.to_string())
}

/// Where the file is: on a disk; or, in tests of what a disk may do, wherever they say.
pub(super) enum Place {
    Path(PathBuf),
    #[cfg(feature = "testkit")]
    Medium(Arc<dyn super::Medium>),
}

impl Place {
    /// What is there, or nothing yet.
    fn bytes(&self) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        match self {
            Place::Path(path) => {
                let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                Ok(Box::new(FileBackend::new(file)?))
            }
            #[cfg(feature = "testkit")]
            Place::Medium(medium) => medium.bytes(),
        }
    }

    /// Whether redb has made it, or begun to.
    fn is_redb_s(&self) -> bool {
        match self {
            Place::Path(path) => is_redb_s(path).unwrap_or(false),
            #[cfg(feature = "testkit")]
            Place::Medium(_) => true,
        }
    }

    /// Puts what is there out of the way, for somebody to look at. What returns is so after a power cut, too.
    fn set_aside(&self, aside: &Path) -> io::Result<()> {
        match self {
            Place::Path(path) => leave(path, |path| fs::rename(path, aside)),
            #[cfg(feature = "testkit")]
            Place::Medium(medium) => medium.remove(),
        }
    }

    /// Removes what is there, as [`Self::set_aside`].
    fn remove(&self) -> io::Result<()> {
        match self {
            Place::Path(path) => leave(path, |path| fs::remove_file(path)),
            #[cfg(feature = "testkit")]
            Place::Medium(medium) => medium.remove(),
        }
    }
}

/// Takes a file out of its directory, if it is there.
fn leave(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let path = &led_to(path);
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_directory_of(path),
    }
}

/// How redb's files begin.
const MAGIC: &[u8] = b"redb";

/// See [`Place::is_redb_s`].
fn is_redb_s(path: &Path) -> io::Result<bool> {
    let (mut file, mut begins) = (fs::File::open(path)?, Vec::new());
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut begins)?;
    file.rewind()?;
    Ok(begins == MAGIC || is_unfinished(file)?)
}

/// Where a link leads.
fn led_to(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// What the file is worth to whoever opens it next.
#[derive(Debug)]
enum Trust {
    /// It was left in order; or what a crash has left is found by redb and repaired.
    Whole,
    /// Something has failed at it: every page is checked.
    Unsure,
    /// It is damaged, and set aside.
    Damaged(String),
}

pub(super) struct File {
    place: Place,
    /// For messages.
    path: PathBuf,
    /// Where it is there the file is removed, for no check would tell.
    doubt: Doubt,
    open: Mutex<Open>,
    /// Who commits. Reads go on meanwhile: they would wait for the disk otherwise.
    committing: Mutex<()>,
}

struct Open {
    /// None after an error: redb takes no more commits then until it is opened again.
    database: Option<Arc<Database>>,
    /// It was opened again, and has not been told what memory knows.
    unswept: bool,
    trust: Trust,
}

impl File {
    /// Opens the file, or makes it, or begins anew where it is worth nothing; with what is in it. `path` is for messages.
    pub(super) fn open(place: Place, path: &Path) -> Result<(File, Contents), DiskSetupError> {
        let open = Mutex::new(Open { database: None, unswept: false, trust: Trust::Whole });
        let (path, doubt) = (path.to_path_buf(), Doubt::default());
        let file = File { place, path, doubt, open, committing: Mutex::new(()) };
        let mut open = file.open.lock();
        let (contents, database) = file.open_or_begin_anew(&mut open.trust)?;
        open.database = Some(Arc::new(database));
        drop(open);
        Ok((file, contents))
    }

    fn database(&self, open: &mut Open) -> Result<Arc<Database>, String> {
        if let Some(database) = &open.database {
            return Ok(database.clone());
        }
        let (_, database) = self.open_or_begin_anew(&mut open.trust).map_err(|error| error.to_string())?;
        let database = Arc::new(database);
        (open.database, open.unswept) = (Some(database.clone()), true);
        Ok(database)
    }

    /// Opens what is there, or makes it, or makes another where it is worth nothing; with what is in it.
    fn open_or_begin_anew(&self, trust: &mut Trust) -> Result<(Contents, Database), DiskSetupError> {
        self.begin_anew_if_need_be(trust)?;
        match self.open_database(trust) {
            Err(Unopened::Damaged(what)) => *trust = Trust::Damaged(what),
            Err(Unopened::Refused(error)) if !self.doubt.is_there() => return Err(error),
            Err(Unopened::Refused(_)) => {}
            Ok(opened) => return Ok(opened),
        }
        self.begin_anew_if_need_be(trust)?;
        self.open_database(trust).map_err(|unopened| {
            let error = match unopened {
                Unopened::Refused(error) => error,
                Unopened::Damaged(what) => io_error(&self.path, &what),
            };
            // What was just begun may be in doubt, too.
            self.begin_anew_if_need_be(trust).err().unwrap_or(error)
        })
    }

    /// Puts a file out of the way that is worth nothing.
    fn begin_anew_if_need_be(&self, trust: &mut Trust) -> Result<(), DiskSetupError> {
        let path = self.path.display();
        let gone = match trust {
            _ if self.doubt.is_there() => {
                tracing::warn!(%path, "a sync of a disk tier has failed: nobody knows what the disk has, and it begins anew");
                self.place.remove()
            }
            Trust::Whole | Trust::Unsure => return Ok(()),
            Trust::Damaged(what) => {
                let aside = led_to(&self.path).with_added_extension("damaged");
                tracing::warn!(%path, aside = %aside.display(), what, "a disk tier is damaged, and begins anew");
                self.place.set_aside(&aside)
            }
        };
        gone.map_err(|error| io_error(&self.path, &error))?;
        self.doubt.has_ended();
        *trust = Trust::Unsure;
        Ok(())
    }

    fn open_database(&self, trust: &Trust) -> Result<(Contents, Database), Unopened> {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(PAGES).set_check_integrity_on_open(!matches!(trust, Trust::Whole));
        let open = || {
            let watched = |bytes| builder.create_with_backend(Watched { bytes, doubt: self.doubt.clone() });
            let not_opened = |error| not_opened(&self.path, error, || self.place.is_redb_s());
            let database = self.place.bytes().and_then(watched).map_err(not_opened)?;
            Ok((contents(&database, &self.path)?, database))
        };
        caught(open).unwrap_or_else(|panic| Err(Unopened::Damaged(panic)))
    }

    /// After an error, or at the end. After a panic the engine answers nothing any more, and may panic once more when it is
    /// dropped.
    fn close(&self, open: &mut Open, in_hand: Arc<Database>, failure: &Failure) {
        if open.database.as_ref().is_some_and(|database| !Arc::ptr_eq(database, &in_hand)) {
            // It was opened again meanwhile.
            return;
        }
        open.database = None;
        // It is synced when it is dropped.
        let _ = caught(|| drop(in_hand));
        open.trust = match failure {
            // It was checked when it was opened, so no check will find why.
            Failure::Panic(what) if open.unswept => Trust::Damaged(what.clone()),
            _ => Trust::Unsure,
        };
        if let Err(error) = self.begin_anew_if_need_be(&mut open.trust) {
            // It is tried again before it is opened.
            tracing::warn!(%error, "a disk tier cannot begin anew");
        }
    }

    /// The copies with these numbers.
    pub(super) fn read(&self, numbers: &[u64]) -> Result<Vec<Option<Vec<u8>>>, TierError> {
        let database = self.database(&mut self.open.lock()).map_err(TierError::Unavailable)?;
        let read = || -> Result<_, redb::Error> {
            let copies = database.begin_read()?.open_table(COPIES)?;
            let read_one = |number: &u64| Ok(copies.get(number)?.map(|bytes| bytes.value().to_vec()));
            numbers.iter().map(read_one).collect()
        };
        match caught(read) {
            Ok(read) => read.map_err(|error| TierError::Unavailable(error.to_string())),
            Err(panic) => {
                self.close(&mut self.open.lock(), database, &Failure::Panic(panic.clone()));
                Err(TierError::Unavailable(panic))
            }
        }
    }

    /// Carries changes out, all or none. `known` is asked where the file had to be opened again.
    pub(super) fn commit(
        &self,
        changes: &[Change],
        moment: u64,
        sync: bool,
        known: &dyn Fn() -> Known,
    ) -> Result<(), String> {
        let _committing = self.committing.lock();
        let (database, known) = {
            let mut open = self.open.lock();
            (self.database(&mut open)?, open.unswept.then(known))
        };
        let written = caught(|| write(&database, changes, moment, sync, known));
        let mut open = self.open.lock();
        let failure = match written {
            Ok(Ok(())) => {
                // Unless a read has met something that had it closed.
                open.unswept &= !open.database.as_ref().is_some_and(|now| Arc::ptr_eq(now, &database));
                return Ok(());
            }
            Ok(Err(error)) => Failure::Error(error.to_string()),
            Err(panic) => Failure::Panic(panic),
        };
        self.close(&mut open, database, &failure);
        Err(failure.into_text())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(database) = open.database.take() {
            self.close(&mut open, database, &Failure::Error("as it was closed".into()));
        }
    }
}

/// What is in a file, which is left as it is, whatever opening it would do to it. A service may open it meanwhile: then that is
/// the answer.
pub(super) fn look(path: &Path) -> Result<Contents, DiskSetupError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => DiskSetupError::NotThere(path.to_path_buf()),
        _ => io_error(path, &error),
    };
    let state = || -> io::Result<_> {
        let file = fs::File::open(path)?;
        let about = file.metadata()?;
        Ok((is_in_use(file), about.len(), about.modified()?))
    };
    let before = state().map_err(failed)?;
    if before.0 {
        return Err(DiskSetupError::InUse(path.to_path_buf()));
    }
    let looked = look_at(path);
    if state().map_err(failed)? != before {
        return Err(DiskSetupError::InUse(path.to_path_buf()));
    }
    looked.map_err(|unopened| match unopened {
        Unopened::Refused(error) => error,
        Unopened::Damaged(what) => DiskSetupError::Damaged { path: path.to_path_buf(), what },
    })
}

/// Whether a process has it open as a database.
fn is_in_use(file: fs::File) -> bool {
    let asked = FileBackend::new(file).map(|file| file.query_lock_range(Bound::Unbounded, Bound::Unbounded));
    // Where there are no locks nobody knows.
    matches!(asked, Ok(Ok(true)))
}

fn look_at(path: &Path) -> Result<Contents, Unopened> {
    let failed = |error: io::Error| Unopened::Refused(io_error(path, &explained(path, error)));
    let file = || fs::File::open(path).map_err(failed);
    if is_unfinished(file()?).map_err(failed)? {
        return Err(Unopened::Refused(DiskSetupError::Unfinished(path.to_path_buf())));
    }
    let overlay = Overlay::of(file()?).map_err(failed)?;
    let open = || {
        let database = redb::Builder::new().set_cache_size(PAGES).create_with_backend(overlay);
        let not_opened = |error| not_opened(path, error, || is_redb_s(path).unwrap_or(false));
        contents(&database.map_err(not_opened)?, path)
    };
    caught(open).unwrap_or_else(|panic| Err(Unopened::Damaged(panic)))
}

/// How a call of the engine has ended.
enum Failure {
    Error(String),
    Panic(String),
}

impl Failure {
    fn into_text(self) -> String {
        let (Failure::Error(text) | Failure::Panic(text)) = self;
        text
    }
}

fn write(
    database: &Database,
    changes: &[Change],
    moment: u64,
    sync: bool,
    known: Option<Known>,
) -> Result<(), redb::Error> {
    let mut writing = database.begin_write()?;
    if !sync && known.is_none() {
        writing.set_durability(Durability::None)?;
    }
    {
        let mut copies = writing.open_table(COPIES)?;
        let mut described = writing.open_table(DESCRIBED)?;
        let mut about = writing.open_table(ABOUT)?;
        about.insert("moment", moment)?;
        if let Some(Known { live, groups, counter }) = known {
            let unknown = |number: &u64| !live.contains(number);
            let numbers: Result<Vec<_>, StorageError> =
                described.iter()?.map(|row| row.map(|(number, _)| number.value())).collect();
            for number in numbers?.into_iter().filter(unknown) {
                copies.remove(number)?;
                described.remove(number)?;
            }
            say_of_groups(&writing, &mut about, &groups, counter, true)?;
        }
        for change in changes {
            match change {
                Change::Put(number, Described { key, ends_at, ended_at, bytes: weight }, bytes) => {
                    copies.insert(number, &**bytes)?;
                    described.insert(number, (*ends_at, *ended_at, *weight, &**key))?;
                }
                Change::End(number, at) => {
                    let found = described.get(number)?.map(|row| {
                        let (ends_at, _, weight, key) = row.value();
                        (ends_at, weight, key.to_string())
                    });
                    if let Some((ends_at, weight, key)) = found {
                        described.insert(number, (ends_at, *at, weight, &*key))?;
                    }
                }
                Change::Remove(number) => {
                    copies.remove(number)?;
                    described.remove(number)?;
                }
                Change::Groups { said, counter, instead } => {
                    say_of_groups(&writing, &mut about, said, *counter, *instead)?;
                }
            }
        }
    }
    writing.commit()?;
    Ok(())
}

/// `instead`: of all that was said.
fn say_of_groups(
    writing: &WriteTransaction,
    about: &mut Table<'_, &str, u64>,
    said: &[(Group, Version)],
    counter: u64,
    instead: bool,
) -> Result<(), redb::Error> {
    if instead {
        writing.delete_table(GROUPS)?;
    }
    let mut groups = writing.open_table(GROUPS)?;
    for (group, Version { hard, soft, soft_at }) in said {
        groups.insert(&*name_of(group), (*hard, *soft, *soft_at))?;
    }
    about.insert("counter", counter)?;
    Ok(())
}

/// Why a file was not opened.
enum Unopened {
    Refused(DiskSetupError),
    Damaged(String),
}

fn not_opened(path: &Path, error: DatabaseError, is_redb_s: impl FnOnce() -> bool) -> Unopened {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            Unopened::Refused(DiskSetupError::InUse(path.to_path_buf()))
        }
        DatabaseError::Storage(StorageError::Io(error)) if !is_damage(&error) => {
            Unopened::Refused(io_error(path, &explained(path, error)))
        }
        other if is_redb_s() => Unopened::Damaged(other.to_string()),
        // Somebody else's file is left alone.
        _ => Unopened::Refused(DiskSetupError::NotADiskTier(path.to_path_buf())),
    }
}

fn io_error(path: &Path, reason: &dyn std::fmt::Display) -> DiskSetupError {
    DiskSetupError::Io { path: path.to_path_buf(), reason: reason.to_string() }
}

/// Whether an error says what the file is like, and not that the disk fails: one that is too short, too, for a power cut may
/// leave it so.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn contents(database: &Database, path: &Path) -> Result<Contents, Unopened> {
    let failed = |error: redb::Error| match error {
        redb::Error::Io(error) if !is_damage(&error) => Unopened::Refused(io_error(path, &error)),
        other => Unopened::Damaged(other.to_string()),
    };
    let reading = database.begin_read().map_err(|error| failed(error.into()))?;
    let about = match reading.open_table(ABOUT) {
        Ok(about) => about,
        Err(TableError::TableDoesNotExist(_)) => {
            let tables = reading.list_tables().map_err(|error| failed(error.into()))?.count();
            return match tables {
                0 => make(database).map_err(failed),
                _ => Err(Unopened::Refused(DiskSetupError::NotADiskTier(path.to_path_buf()))),
            };
        }
        Err(error) => return Err(failed(error.into())),
    };
    let read = || -> Result<Contents, redb::Error> {
        let say = |what: &str| Ok::<_, redb::Error>(about.get(what)?.map_or(0, |value| value.value()));
        let mut contents =
            Contents { rows: Vec::new(), groups: Vec::new(), counter: say("counter")?, moment: say("moment")? };
        for row in reading.open_table(DESCRIBED)?.iter()? {
            let (number, row) = row?;
            let (ends_at, ended_at, bytes, key) = row.value();
            contents.rows.push((number.value(), Described { key: key.into(), ends_at, ended_at, bytes }));
        }
        for group in reading.open_table(GROUPS)?.iter()? {
            let (name, versions) = group?;
            let (hard, soft, soft_at) = versions.value();
            let version = Version { hard, soft, soft_at };
            contents.groups.extend(group_named(name.value()).map(|group| (group, version)));
        }
        Ok(contents)
    };
    let format = about.get("format").map_err(|error| failed(error.into()))?.map_or(0, |value| value.value());
    if format > FORMAT {
        let path = path.to_path_buf();
        return Err(Unopened::Refused(DiskSetupError::Newer { path, found: format, known: FORMAT }));
    }
    let contents = read().map_err(failed)?;
    let versions = contents.groups.iter().flat_map(|(_, version)| [version.hard, version.soft]);
    let numbers = contents.rows.iter().map(|(number, _)| *number).chain(versions);
    if let Some(beyond) = numbers.chain([contents.counter, contents.moment]).find(|number| *number > MOST) {
        return Err(Unopened::Damaged(format!("it has counted to {beyond}, where none can come")));
    }
    Ok(contents)
}

fn make(database: &Database) -> Result<Contents, redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(ABOUT)?.insert("format", FORMAT)?;
    writing.open_table(COPIES)?;
    writing.open_table(DESCRIBED)?;
    writing.open_table(GROUPS)?;
    writing.commit()?;
    Ok(Contents { rows: Vec::new(), groups: Vec::new(), counter: 0, moment: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// redb takes the names of tables for text, and panics where they are not.
    #[test]
    fn a_file_at_which_the_engine_panics_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        drop(File::open(Place::Path(path.clone()), &path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let name = b"larder-disk-copies";
        let places: Vec<_> = (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(name)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at + 13] ^= 0xff);
        std::fs::write(&path, &bytes).unwrap();
        let (_, contents) = File::open(Place::Path(path.clone()), &path).unwrap();
        assert!(contents.rows.is_empty());
        assert_eq!(std::fs::read(path.with_added_extension("damaged")).unwrap(), bytes);
    }

    /// A backend that remembers each state it was in.
    #[derive(Debug, Default)]
    struct Remembers(redb::backends::InMemoryBackend, Arc<Mutex<Vec<Vec<u8>>>>);

    impl Remembers {
        fn remember(&self) -> io::Result<()> {
            let mut bytes = vec![0; self.0.len()? as usize];
            self.0.read(0, &mut bytes)?;
            self.1.lock().push(bytes);
            Ok(())
        }
    }

    impl StorageBackend for Remembers {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)?;
            self.remember()
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)?;
            self.remember()
        }
    }

    /// Such a file once had to be removed by hand.
    #[test]
    fn a_process_may_be_killed_at_any_moment_of_its_creation() {
        let states = Arc::default();
        let database =
            Database::builder().create_with_backend(Remembers(Default::default(), Arc::clone(&states))).unwrap();
        make(&database).unwrap();
        drop(database);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        let mut unfinished = 0;
        let states = states.lock();
        for (number, state) in states.iter().enumerate() {
            unfinished += u64::from(!state.starts_with(MAGIC));
            std::fs::write(&path, state).unwrap();
            match look(&path) {
                Ok(contents) => assert!(contents.rows.is_empty() && state.starts_with(MAGIC)),
                Err(DiskSetupError::Unfinished(_)) => assert!(!state.starts_with(MAGIC)),
                Err(error) => panic!("state {number}: {error}"),
            }
            assert!(std::fs::read(&path).unwrap() == *state);
            let opened = File::open(Place::Path(path.clone()), &path);
            assert!(opened.is_ok_and(|(_, contents)| contents.rows.is_empty()), "state {number} of {}", states.len());
        }
        assert!(unfinished > 1, "{unfinished} of {}", states.len());
        // Somebody else's, that begins with zeroes too.
        let others = [&[0; 2000][..], b"data", &[0; 2000]].concat();
        std::fs::write(&path, &others).unwrap();
        assert!(matches!(File::open(Place::Path(path.clone()), &path).map(drop), Err(DiskSetupError::NotADiskTier(_))));
        assert_eq!(std::fs::read(&path).unwrap(), others);
    }

    /// The disk that a link leads to may be the one with room.
    #[cfg(unix)]
    #[test]
    fn where_a_link_leads_a_damaged_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let (link, path) = (directory.path().join("link"), directory.path().join("elsewhere"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let open = || File::open(Place::Path(link.clone()), &link).unwrap();
        drop(open());
        let damaged = std::fs::read(&path).unwrap()[..1000].to_vec();
        std::fs::write(&path, &damaged).unwrap();
        drop(open());
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(std::fs::read(&path).unwrap().len() > 1000);
        assert_eq!(std::fs::read(path.with_added_extension("damaged")).unwrap(), damaged);
    }

    /// Whatever there is, nobody has touched it afterwards.
    #[test]
    fn a_look_leaves_all_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("cache"), directory.path().join("other"));
        let look_at = |bytes: &[u8]| {
            std::fs::write(&other, bytes).unwrap();
            let looked = look(&other);
            assert!(std::fs::read(&other).unwrap() == bytes, "it was changed");
            assert!(!other.with_added_extension("damaged").exists());
            looked.map(|contents| contents.rows.into_iter().map(|(number, _)| number).collect::<Vec<_>>())
        };
        assert!(matches!(look(&path), Err(DiskSetupError::NotThere(_))));
        assert!(!path.exists());

        let (file, _) = File::open(Place::Path(path.clone()), &path).unwrap();
        assert!(matches!(look(&path), Err(DiskSetupError::InUse(_))));
        let described = Described { key: "k".into(), ends_at: 1, ended_at: 1, bytes: 1 };
        let known = || unreachable!("nothing has failed");
        for number in 1..=3 {
            let put = Change::Put(number, described.clone(), Arc::from([7; 100]));
            file.commit(&[put], number, number < 3, &known).unwrap();
        }
        // As a process leaves it that is killed now: to open it repairs it. The last commit was not synced.
        let killed = std::fs::read(&path).unwrap();
        drop(file);
        let closed = std::fs::read(&path).unwrap();
        assert_ne!(killed, closed);
        assert_eq!(look_at(&killed).unwrap(), [1, 2]);
        assert_eq!(look_at(&closed).unwrap(), [1, 2, 3]);

        assert!(matches!(look_at(&closed[..closed.len() / 2]), Err(DiskSetupError::Damaged { .. })));
        // What redb panics at.
        let mut damaged = closed.clone();
        let name = b"larder-disk-copies";
        let places = (0..closed.len() - name.len()).filter(|at| closed[*at..].starts_with(name));
        places.for_each(|at| damaged[at + 13] ^= 0xff);
        assert!(matches!(look_at(&damaged), Err(DiskSetupError::Damaged { .. })));
        assert!(matches!(look_at(b"somebody's letters"), Err(DiskSetupError::NotADiskTier(_))));
        assert!(matches!(look_at(&[0; 4096]), Err(DiskSetupError::Unfinished(_))));
        assert!(matches!(look_at(&[]), Err(DiskSetupError::Unfinished(_))));
        // Of another programme that uses redb.
        std::fs::remove_file(&other).unwrap();
        let database = Database::create(&other).unwrap();
        let writing = database.begin_write().unwrap();
        writing.open_table(TableDefinition::<u64, u64>::new("letters")).unwrap();
        writing.commit().unwrap();
        drop(database);
        assert!(matches!(look_at(&std::fs::read(&other).unwrap()), Err(DiskSetupError::NotADiskTier(_))));
    }

    type Damage = Box<dyn Fn(&redb::WriteTransaction)>;

    /// Such a file once ended the process that opened it: there is no moment after its last.
    #[test]
    fn a_file_that_has_counted_to_the_end_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        let most = |name: &'static str| {
            move |writing: &redb::WriteTransaction| {
                writing.open_table(ABOUT).unwrap().insert(name, u64::MAX).unwrap();
            }
        };
        let damage: [Damage; 4] = [
            Box::new(most("moment")),
            Box::new(most("counter")),
            Box::new(|writing| {
                writing.open_table(GROUPS).unwrap().insert("tred", (u64::MAX, 0, 0)).unwrap();
            }),
            Box::new(|writing| {
                writing.open_table(DESCRIBED).unwrap().insert(u64::MAX, (1, 1, 1, "k")).unwrap();
            }),
        ];
        for damage in damage {
            drop(File::open(Place::Path(path.clone()), &path).unwrap());
            let database = Database::open(&path).unwrap();
            let writing = database.begin_write().unwrap();
            damage(&writing);
            writing.commit().unwrap();
            drop(database);
            let (file, contents) = File::open(Place::Path(path.clone()), &path).unwrap();
            assert!(contents.rows.is_empty() && contents.groups.is_empty());
            assert_eq!((contents.counter, contents.moment), (0, 0));
            drop(file);
            std::fs::remove_file(path.with_added_extension("damaged")).expect("it was set aside");
        }
    }

    #[cfg(feature = "testkit")]
    mod of_a_disk_that_fails {
        use std::sync::atomic::Ordering::SeqCst;

        use super::*;
        use crate::tiered::testkit::platter::Platter;

        const VALUE: [u8; 16] = [7; 16];

        fn fails(_: &[u8]) -> io::Result<()> {
            Err(io::Error::other("no"))
        }

        /// As the engine does that has read nonsense: where a value is written.
        fn panics(data: &[u8]) -> io::Result<()> {
            assert!(!data.windows(VALUE.len()).any(|bytes| bytes == VALUE), "nonsense");
            Ok(())
        }

        struct World {
            platter: Arc<Platter>,
            file: Option<File>,
        }

        impl World {
            /// Of one copy, with the number 1, in a file that was closed in order.
            fn new() -> World {
                let mut world = World { platter: Platter::new(7), file: None };
                assert!(world.open().rows.is_empty());
                world.put(1).unwrap();
                assert_eq!(world.open().rows.len(), 1);
                world
            }

            fn removed(&self) -> u64 {
                self.platter.removed.load(SeqCst)
            }

            fn open(&mut self) -> Contents {
                self.file = None;
                let (file, contents) = self.try_open().unwrap();
                self.file = Some(file);
                contents
            }

            fn try_open(&self) -> Result<(File, Contents), DiskSetupError> {
                File::open(Place::Medium(Arc::new(self.platter.attach())), Path::new("a disk"))
            }

            fn put(&self, number: u64) -> Result<(), String> {
                let described = Described { key: "k".into(), ends_at: 1, ended_at: 1, bytes: 1 };
                let known = || Known {
                    live: (1..number).collect(),
                    groups: vec![(Group::Tag("red".into()), Version { hard: 3, ..Version::default() })],
                    counter: 3,
                };
                let changes = [Change::Put(number, described, Arc::from(VALUE))];
                self.file.as_ref().unwrap().commit(&changes, number, true, &known)
            }
        }

        #[test]
        fn after_a_sync_that_failed_it_begins_anew_with_what_memory_knows() {
            let mut world = World::new();
            world.platter.fail_syncs(true);
            for number in 2..5 {
                world.put(number).unwrap_err();
            }
            assert!(world.removed() >= 1, "it is gone before anybody can take what it shows for good");
            world.platter.fail_syncs(false);
            world.put(5).unwrap();
            let contents = world.open();
            let numbers: Vec<_> = contents.rows.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, [5]);
            assert_eq!((contents.groups.len(), contents.counter), (1, 3));
        }

        #[test]
        fn nor_is_it_left_to_the_next_process_where_the_last_sync_fails() {
            let mut world = World::new();
            world.platter.fail_syncs(true);
            world.file = None;
            assert_eq!(world.removed(), 1);
            // Nor where the first one does. The file is made anew and then fails, too.
            assert!(matches!(world.try_open().map(drop), Err(DiskSetupError::Io { .. })));
            assert!(world.removed() > 1);
            world.platter.fail_syncs(false);
            assert!(world.open().rows.is_empty());
        }

        #[test]
        fn after_a_write_that_failed_it_is_what_it_was() {
            let mut world = World::new();
            world.platter.before_writes(Some(fails));
            world.put(2).unwrap_err();
            world.put(2).unwrap_err();
            world.platter.before_writes(None);
            world.put(3).unwrap();
            let mut numbers: Vec<_> = world.open().rows.iter().map(|(number, _)| *number).collect();
            numbers.sort_unstable();
            assert_eq!((numbers, world.removed()), (vec![1, 3], 0));
        }

        /// Once it may be the engine's mishap. Where it does so again at a file that has just been checked, it would for ever.
        #[test]
        fn where_the_engine_panics_again_and_again_it_begins_anew() {
            let mut world = World::new();
            world.platter.before_writes(Some(panics));
            assert!(world.put(2).unwrap_err().contains("nonsense"));
            assert_eq!(world.removed(), 0);
            world.platter.before_writes(None);
            world.put(3).unwrap();
            world.platter.before_writes(Some(panics));
            for number in 4..6 {
                world.put(number).unwrap_err();
            }
            assert_eq!(world.removed(), 1);
            world.platter.before_writes(None);
            world.put(6).unwrap();
            let contents = world.open();
            assert_eq!(contents.rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [6]);
        }
    }
}
