//! moka puts its bookkeeping off: reads and writes are logged and replayed by whichever call finds the logs long
//! enough. A cache of a few hundred entries can therefore hold many times its capacity for a while, which shows as
//! hit ratios that no cache of that size could have. [`MokaDrained`] replays after every insertion and shows what the
//! policy itself achieves.

use super::Contender;
use anyhow::Result;
use moka::sync::Cache;

pub struct Moka(Cache<u64, u64>);

impl Contender for Moka {
    const NAME: &'static str = "moka";
    const PACKAGE: &'static str = "moka";
    const CONFIGURATION: &'static str = "`sync::Cache::new(capacity)`, `get_with`";

    fn build(capacity: usize) -> Result<Self> {
        Ok(Self(Cache::new(u64::try_from(capacity)?)))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    #[inline]
    fn get_or_insert(&self, key: u64, value: u64) -> bool {
        let mut hit = true;
        self.0.get_with(key, || {
            hit = false;
            value
        });
        hit
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }

    fn resident(&self) -> Option<usize> {
        usize::try_from(self.0.entry_count()).ok()
    }
}

pub struct MokaDrained(Moka);

impl Contender for MokaDrained {
    const NAME: &'static str = "moka-drained";
    const PACKAGE: &'static str = "moka";
    const CONFIGURATION: &'static str = "as moka, with `run_pending_tasks` after every insertion";
    const VARIANT: bool = true;

    fn build(capacity: usize) -> Result<Self> {
        Moka::build(capacity).map(Self)
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(key)
    }

    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
        self.0.settle();
    }

    fn get_or_insert(&self, key: u64, value: u64) -> bool {
        let hit = self.0.get_or_insert(key, value);
        if !hit {
            self.0.settle();
        }
        hit
    }

    fn settle(&self) {
        self.0.settle();
    }

    fn resident(&self) -> Option<usize> {
        self.0.resident()
    }
}
