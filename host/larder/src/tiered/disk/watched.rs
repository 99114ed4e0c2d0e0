//! What redb reads and writes, watched for a sync that fails.
//!
//! After one nobody knows what the disk has: Linux drops what it had not written, goes on showing it to whoever reads, and says so
//! once (Rebello and others, *Can Applications Recover from fsync Failures?*, ATC 2020). No check finds that until the pages leave
//! memory, or the power is cut; then a page may be what it was long before.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use redb::{BackendError, StorageBackend};

/// Whether a sync has failed, since the file was made.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(super) fn is_there(&self) -> bool {
        self.0.load(SeqCst)
    }

    pub(super) fn has_ended(&self) {
        self.0.store(false, SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct Watched {
    pub(super) bytes: Box<dyn StorageBackend>,
    pub(super) doubt: Doubt,
}

type Locked = Result<bool, BackendError>;

impl StorageBackend for Watched {
    fn sync_data(&self) -> io::Result<()> {
        let synced = self.bytes.sync_data();
        if synced.is_err() {
            self.doubt.0.store(true, SeqCst);
        }
        synced
    }

    // All else as it is.

    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.bytes.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.bytes.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.bytes.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.bytes.query_lock_range(start, end)
    }
}
