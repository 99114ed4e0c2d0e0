//! The file of a disk tier, over redb.
//!
//! Four tables: copies by their numbers, what is said of each (read whole when the file is opened, so that copies need not be), groups
//! with their versions, and the file's format, the last moment and the groups' counter. A commit is one transaction of
//! redb's. A copy has its key before its envelope, which has a checksum: what lies at a wrong number is seen.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition,
    TableError, WriteTransaction,
};

use super::DiskSetupError;
use crate::tiered::envelope::Envelope;
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
    fn create(&self) -> Result<Database, DatabaseError> {
        match self {
            Place::Path(path) => builder().create(path),
            #[cfg(feature = "testkit")]
            Place::Medium(medium) => medium.open(builder()),
        }
    }

    /// The bytes that it begins with.
    fn begins(&self) -> Vec<u8> {
        match self {
            Place::Path(path) => std::fs::read(path).unwrap_or_default(),
            #[cfg(feature = "testkit")]
            Place::Medium(_) => MAGIC.to_vec(),
        }
    }

    /// Puts what is there out of the way.
    fn set_aside(&self, aside: &Path) -> std::io::Result<()> {
        match self {
            Place::Path(path) => std::fs::rename(path, aside),
            #[cfg(feature = "testkit")]
            Place::Medium(medium) => medium.set_aside(),
        }
    }
}

pub(super) struct File {
    place: Place,
    /// For messages.
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    /// None after an error: redb takes no more commits then until it is opened again.
    database: Option<Arc<Database>>,
    /// It was opened again, and has not been told what memory knows.
    unswept: bool,
}

impl Open {
    /// After an error. After a panic the engine answers nothing any more, and may panic once more when it is dropped.
    fn close(&mut self, in_hand: Arc<Database>) {
        let broken = (self.database.take(), in_hand);
        let _ = caught(|| drop(broken));
    }
}

impl File {
    /// Opens the file, or makes it, or sets it aside and makes another; with what is in it. `path` is for messages.
    pub(super) fn open(place: Place, path: &Path) -> Result<(File, Contents), DiskSetupError> {
        let (contents, database) = open_or_begin_anew(&place, path)?;
        let open = Open { database: Some(Arc::new(database)), unswept: false };
        Ok((File { place, path: path.to_path_buf(), open: Mutex::new(open) }, contents))
    }

    fn database(&self, open: &mut Open) -> Result<Arc<Database>, String> {
        if let Some(database) = &open.database {
            return Ok(database.clone());
        }
        let (_, database) = open_or_begin_anew(&self.place, &self.path).map_err(|error| error.to_string())?;
        let database = Arc::new(database);
        (open.database, open.unswept) = (Some(database.clone()), true);
        Ok(database)
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
                self.open.lock().close(database);
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
        let mut open = self.open.lock();
        let database = self.database(&mut open)?;
        let known = open.unswept.then(known);
        let written = caught(|| write(&database, changes, moment, sync, known).map_err(|error| error.to_string()));
        match written.flatten() {
            Ok(()) => {
                open.unswept = false;
                Ok(())
            }
            Err(error) => {
                open.close(database);
                Err(error)
            }
        }
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

/// Opens what is there, or makes it, or sets it aside and makes another; with what is in it.
fn open_or_begin_anew(place: &Place, path: &Path) -> Result<(Contents, Database), DiskSetupError> {
    let opened = caught(|| open_database(place, path).and_then(|database| Ok((contents(&database, path)?, database))));
    let what = match opened.unwrap_or_else(|panic| Err(Unopened::Damaged(panic))) {
        Ok(opened) => return Ok(opened),
        Err(Unopened::Refused(error)) => return Err(error),
        Err(Unopened::Damaged(what)) => what,
    };
    let aside = path.with_added_extension("damaged");
    tracing::warn!(path = %path.display(), aside = %aside.display(), what, "a disk tier is damaged, and begins anew");
    place.set_aside(&aside).map_err(|error| io(path, &error))?;
    let again = |unopened| match unopened {
        Unopened::Refused(error) => error,
        Unopened::Damaged(what) => DiskSetupError::Io { path: path.to_path_buf(), reason: what },
    };
    let database = open_database(place, path).map_err(again)?;
    Ok((contents(&database, path).map_err(again)?, database))
}

/// Why a file was not opened.
enum Unopened {
    Refused(DiskSetupError),
    Damaged(String),
}

fn io(path: &Path, error: &dyn std::fmt::Display) -> DiskSetupError {
    DiskSetupError::Io { path: path.to_path_buf(), reason: error.to_string() }
}

/// Whether an error says what the file is like, and not that the disk fails: one that is too short, too, for a power cut may
/// leave it so.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(PAGES);
    builder
}

/// How redb's files begin.
const MAGIC: &[u8] = b"redb";

fn open_database(place: &Place, path: &Path) -> Result<Database, Unopened> {
    let error = match place.create() {
        Ok(database) => return Ok(database),
        Err(error) => error,
    };
    Err(match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            Unopened::Refused(DiskSetupError::InUse(path.to_path_buf()))
        }
        DatabaseError::Storage(StorageError::Io(error)) if !is_damage(&error) => Unopened::Refused(io(path, &error)),
        other => {
            // Somebody else's file is left alone.
            if place.begins().starts_with(MAGIC) {
                Unopened::Damaged(other.to_string())
            } else {
                Unopened::Refused(DiskSetupError::NotADiskTier(path.to_path_buf()))
            }
        }
    })
}

fn contents(database: &Database, path: &Path) -> Result<Contents, Unopened> {
    let failed = |error: redb::Error| match error {
        redb::Error::Io(error) if !is_damage(&error) => Unopened::Refused(io(path, &error)),
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
}
