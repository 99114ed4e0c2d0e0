//! A disk that does what disks do: it fails now and then, writes half of what it was told, forgets at a power cut what was
//! not synced, in any order and torn at sectors; and where a sync fails it drops what it had not written, and says so once (as
//! Linux does, whose page cache goes on showing what the disk never got). All by one seed. For the tests of what keeps files.

#![allow(missing_docs, missing_debug_implementations)] // For tests here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use redb::{DatabaseError, StorageBackend};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A change that no sync has brought to the disk.
#[derive(Debug)]
enum Unsynced {
    Written(u64, Vec<u8>),
    Sized(u64),
}

#[derive(Debug, Default)]
struct Bytes {
    /// As programs see them.
    cached: Vec<u8>,
    /// As a power cut leaves them, with some of the unsynced changes.
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// How often the machine was started.
    run: u64,
    /// In this run.
    is_locked: bool,
}

/// What may fail before a write, for what is to be written.
type BeforeWrite = fn(&[u8]) -> io::Result<()>;

/// See the module's documentation.
#[derive(Debug)]
pub struct Platter {
    bytes: Mutex<Bytes>,
    random: AtomicU64,
    /// One call in so many fails; 0: none.
    fails: AtomicU64,
    syncs_fail: AtomicBool,
    syncs_wait: AtomicBool,
    before_writes: Mutex<Option<BeforeWrite>>,
    /// How many have waited.
    pub waited: AtomicU64,
    pub failed: AtomicU64,
    pub removed: AtomicU64,
}

fn apply(bytes: &mut Vec<u8>, change: &Unsynced) {
    match change {
        Unsynced::Written(at, data) => {
            let at = *at as usize;
            // A write beyond the end makes the file longer.
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[at..at + data.len()].copy_from_slice(data);
        }
        Unsynced::Sized(len) => bytes.resize(*len as usize, 0),
    }
}

impl Platter {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Platter {
            bytes: Mutex::default(),
            random: AtomicU64::new((seed ^ 0xd15c).wrapping_mul(0xd134_2543_de82_ef95)),
            fails: AtomicU64::new(0),
            syncs_fail: AtomicBool::new(false),
            syncs_wait: AtomicBool::new(false),
            before_writes: Mutex::default(),
            waited: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            removed: AtomicU64::new(0),
        })
    }

    /// SplitMix64.
    fn below(&self, n: u64) -> u64 {
        let z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// From now on one call in so many fails; 0: none.
    pub fn fail_one_in(&self, calls: u64) {
        self.fails.store(calls, SeqCst);
    }

    /// Whether each sync fails from now on.
    pub fn fail_syncs(&self, they_do: bool) {
        self.syncs_fail.store(they_do, SeqCst);
    }

    /// What is asked before each write from now on. Where it fails nothing is written.
    pub fn before_writes(&self, what: Option<BeforeWrite>) {
        *self.before_writes.lock() = what;
    }

    /// Whether syncs wait until they may go on.
    pub fn hold_syncs(&self, they_wait: bool) {
        self.syncs_wait.store(they_wait, SeqCst);
    }

    /// The power is cut, and comes back: of what was not synced, some is there.
    pub fn cut_power(&self) {
        let Bytes { cached, durable, unsynced, run, is_locked } = &mut *self.bytes.lock();
        for change in unsynced.drain(..) {
            match change {
                _ if self.below(2) == 0 => {}
                Unsynced::Written(at, data) if self.below(4) == 0 => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if self.below(2) == 0 {
                            apply(durable, &Unsynced::Written(at + (number * SECTOR) as u64, sector.to_vec()));
                        }
                    }
                }
                change => apply(durable, &change),
            }
        }
        cached.clone_from(durable);
        *run += 1;
        *is_locked = false;
    }

    /// The disk as the machine sees it, until the next power cut.
    pub fn attach(self: &Arc<Self>) -> Attached {
        Attached { platter: self.clone(), run: self.bytes.lock().run, _lock: None }
    }
}

