//! The `lru` crate behind one `std::sync::Mutex`: what many services write before they reach for a cache.

use super::Contender;
use anyhow::{Context, Result};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub struct MutexLru(Mutex<LruCache<u64, u64>>);

impl MutexLru {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, LruCache<u64, u64>> {
        // Nothing in here panics, and a poisoned benchmark has failed already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contender for MutexLru {
    const NAME: &'static str = "Mutex<lru>";
    const PACKAGE: &'static str = "lru";
    const CONFIGURATION: &'static str = "`std::sync::Mutex<LruCache::new(capacity)>`, `get_or_insert` under the lock";

    fn build(capacity: usize) -> Result<Self> {
        let capacity = NonZeroUsize::new(capacity).context("a capacity of no entries")?;
        Ok(Self(Mutex::new(LruCache::new(capacity))))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.lock().get(&key).copied()
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.lock().put(key, value);
    }

    #[inline]
    fn get_or_insert(&self, key: u64, value: u64) -> bool {
        let mut hit = true;
        self.lock().get_or_insert(key, || {
            hit = false;
            value
        });
        hit
    }

    fn resident(&self) -> Option<usize> {
        Some(self.lock().len())
    }
}
