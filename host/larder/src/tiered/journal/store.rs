//! Where a journal keeps its writes, as a trait: the file is one ([`Journal::open`](super::Journal::open)), and a simulation
//! that crashes at will is another.

use std::error::Error;
use std::sync::Arc;

use crate::tiered::BoxFuture;

/// One write, as a journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The keyspace.
    pub keyspace: Arc<str>,
    /// The text of the key.
    pub key: Arc<str>,
    /// The value, encoded; `None`: the key is removed.
    pub value: Option<Arc<[u8]>>,
    /// By which the source can be asked whether the value is still right.
    pub validator: Option<Arc<str>>,
    /// The tags that copies of it carry.
    pub tags: Arc<[Arc<str>]>,
    /// For how many milliseconds a copy is fresh, if the writer said so.
    pub fresh_ms: Option<u64>,
    /// How long it may be served stale, if the writer said so.
    pub stale_ms: Option<u64>,
    /// How long it may be served where the source fails, if the writer said so.
    pub rescue_ms: Option<u64>,
    /// When it was logged, in milliseconds since 1970. For people.
    pub logged_at: u64,
    /// It is a dead letter: the source will never take it, and said why.
    pub dead: Option<Arc<str>>,
    /// The source has it, so it is not saved again, and its value is left out; a far tier is still to drop what it has of the
    /// key. Without a key: of all keys of the keyspace.
    pub saved: bool,
}

impl Record {
    /// What is left of a write that the source has, while a far tier does not know of it; `key`: of which key.
    pub(super) fn debt(&self, key: Arc<str>) -> Record {
        Record {
            keyspace: self.keyspace.clone(),
            key,
            value: None,
            validator: None,
            tags: Arc::default(),
            fresh_ms: None,
            stale_ms: None,
            rescue_ms: None,
            logged_at: self.logged_at,
            dead: None,
            saved: true,
        }
    }

    /// What it counts for against the bytes that a journal may have.
    pub fn bytes(&self) -> usize {
        let texts = |texts: &[Arc<str>]| texts.iter().map(|text| text.len()).sum::<usize>();
        self.key.len()
            + self.value.as_ref().map_or(0, |value| value.len())
            + self.validator.as_ref().map_or(0, |validator| validator.len())
            + texts(&self.tags)
            + OVERHEAD
    }
}

/// What a record costs beside its texts, in memory and on disk; about.
const OVERHEAD: usize = 128;

/// One thing that a commit does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a write of this number, in place of one that had the number before.
    Put(u64, Arc<Record>),
    /// There is none of this number, whether there was one or not.
    Remove(u64),
}

/// What a store has when it is opened.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Names this journal among all journals. Given when it was made, at random, and never changed.
    pub id: u64,
    /// The highest number that was ever put, whether or not it is still there.
    pub last: u64,
    /// The writes with their numbers, in that order.
    pub records: Vec<(u64, Arc<Record>)>,
}

/// Why a store did not do what it was asked.
pub type StoreError = Arc<dyn Error + Send + Sync>;

/// Where a journal keeps its writes.
pub trait Store: Send + Sync + 'static {
    /// What it is, for messages: `the file orders.journal`.
    fn summary(&self) -> String;

    /// Carries out all changes or none. When it returns `Ok`, they survive a crash of the process and of the machine. After
    /// an error nobody knows: they may be there. Called one at a time; a later call may be tried after an error.
    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>>;
}