#[derive(Clone, Debug)]
pub struct Attached {
    platter: Arc<Platter>,
    run: u64,
    /// Given back with the last clone.
    _lock: Option<Arc<Lock>>,
}

/// As a process has that has opened a file for itself alone.
#[derive(Debug)]
struct Lock {
    platter: Arc<Platter>,
    run: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut bytes = self.platter.bytes.lock();
        if bytes.run == self.run {
            bytes.is_locked = false;
        }
    }
}

impl Attached {
    fn with<T>(&self, call: impl FnOnce(&mut Bytes) -> io::Result<T>) -> io::Result<T> {
        let mut bytes = self.platter.bytes.lock();
        if bytes.run != self.run {
            return Err(io::Error::other("the power was cut"));
        }
        call(&mut bytes)
    }

    fn luck(&self) -> io::Result<()> {
        self.luck_of(self.platter.fails.load(SeqCst))
    }

    fn luck_of(&self, fails: u64) -> io::Result<()> {
        if fails > 0 && self.platter.below(fails) == 0 {
            self.platter.failed.fetch_add(1, SeqCst);
            return Err(io::Error::other("the disk fails"));
        }
        Ok(())
    }
}

impl StorageBackend for Attached {
    fn len(&self) -> io::Result<u64> {
        self.with(|bytes| Ok(bytes.cached.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|bytes| {
            self.luck()?;
            let at = offset as usize;
            let from = bytes.cached.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| {
            self.luck()?;
            let change = Unsynced::Sized(len);
            apply(&mut bytes.cached, &change);
            bytes.unsynced.push(change);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.platter.syncs_wait.load(SeqCst) {
            self.platter.waited.fetch_add(1, SeqCst);
        }
        while self.platter.syncs_wait.load(SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.with(|Bytes { durable, unsynced, .. }| {
            let luck = if self.platter.syncs_fail.load(SeqCst) { self.luck_of(1) } else { self.luck() };
            for change in unsynced.drain(..) {
                if luck.is_ok() || self.platter.below(2) == 0 {
                    apply(durable, &change);
                }
            }
            luck
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let before = *self.platter.before_writes.lock();
        before.map_or(Ok(()), |before| before(data))?;
        self.with(|bytes| {
            let luck = self.luck();
            let written = match luck {
                Ok(()) => data.len(),
                Err(_) => self.platter.below(data.len() as u64 + 1) as usize,
            };
            let change = Unsynced::Written(offset, data[..written].to_vec());
            apply(&mut bytes.cached, &change);
            bytes.unsynced.push(change);
            luck
        })
    }
}

impl Attached {
    /// It, for whoever has this one alone.
    pub fn locked(&self) -> Result<Attached, DatabaseError> {
        let lock = self.with(|bytes| Ok(!std::mem::replace(&mut bytes.is_locked, true)))?;
        if !lock {
            return Err(DatabaseError::DatabaseAlreadyOpen);
        }
        let lock = Lock { platter: self.platter.clone(), run: self.run };
        Ok(Attached { _lock: Some(Arc::new(lock)), ..self.clone() })
    }

    /// Whether the machine has run since it was attached.
    pub fn is_on(&self) -> bool {
        self.platter.bytes.lock().run == self.run
    }

    /// All that is there is gone, for good.
    pub fn erase(&self) {
        let mut bytes = self.platter.bytes.lock();
        bytes.cached.clear();
        bytes.durable.clear();
        bytes.unsynced.clear();
    }
}

#[cfg(feature = "disk")]
impl crate::tiered::disk::Medium for Attached {
    fn bytes(&self) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        Ok(Box::new(self.locked()?))
    }

    fn remove(&self) -> io::Result<()> {
        if !self.is_on() {
            return Err(io::Error::other("the power was cut"));
        }
        self.platter.removed.fetch_add(1, SeqCst);
        // Names are a matter of the file system's, which keeps its own order.
        self.erase();
        Ok(())
    }
}
