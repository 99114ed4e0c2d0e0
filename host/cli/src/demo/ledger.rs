//! What readers have a right to: for each row, the version whose change was last acknowledged.
//!
//! "No stale value after an acknowledged invalidation" is checked for every single read. A reader notes the version that the
//! ledger has *before* it reads; what it then gets may not be older. Versions are the database's own, and a writer enters one
//! when its write or invalidation has returned `Ok`, not before. What was not acknowledged, because a store was cut off, is
//! not promised, and not entered; a soft invalidation promises nothing either.

use std::sync::atomic::{AtomicU64, Ordering};

use super::goods::Part;

/// The versions that were acknowledged.
#[derive(Debug)]
pub struct Ledger {
    versions: [Vec<AtomicU64>; 5],
}

impl Ledger {
    /// For so many rows of each part.
    pub fn new(rows: usize) -> Self {
        Ledger { versions: std::array::from_fn(|_| (0..rows).map(|_| AtomicU64::new(0)).collect()) }
    }

    /// What a read that begins now may not fall below. Rows that the shop does not have have no version.
    pub fn floor(&self, part: Part, row: usize) -> u64 {
        self.versions[part as usize].get(row).map_or(0, |version| version.load(Ordering::SeqCst))
    }

    /// From now on nobody may read anything older.
    pub fn acknowledge(&self, part: Part, row: usize, version: u64) {
        if let Some(known) = self.versions[part as usize].get(row) {
            known.fetch_max(version, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_last_is_the_floor() {
        let ledger = Ledger::new(2);
        assert_eq!(ledger.floor(Part::Price, 1), 0);
        ledger.acknowledge(Part::Price, 1, 7);
        ledger.acknowledge(Part::Price, 1, 5);
        assert_eq!(
            (ledger.floor(Part::Price, 1), ledger.floor(Part::Price, 0), ledger.floor(Part::Stock, 1)),
            (7, 0, 0)
        );
        ledger.acknowledge(Part::Price, 9, 1);
        assert_eq!(ledger.floor(Part::Price, 9), 0);
    }
}
